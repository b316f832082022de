"""The scheduler: choices of one prompt, and log-probabilities."""

from server.protocol.events import Prefilled, Score, Scored, Token
from server.protocol.requests import Common, Sampling
from server.wire.messages import Cancel
from tests.support.scheduler_desk import Desk, scores_of, submits, together
from tests.support.ticket_events import all_events


def test_choices_of_one_prompt_start_with_one_message():
    desk = Desk(max_running=4)
    choices = desk.admit_choices(3)
    (other,) = desk.admit()
    assert desk.compose() == [together(choices), *submits([other])]
    assert desk.counts() == (4, 0)
    keys = {desk.scheduler.row(one.uid).uniforms() for one in choices}
    assert len(keys) == 3


def test_choices_of_one_seed_draw_apart_but_the_same_every_time(desk):
    keys = []
    for _ in range(2):
        choices = desk.admit_choices(2, common=Common(sampling=Sampling(seed=5)))
        desk.compose()
        keys.append([desk.scheduler.row(one.uid).uniforms() for one in choices])
        desk.deliver([(one.uid, Token(1, "stop")) for one in choices])
    assert keys[0] == keys[1] and keys[0][0] != keys[0][1]


def test_choices_without_a_slot_start_when_there_is_one(desk):
    """max_running is 2: the third has no prefill to share any more."""
    (other,) = desk.admit()
    choices = desk.admit_choices(3, score_prompt=True)
    assert desk.compose() == [*submits([other]), together(choices[:1], score=True)]
    desk.deliver([(other.uid, Token(1, "stop"))])
    assert desk.compose() == submits(choices[1:2])
    assert desk.counts() == (2, 1)
    desk.deliver([(choices[0].uid, Token(1, "stop"))])
    assert desk.compose() == submits(choices[2:])
    assert desk.counts() == (2, 0)


def test_each_choice_gets_its_own_tokens(desk):
    choices = desk.admit_choices(2)
    desk.compose()
    desk.deliver([(choices[1].uid, Token(5, None)), (choices[0].uid, Token(6, "stop"))])
    assert all_events(choices[0]) == [(1, Token(5, None)), (0, Token(6, "stop"))]
    assert desk.counts() == (1, 0) and desk.line.held() == 1


def test_cancelled_choices_are_dropped_one_by_one_wherever_they_are(desk):
    choices = desk.admit_choices(4)
    assert desk.compose() == [together(choices[:2])]
    desk.line.cancel(choices[0])
    desk.line.cancel(choices[2])
    assert desk.compose() == [Cancel(choices[0].uid), *submits(choices[3:])]
    assert desk.line.held() == 2 and desk.counts() == (2, 0)


def test_choices_cancelled_before_they_were_seen_leave_the_others(desk):
    choices = desk.admit_choices(3)
    desk.line.cancel(choices[0])
    assert desk.compose() == [together(choices[1:])]
    assert desk.line.held() == 2


def test_a_choice_that_fails_fails_alone_here(desk):
    """The HTTP side ends the whole request; the ranks are told when it does."""
    one, two = desk.admit_choices(2)
    desk.compose()
    desk.scheduler.failed(desk.scheduler.row(two.uid), RuntimeError("bad row"))
    ((choice, event),) = all_events(one)
    assert choice == 1 and event.error.code == "engine_error"
    assert desk.compose() == [Cancel(two.uid)]
    assert desk.counts() == (1, 0)


def test_a_request_that_is_gone_still_has_a_row(desk):
    """Ranks hear of a drop one step after rank 0 has forgotten the request, and may insert it or
    its choices, or score its prompt, meanwhile: the KeyError ended rank 0."""
    choices = desk.admit_choices(2, common=Common(logprobs=3))
    desk.compose()
    for one in choices:
        desk.line.cancel(one)
    desk.compose()
    for one in choices:
        assert desk.scheduler.row(one.uid).logprobs is None


def test_scores_come_with_their_tokens_and_the_prompts_before_any(desk):
    (ticket,) = desk.admit(common=Common(logprobs=0), score_prompt=True)
    desk.compose()
    row = desk.scheduler.row(ticket.uid)
    row.prompt_scores += [scores_of(-1.0), scores_of(-2.0)]
    row.scores += [(scores_of(-0.5, -0.25), 1), (scores_of(-4.0), 0)]
    desk.deliver([(ticket.uid, Prefilled(2, 3))])
    desk.deliver([(ticket.uid, Token(1, None))])
    desk.deliver([(ticket.uid, Token(0, "stop"))])
    assert [event for _, event in all_events(ticket)] == [
        Prefilled(2, 3),
        Scored((Score(0, -1.0), Score(0, -2.0))),
        Token(1, None, Score(1, -0.25)),
        Token(0, "stop", Score(0, -4.0)),
    ]


def test_a_prompts_scores_are_read_in_the_turn_of_their_chunk(desk):
    """All of a long prompt's in the turn of its first token held up every rank."""
    (ticket,) = desk.admit(common=Common(logprobs=0), score_prompt=True)
    desk.compose()
    row = desk.scheduler.row(ticket.uid)
    for done in (1, 2):
        row.prompt_scores.append(scores_of(-1.0 * done))
        desk.deliver([(ticket.uid, Prefilled(done, 3))])
        assert row.prompt_scores == []
    desk.deliver([(99, Prefilled(1, 3))])  # of one that is gone
    row.scores.append((scores_of(-0.5), 0))
    desk.deliver([(ticket.uid, Token(0, "stop"))])
    (scored,) = [event for _, event in all_events(ticket) if isinstance(event, Scored)]
    assert scored == Scored((Score(0, -1.0), Score(0, -2.0)))


def test_a_stand_in_for_a_request_that_is_gone_is_nobody_elses(desk):
    """Rank 0 had one for all, and wrote into it what a message had said of each."""
    one, other = desk.scheduler.row(5), desk.scheduler.row(6)
    assert one is not other
