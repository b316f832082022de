"""The operator's half of the page: what runs, who uses how much, links, a cluster that fails."""

import pytest

from tests.support.scripted_cluster import pair, rank, running
from tests.transport.test_page_browser import show


def test_each_request_is_told_and_can_be_stopped_by_who_may(browser, cluster):
    mine, theirs = running(1), running(2, key="bob", phase="prefill", stop=False)
    show(browser, cluster, requests=[mine, theirs, running(3, key=None, phase="queued")])
    told = browser.wait_text("#requests", "waiting")
    for words in ("answering ann", "for 13 s", "prompt 1,200 (1,000 cached)", "34 generated",
                  "KV 1,234 tokens", "reading bob", "waiting chat/completions"):  # fmt: skip
        assert words in told.replace("\n", " ")
    stops = browser.run(
        "return [...document.querySelectorAll('#requests button')].map(b => b.hidden)"
    )
    assert stops == [False, True, False]
    cluster.body["requests"] = [theirs]
    browser.run("document.querySelector('#requests button').click()")
    browser.wait_text("#requests-told", "The request is stopped.")
    browser.wait("return document.querySelectorAll('#requests li').length === 1")
    assert cluster.stopped == ["req_1"]
    show(browser, cluster, requests=[])
    browser.wait_text("#requests-none", "None runs or waits.")
    assert browser.complaints() == []


def test_usage_by_key_is_a_table(browser, cluster):
    names = ["answered", "refused", "failed", "cut", "prompt_tokens", "cached_tokens"]
    use = {name: n for n, name in enumerate(names, 3)} | {"generated_tokens": 45_600}
    show(browser, cluster, keys=[{"key": "<b>ann</b>", **use}])
    browser.run("document.querySelector('#keys-box').open = true")
    browser.wait("return document.querySelectorAll('#keys td').length === 4")
    assert browser.run("return document.querySelector('#keys').innerText").split() == [
        "<b>ann</b>", "3", "7", "8", "45.6k",
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["failed", "restarting", "draining"])
def test_no_rank_is_ok_while_the_cluster_is_not(browser, cluster, status):
    show(browser, cluster, status=status, detail="rank 1 is gone")
    browser.wait("return document.querySelectorAll('.rank .pill.good').length === 0")
    words = browser.run(
        "return [...document.querySelectorAll('.rank .pill')].map(p => p.textContent)"
    )
    assert len(words) == 2 and "ok" not in words
    assert browser.run("return document.querySelectorAll('#links circle.good').length") == 0


@pytest.mark.parametrize(("backend", "ranks", "lines"), [
    ("ring", 2, 1), ("ring", 4, 4), ("jaccl", 4, 6), ("jaccl", 8, 28), ("none", 1, None),
])  # fmt: skip
def test_the_links_are_drawn_as_the_backend_has_them(browser, cluster, backend, ranks, lines):
    show(browser, cluster, backend=backend, world_size=ranks, ranks=[rank(n) for n in range(ranks)])
    browser.wait(f"return document.querySelectorAll('.rank').length === {ranks}")
    if lines is None:
        assert browser.run("return document.querySelector('#links').hidden")
        return
    browser.wait(f"return document.querySelectorAll('#links line').length === {lines}")
    assert f"{ranks} ranks over {backend}: 45.2 µs, 3.3 GB/s" in browser.text("#links")


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_speed_of_each_link_is_told_and_a_slow_one_named(browser, cluster, ranks):
    pairs = [pair(a, b) for a in range(ranks) for b in range(a + 1, ranks)]
    pairs[-1]["bandwidth_gb_s"] = 1.25 if ranks > 2 else 6.5
    show(browser, cluster, backend="jaccl", world_size=ranks, ranks=[rank(n) for n in range(ranks)],
         link={"latency_us": 45.2, "bandwidth_gb_s": 3.25, "pairs": pairs})  # fmt: skip
    browser.wait(f"return document.querySelectorAll('#pairs tr').length === {len(pairs)}")
    slow = f"Slow: the link between ranks {ranks - 2} and {ranks - 1}, 12.3 µs, 1.3 GB/s."
    assert (slow in browser.text("#links-words")) == (ranks > 2)
    assert browser.run("return document.querySelectorAll('#links line.slow').length") == (ranks > 2)
    drawn = browser.run("return [...document.querySelectorAll('.speed')].map(n => n.textContent)")
    assert drawn.count("6.5 GB/s") == {2: 1, 4: 5, 8: 0}[ranks]
    browser.run("document.querySelector('#pairs-box').open = true")
    assert browser.text("#pairs tr").split() == ["0", "–", "1", "12.3", "µs", "6.5", "GB/s"]


def test_a_ring_s_links_are_between_neighbours(browser, cluster):
    show(browser, cluster, world_size=4, ranks=[rank(n) for n in range(4)], link={
        "latency_us": 45.2, "bandwidth_gb_s": 3.25,
        "pairs": [pair(0, 1), pair(0, 3), pair(1, 2), pair(2, 3)]})  # fmt: skip
    browser.wait("return document.querySelectorAll('.speed').length === 8")
    assert browser.run("return document.querySelectorAll('#links line').length") == 4


def test_prefix_hits_and_drafts_are_told(browser, cluster):
    assert "25 %" in browser.text(".numbers")
    assert browser.run("return document.querySelector('#drafts-tile').hidden")
    show(browser, cluster, drafts={"on": "all", "drafted": 200, "right": 150, "steps": 60})
    browser.wait_text("#drafts", "75 %")
    browser.wait_text("#drafts-note", "150 tokens in 60 steps")


def test_a_chart_leaves_out_the_time_in_which_the_server_was_away(browser, cluster):
    points = cluster.body["series"]["points"]
    show(browser, cluster, series={"points": points[:40] + points[60:]})
    browser.wait(
        "return document.querySelector('.first').getAttribute('d').split('M').length === 3"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_operator_s_half_fits_a_phone(browser, cluster, scheme):
    browser.screen(390, 844, phone=True)
    browser.colours(scheme)
    long = "x" * 200
    key = dict.fromkeys(
        ("answered", "prompt_tokens", "cached_tokens", "generated_tokens"), 10**9
    ) | {"key": long}
    show(browser, cluster, requests=[running(n, key=long) for n in range(8)], keys=[key],
         ranks=[rank(n, host=long) for n in range(8)])  # fmt: skip
    browser.wait_text("#requests", long)
    browser.run("document.querySelector('#keys-box').open = true")
    widths = browser.run(
        "return [document.documentElement.scrollWidth,"
        " ...[...document.querySelectorAll('.card')].map(n => n.scrollWidth)]"
    )
    browser.colours()
    assert max(widths) <= 390


def test_models_are_told_with_what_became_of_them(browser, cluster):
    one = {"id": "large", "state": "loaded", "why": "loaded", "size_bytes": 2**33, "context": 32768,
           "running": 2, "queued": 1, "pinned": True, "loaded_share": 1, "load_s": 75}  # fmt: skip
    other = {"id": "<b>small</b>", "state": "unloaded", "why": "makes room for large",
             "loaded_share": 0, "switched_at": cluster.body["now"] - 120}  # fmt: skip
    show(browser, cluster, models=[one, other])
    told = browser.wait_text("#models", "makes room").replace("\n", " ")
    for words in ("loaded large", "8 GiB", "32.8k tokens", "pinned", "2 running, 1 waiting",
                  "loads in 1 min 15 s", "not loaded <b>small</b>", "for 2 min"):  # fmt: skip
        assert words in told, told
    cluster.body["models"] = [one]
    browser.wait("return document.querySelector('#models-card').hidden")
    assert browser.complaints() == []
