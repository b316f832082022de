"""What one model has, each of several has: embeddings, keys in fewer bits, drafts."""

import numpy as np
import pytest

from server import rank
from server.protocol.events import Failed
from server.scheduler.step_costs import StepCosts
from tests.support.house import House

TEXTS = ([5, 6, 7], [9] * 40, [8])
SIXTY_FOUR = {"hidden": 256}  # values of a head: what fewer bits ask for
RISING = list(range(40, 120))  # what is drafted of such a prompt has something to go by


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_each_model_embeds_also_when_it_has_to_come_for_it(tmp_path):
    def act(house: House) -> None:
        kinds = [house.app.models.embeddings(number) for number in range(3)]
        assert [kind and kind.size for kind in kinds] == [64, None, None]
        right = {name: house.embed(name, *TEXTS) for name in "abc"}
        assert [len(right[name][0]) for name in "abc"] == [64, 128, 128]
        assert not same(right["b"], right["c"])
        assert all(same(house.embed(name, *TEXTS), right[name]) for name in "cab")
        kinds = [house.app.models.embeddings(number).size for number in range(3)]
        assert kinds == [64, 128, 128]
        house.until(lambda: house.line.held() == 0)

    House(tmp_path).run(act)


def test_a_model_embeds_beside_answers_of_another(tmp_path):
    def act(house: House) -> None:
        right, alone = house.ask("a", tokens=60), house.embed("b", *TEXTS)
        running = [house.begin("a", tokens=60) for _ in range(2)]
        assert same(house.embed("b", *TEXTS), alone)
        assert [house.end(ticket) for ticket in running] == [right, right]

    House(tmp_path).run(act)


def test_an_input_that_no_longer_fits_is_refused_and_no_place_is_lost(tmp_path):
    def act(house: House) -> None:
        refused = house.embed("b", [7] * 5000)
        assert isinstance(refused, Failed) and refused.error.code == "context_length_exceeded"
        house.until(lambda: house.line.held() == 0)
        assert len(house.embed("b", [7] * 500)) == 1

    House(tmp_path, KV_BUDGET_GB="0.005").run(act)


def test_keys_and_values_are_in_fewer_bits_in_the_models_that_bear_it(tmp_path):
    precision: list[str] = []

    def act(house: House) -> None:
        right = {name: house.ask(name, prompt=range(9, 99), tokens=40) for name in "abc"}
        tickets = [(n, house.begin(n, prompt=range(9, 99), tokens=40)) for n in "bcab"]
        assert all(house.end(ticket) == right[name] for name, ticket in tickets)
        precision.extend(card["kv_precision"] for card in house.app.catalog.describe())
        assert "b: keys and values are whole" not in notes(house)
        assert "c: keys and values are whole" in notes(house)

    shapes = {"a": SIXTY_FOUR, "b": SIXTY_FOUR, "c": {}}
    House(tmp_path, shapes, KV_BITS="8", KV_BITS_FROM="64", MODELS_GB="0.1").run(act)
    assert [text.startswith("full") for text in precision] == [False, False, True]


def notes(house: House) -> str:
    return " ".join(event["text"] if isinstance(event, dict) else event[1]
                    for event in house.status.events.events)  # fmt: skip


class Flat(StepCosts):
    """As if places cost nothing, so that all is drafted that is expected."""

    def observe(self, rows: int, width: int, seconds: float) -> None:
        self.measured[rows] = self.measured.get(rows, 0) + 1

    def of(self, rows: int, width: int) -> float:
        return 1.0


@pytest.fixture
def free_drafts(monkeypatch):
    monkeypatch.setattr(rank, "StepCosts", Flat)


def test_each_model_is_drafted_for_in_its_own_turns_and_no_answer_is_another(tmp_path, free_drafts):
    without = {}

    def plain(house: House) -> None:
        without.update((name, house.ask(name, tokens=80, prompt=RISING)) for name in "abc")

    def act(house: House) -> None:
        drafted = 0
        for names in ("a", "b", "ab", "aabb", "abcb"):
            tickets = [(n, house.begin(n, tokens=80, prompt=RISING)) for n in names]
            assert all(house.end(ticket) == without[name] for name, ticket in tickets)
            now = house.status.load.drafts
            assert now.right > drafted, names
            drafted = now.right
        assert [card["drafts"] for card in house.app.catalog.describe()] == ["of any row"] * 3

    House(tmp_path / "off").run(plain)
    House(tmp_path / "on", SPECULATE="auto", MODELS_GB="0.1").run(act)


def test_all_of_them_keep_prefixes_on_one_disk_and_find_them_when_they_come_again(tmp_path):
    def act(house: House) -> None:
        right = {name: house.ask(name, prompt=range(200)) for name in "abc"}
        house.until(lambda: house.status.load.prefixes.disk.written_bytes > 0)
        for name in "cabcab":
            assert house.ask(name, prompt=range(200)) == right[name]
        assert "no prefixes on disk" not in notes(house)
        assert house.status.load.prefixes.disk.hit_tokens > 0

    disk = {"PREFIX_DISK_GB": "0.1", "PREFIX_DISK_DIR": str(tmp_path / "disk")}
    House(tmp_path, MODELS_GB="0.0018", **disk).run(act)
