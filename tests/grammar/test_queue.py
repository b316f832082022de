"""The queue of new grammars, over a compiler that does as it is told."""

import threading
import time

import pytest

from server.grammar.cache import KEPT_REFUSALS, GrammarCache, key_of
from server.grammar.queue import (
    MAX_GRAMMARS,
    MAX_GRAMMARS_EACH,
    MAX_WAITING,
    MAX_WAITING_EACH,
    GrammarQueue,
    NotNow,
)
from server.protocol.client import SERVER, Client, ClientGone
from server.protocol.errors import ApiError, engine_failed

GUARD_S = 240.0  # against a hang; nothing here waits for it


class Waiter(threading.Thread):
    """Asks for one grammar on a thread of its own, as a request does."""

    def __init__(self, queue: GrammarQueue, text: str, source: str, deadline: float = 1e12) -> None:
        super().__init__(daemon=True)
        self.left = threading.Event()
        self.result = self.error = None
        self._queue, self._text = queue, text
        self._client = Client(source, timeout=600.0, deadline=deadline, gone=self.left.is_set)
        self.start()

    def run(self) -> None:
        try:
            self.result = self._queue.ask(self._text, self._client)
        except (ApiError, ClientGone) as error:
            self.error = error

    def end(self) -> "Waiter":
        self.join(GUARD_S)
        assert not self.is_alive()
        return self


class Desk:
    """A queue whose compiler waits, for each grammar, until it is let go. seconds: what each is
    said to have taken."""

    def __init__(self) -> None:
        self.cache = GrammarCache()
        self.order: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.seconds = 2.0
        self.begun = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._now = 0.0
        self.queue = GrammarQueue(self._compile, self.cache.find, lambda: self._now)
        self.clients: list[Waiter] = []

    def _compile(self, text: str, source: str) -> str:
        self.order.append(text)
        self.begun.release()
        self._go.acquire()
        self._now += self.seconds
        if text in self.errors:
            raise self.errors[text]
        self.cache.keep(key_of(text), text.upper(), 1, source)
        return text.upper()

    def ask(self, text: str, source: str = "a", **more) -> Waiter:
        """Returns when the request waits, or has its answer. While nothing else moves."""
        waiting = self.queue.waiting()
        client = Waiter(self.queue, text, source, **more)
        self.clients.append(client)
        wait_until(lambda: not client.is_alive() or self.queue.waiting() != waiting)
        return client

    def starts(self) -> None:
        assert self.begun.acquire(timeout=GUARD_S)

    def finish(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()

    def end(self) -> None:
        for client in self.clients:
            client.left.set()
        self.queue.close(lambda: self.finish(1000))


def wait_until(true) -> None:
    deadline = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def desk():
    one = Desk()
    yield one
    one.end()


def crowd(desk: Desk, count: int, source: str) -> list[Waiter]:
    """So many requests, each for a grammar of its own, all waiting."""
    before = desk.queue.waiting()[1]
    clients = [Waiter(desk.queue, f"{source} {n}", source) for n in range(count)]
    desk.clients += clients
    wait_until(lambda: desk.queue.waiting()[1] == before + count)
    return clients


class TestKnown:
    def test_what_is_known_is_had_while_another_compiles(self, desk):
        """All waited for one lock, the cached ones, too."""
        desk.cache.keep(key_of("known"), "KNOWN", 1, "")
        desk.cache.refuse(key_of("bad"), "it is bad")
        crowd(desk, MAX_GRAMMARS_EACH, "a")
        desk.starts()
        client = Client("a", deadline=0.0, gone=lambda: True)  # not even looked at
        assert desk.queue.ask("known", client) == "KNOWN"
        assert desk.queue.ask("bad", client) == "it is bad"
        assert len(desk.order) == 1

    def test_many_want_one_grammar_and_it_is_compiled_once(self, desk):
        clients = [desk.ask("same", source) for source in "aaabbc"]
        desk.starts()
        assert desk.queue.waiting() == (1, 6)
        desk.finish()
        assert [client.end().result for client in clients] == ["SAME"] * 6
        assert desk.ask("same").end().result == "SAME"
        assert desk.order == ["same"]


class TestLeaving:
    def test_a_client_that_leaves_frees_its_thread_and_its_grammar_is_not_begun(self, desk):
        """Threads of clients that were gone held every place for an hour."""
        first = desk.ask("first")
        desk.starts()
        others = crowd(desk, 10, "b")
        for client in (first, *others):
            client.left.set()
        for client in (first, *others):
            assert isinstance(client.end().error, ClientGone)
        assert desk.queue.waiting() == (1, 0)
        last = desk.ask("last", "b")
        desk.finish(2)
        assert last.end().result == "LAST"
        assert desk.order == ["first", "last"]

    def test_nothing_is_begun_for_a_client_that_has_left_before(self, desk):
        with pytest.raises(ClientGone):
            desk.queue.ask("x", Client("a", gone=lambda: True))
        assert desk.queue.waiting() == (0, 0)
        assert not desk.order

    def test_what_was_begun_for_a_leaver_is_there_for_the_next(self, desk):
        first = desk.ask("x")
        desk.starts()
        first.left.set()
        first.end()
        second = desk.ask("x", "b")
        desk.finish()
        assert second.end().result == "X"
        assert desk.order == ["x"]

    def test_waiting_counts_against_the_requests_own_deadline(self, desk):
        desk.ask("first")
        desk.starts()
        late = desk.ask("second", deadline=time.monotonic() + 0.05)
        assert late.end().error.status == 504
        assert late.error.code == "request_timeout"
        assert desk.queue.waiting() == (1, 1)

    def test_a_server_that_stops_serving_tells_those_who_wait(self, desk):
        failing = []

        def serving() -> None:
            if failing:
                raise failing[0]

        told: list[ApiError] = []

        def ask() -> None:
            with pytest.raises(ApiError) as caught:
                desk.queue.ask("x", Client("a", serving=serving))
            told.append(caught.value)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        desk.starts()
        failing.append(engine_failed("over"))
        thread.join(GUARD_S)
        assert [error.message for error in told] == ["over"]


class TestBounds:
    def test_a_source_has_so_many_grammars_and_the_next_is_429(self, desk):
        crowd(desk, MAX_GRAMMARS_EACH, "a")
        error = desk.ask("one more").end().error
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert int(error.headers()["Retry-After"]) >= 1
        assert desk.ask("one more", "b").is_alive()
        # Of those that wait already, more may be asked for.
        assert desk.ask("a 3", "a").is_alive()

    def test_in_all_there_are_so_many_and_the_next_is_503(self, desk):
        for n in range(MAX_GRAMMARS):
            crowd(desk, 1, f"source {n}")
        error = desk.ask("one more", "new").end().error
        assert (error.status, error.code) == (503, "grammars_full")
        assert int(error.headers()["Retry-After"]) >= 1

    def test_a_few_who_have_all_places_make_room_for_a_newcomer(self, desk):
        crowds = [
            crowd(desk, MAX_GRAMMARS_EACH, f"source {n}")
            for n in range(MAX_GRAMMARS // MAX_GRAMMARS_EACH)
        ]
        desk.starts()
        newcomer = Waiter(desk.queue, "small", "new")
        desk.clients.append(newcomer)
        wait_until(lambda: any(not one.is_alive() for one in sum(crowds, [])))
        (away,) = [one for one in sum(crowds, []) if not one.is_alive()]
        assert (away.error.status, away.error.code) == (503, "grammars_full")
        desk.finish(len(crowds) + 1)  # each of them has its first turn before
        assert newcomer.end().result == "SMALL"

    def test_requests_for_one_grammar_are_bounded_too(self, desk):
        for n in range(MAX_WAITING // MAX_WAITING_EACH):
            for _ in range(MAX_WAITING_EACH):
                desk.clients.append(Waiter(desk.queue, "same", f"source {n}"))
        wait_until(lambda: desk.queue.waiting() == (1, MAX_WAITING))
        assert desk.ask("same", "source 0").end().error.status == 429
        assert desk.ask("same", "new").end().error.status == 503

    def test_a_place_is_free_again_when_its_client_has_left(self, desk):
        clients = crowd(desk, MAX_GRAMMARS_EACH, "a")
        desk.starts()
        assert desk.ask("x").end().error.status == 429
        waiting = [one for one in clients if one._text not in desk.order]
        waiting[0].left.set()
        waiting[0].end()
        assert desk.ask("x").is_alive()


class TestTurns:
    def test_a_newcomer_waits_for_the_one_that_compiles_and_for_no_other(self, desk):
        crowd(desk, MAX_GRAMMARS_EACH, "hostile")
        desk.starts()
        honest = desk.ask("small", "honest")
        desk.finish(2)
        assert honest.end().result == "SMALL"
        assert desk.order.index("small") == 1

    def test_many_hostile_sources_do_not_hold_up_one_that_took_nothing(self, desk):
        for n in range(3):
            slow = desk.ask(f"slow {n}", f"hostile {n}")
            desk.starts()
            desk.finish()
            slow.end()
        for n in range(3):
            crowd(desk, 5, f"hostile {n}")
        desk.starts()
        honest = desk.ask("small", "honest")
        desk.finish(2)
        assert honest.end().result == "SMALL"

    def test_two_who_take_as_much_take_turns(self, desk):
        first = desk.ask("a first", "a")
        desk.starts()
        crowd(desk, 3, "a")
        crowd(desk, 3, "b")
        desk.finish(7)
        assert first.end().result == "A FIRST"
        wait_until(lambda: len(desk.order) == 7)
        assert [text[0] for text in desk.order] == list("abababa")

    def test_one_source_has_its_grammars_in_order(self, desk):
        for n in range(4):
            desk.ask(f"x{n}")
        desk.finish(4)
        wait_until(lambda: len(desk.order) == 4)
        assert desk.order == ["x0", "x1", "x2", "x3"]


class TestFailures:
    def test_a_trial_that_was_cut_is_503_for_its_own_alone_and_not_remembered(self, desk):
        desk.errors["x"] = NotNow("the child was killed", all=False)
        cut, other = desk.ask("x"), desk.ask("y")
        desk.finish(2)
        error = cut.end().error
        assert (error.status, error.code) == (503, "grammars_failed")
        assert int(error.headers()["Retry-After"]) >= 1
        assert other.end().result == "Y"
        del desk.errors["x"]
        again = desk.ask("x")
        desk.finish()
        assert again.end().result == "X"

    def test_where_no_child_can_be_had_nobody_waits_for_the_next(self, desk):
        desk.errors["x"] = NotNow("no child", all=True)
        first = desk.ask("x")
        desk.starts()
        others = crowd(desk, 5, "b")
        desk.finish()
        assert [one.end().error.status for one in (first, *others)] == [503] * 6
        assert desk.order == ["x"]
        after = desk.ask("after")
        desk.finish()
        assert after.end().result == "AFTER"

    def test_a_bug_fails_one_grammar(self, desk):
        desk.errors["x"] = ZeroDivisionError()
        broken, other = desk.ask("x"), desk.ask("y")
        desk.finish(2)
        assert broken.end().error.status == 500
        assert other.end().result == "Y"

    def test_the_end_tells_all_who_wait(self, desk):
        clients = crowd(desk, 3, "a")
        desk.starts()
        desk.queue.close(desk.finish)
        ends = sorted(str(one.end().result or one.error.status) for one in clients)
        assert ends == ["503", "503", "A 0"]
        assert desk.ask("late").end().error.status == 503


class TestCache:
    def test_bytes_are_bounded_and_who_has_most_gives_up_its_oldest(self, monkeypatch):
        monkeypatch.setattr("server.grammar.cache.KEPT_BYTES", 10 * 2**20)
        cache = GrammarCache()
        cache.keep(b"server", "s", 50 * 2**20, SERVER.source)
        cache.keep(b"honest", "h", 2**20, "honest")
        for n in range(100):
            cache.keep(b"%d" % n, str(n), 3 * 2**20, "greedy")
            cache.find(b"0")
        assert cache.find(b"server") == "s"
        assert cache.find(b"honest") == "h"
        kept = [n for n in range(100) if cache.find(b"%d" % n) is not None]
        assert kept == [0, 98, 99]

    def test_small_ones_count_too(self, monkeypatch):
        monkeypatch.setattr("server.grammar.cache.KEPT_BYTES", 10 * 2**20)
        cache = GrammarCache()
        for n in range(100):
            cache.keep(b"%d" % n, str(n), 0, "a")
        assert sum(cache.find(b"%d" % n) is not None for n in range(100)) == 10

    def test_refusals_are_bounded(self):
        cache = GrammarCache()
        for n in range(KEPT_REFUSALS + 10):
            cache.refuse(b"%d" % n, f"reason {n}")
        assert cache.find(b"9") is None
        assert cache.find(b"10") == "reason 10"

    def test_texts_are_not_kept(self):
        assert len(key_of("x" * 500_000)) == 32
        assert key_of("a\ud800") != key_of("a")
