"""The OpenAPI 3.1 description of every route, which the server shows at /openapi.json.

Pure data; the requests' part is made of the tables that they are read by. Called on rank 0's HTTP
threads. tests/api/test_openapi.py holds the routes to it.
"""

from http import HTTPStatus
from typing import Any

from server.api.openapi.answers import answer_schemas
from server.api.openapi.requests import request_schemas
from server.api.openapi.words import Schema, any_of, enum, ref, string

# Statuses that any route may answer, beside its own: for its head, and for its body if it has one.
HEAD_ERRORS = (400, 403, 408, 414, 431, 500, 503)
BODY_ERRORS = (401, 404, 411, 413, 415)
ENGINE_ERRORS = (429, 504)


def describe(*models: str) -> dict[str, Any]:
    """The description of a server that serves these models."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MLX cluster server",
            "version": "1",
            "description": "OpenAI's API, and two others, over models on a cluster of ranks. "
            "Every path answers with and without /v1. HEAD works where GET does, OPTIONS "
            "everywhere.",
        },
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": request_schemas(*models) | answer_schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _paths() -> dict[str, Any]:
    model = {"name": "model", "in": "path", "required": True, "schema": string(minLength=1)}
    kept = {"name": "id", "in": "path", "required": True, "schema": string(minLength=1)}
    health = _get("Whether the server is ready", "Health", errors=())
    health["responses"]["503"] = _answer("Loading, draining, failed or restarting", "Health")
    health["security"] = []
    page = _get("The page for people", None, errors=())
    page["responses"]["200"]["content"] = {"text/html": {"schema": string()}}
    page["security"] = []
    part = _get("A script that the page asks for when it needs it", None, errors=(404,))
    part["responses"]["200"]["content"] = {"text/javascript": {"schema": string()}}
    part["responses"]["304"] = {"description": "The one with this ETag is still the one"}
    part["security"] = []
    name = {"name": "name", "in": "path", "required": True, "schema": string(minLength=1)}
    metrics = _get("What Prometheus scrapes", None)
    metrics["responses"]["200"]["content"] = {
        kind: {"schema": string()} for kind in ("text/plain", "application/openmetrics-text")
    }
    return {
        "/": {"get": page},
        "/page/{name}": {"parameters": [name], "get": part},
        "/health": {"get": health},
        "/queue": {"get": _get("How many requests wait and run", "Queue")},
        "/cluster": {"get": _get("The whole cluster at a glance", "Cluster")},
        "/metrics": {"get": metrics},
        "/models": {"get": _get("The served models", "Models")},
        "/models/{model}": {
            "parameters": [model],
            "get": _get("One of them", "Model", errors=(401, 404)),
        },
        "/chat/completions": {
            "post": _post("Continues a conversation", "ChatRequest", "ChatCompletion", "ChatChunk")
        },
        "/completions": {
            "post": _post("Continues text", "CompletionRequest", "Completion", "CompletionChunk")
        },
        "/responses": {
            "post": _post(
                "OpenAI's Responses API",
                "ResponsesRequest",
                "Response",
                "ResponseEvent",
            )
        },
        "/responses/{id}": {
            "parameters": [kept],
            "get": _get("An answer that is kept", "Response", errors=(401, 404)),
            "delete": _get("Forgets it", "ResponseDeleted", errors=(401, 404)),
        },
        "/requests/{id}": {
            "parameters": [kept],
            "delete": _get("Stops a request", "RequestStopped", errors=(401, 403, 404)),
        },
        "/messages": {
            "post": _post(
                "Anthropic's Messages API",
                "MessagesRequest",
                "Message",
                "MessageEvent",
                error="MessagesError",
            )
        },
        "/messages/count_tokens": {
            "post": _post(
                "Counts the tokens of a conversation",
                "CountTokensRequest",
                "TokenCount",
                error="MessagesError",
            )
        },
        "/embeddings": {
            "post": _post("Texts as vectors", "EmbeddingsRequest", "Embeddings", engine=True)
        },
        "/tokenize": {
            "post": _post("Text or a conversation as token ids", "TokenizeRequest", "Tokens")
        },
        "/detokenize": {"post": _post("Token ids as text", "DetokenizeRequest", "Text")},
        "/openapi.json": {"get": _get("This description", None)},
    }


def _get(summary: str, answer: str | None, errors: tuple[int, ...] = (401,)) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": _answer("OK", answer), **_errors(errors + HEAD_ERRORS, "Error")},
    }


def _post(
    summary: str,
    request: str,
    answer: str,
    event: str | None = None,
    error: str = "Error",
    engine: bool = False,
) -> dict[str, Any]:
    """event: the schema of a stream's events. engine: it is used without a stream, too."""
    ok = _answer("OK", answer)
    more = ENGINE_ERRORS if event or engine else ()
    if event is not None:
        ok["content"]["text/event-stream"] = {"schema": _event(event)}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(request)}},
        },
        "responses": {
            "200": ok,
            **_errors(HEAD_ERRORS + BODY_ERRORS + more, error),
        },
    }


def _event(schema: str) -> Schema:
    """One server-sent event, of which a stream is made."""
    told = string(contentMediaType="application/json", contentSchema=ref(schema))
    data = any_of(told, enum("[DONE]"))
    return {
        "type": "object",
        "properties": {"event": string(), "data": data},
        "required": ["data"],
        "description": "With `stream`. Chat's and completions' streams end with [DONE].",
    }


def _answer(text: str, schema: str | None) -> dict[str, Any]:
    body: Schema = {"type": "object"} if schema is None else ref(schema)
    return {"description": text, "content": {"application/json": {"schema": body}}}


def _errors(statuses: tuple[int, ...], schema: str) -> dict[str, Any]:
    return {str(one): _answer(HTTPStatus(one).phrase, schema) for one in sorted({*statuses})}
