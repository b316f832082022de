"""The client's JSON, checked and typed: what a request may ask for, before any work is done.

Called on rank 0's HTTP threads. Imports no mlx. Everything that can be refused is refused before
the queue, with an ApiError that names the field. Here are the fields that several APIs share, in
tables (fields.py); what each adds of its own is in dialects/.

A sampling parameter is a line in SAMPLING and a field of protocol.requests.Sampling of the same
name; whatever else the engine is told is a line in COMMON and a field of Common.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from server.api.fields import Field, Fields, record
from server.api.json_limits import MAX_JSON_DEPTH, TooManyValues, check_depth, loads
from server.api.kinds import (
    FLAG,
    TEXT,
    Refused,
    array,
    as_one,
    either,
    number,
    table,
    text,
    then,
    whole,
)
from server.protocol.errors import bad_request, model_not_found, show, wrong
from server.protocol.requests import Common, Sampling, Served

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024  # of one
MAX_STOP_CHARS_IN_ALL = 4096
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_INT = 2**31 - 1
AS_MANY_AS_FIT = MAX_INT + 1  # max_tokens: what the context leaves
MAX_CHOICES = 128
MAX_TOKEN_IDS = 1024
MAX_TURNS = 10_000  # of a conversation; a template takes some 10 us for each
MAX_TOOLS = 512
OF_SAMPLING = {one.name for one in fields(Sampling)}
OF_COMMON = {one.name for one in fields(Common)}


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError 400 for anything else."""
    try:
        body = loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not valid UTF-8: {error}") from None
    except TooManyValues as error:
        raise bad_request(f"The body {error}") from None
    except RecursionError:
        raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.") from None
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {show(str(error), 200)}") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, not {show(body)}.")
    if not check_depth(body):
        raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
    return body


# Kinds that several fields have.


def _first_of_each(items: list[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))


def stop_strings(given: str | list[str]) -> tuple[str, ...]:
    """Without doubles, if they are not too long together."""
    items = [given] if isinstance(given, str) else given
    chars = sum(map(len, items))
    if chars > MAX_STOP_CHARS_IN_ALL:
        raise Refused(
            f"{len(items)} strings of {chars} characters",
            f"of at most {MAX_STOP_CHARS_IN_ALL} characters in all",
        )
    # An empty stop string can stop nothing; some clients send one for "none".
    return _first_of_each([item for item in items if item])


def _limit(value: int) -> int:
    if value == 0:
        raise Refused(value, "")
    return AS_MANY_AS_FIT if value == -1 else value


def _biases(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), bias) for token, bias in given.items())


TOKEN_ID = whole(0, MAX_INT, point=False)
TOKEN_IDS = then(
    as_one(array(TOKEN_ID, most=MAX_TOKEN_IDS), f"an array of at most {MAX_TOKEN_IDS} token ids"),
    _first_of_each,
)
STOP_STRINGS = as_one(
    array(text(most=MAX_STOP_CHARS), most=MAX_STOP_STRINGS),
    f"an array of at most {MAX_STOP_STRINGS} strings of at most {MAX_STOP_CHARS} characters, "
    f"{MAX_STOP_CHARS_IN_ALL} in all",
)
STOP = then(
    as_one(
        either({str: text(most=MAX_STOP_CHARS), list: STOP_STRINGS}, ""),
        f"a string or {STOP_STRINGS.allowed}",
    ),
    stop_strings,
)
STOP_COST = "10 ms thread, once a request, with the first token"
LIMIT = as_one(
    then(whole(-1, MAX_INT), _limit).showing({"not": {"const": 0}}),
    f"a whole number from 1 to {MAX_INT}, or -1 or null: as many as fit",
)
BIASES = table(
    number(-100, 100),
    MAX_TOKEN_IDS,
    re.compile("[0-9]{1,10}"),
    "an object whose keys are token ids",
    of="token ids",
)

# Fields that several APIs have.

MODEL: Fields = {
    "model": Field(
        TEXT,
        "A served model's id, or one of MODEL_ALIASES, which mean the first; as absent does. "
        "Others: 404.",
    )
}
SAMPLING: Fields = {
    "temperature": Field(number(0, 2), "Default: the model's own, else 1."),
    "top_p": Field(number(0, 1, above=True), "Default: the model's own, else 1."),
    "top_k": Field(then(whole(-1, MAX_INT), lambda k: max(k, 0)), "0 and -1: no limit."),
    "min_p": number(0, 1),
    "seed": Field(
        whole(INT64_MIN, INT64_MAX),
        "Same request, same seed: same tokens, alone or in a batch.",
    ),
    "presence_penalty": Field(number(-2, 2), "Over the generated tokens."),
    "frequency_penalty": Field(number(-2, 2), "Over the generated tokens."),
    "repetition_penalty": Field(number(0, 10, above=True), "Over prompt and generated tokens."),
}
COMMON: Fields = {
    "stream": FLAG,
    "min_tokens": Field(whole(0, MAX_INT), "No end token before."),
    "ignore_eos": Field(
        FLAG, "The model's end tokens are tokens like any other; no effect where a grammar holds."
    ),
    "speculate": Field(FLAG, "Default: true, as far as SPECULATE goes. The answer is the same."),
    "stop_token_ids": Field(
        TOKEN_IDS, "They end the answer, and are not part of its text.", cost="1 ms thread"
    ),
    "logit_bias": Field(
        then(BIASES, _biases), "Ids of the model's vocabulary.", cost="1 ms thread"
    ),
    "return_progress": Field(
        FLAG, "The stream tells how far the prompt is, [as llama.cpp's](#progress)."
    ),
}
GENERATING: Fields = {**MODEL, **SAMPLING, **COMMON}
STOPS: Fields = {
    "stop": Field(STOP, "Not part of the text; found across token edges.", cost=STOP_COST)
}
# What chat and completions have beside it.
CHOICES: Fields = {
    "max_completion_tokens": Field(LIMIT, "Comes before max_tokens, unless it is null."),
    "max_tokens": Field(
        LIMIT, "Cut to what the context leaves. Default: as many, or DEFAULT_MAX_TOKENS."
    ),
    "n": Field(
        whole(1, MAX_CHOICES),
        "The choices share one prefill; each takes a place in the queue.",
        cost="a reader of the answer each, after it has a place",
    ),
    **STOPS,
    "stream_options": Field(
        record({"include_usage": FLAG}), "`include_usage`: true or false. Others are ignored."
    ),
}


def check_model(asked: Mapping[str, Any], served: Served) -> None:
    """Absent means the served model; a name that is not its is a 404. It is never looked up."""
    model = asked.get("model")
    if model is not None and not served.knows(model):
        raise model_not_found(model, (served.model_id, *served.others))


def common_of(asked: Mapping[str, Any], served: Served, **own: Any) -> Common:
    """What the engine is asked for: of fields that have been read those that have the same name
    there. own: what the API tells in a way of its own. Raises ApiError for another model."""
    check_model(asked, served)
    sampling = {name: asked[name] for name in OF_SAMPLING & asked.keys()}
    given = {name: asked[name] for name in OF_COMMON & asked.keys()}
    return Common(sampling=replace(served.sampling, **sampling), **given | own)


def limit_of(asked: Mapping[str, Any], body: Mapping[str, Any], *names: str) -> int | None:
    """The limit on generated tokens, from the first of names that has one; None: none is there.

    -1 and null ask for as many as fit; a null gives way to the other field's number.
    """
    found = [asked[name] for name in names if name in asked]
    if not found and any(name in body for name in names):
        return AS_MANY_AS_FIT
    return found[0] if found else None


def choices_of(asked: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Those of CHOICES that Common knows by other names."""
    return {
        "max_tokens": limit_of(asked, body, "max_completion_tokens", "max_tokens"),
        "include_usage": asked.get("stream_options", {}).get("include_usage", False),
    }


def check_vocabulary(common: Common, vocab: int) -> None:
    """Refuses token ids that the model does not have."""
    for name, ids in (
        ("logit_bias", [token for token, _ in common.logit_bias]),
        ("stop_token_ids", common.stop_token_ids),
    ):
        for token in ids:
            if token >= vocab:
                raise wrong(name, token, f"made of token ids from 0 to {vocab - 1}")
