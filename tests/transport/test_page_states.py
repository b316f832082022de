"""Each state of the page, in light and dark, at a desk and on a phone: axe finds nothing, nothing
scrolls sideways, and the state is told. What real ranks show is in test_page_browser."""

import pytest

from tests.support.scripted_cluster import GIB, pair, rank, running
from tests.transport.test_page_browser import ENTER, POLL, say, show
from tests.transport.test_page_chat import LONG

NAME = "x" * 200
WORDS = "a-name-of-several-words " * 9
ARABIC = """# مرحبا

**هذا** نص طويل `code` من اليمين إلى اليسار.

- واحد

  ثم

- [x] اثنان

> قال

| اسم | عدد |
|-----|-----|
| ا   | 1   |
"""
USE = dict.fromkeys(("answered", "prompt_tokens", "cached_tokens", "generated_tokens"), 10**9)
OVERFLOW = """
return [document.documentElement.scrollWidth - innerWidth, ...[...document.querySelectorAll(
  ".card, .notice, .numbers > div, .turn, #log, header, h1, .rank *, #requests li, .pill")]
  .filter(n => n.checkVisibility()).map(n => n.scrollWidth - n.clientWidth)]
"""


def loading(browser, cluster):
    ranks = [rank(n, state="loading", loaded_bytes=(32 + n) * GIB) for n in range(2)]
    show(browser, cluster, status="loading", ranks=ranks, link=None, uptime_s=3.0)
    browser.wait_text("#state", "Loading")
    browser.wait_text("#words", "65 GiB of 256 GiB are loaded")


def meeting(browser, cluster):
    show(browser, cluster, status="loading", detail="waiting for rank 1", ranks=[], world_size=0,
         series={"points": []}, events=[], kv_tokens=None, link=None)  # fmt: skip
    browser.wait_text("#ranks", "The ranks have not met yet.")


def serving(browser, cluster):
    show(browser, cluster, keys=[{"key": "ann"} | USE], requests=[running(1), running(2)],
         drafts={"on": "all", "drafted": 200, "right": 150, "steps": 60})  # fmt: skip
    browser.wait_text("#requests", "answering")


def eight_streams(browser, cluster):
    rows = [running(n, phase=("decode", "prefill")[n == 7]) for n in range(8)]
    show(browser, cluster, running=8, queued=3, requests=[*rows, running(9, phase="queued")])
    browser.wait("return document.querySelectorAll('#requests li').length === 9")
    assert "8\nof 8 together" in browser.text(".numbers")


def silent(browser, cluster):
    ranks = [rank(0), rank(1, state="silent", heartbeat_age_s=12.3)]
    show(browser, cluster, ranks=ranks)
    browser.wait_text("#state", "A rank is silent")


def killed(browser, cluster):
    cluster.events = [{"choices": [{"delta": {"content": "half of an answer"}}]}]
    browser.type("#prompt", "Tell." + ENTER)
    browser.wait_text(".turn .trouble", "The answer goes on as soon as the server does.")
    show(browser, cluster, status="failed", detail="rank 1 on mac1 exited with code 137")
    browser.wait_text("#words", "rank 1 on mac1 exited with code 137. Nobody starts it again.")


def restarting(browser, cluster):
    show(browser, cluster, status="restarting", detail="rank 1 on mac1 exited with code 137",
         restarts=2, last_failure="rank 1 on mac1 exited with code 137")  # fmt: skip
    browser.wait_text("#words", "It is started again by itself.")
    assert browser.run("return document.querySelector('#send').disabled")


def stopping(browser, cluster):
    show(browser, cluster, status="draining", running=1, requests=[running(1)])
    browser.wait_text("#state", "Stopping")


def gone(browser, cluster):
    cluster.gone = True
    browser.run(POLL)
    browser.wait_text("#state", "Not reached")


def key_asked(browser, cluster):
    cluster.body = None
    browser.open(cluster.url)
    browser.wait_text("#state", "Key needed")


def wrong_key(browser, cluster):
    key_asked(browser, cluster)
    browser.type("#key", "wrong" + ENTER)
    browser.wait_text("#key-trouble", "The server refused this key.")


def long_markdown(browser, cluster):
    wide = f"| {' | '.join('column' for _ in range(20))} |\n|{'---|' * 20}\n| {NAME} |\n"
    text = f"{LONG * 3}{wide}\n`{NAME}`\n\n{NAME}"
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    cluster.say({"reasoning": "Hm. " * 300}, {"content": text}, {"tool_calls": [call]})
    say(browser, "Show me.")
    for box in (".reasoning", ".calls", "#options", "#kept", "#curl-box", "footer details"):
        browser.run("document.querySelector(arguments[0]).open = true", box)
    browser.wait("return document.querySelectorAll('#conversations li').length")


def right_to_left(browser, cluster):
    cluster.say({"content": ARABIC})
    say(browser, "مرحبا بالعالم")
    sides = browser.run(
        "return [...document.querySelectorAll('.assistant .text :is(h3, p, ul, li, blockquote,"
        " table, th)')].map(n => n.localName + ' ' + getComputedStyle(n).direction)"
    )
    assert len(sides) > 10 and {side.split()[1] for side in sides} == {"rtl"}, sides
    browser.run("document.querySelector('#log').scrollTop = 0")


def eight_ranks(browser, cluster):
    pairs = [pair(a, b, 1 + b) for a in range(8) for b in range(a + 1, 8)]
    show(browser, cluster, backend="jaccl", world_size=8, ranks=[rank(n) for n in range(8)],
         link={"latency_us": 45.2, "bandwidth_gb_s": 3.25, "pairs": pairs})  # fmt: skip
    browser.run("document.querySelector('#pairs-box').open = true")
    browser.wait("return document.querySelectorAll('.rank').length === 8")
    assert len(set(browser.run(
        "return [...document.querySelectorAll('#links circle')].map(n => n.getAttribute('cx')"
        " + ' ' + n.getAttribute('cy'))"))) == 8  # fmt: skip


def four_ranks(browser, cluster):
    pairs = [pair(a, b, 1 + b) for a in range(4) for b in range(a + 1, 4)]
    show(browser, cluster, backend="jaccl", world_size=4, ranks=[rank(n) for n in range(4)],
         link={"latency_us": 45.2, "bandwidth_gb_s": 3.25, "pairs": pairs})  # fmt: skip
    browser.wait("return document.querySelectorAll('.speed').length === 12")


def long_names(browser, cluster):
    for name in (WORDS, NAME):
        show(browser, cluster, model=name, backend=name, detail=name, last_failure=name,
             ranks=[rank(n, host=name, chip=name, os=name) for n in range(2)],
             keys=[{"key": name} | USE], requests=[running(1, key=name), running(2, route=name)],
             events=[{"t": 0, "text": name}])  # fmt: skip
        browser.wait("return document.querySelector('#model').textContent === arguments[0]", name)
    browser.run("document.querySelector('#keys-box').open = true")


def connecting(browser, cluster):
    browser.click("#tab-connect")
    browser.wait_text("#snippets", cluster.url.rstrip("/"))


STATES = (
    loading, meeting, serving, eight_streams, silent, killed, restarting, stopping, gone, key_asked,
    wrong_key, long_markdown, right_to_left, four_ranks, eight_ranks, long_names, connecting,
)  # fmt: skip
LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]


def look(browser, scheme: str, width: int) -> None:
    browser.colours(scheme)
    browser.screen(width, 844, phone=width < 600)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_every_state_is_told_to_everybody(browser, cluster, state):
    state(browser, cluster)
    try:
        for scheme, width in LOOKS:
            look(browser, scheme, width)
            assert browser.violations() == [], (scheme, width)
            assert max(browser.run(OVERFLOW)) <= 0, (scheme, width)
    finally:
        browser.colours()
