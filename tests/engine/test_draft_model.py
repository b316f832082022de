"""A draft model changes no answer, follows each text, takes no more memory than it may, and can
fail without anybody's noticing but the log."""

import logging
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from server.engine.draft_model import GROWS_BY, DraftModel, NoNumbers
from server.protocol.events import Token
from server.protocol.requests import Common, Sampling
from server.sampling.random_state import RandomState
from server.scheduler.guesses import Guess
from server.scheduler.model_drafts import FAILURES_MOST, Ask, ModelDrafts
from server.scheduler.pacing import PrefillPace
from server.scheduler.speculation import Speculation
from server.scheduler.step_costs import StepCosts
from server.startup.loading import load_shard
from server.wire.link import Link
from tests.support.desk import Desk, choices, ticket
from tests.support.drafting import draft_whatever_it_costs
from tests.support.tiny_models import VOCAB, tiny_llama

TOKEN_BYTES = 2 * 2 * 64 * 4  # of two layers, keys and values of 64 numbers of 32 bits
FLAT = [(1, 0.01), (128, 0.011)]  # a step whose drafts cost next to nothing
GREEDY = RandomState(Sampling(temperature=0), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=4096)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Of one layer, which knows nothing of the other."""
    path = tmp_path_factory.mktemp("model") / "small"
    return load_model(tiny_llama(path, layers=1, context=4096, seed=5))[0]


@pytest.fixture(scope="module")
def shard(folder):
    return load_shard(folder, "tensor", Link(mx.distributed.init()), None, lambda stage: None)


@pytest.fixture(scope="module")
def twin(folder):
    """The model itself, a second time."""
    return load_model(folder)[0]


def drafting(model, **options) -> DraftModel:
    return DraftModel(
        model, **{"vocab": VOCAB, "context": 4096, "token_bytes": TOKEN_BYTES} | options
    )


def asking(model: DraftModel, tokens=16) -> ModelDrafts:
    """Asks it, whatever the clock says. tokens: that it reads at once."""
    asks = ModelDrafts(model, PrefillPace(10.0, tokens))
    asks._pace._size = tokens
    return asks


@pytest.fixture
def eager(monkeypatch):
    draft_whatever_it_costs(monkeypatch)
    monkeypatch.setattr("server.scheduler.model_drafts.WEIGHT", 0.0)  # it costs nothing
    monkeypatch.setattr("server.scheduler.guesses.Guess.expect", lambda guess, most: ([], []))


REQUESTS = [
    lambda: ticket([40] * 70, max_tokens=60),
    lambda: ticket([50, 51] * 30, max_tokens=60, temperature=1.0, seed=3),
    lambda: ticket(range(40, 90), max_tokens=60, temperature=0.8, seed=4, top_p=0.9),
    lambda: choices(2, prompt=range(60, 90), max_tokens=40, temperature=1.3, seed=11, top_k=20),
]


def ask_all(shard, model: DraftModel | None, max_batch=4, reads=16):
    """What all get, and the desk."""
    asks = asking(model, reads) if model else None
    speculation = Speculation(StepCosts(FLAT), model=asks) if model else None
    desk = Desk(shard, max_batch, speculation=speculation)
    got = desk.events(*[make() for make in REQUESTS])
    return [[(e.id, e.finish) for e in events if isinstance(e, Token)] for events in got], desk


@pytest.mark.parametrize("max_batch", [1, 4])
def test_answers_are_the_same_with_a_draft_model_that_knows_nothing(shard, small, eager, max_batch):
    right, _ = ask_all(shard, None)
    model = drafting(small, token_bytes=TOKEN_BYTES // 2)
    got, desk = ask_all(shard, model, max_batch)
    assert got == right
    assert desk.scheduler.speculation.look().drafted > 100
    desk.scheduler.drafts()
    assert not model.used_bytes, "what has ended has a cache"


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_model_that_drafts_for_itself_is_always_right(shard, twin, eager, max_batch):
    """Also where tokens are drawn: it draws with the random numbers of their places."""
    right, _ = ask_all(shard, None)
    got, desk = ask_all(shard, drafting(twin), max_batch)
    assert got == right
    seen = desk.scheduler.speculation.look()
    assert seen.right > 50 and seen.drafted - seen.right <= seen.drafted // 50, seen


def test_a_paused_request_has_its_text_read_again(shard, twin, eager):
    asks = [lambda n=n: ticket([40 + n] * 60, 220, temperature=1.0, seed=n) for n in range(4)]
    right = Desk(shard).run(*[make() for make in asks])
    model = drafting(twin)
    speculation = Speculation(StepCosts(FLAT), model=asking(model, 64))
    desk = Desk(shard, capacity=1024, speculation=speculation)
    assert desk.run(*[make() for make in asks]) == right
    assert desk.scheduler._status.record.pauses and speculation.look().right > 100


def said(model, text: list[int], count: int) -> list[int]:
    """What a model says greedily behind a text."""
    caches, fed, tokens = make_prompt_cache(model), text, []
    for _ in range(count):
        tokens.append(mx.argmax(model(mx.array([fed]), cache=caches)[0, -1]).item())
        fed = tokens[-1:]
    return tokens


def test_a_cache_follows_its_text_whatever_the_text_goes_on_with(twin):
    model, text = drafting(twin), [40 + n % 9 for n in range(50)]
    model.begin(["a"])
    model.read("a", text[:20])
    model.read("a", text[20:40])
    assert model.known("a") == 40
    # As many as were right, from none to all, and some that nobody drafted behind them.
    for right in (0, 3, 5, 4, 1):
        drafts = model.draft("a", text[model.known("a") :], [GREEDY] * 5)
        assert drafts == said(twin, text, 5)
        other = 33 if drafts[-1 if right == 5 else right] != 33 else 34
        text += [*drafts[:right], other]
    for more in ([70, 71, 72], said(twin, text, 3)):
        text += more
        assert model.draft("a", text[model.known("a") :], [GREEDY] * 4) == said(twin, text, 4)
    # Drafts that came true, and nothing else: one of them is told again.
    text += said(twin, text, 3)
    assert model.draft("a", text[model.known("a") :], [GREEDY] * 4) == said(twin, text, 4)


def test_what_does_not_go_on_is_dropped(twin):
    model = drafting(twin)
    model.begin("ab")
    for key in "ab":
        model.read(key, [40] * 10)
    model.begin("b")
    assert model.known("a") == 0 and model.known("b") == 10


def test_the_least_recently_used_gives_way_and_those_in_use_do_not(twin):
    room = 2 * (100 + GROWS_BY) * TOKEN_BYTES
    model = drafting(twin, room=room)
    for key in "ab":
        model.begin("abc")
        model.read(key, [40] * 90)
        assert model.used_bytes <= room
    assert not model.has_room("c", 90), "both were used in this round or the last"
    model.begin("abc")
    model.begin("abc")
    model.read("b", [40])
    assert model.has_room("c", 90) and not model.has_room("c", 2000)
    model.read("c", [40] * 90)
    assert (model.known("a"), model.known("b"), model.known("c")) == (0, 91, 90)
    assert model.used_bytes <= room


def test_rows_in_turns_get_the_same_in_little_room(shard, twin, eager):
    right, _ = ask_all(shard, None)
    model = drafting(twin, room=2 * (110 + GROWS_BY) * TOKEN_BYTES)
    got, desk = ask_all(shard, model)
    assert got == right and desk.scheduler.speculation.look().right > 30


def test_a_text_beyond_its_context_has_no_drafts_of_it(twin):
    row = row_of([40] * 100)
    assert asking(drafting(twin, context=100)).offer(row, 5) is None
    assert asking(drafting(twin, context=105)).offer(row, 5) is not None


class Broken:
    """A model that fails from its nth pass on: it throws, or its logits are no numbers."""

    def __init__(self, model, after: int, error: Exception | None) -> None:
        self._model, self._left, self._error = model, after, error
        self.layers, self.make_cache = model.layers, lambda: make_prompt_cache(model)

    def __call__(self, tokens, cache):
        self._left -= 1
        logits = self._model(tokens, cache=cache)
        if self._left >= 0:
            return logits
        if self._error is not None:
            raise self._error
        return logits * float("nan")


@pytest.mark.parametrize("error", [None, ValueError("odd"), RuntimeError("no device")], ids=str)
@pytest.mark.parametrize("after", [0, 3, 30])
def test_a_draft_model_that_fails_is_done_without(shard, twin, eager, error, after, caplog):
    right, _ = ask_all(shard, None)
    with caplog.at_level(logging.WARNING, logger="server.scheduler.model_drafts"):
        got, desk = ask_all(shard, drafting(Broken(twin, after, error)))
    assert got == right
    what = str(error) if error else "no numbers"
    said = [record.getMessage() for record in caplog.records]
    assert 1 <= len(said) <= FAILURES_MOST and all(what in one for one in said)
    assert said[-1].startswith("the draft model drafts no more until the next start")
    assert desk.scheduler.speculation._model._model is None


def row_of(prompt, **sampling):
    common = Common(sampling=Sampling(**{"temperature": 0} | sampling))
    return SimpleNamespace(
        guess=Guess(prompt), sampling=common.sampling, seed=1, constrained=False, looks_ahead=True
    )


def test_one_failure_is_its_own_requests_alone(twin, caplog):
    model = drafting(Broken(twin, 0, None))
    asks, first, second = asking(model), row_of([40] * 9), row_of([41] * 9)
    assert asks.draft([Ask(first, 0, 3)], reads=True) == [[]]
    assert asks.offer(first, 3) is None and asks.offer(second, 3) is not None
    model._model = twin
    (drafts,) = asks.draft([Ask(second, 0, 3)], reads=True)
    assert drafts == said(twin, [41] * 9, 3) and not asks._failures
    with pytest.raises(NoNumbers):
        drafting(Broken(twin, 0, None)).draft("a", [40], [GREEDY])


def test_long_texts_are_read_in_pieces_one_of_them_in_a_step(twin):
    model = drafting(twin)
    asks, rows = asking(model, 50), [row_of([40] * 170), row_of([41] * 120)]
    every = [Ask(row, 0, 3) for row in rows]
    assert asks.draft(every, reads=False) == [[], []] and not model.used_bytes
    seen = []
    for _ in range(3):
        assert asks.draft(every, reads=True) == [[], []]
        seen.append([model.known(row.guess) for row in rows])
    assert seen == [[50, 0], [100, 0], [150, 0]]
    drafts = [said(twin, row.guess.text(0), 3) for row in rows]
    assert asks.draft(every, reads=True) == [drafts[0], []]
    assert asks.draft(every[1:], reads=True) == [[]]
    assert asks.draft(every[1:], reads=False) == [drafts[1]]


def test_a_text_is_read_where_its_answer_is_likely_to_be_long_enough(twin):
    """By what a step costs: what reading takes has to come back."""
    model = drafting(twin, context=9999, draft_s=0.001, read_s=0.001)
    asks, short, long = asking(model), row_of([40] * 40), row_of([40] * 3000)
    for row in (short, long):
        row.guess.hear([50], 1)
    few, many = asks.offer(short, 5), asks.offer(long, 5)
    assert few.takes_s(4) < 0.006 < 0.1 < many.takes_s(4)
    long.guess.hear([50] * 2000, 2001)
    assert asks.offer(long, 5).takes_s(4) < many.takes_s(4) / 10
    assert many.takes_s(1) == 0
    assert asks.offer(short, 5, reads=False) is None, "or a step would wait for nothing"
    assert asks.offer(row_of([40] * 20), 5, reads=False) is not None
