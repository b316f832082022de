// When all parts are there.

poll();
(async () => {
  await nameTab();
  if (talk.leaf) return; // somebody was faster
  if (location.hash && placeAsked()) {
    await goToPlace();
    return;
  }
  const kept = await foundTalk(remembered("conversation"));
  if (kept && !talk.leaf) openTalk(kept, "replaceState");
})();
