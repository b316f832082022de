// The cluster as it is now, in words and numbers.

const STATES = { // of the server: class of the pill, its word
  ok: ["good", "Serving"], loading: ["warn", "Loading"], draining: ["warn", "Stopping"], failed: ["bad", "Failed"],
  restarting: ["bad", "Restarting"],
};

function show() {
  if (cluster && !trouble) {
    showNumbers();
    showRanks();
    showServed();
    showLinks();
    showRequests();
    showKeys();
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
  const cache = cluster.prefix_cache || {}, asked = (cache.hit_tokens || 0) + (cache.miss_tokens || 0);
  put(byId("prefix"), asked ? `${digits(100 * share(cache.hit_tokens, asked), 1)} %` : "–");
  put(byId("prefix-note"), asked ? `${short(cache.hit_tokens)} of ${short(asked)} prompt tokens` : "no prompt so far");
  const drafts = cluster.drafts || {};
  byId("drafts-tile").hidden = !drafts.drafted;
  put(byId("drafts"), drafts.drafted ? `${digits(100 * share(drafts.right, drafts.drafted), 1)} %` : "–");
  put(byId("drafts-note"), `${short(drafts.right)} tokens in ${short(drafts.steps)} steps`);
  put(byId("link"), { 0: "–", 1: "none" }[cluster.world_size || 0] || cluster.backend);
  const measured = [
    isNumber(link.latency_us) ? `${digits(link.latency_us, link.latency_us < 10 ? 1 : 0)} µs` : "",
    isNumber(link.bandwidth_gb_s) ? `${digits(link.bandwidth_gb_s, 1)} GB/s` : "",
  ].filter(Boolean).join(", ");
  put(byId("link-note"), cluster.world_size === 1 ? "one rank needs none" : measured || "not measured");
}
