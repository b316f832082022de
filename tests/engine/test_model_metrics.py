"""What GET /metrics and /cluster tell of several models: each its own, and no more names than the
list has."""

from tests.support.house import House
from tests.support.prom_lint import lint, value


def scrape(house: House) -> str:
    text = house.app._metrics.render("")[0].decode()
    assert lint(text) == []
    return text


def test_each_model_has_its_own_numbers_which_outlive_its_leaving(tmp_path):
    def act(house: House) -> None:
        for name, times in (("a", 1), ("b", 2), ("c", 3), ("a", 1)):
            for _ in range(times):
                house.ask(name)
        (house.folders["b"] / "model.safetensors").write_bytes(b"broken")
        house.ask("b")
        text = scrape(house)

        def of(metric: str, name: str, **labels: str) -> float:
            return value(text, f"mlx_cluster_{metric}", model_name=name, **labels)

        counts = {name: of("time_to_first_token_seconds_count", name) for name in "abc"}
        assert counts == {"a": 2, "b": 2, "c": 3}
        steps = {name: of("step_batch_size_count", name) for name in "abc"}
        assert all(steps.values())
        assert [of("model_loads_total", name) for name in "abc"] == [2, 1, 1]
        assert of("model_load_failures_total", "b") == 1
        assert of("model_unloads_total", "b", reason="room") == 1
        assert of("model_unloads_total", "b", reason="idle") == 0
        loaded = {name: bool(of("model_loaded", name)) for name in "abc"}
        assert loaded == {name: state == "loaded" for name, state in house.states().items()}
        assert of("model_load_seconds", "c") > 0 and of("model_weights_bytes", "b") > 0
        assert of("kv_cache_capacity_tokens", "a") > 0
        shown = {card["id"]: card for card in house.app.catalog.describe()}
        assert shown["b"]["failures"] == 1 and shown["b"]["unloads"] == {"room": 1, "idle": 0}
        assert shown["c"]["switched_at"] and shown["a"]["running"] == 0

    House(tmp_path, MODELS_GB="0.0018").run(act)


def test_a_model_that_was_never_asked_for_has_no_histograms(tmp_path):
    def act(house: House) -> None:
        house.ask("a")
        lines = [line for line in scrape(house).splitlines() if 'model_name="c"' in line]
        assert 0 < len(lines) <= 8
        names = {line.split("{")[0] for line in lines}
        assert all(name.startswith("mlx_cluster_model_") for name in names)

    House(tmp_path).run(act)
