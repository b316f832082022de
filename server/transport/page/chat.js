// The chat: the conversation in view, its questions, and answers that go on.

const KEEP_MS = 500; // between two writes of an answer that grows
const RESUMES_MOST = 8; // of one answer, each after twice the time; then by the button
const RESUME_MS = 500;
const WAITING_NOTE = "Waiting for the first token.";
const PROMPT_NOTE = byId("prompt-note").textContent;
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
let talk = newConversation(); // the one in view
let answering = null; // the AbortController of the answer that is on its way
let answered = null; // the conversation that it is of, in view or not
let answeredTurn = null;
let waiting = null; // an answer that goes on as soon as the server serves again
let tries = 0; // to go on with it

function remembered(name, value) { // of this tab; a reload keeps it
  try {
    if (value !== undefined) sessionStorage.setItem(name, value);
    return sessionStorage.getItem(name) || "";
  } catch {
    return "";
  }
}

let TAB = remembered("tab") || remembered("tab", newId()); // whose turns are ours

function ready() {
  return Boolean(cluster && !trouble && !wantsKey && cluster.status === "ok" && !answering);
}

function showSend() {
  const held = [byId("send"), byId("stop")].find((button) => button === document.activeElement);
  byId("send").hidden = Boolean(answering);
  byId("stop").hidden = !answering && !waiting;
  byId("send").disabled = !ready() || reading.size > 0;
  if (held && (held.hidden || held.disabled)) (answering ? byId("stop") : byId("prompt")).focus(); // the one in its place
  byId("clear").disabled = Boolean(answering) || !talk.leaf;
  put(byId("prompt-note"), answered && answered !== talk ? "An answer goes on in another conversation; Stop ends it." : PROMPT_NOTE);
  tellLoading();
  showModels();
  showConnect();
  if (waiting && ready() && reached > waiting.due) goOn(waiting.turn);
}

function tellLoading() { // of the model that is to answer: the stream has no events before it is there
  const turn = answeredTurn, model = cluster?.models?.find((one) => one.id === answered?.model);
  if (!turn || !model || turn.content || turn.reasoning || turn.progress) return;
  const part = model.state === "loading" ? `, ${digits(100 * (model.loaded_share || 0))} %` : "";
  turn.note = model.state === "loaded" ? WAITING_NOTE : `The model is ${MODEL_STATES[model.state]?.[1] || model.state}${part}.`;
  if (answered === talk) viewOf(turn).later();
}

function parameters() {
  const body = {};
  for (const name of NUMBERS) {
    const text = byId(name).value.trim();
    if (text) body[name] = Number(text); // what is empty is the server's to choose
  }
  return body;
}

function takeSettings() { // from the fields into the conversation
  talk.system = byId("system").value;
  talk.parameters = Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value.trim()]));
  talk.model = chosenModel();
}

const settingsOf = ({ system, parameters, model, settled }) => ({ system, parameters, model, settled });

function showSettings() {
  byId("system").value = talk.system;
  for (const name of NUMBERS) byId(name).value = talk.parameters[name] || "";
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(body) { // never with the key itself
  return [
    `curl -N ${quote(`${ROOT}v1/chat/completions`)}`,
    ...(key ? ['-H "Authorization: Bearer $API_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d ${quote(JSON.stringify(body))}`,
  ].join(" \\\n  ");
}

function ask(text, files, parent) { // returns once the answer has ended
  if (!byId("chat-form").reportValidity()) return undefined;
  const question = addTurn(talk, parent, { role: "user", content: text, files });
  return answerTo(question);
}

function answerTo(question) {
  tries = 0;
  return run(addTurn(talk, question.id, { role: "assistant" }), false);
}

function regenerate(turn) {
  if (ready()) answerTo(talk.turns[turn.parent]);
}

async function goOnAsked(turn, button) { // by the button, which another window's answer has, too
  if (turn.state === "running" && turn.owner !== TAB && await isElsewhere(turn.owner)) tell(button, "Another window is at it.");
  else goOn(turn);
}

function goOn(turn) { // from what there is of it; of a thought alone nothing can go on
  if (!ready()) return;
  if (!turn.content) turn.reasoning = "";
  run(turn, Boolean(turn.content));
}

function bodyFor(turn, continues) {
  const messages = messagesOf(talk, talk.turns[turn.parent]);
  if (continues) {
    const thought = turn.reasoning ? { reasoning_content: turn.reasoning } : {};
    messages.push({ role: "assistant", content: turn.content, ...thought });
  }
  return {
    model: talk.model, messages, stream: true, stream_options: { include_usage: true }, return_progress: true, ...parameters(),
    ...(continues ? { continue_final_message: true } : {}),
  };
}

async function run(turn, continues) {
  waiting = null;
  takeSettings();
  remembered("conversation", talk.id);
  const one = talk, log = byId("log"), body = bodyFor(turn, continues);
  Object.assign(turn, { state: "running", owner: TAB, waits: false, trouble: "", note: continues ? "It goes on." : WAITING_NOTE });
  answering = new AbortController();
  answered = one;
  answeredTurn = turn;
  markPlace();
  put(byId("curl"), curl(body));
  byId("curl-box").hidden = false;
  showTalk();
  log.setAttribute("aria-busy", "true"); // read out when it is whole, not token by token
  showSend();
  let keeping = 0; // soon, also when nothing more comes: another window shows what is kept
  keepConversation(one);
  try {
    const finish = await stream(body, turn, answering.signal, () => {
      if (one === talk) viewOf(turn).later();
      keeping ||= setTimeout(() => {
        keeping = 0;
        keepConversation(one);
      }, KEEP_MS);
    });
    turn.state = finish === "length" ? "cut" : "done";
    turn.note = finish === "length" ? "cut at the token limit" : "";
    tries = 0;
  } catch (error) {
    failed(one, turn, error);
  }
  clearTimeout(keeping);
  answering = answered = answeredTurn = null;
  delete turn.progress;
  log.removeAttribute("aria-busy");
  await keepConversation(one);
  if (one === talk) {
    for (const other of pathOf(talk)) follow(() => viewOf(other).show());
    if (one.leaf !== turn.id) showTalk();
  }
  showSend();
  showKept();
}

function failed(one, turn, error) {
  if (turn.owner !== TAB) return; // another window goes on with it
  const stopped = answering.signal.aborted;
  turn.note = stopped ? "stopped by you" : "";
  turn.state = stopped ? "stopped" : "failed";
  if (stopped) return;
  const lost = error instanceof TypeError; // what a browser says of a lost connection helps nobody
  turn.trouble = lost ? "The connection to the server was lost." : error.message;
  tries += 1;
  if (turn.content && tries <= RESUMES_MOST && !(error instanceof Refused && cluster?.status === "ok" && !wantsKey)) {
    if (one === talk) waiting = { turn, due: performance.now() + RESUME_MS * 2 ** tries };
    turn.waits = true; // over a reload, too, and until it is in view again
    turn.trouble += " The answer goes on as soon as the server does.";
  } else if (!turn.content && one === talk) { // to try again without typing
    const question = one.turns[turn.parent];
    byId("prompt").value ||= question.content;
    if (!attached.length) attached = question.files || [];
    showAttached();
  }
  if (!wantsKey) poll(); // it may be more than this request that has failed
}

async function send() {
  const text = byId("prompt").value;
  if ((!text.trim() && !attached.length) || !ready() || reading.size) return;
  byId("prompt").value = "";
  const files = attached;
  attached = [];
  showAttached();
  await ask(text, files, talk.leaf);
}

function openTalk(one, how = "pushState") { // puts a conversation in view
  talk = one;
  waiting = null;
  views.clear();
  remembered("conversation", one.id);
  put(byId("hint"), HINT);
  markPlace(how);
  showSettings();
  chooseModel(one.model);
  showTalk();
  const turn = talk.turns[talk.leaf];
  // One that another tab may be at is left to it, and to the button.
  // A page that is left sees its request fail, so that an answer which waits is one, too.
  if (one !== answered && (turn?.state === "running" || turn?.waits) && turn.owner === TAB) waiting = { turn, due: 0 };
  showSend();
}

function stopAnswer() {
  if (waiting) {
    waiting.turn.trouble = "";
    waiting.turn.waits = false;
    waiting.turn.note = "stopped by you";
    waiting.turn.state = "stopped";
    viewOf(waiting.turn).show();
    waiting = null;
    keepConversation(talk);
  }
  answering?.abort();
  showSend();
}

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("chat-form").addEventListener("invalid", () => {
  byId("options").open = true; // or the browser could not point at the field
}, true);
byId("options").addEventListener("change", () => {
  takeSettings();
  talk.settled = Date.now();
  if (talk.leaf) keepConversation(talk);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("chat-form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopAnswer();
});
byId("stop").addEventListener("click", () => {
  stopAnswer();
  byId("prompt").focus();
});
addEventListener("pagehide", () => {
  if (answered) keepConversation(answered);
});
byId("clear").addEventListener("click", () => {
  openTalk(newConversation());
  byId("prompt").focus();
});
byId("copy").addEventListener("click", () => copyOf(byId("curl"), byId("copy")));
