"""Makes docs/page.png: the page at / on two real ranks with the demo model, after a little load.

usage: python -m tests.support.page_screenshot FILE [--seconds N] [--width PIXELS] [--dark]

Takes a minute and a half. Not a test: run it again when the page's looks have changed.
"""

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

from tests.support.browser import Browser
from tests.support.cluster import ROOT, Cluster

MODEL = "SmolLM2-135M-Instruct-float32"
TOPICS = ("the sea", "a small town", "bread", "the moon", "a long winter", "two friends")
QUESTION = "What is the capital of France? Answer in one sentence."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=80, help="how long to load it first")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cluster = Cluster(2, ROOT / "models" / MODEL, place / "run", {"MODEL_ID": MODEL})
        try:
            cluster.wait_ready()
            load(cluster, options.seconds)
            options.file.write_bytes(shoot(cluster, place / "profile", options))
        finally:
            cluster.end()


def load(cluster: Cluster, seconds: float) -> None:
    """Up to four clients at a time, for so long."""
    end, chance = time.monotonic() + seconds, random.Random(1)

    def ask() -> None:
        topic = f"Write about {chance.choice(TOPICS)}."
        cluster.chat(topic, max_tokens=chance.randint(20, 120), temperature=0.8)

    while time.monotonic() < end:
        clients = [threading.Thread(target=ask) for _ in range(chance.randint(1, 4))]
        for client in clients:
            client.start()
            time.sleep(chance.random())
        for client in clients:
            client.join()
        time.sleep(3 * chance.random())


def shoot(cluster: Cluster, profile: Path, options: argparse.Namespace) -> bytes:
    """Asks a question on the page; the picture shows its answer."""
    browser = Browser(profile)
    try:
        scheme = "dark" if options.dark else "light"
        browser.colours(scheme)
        phone = options.width < 600
        browser.screen(options.width, 844 if phone else 960, phone)
        browser.open(cluster.url)
        browser.wait_text("#state", "Serving")
        browser.run("document.querySelector('#temperature').value = 0")
        browser.type("#prompt", QUESTION)
        browser.click("#send")
        browser.wait_text(".turn.assistant small", "tokens/s")
        browser.run("document.querySelector('#curl-box').open = true")
        time.sleep(3)  # for the page to show the numbers of the answer, too
        return browser.screenshot(whole=phone)
    finally:
        browser.end()


if __name__ == "__main__":
    main()
