"""Protection domains and starts of JACCL, counted; the tools are stubs that say what macOS's do."""

import json

import mlx.core as mx
import pytest

from server.main import _explain
from server.protocol.domains import parse_count
from server.protocol.exit_codes import CONFIG
from server.startup import domains, joining
from server.startup.domains import UsedUp, counted
from server.startup.handshake import Mismatch

SAYS = "AppleThunderboltRDMAProtectionDomain = {}\n"


class Mac:
    """Its tools and its record. held: domains; boot: of this session."""

    def __init__(self, folder, monkeypatch) -> None:
        self.record = folder / "run" / "jaccl-starts.json"
        self._tools = {name: folder / name for name in ("COUNT", "BOOT")}
        self.say("COUNT", SAYS.format(0))
        self.say("BOOT", "9D0C4A5E-0000\n")
        monkeypatch.setattr(domains, "RECORD", self.record)
        for name, path in self._tools.items():
            monkeypatch.setattr(domains, name, (str(path),))

    def say(self, tool: str, text: str, code: int = 0) -> None:
        self._tools[tool].write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {code}\n")
        self._tools[tool].chmod(0o755)

    def remove(self, tool: str) -> None:
        self._tools[tool].unlink()

    def start(self, devices: int = 3, fails: type[Exception] | None = None) -> str:
        try:
            with counted(devices, LookupError) as told:
                if fails:
                    raise fails
        except (RuntimeError, LookupError):
            pass
        return told


@pytest.fixture
def mac(tmp_path, monkeypatch):
    return Mac(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (SAYS.format(7), 7),
        ("  AppleThunderboltRDMAProtectionDomain  12\n", 12),
        ("IOService = 900\n", None),
        ("", None),
        ("AppleThunderboltRDMAProtectionDomain = none\n", None),
    ],
)
def test_what_the_kernel_counts(text, count):
    assert parse_count(text) == count


def test_starts_are_counted_from_boot_and_failures_among_them(mac):
    mac.start()
    mac.start(fails=RuntimeError)
    mac.say("COUNT", SAYS.format(2))
    assert mac.start() == (
        "RDMA: 2 of about 11 protection domains are in use; "
        "2 starts of JACCL since this Mac booted, 1 failed"
    )
    mac.say("BOOT", "another\n")
    assert "0 starts of JACCL since this Mac booted, 0 failed" in mac.start()


@pytest.mark.parametrize(("held", "devices", "fits"), [(7, 3, True), (8, 3, False), (0, 12, True)])
def test_a_start_that_could_take_the_last_is_refused_before_it_begins(mac, held, devices, fits):
    mac.say("COUNT", SAYS.format(held))
    if fits:
        mac.start(devices)
    else:
        with pytest.raises(UsedUp, match=f"{held} of about 11 .* needs {devices}.*restart"):
            mac.start(devices)
        assert not mac.record.exists()


@pytest.mark.parametrize(("most", "fits"), [(20, True), (0, True), (11, False)])
def test_whoever_knows_better_may_say_so(mac, tmp_path, monkeypatch, most, fits):
    mac.say("COUNT", SAYS.format(15))
    matrix = tmp_path / "devices.json"
    matrix.write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    joined = type("Group", (), {"rank": lambda self: 0, "size": lambda self: 2})()
    monkeypatch.setattr(mx.distributed, "init", lambda **_: joined)
    env = {"MLX_IBV_DEVICES": str(matrix), "PROTECTION_DOMAINS": str(most)}
    if fits:
        assert joining.join(env).size == 2
    else:
        with pytest.raises(Mismatch, match="or set PROTECTION_DOMAINS, if it has more"):
            joining.join(env)


def test_a_start_for_which_a_rank_came_too_late_is_none(mac):
    """It opened no device."""
    for _ in range(20):
        mac.start(fails=LookupError)
    assert "0 starts of JACCL since this Mac booted, 0 failed" in mac.start()


def test_without_the_kernels_count_failed_starts_stand_for_it(mac):
    mac.remove("COUNT")
    for _ in range(8):
        mac.start(fails=RuntimeError)
    with pytest.raises(UsedUp, match="8 starts of JACCL since this Mac booted, 8 failed"):
        mac.start()
    mac.say("COUNT", SAYS.format(1))
    mac.start()


WRONG = ["", "{", "[]", '{"boot": 1}', '{"a": 2}']


@pytest.mark.parametrize("text", [*WRONG, '{"boot": "9D0C4A5E-0000", "begun": 1, "joined": 5}'])
def test_a_record_that_cannot_be_read_begins_anew(mac, text):
    mac.record.parent.mkdir()
    mac.record.write_text(text)
    mac.start()
    assert json.loads(mac.record.read_text()) == {"boot": "9D0C4A5E-0000", "begun": 1, "joined": 1}


def test_where_nothing_is_known_nothing_is_told_or_refused(mac):
    mac.remove("COUNT")
    mac.remove("BOOT")
    for _ in range(20):
        assert mac.start(fails=RuntimeError) == ""
    assert not mac.record.exists()


def test_a_refused_start_ends_for_good_with_the_reason(mac, tmp_path, monkeypatch):
    mac.say("COUNT", SAYS.format(10))
    matrix = tmp_path / "devices.json"
    matrix.write_text('[[null, "rdma_en2"], ["rdma_en2", null]]')
    monkeypatch.setattr(mx.distributed, "init", lambda **_: pytest.fail("it was started"))
    env = {"MLX_IBV_DEVICES": str(matrix), "RANK_HOSTS": "mac0,mac1", "MLX_RANK": "1"}
    with pytest.raises(Mismatch, match=r"rank 1 \(mac1\): RDMA: 10 of about 11") as refused:
        joining.join(env)
    assert _explain(refused.value) == (CONFIG, str(refused.value))
