// Connect: what to paste into each client, from docs/clients.md, with this server's address, key and model.

const CLIENTS = byId("clients").content.textContent;
const UNNAMED = "none"; // the key, where the server wants none: most clients insist on one

function sections() { // [title, text] of each heading of the second rank; a fence may hold another #
  const found = [];
  for (const token of marked.lexer(CLIENTS)) {
    if (token.type === "heading" && token.depth === 2) found.push([token.text, ""]);
    else if (found.length) found.at(-1)[1] += token.raw;
  }
  return found.filter(([, text]) => text.includes("{url}"));
}

let snippets = null; // once they are asked for

function showConnect() {
  if (byId("panel-connect").hidden) return;
  if (!snippets) {
    snippets = new Map(sections());
    byId("client").replaceChildren(...[...snippets.keys()].map((title) => make("option", "", title)));
  }
  const facts = { url: ROOT.replace(/\/$/, ""), key: key || UNNAMED, model: chosenModel() || "{model}", context: cluster?.limits?.context ?? "{context}" };
  const text = (snippets.get(byId("client").value) || "").replace(/\{(url|key|model|context)\}/g, (all, name) => facts[name]);
  if (byId("snippets").told === text) return;
  byId("snippets").told = text;
  showMarkdown(byId("snippets"), text);
}

function showTab(name, focus, how = "pushState") {
  for (const other of ["chat", "connect"]) {
    const chosen = other === name, tab = byId(`tab-${other}`);
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(`panel-${other}`).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  byId("clear").hidden = name !== "chat";
  if (how) markPlace(how);
  showConnect();
}

for (const name of ["chat", "connect"]) {
  byId(`tab-${name}`).addEventListener("click", () => showTab(name, true));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    if (["ArrowLeft", "ArrowRight"].includes(event.key)) showTab(name === "chat" ? "connect" : "chat", true);
  });
}
byId("client").addEventListener("change", showConnect);
byId("tab-connect").hidden = !CLIENTS;
