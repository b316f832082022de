"""A real cluster for tests: ranks of the real server under our launcher, over the ring backend."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.paths import FAULT_SITE, ROOT
from tests.support.ports import free_port

START_DEADLINE_S = 120
END_DEADLINE_S = 60


def blas_environment() -> dict[str, str]:
    """What makes MLX fast on a Linux CPU, as the scripts set it."""
    code = '. "$1/scripts/lib/common.sh"; blas_environment'
    told = subprocess.run(["bash", "-c", code, "-", ROOT], stdout=subprocess.PIPE, text=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


@functools.cache
def engine_environment() -> dict[str, str]:
    """Of ranks: MLX fast, offline everywhere, and transformers imported in half the time."""
    own = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": str(FAULT_SITE)}
    return own | blas_environment()


# A tiny model goes round in circles, and with drafts an answer that should take long ends at once.
NO_DRAFTS = "off"


class Cluster:
    """Ranks of one server. settings are environment variables."""

    def __init__(self, ranks: int, model_dir: Path, run_dir: Path, settings: dict) -> None:
        self.ranks = ranks
        self.model_dir = model_dir
        self.run_dir = run_dir
        self.log_path = run_dir.with_suffix(".log")
        first = free_port(ranks + 1)
        self.port = first
        self.url = f"http://127.0.0.1:{first}"
        self.run_id = f"test-{os.getpid()}-{first}"
        env = {
            **os.environ,
            **engine_environment(),
            "MODEL_DIR": str(model_dir),
            "MODEL_ID": "demo",
            # A canary of 512 tokens at every start would be most of the suite's time.
            "PREFILL_STEP": "128",
            "HTTP_PORT": str(first),
            "SPECULATE": NO_DRAFTS,
            **{name: str(value) for name, value in settings.items()},
        }
        command = [
            sys.executable, ROOT / "scripts/lib/module.py", "lib.launch.mlx_launch",
            "-n", str(ranks), "--backend", "ring", "--starting-port", str(first + 1),
            "--python", sys.executable, "--",
            ROOT / "server/openai_cluster_server.py",
            "--run-dir", run_dir, "--run-id", self.run_id,
        ]  # fmt: skip
        with self.log_path.open("wb") as log:
            self.launcher = subprocess.Popen(
                [str(part) for part in command], env=env, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    # Asking.

    def get(self, path: str) -> tuple[int, dict]:
        """Status and body of GET path; status 0 when nothing answers."""
        return self.post(path, None)

    def post(self, path: str, body: dict | None, timeout: float = 300) -> tuple[int, dict]:
        """Status and body of POST path (GET without a body)."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self.url + path, data, timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def chat(self, text: str, **fields) -> str:
        """The greedy answer to one user message."""
        status, body = self.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": text}], "temperature": 0} | fields,
        )
        assert status == 200, body
        return body["choices"][0]["message"]["content"]

    def open_stream(self, **fields) -> socket.socket:
        """A raw connection that has asked for a streamed completion."""
        body = json.dumps({"prompt": "Once upon a time", "stream": True} | fields).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        connection.sendall(head + body)
        return connection

    def wait_idle(self) -> None:
        """Until nothing runs and nothing waits."""
        self.wait_for(lambda: (b := self.get("/queue")[1]) and not b["running"] and not b["size"])

    def wait_for(self, condition, deadline: float = 120) -> None:
        """Until condition() holds."""
        end = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not reached in {deadline} s\n{self.log()}")
            time.sleep(0.05)

    def wait_ready(self) -> None:
        """Until /health is 200."""

        def ready() -> bool:
            if self.launcher.poll() is not None:
                raise AssertionError(f"the launcher ended\n{self.log()}")
            return self.get("/health")[0] == 200

        self.wait_for(ready, START_DEADLINE_S)

    # Looking at the processes.

    def pids(self) -> list[int]:
        """The ranks' pids, by rank, from their pid files."""
        return [
            int((self.run_dir / f"rank-{rank}.pid").read_text().split()[0])
            for rank in range(self.ranks)
        ]

    def log(self) -> str:
        """All output so far."""
        return self.log_path.read_text(errors="replace")

    def end(self) -> int:
        """Ends the launcher and whatever is left; returns the launcher's exit code."""
        pids = []
        with contextlib.suppress(OSError):
            pids = self.pids()
        if self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGTERM)
        try:
            code = self.launcher.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            code = self.launcher.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return code
