"""The routes that need the model: from a body to an answer, whatever the dialect.

Called on rank 0's HTTP threads. Each parses in its own dialect; from there on there is one way to
generate. While the model loads, and while the server drains, all of them answer 503.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from server.account import Texts
from server.answering import answer
from server.asker import Asker, network_of
from server.dialects import chat as chat_api
from server.dialects import completions as completions_api
from server.dialects import messages as messages_api
from server.dialects import responses as responses_api
from server.dialects import tokenize as tokenize_api
from server.errors import context_exceeded, unavailable
from server.fields import wrong
from server.generation import Choice, Generation
from server.http_server import Exchange
from server.pieces import Dialect, TextOut
from server.prompts import Prompts, count_chars
from server.requests import (
    ChatRequest,
    Common,
    Sampling,
    Served,
    check_vocabulary,
    parse_json,
)
from server.settings import Settings
from server.status import Status
from server.tickets import Line, Ticket

LARGE_BODY = 2**20  # bytes; parsed, these can take thirty times as much memory
TOKEN_CHARS = 128  # the longest tokens of known vocabularies are runs of so many blanks


@dataclass(frozen=True)
class Model:
    """What the routes need once the model is loaded. context: tokens of prompt plus answer."""

    prompts: Prompts
    context: int
    sampling: Sampling
    fingerprint: str


@dataclass(frozen=True)
class Job:
    """One prompt of a request. text_out makes a TextOut for each of its choices."""

    prompt: list[int]
    text_out: Callable[[], TextOut]
    constraint: Any = None
    echo: str | None = None


class ModelRoutes:
    """Handlers by name. `model` is None until it is loaded."""

    def __init__(self, settings: Settings, status: Status, line: Line) -> None:
        self._settings = settings
        self._status = status
        self._line = line
        self._large = threading.Lock()
        self.model: Model | None = None

    def chat(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, chat_api.parse, served)
        frame = self._frame(model, request.common, 1)
        self._converse(exchange, model, request, lambda prompt: chat_api.ChatDialect(*frame))

    def completions(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, completions_api.parse, served)
        common = request.common
        dialect = completions_api.CompletionDialect(
            *self._frame(model, common, len(request.prompts))
        )
        constraint = model.prompts.plain_constraint(request, self._asker(exchange))
        jobs = []
        for prompt in request.prompts:
            _check_length(len(prompt), model.context, "prompt")
            ids = prompt if isinstance(prompt, list) else model.prompts.from_text(prompt)
            if not all(0 <= token < model.prompts.vocab for token in ids):
                allowed = f"made of token ids from 0 to {model.prompts.vocab - 1}"
                raise wrong("prompt", prompt, allowed)
            echo = None
            if request.echo:
                echo = prompt if isinstance(prompt, str) else model.prompts.decode(ids)
            jobs.append(Job(ids, lambda: model.prompts.plain_out(common), constraint, echo))
        self._generate(exchange, model, common, jobs, dialect, "prompt")

    def responses(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request, echo = self._parse(exchange, responses_api.parse, served)
        self._converse(
            exchange, model, request, lambda prompt: responses_api.ResponsesDialect(echo)
        )

    def messages(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request, echo = self._parse(exchange, messages_api.parse, served)
        self._converse(
            exchange, model, request, lambda prompt: messages_api.MessagesDialect(echo, len(prompt))
        )

    def count_tokens(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, messages_api.parse_count, served)
        exchange.send_json(200, messages_api.count(len(model.prompts.from_chat(request))))

    def tokenize(self, exchange: Exchange) -> None:
        model, served = self._ready()
        request = self._parse(exchange, tokenize_api.parse_tokenize, served)
        exchange.send_json(200, tokenize_api.tokenize(request, model.prompts, model.context))

    def detokenize(self, exchange: Exchange) -> None:
        model, served = self._ready()
        vocab = model.prompts.vocab
        ids = self._parse(exchange, tokenize_api.parse_detokenize, served, vocab)
        exchange.send_json(200, tokenize_api.detokenize(ids, model.prompts))

    def _converse(
        self,
        exchange: Exchange,
        model: Model,
        request: ChatRequest,
        make_dialect: Callable[[list[int]], Dialect],
    ) -> None:
        """The one way from a conversation to its answer, whatever the dialect."""
        prompts = model.prompts
        given = [request.messages, request.tools, request.template_kwargs]
        _check_length(count_chars(given), model.context, "messages")
        ids = prompts.from_chat(request)
        constraint = prompts.chat_constraint(request, ids, self._asker(exchange))
        job = Job(ids, lambda: prompts.chat_out(request, constraint, ids), constraint)
        self._generate(exchange, model, request.common, [job], make_dialect(ids), "messages")

    def _generate(
        self,
        exchange: Exchange,
        model: Model,
        common: Common,
        jobs: list[Job],
        dialect: Dialect,
        param: str,
    ) -> None:
        check_vocabulary(common, model.prompts.vocab)
        self._line.check_size(len(jobs) * common.n)
        if any(job.constraint is not None for job in jobs):
            common = replace(common, ignore_eos=False)  # what matches a grammar must end
        choices: list[Choice] = []
        firsts: list[Ticket] = []
        for job in jobs:
            limit = self._clamp(common, len(job.prompt), model.context, param)
            for n in range(common.n):
                ticket = Ticket(
                    job.prompt,
                    limit,
                    common,
                    choice=len(choices),
                    score_prompt=n == 0 and job.echo is not None and common.logprobs is not None,
                    grammar=job.constraint,
                    events=choices[0].ticket.events if choices else None,
                )
                if n == 0:
                    firsts.append(ticket)
                else:
                    firsts[-1].followers.append(ticket)
                choices.append(Choice(ticket, job.text_out(), job.echo))
        generation = Generation(
            choices,
            self._line,
            model.prompts.describe,
            exchange.client_gone,
            self._settings.req_timeout,
            exchange.account.started,
        )
        if self._settings.log_prompts:
            exchange.account.texts = Texts([model.prompts.decode(job.prompt) for job in jobs])
        self._line.admit(firsts)
        exchange.account.generation, exchange.account.stream = generation, common.stream
        self._status.record.admitted(generation)
        answer(exchange, dialect, generation, common.stream)

    def _frame(self, model: Model, common: Common, prompts: int) -> tuple:
        return (
            self._status.model_id,
            model.fingerprint,
            prompts * common.n,
            common.logprobs is not None,
            common.include_usage,
        )

    def _parse(self, exchange: Exchange, parse: Callable[..., Any], *context: Any) -> Any:
        """The checked request. Large ones in turn: parsing together they are no sooner done, but
        need their memory together, and keep the engine's thread waiting all the while."""
        raw = exchange.read_body()
        with self._large if len(raw) > LARGE_BODY else contextlib.nullcontext():
            return parse(parse_json(raw), *context)

    def _asker(self, exchange: Exchange) -> Asker:
        """Whoever sent the request: what it waits for before it is admitted is its own time."""
        timeout = self._settings.req_timeout
        return Asker(
            exchange.account.key or network_of(exchange.client_address[0]),
            exchange.account.started + timeout,
            timeout,
            exchange.client_gone,
            self._ready,
        )

    def _ready(self) -> tuple[Model, Served]:
        phase = self._status.phase
        if phase == "loading" or self.model is None:
            raise unavailable(f"The model is loading: {self._status.detail}.", "loading")
        if phase != "ok":
            raise unavailable(f"The server is {phase}.", phase)
        return self.model, Served(self._status.model_id, sampling=self.model.sampling)

    def _clamp(self, common: Common, prompt_tokens: int, context: int, param: str) -> int:
        """The limit on generated tokens, so that prompt and answer fit the context."""
        room = context - prompt_tokens
        if room < 1:
            raise context_exceeded(prompt_tokens, context, param)
        return min(common.max_tokens or self._settings.default_max_tokens, room)


def _check_length(chars: int, context: int, param: str) -> None:
    """Refuses text that cannot fit before it is tokenized: 20 MB would keep a core busy for a
    minute, whether the client waits or not."""
    if chars > context * TOKEN_CHARS:
        raise context_exceeded(chars // TOKEN_CHARS, context, param)
