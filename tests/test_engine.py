"""The engine on one rank, in this process: its bookkeeping, and what one request may break."""

import mlx.core as mx
import pytest

from server.director import Director
from server.engine import ChoosesForAll, Engine
from server.kv_budget import KvBudget, measure_capacity
from server.link import Link
from server.loading import load_shard
from server.loop import run_lockstep
from server.mailbox import Mailbox
from server.requests import Sampling
from server.status import Status
from server.tickets import Failed, Line, Ticket, Token
from tests.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


class Desk:
    """Rank 0 of one, whose loop ends when every ticket has its end."""

    def __init__(self, shard, max_batch=4, eos=()):
        self.shard = shard
        self.link = Link(mx.distributed.init())
        self.line = Line(max_batch, 100)
        self.director = Director(self.line, Status("m", "run"), shard.vocab, KvBudget(2**31 - 1))
        self.mailbox = Mailbox(self.link, self.director.compose, self.director.nap_ms)
        chooser = ChoosesForAll(self.director.row, self.mailbox.header, self.director.failed)
        self.engine = Engine(
            shard.model, self.link, chooser, max_batch=max_batch, prefill_step=64, eos=list(eos)
        )

    def run(self, *tickets: Ticket) -> list[list[int] | Failed]:
        """Each ticket's token ids, or its failure."""
        for ticket in tickets:
            self.line.admit(ticket)

        def progress(stage: str) -> None:
            if not self.line.held():
                self.director.stop("done")

        run_lockstep(self.engine, self.mailbox, self.director, lambda tell: None, progress)
        return [outcome(ticket) for ticket in tickets]


def outcome(ticket: Ticket) -> list[int] | Failed:
    ids = []
    while (event := ticket.get(0.01)) is not None:
        if isinstance(event, Failed):
            return event
        if isinstance(event, Token):
            ids.append(event.id)
    return ids


def ticket(prompt=(5, 6, 7), max_tokens=8, **sampling) -> Ticket:
    return Ticket(list(prompt), max_tokens, Sampling(**{"temperature": 0} | sampling))


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
    from server.sampling import Row

    good = Desk(shard).run(ticket())[0]
    penalise = Row.penalise

    def break_one(self, logits):
        if self.sampling.presence_penalty == 1.25:
            raise ValueError("a broken sampler")
        return penalise(self, logits)

    monkeypatch.setattr(Row, "penalise", break_one)
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
        desk.director.compose()
        one = ticket(prompt=list(range(150)), max_tokens=50)
        desk.line.admit(one)
        for message in desk.director.compose():
            desk.engine.submit(message)
        for _ in range(steps):
            desk.engine.step()
        desk.engine.cancel(one.uid)
        desk.engine.cancel(one.uid)  # again: as good as unknown
        desk.line.cancel(one)
        desk.director.compose()
        assert not desk.engine.busy
        assert desk.line.held() == 0


def test_ignore_eos_and_end_of_text(shard):
    first = Desk(shard).run(ticket())[0][0]
    desk = Desk(shard, eos=[first])
    stopped, endless = ticket(), Ticket([5, 6, 7], 8, Sampling(temperature=0), ignore_eos=True)
    ends = desk.run(stopped, endless)
    assert ends[0] == [first]
    assert len(ends[1]) == 8


def test_the_cache_of_the_tiny_model_costs_what_its_sizes_say(shard):
    # Two layers, keys and values, four heads of sixteen float32.
    capacity, per_token = measure_capacity(shard.model, 1e-3, 1)
    assert per_token == 2 * 2 * 4 * 16 * 4
    assert capacity == 1_000_000 // per_token
    assert measure_capacity(shard.model, None, 2)[0] > 1000
