"""What a model's chat template leaves out, or takes in another form than clients send it.

Found by having it write small conversations, and looking for their words in the result. On rank 0's
main thread at the start, and before a launch.
"""

from typing import Any

from server.text.plainer_turns import plainer

ASKED, SAID, TOOL, VALUE, RESULT = "asked-0", "instructed-1", "tool_2", "argued-3", "resulted-4"
_USER = {"role": "user", "content": ASKED}
_SYSTEM = {"role": "system", "content": SAID}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"value": {"type": "string", "description": "A value."}},
                "required": ["value"],
            },
        },
    }
]
_CALL = {
    "id": "call00000",
    "type": "function",
    "function": {"name": TOOL, "arguments": {"value": VALUE}},
}
_CALLED = [
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": TOOL, "tool_call_id": "call00000", "content": RESULT},
]


def quirks_of(tokenizer: Any) -> tuple[str, ...]:
    """A sentence for each."""
    if not tokenizer.has_chat_template:
        return ("there is no chat template: only /v1/completions works",)
    plain, error = _written(tokenizer, [_USER])
    if ASKED not in plain:
        why = f": {error}" if error else ""
        return (f"the chat template does not write a plain question{why}",)
    found = []
    system, error = _written(tokenizer, [_SYSTEM, _USER])
    if error:
        found.append("no system messages: they become part of the user's")
    elif SAID not in system:
        found.append("system messages are left out in silence")
    if _written(tokenizer, [_USER, _USER])[1]:
        found.append("turns of user and assistant must alternate: those in a row become one")
    if TOOL not in _written(tokenizer, [_USER], _TOOLS)[0]:
        found.append("tools are not shown: the model never hears of them")
    else:
        found += _of_calls(tokenizer)
    return tuple(found)


def _of_calls(tokenizer: Any) -> list[str]:
    """What becomes of earlier calls and their results."""
    text, error = "", None
    for form in (_CALLED, *plainer(_CALLED)):
        text, error = _written(tokenizer, form, _TOOLS)
        if not error:
            break
    if error:
        return [f"conversations with calls are refused: {error}"]
    lost = [what for what, word in (("calls", VALUE), ("results", RESULT)) if word not in text]
    return [f"earlier {' and '.join(lost)} of tools are not shown"] if lost else []


def _written(
    tokenizer: Any, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> tuple[str, str | None]:
    """What the template makes of turns, and why it makes nothing of them."""
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=tools, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # templates raise whatever they like
        return "", f"{type(error).__name__}: {error}"[:200]
    return (text, None) if isinstance(text, str) else ("", "it gives no text")
