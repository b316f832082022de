"""The chat of the page in a browser: what a model writes, branches, and what is kept of it all."""

import json
import threading

import pytest

from tests.support.scripted_cluster import state
from tests.support.sweeps import sample
from tests.transport.test_page_browser import LAST, POLL, say, wait_answer

# Each would set window.hacked, load something or run, if any of it became markup.
XSS = (
    "<script>hacked = 1</script>",
    "<img src=x onerror=hacked=1>",
    "<svg onload=hacked=1>",
    "<svg><script>hacked=1</script></svg>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<a href='javascript:hacked=1'>a</a>",
    "[a](javascript:hacked=1)",
    "[a](JaVaScRiPt:hacked=1)",
    "[a](java&#115;cript:hacked=1)",
    "[a](javascript&colon;hacked=1)",
    "[a](&#x6A;avascript:hacked=1)",
    "[a](data:text/html,<script>hacked=1</script>)",
    "[a](vbscript:hacked)",
    "[a](blob:http://127.0.0.1/x)",
    "[a]( \tjavascript:hacked=1)",
    "[a](<javascript:hacked=1>)",
    "[a][b]\n\n[b]: javascript:hacked=1",
    "<javascript:hacked=1>",
    "![a](javascript:hacked=1)",
    "![a](x.png\"onerror=\"hacked=1)",
    "![\"onerror=\"hacked=1](https://127.0.0.1:1/x.png)",
    "[a](https://127.0.0.1:1/ \"onmouseover=hacked=1 x=\")",
    "```<img src=x onerror=hacked=1>\ncode\n```",
    "```html\n<script>hacked = 1</script><img src=x onerror=hacked=1>\n```",
    "`<img src=x onerror=hacked=1>`",
    "# <img src=x onerror=hacked=1>",
    "|<img src=x onerror=hacked=1>|b|\n|-|-|\n|<script>hacked=1</script>|2|",
    "> <details open ontoggle=hacked=1>",
    "- <input autofocus onfocus=hacked=1>",
    "<style>*{display:none}</style><link rel=stylesheet href=x><base href=//x>",
    "<form action=javascript:hacked=1><button>b</button></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=hacked=1>",
    "<noscript><p title=\"</noscript><img src=x onerror=hacked=1>\">",
    "</div></section><script>hacked=1</script>",
    "&lt;img src=x onerror=hacked=1&gt;",
    "<!-- --><![CDATA[<script>hacked=1</script>]]>",
    "<x onclick=hacked=1 style=position:fixed;inset:0>x</x>",
)  # fmt: skip
LONG = """# Title

Some **bold**, *slanted*, ~~gone~~ and `code`, a [link](https://example.org/).

### Deeper

1. one
   - [x] inner
2. two

| left | right |
|:-----|------:|
| a    | 1     |

> said

```python
def f(x: int) -> str:  # a comment
    return f"{x + 1}"
```
"""


def test_what_a_model_writes_stays_harmless(browser, cluster):
    for text in sample(XSS, 3):
        cluster.say({"reasoning": text}, {"content": text}, {"tool_calls": [
            {"index": 0, "id": "1", "function": {"name": text, "arguments": text}}]})  # fmt: skip
        browser.run("document.querySelector('#clear').click()")
        say(browser, text.replace("\n", " "))  # a new line would send it
        found = browser.run(
            "const inside = [...document.querySelectorAll('#log *')];"
            "return [window.hacked ?? 0, inside.map(n => n.localName), inside.flatMap(n =>"
            " [...n.attributes].map(a => a.name)), [...document.querySelectorAll('#log a')]"
            ".map(a => a.protocol)]"
        )
        hacked, tags, attributes, protocols = found
        assert hacked == 0, text
        assert not set(tags) & {"script", "img", "svg", "iframe", "style", "link", "base", "form",
                                "input", "math", "noscript", "x", "object"}, text  # fmt: skip
        assert not [name for name in attributes if name.startswith("on") or name == "style"], text
        assert set(protocols) <= {"https:", "http:", "mailto:"}, text
    assert browser.complaints() == []


def test_markdown_is_shown_with_tables_lists_and_coloured_code(browser, cluster):
    cluster.say(*({"content": LONG[n : n + 7]} for n in range(0, len(LONG), 7)))
    say(browser, "Show me.")
    count = "return [...arguments].map(a => document.querySelectorAll('.assistant ' + a).length)"
    wanted = {"h3": 1, "h4": 1, "strong": 1, "em": 1, "del": 1, "ol > li": 2, "ul > li": 1,
              "td.to-right": 1, "blockquote": 1, "pre code": 1, ".hljs-keyword": 2,
              ".hljs-comment": 1, "a[rel~=noopener]": 1}  # fmt: skip
    assert dict(zip(wanted, browser.run(count, *wanted), strict=True)) == wanted
    code = browser.run("return document.querySelector('.assistant pre').textContent")
    assert code == LONG.partition("```python\n")[2].removesuffix("\n```\n")
    browser.click(".assistant .code button")
    browser.wait_text(".assistant .code button", "opied")
    assert browser.complaints() == []


@pytest.mark.parametrize("text", [">" * 20_000 + " deep", "x" * 250_000, "- " * 5000 + "a"])
def test_markdown_beyond_measure_is_shown_as_text(browser, cluster, text):
    cluster.say({"content": text})
    say(browser, "Show me.")
    shown = browser.run(f"return {LAST}.querySelector('.text').textContent.length")
    assert shown > 0 and browser.complaints() == []


def test_a_question_is_edited_and_an_answer_made_again_as_branches(browser, cluster):
    cluster.say({"content": "one"})
    say(browser, "first")
    cluster.say({"content": "two"})
    say(browser, "second")
    browser.click(".turn.user:nth-last-child(2) .actions button")
    browser.type(".turn.edited textarea", "second, changed")
    cluster.say({"content": "three"})
    browser.click(".turn.edited .actions:last-child button")
    browser.wait_text(".turn.assistant:last-child .text", "three")
    wait_answer(browser)
    said = [turn["content"] for turn in cluster.asked[-1]["messages"]]
    assert said == ["first", "one", "second, changed"]
    cluster.say({"content": "four"})
    browser.click(".turn.assistant:last-child [type=button]:nth-of-type(2)")  # regenerate
    browser.wait_text(".turn.assistant:last-child .text", "four")
    wait_answer(browser)
    assert cluster.asked[-1]["messages"] == cluster.asked[-2]["messages"]
    assert browser.text(".turn.assistant:last-child .branch") == "2 of 2"
    browser.click(".turn.user:nth-last-child(2) [aria-label='The branch before']")
    browser.wait_text(".turn.assistant:last-child .text", "two")
    assert browser.text(".turn.user:nth-last-child(2) .branch") == "1 of 2"


def test_conversations_outlive_a_reload_and_are_found_and_deleted(browser, cluster):
    cluster.say({"content": "about the sea"})
    browser.run("document.querySelector('#options').open = true")
    browser.type("#system", "Be brief.")
    browser.type("#temperature", "0.5")
    say(browser, "What is blue?")
    browser.open(cluster.url)
    browser.wait_text(".turn.assistant .text", "about the sea")
    kept = "return ['#system', '#temperature'].map(css => document.querySelector(css).value)"
    assert browser.run(kept) == ["Be brief.", "0.5"]
    browser.click("#clear")
    assert browser.run(kept) == ["", ""]
    cluster.say({"content": "about bread"})
    say(browser, "What is brown?")
    browser.click("#kept summary")
    browser.wait_text("#kept-note", "2 conversations.")
    browser.type("#search", "SEA blue")
    browser.wait_text("#kept-note", "1 conversation found.")
    browser.click("#conversations .title")
    browser.wait_text(".turn.user .text", "What is blue?")
    browser.click("#kept summary")
    browser.wait_text("#kept-note", "1 conversation found.")
    for _ in range(2):  # it asks again
        browser.click("#delete-all")
    browser.type("#search", " ")
    browser.wait_text("#kept-note", "0 conversations")
    assert browser.text("#log").startswith("Ask the model")
    browser.open(cluster.url)
    browser.wait_text("#state", "Serving")
    assert browser.text("#log").startswith("Ask the model")
    assert browser.complaints() == []


def test_what_is_exported_is_the_conversation(browser, cluster):
    cluster.say({"content": "yes"})
    say(browser, "Is it?")
    browser.run(
        "window.made = []; URL.createObjectURL = blob => { made.push(blob); return '#'; };"
        "document.querySelector('#kept').open = true"
    )
    browser.wait("return document.querySelectorAll('#conversations li').length")
    for button in ("[aria-label^='Export as Markdown']", "[aria-label^='Export as JSON']"):
        browser.click(f"#conversations {button}")
    markdown, told = browser.run("return Promise.all(made.map(blob => blob.text()))")
    assert markdown == "# Is it?\n\n## You\n\nIs it?\n\n## demo\n\nyes\n"
    turns = json.loads(told)["turns"].values()
    assert [turn["content"] for turn in turns] == ["Is it?", "yes"]


def test_an_answer_goes_on_after_the_connection_is_lost(browser, cluster):
    cluster.events = [{"choices": [{"delta": {"content": "Once upon "}}]}]
    browser.type("#prompt", "Tell.")
    browser.click("#send")
    browser.wait_text(".turn .trouble", "The answer goes on as soon as the server does.")
    cluster.say({"content": "a time."})
    browser.wait_text(".turn.assistant .text", "a time.")
    wait_answer(browser)
    last = cluster.asked[-1]
    assert last["continue_final_message"] is True
    assert [turn["role"] for turn in last["messages"]] == ["user", "assistant"]
    assert last["messages"][1]["content"].startswith("Once upon ")
    assert browser.text(".turn .trouble") == ""


def test_an_answer_goes_on_after_a_reload(browser, cluster):
    cluster.events = [{"choices": [{"delta": {"content": "Once upon "}}]}]
    cluster.hold.clear()  # it comes, and does not end
    browser.type("#prompt", "Tell.")
    browser.click("#send")
    browser.wait_text(".turn.assistant .text", "Once upon")
    browser.wait(
        "return conversationOf(talk.id).then(one => pathOf(one).at(-1).content.length > 0)"
    )
    cluster.body = state(status="loading")  # so that the page is seen before it goes on
    browser.open(cluster.url)
    browser.wait_text(".turn.assistant .text", "Once upon")
    cluster.say({"content": "a time."})
    cluster.hold.set()
    cluster.body = state()
    browser.run(POLL)
    browser.wait_text(".turn.assistant .text", "Once upon a time.")
    assert cluster.asked[-1]["continue_final_message"] is True


def test_text_files_are_sent_as_text_and_others_refused_in_words(browser, cluster):
    attach = """
    return attach([...arguments].map(([name, type, bytes]) =>
      new File([new Uint8Array(bytes)], name, {type})))
    """
    files = [
        ("notes.txt", "text/plain", list("héllo".encode())),
        ("me.png", "image/png", [137, 80]),
        ("odd.bin", "", [0, 255, 1]),
    ]
    browser.run(attach, *files)
    told = browser.text("#files-trouble")
    for words in ("me.png is an image", "odd.bin is no text in UTF-8"):
        assert words in told
    assert browser.text("#files") == "Remove notes.txt"
    cluster.say({"content": "ok"})
    say(browser, "Sum it up.")
    sent = cluster.asked[0]["messages"][0]["content"]
    assert sent == "File notes.txt:\n\nhéllo\n\nSum it up."
    assert browser.text("#files") == "" and browser.text(".turn .file summary") == "notes.txt"


def test_the_model_is_chosen_among_those_that_are_listed(browser, cluster):
    cluster.models = ["demo", "m" * 200]
    browser.open(cluster.url)
    browser.run("document.querySelector('#options').open = true")
    browser.wait("return document.querySelector('#chosen').checkVisibility()")
    browser.run("document.querySelector('#chosen').value = arguments[0]", "m" * 200)
    cluster.say({"content": "ok"})
    say(browser, "hello")
    assert cluster.asked[0]["model"] == "m" * 200


def test_a_model_that_is_loaded_for_the_answer_is_told(browser, cluster):
    go_on = threading.Event()
    cluster.say({"content": "ok"})
    cluster.events.insert(0, go_on)
    browser.type("#prompt", "hello")
    browser.click("#send")
    browser.wait_text(".turn.assistant", "Waiting for the first token.")
    model = {"id": "demo", "state": "unloaded", "loaded_share": 0}
    for more, words in (
        ({}, "The model is not loaded."),
        ({"state": "loading", "loaded_share": 0.4}, "The model is loading, 40 %."),
        ({"state": "loaded"}, "Waiting for the first token."),
    ):
        cluster.body = state(models=[model | more])
        browser.run(POLL)
        browser.wait_text(".turn.assistant", words)
    go_on.set()
    wait_answer(browser)
    assert browser.text(".turn.assistant .text") == "ok"


def test_connect_shows_each_client_of_the_docs_with_the_real_values(browser, cluster):
    browser.click("#tab-connect")
    names = browser.run("return [...document.querySelector('#client').options].map(o => o.text)")
    assert {"codex", "Claude Code", "opencode", "curl"} <= set(names)
    for name in names:
        browser.run(
            "const box = document.querySelector('#client'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('change'))", name,
        )  # fmt: skip
        told = browser.text("#snippets")
        assert cluster.url.rstrip("/") in told, name
        for place in ("{url}", "{key}", "{model}", "{context}"):
            assert place not in told, name
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_in_the_chat(browser, cluster, scheme, width):
    browser.screen(width, 844, phone=width < 600)
    browser.colours(scheme)

    def clean() -> None:
        assert browser.violations("#chat") == []

    clean()
    arabic = "# مرحبا\n\nهذا نص طويل `code` من اليمين.\n"
    cluster.say({"reasoning": "Hm."}, {"content": LONG + arabic}, {"tool_calls": [
        {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]})  # fmt: skip
    say(browser, "مرحبا")
    for box in ("#options", "#kept", "#curl-box", ".reasoning", ".calls"):
        browser.run("document.querySelector(arguments[0]).open = true", box)
    browser.wait("return document.querySelectorAll('#conversations li').length")
    clean()
    browser.run("document.querySelector('.turn.user .actions button').click()")
    clean()
    widths = browser.run(
        "return [document.documentElement.scrollWidth, ...[...document.querySelectorAll("
        "'#log, #chat, .turn')].map(n => n.scrollWidth - n.clientWidth)]"
    )
    assert widths[0] <= width and max(widths[1:]) <= 0
    browser.run("document.querySelector('#tab-connect').click()")
    clean()
    browser.colours()
