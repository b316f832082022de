"""How much of a sweep inside one test is tried: all of it with --all, else every n-th case."""

from collections.abc import Iterable, Sequence

whole = False  # conftest sets it


def sample(cases: Sequence[int], every: int) -> Iterable[int]:
    """Where it begins differs from sweep to sweep, so that together they try all."""
    return cases if whole else cases[len(cases) // every % every :: every]
