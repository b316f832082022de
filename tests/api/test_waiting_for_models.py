"""Who waits for a model to be loaded: a stream hears of it, and each API's clients see the list in
their own words."""

import math
import threading

import pytest

from server.api import responder
from server.api.dialects import messages
from server.api.models import Model, Models
from server.api.responder import Alive
from server.protocol.errors import ApiError
from server.protocol.requests import Sampling
from server.scheduler.catalog import LOADING, Catalog


class Stream:
    """An exchange, as far as Alive asks for one."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.streaming = False

    def begin_stream(self) -> None:
        assert not self.streaming
        self.streaming = True

    def send_ping(self, text: str) -> None:
        self.sent.append(text)


class Patient:
    """A client that stays."""

    def look(self) -> None:
        pass


@pytest.fixture
def models() -> Models:
    return Models(Catalog(["large", "small\n"], most=2), ())


def test_a_stream_hears_how_far_its_model_is_and_then_goes_on(models, monkeypatch):
    monkeypatch.setattr(responder, "PING_S", 0.0)
    catalog, stream = models._catalog, Stream()
    catalog.note(1, state=LOADING, share=0.4)
    alive, told = Alive(stream), threading.Event()

    def tell(text: str) -> None:
        alive(text)
        told.set()

    def load() -> None:
        assert told.wait(60)
        models.loaded(Model(None, 100, Sampling(), "fp"), 1)

    thread = threading.Thread(target=load)
    thread.start()
    models.wait_for(1, Patient(), math.inf, tell)
    thread.join()
    assert stream.streaming and "loading, 40%" in stream.sent[0]
    assert not any("\n" in text for text in stream.sent)


def test_nothing_is_sent_before_a_failure_could_still_be_a_status(models):
    stream = Stream()
    models._catalog.note(1, failed="no memory", failed_at=1e18)
    with pytest.raises(ApiError, match="no memory"):
        models.wait_for(1, Patient(), math.inf, Alive(stream))
    assert not stream.streaming


def test_who_waits_for_no_more_than_a_moment_is_told_the_state(models):
    models._catalog.note(1, state=LOADING, why="reading the tokenizer")
    with pytest.raises(ApiError, match="reading the tokenizer") as caught:
        models.wait_for(1, Patient(), 0.0)
    assert caught.value.status == 503 and int(caught.value.headers()["Retry-After"]) > 0


def test_anthropics_clients_see_the_list_in_their_words():
    cards = [{"id": name, "object": "model", "created": 0, "root": "x"} for name in "ab"]
    listed = messages.list_models(cards)
    assert [card["type"] for card in listed["data"]] == ["model", "model"]
    assert listed["data"][0]["created_at"] == "1970-01-01T00:00:00Z"
    assert listed["data"][0]["display_name"] == "x"
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", "b", False)
