// Markdown as nodes. marked reads it and highlight.js tells the words of code apart; every node is made
// here (a formula's in chat_math.js), and every text is put in as text: there is no markup between, and
// nothing to clean.

const MARKDOWN_CHARS = 200000; // longer ones stay text
const HIGHLIGHT_CHARS = 50000; // of one block of code
const LINKS = ["http:", "https:", "mailto:"];
const INLINE = { strong: "strong", em: "em", del: "del" };
const RTL = /^(?:\[[ xX]\])?\P{L}*[\p{sc=Arab}\p{sc=Hebr}\p{sc=Syrc}\p{sc=Thaa}\p{sc=Nkoo}\p{sc=Adlm}]/u; // by the first letter, a ticked box apart
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

// Which way a block runs. dir="auto" looks past what has a dir of its own, so that a list or a quote of
// Arabic paragraphs would have its marks at the wrong side.
const sideOf = (text) => (RTL.test(text) ? "rtl" : "ltr");

function decoded(text) { // &amp; as people write it; others stay as they are
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|(\w{2,5}));/gi, (all, decimal, hex, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : all;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code > 31 && code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

function linkOf(href) { // an address that may be followed, or nothing
  try {
    const url = new URL(href); // relative ones mean nothing here
    return LINKS.includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

function makeLink(token, content) {
  const href = linkOf(token.href);
  const node = make(href ? "a" : "span");
  if (href) {
    node.href = href;
    node.target = "_blank";
    node.rel = "noopener noreferrer";
  }
  node.append(...content);
  return node;
}

function inline(tokens) {
  return (tokens || []).map((token) => {
    const tag = INLINE[token.type];
    if (tag) {
      const node = make(tag);
      node.append(...inline(token.tokens));
      return node;
    }
    switch (token.type) {
      case "codespan": return make("code", "", token.text);
      case "formula": return formulaOf(token);
      case "br": return make("br");
      case "link": return makeLink(token, inline(token.tokens));
      case "image": return makeLink(token, [`[${token.text || "image"}]`]); // nothing is fetched
      case "checkbox": return token.checked ? "☑ " : "☐ ";
      case "text": case "escape":
        if (token.tokens) {
          const node = make("span");
          node.append(...inline(token.tokens));
          return node;
        }
        return token.type === "escape" ? token.text : decoded(token.text);
      default: return token.raw; // HTML, too, is shown as it was written
    }
  });
}

function tell(node, text) { // for a moment, in place of a button's word
  const before = node.dataset.word ??= node.textContent;
  put(node, text);
  setTimeout(() => put(node, before), 2000);
}

async function copyOf(node, button, text = node.textContent) {
  try {
    await navigator.clipboard.writeText(text);
    tell(button, "Copied.");
  } catch { // there is no clipboard on plain http: select it, for Ctrl+C or the phone's menu
    getSelection().selectAllChildren(node);
    copying = text;
    tell(button, document.execCommand("copy") ? "Copied." : "Selected: copy it now.");
    copying = null;
  }
}

function coloured(node) { // of highlight.js' tree
  if (typeof node === "string") return node;
  const classes = String(node.scope || "").split(".").map((part, n) => (n ? part + "_".repeat(n) : `hljs-${part}`));
  const made = make("span", node.scope ? classes.join(" ") : "");
  made.append(...node.children.map(coloured));
  return made;
}

function codeBlock(text, language) {
  const box = make("div", "code"), bar = make("div", "spread"), pre = make("pre"), code = make("code");
  const name = (language || "").trim().split(/\s/)[0].slice(0, 40);
  const button = make("button", "small", "Copy");
  button.type = "button";
  button.addEventListener("click", () => copyOf(code, button));
  bar.append(make("small", "", name || "text"), button);
  if (name && hljs.getLanguage(name) && text.length <= HIGHLIGHT_CHARS) {
    const tree = hljs.highlight(text, { language: name, ignoreIllegals: true })._emitter.rootNode;
    code.append(...tree.children.map(coloured));
  } else {
    code.append(text);
  }
  pre.tabIndex = 0; // it may scroll
  pre.dir = "ltr";
  pre.append(code);
  box.append(bar, pre);
  return box;
}

function tableOf(token) {
  const box = make("div", "table"), table = make("table"), head = make("thead"), body = make("tbody");
  const row = (cells, tag) => {
    const line = make("tr");
    for (const cell of cells) {
      const node = make(tag, cell.align ? `to-${cell.align}` : "");
      node.dir = sideOf(cell.text);
      node.append(...inline(cell.tokens));
      line.append(node);
    }
    return line;
  };
  head.append(row(token.header, "th"));
  body.append(...token.rows.map((cells) => row(cells, "td")));
  table.append(head, body);
  box.dir = sideOf(token.header.map((cell) => cell.text).join(" "));
  box.tabIndex = 0; // it may scroll
  box.append(table);
  return box;
}

function listOf(token) {
  const list = make(token.ordered ? "ol" : "ul");
  if (token.ordered && token.start > 1) list.start = token.start;
  list.dir = sideOf(token.items[0]?.text || "");
  list.append(...token.items.map((item) => {
    const node = make("li");
    node.dir = sideOf(item.text);
    node.append(...blocks(item.tokens));
    return node;
  }));
  return list;
}

function block(token) {
  let node;
  switch (token.type) {
    case "space": case "def": return "";
    case "heading": // below the page's own; none left out, for those who step through them
      node = make(`h${Math.min(6, token.level)}`);
      node.append(...inline(token.tokens));
      break;
    case "paragraph":
      node = make("p");
      node.append(...inline(token.tokens));
      break;
    case "formula":
      node = make("p");
      node.append(formulaOf(token));
      return node;
    case "text": case "checkbox": // of a tight list
      node = make("span");
      node.append(...inline([token]));
      return node;
    case "blockquote":
      node = make("blockquote");
      node.append(...blocks(token.tokens));
      break;
    case "code": return codeBlock(token.text, token.lang);
    case "table": return tableOf(token);
    case "list": return listOf(token);
    case "hr": return make("hr");
    default: node = make("p", "plain", token.raw);
  }
  node.dir = sideOf(token.text || token.raw);
  return node;
}

function ranked(tokens) { // each heading has its rank
  let last = 2;
  for (const token of tokens) {
    if (token.type === "heading") token.level = last = Math.min(token.depth + 2, last + 1);
  }
  return tokens;
}

const blocks = (tokens) => ranked(tokens).map(block);

// Shows text in the node. What has not changed since the last time keeps its nodes, so that a selection
// outlives the next tokens. goesOn: there is more to come.
function showMarkdown(node, text, goesOn = false) {
  const source = text + (goesOn ? "\0" : "");
  if (node.source === source) return;
  node.source = source;
  shownFormulas = 0;
  try {
    if (text.length > MARKDOWN_CHARS) throw new RangeError("long");
    const tokens = ranked(readMarkdown(text, goesOn)), known = node.shown || [];
    const shown = tokens.map((token, n) => token.raw + token.level + (goesOn && n === tokens.length - 1));
    let same = 0;
    while (same < known.length && same < shown.length && known[same] === shown[same]) same += 1;
    const nodes = tokens.slice(same).map(block); // of a long answer most are there already
    while (node.childNodes.length > same) node.lastChild.remove();
    node.append(...nodes.map((one) => (one === "" ? document.createTextNode("") : one)));
    node.shown = shown;
    node.classList.remove("plain");
  } catch { // too long, or nested too deep
    node.shown = [];
    node.classList.add("plain");
    node.textContent = text;
  }
}
