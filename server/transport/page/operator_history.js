// What happened, and what the server is.

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
