"""Requests that come, leave, are paused, have several choices and go on from others, in an order
that a seed gives: each gets the same text whatever its rows' keys and values lie in.

A seed makes a plan as it is played for the first time, since a conversation goes on with its
answers. The same plan is then played in another way. Every rank plays; rank 0 asks.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from unittest import mock

import mlx.core as mx

from server.engine.engine import Engine
from server.engine.rows_apart import Ways
from server.loop import run_lockstep
from server.protocol.events import Token
from server.protocol.row_lengths import STEP
from server.residents import Resident, Residents
from server.sampling.choosers import Follows
from server.sampling.row_state import Row
from server.scheduler.queue import Ticket
from server.scheduler.spectator import Spectator
from server.wire.link import Link
from server.wire.mailbox import Mailbox
from tests.models.served import keeping
from tests.support.desk import Desk, choices
from tests.support.drafting import Knows
from tests.support.ticket_events import all_events
from tests.support.walk_parts import Coin, Pace

ACTS = 16  # of a plan: requests, and clients that leave
LENGTHS = (1, 5, 31, 60, 150, 246, 252)  # tokens of prompts: the last ones outgrow a step
ANSWERS = (4, 10, 20)  # tokens
BATCH = 6
CAPACITY = 5 * STEP  # tokens: fewer than the rows of a batch come to take, so some are paused
PREFILL_STEP = 64  # tokens, as a desk's engine has it
MOST_TURNS = 3000
SEEDED = {"temperature": 0.8, "seed": 7}


@dataclass(frozen=True)
class Act:
    """After so many turns a request comes, or the client of one that has come leaves."""

    wait: int
    leaves: int | None = None  # the request's number
    prompt: Sequence[int] = ()
    tokens: int = 0
    choices: int = 1
    seeded: bool = False


@dataclass
class Played:
    """What came of a plan. answers: by request and choice; of those whose client has left, as much
    as they got. pauses: how many there were; reused: tokens of kept prefixes; drafted: of drafts
    that were right."""

    plan: list[Act] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    answers: list[list[list[int]]] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    pauses: int = 0
    drafted: int = 0

    @property
    def reused(self) -> int:
        return sum(one.cached or 0 for one in self.tickets)


def rectangle(shard: SimpleNamespace) -> SimpleNamespace:
    """The model with its rows in mlx-lm's own caches: of a batch, or where those take no fewer
    bits, of each row."""
    own = shard.last.ways
    other = Ways(prompts_apart=own.prompts_apart, whole=own.whole, unused=own.unused)
    if own.quantised is not None:
        other = replace(other, prompts_apart=True, rows_apart=True, quantised=own.quantised)
    last = copy.copy(shard.last)
    last.ways = other
    return SimpleNamespace(model=shard.model, last=last, vocab=shard.vocab)


def play(
    shard: SimpleNamespace,
    seed: int,
    plan: list[Act] | None = None,
    drafts: Played | None = None,
    **options,
) -> Played:
    """On rank 0. plan: None: makes one. drafts: rank 0 drafts what has come of the same plan, and
    now and then something else. options: of the desk."""
    sizes = {"max_batch": BATCH, "capacity": CAPACITY} | keeping(shard, 2000)
    if drafts is not None:

        def answer(row: Row) -> list[int]:
            uids = (uid for uid, one in desk.scheduler._running.items() if one.row is row)
            return _answer_to(next(uids, None), played, drafts)

        sizes["drafter"] = Knows(answer, shard.vocab, seed=seed)
    desk = Desk(shard, **sizes | options)
    # Here and below chance, lest the clock has a say.
    desk.scheduler._pace = Pace(random.Random(seed))
    desk.scheduler._reserve = lambda one: one.length  # takes more in than there is room for
    played = Played()
    acts = _make_plan(random.Random(seed), played) if plan is None else iter(plan)
    ahead, due, turns = next(acts), 0, 0

    def progress(stage: str) -> None:
        nonlocal ahead, due, turns
        turns += stage == "messages"
        assert turns < MOST_TURNS, "it does not end"
        _listen(played)
        while ahead is not None and (turns >= due + ahead.wait or not desk.line.held()):
            _carry_out(ahead, desk, played)
            ahead, due = next(acts, None), turns
        if not desk.line.held() and desk.line.stopping is None:
            desk.line.stop("done")

    resident = Resident(desk.engine, desk.scheduler, lambda tell: None, None)
    with mock.patch("server.scheduler.scheduler.SLOW_S", Coin(random.Random(seed))):
        run_lockstep(Residents(resident), desk.mailbox, desk.scheduler, progress)
    _listen(played)
    assert len(played.plan) == ACTS and not desk.engine.busy
    for number, answers in enumerate(played.answers):
        got, wanted = set(map(len, answers)), played.tickets[number].max_tokens
        assert number in played.left or got == {wanted}, f"request {number}: {got} of {wanted}"
    played.pauses = desk.scheduler._status.record.pauses
    return played


def _answer_to(uid: int | None, played: Played, before: Played) -> list[int]:
    """What a request that runs now got before, if all of it is known."""
    for number, first in enumerate(played.tickets):
        for choice, one in enumerate((first, *first.followers)):
            if one.uid == uid and number not in before.left:
                return before.answers[number][choice]
    return []


def follow(shard: SimpleNamespace, **options) -> None:
    """On another rank, as long as rank 0 plays."""
    link, idle = Link(mx.distributed.init()), Spectator()
    mailbox = Mailbox(link, idle.compose, idle.nap_ms, idle.chunk, idle.late)
    engine = Engine(
        shard.last, link, Follows(), max_batch=BATCH, prefill_step=PREFILL_STEP, eos=[], **options
    )
    residents = Residents(Resident(engine, idle, lambda tell: None, None))
    run_lockstep(residents, mailbox, idle, lambda stage: None)


def differences(first: Played, second: Played) -> Iterator[str]:
    """Where two ways give other texts. A client that leaves has as much as came until then."""
    for number, (one, other) in enumerate(zip(first.answers, second.answers, strict=True)):
        for choice, (mine, its) in enumerate(zip(one, other, strict=True)):
            size = min(len(mine), len(its)) if number in first.left else len(mine)
            if mine[:size] != its[:size]:
                asked = first.tickets[number]
                yield (
                    f"request {number}, choice {choice}, after {len(asked.prompt)} tokens: "
                    f"{mine[:size]}, and {its[:size]}"
                )


def _make_plan(rng: random.Random, played: Played) -> Iterator[Act]:
    for _ in range(ACTS):
        wait = rng.choice((0, 0, 1, 2, 5))
        open_ = [n for n in range(len(played.tickets)) if n not in played.left]
        if open_ and rng.random() < 0.15:
            yield Act(wait, leaves=rng.choice(open_[-4:]))
            continue
        prompt = rng.choices(range(3, 250), k=rng.choice(LENGTHS))
        if played.tickets and rng.random() < 0.4:
            # A conversation goes on, or a text is edited, or another begins alike.
            number = rng.randrange(len(played.tickets))
            before = played.tickets[number].prompt
            if answer := played.answers[number][0]:
                before = [*before, *answer]
            cut = rng.choice((len(before), len(before), rng.randrange(len(before)), 40))
            prompt = [*before[:cut], *prompt[: rng.choice((1, 5, 60))]]
        tokens = rng.choice(ANSWERS)
        many = rng.choice((1, 1, 1, 2, 3))
        yield Act(wait, None, prompt, tokens, many, seeded=rng.random() < 0.2)


def _carry_out(act: Act, desk: Desk, played: Played) -> None:
    played.plan.append(act)
    if act.leaves is not None:
        played.left.add(act.leaves)
        first = played.tickets[act.leaves]
        for ticket in (first, *first.followers):
            desk.line.cancel(ticket)
        return
    more = SEEDED if act.seeded else {}
    first = choices(
        act.choices, prompt=act.prompt, max_tokens=act.tokens, common={"ignore_eos": True}, **more
    )
    played.tickets.append(first)
    played.answers.append([[] for _ in range(act.choices)])
    desk.line.admit([first])


def _listen(played: Played) -> None:
    for ticket, answers in zip(played.tickets, played.answers, strict=True):
        for choice, event in all_events(ticket):
            assert not hasattr(event, "error"), event
            if isinstance(event, Token):
                answers[choice].append(event.id)
                played.drafted += event.drafted
