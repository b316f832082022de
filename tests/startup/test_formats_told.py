"""What rank 0 says at its start of how the model writes."""

import logging

import pytest

pytest.importorskip("mlx_lm")

from server.observe.cluster_state import describe_cluster
from server.observe.status import Status
from server.observe.views import Formats
from server.protocol.settings import read_settings
from server.rank import tell_formats
from tests.support.families import FAMILIES
from tests.text.test_known_formats import PLAIN, tokenizer_of


def test_a_family_without_a_known_format_is_warned_of(tmp_path, caplog):
    """Its calls reached clients as content, and nobody was told."""
    caplog.set_level(logging.INFO)
    told = tell_formats(tokenizer_of(tmp_path, PLAIN))
    assert (told.calls, told.thinking) == ("none", "none")
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "no format is known" in warning.getMessage()
    assert "chat template: tools are not shown: the model never hears of them" in caplog.messages


def test_a_known_family_is_named_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    family = next(family for family in FAMILIES if family.name == "seed-oss")
    tell_formats(tokenizer_of(tmp_path, family))
    assert "tool calls: format seed, known by its template" in caplog.messages
    assert "thinking: <seed:think> ... </seed:think>" in caplog.messages
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_the_cluster_shows_it_once_the_model_is_loaded(tmp_path):
    status = Status("m", "run")
    settings = read_settings({"MODEL_DIR": str(tmp_path)})
    assert describe_cluster(settings, status, lambda other: True)["formats"] is None
    status.publish(Formats("tags", "template", "none", ("no system messages",)))
    assert describe_cluster(settings, status, lambda other: True)["formats"] == {
        "calls": "tags",
        "calls_by": "template",
        "thinking": "none",
        "template": ("no system messages",),
    }
