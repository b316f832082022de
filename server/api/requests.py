"""The client's JSON, checked and typed: what a request may ask for, before any work is done.

Called on rank 0's HTTP threads. Imports no mlx. Everything that can be refused is refused before
the queue, with an ApiError that names the field. Unknown fields are ignored, as OpenAI's clients
expect. What each API adds of its own is in dialects/.
"""

from typing import Any

from server.api.fields import Body, array, boolean, check_text, integer, mapping, number, string
from server.api.json_limits import MAX_JSON_DEPTH, TooManyValues, check_depth, loads
from server.protocol.errors import ApiError, bad_request, model_not_found, show, wrong
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


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError 400 for anything else."""
    try:
        body = loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not valid UTF-8: {error}") from None
    except TooManyValues as error:
        raise bad_request(f"The body {error}") from None
    except RecursionError:
        raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.") from None
    except ValueError as error:  # JSONDecodeError, a constant, or an integer of absurd length
        raise bad_request(f"The body is not valid JSON: {show(str(error), 200)}") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, not {show(body)}.")
    if not check_depth(body):
        raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
    return body


def check_model(body: Body, served: Served) -> None:
    """Absent means the served model; any other name is a 404. The name is never looked up."""
    model = string(body, "model")
    if model is not None and model != served.model_id and model not in served.aliases:
        raise model_not_found(model, served.model_id)


def parse_common(body: Body, served: Served) -> Common:
    """The fields that chat and completions share; logprobs differ and are the caller's."""
    check_model(body, served)
    options = mapping(body, "stream_options") or {}
    return Common(
        sampling=_sampling(body, served.sampling),
        max_tokens=parse_max_tokens(body, "max_completion_tokens", "max_tokens"),
        min_tokens=integer(body, "min_tokens", 0, MAX_INT) or 0,
        n=integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=parse_stop(body.get("stop")),
        stop_token_ids=_token_ids(body, "stop_token_ids"),
        ignore_eos=boolean(body, "ignore_eos"),
        logit_bias=_logit_bias(body),
        stream=boolean(body, "stream"),
        include_usage=boolean(options, "include_usage"),
    )


def check_turns(items: list[Any], name: str) -> None:
    """Refuses more turns than a template is to be kept busy with; each is several tokens."""
    if len(items) > MAX_TURNS:
        raise wrong(name, f"{len(items)} items", f"of at most {MAX_TURNS}")


def parse_max_tokens(body: Body, *names: str) -> int | None:
    """The limit on generated tokens, from the first of names that has one; None: none is there.

    -1 and null ask for as many as fit; a null gives way to the other field's number.
    """
    found = [_max_tokens(body, name) for name in names if body.get(name) is not None]
    if not found and any(name in body for name in names):
        return AS_MANY_AS_FIT
    return found[0] if found else None


def _max_tokens(body: Body, name: str) -> int:
    try:
        value = integer(body, name, -1, MAX_INT)
    except ApiError:
        value = 0
    if not value:
        allowed = f"a whole number from 1 to {MAX_INT}, or -1 or null: as many as fit"
        raise wrong(name, body[name], allowed)
    return AS_MANY_AS_FIT if value == -1 else value


def check_vocabulary(common: Common, vocab: int) -> None:
    """Refuses token ids that the model does not have."""
    for name, ids in (
        ("logit_bias", [token for token, _ in common.logit_bias]),
        ("stop_token_ids", common.stop_token_ids),
    ):
        for token in ids:
            if token >= vocab:
                raise wrong(name, token, f"made of token ids from 0 to {vocab - 1}")


def _token_ids(body: Body, name: str) -> tuple[int, ...]:
    ids = array(body, name) or []
    allowed = f"an array of at most {MAX_TOKEN_IDS} token ids"
    if len(ids) > MAX_TOKEN_IDS:
        raise wrong(name, f"{len(ids)} ids", allowed)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= MAX_INT:
            raise wrong(name, token, allowed)
    return tuple(dict.fromkeys(ids))


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    given = mapping(body, "logit_bias") or {}
    if len(given) > MAX_TOKEN_IDS:
        raise wrong("logit_bias", f"{len(given)} ids", f"at most {MAX_TOKEN_IDS} token ids")
    biases = []
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise wrong("logit_bias", key, "an object whose keys are token ids")
        name = f"logit_bias.{key}"
        value = number({name: given[key]}, name, -100, 100)
        if value is None:
            raise wrong(name, value, "a number from -100 to 100")
        biases.append((int(key), value))
    return tuple(biases)


def _sampling(body: Body, default: Sampling) -> Sampling:
    def given(value, fallback):
        return fallback if value is None else value

    top_k = integer(body, "top_k", -1, MAX_INT)
    return Sampling(
        temperature=given(number(body, "temperature", 0, 2), default.temperature),
        top_p=given(number(body, "top_p", 0, 1, above=True), default.top_p),
        top_k=default.top_k if top_k is None else max(top_k, 0),  # vLLM's -1: no limit
        min_p=given(number(body, "min_p", 0, 1), default.min_p),
        seed=integer(body, "seed", INT64_MIN, INT64_MAX),
        presence_penalty=given(number(body, "presence_penalty", -2, 2), 0.0),
        frequency_penalty=given(number(body, "frequency_penalty", -2, 2), 0.0),
        repetition_penalty=given(
            number(body, "repetition_penalty", 0, 10, above=True), default.repetition_penalty
        ),
    )


def parse_stop(value: Any, name: str = "stop") -> tuple[str, ...]:
    """Stop strings, as a tuple without doubles."""
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    most = f"{MAX_STOP_CHARS_IN_ALL} characters in all"
    allowed = f"a string or an array of at most {MAX_STOP_STRINGS} strings, with {most}"
    if not isinstance(items, list) or len(items) > MAX_STOP_STRINGS:
        raise wrong(name, value, allowed)
    for item in items:
        if len(check_text(item, name)) > MAX_STOP_CHARS:
            raise wrong(name, item, f"at most {MAX_STOP_CHARS} characters long")
    chars = sum(map(len, items))
    if chars > MAX_STOP_CHARS_IN_ALL:
        raise wrong(name, f"{len(items)} strings of {chars} characters", f"of at most {most}")
    # An empty stop string can stop nothing; some clients send one for "none".
    return tuple(dict.fromkeys(item for item in items if item))


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
