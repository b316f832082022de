"""Runs a command on every host of a cluster at once, each with a deadline.

Used by the scripts that ask or change all hosts. A host that is down, hangs or floods must not
hold the others up, so every one gets a result: what it printed, or that it did not answer. Only
the literal 127.0.0.1 is this machine, as it is for mlx.launch. Never asks for a password.
"""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.lib.hosts import reach
from scripts.lib.hosts.reach import LOCAL_HOST

UNREACHABLE = 255  # ssh's own exit code
# Its last line is that of a host which nobody has been to, too: Host key verification failed.
KEY_CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"
SSH_OPTIONS = tuple(reach.SSH_OPTIONS.split())


def forget_key(host: str) -> str:
    """What somebody does of whose host the key has changed."""
    name = host.rpartition("@")[2]
    return (
        "compare the fingerprint with its own, which ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub says there; if it is right, as when that Mac was set up "
        f"anew: ssh-keygen -R {name}, then ssh {host} once"
    )


@dataclass(frozen=True)
class Answer:
    """What one host answered. code is None when it did not end in time."""

    host: str
    code: int | None
    output: str
    errors: str
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.code is None

    @property
    def unreachable(self) -> bool:
        return self.code == UNREACHABLE and self.host != LOCAL_HOST

    @property
    def key_changed(self) -> bool:
        """ssh knows the host by another key: its user has to judge, and no key of ours helps."""
        return self.unreachable and KEY_CHANGED in self.errors

    @property
    def reason(self) -> str:
        """Why it failed, in a few words: the last line it wrote to stderr, or its exit code."""
        if self.timed_out:
            return f"no answer within {self.seconds:.0f} s"
        if self.key_changed:
            return f"{KEY_CHANGED}: its key is another than that in known_hosts"
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def command_for(host: str, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command line that runs `command` on that host. options: more of ssh's."""
    if host == LOCAL_HOST:
        return list(command)
    return ["ssh", *SSH_OPTIONS, *options, host, shlex.join(command)]


def run_on_hosts(
    hosts: Sequence[str],
    command: Callable[[str], Sequence[str]] | Sequence[str],
    *,
    within_s: float,
    stdin: bytes | None = None,
    on_answer: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """Run `command`, or what it returns for a host, everywhere at once; answers in hosts' order.

    A host named twice is asked twice. on_answer is called as each answer comes in, one at a
    time. The whole call ends within about within_s seconds, whatever the hosts do.
    """
    answers: list[Answer | None] = [None] * len(hosts)
    lock = threading.Lock()

    def ask(place: int, host: str) -> None:
        words = command(host) if callable(command) else command
        answer = _run(host, command_for(host, words), within_s, stdin)
        with lock:
            answers[place] = answer
            if on_answer is not None:
                on_answer(answer)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


def _run(host: str, words: list[str], within_s: float, stdin: bytes | None) -> Answer:
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that what it started ends with it
        )
    except OSError as error:
        return Answer(host, 127, "", f"{words[0]}: {error.strerror}", 0.0)
    try:
        output, errors = process.communicate(stdin, timeout=within_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        _end_group(process.pid)
        code = None
        try:
            output, errors = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:  # Something of it holds the pipe open still.
            output = errors = b""
    return Answer(
        host,
        code,
        output.decode("utf-8", "replace"),
        errors.decode("utf-8", "replace"),
        time.monotonic() - began,
    )


def _end_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass
