"""What a check says of a host: a verdict and, unless all is well, the symptom and the fix.

Judges make them, report and fix read them. A finding that asks somebody to do something says
exactly what; there are no findings that only worry people.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "skip"


@dataclass(frozen=True)
class Fix:
    """What mends it.

    words: for a person, whole by themselves. command: to be run on the finding's host, or with
    here=True on this machine, in the checkout. undo: the command that takes it back; a fix
    without one is described and never done by --fix, unless harmless says that nothing is lost.
    """

    words: str = ""
    command: str = ""
    undo: str = ""
    here: bool = False
    harmless: bool = False

    @property
    def offered(self) -> bool:
        """Whether --fix may do it."""
        return bool(self.command) and (bool(self.undo) or self.harmless)

    @property
    def needs_root(self) -> bool:
        return self.command.startswith("sudo ")


@dataclass(frozen=True)
class Finding:
    """One cell of the table. host None: it is about the cluster as a whole.

    found: what was seen, in a few words. symptom: what the launch would have shown. A skip says
    in `found` why nothing was judged.
    """

    check: str
    host: str | None
    verdict: str
    found: str = ""
    symptom: str = ""
    fix: Fix | None = None

    def __post_init__(self):
        if self.verdict in (WARN, FAIL) and not (self.found and self.symptom and self.fix):
            raise ValueError(f"{self.check}: a {self.verdict} needs found, symptom and fix")


def most_common(values: Iterable[Any]) -> Any:
    """The value that most hosts have; of several as common, the one that comes first (rank 0).

    None when there are none.
    """
    counts = Counter(values)
    return max(counts, key=lambda value: counts[value], default=None)


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = [str(word) for word in words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def gigabytes(count: float) -> str:
    """A number of bytes as people say it, in units of 10^9."""
    value = count / 1e9
    return f"{value:.1f} GB" if value < 10 else f"{value:.0f} GB"
