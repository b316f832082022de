// Formulas as MathML. KaTeX, a part of its own, reads them; every node is made here, of names and values
// that MathML knows, and every text is put in as text. What cannot be drawn stays as it was written.

const FORMULAS_MOST = 2000; // in one text
const FORMULAS_KEPT = 500; // drawn: an answer that grows is shown again and again
const FORMULA_NODES = 5000;
const FORMULA_DEPTH = 80;
const FORMULA_EM = 20; // of a length
const EXPANSIONS = 1000; // of macros
const DEFINES = /\\(?:[egx]?def|(?:new|renew|provide)command)(?![A-Za-z])/;
const DEFINES_CHARS = 300; // where macros are defined: what they say may come many times over
const DEFINES_EXPANSIONS = 30;
const WIDE_CHARS = 40; // an inline formula of more may scroll
const LOADS_MOST = 5; // of KaTeX, when it does not come
const MATHML = "http://www.w3.org/1998/Math/MathML";
const TEXTS = ["mi", "mn", "mo", "mtext"];
const ROWS = [
  "math", "mrow", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup", "munder", "mover", "munderover",
  "mtable", "mtr", "mtd", "mspace", "mstyle", "mpadded", "mphantom", "menclose",
];
const LENGTHS = ["width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize", "mathsize", "linethickness"];
const WORDS = [
  "display", "displaystyle", "scriptlevel", "stretchy", "fence", "separator", "largeop", "movablelimits", "accent",
  "accentunder", "form", "notation", "mathcolor", "mathbackground",
];

// Letters of an alphabet, since browsers know mathvariant="normal" alone: where A, a, 0, Alpha and alpha stand.
const ALPHABETS = {
  "bold": [0x1d400, 0x1d41a, 0x1d7ce, 0x1d6a8, 0x1d6c2],
  "italic": [0x1d434, 0x1d44e, 0, 0x1d6e2, 0x1d6fc],
  "bold-italic": [0x1d468, 0x1d482, 0, 0x1d71c, 0x1d736],
  "script": [0x1d49c, 0x1d4b6],
  "bold-script": [0x1d4d0, 0x1d4ea],
  "fraktur": [0x1d504, 0x1d51e],
  "bold-fraktur": [0x1d56c, 0x1d586],
  "double-struck": [0x1d538, 0x1d552, 0x1d7d8],
  "sans-serif": [0x1d5a0, 0x1d5ba, 0x1d7e2],
  "bold-sans-serif": [0x1d5d4, 0x1d5ee, 0x1d7ec, 0x1d756, 0x1d770],
  "sans-serif-italic": [0x1d608, 0x1d622],
  "sans-serif-bold-italic": [0x1d63c, 0x1d656, 0, 0x1d790, 0x1d7aa],
  "monospace": [0x1d670, 0x1d68a, 0x1d7f6],
};
const RANGES = [["A", "Z"], ["a", "z"], ["0", "9"], ["Α", "Ω"], ["α", "ω"]].map(([from, to]) => [from.codePointAt(0), to.codePointAt(0)]);
// Which Unicode had before it had the alphabets.
const LETTERS = new Map(Object.entries({
  "ℎ": 0x1d455, "ℬ": 0x1d49d, "ℰ": 0x1d4a0, "ℱ": 0x1d4a1, "ℋ": 0x1d4a3, "ℐ": 0x1d4a4, "ℒ": 0x1d4a7, "ℳ": 0x1d4a8,
  "ℛ": 0x1d4ad, "ℯ": 0x1d4ba, "ℊ": 0x1d4bc, "ℴ": 0x1d4c4, "ℭ": 0x1d506, "ℌ": 0x1d50b, "ℑ": 0x1d50c, "ℜ": 0x1d515,
  "ℨ": 0x1d51d, "ℂ": 0x1d53a, "ℍ": 0x1d53f, "ℕ": 0x1d545, "ℙ": 0x1d547, "ℚ": 0x1d548, "ℝ": 0x1d549, "ℤ": 0x1d551,
}).map(([letter, code]) => [code, letter]));

function inAlphabet(text, name) {
  const starts = ALPHABETS[name] || [];
  return [...text].map((letter) => {
    const code = letter.codePointAt(0), range = RANGES.findIndex(([from, to]) => code >= from && code <= to);
    if (!starts[range]) return letter;
    const styled = starts[range] + code - RANGES[range][0];
    return LETTERS.get(styled) || String.fromCodePoint(styled);
  }).join("");
}

function lengthOf(value) { // within bounds; other lengths mean nothing to browsers
  const [, number, unit] = /^(-?[\d.]+)(em|ex|pt|px|%)?$/.exec(value) || [];
  if (!number || !Number.isFinite(Number(number))) return "";
  const most = { "%": 100, pt: 12 * FORMULA_EM, px: 16 * FORMULA_EM }[unit] || FORMULA_EM;
  return `${Math.max(-most / 5, Math.min(most, Number(number)))}${unit || ""}`; // not far over what is before
}

function makeMath(name, attributes) {
  const node = document.createElementNS(MATHML, name);
  for (const [attribute, value] of Object.entries(attributes)) {
    const told = LENGTHS.includes(attribute) ? lengthOf(value) : WORDS.includes(attribute) && /^[\w# -]*$/.test(value) ? value : "";
    if (told) node.setAttribute(attribute, told);
  }
  return node;
}

const textIn = (one) => one.text ?? one.character ?? (one.children ? one.children.map(textIn).join("") : " ");

function tokenOf(one) { // one of TEXTS
  const node = makeMath(one.type, one.attributes), text = textIn(one), variant = one.attributes.mathvariant;
  if (variant === "normal" && one.type === "mi") node.setAttribute("mathvariant", "normal");
  if (variant && one.type === "mtext") node.setAttribute("class", variant);
  node.append(variant && one.type !== "mtext" ? inAlphabet(text, variant) : text);
  return node;
}

function dressTable(node, told) { // what only attributes say that browsers have dropped
  const list = (name) => (told[name] || "").split(" ").filter(Boolean);
  const sides = list("columnalign"), across = list("columnlines"), below = list("rowlines");
  if (/^0(?:\.\d+)?em/.test(told.columnspacing || "")) node.setAttribute("class", "tight");
  [...node.children].forEach((row, y) => [...row.children].forEach((cell, x) => {
    const names = [
      sides.length ? `to-${sides[x] || sides.at(-1)}` : "",
      (across[x] || "none") !== "none" ? "line-after" : "",
      (below[y] || "none") !== "none" ? "line-below" : "",
    ].filter(Boolean);
    if (names.length) cell.setAttribute("class", names.join(" "));
  }));
}

function rowOf(one, room, depth) { // one of ROWS, and what is in it
  const { style, ...attributes } = one.attributes;
  if (attributes.mathbackground === "black") attributes.mathbackground = "currentcolor"; // a rule's own
  const around = room.size, size = parseFloat(attributes.mathsize);
  if (size) { // TeX's is of the formula, MathML's of what is around it
    attributes.mathsize = `${(size / around).toFixed(4)}em`;
    room.size = size;
  }
  const node = makeMath(one.type, attributes);
  if (style?.startsWith("border")) node.setAttribute("class", "box"); // \fcolorbox
  node.append(...mathNodes(one.children, room, depth + 1));
  room.size = around;
  if (one.type === "mtable") dressTable(node, one.attributes);
  return node;
}

function mathNodes(found, room, depth) { // of KaTeX's tree
  return found.flatMap((one) => {
    room.nodes -= 1;
    if (room.nodes < 0 || depth > FORMULA_DEPTH) throw new RangeError("too large to draw");
    if (TEXTS.includes(one.type)) return [tokenOf(one)];
    if (ROWS.includes(one.type)) return [rowOf(one, room, depth)];
    if (one.type) throw new TypeError(`a formula has no ${one.type}`);
    if (one.children) return mathNodes(one.children, room, depth);
    if (isNumber(one.width) && !one.character) return [makeMath("mspace", { width: `${one.width}em` })];
    return [tokenOf({ type: "mtext", attributes: {}, children: [one] })];
  });
}

function distrust({ command }) { // addresses, pictures, HTML: KaTeX would leave out what is in them
  throw new TypeError(`${command} is not drawn`);
}

function drawnFormula(text, display) { // throws where it is none
  const defines = DEFINES.test(text);
  // What an argument stands for may double with each expansion.
  if (defines && (text.length > DEFINES_CHARS || text.includes("#"))) throw new RangeError("too large to draw");
  const tree = katex.__renderToDomTree(text, {
    displayMode: display, output: "mathml", throwOnError: true, strict: "ignore", trust: distrust, macros: {},
    maxExpand: defines ? DEFINES_EXPANSIONS : EXPANSIONS, maxSize: FORMULA_EM,
  });
  const [content] = tree.children[0].children[0].children; // of <semantics>: beside it stands the source
  const node = makeMath("math", display ? { display: "block" } : {});
  node.append(...mathNodes([content], { nodes: FORMULA_NODES, size: 1 }, 0));
  return node;
}

const formulas = new Map(); // drawn ones, or nothing for what is none
const undrawn = new Set(); // nodes that wait for KaTeX
let shownFormulas = 0; // in the text that is shown now
let loading = false; // KaTeX, which then draws all of them
let loads = 0;

function knownFormula({ text, display }) {
  const name = `${display}${text}`;
  if (!formulas.has(name)) {
    let made = null;
    try {
      made = drawnFormula(text, display);
    } catch {
      // It stays text.
    }
    if (formulas.size >= FORMULAS_KEPT) formulas.delete(formulas.keys().next().value);
    formulas.set(name, made);
  }
  return formulas.get(name);
}

function drawFormula(node) {
  const { raw, text, display } = node.formula, math = knownFormula(node.formula)?.cloneNode(true);
  if (!math) return;
  math.dataset.tex = raw.trim();
  node.className = display ? "formula" : text.length > WIDE_CHARS ? "formula within" : "";
  if (node.className) node.tabIndex = 0; // it may scroll
  node.replaceChildren(math);
}

async function loadKatex() {
  if (loading || loads >= LOADS_MOST) return;
  loading = true;
  loads += 1;
  try {
    await partOf("katex.js");
    follow(() => undrawn.forEach(drawFormula));
    undrawn.clear();
  } catch {
    setTimeout(loadKatex, 2 * PART_AGAIN_MS);
  }
  loading = false;
}

function formulaOf(token) { // of chat_formulas.js
  const node = make("span", "tex", token.raw.trim());
  shownFormulas += 1;
  if (token.text === undefined || shownFormulas > FORMULAS_MOST) return node;
  node.formula = token;
  if (window.katex) {
    drawFormula(node);
  } else {
    undrawn.add(node);
    loadKatex();
  }
  return node;
}

// What is copied has each formula as it was written.

let copying = null; // what a button copies

function withSources(range) {
  const inside = (node) => (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement)?.closest("math");
  const whole = [inside(range.startContainer), inside(range.endContainer)];
  if (whole[0]) range.setStartBefore(whole[0]);
  if (whole[1]) range.setEndAfter(whole[1]);
  const part = range.cloneContents(), found = part.querySelectorAll("math");
  if (!found.length) return null;
  for (const math of found) math.replaceWith(math.dataset.tex);
  const box = make("div", "text unseen"); // where it is laid out, lines end as they are seen to
  box.append(part);
  document.body.append(box);
  const text = box.innerText;
  box.remove();
  return text;
}

document.addEventListener("copy", (event) => {
  if (event.target.matches?.("input, textarea")) return;
  const selection = getSelection();
  const text = copying ?? (selection.rangeCount && !selection.isCollapsed ? withSources(selection.getRangeAt(0).cloneRange()) : null);
  if (text === null) return;
  event.clipboardData.setData("text/plain", text);
  event.preventDefault();
});
