// A card for each rank.

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

function rankState(rank) { // none is "ok" while the cluster is not: all ranks end together
  if (["failed", "restarting"].includes(cluster.status)) return ["bad", cluster.status === "failed" ? "ending" : "restarting"];
  if (cluster.status === "draining" && rank.state === "ok") return ["warn", "stopping"];
  return { ok: ["good", "ok"], loading: ["warn", "loading"], silent: ["bad", "silent"] }[rank.state]
    || ["warn", String(rank.state)];
}

function showRank(card, rank) {
  const at = (name) => card.querySelector(`[data-is="${name}"]`);
  const [tone, word] = rankState(rank);
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
