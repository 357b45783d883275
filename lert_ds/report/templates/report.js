"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const state = { axis: "step", smooth: 0, log: false, zoom: null, hidden: new Set() };
  const COLOURS = 8, LEFT = 50, RIGHT = 10, TOP = 8, BOTTOM = 22;
  const AXES = { step: "steps", samples: "samples", tokens: "tokens", hours: "hours" };
  const KINDS = { train: "train", valid: "held-out" };
  document.documentElement.classList.add("js");

  // ---- numbers and places ----------------------------------------------------------------------

  // The first index whose value is not below x.
  const bisect = (list, x) => {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] < x) low = middle + 1; else high = middle;
    }
    return low;
  };

  const nearest = (list, x) => {
    const after = bisect(list, x);
    if (after === 0) return 0;
    return after === list.length || x - list[after - 1] <= list[after] - x ? after - 1 : after;
  };

  const interpolate = (table, step) => {
    const after = bisect(table.s, step);
    if (after === 0) return table.v[0];
    if (after === table.s.length) return table.v[after - 1];
    const share = (step - table.s[after - 1]) / (table.s[after] - table.s[after - 1]);
    return table.v[after - 1] + share * (table.v[after] - table.v[after - 1]);
  };

  // A short training is told in minutes.
  const longest = Math.max(0, ...data.runs.map((run) => run.clock.hours?.v.at(-1) ?? 0));
  const inMinutes = longest < 2;
  if (inMinutes) AXES.hours = "minutes";

  const place = (run, step) => {
    if (state.axis === "step") return step;
    const x = interpolate(run.clock[state.axis], step);
    return state.axis === "hours" && inMinutes ? x * 60 : x;
  };

  const show = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e9)) return Number(value.toPrecision(4)).toExponential();
    return value.toLocaleString("en", { maximumSignificantDigits: Math.max(5, Math.ceil(Math.log10(size + 1))) });
  };

  const showTick = (value, step) => {
    const size = Math.abs(value);
    if (size < step * 1e-6) return "0";
    if (size < 1e-3) return Number(value.toPrecision(3)).toExponential();
    const digits = Math.min(15, Math.max(1, Math.floor(Math.log10(size)) - Math.floor(Math.log10(step) + 1e-9) + 1));
    return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: digits });
  };

  const linearTicks = (low, high, most) => {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.7);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      ticks.push([i * step, showTick(i * step, step)]);
    }
    return ticks;
  };

  const logTicks = (low, high) => {
    const ticks = [], decades = Math.log10(high / low);
    const every = Math.max(1, Math.ceil(decades / 5));
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      for (const m of decades > 2 ? [1] : [1, 2, 3, 5]) {
        const value = m * 10 ** e;
        if (e % every === 0 && value >= low && value <= high) ticks.push([value, showTick(value, value)]);
      }
    }
    return ticks.length > 1 ? ticks : linearTicks(low, high, 4);
  };

  // ---- curves ----------------------------------------------------------------------------------

  const xCache = new WeakMap();
  const xsOf = (run, steps) => {
    if (state.axis === "step") return steps;
    let found = xCache.get(steps);
    if (found?.axis !== state.axis) {
      found = { axis: state.axis, xs: steps.map((step) => place(run, step)) };
      xCache.set(steps, found);
    }
    return found.xs;
  };

  // Exponential average over a stretch of the axis, so that runs that report more often than
  // others are smoothed as much as they are.
  const smoothed = (xs, values, reach) => {
    let sum = 0, weight = 0;
    return values.map((value, i) => {
      const keep = i ? Math.exp(-(xs[i] - xs[i - 1]) / reach) : 0;
      sum = sum * keep + value;
      weight = weight * keep + 1;
      return sum / weight;
    });
  };

  const visible = () => data.runs.map((run, index) => ({ run, index })).filter((r) => !state.hidden.has(r.index));

  let extent = [0, 1];
  const findExtent = () => {
    let low = Infinity, high = -Infinity;
    for (const { run } of visible()) {
      for (const kinds of Object.values(run.curves)) {
        for (const { s } of Object.values(kinds)) {
          low = Math.min(low, place(run, s[0]));
          high = Math.max(high, place(run, s.at(-1)));
        }
      }
    }
    if (low > 0 && low < high * 0.05) low = 0; // the first report is seldom step 0
    extent = low < high ? [low, high] : low === high ? [low - 0.5, low + 0.5] : [0, 1];
  };

  // A curve of more reports than pixels is drawn as its mean over its extremes; so is a smoothed
  // one. Schedules and counters are exact and stay as they are.
  const linesOf = ({ metric, exact }) => visible().flatMap(({ run, index }) =>
    Object.entries(run.curves[metric] ?? {}).sort().map(([kind, c]) => {
      const line = { name: run.name, index, kind, xs: xsOf(run, c.s), ys: c.v, raw: null };
      const smooth = kind === "train" && state.smooth > 0;
      if (exact || !(c.ms || smooth)) return line;
      line.raw = { xs: line.xs, ys: line.ys };
      if (c.ms) Object.assign(line, { xs: xsOf(run, c.ms), ys: c.mv });
      if (smooth) line.ys = smoothed(line.xs, line.ys, (extent[1] - extent[0]) * state.smooth / 100);
      return line;
    }));

  // ---- drawing ---------------------------------------------------------------------------------

  const draw = (tag, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  };

  const make = (tag, attributes, parent, text) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  };

  const yExtent = (lines, baselines, [from, to], log) => {
    let low = Infinity, high = -Infinity;
    const take = (value) => {
      if (log && value <= 0) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    };
    for (const { xs, ys } of lines.flatMap((line) => (line.raw ? [line, line.raw] : [line]))) {
      const last = Math.min(xs.length, bisect(xs, to) + 1);
      for (let i = Math.max(0, bisect(xs, from) - 1); i < last; i++) {
        if (xs[i] >= from && xs[i] <= to) take(ys[i]);
      }
    }
    baselines.forEach((line) => take(line.value));
    if (low > high) return log ? [1, 10] : [0, 1];
    if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
  };

  const pathOf = ({ xs, ys }, chart, log) => {
    const [from, to] = chart.domain;
    const first = Math.max(0, bisect(xs, from) - 1), last = Math.min(xs.length, bisect(xs, to) + 1);
    let path = "", pen = "M";
    for (let i = first; i < last; i++) {
      if (log && ys[i] <= 0) { pen = "M"; continue; }
      path += pen + chart.x(xs[i]).toFixed(1) + " " + chart.y(ys[i]).toFixed(1);
      pen = "L";
    }
    return path;
  };

  const charts = [...document.querySelectorAll("figure")].map((figure, number) => {
    const chart = { figure, number, metric: figure.dataset.metric };
    chart.loss = "loss" in figure.dataset;
    chart.exact = "exact" in figure.dataset;
    // Perplexity falls by orders of magnitude: straight, its chart is an L.
    chart.log = () => chart.loss && (state.log || /(perplexity|ppl)$/.test(chart.metric));
    chart.svg = draw("svg", { role: "img", "aria-label": `${chart.metric}: see the table of values` }, figure);
    const button = make("button", { type: "button", "aria-label": `Enlarge ${chart.metric}`, title: "Enlarge" }, figure, "⤢");
    button.addEventListener("click", () => { figure.classList.toggle("wide"); render(chart); });
    return chart;
  });

  function render(chart) {
    const width = Math.max(220, chart.figure.clientWidth - 20);
    const height = chart.figure.classList.contains("wide") ? Math.min(520, width * 0.45) : 210;
    const log = chart.log(), svg = chart.svg;
    chart.width = width;
    chart.domain = state.zoom ?? extent;
    chart.lines = linesOf(chart);
    const shown = new Set(chart.lines.map((line) => line.index));
    const baselines = (data.baselines[chart.metric] ?? []).filter((b) => b.runs.some((run) => shown.has(run)));
    const [from, to] = chart.domain, [low, high] = yExtent(chart.lines, baselines, chart.domain, log);
    const scale = log ? Math.log : (v) => v;
    chart.x = (x) => LEFT + (x - from) / (to - from) * (width - LEFT - RIGHT);
    chart.y = (y) => TOP + (scale(high) - scale(y)) / (scale(high) - scale(low)) * (height - TOP - BOTTOM);
    chart.invert = (pixel) => from + (pixel - LEFT) / (width - LEFT - RIGHT) * (to - from);

    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const clip = draw("clipPath", { id: `clip${chart.number}` }, svg);
    draw("rect", { x: LEFT - 4, y: TOP - 4, width: width - LEFT - RIGHT + 8, height: height - TOP - BOTTOM + 8 }, clip);
    for (const [value, text] of log ? logTicks(low, high) : linearTicks(low, high, 5)) {
      const y = chart.y(value);
      draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }, svg);
      draw("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, svg, text);
    }
    for (const [value, text] of linearTicks(from, to, width / 90)) {
      const x = chart.x(value);
      if (x > width - RIGHT - 62) continue;
      draw("text", { x, y: height - 6, "text-anchor": "middle" }, svg, text);
    }
    draw("text", { x: width - RIGHT, y: height - 6, "text-anchor": "end" }, svg, AXES[state.axis]);
    const plot = draw("g", { "clip-path": `url(#clip${chart.number})` }, svg);
    const bottom = height - BOTTOM;
    for (const { run, index } of visible()) {
      let last = -9;
      for (const [step] of run.events) {
        const x = chart.x(place(run, step));
        if (Math.abs(x - last) < 3 || x < LEFT - 1 || x > width - RIGHT + 1) continue;
        last = x;
        draw("path", { class: `event c${index % COLOURS}`, d: `M${x - 3.5} ${bottom + 3}h7l-3.5 -7z` }, svg);
      }
    }
    drawLines(chart, plot, log);
    drawBaselines(chart, plot, baselines, width);
    chart.cross = draw("g", {}, svg);
    chart.height = height;
  }

  function drawLines(chart, plot, log) {
    for (const line of chart.lines) {
      const colour = `c${line.index % COLOURS}`;
      const style = line.kind === "train" ? "train" : line.kind === "valid" ? "valid" : "other";
      if (line.raw) draw("path", { class: `curve raw ${colour}`, d: pathOf(line.raw, chart, log) }, plot);
      draw("path", { class: `curve ${style} ${colour}`, d: pathOf(line, chart, log) }, plot);
      const marked = line.kind !== "train" || line.xs.length === 1;
      if (!marked || line.xs.length > 60) continue;
      line.xs.forEach((x, i) => {
        if (log && line.ys[i] <= 0) return;
        draw("circle", { class: `dot ${colour}`, cx: chart.x(x), cy: chart.y(line.ys[i]), r: 3 }, plot);
      });
    }
  }

  function drawBaselines(chart, plot, baselines, width) {
    for (const { label, value, runs } of baselines) {
      const y = chart.y(value);
      if (!Number.isFinite(y)) continue;
      // Whose it is, where runs disagree.
      const disputed = baselines.filter((other) => other.label === label).length > 1;
      const whose = disputed ? ` (${runs.map((run) => data.runs[run].name).join(", ")})` : "";
      draw("line", { class: "baseline", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }, plot);
      const above = y > TOP + 14;
      draw("text", { class: "label", x: width - RIGHT - 2, y: above ? y - 4 : y + 12, "text-anchor": "end" }, plot,
        `${label} ${show(value)}${whose}`);
    }
  }

  // ---- crosshair, tooltip, zoom ----------------------------------------------------------------

  const tip = make("div", { id: "tip", hidden: "" }, document.body);

  const snap = (chart, x) => {
    let best = x, distance = Infinity;
    for (const { xs } of chart.lines) {
      const found = xs[nearest(xs, x)];
      if (found >= chart.domain[0] && found <= chart.domain[1] && Math.abs(found - x) < distance) {
        best = found;
        distance = Math.abs(found - x);
      }
    }
    return best;
  };

  function cross(chart, x) {
    chart.cross?.replaceChildren();
    if (x === null || x < chart.domain[0] || x > chart.domain[1]) return;
    const at = chart.x(x);
    draw("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: chart.height - BOTTOM }, chart.cross);
  }

  function hover(chart, pixel, event) {
    const x = snap(chart, chart.invert(pixel));
    for (const other of charts) if (!other.figure.hidden) cross(other, x);
    tip.replaceChildren();
    make("div", { class: "dim" }, tip, `${AXES[state.axis]} ${show(x)}`);
    const table = make("table", {}, tip);
    const slack = (chart.domain[1] - chart.domain[0]) * 0.02;
    for (const line of chart.lines) {
      const i = nearest(line.xs, x), [raw] = line.raw ? [nearest(line.raw.xs, x)] : [null];
      if (x > line.xs.at(-1) + slack || x < line.xs[0] - slack) continue;
      const y = line.ys[i], at = chart.y(y);
      if (Number.isFinite(at)) {
        draw("circle", { class: `dot c${line.index % COLOURS}`, cx: chart.x(line.xs[i]), cy: at, r: 4 }, chart.cross);
      }
      const row = make("tr", {}, table), name = make("th", {}, row);
      make("i", { class: `swatch c${line.index % COLOURS}` }, name);
      name.append(data.runs.length > 1 ? line.name : "");
      make("td", { class: "dim" }, row, KINDS[line.kind] ?? line.kind);
      make("td", { class: "value" }, row, show(raw === null ? y : line.raw.ys[raw]));
      const far = Math.abs(line.xs[i] - x) > slack / 8 && raw === null;
      make("td", { class: "dim" }, row, raw !== null ? `mean ${show(y)}` : far ? `@ ${show(line.xs[i])}` : "");
    }
    for (const { run, index } of visible()) {
      for (const [step, message] of run.events) {
        if (Math.abs(chart.x(place(run, step)) - chart.x(x)) > 5) continue;
        const row = make("div", {}, tip);
        make("i", { class: `swatch c${index % COLOURS}` }, row);
        row.append(`▲ ${message.length > 120 ? message.slice(0, 119) + "…" : message}`);
        if (tip.childElementCount > 8) break;
      }
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), page = document.documentElement;
    const right = event.clientX + 16 + box.width > page.clientWidth;
    const left = right ? event.clientX - 16 - box.width : event.clientX + 16;
    const above = event.clientY + 16 + box.height > page.clientHeight;
    const top = above ? event.clientY - 12 - box.height : event.clientY + 12;
    tip.style.left = `${Math.max(4, left) + scrollX}px`;
    tip.style.top = `${Math.max(4, top) + scrollY}px`;
  }

  const leave = () => {
    tip.hidden = true;
    charts.forEach((chart) => cross(chart, null));
  };

  for (const chart of charts) {
    let pressed = null, brush = null;
    const pixelOf = (event) => {
      const box = chart.svg.getBoundingClientRect();
      const pixel = (event.clientX - box.left) / box.width * chart.width;
      return Math.min(chart.width - RIGHT, Math.max(LEFT, pixel));
    };
    chart.svg.addEventListener("pointermove", (event) => {
      if (!chart.lines.length) return;
      const pixel = pixelOf(event);
      hover(chart, pixel, event);
      if (pressed === null || Math.abs(pixel - pressed) < 5) return;
      brush ??= draw("rect", { class: "brush", y: TOP, height: chart.height - TOP - BOTTOM }, chart.svg);
      brush.setAttribute("x", Math.min(pixel, pressed));
      brush.setAttribute("width", Math.abs(pixel - pressed));
    });
    chart.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      pressed = pixelOf(event);
      chart.svg.setPointerCapture(event.pointerId);
    });
    chart.svg.addEventListener("pointerup", (event) => {
      if (pressed !== null && brush) {
        const ends = [chart.invert(pressed), chart.invert(pixelOf(event))].sort((a, b) => a - b);
        if (ends[1] > ends[0]) zoom(ends);
      }
      brush?.remove();
      pressed = brush = null;
    });
    chart.svg.addEventListener("pointercancel", () => { brush?.remove(); pressed = brush = null; });
    chart.svg.addEventListener("pointerleave", leave);
    chart.svg.addEventListener("dblclick", () => zoom(null));
  }

  function zoom(ends) {
    state.zoom = ends;
    byId("reset").hidden = !ends;
    renderAll();
  }

  // ---- controls --------------------------------------------------------------------------------

  let waiting = false;
  function renderAll() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      findExtent();
      leave();
      charts.forEach((chart) => { if (!chart.figure.hidden) render(chart); });
    });
  }

  const chips = [...document.querySelectorAll(".chip")];
  const showOnly = (hidden) => {
    state.hidden = new Set(hidden);
    chips.forEach((chip, index) => chip.setAttribute("aria-pressed", String(!state.hidden.has(index))));
    renderAll();
  };
  chips.forEach((chip, index) => {
    chip.title = "Click to show or hide; double-click to show alone";
    chip.addEventListener("click", () => {
      const hidden = new Set(state.hidden);
      if (!hidden.delete(index)) hidden.add(index);
      showOnly(hidden);
    });
    chip.addEventListener("dblclick", () => {
      const others = chips.map((_, i) => i).filter((i) => i !== index);
      const alone = !state.hidden.has(index) && others.every((i) => state.hidden.has(i));
      showOnly(alone ? [] : others);
    });
  });

  const axes = ["step", ...data.axes].map((axis) => {
    const button = make("button", { type: "button", "aria-pressed": String(axis === "step") }, byId("axes"), AXES[axis]);
    button.addEventListener("click", () => {
      state.axis = axis;
      state.zoom = null;
      byId("reset").hidden = true;
      axes.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      renderAll();
    });
    return button;
  });

  byId("smooth").addEventListener("input", (event) => {
    state.smooth = Number(event.target.value);
    byId("smooth-value").textContent = state.smooth ? `${state.smooth} %` : "off";
    renderAll();
  });
  byId("log").addEventListener("change", (event) => { state.log = event.target.checked; renderAll(); });
  byId("reset").addEventListener("click", () => zoom(null));
  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const { figure, metric } of charts) figure.hidden = !metric.toLowerCase().includes(wanted);
    for (const section of document.querySelectorAll("main section")) {
      section.hidden = !section.querySelector("figure:not([hidden])");
    }
    renderAll();
  });
  if (!charts.some((chart) => chart.loss)) byId("log").parentElement.hidden = true;

  // The key: what the kinds of line mean, as far as the page has them.
  const kinds = new Set(data.runs.flatMap((run) => Object.values(run.curves).flatMap(Object.keys)));
  const key = (style, text) => {
    const item = make("span", {}, byId("keys")), svg = draw("svg", { viewBox: "0 0 26 10", class: "c7" }, item);
    if (style === "event") draw("path", { class: "event", d: "M9 9h8l-4 -8z" }, svg);
    else draw("line", { class: style, x1: 0, x2: 26, y1: 5, y2: 5 }, svg);
    item.append(text);
  };
  for (const kind of kinds) {
    key(kind === "train" ? "curve" : `curve ${kind === "valid" ? "valid" : "other"}`, KINDS[kind] ?? kind);
  }
  if (Object.keys(data.baselines).length) key("baseline", "baseline");
  if (data.runs.some((run) => run.events.length)) key("event", "event");

  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width) renderAll();
    width = entry.contentRect.width;
  }).observe(document.body);
  addEventListener("beforeprint", () => document.querySelectorAll("#events details").forEach((d) => { d.open = true; }));
  findExtent();
  charts.forEach(render);
})();
