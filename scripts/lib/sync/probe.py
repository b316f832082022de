"""What a host is and has, asked in one ssh with nothing but its shell.

Before anything is copied there: is it reachable, does its shell stay silent (rsync speaks through
it), does it have rsync, what system is it, may its user write there, how much space is left, and is
it perhaps this machine, or one that shares the disk? Nothing on the host is changed.
"""

import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.on_hosts import Answer, run_on_hosts
from scripts.lib.sync.parallel import Failure

ASK_WITHIN_S = 20.0
MARK = "@@replicate@@"  # what a profile prints comes before it
MORE = "@@more@@"  # what the caller's own questions answered comes after it

# $1 token, then pairs: a path and what a directory there must hold to be ours (or -).
PROGRAM = f"""
echo '{MARK}'
echo "system $(uname -s) $(uname -m)"
echo "rsync $(command -v rsync)"
echo "user $(id -un)"
[ ! -e "$1" ] || echo "shared"
shift
while [ $# -ge 2 ]; do
  path=$1 state=none
  if [ -e "$path" ]; then
    state=other
    if [ -d "$path" ]; then
      [ -n "$(ls -A "$path")" ] || state=empty
      for sign in $2; do
        [ ! -e "$path/$sign" ] || state=ours
      done
    fi
  fi
  echo "state $state"
  [ "$state" = ours ] && used=$(du -sk "$path" 2>/dev/null | awk '{{ print $1 }}') || used=0
  echo "used ${{used:-0}}"
  while [ ! -d "$path" ]; do path=$(dirname "$path"); done
  [ -w "$path" ] || echo "denied $path"
  echo "free $(df -Pk "$path" | awk 'NR > 1 {{ free = $4 }} END {{ print free }}')"
  shift 2
done
echo '{MORE}'
"""


@dataclass(frozen=True)
class Place:
    """A path on a host: none, empty, ours or other is there; bytes used by it, bytes free.

    denied: the folder, it or the next above that is there, in which the user may not write.
    """

    state: str
    used: int
    free: int
    denied: str = ""


@dataclass(frozen=True)
class Facts:
    """What the probe found on one host. shared: it sees this machine's files.

    user: who is logged in there by ssh. more: what the shell that the caller added has printed.
    """

    system: str
    rsync: str
    shared: bool
    places: tuple[Place, ...]
    more: str = ""
    user: str = ""


def local_system() -> str:
    """This machine's system as `uname -s` and `uname -m` tell it."""
    uname = os.uname()
    return f"{uname.sysname} {uname.machine}"


@contextmanager
def token_file(folder: Path) -> Iterator[Path]:
    """A file that only this machine, or one that shares its disk, can see."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".token-{os.getpid()}-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def ask(
    host: str,
    words: Sequence[str],
    *,
    stdin: bytes | None = None,
    within_s: float = ASK_WITHIN_S,
) -> Answer:
    """Run a command on one host; Failure if it cannot be reached or does not end in time."""
    (answer,) = run_on_hosts([host], words, within_s=within_s, stdin=stdin)
    if answer.unreachable:
        raise Failure(f"cannot be reached: {answer.reason}; see: ssh -o BatchMode=yes {host} true")
    if answer.timed_out:
        raise Failure(f"no answer within {within_s:.0f} s to: {words[0]}")
    return answer


def after_mark(answer: Answer) -> str:
    """What our program printed, without what a profile printed before it."""
    _, found, output = answer.output.partition(MARK + "\n")
    if not found:
        raise Failure(f"it did not answer: {answer.reason}")
    return output


def probe(host: str, token: Path, places: Sequence[tuple[Path, str]], more: str = "") -> Facts:
    """Ask the host. places: paths, each with the names of which one must be in a folder of ours.

    more: further lines of shell, run last.
    """
    words = ["sh", "-c", PROGRAM + more, "sh", str(token)]
    for path, signs in places:
        words += [str(path), signs]
    answer = ask(host, words)
    noise, _, _ = answer.output.partition(MARK)
    if noise:
        first = noise.strip().splitlines()[0] if noise.strip() else repr(noise)
        raise Failure(
            f"its shell prints by itself ({first!r}), which rsync cannot read: silence ~/.zshenv, "
            f"~/.bashrc or ~/.profile there, until `ssh {host} true` prints nothing"
        )
    return parse_facts(after_mark(answer))


def parse_facts(output: str) -> Facts:
    """The probe's lines, read."""
    system = rsync = user = denied = ""
    shared = False
    states, used, free = [], [], []
    may_not = []
    output, _, more = output.partition(MORE + "\n")
    for line in output.splitlines():
        key, _, value = line.partition(" ")
        if key == "system":
            system = value
        elif key == "rsync":
            rsync = value
        elif key == "user":
            user = value
        elif key == "shared":
            shared = True
        elif key == "denied":
            denied = value
        elif key == "state":
            states.append(value)
        elif key in ("used", "free"):
            count = int(value) * 1024 if value.isdigit() else 0
            (used if key == "used" else free).append(count)
            if key == "free":
                may_not.append(denied)
                denied = ""
    if not len(states) == len(used) == len(free):
        raise Failure("its df or du did not answer; see: df -Pk")
    places = tuple(Place(*each) for each in zip(states, used, free, may_not, strict=True))
    return Facts(system, rsync, shared, places, more, user)


def may_not_write(user: str, denied: str, path: Path) -> str:
    """For the user: why nothing can be put at this path there, and the two ways to mend it."""
    quoted = shlex.quote(str(path))
    return (
        f"{user} may not write in {denied}, so {path} cannot be made there, and it must be at the "
        "same path everywhere. Either there, as its administrator: "
        f"sudo mkdir -p {quoted} && sudo chown {user} {quoted}; or here, put it where all users of "
        "all hosts may write, on Macs in /Users/Shared (docs/from-scratch.md, Other user names)"
    )
