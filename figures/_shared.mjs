// What every figure of the book shares. A figure imports nothing and uses the names exported here
// directly: in a notebook this text stands before its own, and a page loads it once for all figures.
//
// The book's visual language, the same in every figure:
//   a hue says where a value lives   HBM (amber), on-chip SRAM (teal), registers (violet)
//   a mark says which tensor it is   Q, K, V, O light; S striped; P dotted
// Colours follow the page through CSS variables alone, so light and dark need no JavaScript.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

export const SHARED_CSS = `
.bf {
  --bf-ink: var(--pst-color-text-base, var(--jp-ui-font-color1, var(--vscode-foreground, CanvasText)));
  --bf-paper: var(--pst-color-background, var(--jp-layout-color0, var(--vscode-editor-background, Canvas)));
  --bf-accent: var(--pst-color-link, var(--jp-brand-color1, LinkText));
  --bf-muted: color-mix(in srgb, var(--bf-ink) 78%, var(--bf-paper));
  --bf-line: color-mix(in srgb, var(--bf-ink) 20%, var(--bf-paper));
  --bf-wash: color-mix(in srgb, var(--bf-ink) 5%, var(--bf-paper));
  --bf-hbm: #c8641b;
  --bf-sram: #0d8a86;
  --bf-registers: #7a5cd6;
  --bf-danger: #d13438;
  --bf-hbm-light: color-mix(in srgb, var(--bf-hbm) 26%, var(--bf-paper));
  --bf-hbm-mid: color-mix(in srgb, var(--bf-hbm) 55%, var(--bf-paper));
  --bf-hbm-mark: color-mix(in srgb, var(--bf-hbm) 88%, var(--bf-paper));
  --bf-registers-mid: color-mix(in srgb, var(--bf-registers) 48%, var(--bf-paper));
  box-sizing: border-box; container-type: inline-size; max-width: 60rem; margin: 1rem 0;
  border: 1px solid var(--bf-line); border-radius: 10px; overflow: hidden;
  background: var(--bf-paper); color: var(--bf-ink);
  --bf-font: var(--pst-font-family-base, var(--jp-ui-font-family, system-ui, sans-serif));
  font: 14px/1.4 var(--bf-font);
  font-variant-numeric: tabular-nums;
}
.bf *, .bf *::before { box-sizing: border-box; }
.bf p { margin: 0; font-size: inherit; line-height: inherit; }
.bf svg { display: block; max-width: none; }
.bf text { fill: var(--bf-ink); font: 12px var(--bf-font);
  font-variant-numeric: tabular-nums; }
.bf .bf-muted { color: var(--bf-muted); font-size: 12px; }
.bf text.bf-muted { fill: var(--bf-muted); }
.bf .bf-hidden { position: absolute; width: 1px; height: 1px; margin: -1px; padding: 0; border: 0;
  overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.bf-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 12px;
  padding: 10px 16px; background: var(--bf-wash); }
.bf-title strong { font-size: 16px; }
.bf-tools { display: flex; gap: 6px; margin-inline-start: auto; }
.bf .bf-tool { min-width: 4.2rem; }
.bf .bf-link { flex: 1 1 100%; min-width: 0; height: 32px; margin: 4px 0 0; padding: 0 8px;
  font: inherit; color: var(--bf-ink); background: var(--bf-paper); border: 1px solid var(--bf-line);
  border-radius: 6px; }
.bf:focus { outline: 2px solid var(--bf-accent); outline-offset: 2px; }
@media print { .bf .bf-tools, .bf .bf-link { display: none; } }
.bf-controls { display: grid; gap: 12px 28px; padding: 2px 16px 14px; background: var(--bf-wash);
  border-bottom: 1px solid var(--bf-line); }
@container (min-width: 560px) { .bf-controls { grid-template-columns: 1fr 1fr; } }
.bf-control { min-width: 0; margin: 0; padding: 0; border: 0; }
.bf-control-head { display: flex; justify-content: space-between; gap: 8px; margin: 0 0 4px;
  padding: 0; width: 100%; font-size: 13px; line-height: 1.4; }
.bf-control-head label, .bf-control legend { margin: 0; font: inherit; font-size: 13px;
  color: var(--bf-muted); }
.bf-control legend { float: none; width: auto; padding: 0; margin: 0 0 4px; line-height: 1.4;
  border: 0; }
.bf-value { font-weight: 650; }
.bf input[type="range"] { display: block; width: 100%; height: 24px; margin: 0; padding: 0;
  accent-color: var(--bf-accent); background: none; cursor: pointer; }
.bf select { display: block; width: 100%; height: 32px; margin: 0; padding: 0 8px; font: inherit;
  color: var(--bf-ink); background: var(--bf-paper); border: 1px solid var(--bf-line);
  border-radius: 6px; cursor: pointer; }
.bf-choices { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; height: 32px;
  border: 1px solid var(--bf-line); border-radius: 6px; background: var(--bf-paper); }
.bf-choices label { display: grid; place-items: center; margin: 2px; border-radius: 4px;
  font-size: 13px; cursor: pointer; }
.bf-choices label:hover { background: var(--bf-wash); }
.bf-choices label:has(:checked) { background: var(--bf-ink); color: var(--bf-paper);
  font-weight: 650; }
.bf-transport { display: flex; align-items: center; gap: 6px; }
.bf button { display: inline-grid; place-items: center; height: 32px; min-width: 24px; margin: 0;
  padding: 0 9px; font: inherit; font-size: 13px; color: var(--bf-ink); background: var(--bf-paper);
  border: 1px solid var(--bf-line); border-radius: 6px; cursor: pointer; }
.bf button:hover { background: var(--bf-wash); border-color: var(--bf-muted); }
.bf button svg { fill: currentColor; }
.bf button[aria-disabled="true"] { opacity: .45; cursor: default; }
.bf .bf-main-button { color: var(--bf-paper); background: var(--bf-ink); padding: 0 16px; }
.bf .bf-main-button:hover { background: var(--bf-muted); }
.bf .bf-play { width: 4.2rem; }
.bf :is(input[type="range"], select, button):focus-visible, .bf-choices label:has(:focus-visible) {
  outline: 2px solid var(--bf-accent); outline-offset: 2px; }
.bf-pill { border-radius: 99px; padding: 2px 10px; font-size: 12px; font-weight: 650;
  border: 1px solid var(--bf-line); white-space: nowrap; }
.bf-pill[data-fits="no"] { color: #fff; background: var(--bf-danger); border-color: var(--bf-danger); }
.bf-notes { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line);
  background: var(--bf-wash); }
.bf-keys { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-bottom: 6px; }
.bf-keys span { display: inline-flex; align-items: center; gap: 6px; font-size: 12px; }
@media (prefers-reduced-motion: no-preference) {
  .bf rect, .bf line { transition: x .18s, y .18s, width .18s, height .18s; }
}
`;

// ---- nodes --------------------------------------------------------------------------------------

/** An HTML element; `attributes.text` sets its text, everything else is an attribute. */
export function htmlNode(tag, { text, ...attributes } = {}, ...children) {
  return fill(document.createElement(tag), text, attributes, children);
}

/** The same for SVG. */
export function svgNode(tag, { text, ...attributes } = {}, ...children) {
  return fill(document.createElementNS(SVG_NAMESPACE, tag), text, attributes, children);
}

function fill(node, text, attributes, children) {
  setAttributes(node, attributes);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

let figuresMade = 0;

/** An id prefix of its own for each figure: a page, or a notebook, may show one figure twice. */
export function uniqueId(name) {
  figuresMade += 1;
  return `${name}-${figuresMade}`;
}

/** The figure's outer element, in place on the page. */
export function figureFrame(el, label, css) {
  const root = htmlNode("div", { class: "bf", role: "group", "aria-label": label });
  root.append(htmlNode("style", { text: SHARED_CSS + css }));
  // JupyterLab's command mode acts on plain keys (arrows fold headings, letters edit cells), even
  // from a focused slider or select, unless the event stops here.
  root.addEventListener("keydown", (event) => {
    const shortcut = event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;
    if (!shortcut && event.key !== "Escape" && event.key !== "Tab") event.stopPropagation();
  });
  el.append(root);
  return root;
}

/** The row for small buttons beside the figure's title. */
export function figureTools(root) {
  const title = root.querySelector(".bf-title");
  if (!title.querySelector(".bf-tools")) title.append(htmlNode("div", { class: "bf-tools" }));
  return title.querySelector(".bf-tools");
}

/** Calls `draw(width)` now and whenever the element's width changes; returns how to stop. */
export function onWidth(element, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (element.clientWidth === width || element.clientWidth === 0) return;
    width = element.clientWidth;
    draw(width);
  });
  observer.observe(element);
  return () => observer.disconnect();
}

// ---- the marks of the six tensors ---------------------------------------------------------------

/** `<defs>` with the two patterns; fill with `tensorFill(id, "S")`. */
export function tensorPatterns(id) {
  const pattern = (name, ...marks) =>
    svgNode(
      "pattern",
      { id: `${id}-${name}`, width: 7, height: 7, patternUnits: "userSpaceOnUse" },
      svgNode("rect", { width: 7, height: 7, style: "fill: var(--bf-hbm-mid)" }),
      ...marks,
    );
  const ink = "fill: none; stroke: var(--bf-hbm-mark); stroke-width: 1.5";
  return svgNode(
    "defs",
    {},
    pattern("S", svgNode("path", { d: "M-2 2 L2 -2 M-1 8 L8 -1 M5 9 L9 5", style: ink })),
    pattern("P", svgNode("circle", { cx: 3.5, cy: 3.5, r: 1.4, style: "fill: var(--bf-hbm-mark)" })),
  );
}

/** The CSS fill of a tensor that lives in HBM. */
export function tensorFill(id, tensor) {
  return tensor === "S" || tensor === "P" ? `url(#${id}-${tensor})` : "var(--bf-hbm-light)";
}

/** What each fill of a figure stands for: {words: style}. */
export function swatches(styles) {
  const swatch = ([words, style]) => {
    const rect = svgNode("rect", { x: 1, y: 1, width: 20, height: 12, style });
    return htmlNode("span", {}, svgNode("svg", { width: 22, height: 14, "aria-hidden": "true" }, rect), words);
  };
  return htmlNode("div", { class: "bf-keys" }, ...Object.entries(styles).map(swatch));
}

// ---- numbers ------------------------------------------------------------------------------------

const PREFIXES = ["n", "µ", "m", "", "k", "M", "G", "T", "P", "E"];

/** Three significant digits with an SI prefix: 1000 bytes are 1.00 kB. */
export function formatSI(value, unit, smallest = "n", largest = "E") {
  if (value === 0) return `0 ${unit}`;
  let index = PREFIXES.indexOf(smallest);
  const last = PREFIXES.indexOf(largest);
  let scaled = value / 1000 ** (index - 3);
  while (index < last && Number(scaled.toPrecision(3)) >= 1000) {
    index += 1;
    scaled = value / 1000 ** (index - 3);
  }
  const digits = scaled >= 1000 ? formatInteger(Math.round(scaled)) : scaled.toPrecision(3);
  return `${digits} ${PREFIXES[index]}${unit}`;
}

/** Whole bytes have no fraction: 512 B, but 1.02 kB. */
export const formatBytes = (bytes) =>
  bytes < 1000 ? `${Math.round(bytes)} B` : formatSI(bytes, "B", "");
export const formatSeconds = (seconds) => formatSI(seconds, "s", "n", "");
export const formatFlops = (flops) => formatSI(flops, "FLOP", "");
export const formatInteger = (value) => value.toLocaleString("en-US");

/** A ratio or percentage in two or three digits, without exponents. */
export function formatNumber(value) {
  if (value >= 100) return formatInteger(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Never "100%" for a part that is not the whole, nor "0%" for one that is something. */
export function formatPercent(fraction) {
  if (fraction > 0 && fraction < 0.001) return "<0.1%";
  if (fraction > 0.999 && fraction < 1) return ">99.9%";
  return fraction > 10 ? `${formatInteger(Math.round(fraction * 100))}%` : `${(fraction * 100).toFixed(1)}%`;
}

/** Round tick values from 0 up to `top`, about `count` of them. */
export function ticks(top, count) {
  const rough = top / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, index) => index * step);
}

// ---- controls -----------------------------------------------------------------------------------
// Each returns {node, refresh}: refresh() shows the model's present value.

function writeTo(model, key, value) {
  model.set(key, value);
  model.save_changes();
}

/** A slider over a list of values. */
export function slider({ id, model, key, label, values, show = formatInteger }) {
  const inputId = `${id}-${key}`;
  const input = htmlNode("input", {
    id: inputId, type: "range", min: 0, max: values.length - 1, step: 1, "data-key": key,
  });
  // Seen only: a screen reader hears the same from the slider itself.
  const output = htmlNode("span", { class: "bf-value", "aria-hidden": "true" });
  input.addEventListener("input", () => writeTo(model, key, values[Number(input.value)]));
  const head = htmlNode(
    "div", { class: "bf-control-head" }, htmlNode("label", { for: inputId, text: label }), output,
  );
  const refresh = () => {
    input.value = values.indexOf(model.get(key));
    output.textContent = show(model.get(key));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  return { node: htmlNode("div", { class: "bf-control" }, head, input), refresh };
}

/** A few values side by side (radio buttons). */
export function choice({ id, model, key, label, values, show = String }) {
  const inputs = values.map((value) => {
    const input = htmlNode("input", {
      type: "radio", class: "bf-hidden", name: `${id}-${key}`, value, "data-key": key,
    });
    input.addEventListener("change", () => writeTo(model, key, value));
    return input;
  });
  const labels = inputs.map((input, index) =>
    htmlNode("label", {}, input, htmlNode("span", { text: show(values[index]) })),
  );
  const refresh = () =>
    inputs.forEach((input, index) => { input.checked = values[index] === model.get(key); });
  const node = htmlNode(
    "fieldset", { class: "bf-control" },
    htmlNode("legend", { text: label }), htmlNode("div", { class: "bf-choices" }, ...labels),
  );
  return { node, refresh };
}

/** One of many (a select). `values` is a list of {value, text}. */
export function select({ id, model, key, label, values }) {
  const inputId = `${id}-${key}`;
  const input = htmlNode(
    "select", { id: inputId, "data-key": key },
    ...values.map(({ value, text }) => htmlNode("option", { value, text })),
  );
  input.addEventListener("change", () => writeTo(model, key, input.value));
  const head = htmlNode(
    "div", { class: "bf-control-head" }, htmlNode("label", { for: inputId, text: label }),
  );
  const refresh = () => { input.value = model.get(key); };
  return { node: htmlNode("div", { class: "bf-control" }, head, input), refresh };
}

const ICONS = {
  first: "M2 2h2v12h-2z M14 2v12l-9-6z",
  back: "M12 2v12l-9-6z",
  forward: "M4 2v12l9-6z",
  last: "M12 2h2v12h-2z M2 2v12l9-6z",
};
const PLAY_INTERVAL = 1600;

/** First, back, forward, last and play, over the whole numbers from 0 to `last()`; `interval()` is
 * the time between two of them, in milliseconds. `stop` ends what is playing. */
export function transport({ model, key, last, interval = () => PLAY_INTERVAL }) {
  let timer = null;
  const step = () => Math.min(model.get(key), last());
  const go = (target) => writeTo(model, key, Math.max(0, Math.min(last(), target)));

  function iconButton(name, label, target) {
    const icon = svgNode("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" },
      svgNode("path", { d: ICONS[name] }));
    const button = htmlNode("button", { type: "button", "aria-label": label, "data-go": name }, icon);
    button.addEventListener("click", () => { stop(); go(target()); });
    return button;
  }
  const first = iconButton("first", "First step", () => 0);
  const back = iconButton("back", "Step back", () => step() - 1);
  const forward = iconButton("forward", "Step forward", () => step() + 1);
  const end = iconButton("last", "Last step", last);
  forward.classList.add("bf-main-button");
  const play = htmlNode("button", { type: "button", class: "bf-play", "data-go": "play" });
  play.addEventListener("click", () => {
    if (timer) return stop();
    go(step() === last() ? 0 : step() + 1);
    timer = setInterval(tick, interval());
    refresh();
  });

  function tick() {
    go(step() + 1);
    if (step() === last()) stop();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    refresh();
  }
  function refresh() {
    play.textContent = timer ? "Pause" : "Play";
    // aria-disabled, not disabled: a button that is switched off while it has the focus loses it.
    [first, back].forEach((button) => button.setAttribute("aria-disabled", step() === 0));
    [forward, end].forEach((button) => button.setAttribute("aria-disabled", step() === last()));
  }
  refresh();
  const buttons = [first, back, forward, end, play];
  return { node: htmlNode("div", { class: "bf-transport" }, ...buttons), refresh, stop };
}
