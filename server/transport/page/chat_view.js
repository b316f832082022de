// The conversation as it is shown: a node for each turn in view, with what can be done to it.

const SHOW_MS = 80; // between two looks of an answer that grows
const QUESTION_CHARS = 20000; // that are shown; a browser is busy with megabytes for seconds
const views = new Map(); // by turn

function shortened(text) {
  if (text.length <= QUESTION_CHARS) return text;
  return `${text.slice(0, QUESTION_CHARS)}… and ${digits(text.length - QUESTION_CHARS)} characters more, which the model is sent, too.`;
}

function follow(change) { // keeps the end in sight, unless the reader has scrolled up
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function holding(node, change) { // where a button with the focus goes, the keyboard stays at the log
  const held = node.contains(document.activeElement);
  change();
  if (held && !node.contains(document.activeElement)) byId("log").focus({ preventScroll: true });
}

function action(word, label, work) {
  const button = make("button", "small", word);
  button.type = "button";
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", work);
  return button;
}

function folded(className, title) {
  const box = make("details", className), content = make("div", "text plain");
  content.dir = "auto";
  content.tabIndex = 0; // it may scroll
  box.append(make("summary", "", title), content);
  return [box, content];
}

function figures(turn) { // of an answer, in words
  const told = turn.figures || {}, usage = told.usage;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return [
    turn.note,
    usage ? `${many(usage.prompt_tokens, "token")} in${cached ? ` (${digits(cached)} cached)` : ""}, ${digits(usage.completion_tokens)} out` : "",
    isNumber(told.first_s) ? `first after ${digits(told.first_s, 2)} s` : "",
    usage?.completion_tokens > 1 && told.stream_s > 0 ? `${digits((usage.completion_tokens - 1) / told.stream_s, 1)} tokens/s` : "",
  ].filter(Boolean).join(" · ");
}

class View { // one turn
  constructor(turn) {
    this.turn = turn;
    this.node = make("div", `turn ${turn.role}`);
    this.text = make("div", "text");
    this.text.dir = "auto";
    this.note = make("small");
    this.bar = make("progress");
    this.bar.hidden = true;
    this.bar.setAttribute("aria-label", "Prompt computed");
    this.trouble = make("p", "trouble");
    this.actions = make("div", "actions");
    this.node.append(this.text, this.bar, this.note, this.actions);
    this.show();
  }

  later() { // soon, and not for every token
    if (this.timer) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      const began = performance.now();
      follow(() => this.show());
      this.cost = performance.now() - began;
    }, Math.max(SHOW_MS, 10 * (this.cost || 0)));
  }

  show() {
    clearTimeout(this.timer);
    this.timer = 0;
    const turn = this.turn, running = turn.state === "running";
    if (turn.role === "user") {
      put(this.text, shortened(turn.content));
      this.text.classList.add("plain");
      this.showFiles();
    } else {
      showMarkdown(this.text, turn.content, running);
      this.showFolded("thoughts", "reasoning", "Reasoning", turn.reasoning, this.text);
      const calls = (turn.calls || []).map((call) => `${call.name}(${call.arguments})`).join("\n\n");
      this.showFolded("called", "calls", `Tool calls: ${(turn.calls || []).map((call) => call.name).join(", ")}`, calls, this.bar);
    }
    this.text.classList.toggle("busy", running);
    const told = running ? turn.progress : null;
    this.bar.hidden = !told || told.place > 0;
    if (told) this.bar.value = share(told.processed, told.total);
    put(this.note, running ? turn.note || "" : figures(turn));
    put(this.trouble, turn.trouble || "");
    if (!turn.trouble) this.trouble.remove();
    else if (!this.trouble.isConnected) this.actions.before(this.trouble);
    this.showActions();
  }

  showFolded(name, className, title, text, before) {
    if (!text) {
      this[name]?.[0].remove();
      this[name] = null;
      return;
    }
    if (!this[name]) {
      this[name] = folded(className, title);
      this.node.insertBefore(this[name][0], before);
    }
    put(this[name][0].firstChild, title);
    put(this[name][1], text);
  }

  showFiles() {
    if (this.files || !this.turn.files?.length) return;
    this.files = this.turn.files.map((file) => {
      const [box, content] = folded("file", file.name);
      content.append(file.text);
      return box;
    });
    this.node.prepend(...this.files);
  }

  showActions() { // made anew only where they change, or a click between would be lost
    const turn = this.turn, branches = branchesOf(talk, turn), place = branches.indexOf(turn);
    const told = [turn.state, Boolean(answering), place, branches.length, Boolean(turn.content)].join();
    if (this.told === told) return;
    this.told = told;
    const free = !answering, nodes = [];
    if (branches.length > 1) {
      const step = (by, word, label) => {
        const button = action(word, label, () => goTo(branches[place + by]));
        button.disabled = !free || !branches[place + by];
        return button;
      };
      nodes.push(step(-1, "‹", "The branch before"), make("small", "branch", `${place + 1} of ${branches.length}`), step(1, "›", "The next branch"));
    }
    if (turn.role === "user" && free) nodes.push(action("Edit", "", () => this.edit()));
    if (turn.role === "assistant" && free) {
      const copy = action("Copy", "Copy the answer", () => copyOf(this.text, copy, turn.content));
      nodes.push(copy, action("Regenerate", "", () => regenerate(turn)));
      if (["stopped", "failed", "cut", "running"].includes(turn.state) && turn.content) {
        const button = action("Continue", "", () => goOnAsked(turn, button));
        nodes.push(button);
      }
    }
    holding(this.actions, () => this.actions.replaceChildren(...nodes));
  }

  edit() {
    const field = make("textarea"), row = make("div", "actions");
    field.value = this.turn.content;
    field.dir = "auto";
    field.rows = 3;
    field.setAttribute("aria-label", "Your message, edited");
    const done = () => {
      field.remove();
      row.remove();
      this.text.hidden = this.actions.hidden = false;
      this.node.classList.remove("edited");
      this.actions.querySelector("button:not(:disabled)")?.focus();
    };
    const sent = () => {
      if (!field.value.trim() || !ready()) return;
      const text = field.value;
      done();
      ask(text, this.turn.files || [], this.turn.parent);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") done();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        sent();
      }
    });
    row.append(action("Send as a branch", "", sent), action("Cancel", "", done));
    this.text.hidden = this.actions.hidden = true;
    this.node.classList.add("edited");
    this.node.append(field, row);
    field.focus();
  }
}

function viewOf(turn) {
  if (!views.has(turn.id)) views.set(turn.id, new View(turn));
  return views.get(turn.id);
}

function showTalk() { // the whole conversation in view
  const path = pathOf(talk);
  byId("hint").hidden = path.length > 0;
  holding(byId("log"), () => byId("log").replaceChildren(byId("hint"), ...path.map((turn) => viewOf(turn).node)));
  for (const turn of path) viewOf(turn).show();
  byId("log").scrollTop = byId("log").scrollHeight;
}

function goTo(turn) {
  showBranch(talk, turn);
  keepConversation(talk);
  showTalk();
  viewOf(turn).actions.querySelector("button:not(:disabled)")?.focus();
}
