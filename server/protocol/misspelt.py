"""Variables that look like a setting whose name was mistyped.

The environment is everybody's, so most names in it are none of our business. One that is a slip
away from a setting of ours (a letter too many, too few, another, or two that changed places; other
case; a line more or less) was meant for us, and would be ignored without a word. Used by the
scripts before anything starts, and by a rank that was started by hand. Standard library only;
Python 3.9.
"""

from __future__ import annotations

from collections.abc import Iterable

LONG = 16  # characters of a name in which two slips are still no coincidence
# A slip away from ours, and of others: TensorBoard, make, web servers, web frameworks.
FOREIGN = frozenset(
    ("LOGDIR", "APIKEY", "PYTHON2", "PYTHON3", "HTTPS_PORT", "HTTP_PORTS", "ALLOWED_HOST", "MODEL")
)


def find_misspelt(names: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Of these variables those that are none of ours, and nearly are: name to the setting meant."""
    known = list(ours)
    found = {}
    for name in sorted(set(names).difference(known, FOREIGN)):
        # A shell's own, and those that count on from ours (API_KEY_2), are meant as they are.
        if not name.startswith("_") and name.rstrip("_0123456789") not in known:
            meant = next((one for one in known if is_slip(name, one)), None)
            if meant:
                found[name] = meant
    return found


def is_slip(name: str, ours: str) -> bool:
    """Whether somebody who types ours may have typed name."""
    if name.upper().replace("_", "") == ours.replace("_", ""):
        return True
    most = 2 if len(ours) >= LONG else 1
    if abs(len(name) - len(ours)) > most or max(map(len, apart(name, ours))) > most:
        return False
    return slips(name, ours) <= most


def apart(a: str, b: str) -> tuple[set[str], set[str]]:
    """The letters that only one of the two has. A slip mends one of each at most, so these tell
    most pairs apart at once: every start of a script compares the whole environment with ours."""
    return set(a) - set(b), set(b) - set(a)


def slips(a: str, b: str) -> int:
    """Letters added, left out, changed, or swapped with the next, from one to the other."""
    before, row = [], list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def complaint(name: str, meant: str) -> str:
    """What to say of it."""
    return f"{name}: no such setting; did you mean {meant}? (unset {name} if it is not for us)"
