// Where the page is, in its address: #talk/ID or #connect/ID. A reload, a link, and the browser's back and
// forward lead to the same tab and conversation.

const PLACE = /^#(talk|connect)(?:\/([0-9a-z]+))?$/;
const HINT = byId("hint").textContent;

function placeAsked() { // nothing where the address says something else, as after the link to the chat
  const [, tab, id = ""] = PLACE.exec(location.hash || "#talk") || [];
  return tab && { tab: tab === "talk" ? "chat" : tab, id };
}

function markPlace(how = "replaceState") { // how: or pushState, where back is to lead to the place before
  const tab = byId("panel-connect").hidden ? "talk" : "connect";
  const now = `#${tab}${talk.leaf ? `/${talk.id}` : ""}`;
  if (now !== (location.hash || "#talk")) history[how](null, "", now);
}

async function foundTalk(id) { // one that is kept; the one that is being answered as it is now
  return answered?.id === id ? answered : id && conversationOf(id).catch(() => null);
}

async function goToPlace() {
  const asked = placeAsked();
  if (!asked) return;
  showTab(asked.tab, false, "");
  if (asked.id ? asked.id === talk.id : !talk.leaf) return;
  const found = await foundTalk(asked.id);
  if (placeAsked()?.id !== asked.id) return; // somewhere else by now
  openTalk(found || newConversation(), "replaceState");
  put(byId("hint"), asked.id && !found ? `That conversation is not kept here, or no longer. ${HINT}` : HINT);
}

addEventListener("popstate", goToPlace);
