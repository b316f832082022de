// The ranks and what they are joined by, as a small drawing. Latency and bandwidth are those of a sum
// over all ranks: the server measures the group, not each pair.

const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
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
  const pairs = edges(ranks.length);
  figure.querySelector(".edges").replaceChildren(...pairs.map(([a, b]) =>
    draw("line", { x1: at[a][0], y1: at[a][1], x2: at[b][0], y2: at[b][1] })));
  figure.querySelector(".nodes").replaceChildren(...ranks.flatMap((rank, n) => [
    draw("circle", { cx: at[n][0], cy: at[n][1], r: 16, class: rankState(rank)[0] }),
    draw("text", { x: at[n][0], y: at[n][1] + 5 }, String(rank.rank)),
  ]));
  const speed = [
    isNumber(link.latency_us) ? `${digits(link.latency_us, 1)} µs` : "",
    isNumber(link.bandwidth_gb_s) ? `${digits(link.bandwidth_gb_s, 1)} GB/s` : "",
  ].filter(Boolean).join(", ") || "not measured";
  const words = `${many(ranks.length, "rank")} over ${cluster.backend}: ${speed} for a sum over all of them.`;
  put(figure.querySelector("figcaption"), words);
  figure.querySelector("svg").setAttribute("aria-label", words);
}
