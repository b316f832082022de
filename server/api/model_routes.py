"""The routes that need the model: from a body to an answer, whatever the dialect.

Called on rank 0's HTTP threads. Each parses in its own dialect; from there on there is one way to
generate. While the model loads, and while the server drains, all of them answer 503.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from server.api.dialects import chat as chat_api
from server.api.dialects import completions as completions_api
from server.api.dialects import embeddings as embeddings_api
from server.api.dialects import messages as messages_api
from server.api.dialects import responses as responses_api
from server.api.dialects import tokenize as tokenize_api
from server.api.dialects.kept_responses import KeptResponses
from server.api.embedding import Embedding, embed
from server.api.lanes import Lanes
from server.api.models import Model, Models, willing_to_wait
from server.api.notes import noting
from server.api.requests import check_vocabulary, parse_json
from server.api.responder import Alive, answer
from server.observe.account import Texts
from server.observe.phases import ENDING, LOADING, OK
from server.observe.status import Status
from server.protocol.client import Client
from server.protocol.errors import context_exceeded, unavailable, wrong
from server.protocol.pieces import Dialect, TextOut
from server.protocol.requests import (
    NOWHERE,
    ChatRequest,
    Common,
    CompletionRequest,
    Places,
    Served,
)
from server.protocol.settings import Settings
from server.scheduler.catalog import FIRST
from server.scheduler.queue import Line, Ticket
from server.text.following import Following
from server.text.generation import Choice, Generation
from server.text.infill import Suffix
from server.text.prompts import check_length, count_chars
from server.transport.http_server import Exchange
from server.transport.places import neighbourhood

LOADING_RETRY_S = 30.0  # the most that anybody is told to wait while the model loads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One prompt of a request. text_out makes a TextOut for each of its choices. places: where
    others may part from it."""

    prompt: list[int]
    text_out: Callable[[], TextOut]
    constraint: Any = None
    echo: str | None = None
    places: Places = NOWHERE


class ModelRoutes:
    """Handlers by name. None of them answers before the first model is loaded."""

    def __init__(
        self,
        settings: Settings,
        status: Status,
        line: Line,
        kept: KeptResponses,
        models: Models,
    ) -> None:
        self._kept = kept
        self._models = models
        self._settings = settings
        self._status = status
        self._line = line
        self._lanes = Lanes(line.max_running + line.max_waiting)

    def chat(self, exchange: Exchange) -> None:
        with self._reading(exchange, streams=True) as (body, client, model, served):
            request = chat_api.parse(body, served)
            ids, places = self._conversation(model, request, client)
        dialect = chat_api.ChatDialect(*self._frame(model, request.common, 1))
        self._converse(exchange, model, request, ids, places, dialect, client)

    def completions(self, exchange: Exchange) -> None:
        with self._reading(exchange, streams=True) as (body, client, model, served):
            request = completions_api.parse(body, served)
            self._check_prompts(model, request)
            common, suffix = request.common, None
            if request.suffix:
                suffix = model.prompts.suffix(request.suffix, context=model.context, client=client)
                ends = () if common.ignore_eos else suffix.ends
                common = replace(common, stop_token_ids=(*common.stop_token_ids, *ends))
            prompts = self._completion_prompts(model, request, suffix, client)
        dialect = completions_api.CompletionDialect(*self._frame(model, common, len(prompts)))
        constraint = model.prompts.plain_constraint(request, client)
        jobs = [
            Job(ids, lambda: model.prompts.plain_out(common), constraint, echo)
            for ids, echo in prompts
        ]
        self._generate(exchange, model, common, jobs, dialect, "prompt", client)

    def responses(self, exchange: Exchange) -> None:
        kept = self._kept.of(exchange.account.key)
        with self._reading(exchange, streams=True) as (body, client, model, served):
            request, echo = responses_api.parse(body, served, kept)
            if echo.left_out:
                left_out = ", ".join(echo.left_out)
                log.info("%s: left out of the prompt: %s", exchange.request_id, left_out)
            ids, places = self._conversation(model, request, client)

        def keep(response: dict[str, Any]) -> None:
            if echo.said is not None:
                kept.keep(response, echo.said)

        dialect = responses_api.ResponsesDialect(echo, keep)
        self._converse(exchange, model, request, ids, places, dialect, client)

    def messages(self, exchange: Exchange) -> None:
        with self._reading(exchange, streams=True) as (body, client, model, served):
            request, echo = messages_api.parse(body, served)
            ids, places = self._conversation(model, request, client)
        dialect = messages_api.MessagesDialect(echo, len(ids))
        self._converse(exchange, model, request, ids, places, dialect, client)

    def embeddings(self, exchange: Exchange) -> None:
        with self._reading(exchange) as (body, client, model, served):
            request = embeddings_api.parse(body, served, model.embeddings)
            self._line.check_room(1)
            inputs = embeddings_api.token_ids(request.inputs, model.prompts, model.context, client)
        client.look()
        if self._settings.log_prompts:
            exchange.account.texts = Texts(list(map(model.prompts.decode, inputs)))
        ticket = Ticket([], 0, Common(), model=model.number, inputs=inputs)
        self._line.admit([ticket])
        following = Following.of(client, [ticket], self._line)
        write = partial(embeddings_api.write, request=request)
        embed(
            exchange,
            Embedding(ticket, following, write),
            self._status.record,
            lambda written, tokens: embeddings_api.answer(written, model.name, tokens),
        )

    def count_tokens(self, exchange: Exchange) -> None:
        with self._reading(exchange) as (body, client, model, served):
            request = messages_api.parse_count(body, served)
            _check_conversation(request, model)
            ids = model.prompts.from_chat(request, context=model.context, client=client)
        exchange.send_json(200, messages_api.count(len(ids)))

    def tokenize(self, exchange: Exchange) -> None:
        with self._reading(exchange) as (body, client, model, served):
            request = tokenize_api.parse_tokenize(body, served)
            if not isinstance(request.source, str):
                _check_conversation(request.source, model)
            answer = tokenize_api.tokenize(request, model.prompts, model.context, client)
        exchange.send_json(200, answer)

    def detokenize(self, exchange: Exchange) -> None:
        with self._reading(exchange) as (body, _, model, served):
            ids = tokenize_api.parse_detokenize(body, served, model.prompts.vocab, model.context)
            answer = tokenize_api.detokenize(ids, model.prompts)
        exchange.send_json(200, answer)

    @contextlib.contextmanager
    def _reading(
        self, exchange: Exchange, streams: bool = False
    ) -> Iterator[tuple[dict[str, Any], Client, Model, Served]]:
        """The body, the client that sent it and the model that it is for, while there is a turn to
        make tokens of it. What is costly belongs in here; what waits for others than this lane does
        not. streams: the answer may be a stream, which begins while its model is loaded."""
        self._check_serving()
        raw = exchange.read_body()
        client = self._client(exchange)
        request = f"{exchange.request_id} {exchange.account.route}"
        patience = willing_to_wait(exchange.headers.get("Prefer"))
        while True:
            with self._lanes.enter(len(raw), client), noting(request):
                body = parse_json(raw)
                asked = body.get("model")
                number = self._models.place(asked if isinstance(asked, str) else None)
                # Who names none of ours, or nothing, hears so from whoever reads the fields.
                number = FIRST if number is None else number
                if (model := self._models.ready(number, patience)) is not None:
                    exchange.account.model = model.name
                    yield body, client, model, self._models.served(number)
                    return
            streams = streams and body.get("stream") is True and patience == math.inf
            del body  # what it holds is many times its bytes
            tell = Alive(exchange) if streams else lambda text: None
            self._models.wait_for(number, client, patience, tell)

    def _conversation(
        self, model: Model, request: ChatRequest, client: Client
    ) -> tuple[list[int], Places]:
        """Token ids of a conversation, and its places; what can be refused for less is refused
        before."""
        self._check_early(model, request.common, 1)
        _check_conversation(request, model)
        ids = model.prompts.from_chat(request, context=model.context, client=client)
        self._clamp(request.common, len(ids), model.context, request.source)
        return ids, model.prompts.places(request, ids, client)

    def _check_prompts(self, model: Model, request: CompletionRequest) -> None:
        """What can be refused before any of the prompts is tokenized."""
        self._check_early(model, request.common, len(request.prompts))
        prompts, context = model.prompts, model.context
        for prompt in request.prompts:
            if isinstance(prompt, str):
                size = len(prompt) + len(request.suffix)
                check_length(size, prompts.token_bytes, context, "prompt")
            elif len(prompt) >= context:
                raise context_exceeded(len(prompt), context, "prompt")
            elif not all(0 <= token < prompts.vocab for token in prompt):
                allowed = f"made of token ids from 0 to {prompts.vocab - 1}"
                raise wrong("prompt", prompt, allowed)

    def _completion_prompts(
        self, model: Model, request: CompletionRequest, suffix: Suffix | None, client: Client
    ) -> list[tuple[list[int], str | None]]:
        """Token ids of each prompt, and its text if that is part of the answer."""
        prompts, context, found = model.prompts, model.context, []
        for prompt in request.prompts:
            ids = prompt
            if suffix is not None:
                ids = prompts.from_around(prompt, suffix, context=context, client=client)
            elif isinstance(prompt, str):
                ids = prompts.from_text(prompt, context=context, client=client)
            self._clamp(request.common, len(ids), context, "prompt")
            text = None
            if request.echo:
                text = prompt if isinstance(prompt, str) else prompts.decode(ids)
            found.append((ids, text))
        return found

    def _check_early(self, model: Model, common: Common, prompts: int) -> None:
        """What the line would say in the end, before a prompt has cost anything."""
        check_vocabulary(common, model.prompts.vocab)
        self._line.check_room(prompts * common.n)

    def _converse(
        self,
        exchange: Exchange,
        model: Model,
        request: ChatRequest,
        ids: list[int],
        places: Places,
        dialect: Dialect,
        client: Client,
    ) -> None:
        """The one way from a conversation to its answer, whatever the dialect."""
        constraint = model.prompts.chat_constraint(request, ids, client)
        out = partial(model.prompts.chat_out, request, constraint, ids)
        job = Job(ids, out, constraint, places=places)
        self._generate(exchange, model, request.common, [job], dialect, request.source, client)

    def _generate(
        self,
        exchange: Exchange,
        model: Model,
        common: Common,
        jobs: list[Job],
        dialect: Dialect,
        param: str,
        client: Client,
    ) -> None:
        client.look()
        if any(job.constraint is not None and job.constraint.holds_the_answer for job in jobs):
            common = replace(common, ignore_eos=False)  # what matches a grammar must end
        tickets: list[Ticket] = []
        firsts: list[Ticket] = []
        for job in jobs:
            limit = self._clamp(common, len(job.prompt), model.context, param)
            for n in range(common.n):
                ticket = Ticket(
                    job.prompt,
                    limit,
                    common,
                    choice=len(tickets),
                    score_prompt=n == 0 and job.echo is not None and common.logprobs is not None,
                    grammar=job.constraint,
                    places=job.places,
                    owner=exchange.account.owner if self._settings.keys_apart else "",
                    model=model.number,
                    events=tickets[0].events if tickets else None,
                )
                if n == 0:
                    firsts.append(ticket)
                else:
                    firsts[-1].followers.append(ticket)
                tickets.append(ticket)
        self._line.admit(firsts)
        try:
            # Not before there is a place: what reads an answer costs something, too.
            generation = self._begin(exchange, model, jobs, tickets, client)
        except BaseException:
            for ticket in tickets:
                self._line.cancel(ticket)
                self._line.answered(ticket)
            raise
        exchange.admitted(generation, common.stream)
        self._status.record.admitted(exchange.account)
        answer(exchange, dialect, generation, common)

    def _begin(
        self,
        exchange: Exchange,
        model: Model,
        jobs: list[Job],
        tickets: list[Ticket],
        client: Client,
    ) -> Generation:
        each = len(tickets) // len(jobs)
        choices = [
            Choice(ticket, jobs[place // each].text_out(), jobs[place // each].echo)
            for place, ticket in enumerate(tickets)
        ]
        if self._settings.log_prompts:
            exchange.account.texts = Texts([model.prompts.decode(job.prompt) for job in jobs])
        following = Following.of(client, tickets, self._line)
        return Generation(choices, following, model.prompts.describe)

    def _frame(self, model: Model, common: Common, prompts: int) -> tuple:
        return (
            model.name,
            model.fingerprint,
            prompts * common.n,
            common.logprobs is not None,
            common.include_usage,
        )

    def _client(self, exchange: Exchange) -> Client:
        """Whoever sent the request: what it waits for before it is admitted is its own time."""
        timeout, started = self._settings.req_timeout, exchange.account.started
        total = self._settings.req_total_timeout or math.inf
        return Client(
            exchange.account.key or neighbourhood(exchange.client_address[0]),
            timeout=timeout,
            deadline=started + timeout,
            total=total,
            end=started + total,
            gone=exchange.client_gone,
            serving=self._check_serving,
        )

    def _check_serving(self) -> None:
        """Raises ApiError 503 unless the server does."""
        state = self._status.state
        if state.phase == LOADING or not self._models.begun:
            raise unavailable(f"The model is loading: {state.detail}.", "loading", self._patience())
        if state.phase != OK:
            why = f": {state.detail}" if state.phase in ENDING else ""
            raise unavailable(f"The server is {state.phase}{why}.", state.phase)

    def _patience(self) -> float:
        """Seconds to come back after, while the model loads: as long again as that has taken.
        Always few, they would use up an agent's retries long before a large model is there."""
        loading = time.monotonic() - self._status.start.since
        return min(max(loading, 1.0), LOADING_RETRY_S)

    def _clamp(self, common: Common, prompt_tokens: int, context: int, param: str) -> int:
        """The limit on generated tokens, so that prompt and answer fit the context."""
        room = context - prompt_tokens
        if room < 1:
            raise context_exceeded(prompt_tokens, context, param)
        return min(common.max_tokens or self._settings.default_max_tokens or room, room)


def _check_conversation(request: ChatRequest, model: Model) -> None:
    """Refuses before it is rendered what has more text than the context's tokens can stand for."""
    given = [request.messages, request.tools, request.template_kwargs]
    check_length(count_chars(given), model.prompts.token_bytes, model.context, request.source)
