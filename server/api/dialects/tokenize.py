"""POST /tokenize and /detokenize, in vLLM's shapes: text or a conversation to token ids, and back.

Pure; called on rank 0's HTTP threads. Nothing here takes a place in the queue.
"""

from dataclasses import dataclass
from typing import Any

from server.api.dialects import chat
from server.api.fields import Body, array, boolean, check_text
from server.api.requests import check_model
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


def parse_tokenize(body: Body, served: Served) -> TokenizeRequest:
    """Checks a request to tokenize. Raises ApiError that names the field."""
    check_model(body, served)
    prompt = body.get("prompt")
    if (prompt is None) == (body.get("messages") is None):
        raise bad_request("Either 'prompt' or 'messages' is required, and not both.", "prompt")
    source = chat.parse(body, served) if prompt is None else check_text(prompt, "prompt")
    if prompt is None:
        # What a template adds is all that a conversation gets; vLLM's default, too.
        for name in ("add_special_tokens", "continue_final_message"):
            if boolean(body, name):
                raise wrong(name, True, "false or absent with 'messages'")
    return TokenizeRequest(
        source=source,
        special_tokens=_yes(body, "add_special_tokens"),
        open_turn=_yes(body, "add_generation_prompt"),
        strings=boolean(body, "return_token_strs"),
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


def parse_detokenize(body: Body, served: Served, vocab: int, context: int) -> list[int]:
    """Checks a request for text; the token ids. Raises ApiError that names the field."""
    most = max(context, LEAST_TOKENS)
    check_model(body, served)
    ids = array(body, "tokens")
    allowed = f"an array of at most {most} token ids from 0 to {vocab - 1}"
    if ids is None or len(ids) > most:
        raise wrong("tokens", ids, allowed)
    for i, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
            raise wrong(f"tokens[{i}]", token, allowed)
    return ids


def detokenize(ids: list[int], prompts: Prompts) -> dict[str, str]:
    """The body of the answer."""
    return {"prompt": prompts.decode(ids)}


def _yes(body: Body, name: str) -> bool:
    """A boolean; absent is True."""
    return body.get(name) is None or boolean(body, name)
