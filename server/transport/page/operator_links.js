// The ranks and what they are joined by, as a small drawing: each pair's link as it was timed at the
// start, and the figures of a sum over all ranks.

const SVG = "http://www.w3.org/2000/svg";
const LABELS_MOST = 4; // ranks; with more the figures are in the table alone
const SLOW = 0.6; // of the fastest link's bandwidth: below it a line is drawn as slow

function draw(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function speedOf(link) {
  return [
    isNumber(link.latency_us) ? `${digits(link.latency_us, 1)} µs` : "",
    isNumber(link.bandwidth_gb_s) ? `${digits(link.bandwidth_gb_s, 1)} GB/s` : "",
  ].filter(Boolean).join(", ") || "not measured";
}

function edges(count) { // pairs of ranks that have a cable, as far as the backend needs them
  const every = [];
  for (let a = 0; a < count; a++) {
    for (let b = a + 1; b < count; b++) {
      if (cluster.backend === "jaccl" || b === a + 1 || (a === 0 && b === count - 1)) every.push([a, b]);
    }
  }
  return every;
}

function showLinks() {
  const ranks = cluster.ranks || [], link = cluster.link || {}, figure = byId("links");
  figure.hidden = ranks.length < 2;
  if (figure.hidden) return;
  const told = JSON.stringify([cluster.backend, link, ranks.map(rankState)]);
  if (figure.dataset.told === told) return;
  figure.dataset.told = told;
  const at = ranks.map((_, n) => {
    const turn = Math.PI * (2 * n / ranks.length - (ranks.length === 2 ? 1 : 0.5));
    return [95 * Math.cos(turn), 52 * Math.sin(turn)];
  });
  const timed = (link.pairs || []).filter((pair) => pair.ranks.every((rank) => at[rank]));
  const best = Math.max(0, ...timed.map((pair) => pair.bandwidth_gb_s));
  const slow = timed.filter((pair) => pair.bandwidth_gb_s < SLOW * best);
  figure.querySelector(".edges").replaceChildren(...edges(ranks.length).flatMap(([a, b]) => {
    const pair = timed.find((one) => one.ranks[0] === a && one.ranks[1] === b);
    const line = draw("line", { x1: at[a][0], y1: at[a][1], x2: at[b][0], y2: at[b][1], class: slow.includes(pair) ? "slow" : "" });
    if (!pair || ranks.length > LABELS_MOST) return [line];
    const share = ranks.length === 4 && b - a === 2 ? 0.27 : 0.5; // diagonals of a square cross in the middle
    const [x, y] = [0, 1].map((axis) => at[a][axis] + share * (at[b][axis] - at[a][axis]));
    return [line, draw("text", { x, y: y - 2, class: "speed" }, `${digits(pair.latency_us)} µs`),
      draw("text", { x, y: y + 10, class: "speed" }, `${digits(pair.bandwidth_gb_s, 1)} GB/s`)];
  }));
  byId("pairs-box").hidden = !timed.length;
  byId("pairs").replaceChildren(...timed.map((pair) => {
    const row = make("tr"), name = make("th", "", pair.ranks.join(" – "));
    name.scope = "row";
    row.append(name, make("td", "", `${digits(pair.latency_us, 1)} µs`), make("td", "", `${digits(pair.bandwidth_gb_s, 1)} GB/s`));
    return row;
  }));
  figure.querySelector(".nodes").replaceChildren(...ranks.flatMap((rank, n) => [
    draw("circle", { cx: at[n][0], cy: at[n][1], r: 16, class: rankState(rank)[0] }),
    draw("text", { x: at[n][0], y: at[n][1] + 5 }, String(rank.rank)),
  ]));
  const worst = slow.sort((a, b) => a.bandwidth_gb_s - b.bandwidth_gb_s)[0];
  const words = `${many(ranks.length, "rank")} over ${cluster.backend}: ${speedOf(link)} for a sum over all of them.`
    + (worst ? ` Slow: ${slow.length === 1 ? "the link" : `${slow.length} links, most that`} between ranks ${worst.ranks.join(" and ")}, ${speedOf(worst)}.` : "");
  put(byId("links-words"), words);
  figure.querySelector("svg").setAttribute("aria-label", words);
}
