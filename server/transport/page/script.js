"use strict";
// Talks to its own server alone. Whatever it shows is put in as text, never as markup; the server's
// Content-Security-Policy would stop anything else.
const POLL_MS = 2000;
const ANSWER_MS = 8000; // an answer to a poll that takes longer is none
const LEAST_CHART_S = 120; // a chart begins with the server's start, but is no shorter
const KEY_NAME = "api-key";
const STATES = { // of the server: class of the pill, its word
  ok: ["good", "Serving"], loading: ["warn", "Loading"], draining: ["warn", "Stopping"], failed: ["bad", "Failed"],
  restarting: ["bad", "Restarting"],
};
const byId = (id) => document.getElementById(id);
// The page answers at / and at /v1/, and behind a proxy that adds a prefix.
const ROOT = new URL(".", location.href).href.replace(/\/v1\/$/, "/");

let cluster = null; // the last answer of /cluster
let reached = 0; // when it came, by performance.now()
let since = performance.now(); // not reached since then
let trouble = ""; // why the last poll failed
let wantsKey = false;
let timer = 0;

// Text.

function put(node, text) {
  if (node.textContent !== text) node.textContent = text; // else selections would be lost
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function digits(value, places = 0) {
  return isNumber(value) ? value.toLocaleString("en", { maximumFractionDigits: places }) : "–";
}

function short(value) { // 12,345 as 12.3k
  if (!isNumber(value) || value < 10000) return digits(value);
  return value < 999500 ? `${digits(value / 1000, 1)}k` : `${digits(value / 1e6, 1)}M`;
}

function memory(bytes) {
  if (!isNumber(bytes)) return "–";
  return bytes < 2 ** 30 ? `${digits(bytes / 2 ** 20, bytes < 2 ** 23 ? 1 : 0)} MiB` : `${digits(bytes / 2 ** 30, 1)} GiB`;
}

function span(seconds) {
  if (!isNumber(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 1) return `${digits(s, 2)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 < 1 ? "" : ` ${Math.floor(s % 60)} s`}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const many = (count, word) => `${digits(count)} ${word}${count === 1 ? "" : "s"}`;
const share = (part, whole) => (isNumber(part) && whole > 0 ? Math.min(1, part / whole) : 0);

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

// Showing it.

function show() {
  if (cluster && !trouble) {
    showNumbers();
    showRanks();
    showCharts();
    showHistory();
    showAbout();
  }
  showState();
}

function silence() { // in words; empty if all ranks are heard
  const silent = (cluster.ranks || []).filter((rank) => rank.state === "silent");
  if (!silent.length) return "";
  const time = span(Math.max(...silent.map((rank) => rank.heartbeat_age_s || 0)));
  if (silent.length === 1) return `Rank ${silent[0].rank} (${silent[0].host}) has not been heard for ${time}.`;
  return `Ranks ${silent.map((rank) => rank.rank).join(", ")} have not been heard for ${time}: one of them does not answer.`;
}

function state() { // [class, word, a sentence]
  if (wantsKey && !trouble) return ["warn", "Key needed", "The server answers those who have one of its API keys."];
  if (trouble) {
    const time = span((performance.now() - since) / 1000);
    const rest = cluster ? " What you see is from before." : "";
    return ["bad", "Not reached", `Not reached for ${time}: ${trouble}. Trying again every ${POLL_MS / 1000} s.${rest}`];
  }
  if (!cluster) return ["", "Connecting", "Asking the server how it is."];
  const [tone, word] = STATES[cluster.status] || ["warn", String(cluster.status)];
  if (cluster.status === "loading") {
    const [loaded, total] = ["loaded_bytes", "total_bytes"].map((name) =>
      (cluster.ranks || []).reduce((sum, rank) => sum + (rank[name] || 0), 0));
    const progress = loaded < total ? `${memory(loaded)} of ${memory(total)} are loaded` : cluster.detail || "loading";
    return [tone, word, `The server is getting ready: ${progress}. This page goes on by itself.`];
  }
  if (cluster.status === "draining") {
    return [tone, word, `The server is being stopped. It finishes ${many(cluster.running, "request")} and takes no new ones.`];
  }
  if (cluster.status === "failed") {
    return [tone, word, `${cluster.detail || "No reason is known"}. Nobody starts it again.`];
  }
  if (cluster.status === "restarting") {
    return [tone, word, `${cluster.detail || "No reason is known"}. It is started again by itself.`];
  }
  if (silence()) return ["bad", "A rank is silent", silence()];
  const split = cluster.world_size > 1 ? `, ${cluster.parallel} parallel over ${cluster.backend}` : "";
  return [tone, word, `${many(cluster.world_size, "rank")}${split}. Up for ${span(cluster.uptime_s)}.`];
}

function showState() {
  const [tone, word, words] = state();
  byId("state").className = `pill ${tone}`;
  put(byId("state"), word);
  put(byId("words"), words);
  document.body.classList.toggle("stale", Boolean(trouble) || wantsKey);
  put(byId("model"), cluster?.model || "MLX cluster");
  const title = `${word} · ${cluster?.model || "MLX cluster"}`;
  if (document.title !== title) document.title = title;
  byId("forget").hidden = !key || wantsKey;
  showSend();
}

function showNumbers() {
  const limits = cluster.limits || {}, kv = cluster.kv_tokens || {}, link = cluster.link || {};
  put(byId("running"), digits(cluster.running));
  put(byId("running-note"), `of ${digits(limits.max_batch)} together`);
  put(byId("queued"), digits(cluster.queued));
  put(byId("queued-note"), cluster.paused ? `${digits(cluster.paused)} paused` : `room for ${digits(limits.queue_max)}`);
  put(byId("kv"), kv.capacity ? `${digits(100 * share(kv.used, kv.capacity), 1)} %` : "–");
  put(byId("kv-note"), kv.capacity ? `${short(kv.used)} of ${short(kv.capacity)} tokens` : "");
  put(byId("link"), cluster.world_size > 1 ? cluster.backend : "none");
  const measured = [
    isNumber(link.latency_us) ? `${digits(link.latency_us, link.latency_us < 10 ? 1 : 0)} µs` : "",
    isNumber(link.bandwidth_gb_s) ? `${digits(link.bandwidth_gb_s, 1)} GB/s` : "",
  ].filter(Boolean).join(", ");
  put(byId("link-note"), cluster.world_size > 1 ? measured || "not measured" : "one rank needs none");
}

function showRanks() {
  const list = byId("ranks"), ranks = cluster.ranks || [];
  while (list.querySelectorAll(".rank").length > ranks.length) list.lastElementChild.remove();
  if (!ranks.length) {
    list.replaceChildren(make("li", "card quiet", "The ranks have not met yet."));
    return;
  }
  if (!list.querySelector(".rank")) list.replaceChildren();
  while (list.children.length < ranks.length) {
    list.append(byId("rank-card").content.cloneNode(true));
  }
  ranks.forEach((rank, index) => showRank(list.children[index], rank));
}

function showRank(card, rank) {
  const at = (name) => card.querySelector(`[data-is="${name}"]`);
  const [tone, word] = { ok: ["good", "ok"], loading: ["warn", "loading"], silent: ["bad", "silent"] }[rank.state]
    || ["warn", String(rank.state)];
  put(at("name"), `Rank ${rank.rank} · ${rank.host}`);
  put(at("state"), word);
  at("state").className = `pill ${tone}`;
  put(at("chip"), [rank.chip, rank.os].filter(Boolean).join(", ") || "Chip not known");
  put(at("heartbeat"), isNumber(rank.heartbeat_age_s) ? `${span(rank.heartbeat_age_s)} ago` : "–");
  const loading = rank.state === "loading" && rank.total_bytes > 0;
  at("loading").hidden = !loading;
  put(at("loaded"), `${memory(rank.loaded_bytes)} of ${memory(rank.total_bytes)}`);
  put(at("memory"), `${memory(rank.memory_used_bytes)} of ${memory(rank.memory_total_bytes)}`);
  const bar = at("bar");
  bar.value = loading ? share(rank.loaded_bytes, rank.total_bytes) : share(rank.memory_used_bytes, rank.memory_total_bytes);
  bar.setAttribute("aria-label", loading ? "Model loaded" : "Memory in use");
  put(at("more"), [
    isNumber(rank.memory_peak_bytes) ? `peak ${memory(rank.memory_peak_bytes)}` : "",
    isNumber(rank.gpu_limit_bytes) ? `GPU limit ${memory(rank.gpu_limit_bytes)}` : "",
    isNumber(rank.rss_bytes) ? `process ${memory(rank.rss_bytes)}` : "",
    isNumber(rank.pid) ? `pid ${rank.pid}` : "",
  ].filter(Boolean).join(", "));
}

// Charts.

const WIDTH = 600; // of the drawing, in its own units; a screen stretches it
const CHARTS = [
  { title: "Tokens per second", first: (p) => p.generated_tokens_per_s, words: (v) => `${digits(v, 1)} tokens/s` },
  { title: "Time to first token", first: (p) => p.ttft_p50_s, words: (v) => `${digits(v, v < 10 ? 2 : 1)} s`, dots: true },
  { title: "Requests", first: (p) => p.running, second: (p) => p.queued, words: (v) => `${digits(v)} running`, words2: (v) => `${digits(v)} queued` },
];

for (const chart of CHARTS) {
  byId("charts").append(byId("chart-card").content.cloneNode(true));
  const card = byId("charts").lastElementChild;
  chart.svg = card.querySelector("svg");
  [chart.readout, chart.readout2] = card.querySelectorAll("b");
  chart.svg.querySelector(".first").classList.toggle("dots", Boolean(chart.dots));
  chart.notes = card.querySelectorAll("small");
  put(card.querySelector("h2"), chart.title);
  chart.svg.addEventListener("pointermove", (event) => {
    const box = chart.svg.getBoundingClientRect();
    chart.pointer = (event.clientX - box.left) / box.width * WIDTH;
    showReadout(chart);
  });
  chart.svg.addEventListener("pointerleave", () => {
    chart.pointer = undefined;
    showReadout(chart);
  });
}

function line(points, value, most, dots) { // what is null leaves a gap
  let path = "", pen = false;
  for (const point of points) {
    const y = value(point.data);
    if (!isNumber(y)) {
      pen = false;
      continue;
    }
    const at = `${point.x.toFixed(1)} ${(97 - 94 * y / most).toFixed(1)}`;
    path += pen ? `L${at}` : `M${at}h0`; // h0: a lone point is a dot
    pen = !dots;
  }
  return path;
}

function showCharts() {
  const told = (cluster.series?.points || []).filter((data) => isNumber(data.t));
  const seconds = Math.max(LEAST_CHART_S, cluster.now - Math.min(cluster.now, ...told.map((data) => data.t)));
  const points = told.map((data) => ({ x: WIDTH * (1 - (cluster.now - data.t) / seconds), data }));
  for (const chart of CHARTS) {
    const both = [chart.first, chart.second].filter(Boolean);
    const values = points.flatMap((point) => both.map((value) => value(point.data))).filter(isNumber);
    const most = Math.max(0, ...values);
    chart.points = points;
    chart.svg.querySelector(".first").setAttribute("d", line(points, chart.first, most || 1, chart.dots));
    if (chart.second) chart.svg.querySelector(".second").setAttribute("d", line(points, chart.second, most || 1));
    const highest = values.length ? `highest ${chart.second ? digits(most) : chart.words(most)}` : "nothing yet";
    put(chart.notes[0], `${span(seconds)} ago`);
    put(chart.notes[1], highest);
    showReadout(chart);
    chart.svg.setAttribute("aria-label", `${chart.title} in the last ${span(seconds)}: ${chart.readout.parentElement.textContent}, ${highest}`);
  }
}

function showReadout(chart) { // the last value, or that under the pointer
  const known = (chart.points || []).filter((point) => isNumber(chart.first(point.data)));
  if (!known.length) {
    put(chart.readout, "–");
    put(chart.readout2, "");
    return;
  }
  let point = known.at(-1), when = "";
  if (chart.pointer !== undefined) {
    point = known.reduce((a, b) => (Math.abs(b.x - chart.pointer) < Math.abs(a.x - chart.pointer) ? b : a));
    when = ` at ${clock(point.data.t)}`;
  }
  put(chart.readout, `${chart.words(chart.first(point.data))}${when}`);
  put(chart.readout2, chart.second ? `┄ ${chart.words2(chart.second(point.data))}` : ""); // drawn dashed
}

// What happened.

function clock(seconds) {
  const time = new Date(seconds * 1000);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

function showHistory() {
  const failure = cluster.last_failure, restarts = cluster.restarts || 0;
  byId("failure").classList.toggle("some", Boolean(failure || restarts));
  const count = restarts ? `Started again ${restarts === 1 ? "once" : `${digits(restarts)} times`}.` : "";
  const words = [count, failure ? `The last failure: ${failure}` : ""].filter(Boolean).join(" ");
  put(byId("failure"), words || "No failure and no restart so far.");
  const events = [...(cluster.events || [])].reverse();
  const told = JSON.stringify(events);
  if (byId("events").dataset.told === told) return;
  byId("events").dataset.told = told;
  byId("events").replaceChildren(...events.map((event) => {
    const item = make("li");
    item.append(make("span", "when", clock(event.t)), make("span", "", event.text));
    return item;
  }));
  if (!events.length) byId("events").append(make("li", "quiet", "Nothing has happened yet."));
}

function showAbout() {
  const totals = cluster.totals || {}, versions = cluster.versions || {}, limits = cluster.limits || {}, cache = cluster.prefix_cache || {}, disk = cache.disk || {};
  const asked = (cache.hit_tokens || 0) + (cache.miss_tokens || 0);
  const facts = {
    Requests: `${digits(totals.requests)}: ${digits(totals.answered)} answered, ${digits(totals.refused)} refused, ${digits(totals.failed)} failed, ${digits(totals.cut)} cut`,
    Tokens: `${short(totals.prompt_tokens)} of prompts (${short(totals.cached_tokens)} cached), ${short(totals.generated_tokens)} generated`,
    "Prefix cache": `${many(cache.entries || 0, "entry").replace("entrys", "entries")}, ${short(cache.tokens || 0)} tokens, ${digits(100 * share(cache.hit_tokens, asked), 1)} % of prompt tokens found`,
    "Prefixes on disk": disk.limit_bytes ? `${memory(disk.bytes)} of ${memory(disk.limit_bytes)}, ${short(disk.hit_tokens)} tokens read back` : "none",
    Context: `${digits(limits.context)} tokens`,
    "Longest silence": span(limits.req_timeout_s),
    "Longest request": limits.req_total_timeout_s ? span(limits.req_total_timeout_s) : "no limit",
    Versions: `mlx ${versions.mlx}, mlx-lm ${versions.mlx_lm}, Python ${versions.python}, code ${versions.code}`,
    Run: String(cluster.run_id),
    API: `${ROOT}v1`,
  };
  const list = byId("about");
  if (!list.children.length) {
    for (const name of Object.keys(facts)) {
      const row = make("div");
      row.append(make("dt", "", name), make("dd"));
      list.append(row);
    }
  }
  Object.values(facts).forEach((text, index) => put(list.children[index].lastElementChild, text));
}

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

poll();
