"""What is said of a chat template, by small ones that have one quirk each."""

import json

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.text.template_quirks import quirks_of
from tests.support.tiny_models import write_byte_tokenizer

ALL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson }}{% endfor %}{% endfor %}<|assistant|>"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + ALL
ALTERNATES = (
    "{% for m in messages if m.role in ['user', 'assistant'] and not m.tool_calls %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}"
) + ALL


def quirks(folder, template: str | None) -> tuple[str, ...]:
    write_byte_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config | ({"chat_template": template} if template else {})))
    return quirks_of(load(folder))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ALL, ()),
        (None, ("there is no chat template: only /v1/completions works",)),
        (REFUSES_SYSTEM, ("no system messages: they become part of the user's",)),
        (
            ALL.replace("messages %}", "messages if m.role != 'system' %}", 1),
            ("system messages are left out in silence",),
        ),
        (
            ALTERNATES,
            ("turns of user and assistant must alternate: those in a row become one",),
        ),
        (
            ALL.replace("{{ tools | tojson }}", ""),
            ("tools are not shown: the model never hears of them",),
        ),
        (
            ALL.replace("{{ c.function | tojson }}", ""),
            ("earlier calls of tools are not shown",),
        ),
        (
            ALL.replace("messages %}", "messages if m.role == 'user' or m.role == 'system' %}", 1),
            ("earlier calls and results of tools are not shown",),
        ),
        (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('tool?') }}"
            "{% endif %}{% endfor %}" + ALL,
            ("conversations with calls are refused: TemplateError: tool?",),
        ),
        ("{{ nothing }}", ("the chat template does not write a plain question",)),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_said(template, said, tmp_path):
    assert quirks(tmp_path, template) == said


def test_a_template_that_cannot_be_read_is_said_to_be_none(tmp_path):
    (said,) = quirks(tmp_path, "{% if")
    assert said.startswith("the chat template does not write a plain question: TemplateSyntaxError")
