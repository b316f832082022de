"""POST /v1/embeddings: its requests in, its answers out. Pure; on rank 0's HTTP threads."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.api.fields import Field, Fields, needed, read, record
from server.api.inputs import TEXT_INPUT, inputs
from server.api.kinds import one_of, whole
from server.api.requests import MAX_INT, MODEL, check_model
from server.protocol.client import Client
from server.protocol.embedding_kind import EmbeddingKind
from server.protocol.errors import bad_request, engine_failed, wrong
from server.protocol.requests import Served
from server.text.prompts import Prompts

MAX_INPUTS = 2048
# Tokens of all inputs together, or as many as the context has.
MAX_TOKENS_IN_ALL = 300_000
BASE64 = "base64"

EMBEDDINGS: Fields = {
    **MODEL,
    "input": needed(
        inputs(MAX_INPUTS),
        "No text is empty. Text gets the tokenizer's own special tokens, token ids are taken as "
        f"they are. Each of at most as many tokens as the context has, all of {MAX_TOKENS_IN_ALL}.",
        cost="as text. Token ids: 0.1 s thread a million",
    ),
    "encoding_format": Field(
        one_of("float", BASE64), "base64: little-endian float32. Default: float."
    ),
    "dimensions": Field(
        whole(1, MAX_INT), "The first so many, made as long as 1 again. Default: all there are."
    ),
}
BODY = record(EMBEDDINGS, name="EmbeddingsRequest")


@dataclass(frozen=True)
class EmbeddingsRequest:
    """inputs: text, or token ids. dimensions: values of each vector."""

    inputs: list[str | list[int]]
    dimensions: int
    as_base64: bool = False


def parse(body: Mapping[str, Any], served: Served, kind: EmbeddingKind) -> EmbeddingsRequest:
    """Checks a request. Raises ApiError."""
    asked = read(BODY, body)
    check_model(asked, served)
    if kind.why_not:
        raise bad_request(f"This model gives no embeddings: {kind.why_not}.", "model")
    dimensions = asked.get("dimensions", kind.size)
    if dimensions > kind.size:
        raise wrong("dimensions", dimensions, f"a whole number from 1 to {kind.size}")
    for place, one in enumerate(asked["input"]):
        if one == "":
            raise wrong(_name(asked["input"], place), one, TEXT_INPUT.allowed)
    return EmbeddingsRequest(asked["input"], dimensions, asked.get("encoding_format") == BASE64)


def token_ids(
    given: Sequence[str | list[int]], prompts: Prompts, context: int, client: Client
) -> list[list[int]]:
    """Of each input. Raises ApiError 400, and what client.look raises."""
    most, total, found = max(context, MAX_TOKENS_IN_ALL), 0, []
    for place, one in enumerate(given):  # before any is tokenized
        name, text = _name(given, place), isinstance(one, str)
        # Of a text the least that it can have.
        least = -(-len(one) // prompts.token_bytes) if text else len(one)
        total += _count(name, least, context)
        if not text and not all(0 <= token < prompts.vocab for token in one):
            raise wrong(name, one, f"made of token ids from 0 to {prompts.vocab - 1}")
    _count("input", total, most)
    total = 0
    for place, one in enumerate(given):
        ids, name = one, _name(given, place)
        if isinstance(one, str):
            ids = prompts.from_text(one, context=context, client=client, param=name)
        total += _count(name, len(ids), context)
        _count("input", total, most)
        found.append(ids)
    return found


def write(vector: np.ndarray, request: EmbeddingsRequest) -> bytes:
    """One vector as JSON. Raises ApiError 500 for one that has no direction."""
    cut = vector[: request.dimensions].astype(np.float64)
    length = np.sqrt(np.sum(cut * cut))
    if not 0 < length < np.inf:
        raise engine_failed("The model's hidden state is not finite, or all of it is zero.")
    unit = (cut / length).astype("<f4")
    if request.as_base64:
        return b'"' + base64.b64encode(unit.tobytes()) + b'"'
    # As many digits as a float32 has: Python would write out those of a double.
    return b"[" + ",".join([f"{value:.9g}" for value in unit.tolist()]).encode() + b"]"


def answer(vectors: Sequence[bytes], model: str, tokens: int) -> bytes:
    """The whole body. vectors: each as write() has it."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%s}' % one for one in enumerate(vectors)
    )
    rest = json.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return b'{"object":"list","data":[' + data + b"]," + rest.encode()[1:] + b"\n"


def tell_kind(kind: EmbeddingKind | None) -> dict[str, Any] | None:
    """What a model's card says; None where there are no embeddings, or none yet."""
    if kind is None or kind.why_not:
        return None
    return {"dimensions": kind.size, "pooling": "last_token", "trained": kind.trained}


def _name(given: Sequence[Any], place: int) -> str:
    return f"input[{place}]" if len(given) > 1 else "input"


def _count(name: str, tokens: int, most: int) -> int:
    """The tokens, if they are not too many. Raises ApiError."""
    if tokens > most:
        error = wrong(name, f"{tokens} tokens", f"of at most {most} tokens")
        error.code = "context_length_exceeded"
        raise error
    return tokens
