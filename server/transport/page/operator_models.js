// The models that are served, where there are several: which are loaded, and why the others are not.

const MODEL_STATES = { // class of the pill, its word
  loaded: ["good", "loaded"], loading: ["warn", "loading"], leaving: ["warn", "leaving"], unloaded: ["", "not loaded"],
};

function showServed() {
  const list = byId("models"), models = cluster.models || [];
  byId("models-card").hidden = models.length < 2;
  while (list.children.length > models.length) list.lastElementChild.remove();
  models.forEach((model, index) => {
    if (!list.children[index]) list.append(byId("model-row").content.cloneNode(true));
    showServedModel(list.children[index], model);
  });
}

function showServedModel(row, model) {
  const at = (name) => row.querySelector(`[data-is="${name}"]`);
  const [tone, word] = MODEL_STATES[model.state] || ["warn", String(model.state)];
  at("state").className = `pill ${tone}`;
  put(at("state"), word);
  put(at("name"), String(model.id));
  put(at("what"), [
    model.size_bytes ? memory(model.size_bytes) : "",
    model.context ? `${short(model.context)} tokens` : "",
    model.pinned ? "pinned" : "",
    model.running || model.queued ? `${digits(model.running)} running, ${digits(model.queued)} waiting` : "",
    model.why && model.why !== word ? model.why : "",
    model.switched_at ? `for ${span(cluster.now - model.switched_at)}` : "",
    model.load_s ? `loads in ${span(model.load_s)}` : "",
  ].filter(Boolean).join(", "));
  at("loaded").hidden = model.state !== "loading";
  at("loaded").value = model.loaded_share || 0;
}
