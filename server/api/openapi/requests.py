"""JSON schemas of the request bodies: the fields that the parsers read, and what they allow.

Pure data. Fields that only a server with a store or with pictures could honour are left out:
unknown fields are ignored. What depends on the model or on two fields at once (token ids within
its vocabulary, a tool_choice among the tools) is said in words.
"""

from server.api.dialects import (
    chat,
    completions,
    messages_request,
    responses_request,
    tokenize,
)
from server.api.formats import KINDS, TOOL_NAME
from server.api.openapi.words import (
    Schema,
    any_of,
    array,
    boolean,
    enum,
    given,
    integer,
    note,
    number,
    optional,
    ref,
    string,
)
from server.api.requests import (
    INT64_MAX,
    INT64_MIN,
    MAX_CHOICES,
    MAX_INT,
    MAX_STOP_CHARS,
    MAX_STOP_CHARS_IN_ALL,
    MAX_STOP_STRINGS,
    MAX_TOKEN_IDS,
    MAX_TOOLS,
    MAX_TURNS,
)

STOP = f"At most {MAX_STOP_CHARS_IN_ALL} characters in all."


def request_schemas(model_id: str) -> dict[str, Schema]:
    """All schemas of requests, by the name of the component."""
    return {
        "ChatRequest": _chat(model_id),
        "CompletionRequest": _completion(model_id),
        "ResponsesRequest": _responses(model_id),
        "MessagesRequest": _messages(model_id),
        "CountTokensRequest": _count(model_id),
        "TokenizeRequest": _tokenize(model_id),
        "DetokenizeRequest": given(
            ("tokens",),
            model=_model(model_id),
            tokens=note(
                array(_token_id()),
                f"At most as many as the context takes, or {tokenize.LEAST_TOKENS}.",
            ),
        ),
        "ChatMessage": _chat_message(),
        "FunctionTool": _function_tool(),
        "ToolChoice": _tool_choice(),
        "StructuredOutputs": given(**_formats(""), json_object=boolean()),
        "ResponsesItem": _responses_item(),
        "MessagesTurn": _messages_turn(),
        "MessagesTool": _messages_tool(),
    }


def _model(model_id: str) -> Schema:
    return note(enum(model_id), "The served model; absent means the same. Others are a 404.")


def _token_id() -> Schema:
    return note(integer(0, MAX_INT), "An id of the model's vocabulary.")


def _stop() -> Schema:
    one = string(maxLength=MAX_STOP_CHARS)
    return note(any_of(one, array(one, most=MAX_STOP_STRINGS)), STOP)


def _sampling() -> dict[str, Schema]:
    """What every API takes, whoever invented the field."""
    return {
        "temperature": number(0, 2),
        "top_p": number(0, 1, above=True),
        "top_k": note(integer(-1, MAX_INT), "0 or -1: no limit."),
        "min_p": number(0, 1),
        "seed": integer(INT64_MIN, INT64_MAX),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "repetition_penalty": number(0, 10, above=True),
        "min_tokens": integer(0, MAX_INT),
        "ignore_eos": boolean(),
        "stop_token_ids": array(_token_id(), most=MAX_TOKEN_IDS),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": number(-100, 100),
            "maxProperties": MAX_TOKEN_IDS,
        },
        "stream": boolean(),
    }


def _max_tokens(more: str = "") -> Schema:
    words = "1 and up; -1 or null: as many as the context leaves."
    return note(integer(-1, MAX_INT) | {"not": {"const": 0}}, f"{words} {more}".rstrip())


def _limits() -> dict[str, Schema]:
    return {
        "max_tokens": _max_tokens(),
        "max_completion_tokens": _max_tokens("Comes before max_tokens."),
        "n": integer(1, MAX_CHOICES),
        "stop": _stop(),
        "stream_options": given(include_usage=boolean()),
    }


def _formats(prefix: str) -> dict[str, Schema]:
    """vLLM's fields for structured output."""
    schemas = {
        "json": note(any_of({"type": "object"}, string()), "A JSON schema, or its JSON text."),
        "regex": string(minLength=1),
        "choice": array(string(), least=1),
        "grammar": note(string(minLength=1), "In Lark's notation."),
    }
    return {prefix + name: schemas[name] for name in KINDS}


def _format_fields() -> dict[str, Schema]:
    inner = given(("schema",), name=string(), schema={"type": "object"}, strict=boolean())
    return {
        "response_format": any_of(
            given(("type",), type=enum("text", "json_object")),
            given(("type", "json_schema"), type=enum("json_schema"), json_schema=inner),
        ),
        **_formats("guided_"),
        "structured_outputs": ref("StructuredOutputs"),
    }


def _chat(model_id: str) -> Schema:
    return given(
        ("messages",),
        model=_model(model_id),
        messages=array(ref("ChatMessage"), least=1, most=MAX_TURNS),
        **_limits(),
        **_sampling(),
        logprobs=boolean(),
        top_logprobs=note(integer(0, 20), "Needs logprobs."),
        tools=array(ref("FunctionTool"), most=MAX_TOOLS),
        tool_choice=ref("ToolChoice"),
        parallel_tool_calls=boolean(),
        **_format_fields(),
        reasoning_effort=note(string(), "Handed to the chat template."),
        chat_template_kwargs=_template_kwargs(),
    )


def _chat_message() -> Schema:
    part = given(("type", "text"), type=enum("text"), text=string())
    call = given(
        ("function",),
        function=note({"type": "object"}, "With a name, and arguments as JSON text."),
    )
    return given(
        ("role",),
        role=enum(*chat.ROLES),
        content=any_of(string(), array(part)),
        name=string(),
        tool_call_id=string(),
        tool_calls=array(call),
        reasoning_content=string(),
        reasoning=string(),
    )


def _function_tool() -> Schema:
    function = given(
        ("name",),
        name=string(pattern=f"^{TOOL_NAME.pattern}$"),
        description=string(),
        parameters=note(
            {"type": "object", "properties": {"type": enum("object", None)}},
            "The JSON schema of an object.",
        ),
        strict=boolean(),
    )
    return given(("type", "function"), type=enum("function"), function=function)


def _tool_choice() -> Schema:
    named = given(
        ("type", "function"),
        type=enum("function"),
        function=given(("name",), name=string()),
    )
    return note(any_of(enum("none", "auto", "required"), named), "Only tools that are given.")


def _completion(model_id: str) -> Schema:
    text, ids = string(minLength=1), array(_token_id(), least=1)
    most = completions.MAX_PROMPTS
    return given(
        ("prompt",),
        model=_model(model_id),
        prompt=any_of(text, ids, array(any_of(text, ids), least=1, most=most)),
        **_limits(),
        **_sampling(),
        logprobs=integer(0, 20),
        echo=boolean(),
        best_of=note(integer(1, MAX_CHOICES), "The same as n, or absent."),
        suffix=note(string(maxLength=0), "Not supported."),
        **_format_fields(),
    )


def _responses(model_id: str) -> Schema:
    text_format = any_of(
        {"type": "object", "maxProperties": 0},
        given(("type",), type=enum("text", "json_object")),
        given(
            ("type", "schema"),
            type=enum("json_schema"),
            name=string(),
            schema={"type": "object"},
            strict=boolean(),
        ),
    )
    function = given(
        ("type", "name"),
        type=enum("function"),
        name=string(minLength=1),
        description=string(),
        parameters={"type": "object"},
        strict=boolean(),
    )
    other = note(
        {"type": "object", "properties": {"type": {"not": enum("function")}}},
        "A tool that the server would have to run. Ignored.",
    )
    allowed = given(
        ("type", "mode"),
        type=enum("allowed_tools"),
        mode=enum("auto", "required"),
        tools=array(note({}, "With a name; others are ignored.")),
    )
    named = given(("type", "name"), type=enum("function"), name=string())
    return given(
        ("input",),
        model=_model(model_id),
        input=any_of(string(), array(ref("ResponsesItem"), least=1, most=MAX_TURNS)),
        instructions=string(),
        max_output_tokens=_max_tokens(),
        stop=_stop(),
        **_sampling(),
        tools=note(array(any_of(function, other)), f"At most {MAX_TOOLS} functions."),
        tool_choice=any_of(enum("none", "auto", "required"), named, allowed),
        parallel_tool_calls=boolean(),
        text=given(format=text_format),
        reasoning=given(effort=string()),
        metadata={
            "type": "object",
            "additionalProperties": string(maxLength=responses_request.MAX_METADATA_CHARS),
            "maxProperties": responses_request.MAX_METADATA,
        },
        background=note(enum(False), "Not supported."),
        previous_response_id=note(enum(), "Not supported: the server keeps no responses."),
        conversation=note(enum(), "Not supported, either."),
        prompt=note(enum(), "Not supported, either."),
    )


def _responses_item() -> Schema:
    parts = [
        given(("type", field), type=enum(kind), **{field: string()})
        for kind, field in responses_request.PARTS.items()
    ]
    content = any_of(string(), array(any_of(*parts)))
    ids = {"call_id": string()}
    return any_of(
        given(
            ("role",),
            type=enum("message"),
            role=enum(*responses_request.ROLES),
            content=content,
        ),
        given(
            ("type", "call_id", "name", "arguments"),
            type=enum("function_call"),
            **ids,
            name=string(),
            arguments=note(string(), "JSON text."),
        ),
        given(
            ("type", "call_id"),
            type=enum("function_call_output"),
            **ids,
            output=content,
        ),
        note(given(("type",), type=enum("reasoning")), "Ignored."),
    )


def _conversation(model_id: str) -> dict[str, Schema]:
    """What both routes of the Messages API read."""
    several = {"disable_parallel_tool_use": boolean()}
    choice = any_of(
        given(("type",), type=enum("auto", "any", "none"), **several),
        given(("type", "name"), type=enum("tool"), name=string(), **several),
    )
    block = given(("type", "text"), type=enum("text"), text=string())
    return {
        "model": _model(model_id),
        "messages": array(ref("MessagesTurn"), least=1, most=MAX_TURNS),
        "system": any_of(string(), array(block)),
        "tools": note(array(ref("MessagesTool")), f"At most {MAX_TOOLS} functions."),
        "tool_choice": choice,
    }


def _messages(model_id: str) -> Schema:
    return given(
        ("messages", "max_tokens"),
        **_conversation(model_id),
        max_tokens=optional(_max_tokens()),
        stop_sequences=note(array(string(maxLength=MAX_STOP_CHARS), most=MAX_STOP_STRINGS), STOP),
        **_sampling(),
    )


def _count(model_id: str) -> Schema:
    return given(("messages",), **_conversation(model_id))


def _messages_turn() -> Schema:
    text = given(("type", "text"), type=enum("text"), text=string())
    content = optional(any_of(string(), array(text)))
    result = given(
        ("type", "tool_use_id"), type=enum("tool_result"), tool_use_id=string(), content=content
    )
    call = given(
        ("type", "id", "name", "input"),
        type=enum("tool_use"),
        id=string(),
        name=string(),
        input={"type": "object"},
    )
    thought = given(("type", "thinking"), type=enum("thinking"), thinking=string())
    sealed = note(given(("type",), type=enum("redacted_thinking")), "Ignored.")
    user, assistant, system = (
        given(("role",), role=enum(role), content=any_of(string(), array(blocks)))
        for role, blocks in (
            ("user", any_of(text, result)),
            ("assistant", any_of(text, call, thought, sealed)),
            ("system", text),
        )
    )
    assert {"user", "assistant", "system"} == set(messages_request.ROLES)
    return any_of(user, assistant, system)


def _messages_tool() -> Schema:
    own = given(
        ("name", "input_schema"),
        type=enum("custom"),
        name=string(minLength=1),
        description=string(),
        input_schema={"type": "object"},
        strict=boolean(),
    )
    other = {
        "type": "object",
        "properties": {"type": {"type": "string", "not": enum("custom")}},
        "required": ["type"],
        "description": "A tool that the server would have to run. Ignored.",
    }
    return any_of(own, other)


def _tokenize(model_id: str) -> Schema:
    both = {"model": _model(model_id), "return_token_strs": boolean()}
    text = given(
        ("prompt",),
        **both,
        prompt=string(),
        add_special_tokens=note(boolean(), "Default true."),
        messages=enum(),
    )
    conversation = given(
        ("messages",),
        **both,
        messages=array(ref("ChatMessage"), least=1, most=MAX_TURNS),
        tools=array(ref("FunctionTool"), most=MAX_TOOLS),
        chat_template_kwargs=_template_kwargs(),
        add_generation_prompt=note(boolean(), "Default true."),
        add_special_tokens=enum(False),
        continue_final_message=enum(False),
        prompt=enum(),
    )
    return any_of(text, conversation)


def _template_kwargs() -> Schema:
    names = sorted(chat.NOT_TEMPLATE_VARIABLES)
    return {"type": "object", "propertyNames": {"not": enum(*names)}}
