"""Asks a server how many tokens our words make, and whether it knows ignore_eos.

Prompts are asked for in tokens, but only the server has the tokenizer. Two small requests with
different numbers of words, and the usage that comes back, give the tokens a word makes and those
that a chat template adds.
"""

from dataclasses import dataclass
from typing import Any

from scripts.lib.bench.answers import Answer
from scripts.lib.bench.swarm import Swarm
from scripts.lib.bench.workload import words

FEW, MANY = 16, 116
DEADLINE_S = 120.0
TOKENS_PER_WORD = 1.1  # where the server does not say


class Unusable(Exception):
    """The server does not answer as a server of this API does. The message says what it said."""


@dataclass(frozen=True)
class Asker:
    """Makes the bodies of requests. api: "chat" or "completions"."""

    api: str
    model: str | None
    ignore_eos: bool

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def fields(self, text: str, max_tokens: int, sampling: dict, stream: bool = True) -> dict:
        """The fields of one request."""
        fields: dict[str, Any] = {"max_tokens": max_tokens} | sampling
        if self.api == "chat":
            fields["messages"] = [{"role": "user", "content": text}]
        else:
            fields["prompt"] = text
        if self.model is not None:
            fields["model"] = self.model
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return fields


@dataclass(frozen=True)
class Gauge:
    """tokens = fixed + per_word * words. counted: the server told, else it is a guess."""

    fixed: float
    per_word: float
    counted: bool

    def words_for(self, tokens: int) -> int:
        """How many words come closest to a prompt of so many tokens; at least 1."""
        return max(1, round((tokens - self.fixed) / self.per_word))


def take_gauge(swarm: Swarm, asker: Asker, seed: object, deadline_s: float = DEADLINE_S) -> Gauge:
    """deadline_s: of the first request, for which the model may have to be loaded. Raises
    Unusable."""
    few = _prompt_tokens(swarm, asker, FEW, seed, deadline_s)
    many = _prompt_tokens(swarm, asker, MANY, seed)
    if few is None or many is None or many <= few:
        return Gauge(0.0, TOKENS_PER_WORD, counted=False)
    per_word = (many - few) / (MANY - FEW)
    return Gauge(few - per_word * FEW, per_word, counted=True)


def knows_ignore_eos(swarm: Swarm, asker: Asker, deadline_s: float = DEADLINE_S) -> bool:
    """Whether the server takes the field. One that ignores it takes it, too. deadline_s: the model
    may have to be loaded for it."""
    fields = asker.fields("One", 1, {}, stream=False) | {"ignore_eos": True}
    return swarm.ask(asker.path, fields, deadline_s).status != 400


def find_model(swarm: Swarm) -> tuple[str | None, list[str]]:
    """The model to ask for when the user named none: the only one served, else None; and all."""
    answer = swarm.ask("/v1/models")
    listed = answer.body.get("data") if isinstance(answer.body, dict) else None
    names = [one["id"] for one in listed or [] if isinstance(one, dict) and "id" in one]
    return (names[0] if len(names) == 1 else None), names


def _prompt_tokens(
    swarm: Swarm, asker: Asker, count: int, seed: object, deadline_s: float = DEADLINE_S
) -> int | None:
    text = words(count, f"gauge {seed} {count}")
    answer = swarm.ask(asker.path, asker.fields(text, 1, {"temperature": 0}, False), deadline_s)
    if answer.failure:
        raise Unusable(describe(answer))
    return answer.prompt_tokens


def describe(answer: Answer) -> str:
    """What a failed request saw, in a line."""
    return f"{answer.failure}: {answer.detail}" if answer.detail else answer.failure
