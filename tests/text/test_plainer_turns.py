"""Conversations that agents send, through templates that are stricter than they know."""

import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from server.api.dialects.chat import parse as parse_chat
from server.api.dialects.messages import parse as parse_message
from server.protocol.errors import ApiError
from server.protocol.pieces import Parts
from server.protocol.requests import Served
from server.text.plainer_turns import plainer
from server.text.prompts import TokenizerPrompts
from tests.support.tiny_models import SPECIALS, VOCAB, write_byte_tokenizer

SERVED = Served("demo")
EOS = 256 + SPECIALS.index("<|im_end|>")
# As Mistral's count turns: calls and results are none, and the rest alternates.
MISTRAL = """
{%- if messages[0]['role'] == 'system' %}[S]{{ messages[0]['content'] }}[/S]
{%- set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{%- set ns = namespace(index=0) %}
{%- for m in loop_messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.index % 2 == 0) %}
{{- raise_exception('roles must alternate user and assistant') }}{% endif %}
{%- set ns.index = ns.index + 1 %}{% endif %}
{%- if m.role == 'user' %}[U]{{ m.content }}[/U]
{%- elif m.role == 'assistant' %}{{ m.content }}
{%- for call in m.tool_calls or [] %}[C]{{ call.function.name }}{% endfor %}</s>
{%- elif m.role == 'tool' %}[R]{{ m.content }}[/R]
{%- else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}
{%- endfor %}"""
# As Gemma's: no system, and turns that alternate.
GEMMA = """
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}
{%- if m.role == 'assistant' %}[M]{% else %}[U]{% endif %}{{ m.content | trim }}[/]
{%- endfor %}{% if add_generation_prompt %}[M]{% endif %}"""
# As Qwen's: whatever comes, with the thought of the last turn.
THINKING = """
{%- for m in messages %}<{{ m.role }}>
{%- if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}</>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def prompts_with(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text("{}")

    def make(template: str) -> TokenizerPrompts:
        tokenizer = load_tokenizer(folder, eos_token_ids=EOS)
        tokenizer._tokenizer.chat_template = template
        return TokenizerPrompts(tokenizer, VOCAB)

    return make


def turns(*said) -> list[dict]:
    return [{"role": role, "content": text} for role, text in said]


def rendered(prompts, messages, **more) -> str:
    request = parse_chat({"messages": messages} | more, SERVED)
    return bytes(prompts.from_chat(request)).decode()


@pytest.mark.parametrize(
    "messages, mistral, gemma",
    [
        (turns(("user", "a")), "[U]a[/U]", "[U]a[/][M]"),
        (turns(("system", "s"), ("user", "a")), "[S]s[/S][U]a[/U]", "[U]s\n\na[/][M]"),
        (turns(("developer", "s"), ("user", "a")), "[S]s[/S][U]a[/U]", "[U]s\n\na[/][M]"),
        (
            turns(("system", "s"), ("system", "t"), ("user", "a"), ("user", "b")),
            "[S]s[/S][U]t\n\na\n\nb[/U]",
            "[U]s\n\nt\n\na\n\nb[/][M]",
        ),
        (
            turns(("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c")),
            "[U]a[/U]b</s>[U]s\n\nc[/U]",
            "[U]a[/][M]b[/][U]s\n\nc[/][M]",
        ),
        (
            turns(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")),
            "[U]a[/U]b\n\nc</s>[U]d[/U]",
            "[U]a[/][M]b\n\nc[/][U]d[/][M]",
        ),
    ],
)
def test_turns_that_do_not_alternate_are_joined(prompts_with, messages, mistral, gemma):
    """Each request of an agent was a 400."""
    assert rendered(prompts_with(MISTRAL), messages) == mistral
    assert rendered(prompts_with(GEMMA), messages) == gemma


def test_what_a_user_says_after_a_result_is_said(prompts_with):
    """Claude Code puts its reminders there; such templates count the user's turns."""
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    said = [*turns(("user", "a")), called, result, *turns(("user", "b"), ("system", "s"))]
    assert rendered(prompts_with(MISTRAL), said) == "[U]a[/U][C]f</s>[R]1\n\nb\n\ns[/R]"


def test_joined_turns_keep_their_calls_and_thoughts():
    one = {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": [CALL]}
    two = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    joined = list(plainer([*turns(("user", "u")), one, two]))[1]
    assert joined[1:] == [
        {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": [CALL, CALL]}
    ]


def test_a_template_that_takes_turns_as_they_are_gets_them_so(prompts_with):
    said = turns(("user", "a"), ("user", "b"), ("system", "s"))
    assert rendered(prompts_with(THINKING), said) == "<user>a</><user>b</><system>s</><assistant>"


def test_what_no_form_makes_right_is_refused_in_the_template_s_words(prompts_with):
    with pytest.raises(ApiError, match="roles must alternate") as caught:
        rendered(prompts_with(MISTRAL), turns(("assistant", "a")))
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "template, shown",
    [
        (MISTRAL, "[S]s[/S][U]a[/U]{ "),
        (GEMMA, "[U]s\n\na[/][M]{ "),
        (THINKING, "<system>s</><user>a</><assistant><think>\n\n</think>\n\n{ "),
    ],
)
def test_an_answer_begun_by_the_client_is_continued(prompts_with, template, shown):
    prompts = prompts_with(template)
    said = turns(("system", "s"), ("user", "a"), ("assistant", "{ "))
    assert rendered(prompts, said, continue_final_message=True) == shown
    body = {"max_tokens": 5, "system": "s", "messages": said[1:]}
    request, _ = parse_message(body, SERVED)
    ids = prompts.from_chat(request)
    assert bytes(ids).decode() == shown
    out = prompts.chat_out(request, None, ids)
    told = Parts()
    for letter in b"\n1 }":
        told += out.add(letter)
    rest, finish = out.finish("stop")
    assert (told + rest).text == "\n1 }" and finish == "stop", "its line feed is no layout"


def test_a_template_that_hides_the_last_message_cannot_continue_it(prompts_with):
    prompts = prompts_with("{{ messages[0].content }}")
    with pytest.raises(ApiError, match="to be continued"):
        rendered(prompts, turns(("user", "a"), ("assistant", "b")), continue_final_message=True)


@pytest.mark.parametrize(
    "body, words",
    [
        ({"messages": turns(("user", "a"))}, "ended by an assistant's message of text"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "with tool calls"),
        ({"add_generation_prompt": True}, "'add_generation_prompt'"),
        ({"response_format": {"type": "json_object"}}, "cannot be used with 'response_format'"),
    ],
)
def test_what_cannot_be_continued_is_refused(body, words):
    asked = {"messages": turns(("assistant", "b")), "continue_final_message": True}
    with pytest.raises(ApiError, match=words):
        parse_chat(asked | body, SERVED)
