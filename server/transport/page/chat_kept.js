// The conversations that are kept: found, opened, exported, deleted. And the model to talk to.

const KEPT_MOST = 200; // in the list; a search finds the others

function tellOfKept(words) {
  put(byId("kept-note"), words);
}

function download(name, type, text) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (one, end) => `${(one.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}.${end}`;

function twice(button, work) { // asks again before it does it
  button.addEventListener("click", () => {
    if (button.dataset.sure) {
      work();
      return;
    }
    button.dataset.sure = "1";
    tell(button, "Really delete?");
    setTimeout(() => delete button.dataset.sure, 2000);
  });
  return button;
}

function holds(one, words) {
  const text = [one.title, one.system, ...Object.values(one.turns).map((turn) => said(turn))].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

async function showKept() {
  if (!byId("kept").open) return;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (await conversations()).filter((one) => holds(one, words));
  tellOfKept(lasting ? `${many(found.length, "conversation")}${words.length ? " found" : ""}.` : "This browser keeps nothing here: they are gone when you close the page.");
  byId("conversations").replaceChildren(...found.slice(0, KEPT_MOST).map((one) => {
    const item = make("li"), title = action(one.title || "Without a title", "", () => {
      if (answering) return;
      openTalk(one);
      byId("kept").open = false;
      byId("prompt").focus();
    });
    title.dir = "auto";
    title.className = "title";
    if (one.id === talk.id) title.setAttribute("aria-current", "true");
    const row = make("span", "actions");
    row.append(
      make("small", "", new Date(one.changed).toLocaleString()),
      action("Markdown", `Export as Markdown: ${one.title}`, () => download(fileName(one, "md"), "text/markdown", asMarkdown(one))),
      action("JSON", `Export as JSON: ${one.title}`, () => download(fileName(one, "json"), "application/json", JSON.stringify(one, null, 2))),
      twice(action("Delete", `Delete: ${one.title}`, () => {}), () => forgetKept(one.id)),
    );
    item.append(title, row);
    return item;
  }));
}

async function forgetKept(id) {
  dropAnswer(id);
  if (!id || id === talk.id) {
    talk.gone = true;
    openTalk(newConversation(), "replaceState");
  }
  await dropConversations(id);
  await showKept();
  byId("search").focus(); // the button is gone
}

byId("kept").addEventListener("toggle", showKept);
byId("search").addEventListener("input", showKept);
byId("export-all").addEventListener("click", async () => {
  download("conversations.json", "application/json", JSON.stringify(await conversations(), null, 2));
});
twice(byId("delete-all"), () => forgetKept());

// The model.

let offered = []; // ids that /v1/models lists
let offeredFor = ""; // the run they are of

function chosenModel() {
  return offered.length > 1 ? byId("chosen").value : cluster?.model || talk.model;
}

function chooseModel(id) {
  if (offered.includes(id)) byId("chosen").value = id;
}

async function showModels() {
  const run = cluster?.status === "ok" && !trouble && !wantsKey ? cluster.run_id : offeredFor;
  if (run === offeredFor) return;
  offeredFor = run;
  try {
    const answer = await fetch(`${ROOT}v1/models`, { headers: withKey({}), signal: AbortSignal.timeout(ANSWER_MS) });
    offered = (await answer.json()).data.map((model) => model.id);
  } catch {
    offered = []; // the one that /cluster names has to do
  }
  byId("chosen").replaceChildren(...offered.map((id) => {
    const option = make("option", "", id);
    option.value = id;
    return option;
  }));
  byId("choose-model").hidden = offered.length < 2;
  chooseModel(talk.model || cluster.model);
}
