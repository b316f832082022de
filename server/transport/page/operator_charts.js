// Charts of the last minutes.

const LEAST_CHART_S = 120; // a chart begins with the server's start, but is no shorter
const GAP_S = 20; // between two points; a line does not cross it
const WIDTH = 600; // of the drawing, in its own units; a screen stretches it
const CHARTS = [
  { title: "Tokens per second", first: (p) => p.generated_tokens_per_s, words: (v) => `${digits(v, 1)} tokens/s` },
  { title: "Time to first token", first: (p) => p.ttft_p50_s, words: (v) => `${digits(v, v < 10 ? 2 : 1)} s`, dots: true },
  { title: "Requests", first: (p) => p.running, second: (p) => p.queued, words: (v) => `${digits(v)} running`, words2: (v) => `${digits(v)} queued` },
];

for (const chart of CHARTS) {
  byId("charts").append(byId("chart-card").content.cloneNode(true));
  const card = byId("charts").lastElementChild;
  chart.svg = card.querySelector("svg");
  [chart.readout, chart.readout2] = card.querySelectorAll("b");
  chart.svg.querySelector(".first").classList.toggle("dots", Boolean(chart.dots));
  chart.notes = card.querySelectorAll("small");
  put(card.querySelector("h2"), chart.title);
  chart.svg.setAttribute("aria-label", `${chart.title}: not known yet`);
  chart.svg.addEventListener("pointermove", (event) => {
    const box = chart.svg.getBoundingClientRect();
    chart.pointer = (event.clientX - box.left) / box.width * WIDTH;
    showReadout(chart);
  });
  chart.svg.addEventListener("pointerleave", () => {
    chart.pointer = undefined;
    showReadout(chart);
  });
}

function line(points, value, most, dots) { // what is null leaves a gap
  let path = "", pen = false, before = 0;
  for (const point of points) {
    const y = value(point.data);
    if (point.data.t - before > GAP_S) pen = false; // the server was away
    before = point.data.t;
    if (!isNumber(y)) {
      pen = false;
      continue;
    }
    const at = `${point.x.toFixed(1)} ${(97 - 94 * y / most).toFixed(1)}`;
    path += pen ? `L${at}` : `M${at}h0`; // h0: a lone point is a dot
    pen = !dots;
  }
  return path;
}

function showCharts() {
  const told = (cluster.series?.points || []).filter((data) => isNumber(data.t));
  const seconds = Math.max(LEAST_CHART_S, cluster.now - Math.min(cluster.now, ...told.map((data) => data.t)));
  const points = told.map((data) => ({ x: WIDTH * (1 - (cluster.now - data.t) / seconds), data }));
  for (const chart of CHARTS) {
    const both = [chart.first, chart.second].filter(Boolean);
    const values = points.flatMap((point) => both.map((value) => value(point.data))).filter(isNumber);
    const most = Math.max(0, ...values);
    chart.points = points;
    chart.svg.querySelector(".first").setAttribute("d", line(points, chart.first, most || 1, chart.dots));
    if (chart.second) chart.svg.querySelector(".second").setAttribute("d", line(points, chart.second, most || 1));
    const highest = values.length ? `highest ${chart.second ? digits(most) : chart.words(most)}` : "nothing yet";
    put(chart.notes[0], `${span(seconds)} ago`);
    put(chart.notes[1], highest);
    showReadout(chart);
    chart.svg.setAttribute("aria-label", `${chart.title} in the last ${span(seconds)}: ${chart.readout.parentElement.textContent}, ${highest}`);
  }
}

function showReadout(chart) { // the last value, or that under the pointer
  const known = (chart.points || []).filter((point) => isNumber(chart.first(point.data)));
  if (!known.length) {
    put(chart.readout, "–");
    put(chart.readout2, "");
    return;
  }
  let point = known.at(-1), when = "";
  if (chart.pointer !== undefined) {
    point = known.reduce((a, b) => (Math.abs(b.x - chart.pointer) < Math.abs(a.x - chart.pointer) ? b : a));
    when = ` at ${clock(point.data.t)}`;
  }
  put(chart.readout, `${chart.words(chart.first(point.data))}${when}`);
  put(chart.readout2, chart.second ? `┄ ${chart.words2(chart.second(point.data))}` : ""); // drawn dashed
}
