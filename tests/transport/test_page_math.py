"""Formulas in what a model writes, in a browser: which are drawn, and that they stay harmless."""

from itertools import pairwise

import pytest

from tests.transport.test_page_browser import LAST, say

FORMULAS = r"""# Of \(x\)

Einstein: $E = mc^2$, and \(a_1 * b_1 * c\), the $n$th, ($y$), **bold $z$**.

$$
\begin{aligned} f(x) &= \frac{1}{2} \\ &= \sum_{i=1}^n \sqrt{i} \end{aligned}
$$

Then
\[
A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
= B
- C
\]
so $$\boxed{42}$$ it is.

- item \(\mathbb{R}^n\)
  $$\mathcal{L}$$

| a | b |
|---|---|
| $x_1$ | \(x_2\) |

> $$\hat{y}.$$
"""
PLAIN = (
    "It costs $5 and $10, or $20 (was $30); US$5/A$6, $5-$7, 5$ to 10$, $5k–$10k.",
    "Win $1,000,000 or $2M. Pay $3/month, i.e., $36/year; $100-$200; $50+; about -$5.",
    "**$5** and *$6*, $5 each, i.e. 5$/unit, and $7, 5$ too.",
    "$HOME/bin:$PATH and ${HOME}/x:${PATH} and $(a)$(b) and $FOO/$BAR.",
    "Escaped: \\$x\\$ and \\\\(x\\\\).",
    "- $5\n- $6",
    "| a | b |\n|-|-|\n| $5 | $6 |",
    "`$x$` and `\\(x\\)`",
    "```\n$$x$$\n\\[x\\]\n```",
    "```latex\n\\(x\\)\n```",
    "    $$x$$",
)
# What a model may try: each stays as it was written.
UNDRAWN = (
    r"\href{javascript:hacked=1}{x}",
    r"\url{javascript:hacked=1}",
    r"\includegraphics[width=9em]{http://127.0.0.1:1/x.png}",
    r"\htmlClass{card}{x}",
    r"\htmlId{log}{x}",
    r"\htmlStyle{position:fixed;inset:0}{x}",
    r"\htmlData{a=b}{x}",
    r"\def\a{\a\a}\a",
    r"\def\a{\b}\def\b{\a}\a",
    r"\gdef\a#1{\a{#1#1}}\a{x}",
    "".join(rf"\def\{a}#1{{\{b}{{#1#1#1#1}}}}" for a, b in pairwise("abcdefghijk")) + r"\a x",
    r"\newcommand{\a}{" + "x" * 100 + "}" + r"\a" * 60,
    r"\edef\a{xx}" + r"\edef\a{\a\a}" * 19,
    r"\def\a{" + "x" * 300 + "}" + r"\a" * 10,
    r"\frac{" * 200 + "x" + "}{y}" * 200,
    r"\left(" * 200 + "x" + r"\right)" * 200,
    r"\sqrt{" * 300 + "x" + "}" * 300,
    r"\frac{1",
    r"\unknown{x}",
    "x^2^3",
    r"\begin{aligned} a",
    "&",
    "<img src=x onerror=hacked=1>&",
    "#",
)
DRAWN = (
    "<script>hacked=1</script>",
    r"\text{<img src=x onerror=hacked=1>}",
    r"\rule{1000em}{1000em}\hspace{1000em}\hspace{-1000em}\kern-1000em\raisebox{1000em}{x}",
    r"\color{red}\colorbox{blue}{x}\fcolorbox{red}{blue}{y}\textcolor{#123456}{z}",
    r"\Huge\Huge\Huge x \scriptsize y",
    r"\cancel{x}\bcancel{y}\xcancel{z}\sout{a}\boxed{b}\phase{c}",
    r"\begin{array}{c|c}1&2\\\hline 3&4\end{array}\quad\tag{1}",
    r"\mathbb{R}\mathcal{F}\mathfrak{g}\mathbf{x}\boldsymbol{\alpha}\mathsf{A}\mathtt{b}\mathrm{d}h",
    r"\overbrace{a}^b\underbrace{c}_d\xrightarrow[e]{f}\overset{g}{h}\binom{n}{k}",
    r"\begin{cases} 1 & x \\ 2 \end{cases}\left\{\frac12\right]\vec v\hat w\dots\not=",
    r"\operatorname{softmax}\lim_{x\to 0}\iint\mod 2\pmod 3",
    r"\text{if \textbf{bold} and \textit{slanted} \texttt{code}}\smash{x}\phantom{y}\llap{z}",
)
TAGS = {
    "math", "mrow", "mi", "mn", "mo", "mtext", "mfrac", "msqrt", "mroot", "msub", "msup",
    "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mspace", "mstyle",
    "mpadded", "mphantom", "menclose",
}  # fmt: skip
ATTRIBUTES = {
    "display", "displaystyle", "scriptlevel", "stretchy", "fence", "separator", "largeop", "form",
    "movablelimits", "accent", "accentunder", "notation", "mathcolor", "mathbackground",
    "width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize", "mathsize",
    "linethickness", "mathvariant", "class", "data-tex",
}  # fmt: skip


def drawn(browser) -> list[str]:
    """The formulas that are seen, by their sources."""
    return browser.run(
        "return [...document.querySelectorAll('.assistant math')].map(m => m.dataset.tex)"
    )


def test_formulas_are_drawn_as_mathml(browser, cluster):
    cluster.say(*({"content": FORMULAS[n : n + 9]} for n in range(0, len(FORMULAS), 9)))
    say(browser, "Show me.")
    browser.wait("return document.querySelectorAll('.assistant math').length == 14")
    assert drawn(browser)[:3] == ["\\(x\\)", "$E = mc^2$", "\\(a_1 * b_1 * c\\)"]
    assert browser.run("return document.querySelectorAll('.formula math[display]').length") == 5
    assert browser.run("return document.querySelectorAll('.assistant .tex').length") == 0
    counts = browser.run(
        "return ['h3 math', 'strong math', 'li math', 'td math', 'blockquote math', 'mtd', 'em']"
        ".map(css => document.querySelectorAll('.assistant ' + css).length)"
    )
    assert counts == [1, 1, 2, 2, 1, 8, 0]
    assert "ℝ" in browser.text(".assistant") and "ℒ" in browser.text(".assistant")
    assert cluster.parts == ["katex.js"]
    assert browser.complaints() == []


@pytest.mark.parametrize("text", PLAIN)
def test_prices_variables_and_code_stay_as_they_are_and_fetch_nothing(browser, cluster, text):
    cluster.say({"content": text})
    say(browser, "Show me.")
    assert drawn(browser) == [] and cluster.parts == []
    assert browser.run("return document.querySelectorAll('.assistant .tex').length") == 0


@pytest.mark.parametrize("place", ["$${}$$", "\\({}\\)", "\\[{}\\]"])
def test_what_would_do_more_than_be_seen_is_not_drawn(browser, cluster, place):
    texts = [place.format(text) for text in UNDRAWN]
    cluster.say({"content": "\n\n".join([*texts, place.format("last")])})
    say(browser, "Show me.")
    browser.wait("return document.querySelector('.assistant math')")
    assert drawn(browser) == [place.format("last")]
    shown = browser.run(f"return [...{LAST}.querySelectorAll('.tex')].map(n => n.textContent)")
    assert shown == texts
    assert browser.run("return window.hacked ?? 0") == 0
    assert browser.complaints() == []


def test_what_is_drawn_has_nothing_but_what_mathml_needs(browser, cluster):
    cluster.say({"content": "\n\n".join(f"$${text}$$" for text in DRAWN)})
    say(browser, "Show me.")
    browser.wait(f"return document.querySelectorAll('.assistant math').length == {len(DRAWN)}")
    found = browser.run(
        "const inside = [...document.querySelectorAll('.assistant math, .assistant math *')];"
        "return [inside.map(n => n.localName), inside.flatMap(n => [...n.attributes].map(a =>"
        " a.name)), [...new Set(inside.map(n => n.namespaceURI))], window.hacked ?? 0,"
        " [...document.querySelectorAll('.assistant mspace')].map(n => parseFloat("
        "n.getAttribute('width') ?? '0'))]"
    )
    tags, attributes, spaces, hacked, widths = found
    assert set(tags) <= TAGS and set(attributes) <= ATTRIBUTES and hacked == 0
    assert spaces == ["http://www.w3.org/1998/Math/MathML"]
    assert max(map(abs, widths)) <= 20
    sizes = browser.run(
        "return [...document.querySelectorAll('[mathsize]')]"
        ".map(n => parseFloat(getComputedStyle(n).fontSize))"
    )
    assert sizes and max(sizes) < 3 * 16, "not one times the other"
    assert "𝐱" in browser.text(".assistant") and "ℱ" in browser.text(".assistant")
    assert browser.complaints() == []


def test_a_formula_that_grows_is_shown_as_it_is_written_and_then_drawn_once(browser, cluster):
    """At every letter of an answer: nothing throws, nothing drawn goes away or is drawn again in
    another block, and of half a formula its source is seen, whatever Markdown would make of it."""
    browser.run("return partOf('katex.js')")
    text = (
        "First $a_1 * b_1$ and \\(c_2 * d * e_2\\) end.\n\n$$\n\\frac{x * y * z}{2}\n= 1\n$$\n\n"
        "\\[\n- a_1 * b\n\\]\n\n*So* **it** is `code`."
    )
    steps = browser.run(
        """
        const node = document.createElement("div"), steps = [];
        document.body.append(node);
        let first = null, kept = true;
        for (let n = 1; n <= arguments[0].length; n += 1) {
          showMarkdown(node, arguments[0].slice(0, n), true);
          first ??= n > 60 ? node.querySelector("math") : null;
          kept &&= !first || node.querySelector("math") === first;
          steps.push([node.querySelectorAll("math").length, node.querySelectorAll("em").length,
            node.classList.contains("plain"),
            [...node.querySelectorAll(".tex")].map(t => t.textContent).join("|")]);
        }
        showMarkdown(node, arguments[0]);
        steps.push(kept, node.querySelectorAll("math").length);
        node.remove();
        return steps;
        """,
        text,
    )
    *steps, kept, last = steps
    counts = [count for count, *_ in steps]
    assert counts == sorted(counts) and last == counts[-1] == 4 and kept
    assert not any(plain for _, _, plain, _ in steps)
    assert all(em == 0 for (_, em, _, _), n in zip(steps, range(text.index("*So")), strict=False))
    for start, end in (
        ("$a_1", "$ and"),
        ("\\(c", "\\) end"),
        ("$$\n", "\n$$"),
        ("\\[\n", "\n\\]"),
    ):
        begin, stop = text.index(start), text.index(end)
        for n in range(begin + len(start), stop):
            assert steps[n - 1][3] == text[begin:n].strip(), text[begin:n]


def test_what_is_copied_has_the_sources(browser, cluster):
    cluster.say({"content": FORMULAS})
    say(browser, "Show me.")
    browser.wait("return document.querySelectorAll('.assistant math').length == 14")
    copied = browser.run(
        """
        const copied = [];
        navigator.clipboard.writeText = async (text) => { copied.push(text); };
        document.querySelector(".assistant [aria-label='Copy the answer']").click();
        const copy = () => {
          const clipboardData = new DataTransfer();
          const event = new ClipboardEvent("copy", {clipboardData, bubbles: true});
          document.body.dispatchEvent(event);
          copied.push(event.clipboardData.getData("text/plain"));
        };
        const choose = (css) => getSelection().selectAllChildren(document.querySelector(css));
        choose(".assistant .text > p");
        copy();
        choose(".assistant math mrow");
        copy();
        choose(".turn.user .text");
        copy();
        getSelection().removeAllRanges();
        return copied;
        """
    )
    assert copied[0] == FORMULAS
    assert copied[1] == (
        "Einstein: $E = mc^2$, and \\(a_1 * b_1 * c\\), the $n$th, ($y$), bold $z$."
    )
    assert copied[2] == "\\(x\\)" and copied[3] == "", "the browser's own is as good there"


def test_without_what_draws_them_formulas_stay_as_they_are_written(browser, cluster):
    cluster.lacks_parts = True
    cluster.say({"content": "Say $x^2$ *now*."})
    told = say(browser, "Show me.")
    assert "Say $x^2$ now." in told
    browser.wait("return loads > 0 && !loading")
    assert browser.complaints() == []
    cluster.lacks_parts = False
    browser.run("partsAsked.clear(); return loadKatex()")  # as time does
    assert drawn(browser) == ["$x^2$"]


@pytest.mark.thorough
def test_many_formulas_and_many_marks_do_not_stop_the_page(browser, cluster):
    for text in (
        "$x$ " * 5000,
        "$" * 20_000,
        "\\(" * 10_000 + "\\)",
        "\\[\n\n" * 5000,
        "$a " * 9000,
    ):
        cluster.say({"content": text})
        say(browser, "Show me.")
        assert browser.text(".turn.assistant:last-child")
        browser.run("document.querySelector('#clear').click()")
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser, cluster, scheme, width):
    browser.screen(width, 844, phone=width < 600)
    browser.colours(scheme)
    wide = " + ".join(f"x_{{{n}}}" for n in range(60))
    cluster.say({"content": f"{FORMULAS}\n\nWide \\({wide}\\) and $$ {wide} $$ \\frac $${{$$"})
    say(browser, "Show me.")
    browser.wait("return document.querySelectorAll('.assistant math').length == 16")
    assert browser.violations("#chat") == []
    widths = browser.run(
        "return [document.documentElement.scrollWidth, ...[...document.querySelectorAll("
        "'#log, #chat, .turn')].map(n => n.scrollWidth - n.clientWidth)]"
    )
    assert widths[0] <= width and max(widths[1:]) <= 0
    browser.colours()
