"""What it costs to have several models: a switch between two that are loaded, and a load.

usage: python -m scripts.dev.model_switch_times [--ranks N] [--asks N]

Two ranks of the server with three random models, of which two fit. All in one run, so that a busy
machine is as busy for each figure: requests for one model, then by turns for two that are loaded;
one for a third, beside what its load took by /cluster; and the gaps between the tokens of a running
answer, alone and while a model is loaded. Prints ratios.
"""

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.tiny_models import tiny_llama

SIZES = {"layers": 4, "heads": 8, "kv_heads": 8, "hidden": 1024, "context": 4096}
TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--asks", type=int, default=12, help="requests of each kind")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = {name: tiny_llama(place / name, seed=n, **SIZES) for n, name in enumerate("abc")}
        named = ",".join(f"{name}={paths[name]}" for name in "bc")
        settings = {"MODEL_ID": "a", "MODELS": named, "PINNED": "a"}
        one = Cluster(asked.ranks, paths["a"], place / "run", settings | limits(paths["a"]))
        try:
            one.wait_ready()
            report(one, asked.asks)
        finally:
            one.end()


def limits(folder: Path) -> dict[str, str]:
    """Room for two of three, split or not."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"MODELS_GB": f"{1.5 * size / 1e9:.4f}"}


def ask(one: Cluster, model: str) -> float:
    """Seconds of a request."""
    body = {"model": model, "prompt": "Once upon", "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True}  # fmt: skip
    began = time.monotonic()
    status, answer = one.post("/v1/completions", body)
    assert status == 200, answer
    return time.monotonic() - began


def gaps(one: Cluster, over: threading.Event, least: int) -> list[float]:
    """Between the tokens of one answer of a, until over is set and there are so many."""
    found: list[float] = []
    while not (over.is_set() and len(found) >= least):
        stream = one.open_stream(model="a", max_tokens=1000, temperature=0, ignore_eos=True)
        last = None
        while not (over.is_set() and len(found) >= least):
            data = stream.recv(1 << 16)
            now = time.monotonic()
            if b"data: {" in data:
                if last is not None:
                    found.append(now - last)
                last = now
            if not data or b"[DONE]" in data:
                break
        stream.close()
    return found


def report(one: Cluster, asks: int) -> None:
    for name in "abab":
        ask(one, name)
    alone: list[float] = []
    by_turns: list[float] = []
    # Alternated in time, too: what the machine does meanwhile is in both.
    for _ in range(asks):
        ask(one, "a")
        alone.append(ask(one, "a"))
        ask(one, "b")
        by_turns.append(ask(one, "a"))
    ratio = statistics.median(by_turns) / statistics.median(alone)
    print(f"a request after one for another loaded model: {ratio:.2f} times one after its own")
    cold, told = [], []
    for name in itertools.islice(itertools.cycle("cb"), asks // 2):
        cold.append(ask(one, name) - statistics.median(alone))
        cards = {card["id"]: card for card in one.get("/cluster")[1]["models"]}
        told.append(cards[name]["load_s"])
    ratio = statistics.median(cold) / statistics.median(told)
    print(f"a request for a model that is not loaded: its load ({statistics.median(told):.1f} s) "
          f"times {ratio:.2f}, and an answer")  # fmt: skip
    quiet = threading.Event()
    quiet.set()
    before = gaps(one, quiet, 200)
    loading = threading.Event()

    def load() -> None:
        for name in "cb":
            ask(one, name)
        loading.set()

    thread = threading.Thread(target=load)
    thread.start()
    beside = gaps(one, loading, 50)
    thread.join()
    for share in (0.5, 0.95, 1.0):
        quiet_s, loading_s = (sorted(some)[round(share * (len(some) - 1))]
                              for some in (before, beside))  # fmt: skip
        print(f"gaps between tokens, {share:.0%}: {1000 * quiet_s:.0f} ms alone, "
              f"{1000 * loading_s:.0f} ms beside loads")  # fmt: skip


if __name__ == "__main__":
    main()
