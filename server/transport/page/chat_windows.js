// Several windows on the same conversations: each tells the others what it has kept and deleted, and shows
// what they have added to the one in view. What a turn holds is for the window that answers it to say.

const WHO_MS = 150; // for another window to say that it is there
const WINDOW = newId(); // unlike TAB, not copied with the tab
const others = typeof BroadcastChannel === "function" ? new BroadcastChannel("chat") : null;
let heardHere = () => {}; // called with the owner that a window says it is

const tellOthers = (kind, id) => others?.postMessage({ kind, id, from: WINDOW });

function isElsewhere(owner) { // whether another window goes by this name
  if (!others) return Promise.resolve(false);
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), WHO_MS);
    heardHere = (told) => {
      if (told !== owner) return;
      clearTimeout(timer);
      resolve(true);
    };
    tellOthers("who", owner);
  });
}

async function nameTab() { // a tab that was copied has the name of the first, which answers under it
  if (await isElsewhere(TAB)) TAB = remembered("tab", newId());
}

async function takeIn(id) { // what another window has kept of the conversation in view
  const one = talk;
  if (one.id !== id) return;
  const kept = await conversationOf(id).catch(() => null);
  if (!kept || one !== talk) return;
  for (const [name, turn] of Object.entries(kept.turns)) {
    const known = one.turns[name];
    if (!known) one.turns[name] = turn;
    else if (turn.owner && turn.owner !== TAB) takeTurn(known, turn);
  }
  takeSettingsOf(one, kept);
  const before = one.leaf;
  if (!answering && one.leaf) showBranch(one, one.turns[one.leaf]); // they went on from here
  if (one.leaf !== before) showTalk();
  else for (const turn of pathOf(one)) viewOf(turn).later();
}

function takeSettingsOf(one, kept) { // the later ones count
  if ((kept.settled || 0) <= (one.settled || 0)) return;
  Object.assign(one, settingsOf(kept));
  if (one === talk && !byId("options").contains(document.activeElement)) showSettings();
}

function takeTurn(known, turn) {
  const ours = known.owner === TAB && known.state === "running" && answered === talk;
  if (ours && turn.id === answeredTurn?.id) { // it goes on there
    known.owner = turn.owner;
    answering?.abort();
  }
  for (const name of Object.keys(known)) delete known[name];
  Object.assign(known, turn);
}

function dropAnswer(id) { // of a conversation that is deleted; without an id, of any
  if (!answered || (id && answered.id !== id)) return;
  answered.gone = true; // it does not bring it back
  answering.abort();
}

function dropGone(id) { // what another window has deleted; without an id, all
  if (!lasting) return;
  dropAnswer(id);
  if (!talk.leaf || (id && talk.id !== id)) return;
  talk.gone = true;
  openTalk(newConversation(), "replaceState");
  put(byId("hint"), `That conversation was deleted in another window. ${HINT}`);
}

others?.addEventListener("message", ({ data }) => {
  if (data.from === WINDOW) return;
  if (data.kind === "who" && data.id === TAB) tellOthers("here", TAB);
  if (data.kind === "here") heardHere(data.id);
  if (data.kind === "kept") takeIn(data.id);
  if (data.kind === "gone") dropGone(data.id);
  if (["kept", "gone"].includes(data.kind)) showKept();
});
