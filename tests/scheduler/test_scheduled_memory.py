"""The scheduler: KV memory. Rows of like length cost what the longest does, in steps of STEP."""

from server.engine.turn import Turn
from server.protocol.events import Prefilled, Token
from server.protocol.requests import Common
from server.protocol.row_lengths import STEP
from server.sampling.random_state import RandomState
from server.wire.messages import Cancel, Submit
from tests.support.scheduler_desk import Desk, scores_of, submits, together
from tests.support.ticket_events import next_event


def test_a_request_that_does_not_fit_beside_the_others_waits():
    desk = Desk(max_running=4, capacity=2 * STEP)
    tickets = desk.admit(3)
    assert desk.compose() == submits(tickets[:2])
    assert desk.counts() == (2, 1)
    desk.deliver([(tickets[0].uid, Token(1, "stop"))])
    assert desk.compose() == submits(tickets[2:])


def test_a_small_request_does_not_overtake_a_large_one():
    desk = Desk(max_running=4, capacity=2 * STEP)
    first = desk.admit(1)
    (large,) = desk.admit(1, prompt=[1] * 2 * STEP)
    (small,) = desk.admit(1)
    assert desk.compose() == submits(first)
    desk.deliver([(first[0].uid, Token(1, "stop"))])
    assert desk.compose() == submits([large])
    desk.deliver([(large.uid, Token(1, "stop"))])
    assert desk.compose() == submits([small])


def test_a_request_alone_always_starts():
    desk = Desk(capacity=1)
    tickets = desk.admit(2)
    assert desk.compose() == submits(tickets[:1])


def test_the_youngest_is_paused_when_memory_runs_out_and_continues_where_it_was():
    desk = Desk(max_running=2, capacity=2 * STEP)
    old, young = desk.admit(2, prompt=[1] * 10, max_tokens=2 * STEP)
    assert desk.compose() == submits([old, young])
    for n in range(2 * STEP - 1):
        desk.deliver([(old.uid, Token(n % 50, None)), (young.uid, Token(n % 50, None))])
        if messages := desk.compose():
            break
    assert messages == [Cancel(young.uid)] and 200 < n < STEP
    assert desk.counts() == (1, 1)
    # Its next token was in flight: it will be drawn again.
    desk.deliver([(young.uid, Token(99, None))])
    desk.deliver([(old.uid, Token(99, "stop"))])
    so_far = [k % 50 for k in range(n + 1)]
    assert desk.compose() == [Submit(young.uid, [1] * 10 + so_far, 2 * STEP - len(so_far), False)]
    assert desk.scheduler.row(young.uid).drawn == len(so_far)
    desk.deliver([(young.uid, Token(98, "stop"))])
    got = []
    while (event := next_event(young)) is not None:
        got.append(event.id)
    assert got == [*so_far, 98]
    assert desk.compose() == [] and desk.line.held() == 0


def test_a_paused_request_goes_on_with_its_limits_but_is_not_scored_again():
    desk = Desk(max_running=2, capacity=2 * STEP)
    common = Common(stop_token_ids=(7,), logprobs=0)
    old, young = desk.admit(2, max_tokens=2 * STEP, common=common, score_prompt=True)
    desk.compose()
    while not (messages := desk.compose()):
        for one in (old, young):
            desk.scheduler.row(one.uid).scores.append((scores_of(-1.0), 0))
        desk.deliver([(old.uid, Token(0, None)), (young.uid, Token(0, None))])
    assert messages == [Cancel(young.uid)]
    desk.line.cancel(old)
    cancel, submit = desk.compose()
    assert cancel == Cancel(old.uid)
    assert submit.uid == young.uid and submit.stop_ids == (7,) and not submit.score


def test_the_youngest_choice_is_paused_and_continues_alone():
    desk = Desk(max_running=3, capacity=2 * STEP)
    one, two = choices = desk.admit_choices(2, max_tokens=2 * STEP)
    assert desk.compose() == [together(choices)]
    count = 0
    while not (messages := desk.compose()):
        desk.deliver([(one.uid, Token(5, None)), (two.uid, Token(6, None))])
        count += 1
    assert messages == [Cancel(two.uid)] and desk.counts() == (1, 1)
    numbers = desk.scheduler._waiting.first()[0].row.uniforms()
    desk.deliver([(one.uid, Token(5, "stop"))])
    assert desk.compose() == [Submit(two.uid, [1, 2, 3] + [6] * count, 2 * STEP - count)]
    resumed = desk.scheduler.row(two.uid)
    assert resumed.uniforms() == numbers, "its seed and place, not the first choice's"
    told = RandomState.told(resumed.draw(two.uid))
    assert told.uniforms() == numbers and told.drawn == count


def test_a_paused_request_can_be_cancelled():
    desk = Desk(max_running=2, capacity=2 * STEP)
    tickets = desk.admit(2, prompt=[1] * 10, max_tokens=2 * STEP)
    desk.compose()
    while not desk.compose():
        desk.deliver([(t.uid, Token(5, None)) for t in tickets])
    desk.line.cancel(tickets[1])
    assert desk.compose() == [] and desk.line.held() == 1


def test_requests_that_end_within_the_budget_are_never_paused():
    """The look-ahead asked for room beyond a request's own limit: it was paused and started again
    in one bundle, and the token in flight meanwhile came twice."""
    desk = Desk(max_running=2, capacity=2 * STEP)
    tickets = desk.admit(2, prompt=[1] * (STEP - 10), max_tokens=10)
    assert desk.compose() == submits(tickets)
    for _ in range(9):
        desk.deliver([(t.uid, Token(5, None)) for t in tickets])
        assert desk.compose() == []


def test_a_prompt_that_is_paused_under_way_is_kept_and_goes_on_from_there():
    desk = Desk(max_running=2, capacity=2 * STEP, room=10**6)
    old, young = desk.admit(2, prompt=[1, 2] * 30, max_tokens=STEP)
    first, second = desk.compose()
    assert (first.uid, second.uid) == (old.uid, young.uid)
    while not (messages := desk.compose()):
        desk.deliver([(old.uid, Token(7, None)), (young.uid, Prefilled(48, 60))])
    (cancel,) = messages
    assert cancel.uid == young.uid and cancel.keep not in (0, first.store, second.store)
    desk.scheduler.deliver(Turn([(old.uid, Token(7, "stop"))], [(cancel.keep, [1, 2] * 24)]))
    again, *_ = desk.compose()
    assert again.uid == young.uid and again.reuse == (cancel.keep, 48)


def test_of_a_prompt_whose_client_leaves_what_there_is_is_kept():
    desk = Desk(room=10**6)
    (gone,) = desk.admit(1, prompt=[1, 2] * 50)
    desk.compose()
    desk.deliver([(gone.uid, Prefilled(64, 100))])
    desk.line.cancel(gone)
    (first,) = desk.compose()
    assert first.keep
    desk.scheduler.deliver(Turn([], [(first.keep, [1, 2] * 32)]))
    (asks,) = desk.admit(1, prompt=[1, 2] * 50)
    (submit,) = desk.compose()
    assert submit.reuse == (first.keep, 64) and asks.cached == 64
    assert [at for at, _ in submit.keep] == [100], "or it would be lost again with its answer"


def test_of_choices_that_are_left_in_their_answers_the_first_is_kept():
    """As of those that end. A stop string ends an answer like that, too."""
    desk = Desk(room=10**6)
    choices = desk.admit_choices(2, prompt=[1, 2] * 50)
    desk.compose()
    desk.deliver([(one.uid, Token(7, None)) for one in choices])
    for one in choices:
        desk.line.cancel(one)
    first, second = desk.compose()
    assert first.keep and second == Cancel(choices[1].uid)
