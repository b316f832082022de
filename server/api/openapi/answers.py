"""JSON schemas of what the server answers: bodies, events of streams, errors. Pure data."""

from server.api.dialects.messages import ERROR_TYPES, STOP_REASONS
from server.api.dialects.own_tools import OWN_TOOLS
from server.api.openapi.cluster import cluster_schema
from server.api.openapi.words import (
    Schema,
    any_of,
    anything,
    array,
    boolean,
    enum,
    integer,
    note,
    number,
    optional,
    ref,
    string,
    told,
)
from server.observe.phases import PHASES

FINISHES = tuple(STOP_REASONS)
DRAFTS = ("accepted_prediction_tokens", "rejected_prediction_tokens")  # in every usage


def answer_schemas() -> dict[str, Schema]:
    """All schemas of answers, by the name of the component."""
    return {
        **_openai_schemas(),
        "Cluster": cluster_schema(),
        **_responses_schemas(),
        **_messages_schemas(),
        "Tokens": told(
            count=integer(0),
            max_model_len=integer(1),
            tokens=array(integer(0)),
            token_strs=optional(array(string())),
        ),
        "Text": told(prompt=string()),
        "Health": note(
            {
                "type": "object",
                "properties": {
                    "status": enum(*PHASES),
                    "detail": string(),
                    "model": string(),
                    "world_size": integer(0),
                    "run_id": string(),
                },
                "required": ["status", "detail", "model", "world_size", "run_id"],
            },
            "And more, for people to read.",
        ),
        "Queue": told(size=integer(0), max=integer(0), running=integer(0), max_running=integer(1)),
    }


def _openai_schemas() -> dict[str, Schema]:
    frame = {
        "id": string(),
        "object": enum("chat.completion"),
        "created": integer(0),
        "model": string(),
        "system_fingerprint": string(),
    }
    logprobs = optional(ref("ChatLogprobs"))
    choice = {"index": integer(0), "logprobs": logprobs}
    chunk_choice = told(**choice, delta=ref("ChatDelta"), finish_reason=optional(enum(*FINISHES)))
    text_choice = {"index": integer(0), "text": string(), "logprobs": optional(ref("Logprobs"))}
    text_frame = frame | {"object": enum("text_completion")}
    usage = ref("Usage")
    thoughts = {"reasoning_content": string(), "reasoning": string()}
    function = told(name=string(), arguments=string())
    call = told(id=string(), type=enum("function"), function=function)
    part = told(
        ("id", "type"),
        index=integer(0),
        id=string(),
        type=enum("function"),
        function=told(("name",), name=string(), arguments=string()),
    )
    message = told(
        (*thoughts, "tool_calls"),
        role=enum("assistant"),
        content=optional(string()),
        refusal=enum(None),
        tool_calls=array(call, least=1),
        **thoughts,
    )
    one = {"token": string(), "logprob": number(), "bytes": array(integer(0, 255))}
    scored = told(**one, top_logprobs=array(told(**one)))
    return {
        "ChatCompletion": told(
            **frame,
            choices=array(told(**choice, message=message, finish_reason=enum(*FINISHES)), least=1),
            usage=usage,
        ),
        "ChatChunk": told(
            ("usage", "prompt_progress"),
            **frame | {"object": enum("chat.completion.chunk")},
            choices=array(chunk_choice),
            usage=optional(usage),
            prompt_progress=ref("PromptProgress"),
        ),
        "PromptProgress": told(
            total=integer(1),
            cache=integer(0),
            processed=integer(0),
            time_ms=integer(0),
            place=integer(0),
            remaining_ms=optional(integer(0)),
        ),
        "ChatDelta": told(
            ("role", "content", "tool_calls", *thoughts),
            role=enum("assistant"),
            content=string(),
            tool_calls=array(part, least=1),
            **thoughts,
        ),
        "ChatLogprobs": told(content=array(scored), refusal=enum(None)),
        "Completion": told(
            **text_frame,
            choices=array(told(**text_choice, finish_reason=enum(*FINISHES[:2])), least=1),
            usage=usage,
        ),
        "CompletionChunk": told(
            ("usage", "prompt_progress"),
            **text_frame,
            choices=array(told(**text_choice, finish_reason=optional(enum(*FINISHES[:2])))),
            usage=optional(usage),
            prompt_progress=ref("PromptProgress"),
        ),
        "Logprobs": told(
            tokens=array(string()),
            token_logprobs=array(optional(number())),
            top_logprobs=array(optional({"type": "object", "additionalProperties": number()})),
            text_offset=array(integer(0)),
        ),
        "Usage": told(
            prompt_tokens=integer(0),
            completion_tokens=integer(0),
            total_tokens=integer(0),
            prompt_tokens_details=told(cached_tokens=integer(0)),
            completion_tokens_details=told(
                reasoning_tokens=integer(0), **dict.fromkeys(DRAFTS, integer(0))
            ),
        ),
        "Model": told(
            id=string(),
            object=enum("model"),
            created=integer(0),
            owned_by=string(),
            root=note(string(), "The served model's own name, of which `id` may be an alias."),
            max_model_len=note(optional(integer(1)), "Null until the model was loaded."),
            loaded=note(boolean(), "Else the next request for it waits until it is."),
            size_bytes=note(optional(integer(1)), "Of its weights, on all ranks."),
            embeddings=note(
                optional(
                    told(dimensions=integer(1), pooling=enum("last_token"), trained=boolean())
                ),
                "null: the model gives none, or was not loaded yet. trained: it was made for them.",
            ),
        ),
        "Models": told(object=enum("list"), data=array(ref("Model"))),
        "Embeddings": told(
            object=enum("list"),
            data=array(
                told(
                    object=enum("embedding"),
                    index=integer(0),
                    embedding=any_of(array(number()), string(contentEncoding="base64")),
                )
            ),
            model=string(),
            usage=told(prompt_tokens=integer(0), total_tokens=integer(0)),
        ),
        "Error": told(
            error=told(
                message=string(),
                type=string(),
                param=optional(string()),
                code=optional(string()),
            )
        ),
    }


def _responses_schemas() -> dict[str, Schema]:
    state = enum("in_progress", "completed", "incomplete")
    text = told(
        type=enum("output_text"),
        text=string(),
        annotations=array(anything(), most=0),
        logprobs=array(anything(), most=0),
    )
    thought = told(type=enum("reasoning_text"), text=string())
    item = {"id": string(), "status": state}
    call = {**item, "call_id": string(), "name": string(), "namespace": string()}
    return {
        "ResponseItem": any_of(
            told(
                **item,
                type=enum("message"),
                role=enum("assistant"),
                content=array(text),
            ),
            told(
                **item,
                type=enum("reasoning"),
                summary=array(anything(), most=0),
                content=array(thought),
            ),
            told(("namespace",), **call, type=enum("function_call"), arguments=string()),
            told(("namespace",), **call, type=enum("custom_tool_call"), input=string()),
            *(
                told(
                    **item,
                    call_id=string(),
                    type=enum(own.item),
                    **{own.place: {"type": "object"}},
                    **{name: enum(word) for name, word in own.more.items()},
                )
                for own in OWN_TOOLS.values()
            ),
        ),
        "Response": told(
            id=string(),
            object=enum("response"),
            created_at=integer(0),
            completed_at=optional(integer(0)),
            status=enum("in_progress", "completed", "incomplete", "failed"),
            background=enum(False),
            error=optional(told(code=string(), message=string())),
            incomplete_details=optional(told(reason=enum("max_output_tokens"))),
            output=array(ref("ResponseItem")),
            previous_response_id=optional(string()),
            store=boolean(),
            truncation=enum("disabled"),
            usage=optional(
                told(
                    input_tokens=integer(0),
                    input_tokens_details=told(
                        cached_tokens=integer(0), cache_write_tokens=integer(0)
                    ),
                    output_tokens=integer(0),
                    output_tokens_details=told(
                        reasoning_tokens=integer(0), **dict.fromkeys(DRAFTS, integer(0))
                    ),
                    total_tokens=integer(0),
                )
            ),
            user=enum(None),
            model=string(),
            instructions=optional(string()),
            max_output_tokens=optional(integer(1)),
            metadata={"type": "object", "additionalProperties": string()},
            parallel_tool_calls=boolean(),
            reasoning=told(effort=optional(string()), summary=enum(None)),
            text={"type": "object"},
            tool_choice=any_of(string(), {"type": "object"}),
            tools=array({"type": "object"}),
            temperature=number(),
            top_p=number(),
        ),
        "ResponseDeleted": told(id=string(), object=enum("response"), deleted=enum(True)),
        "RequestStopped": told(id=string(), object=enum("request"), stopped=enum(True)),
        "ResponseEvent": note(
            {
                "type": "object",
                "properties": {
                    "type": string(),
                    "sequence_number": integer(0),
                    "prompt_progress": ref("PromptProgress"),
                },
                "required": ["type", "sequence_number"],
            },
            "response.created first; response.completed, .incomplete or .failed last. With "
            "return_progress there are some of the type prompt_progress.",
        ),
    }


def _messages_schemas() -> dict[str, Schema]:
    blocks = any_of(
        told(type=enum("text"), text=string()),
        told(type=enum("thinking"), thinking=string(), signature=string()),
        told(type=enum("tool_use"), id=string(), name=string(), input={"type": "object"}),
        told(type=enum("server_tool_use"), id=string(), name=string(), input={"type": "object"}),
        note(
            told(
                type={"type": "string", "pattern": "^[a-z_]+_tool_result$"},
                tool_use_id=string(),
                content=told(type=string(), error_code=enum("unavailable")),
            ),
            "Of a tool that nobody here can run.",
        ),
    )
    details = told(error_code=string(), unsupported=array(string()))
    error = told(("details",), type=string(), message=string(), details=details)
    error["properties"]["type"] = enum("api_error", "invalid_request_error", *ERROR_TYPES.values())
    return {
        "Message": told(
            id=string(),
            type=enum("message"),
            role=enum("assistant"),
            model=string(),
            content=array(blocks),
            stop_reason=optional(enum(*STOP_REASONS.values(), "stop_sequence")),
            stop_sequence=optional(string()),
            usage=told(
                input_tokens=integer(0),
                cache_creation_input_tokens=integer(0),
                cache_read_input_tokens=integer(0),
                output_tokens=integer(0),
                **dict.fromkeys(DRAFTS, integer(0)),
            ),
        ),
        "MessageEvent": note(
            {
                "type": "object",
                "properties": {
                    "type": enum(
                        "message_start",
                        "ping",
                        "prompt_progress",
                        "content_block_start",
                        "content_block_delta",
                        "content_block_stop",
                        "message_delta",
                        "message_stop",
                        "error",
                    ),
                    "prompt_progress": ref("PromptProgress"),
                },
                "required": ["type"],
            },
            "message_start first; message_stop or error last. With return_progress there are some "
            "of the type prompt_progress.",
        ),
        "TokenCount": told(input_tokens=integer(0)),
        "MessagesError": told(type=enum("error"), error=error),
    }
