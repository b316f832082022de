"""The random walk, for a minute. tests/support/walk.py says what it does, and how to walk on."""

import os

from tests.support.walk import walk_for

WALK_SECONDS = float(os.environ.get("WALK_SECONDS", "60"))
MOST_EPISODES = 200  # of a walk that cannot see what it must
# Each of these would make the walk blind if it never happened.
MUST_HAPPEN = [
    "answers", "left", "failures", "Cancel", "Evict", "Canary", "reuses",
    "damaged", "handed over", "handed over without its prefix",
]  # fmt: skip


def test_every_answer_of_a_random_walk_is_the_quiet_one_and_nothing_is_left_behind():
    happened = walk_for(WALK_SECONDS, 1, MOST_EPISODES, MUST_HAPPEN)
    assert all(happened[name] for name in MUST_HAPPEN)
