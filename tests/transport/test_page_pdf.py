"""PDFs beside a message, in a browser: their text goes with it; one without is told in words."""

import base64

import pytest

from tests.support.pdfs import CHINESE, PICTURE, pdf, words
from tests.transport.test_page_browser import say

ATTACH = """
return attach([...arguments].map(([name, type, text]) =>
  new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type})))
"""
PAPER = pdf(words("Hello there,", "(\\351t\\351)"), PICTURE, words("Page three"))


def attach(browser, name: str, data: bytes, type: str = "application/pdf") -> None:
    browser.run(ATTACH, [name, type, base64.b64encode(data).decode()])


@pytest.mark.parametrize("type", ["application/pdf", ""])
@pytest.mark.parametrize("packed", [False, True])
def test_the_text_of_each_page_goes_with_the_message(browser, cluster, packed, type):
    data = pdf(words("Hello there,", "\\(\\351t\\351\\)"), PICTURE, words("three"), packed=packed)
    attach(browser, "paper" if not type else "paper.pdf", data, type)
    name = "paper.pdf" if type else "paper"
    assert browser.text("#files-trouble") == ""
    assert browser.text("#files") == f"Remove {name} (3 pages, 1 without text)"
    cluster.say({"content": "ok"})
    say(browser, "Sum it up.")
    sent = cluster.asked[0]["messages"][0]["content"]
    assert sent == (
        f"File {name}:\n\n[Page 1 of 3]\nHello there,\n(été)\n\n[Page 2 of 3]\n(no text)\n\n"
        "[Page 3 of 3]\nthree\n\nSum it up."
    )
    assert browser.text(".turn .file summary") == name
    assert cluster.parts == ["pdf.js", "pdf.worker.js"]
    assert browser.complaints() == []


def test_a_message_without_one_fetches_nothing_for_it(browser, cluster):
    cluster.say({"content": "ok"})
    say(browser, "hello")
    assert cluster.parts == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.7\nnothing of it is there", "x.pdf is broken, or no PDF"),
        (b"<html>Please log in</html>", "x.pdf is broken, or no PDF"),
        (b"", "x.pdf is broken, or no PDF"),
        (pdf(), "x.pdf is broken, or no PDF"),
        (pdf(words("secret"), password="secret"), "x.pdf is encrypted"),
        (pdf(PICTURE, PICTURE), "x.pdf has no text, only pictures"),
        (pdf("BT /F1 12 Tf <4F60597D> Tj ET", font=CHINESE), "a Chinese, Japanese or Korean font"),
        (pdf(words("a"), count=1001), "x.pdf has 1,001 pages; a PDF may have 1,000"),
        (
            pdf(*[words(*["lorem ipsum " * 2000] * 10, size=0.01)] * 5, packed=True),
            "x.pdf has more than 1,048,576 characters of text before its page 5 of 5 ends",
        ),
    ],
    ids=["broken", "a page", "empty", "no pages", "encrypted", "scan", "tables", "long", "much"],
)  # fmt: skip
def test_one_that_cannot_be_read_is_told_in_words_and_the_next_one_is_read(
    browser, cluster, data, told
):
    attach(browser, "x.pdf", data)
    assert told in browser.text("#files-trouble")
    assert browser.text("#files") == ""
    attach(browser, "good.pdf", PAPER)
    assert browser.text("#files-trouble") == ""
    assert browser.text("#files").startswith("Remove good.pdf")
    assert browser.complaints() == []


def test_one_that_only_its_owner_may_change_is_read(browser, cluster):
    attach(browser, "own.pdf", pdf(words("readable"), password=""))
    assert browser.run("return attached.map(file => file.text)") == ["[Page 1 of 1]\nreadable"]


def test_a_cut_one_gives_what_is_left_of_it_or_is_told(browser, cluster):
    for size in range(0, len(PAPER), len(PAPER) // 7):
        attach(browser, "cut.pdf", PAPER[:size])
        read = browser.run("const read = attached.length; attached = []; return read")
        assert read or "cut.pdf" in browser.text("#files-trouble")
    assert browser.complaints() == []


def test_it_is_chosen_as_a_file_and_told_page_by_page(browser, cluster, tmp_path):
    many = pdf(*[words(f"page {n}") for n in range(40)])
    (tmp_path / "many.pdf").write_bytes(many)
    browser.run(
        "window.told = new Set(); new MutationObserver(() => told.add(document.querySelector("
        "'#files').innerText)).observe(document.querySelector('#files'),"
        " {childList: true, subtree: true, characterData: true})"
    )
    browser.type("#file", str(tmp_path / "many.pdf"), clear=False)
    browser.wait_text("#files", "Remove many.pdf (40 pages)")
    told = "\n".join(browser.run("return [...told]"))
    assert "Reading many.pdf\nCancel" in told and "Reading many.pdf: page 40 of 40" in told


def test_nothing_is_sent_before_it_is_read_and_it_can_be_cancelled(browser, cluster):
    cluster.sends_parts.clear()
    browser.run("attach([new File(['%PDF-1.7'], 'slow.pdf')])")
    browser.wait_text("#files", "Reading slow.pdf")
    assert browser.run("return document.querySelector('#send').disabled")
    browser.type("#prompt", "hello\ue007")
    assert cluster.asked == [] and browser.run("return document.querySelector('#prompt').value")
    browser.click("#files button")
    cluster.sends_parts.set()
    browser.wait("return !document.querySelector('#files').children.length")
    assert browser.text("#files-trouble") == ""
    cluster.say({"content": "ok"})
    browser.click("#send")
    browser.wait_text(".turn.assistant .text", "ok")
    assert cluster.asked[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_a_server_that_does_not_send_what_reads_it_is_told(browser, cluster):
    cluster.lacks_parts = True
    attach(browser, "x.pdf", PAPER)
    assert "The server did not send what reads it" in browser.text("#files-trouble")
    assert not browser.run("return document.querySelector('#send').disabled")
    cluster.lacks_parts = False
    browser.run("partsAsked.clear()")  # as time does
    attach(browser, "x.pdf", PAPER)
    assert browser.text("#files").startswith("Remove x.pdf")


def test_its_worker_can_fetch_load_and_evaluate_nothing(browser, cluster):
    """Whatever a PDF might make of it."""
    tried = browser.run(
        """
        const port = new Worker(partAddress("pdf.worker.js"), {type: "module"});
        const answer = await fetch(`${ROOT}page/pdf.worker.js`);
        port.terminate();
        return answer.headers.get("content-security-policy");
        """
    )
    assert tried == "default-src 'none'"
    refused = browser.run(
        "return ['/page/pdf.worker.js', 'data:text/javascript,1'].map(url => {"
        " try { new Worker(url); return ''; } catch (error) { return error.name; } })"
    )
    assert refused == ["TypeError", "TypeError"], "no address but by the one way there is"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_while_one_is_read_attached_or_refused(browser, cluster, scheme, width):
    browser.screen(width, 844, phone=width < 600)
    browser.colours(scheme)
    cluster.sends_parts.clear()
    long = "long" * 40
    browser.run("attach([new File(['%PDF-1.7'], arguments[0])])", f"{long}.pdf")
    browser.wait_text("#files", f"Reading {long}")
    try:
        clean(browser)
        cluster.sends_parts.set()
        browser.wait_text("#files-trouble", "is broken")
        attach(browser, f"{long}.pdf", PAPER)
        clean(browser)
        attach(browser, f"{long}.pdf", pdf(PICTURE))
        clean(browser)
    finally:
        cluster.sends_parts.set()
        browser.colours()


def clean(browser) -> None:
    assert browser.violations("#chat") == []
    widths = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
