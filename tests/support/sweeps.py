"""How much of a sweep inside one test is tried: all of it with --all, else every n-th case."""

from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

whole = False  # conftest sets it


def sample(cases: Sequence[Case], every: int) -> Sequence[Case]:
    """Where it begins differs from sweep to sweep, so that together they try all."""
    return cases if whole else cases[len(cases) // every % every :: every]
