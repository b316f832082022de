"""The scheduler on rank 0: who starts when, what is told to the ranks, and when it naps."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from server.engine.turn import Turn
from server.protocol.errors import ApiError, unavailable
from server.protocol.events import Failed, Prefilled, Token
from server.protocol.requests import Common, Sampling
from server.sampling.random_state import RandomState
from server.sampling.row_state import Row
from server.scheduler.naps import LAST_MS
from server.scheduler.spectator import Spectator
from server.wire.mailbox import Header
from server.wire.messages import Cancel, Shutdown, Submit
from tests.support.scheduler_desk import Desk, submits
from tests.support.ticket_events import next_event


def test_nothing_arrived_is_no_message(desk):
    assert desk.compose() == []
    assert desk.counts() == (0, 0)


def test_requests_start_in_the_order_of_arrival_up_to_max_running(desk):
    tickets = desk.admit(4)
    assert desk.compose() == submits(tickets[:2])
    assert desk.counts() == (2, 2)
    assert desk.compose() == []


def test_a_finished_request_makes_room_for_the_next(desk):
    tickets = desk.admit(3)
    desk.compose()
    desk.deliver([(tickets[0].uid, Token(7, "stop"))])
    assert next_event(tickets[0]) == Token(7, "stop")
    assert desk.compose() == submits(tickets[2:])
    assert desk.counts() == (2, 0)
    assert desk.line.held() == 2


def test_tokens_reach_their_own_tickets(desk):
    one, two = desk.admit(2)
    desk.compose()
    desk.deliver([(one.uid, Prefilled(2, 3)), (two.uid, Token(5, None)), (one.uid, Token(6, None))])
    assert [next_event(one), next_event(one), next_event(one)] == [
        Prefilled(2, 3),
        Token(6, None),
        None,
    ]
    assert [next_event(two), next_event(two)] == [Token(5, None), None]


def test_a_request_cancelled_while_waiting_never_starts(desk):
    tickets = desk.admit(4)
    desk.compose()
    desk.line.cancel(tickets[2])
    assert desk.compose() == []
    assert desk.line.held() == 3
    desk.deliver([(tickets[0].uid, Token(1, "length"))])
    assert desk.compose() == submits([tickets[3]])


def test_a_request_cancelled_before_it_was_seen_never_starts(desk):
    (ticket,) = desk.admit()
    desk.line.cancel(ticket)
    assert desk.compose() == []
    assert desk.line.held() == 0


def test_a_request_cancelled_while_running_is_dropped_before_its_slot_is_filled(desk):
    tickets = desk.admit(3)
    desk.compose()
    desk.line.cancel(tickets[1])
    assert desk.compose() == [Cancel(tickets[1].uid), *submits(tickets[2:])]
    assert desk.line.held() == 2
    # Its last token was in flight.
    desk.deliver([(tickets[1].uid, Token(5, None)), (tickets[2].uid, Token(6, None))])
    assert next_event(tickets[1]) is None
    assert next_event(tickets[2]) == Token(6, None)


def test_a_cancel_after_the_last_token_is_no_message(desk):
    (ticket,) = desk.admit()
    desk.compose()
    desk.deliver([(ticket.uid, Token(5, "stop"))])
    desk.line.cancel(ticket)
    assert desk.compose() == []


def test_cancelling_all_frees_every_slot_and_place(desk):
    tickets = desk.admit(6)
    desk.compose()
    for ticket in tickets:
        desk.line.cancel(ticket)
    assert desk.compose() == [Cancel(tickets[0].uid), Cancel(tickets[1].uid)]
    assert desk.counts() == (0, 0) and desk.line.held() == 0
    again = desk.admit(6)
    assert desk.compose() == submits(again[:2])


def test_a_row_that_fails_in_sampling_fails_alone(desk):
    one, two = desk.admit(2)
    desk.compose()
    desk.scheduler.failed(desk.scheduler.row(one.uid), RuntimeError("bad row"))
    desk.scheduler.failed(desk.scheduler.row(one.uid), RuntimeError("again, a step later"))
    event = next_event(one)
    assert isinstance(event, Failed)
    assert (event.error.status, event.error.code) == (500, "engine_error")
    assert next_event(one) is None and next_event(two) is None
    # The token it got to keep the ranks' shapes equal.
    desk.deliver([(one.uid, Token(0, None)), (two.uid, Token(1, None))])
    assert desk.compose() == [Cancel(one.uid)]
    assert next_event(two) == Token(1, None)
    assert desk.counts() == (1, 0)


def test_a_row_that_fails_at_its_last_token_leaves_nothing_behind(desk):
    (one,) = desk.admit()
    desk.compose()
    desk.scheduler.failed(desk.scheduler.row(one.uid), RuntimeError("bad row"))
    desk.deliver([(one.uid, Token(0, "length"))])
    assert desk.compose() == []
    assert desk.line.held() == 0


def test_stop_is_a_shutdown_message_after_the_drops(desk):
    (ticket,) = desk.admit()
    desk.compose()
    desk.line.cancel(ticket)
    desk.line.arrived.clear()
    desk.line.stop("drained")
    assert desk.line.arrived.is_set()  # an idle scheduler wakes for it
    assert desk.compose() == [Cancel(ticket.uid), Shutdown("drained")]


def test_fail_all_answers_waiting_and_running(desk):
    tickets = desk.admit(4)
    desk.compose()
    desk.line.fail_all(unavailable("restarting", "shutting_down"))
    assert all(isinstance(next_event(ticket), Failed) for ticket in tickets)


def test_rows_know_their_sampling_and_prompt(desk):
    (ticket,) = desk.admit(common=Common(sampling=Sampling(temperature=0.3, seed=5)))
    desk.compose()
    row = desk.scheduler.row(ticket.uid)
    assert row.sampling == ticket.common.sampling and not row.greedy


def test_what_a_request_asks_of_the_ranks_is_in_its_message(desk):
    common = Common(ignore_eos=True, stop_token_ids=(7, 8), logprobs=1)
    (ticket,) = desk.admit(common=common, score_prompt=True)
    assert desk.compose() == [Submit(ticket.uid, [1, 2, 3], 10, True, (7, 8), (), True)]


@pytest.mark.parametrize(
    "common",
    [
        Common(sampling=Sampling(temperature=0)),
        Common(sampling=Sampling(presence_penalty=0.1)),
        Common(sampling=Sampling(frequency_penalty=-0.1)),
        Common(sampling=Sampling(repetition_penalty=1.1)),
        Common(logit_bias=((3, 1.0),)),
        Common(min_tokens=1),
        Common(logprobs=0),
    ],
)
def test_the_ranks_are_told_how_to_draw_only_where_that_is_all_there_is_to_it(desk, common):
    for wanted, count in ((common, 0), (Common(sampling=Sampling(top_p=0.5)), 1)):
        desk.admit(common=wanted)
        (message,) = desk.scheduler.compose()
        assert len(message.draws) == count


def test_a_row_with_a_grammar_is_rank_0s_also_when_its_answer_is_over():
    class Grammar:
        def matcher(self):
            return self

        def mask(self):
            return None

    row = Row(Common(), [1], 100, eos=(2,), grammar=Grammar())
    assert row.draw(1) is None
    row.drawn = 1
    row.mask_after(2)
    assert not row.constrained and row.draw(1) is None


def test_what_the_ranks_are_told_draws_as_rank_0_would(desk):
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=-3)
    choices = desk.admit_choices(2, common=Common(sampling=sampling))
    (message,) = desk.scheduler.compose()
    assert [draw.uid for draw in message.draws] == [one.uid for one in choices]
    for one in choices:
        row, told = desk.scheduler.row(one.uid), RandomState.told(message.draw(one.uid))
        assert told.shared and replace(told.sampling, seed=-3) == sampling
        for _ in range(3):
            assert told.uniforms() == row.uniforms()
            told.drawn += 1
            row.drawn += 1


def test_naps_grow_while_idle_and_end_with_work(desk):
    naps = [desk.scheduler.nap_ms() for _ in range(10)]
    assert naps == sorted(naps) and naps[0] < 5 and naps[-1] == LAST_MS
    (ticket,) = desk.admit()
    assert desk.scheduler.nap_ms() == 0  # arrived, not yet composed
    desk.compose()
    assert desk.scheduler.nap_ms() == 0  # running
    desk.deliver([(ticket.uid, Token(1, "stop"))])
    assert desk.scheduler.nap_ms() < 5


def test_a_nap_ends_when_a_ticket_arrives(desk):
    threading.Timer(0.05, desk.admit).start()
    started = time.monotonic()
    desk.scheduler.nap(30_000)
    assert time.monotonic() - started < 15


def test_a_worker_decides_nothing():
    spectator = Spectator()
    assert spectator.compose() == [] and spectator.nap_ms() == 0
    spectator.deliver(Turn([(1, Token(1, None))], [], step_s=0.05))
    spectator.nap(1)


def retry_after(desk: Desk) -> int:
    with pytest.raises(ApiError) as caught:
        desk.admit()
    return int(caught.value.headers()["Retry-After"])


def test_retry_after_grows_with_what_is_left_to_generate():
    short, long = Desk(1, 0), Desk(1, 0)
    for desk, tokens in ((short, 5), (long, 2000)):
        desk.pace.step_s = 0.5
        desk.admit(max_tokens=tokens)
        desk.compose()
    assert retry_after(short) == 3  # 5 steps of half a second, rounded up
    assert 10 < retry_after(long) <= 60


def test_retry_after_falls_as_tokens_come():
    desk = Desk(1, 0)
    (ticket,) = desk.admit(max_tokens=100)
    desk.pace.step_s = 0.5
    desk.compose()
    before = retry_after(desk)
    for _ in range(60):
        desk.deliver([(ticket.uid, Token(1, None))])
    desk.pace.step_s = 0.5
    desk.compose()
    assert retry_after(desk) < before


def test_retry_after_before_anything_runs_is_soon():
    desk = Desk(1, 0)
    desk.admit()
    assert retry_after(desk) == 1


def test_a_slow_decode_step_is_not_taken_for_a_slow_chunk(desk):
    """Prompts that came while many decoded were cut ever smaller, and their turns never ended."""
    (ticket,) = desk.admit()
    desk.compose()
    before = desk.scheduler.chunk()
    for _ in range(20):
        desk.deliver([(ticket.uid, Token(1, None))], computed=before, chunk_s=0.01, step_s=3.0)
    assert desk.scheduler.chunk() > before


def test_all_else_comes_first_where_mlx_is_slow_to_take_a_step(desk):
    (ticket,) = desk.admit()
    desk.compose()
    for launch_s, late in ((0.001, False), (0.2, True), (0.001, False), (0.2, True)):
        step = Turn([(ticket.uid, Token(1, None))], [], launch_s=launch_s, header=Header())
        desk.scheduler.deliver(step)
        assert desk.scheduler.late() == late
    desk.scheduler.deliver(Turn([], [], computed=5, chunk_s=0.1))
    assert desk.scheduler.late(), "a chunk says nothing of it"


def test_a_step_is_never_late_with_a_grammar(desk):
    """Rank 0 has such a row's step begin alone, and the others would do something else first."""
    (ticket,) = desk.admit()
    desk.compose()
    desk.scheduler.deliver(Turn([], [], launch_s=0.2, header=Header()))
    (bound,) = desk.admit()
    bound.grammar = SimpleNamespace(matcher=lambda: None)
    assert desk.scheduler.late()
    desk.scheduler.compose()
    assert not desk.scheduler.late(), "from the very header that announces it"
    bound.cancelled.set()
    desk.scheduler.compose()
    assert desk.scheduler.late()
