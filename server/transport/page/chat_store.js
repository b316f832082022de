// Conversations, kept by this browser alone: in IndexedDB, or in memory where that is barred.
//
// A conversation: {id, title, changed, model, system, parameters, settled, turns: {id: turn}, leaf}. A turn:
// {id, parent, role, content, reasoning, calls, files, state, owner, note, figures}; turns with the same
// parent are branches, and leaf is the last turn of the one in view.

const SHOP = "conversations";
const TITLE_CHARS = 60;
let lasting = true; // whether what is kept outlives this page
const inMemory = new Map();

const opened = new Promise((resolve) => {
  try {
    const asked = indexedDB.open("chat", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(SHOP, { keyPath: "id" });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = asked.onblocked = () => resolve(null);
  } catch {
    resolve(null);
  }
}).then((base) => {
  lasting = Boolean(base);
  return base;
});

async function inStore(mode, work) { // what the request of work returns; throws
  const base = await opened;
  return new Promise((resolve, reject) => {
    const change = base.transaction(SHOP, mode);
    const asked = work(change.objectStore(SHOP));
    change.oncomplete = () => resolve(asked.result);
    change.onerror = change.onabort = () => reject(change.error || new Error("not kept"));
  });
}

async function keepConversation(one) {
  if (one.gone) return;
  one.changed = Date.now();
  try {
    if (await opened) {
      await inStore("readwrite", (shop) => putMerged(shop, one));
      one.kept = true;
      if (one.gone) dropGone(one.id);
      else tellOthers("kept", one.id);
      return;
    }
  } catch (error) { // no room, most likely
    tellOfKept(`This conversation could not be kept: ${error.message}`);
  }
  inMemory.set(one.id, one);
}

function putMerged(shop, one) { // another tab may have added turns to the same conversation
  const before = shop.get(one.id);
  before.onsuccess = () => {
    if (!before.result && one.kept) { // another window has deleted it
      one.gone = true;
      return;
    }
    const kept = before.result?.turns || {};
    if (before.result) takeSettingsOf(one, before.result);
    one.turns = { ...kept, ...one.turns };
    const theirs = Object.values(kept).filter((turn) => turn.owner && turn.owner !== TAB && one.turns[turn.id].owner !== TAB);
    const turns = { ...one.turns, ...Object.fromEntries(theirs.map((turn) => [turn.id, turn])) };
    shop.put(structuredClone({ ...one, turns }));
  };
  return before;
}

async function conversations() { // the newest first
  const kept = (await opened) ? await inStore("readonly", (shop) => shop.getAll()) : [];
  for (const one of kept) one.kept = true;
  const ids = new Set(kept.map((one) => one.id));
  return [...kept, ...[...inMemory.values()].filter((one) => !ids.has(one.id))].sort((a, b) => b.changed - a.changed);
}

async function conversationOf(id) {
  const kept = (await opened) && await inStore("readonly", (shop) => shop.get(id));
  if (kept) kept.kept = true;
  return kept || inMemory.get(id);
}

async function dropConversations(id) { // all of them without one
  if (id) inMemory.delete(id);
  else inMemory.clear();
  if (await opened) await inStore("readwrite", (shop) => (id ? shop.delete(id) : shop.clear()));
  tellOthers("gone", id);
}

// What one is made of.

function newId() {
  return [...crypto.getRandomValues(new Uint32Array(3))].map((part) => part.toString(36)).join("");
}

function newConversation() {
  return { id: newId(), title: "", changed: 0, model: "", system: "", parameters: {}, turns: {}, leaf: null };
}

function addTurn(one, parent, fields) { // and it is in view
  const turn = { id: newId(), parent, made: Date.now(), content: "", ...fields };
  one.turns[turn.id] = turn;
  one.leaf = turn.id;
  if (!one.title) one.title = (turn.content || turn.files?.[0]?.name || "").trim().split("\n")[0].slice(0, TITLE_CHARS);
  return turn;
}

function pathOf(one) { // the turns in view, from the first
  const path = [];
  for (let turn = one.turns[one.leaf]; turn; turn = one.turns[turn.parent]) path.unshift(turn);
  return path;
}

function branchesOf(one, turn) {
  return Object.values(one.turns).filter((other) => other.parent === turn.parent).sort((a, b) => a.made - b.made);
}

function showBranch(one, turn) { // down to its newest end
  let at = turn;
  for (;;) {
    one.leaf = at.id;
    const next = Object.values(one.turns).filter((other) => other.parent === at.id).sort((a, b) => b.made - a.made);
    if (!next.length) return;
    at = next[0];
  }
}

function said(turn) { // as the model is told
  const files = (turn.files || []).map((file) => `File ${file.name}:\n\n${file.text}\n\n`);
  return files.join("") + turn.content;
}

// As the API wants it. What has no answer is not part of the conversation that the model sees; last: the
// question that is to be answered now.
function messagesOf(one, last) {
  const path = [];
  for (let turn = last; turn; turn = one.turns[turn.parent]) path.unshift(turn);
  const answered = path.filter((turn, n) => turn === last || (turn.role === "user" ? path[n + 1]?.content : turn.content));
  const system = one.system.trim();
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...answered.map((turn) => ({ role: turn.role, content: said(turn) })),
  ];
}

function asMarkdown(one) {
  const parts = pathOf(one).map((turn) => `## ${turn.role === "user" ? "You" : one.model || "Model"}\n\n${said(turn)}\n`);
  return [`# ${one.title}\n`, ...(one.system ? [`> ${one.system.replaceAll("\n", "\n> ")}\n`] : []), ...parts].join("\n");
}
