"""By what a model's way of writing calls and thoughts is known, and that somebody is told."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.text.calls.formats import MODEL_TYPES, NAMES, TEMPLATES, TOKENS, name_of, template_text
from server.text.chat_text import ChatText
from server.text.markup import Known, initial_state, known_of, markup_of
from tests.support.answers_folded import Cut, Folded, cuts, fold
from tests.support.call_shapes import BY_NAME, PROMPT, TOOLS, values
from tests.support.families import FAMILIES, Family, write_tokenizer

PLAIN = Family("plain", (), "nothing", None, str.join, str.join, "", "")


def tokenizer_of(folder: Path, family: Family = PLAIN, model_type: str = "", template=None):
    """A tokenizer whose folder has a config.json, and perhaps another chat template."""
    write_tokenizer(family, folder, ["some text <tool_call>"] * 3)
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return load(folder)


def read(tokenizer, text: str, finish: str = "stop", prompt: str = PROMPT) -> Folded:
    """The answer to text in one piece; the same at every cut."""
    ids = tokenizer.encode(prompt, add_special_tokens=False)

    def of(pieces: list[str]) -> Folded:
        out = ChatText(Cut(tokenizer, pieces), (), set(), ids, TOOLS)
        return fold(out, range(len(pieces)), finish)

    whole = of([text])
    for pieces in cuts(text):
        assert of(pieces) == whole, pieces
    return whole


def test_every_format_has_a_name_of_its_own():
    rows = [reader for table in (TEMPLATES, TOKENS, MODEL_TYPES) for _, reader in table]
    names = {name_of(reader) for reader in rows}
    assert "none" not in names and "mlx-lm's own" not in names
    assert len({name for _, name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_known_and_says_by_what(family, tmp_path):
    known = known_of(tokenizer_of(tmp_path, family))
    assert known.calls != "none" and known.calls_by in ("template", "vocabulary", "mlx-lm")
    assert (known.thinking != "none") == (family.think is not None)


def test_a_model_that_says_nothing_is_known_by_its_type(tmp_path):
    """Its calls went to clients as content, without a word."""
    for number, (kind, reader) in enumerate(MODEL_TYPES):
        known = known_of(tokenizer_of(tmp_path / str(number), model_type=kind))
        assert (known.calls, known.calls_by) == (name_of(reader), "model_type"), kind
    assert known_of(tokenizer_of(tmp_path / "none")) == Known("none", "", "none")
    assert known_of(tokenizer_of(tmp_path / "other", model_type="gpt2")).calls == "none"


def test_the_template_counts_more_than_the_type(tmp_path):
    tokenizer = tokenizer_of(tmp_path, BY_NAME["qwen3"], model_type="nemotron_h")
    assert known_of(tokenizer).calls == "tags"


@pytest.mark.parametrize("as_list", [True, False])
def test_all_templates_of_a_list_are_looked_at(as_list, tmp_path):
    """Command R has one for tools beside the default, which tells nothing of calls."""
    named = {"default": "{{ messages }}", "tool_use": "{{ tools }}\nAction: ```json"}
    rows = [{"name": name, "template": text} for name, text in named.items()]
    tokenizer = tokenizer_of(tmp_path, template=rows)
    if as_list:
        tokenizer._tokenizer.chat_template = rows  # as transformers may hand it on some day
    assert template_text(tokenizer) == "\n".join(named.values())
    assert known_of(tokenizer).calls == "command-r"


def test_k2_with_its_first_template_is_known(tmp_path):
    """It shows tools, and never a call; some conversions have no tokens for them either."""
    first = "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    family = BY_NAME["kimi-k2"]
    assert known_of(tokenizer_of(tmp_path / "tokens", family, template=first)).calls == "kimi-k2"
    bare = tokenizer_of(tmp_path / "none", model_type="kimi_k2", template=first)
    assert known_of(bare).calls == "kimi-k2"
    call = family.calls([family.call("weather", '{"city": "Bonn"}')])
    assert values(read(bare, call)) == [("weather", {"city": "Bonn"})]


WEATHER = [("weather", {"city": "Bonn", "days": 2})]
JSON = '{"name": "weather", "parameters": {"city": "Bonn", "days": 2}}'
PYTHON = "weather(city='Bonn', days=2)"


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"[{JSON}]",
        f"[{PYTHON}]",
        f"<|python_start|>{JSON}<|python_end|>",
        f"<|python_start|>[{PYTHON}]<|python_end|>",
        f"<|python_start|>[{PYTHON}]",
        f"<|python_end|>{JSON}",
    ],
)
def test_llama_4_writes_calls_with_and_without_markers(text, tmp_path):
    got = read(tokenizer_of(tmp_path, BY_NAME["llama-4"]), text)
    assert (values(got), got.text, got.finish) == (WEATHER, "", "tool_calls")


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"[{PYTHON}]",
        f"```json\n{JSON}\n```",
        f"```tool_code\n{PYTHON}\n```",
        f"```tool_code\nprint({PYTHON})\n```",
        f"```tool_code\n[{PYTHON}]\n```",
    ],
)
def test_gemma_3_writes_calls_as_googles_guides_ask(text, tmp_path):
    got = read(tokenizer_of(tmp_path, model_type="gemma3"), text)
    assert (values(got), got.text, got.finish) == (WEATHER, "", "tool_calls")


@pytest.mark.parametrize("model_type", ["gemma3", "llama4"])
@pytest.mark.parametrize(
    "text",
    [
        "[1] says that it rains.",
        "[weather in town]",
        '{"city": "Bonn"}',
        f"{JSON} is how one would ask.",
        f"I would call {JSON}",
        "[",
        '```json\n{"a": 1}\n```',
        f"```json\n{JSON}\n```\nis how one would ask.",
        "```python\nprint(weather)\n```",
        "```tool_code\nprint(weather(city='Bonn'), 1)\n```",
    ],
)
def test_text_that_begins_like_a_bare_call_stays_text(model_type, text, tmp_path):
    got = read(tokenizer_of(tmp_path, model_type=model_type), text)
    assert got == Folded(text)


def test_an_answer_with_its_markers_around_it_is_not_cut_where_it_speaks_of_one(tmp_path):
    tokenizer = tokenizer_of(tmp_path, BY_NAME["granite-3"])
    got = read(tokenizer, "<think>Hm.</think><response>A <response> is a tag.</response>")
    assert got == Folded("A <response> is a tag.", "Hm.")


def test_markers_of_thinking_as_plain_text_count_where_the_template_has_them(tmp_path):
    """Granite's are no tokens; and a template that has only the end of one says nothing."""
    both = "{% if thinking %}<think> </think>{% endif %}{{ messages }}"
    assert markup_of(tokenizer_of(tmp_path / "both", template=both)).has_thinking
    half = "{{ messages[0].content.split('</think>')[-1] }}"
    assert not markup_of(tokenizer_of(tmp_path / "half", template=half)).has_thinking


@pytest.mark.parametrize(
    ("name", "prompt", "state"),
    [
        ("seed-oss", "<seed:think>", "reasoning"),
        ("seed-oss", "<seed:think></seed:think>", "normal"),
        ("command-a", "<|START_THINKING|>", "reasoning"),
        ("command-a", "<|START_THINKING|><|END_THINKING|>", "normal"),
        ("apertus", "<|inner_prefix|>", "reasoning"),
        ("solar", "<|begin|>assistant", "header"),
        ("solar", "<|begin|>assistant<|think|>", "reasoning"),
        ("solar", "<|begin|>assistant<|think|><|end|><|begin|>assistant<|content|>", "normal"),
        ("gpt-oss", "<|start|>assistant<|channel|>analysis<|message|>", "reasoning"),
        ("gpt-oss", "<|start|>assistant<|channel|>final<|message|>", "normal"),
    ],
)
def test_a_thought_that_the_prompt_has_opened_is_one(name, prompt, state, tmp_path):
    tokenizer = tokenizer_of(tmp_path, BY_NAME[name])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert initial_state(tokenizer, markup_of(tokenizer), ids) == state
