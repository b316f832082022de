"""Drafts change no answer: each request gets what it gets without them, whatever is drafted, in any
company, and leaves nothing behind that it would not have left."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.engine.rows_apart import Ways
from server.protocol.events import Failed, Token
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.loading import load_shard
from server.wire.link import Link
from tests.models.served import keeping, serve
from tests.support.desk import Desk, choices, ids_of, shapes_of, ticket
from tests.support.drafting import Knows, draft_whatever_it_costs
from tests.support.tiny_models import VOCAB, tiny_llama
from tests.support.walk_parts import Multiples

KINDS = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_p": 0.9, "presence_penalty": 1.0},
    {"temperature": 1.5, "seed": 5, "top_k": 10},
    {"temperature": 0, "repetition_penalty": 1.5},
    {"temperature": 0, "frequency_penalty": 1.0},
    {"temperature": 0, "common": {"logprobs": 2}},
    {"temperature": 1.2, "seed": 6, "common": {"logprobs": 0, "min_tokens": 9}},
    {"temperature": 0, "common": {"logit_bias": ((70, 3.0), (80, -100.0))}},
]
WAYS = [
    Ways(shelves=True),
    Ways(shelves=True, by_shelf=True),
    Ways(shelves=True, prompts_apart=True),
    Ways(prompts_apart=True, rows_apart=True),
]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


def ask(n: int, **more):
    prompt = [33 + i * (n + 3) % 90 for i in range(5 + 37 * n)]
    return ticket(prompt, max_tokens=12 + 5 * n, **KINDS[n % len(KINDS)] | more)


class Asked:
    """Requests, and all that they get without drafts."""

    def __init__(self, shard, *makers, eos=()) -> None:
        self.makers, self.shard, self.eos = makers, shard, eos
        self.right = [events for make in makers for events in Desk(shard, eos=eos).events(make())]

    def with_drafts(
        self, max_batch=4, act=lambda turn, desk: None, capacity=2**31 - 1, **options
    ) -> Desk:
        """Asks again with them, and compares. Returns the desk, with the events and the drafter."""
        tickets = [make() for make in self.makers]
        rows = [one for first in tickets for one in (first, *first.followers)]
        answers = {one.uid: ids_of(right) for one, right in zip(rows, self.right, strict=True)}

        def answer(row) -> list[int]:
            running = desk.scheduler._running.items()
            return next((answers[uid] for uid, one in running if one.row is row), [])

        knows = Knows(answer, VOCAB, **options)
        desk = Desk(
            self.shard, max_batch, self.eos, drafter=knows, slack=8, capacity=capacity,
            **keeping(self.shard, 9999),
        )  # fmt: skip
        desk.tickets = rows
        desk.got = desk.events(*tickets, act=lambda turn: act(turn, desk))
        desk.knows = knows
        return desk

    def check(self, got) -> None:
        for events, right in zip(got, self.right, strict=True):
            check_same(events, right)


def check_same(events, right) -> None:
    tokens, wanted = ([e for e in some if isinstance(e, Token)] for some in (events, right))
    assert [t.id for t in tokens] == [t.id for t in wanted]
    assert [t.finish for t in tokens] == [t.finish for t in wanted]
    for token, its in zip(tokens, wanted, strict=True):
        assert (token.score is None) == (its.score is None)
        if its.score is not None:
            assert token.score.id == its.score.id
            assert token.score.logprob == pytest.approx(its.score.logprob, abs=2e-3)
            assert len(token.score.top) == len(its.score.top)


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_answers_are_the_same_with_and_without_drafts(shard, ways, wrong, monkeypatch):
    monkeypatch.setattr(shard.last, "ways", ways)
    asked = Asked(shard, *[lambda n=n: ask(n) for n in range(len(KINDS))])
    for seed, batch in enumerate((1, 2, 4, 9)):
        desk = asked.with_drafts(batch, seed=seed, wrong=wrong)
        asked.check(desk.got)
        tokens = [e for events in desk.got for e in events if isinstance(e, Token)]
        right, not_right = sum(t.drafted for t in tokens), sum(t.wrong for t in tokens)
        if batch == 1:
            assert (right > 20) == (wrong < 1.0)
            assert (not_right > 20) == (wrong > 0.0)
            assert right + not_right <= desk.knows.drafted
        assert not desk.engine.busy and desk.line.held() == 0


def test_right_drafts_save_steps(shard, monkeypatch):
    asked = Asked(shard, lambda: ticket(max_tokens=60))
    calls = shapes_of(shard, monkeypatch)
    asked.check(asked.with_drafts(wrong=0.0).got)
    assert len(calls) < 40
    assert max(width for _, width in calls[1:]) > 1


def test_choices_of_one_prompt_have_drafts_of_their_own(shard):
    asked = Asked(
        shard,
        lambda: choices(
            4,
            prompt=list(range(40, 90)),
            max_tokens=30,
            temperature=1.3,
            seed=11,
            common={"logprobs": 2},
        ),
        lambda: ticket([50] * 9, max_tokens=25),
    )
    desk = asked.with_drafts(6, wrong=0.2)
    asked.check(desk.got)
    assert sum(t.drafted for events in desk.got for t in events if isinstance(t, Token)) > 20


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_ends_among_its_drafts_ends_where_it_does_without(shard, seed):
    free = Desk(shard).run(ticket([50] * 9, max_tokens=40, temperature=1.3, seed=seed))[0]
    eos = [next(token for i, token in enumerate(free) if i > 9 and token not in free[:i])]
    asked = Asked(
        shard,
        lambda: ticket([50] * 9, max_tokens=40, temperature=1.3, seed=seed),
        lambda: ticket([50] * 9, 40, {"stop_token_ids": (free[20],)}, temperature=1.3, seed=seed),
        lambda: ticket([50] * 9, 40, {"ignore_eos": True}, temperature=1.3, seed=seed),
        eos=eos,
    )
    assert len(ids_of(asked.right[0])) < 40 == len(ids_of(asked.right[2]))
    asked.check(asked.with_drafts(3, seed=seed, wrong=0.1).got)


@pytest.mark.parametrize("ways", WAYS[:1] + WAYS[3:], ids=str)
def test_what_is_kept_of_an_answer_is_what_it_was_computed_from(shard, ways, monkeypatch):
    """The caches hold drafts that are not right yet while a step runs; a prefix must not."""
    monkeypatch.setattr(shard.last, "ways", ways)
    asked = Asked(shard, *[lambda n=n: ask(n) for n in range(4)])
    for seed in range(6):

        def leave(now: int, desk, seed=seed) -> None:
            if now == 7 + seed:
                desk.line.cancel(desk.tickets[seed % 4])

        desk = asked.with_drafts(4, act=leave, seed=seed, wrong=0.3)
        stay = [n for n in range(4) if n != seed % 4]
        for n in stay:  # nobody else notices
            check_same(desk.got[n], asked.right[n])
        entries = desk.engine.prefixes._entries
        assert len(entries) > 2
        for number, caches in entries.items():
            length = desk.engine.prefixes.lengths()[number]
            assert {layer.offset for layer in caches} == {length}
            index = desk.scheduler._prefixes._entries
            if number in index:
                check_caches(shard, caches, [int(t) for t in index[number].tokens])


def check_caches(shard, caches, tokens: list[int]) -> None:
    right = make_prompt_cache(shard.model)
    shard.model(mx.array([tokens]), cache=right)
    for mine, its in zip(caches, right, strict=True):
        assert mine.offset == its.offset == len(tokens)
        for a, b in ((mine.keys, its.keys), (mine.values, its.values)):
            own, wanted = (array[..., : len(tokens), :] for array in (a, b))
            assert mx.allclose(own, wanted, atol=1e-4)


def test_paused_requests_go_on_as_they_were(shard):
    asked = Asked(shard, *[lambda n=n: ticket([40 + n] * 60, 220, **KINDS[n]) for n in range(4)])
    desk = asked.with_drafts(4, capacity=1024, wrong=0.3)
    asked.check(desk.got)
    assert desk.scheduler._status.record.pauses


def test_a_grammar_sees_each_token_once_and_in_order(shard):
    def make(n: int):
        one = ask(n)
        one.grammar = Multiples(n % 3 + 2, vocab=VOCAB)
        return one

    asked = Asked(shard, *[lambda n=n: make(n) for n in range(6)])
    for seed, batch in enumerate((1, 3, 6)):
        desk = asked.with_drafts(batch, seed=seed, wrong=0.4)
        asked.check(desk.got)
        assert desk.knows.drafted


@pytest.mark.parametrize("kind", [2, 6], ids=["drawn", "with log-probabilities"])
def test_a_grammar_that_breaks_among_drafts_ends_its_own_request(shard, kind):
    """The places of its drafts had no log-probabilities then, and to take these back from it failed
    for the whole batch."""

    def make(n: int, breaks=None):
        one = ask(n, **KINDS[kind])
        one.grammar = Multiples(2, breaks, ValueError("it breaks"), vocab=VOCAB)
        return one

    asked = Asked(shard, lambda: ask(0), lambda: make(2), lambda: ask(3))
    asked.makers = (asked.makers[0], lambda: make(2, breaks=12), asked.makers[2])
    for seed in range(8):
        desk = asked.with_drafts(3, seed=seed)
        check_same(desk.got[0], asked.right[0])
        check_same(desk.got[2], asked.right[2])
        assert isinstance(desk.got[1][-1], Failed)
        assert "it breaks" in desk.got[1][-1].error.message
        assert not desk.engine.busy and desk.line.held() == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_what_rank_0_drafts_by_itself_changes_nothing_and_is_right_where_a_text_repeats(
    shard, rows, monkeypatch
):
    """The tiny model soon goes round in circles."""
    draft_whatever_it_costs(monkeypatch)

    def ask_all():
        return [ticket([40 + n] * 20, max_tokens=150) for n in range(rows)]

    right = Desk(shard).run(*ask_all())
    speculation = Speculation(StepCosts([(1, 0.01), (128, 0.011)]))
    desk = Desk(shard, speculation=speculation)
    assert desk.run(*ask_all()) == right
    seen = speculation.look()
    assert seen.right > 50 and seen.right <= seen.drafted and seen.steps > 5


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "gemma"])
def test_other_layers_whose_caches_can_be_cut(name):
    """Latents, experts, one head of keys for all."""
    shard = serve(name)
    assert reuse_kind(shard.model, shard.last.ways) == REUSE_CUT
    prompts = [
        [3 + i * (n + 3) % 90 for i in range(length)] for n, length in enumerate((40, 9, 70))
    ]
    asked = Asked(
        shard,
        *[lambda own=own: ticket(own, max_tokens=20, temperature=0) for own in prompts],
        lambda: ticket(prompts[0], max_tokens=20, temperature=0.9, seed=5),
    )
    for batch in (1, 4):
        desk = asked.with_drafts(batch)
        asked.check(desk.got)
        tokens = [event for events in desk.got for event in events if isinstance(event, Token)]
        assert batch > 1 or any(token.drafted for token in tokens)


@pytest.mark.parametrize(("bits", "start"), [(8, 0), (8, 50)])
def test_rows_whose_keys_and_values_are_in_fewer_bits(bits, start):
    """No step goes beyond the token at which a row's caches change their kind."""
    shard = serve("qwen3, heads of 64", kv_bits=bits, kv_bits_from=start)
    prompts = [
        [3 + i * (n + 3) % 90 for i in range(length)] for n, length in enumerate((40, 44, 70))
    ]
    asked = Asked(
        shard,
        *[lambda own=own: ticket(own, max_tokens=20, temperature=0) for own in prompts],
    )
    desk = asked.with_drafts()
    asked.check(desk.got)
    assert sum(event.drafted for events in desk.got for event in events if isinstance(event, Token))
