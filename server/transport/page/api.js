// Asking the server how it is, with the key of this tab.

const POLL_MS = 2000;
const ANSWER_MS = 8000; // an answer to a poll that takes longer is none
const KEY_NAME = "api-key";
// The page answers at / and at /v1/, and behind a proxy that adds a prefix.
const ROOT = new URL(".", location.href).href.replace(/\/v1\/$/, "/");

let cluster = null; // the last answer of /cluster
let reached = 0; // when it came, by performance.now()
let since = performance.now(); // not reached since then
let trouble = ""; // why the last poll failed
let wantsKey = false;
let timer = 0;

// The key: in this tab only.

let key = "";
try {
  key = sessionStorage.getItem(KEY_NAME) || "";
} catch {
  // Storage is barred here: the variable has to do.
}

function keepKey(text) {
  key = text;
  try {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  } catch {
    // As above.
  }
}

function withKey(headers) {
  // Header values are bytes to the browser; the server compares the key's UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return key ? { ...headers, Authorization: `Bearer ${bytes}` } : headers;
}

function tellOfKey(words) {
  byId("key-trouble").hidden = !words;
  put(byId("key-trouble"), words);
}

function askForKey() {
  wantsKey = true;
  trouble = "";
  clearTimeout(timer);
  if (key) tellOfKey("The server refused this key. Try another one.");
  keepKey("");
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  } else {
    byId("key").select();
  }
  showState();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("key").value.trim();
  if (!text || /[\u0000-\u001f\u007f]/.test(text)) {
    tellOfKey("A key is one line of visible characters.");
    return;
  }
  tellOfKey("");
  keepKey(text);
  poll();
});

byId("forget").addEventListener("click", () => {
  keepKey("");
  location.reload();
});

// Asking the server how it is.

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await fetch(`${ROOT}cluster`, {
      headers: withKey({}), cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS),
    });
    if (answer.status === 401) {
      askForKey();
      return; // until there is another key
    }
    if (!answer.ok) throw new Error(`it answered with status ${answer.status}`);
    cluster = await answer.json();
    reached = performance.now();
    trouble = "";
    if (wantsKey) {
      wantsKey = false;
      byId("key-form").hidden = true;
      byId("key").value = "";
      byId("prompt").focus();
    }
  } catch (error) {
    // A browser says no more than that it failed; that is no help to anyone.
    if (!trouble) since = reached || since;
    const kinds = { TypeError: "no answer", TimeoutError: "no answer in time", SyntaxError: "what it answered is no JSON" };
    trouble = kinds[error.name] || error.message;
  }
  show();
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !wantsKey) poll();
});
setInterval(() => showState(), 1000);
