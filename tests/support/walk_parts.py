"""What the random walk (walk.py) is made of: requests, grammars that break, chance instead of the
clock, two ranks in one thread, and the quiet answer to any request."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from server.engine.attention import put_attention
from server.engine.engine import Engine
from server.engine.last_logits import LastLogits, put_heads
from server.engine.prefix_store import PrefixStore
from server.engine.quantised_kv import GROWN, Quantised, fits, next_caches
from server.engine.rows_apart import TOGETHER, Ways
from server.loop import turn
from server.observe.status import Status
from server.protocol.events import Event, Failed, Scored, Token
from server.protocol.requests import Common, Sampling
from server.residents import Resident, Residents
from server.sampling.choosers import ChoosesForAll
from server.scheduler.kv_budget import KvBudget
from server.scheduler.prefix_index import PrefixIndex
from server.scheduler.queue import Line, Ticket
from server.scheduler.scheduler import Scheduler
from server.wire.link import Link
from server.wire.mailbox import Mailbox
from server.wire.messages import Cut, Message, Submit
from tests.support.small_models import KINDS, QUANTISABLE, VOCAB

SLACK = 3  # tokens: so that rows lie on several shelves
EOS = (3,)
ROUNDING = 1e-3  # of logits of some units
BITS, STARTS = 8, (0, 60)  # of keys and values, from which token of a row on


class Broken(AssertionError):
    """What the walk found; names the episode and the turn."""


# What a client asks for.


class Multiples:
    """A grammar of the multiples of a number. breaks: at which question of a matcher, if any."""

    def __init__(self, of: int, breaks: int | None = None, error=None, vocab=VOCAB) -> None:
        self.of, self.breaks, self.error = of, breaks, error
        allowed = np.zeros(-(-vocab // 32) * 32, dtype=np.uint8)
        allowed[:vocab:of] = 1
        self.bits = np.packbits(allowed, bitorder="little").view(np.uint32)

    def answer(self, asked: int) -> None:
        """The question of a matcher; raises where it breaks."""
        if self.breaks is not None and asked > self.breaks:
            raise self.error

    def matcher(self) -> "MultiplesMatcher":
        self.answer(0)
        return MultiplesMatcher(self)


class MultiplesMatcher:
    def __init__(self, grammar: Multiples) -> None:
        self._grammar, self._asked = grammar, 0

    def accept(self, token: int) -> None:
        if token % self._grammar.of:
            raise ValueError(f"{token} is not allowed")
        self._ask()

    def mask(self) -> np.ndarray:
        self._ask()
        return self._grammar.bits

    def allows(self, tokens) -> int:
        self._ask()
        return next((i for i, t in enumerate(tokens) if t % self._grammar.of), len(tokens))

    def forced(self) -> list[int]:
        self._ask()
        return []

    def look_ahead(self, tokens) -> list[np.ndarray]:
        self._ask()
        return [self._grammar.bits] * self.allows(tokens)

    def _ask(self) -> None:
        self._asked += 1
        self._grammar.answer(self._asked)


def some_parameters(rng: random.Random) -> Common:
    sampling = Sampling(temperature=0)
    if rng.random() < 0.5:
        seed = rng.randrange(5) if rng.random() < 0.8 else None
        sampling = Sampling(
            temperature=rng.choice([0.7, 1.0, 1.5]), seed=seed,
            top_p=rng.choice([1, 1, 0.9]), top_k=rng.choice([0, 0, 5]),
            presence_penalty=rng.choice([0, 0, 0.5]),
        )  # fmt: skip
    return Common(
        sampling=sampling,
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, None, None, 0, 3]),
        min_tokens=rng.choice([0, 0, 2]),
    )


def damage(message: Message, rng: random.Random) -> Message:
    """A Submit that no rank can carry out, or a Cut; others stay as they are."""
    if isinstance(message, Cut):
        return replace(message, length=10**5)
    if not isinstance(message, Submit):
        return message
    damages = [{"max_tokens": 0}, {"prompt": []}, {"keep": ((10**6, 10**7),)}]
    if not message.score:
        damages += [{"reuse": (10**6, 20)}, {"reuse": (10**6, 10**5)}]
    if message.reuse:
        damages.append({"reuse": (message.reuse[0], 10**4)})
    return replace(message, **rng.choice(damages))


@dataclass
class Asked:
    """A request of one client: its first ticket, which has the others as followers."""

    first: Ticket
    may_fail: bool = False
    gone: set[int] = field(default_factory=set)  # uids that the client has left
    seen: dict[int, list[Event]] = field(default_factory=dict)  # by choice

    @property
    def tickets(self) -> list[Ticket]:
        return [self.first, *self.first.followers]

    def read(self) -> None:
        """Takes what has come."""
        while not self.first.events.empty():
            choice, event = self.first.events.get_nowait()
            self.seen.setdefault(choice, []).append(event)

    def ended(self, ticket: Ticket) -> bool:
        return any(is_end(event) for event in self.seen.get(ticket.choice, ()))


def is_plain(ticket: Ticket) -> bool:
    """Whether it gets the model's likeliest tokens and nothing else."""
    common = ticket.common
    return ticket.grammar is None and common == Common(
        sampling=Sampling(temperature=0), ignore_eos=common.ignore_eos
    )


def is_end(event: Event) -> bool:
    return isinstance(event, Failed) or (isinstance(event, Token) and event.finish is not None)


class Pace:
    """As PrefillPace, but by chance instead of the clock."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.step_s = 0.05

    @property
    def tokens(self) -> int:
        return self._rng.choice([16, 16, 40, 64])

    def observe(self, computed: int, chunk_s: float, step_s: float) -> None:
        pass


class Coin:
    """A limit that any number is over half of the time: whether MLX is slow to take a step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __lt__(self, other: float) -> bool:
        return self._rng.random() < 0.5


# Two ranks in one thread: the second one gets the sums that the first one had.


class Leads(Link):
    """Rank 0's collectives, written down."""

    def __init__(self) -> None:
        super().__init__(mx.distributed.init())
        self.sums: deque[mx.array] = deque()

    def sum(self, values: mx.array) -> mx.array:
        self.sums.append(values)
        return values


class Copies(Link):
    """A worker's, where all of a sum is rank 0's: it must ask for the same ones, in order."""

    def __init__(self, leads: Leads) -> None:
        self.rank, self.size, self._number, self._leads = 1, 1, 0, leads

    def sum(self, values: mx.array) -> mx.array:
        assert self._leads.sums, "the worker has a collective that rank 0 had not"
        total = self._leads.sums.popleft()
        assert (total.shape, total.dtype) == (values.shape, values.dtype), "of another shape"
        # A worker's part is zeros, but it has to compute it.
        return mx.depends([total], [values])[0]


class Rank:
    """An engine, its mailbox and its scheduler, a turn at a time."""

    def __init__(
        self, shard, link: Link, mailbox: Mailbox, chooser, scheduler, max_batch: int, chunk: int
    ):
        self.engine = Engine(
            shard.last, link, chooser, max_batch=max_batch, prefill_step=chunk, eos=list(EOS),
            slack=SLACK,
        )  # fmt: skip
        self._mailbox, self._scheduler = mailbox, scheduler
        self.disk = None

    def turn(self) -> None:
        resident = Resident(self.engine, self._scheduler, self._canary, self.disk)
        turn(Residents(resident), self._mailbox, self._scheduler, lambda stage: None)

    def _canary(self, progress) -> None:
        assert not self.engine.busy, "a canary while something runs"

    def holds(self) -> dict:
        """All that it holds of requests and prefixes, to compare."""
        engine = self.engine
        return {
            "rows": list(engine.rows),
            "forks": {uid: message.forks for uid, message in engine._forks.items()},
            "scoring": {uid: job.done for uid, job in engine._scoring.items()},
            "kept": dict(engine.prefixes.lengths()),
            "to keep": list(engine._started),
            "waiting": [row.uid for row in engine.prompts.waiting],
            "prompts": [row.uid for row in engine.prompts.begun],
            "decoding": [row.uid for row in engine.decoding.rows],
        }


def check_scores(got, right, who: str) -> None:
    """Log-probabilities of a batch differ from those alone in the last digits."""
    assert len(got) == len(right), f"{who}: {len(got)} scores, alone {len(right)}"
    for mine, its in zip(got, right, strict=True):
        assert (mine is None) == (its is None), f"{who}: a score that is not there"
        if mine is not None:
            assert mine.id == its.id and len(mine.top) == len(its.top)
            assert mine.logprob == pytest.approx(its.logprob, abs=2e-3), who


def check_kept(index: PrefixIndex, store: PrefixStore) -> None:
    """Rank 0's index against what a rank holds."""
    lengths = store.lengths()
    for number, caches in store._entries.items():
        offsets = {cache.offset for cache in caches if type(cache) in GROWN}
        assert offsets <= {lengths[number]}, f"entry {number} has {offsets} tokens"
    for number in index._redundant:
        lengths.pop(number, None)
    entries = {number: len(entry.tokens) for number, entry in index._entries.items()}
    assert lengths == entries, "index and store differ"
    size = sum(map(index._precision.cost, entries.values())) + index._entry_cost * len(entries)
    assert size == index.used, "the index counts wrong"


def check_by_forward_pass(shard, ticket: Ticket, ids: list[int], who: str) -> None:
    """A long greedy answer, all of it in one go: each token is the likeliest at its place."""
    text, caches = ticket.prompt + ids[:-1], make_prompt_cache(shard.model)
    logits = mx.concatenate(
        [shard.model(mx.array([part]), cache=one)[0] for part, one in pieces(shard, text, caches)]
    )
    logits = logits[len(ticket.prompt) - 1 :].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(ids)[:, None], axis=-1)[:, 0]
    behind = (mx.max(logits, axis=-1) - chosen).tolist()
    wrong = [place for place, gap in enumerate(behind) if not gap <= ROUNDING]
    assert not wrong, f"{who}: token {wrong[0]} of {len(ids)} is not the likeliest"


def pieces(shard, text: list[int], caches: list) -> Iterator[tuple[list[int], list]]:
    """A text as it is to be computed at once, and its caches then: in two parts where these are
    quantised from a token on."""
    quantised = shard.last.ways.quantised
    cut = len(text) if quantised is None else quantised.within(0, len(text))
    for part in (text[:cut], text[cut:]):
        if part:
            caches = next_caches(quantised, caches)
            yield part, caches


def quiet_answer(shard, ticket: Ticket, tokens: int) -> tuple[list[Token], tuple]:
    """What it gets on a fresh engine that has nothing else to do, and keeps nothing; so many
    tokens of it, and the scores of its prompt."""
    if not tokens:
        return [], ()
    grammar = ticket.grammar and ticket.grammar.of
    key = (tuple(ticket.prompt), tokens, ticket.common, ticket.choice, ticket.score_prompt, grammar)
    if key not in shard.quiet:
        if len(shard.quiet) > 5000:
            shard.quiet.clear()
        shard.quiet[key] = answer_alone(shard, ticket, tokens)
    return shard.quiet[key]


def answer_alone(shard, ticket: Ticket, tokens: int) -> tuple[list[Token], tuple]:
    """Its tokens, and the scores of its prompt."""
    line, link = Line(1, 1), Link(mx.distributed.init())
    scheduler = Scheduler(
        line, Status("m", "quiet"), VOCAB, KvBudget(2**31 - 1), Pace(random.Random(0)),
        PrefixIndex(0, True), EOS,
    )  # fmt: skip
    mailbox = Mailbox(link, scheduler.compose, lambda: 0, scheduler.chunk, scheduler.late)
    chooser = ChoosesForAll(scheduler.row, mailbox.header, scheduler.failed)
    rank = Rank(shard, link, mailbox, chooser, scheduler, max_batch=1, chunk=64)
    grammar = Multiples(ticket.grammar.of) if ticket.grammar else None
    one = Ticket(
        ticket.prompt, tokens, ticket.common, choice=ticket.choice,
        score_prompt=ticket.score_prompt, grammar=grammar,
    )  # fmt: skip
    line.admit([one])
    while line.held():
        rank.turn()
    events = [one.events.get_nowait()[1] for _ in range(one.events.qsize())]
    scores = [score for event in events if isinstance(event, Scored) for score in event.scores]
    return [event for event in events if isinstance(event, Token)], tuple(scores)


def make_shards() -> dict:
    """A small model of each kind of cache. quiet: what its requests get alone."""
    shards = {}
    for kind, make in KINDS.items():
        model = strong(make(1))
        last = LastLogits(model, put_heads(model))
        last.ways = Ways(shelves=True)
        last.prove(Link(mx.distributed.init()))
        shards[kind] = SimpleNamespace(model=model, last=last, vocab=VOCAB, quiet={})
        # The same in mlx-lm's caches, and with rows that are computed apart, as for models that
        # bear no batches.
        for ways in (
            TOGETHER,
            Ways(shelves=True, prompts_apart=True),
            Ways(prompts_apart=True, rows_apart=True),
        ):
            shards[f"{kind}, {ways}"] = served_so(shards[kind], ways)
    shards |= make_quantised_shards()
    return shards


def make_quantised_shards() -> dict:
    """The same with keys and values in fewer bits, from the first token on and from a later one."""
    shards = {}
    for kind, make in QUANTISABLE.items():
        model = strong(make(2))
        last = LastLogits(model, put_heads(model))
        last.prove(Link(mx.distributed.init()))
        whole = SimpleNamespace(model=model, last=last, vocab=VOCAB)
        layers, why = fits(model, BITS)
        assert layers, why
        for start in STARTS:
            fewer = Quantised(BITS, start, layers)
            for ways in (
                Ways(shelves=True, quantised=fewer),
                Ways(shelves=True, prompts_apart=True, quantised=fewer),
                Ways(prompts_apart=True, rows_apart=True, quantised=fewer),
            ):
                shards[f"{kind}, {ways}, {ways.precision}"] = served_so(whole, ways)
    return shards


def strong(model):
    """With weights so large that the best token stands out, whatever the rounding."""
    key = mx.random.key(7)
    model.update(
        tree_map(
            lambda w: mx.random.normal(w.shape, key=key) * 0.4 if w.ndim > 1 else w,
            model.parameters(),
        )
    )
    mx.eval(model.parameters())
    put_attention(model)
    return model


def served_so(shard, ways: Ways) -> SimpleNamespace:
    """The same model, its rows computed in one of the ways."""
    last = LastLogits(shard.model, shard.last._heads)
    last.ways, last._narrow, last.hidden = ways, shard.last._narrow, shard.last.hidden
    return SimpleNamespace(model=shard.model, last=last, vocab=VOCAB, quiet={})
