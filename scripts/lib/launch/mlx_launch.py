#!/usr/bin/env python3
"""Run mlx.launch with its faults mended; the command line is mlx.launch's own.

What is different:
- The exit code is that of the rank that failed first (server/protocol/exit_codes.py), and its last
  lines are shown. A rank that left because it lost a peer does not count as first if the
  cause shows itself. mlx.launch returns 0 whatever happens.
- It sleeps until something happens. mlx.launch keeps one core busy for ever.
- SIGTERM, SIGINT and SIGHUP reach every rank, here and through ssh, the first as a wish
  to drain, the second as a wish to leave at once; nobody is left behind. mlx.launch ends
  and leaves its local ranks running.
- A rank that leaves does not strand the others, and ranks' lines do not mix; under a
  supervisor each carries its rank.
- stdin belongs to the ranks' lease, not to data: every rank gets a newline every 5 s, so
  it can tell that the launcher lives. With MLX_LAUNCH_LEASE=1 the launcher's own stdin
  is its lease in turn: at end of file it ends the ranks and leaves, and tells so in the
  file MLX_LAUNCH_LOG. Otherwise its stdin is not read.
- `--starting-port auto` takes ports of this machine that nobody else has or can take; with
  a hostfile `auto:N` is N, and another port at each restart. See meeting_ports.py.

SUPERVISOR_RESTARTS, SUPERVISOR_LAST_FAILURE and SUPERVISOR_STARTS_AGAIN, if set, are handed on to
the ranks.

The hostfile, the backends' variables and the shell script of each rank remain MLX's; only
the loop that watches the ranks is replaced. If MLX's launcher is not built as expected,
it is run as it is, and stderr says so.
"""

import contextlib
import importlib
import inspect
import os
import shutil
import sys
from types import ModuleType

from scripts.lib.launch.launch_ranks import Launch, read_drain_timeout, read_end_timeout
from scripts.lib.launch.meeting_ports import fill_in
from server.protocol.exit_codes import INTERNAL, NOT_JOINED

HANDED_ON = ("SUPERVISOR_RESTARTS", "SUPERVISOR_LAST_FAILURE", "SUPERVISOR_STARTS_AGAIN")
LEASE_FD = 0  # stdin

# What we call or replace in MLX's launcher, with the parameters we count on.
EXPECTED = {
    "_launch_with_io": ["command_class", "arguments", "verbose"],
    "RemoteProcess.__init__": ["self", "rank", "host", "python", "cwd", "files", "env", "command"],
    "RemoteProcess.make_launch_script": [
        "rank", "python", "cwd", "files", "env", "command", "is_local",
    ],
}  # fmt: skip
CALLERS = ("launch_ring", "launch_jaccl")  # They must look our replacement up by its name.


def find_differences(launcher: ModuleType) -> list[str]:
    """Compare MLX's launcher with what we rely on; return what differs, in words."""
    differences = []
    for name, parameters in EXPECTED.items():
        found = launcher
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            differences.append(f"{name} is missing")
        elif (actual := list(inspect.signature(found).parameters)) != parameters:
            differences.append(f"{name} takes ({', '.join(actual)})")
    for name in CALLERS:
        code = getattr(getattr(launcher, name, None), "__code__", None)
        if code is None or "_launch_with_io" not in code.co_names:
            differences.append(f"{name} does not call _launch_with_io")
    if not callable(getattr(launcher, "main", None)):
        differences.append("main is missing")
    return differences


def mend(
    launcher: ModuleType,
    *,
    drain_timeout: float,
    lease_fd: int | None,
    log: str | None = None,
    end_timeout: float | None = None,
) -> list[int]:
    """Put our loop in place of MLX's; return the list that will receive the exit code."""
    codes: list[int] = []

    def launch_with_io(command_class, arguments, verbose) -> None:
        ranks = []
        # A rank knows its own host's name, but has to tell which other one it does not hear.
        hosts = "RANK_HOSTS=" + ",".join(arguments[rank][0][1] for rank in range(len(arguments)))
        for (rank, host, python, cwd, files, env, command), _ in arguments:
            script = launcher.RemoteProcess.make_launch_script(
                rank, python, cwd, files, [*env, hosts], command, is_local=host == "127.0.0.1"
            )
            ranks.append((rank, host, script, command if python is None else [python, *command]))
        launch = Launch(
            ranks,
            drain_timeout=drain_timeout,
            lease_fd=lease_fd,
            log=log,
            end_timeout=end_timeout,
            label=lease_fd is not None,  # A log is read by people, a benchmark's output is not.
        )
        codes.append(launch.run())

    launcher._launch_with_io = launch_with_io
    return codes


def run_as_it_is(launcher: ModuleType | None, reason: str, supervised: bool) -> int:
    """Run MLX's launcher unmended, after saying why and what that means."""
    print(
        f"mlx_launch: this MLX's launcher is not built as expected ({reason}); running it as it "
        "is: it keeps a core busy, and may leave ranks behind and report success for a failure",
        file=sys.stderr,
        flush=True,
    )
    if launcher is None:
        beside = os.path.join(os.path.dirname(sys.executable), "mlx.launch")
        program = beside if os.path.exists(beside) else shutil.which("mlx.launch")
        if program is None:
            print("mlx_launch: mlx.launch is not installed here", file=sys.stderr)
            return 3
        os.execv(program, [program, *sys.argv[1:]])
    code = launcher.main() or 0
    # A server never ends by itself with success, so under supervision this 0 hides a failure.
    return INTERNAL if supervised and code == 0 else code


def main() -> int:
    env = os.environ
    supervised = env.get("MLX_LAUNCH_LEASE") == "1"
    handed_on = [f"--env={name}={env[name]}" for name in HANDED_ON if name in env]
    try:
        arguments, keeper = fill_in(sys.argv[1:], _number(env.get("SUPERVISOR_RESTARTS")))
    except OSError as error:
        print(f"mlx_launch: {error}", file=sys.stderr)
        return NOT_JOINED
    # First: what follows the rank's program is the rank's.
    sys.argv[1:] = [*handed_on, *arguments]
    try:
        launcher = importlib.import_module("mlx._distributed_utils.launch")
    except ImportError as error:
        return run_as_it_is(None, str(error), supervised)
    if differences := find_differences(launcher):
        return run_as_it_is(launcher, "; ".join(differences), supervised)
    codes = mend(
        launcher,
        drain_timeout=read_drain_timeout(env),
        end_timeout=read_end_timeout(env),
        lease_fd=LEASE_FD if supervised else None,
        log=env.get("MLX_LAUNCH_LOG") if supervised else None,
    )
    with keeper or contextlib.nullcontext():  # The ports are ours as long as the ranks run.
        returned = launcher.main()
    return codes[0] if codes else returned or 0


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


if __name__ == "__main__":
    sys.exit(main())
