"""The whole front end over the demo model's tokenizer; only the model is made up.

The engine says a set text, or, where a request has a grammar, something that the grammar allows:
forced calls and structured output are as real as with a model, and as quick as without.
"""

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from server.api.models import Model
from server.api.routes import App
from server.observe.account import Account
from server.observe.recorder import Recorder
from server.observe.status import Status
from server.observe.views import Capacity
from server.protocol.embedding_kind import EmbeddingKind
from server.protocol.events import Event, Score, Scored, Token
from server.protocol.requests import Sampling
from server.protocol.settings import read_settings
from server.scheduler.queue import Line, Ticket
from server.transport.http_server import Server
from tests.support.raw_http import RawAnswer, RawClient, request
from tests.support.stub_engine import StubEngine

MODEL = "demo"
CONTEXT = 2048
TEXT = "The capital of France is Paris."


class Speaker:
    """A script for StubEngine. tokenizer: an mlx_lm TokenizerWrapper; vocab: size of the logits.

    text: what it says to those who ask for nothing in particular.
    """

    def __init__(self, tokenizer: Any, vocab: int, text: str = TEXT) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.vocab = vocab
        self._eos = set(tokenizer.eos_token_ids)
        names = tokenizer.convert_ids_to_tokens(list(range(vocab)))
        # What ends things comes first, or an answer would go on for ever; then other things.
        enders = [names.index(mark) for mark in ('"', "}", "]", ",", ":")]
        self._favourites = [*sorted(self._eos), *enders]
        plain = [i for i, name in enumerate(names) if name and name.isascii() and name.isalnum()]
        self._plain = np.zeros(vocab, bool)
        self._plain[plain] = True

    def __call__(self, ticket: Ticket) -> Iterator[Event]:
        asked = ticket.common.logprobs
        if ticket.score_prompt:
            yield Scored(tuple(_score(token, asked) for token in ticket.prompt[1:]))
        tokens = self._obey(ticket) if ticket.grammar else self._speak()
        for count, token in enumerate(tokens, 1):
            finish = "stop" if token in self._eos else None
            if finish is None and count == ticket.max_tokens:
                finish = "length"
            yield Token(token, finish, None if asked is None else _score(token, asked))
            if finish is not None:
                return

    def _speak(self) -> Iterator[int]:
        yield from self.tokenizer.encode(self.text, add_special_tokens=False)
        yield min(self._eos)

    def _obey(self, ticket: Ticket) -> Iterator[int]:
        matcher, chance = ticket.grammar.matcher(), random.Random(ticket.uid)
        while True:
            token = self._choose(matcher.mask(), chance)
            yield token
            if token in self._eos:
                return
            matcher.accept(token)

    def _choose(self, mask: np.ndarray | None, chance: random.Random) -> int:
        if mask is None:
            return chance.choice(np.flatnonzero(self._plain).tolist())
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab].astype(bool)
        for token in self._favourites:
            if allowed[token]:
                return token
        likely = allowed & self._plain
        return chance.choice(np.flatnonzero(likely if likely.any() else allowed).tolist())


def _score(token: int, alternatives: int | None) -> Score:
    top = tuple((token + i, -0.5 - i) for i in range(alternatives or 0))
    return Score(token, -0.5, top)


@functools.cache
def _tokenizer(model_dir: Path) -> Any:
    """Read once by a process: it takes longer than what most tests ask of it."""
    from mlx_lm.tokenizer_utils import load

    return load(model_dir)


class FrontEnd:
    """App, server and engine, wired as rank 0 wires them, ready to be asked."""

    def __init__(
        self,
        model_dir: Path,
        record: Recorder | None = None,
        on_closed: Callable[[Account], None] = lambda account: None,
        context: int = CONTEXT,
        port: int = 0,
        loading: bool = False,
        **env: str,
    ) -> None:
        """loading: until load() it says that it is."""
        from server.text.prompts import TokenizerPrompts

        settings = read_settings({"MODEL_DIR": str(model_dir), "MODEL_ID": MODEL} | env)
        tokenizer = _tokenizer(model_dir)
        vocab = len(tokenizer.get_vocab())
        status = self.status = Status(MODEL, "run-1", record=record)
        self.line = Line(settings.max_batch, settings.queue_max, lambda: status.load.slot_free_s)
        self.speaker = Speaker(tokenizer, vocab)
        self.app = App(settings, status, self.line, on_closed)
        self.prompts = TokenizerPrompts(tokenizer, vocab, settings.chat_template_kwargs)
        self.context = context
        self.engine = StubEngine(self.line, status, self.speaker)
        self.server = Server("127.0.0.1", port, self.app)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        if not loading:
            self.load()

    def load(self, context: int | None = None) -> None:
        """The model is there: serves. context: from now on, if not what it had."""
        self.context = context or self.context
        model = Model(self.prompts, self.context, Sampling(), "fp_demo", EmbeddingKind(4))
        self.app.model_loaded(model)
        self.status.publish(Capacity(self.context))
        self.status.phases.serve()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def ask(self, method: str, path: str, body: dict | None = None, *headers: str) -> RawAnswer:
        """By hand: a client of its own for each request would take longer than the server."""
        with RawClient(self.server.port) as client:
            return client.ask(request(method, path, body, *headers))

    @contextlib.contextmanager
    def saying(self, text: str):
        """Another text while this lasts."""
        before, self.speaker.text = self.speaker.text, text
        yield
        self.speaker.text = before

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.engine.end()
