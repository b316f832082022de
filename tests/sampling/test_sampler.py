"""The batched sampler: against mlx-lm's own on the same logits, and row by row against batch."""

import math

import mlx.core as mx
import numpy as np
import pytest

from server.protocol.requests import Common, Sampling
from server.sampling.row_state import Row, Scores
from server.sampling.sampler import penalise, score_tokens
from server.sampling.sampler import sample as sample_with_extras
from server.wire.mailbox import Header

VOCAB = 1000


def sample(logits: mx.array, rows: list[Row]) -> mx.array:
    tokens, _ = sample_with_extras(logits, rows, lambda: [0] * len(rows))
    advance(rows)
    return tokens


def advance(rows: list[Row]) -> None:
    """As a step does, whichever rank has chosen."""
    for row in rows:
        row.drawn += 1


def row_of(sampling: Sampling, prompt=(1, 2, 3), vocab: int = VOCAB, **fields) -> Row:
    return Row(Common(sampling=sampling, **fields), list(prompt), vocab, eos=(0,))


def logits_of(rows: int, seed: int = 0) -> mx.array:
    return mx.random.normal((rows, VOCAB), key=mx.random.key(seed)) * 3


def rows_of(*samplings: Sampling) -> list[Row]:
    return [row_of(s) for s in samplings]


def test_greedy_is_argmax_whatever_else_is_asked():
    logits = logits_of(2)
    rows = rows_of(Sampling(temperature=0), Sampling(temperature=0, top_p=0.1, top_k=5))
    assert sample(logits, rows).tolist() == mx.argmax(logits, axis=-1).tolist()


def test_top_k_above_the_vocabulary_is_no_limit():
    logits = logits_of(1)
    rows = rows_of(Sampling(temperature=1, seed=5, top_k=100_000))
    free = rows_of(Sampling(temperature=1, seed=5))
    assert sample(logits, rows).tolist() == sample(logits, free).tolist()


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_a_seed_draws_the_same_in_any_batch_at_any_place(seed):
    def draw(position: int, size: int) -> list[int]:
        rows = rows_of(*[Sampling(temperature=1.2)] * size)
        rows[position] = row_of(Sampling(temperature=1.2, seed=seed), [1])
        drawn = []
        for step in range(6):
            logits = logits_of(size, seed=step)
            logits[position] = logits_of(1, seed=100 + step)[0]
            drawn.append(sample(logits, rows)[position].item())
        return drawn

    assert draw(0, 1) == draw(3, 5)
    assert len(set(draw(0, 1))) > 1, "each position has numbers of its own"


def test_unseeded_rows_differ():
    rows = rows_of(*[Sampling(temperature=2)] * 16)
    assert len(set(sample(mx.zeros((16, VOCAB)), rows).tolist())) > 8


def test_penalties_count_as_vllm_does():
    logits = mx.zeros((1, 8)) + mx.array([[2.0, 2.0, -2.0, 1.0, 0, 0, 0, 0]])
    row = row_of(
        Sampling(repetition_penalty=2, presence_penalty=0.5, frequency_penalty=0.25), [0, 2], 8
    )
    row.history()  # counting begins
    for _ in range(2):
        row.note(mx.array([5, 1]), 1)
    after = penalise(logits, [row])[0].tolist()
    assert after[0] == 1.0, "in the prompt: divided"
    assert after[2] == -4.0, "in the prompt, negative: multiplied"
    assert after[1] == pytest.approx(2.0 / 2 - 2 * 0.25 - 0.5), "generated twice: all three"
    assert after[3] == 1.0, "never seen: as it was"


def test_a_frequency_penalty_breaks_a_greedy_loop():
    logits = mx.array([[1.0, 0.9, 0.8, 0.0]])
    row = row_of(Sampling(temperature=0, frequency_penalty=2), [3], 4)
    drawn = [sample(logits, [row]).item() for _ in range(3)]
    assert sorted(drawn) == [0, 1, 2]


def test_logits_of_half_precision_and_tiny_temperatures_stay_finite():
    logits = logits_of(1).astype(mx.bfloat16)
    rows = rows_of(Sampling(temperature=math.ulp(0)))
    assert sample(logits, rows).item() == mx.argmax(logits.astype(mx.float32)).item()


def test_bias_and_early_ends_change_the_choice():
    logits = mx.array([[5.0, 4.0, 3.0, 2.0]])
    greedy = Sampling(temperature=0)
    assert sample(logits, [row_of(greedy, [1], 4, logit_bias=((3, 100.0),))]).item() == 3
    row = row_of(greedy, [1], 4, min_tokens=2, stop_token_ids=(1,))
    assert [sample(logits, [row]).item() for _ in range(3)] == [2, 2, 0]


def test_choices_of_one_seed_differ_and_repeat():
    def draw(choice: int) -> list[int]:
        common = Common(sampling=Sampling(temperature=1.5, seed=7))
        row = Row(common, [1], VOCAB, choice=choice)
        return [sample(logits_of(1, seed=s), [row]).item() for s in range(5)]

    assert draw(0) == draw(0) and draw(1) == draw(1) and draw(0) != draw(1)


def test_scores_are_the_models_own_whatever_was_sampled():
    logits = logits_of(3)
    rows = [
        row_of(Sampling(temperature=0, presence_penalty=2), logprobs=2),
        row_of(Sampling(temperature=0)),
        row_of(Sampling(temperature=2, top_k=3), logprobs=0),
    ]
    tokens, extras = sample_with_extras(logits, rows, lambda: [0] * 3)
    mx.eval(tokens, extras)
    right = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    first, third = rows[0].take_score(), rows[2].take_score()
    assert rows[1].take_score() is None
    assert first.id == tokens[0].item() and third.top == ()
    assert first.logprob == pytest.approx(right[0, first.id], abs=1e-4)
    assert third.logprob == pytest.approx(right[2, tokens[2].item()], abs=1e-4)
    best = np.argsort(-right[0])[:2]
    assert [token for token, _ in first.top] == best.tolist()
    assert [value for _, value in first.top] == pytest.approx(right[0, best].tolist(), abs=1e-4)


def test_scores_of_a_prompt_come_in_its_order():
    logits = logits_of(4)
    scores = score_tokens(logits, mx.array([4, 3, 2, 1]), 1)
    assert [scores.read(i, 1).id for i in range(4)] == [4, 3, 2, 1]
    assert scores.read(2, 1).top[0][0] == mx.argmax(logits[2]).item()


class OnlyEven:
    """A grammar whose matcher allows even tokens, and notes what it is shown."""

    def __init__(self):
        self.shown = []

    def matcher(self):
        return self

    def accept(self, token):
        self.shown.append(token)

    def mask(self):
        return np.full(-(-VOCAB // 32), 0x55555555, dtype=np.uint32)


def test_a_grammar_masks_its_own_row_and_sees_each_token_once():
    logits, grammar = logits_of(2), OnlyEven()
    rows = [row_of(Sampling(temperature=0)), Row(Common(), [1], VOCAB, (0,), grammar=grammar)]
    previous = [11, 12]
    drawn = []
    for _ in range(3):
        tokens, _ = sample_with_extras(logits, rows, lambda previous=previous: previous)
        advance(rows)
        previous = tokens.tolist()
        drawn.append(previous[1])
        assert previous[0] == mx.argmax(logits[0]).item()
    assert all(token % 2 == 0 for token in drawn)
    assert grammar.shown == drawn[:2], "not the prompt's last token, nor the one in flight"


def test_a_resumed_row_goes_on_as_if_nothing_had_happened():
    def steps(row: Row, start: int, count: int) -> list[int]:
        return [sample(logits_of(1, seed=s), [row]).item() for s in range(start, start + count)]

    sampling = Sampling(temperature=1.2, presence_penalty=1.5, frequency_penalty=0.5)
    whole = row_of(sampling)
    first = steps(whole, 0, 4)
    resumed = whole.resume(first)
    assert steps(resumed, 4, 4) == steps(whole, 4, 4)


def test_a_grammar_that_fails_takes_no_other_row_with_it():
    """The step was chosen again row by row, and the other grammars saw their token twice."""
    from server.sampling.choosers import ChoosesForAll

    class Broken(OnlyEven):
        def accept(self, token):
            raise ValueError("a broken grammar")

    logits, good, failed = logits_of(2), OnlyEven(), []
    rows = [Row(Common(), [1], VOCAB, (0,), grammar=g) for g in (good, Broken())]
    chooser = ChoosesForAll(None, lambda: [0] * Header.SIZE, lambda row, error: failed.append(row))
    inputs = mx.array([7, 7])
    for _ in range(2):
        inputs, _ = chooser.propose(logits, rows, inputs, [0, 1])
        advance(rows)
    assert failed == [rows[1]]
    assert len(good.shown) == 1


def test_a_resumed_rows_grammar_sees_each_token_once():
    grammar = OnlyEven()
    row = Row(Common(sampling=Sampling(temperature=0)), [1], VOCAB, (0,), grammar=grammar)
    generated = []
    for step in range(3):
        last = generated[-1] if generated else 1
        tokens, _ = sample_with_extras(logits_of(1, seed=step), [row], lambda last=last: [last])
        advance([row])
        generated.append(tokens.item())
    grammar.shown.clear()
    resumed = row.resume(generated)
    for _ in range(2):  # a try that another row made fail comes again
        resumed.mask_after(generated[-1])
    assert grammar.shown == generated


def test_a_grammar_that_fails_after_a_pause_fails_its_row_alone(monkeypatch):
    """It took its tokens again where the next messages are made: a failure ended rank 0."""
    from server.sampling.choosers import ChoosesForAll

    class Broken(OnlyEven):
        def accept(self, token):
            raise ValueError("a broken grammar")

    failed = []
    chooser = ChoosesForAll(None, lambda: [0] * Header.SIZE, lambda row, error: failed.append(row))
    for grammar, limit in ((Broken(), 1e9), (OnlyEven(), -1.0)):
        monkeypatch.setattr("server.sampling.row_state.REPLAY_CPU_S", limit)
        row = Row(Common(), [1], VOCAB, (0,), grammar=grammar).resume([2, 4, 6])
        chooser.propose(logits_of(2), [row_of(Sampling()), row], mx.array([7, 6]), [0, 1])
        assert failed[-1] is row
    assert len(failed) == 2


def test_end_tokens_that_the_model_does_not_have_are_not_biased():
    """MLX does not check an index; tokenizers may have more tokens than the logits have places."""
    row = Row(Common(min_tokens=5), [1], VOCAB, eos=(3, VOCAB, VOCAB + 7))
    assert list(row.biases()) == [(3, -math.inf)]


class Reads:
    """An array that counts how often it is asked for its numbers."""

    def __init__(self, values: mx.array) -> None:
        self.values, self.count, self.shape = values, 0, values.shape

    def tolist(self) -> list:
        self.count += 1
        return self.values.tolist()

    def __getitem__(self, place) -> "Reads":
        self.count += 1
        return Reads(self.values[place])


def test_a_prompts_log_probabilities_are_read_a_chunk_at_a_time():
    """Number by number they took a millisecond a token, and 60,000 of them the watchdog's limit."""
    logits, tokens = logits_of(50, seed=3), mx.arange(50) * 7
    scores = score_tokens(logits, tokens, 4)
    counted = Scores(
        Reads(scores.tokens), Reads(scores.chosen), Reads(scores.top_ids), Reads(scores.top)
    )
    read = list(counted.read_all(2))
    assert read == [scores.read(place, 2) for place in range(50)]
    assert all(len(score.top) == 2 for score in read)
    parts = (counted.tokens, counted.chosen, counted.top_ids, counted.top)
    assert max(part.count for part in parts) == 1
    plain = score_tokens(logits, tokens, 0)
    assert list(plain.read_all(0)) == [plain.read(place, 0) for place in range(50)]
