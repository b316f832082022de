"""OpenAI's answer shapes for chat and completions, whole and as stream chunks. Pure data."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What all chunks of one answer share."""

    chat: bool
    model: str
    fingerprint: str
    prompt_tokens: int
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        object.__setattr__(self, "id", self.id or prefix + uuid.uuid4().hex)

    def usage(self, completion_tokens: int) -> dict[str, Any]:
        """Token counts; ids are counted, not re-encoded text."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def whole(self, text: str, finish: str, completion_tokens: int) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._frame([choice], "chat.completion") | {"usage": self.usage(completion_tokens)}

    def opening(self) -> dict[str, Any] | None:
        """The first chunk of a chat stream; completions have none."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self.chat else None

    def chunk(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk({"content": text} if self.chat else text, None)

    def closing(self, finish: str) -> dict[str, Any]:
        """The chunk that carries finish_reason and no text."""
        return self._chunk({} if self.chat else "", finish)

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any]:
        """The extra last chunk of stream_options.include_usage."""
        frame = self._frame([], "chat.completion.chunk")
        return frame | {"usage": self.usage(completion_tokens)}

    def _chunk(self, delta: Any, finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        choice["delta" if self.chat else "text"] = delta
        return self._frame([choice], "chat.completion.chunk")

    def _frame(self, choices: list[dict[str, Any]], chat_object: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": chat_object if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def model_card(model_id: str, created: int, context: int) -> dict[str, Any]:
    """One entry of GET /v1/models. context: tokens."""
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": "mlx-cluster",
        "max_model_len": context or None,
    }
