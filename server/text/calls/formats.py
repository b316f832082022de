"""Which reader a model's calls need: by what its chat template writes, then by its vocabulary, then
by its type. Looks at the tokenizer only; rank 0's HTTP threads.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from server.text.calls.blocks import (
    APERTUS,
    COMMAND_A,
    COMMAND_R,
    GRANITE,
    HUNYUAN,
    INTERNLM,
    NEMOTRON,
)
from server.text.calls.borrowed import Borrowed
from server.text.calls.gemma import FUNCTION_GEMMA, GEMMA_4
from server.text.calls.headed import DEEPSEEK_V3, HARMONY, KIMI_K2, MISTRAL, SOLAR
from server.text.calls.invokes import DSML, KIMI_K3, MINICPM5, MINIMAX_M2, MUSE_SPARK
from server.text.calls.llama import GEMMA_3, LLAMA_3, LLAMA_4
from server.text.calls.minimax_m3 import MARK, MiniMaxM3
from server.text.calls.pythonic import LFM2, OLMO_3
from server.text.calls.reader import Reader
from server.text.calls.tags import SEED, Tags

TAGS, LONGCAT, MINIMAX_M3 = Tags(), Tags("longcat_"), MiniMaxM3()

# What a template holds (all of a row) -> the reader. The first that fits counts: the tags that many
# families have come last.
TEMPLATES: tuple[tuple[tuple[str, ...], Reader], ...] = (
    ((MARK,), MINIMAX_M3),
    (("<minimax:tool_call>",), MINIMAX_M2),
    (("<｜DSML｜",), DSML),
    (("<|tool_call>", "<tool_call|>"), GEMMA_4),
    (("<start_function_call>",), FUNCTION_GEMMA),
    (("<longcat_tool_call>",), LONGCAT),
    (("<seed:tool_call>",), SEED),
    (("<TOOLCALL>",), NEMOTRON),
    (("<|START_ACTION|>",), COMMAND_A),
    (("<|tools_prefix|>",), APERTUS),
    (("<|tool_call:begin|>",), SOLAR),
    (("<|action_start|>",), INTERNLM),
    (("<arg_key>",), TAGS),
    (("<tool_calls>",), HUNYUAN),
    (("<|tool_list_start|>",), LFM2),
    (("<|tool_call_start|>",), LFM2),
    (("<|python_start|>",), LLAMA_4),
    (("<|tool_calls_section_begin|>",), KIMI_K2),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_V3),
    (('<function name="', '<param name="'), MINICPM5),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<atem:function_calls>",), MUSE_SPARK),
    (("<|channel|>", "to=functions."), HARMONY),
    (("<|tool_call|>",), GRANITE),
    (("<function_calls>",), OLMO_3),
    (("<tool_call>",), TAGS),
    (("<function=", "<parameter="), TAGS),
    (("<|python_tag|>",), LLAMA_3),
    (("Action: ```json",), COMMAND_R),
)
# Tokens of the vocabulary (all of a row) -> the reader, for templates that do not say it.
TOKENS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("<|channel|>", "<|message|>", "<|start|>"), HARMONY),
    (("｜DSML｜",), DSML),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_V3),
    (("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"), KIMI_K3),
    (("<|tool_call_start|>", "<|tool_call_end|>"), LFM2),
    (("<|tool_calls_section_begin|>",), KIMI_K2),
    ((MARK,), MINIMAX_M3),
    (("<seed:tool_call>",), SEED),
    (("<|START_ACTION|>", "<|END_ACTION|>"), COMMAND_A),
    (("<|tools_prefix|>", "<|tools_suffix|>"), APERTUS),
    (("<|tool_call:begin|>", "<|tool_call:args|>"), SOLAR),
    (("<|python_start|>", "<|python_end|>"), LLAMA_4),
    (("<|action_start|>", "<|plugin|>"), INTERNLM),
    (("<|python_tag|>",), LLAMA_3),
)
# Beginnings of a model_type -> the reader, where neither says it.
MODEL_TYPES: tuple[tuple[str, Reader], ...] = (
    ("gpt_oss", HARMONY),
    ("deepseek_v32", DSML),
    ("deepseek_v4", DSML),
    ("deepseek_v3", DEEPSEEK_V3),
    ("kimi_k3", KIMI_K3),
    ("kimi", KIMI_K2),
    ("minimax_m3", MINIMAX_M3),
    ("minimax", MINIMAX_M2),
    ("glm4_moe", TAGS),
    ("glm_moe", TAGS),
    ("qwen3", TAGS),
    ("qwen2", TAGS),
    ("llama4", LLAMA_4),
    ("gemma3", GEMMA_3),
    ("gemma4", GEMMA_4),
    ("granitemoehybrid", TAGS),
    ("granite", GRANITE),
    ("hunyuan", HUNYUAN),
    ("nemotron", NEMOTRON),
    ("seed_oss", SEED),
    ("cohere2", COMMAND_A),
    ("cohere", COMMAND_R),
    ("apertus", APERTUS),
    ("solar_open", SOLAR),
    ("olmo3", OLMO_3),
    ("jamba", HUNYUAN),
    ("internlm", INTERNLM),
    ("lfm2", LFM2),
    ("longcat", LONGCAT),
    ("mistral", MISTRAL),
    ("ministral", MISTRAL),
    ("mixtral", MISTRAL),
)
# What mlx-lm calls the parsers that readers here stand for; a folder may name one.
PARSERS: dict[str, Reader] = {
    "json_tools": TAGS, "qwen3_coder": TAGS, "glm47": TAGS, "laguna": TAGS, "longcat": LONGCAT,
    "minimax_m2": MINIMAX_M2, "gemma4": GEMMA_4, "function_gemma": FUNCTION_GEMMA,
    "pythonic": LFM2, "kimi_k2": KIMI_K2, "kimi_k3": KIMI_K3, "mistral": MISTRAL,
    "muse_spark": MUSE_SPARK, "minicpm5": MINICPM5,
}  # fmt: skip

NONE = "none"
NAMES: tuple[tuple[Reader, str], ...] = (
    (TAGS, "tags"), (LONGCAT, "longcat"), (MINIMAX_M2, "minimax-m2"), (MINIMAX_M3, "minimax-m3"),
    (DSML, "dsml"), (DEEPSEEK_V3, "deepseek-v3"), (GEMMA_4, "gemma-4"),
    (FUNCTION_GEMMA, "function-gemma"), (LFM2, "pythonic"), (LLAMA_4, "llama-4"),
    (KIMI_K2, "kimi-k2"), (KIMI_K3, "kimi-k3"), (MINICPM5, "minicpm5"), (MISTRAL, "mistral"),
    (MUSE_SPARK, "muse-spark"), (HARMONY, "harmony"), (LLAMA_3, "llama-3"), (GEMMA_3, "gemma-3"),
    (GRANITE, "granite"), (HUNYUAN, "hunyuan"), (NEMOTRON, "nemotron"), (SEED, "seed"),
    (COMMAND_A, "command-a"), (COMMAND_R, "command-r"), (APERTUS, "apertus"), (SOLAR, "solar"),
    (OLMO_3, "olmo-3"), (INTERNLM, "internlm"),
)  # fmt: skip


def name_of(reader: Reader | None) -> str:
    """What people call the format of a reader."""
    if reader is None:
        return NONE
    return next((name for known, name in NAMES if known is reader), "mlx-lm's own")


def reader_of(tokenizer: Any, has: Callable[[str], bool]) -> tuple[Reader | None, str]:
    """The reader for this mlx_lm TokenizerWrapper, and what it was known by. has: whether the
    vocabulary has a token."""
    template = template_text(tokenizer)
    for signs, reader in TEMPLATES:
        if all(sign in template for sign in signs):
            return reader, "template"
    for tokens, reader in TOKENS:
        if all(map(has, tokens)):
            return reader, "vocabulary"
    if tokenizer.tool_parser is not None:
        kind = getattr(tokenizer.tool_parser, "__module__", "").rpartition(".")[2]
        borrowed = Borrowed(
            tokenizer.tool_call_start, tokenizer.tool_call_end, tokenizer.tool_parser
        )
        return PARSERS.get(kind, borrowed), "mlx-lm"
    kind = _model_type(str(getattr(tokenizer, "name_or_path", "")))
    found = next((reader for start, reader in MODEL_TYPES if kind.startswith(start)), None)
    return found, "model_type" if found else ""


def template_text(tokenizer: Any) -> str:
    """All of the chat templates' text, with line breaks as they will be written."""
    found = getattr(tokenizer, "chat_template", None)
    texts = [found]
    if isinstance(found, dict):  # by name, as transformers reads a list
        texts = [*found.values()]
    elif isinstance(found, list):
        texts = [one.get("template") for one in found if isinstance(one, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


@lru_cache(maxsize=8)
def _model_type(folder: str) -> str:
    """model_type of the model's config.json; empty without one."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        return str(config.get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
