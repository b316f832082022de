"""The random walk, for a while. tests/support/walk.py says what it does, and how to walk on."""

from tests.support.walk import walk_for

SECONDS, ALL_SECONDS = 10, 30  # without --all, and with it
MOST_EPISODES = 200  # of a walk that cannot see what it must
# Each of these would make the walk blind if it never happened.
MUST_HAPPEN = [
    "answers", "left", "failures", "Cancel", "Evict", "Canary", "reuses",
    "damaged", "handed over", "handed over without its prefix", "parts",
    "tokens from disk", "embedded requests", "embedders that left", "right drafts", "pauses",
    "answers in fewer bits",
]  # fmt: skip


def test_every_answer_of_a_random_walk_is_the_quiet_one_and_nothing_is_left_behind(pytestconfig):
    seconds = ALL_SECONDS if pytestconfig.getoption("--all") else SECONDS
    happened = walk_for(seconds, 1, MOST_EPISODES, MUST_HAPPEN)
    assert all(happened[name] for name in MUST_HAPPEN)
