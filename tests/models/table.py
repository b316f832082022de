"""The table of families in docs/models.md, out of what decides and what is tested.

    .venv/bin/python -m tests.models.table          prints it
    .venv/bin/python -m tests.models.table --write  puts it into the page

How a family runs is what server/startup/arrangement.py says of the small model that tests/models
makes of its architecture; how it writes is what the server finds in a tokenizer with its markers.
A test holds the page to this.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import load

from server.startup.arrangement import arrangements, choose
from server.startup.mlx_lm_source import architecture_name, find_architecture, mlx_lm_folder
from server.startup.weights_index import Weight
from server.text.markup import known_of
from tests.models.architectures import build, config_of
from tests.models.test_families import KNOWN
from tests.support.families import FAMILIES, Family, write_tokenizer
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: python -m tests.models.table -->\n", "<!-- /table -->\n"
RANKS = 2
HEADS = ("family", "model_type", f"{RANKS} ranks and more", "also", "tool calls", "thinking",
         "tested", "what to set")  # fmt: skip
PLAIN = Family("plain", (), "nothing", None, str.join, str.join, "", "")
BY_NAME = {family.name: family for family in FAMILIES}
# As Qwen 3 does, by a model that does not think.
BY_NAME["hermes"] = replace(BY_NAME["qwen3"], markers=("<tool_call>", "</tool_call>"), think=None)


@dataclass(frozen=True)
class Row:
    """A family as people call it. writes: its name among tests/support/families; None: its chat
    template has no calls, and it is known by its model_type."""

    family: str
    model_type: str
    writes: str | None
    to_set: str = "-"


ROWS = (
    Row("Kimi K2, K2 Thinking", "kimi_k2", "kimi-k2", "nothing: its tokenizer's code is not run"),
    Row("Kimi K2.5", "kimi_k25", "kimi-k2", "nothing: its tokenizer's code is not run"),
    Row("Kimi K3", "kimi_k3", "kimi-k3"),
    Row("Kimi Linear", "kimi_linear", "kimi-k2"),
    Row("DeepSeek V3, R1", "deepseek_v3", "deepseek-r1"),
    Row("DeepSeek V3.1", "deepseek_v3", "deepseek-v3.1"),
    Row("DeepSeek V3.2", "deepseek_v32", "deepseek-v3.2"),
    Row("DeepSeek V4.1", "deepseek_v41", "deepseek-v4", "MAX_BATCH low: rows are computed apart"),
    Row("GLM 4.5 to 4.7", "glm4_moe", "glm-4.x"),
    Row("GLM 4", "glm4", None, "nothing: its calls are not known, and stay text"),
    Row("GLM 5", "glm_moe_dsa", "glm-4.x"),
    Row("Qwen 3", "qwen3", "qwen3"),
    Row("Qwen 3 MoE", "qwen3_moe", "qwen3"),
    Row("Qwen 3 Next", "qwen3_next", "qwen3"),
    Row("Qwen 3.5", "qwen3_5", "qwen3.5"),
    Row("gpt-oss", "gpt_oss", "gpt-oss", "`reasoning_effort` in requests"),
    Row("MiniMax M2", "minimax_m2", "minimax-m2"),
    Row("MiniMax M3", "minimax_m3_vl", "minimax-m3"),
    Row("Mistral Small, Devstral", "mistral3", "mistral"),
    Row("Mixtral", "mixtral", "mistral-7b"),
    Row("Llama 3", "llama", "llama-3"),
    Row("Llama 4", "llama4", "llama-4", "MAX_BATCH low: rows are computed apart"),
    Row("Gemma 3", "gemma3", None, "a chat template that shows tools, for tool calls"),
    Row("Gemma 4", "gemma4", "gemma4"),
    Row("Nemotron 3, Nemotron H", "nemotron_h", "nemotron"),
    Row("Nemotron Super, Ultra", "nemotron-nas", "nemotron"),
    Row("Command A", "cohere2", "command-a"),
    Row("Seed-OSS", "seed_oss", "seed-oss"),
    Row("Granite 3", "granite", "granite-3"),
    Row("Granite 4", "granitemoehybrid", "hermes"),
    Row("Hunyuan", "hunyuan_v1_dense", "hunyuan"),
    Row("Step 3.5", "step3p5", "qwen3.5"),
    Row("Apertus", "apertus", "apertus"),
    Row("Solar Open", "solar_open", "solar"),
    Row("Olmo 3", "olmo3", "olmo-3"),
    Row("LFM 2", "lfm2", "lfm2"),
    Row("Falcon H1", "falcon_h1", "hermes"),
    Row("LongCat Flash", "longcat_flash", "longcat"),
)


def table() -> str:
    """In Markdown."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    with tempfile.TemporaryDirectory() as scratch:
        lines += [_line(_cells(row, Path(scratch) / str(n))) for n, row in enumerate(ROWS)]
    return "".join(lines)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cells(row: Row, scratch: Path) -> Iterator[str]:
    name = architecture_name({"model_type": row.model_type}, mlx_lm_folder())
    calls, thinking = _writes(row, scratch)
    kinds = _kinds(name)
    yield row.family
    yield f"`{row.model_type}`"
    yield kinds[0] if kinds else "one rank only"
    yield ", ".join(kinds[1:]) or "-"
    yield calls
    yield thinking
    yield "always" if name in KNOWN else "on demand"
    yield row.to_set


def _kinds(name: str) -> list[str]:
    """The ways to split it, the one that is taken first."""
    config = config_of(name)
    model = build(name)
    weights = {
        key: Weight(tuple(array.shape), array.nbytes)
        for key, array in tree_flatten(model.parameters())
        if isinstance(array, mx.array)
    }
    architecture = find_architecture(config, mlx_lm_folder())
    found = arrangements(config, weights, RANKS, (), architecture, "auto")
    chosen = choose(found)
    ways = [one.kind for one in found if one.possible]
    return sorted(ways, key=lambda kind: kind != chosen.kind) if chosen else []


def _writes(row: Row, scratch: Path) -> tuple[str, str]:
    """The format of its calls, and the marks of its thoughts."""
    write_tokenizer(BY_NAME.get(row.writes, PLAIN), scratch, ["some text"] * 3)
    (scratch / "config.json").write_text(json.dumps({"model_type": row.model_type}))
    known = known_of(load(scratch))
    thinking = "-" if known.thinking == "none" else f"`{known.thinking}`".replace("|", "\\|")
    return "-" if known.calls == "none" else known.calls, thinking


def on_page(text: str) -> str:
    """The page with this table."""
    page = PAGE.read_text("utf-8")
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert begun and ended, f"{PAGE} has lost its marks"
    return before + BEGIN + text + END + after


def main() -> int:
    parser = argparse.ArgumentParser(prog="table")
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(on_page(table()), encoding="utf-8")
    else:
        print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
