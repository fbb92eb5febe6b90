// Small charts in SVG: lines or stacked areas over time, with a legend that tells the newest values and a cursor that tells any.

const SVG = "http://www.w3.org/2000/svg";
const RIGHT = 8, LEFT = 40, TOP = 8, BOTTOM = 20;

export function element(name, attributes = {}, parent = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
}

export function html(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export const compact = (value) =>
  value == null ? "–" : Math.abs(value) >= 10_000 ? `${(value / 1000).toFixed(0)}k` : Math.abs(value) >= 1000 ? `${(value / 1000).toFixed(1)}k`
    : Math.abs(value) >= 100 || Number.isInteger(value) ? value.toFixed(0) : Math.abs(value) >= 1 ? value.toFixed(1) : value.toFixed(3);

function niceTop(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12].find((step) => step * unit >= value * 1.04) * unit;
}

/** Draw a chart. `series`: [{name, color, values (null = not known), dash?, band?}] over `xs`; `label(x)` writes a place on the axis. */
export function draw(box, { xs, series, stacked = false, label, format = compact, nothing = "Nothing yet", from = 0 }) {
  const legend = legendOf(box);
  const known = series.some((one) => one.values.some((value) => value != null));
  if (xs.length < 2 || !known) {
    box.replaceChildren(html("div", { className: "nothing", textContent: nothing }));
    legend.replaceChildren();
    return;
  }
  const width = box.clientWidth || 600, height = box.clientHeight || 200;
  const stacks = stacked ? stack(series) : null;
  const all = stacked ? stacks.at(-1).upper : series.flatMap((one) => one.values.filter((value) => value != null));
  const low = from ?? Math.min(...all) - 0.06 * (Math.max(...all) - Math.min(...all) || 1);
  const high = from == null ? Math.max(...all) + 0.06 * (Math.max(...all) - low || 1) : niceTop(Math.max(...all));
  const x = (value) => LEFT + ((value - xs[0]) / (xs.at(-1) - xs[0] || 1)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low || 1)) * (height - TOP - BOTTOM);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const share of [0, 0.5, 1]) {
    const value = low + share * (high - low);
    element("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }, svg);
    element("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = format(value);
  }
  const places = width < 420 ? [0, 1] : [0, 1 / 3, 2 / 3, 1];
  for (const share of places) {
    const value = xs[0] + share * (xs.at(-1) - xs[0]);
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    element("text", { x: x(value), y: height - 3, "text-anchor": anchor }, svg).textContent = label(value);
  }
  series.forEach((one, index) => {
    if (stacked) {
      const { lower, upper } = stacks[index];
      const there = xs.map((at, i) => `${x(at).toFixed(1)},${y(upper[i]).toFixed(1)}`);
      const back = xs.map((at, i) => `${x(at).toFixed(1)},${y(lower[i]).toFixed(1)}`).reverse();
      element("path", { d: `M${there.join("L")}L${back.join("L")}Z`, fill: one.color, "fill-opacity": 0.82 }, svg);
    } else {
      element("path", {
        d: path(xs, one.values, x, y), fill: "none", stroke: one.color, "stroke-width": one.dash ? 1.6 : 2.1,
        "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": one.dash ? "4 5" : "none", opacity: one.dash ? 0.85 : 1,
      }, svg);
    }
  });
  const cursor = element("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" }, svg);
  const tip = html("div", { className: "tip" });
  box.replaceChildren(svg, tip);
  svg.onpointermove = (event) => {
    const at = ((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth) * width;
    const index = xs.reduce((best, value, i) => (Math.abs(x(value) - at) < Math.abs(x(xs[best]) - at) ? i : best), 0);
    cursor.setAttribute("x1", x(xs[index])); cursor.setAttribute("x2", x(xs[index])); cursor.setAttribute("visibility", "visible");
    const lines = series.map((one) => html("div", {}, swatch(one), `${one.name} ${format(one.values[index])}`));
    tip.replaceChildren(html("div", { textContent: label(xs[index]) }), ...(stacked ? lines.reverse() : lines));
    tip.style.opacity = 1;
    tip.style.left = `${Math.min(Math.max(0, x(xs[index]) + 12), width - tip.offsetWidth)}px`;
    tip.style.top = `${TOP}px`;
  };
  svg.onpointerleave = () => { tip.style.opacity = 0; cursor.setAttribute("visibility", "hidden"); };
  legend.replaceChildren(...series.map((one) => {
    const newest = one.values.findLast((value) => value != null);
    return html("span", {}, swatch(one), one.name, html("b", { textContent: format(newest) }));
  }));
}

/** Points on a line of time, with a tip each: [{at, color, title}]. */
export function timeline(box, { points, from, to, label, nothing }) {
  if (!points.length) return box.replaceChildren(html("div", { className: "nothing", textContent: nothing }));
  const width = box.clientWidth || 600, height = box.clientHeight || 90, middle = height / 2 - 6;
  const x = (value) => 10 + ((value - from) / (to - from || 1)) * (width - 20);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  element("line", { class: "gridline", x1: 10, x2: width - 10, y1: middle, y2: middle, "stroke-width": 2 }, svg);
  points.forEach((point, index) => {
    const newest = index === points.length - 1;
    if (newest) element("circle", { cx: x(point.at), cy: middle, r: 11, fill: point.color, opacity: 0.18 }, svg);
    const dot = element("circle", { cx: x(point.at), cy: middle, r: newest ? 6.5 : 4.5, fill: point.color }, svg);
    element("title", {}, dot).textContent = point.title;
  });
  element("text", { x: 10, y: height - 4 }, svg).textContent = label(from);
  element("text", { x: width - 10, y: height - 4, "text-anchor": "end" }, svg).textContent = label(to);
  return box.replaceChildren(svg);
}

/** A line without axes. */
export function spark(values, color) {
  const svg = element("svg", { viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": "true" });
  const known = values.map((value) => value ?? 0);
  const top = Math.max(...known, 1e-9);
  if (known.length > 1) {
    const points = known.map((value, i) => `${((i / (known.length - 1)) * 100).toFixed(2)},${(24 - (value / top) * 20).toFixed(2)}`).join("L");
    element("path", { d: `M${points}L100,26L0,26Z`, fill: color, opacity: 0.1 }, svg);
    element("path", { d: `M${points}`, fill: "none", stroke: color, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" }, svg);
  }
  return svg;
}

function stack(series) {
  let lower = series[0].values.map(() => 0);
  return series.map((one) => {
    const upper = lower.map((value, i) => value + (one.values[i] ?? 0));
    const layer = { lower, upper };
    lower = upper;
    return layer;
  });
}

function path(xs, values, x, y) {
  let pen = "M", d = "";
  xs.forEach((at, i) => {
    if (values[i] == null) { pen = "M"; return; }
    d += `${pen}${x(at).toFixed(1)},${y(values[i]).toFixed(1)}`;
    pen = "L";
  });
  return d;
}

function swatch(one) {
  const mark = html("i", { className: one.dash ? "dash" : "" });
  mark.style.background = one.color;
  mark.style.borderColor = one.color;
  return mark;
}

function legendOf(box) {
  if (!box.nextElementSibling?.classList.contains("legend")) box.after(html("div", { className: "legend" }));
  return box.nextElementSibling;
}
