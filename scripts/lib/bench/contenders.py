"""Those that are compared, as processes: our server, mlx_lm.server, our engine without HTTP, our
server of another checkout.

All run under the same launcher, with the same model, ranks and environment. While one is measured
the ranks of the others are stopped (SIGSTOP), because an idle rank of mlx_lm.server spins on its
core. Nothing notices: ours gets a STALL_TIMEOUT that never comes, and a launcher is never stopped.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.bench.gauge import Asker, Gauge, Unusable, take_gauge
from scripts.lib.bench.processes import alive
from scripts.lib.bench.swarm import Swarm

ROOT = Path(__file__).resolve().parents[3]
START_DEADLINE_S = 600.0
END_DEADLINE_S = 20.0
POLL_S = 0.1
PORTS = range(29000, 31900)
NEVER_S = 31_000_000
# Of the user's environment: what would keep clients out, or is said to one server alone.
NOT_OURS = ("API_KEY", "API_KEY_FILE", "MODEL_ID", "PARALLEL", "REQ_TIMEOUT", "LOG_DIR")

# 32 rows decode together in both, which is mlx_lm.server's default; more wait, which it allows
# without a limit. All else is each server's default.
OURS = {"MAX_BATCH": 32, "QUEUE_MAX": 64, "STALL_TIMEOUT": NEVER_S, "CANARY_INTERVAL": 0}
THEIRS = ("--decode-concurrency", "32", "--log-level", "WARNING")


def module(name: str) -> list[str | Path]:
    """What an interpreter runs as one of the modules of scripts/."""
    return [ROOT / "scripts/lib/module.py", name]


class Broken(Exception):
    """A contender did not start, or hangs. The message says what its log said last."""


@dataclass(frozen=True)
class Place:
    """What all contenders of a group share. work: a folder for logs and pid files. draft_model:
    for mlx_lm.server, if any."""

    python: str
    model: Path
    ranks: int
    work: Path
    env: dict[str, str]
    draft_model: Path | None = None


class Contender:
    """Ranks of one program. Started in the constructor; ready after wait_ready()."""

    name = ""
    _numbers = itertools.count(1)
    _next_port = itertools.cycle(PORTS)

    def __init__(self, place: Place) -> None:
        self.place = place
        self.run_id = f"bench-{os.getpid()}-{next(self._numbers)}"
        self.run_dir = place.work / self.run_id
        self.run_dir.mkdir(parents=True)
        self.port = self._free_ports(place.ranks + 1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.swarm: Swarm | None = None
        program, settings = self._program()
        command = [
            place.python, *module("lib.launch.mlx_launch"), "-n", place.ranks,
            "--backend", "ring", "--starting-port", self.port + 1, "--python", place.python, "--",
            *program,
        ]  # fmt: skip
        env = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        env |= place.env | {name: str(value) for name, value in settings.items()}
        with self.log_path.open("wb") as log:
            self.launcher = subprocess.Popen(
                list(map(str, command)), env=env, cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _program(self) -> tuple[list, dict]:
        """What each rank runs, and its settings."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def wait_ready(self) -> None:
        """Raises Broken."""
        end = time.monotonic() + START_DEADLINE_S
        while not self._is_ready():
            if self.launcher.poll() is not None:
                raise Broken(f"{self.name} ended at start: {self.last_words()}")
            if time.monotonic() > end:
                raise Broken(f"{self.name}: not ready in {START_DEADLINE_S:.0f} s")
            time.sleep(POLL_S)

    def pids(self) -> list[int]:
        """The ranks' process ids, by rank."""
        files = (self.run_dir / f"rank-{rank}.pid" for rank in range(self.place.ranks))
        return [int(file.read_text().split()[0]) for file in files]

    def pause(self) -> None:
        """Stops all ranks as they stand."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on. Does nothing to ranks that run."""
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)

    def last_words(self) -> str:
        """The end of the log, in a line."""
        lines = self.log_path.read_text("utf-8", "replace").strip().splitlines()[-3:]
        return " | ".join(lines)[-500:]

    def end(self) -> None:
        """Ends ranks and launcher."""
        pids = []
        with contextlib.suppress(OSError, ValueError, IndexError):
            pids = self.pids()
            self.resume()
        if self.launcher.poll() is None:
            for _ in range(2):  # the second means at once
                self.launcher.send_signal(signal.SIGTERM)
                time.sleep(POLL_S)
        try:
            self.launcher.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            self.launcher.wait()
        for pid in pids:
            if alive(pid, str(self.run_dir)):
                os.kill(pid, signal.SIGKILL)

    def _free_ports(self, count: int) -> int:
        for first in itertools.islice(self._next_port, 0, len(PORTS)):
            with contextlib.ExitStack() as stack:
                try:
                    for port in range(first, first + count):
                        probe = stack.enter_context(socket.socket())
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            for _ in range(count):
                next(self._next_port)
            return first
        raise Broken("no free ports")


class WebServer(Contender):
    """A contender that speaks HTTP. asker and gauge are there once it is ready."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.asker = Asker("chat", None, ignore_eos=False)
        self.gauge = Gauge(0, 1, counted=False)

    def wait_ready(self) -> None:
        super().wait_ready()
        self.swarm = Swarm(self.url)
        try:
            # mlx_lm.server says ok while it loads: the first answer is what counts.
            self.gauge = take_gauge(self.swarm, self.asker, self.run_id)
        except Unusable as error:
            raise Broken(f"{self.name}: {error}; {self.last_words()}") from None

    def _is_ready(self) -> bool:
        try:
            return Swarm(self.url).ask("/health", deadline_s=10).status == 200
        except OSError:
            return False


class Ours(WebServer):
    """This repository's server. settings: on top of OURS."""

    name = "ours"

    def __init__(self, place: Place, settings: dict | None = None) -> None:
        self._settings = OURS | (settings or {})
        super().__init__(place)

    def _program(self) -> tuple[list, dict]:
        program = ROOT / "server/openai_cluster_server.py"
        settings = {"MODEL_DIR": self.place.model, "HTTP_HOST": "127.0.0.1",
                    "HTTP_PORT": self.port, "LOG_LEVEL": "WARNING"}  # fmt: skip
        return (
            [program, "--run-dir", self.run_dir, "--run-id", self.run_id],
            settings | self._settings,
        )


class Before(Ours):
    """The same of another checkout: an earlier version. folder: where it is."""

    name = "before"

    def __init__(self, place: Place, settings: dict | None = None, folder: Path = ROOT) -> None:
        self._folder = folder
        super().__init__(place, settings)

    def _program(self) -> tuple[list, dict]:
        (program, *arguments), settings = super()._program()
        return [self._folder / program.relative_to(ROOT), *arguments], settings


class Undrafted(Ours):
    """The same without drafts."""

    name = "ours without drafts"

    def __init__(self, place: Place, settings: dict | None = None) -> None:
        super().__init__(place, (settings or {}) | {"SPECULATE": "off"})


class Theirs(WebServer):
    """mlx_lm.server. flags: on top of THEIRS."""

    name = "mlx_lm.server"

    def __init__(self, place: Place, flags: list[str] | None = None) -> None:
        drafts = ["--draft-model", place.draft_model] if place.draft_model else []
        self._flags = [*THEIRS, *drafts, *(flags or [])]
        super().__init__(place)

    def _program(self) -> tuple[list, dict]:
        program = [*module("lib.bench.peer_server"), self.run_dir, "--model", self.place.model,
                   "--host", "127.0.0.1", "--port", self.port, *self._flags]  # fmt: skip
        return program, {}


class Bare(Contender):
    """Our engine's loop without HTTP."""

    name = "bare engine"

    def _program(self) -> tuple[list, dict]:
        settings = {"MODEL_DIR": self.place.model, "LOG_LEVEL": "WARNING"} | OURS
        return (
            [*module("lib.bench.bare_engine"), "--run-dir", self.run_dir, "--run-id", self.run_id],
            settings,
        )

    def _is_ready(self) -> bool:
        return (self.run_dir / "ready").exists()

    _orders = itertools.count(1)

    def run(self, deadline_s: float, **shape: int) -> dict:
        """What bare_engine.py's order says. Raises Broken."""
        number = next(self._orders)
        part, order = self.run_dir / "order.part", self.run_dir / "order.json"
        part.write_text(json.dumps({"number": number, **shape}))
        part.rename(order)
        result = self.run_dir / f"result-{number}.json"
        end = time.monotonic() + deadline_s
        while not result.exists():
            if self.launcher.poll() is not None or time.monotonic() > end:
                raise Broken(f"{self.name}: no result; {self.last_words()}")
            time.sleep(POLL_S)
        return json.loads(result.read_text())


def environment(settings: list[str]) -> dict[str, str]:
    """What all ranks get: no network, and these settings, NAME=VALUE each."""
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return env | dict(setting.split("=", 1) for setting in settings)
