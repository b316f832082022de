"""Models that a rank holds: what goes is gone, with its memory, before the next one comes."""

import weakref

from server.loop import turn
from server.residents import NotLoaded, Resident, Residents
from server.scheduler.spectator import Spectator
from server.wire.mailbox import Header
from server.wire.messages import Load, Message, Unload


class Prefixes:
    def compute(self) -> None:
        pass


class Decoding:
    live = 0


class Engine:
    """That has nothing to do."""

    busy = prefilling = False

    def __init__(self) -> None:
        self.prefixes, self.decoding, self.steered = Prefixes(), Decoding(), 0

    def steer(self, header: Header) -> None:
        self.steered += 1


class Post:
    """A mailbox with a bundle for each turn."""

    def __init__(self, *bundles: list[Message]) -> None:
        self._bundles = list(bundles)

    def meet(self) -> Header:
        return Header()

    def receive(self, header: Header) -> list[Message]:
        return self._bundles.pop(0)


def a_resident() -> Resident:
    return Resident(Engine(), Spectator(), lambda tell: None)


def test_a_model_is_gone_before_the_one_that_it_makes_room_for_is_begun():
    first = a_resident()
    gone, seen = weakref.ref(first.engine), []

    def load(number: int):
        seen.append((number, gone() is None))
        yield
        return a_resident()

    residents = Residents(first, load)
    del first
    post = Post([], [Unload(0), Load(1)], [], [])
    for _ in range(4):
        turn(residents, post, Spectator(), lambda stage: None)
    assert seen == [(1, True)]
    assert residents[1].engine.steered


def test_a_model_that_cannot_be_loaded_leaves_nothing(uncollected):
    """It hung on the exception that was still being handled while cycles were collected."""
    gone = []

    def load(number: int):
        here = a_resident()
        here.engine.itself = here.engine  # models are full of cycles
        gone.append(weakref.ref(here.engine))
        yield
        try:
            raise ValueError("what was met")
        except ValueError as error:
            raise NotLoaded("no sense in it") from error

    residents = Residents(a_resident(), load)
    residents.load(1)
    assert residents.advance() is None
    assert residents.advance() == (1, "no sense in it")
    assert gone[0]() is None


def test_an_engine_knows_whether_others_had_turns_since_its_last():
    first, second = a_resident(), a_resident()
    residents = Residents(first, lambda number: iter(()))
    residents._here[1] = second
    first.engine.busy = True
    seen = []
    for busy in (False, False, True, True, True, False, False):
        second.engine.busy = busy
        one = residents.next()
        seen.append((one is first, one.engine.interrupted))
    alone, first_again = (True, False), (True, True)
    assert seen == [alone, alone, (False, True), first_again, (False, True), first_again, alone]
    residents.load(2)
    residents.next()
    assert first.engine.interrupted, "a piece of a model comes between"
