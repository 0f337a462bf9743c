"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const metrics = new Map(data.metrics.map((metric) => [metric.name, metric]));
  const byDigest = new Map(data.trials.filter((trial) => trial.state === "complete").map((trial) => [trial.digest, trial]));
  const $ = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const settings = {
    displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: data.name },
  };

  const still = { ...settings, displayModeBar: false };

  function axis(metric, log) {
    const formats = { percent: ["~%", ""], count: ["~s", ""], bytes: ["~s", "B"], seconds: ["~s", "s"], number: ["", ""] };
    const [tickformat, ticksuffix] = formats[metric.unit];
    return {
      ...plain(metric.label), type: log ? "log" : "linear", tickformat, ticksuffix,
      ...(log ? { dtick: "D2", minor: { showgrid: false } } : {}),
    };
  }

  function plain(title) {
    return {
      title: { text: escaped(title), standoff: 10 }, gridcolor: colour("--line"), zeroline: false,
      linecolor: colour("--line"), automargin: true, ticks: "", exponentformat: "SI",
    };
  }

  function layout(x, y, more) {
    const family = getComputedStyle(document.body).fontFamily;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 64, r: 16, t: 12, b: 52 },
      font: { family, size: 13, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), align: "left", font: { color: colour("--ink"), family } },
      hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") },
      xaxis: x, yaxis: y, ...more,
    };
  }

  function hover(trial, interval, metric) {
    const lines = [`<b>trial ${trial.number} · ${trial.digest.slice(0, 8)}</b>${trial.front ? "  on the front" : ""}`];
    for (const { name, label } of data.metrics) {
      if (name in trial.text) lines.push(`${escaped(label)} <b>${escaped(trial.text[name])}</b>`);
    }
    if (interval) lines.push(`${escaped(metric.label)} of ${interval.seeds} new seeds <b>${escaped(interval.text)}</b>`);
    return lines.join("<br>") + "<extra></extra>";
  }

  // Candidates to which none is at least as good on both axes and better on one, by what the axes show.
  function frontOf(points, x, y) {
    const sign = (metric) => (metric.direction === "maximize" ? -1 : 1);
    const sorted = points.map((point) => ({ ...point, a: sign(x) * point.x, b: sign(y) * point.y }));
    sorted.sort((one, other) => one.a - other.a || one.b - other.b);
    let best = Infinity;
    const kept = sorted.filter((point) => (point.b < best ? ((best = point.b), true) : false));
    return kept.sort((one, other) => one.x - other.x);
  }

  function drawPareto() {
    const x = metrics.get($("x-axis").value), y = metrics.get($("y-axis").value);
    const points = data.trials
      .filter((trial) => trial.state === "complete" && x.name in trial.metrics && y.name in trial.metrics)
      .map((trial) => ({ trial, x: trial.metrics[x.name], y: trial.metrics[y.name] }));
    const trace = (name, chosen, marker) => ({
      name, type: "scatter", mode: "markers", x: chosen.map((point) => point.x), y: chosen.map((point) => point.y), marker,
      customdata: chosen.map((point) => point.trial.digest), hovertemplate: chosen.map((point) => hover(point.trial)),
    });
    const confirmed = [];
    for (const [digest, intervals] of Object.entries(data.intervals)) {
      const trial = byDigest.get(digest), vertical = intervals[y.name], across = intervals[x.name];
      const at = across ? across.mean : trial && trial.metrics[x.name];
      const height = vertical ? vertical.mean : trial && trial.metrics[y.name];
      if (trial && (vertical || across) && at !== undefined && height !== undefined) {
        confirmed.push({ trial, x: at, y: height, across, vertical });
      }
    }
    const line = frontOf(points.length ? points : confirmed, x, y);
    const shape = x.direction === "minimize" ? "hv" : "vh";
    const traces = [
      trace("dominated", points.filter((point) => !point.trial.front), { size: 8, color: colour("--muted"), opacity: .75 }),
      {
        name: "front of these axes", type: "scatter", mode: "lines", x: line.map((point) => point.x), hoverinfo: "skip",
        y: line.map((point) => point.y), line: { shape, color: colour("--accent"), width: 2 }, opacity: .55,
      },
      trace("on the front", points.filter((point) => point.trial.front),
        { size: 11, color: colour("--accent"), line: { color: colour("--card"), width: 1.5 } }),
    ];
    if (confirmed.length) {
      const bars = (side, value) => ({
        type: "data", symmetric: false, thickness: 1.5, width: 5, color: colour("--extra"),
        array: confirmed.map((point) => (point[side] ? point[side].high - point[value] : 0)),
        arrayminus: confirmed.map((point) => (point[side] ? point[value] - point[side].low : 0)),
      });
      traces.push({
        ...trace("confirmed with new seeds", confirmed, { size: 9, symbol: "diamond", color: colour("--extra") }),
        error_y: bars("vertical", "y"), ...(confirmed.some((point) => point.across) ? { error_x: bars("across", "x") } : {}),
        hovertemplate: confirmed.map((point) => hover(point.trial, point.vertical || point.across, point.vertical ? y : x)),
      });
    }
    const legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
    Plotly.react($("pareto"), traces, layout(axis(x, $("log").checked), axis(y, false), { legend }), settings);
  }

  function drawProgress() {
    const goal = metrics.get(data.goals[0].metric);
    const done = data.trials.filter((trial) => trial.state === "complete" && goal.name in trial.metrics);
    const steps = (points, name) => ({
      name, type: "scatter", mode: "lines", x: points.map((point) => point[0]), y: points.map((point) => point[1]),
      line: { shape: "hv", color: colour("--accent"), width: 2 }, hovertemplate: "trial %{x}: %{y}<extra></extra>",
    });
    Plotly.react($("best"), [
      {
        name: "trial", type: "scatter", mode: "markers", x: done.map((trial) => trial.number),
        y: done.map((trial) => trial.metrics[goal.name]), marker: { size: 6, color: colour("--muted"), opacity: .7 },
        customdata: done.map((trial) => trial.digest), hovertemplate: done.map((trial) => hover(trial)),
      },
      steps(data.best, "best so far"),
    ], layout(plain("Trial"), axis(goal, false), { showlegend: false }), still);
    if ($("hypervolume")) {
      const y = { ...plain("Hypervolume"), rangemode: "tozero", tickformat: ".2~f" };
      Plotly.react($("hypervolume"), [steps(data.hypervolume, "hypervolume")],
        layout(plain("Trial"), y, { showlegend: false }), still);
    }
  }

  function suggestLog() {
    const name = $("x-axis").value;
    const values = data.trials.filter((trial) => name in trial.metrics).map((trial) => trial.metrics[name]);
    $("log").checked = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;
  }

  function show(event) {
    const digest = event.points[0] && event.points[0].customdata;
    const member = digest && $(`member-${digest}`);
    if (!member) return;
    document.querySelectorAll(".member.chosen").forEach((other) => other.classList.remove("chosen"));
    member.open = true;
    member.classList.add("chosen");
    member.scrollIntoView({ block: "center" });
  }

  function sortBy(header) {
    const table = header.closest("table"), column = [...header.parentNode.children].indexOf(header);
    const first = header.classList.contains("number") && header.dataset.better === "more" ? "descending" : "ascending";
    const flipped = { ascending: "descending", descending: "ascending" };
    const order = header.hasAttribute("aria-sort") ? flipped[header.getAttribute("aria-sort")] : first;
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const numeric = header.classList.contains("number"), sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const compare = (one, other) => {
      const a = key(one), b = key(other);
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what is missing stays last
      return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }

  function filter() {
    const state = $("state").value, words = $("search").value.trim().toLowerCase();
    let shown = 0;
    for (const row of $("trials").tBodies[0].rows) {
      const right = !state || row.dataset.state === state || (state === "front" && row.dataset.front);
      row.hidden = !right || !(words === "" || row.dataset.words.includes(words));
      shown += row.hidden ? 0 : 1;
    }
    $("shown").textContent = `${shown} of ${data.trials.length}`;
  }

  function draw() {
    if (!$("pareto")) return;
    drawPareto();
    drawProgress();
  }

  document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sortBy(button.closest("th"))));
  if ($("trials")) {
    $("state").addEventListener("change", filter);
    $("search").addEventListener("input", filter);
    filter();
  }
  if ($("pareto")) {
    suggestLog();
    draw();
    $("x-axis").addEventListener("change", () => { suggestLog(); drawPareto(); });
    $("y-axis").addEventListener("change", drawPareto);
    $("log").addEventListener("change", drawPareto);
    $("pareto").on("plotly_click", show);
    $("best").on("plotly_click", show);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();
