"""The service: its units, what it waits for, what it does when the server ends. No systemd here."""

import getpass
import os
import plistlib
import pwd
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.lib.service.service_policy import HEALTHY_S, PAUSE_S, TRIES, what_next
from scripts.lib.service.service_run import can_bind, read_settings
from scripts.lib.service.service_unit import launchd_unit, settings_of, systemd_unit
from scripts.lib.status.ask import read_service
from tests.scripts.status.test_cluster_status import SERVER
from tests.support.launch_helpers import wait_until
from tests.support.paths import ROOT

ODD = '/Users/al ice/R&D <"lab">/100% $HOME\\x/run/8080/service.settings'


# -- what follows an end


@pytest.mark.parametrize(
    ("code", "how", "again", "given_up"),
    [
        (0, {}, False, False),
        (143, {"asked": True}, False, False),
        (78, {}, False, True),
        (2, {}, False, True),
        (1, {}, True, False),
        (3, {}, True, False),
        (-9, {}, True, False),
        (1, {"tries": TRIES - 1}, False, True),
        (1, {"tries": TRIES - 1, "lived_s": HEALTHY_S}, True, False),
    ],
)
def test_what_follows_an_end(code, how, again, given_up):
    following = what_next(code, **{"lived_s": 10.0, "asked": False, "tries": 0} | how)
    assert (following.start_again, following.given_up) == (again, given_up)
    assert following.pause_s == (PAUSE_S if again else 0.0)


def test_starts_that_end_badly_are_counted_up_to_a_limit():
    tries, starts = 0, 0
    while True:
        starts += 1
        following = what_next(1, 10.0, asked=False, tries=tries)
        tries = following.tries
        if not following.start_again:
            break
    assert starts == TRIES
    assert f"{TRIES} starts in a row ended badly" in following.reason


def test_an_end_while_a_host_is_away_counts_for_nothing():
    following = what_next(1, 10.0, asked=False, tries=TRIES - 1, missing=True)
    assert (following.start_again, following.tries) == (True, TRIES - 1)
    assert not what_next(78, 10.0, asked=False, tries=0, missing=True).start_again


# -- units


def test_a_launchd_unit_holds_odd_paths_and_lets_ranks_unload():
    data = launchd_unit(8080, "/opt/py thon", ODD, 90, "alice", "/l o/g")
    assert b"R&amp;D &lt;" in data
    unit = plistlib.loads(data)
    assert unit["Label"] == "mlx-cluster.server.8080"
    assert unit["ProgramArguments"] == [
        "/opt/py thon", str(ROOT / "scripts/lib/module.py"),
        "lib.service.service_run", ODD, "--give-up-code", "0",
    ]  # fmt: skip
    assert unit["ExitTimeOut"] == 90
    assert unit["KeepAlive"] == {"SuccessfulExit": False}
    assert unit["RunAtLoad"] is True
    assert unit["UserName"] == "alice"
    assert unit["StandardErrorPath"] == "/l o/g"
    assert "EnvironmentVariables" not in unit


def test_a_users_launchd_unit_names_no_user():
    assert "UserName" not in plistlib.loads(launchd_unit(1, "/p", "/s", 9, "", "/l"))


def systemd_values(unit: bytes, name: str) -> list[str]:
    lines = unit.decode().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def test_a_systemd_unit_signals_one_process_and_respects_giving_up():
    unit = systemd_unit(8080, "/opt/py thon", ODD, 90, "alice")
    assert systemd_values(unit, "KillMode") == ["mixed"]
    assert systemd_values(unit, "TimeoutStopSec") == ["90"]
    assert systemd_values(unit, "Restart") == ["on-failure"]
    assert systemd_values(unit, "RestartPreventExitStatus") == ["2 78"]
    assert systemd_values(unit, "User") == ["alice"]
    assert systemd_values(unit, "WantedBy") == ["multi-user.target"]
    (start,) = systemd_values(unit, "ExecStart")
    assert start.startswith('"/opt/py thon" "')
    assert start.endswith(r'R&D <\"lab\">/100%% $$HOME\\x/run/8080/service.settings"')


def test_a_users_systemd_unit_names_no_user_and_no_network():
    unit = systemd_unit(8080, "/p", "/s", 90, "")
    assert systemd_values(unit, "User") == systemd_values(unit, "After") == []
    assert systemd_values(unit, "WantedBy") == ["default.target"]


@pytest.mark.parametrize("user", [getpass.getuser(), ""])
def test_systemd_accepts_the_unit(tmp_path, user):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    python = tmp_path / "100% odd & (lab)" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    path = tmp_path / "mlx-cluster-8080.service"
    path.write_bytes(systemd_unit(8080, str(python), ODD, 90, user))
    scope = [] if user else ["--user"]
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    command = [analyze, *scope, "verify", path]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    "unit", [launchd_unit(1, "/p", ODD, 9, "", "/l"), systemd_unit(1, "/p", ODD, 9, "x")]
)
def test_a_unit_tells_whose_it_is(unit):
    assert settings_of(unit) == ODD


def test_a_unit_from_before_service_run_was_a_module_is_ours_too():
    words = ["/p", "/checkout/scripts/lib/service_run.py", ODD, "--give-up-code", "0"]
    assert settings_of(plistlib.dumps({"ProgramArguments": words})) == ODD


@pytest.mark.parametrize(
    "unit",
    [
        b"",
        b"[Unit]\n",
        plistlib.dumps({"Label": "x"}),
        plistlib.dumps([]),
        b"<plist>",
        plistlib.dumps({"ProgramArguments": ["/p", "/c/scripts/lib/module.py", "lib.other", "x"]}),
    ],
)
def test_other_units_are_not_ours(unit):
    with pytest.raises(ValueError, match="not a unit of ours"):
        settings_of(unit)


def test_a_python_that_systemd_cannot_start_is_named():
    command = [sys.executable, ROOT / "scripts/lib/module.py", "lib.service.service_unit",
               "systemd", "--port", "1",
               "--settings", "/s", "--stop-within", "9", "--python", '/a"b/python']  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "systemd starts no program with one of" in done.stderr


# -- settings


def test_settings_are_taken_literally():
    text = "# A=b\nMODEL_DIR=/a b/$HOME=`x`\n\nARGUMENT=--env\nARGUMENT=A=b c\nQUEUE_MAX=0\n"
    assert read_settings(text) == (
        {"MODEL_DIR": "/a b/$HOME=`x`", "QUEUE_MAX": "0"}, ["--env", "A=b c"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("no-such-host.invalid", False),
    ],
)
def test_an_address_that_this_machine_does_not_have_yet(address, here):
    assert can_bind(address) is here


# -- the service as it runs, with a stand-in for the run script

STAND_IN = """\
#!/usr/bin/env bash
echo "$$" >"$NOTES.pid"
trap 'echo "TERM" >>"$NOTES"; exit "${ON_TERM:-0}"' TERM
echo "start $* QUEUE_MAX=$QUEUE_MAX in ${HOME-nowhere}" >>"$NOTES"
[ -z "${CODE-}" ] || exit "$CODE"
while :; do sleep 0.05; done
"""
TWEAK = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from scripts.lib.service import service_policy
service_policy.PAUSE_S = 0.01
from scripts.lib.service import service_run
service_run.LOOK_EVERY_S = 0.05
sys.exit(service_run.main())
"""


class Running:
    """A service_run.py in a checkout of its own."""

    def __init__(self, folder: Path):
        self.checkout = folder / "check out"
        lib = self.checkout / "scripts" / "lib"
        shutil.copytree(ROOT / "scripts" / "lib", lib)
        (self.checkout / "server").mkdir()
        for name in ("__init__.py", "protocol/__init__.py", "protocol/exit_codes.py"):
            (self.checkout / "server" / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / "server" / name, self.checkout / "server" / name)
        script = self.checkout / "scripts" / "run_openai_cluster_server.sh"
        script.write_text(STAND_IN)
        script.chmod(0o755)
        self.notes = folder / "notes"
        self.settings = folder / "settings"
        self.command = [sys.executable, "-c", TWEAK, str(self.checkout), str(self.settings)]
        self.process: subprocess.Popen | None = None

    def start(self, *options: str, env=None, **settings: object) -> None:
        values = {"NOTES": self.notes, "QUEUE_MAX": 5} | settings
        lines = [f"{name}={value}\n" for name, value in values.items()]
        self.settings.write_text("".join(lines) + "ARGUMENT=--local\nARGUMENT=2\n")
        self.process = subprocess.Popen(
            [*self.command, *options], stderr=subprocess.PIPE, text=True, env=env
        )

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def finish(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=240)
        return self.process.returncode, errors


@pytest.fixture
def service(tmp_path):
    one = Running(tmp_path)
    yield one
    if one.process is not None:
        one.process.kill()
        one.process.communicate()


def test_the_server_gets_its_settings_and_every_signal(service):
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    service.start(env=env, ON_TERM=143)
    wait_until(service.noted, "the server to start")
    service.process.send_signal(signal.SIGTERM)
    code, errors = service.finish()
    assert code == 0
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert service.noted() == [f"start --local 2 QUEUE_MAX=5 in {home}", "TERM"]
    assert "over: stopped as asked" in errors


def test_a_server_that_somebody_stopped_stays_stopped(service):
    service.start(CODE=0)
    code, errors = service.finish()
    assert (code, len(service.noted())) == (0, 1)
    assert "it starts again at the next boot" in errors


@pytest.mark.parametrize(("options", "expected"), [((), 78), (("--give-up-code", "0"), 0)])
def test_after_code_78_it_gives_up_with_the_code_that_the_manager_heeds(service, options, expected):
    service.start(*options, CODE=78)
    code, errors = service.finish()
    assert (code, len(service.noted())) == (expected, 1)
    assert "over: starting again cannot help" in errors


def test_after_other_failures_it_tries_a_few_times(service):
    service.start(CODE=1)
    code, errors = service.finish()
    assert (code, len(service.noted())) == (78, TRIES)
    assert "start 1 of 3 ended badly: starting again in 0 s" in errors
    assert "over: 3 starts in a row ended badly" in errors


def test_without_settings_it_gives_up(service):
    service.process = subprocess.Popen(service.command, stderr=subprocess.PIPE, text=True)
    code, errors = service.finish()
    assert code == 78
    assert "run install_service.sh again" in errors


def test_it_waits_for_the_hosts_and_says_for_which(service, nodes, tmp_path):
    nodes["node-2"].down()
    hostfile = nodes.write_hostfile(tmp_path / "hosts.json", ["node-1", "node-2"])
    service.start(env=nodes.env, HOSTFILE=hostfile)
    said = service.process.stderr.readline()
    assert "waiting: node-2: " in said
    assert "node-1" not in said
    assert service.noted() == []
    server = replace(SERVER, run_dir=tmp_path)
    wait_until(lambda: read_service(server).startswith("waiting: node-2: "), "its record")
    nodes["node-2"].up()
    wait_until(service.noted, "the server to start")
    service.process.send_signal(signal.SIGTERM)
    assert service.finish()[0] == 0
    assert read_service(server) == ""


def test_servers_that_end_while_a_host_is_away_are_not_counted(service, nodes, tmp_path):
    """The host goes after the service has looked for it, and before the server has."""
    hostfile = nodes.write_hostfile(tmp_path / "hosts.json", ["node-2"])
    service.start(env=nodes.env, HOSTFILE=hostfile)
    wait_until(service.noted, "the server to start")
    nodes["node-2"].down()
    os.kill(int(Path(f"{service.notes}.pid").read_text()), signal.SIGKILL)
    said = ""
    while "not all hosts answer: starting again" not in said:
        said = service.process.stderr.readline()
        assert said and "ended badly" not in said
    nodes["node-2"].up()
    wait_until(lambda: len(service.noted()) == 2, "the server to start again")
    service.process.send_signal(signal.SIGTERM)
    assert service.finish()[0] == 0


def test_asked_to_stop_while_it_waits_it_leaves(service):
    service.start(HTTP_HOST="192.0.2.7")
    assert "HTTP_HOST=192.0.2.7 is no address of this machine yet" in (
        service.process.stderr.readline()
    )
    service.process.send_signal(signal.SIGTERM)
    assert service.finish()[0] == 0
    assert service.noted() == []
