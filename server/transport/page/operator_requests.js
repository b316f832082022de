// The requests that run and wait, each with a Stop for those who may, and what each key has used.

const REQUEST_PHASES = { // class of the pill, its word
  queued: ["warn", "waiting"], prefill: ["", "reading"], decode: ["good", "answering"], sending: ["", "sending"],
};

function showRequests() {
  const list = byId("requests"), requests = cluster.requests || [];
  put(byId("requests-none"), "None runs or waits.");
  byId("requests-none").hidden = requests.length > 0;
  list.hidden = !requests.length;
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  requests.forEach((request, index) => { // rows stay the same nodes, or a click would miss its button
    let row = rows.get(request.id);
    rows.delete(request.id);
    if (!row) {
      row = byId("request-row").content.cloneNode(true).firstElementChild;
      row.dataset.id = request.id;
      row.querySelector("[data-is=stop]").addEventListener("click", (event) => stopRequest(request.id, event.target));
    }
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] || null);
    showRequest(row, request);
  });
  for (const row of rows.values()) row.remove();
}

function showRequest(row, request) {
  const at = (name) => row.querySelector(`[data-is="${name}"]`);
  const [tone, word] = REQUEST_PHASES[request.phase] || ["warn", String(request.phase)];
  at("phase").className = `pill ${tone}`;
  put(at("phase"), word);
  const route = String(request.route).replace("/v1/", "");
  put(at("who"), request.key || route);
  const room = cluster.kv_tokens?.capacity;
  put(at("what"), [
    request.key ? route : "",
    `for ${span(request.age_s)}`,
    `prompt ${short(request.prompt_tokens)}${request.cached_tokens ? ` (${short(request.cached_tokens)} cached)` : ""}`,
    `${short(request.generated_tokens)} generated`,
    request.choices > 1 ? many(request.choices, "choice") : "",
    `KV ${short(request.kv_tokens)} tokens`,
  ].filter(Boolean).join(", "));
  at("kv").value = share(request.kv_tokens, room);
  at("stop").hidden = !request.stop;
  at("stop").setAttribute("aria-label", `Stop ${request.id}`);
}

async function stopRequest(id, button) {
  button.disabled = true;
  let words = "The request is stopped.";
  try {
    const answer = await fetch(`${ROOT}requests/${encodeURIComponent(id)}`, { method: "DELETE", headers: withKey({}) });
    if (answer.status === 404) words = "It was over already.";
    else if (!answer.ok) words = (await answer.json()).error?.message || `Not stopped: status ${answer.status}.`;
  } catch {
    words = "Not stopped: the server was not reached.";
  }
  button.disabled = false;
  put(byId("requests-told"), words);
  poll();
}

function showKeys() {
  const keys = cluster.keys || [];
  byId("keys-box").hidden = !keys.length;
  byId("keys").replaceChildren(...keys.map((one) => {
    const row = make("tr"), name = make("th", "", one.key);
    name.scope = "row";
    name.dir = "auto";
    row.append(name, ...["answered", "prompt_tokens", "cached_tokens", "generated_tokens"].map((field) => make("td", "", short(one[field]))));
    return row;
  }));
}
