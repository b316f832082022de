// When all parts are there.

poll();
(async () => {
  const id = remembered("conversation"), kept = id && await conversationOf(id).catch(() => null);
  if (kept && !talk.leaf && !answering) openTalk(kept);
})();
