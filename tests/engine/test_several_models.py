"""Rank 0 of one with several models, whole but for its socket: loads, switches, refusals."""

import gc
import threading
import weakref

import mlx.core as mx
import pytest

from server import ready
from server.protocol.events import Failed
from server.startup.piece_pace import at_once
from tests.support.house import DEADLINE_S, House


def test_models_take_turns_and_say_what_they_always_say(tmp_path):
    def act(house: House) -> None:
        right = {name: house.ask(name) for name in "abc"}
        assert all(len(ids) == 6 for ids in right.values())
        assert sorted(house.states().values()) == ["loaded", "loaded", "unloaded"]
        tickets = [(name, house.begin(name)) for name in "abcbacbca"]
        assert all(house.end(ticket) == right[name] for name, ticket in tickets)

    House(tmp_path).run(act)


def test_two_models_that_fit_run_beside_each_other(tmp_path):
    def act(house: House) -> None:
        alone = {name: house.ask(name, tokens=40, prompt=range(9, 99)) for name in "ab"}
        tickets = [(n, house.begin(n, tokens=40, prompt=range(9, 99))) for n in "abab"]
        assert all(house.end(ticket) == alone[name] for name, ticket in tickets)
        assert [one.loads for one in house.app.catalog.models] == [1, 1, 0]

    House(tmp_path).run(act)


@pytest.mark.thorough
def test_after_many_switches_no_more_memory_is_used_than_after_the_first(tmp_path):
    used = []

    def act(house: House) -> None:
        for name in "bcbcbcbcbcbcbcbcbcbc":
            house.ask(name)
            used.append(mx.get_active_memory())

    House(tmp_path, MODELS_GB="0.0018", PINNED="").run(act)
    gc.collect()
    assert max(used[10:]) <= max(used[:6]) + 2**16


def test_of_a_model_that_goes_nothing_is_left(tmp_path):
    """Also of the first, and before what it makes room for is begun."""
    models, left = [], []
    load = ready.load_pieces

    def loading(*arguments):
        left.append(sum(model() is not None for model in models))
        shard = yield from load(*arguments)
        models.append(weakref.ref(shard.model))
        return shard

    def act(house: House) -> None:
        for name in "bcabca":
            house.ask(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready, "load_pieces", loading)
        patch.setattr(ready, "load_shard", lambda *arguments: at_once(loading(*arguments)))
        House(tmp_path, MODELS_GB="0.0018", SPECULATE="auto").run(act)
    assert left == [0] * 7


def test_what_cannot_be_loaded_is_refused_with_the_reason_and_the_others_go_on(tmp_path):
    def act(house: House) -> None:
        right = house.ask("a")
        (house.folders["b"] / "model.safetensors").write_bytes(b"broken")
        running = house.begin("a", tokens=100)
        refused = house.ask("b")
        assert isinstance(refused, Failed) and refused.error.status == 503
        assert "cannot be loaded" in refused.error.message
        assert len(house.end(running)) == 100
        assert house.ask("a") == right and house.states()["b"] == "unloaded"

    House(tmp_path).run(act)


def test_a_pinned_model_stays_and_who_has_no_room_beside_it_hears_so(tmp_path):
    def act(house: House) -> None:
        house.ask("b")
        refused = house.ask("c")
        assert "MODELS_GB" in refused.error.message
        assert house.states() == {"a": "loaded", "b": "loaded", "c": "unloaded"}

    House(tmp_path, PINNED="a,b").run(act)


def test_who_leaves_while_a_model_is_on_its_way_frees_the_place(tmp_path):
    def act(house: House) -> None:
        long = house.begin("a", tokens=200)
        gone = house.begin("b")
        house.line.cancel(gone)
        house.end(long)
        house.ask("a")
        assert house.line.held() == 0

    House(tmp_path).run(act)


def test_a_model_that_nobody_uses_goes_and_comes_again(tmp_path):
    def act(house: House) -> None:
        right = house.ask("a")
        end = threading.Event()
        for _ in range(DEADLINE_S * 20):
            if house.states()["a"] == "unloaded":
                break
            end.wait(0.05)
        assert house.states()["a"] == "unloaded"
        assert house.ask("a") == right

    House(tmp_path, IDLE_UNLOAD="0.2").run(act)


def test_many_clients_of_two_models_of_which_one_fits_are_served_in_few_switches(tmp_path):
    """Asked for one by one, each model in turn: what waits for a model is served while it is there,
    and what comes for it after another was asked for waits for its next turn."""

    def act(house: House) -> None:
        right = {name: house.ask(name) for name in "bc"}
        before = sum(one.loads for one in house.app.catalog.models)
        tickets = [("bc"[n % 2], house.begin("bc"[n % 2])) for n in range(60)]
        assert all(house.end(ticket) == right[name] for name, ticket in tickets)
        assert sum(one.loads for one in house.app.catalog.models) - before <= 4

    House(tmp_path, MODELS_GB="0.0018").run(act)


def test_a_model_that_is_always_asked_for_does_not_keep_another_waiting(tmp_path):
    def act(house: House) -> None:
        right = {name: house.ask(name) for name in "cb"}
        over = threading.Event()
        answers = []

        def keep_asking() -> None:
            while not over.is_set():
                answers.append(house.ask("b"))

        threads = [threading.Thread(target=keep_asking) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            assert house.ask("c") == right["c"]
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert all(answer == right["b"] for answer in answers)

    House(tmp_path, MODELS_GB="0.0018").run(act)


def test_a_model_that_goes_whenever_it_is_idle_loses_no_request(tmp_path):
    def act(house: House) -> None:
        right = {name: house.ask(name) for name in "ab"}
        for name in "abbaabab":
            assert house.ask(name) == right[name]
        assert sum(one.left_idle for one in house.app.catalog.models) > 0

    House(tmp_path, IDLE_UNLOAD="0.001").run(act)


def test_answers_of_two_models_that_outgrow_their_memory_are_paused_and_go_on(tmp_path):
    def act(house: House) -> None:
        right = {name: house.ask(name, tokens=400) for name in "ab"}
        tickets = [(name, house.begin(name, tokens=400)) for name in "aabbab"]
        assert all(house.end(ticket) == right[name] for name, ticket in tickets)
        assert house.status.record.pauses

    House(tmp_path, KV_BUDGET_GB="0.0016").run(act)
