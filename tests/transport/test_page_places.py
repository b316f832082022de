"""Back and forward, reloads and links, and two windows on one conversation, in a browser."""

import threading

import pytest

from tests.transport.test_page_browser import say, wait_answer

SHOWN = "[...document.querySelectorAll('.turn .text')].map(n => n.innerText)"
KEPT = """
return conversationOf(arguments[0]).then(one => one &&
  Object.values(one.turns).map(turn => [turn.role, turn.content, turn.state ?? ""]))
"""


@pytest.fixture
def browser(browser):
    """With one window at the end, too."""
    first = browser.window()
    yield browser
    browser.close_others(first)


def talked(browser, cluster, question: str, answer: str) -> str:
    """Has a conversation of one turn; its address."""
    if browser.run("return Boolean(talk.leaf)"):
        browser.click("#clear")
    cluster.say({"content": answer})
    say(browser, question)
    return browser.run("return location.href")


def half_answered(browser, cluster, question: str, begin: str, end: str) -> threading.Event:
    """Asks, and sees the beginning of the answer; whose end comes when the event is set."""
    go_on = threading.Event()
    cluster.say({"content": begin}, {"content": end})
    cluster.events.insert(1, go_on)
    browser.type("#prompt", question)
    browser.click("#send")
    browser.wait_text(".turn.assistant .text", begin.strip())
    return go_on


def wait_shown(browser, *texts: str) -> None:
    same = f"return JSON.stringify({SHOWN}) === JSON.stringify(arguments[0])"
    browser.wait(same, list(texts))


def test_back_and_forward_lead_from_conversation_to_conversation(browser, cluster):
    first = talked(browser, cluster, "one?", "one.")
    second = talked(browser, cluster, "two?", "two.")
    assert first != second and "#talk/" in first
    browser.back()
    wait_shown(browser, "one?", "one.")
    assert browser.run("return location.href") == first
    browser.forward()
    wait_shown(browser, "two?", "two.")
    browser.click("#tab-connect")
    assert browser.text("#panel-connect") and not browser.text("#panel-chat")
    browser.back()
    browser.wait_text("#panel-chat", "two.")
    browser.back()
    wait_shown(browser, "one?", "one.")
    cluster.say({"content": "more."})
    say(browser, "on?")
    assert [turn["content"] for turn in cluster.asked[-1]["messages"]] == ["one?", "one.", "on?"]
    assert browser.run("return location.href") == first
    assert browser.complaints() == []


def test_a_reload_and_a_link_lead_to_the_same_conversation_and_tab(browser, cluster):
    first = talked(browser, cluster, "one?", "one.")
    talked(browser, cluster, "two?", "two.")
    browser.click("#tab-connect")
    there = browser.run("return location.href")
    assert there.partition("#")[2].startswith("connect/")
    browser.run("location.reload()")
    browser.wait_text("#panel-connect", "Client")
    browser.wait("return talk.id === arguments[0]", there.rpartition("/")[2])
    assert browser.run("return location.href") == there and not browser.text("#panel-chat")
    browser.new_window()
    browser.open(first)
    wait_shown(browser, "one?", "one.")
    browser.open(f"{cluster.url}#talk/nothingofthekind")
    browser.wait_text("#hint", "That conversation is not kept here, or no longer.")
    assert browser.complaints() == []


def test_the_link_to_the_chat_keeps_the_conversation(browser, cluster):
    talked(browser, cluster, "one?", "one.")
    browser.run("document.querySelector('.skip').click()")
    browser.wait("return location.hash === '#chat'")
    wait_shown(browser, "one?", "one.")
    browser.back()
    wait_shown(browser, "one?", "one.")


def test_an_answer_goes_on_while_another_conversation_is_in_view(browser, cluster):
    talked(browser, cluster, "one?", "one.")
    browser.click("#clear")
    go_on = half_answered(browser, cluster, "two?", "two ", "and a half.")
    browser.back()
    wait_shown(browser, "one?", "one.")
    assert "in another conversation" in browser.text("#prompt-note")
    browser.forward()
    wait_shown(browser, "two?", "two")
    browser.back()
    wait_shown(browser, "one?", "one.")
    go_on.set()
    wait_answer(browser)
    wait_shown(browser, "one?", "one.")
    browser.forward()
    wait_shown(browser, "two?", "two and a half.")
    assert len(cluster.asked) == 2, "nothing is asked again"
    assert browser.complaints() == []


def test_one_window_streams_while_another_one_edits(browser, cluster):
    one = browser.window()
    go_on = half_answered(browser, cluster, "first?", "slow ", "answer.")
    address = browser.run("return location.href")
    other = browser.new_window()
    browser.open(address)
    wait_shown(browser, "first?", "slow")
    browser.wait_text("#state", "Serving")
    cluster.say({"content": "branch."})
    browser.click(".turn.user .actions button")
    browser.type(".turn.edited textarea", "changed?")
    browser.click(".turn.edited .actions:last-child button")
    wait_shown(browser, "changed?", "branch.")
    wait_answer(browser)
    browser.look_at(one)
    wait_shown(browser, "first?", "slow")
    go_on.set()
    wait_answer(browser)
    wait_shown(browser, "first?", "slow answer.")
    browser.wait_text(".turn.user .branch", "1 of 2")
    browser.click(".turn.user [aria-label='The next branch']")
    wait_shown(browser, "changed?", "branch.")
    browser.look_at(other)
    browser.click(".turn.user [aria-label='The branch before']")
    wait_shown(browser, "first?", "slow answer.")
    kept = browser.run(KEPT, address.rpartition("/")[2])
    assert sorted(kept) == [
        ["assistant", "branch.", "done"], ["assistant", "slow answer.", "done"],
        ["user", "changed?", ""], ["user", "first?", ""],
    ]  # fmt: skip
    assert len(cluster.asked) == 2
    assert browser.complaints() == []


def test_one_window_follows_what_another_one_asks(browser, cluster):
    one = browser.window()
    address = talked(browser, cluster, "one?", "one.")
    browser.new_window()
    browser.open(address)
    wait_shown(browser, "one?", "one.")
    browser.wait_text("#state", "Serving")
    cluster.say({"content": "two."})
    browser.run("document.querySelector('#options').open = true")
    browser.type("#system", "Be brief.\t")
    say(browser, "two?")
    browser.look_at(one)
    wait_shown(browser, "one?", "one.", "two?", "two.")
    assert browser.run("return document.querySelector('#system').value") == "Be brief."
    cluster.say({"content": "three."})
    say(browser, "three?")
    contents = [turn["content"] for turn in cluster.asked[-1]["messages"]]
    assert contents == ["Be brief.", "one?", "one.", "two?", "two.", "three?"]


def test_what_another_window_answers_is_left_to_it(browser, cluster):
    one = browser.window()
    go_on = half_answered(browser, cluster, "first?", "slow ", "answer.")
    address = browser.run("return location.href")
    browser.run("window.open(location.href)")  # which copies what the tab remembers
    (copy,) = [window for window in browser.windows() if window != one]
    browser.look_at(copy)
    wait_shown(browser, "first?", "slow")
    browser.wait_text("#state", "Serving")
    browser.wait_text(".turn.assistant .actions", "Continue")
    browser.click(".turn.assistant .actions button:last-child")
    browser.wait_text(".turn.assistant .actions", "Another window is at it.")
    assert len(cluster.asked) == 1
    go_on.set()
    wait_shown(browser, "first?", "slow answer.")
    browser.look_at(one)
    wait_answer(browser)
    wait_shown(browser, "first?", "slow answer.")
    assert browser.run(KEPT, address.rpartition("/")[2]) == [
        ["user", "first?", ""], ["assistant", "slow answer.", "done"],
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["this one", "all"])
def test_one_window_deletes_what_another_one_shows_and_answers(browser, cluster, what):
    one = browser.window()
    go_on = half_answered(browser, cluster, "first?", "slow ", "answer.")
    address = browser.run("return location.href")
    browser.new_window()
    browser.open(address)
    wait_shown(browser, "first?", "slow")
    browser.click("#kept summary")
    browser.wait("return document.querySelectorAll('#conversations li').length")
    button = "#conversations [aria-current] ~ .actions button:last-child"
    for _ in range(2):  # it asks again
        browser.click("#delete-all" if what == "all" else button)
    browser.wait("return !talk.leaf && !document.querySelectorAll('#conversations li').length")
    browser.look_at(one)
    browser.wait_text("#hint", "That conversation was deleted in another window.")
    wait_answer(browser)
    go_on.set()
    assert browser.run(f"return {SHOWN}") == []
    assert browser.run("return conversations().then(all => all.length)") == 0
    cluster.say({"content": "new."})
    assert "new." in say(browser, "again?")
    assert browser.run("return conversations().then(all => all.length)") == 1
    assert browser.complaints() == []
