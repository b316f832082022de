"""Reads what an answer must look like: its format, and the tools it may or must call.

Pure; rank 0's HTTP threads. The fields are OpenAI's and, beside response_format, those that vLLM
has added over time: guided_json and its like, and structured_outputs. Whether a schema can be
compiled is for Grammars to say.
"""

import re
from typing import Any

from server.api.fields import Body, array, boolean, check_text, mapping, string
from server.api.json_limits import InnerJson
from server.api.requests import MAX_TOOLS
from server.grammar.schema_limits import measure_schema
from server.protocol.errors import ApiError, bad_request, show, wrong
from server.protocol.requests import Format, ToolChoice

TYPES = ("text", "json_object", "json_schema")
# vLLM's names, in its guided_ fields and inside structured_outputs.
KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
# They would change the answer, and are not supported: refused rather than ignored.
REFUSED = ("structural_tag", "guided_whitespace_pattern")
REFUSED_OPTIONS = (
    "structural_tag", "whitespace_pattern", "disable_any_whitespace",
    "disable_additional_properties",
)  # fmt: skip
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_format(body: Body) -> Format | None:
    """What the answer must match, of a chat or completion request. Raises ApiError 400."""
    _refuse(body, REFUSED, "")
    found = [
        *_response_format(body),
        *_extensions(body, "guided_"),
        *_structured_outputs(body),
    ]
    if len(found) > 1:
        names = " and ".join(repr(one.field) for one in found)
        raise bad_request(f"Only one of {names} may be given.", found[1].field)
    return found[0] if found else None


def parse_tools(body: Body) -> tuple[list[dict[str, Any]], ToolChoice, bool]:
    """The tools of a chat request, which of them must be called, and whether several may be at
    once. Raises ApiError 400."""
    if body.get("functions"):
        raise bad_request(
            "'functions' is not supported; use 'tools' instead.",
            "functions",
            "unsupported_parameter",
        )
    tools = array(body, "tools") or []
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"'tools' has {len(tools)} tools; at most {MAX_TOOLS}.", "tools")
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        name = _check_tool(tool, f"tools[{number}]")
        if name in seen:
            raise bad_request(f"Two tools are named {name!r}.", f"tools[{number}].function.name")
        seen.add(name)
    given = body.get("parallel_tool_calls")
    parallel = True if given is None else boolean(body, "parallel_tool_calls")
    return tools, _tool_choice(body.get("tool_choice"), seen), parallel


def _response_format(body: Body) -> list[Format]:
    given = mapping(body, "response_format")
    if given is None:
        return []
    kind = given.get("type")
    if kind not in TYPES:
        raise wrong("response_format.type", kind, f"one of {', '.join(TYPES)}")
    if kind == "text":
        return []
    if kind == "json_object":
        return [Format("json_object")]
    field = "response_format.json_schema"
    inner = given.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong(field, inner, "an object with name and schema")
    _check_optional_text(inner, "name", f"{field}.name")
    schema = inner.get("schema")
    if not isinstance(schema, dict):
        raise wrong(f"{field}.schema", schema, "a JSON schema (an object)")
    return [Format("json_schema", schema, _flag(inner, "strict", field), f"{field}.schema")]


def _structured_outputs(body: Body) -> list[Format]:
    given = mapping(body, "structured_outputs")
    if given is None:
        return []
    _refuse(given, REFUSED_OPTIONS, "structured_outputs.")
    found = _extensions(given, "", "structured_outputs.")
    if _flag(given, "json_object", "structured_outputs"):
        found.append(Format("json_object", field="structured_outputs.json_object"))
    return found


def _extensions(body: Body, prefix: str, where: str = "") -> list[Format]:
    """The formats under vLLM's names, which have no strict: what cannot be kept is ignored."""
    found = []
    for name, kind in KINDS.items():
        value, field = body.get(prefix + name), where + prefix + name
        if value is not None:
            found.append(Format(kind, _extension(name, value, field), field=field))
    return found


def _extension(name: str, value: Any, field: str) -> Any:
    if name == "json":
        return _schema(value, field)
    if name == "choice":
        allowed = "a non-empty array of strings"
        if not isinstance(value, list) or not value:
            raise wrong(field, value, allowed)
        return list(dict.fromkeys(check_text(choice, field) for choice in value))
    if not check_text(value, field):
        raise wrong(field, value, "a non-empty string")
    return value


def _schema(value: Any, field: str) -> dict[str, Any]:
    """A schema, which vLLM also takes as JSON text."""
    schema = value
    if isinstance(value, str):
        measure_schema([value], field)  # a longer one would be parsed for seconds, to be refused
        try:
            schema = InnerJson().loads(value)
        except (ValueError, RecursionError):
            raise wrong(field, value, "a JSON schema (an object, or its JSON text)") from None
    if not isinstance(schema, dict):
        raise wrong(field, value, "a JSON schema (an object, or its JSON text)")
    return schema


def _check_tool(tool: Any, name: str) -> str:
    """The tool's name. Raises ApiError for anything that is not a function tool."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise wrong(f"{name}.type", kind, "'function'")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong(f"{name}.function", function, "an object with a name")
    own = function.get("name")
    if not isinstance(own, str) or not TOOL_NAME.fullmatch(own):
        raise wrong(
            f"{name}.function.name",
            own,
            "1 to 64 letters, digits, underscores, dots or dashes",
        )
    _check_optional_text(function, "description", f"{name}.function.description")
    _flag(function, "strict", f"{name}.function")
    parameters = function.get("parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise wrong(f"{name}.function.parameters", parameters, "a JSON schema (an object)")
        kind = parameters.get("type")
        if kind not in (None, "object"):
            raise wrong(f"{name}.function.parameters.type", kind, "'object'")
    return own


def _tool_choice(given: Any, names: set[str]) -> ToolChoice:
    if given is None or given in ("none", "auto"):
        return ToolChoice(given or "auto") if names else ToolChoice("none")
    allowed = "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}"
    if given == "required":
        choice = ToolChoice("required")
    else:
        function = given.get("function") if isinstance(given, dict) else None
        if not isinstance(function, dict) or given.get("type") != "function":
            raise wrong("tool_choice", given, allowed)
        choice = ToolChoice("named", string(function, "name"))
        if choice.name is None:
            raise wrong("tool_choice", given, allowed)
    if not names:
        raise bad_request("'tool_choice' asks for a call, but there are no 'tools'.", "tool_choice")
    if choice.mode == "named" and choice.name not in names:
        raise bad_request(
            f"'tool_choice' names {show(choice.name)}, which is not in 'tools'.",
            "tool_choice",
        )
    return choice


def _refuse(body: Body, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if body.get(name) not in (None, False):
            raise _unsupported(where + name)


def _unsupported(field: str) -> ApiError:
    return bad_request(f"{field!r} is not supported.", field, "unsupported_parameter")


def _flag(body: Body, name: str, where: str) -> bool:
    if not isinstance(body.get(name), bool | None):
        raise wrong(f"{where}.{name}", body[name], "true or false")
    return bool(body.get(name))


def _check_optional_text(body: Body, name: str, field: str) -> None:
    if body.get(name) is not None:
        check_text(body[name], field)
