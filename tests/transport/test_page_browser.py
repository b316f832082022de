"""The page at / in a real browser: first on answers written here, then on two real ranks."""

import json
import os
import re
import shlex
import signal
import urllib.request

import pytest

from server.protocol.errors import ApiError, unavailable
from server.transport.page import PARTS
from tests.support.faults import CONTEXT, START_DEADLINE_S, Server, wait_for
from tests.support.scripted_cluster import GIB, rank, state
from tests.support.tiny_models import tiny_llama

KEY = "right-kéy"
ENTER, ESCAPE = "\ue007", "\ue00c"
MARKUP = "<script>window.hacked = 1</script><img src=x onerror='hacked = 1'><b>bold</b>"
# The page asks at once when it comes into view.
POLL = "document.dispatchEvent(new Event('visibilitychange'))"
LAST = "[...document.querySelectorAll('.turn.assistant')].at(-1)"

STYLE = (PARTS / "base.css").read_text("utf-8")


def say(browser, text: str) -> str:
    """Sends a message, and returns the answer's text when it has ended."""
    browser.type("#prompt", text)
    browser.click("#send")
    wait_answer(browser)
    return browser.run(f"return {LAST}.innerText")


def wait_answer(browser) -> None:
    browser.wait("return document.querySelector('#stop').hidden")


def show(browser, cluster, **fields) -> None:
    """The page shows this state."""
    cluster.body = state(**fields)
    browser.run(POLL)


# What it shows.


def test_it_shows_ranks_numbers_charts_and_events(browser, cluster):
    cards = browser.run("return [...document.querySelectorAll('.rank')].map(c => c.innerText)")
    assert len(cards) == 2
    for number, card in enumerate(cards):
        assert f"Rank {number} · mac{number}" in card and "Apple M3 Ultra" in card
        assert "130 GiB of 512 GiB" in card and "0.04 s ago" in card and "ok" in card
    numbers = browser.text(".numbers")
    for told in ("2\nof 8 together", "1\nroom for 8", "1,200 of 90k tokens", "45 µs, 3.3 GB/s"):
        assert told in numbers
    charts = browser.run(
        "return [...document.querySelectorAll('#charts .card')].map(c => c.innerText)"
    )
    assert [re.search(r"highest (\S+)", chart)[1] for chart in charts] == ["49", "0.28", "4"]
    lines = browser.run(
        "return [...document.querySelectorAll('.first')].map(p => p.getAttribute('d'))"
    )
    assert [(line.count("M"), line.count("L")) for line in lines] == [(1, 120), (104, 0), (1, 120)]
    events = browser.text("#events")
    assert events.index("ready") < events.index("started"), "newest first"
    assert browser.run("return document.title") == "Serving · demo"
    assert browser.complaints() == []


def test_it_tells_a_restart_in_words(browser, cluster):
    assert "No failure and no restart so far." in browser.text("#failure")
    show(browser, cluster, restarts=2, last_failure="rank 1 on mac1 was lost")
    told = browser.wait_text("#failure", "Started")
    assert told == "Started again 2 times. The last failure: rank 1 on mac1 was lost"


def test_each_state_of_the_server_is_told(browser, cluster):
    loading = [rank(n, state="loading", loaded_bytes=(32 + n) * GIB) for n in range(2)]
    silent = [rank(0), rank(1, state="silent", heartbeat_age_s=12.3)]
    for fields, word, words in (
        ({"status": "loading", "ranks": loading}, "Loading", "65 GiB of 256 GiB are loaded"),
        ({"status": "loading", "detail": "meeting", "ranks": []}, "Loading", "meeting"),
        ({"status": "draining", "running": 1}, "Stopping", "It finishes 1 request and takes no"),
        ({"status": "failed", "detail": "rank 1 is gone"}, "Failed", "rank 1 is gone"),
        ({"ranks": silent}, "A rank is silent", "Rank 1 (mac1) has not been heard for 12 s."),
    ):
        show(browser, cluster, **fields)
        browser.wait_text("#state", word)
        browser.wait_text("#words", words)
        asks = browser.run("return !document.querySelector('#send').disabled")
        assert asks == ("status" not in fields), "a server that is not ready takes no requests"
    assert "silent" in browser.text(".rank:last-child")


def test_a_server_that_is_gone_is_not_reached_and_comes_back(browser, cluster):
    cluster.gone = True
    browser.run(POLL)
    told = browser.wait_text("#words", "Not reached for")
    assert "no answer. Trying again every 2 s. What you see is from before." in told
    assert browser.text("#state") == "Not reached"
    cluster.gone = False
    browser.run(POLL)
    browser.wait_text("#state", "Serving")


def test_what_is_not_known_breaks_nothing(browser, cluster):
    empty = dict.fromkeys(state()) | {"status": "loading", "ranks": [dict.fromkeys(rank(0))]}
    cluster.body = empty | {"series": {"points": [{"t": None}]}, "world_size": 0}
    browser.run(POLL)
    browser.wait_text("#state", "Loading")
    assert browser.complaints() == []


def test_markup_is_shown_as_text(browser, cluster):
    """From wherever it comes: names, events, the user, the model, its thoughts, errors."""
    show(
        browser, cluster, model=MARKUP, backend=MARKUP, last_failure=MARKUP, run_id=MARKUP,
        detail=MARKUP, events=[{"t": 0, "text": MARKUP}],
        ranks=[rank(0, host=MARKUP, chip=MARKUP, os=MARKUP, state=MARKUP)],
    )  # fmt: skip
    browser.wait_text("#model", "<script>")
    cluster.say({"reasoning_content": MARKUP}, {"content": MARKUP})
    assert MARKUP in say(browser, MARKUP)
    browser.click(".reasoning summary")
    assert browser.text(".reasoning .text") == MARKUP
    assert browser.text(".turn.user .text") == MARKUP
    cluster.refusal = ApiError(400, MARKUP)
    assert MARKUP in say(browser, "again")
    assert cluster.asked[0]["messages"] == [{"role": "user", "content": MARKUP}]
    for place in (".rank h3", "#failure", "#events", "#link", ".turn .trouble"):
        assert "<script>" in browser.text(place), place
    assert (
        browser.run(
            "return window.hacked ?? document.querySelectorAll('main img, main b b').length"
        )
        == 0
    )
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser, cluster, scheme):
    browser.screen(390, 844, phone=True)
    browser.colours(scheme)
    long = "x" * 300
    show(
        browser, cluster, model=long, last_failure=long, events=[{"t": 0, "text": long}],
        ranks=[rank(n, host=long, chip=long) for n in range(4)],
    )  # fmt: skip
    browser.wait_text("#model", long)
    cluster.say({"reasoning": long}, {"content": long})
    say(browser, long)
    for box in ("#options", "#curl-box", ".reasoning", "footer details"):
        browser.run("document.querySelector(arguments[0]).open = true", box)
    widths = browser.run(
        "return [document.documentElement.scrollWidth, innerWidth,"
        " ...[...document.querySelectorAll('#log, #chat, .card')].map(n => n.scrollWidth)]"
    )
    assert max(widths) <= 390
    paint = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paint))) > 380) == (scheme == "light")
    browser.colours()


def test_texts_stand_out_from_their_grounds():
    """WCAG's contrast, of both colour schemes."""
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    assert len(schemes) == 2
    pairs = [
        *((text, "card") for text in ("text", "quiet", "accent", "second")),
        *((text, "ground") for text in ("text", "quiet", "accent", "second")),
        *((f"on-{name}", name) for name in ("accent", "good", "warn", "bad", "idle")),
        ("text", "mine"), ("text", "field"), ("quiet", "field"), ("third", "ground"),
    ]  # fmt: skip

    def light(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colours in schemes:
        for text, ground in pairs:
            low, high = sorted(light(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_every_field_and_button_has_a_name(browser, cluster):
    nameless = browser.run(
        "return [...document.querySelectorAll('input, textarea, select, button')]"
        ".filter(n => !n.labels?.length && !n.ariaLabel && !n.textContent.trim())"
        ".map(n => n.outerHTML)"
    )
    assert nameless == []


# The chat.


def test_parameters_are_sent_and_empty_ones_left_to_the_server(browser, cluster):
    cluster.say({"content": "one"})
    say(browser, "first")
    browser.click("#options summary")
    for field, text in (
        ("temperature", "0.5"), ("top_p", "0.9"), ("max_tokens", "7"), ("seed", "-3"),
        ("system", "Be brief."),
    ):  # fmt: skip
        browser.type(f"#{field}", text)
    cluster.say({"content": "two"}, finish="length")
    assert "cut at the token limit · 5 tokens in, 1 out · first after" in say(browser, "second")
    frame = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}}
    frame |= {"return_progress": True}
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    assert cluster.asked == [
        frame | {"messages": turns[:1]},
        frame
        | {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": -3}
        | {"messages": [{"role": "system", "content": "Be brief."}, *turns]},
    ]
    browser.type("#seed", "3.5")
    browser.click("#options summary")
    browser.type("#prompt", "third")
    browser.click("#send")
    assert len(cluster.asked) == 2 and browser.run("return document.querySelector('#options').open")
    browser.click("#clear")
    assert browser.text("#log").startswith("Ask the model")


def test_reasoning_is_folded_and_not_sent_back(browser, cluster):
    cluster.say(
        {"reasoning_content": "Hm, ", "reasoning": "Hm, "},
        {"reasoning": "yes."},
        {"content": "Yes"},
    )
    assert "yes." not in say(browser, "Is it?")
    browser.click(".reasoning summary")
    assert browser.text(".reasoning .text") == "Hm, yes."
    say(browser, "Sure?")
    assert cluster.asked[1]["messages"][1] == {"role": "assistant", "content": "Yes"}


def test_a_failure_is_told_and_the_message_kept(browser, cluster):
    cluster.refusal = unavailable("The server is full.", "full", retry_after=7)
    assert "The server is full. Try again in 7 s." in say(browser, "hello")
    assert browser.run("return document.querySelector('#prompt').value") == "hello"
    cluster.refusal = None
    cluster.events = [{"error": {"message": "rank 1 is gone"}}]
    assert "rank 1 is gone" in say(browser, "hello")
    cluster.events = [{"choices": [{"delta": {"content": "half"}}]}]
    browser.type("#prompt", "hello")
    browser.click("#send")
    browser.wait_text(".turn:last-child .text", "half")
    told = browser.wait_text(".turn:last-child .trouble", "The answer goes on")
    assert "The connection ended before the answer did." in told
    browser.click("#stop")
    wait_answer(browser)
    assert [len(body["messages"]) for body in cluster.asked[:3]] == [1, 1, 1]


def test_the_curl_is_what_was_sent(browser, cluster):
    cluster.say({"content": "ok"})
    say(browser, 'It\'s "so" $HOME `id`\\n')
    browser.click("#curl-box summary")
    command, flag, url, *rest = shlex.split(browser.text("#curl").replace("\\\n", ""))
    assert (command, flag, url) == ("curl", "-N", f"{cluster.url}v1/chat/completions")
    assert rest[:3] == ["-H", "Content-Type: application/json", "-d"]
    assert json.loads(rest[3]) == cluster.asked[0] and len(rest) == 4
    browser.click("#copy")
    browser.wait_text("#copy", "opied")


# On real ranks, under the supervisor, with a key.


class KeyedServer(Server):
    """Two ranks that want a key."""

    def start(self) -> int:
        script = self.begin()
        self.output, _ = script.communicate(timeout=START_DEADLINE_S)
        self.run_ids.add(self._recorded("supervisor.pid")[1])
        return script.returncode

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def cluster(self) -> dict:
        asked = urllib.request.Request(self.url + "cluster", headers={"x-api-key": KEY.encode()})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def server(shared_browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    model = tiny_llama(folder / "tiny", context=CONTEXT)
    one = KeyedServer(folder / "server", model, API_KEY=KEY)
    try:
        assert one.start() == 0, one.output
        yield one
    finally:
        one.close()


@pytest.fixture
def page(browser, server):
    """The page of the real server, open, with the key given."""
    browser.open(server.url)
    browser.wait("return document.querySelector('#state').textContent !== 'Connecting'")
    if browser.text("#state") == "Key needed":
        browser.type("#key", KEY)
        browser.click("#key-form button")
    browser.wait_text("#state", "Serving")
    # The last conversation comes into view, with its parameters, which would join what is typed.
    browser.wait("return !remembered('conversation') || Boolean(talk.leaf)")
    return browser


@pytest.mark.ranks
def test_a_wrong_key_is_refused_and_the_right_one_kept_in_the_tab(browser, server):
    browser.open(server.url)
    browser.wait_text("#state", "Key needed")
    assert browser.run("return document.querySelectorAll('.rank').length") == 0
    browser.type("#key", "wrong" + ENTER)
    browser.wait_text("#key-trouble", "The server refused this key.")
    assert browser.text("#state") == "Key needed"
    browser.type("#key", KEY + ENTER)
    browser.wait_text("#state", "Serving")
    assert browser.text("#key-form") == ""
    browser.open(server.url)
    browser.wait_text("#state", "Serving")
    kept = browser.run("return [document.cookie, localStorage.length, sessionStorage['api-key']]")
    assert kept == ["", 0, KEY]
    assert browser.complaints() == []


@pytest.mark.ranks
def test_two_real_ranks_are_shown_and_stream_an_answer(page, server):
    cards = page.run("return [...document.querySelectorAll('.rank')].map(c => c.innerText)")
    assert [card[:6] for card in cards] == ["Rank 0", "Rank 1"]
    for card, told in zip(cards, server.cluster()["ranks"], strict=True):
        assert f"pid {told['pid']}" in card and told["host"] in card and told["chip"] in card
    assert "2 ranks, tensor parallel over ring." in page.text("#words")
    (pair,) = server.cluster()["link"]["pairs"]
    assert pair["ranks"] == [0, 1] and pair["latency_us"] > 0 and pair["bandwidth_gb_s"] > 0
    speeds = page.run("return [...document.querySelectorAll('.speed')].map(n => n.textContent)")
    assert len(speeds) == 2 and speeds[0].endswith(" µs") and speeds[1].endswith(" GB/s")
    page.run(
        "window.sizes = new Set(); new MutationObserver(() => sizes.add("
        f"{LAST}.innerText.length)).observe(document.querySelector('#log'),"
        " {childList: true, subtree: true, characterData: true})"
    )
    page.click("#options summary")
    page.type("#max_tokens", "200")
    told = say(page, MARKUP)
    assert " tokens in, 200 out" in told and "cut at the token limit" in told and "tokens/s" in told
    assert page.run("return sizes.size") > 2, "it grows bit by bit"
    assert page.text(".turn.user .text") == MARKUP
    page.click("#curl-box summary")
    curl = page.text("#curl")
    assert '-H "Authorization: Bearer $API_KEY"' in curl and KEY not in curl
    assert page.complaints() == []


@pytest.mark.ranks
@pytest.mark.parametrize("way", ["the button", "a key"])
def test_stop_ends_the_work_of_the_ranks(page, server, way):
    page.run("document.querySelector('#options').open = true")
    page.type("#max_tokens", "60000")
    page.type("#prompt", "Go on." + ENTER)
    page.wait(f"return {LAST}?.querySelector('.text').textContent.length > 20")
    wait_for(lambda: server.cluster()["running"] == 1, "the request to run")
    if way == "the button":
        page.click("#stop")
    else:
        page.type("#prompt", ESCAPE, clear=False)
    wait_answer(page)
    assert "stopped by you" in page.text("#log")
    wait_for(lambda: server.cluster()["running"] == 0, "the ranks to stop")
    assert page.complaints() == []


@pytest.mark.ranks
def test_a_killed_rank_and_the_recovery_are_shown(page, server):
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('#state')"
        ".textContent)).observe(document.querySelector('#state'), {childList: true})"
    )
    page.type("#prompt", "Go on." + ENTER)
    page.wait(f"return {LAST}?.querySelector('.text').textContent.length > 20")
    os.kill(server.rank(1), signal.SIGKILL)
    page.wait("return document.querySelector('.turn .trouble')?.innerText")  # not silence
    page.wait("return seen.length > 0 && !seen.includes('Serving')")
    page.wait("return seen.at(-1) === 'Serving'")
    assert set(page.run("return seen")) <= {"Restarting", "Not reached", "Loading", "Serving"}
    told = page.wait_text("#failure", "Started again once.")
    assert "The last failure: rank 1 on 127.0.0.1 exited with code 137" in told
    assert "ready" in page.text("#events")
    assert page.complaints() == []
