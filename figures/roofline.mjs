// The roofline: a kernel's least time on a GPU is the larger of two, that of its bytes and that of its
// operations. The figure draws both limits as one roof over the operations a byte.

// ---- the model ----------------------------------------------------------------------------------

export const BYTES_PER_ELEMENT = { fp32: 4, fp16: 2, bf16: 2 };
const HEAD_DIM = 64;
// Of one number of a softmax: compare, subtract, exponential, add, divide.
const SOFTMAX_OPERATIONS = 5;

// Operations and bytes of the book's kernels, when each tensor is read or written once a kernel.
export const KERNELS = {
  sum: {
    name: "sum of two matrices", what: (n) => `Two ${n} × ${n} matrices added`,
    flops: (n) => n ** 2, bytes: (n, b) => 3 * n ** 2 * b,
  },
  softmax: {
    name: "softmax of the rows", what: (n) => `The softmax of ${n} rows of ${n}`,
    flops: (n) => SOFTMAX_OPERATIONS * n ** 2, bytes: (n, b) => 2 * n ** 2 * b,
  },
  standard: {
    name: "standard attention", what: (n) => `Standard attention, one head of ${n} tokens`,
    flops: (n) => 4 * n ** 2 * HEAD_DIM, bytes: (n, b) => (4 * n ** 2 + 4 * n * HEAD_DIM) * b + 4 * n,
  },
  product: {
    name: "product of two matrices", what: (n) => `The product of two ${n} × ${n} matrices`,
    flops: (n) => 2 * n ** 3, bytes: (n, b) => 3 * n ** 2 * b,
  },
  fused: {
    name: "attention, S and P on chip", what: (n) => `One head of ${n} tokens, S and P on the chip,`,
    flops: (n) => 4 * n ** 2 * HEAD_DIM, bytes: (n, b) => 4 * n * HEAD_DIM * b,
  },
};

/** Operations and bytes of the kernel that is chosen. */
export function workOf({ kernel, size, dtype, operations, moved }) {
  if (kernel === "own") return { flops: 2 ** (operations / 2), bytes: 2 ** (moved / 2) };
  const { flops, bytes } = KERNELS[kernel];
  return { flops: flops(size), bytes: bytes(size, BYTES_PER_ELEMENT[dtype]) };
}

/** What a GPU allows: seconds of each limit, the larger of them, and the rate that this makes. */
export function limits({ flops, bytes }, gpu, dtype) {
  const peak = gpu.tflops[dtype] === null ? null : gpu.tflops[dtype] * 1e12;
  if (peak === null) return null;
  const bandwidth = gpu.bandwidth_tbs * 1e12;
  const [memory, arithmetic] = [bytes / bandwidth, flops / peak];
  const seconds = Math.max(memory, arithmetic);
  return {
    intensity: flops / bytes, ridge: peak / bandwidth, memory, arithmetic, seconds,
    limit: memory > arithmetic ? "memory" : "arithmetic",
    rate: flops / seconds, ofPeak: flops / seconds / peak,
  };
}

/** The half power of two that is nearest to a number, within a slider's ends. */
export const nearestStep = (number, [first, last]) =>
  Math.max(first, Math.min(last, Math.round(2 * Math.log2(number))));

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
@container (min-width: 640px) { .bf .rf-controls { grid-template-columns: repeat(3, 1fr); } }
.bf .rf-caption { padding: 12px 16px 4px; }
.bf .rf-caption p { min-height: 4.2em; font-size: 15px; }
@container (max-width: 639.9px) { .bf .rf-caption p { min-height: 5.6em; } }
@container (max-width: 479.9px) { .bf .rf-caption p { min-height: 8.4em; font-size: 14px; } }
.bf .rf-plot { padding: 0 16px 8px; }
.bf .rf-grid { stroke: var(--bf-line); }
.bf .rf-roof { fill: none; stroke: var(--bf-muted); stroke-width: 2.5; }
.bf .rf-slope { stroke: var(--bf-hbm); }
.bf .rf-flat { stroke: var(--bf-registers); }
.bf .rf-ridge { stroke: var(--bf-muted); stroke-dasharray: 3 4; }
.bf .rf-dot { fill: var(--bf-paper); stroke: var(--bf-muted); stroke-width: 1.5; }
.bf .rf-point { stroke: var(--bf-paper); stroke-width: 2; fill: var(--bf-registers); }
.bf .rf-point[data-limit="memory"] { fill: var(--bf-hbm); }
.bf .rf-bars { display: grid; gap: 4px; padding: 4px 16px 12px; }
.bf .rf-bar { display: grid; grid-template-columns: 5.4rem 1fr 4.6rem; gap: 8px; align-items: center; font-size: 13px; }
.bf .rf-bar[data-limit] { font-weight: 650; }
.bf .rf-bar i { display: block; height: 14px; border-radius: 2px; }
.bf .rf-bar > :last-child { text-align: right; white-space: nowrap; }
.bf .rf-table { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line); }
.bf .rf-row { display: grid; grid-template-columns: 1fr 4.2rem 4.6rem 5.2rem; gap: 6px; height: 19px;
  font-size: 12.5px; line-height: 19px; white-space: nowrap; }
.bf .rf-row > * + * { text-align: right; }
.bf .rf-row > :first-child { overflow: hidden; text-overflow: ellipsis; }
.bf .rf-row[data-now] { font-weight: 650; }
.bf .rf-row[data-head] { color: var(--bf-muted); }
@container (max-width: 519.9px) { .bf .rf-row { grid-template-columns: 1fr 56px 56px 58px; gap: 4px; font-size: 11.5px; } }
`;

// ---- the plot -----------------------------------------------------------------------------------

const [FIRST, LAST] = [1 / 16, 2 ** 15]; // operations a byte
const [LOWEST, HIGHEST] = [1e10, 1e16]; // operations a second

function plot() {
  const svg = svgNode("svg", { "aria-hidden": "true" });

  function draw({ width, gpu, dtype, size, now, kernel }) {
    const height = width < 480 ? 250 : 290;
    const box = { left: 58, right: width - 12, top: 14, bottom: height - 40 };
    const log = (value, from, to) => Math.log(value / from) / Math.log(to / from);
    const x = (value) => box.left + (box.right - box.left) * log(Math.max(FIRST, Math.min(LAST, value)), FIRST, LAST);
    const y = (value) => box.bottom - (box.bottom - box.top) * log(Math.max(LOWEST, Math.min(HIGHEST, value)), LOWEST, HIGHEST);
    setAttributes(svg, { width, height });
    svg.replaceChildren();
    const add = (tag, attributes) => svg.appendChild(svgNode(tag, attributes));
    const text = (left, top, words, anchor = "middle", name = "bf-muted") =>
      add("text", { x: left, y: top, text: words, "text-anchor": anchor, class: name });
    for (let power = 10; power <= 15; power += 1) {
      const value = 10 ** power;
      add("line", { class: "rf-grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) });
      text(box.left - 6, y(value) + 4, formatSI(value, "", "", "P").replace(/\.0+/, ""), "end");
    }
    for (let power = width < 480 ? -2 : -4; power <= 14; power += width < 480 ? 4 : 2) {
      const value = 2 ** power;
      add("line", { class: "rf-grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom });
      text(x(value), box.bottom + 16, value >= 1 ? formatInteger(value) : `1/${1 / value}`);
    }
    text((box.left + box.right) / 2, height - 6, "operations a byte");
    text(4, 10, "operations a second", "start");
    if (!now) return;

    const bandwidth = gpu.bandwidth_tbs * 1e12;
    const peak = now.ridge * bandwidth;
    add("line", { class: "rf-ridge", x1: x(now.ridge), x2: x(now.ridge), y1: y(peak), y2: box.bottom });
    add("path", { class: "rf-roof rf-slope", d: `M${x(FIRST)} ${y(FIRST * bandwidth)}L${x(now.ridge)} ${y(peak)}` });
    add("path", { class: "rf-roof rf-flat", d: `M${x(now.ridge)} ${y(peak)}H${box.right}` });
    text(x(now.ridge) + 5, box.bottom - 6, `ridge ${formatNumber(now.ridge)}`, "start");
    Object.keys(KERNELS).forEach((name, index) => {
      const found = limits(workOf({ kernel: name, size, dtype }), gpu, dtype);
      const [left, top] = [x(found.intensity), y(found.rate)];
      add("circle", { class: "rf-dot", cx: left, cy: top, r: 4, "data-kernel": name });
      text(left, index % 2 ? top + 18 : top - 9, String(index + 1), "middle", "");
    });
    add("circle", { class: "rf-point", cx: x(now.intensity), cy: y(now.rate), r: 7,
      "data-limit": now.limit, "data-now": kernel });
  }
  return { svg, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const CONTROLS = ["gpu", "dtype", "kernel", "size", "operations", "moved"];
const RANGES = { operations: [20, 94], moved: [20, 76] };
const between = ([first, last]) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

function render({ model, el }) {
  const id = uniqueId("roofline");
  const root = figureFrame(el, "The roofline", CSS);
  const stateNow = () => Object.fromEntries(CONTROLS.map((key) => [key, model.get(key)]));
  const gpus = model.get("gpus");

  // Moving operations or bytes starts from the kernel that is shown and makes it the reader's own.
  const own = {
    get: (key) => {
      const { flops, bytes } = workOf(stateNow());
      return nearestStep(key === "operations" ? flops : bytes, RANGES[key]);
    },
    set: (key, value) => {
      const [operations, moved] = [own.get("operations"), own.get("moved")];
      model.set("operations", key === "operations" ? value : operations);
      model.set("moved", key === "moved" ? value : moved);
      model.set("kernel", "own");
    },
    save_changes: () => model.save_changes(),
  };
  const names = Object.entries(KERNELS).map(([value, { name }], index) => ({ value, text: `${index + 1} ${name}` }));
  const controls = [
    select({ id, model, key: "gpu", label: "GPU", values: gpus.map(({ name, source }) =>
      ({ value: name, text: `${name} (${source})` })) }),
    choice({ id, model, key: "dtype", label: "Precision", values: ["fp32", "fp16", "bf16"] }),
    select({ id, model, key: "kernel", label: "Kernel", values: [...names, { value: "own", text: "your own" }] }),
    slider({ id, model, key: "size", label: "N", values: Array.from({ length: 9 }, (_, power) => 128 * 2 ** power) }),
    slider({ id, model: own, key: "operations", label: "Operations", values: between(RANGES.operations),
      show: () => formatFlops(workOf(stateNow()).flops) }),
    slider({ id, model: own, key: "moved", label: "Bytes", values: between(RANGES.moved),
      show: () => formatBytes(workOf(stateNow()).bytes) }),
  ];
  const words = htmlNode("p", { role: "status" });
  const drawing = plot();
  const bar = (label, color) => {
    const fill = htmlNode("i", { style: `background: ${color}` });
    const time = htmlNode("span");
    return { node: htmlNode("div", { class: "rf-bar", "data-bar": label }, htmlNode("span", { text: label }), fill, time), fill, time };
  };
  const bars = { memory: bar("memory", "var(--bf-hbm)"), arithmetic: bar("arithmetic", "var(--bf-registers)") };
  const table = htmlNode("div", { role: "table", "aria-label": "The book's kernels at this N" });
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "The roofline" }),
      htmlNode("span", { class: "bf-muted", text: "what a GPU allows a kernel at most" })),
    htmlNode("div", { class: "bf-controls rf-controls" }, ...controls.map(({ node }) => node)),
    htmlNode("div", { class: "rf-caption" }, words),
    htmlNode("div", { class: "rf-plot" }, drawing.svg),
    htmlNode("div", { class: "rf-bars" }, bars.memory.node, bars.arithmetic.node),
    htmlNode("div", { class: "rf-table" }, table),
    htmlNode("div", { class: "bf-notes bf-muted" }, htmlNode("p", { text: "Each kernel reads and writes each of its " +
      "tensors once. Attention is one head with d = 64, its two matrix products counted; a multiply-add counts as two " +
      "operations, and five are counted for each number of a softmax. A sum or softmax does not run on tensor cores, whose " +
      "rate the flat roof of fp16 and bf16 is, so its own roof over arithmetic is lower; memory limits it all the same." })),
  );
  let width = 0;

  function draw() {
    const state = stateNow();
    const gpu = gpus.find(({ name }) => name === state.gpu);
    const work = workOf(state);
    const now = limits(work, gpu, state.dtype);
    controls.forEach(({ refresh }) => refresh());
    words.textContent = sentence(state, work, now).replaceAll(/(\d) (?=[a-zA-Zµ]+)/g, "$1\u00a0");
    for (const [limit, { node, fill, time }] of Object.entries(bars)) {
      node.toggleAttribute("data-limit", now?.limit === limit);
      fill.style.width = now ? `${Math.max(.5, (100 * now[limit]) / now.seconds)}%` : "0";
      time.textContent = now ? formatSeconds(now[limit]) : "–";
    }
    drawTable(state, gpu);
    if (width) drawing.draw({ ...state, width: width - 32, gpu, now });
  }

  function sentence({ kernel, size, gpu, dtype }, { flops, bytes }, now) {
    if (!now) return `The ${gpu} has no unit for ${dtype}: choose another precision.`;
    const what = kernel === "own" ? "Your kernel" : KERNELS[kernel].what(formatInteger(size));
    const side = now.limit === "memory" ? "left" : "right";
    return `${what}: ${formatFlops(flops)} on ${formatBytes(bytes)}, ${formatNumber(now.intensity)} operations a byte. ` +
      `That is to the ${side} of the ridge, ${formatNumber(now.ridge)}, so ${now.limit} is the limit: it takes at least ` +
      `${formatSeconds(now.seconds)}, at ${formatPercent(now.ofPeak)} of the peak rate.`;
  }

  function drawTable({ kernel, size, dtype }, gpu) {
    const cell = (text, role = "cell") => htmlNode("span", { role, text });
    const row = (attributes, cells) => htmlNode("div", { role: "row", class: "rf-row", ...attributes }, ...cells);
    const head = [`at N = ${formatInteger(size)}`, "ops a byte", "at least", "limit"].map((text) => cell(text, "columnheader"));
    table.replaceChildren(row({ "data-head": "" }, head), ...Object.entries(KERNELS).map(([name, { name: text }], index) => {
      const found = limits(workOf({ kernel: name, size, dtype }), gpu, dtype);
      return row({ "data-kernel": name, ...(name === kernel && { "data-now": "" }) }, [cell(`${index + 1} ${text}`),
        ...(found ? [formatNumber(found.intensity), formatSeconds(found.seconds), found.limit] : ["–", "–", "–"])
          .map((words) => cell(words))]);
    }));
  }

  const events = CONTROLS.map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(root, (newWidth) => { width = newWidth; draw(); });
  return () => {
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
