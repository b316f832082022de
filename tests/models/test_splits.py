"""Architectures that mlx-lm cannot split, split on two real ranks: every answer is that of the model
as a whole, or the model is refused. tests/models/split.py does it with all of them, on demand."""

import pytest

from tests.models.split import run

pytestmark = pytest.mark.ranks


def results(names, parallel, **options):
    """name -> "right: how", or what else it came to."""
    return {one.pop("name"): ": ".join(*one.items()) for one in run(names, parallel, **options)}


def test_by_the_names_of_projections():
    found = results(["gemma3_text", "kimi_linear", "mixtral", "nemotron_h", "phi3"], "tensor")
    assert {name: how.split(",")[0] for name, how in found.items()} == dict.fromkeys(
        found, "right: generic tensor"
    )
    assert len(found) == 5


def test_in_runs_of_layers():
    found = results(
        ["falcon_h1", "glm4", "gpt_oss", "hunyuan", "llama4", "nemotron-nas"], "pipeline"
    )
    assert {name: how.split(",")[0] for name, how in found.items()} == {
        **dict.fromkeys(found, "right: generic pipeline of 2"),
        "nemotron-nas": "right: generic pipeline of 3",  # some of its layers hold next to nothing
    }
    assert len(found) == 6


@pytest.mark.thorough
def test_layers_are_dealt_by_memory():
    """By mlx-lm's pipelines, too, where they take it."""
    found = results(["glm4", "qwen2", "hunyuan"], "pipeline", memories=[300_000_000, 100_000_000])
    assert {name: how.rpartition(",")[0] for name, how in found.items()} == {
        "glm4": "right: generic pipeline of 3, 1 layers",
        "qwen2": "right: pipeline of 3, 1 layers",
        "hunyuan": "right: generic pipeline of 2, 2 layers",  # its layers come in pairs
    }


@pytest.mark.thorough
def test_a_large_model_is_proven_by_some_of_its_layers():
    found = results(["glm4", "nemotron_h", "qwen3_next"], "pipeline", as_large=True)
    found |= results(["gemma3_text"], "tensor", as_large=True)
    assert [how.split(": ")[0] for how in found.values()] == ["right"] * 4
    # One that a split does not suit is found out by these, too.
    (found,) = run(["gpt_neox"], "tensor", as_large=True, unknowing=True)
    assert "from those of one rank alone" in found["refused"]


@pytest.mark.thorough
def test_weights_of_4_bits_are_no_other_case():
    found = results(["mistral3", "mixtral"], "tensor", bits=4)
    found |= results(["gpt_oss"], "pipeline", bits=4)
    assert [how.split(",")[0] for how in found.values()] == [
        "right: generic tensor", "right: generic tensor", "right: generic pipeline of 2",
    ]  # fmt: skip


def test_what_a_split_does_not_suit_is_found_out_and_given_up():
    """Heads interleaved, a block that looks at its whole width, one that crashes; then the next way
    is tried, and where there is none, it is refused."""
    names = ["gpt_neox", "exaone", "gemma3n"]
    found = results(names, "auto", unknowing=True)
    assert found["gpt_neox"].startswith("right: generic pipeline")
    assert found["exaone"].startswith("right: generic pipeline")
    assert found["gemma3n"].startswith("refused: ")
    assert "from those of one rank alone" in found["gemma3n"]
