"""How much a model is to think before it answers: the fields of it, and what the template is told.

Pure; called on rank 0's HTTP threads. Which of it a template has a switch for, and how a budget is
kept, is for text/.
"""

from collections.abc import Mapping
from typing import Any

from server.api.fields import Field, Fields, tagged
from server.api.kinds import TEXT, whole
from server.api.requests import MAX_INT

KINDS: Mapping[str, Fields] = {
    "enabled": {"budget_tokens": whole(1, MAX_INT)},
    "disabled": {},
    "adaptive": {},
}
WORDS = "an object with a type"
THINKING = tagged("type", KINDS, f"one of {', '.join(KINDS)}", objects=WORDS)
# In chat it is no field of OpenAI's, and others have words of their own for it.
CHATS_THINKING = tagged("type", KINDS, "", objects=WORDS, ignored="Another's word.")
BUDGET = whole(0, MAX_INT)
NOTE = (
    "Its type: enabled, adaptive or disabled, for the chat template's switch; without one a "
    "thought that is disabled is closed as it begins. `budget_tokens`: so many, then the thought "
    "is closed."
)
THINKS: Fields = {"thinking": Field(THINKING, NOTE)}
EFFORT = Field(
    TEXT,
    "Handed to the chat template, as the nearest that it names: none, minimal, low, medium, high, "
    "xhigh or max. `none`: as a disabled `thinking`.",
)
CHAT_THINKS: Fields = {
    "thinking": Field(CHATS_THINKING, NOTE),
    "thinking_token_budget": Field(BUDGET, "As `budget_tokens` of `thinking`."),
    "reasoning_effort": EFFORT,
}
NOT_AT_ALL = "none"


def thinking_of(asked: Mapping[str, Any], effort: str | None) -> dict[str, Any]:
    """template_kwargs and thinking_budget of a ChatRequest, from fields that have been read."""
    told = asked.get("thinking") or {}
    kind, variables = told.get("type"), {}
    budget = told.get("budget_tokens", asked.get("thinking_token_budget"))
    if effort is not None:
        variables["reasoning_effort"] = effort
    if kind == "disabled" or (kind is None and effort == NOT_AT_ALL):
        variables["enable_thinking"], budget = False, 0
    elif kind is not None:
        variables["enable_thinking"] = True
    return {"template_kwargs": variables, "thinking_budget": budget}
