"""Rank 0's decisions, without ranks: who starts, who is dropped, who gets which token."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx

from server.engine.turn import Turn
from server.observe.status import Status
from server.protocol.errors import ApiError, unavailable
from server.protocol.events import Failed, Prefilled, Score, Scored, Token
from server.protocol.requests import Common, Sampling
from server.sampling.random_state import RandomState
from server.sampling.row_state import Row, Scores
from server.scheduler.kv_budget import STEP, KvBudget
from server.scheduler.pacing import PrefillPace
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import NAP_LAST_MS, Scheduler, Spectator
from server.wire.mailbox import Header
from server.wire.messages import Cancel, Shutdown, Submit
from tests.support.ticket_events import all_events, next_event


class Desk:
    """A scheduler with its line and status."""

    def __init__(self, max_running: int = 2, max_waiting: int = 4, capacity: int = 10**9) -> None:
        self.status = Status("demo", "run")
        self.line = Line(max_running, max_waiting, lambda: self.status.load.slot_free_s)
        self.pace = PrefillPace(0.25, 512)
        self.scheduler = Scheduler(
            self.line,
            self.status,
            100,
            KvBudget(capacity),
            self.pace,
            PrefixIndex(0, True),
        )

    def admit(self, count: int = 1, **fields) -> list[Ticket]:
        defaults = {"prompt": [1, 2, 3], "max_tokens": 10, "common": Common()}
        tickets = [Ticket(**defaults | fields) for _ in range(count)]
        for ticket in tickets:
            self.line.admit([ticket])
        return tickets

    def admit_choices(self, count: int, **fields) -> list[Ticket]:
        """One request for several choices of one prompt; the first has the others in it."""
        defaults = {"prompt": [1, 2, 3], "max_tokens": 10, "common": Common()} | fields
        first = Ticket(**defaults)
        later = defaults | {"score_prompt": False, "events": first.events}
        first.followers = [Ticket(**later, choice=n) for n in range(1, count)]
        self.line.admit([first])
        return [first, *first.followers]

    def compose(self):
        """What it says, but for how to draw, which has random seeds and its own tests."""
        return [
            replace(message, draws=()) if isinstance(message, Submit) else message
            for message in self.scheduler.compose()
        ]

    def deliver(self, events, computed=0, chunk_s=0.0, step_s=0.0) -> None:
        """What the engine brought in a turn, and its seconds."""
        self.scheduler.deliver(Turn(events, [], computed, chunk_s, step_s))

    def counts(self) -> tuple[int, int]:
        load = self.status.load
        return load.running, load.waiting


@pytest.fixture
def desk() -> Desk:
    return Desk()


def submits(tickets: list[Ticket]) -> list[Submit]:
    return [Submit(t.uid, t.prompt, t.max_tokens, t.common.ignore_eos) for t in tickets]


def together(tickets: list[Ticket], **fields) -> Submit:
    """The message that starts choices of one prompt."""
    first, *others = tickets
    forks = tuple(one.uid for one in others)
    return Submit(first.uid, first.prompt, first.max_tokens, forks=forks, **fields)


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


# Choices of one prompt.


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


# Log-probabilities.


def scores_of(*logprobs: float) -> Scores:
    return Scores(mx.arange(len(logprobs)), mx.array(logprobs), None, None)


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


# KV memory. A batch costs its rows times the longest, in steps of STEP tokens.


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
    numbers = desk.scheduler._waiting[0][0].row.uniforms()
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


# Naps.


def test_naps_grow_while_idle_and_end_with_work(desk):
    naps = [desk.scheduler.nap_ms() for _ in range(10)]
    assert naps == sorted(naps) and naps[0] < 5 and naps[-1] == NAP_LAST_MS
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


# Retry-After.


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
