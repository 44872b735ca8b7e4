// Draws the signal charts and says when the console no longer answers. Everything else is HTML.
"use strict";
(() => {
  const charts = new Map(); // element -> uPlot
  const two = (n) => String(n).padStart(2, "0");
  const clock = (at) => { const d = new Date(at * 1000); return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}:${two(d.getUTCSeconds())}`; };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function build(element, what, columns) {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const line = (label, stroke, extra) => ({ label, stroke, width: 1.6, points: { show: false }, ...extra });
    const series = what === "evidence"
      ? [{}, line("evidence", colour("--ochre"), { fill: colour("--ochre") + "22" }), line("threshold", colour("--fail"), { dash: [5, 4] })]
      : [{}, line("now", colour("--azurite")), line("normal", colour("--verdigris"), { dash: [5, 4] })];
    return new uPlot({
      width: element.clientWidth, height: element.clientHeight - 20, series,
      legend: { live: false, markers: { width: 0, fill: (u, i) => u.series[i].stroke() } }, cursor: { y: false },
      scales: { x: { time: true }, y: { range: (_, low, high) => high - low < 1e-12 ? [low, low + (Math.abs(low) || 1)] : uPlot.rangeNum(low, high, 0.1, true) } },
      axes: [{ ...axis, size: 22, space: 80, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 48, space: 26 }],
    }, columns, element);
  }

  async function draw() {
    const elements = [...document.querySelectorAll(".chart")];
    if (!elements.length || document.hidden) return;
    const answer = await fetch("/api/signals");
    if (!answer.ok) return;
    const signals = new Map((await answer.json()).map((s) => [s.signal, s]));
    for (const [element, chart] of charts) if (!element.isConnected) { chart.destroy(); charts.delete(element); }
    for (const element of elements) {
      const history = signals.get(element.dataset.signal)?.history;
      if (!history?.at) continue;
      const what = element.dataset.what;
      const columns = what === "evidence" ? [history.at, history.evidence, history.threshold] : [history.at, history.value, history.reference];
      const chart = charts.get(element);
      if (chart) chart.setData(columns);
      else charts.set(element, build(element, what, columns));
    }
  }

  function rebuild() {
    for (const chart of charts.values()) chart.destroy();
    charts.clear();
    draw();
  }

  const quietly = () => draw().catch(() => {});
  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(rebuild, 150); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  document.addEventListener("htmx:after:request", (e) => document.body.classList.toggle("stale", e.detail.ctx.response.status >= 400));
  document.addEventListener("htmx:error", () => document.body.classList.add("stale"));
  addEventListener("load", quietly);
  setInterval(quietly, 2000);
})();
