"""Why ranks ended: which of them is the likely cause, and its own words for it.

Pure judging of what a rank left: its code, the signals that we sent it, the last lines of its
output. On the launcher's main thread.
"""

import errno
import os
import re
import signal

from scripts.lib.launch.rank_process import RankProcess
from server.protocol.exit_codes import NOT_JOINED, PEER_LOST, explain

CAUSE_PREFIX = "mlx_launch: cause: "  # the supervisor looks for these two in the output.
TAIL_PREFIX = "  | "

SSH_FAILED = 255
# What a disk or a file system at its end says. A rank that fails beside such a line may well say
# something else last: MLX's launcher brings the hostfile in a temporary file, and goes on without.
_DISK_WORDS = tuple(
    os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
)

# What macOS says of the GPU, or of a folder, often as the last word that a rank has time for.
_TRANSLATED = (
    (
        r"Impacting ?Interactivity",
        "macOS ended work on the GPU in favour of that Mac's display: have the display turn off "
        "(sudo pmset -a displaysleep 10), or unplug it; --env AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 "
        "helps some",
    ),
    (
        r"CallbackErrorTimeout|Caused GPU Timeout",
        "work on the GPU took too long: a peer or a disk was late, or a piece of a prompt is too "
        "large (PREFILL_STEP)",
    ),
    (
        r"CallbackErrorOutOfMemory",
        "that Mac's GPU is out of memory: scripts/verify_cluster.sh --check memory --check wired",
    ),
    (
        r"CallbackErrorSubmissionsIgnored|for causing prior/excessive GPU errors",
        "macOS takes no more work for the GPU from a process that has had errors there",
    ),
    (
        r"(/(Documents|Desktop|Downloads|Mobile Documents|Volumes)\b|getcwd).*"
        r"Operation not permitted|Operation not permitted.*"
        r"/(Documents|Desktop|Downloads|Mobile Documents|Volumes)\b",
        "macOS keeps Documents, Desktop, Downloads, iCloud Drive and other volumes from what came "
        "by ssh: scripts/verify_cluster.sh --check folders",
    ),
)


def weigh(rank: RankProcess) -> int:
    """How likely its exit is the cause of the others', rather than the other way round.

    Sockets close before a process is gone, so the victims may well be seen to end first.
    """
    if rank.code == 128 + signal.SIGKILL and signal.SIGKILL not in rank.signals_sent:
        return 4  # Out of memory, or somebody's doing. Never for want of a peer.
    if not rank.is_local and rank.code == SSH_FAILED:
        return 3
    if rank.code == PEER_LOST or rank.signals_sent:
        return 0
    return 1 if rank.code == NOT_JOINED else 2  # It may be for want of a peer.


def own_words(rank: RankProcess) -> str:
    """The reason that a rank gave when it left, if it gave one."""
    mark = f"ending with code {rank.code}: "
    for line in reversed([line.decode(errors="replace") for line in rank.tail]):
        if mark in line:
            return line.partition(mark)[2]
    return "the other ranks did not join it within JOIN_TIMEOUT" if rank.timed_out else ""


def disk_words(rank: RankProcess) -> str:
    """The line in which the rank, or the shell that started it, complained of a disk."""
    for line in [line.decode(errors="replace").strip() for line in rank.tail]:
        if any(words in line for words in _DISK_WORDS):
            return f"its output has: {line}"
    return ""


def translated(rank: RankProcess) -> str:
    """What the system's own last word means, and what helps."""
    text = b"\n".join(rank.tail).decode(errors="replace")
    return next((meaning for words, meaning in _TRANSLATED if re.search(words, text)), "")


def explain_end(rank: RankProcess) -> str:
    if not rank.is_local and rank.code == SSH_FAILED:
        return f"code {SSH_FAILED} (ssh failed, or a signal ended the rank)"
    return explain(rank.code)


def explain_failure(rank: RankProcess) -> str:
    """Which rank, how it ended, and why, in its own words."""
    reasons = filter(None, (own_words(rank), disk_words(rank), translated(rank)))
    return ": ".join((f"{rank} exited with {explain_end(rank)}", *reasons))
