// Chat.

let turns = []; // what was said, as the API wants it
let answering = null; // the AbortController of the answer that is on its way

function showSend() {
  const ready = cluster && !trouble && !wantsKey && cluster.status === "ok";
  byId("send").hidden = Boolean(answering);
  byId("stop").hidden = !answering;
  byId("send").disabled = !ready;
  byId("clear").disabled = Boolean(answering) || !turns.length;
}

function parameters() {
  const body = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const text = byId(name).value.trim();
    if (text) body[name] = Number(text); // what is empty is the server's to choose
  }
  return body;
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

class Answer { // one answer in the conversation, while it grows and after
  constructor() {
    this.node = make("div", "turn assistant");
    this.text = make("div", "text busy");
    this.text.dir = "auto";
    this.note = make("small", "", "Waiting for the first token.");
    this.node.append(this.text, this.note);
    byId("log").append(this.node);
    this.started = performance.now();
    this.content = "";
  }

  add(delta) {
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought || delta.content) {
      this.first ??= performance.now();
      this.latest = performance.now();
    }
    if (thought) this.think().append(thought);
    if (delta.content) {
      this.content += delta.content;
      this.text.append(delta.content);
      put(this.note, "");
    }
  }

  think() {
    if (!this.thoughts) {
      const box = make("details", "reasoning");
      this.thoughts = make("div", "text");
      this.thoughts.dir = "auto";
      box.append(make("summary", "", "Reasoning"), this.thoughts);
      this.node.prepend(box);
      put(this.note, "It is thinking.");
    }
    return this.thoughts;
  }

  end(words, usage) {
    this.text.classList.remove("busy");
    const seconds = (this.latest - this.first) / 1000;
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    put(this.note, [
      words,
      usage ? `${many(usage.prompt_tokens, "token")} in${cached ? ` (${digits(cached)} cached)` : ""}, ${digits(usage.completion_tokens)} out` : "",
      this.first ? `first after ${digits((this.first - this.started) / 1000, 2)} s` : "",
      usage?.completion_tokens > 1 && seconds > 0 ? `${digits((usage.completion_tokens - 1) / seconds, 1)} tokens/s` : "",
    ].filter(Boolean).join(" · "));
  }

  fail(words) {
    this.text.classList.remove("busy");
    put(this.note, "");
    this.node.append(make("p", "trouble", words));
  }
}

async function* eventsOf(answer) { // the data of each server-sent event
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const one of lines) {
      if (one.startsWith("data: ")) yield one.slice(6);
    }
  }
}

async function refusal(answer) {
  let words = `The server answered with status ${answer.status}.`;
  try {
    words = (await answer.json()).error.message || words;
  } catch {
    // Not from our server, then; the status has to do.
  }
  const wait = answer.headers.get("Retry-After");
  return wait ? `${words} Try again in ${span(Number(wait))}.` : words;
}

function follow(change) { // keeps the end in sight, unless the reader has scrolled up
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function stream(body, answer, signal) { // returns [words for the end, usage]; throws
  const response = await fetch(`${ROOT}v1/chat/completions`, {
    method: "POST", body: JSON.stringify(body), signal, headers: withKey({ "Content-Type": "application/json" }),
  });
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Error(await refusal(response));
  let usage = null, finish = "";
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") return [finish === "length" ? "cut at the token limit" : "", usage];
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    usage = event.usage || usage;
    for (const choice of event.choices) {
      finish = choice.finish_reason || finish;
      follow(() => answer.add(choice.delta));
    }
  }
  throw new Error("The connection ended before the answer did.");
}

async function send() {
  const text = byId("prompt").value;
  if (!text.trim() || byId("send").disabled || answering) return;
  const system = byId("system").value.trim();
  const body = {
    model: cluster.model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns, { role: "user", content: text }],
    stream: true,
    stream_options: { include_usage: true },
    ...parameters(),
  };
  byId("hint").hidden = true;
  byId("prompt").value = "";
  put(byId("curl"), curl(body));
  put(byId("copied"), "");
  byId("curl-box").hidden = false;
  const question = make("div", "turn user text", text);
  question.dir = "auto";
  byId("log").append(question);
  const answer = new Answer(), log = byId("log");
  log.scrollTop = log.scrollHeight;
  log.setAttribute("aria-busy", "true"); // read out when it is whole, not token by token
  answering = new AbortController();
  showSend();
  try {
    const [words, usage] = await stream(body, answer, answering.signal);
    answer.end(words, usage);
  } catch (error) {
    const stopped = answering.signal.aborted;
    const lost = error instanceof TypeError; // what a browser says of a lost connection helps nobody
    follow(() => (stopped ? answer.end("stopped by you") : answer.fail(lost ? "The connection to the server was lost." : error.message)));
    if (!answer.content) byId("prompt").value ||= text; // to try again without typing
    if (!stopped && !wantsKey) poll(); // it may be more than this request that has failed
  }
  // What has no answer is not part of the conversation that the model sees.
  if (answer.content) turns.push({ role: "user", content: text }, { role: "assistant", content: answer.content });
  answering = null;
  log.removeAttribute("aria-busy");
  showSend();
}

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("chat-form").addEventListener("invalid", () => {
  byId("options").open = true; // or the browser could not point at the field
}, true);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("chat-form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") answering?.abort();
});
byId("stop").addEventListener("click", () => {
  answering?.abort();
  byId("prompt").focus();
});
byId("clear").addEventListener("click", () => {
  turns = [];
  byId("log").replaceChildren(byId("hint"));
  byId("hint").hidden = false;
  showSend();
  byId("prompt").focus();
});
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    put(byId("copied"), "Copied.");
  } catch { // there is no clipboard on plain http: select it, for Ctrl+C or the phone's menu
    getSelection().selectAllChildren(byId("curl"));
    put(byId("copied"), document.execCommand("copy") ? "Copied." : "Selected: copy it now.");
  }
});
