"""POST /tokenize and /detokenize, in vLLM's shapes: text or a conversation to token ids, and back.

Pure; called on rank 0's HTTP threads. Nothing here takes a place in the queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from server.api.dialects.chat_request import CONVERSATION, prompt_of
from server.api.fields import Field, Fields, needed, read, record
from server.api.kinds import FLAG, Kind, array, as_one, never, one_of, whole
from server.api.kinds import TEXT as STRING
from server.api.openapi.words import any_of
from server.api.requests import MODEL, TOKEN_ID, check_model
from server.protocol.client import Client
from server.protocol.errors import bad_request, wrong
from server.protocol.requests import ChatRequest, Served
from server.text.prompts import Prompts

LEAST_TOKENS = 2**16  # ids that may be turned into text, however short the context


@dataclass(frozen=True)
class TokenizeRequest:
    """source: plain text, or a conversation.

    special_tokens: the tokenizer's own around plain text. open_turn: the conversation is followed
    by the start of the model's answer. strings: wants each token's name in the vocabulary.
    """

    source: str | ChatRequest
    special_tokens: bool
    open_turn: bool
    strings: bool


EITHER = "Either 'prompt' or 'messages' is required, and not both."
BOTH: Fields = {
    **MODEL,
    "add_generation_prompt": Field(FLAG, "Of `messages`. Default: true."),
    "return_token_strs": Field(FLAG, "Adds `token_strs`: each token's name in the vocabulary."),
}
TEXT: Fields = {
    **BOTH,
    "prompt": needed(STRING, "Or `messages`."),
    "add_special_tokens": Field(FLAG, "Default: true. With `messages`: false or absent."),
}
# What a template adds is all that a conversation gets; vLLM's default, too.
FALSE = as_one(one_of(False), "false or absent with 'messages'")
TURNS: Fields = {
    **BOTH,
    **CONVERSATION,
    "continue_final_message": FALSE,
}
TEXT_BODY = record({**TEXT, "messages": never(why=" beside 'prompt'")})
TURNS_BODY = record(
    {**TURNS, "add_special_tokens": FALSE, "prompt": never(why=" beside 'messages'")}
)
BODY = Kind(dict, any_of(TEXT_BODY.schema, TURNS_BODY.schema), EITHER, "TokenizeRequest")


def parse_tokenize(body: Mapping[str, Any], served: Served) -> TokenizeRequest:
    """Checks a request to tokenize. Raises ApiError that names the field."""
    prompt = body.get("prompt")
    if (prompt is None) == (body.get("messages") is None):
        raise bad_request(EITHER, "prompt")
    asked = read(TURNS_BODY if prompt is None else TEXT_BODY, body)
    check_model(asked, served)
    return TokenizeRequest(
        source=ChatRequest(**prompt_of(asked)) if prompt is None else asked["prompt"],
        special_tokens=asked.get("add_special_tokens", True),
        open_turn=asked.get("add_generation_prompt", True),
        strings=asked.get("return_token_strs", False),
    )


def tokenize(
    request: TokenizeRequest, prompts: Prompts, context: int, client: Client
) -> dict[str, Any]:
    """The body of the answer, for text that may have more tokens than the context, though not more
    bytes than these can stand for. Raises ApiError 400 when it is refused."""
    bounds = {"context": context, "client": client}
    if isinstance(request.source, str):
        ids = prompts.encode(request.source, request.special_tokens, **bounds)
    else:
        ids = prompts.from_chat(request.source, open_turn=request.open_turn, **bounds)
    return {
        "count": len(ids),
        "max_model_len": context,
        "tokens": ids,
        "token_strs": prompts.token_names(ids) if request.strings else None,
    }


def _ids(token: Kind) -> Fields:
    many = f"token ids: as many as the context takes, or {LEAST_TOKENS}"
    return {**MODEL, "tokens": needed(array(token, of=many), cost="0.02 s held")}


IDS: Fields = _ids(TOKEN_ID)
IDS_BODY = record(IDS, name="DetokenizeRequest")


@lru_cache(maxsize=1)
def _body_of(vocab: int) -> Kind:
    """The same for a model, so that all wrong ids are told the same range."""
    allowed = f"one of the token ids from 0 to {vocab - 1}"
    return record(_ids(as_one(whole(0, vocab - 1, point=False), allowed)))


def parse_detokenize(
    body: Mapping[str, Any], served: Served, vocab: int, context: int
) -> list[int]:
    """Checks a request for text; the token ids. Raises ApiError that names the field."""
    most = max(context, LEAST_TOKENS)
    given = body.get("tokens")
    if isinstance(given, list) and len(given) > most:
        allowed = f"an array of at most {most} token ids from 0 to {vocab - 1}"
        raise wrong("tokens", f"{len(given)} ids", allowed)
    asked = read(_body_of(vocab), body)
    check_model(asked, served)
    return asked["tokens"]


def detokenize(ids: list[int], prompts: Prompts) -> dict[str, str]:
    """The body of the answer."""
    return {"prompt": prompts.decode(ids)}
