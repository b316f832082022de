"""Lookups by beginnings, against a plain search through all sequences."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.prefix_tree import BLOCK, PrefixTree, common

# Few tokens and long runs, so that sequences share long beginnings.
SEQUENCES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=5).map(
    lambda runs: np.array([token for token, n in runs for _ in range(n)], dtype=np.int32)
)


@given(st.lists(SEQUENCES, max_size=12), SEQUENCES, st.sets(st.integers(0, 11)))
def test_a_lookup_finds_what_a_search_through_all_finds(sequences, wanted, removed):
    tree = PrefixTree()
    for number, tokens in enumerate(sequences):
        tree.add(number, tokens)
    left = dict(enumerate(sequences))
    for number in removed & left.keys():
        tree.remove(number)
        del left[number]

    most = max((common(tokens, wanted) for tokens in left.values()), default=0)
    number, length = tree.nearest(wanted)
    if most >= BLOCK:
        # Of many that differ within the last block some are looked at.
        assert most - BLOCK < length <= most
        assert common(left[number], wanted) == length
    else:
        assert (number, length) == (0, 0)

    inside = {n for n, t in left.items() if len(t) >= BLOCK and common(t, wanted) == len(t)}
    found = tree.within(wanted)
    assert {number for number, _ in found} == inside
    lengths = [length for _, length in found]
    assert lengths == sorted(lengths) == [len(left[number]) for number, _ in found]


def test_nothing_is_left_of_what_was_removed():
    tree = PrefixTree()
    for number in range(5):
        tree.add(number, np.arange(100 + number, dtype=np.int32))
    for number in range(5):
        tree.remove(number)
    assert not (tree._tokens or tree._through or tree._ending)


def test_common_beginnings():
    a, b = np.array([1, 2, 3]), np.array([1, 2, 4, 5])
    assert [common(a, b), common(a, a), common(a, a[:0]), common(a, b[1:])] == [2, 3, 0, 0]
