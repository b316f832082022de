"""What is started again, when, and what is not: the policy alone."""

import pytest

from scripts.lib.supervise.restart_policy import HEALTHY_S, Ending, Row, judge
from server.protocol.exit_codes import GARBLED, INTERNAL, NOT_JOINED, PEER_LOST, STALLED


def judge_one(code=70, served_s=None, row=(0, 0), asked=False, first=False, away=(), **settings):
    settings = {"may_restart": True, "max_failures": 5} | settings
    return judge(Ending(code, served_s, asked, first, away), Row(*row), **settings)


def test_a_server_that_was_ready_is_started_again():
    verdict = judge_one(served_s=1.0, first=True)
    assert (verdict.start_again, verdict.row, verdict.pause_s) == (True, Row(1, 0), 1)


@pytest.mark.parametrize("code", [1, 2, 3, 78, 126, 127])
def test_a_first_start_of_what_we_made_wrong_is_not_tried_again(code):
    verdict = judge_one(code=code, first=True)
    assert (verdict.start_again, verdict.exit_code) == (False, 78 if code == 78 else 1)


@pytest.mark.parametrize("code", [NOT_JOINED, PEER_LOST, GARBLED, INTERNAL, STALLED, 137, 255])
def test_any_other_first_start_is_tried_again_like_a_later_one(code):
    """A Mac that was late, or had no address yet, cost the first start for good."""
    verdict = judge_one(code=code, first=True)
    assert (verdict.start_again, verdict.row, verdict.pause_s) == (True, Row(1, 1), 1)
    assert not judge_one(code=code, first=True, row=(4, 4)).start_again
    assert not judge_one(code=code, first=True, may_restart=False).start_again


def test_a_later_start_that_never_got_ready_is_one_more_failure():
    verdict = judge_one(row=(3, 2))
    assert (verdict.start_again, verdict.row) == (True, Row(4, 3))


def test_pauses_double_up_to_thirty_seconds():
    pauses = [judge_one(served_s=1.0, row=(n, 0)).pause_s for n in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_starts_in_a_row_that_never_got_ready_are_capped():
    assert judge_one(row=(3, 3)).start_again
    verdict = judge_one(row=(4, 4))
    assert (verdict.start_again, verdict.exit_code) == (False, 1)
    assert "5 failed starts in a row" in verdict.reason


def test_one_that_got_ready_can_start_and_is_never_given_up():
    """Five failures in a minute ended the service for good, although each start had served."""
    row = Row(3, 3)
    for _ in range(100):
        verdict = judge_one(served_s=0.1, row=(row.failures, row.unready))
        row = verdict.row
        assert verdict.start_again
    assert row == Row(103, 0)
    assert judge_one(row=(103, 0)).row == Row(104, 1)


def test_five_minutes_of_service_make_the_pauses_short_again():
    assert judge_one(row=(9, 0), served_s=HEALTHY_S).pause_s == 1
    assert judge_one(row=(9, 0), served_s=HEALTHY_S - 1).pause_s == 30


@pytest.mark.parametrize("served_s", [None, 1.0])
def test_while_a_host_is_away_nothing_counts(served_s):
    verdict = judge_one(code=255, served_s=served_s, row=(4, 4), away=("mac2 (no route)",))
    assert (verdict.start_again, verdict.row) == (True, Row(4, 4))
    assert verdict.reason == "no answer from mac2 (no route)"


@pytest.mark.parametrize("how", [{"first": True, "code": 127}, {"may_restart": False}])
def test_where_nothing_is_tried_again_the_host_that_is_away_is_named(how):
    verdict = judge_one(**({"code": 255, "away": ("mac2 (no route)",)} | how))
    assert (verdict.start_again, verdict.exit_code) == (False, 1)
    assert verdict.reason.endswith("; no answer from mac2 (no route)")


@pytest.mark.parametrize(
    ("how", "exit_code"),
    [
        ({"code": 78}, 78),
        ({"code": 78, "away": ("mac2",)}, 78),
        ({"code": 0}, 0),
        ({"may_restart": False}, 1),
        ({"asked": True}, 0),
        ({"asked": True, "code": -9}, 0),
    ],
)
def test_what_is_never_started_again(how, exit_code):
    verdict = judge_one(**how)
    assert (verdict.start_again, verdict.exit_code) == (False, exit_code)
