"""POST /v1/responses, its tools: functions, tools that take a text, and namespaces of both.

Pure; called on rank 0's HTTP threads. To the model each is a function with a name of its own: a
tool of a namespace has the namespace in its name, and one that takes a text has one argument. How
its calls go back to the client is kept beside it. Tools that a server would have to run are left
out, and named for the log.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.api.dialects.deferred_tools import defined
from server.api.dialects.own_tools import OWN_TOOLS, SEARCH, OwnTool, runnable
from server.api.dialects.turns import NAME, check_choice, check_tools, function_tool
from server.api.fields import Field, Fields, needed, record, tagged
from server.api.formats import PARAMETERS, check_names
from server.api.kinds import (
    ANYTHING,
    FLAG,
    TEXT,
    array,
    as_one,
    either,
    one_of,
    then,
)
from server.api.requests import MAX_TOOLS
from server.protocol.errors import wrong
from server.protocol.requests import INPUT, Format, ToolChoice
from server.text.calls.tools import JOINT

SYNTAXES = {"lark": "Lark grammar", "regex": "regular expression"}
FUNCTION: Fields = {
    "name": needed(NAME),
    "description": TEXT,
    "parameters": PARAMETERS,
    "strict": FLAG,
    "defer_loading": FLAG,
}
CUSTOM: Fields = {
    "name": needed(NAME),
    "description": TEXT,
    "format": Field(
        record({"type": TEXT, "syntax": TEXT, "definition": TEXT}),
        "Of type grammar with syntax lark or regex; any other is free text.",
    ),
    "defer_loading": FLAG,
}
INNER: Mapping[str, Fields] = {"function": FUNCTION, "custom": CUSTOM}
IGNORED = "A tool that the server would have to run."
INNER_TOOL = tagged(
    "type",
    INNER,
    "",
    objects="an object",
    ignored=IGNORED,
    never={"namespace": " inside of a namespace"},
)
ANY_TOOL = tagged(
    "type",
    {
        **INNER,
        SEARCH: {"execution": TEXT, "description": TEXT, "parameters": PARAMETERS},
        "local_shell": {},
        "shell": {"environment": record({"type": TEXT})},
        "apply_patch": {},
        "namespace": {
            "name": needed(NAME),
            "description": TEXT,
            "tools": needed(array(INNER_TOOL)),
        },
    },
    "",
    objects="an object",
    ignored=IGNORED,
)
TOOL = then(ANY_TOOL, runnable)
NAMED: Fields = {"name": needed(TEXT), "namespace": TEXT}
OWN_CHOICES = [kind for kind in OWN_TOOLS if kind != SEARCH]
CHOICE_WORDS = (
    "'none', 'auto', 'required', or an object of type 'function', 'custom', 'allowed_tools', "
    f"{', '.join(map(repr, OWN_CHOICES))}"
)
TOOL_CHOICE = either(
    {
        str: as_one(one_of("none", "auto", "required"), CHOICE_WORDS),
        dict: tagged(
            "type",
            {
                "function": NAMED,
                "custom": NAMED,
                **{kind: {} for kind in OWN_CHOICES},
                "allowed_tools": {
                    "mode": needed(one_of("auto", "required")),
                    "tools": Field(
                        array(ANYTHING, most=MAX_TOOLS, of="tools"),
                        "With a name; others are ignored.",
                    ),
                },
            },
            CHOICE_WORDS,
            whole=True,
        ),
    },
    CHOICE_WORDS,
)


@dataclass(frozen=True)
class Called:
    """A tool as its client knows it. takes_text: a call of it holds a text, not arguments. kind:
    its type, if its calls are items of their own."""

    name: str
    namespace: str | None = None
    takes_text: bool = False
    kind: str = ""

    @property
    def own(self) -> OwnTool | None:
        return OWN_TOOLS.get(self.kind)


class Tools:
    """The tools of one request.

    functions: as templates expect them. called: by the name that the model knows, what the client
    calls it. formats: of those that take a text, what it must match. deferred: names of those that
    the prompt does not list. told: as the answer repeats them.
    """

    def __init__(self, given: list[dict[str, Any] | None]) -> None:
        """given: of kind TOOL, as they were read. Raises ApiError 400 for too many."""
        self.functions: list[dict[str, Any]] = []
        self.called: dict[str, Called] = {}
        self.formats: dict[str, Format] = {}
        self._names: dict[Called, str] = {}
        flat = list(_flat(given))
        check_tools([tool for _, _, tool in flat])  # before their names are compared
        check_names(
            (_joined(namespace, tool["name"]), f"{place}.name")
            for place, namespace, tool in flat
            if tool["type"] not in OWN_TOOLS
        )
        check_names(
            (tool["type"], f"{place}.type") for place, _, tool in flat if tool["type"] in OWN_TOOLS
        )
        later = []
        for place, namespace, tool in flat:
            shown = self._add(place, namespace, tool)
            later += [shown] if tool.get("defer_loading") else []
        searches = any(called.kind == SEARCH for called in self.called.values())
        self.deferred = set(later) if searches else set()
        self._defined: set[str] = set()  # of these
        self.told = [_told(tool) for tool in given if tool is not None]

    def find(self, given: list[Any]) -> str:
        """Takes what a search has found, as its client told it, for calls from now on. Returns what
        defines those that no earlier search had found; what is too much is not taken."""
        new: set[str] = set()
        for place, namespace, tool in _flat([TOOL.read(one) for one in given]):
            shown = self._names.get(_called(namespace, tool))
            if shown is None and len(self.functions) < MAX_TOOLS:
                shown = self._add(place, namespace, tool)
                self.deferred.add(shown)
            if shown in self.deferred and shown not in self._defined:
                self._defined.add(shown)
                new.add(shown)
        return defined(one for one in self.functions if _name(one) in new)

    def shown_name(self, namespace: str | None, name: str, takes_text: bool) -> str:
        """The name by which the model knows a tool, be it one of this request's or not."""
        for kind in (takes_text, not takes_text):
            known = self._names.get(Called(name, namespace, kind))
            if known is not None:
                return known
        return _joined(namespace, name)

    def choice(
        self, asked: str | dict[str, Any]
    ) -> tuple[list[dict[str, Any]], ToolChoice, str | dict[str, Any]]:
        """The functions that may be called, which must be, and how to tell the client. Raises
        ApiError 400."""
        functions = self.functions
        if isinstance(asked, str):
            choice = ToolChoice(asked)
        elif asked["type"] == "allowed_tools":
            listed = asked.get("tools", [])
            functions = [one for one in functions if self._is_listed(_name(one), listed)]
            choice = ToolChoice(asked["mode"])
            if choice.mode == "required" and not functions:
                allowed = "an array with one of those in 'tools', as 'mode' is 'required'"
                raise wrong("tool_choice.tools", listed, allowed)
            asked = {"type": asked["type"], "mode": choice.mode, "tools": listed}
        else:
            kind, name = asked["type"], asked.get("name", asked["type"])
            if kind in OWN_TOOLS:
                shown = self._names.get(Called(kind, kind=kind), "")
            else:
                shown = self.shown_name(asked.get("namespace"), name, kind == "custom")
            if shown not in self.called:
                raise wrong("tool_choice", name, "the name of one of those in 'tools'")
            choice = ToolChoice("named", shown)
        check_choice(choice, functions, "tool_choice", asked)
        only = _name(functions[0]) if len(functions) == 1 else None
        if choice.mode == "required" and only in self.formats:
            choice = ToolChoice("named", only)  # named, its grammar holds to the letter
        return functions, choice, asked

    def _add(self, place: str, namespace: str | None, tool: dict[str, Any]) -> str:
        """Returns its name for the model."""
        called = _called(namespace, tool)
        shown = name = _joined(namespace, tool["name"])
        number = 1
        while self.called.get(shown, called) != called:
            number += 1
            shown = f"{name}_{number}"
        if called.takes_text:
            tool, wanted = _with_one_argument(tool, place)
            if wanted is not None:
                self.formats[shown] = wanted
        self.called[shown], self._names[called] = called, shown
        self.functions.append(function_tool({**tool, "name": shown}, "parameters"))
        return shown

    def _is_listed(self, shown: str, listed: list[Any]) -> bool:
        called = self.called[shown]
        for one in listed:
            if not isinstance(one, dict):
                continue
            name, namespace = one.get("name"), one.get("namespace")
            if called.own is not None and one.get("type") == called.kind:
                return True
            if one.get("type") == "namespace" and name == called.namespace is not None:
                return True
            if name == shown or (name == called.name and namespace == called.namespace):
                return True
        return False


def _flat(given: list[dict[str, Any] | None]) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Each tool that can be called, with the name of its place and its namespace."""
    for i, tool in enumerate(given):
        if tool is None:
            continue
        if tool["type"] != "namespace":
            yield f"tools[{i}]", None, tool
            continue
        for j, inner in enumerate(tool["tools"]):
            if inner is not None:
                yield f"tools[{i}].tools[{j}]", tool["name"], inner


def _called(namespace: str | None, tool: dict[str, Any]) -> Called:
    kind = tool["type"]
    return Called(tool["name"], namespace, kind == "custom", kind if kind in OWN_TOOLS else "")


def _joined(namespace: str | None, name: str) -> str:
    # No dot: models take what stands before one for the namespace of all functions.
    return f"{namespace.rstrip('_')}{JOINT}{name}" if namespace else name


def _name(function: dict[str, Any]) -> str:
    return function["function"]["name"]


def _with_one_argument(tool: dict[str, Any], place: str) -> tuple[dict[str, Any], Format | None]:
    """A tool that takes a text, as a function, and what the text must match."""
    argument, words, wanted = {"type": "string"}, [tool.get("description", "")], None
    given = tool.get("format", {})
    syntax, definition = given.get("syntax"), given.get("definition")
    if given.get("type") == "grammar" and syntax in SYNTAXES and definition:
        wanted = Format(syntax, definition, field=f"{place}.format.definition")
        words.append(f"{INPUT!r} is text that matches this {SYNTAXES[syntax]}:\n{definition}")
        if syntax == "regex":
            argument["pattern"] = f"^(?:{definition})$"
    schema = {
        "type": "object",
        "properties": {INPUT: argument},
        "required": [INPUT],
        "additionalProperties": False,
    }
    described = "\n\n".join(filter(None, words))
    return tool | {"description": described, "parameters": schema}, wanted


def _told(tool: dict[str, Any]) -> dict[str, Any]:
    told = {"type": tool["type"], "name": tool["name"], "description": tool.get("description")}
    if tool["type"] == "function":
        strict = tool.get("strict", False)
        return told | {"parameters": tool.get("parameters"), "strict": strict}
    if tool["type"] == "custom":
        return told | {"format": tool.get("format", {"type": "text"})}
    if tool["type"] == SEARCH:
        told = {"type": SEARCH, "execution": "client", "description": tool.get("description")}
        return told | {"parameters": tool.get("parameters")}
    if tool["type"] in OWN_TOOLS:
        given = {"environment": tool["environment"]} if "environment" in tool else {}
        return {"type": tool["type"], **given}
    return told | {"tools": [_told(inner) for inner in tool["tools"] if inner is not None]}
