"""The engine on one rank, in this process: its bookkeeping, and what one request may break."""

import math

import mlx.core as mx
import numpy as np
import pytest

from server.protocol.events import Failed, Prefilled, Score, Scored, Token
from server.sampling.choosers import Follows
from server.scheduler.queue import Ticket
from server.startup.loading import load_shard
from server.wire.link import Link
from tests.support.desk import Desk, choices, ids_of, shapes_of, ticket
from tests.support.ticket_events import all_events
from tests.support.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


def test_requests_of_all_lengths_get_what_they_get_alone(shard):
    prompts = [[9], [1, 2, 3], list(range(40)), list(range(200)), [8] * 64, [3] * 65]
    alone = [Desk(shard).run(ticket(p))[0] for p in prompts]
    together = Desk(shard, max_batch=3).run(*[ticket(p) for p in prompts])
    assert together == alone
    assert all(len(ids) == 8 for ids in alone)


def test_rows_that_come_and_go_keep_their_own_sampling(shard):
    kinds = [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0},
        {"temperature": 0.8, "seed": 4, "top_p": 0.9, "presence_penalty": 1.0},
        {"temperature": 1.5, "seed": 5, "top_k": 10},
        {"temperature": 0, "repetition_penalty": 1.5},
    ]
    limits = [3, 20, 11, 7, 15]
    alone = [
        Desk(shard).run(ticket(max_tokens=n, **k))[0] for k, n in zip(kinds, limits, strict=True)
    ]
    together = Desk(shard, max_batch=2).run(
        *[ticket(max_tokens=n, **k) for k, n in zip(kinds, limits, strict=True)]
    )
    assert together == alone
    assert [len(ids) for ids in together] == limits


def test_a_request_whose_sampling_fails_fails_alone(shard, monkeypatch):
    from server.sampling.row_state import Row

    good = Desk(shard).run(ticket())[0]
    history = Row.history

    def break_one(self):
        if self.sampling.presence_penalty == 1.25:
            raise ValueError("a broken sampler")
        return history(self)

    monkeypatch.setattr(Row, "history", break_one)
    desk = Desk(shard)
    ends = desk.run(
        ticket(), ticket(presence_penalty=1.25), ticket(), ticket(frequency_penalty=0.5)
    )
    assert isinstance(ends[1], Failed) and ends[1].error.status == 500
    assert "a broken sampler" in ends[1].error.message
    assert ends[0] == ends[2] == good
    assert len(ends[3]) == 8
    assert not desk.engine.busy


def test_a_request_that_the_engine_refuses_fails_alone(shard):
    desk = Desk(shard)
    ends = desk.run(ticket(), ticket(prompt=[]), ticket())
    assert isinstance(ends[1], Failed) and "refused" in ends[1].error.message
    assert ends[0] == ends[2] and len(ends[0]) == 8
    assert desk.engine.busy is False


def test_cancelling_in_any_phase_empties_the_engine(shard):
    desk = Desk(shard)
    for steps in range(6):
        desk.scheduler.compose()
        one = ticket(prompt=list(range(150)), max_tokens=50)
        desk.line.admit([one])
        for message in desk.scheduler.compose():
            desk.engine.submit(message)
        for _ in range(steps):
            desk.engine.step()
        desk.engine.cancel(one.uid)
        desk.engine.cancel(one.uid)  # again: as good as unknown
        desk.line.cancel(one)
        desk.scheduler.compose()
        assert not desk.engine.busy
        assert desk.line.held() == 0


def test_ignore_eos_and_end_of_text(shard):
    first = Desk(shard).run(ticket())[0][0]
    desk = Desk(shard, eos=[first])
    stopped, endless = ticket(), ticket(common={"ignore_eos": True})
    ends = desk.run(stopped, endless)
    assert ends[0] == [first]
    assert len(ends[1]) == 8


def test_a_stop_token_ends_an_answer_as_end_of_text_does_but_in_spite_of_ignore_eos(shard):
    ids = Desk(shard).run(ticket(max_tokens=6, **LIVELY))[0]
    last = ids.index(ids[3])
    common = {"stop_token_ids": (200, ids[3]), "ignore_eos": True}
    (events,) = Desk(shard).events(ticket(max_tokens=6, common=common, **LIVELY))
    tokens = [event for event in events if isinstance(event, Token)]
    assert [token.id for token in tokens] == ids[: last + 1]
    assert [token.finish for token in tokens] == [None] * last + ["stop"]


def test_min_tokens_puts_every_end_off_but_not_for_ever(shard):
    first = Desk(shard).run(ticket())[0][0]
    second = Desk(shard).run(ticket(common={"logit_bias": ((first, -100),)}))[0][0]
    for kind in ({}, {"stop_token_ids": (first,)}):
        eos = [] if kind else [first]
        ids = Desk(shard, eos=eos).run(ticket(common={"min_tokens": 3} | kind))[0]
        assert first not in ids[:3] and ids[0] == second
        assert len(ids) == 8 or ids.index(first) == len(ids) - 1
        short = ticket(max_tokens=2, common={"min_tokens": 5} | kind)
        assert len(Desk(shard, eos=eos).run(short)[0]) == 2


def test_a_bias_forces_and_forbids_tokens(shard):
    assert Desk(shard).run(ticket(common={"logit_bias": ((200, 100.0),)}))[0] == [200] * 8
    free = Desk(shard).run(ticket())[0]
    banned = Desk(shard).run(ticket(common={"logit_bias": tuple((i, -100.0) for i in free)}))[0]
    assert len(banned) == 8 and not set(banned) & set(free)


# Choices of one prompt.

LIVELY = {"temperature": 1.3, "seed": 11}


def alone(shard, count: int, **fields) -> list[list[int]]:
    """What the choices give one by one, each with a prefill of its own."""
    return [Desk(shard).run(ticket(choice=n, **fields))[0] for n in range(count)]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 66, 200])
def test_choices_from_one_prefill_are_what_they_are_alone(shard, length):
    fields = {"prompt": [n % 90 + 33 for n in range(length)]} | LIVELY
    expected = alone(shard, 4, **fields)
    assert len({tuple(ids) for ids in expected}) == 4, "choices differ"
    assert Desk(shard).run(choices(4, **fields)) == expected
    assert Desk(shard, max_batch=2).run(choices(4, **fields)) == expected
    other = ticket(prompt=[3] * 90, max_tokens=20)
    assert Desk(shard).run(other, choices(4, **fields))[1:] == expected


def test_a_prompt_is_prefilled_once_for_all_its_choices(shard, monkeypatch):
    shapes = shapes_of(shard, monkeypatch)
    Desk(shard).run(choices(4, prompt=[7] * 130, max_tokens=3))
    prefill = [shape for shape in shapes if shape[1] > 1]
    assert prefill == [(1, 64), (1, 64)], "129 tokens: two chunks, and one of a single token"


@pytest.mark.sweep(4)
@pytest.mark.parametrize("score", [False, True])
@pytest.mark.parametrize("turn", range(9))
def test_a_choice_that_is_cancelled_at_any_time_leaves_the_others_as_they_are(shard, turn, score):
    """The prompt takes four steps; the first choice's end before the fork hands it on."""
    fields = {"prompt": [n % 90 + 33 for n in range(200)], "common": {"logprobs": 0}} | LIVELY
    expected = alone(shard, 3, **fields)
    for gone in range(3):
        desk = Desk(shard)
        first = choices(3, score_prompt=score, **fields)
        every = [first, *first.followers]

        def leave(now: int, one=every[gone], desk=desk) -> None:
            if now == turn:
                desk.line.cancel(one)

        got = desk.run(first, act=leave)
        for n in {0, 1, 2} - {gone}:
            assert got[n] == expected[n]
        assert got[gone] == expected[gone][: len(got[gone])]
        assert not desk.engine.busy and desk.line.held() == 0


@pytest.mark.parametrize("score", [False, True])
@pytest.mark.parametrize("length", [1, 3, 200])
@pytest.mark.parametrize("turn", range(9))
def test_a_request_that_leaves_at_any_time_takes_all_its_choices_with_it(
    shard, turn, length, score
):
    """Its choices went back to the engine one by one while rank 0 had forgotten them all: the
    KeyError ended rank 0, whenever a client of n > 1 left during prefill."""
    desk = Desk(shard)
    first = choices(
        3, prompt=[9] * length, max_tokens=50, common={"logprobs": 2}, score_prompt=score
    )
    other = ticket(max_tokens=12)

    def leave(now: int) -> None:
        if now == turn:
            for one in (first, *first.followers):
                desk.line.cancel(one)

    assert desk.run(first, other, act=leave)[3] == Desk(shard).run(ticket(max_tokens=12))[0]
    assert not desk.engine.busy and desk.line.held() == 0


# Log-probabilities.


def right_logprobs(shard, ids: list[int]) -> np.ndarray:
    """[T, V] of the tokens that follow each position, by one forward pass."""
    logits = shard.model(mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def check_score(score: Score, right: np.ndarray, alternatives: int) -> None:
    assert score.logprob == pytest.approx(right[score.id], abs=2e-3)
    best = np.sort(right)[::-1][:alternatives]
    assert [value for _, value in score.top] == pytest.approx(best.tolist(), abs=2e-3)
    for token, value in score.top:
        assert right[token] == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("length", [2, 3, 64, 65, 66, 200])
@pytest.mark.parametrize("count", [1, 3])
def test_a_prompts_log_probabilities_are_those_of_a_forward_pass(shard, length, count):
    prompt = [n * 7 % 90 + 33 for n in range(length)]
    fields = {"prompt": prompt, "common": {"logprobs": 3}} | LIVELY
    outputs = Desk(shard).events(
        ticket(max_tokens=30), choices(count, score_prompt=True, **fields), ticket()
    )
    assert [ids_of(events) for events in outputs[1:-1]] == alone(shard, count, **fields)
    (scored,) = [event for event in outputs[1] if isinstance(event, Scored)]
    first_token = next(i for i, event in enumerate(outputs[1]) if isinstance(event, Token))
    assert outputs[1].index(scored) < first_token
    assert [score.id for score in scored.scores] == prompt[1:]
    right = right_logprobs(shard, prompt)
    for place, score in enumerate(scored.scores):
        check_score(score, right[place], 3)
    progress = [event for event in outputs[1] if isinstance(event, Prefilled)]
    assert progress[-1].done == progress[-1].total
    assert not [e for events in outputs[2:] for e in events if isinstance(e, Scored)]


def test_tokens_have_their_log_probabilities_whatever_their_neighbours_ask(shard):
    prompts = [[40 + n] * (3 * n + 1) for n in range(4)]
    asked = [None, 0, 5, 2]
    outputs = Desk(shard).events(
        *[
            ticket(prompt=p, max_tokens=6 + n, common={"logprobs": n}, **LIVELY)
            if n is not None
            else ticket(prompt=p)
            for p, n in zip(prompts, asked, strict=True)
        ]
    )
    for prompt, alternatives, events in zip(prompts, asked, outputs, strict=True):
        tokens = [event for event in events if isinstance(event, Token)]
        if alternatives is None:
            assert all(token.score is None for token in tokens)
            continue
        right = right_logprobs(shard, prompt + [token.id for token in tokens])
        for n, token in enumerate(tokens):
            assert token.score.id == token.id
            assert len(token.score.top) == alternatives
            check_score(token.score, right[len(prompt) - 1 + n], alternatives)


def test_a_forbidden_token_may_still_be_the_likeliest_rival(shard):
    """Log-probabilities are the model's own, before bias and temperature."""
    first = Desk(shard).run(ticket())[0][0]
    common = {"logprobs": 1, "logit_bias": ((first, -100.0),)}
    (events,) = Desk(shard).events(ticket(max_tokens=1, common=common))
    (token,) = [event for event in events if isinstance(event, Token)]
    assert token.id != first and token.score.top[0][0] == first
    assert token.score.logprob < token.score.top[0][1] and math.isfinite(token.score.logprob)


def test_a_failed_sampling_with_log_probabilities_fails_alone_at_any_step(shard, monkeypatch):
    """The token that it gets all the same has no score, and must not be asked for one, whether
    or not messages are on their way to the ranks in that step."""
    from server.sampling.row_state import Row

    expected = Desk(shard).run(ticket(max_tokens=20))[0]
    history = Row.history
    for step in range(4):

        def break_later(self, step=step):
            if self.drawn >= step and self.sampling.presence_penalty == 1.25:
                raise ValueError("a broken sampler")
            return history(self)

        monkeypatch.setattr(Row, "history", break_later)
        for turn in range(5):
            desk = Desk(shard)
            bad = ticket(max_tokens=20, presence_penalty=1.25, common={"logprobs": 1})
            late = ticket(max_tokens=2)

            def arrive(now: int, desk=desk, late=late, turn=turn) -> None:
                if now == turn:
                    desk.line.admit([late])

            ends = desk.run(bad, ticket(max_tokens=20), act=arrive)
            assert isinstance(ends[0], Failed) and "broken sampler" in ends[0].error.message
            assert ends[1] == expected


def test_a_worker_computes_the_logits_of_a_prompt_too():
    """Only rank 0 reads them, but the model's last collectives are on the way to them: rank 0
    would wait for ever for a rank that leaves them out."""
    logits = mx.zeros((2, 8)) + 1
    (waited_for,) = Follows().score(1, logits, [1, 2])
    assert waited_for is logits


# Grammars.


class Even:
    """A grammar of even tokens, whose matchers object to a token shown twice or out of turn."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.breaks_after = breaks_after
        self.matchers: list[list[int]] = []

    def matcher(self):
        self.matchers.append([])
        return EvenMatcher(self, self.matchers[-1])


class EvenMatcher:
    def __init__(self, grammar: Even, seen: list[int]) -> None:
        self._grammar, self.seen = grammar, seen

    def accept(self, token: int) -> None:
        if token % 2 or len(self.seen) == self._grammar.breaks_after:
            raise ValueError("not allowed")
        self.seen.append(token)

    def mask(self) -> np.ndarray:
        return np.full(-(-264 // 32), 0x55555555, dtype=np.uint32)


def constrained(grammar, **fields) -> Ticket:
    one = ticket(**fields)
    one.grammar = grammar
    return one


def test_each_constrained_choice_has_a_matcher_of_its_own(shard):
    grammar = Even()
    first = choices(3, prompt=[n % 90 + 33 for n in range(70)], **LIVELY)
    for one in (first, *first.followers):
        one.grammar = grammar
    free = ticket(prompt=[5] * 30, max_tokens=20, **LIVELY)
    *outputs, unbound = Desk(shard).run(first, free)
    assert len(grammar.matchers) == 3
    for ids, seen in zip(outputs, grammar.matchers, strict=True):
        assert len(ids) == 8 and all(i % 2 == 0 for i in ids)
        # It may be shown the last one: that step was launched before anyone knew.
        assert seen[:7] == ids[:7] and len(seen) <= 8
    assert unbound == Desk(shard).run(ticket(prompt=[5] * 30, max_tokens=20, **LIVELY))[0]


class OnlyEnd:
    """A grammar that is complete at once: it allows token 33 alone."""

    def matcher(self):
        return self

    def accept(self, token: int) -> None:
        assert token == 33

    def mask(self) -> np.ndarray:
        return np.array([0, 1 << 1] + [0] * 7, dtype=np.uint32)


def test_a_complete_grammar_ends_an_answer_before_its_min_tokens(shard):
    """With nothing left to choose from, the sampler would break the grammar."""
    one = constrained(OnlyEnd(), common={"min_tokens": 3})
    assert Desk(shard, eos=[33]).run(one) == [[33]]


def test_a_matcher_that_breaks_fails_its_own_request_alone(shard):
    """The others in the batch were shown their token a second time, and failed with it."""
    good = Desk(shard).run(constrained(Even(), max_tokens=6))[0]
    sound = Even(), Even()
    ends = Desk(shard).run(
        constrained(sound[0], max_tokens=6),
        constrained(Even(breaks_after=2), max_tokens=6),
        constrained(sound[1], max_tokens=6),
    )
    assert isinstance(ends[1], Failed) and "not allowed" in ends[1].error.message
    assert ends[0] == ends[2] == good
    for grammar in sound:
        assert grammar.matchers[0][:5] == good[:5]


def test_a_newcomer_waits_for_no_more_steps_than_are_under_way(shard):
    """It arrives in turn 5. Turn 6 launches a step, in which the ranks hear of it; in turn 7 it is
    prefilled, and its first token is there."""
    desk, first, newcomer, came = Desk(shard), ticket(max_tokens=40), ticket(), []

    def arrive(turn: int) -> None:
        if turn == 5:
            desk.line.admit([newcomer])
        if newcomer.first_token:
            came.append(turn)

    desk.run(first, act=arrive)
    assert came[0] == 7


def test_no_step_is_computed_after_the_last_token_of_all(shard, monkeypatch):
    """The next request waited for it."""
    desk, calls = Desk(shard), []
    model = desk.engine.decoding.model

    class Counted:
        def __call__(self, inputs, **named):
            calls.append(inputs.shape)
            return model(inputs, **named)

    monkeypatch.setattr(desk.engine.decoding, "model", Counted())
    expected = Desk(shard).run(ticket(max_tokens=3), ticket(max_tokens=5))
    assert desk.run(ticket(max_tokens=3), ticket(max_tokens=5)) == expected
    assert len(calls) == 4, "the first token comes from the prompt"


class Order:
    """What happens in which order in a desk's turns: build and launch of a step, and what is
    delivered, as the uids that got a token."""

    def __init__(self, desk, monkeypatch) -> None:
        self.seen: list = []
        batch = desk.engine.decoding
        build, async_eval, deliver = batch._build, mx.async_eval, desk.scheduler.deliver

        def built(shared) -> None:
            self.seen.append("build")
            build(shared)

        def launched(*arrays) -> None:
            step = batch.step
            if step is not None and any(arrays[0] is part[0] for part in step.parts):
                self.seen.append("launch")
            elif isinstance(arrays[0], list) and isinstance(arrays[0][0], tuple):
                self.seen.append("keep")
            async_eval(*arrays)

        def delivered(turn) -> None:
            self.seen.append([uid for uid, event in turn.events if isinstance(event, Token)])
            deliver(turn)

        monkeypatch.setattr(batch, "_build", built)
        monkeypatch.setattr("server.engine.decoding.mx.async_eval", launched)
        monkeypatch.setattr(desk.scheduler, "deliver", delivered)


def test_a_step_is_running_while_tokens_are_delivered(shard, monkeypatch):
    desk, one = Desk(shard), ticket(max_tokens=4)
    order = Order(desk, monkeypatch)
    desk.run(one)
    first, others = [[one.uid]], ["build", "launch", [one.uid]]
    # The first comes with the chunk; with the last there is nothing to build.
    assert order.seen == [*first, "build", "launch", [], *others * 2, [one.uid]]


def test_a_step_that_mlx_is_slow_to_take_waits_for_all_else(shard, monkeypatch):
    """MLX blocks on a large graph until most of it is computed. So tokens go out before, and a
    newcomer has its first token before the others' next step begins."""
    one, other = ticket(max_tokens=9), ticket([7, 7, 8], max_tokens=3)
    expected = Desk(shard).run(one), Desk(shard).run(other)
    one, other = ticket(max_tokens=9), ticket([7, 7, 8], max_tokens=3)
    monkeypatch.setattr("server.scheduler.scheduler.SLOW_S", -1.0)
    desk = Desk(shard)
    order = Order(desk, monkeypatch)

    def arrive(turn: int) -> None:
        if turn == 4:
            desk.line.admit([other])

    assert desk.run(one, act=arrive) == expected[0]
    assert [ids_of(event for _, event in all_events(other))] == expected[1]
    at = order.seen.index([other.uid])
    assert order.seen[at - 3 : at + 3] == [
        "launch", "build", [one.uid], [other.uid], "launch", "build"
    ]  # fmt: skip


def slow_desk(shard, monkeypatch) -> Desk:
    """One whose MLX is slow to take in a step, as it knows from a request before."""
    monkeypatch.setattr("server.scheduler.scheduler.SLOW_S", -1.0)
    desk = Desk(shard)
    desk.run(ticket(max_tokens=3))
    return desk


def test_prompts_that_came_during_the_first_ones_chunk_share_its_next_step(shard, monkeypatch):
    burst = [ticket([n] * 9, max_tokens=4) for n in range(1, 4)]
    expected = [Desk(shard).run(one)[0] for one in burst]
    burst = [ticket([n] * 9, max_tokens=4) for n in range(1, 4)]
    desk = slow_desk(shard, monkeypatch)
    order = Order(desk, monkeypatch)

    def arrive(turn: int) -> None:
        if turn == 0:
            desk.line.admit(burst[1:])

    # In the turn of the message, the first has been submitted, and nothing of it computed.
    first, *others = (one.uid for one in burst)
    assert desk.run(burst[0], act=arrive) == expected[:1]
    assert [ids_of(e for _, e in all_events(one)) for one in burst[1:]] == expected[1:]
    together = [first, *others]
    assert order.seen == [
        [first], [], others,
        "build", "launch", *["build", together, "launch"] * 2, together,
    ]  # fmt: skip


def test_a_step_that_waits_for_prompts_has_all_that_end_in_their_chunk(shard, monkeypatch):
    """And comes after one chunk, however many prompts wait."""
    old, long = ticket(max_tokens=30), ticket([4] * 400, max_tokens=3)
    expected = [Desk(shard).run(one)[0] for one in (old, long)]
    old, long = ticket(max_tokens=30), ticket([4] * 400, max_tokens=3)
    desk = slow_desk(shard, monkeypatch)
    order = Order(desk, monkeypatch)

    def arrive(turn: int) -> None:
        if turn == 4:
            desk.line.admit([long])

    assert desk.run(old, act=arrive) == expected[:1]
    assert [ids_of(e for _, e in all_events(long))] == expected[1:]
    at = order.seen.index([long.uid])
    # Chunks that ended no prompt delivered no token: between two of them there was a step.
    assert order.seen[at - 8 : at] == [*[[], "build", "launch", [old.uid]] * 2]
    assert order.seen[at : at + 4] == [[long.uid], "build", "launch", "build"]
    assert order.seen[at + 4] == [old.uid, long.uid]


@pytest.mark.parametrize("leaves", ["the first", "a newcomer", "all"])
def test_rows_that_leave_a_step_that_is_put_off_disturb_nobody(shard, monkeypatch, leaves):
    staying = Desk(shard).run(ticket([2] * 9), ticket([3] * 9))
    desk = slow_desk(shard, monkeypatch)
    first, other, late = ticket([1] * 9), ticket([2] * 9), ticket([3] * 9)
    gone = {"the first": [first], "a newcomer": [late], "all": [first, other, late]}[leaves]

    def act(turn: int) -> None:
        if turn == 0:
            desk.line.admit([other, late])
        if turn == 1:
            for one in gone:
                desk.line.cancel(one)

    desk.run(first, act=act)
    assert not desk.engine.busy and desk.line.held() == 0
    for one, ids in zip((other, late), staying, strict=True):
        got = ids_of(event for _, event in all_events(one))
        assert got == ids if one not in gone else len(got) < len(ids)
    assert desk.run(ticket([2] * 9)) == staying[:1], "and the next request is served"


@pytest.mark.parametrize("slow", [False, True])
def test_what_is_kept_of_an_answer_waits_until_its_tokens_are_out(shard, monkeypatch, slow):
    """It is taken out of the caches of the next step: to compute it is to wait for that."""
    monkeypatch.setattr("server.scheduler.scheduler.SLOW_S", -1.0 if slow else 100.0)
    desk = Desk(shard, room=1000)
    order = Order(desk, monkeypatch)
    one, other = ticket([5] * 40, max_tokens=4), ticket([7, 7, 8], max_tokens=9)
    desk.run(one, other)
    at = order.seen.index("keep")
    assert order.seen[at - 1] == ("launch" if slow else [one.uid, other.uid])
    assert order.seen[at + 1] == "build"
    assert [one.uid, other.uid] in order.seen[at - 2 : at]
    assert [one.uid] not in order.seen[at:]
