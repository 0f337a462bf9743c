"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const settings = {
    displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: data.name }, doubleClick: "reset",
  };

  const still = { ...settings, displayModeBar: false };

  // Size and sign of the units of an axis, small ones first; written as everywhere: 98 %, 100 k, 16 kB, 3 ms.
  const units = {
    percent: [[0.01, " %"]],
    change: [[0.01, " %"]],
    count: [[1, ""], [1e3, " k"], [1e6, " M"], [1e9, " G"], [1e12, " T"]],
    bytes: [[1, " B"], [1e3, " kB"], [1e6, " MB"], [1e9, " GB"], [1e12, " TB"]],
    milliseconds: [[1e-3, " µs"], [1, " ms"], [1e3, " s"]],
    seconds: [[1e-3, " ms"], [1, " s"], [60, " min"], [3600, " h"]],
    number: [[1, ""]],
  };

  // An axis that holds the values, and `of`, which brings a value into its unit.
  function axis(metric, values, log) {
    const largest = Math.max(...values.map(Math.abs));
    const fitting = units[metric.unit].filter(([size]) => size <= largest);
    const [size, ticksuffix] = fitting.pop() || units[metric.unit][0];
    const of = (value) => value / size;
    const extent = log || !values.length ? { autorange: true } : { range: range(metric, values).map(of) };
    const type = log ? { type: "log", dtick: "D2", minor: { showgrid: false } } : { type: "linear" };
    return { of, layout: { ...plain(metric.label), ticksuffix, ...extent, ...type } };
  }

  function range(metric, values) {
    const low = Math.min(...values), high = Math.max(...values);
    const margin = 0.07 * (high - low) || 0.05 * Math.abs(high) || 1;
    const ends = [low - margin, high + margin];
    if (metric.unit !== "percent" || low < 0 || high > 1) return ends;
    const edge = 0.03 * (ends[1] - ends[0]); // nothing is above 100 %, but a dot there must not be cut
    return [Math.max(ends[0], -edge), Math.min(ends[1], 1 + edge)];
  }

  function trialAxis(numbers) {
    const low = Math.min(...numbers), high = Math.max(...numbers), margin = Math.max(0.5, 0.03 * (high - low));
    // Between few trials Plotly would put halves.
    return { ...plain("Trial"), range: [low - margin, high + margin], ...(high - low < 8 ? { dtick: 1 } : { nticks: 8 }) };
  }

  function plain(title) {
    return {
      title: { text: escaped(title), standoff: 10 }, gridcolor: colour("--line"), zeroline: false,
      linecolor: colour("--line"), automargin: true, ticks: "", exponentformat: "none",
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

  function hover(point, metrics) {
    const lines = [`<b>trial ${point.number} · ${point.digest.slice(0, 8)}</b>  ${escaped(point.note)}`];
    for (const { name, label } of metrics) {
      if (name in point.text) lines.push(`${escaped(label)} <b>${escaped(point.text[name])}</b>`);
    }
    return lines.join("<br>") + "<extra></extra>";
  }

  // Candidates to which none is at least as good on both axes and better on one, by what the axes show.
  function frontOf(points, x, y) {
    const sign = (metric) => (metric.direction === "maximize" ? -1 : 1);
    const cost = (point) => [sign(x) * point.metrics[x.name], sign(y) * point.metrics[y.name]];
    const sorted = points.map((point) => [cost(point), point]);
    sorted.sort(([one], [other]) => one[0] - other[0] || one[1] - other[1]);
    let best = Infinity;
    const kept = sorted.filter(([[, b]]) => (b < best ? ((best = b), true) : false)).map(([, point]) => point);
    return kept.sort((one, other) => one.metrics[x.name] - other.metrics[x.name]);
  }

  // Without what is far worse than most and would press all others together; a double click shows it, too.
  function usual(metric, points, front) {
    const worse = (point) => (metric.direction === "maximize" ? -1 : 1) * point.metrics[metric.name];
    const sorted = points.map(worse).sort((one, other) => one - other);
    if (sorted.length < 8) return points;
    const [low, high] = [0.25, 0.75].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
    return points.filter((point) => worse(point) <= high + 5 * (high - low) || front.includes(point));
  }

  // One metric against another: `parts` makes the traces of the points, between which lies the line of their front.
  function drawFront(name, all, metrics, parts) {
    const [x, y] = ["x", "y"].map((side) => metrics.find((metric) => metric.name === $(`${name}-${side}`).value));
    const points = all.filter((point) => x.name in point.metrics && y.name in point.metrics);
    points.sort((one, other) => one.metrics[x.name] - other.metrics[x.name]);
    const values = (metric, of) => of.flatMap((point) => [point.metrics[metric.name], ...(point.bounds?.[metric.name] || [])]);
    const across = axis(x, values(x, points), $(`${name}-log`).checked);
    const up = axis(y, values(y, usual(y, points, frontOf(points, x, y))), false);
    const at = (chosen) => ({
      x: chosen.map((point) => across.of(point.metrics[x.name])), y: chosen.map((point) => up.of(point.metrics[y.name])),
    });
    const markers = (title, chosen, more) => ({
      name: title, type: "scatter", mode: "markers", ...at(chosen), customdata: chosen.map((point) => point.digest),
      hovertemplate: chosen.map((point) => hover(point, metrics)), ...more,
    });
    const bars = (metric, side) => {
      const reach = (point, end) => Math.abs((point.bounds[metric.name] || [])[end] - point.metrics[metric.name]) || 0;
      return {
        type: "data", symmetric: false, thickness: 1.5, width: 5, color: colour("--extra"),
        visible: points.some((point) => metric.name in point.bounds),
        array: points.map((point) => side.of(reach(point, 1))), arrayminus: points.map((point) => side.of(reach(point, 0))),
      };
    };
    const line = {
      name: "front of these axes", type: "scatter", mode: "lines", ...at(frontOf(points, x, y)), hoverinfo: "skip",
      line: { shape: x.direction === "minimize" ? "hv" : "vh", color: colour("--accent"), width: 2 }, opacity: .55,
    };
    const [below, above] = parts(points, markers, () => ({ error_x: bars(x, across), error_y: bars(y, up) }));
    const legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
    Plotly.react($(name), [...below, line, ...above], layout(across.layout, up.layout, { legend }), settings);
  }

  function drawPareto() {
    const complete = data.trials.filter((trial) => trial.state === "complete");
    drawFront("pareto", complete, data.metrics, (points, markers) => [
      [markers("dominated", points.filter((trial) => !trial.front), { marker: { size: 8, color: colour("--muted"), opacity: .75 } })],
      [markers("on the front", points.filter((trial) => trial.front),
        { marker: { size: 11, color: colour("--accent"), line: { color: colour("--card"), width: 1.5 } } }),
      ...known(points.filter((trial) => trial.landmark), markers)],
    ]);
  }

  // Where the text of a point stands, of all from left to right: above and below in turn, and away from the edges.
  const beside = (_, place, all) => `${place % 2 ? "bottom" : "top"} ${place < all.length / 2 ? "right" : "left"}`;

  // Known networks, with their names, where the search has any.
  function known(points, markers) {
    if (!points.length) return [];
    return [markers("known networks", points, {
      mode: "markers+text", text: points.map((point) => ` ${point.landmark} `), textposition: points.map(beside),
      marker: { size: 11, symbol: "diamond", color: colour("--extra"), line: { color: colour("--card"), width: 1.5 } },
    })];
  }

  function drawAgain() {
    drawFront("again", data.confirmed, data.confirmedMetrics, (points, markers, bars) => [[], [
      markers("mean of new seeds, by trial", points, {
        ...bars(), mode: "markers+text", text: points.map((point) => ` ${point.number} `), textposition: points.map(beside),
        marker: { size: 10, symbol: "diamond", color: colour("--extra") },
      }),
    ]]);
  }

  function drawProgress() {
    const goal = data.metrics.find((metric) => metric.name === data.goal);
    const done = data.trials.filter((trial) => trial.state === "complete" && goal.name in trial.metrics);
    const values = done.map((trial) => trial.metrics[goal.name]), up = axis(goal, values, false);
    const numbers = trialAxis(done.map((trial) => trial.number));
    const steps = (points) => ({
      type: "scatter", mode: "lines", x: points.map((point) => point[0]), y: points.map((point) => point[1]),
      line: { shape: "hv", color: colour("--accent"), width: 2 },
    });
    Plotly.react($("best"), [
      {
        type: "scatter", mode: "markers", x: done.map((trial) => trial.number), y: values.map(up.of),
        marker: { size: 6, color: colour("--muted"), opacity: .7 },
        customdata: done.map((trial) => trial.digest), hovertemplate: done.map((trial) => hover(trial, data.metrics)),
      },
      { ...steps(data.best.map(([number, value]) => [number, up.of(value)])), hoverinfo: "skip" },
    ], layout(numbers, up.layout, { showlegend: false }), still);
    if ($("hypervolume")) {
      const byTime = $("hypervolume-x").value === "seconds";
      const points = byTime ? data.hypervolumeByTime : data.hypervolume;
      const times = axis({ label: "Wall time of the search", unit: "seconds" }, points.map((point) => point[0]), false);
      const x = byTime ? { ...times.layout, rangemode: "tozero", autorange: true } : { ...numbers };
      const at = points.map(([place, share]) => [byTime ? times.of(place) : place, share]);
      const extent = points.length ? { rangemode: "tozero" } : { range: [0, 1] };
      const y = { ...plain("Hypervolume"), ...extent, tickformat: ".2~f" };
      const curve = { ...steps(at), hovertemplate: `${byTime ? "" : "trial "}%{x}: %{y:.3f}<extra></extra>` };
      Plotly.react($("hypervolume"), [curve], layout(x, y, { showlegend: false }), still);
    }
  }

  function suggestLog(name, points) {
    const metric = $(`${name}-x`).value;
    const values = points.filter((point) => metric in point.metrics).map((point) => point.metrics[metric]);
    $(`${name}-log`).checked = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;
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

  // A number means the trial of that number; like any other start of a digest it finds that too.
  function isCalled({ number, digest }, words) {
    return digest.startsWith(words) || (/^\d+$/.test(words) && Number(words) === Number(number));
  }

  function filter() {
    const state = $("state").value, words = $("search").value.trim().toLowerCase();
    let shown = 0;
    for (const row of $("trials").tBodies[0].rows) {
      const right = !state || row.dataset.state === state || (state === "front" && row.dataset.front);
      row.hidden = !right || !isCalled(row.dataset, words);
      shown += row.hidden ? 0 : 1;
    }
    $("shown").textContent = `${shown} of ${data.trials.length}`;
  }

  function control(name, points, draw) {
    if (!$(name)) return () => {};
    suggestLog(name, points);
    $(`${name}-x`).addEventListener("change", () => { suggestLog(name, points); draw(); });
    for (const side of ["y", "log"]) $(`${name}-${side}`).addEventListener("change", draw);
    draw();
    $(name).on("plotly_click", show);
    return draw;
  }

  document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sortBy(button.closest("th"))));
  if ($("trials")) {
    $("state").addEventListener("change", filter);
    $("search").addEventListener("input", filter);
    filter();
  }
  if ($("pareto")) {
    const redraw = [control("pareto", data.trials, drawPareto), control("again", data.confirmed, drawAgain), drawProgress];
    drawProgress();
    $("best").on("plotly_click", show);
    if ($("hypervolume")) $("hypervolume-x").addEventListener("change", drawProgress);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw.forEach((draw) => draw()));
  }
})();
