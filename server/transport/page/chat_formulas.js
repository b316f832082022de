// Which text is a formula: $$...$$, \[...\], \(...\), and $...$ where it is no price, no shell variable and
// no end of a line. marked asks here before it looks for anything else; code it has taken out before.

const FORMULA_CHARS = 4000; // longer ones stay text
const FORMULA_ENDS = { "$$": "$$", "\\[": "\\]", "\\(": "\\)" };
const PRICE = /^\d(?:.*\s[A-Za-z]{2,}|[\d.,–-]*\s[\d.,\s–-]*$)/s; // "5 each, or 6", "5, 6": no sum of numbers
const COMMANDS = /\\[A-Za-z]+(?:\s*\{[^{}]*\})?/g; // and the text in them
let growing = false; // the text that is read goes on: its last formula may be half of one

function closing(text, mark, from) { // where the mark stands, unless it is escaped
  for (let at = from; (at = text.indexOf(mark, at)) >= 0; at += 1) {
    let slashes = 0;
    while (text[at - 1 - slashes] === "\\") slashes += 1;
    if (slashes % 2 === 0) return at;
  }
  return -1;
}

// As closing, within FORMULA_CHARS. seen: for the texts that end where this one does, how many of their
// last characters were not looked through; or many \( without an end would be looked through to it each time.
function ending(src, mark, from, seen) {
  const known = src.length - (seen[mark] ?? src.length);
  const end = closing(src.slice(0, FORMULA_CHARS), mark, Math.max(from, known));
  if (end < 0) seen[mark] = Math.max(0, src.length - FORMULA_CHARS);
  return end;
}

const formulaToken = (raw, text, display) => ({ type: "formula", raw, text, display });
const halfToken = (raw) => ({ type: "formula", raw }); // shown as it is written until there is more

function dollarFormula(src) {
  if (/[\s$]/.test(src[1] ?? " ")) return undefined;
  const most = src.slice(0, FORMULA_CHARS), stop = most.indexOf("\n"), line = stop < 0 ? most : most.slice(0, stop);
  const end = closing(line, "$", 1);
  if (end < 0) return growing && line.length === src.length && /^\$[^\d`][^`]*$/.test(line) ? halfToken(src) : undefined;
  const text = line.slice(1, end), after = line.slice(end + 1, end + 4);
  if (/[\s`]$|`/.test(text) || PRICE.test(text.replace(COMMANDS, ""))) return undefined;
  if (/^[\w$({]/.test(after) && !/^(?:th|st|nd|rd|s)\b/.test(after)) return undefined; // $A:$B, $5-$6
  return formulaToken(src.slice(0, end + 1), text, false);
}

function inlineFormula(src, before, seen) { // before: what stands before it
  const open = src.slice(0, 2), mark = FORMULA_ENDS[open];
  if (!mark) return src[0] === "$" && !/[\w$]/.test(before) ? dollarFormula(src) : undefined;
  const end = ending(src, mark, 2, seen);
  if (end > 2) return formulaToken(src.slice(0, end + 2), src.slice(2, end), open !== "\\(");
  const half = end < 0 && src.length <= FORMULA_CHARS && (open !== "$$" || /^\$\$\S/.test(src));
  return half ? halfToken(src) : undefined;
}

function blockFormula(src, seen) { // one that has its lines for itself
  const [, indent, open] = /^( {0,3})(\$\$|\\\[)/.exec(src) || [];
  if (!open) return undefined;
  const start = indent.length + 2, end = ending(src, FORMULA_ENDS[open], start, seen);
  if (end < 0) return src.length > FORMULA_CHARS ? undefined : halfToken(src.split(/\n[ \t]*\n/, 1)[0]);
  const after = /^[ \t]*([.,;:]?)[ \t]*(?:\n+|$)/.exec(src.slice(end + 2));
  if (end === start || (!after && !/^\s*\n/.test(src.slice(start, end)))) return undefined; // one in a sentence
  const [rest, point] = after || ["", ""];
  return formulaToken(src.slice(0, end + 2 + rest.length), src.slice(start, end) + point, true);
}

function withoutFormulas(src) { // of the same length, for who looks for * and _
  const starts = /\\[\s\S]|\$/g, seen = {};
  let told = "", at = 0, found;
  while ((found = starts.exec(src))) {
    const token = inlineFormula(src.slice(found.index), src[found.index - 1] || "", seen);
    if (!token) continue;
    told += src.slice(at, found.index) + "a".repeat(token.raw.length);
    at = starts.lastIndex = found.index + token.raw.length;
  }
  return told + src.slice(at);
}

const seenBy = new WeakMap(); // by the list of tokens that marked makes of one text
function seenIn(tokens) {
  if (!seenBy.has(tokens)) seenBy.set(tokens, {});
  return seenBy.get(tokens);
}

const reader = new marked.Marked({
  extensions: [
    {
      name: "formulaBlock", level: "block", tokenizer: (src, tokens) => blockFormula(src, seenIn(tokens)),
      start: (src) => /\n {0,3}(?:\$\$|\\\[)/.exec(src.split("\n\n", 1)[0])?.index, // within its paragraph
    },
    {
      name: "formula", level: "inline",
      tokenizer: (src, tokens) => inlineFormula(src, tokens.at(-1)?.raw.slice(-1) || "", seenIn(tokens)),
      start(src) { // only where marked's text does not end before: else each text would look to the very end
        const at = src.search(/[\\<![`*~_$]/);
        return src[at] === "$" ? at : undefined;
      },
    },
  ],
  hooks: { emStrongMask: withoutFormulas },
});

function readMarkdown(text, goesOn) {
  growing = goesOn;
  try {
    return reader.lexer(text);
  } finally {
    growing = false;
  }
}
