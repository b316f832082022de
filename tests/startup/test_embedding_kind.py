"""What a model's folder says of its embeddings, and what is refused rather than computed wrong."""

import json

import pytest

from server.startup.embedding_kind import embedding_kind
from tests.support.embedder import MODULES, PATH, POOLING


def write(folder, modules=MODULES, pooling=POOLING, path="1_Pooling"):
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_model_that_writes_gives_them_and_was_not_made_for_it(tmp_path):
    kind = embedding_kind(tmp_path, {"model_type": "llama"}, 64)
    assert (kind.size, kind.trained, kind.why_not) == (64, False, "")


@pytest.mark.parametrize("pooling", [POOLING, {"pooling_mode": "lasttoken"}, None])
def test_one_that_was_made_for_it(tmp_path, pooling):
    kind = embedding_kind(write(tmp_path, pooling=pooling), {}, 64)
    assert kind.trained and not kind.why_not


@pytest.mark.parametrize(
    ("pooling", "why"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "mean_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, "and lasttoken"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_other_poolings_are_refused_by_name(tmp_path, pooling, why):
    kind = embedding_kind(write(tmp_path, pooling=pooling), {}, 64)
    assert kind.trained and why in kind.why_not


@pytest.mark.parametrize("config", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_so_are_models_whose_tokens_see_what_is_behind_them(tmp_path, config):
    assert "after them" in embedding_kind(write(tmp_path), config, 64).why_not


def test_and_modules_that_change_the_vector(tmp_path):
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": PATH + "Dense"}
    assert "Dense" in embedding_kind(write(tmp_path, [*MODULES, dense]), {}, 64).why_not


def test_and_a_model_whose_head_is_not_found(tmp_path):
    assert "output projection" in embedding_kind(tmp_path, {}, 0).why_not


@pytest.mark.parametrize("modules", [{}, [1], [{}], [{"type": None}], "x"])
def test_a_file_of_rubbish_says_nothing(tmp_path, modules):
    kind = embedding_kind(write(tmp_path, modules, pooling=None), {}, 64)
    assert kind.size == 64


def test_a_path_out_of_the_folder_is_not_read(tmp_path):
    outside = write(tmp_path, None, {"pooling_mode": "mean"})
    inside = tmp_path / "inside"
    inside.mkdir()
    modules = [{"type": PATH + "Pooling", "path": "../1_Pooling"}]
    assert not embedding_kind(write(inside, modules, None), {}, 64).why_not
    assert outside
