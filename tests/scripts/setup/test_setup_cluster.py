"""The walk of setup_cluster.sh: what it asks, shows and leaves alone. The scripts that it calls are
stubs that do the least that their step is looked at for; tests/whole has them real."""

import errno
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import time
import types
from pathlib import Path

import pytest

from scripts.lib.setup.look_hosts import sudo_lines
from scripts.lib.setup.state import StateError, read_state
from scripts.lib.setup.steps import NAMES, as_root
from tests.scripts.sync.test_sync_nodes import make_environment
from tests.support.launch_helpers import PATIENCE_S, wait_until
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.processes import processes
from tests.support.wiring import mesh

GENERATED = shutil.ignore_patterns("__pycache__", ".*")
HOSTS = ("mac0", "bjorn@mac1")
SETTINGS = ("HOSTFILE", "MODEL_DIR", "PYTHON", "HTTP_PORT", "CLUSTER_ENV")
# Here is every host; options come first.
SSH = """
echo "ssh $*" >>"$CALLS"
while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
[ ! -e "$STATE/refused" ] || { echo "$1: Permission denied (publickey)." >&2; exit 255; }
[ ! -e "$STATE/changed" ] || {
  echo "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @" >&2
  echo "Host key verification failed." >&2
  exit 255
}
[ ! -e "$STATE/down" ] || { echo "ssh: connect to host $1: Connection refused" >&2; exit 255; }
shift
exec bash -c "$*"
"""
STUBS = {
    "make_hostfile.sh": """
while [ $# -gt 0 ]; do [ "$1" != --output ] || out=$2; shift; done
echo "$HOSTFILE_TEXT" >"$out"
""",
    "sync_nodes.sh": "exit 0",
    "sync_model.sh": 'touch "$STATE/model"',
    "verify_cluster.sh": """
case "$*" in
  *"--check model"*) [ -e "$STATE/model" ]; exit ;;
  *--link*) [ ! -e "$STATE/slow" ] || { touch "$STATE/begun"; sleep 600; echo late; } ;;
esac
[ ! -e "$STATE/broken" ] || { echo "verify_cluster.sh: the cable of mac0 is out" >&2; exit 1; }
""",
    "bench.sh": "echo tokens_per_sec=1",
    "run_openai_cluster_server.sh": 'touch "$STATE/runs"',
    "stop_openai_cluster_server.sh": 'rm "$STATE/runs"',
    "status.sh": """
[ -e "$STATE/runs" ] || exit 3
echo "$STATUS_TEXT"
""",
}


class Place:
    """A checkout whose scripts are stubs, and hosts that are all this machine."""

    def __init__(self, folder: Path):
        self.root, self.state = folder / "my checkout", folder / "state"
        self.calls = folder / "calls"
        for name in ("scripts", "server"):
            shutil.copytree(ROOT / name, self.root / name, ignore=GENERATED)
        shutil.copy(ROOT / "requirements.txt", self.root)
        make_environment(self.root / ".venv")
        (self.root / "models" / "Tiny").mkdir(parents=True)
        (self.root / "hostfiles").mkdir()
        self.state.mkdir()
        self.calls.write_text("")
        stubs = folder / "bin"
        stubs.mkdir()
        for path, body in [(stubs / "ssh", SSH), (stubs / "ssh-copy-id", 'rm -f "$STATE/refused"')]:
            self.put(path, body)
        for name, body in STUBS.items():
            self.put(self.root / "scripts" / name, f'echo "{name} $*" >>"$CALLS"\n{body}')
        hosts = [{"ssh": host, "ips": ["192.0.2.1"]} for host in HOSTS]
        ranks = [{"host": host} for host in HOSTS]
        server = {"url": f"http://127.0.0.1:{free_port()}", "model": "Tiny", "ranks": ranks}
        plain = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        self.env = plain | {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "STATE": str(self.state),
            "HOSTFILE_TEXT": json.dumps({"backend": "ring", "hosts": hosts}),
            "STATUS_TEXT": json.dumps({"servers": [server]}),
        }

    def put(self, path: Path, body: str) -> None:
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    @property
    def words(self) -> list[str]:
        return [str(self.root / "scripts" / "setup_cluster.sh"), "--skip", "answer"]

    def run(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [*self.words, *arguments], env=self.env, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    def called(self) -> list[str]:
        """The scripts of ours that were run, and that change something or take their time."""
        lines = [line for line in self.calls.read_text().splitlines() if line.split()[0] in STUBS]
        self.calls.write_text("")
        return [line for line in lines if not line.startswith("status.sh")
                and "--check model" not in line]  # fmt: skip

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_every_step_is_done_once_and_looked_at_ever_after(place):
    said = place.run("--yes", "--model", str(place.root / "models/Tiny"), *HOSTS)
    doctor, hostfile, model, verify, bench, serve = place.called()
    assert doctor.startswith("verify_cluster.sh --check ssh ") and doctor.endswith(
        "mac0 bjorn@mac1"
    )
    assert hostfile == (
        "make_hostfile.sh --ring-tcp --output hostfiles/ring.local.json mac0 bjorn@mac1"
    )
    assert model == "sync_model.sh models/Tiny mac0 bjorn@mac1"
    assert [verify, bench] == ["verify_cluster.sh --link", "bench.sh "]
    assert serve == "run_openai_cluster_server.sh --detach --port 8080"
    assert "[4/13] addresses: not needed here: " in said
    # All shown before it was done.
    assert "  + MODEL_DIR=models/Tiny scripts/bench.sh\n" in said

    said = place.run("--yes")  # hosts and model are remembered
    assert [line.split()[0] for line in place.called()] == ["verify_cluster.sh"] * 2
    for step in ("hostfile", "environment", "python", "sync", "model", "benchmark", "serve"):
        assert f"] {step}: holds" in said, said

    # What holds no more is done again, and nothing else.
    (place.state / "runs").unlink()
    (place.root / "hostfiles/ring.local.json").write_text("{}")
    place.run("--yes")
    hostfile, serve = [line for line in place.called() if "verify" not in line]
    assert hostfile.startswith("make_hostfile.sh --ring-tcp --force --output ")
    assert serve.startswith("run_openai_cluster_server.sh ")


def test_hosts_that_are_added_and_another_model_are_brought_in(place):
    place.run("--yes", "--model", str(place.root / "models/Tiny"), *HOSTS)
    place.called()
    other = place.root / "models" / "Other"
    other.mkdir()
    said = place.run("--yes", "--model", str(other), "--from", "serve", expect=1)
    assert place.called()[0] == "stop_openai_cluster_server.sh --port 8080"
    assert "a server runs with another model: Tiny" in said
    said = place.run("--yes", "mac0", "mac2", expect=1)
    assert "hostfiles/ring.local.json is for other hosts: mac0, bjorn@mac1" in said


def test_a_step_that_fails_is_named_with_what_was_said_and_how_to_go_on(place):
    (place.state / "broken").touch()
    said = place.run("--yes", "--model", str(place.root / "models/Tiny"), *HOSTS, expect=1)
    assert said.splitlines()[-2:] == [
        "setup_cluster.sh: step doctor: exit code 1 of scripts/verify_cluster.sh:"
        " verify_cluster.sh: the cable of mac0 is out",
        "setup_cluster.sh: to go on: scripts/setup_cluster.sh --from doctor --yes --skip answer",
    ]
    assert len(place.called()) == 1
    (place.state / "broken").unlink()
    place.run("--from", "doctor", "--yes")
    assert place.called()[-1].startswith("run_openai_cluster_server.sh")


def test_steps_before_the_first_and_those_left_out_are_not_looked_at(place):
    model = str(place.root / "models/Tiny")
    said = place.run(
        "--yes", "--model", model, "--from", "hostfile", "--skip", "verify", "--skip", "benchmark",
        *HOSTS,
    )  # fmt: skip
    assert [line.split()[0] for line in place.called()] == [
        "make_hostfile.sh", "sync_model.sh", "run_openai_cluster_server.sh",
    ]  # fmt: skip
    for step in ("ssh", "place", "doctor", "verify", "benchmark"):
        assert f"] {step}:" not in said


def test_a_hostfile_for_other_hosts_is_said_before_anything_is_done(place):
    """Steps after the one that writes it judged the hosts of the old one, for ever."""
    model = str(place.root / "models/Tiny")
    place.run("--yes", "--model", model, *HOSTS)
    three = {"backend": "ring", "hosts": [{"ssh": h, "ips": ["1.2.3.4"]} for h in ("a", "b", "c")]}
    (place.root / "hostfiles/ring.local.json").write_text(json.dumps(three))
    place.called()
    before = place.files()
    for arguments in (("--from", "verify"), ("--from", "serve", *HOSTS), ("--skip", "hostfile")):
        said = place.run("--yes", *arguments, expect=2)
        assert "hostfiles/ring.local.json is for a, b, c, not for mac0, bjorn@mac1: " in said
        assert "--from hostfile" in said and "name the hosts" in said
        assert place.called() == [] and place.files() == before
    said = place.run("--dry-run", "--from", "serve", *HOSTS)
    assert "is for a, b, c, not for mac0, bjorn@mac1" in said
    run = "MODEL_DIR=models/Tiny scripts/run_openai_cluster_server.sh --detach --port 8080"
    assert f"+ HOSTFILE=hostfiles/ring.local.json {run}\n" in said
    place.run("--yes", "--from", "hostfile")
    place.run("--dry-run", "--from", "serve")


def test_what_goes_on_has_the_settings_that_it_was_begun_with(place):
    (place.state / "broken").touch()
    model, key = str(place.root / "models/Tiny"), "secret-of-ours"
    settings = {"HTTP_PORT": "8123", "MODEL_DIR": model, "CONTEXT_MAX": "512", "API_KEY": key}
    place.env |= settings
    said = place.run("--yes", *HOSTS, expect=1)
    command = shlex.split(said.splitlines()[-1].partition("to go on: ")[2])
    at = command.index("scripts/setup_cluster.sh")
    assert set(command[:at]) == {f"{k}={v}" for k, v in settings.items() if k != "API_KEY"}
    assert command[at + 1 :] == ["--from", "doctor", "--yes", "--skip", "answer"]
    assert key not in said

    # What was named at the command line wins over the setting, which would win over what is kept.
    other = place.root / "models" / "An Other"
    other.mkdir()
    said = place.run("--yes", "--model", str(other), "--from", "doctor", expect=1)
    command = shlex.split(said.splitlines()[-1].partition("to go on: ")[2])
    assert command[-7:] == ["--from", "doctor", "--model", str(other), "--yes", "--skip", "answer"]
    assert not any(word.startswith("MODEL_DIR=") for word in command)

    (place.state / "broken").unlink()
    said = place.run("--yes", "--from", "serve")
    later = shlex.split(said.splitlines()[-1].partition("to serve this model later: ")[2])
    assert {"CONTEXT_MAX=512", "MODEL_DIR=models/Tiny", "HOSTFILE=hostfiles/ring.local.json"} <= (
        set(later)
    )


def test_models_of_the_list_are_brought_along_and_its_first_is_not_named_again(place):
    """With MODEL_DIR, too, the first would have a second name, of its folder."""
    folder = place.root / "models" / "top, all" / "One"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    place.env |= {"MODELS": f"small={folder}", "MODELS_DIR": str(folder.parent)}
    said = place.run("--dry-run", *HOSTS)
    assert "scripts/sync_model.sh --all mac0 bjorn@mac1\n" in said
    assert "MODEL_DIR=" not in said
    (place.state / "broken").touch()
    said = place.run("--yes", *HOSTS, expect=1)
    command = shlex.split(said.splitlines()[-1].partition("to go on: ")[2])
    assert {f"MODELS=small={folder}", f"MODELS_DIR={folder.parent}"} <= set(command)
    assert "--model" not in command
    assert json.loads((place.root / "run/setup.json").read_text())["model"] == ""
    # One that is named is the first, and the others are brought, too.
    said = place.run("--dry-run", "--model", str(place.root / "models/Tiny"))
    assert "MODEL_DIR=models/Tiny scripts/sync_model.sh --all mac0 bjorn@mac1\n" in said
    place.env["MODELS"] = "small=/none"
    said = place.run("--dry-run", expect=2)
    assert "MODELS='small=/none': must lead to a folder" in said


@pytest.mark.parametrize("kept", [True, False])
def test_a_model_that_is_gone_is_said_before_anything_is_done(place, kept):
    model = place.root / "models/Tiny"
    place.run("--yes", "--model", str(model), *HOSTS)
    place.called()
    model.rename(place.root / "models/Away")
    if not kept:
        place.env["MODEL_DIR"] = str(model)
    said = place.run("--yes", expect=2)
    whose = "the model of the last time," if kept else "MODEL_DIR"
    assert f"{whose} '{model}': must be a folder that is here" in said and "--model" in said
    assert place.called() == []


def test_dry_run_prints_every_command_asks_nobody_and_changes_nothing(place):
    before = place.files()
    said = place.run("--dry-run", *HOSTS)
    assert place.calls.read_text() == "" and place.files() == before
    headings = [line.split()[1] for line in said.splitlines() if line.startswith("# ")]
    assert headings == [f"{name}:" for name in NAMES if name != "answer"]
    for command in (
        "+ ssh-copy-id -o ConnectTimeout=5 bjorn@mac1\n",
        "+ scripts/sync_nodes.sh mac0 bjorn@mac1\n",
        "scripts/sync_model.sh MODEL mac0 bjorn@mac1\n",
        "scripts/run_openai_cluster_server.sh --detach --port 8080\n",
    ):
        assert command in said
    # A folder that is not there is said as what it is.
    assert "--model '/no/such'" in place.run("--dry-run", "--model", "/no/such", *HOSTS, expect=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "HOST is missing: ssh names of all Macs, rank 0 first"),
        (("mac0",), "HOST: must be 2 to 8 of them, not 1"),
        (("mac0", "-oProxyCommand=x"), "unknown argument '-oProxyCommand'"),
        (("mac0", "mac1;reboot"), "HOST 'mac1;reboot': not a name that ssh takes"),
        (("mac0", "anna@MAC0"), "HOST mac0 and anna@MAC0: name each host once"),
        (("--yes", "mac0", "mac1"), "--model is missing: --yes does not answer which model"),
        (("mac0", "mac1"), "there is no terminal to ask at: --yes, or --dry-run"),
        (("--from", "lunch", *HOSTS), "--from 'lunch': must be one of ssh, place, "),
        (("--skip", "lunch", *HOSTS), "--skip 'lunch': must be one of ssh, place, "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(place, arguments, said):
    before = place.files()
    assert said in place.run(*arguments, expect=2)
    assert place.calls.read_text() == "" and place.files() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"hosts": "mac0"}',
        '{"hosts": ["a", "b"], "x": 1}',
        '{"hosts": [1, 2]}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_record_that_is_damaged_is_said_and_hosts_replace_it(place, text):
    (place.root / "run").mkdir()
    (place.root / "run/setup.json").write_text(text)
    said = place.run("--dry-run", expect=2)
    assert "run/setup.json: not as it was written; remove it, and name the hosts" in said
    place.run("--dry-run", *HOSTS)


@pytest.mark.parametrize("kind", ["a folder", "a named pipe"])
@pytest.mark.parametrize("hosts", [(), HOSTS])
def test_a_record_that_is_no_file_is_said_as_what_it_is(place, kind, hosts):
    record = place.root / "run/setup.json"
    record.parent.mkdir()
    os.mkfifo(record) if kind == "a named pipe" else record.mkdir()
    said = place.run("--dry-run", *hosts, expect=2)
    assert f"run/setup.json is {kind}, no file; remove it, and name the hosts" in said
    assert list(record.parent.iterdir()) == [record]


def test_a_record_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def denied(path, *more):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(StateError, match=r"setup\.json: Permission denied; make it yours, or"):
        read_state(tmp_path)


def test_a_hostfile_that_is_a_pipe_is_not_waited_for(place):
    os.mkfifo(place.root / "pipe")
    place.env["HOSTFILE"] = str(place.root / "pipe")
    said = place.run("--yes", "--model", str(place.root / "models/Tiny"), *HOSTS, expect=3)
    assert f"hostfile {place.root}/pipe is a named pipe, no file" in said


def test_a_host_that_does_not_answer_is_no_matter_of_keys(place):
    (place.state / "down").touch()
    said = place.run("--yes", "--model", "org/name", *HOSTS, expect=1)
    assert "bjorn@mac1: ssh: connect to host bjorn@mac1: Connection refused; on a Mac: " in said
    (place.state / "down").rename(place.state / "refused")
    said = place.run("--yes", "--model", "org/name", *HOSTS, expect=1)
    assert "ssh-copy-id asks for a password there, and here is no terminal to ask at" in said
    assert place.called() == []


def test_a_host_key_that_has_changed_is_no_matter_of_passwords(place):
    """It was taken for a host that nobody has been to, for which there is ssh-copy-id."""
    (place.state / "changed").touch()
    said = place.run("--yes", "--model", "org/name", *HOSTS, expect=1)
    assert "bjorn@mac1: REMOTE HOST IDENTIFICATION HAS CHANGED: " in said
    assert "compare the fingerprint" in said
    assert "ssh-keygen -R mac1, then ssh bjorn@mac1 once" in said
    assert "ssh-copy-id" not in said and place.called() == []


def test_two_at_a_time_are_refused(place):
    import fcntl

    (place.root / "run/sync").mkdir(parents=True)
    with (place.root / "run/sync/setup_cluster.sh.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = place.run("--yes", "--model", "org/name", *HOSTS, expect=1)
    assert said == "setup_cluster.sh: another setup_cluster.sh is at work in this checkout\n"
    assert place.calls.read_text() == ""


# -- at a terminal


class Terminal:
    """setup_cluster.sh at a terminal of its own."""

    def __init__(self, place: Place, *arguments: str):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(place.words[0], [*place.words, *arguments], place.env)
        self.said = ""

    def until(self, text: str) -> str:
        """What was said since the last call, up to this text."""
        give_up = time.monotonic() + PATIENCE_S
        while text not in self.said:
            assert time.monotonic() < give_up, self.said
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:  # the terminal's other end is closed
                    data = b""
                assert data, self.said
                self.said += data.decode().replace("\r\n", "\n")
        found, _, self.said = self.said.partition(text)
        return found + text

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> tuple[str, int]:
        """What it said to its end, and its exit code."""
        try:
            while data := os.read(self.fd, 65536):
                self.said += data.decode().replace("\r\n", "\n")
        except OSError:
            pass
        os.close(self.fd)
        return self.said, os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_nothing_is_done_without_a_yes(place):
    at = Terminal(place, *HOSTS)
    said = at.until("do it? [y]es, [n]o, [s]kip: ")
    assert "  + scripts/make_hostfile.sh " in said and "] hostfile: write the hostfile" in said
    at.type("what\n")
    at.until("do it? [y]es, [n]o, [s]kip: ")
    at.type("n\n")
    said, code = at.end()
    assert code == 1 and "step hostfile: not done, as you said\n" in said
    assert said.endswith("to go on: scripts/setup_cluster.sh --from hostfile --skip answer\n")
    assert [line.split()[0] for line in place.called()] == ["verify_cluster.sh"]


def test_yes_skip_and_the_model_are_answers(place):
    (place.state / "refused").touch()
    at = Terminal(place, *HOSTS)
    assert "  + ssh-copy-id -o ConnectTimeout=5 bjorn@mac1\n" in at.until("[s]kip: ")
    place.put(Path(place.env["PATH"].split(":")[0]) / "ssh-keygen", "exit 0")
    at.type("y\n")
    said = at.until("[s]kip: ")
    assert "] hostfile:" in said
    at.type("y\n")
    at.until("Which model? A folder here, or ORG/NAME: ")
    at.type("nonsense\n")
    assert "'nonsense': must be a folder that is here, or" in at.until("ORG/NAME: ")
    at.type(f"{place.root}/models/Tiny\n")
    for step in ("model", "benchmark", "serve"):
        assert f"] {step}: " in at.until("[s]kip: ")
        at.type("s\n" if step == "benchmark" else "y\n")
    said, code = at.end()
    assert code == 0, said
    assert [line.split()[0] for line in place.called()] == [
        "verify_cluster.sh", "make_hostfile.sh", "sync_model.sh", "verify_cluster.sh",
        "run_openai_cluster_server.sh",
    ]  # fmt: skip


def test_ctrl_c_is_one_line_and_ends_what_was_running(place):
    (place.state / "slow").touch()
    at = Terminal(place, "--yes", "--model", str(place.root / "models/Tiny"), *HOSTS)
    wait_until((place.state / "begun").exists, "the doctor to measure")
    at.until("scripts/verify_cluster.sh --link\n")
    at.type("\x03")
    said, code = at.end()
    line = "setup_cluster.sh: interrupted at verify; to go on: scripts/setup_cluster.sh --yes"
    assert said == f"^C{line} --skip answer\n"
    assert code == 130
    assert not processes(str(place.root / "scripts/verify_cluster.sh"))
    (place.state / "slow").unlink()
    place.run("--yes")
    assert place.called()[-1].startswith("run_openai_cluster_server.sh")


def test_ctrl_c_and_the_end_of_the_terminal_at_a_question(place):
    at = Terminal(place, *HOSTS)
    at.until("[s]kip: ")
    at.type("\x03")
    said, code = at.end()
    assert code == 130 and said.count("\n") <= 2
    assert said.endswith(
        "interrupted at hostfile; to go on: scripts/setup_cluster.sh --skip answer\n"
    )
    at = Terminal(place, *HOSTS)
    at.until("[s]kip: ")
    at.type("\x04")
    said, code = at.end()
    assert code == 130 and "interrupted at hostfile" in said


def test_sigterm_ends_it_as_ctrl_c_does(place):
    (place.state / "slow").touch()
    process = subprocess.Popen(
        [*place.words, "--yes", "--model", str(place.root / "models/Tiny"), *HOSTS],
        env=place.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until((place.state / "begun").exists, "the doctor to measure")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("setup_cluster.sh: interrupted at verify; to go on:")


# -- Macs


def test_macs_leave_the_bridge_in_stages_and_get_addresses(place, tmp_path):
    """sudo on a Mac does what its commands would: the first makes the bridge's service inactive,
    which leaves the ports in it, the second does the rest."""
    names, folder = ("mac0", "mac1", "mac2"), tmp_path / "macs"
    now, inactive, later = mesh(names), mesh(names), mesh(names).address_ports()
    for name in names:
        now.bridge(name, ["en3", "en4"])
        inactive.bridge(name, ["en3", "en4"])
        inactive.make_inactive(name)
    place.env |= now.install(folder) | {"PATH": f"{folder}/bin:{place.env['PATH']}"}
    inactive.install(tmp_path / "inactive")
    later.install(tmp_path / "later")
    for name in names:
        place.put(
            folder / name / "sudo",
            f'echo "sudo {name} $*" >>"$MACS/sudo"\n[ "$STUCK" != {name} ] || exit 0\n'
            f'[ -e "$MACS/{name}.2" ] && stage=later || stage=inactive\n'
            f'touch "$MACS/{name}.2"\ncp -p "{tmp_path}/$stage/{name}"/* "$MACS/{name}"',
        )
    where = ("--from", "addresses", *[w for s in NAMES[4:-1] for w in ("--skip", s)])

    place.env["STUCK"] = "mac2"
    said = place.run("--yes", "--model", "org/name", *where, *names, expect=1)
    rounds = [
        part.split("\nmake_hostfile.sh: ")[0].split("\n  + ssh ")[1:]
        for part in said.split("] addresses: do with sudo")[1:]
    ]
    assert [len(lines) for lines in rounds[:2]] == [3, 3]  # one a Mac
    for name, first, second in zip(names, *rounds[:2], strict=True):
        assert f" {name} 'sudo -n sh -ec " in first
        assert "-setnetworkserviceenabled" in first and "deletem" not in first
        if name != "mac2":
            assert "deletem en3" in second and "-setmanual" in second
    assert "step addresses: it was done, and is still not so: mac2: en" in said

    place.env["STUCK"] = ""
    (folder / "sudo").unlink()
    place.run("--yes", *where)
    asked = (folder / "sudo").read_text()
    assert "sudo mac2 -n sh -ec " in asked and "mac0" not in asked  # what holds is left alone
    assert place.run("--yes", *where).count("[4/13] addresses: holds\n") == 1


def test_what_is_to_be_done_as_root_is_read_host_by_host():
    """Up to where it shows whether more is needed: TN3205's way is tried alone first."""
    first = ("on anna@mac1, once:", "sudo one", "sudo two && sudo three", "look")
    more = ("if it has members still, these, too:", "sudo never yet", "on mac2:", "sudo four")
    assert sudo_lines((*first, *more)) == {
        "anna@mac1": ("one", "two && sudo three"),
        "mac2": ("four",),
    }
    assert sudo_lines(("sudo nobody's", "on mac1: sudo this, then try again")) == {}


def test_sudo_has_a_terminal_to_ask_its_password_at_where_we_have_one():
    """One for all that is to be done on that Mac."""
    site = types.SimpleNamespace(at_terminal=True)
    command = as_root(site, "bjorn@mac1", ["one", "two 'a b'"])
    assert command.asks and command.words[:3] == ("ssh", "-t", "bjorn@mac1")
    assert shlex.split(command.words[3]) == ["sudo", "sh", "-ec", "one\ntwo 'a b'"]
    site.at_terminal = False
    assert not as_root(site, "mac1", ["one"]).asks
