"""What is read of mlx-lm's source, against the real thing: each architecture imported and run."""

import importlib
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from scripts.lib.model import check_model
from scripts.lib.model.mlx_lm_needs import absent_packages, needs_metal
from server.startup import mlx_lm_source
from tests.models.architectures import architectures, build, config_of
from tests.scripts.model.test_check_model import change, reason
from tests.support.tiny_models import tiny_llama

PACKAGE = mlx_lm_source.mlx_lm_folder()
MODELS = PACKAGE / "models"


def test_every_architecture_that_mlx_lm_can_import_is_known():
    """Names with hyphens were unknown: nemotron-nas, lfm2-vl, lille-130m."""
    for name in architectures():
        found = mlx_lm_source.find_architecture({"model_type": name}, PACKAGE)
        assert found is not None and found.name == name
        model = importlib.import_module(f"mlx_lm.models.{name}").Model
        assert found.can_shard == hasattr(model, "shard"), name


def test_a_file_that_is_no_architecture_is_none():
    helpers = {path.stem for path in MODELS.glob("*.py")} - {*architectures(), "olmo"}
    for name in [*helpers, "../utils", "..", "models/llama", "LLAMA", "llama.py"]:
        assert mlx_lm_source.find_architecture({"model_type": name}, PACKAGE) is None, name


def test_a_model_whose_name_has_a_hyphen_passes(tmp_path):
    model = change(tiny_llama(tmp_path / "model"), model_type="nemotron-nas")
    assert check_model.check(model, 1).ok


def kernels() -> list[str]:
    """Architectures that reach one of Metal's kernels at all, and some that reach none."""
    named = [
        name
        for name in architectures()
        if any(
            word in (MODELS / f"{name}.py").read_text()
            for word in ("kernel", "bitlinear", "gated_delta", "ssm_update")
        )
    ]
    assert {"bitnet", "muse_spark", "rwkv7", "kimi_k3", "nemotron_h"} <= {*named}
    return [*named, "llama", "gpt_oss"]


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a GPU: they all compute")
@pytest.mark.parametrize("name", kernels())
def test_what_needs_metal_is_what_cannot_be_computed_without_it(name):
    try:
        mx.eval(build(name)(mx.zeros((1, 2), dtype=mx.int32)))
        computes = True
    except RuntimeError as error:
        assert "No Metal back-end" in str(error)
        computes = False
    assert needs_metal(config_of(name), name, PACKAGE) is not computes


def test_what_needs_metal_is_refused_where_there_is_none(tmp_path, monkeypatch):
    model = change(tiny_llama(tmp_path / "model"), model_type="bitnet")
    monkeypatch.setattr(sys, "platform", "linux")
    assert reason(model, ranks=1) == (
        "mlx-lm's bitnet computes with Metal's kernels alone: it needs a Mac's GPU, "
        "and this machine has none"
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    assert check_model.check(model, 1).ok


def test_weights_packed_for_metals_kernels_are_refused_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    packed = {"quant_method": "bitnet"}
    model = change(tiny_llama(tmp_path / "model"), quantization_config=packed)
    assert "Metal's kernels alone" in reason(model, ranks=1)


def test_a_package_that_an_architecture_wants_is_named(tmp_path):
    """mlx-lm's olmo ends the process where it is missing."""
    assert absent_packages("olmo", PACKAGE) == ["hf_olmo"]
    assert all(absent_packages(name, PACKAGE) == [] for name in architectures())
    model = change(tiny_llama(tmp_path / "model"), model_type="olmo")
    assert "hf_olmo" in reason(model, ranks=1)


def test_a_source_that_imports_in_a_circle_is_read_to_its_end(tmp_path):
    models = Path(tmp_path) / "mlx_lm" / "models"
    models.mkdir(parents=True)
    (models / "a.py").write_text("from .b import x\nfrom ..kernels import k\n")
    (models / "b.py").write_text("from mlx_lm.models import a\n")
    assert not needs_metal({}, "a", models.parent)
    (models.parent / "kernels.py").write_text("import mlx.core as mx\nk = mx.fast.metal_kernel()\n")
    assert needs_metal({}, "b", models.parent)
