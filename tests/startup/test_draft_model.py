"""Which draft models are taken: rank 0's folder alone counts, and all ranks hear of it alike."""

import json
import logging
import shutil

import mlx.core as mx
import pytest
from mlx_lm.utils import load_tokenizer

from scripts.lib.model.check_model import check
from server import ready
from server.protocol.settings import SettingError, read_settings
from server.startup import draft_model
from server.startup.draft_model import ROOM_SHARE, load_draft, room_for
from server.startup.loading import Unloadable
from server.startup.piece_pace import at_once
from server.startup.vocabulary import difference, read_vocabulary
from tests.support.house import House
from tests.support.linked import on_links
from tests.support.tiny_models import VOCAB, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", context=700)


@pytest.fixture
def renamed(folder, tmp_path):
    """Two of its tokens have each other's numbers."""
    path = shutil.copytree(folder, tmp_path / "renamed")
    told = json.loads((path / "tokenizer.json").read_text())
    vocab = told["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (path / "tokenizer.json").write_text(json.dumps(told))
    return path


def load(path, of, ranks=2, vocab=VOCAB, elsewhere=None):
    """What each rank has. elsewhere: the folder as the other ranks have it."""
    tokenizer = load_tokenizer(of)

    def life(link):
        mine = elsewhere if link.rank and elsewhere else path
        stages = []
        pieces = load_draft(mine, link, tokenizer, vocab, False, stages.append)
        return at_once(pieces), stages

    return on_links(ranks, life)


@pytest.mark.parametrize("ranks", [1, 3])
def test_rank_0_alone_has_it_and_needs_its_folder(folder, tmp_path, ranks):
    first, *others = load(folder, folder, ranks, elsewhere=tmp_path / "nothing here")
    model, stages = first
    assert model.context == 700 and model.draft_s > 0 and model.read_s > 0
    assert model.token_bytes == 2 * 2 * 64 * 4
    assert model.weights == sum(one.nbytes for one in draft_model.weights_of(model._model))
    assert [other for other, _ in others] == [None] * (ranks - 1)
    assert all(told == stages for _, told in others), "they are fed alike"


def test_other_tokens_are_refused_on_every_rank_and_named(folder, renamed):
    for error in load(renamed, folder):
        assert isinstance(error, Unloadable)
        named = f"DRAFT_MODEL_DIR={str(renamed)!r}: rank 0: must have the tokens of"
        assert str(error).startswith(named)
        assert "2 token ids differ: 97 is 'b' and not 'a', 98 is 'a' and not 'b'" in str(error)


def test_a_folder_that_cannot_be_read_is_refused_on_every_rank(folder, tmp_path):
    for error in load(tmp_path / "none", folder, elsewhere=folder):
        assert isinstance(error, Unloadable) and "DRAFT_MODEL_DIR=" in str(error)


def test_caches_that_cannot_be_cut_are_refused(folder, monkeypatch):
    monkeypatch.setattr(draft_model, "can_be_cut", lambda caches: False)
    for error in load(folder, folder):
        assert isinstance(error, Unloadable) and "caches cannot be cut" in str(error)


def test_one_that_cannot_be_computed_is_done_without(folder, monkeypatch, caplog):
    def broken(model):
        raise RuntimeError("no kernel for it")

    monkeypatch.setattr(draft_model, "measure_draft", broken)
    with caplog.at_level(logging.ERROR):
        assert [model for model, _ in load(folder, folder)] == [None, None]
    assert "no kernel for it" in caplog.text


def test_it_drafts_no_token_that_the_larger_one_does_not_know(folder):
    (model, _), *_ = load(folder, folder, vocab=VOCAB - 4)
    assert model._vocab == VOCAB - 4


def test_layers_are_dealt_by_what_it_leaves_of_rank_0(folder, tmp_path):
    (model, _), *_ = load(folder, folder)

    def beside(path):
        return on_links(3, lambda link: draft_model.memories_beside(path, link, [10**9, None, 7]))

    left = 10**9 - model.weights
    assert beside(folder) == [[left, None, 7]] * 3
    assert beside(tmp_path) == [[10**9, None, 7]] * 3


def test_its_caches_have_a_part_of_the_memory_that_is_bounded():
    assert room_for(900, 40, 10) == 100  # with half as many tokens: 20 of 800 and 10 of 100
    assert room_for(1000, 0, 10) == 1000 * ROOM_SHARE
    assert room_for(0, 40, 10) == 0


def test_only_rank_0_must_have_the_folder(folder):
    env = {"MODEL_DIR": str(folder), "DRAFT_MODEL_DIR": "/none/such"}
    with pytest.raises(SettingError, match="DRAFT_MODEL_DIR='/none/such': must be the folder of"):
        read_settings(env, 0)
    assert read_settings(env, 1).draft_model_dir == "/none/such"
    found = read_settings({**env, "DRAFT_MODEL_DIR": str(folder)}, 0)
    assert found.draft_model_dir == str(folder) and found.speculate in ("auto", "off")


# Before a launch, by the files.


def test_a_vocabulary_is_read_as_the_tokenizer_has_it(folder, tmp_path):
    assert read_vocabulary(folder) == load_tokenizer(folder).get_vocab()
    assert read_vocabulary(tmp_path) is None


def test_what_differs_is_told_by_number():
    assert difference({"a": 0, "b": 1}, {"b": 1, "a": 0}) == ""
    told = difference({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2, "d": 5})
    assert told == "2 token ids differ: 2 is none and not 'c', 5 is none and not 'd'"
    many = difference({str(n): n for n in range(9)}, {str(n): n + 1 for n in range(9)})
    assert many.startswith("10 token ids differ: 0 is '0' and not none, 1 is '1' and not '0', ")


def test_the_check_before_a_launch_refuses_what_rank_0_would(folder, renamed, tmp_path):
    good = check(folder, 1, draft=folder)
    assert good.ok and good.draft_bytes > 10_000
    assert check(folder, 1).draft_bytes == 0
    (reason,) = check(folder, 1, draft=renamed).reasons
    assert reason.startswith(f"DRAFT_MODEL_DIR={str(renamed)!r}: must have") and "97 is" in reason
    (reason,) = check(folder, 1, draft=tmp_path / "none").reasons
    assert "no such folder" in reason
    (renamed / "config.json").unlink()
    assert not check(folder, 1, draft=renamed).ok


def test_one_that_cannot_be_computed_takes_no_memory_from_the_caches(
    folder, tmp_path, monkeypatch, uncollected
):
    """Nobody has it, but its weights counted as used when the room for caches was measured."""
    used, room = [], ready.kv_memory

    def looking(*of):
        used.append(mx.get_active_memory())
        return room(*of)

    def fail(model):
        raise RuntimeError("no kernel for that")

    monkeypatch.setattr(ready, "kv_memory", looking)
    monkeypatch.setattr(draft_model, "measure_draft", fail)
    for draft in ({}, {"DRAFT_MODEL_DIR": str(folder)}):
        House(tmp_path / str(len(draft)), **draft).run(lambda house: None)
    without, with_one = used
    assert with_one < without + 2**16
