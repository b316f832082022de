"""The page in long and rough use: the keyboard alone, another tab, a key that expires, a huge
paste, hundreds of messages, an answer that is very long."""

import json

from server.protocol.errors import bad_request
from tests.support.scripted_cluster import state
from tests.transport.test_page_browser import ENTER, POLL, say, wait_answer

AT = "return document.activeElement.id || document.activeElement.localName"
HUNDREDS = """
for (let n = 0; n < 150; n++) {
  addTurn(talk, talk.leaf, {role: "user", content: `question ${n}`});
  addTurn(talk, talk.leaf, {role: "assistant", content: `answer **${n}**`, state: "done"});
}
showTalk();
"""


def test_the_keyboard_is_never_left_nowhere(browser, cluster):
    cluster.events = [{"choices": [{"delta": {"content": "one"}}]}]
    cluster.hold.clear()  # it comes, and does not end
    browser.type("#prompt", "first")
    browser.type("#send", ENTER, clear=False)
    browser.wait_text(".turn.assistant .text", "one")
    assert browser.run(AT) == "stop"
    browser.type("#stop", ENTER, clear=False)
    wait_answer(browser)
    assert browser.run(AT) == "prompt"
    cluster.say({"content": "two"})
    cluster.hold.set()
    browser.type(".turn.assistant [type=button]:nth-of-type(2)", ENTER, clear=False)  # regenerate
    browser.wait_text(".turn.assistant .branch", "2 of 2")
    wait_answer(browser)
    assert browser.run(AT) == "log"
    browser.type("#kept summary", ENTER, clear=False)
    browser.wait("return document.querySelectorAll('#conversations li').length === 1")
    browser.run(
        "const button = document.querySelector('#conversations [aria-label^=Delete]');"
        "button.focus(); button.click(); button.click()"  # it asks again
    )
    browser.wait_text("#kept-note", "0 conversations")
    browser.wait("return document.activeElement.id === 'search'")


def test_tabs_are_chosen_with_the_arrows(browser, cluster):
    browser.type("#tab-chat", "\ue014", clear=False)
    assert browser.run(AT) == "tab-connect" and browser.text("#panel-chat") == ""
    browser.type("#tab-connect", "\ue012", clear=False)
    assert browser.run(AT) == "tab-chat" and browser.text("#panel-connect") == ""


def test_what_another_tab_adds_to_a_conversation_is_not_lost(browser, cluster):
    cluster.say({"content": "one"})
    say(browser, "first")
    browser.run(
        "return conversationOf(talk.id).then(other => {"
        " other.turns.theirs = {id: 'theirs', parent: null, made: 1, role: 'assistant',"
        "   content: 'whole', owner: 'another'};"
        " talk.turns.theirs = {...other.turns.theirs, content: 'ha'};"
        " return inStore('readwrite', shop => shop.put(other)); })"
    )
    cluster.say({"content": "two"})
    say(browser, "second")
    kept = browser.run(
        "return conversationOf(talk.id).then(one => Object.values(one.turns).map(t => t.content))"
    )
    assert sorted(kept) == ["first", "one", "second", "two", "whole"]


def test_a_key_that_expires_is_asked_for_and_nothing_typed_is_lost(browser, cluster):
    cluster.say({"content": "one"})
    say(browser, "first")
    browser.type("#prompt", "second")
    cluster.body = None
    browser.run(POLL)
    browser.wait_text("#state", "Key needed")
    assert browser.text(".turn.assistant .text") == "one"
    assert browser.run("return document.querySelector('#send').disabled")
    cluster.body = state()
    browser.type("#key", "new" + ENTER)
    browser.wait_text("#state", "Serving")
    assert browser.run("return document.querySelector('#prompt').value") == "second"
    assert browser.run(AT) == "prompt"


PASTE = """
const data = new DataTransfer();
data.setData("text/plain", "word ".repeat(arguments[0]));
const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
document.querySelector("#prompt").dispatchEvent(event);
return event.defaultPrevented;
"""


def test_a_huge_paste_becomes_a_file_and_is_given_back_when_it_is_refused(browser, cluster):
    """A text field with 2 MB stopped the browser for a minute."""
    assert not browser.run(PASTE, 1000), "that is for the field"
    assert browser.run(PASTE, 100_000)
    browser.wait_text("#files", "Remove pasted.txt")
    cluster.refusal = bad_request("The prompt has 100000 tokens.")
    browser.type("#prompt", "Sum it up.")
    browser.click("#send")
    browser.wait_text(".turn .trouble", "The prompt has 100000 tokens.")
    wait_answer(browser)
    sent = cluster.asked[0]["messages"][0]["content"]
    assert sent == f"File pasted.txt:\n\n{'word ' * 100_000}\n\nSum it up."
    assert browser.run("return document.querySelector('#prompt').value") == "Sum it up."
    assert browser.text("#files") == "Remove pasted.txt"
    assert browser.run(PASTE, 400_000)
    browser.wait_text("#files-trouble", "pasted.txt has 1.9 MiB; a file may have 1 MiB.")
    assert browser.complaints() == []


def test_of_a_long_question_the_beginning_is_shown_and_all_is_sent(browser, cluster):
    cluster.say({"content": "ok"})
    browser.run("return void ask('word '.repeat(9000), [], null)")
    browser.wait_text(".turn.assistant .text", "ok")
    shown = browser.text(".turn.user .text")
    assert len(shown) < 21_000 and "25,000 characters more" in shown
    assert len(cluster.asked[0]["messages"][0]["content"]) == 45_000


def test_of_hundreds_of_messages_only_what_changes_is_read_again(browser, cluster):
    browser.run(HUNDREDS)
    browser.run("window.read = 0; const real = ranked; ranked = t => (read++, real(t))")
    cluster.say({"content": "the last one"})
    assert "the last one" in say(browser, "and now?")
    assert len(cluster.asked[0]["messages"]) == 301
    assert browser.run("return document.querySelectorAll('.turn').length") == 302
    assert 0 < browser.run("return read") < 10
    at_end = "const log = document.querySelector('#log'); return log.scrollHeight - log.scrollTop"
    assert browser.run(f"{at_end} - log.clientHeight") < 2
    assert browser.complaints() == []


def test_a_long_answer_grows_by_its_end_alone(browser, cluster):
    code = "```python\nx = 1\n```\n\n"
    made = browser.run(
        "let made = 0; const real = codeBlock; codeBlock = (...a) => (made++, real(...a));"
        "const node = document.createElement('div'); let text = arguments[0];"
        "for (let n = 0; n < 300; n++) {"
        "  text += n % 10 ? `word ${n} ` : `\\n\\n# Part ${n}\\n\\nword `;"
        "  showMarkdown(node, text);"
        "}"
        "codeBlock = real;"
        "return [made, node.querySelectorAll('h3').length, node.textContent.length]",
        code * 20,
    )
    assert made[:2] == [20, 30] and made[2] > 2000


def test_a_reader_who_has_scrolled_up_stays_there(browser, cluster):
    text = "\n\n".join(f"line {n}" for n in range(400))
    cluster.events = [{"choices": [{"delta": {"content": text}}]}]
    cluster.hold.clear()
    browser.type("#prompt", "Tell." + ENTER)
    browser.wait_text(".turn.assistant .text", "line 399")
    browser.run("document.querySelector('#log').scrollTop = 50")
    browser.run("const t = talk.turns[talk.leaf]; t.content += '\\n\\nmore'; viewOf(t).later()")
    browser.wait("return viewOf(talk.turns[talk.leaf]).text.textContent.includes('more')")
    assert browser.run("return document.querySelector('#log').scrollTop") == 50
    cluster.hold.set()
    browser.click("#stop")
    wait_answer(browser)
    assert json.dumps(cluster.asked[0]["messages"]).count("Tell.") == 1
