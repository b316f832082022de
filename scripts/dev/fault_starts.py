"""What may happen while a server starts, and what knows one phase only: a row each in the table."""

import contextlib
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.dev.fault_cases import GONE, Result
from tests.support.faults import (
    ANSWERED,
    DEADLINE_S,
    IDLE,
    Server,
    Stranger,
    leave_rank_zero_stopped,
    wait_for,
)

AWAY_S = 40  # more than five starts in a row need to fail


def start_without(rank: int) -> Callable[[Server], Result]:
    def run(server: Server) -> Result:
        (server.fault_dir / f"hang-{rank}").touch()
        return _refused_start(server, f"rank {rank} never comes up")

    return run


def restart_without(rank: int) -> Callable[[Server], Result]:
    def run(server: Server) -> Result:
        assert server.start() == 0, server.output
        hang = server.fault_dir / f"hang-{rank}"
        hang.touch()
        struck = time.monotonic()
        os.kill(server.rank(1), signal.SIGKILL)

        def relent() -> None:
            with contextlib.suppress(AssertionError):
                wait_for(lambda: "failure 2 in a row" in server.log(), "a second failure")
            hang.unlink()

        threading.Thread(target=relent, daemon=True).start()
        seconds, seen = server.wait_good_answer(struck)
        return Result(
            f"SIGKILL of rank 1, and rank {rank} does not come up at the first restart", IDLE,
            "served again", {}, 0.0, seconds, seen, len(server.orphans()),
            server.get("/health")[1]["last_failure"],
        )  # fmt: skip

    return run


def stop_supervisor(server: Server) -> Result:
    assert server.start() == 0, server.output
    os.kill(server.supervisor, signal.SIGSTOP)
    struck = time.monotonic()
    server.make_log_lines(4000)
    seconds, seen = server.wait_good_answer(struck)
    os.kill(server.supervisor, signal.SIGCONT)
    words = "lines of the ranks dropped"
    wait_for(lambda: words in server.log(), "what was dropped")
    (last,) = [line for line in server.log().splitlines() if words in line][:1]
    return Result(
        "SIGSTOP of the supervisor (Ctrl-Z), and 4,000 requests that are logged", IDLE,
        "served on", {}, 0.0, seconds, seen, len(server.orphans()), last,
    )  # fmt: skip


def fill_run(server: Server) -> Result:
    reason = server.give_small_disk()
    assert not reason, reason
    assert server.start() == 0, server.output
    give_back = server.fill_disk()
    struck = time.monotonic()
    os.kill(server.rank(1), signal.SIGKILL)
    seconds, seen = server.wait_good_answer(struck)
    told = server.get("/health")[1]["detail"].replace(str(server.run_dir), "run/PORT")
    give_back()
    records = [server.run_dir / f"rank-{rank}.pid" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() for path in records), "the pid files")
    return Result(
        "full disk under `run/`, and SIGKILL of rank 1", IDLE, "served again", {}, 0.0, seconds,
        seen, len(server.orphans()), told,
    )  # fmt: skip


def kill_again_and_again(server: Server) -> Result:
    assert server.start() == 0, server.output
    all_seen: Counter = Counter()
    for _ in range(6):
        struck = time.monotonic()
        os.kill(server.rank(1), signal.SIGKILL)
        seconds, seen = server.wait_good_answer(struck)
        all_seen += seen
    return Result(
        "SIGKILL of rank 1, six times in a row, each as soon as it served (the last time)", IDLE,
        "served again", {}, 0.0, seconds, all_seen, len(server.orphans()),
        server.get("/health")[1]["last_failure"],
    )  # fmt: skip


def lose_host(server: Server) -> Result:
    """Through real ssh, to an sshd that is away for longer than five starts would take."""
    from tests.support.nodes import running_nodes  # which needs pytest

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "nodes"
        with running_nodes(place, ["node-1", "node-2"]) as nodes:
            server.live_on(nodes, Path(folder))
            assert server.start() == 0, server.output
            nodes["node-2"].down()
            waits = "starting again when all hosts answer"
            wait_for(lambda: waits in server.log(), "the supervisor to wait")
            time.sleep(AWAY_S)
            nodes["node-2"].up()
            struck = time.monotonic()
            seconds, seen = server.wait_good_answer(struck)
            # The connections to the nodes carry the ranks' command lines, too.
            left = [one for one in server.orphans() if not re.match(r"\S*ssh ", one)]
            (last,) = [line for line in server.log().splitlines() if waits in line][:1]
            os.kill(server.supervisor, signal.SIGTERM)
            wait_for(lambda: not server.left(), "the server to stop")
    return Result(
        f"the host of rank 1 is away for {AWAY_S} s (from its return)", IDLE, "served again", {},
        0.0, seconds, seen, len(left), last,
    )  # fmt: skip


def start_on_taken_port(server: Server) -> Result:
    with socket.create_server(("127.0.0.1", server.port)):
        return _refused_start(server, "HTTP port taken at start")


def restart_on_taken_port(server: Server) -> Result:
    assert server.start() == 0, server.output
    struck = time.monotonic()
    os.kill(server.rank(0), signal.SIGKILL)
    thief = wait_for(lambda: _steal(server.port), "the port")
    with thief:
        wait_for(lambda: not server.left(), "everything to be gone")
        seconds = time.monotonic() - struck
    return Result(
        "SIGKILL of rank 0, and another program takes the port", IDLE, GONE, {}, 0.0, seconds,
        {}, 0, server.last_line(),
    )  # fmt: skip


def _steal(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError:
        return None


def _refused_start(server: Server, title: str) -> Result:
    began = time.monotonic()
    code = server.start()
    seconds = time.monotonic() - began
    assert code == 1, f"the run script ended with {code}: {server.output}"
    left = server.left()
    lines = [line for line in server.output.splitlines() if "its log is" not in line]
    return Result(title, IDLE, GONE, {}, 0.0, seconds, {}, len(left), lines[-1])


def start_with_stranger(server: Server) -> Result:
    began = time.monotonic()
    with Stranger(server, "talks") as stranger:
        assert server.start() == 0, server.output
    assert stranger.called.is_set()
    seconds, seen = server.wait_good_answer(began)
    return Result(
        "a stranger connects to a port where ranks meet", IDLE, "served in the end", {}, 0.0,
        seconds, seen, len(server.orphans()), server.get("/health")[1]["last_failure"],
    )  # fmt: skip


def start_twice(server: Server) -> Result:
    began = time.monotonic()
    scripts = [server.begin(), server.begin()]
    outputs = [script.communicate(timeout=DEADLINE_S)[0] for script in scripts]
    codes = [script.returncode for script in scripts]
    assert sorted(codes) == [0, 1], outputs
    server.run_ids.add(server.get("/health")[1]["run_id"])
    assert server.ask().outcome == ANSWERED
    lines = outputs[codes.index(1)].splitlines()
    return Result(
        "two starts at once for one port", IDLE, "one serves", {}, 0.0, time.monotonic() - began,
        {}, len(server.orphans()), lines[-1],
    )  # fmt: skip


def start_beside_stopped_rank(server: Server) -> Result:
    assert server.start() == 0, server.output
    leave_rank_zero_stopped(server)
    began = time.monotonic()
    assert server.start() == 1, server.output
    last = server.output.splitlines()[-1]
    assert server.stop() == 0, server.output
    return Result(
        "rank 0 stopped, launcher and supervisor killed; a start, and the stop it names",
        IDLE, GONE, {}, 0.0, server.wait_gone(began), {}, len(server.left()), last,
    )  # fmt: skip


AT_START = {
    "no-rank-0": (start_without(0), {"JOIN_TIMEOUT": 8}),
    "no-rank-1": (start_without(1), {"JOIN_TIMEOUT": 8}),
    "no-rank-0-again": (restart_without(0), {"JOIN_TIMEOUT": 25}),
    "no-rank-1-again": (restart_without(1), {"JOIN_TIMEOUT": 25}),
    "stranger": (start_with_stranger, {"JOIN_TIMEOUT": 25}),
    "two-starts": (start_twice, {}),
    "stopped-rank-0-left": (start_beside_stopped_rank, {}),
    "port-taken": (start_on_taken_port, {}),
    "port-taken-again": (restart_on_taken_port, {}),
    "stop-supervisor": (stop_supervisor, {"LOG_LEVEL": "DEBUG"}),
    "full-run": (fill_run, {}),
    "kill-rank-1-six-times": (kill_again_and_again, {}),
    "host-away": (lose_host, {}),
}
