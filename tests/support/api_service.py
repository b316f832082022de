"""The whole front end on port 0, with a stub for the model."""

import contextlib
import threading
import time

import openai
import pytest

from server.api.models import Model
from server.api.routes import App
from server.observe.status import Status
from server.observe.views import Capacity
from server.protocol.embedding_kind import EmbeddingKind
from server.protocol.requests import Sampling
from server.protocol.settings import read_settings
from server.scheduler.queue import Line
from server.transport.http_server import Server
from tests.support.raw_http import DEADLINE_S, RawAnswer, RawClient, request
from tests.support.stub_engine import CONTEXT, StubEngine, StubPrompts

MODEL = "org/demo"


class Service:
    """App, server and stub engine, wired as rank 0 wires them."""

    def __init__(self, model_dir, **env: str) -> None:
        self.settings = read_settings({"MODEL_DIR": str(model_dir), "MODEL_ID": MODEL} | env)
        self.status = Status(MODEL, "run-1")
        self.line = Line(
            self.settings.max_batch,
            self.settings.queue_max,
            lambda: self.status.load.slot_free_s,
        )
        self.app = App(self.settings, self.status, self.line)
        self.engine = StubEngine(self.line, self.status)
        self.server = Server("127.0.0.1", 0, self.app)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self.server.port

    def finish_loading(self) -> "Service":
        self.prompts = StubPrompts()
        self.app.model_loaded(Model(self.prompts, CONTEXT, Sampling(), "fp_stub", EmbeddingKind(4)))
        self.status.publish(Capacity(CONTEXT))
        self.status.phases.serve()
        return self

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.engine.end()

    # Asking.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str = "none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0} | options)

    def ask(self, method: str, path: str, body=None, *headers: str) -> RawAnswer:
        with RawClient(self.port) as client:
            return client.ask(request(method, path, body, *headers), head=method == "HEAD")

    def open(self, path: str, body: dict) -> RawClient:
        """A connection that has asked, and has not read."""
        client = RawClient(self.port)
        client.send(request("POST", path, body))
        return client

    def wait_for(self, condition) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "not reached"
            time.sleep(0.005)

    @contextlib.contextmanager
    def filled(self, count: int):
        """count requests that stay; the engine stands still meanwhile."""
        self.engine.go.clear()
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.open("/v1/completions", {"prompt": "hold"}))
            self.wait_for(lambda: self.line.held() == count)
            yield
        self.wait_for(lambda: self.line.held() == 0)
        self.engine.go.set()


def test_a_model_has_the_names_that_its_operator_gives_it(start):
    """Agents ask for names that they know."""
    service = start(MODEL_ALIASES="gpt-5, claude-haiku-4-5")
    cards = service.client().models.list().data
    assert [card.id for card in cards] == [MODEL, "gpt-5", "claude-haiku-4-5"]
    assert {card.root for card in cards} == {MODEL}
    assert service.client().models.retrieve("gpt-5").root == MODEL
    assert chat(service.client(), "hello", model="gpt-5").model == MODEL
    for ask in (lambda api: chat(api, model="gpt-6"), lambda api: api.models.retrieve("gpt-6")):
        with pytest.raises(openai.NotFoundError):
            ask(service.client())


def test_a_model_may_have_any_name(start):
    service = start(MODEL_ALIASES="* known")
    assert [card.id for card in service.client().models.list().data] == [MODEL, "known"]
    assert service.client().models.retrieve("what/ever").root == MODEL
    body = {"model": "what/ever", "max_tokens": 5, "messages": user("hello")}
    assert service.ask("POST", "/v1/messages", body).json["model"] == "what/ever"
    for path in ("messages/count_tokens", "tokenize"):
        assert service.ask("POST", f"/v1/{path}", body).status == 200


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat(client, text: str = "hello", **fields):
    return client.chat.completions.create(
        **{"model": MODEL, "messages": user(text)} | fields,
    )
