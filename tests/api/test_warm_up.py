"""Prompts of PREFIX_WARM, computed through the line as any request."""

import threading

import pytest

from server.api.models import Model
from server.api.warm_files import Warm
from server.api.warm_up import WarmUp
from server.protocol.errors import engine_failed, unavailable
from server.protocol.events import Failed
from server.protocol.requests import ChatRequest, Sampling
from server.scheduler.prefix_index import EVERYBODY, PrefixIndex
from server.scheduler.queue import Ticket
from tests.support.talk import Talk

SYSTEM = {"role": "system", "content": "You are kind." * 20}
HELLO = {"role": "user", "content": "hello"}


def anything(tokens: int) -> bool:
    return True


@pytest.fixture(params=["llama", "qwen3_5"])
def talk(request, tmp_path):
    return Talk(tmp_path, request.param)


def warm(talk: Talk, *prompts: Warm, owner: str = "") -> list[str]:
    """Computes them on the desk; returns what was told."""
    told: list[str] = []
    desk = talk.desk
    model = Model(talk.prompts, 2**17, Sampling(), "fp")
    up = WarmUp(prompts, model, desk.line, told.append, owner, anything)
    # The desk runs while it has tickets: one that waits for the rest keeps it going.
    thread = threading.Thread(target=up.run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if desk.line.held():
            desk.events()
    return told


def test_who_begins_with_a_warm_system_prompt_computes_only_what_is_his(talk):
    told = warm(talk, Warm("a:1", ChatRequest([SYSTEM]), instructions=True))
    assert told == ["warming prefixes: 1 of 1"]
    prompt, cached, _ = talk.ask([SYSTEM, HELLO])
    beginning = len(talk.encode("<|im_start|>system\n" + SYSTEM["content"]))
    assert beginning < cached <= prompt - len(talk.encode("hello"))


def test_who_asks_a_warm_request_computes_one_token(talk):
    warm(talk, Warm("a:1", ChatRequest([SYSTEM, HELLO])))
    prompt, cached, _ = talk.ask([SYSTEM, HELLO])
    assert cached == prompt - 1


def test_everybody_finds_what_was_warmed_for_all(talk):
    warm(talk, Warm("a:1", ChatRequest([SYSTEM]), instructions=True), owner=EVERYBODY)
    one = talk.ticket([SYSTEM, HELLO])
    one.owner = "name ann"
    talk.desk.run(one)
    assert one.cached > len(SYSTEM["content"])


def test_what_cannot_be_computed_keeps_nobody_waiting(talk, caplog):
    """No user turn at all, which this template refuses."""
    bad = Warm("file:7", ChatRequest([{"role": "assistant", "content": "hi"}]))
    told = warm(talk, bad, Warm("file:8", ChatRequest([SYSTEM, HELLO])))
    assert told == ["warming prefixes: 1 of 2", "warming prefixes: 2 of 2"]
    assert "PREFIX_WARM: file:7: not computed: 'messages'" in caplog.text
    assert talk.ask([SYSTEM, HELLO])[1]


class Line:
    """One that answers every ticket with what it is told, or refuses it."""

    def __init__(self, *answers) -> None:
        self.answers, self.admitted, self.done = list(answers), [], []

    def admit(self, tickets: list[Ticket]) -> None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.admitted += tickets
        for one in tickets:
            one.put(answer)

    def answered(self, ticket: Ticket) -> None:
        self.done.append(ticket)


def test_a_server_that_ends_computes_no_more(talk):
    line = Line(unavailable("The server is draining.", "draining"))
    prompts = [Warm(f"a:{n}", ChatRequest([SYSTEM, HELLO])) for n in range(3)]
    model = Model(talk.prompts, 2**17, Sampling(), "fp")
    WarmUp(prompts, model, line, lambda stage: None, "", anything).run()
    assert not line.admitted and not line.answers


def test_a_failure_of_the_engine_is_told_and_the_next_is_computed(talk, caplog):
    line = Line(Failed(engine_failed("broken")), Failed(engine_failed("broken")))
    prompts = [Warm(f"a:{n}", ChatRequest([SYSTEM, HELLO])) for n in range(2)]
    model = Model(talk.prompts, 2**17, Sampling(), "fp")
    WarmUp(prompts, model, line, lambda stage: None, "", anything).run()
    assert line.done == line.admitted and len(line.done) == 2
    assert "a:0: not computed" in caplog.text and "a:1: not computed" in caplog.text


def test_a_prompt_that_does_not_fit_the_context_is_told(talk, caplog):
    model = Model(talk.prompts, 100, Sampling(), "fp")
    prompts = [Warm("a:1", ChatRequest([SYSTEM, HELLO]))]
    WarmUp(prompts, model, Line(), lambda stage: None, "", anything).run()
    assert "a:1: not computed" in caplog.text and "100" in caplog.text


def test_a_prompt_that_could_not_be_kept_is_not_computed(talk, caplog):
    """It was, at each start, and the log said that it is warm."""
    index, line = PrefixIndex(room=50, cuttable=True), Line()
    model = Model(talk.prompts, 2**17, Sampling(), "fp")
    prompts = [Warm("a:1", ChatRequest([SYSTEM, HELLO]))]
    WarmUp(prompts, model, line, lambda stage: None, "", index.fits).run()
    assert not line.admitted
    assert "a:1: not computed" in caplog.text and "PREFIX_CACHE_PERCENT" in caplog.text
