"""scripts/dev/batch_profile.py: what it times is what it says, on a model of no size."""

import json

import mlx.core as mx
import pytest

from scripts.dev import batch_profile
from scripts.dev.batch_profile import Batch, Changes, Pair, equal, in_bits, made_up, memory
from tests.models.architectures import build, write

ROWS, SHORT, LONG = 5, 20, 700


@pytest.fixture(scope="module")
def model():
    made = build("qwen3, heads of 64")
    batch_profile.put_attention(made)
    return made


def test_a_ratio_is_that_of_the_medians_and_its_rounds_are_told():
    pair = Pair("leave", "ms", [2.0, 9.0, 4.0], [1.0, 2.0, 8.0])
    assert pair.ratio == 2.0
    assert str(pair).split() == [
        "leave", "4.0", "ms", "beside", "2.0:", "2.00x,", "3", "rounds", "of", "0.50", "to", "4.50"
    ]  # fmt: skip


def test_a_made_up_row_has_its_tokens_and_room_as_a_prompt_of_them(model):
    for cache in made_up(model, SHORT):
        assert cache.offset == SHORT and cache.keys.shape[2] == 256


def test_each_kind_of_step_is_timed_beside_a_plain_one(model):
    changes = Changes(model, ROWS, SHORT)
    for number in range(2):
        changes.round(number)
    counts = {what: len(times) for what, times in changes.times.items()}
    assert counts["leave"] == counts["join, shelf built"] == 2
    assert counts["join"] >= 2, "to the place that was left, and to spare ones"
    assert [pair.what for pair in changes.pairs()] == list(counts)


def test_both_sides_have_the_same_rows(model, monkeypatch):
    seen = []
    step = Batch.step

    def noted(self):
        seen.append((self.count, type(self._caches.layers[0]).__name__))
        step(self)

    monkeypatch.setattr(Batch, "step", noted)
    assert len(equal(model, ROWS, SHORT, 2).mine) == 2
    assert {*seen} == {(ROWS, "ShelvedKV"), (ROWS, "BatchKVCache")}
    seen.clear()
    in_bits(model, 4, LONG, 2)
    assert len(seen) == 8 and {*seen} == {(1, "ShelvedKV")}


def test_memory_is_looked_at_beside_the_rows_own(model):
    pair = memory(model, LONG, SHORT)
    layers, per_token = 4, 2 * 2 * 64 * 4
    own = layers * per_token * (768 + 7 * 256) / 1e6
    assert pair.other == [pytest.approx(own)]
    assert 1.0 < pair.ratio < 3.0


def test_it_prints_a_line_a_pair_and_one_of_json(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "model", "qwen3, heads of 64")
    words = f"x --model {folder} --rows 5 --long 300 --short 9 --rounds 1 --json"
    monkeypatch.setattr("sys.argv", words.split())
    batch_profile.main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert [*json.loads(last)] == [line[:22].strip() for line in lines]
    assert len(lines) == 8 and mx.get_active_memory()
