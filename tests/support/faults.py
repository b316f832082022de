"""A real server under faults: started by the run script, watched by clients that hold requests.

For tests/whole/test_faults.py and scripts/dev/fault_table.py. Nothing here is a stand-in: two ranks
over the ring backend, under the launcher and the supervisor, with a tiny model.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.cluster import NO_DRAFTS
from tests.support.paths import FAULT_SITE, ROOT
from tests.support.ports import free_port
from tests.support.processes import processes

RUN_SCRIPT = ROOT / "scripts" / "run_openai_cluster_server.sh"
STOP_SCRIPT = ROOT / "scripts" / "stop_openai_cluster_server.sh"
STALL_TIMEOUT_S = 6
START_DEADLINE_S = 120
DEADLINE_S = 120  # for whatever has to happen after a fault
CONTEXT = 65_536  # of the tiny model, so that prefill and decoding last

PROBE = {"prompt": [5, 6, 7, 8], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
LONG_ANSWER = PROBE | {"max_tokens": 60_000}
LONG_PROMPT = PROBE | {"prompt": [5, 6, 7, 8] * 10_000, "max_tokens": 10_000}

# What became of a request; an HTTP error is its status. HUNG and CUT must not happen to a request
# that was accepted, as long as rank 0's process can still speak.
ANSWERED = "answered"
ERROR_EVENT = "error event"
REFUSED = "no connection"
HUNG = "hung"
CUT = "cut"


def wait_for(condition: Callable[[], object], what: str, seconds: float = DEADLINE_S):
    """What condition() returns, once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)
    return found


class Client(threading.Thread):
    """One request of a client that waits for its answer; `outcome` says what became of it."""

    def __init__(self, port: int, body: dict, stream: bool = False, timeout: float = DEADLINE_S):
        super().__init__(daemon=True)
        self.outcome = HUNG
        self.text = ""  # of the answer, so far
        self.error: dict = {}  # what an error said
        self.retry_after: str | None = None
        self.ended_at: float | None = None  # time.monotonic()
        self._link = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._body = body | {"stream": stream}
        self.streams = stream
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._ask()
        except ConnectionRefusedError:
            self.outcome = REFUSED
        except TimeoutError:
            self.outcome = HUNG
        except (OSError, http.client.HTTPException, ValueError):
            self.outcome = CUT
        self.ended_at = time.monotonic()
        self._link.close()

    def _ask(self) -> str:
        self._link.request("POST", "/v1/completions", json.dumps(self._body))
        answer = self._link.getresponse()
        if answer.status != 200:
            self.retry_after = answer.headers["Retry-After"]
            self.error = json.loads(answer.read())["error"]
            return f"{answer.status}"
        if not self._body["stream"]:
            self.text = json.loads(answer.read())["choices"][0]["text"]
            return ANSWERED
        while line := answer.readline():
            if line == b"data: [DONE]\n":
                return ANSWERED
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    self.error = event["error"]
                    return ERROR_EVENT
                self.text += event["choices"][0]["text"]
        return CUT

    def leave(self) -> None:
        """Hangs up, if the answer is still on its way."""
        with contextlib.suppress(OSError, AttributeError):
            self._link.sock.shutdown(2)


class Server:
    """One server on two ranks, as the run script starts it. Ended by `close`, whatever happened."""

    def __init__(self, folder: Path, model_dir: Path, **settings: object) -> None:
        self.fault_dir = folder / "faults"
        self.fault_dir.mkdir(parents=True, exist_ok=True)
        self.port = free_port(3)
        self.run_dir = ROOT / "run" / str(self.port)
        self.log_path = folder / f"server-{self.port}.log"
        self.output = ""  # of the run script
        self.reference = ""  # the right answer to PROBE
        self.long_answer = ""  # and to LONG_ANSWER, if a test has asked
        self.run_ids: set[str] = set()  # of all its starts
        self.restarts = 0  # before this test
        self._prompts = 0
        self._log_from = 0  # this test's part of the log
        self._small_disk = False
        self._place = ["--local", "2"]
        self._settings = {
            "SPECULATE": NO_DRAFTS,
            "MODEL_DIR": model_dir,
            "MODEL_ID": "tiny",
            "PYTHON": sys.executable,
            "HTTP_PORT": self.port,
            "CLUSTER_PORT": self.port + 1,
            "LOG_DIR": folder,
            "PREFILL_STEP": 128,
            "STALL_TIMEOUT": STALL_TIMEOUT_S,
        } | settings

    # Starting and ending.

    def begin(self, *options: str) -> subprocess.Popen:
        """Runs the run script, and doesn't wait for it."""
        command = [
            RUN_SCRIPT, *self._place, "--detach", *options,
            "--env", f"PYTHONPATH={FAULT_SITE}", "--env", f"FAULT_DIR={self.fault_dir}",
        ]  # fmt: skip
        env = os.environ | {name: str(value) for name, value in self._settings.items()}
        env |= {"PYTHONPATH": str(FAULT_SITE), "RESTART_PAUSE_S": "1"}
        return subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start(self, *options: str) -> int:
        """Runs the run script, which returns when the server is ready; returns its exit code."""
        script = self.begin(*options)
        try:
            self.output, _ = script.communicate(timeout=START_DEADLINE_S)
        finally:
            script.kill()
        if script.returncode == 0:
            self.run_ids.add(self._recorded("supervisor.pid")[1])
            self.restarts = 0
            first = self.ask()
            assert first.outcome == ANSWERED, first.error
            assert self.reference in ("", first.text), "another answer than at the last start"
            self.reference = first.text
        return script.returncode

    def stop(self) -> int:
        """Runs the stop script; returns its exit code."""
        env = os.environ | {name: str(value) for name, value in self._settings.items()}
        done = subprocess.run(
            [STOP_SCRIPT], cwd=ROOT, env=env, text=True, timeout=START_DEADLINE_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = done.stdout
        return done.returncode

    def close(self) -> None:
        """Ends what is left, by the pids of this run, and takes its records away."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.left(), "the processes of this run to end")
        if self._small_disk:
            subprocess.run(["umount", "--lazy", str(self.run_dir)], check=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def live_on(self, nodes: object, folder: Path) -> None:
        """A rank on each of the first two of these (nodes.py), from the next start on."""
        self._place = []
        self._settings |= {
            "HOSTFILE": nodes.write_hostfile(folder / "hosts.json", nodes.names[:2]),
            "HTTP_HOST": "127.0.0.1",
            "PATH": nodes.env["PATH"],
        }

    def serve_another_test(self) -> bool:
        """Whether it is in good order; if so, restarts and log are counted from here."""
        with contextlib.suppress(OSError, ValueError):
            status, health = self.get("/health")
            idle = status == 200 and health["running"] == health["queued"] == 0
            if idle and not self.orphans() and self.ask().text == self.reference:
                self.restarts, self._log_from = health["restarts"], self.log_path.stat().st_size
                return True
        return False

    # Its disk.

    def give_small_disk(self) -> str:
        """Puts a disk of its own under its run folder; returns why that cannot be, or nothing."""
        if sys.platform != "linux" or os.getuid() != 0:
            return "only root can mount a disk, and on Linux"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(self.run_dir)]
        done = subprocess.run(mount, capture_output=True, text=True)
        self._small_disk = done.returncode == 0
        return done.stderr.strip()

    def fill_disk(self) -> Callable[[], None]:
        """Takes every byte of it, those too that others give back, until the result is called."""
        filler = self.run_dir / "filler"
        over = threading.Event()
        file = filler.open("wb", buffering=0)

        def fill() -> None:
            with contextlib.suppress(OSError):
                while file.write(bytes(512)):
                    pass

        def keep_full() -> None:
            while not over.wait(0.01):
                fill()

        fill()
        thread = threading.Thread(target=keep_full, daemon=True)
        thread.start()

        def stop() -> None:
            over.set()
            thread.join()
            file.close()
            filler.unlink()

        return stop

    # Its processes.

    def _recorded(self, name: str) -> list[str]:
        return (self.run_dir / name).read_text().split()

    @property
    def supervisor(self) -> int:
        return int(self._recorded("supervisor.pid")[0])

    @property
    def launcher(self) -> int:
        """The launcher that runs now."""
        found = {
            pid
            for pid, command in self.left().items()
            if "lib.launch.mlx_launch" in command and "lib.supervise.supervise" not in command
        }
        (pid,) = found
        return pid

    def rank(self, number: int) -> int:
        return int(self._recorded(f"rank-{number}.pid")[0])

    def tree(self) -> set[int]:
        """The four processes that a server in good order has."""
        return {self.supervisor, self.launcher, self.rank(0), self.rank(1)}

    def left(self) -> dict[int, str]:
        """Every process of this server, by its run ids and its place."""
        found = processes(f"--run-dir {self.run_dir} ")
        for run_id in self.run_ids:
            found |= processes(run_id)
        return found

    def pause(self, seconds: float) -> None:
        """Stops everything of it for so long, as Ctrl-Z and a laptop's lid do."""
        pids = self.tree()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def orphans(self) -> list[str]:
        """Processes that don't belong to the server that runs now."""
        mine = self.tree()
        return [command for pid, command in self.left().items() if pid not in mine]

    def log(self) -> str:
        """All that was logged so far in this test."""
        written = self.log_path.read_bytes() if self.log_path.is_file() else b""
        return written[self._log_from :].decode(errors="replace")

    def last_line(self) -> str:
        return (self.log().splitlines() or [""])[-1]

    # Clients.

    def get(self, path: str) -> tuple[int, dict]:
        """Status and body; status 0 when nothing answers."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            link.request("GET", path)
            answer = link.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}
        finally:
            link.close()

    def ask(self, timeout: float = DEADLINE_S) -> Client:
        """A short request, to its end."""
        client = Client(self.port, PROBE, timeout=timeout)
        client.join()
        return client

    def answers_right(self, client: Client) -> bool:
        """Whether what a client has of LONG_ANSWER is right, as far as long_answer goes."""
        known = self.long_answer
        return client.text.startswith(known[: len(client.text)])

    def garble(self, rank: int, kind: str, how: str) -> None:
        """Has that rank get its next message of this kind spoilt."""
        fresh = self.fault_dir / "garble.part"
        fresh.write_text(f"{kind}: {how}")
        fresh.rename(self.fault_dir / f"garble-{rank}")

    def hold(self, phase: str) -> list[Client]:
        """Clients whose requests are in this phase; one of PHASES."""
        return PHASES[phase](self)

    def wait_good_answer(self, since: float) -> tuple[float, Counter]:
        """Asks until the answer is right again. Seconds since then, and what was seen before."""
        seen: Counter = Counter()
        while time.monotonic() < since + DEADLINE_S:
            client = self.ask()
            if client.outcome == ANSWERED and client.text == self.reference:
                return time.monotonic() - since, seen
            seen[client.outcome if client.outcome != ANSWERED else "wrong answer"] += 1
            time.sleep(0.2)
        raise AssertionError(f"no good answer in {DEADLINE_S} s, but {dict(seen)}\n{self.log()}")

    def wait_gone(self, since: float) -> float:
        """Until no process of it is left and its port is free; seconds since then."""
        wait_for(lambda: not self.left(), "everything to be gone")
        seconds = time.monotonic() - since
        assert self.get("/health")[0] == 0, "something still answers"
        return seconds

    def prefilled(self) -> int:
        """Tokens of prompts that were computed so far."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
        link.close()
        return int(float(re.search(r"^mlx_cluster_prefill_tokens_total\S* (\S+)$", text, re.M)[1]))

    def goes_on(self, client: Client) -> bool:
        """Waits for more of a held request: of its answer if that has begun, else of its prompt."""
        text, done = len(client.text), self.prefilled()
        if client.text:
            wait_for(lambda: len(client.text) > text, "a held stream to go on")
        elif client.streams:
            wait_for(lambda: self.prefilled() > done or client.text, "a held prompt to go on")
        return client.is_alive()

    def make_log_lines(self, count: int) -> None:
        """So many requests, each of which leaves a line of 2 KB with LOG_LEVEL=DEBUG."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        for number in range(count):
            link.request("GET", f"/health?{number}-{'x' * 2000}")
            answer = link.getresponse()
            answer.read()
            assert answer.status == 200
        link.close()

    def running(self) -> int:
        return self.get("/queue")[1].get("running", 0)

    def _hold_prefill(self) -> list[Client]:
        self._prompts += 1  # Each another: what was computed of the last one may be kept.
        prompt = [40 + self._prompts, *LONG_PROMPT["prompt"]]
        client = Client(self.port, LONG_PROMPT | {"prompt": prompt}, stream=True)
        wait_for(lambda: self.running() == 1, "the prompt to be taken")
        time.sleep(0.3)  # into the prefill, which lasts for many seconds
        assert not client.text, "the prefill is over already"
        return [client]

    def _hold_decode(self) -> list[Client]:
        clients = [Client(self.port, LONG_ANSWER, stream=stream) for stream in (True, False)]
        wait_for(lambda: self.running() == 2 and len(clients[0].text) > 3, "tokens")
        return clients

    def _hold_streams(self) -> list[Client]:
        clients = [Client(self.port, LONG_ANSWER, stream=True) for _ in range(8)]
        wait_for(lambda: all(len(client.text) > 3 for client in clients), "eight streams")
        return clients


class Stranger(threading.Thread):
    """A scanner: connects to rank 0's port as soon as it listens there, and talks or leaves. Rank 1
    is kept away until it has."""

    def __init__(self, server: Server, deed: str) -> None:
        super().__init__(daemon=True)
        self.called = threading.Event()
        self._port, self._deed, self._over = server.port + 1, deed, threading.Event()
        self._absent = server.fault_dir / "hang-1"
        self._absent.touch()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port)) as s,
            ):
                self.called.set()
                self._absent.unlink()
                if self._deed == "talks":
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
                    self._over.wait()
                return
            self._over.wait(0.002)


def leave_rank_zero_stopped(server: Server) -> None:
    """Nobody is left but a rank 0 that does not run: it cannot notice, and keeps the port."""
    rank_zero, launcher, supervisor = server.rank(0), server.launcher, server.supervisor
    for pid in (rank_zero, launcher):  # The launcher would have the rank go on before it leaves.
        os.kill(pid, signal.SIGSTOP)
    for pid in (supervisor, launcher):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: set(server.left()) == {rank_zero}, "the others to leave")


IDLE, PREFILL, DECODE, STREAMS = "idle", "in prefill", "in decode", "under 8 streams"
PHASES: dict[str, Callable[[Server], list[Client]]] = {
    IDLE: lambda server: [],
    PREFILL: Server._hold_prefill,
    DECODE: Server._hold_decode,
    STREAMS: Server._hold_streams,
}
