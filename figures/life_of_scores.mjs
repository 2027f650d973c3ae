// The life of S and P. Standard attention runs three kernels, and its two N × N matrices travel
// through HBM between them. One picture: time runs to the right, memory held grows upward.

// ---- the model ----------------------------------------------------------------------------------

const SHAPE = ["sequence_length", "head_dim", "dtype", "batch_heads"];
export const BYTES_PER_ELEMENT = { fp32: 4, fp16: 2, bf16: 2 };

/** What the GPU offers at this dtype, in plain units. A dtype it lacks runs at its fp32 rate. */
export function gpuRates(gpu, dtype) {
  return {
    bytesPerSecond: gpu.bandwidth_tbs * 1e12,
    flopsPerSecond: (gpu.tflops[dtype] ?? gpu.tflops.fp32) * 1e12,
    memory: gpu.memory_gb * 1e9,
  };
}

/** Bytes of each tensor, over all batches and heads. */
export function tensorBytes({ sequence_length: n, head_dim: d, dtype, batch_heads: heads }) {
  const rows = n * d * BYTES_PER_ELEMENT[dtype] * heads;
  const scores = n * n * BYTES_PER_ELEMENT[dtype] * heads;
  return { Q: rows, K: rows, V: rows, O: rows, S: scores, P: scores };
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** One kernel at the roofline: it waits for the slower of its traffic and its arithmetic. */
function kernelCost({ reads, writes, holds, flops, ...names }, bytesOf, rates) {
  const pick = (tensors) => tensors.map((tensor) => ({ tensor, bytes: bytesOf[tensor] }));
  const traffic = pick([...reads, ...writes]);
  const held = pick(holds);
  const bytes = sum(traffic.map((part) => part.bytes));
  const memorySeconds = bytes / rates.bytesPerSecond;
  const computeSeconds = flops / rates.flopsPerSecond;
  return {
    ...names, reads, writes, traffic, held, bytes, flops,
    heldBytes: sum(held.map((part) => part.bytes)),
    intensity: flops / bytes,
    seconds: Math.max(memorySeconds, computeSeconds),
    bound: computeSeconds > memorySeconds ? "compute" : "memory",
  };
}

/** Standard attention and, beside it, one kernel that keeps S and P on the chip. */
export function attentionCost(shape, gpu) {
  const bytesOf = tensorBytes(shape);
  const rates = gpuRates(gpu, shape.dtype);
  const product = 2 * shape.sequence_length ** 2 * shape.head_dim * shape.batch_heads;
  const kernels = [
    { name: "1", formula: "S = scale · QKᵀ", reads: ["Q", "K"], writes: ["S"],
      holds: ["Q", "K", "V", "S"], flops: product },
    { name: "2", formula: "P = softmax(S)", reads: ["S"], writes: ["P"],
      holds: ["Q", "K", "V", "S", "P"], flops: 0 },
    { name: "3", formula: "O = PV", reads: ["P", "V"], writes: ["O"],
      holds: ["Q", "K", "V", "P", "O"], flops: product },
  ].map((kernel) => kernelCost(kernel, bytesOf, rates));
  const onChip = kernelCost(
    { name: "", formula: "One kernel", reads: ["Q", "K", "V"], writes: ["O"],
      holds: ["Q", "K", "V", "O"], flops: 2 * product },
    bytesOf, rates,
  );
  const bytes = sum(kernels.map((kernel) => kernel.bytes));
  const flops = sum(kernels.map((kernel) => kernel.flops));
  const peak = Math.max(...kernels.map((kernel) => kernel.heldBytes));
  const overflow = kernels.find((kernel) => kernel.heldBytes > rates.memory);
  return {
    kernels, onChip, bytes, flops, peak, capacity: rates.memory, intensity: flops / bytes,
    seconds: sum(kernels.map((kernel) => kernel.seconds)),
    scoreFraction: (2 * bytesOf.S + 2 * bytesOf.P) / bytes,
    firstTooLarge: overflow ? overflow.name : null,
  };
}

// ---- the words ----------------------------------------------------------------------------------

function fitSentence({ peak, capacity, firstTooLarge }, gpu) {
  return firstTooLarge
    ? `does not fit: kernel ${firstTooLarge} runs out of the ${gpu.memory_gb} GB of ${gpu.name}`
    : `fits: ${formatPercent(peak / capacity)} of the ${gpu.memory_gb} GB of ${gpu.name}`;
}

/** The whole figure as text, for a screen reader. */
function summary(shape, gpu, cost) {
  const kernels = cost.kernels.map(
    (kernel) =>
      `Kernel ${kernel.name} moves ${formatBytes(kernel.bytes)} in ` +
      `${formatSeconds(kernel.seconds)}, ${kernel.bound}-bound.`,
  );
  return [
    `N = ${formatInteger(shape.sequence_length)}, d = ${shape.head_dim}, ${shape.dtype},`,
    `${shape.batch_heads} heads over the batch, on ${gpu.name} (${gpu.source}).`,
    `Standard attention moves ${formatBytes(cost.bytes)}, ${formatPercent(cost.scoreFraction)} of it`,
    `S and P, and takes ${formatSeconds(cost.seconds)} at the roofline.`,
    ...kernels,
    `It holds up to ${formatBytes(cost.peak)}: it ${fitSentence(cost, gpu)}.`,
    `With S and P on the chip: ${formatBytes(cost.onChip.bytes)},`,
    `${formatSeconds(cost.onChip.seconds)}, ${cost.onChip.bound}-bound.`,
  ].join(" ");
}

function gpuLine(gpu, dtype) {
  const rate = gpu.tflops[dtype];
  const arithmetic = rate
    ? `${rate} TFLOP/s ${dtype}`
    : `no ${dtype} units: ${gpu.tflops.fp32} TFLOP/s fp32`;
  return `${gpu.bandwidth_tbs} TB/s · ${arithmetic}`;
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
.bf .los-tiles { display: grid; gap: 1px; background: var(--bf-line);
  border-bottom: 1px solid var(--bf-line); }
.bf .los-tile { background: var(--bf-paper); padding: 12px 16px; }
.bf .los-value { font-size: 26px; line-height: 1.2; font-weight: 700; letter-spacing: -.01em; }
.bf .los-tile .bf-muted > * { white-space: nowrap; }
.bf .los-instead::before { content: ""; display: inline-block; width: 9px; height: 9px;
  margin-right: 6px; border: 2px solid var(--bf-sram); border-radius: 2px; }
@container (min-width: 560px) {
  .bf .los-rates { align-self: end; line-height: 32px; }
  .bf .los-tiles { grid-template-columns: repeat(3, 1fr); }
}
@container (max-width: 559.9px) {
  .bf .los-tile { display: grid; grid-template-columns: 6.4rem 1fr; gap: 0 12px;
    align-items: center; padding: 8px 16px; }
  .bf .los-value { font-size: 21px; }
}
.bf .los-stage { padding: 14px 16px 6px; }
.bf .los-heading { display: flex; flex-wrap: wrap; justify-content: space-between;
  align-items: center; gap: 4px 12px; min-height: 26px; margin-bottom: 8px; font-size: 13px;
  font-weight: 650; }
@container (max-width: 559.9px) {
  .bf .los-heading { flex-direction: column; align-items: flex-start; }
}
.bf .los-stage svg { width: 100%; overflow: visible; }
.bf .los-tensor { stroke: var(--bf-paper); stroke-width: 1; }
.bf .los-axis { stroke: var(--bf-line); }
.bf .los-letter { font-size: 14px; font-weight: 700; }
.bf .los-tag { fill: var(--bf-paper); }
.bf .los-halo { paint-order: stroke; stroke: var(--bf-paper); stroke-width: 4px;
  stroke-linejoin: round; }
.bf .los-kernel rect { fill: var(--bf-wash); stroke: var(--bf-line); }
.bf .los-kernel text { font-weight: 600; }
.bf .los-kernel[data-fits="no"] rect { stroke: var(--bf-danger);
  fill: color-mix(in srgb, var(--bf-danger) 14%, var(--bf-paper)); }
.bf .los-capacity { stroke: var(--bf-danger); stroke-width: 2; stroke-dasharray: 7 4; }
.bf .los-over { fill: color-mix(in srgb, var(--bf-danger) 30%, var(--bf-paper)); opacity: .72; }
.bf .los-chip { fill: color-mix(in srgb, var(--bf-sram) 18%, var(--bf-paper));
  stroke: var(--bf-sram); stroke-width: 2; }
.bf .los-ghost { fill: none; stroke: var(--bf-sram); stroke-width: 2; stroke-dasharray: 4 3; }
.bf .los-index { color: var(--bf-muted); font-weight: 600; margin-right: 7px; }
.bf .los-table { padding: 4px 16px 12px; font-size: 13px; }
.bf .los-row { display: grid; align-items: center; gap: 2px 12px; padding: 7px 0;
  border-top: 1px solid var(--bf-line);
  grid-template-columns: 8.6rem minmax(5rem, 1fr) 4.4rem 5.6rem 3.8rem 6.6rem; }
.bf .los-row > * { min-width: 0; }
.bf .los-row:first-child { border-top: 0; padding-bottom: 3px; }
.bf .los-row [data-number] { text-align: right; white-space: nowrap; }
.bf .los-row small { display: block; font-size: 11.5px; color: var(--bf-muted); }
.bf .los-row svg { width: 100%; height: 22px; overflow: visible; }
.bf .los-row[data-kind="sum"] { border-top-color: var(--bf-ink); }
.bf .los-row[data-kind="sum"] .los-formula, .bf .los-row[data-kind="chip"] .los-formula,
.bf .los-row:is([data-kind="sum"], [data-kind="chip"]) b { font-weight: 700; }
.bf .los-row b { font-weight: 500; }
.bf .los-short { display: none; }
@container (max-width: 639.9px) {
  .bf .los-row { grid-template-columns: repeat(4, auto); padding: 9px 0; }
  .bf .los-row:first-child { display: none; }
  .bf .los-row > :first-child { grid-column: 1 / 3; }
  .bf .los-row > :nth-child(2) { grid-column: 1 / 5; grid-row: 2; }
  .bf .los-row > :last-child { grid-column: 3 / 5; grid-row: 1; }
  .bf .los-row > :nth-child(3) { text-align: left; }
  .bf .los-row > :nth-child(4) { grid-column: 2 / 4; text-align: center; }
  .bf .los-short { display: inline; }
}
`;

const CHART = { left: 58, right: 4, header: 26, memory: 200, axis: 22, chip: 42 };
CHART.height = CHART.header + 8 + CHART.memory + CHART.axis + CHART.chip;
CHART.floor = CHART.header + 8 + CHART.memory;

// ---- the timeline -------------------------------------------------------------------------------

/** Where each tensor lies: one slab per kernel it lives through, stacked in the order held. */
function slabs(cost) {
  let start = 0;
  return cost.kernels.flatMap((kernel) => {
    let bottom = 0;
    const from = start;
    start += kernel.seconds;
    return kernel.held.map(({ tensor, bytes }) => {
      const slab = { kernel: kernel.name, tensor, bytes, from, to: start, bottom };
      bottom += bytes;
      return slab;
    });
  });
}

function timeline(id) {
  const svg = svgNode("svg", { height: CHART.height, "aria-hidden": "true" }, tensorPatterns(id));
  const grid = svgNode("g");
  const labels = svgNode("g");
  const rect = (attributes) => svg.appendChild(svgNode("rect", attributes));
  svg.append(grid);
  const slabRects = Array.from({ length: 14 }, () => rect({ class: "los-tensor" }));
  const over = [0, 1, 2].map(() => rect({ class: "los-over" }));
  const ghost = rect({ class: "los-ghost" });
  const chipBar = rect({ class: "los-chip", "data-name": "on-chip" });
  const capacity = svg.appendChild(svgNode("line", { class: "los-capacity" }));
  svg.append(labels);

  function draw(cost, gpu, width) {
    const right = Math.max(CHART.left + 120, width - CHART.right);
    const x = (seconds) => CHART.left + ((right - CHART.left) * seconds) / cost.seconds;
    // The capacity line comes into view once half of it is used; before that it would only flatten
    // the picture.
    const showCapacity = cost.peak > cost.capacity / 2;
    const top = 1.12 * (showCapacity ? Math.max(cost.peak, cost.capacity) : cost.peak);
    const y = (bytes) => CHART.floor - (CHART.memory * bytes) / top;
    const text = (attributes, words) => labels.append(svgNode("text", { ...attributes, text: words }));

    grid.replaceChildren();
    labels.replaceChildren();
    for (const value of ticks(top, 4)) {
      grid.append(svgNode("line", {
        class: "los-axis", x1: CHART.left, x2: right, y1: y(value), y2: y(value),
      }));
      text({ class: "bf-muted", x: CHART.left - 6, y: y(value) + 4, "text-anchor": "end" },
        tickText(value, formatBytes));
    }
    for (const value of ticks(cost.seconds, width < 480 ? 2 : 4)) {
      const anchor = value === 0 ? "start" : x(value) > right - 30 ? "end" : "middle";
      text({ class: "bf-muted", x: x(value), y: CHART.floor + 16, "text-anchor": anchor },
        tickText(value, formatSeconds));
    }

    slabs(cost).forEach((slab, index) => {
      const box = {
        x: x(slab.from), width: x(slab.to) - x(slab.from),
        y: y(slab.bottom + slab.bytes), height: y(slab.bottom) - y(slab.bottom + slab.bytes),
      };
      setAttributes(slabRects[index], {
        ...box, "data-tensor": slab.tensor, "data-kernel": slab.kernel, "data-bytes": slab.bytes,
        style: `fill: ${tensorFill(id, slab.tensor)}; stroke-width: ${box.height > 6 ? 1 : 0}`,
      });
      if (box.height > 26 && box.width > 26) {
        const [middle, centre] = [box.x + box.width / 2, box.y + box.height / 2];
        labels.append(svgNode("circle", { class: "los-tag", cx: middle, cy: centre, r: 11 }));
        text({ class: "los-letter", x: middle, y: centre + 5, "text-anchor": "middle" }, slab.tensor);
      }
    });

    let start = 0;
    cost.kernels.forEach((kernel, index) => {
      const box = { x: x(start) + 1, width: x(start + kernel.seconds) - x(start) - 2 };
      start += kernel.seconds;
      const fits = kernel.heldBytes <= cost.capacity;
      const words = box.width > 125 ? `${kernel.name}: ${kernel.formula}` : kernel.name;
      labels.append(svgNode("g", { class: "los-kernel", "data-fits": fits ? "yes" : "no" },
        svgNode("rect", { ...box, y: 0, height: CHART.header - 4, rx: 5 }),
        svgNode("text", { x: box.x + box.width / 2, y: 15, "text-anchor": "middle",
          text: fits ? words : `${words} ✕` }),
      ));
      setAttributes(over[index], {
        ...box, y: y(kernel.heldBytes), height: fits ? 0 : y(cost.capacity) - y(kernel.heldBytes),
      });
    });

    const line = showCapacity ? y(cost.capacity) : CHART.header + 8;
    setAttributes(capacity, {
      x1: CHART.left, x2: right, y1: line, y2: line, visibility: showCapacity ? "visible" : "hidden",
    });
    text({ class: "los-halo", x: right - 4, y: showCapacity ? line - 6 : line + 8, "text-anchor": "end" },
      showCapacity
        ? `${gpu.name}: ${gpu.memory_gb} GB`
        : `↑ ${gpu.memory_gb} GB of ${gpu.name}: ${formatNumber(cost.capacity / cost.peak)}× this peak`);

    const chipWidth = Math.max(2, x(cost.onChip.seconds) - CHART.left);
    const chipTop = y(cost.onChip.heldBytes);
    setAttributes(ghost, {
      x: CHART.left, width: chipWidth, y: Math.min(chipTop, CHART.floor - 2),
      height: Math.max(2, CHART.floor - chipTop),
    });
    const lane = CHART.floor + CHART.axis + 14;
    text({ x: CHART.left, y: lane, style: "font-weight: 650" },
      `${width < 480 ? "On" : "S and P kept on"} the chip: ${formatSeconds(cost.onChip.seconds)}, ` +
      `${formatNumber(cost.seconds / cost.onChip.seconds)}× faster`);
    setAttributes(chipBar, { x: CHART.left, width: chipWidth, y: lane + 7, height: 14, rx: 3 });
  }
  return { svg, draw };
}

/** Ticks are round: "200 MB", not "200. MB" or "2.00e2 MB". */
function tickText(value, format) {
  const [digits, unit] = format(value).split(" ");
  return digits.includes(".") ? `${Number(digits)} ${unit}` : `${digits} ${unit}`;
}

// ---- the table ----------------------------------------------------------------------------------

const COLUMNS = ["Kernel", "HBM traffic", "moved", "arithmetic", "FLOP/B", "time"];

function table(id) {
  const node = htmlNode("div", { class: "los-table", role: "table", "aria-label": "Cost of each kernel" });
  node.append(htmlNode("div", { class: "los-row bf-muted", role: "row" },
    ...COLUMNS.map((text, index) =>
      htmlNode("span", { role: "columnheader", text, ...(index > 1 && { "data-number": "" }) }))));
  const rows = ["1", "2", "3", "sum", "chip"].map((kind) => {
    const formula = htmlNode("span", { class: "los-formula" });
    const detail = htmlNode("small");
    const bar = svgNode("svg", { "aria-hidden": "true" });
    const rects = Array.from({ length: 8 }, () => bar.appendChild(svgNode("rect", { y: 0, height: 22 })));
    const frame = bar.appendChild(svgNode("rect", { y: 0, height: 22 }));
    const number = () => htmlNode("span", { role: "cell", "data-number": "" });
    const [moved, flops, intensity, seconds] = [number(), number(), number(), number()];
    node.append(htmlNode("div", { class: "los-row", role: "row", "data-kind": kind },
      htmlNode("span", { role: "rowheader" }, formula, detail),
      htmlNode("span", { role: "cell" }, bar), moved, flops, intensity, seconds));
    return { kind, formula, detail, rects, frame, moved, flops, intensity, seconds };
  });

  function drawRow(row, cost, total, offset) {
    const index = htmlNode("span", { class: "los-index", text: cost.name });
    row.formula.replaceChildren(...(cost.name ? [index] : []), cost.formula);
    row.detail.textContent = cost.detail;
    row.moved.textContent = formatBytes(cost.bytes);
    row.moved.dataset.number = cost.bytes;
    row.flops.textContent = cost.flops ? formatFlops(cost.flops) : "–";
    row.flops.dataset.number = cost.flops;
    const unit = htmlNode("span", { class: "los-short", text: " FLOP/B" });
    row.intensity.replaceChildren(...(cost.flops ? [formatNumber(cost.intensity), unit] : ["–"]));
    row.intensity.dataset.number = cost.intensity;
    row.seconds.replaceChildren(htmlNode("b", { text: formatSeconds(cost.seconds) }),
      htmlNode("small", { text: cost.bound ? `${cost.bound}-bound` : "in a row" }));
    row.seconds.dataset.number = cost.seconds;
    let start = offset;
    row.rects.forEach((rect, index) => {
      const part = cost.traffic[index];
      const share = part ? part.bytes / total : 0;
      setAttributes(rect, {
        x: `${100 * start}%`, width: `${100 * share}%`,
        style: `fill: ${part ? tensorFill(id, part.tensor) : "none"}`,
      });
      start += share;
    });
    setAttributes(row.frame, {
      x: `${100 * offset}%`, width: `${100 * (start - offset)}%`,
      style: `fill: none; stroke: var(${row.kind === "chip" ? "--bf-sram" : "--bf-hbm"}); ` +
        `stroke-width: ${row.kind === "chip" ? 2 : 1}`,
    });
  }

  function draw(cost) {
    let offset = 0;
    cost.kernels.forEach((kernel, index) => {
      const detail = `reads ${kernel.reads.join(", ")} · writes ${kernel.writes.join(", ")}`;
      drawRow(rows[index], { ...kernel, detail }, cost.bytes, offset);
      offset += kernel.bytes / cost.bytes;
    });
    const traffic = cost.kernels.flatMap((kernel) => kernel.traffic);
    drawRow(rows[3], { ...cost, traffic, formula: "Three kernels", detail: "S and P through HBM" },
      cost.bytes, 0);
    drawRow(rows[4], { ...cost.onChip, detail: "S and P on the chip" }, cost.bytes, 0);
  }
  return { node, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

/** One large number with two lines of words; the second is about S and P staying on the chip. */
function tile(name) {
  const value = htmlNode("div", { class: "los-value", "data-name": name });
  const words = htmlNode("div");
  const second = htmlNode("div", { class: name === "score-fraction" ? "" : "los-instead" });
  const draw = (...texts) =>
    [value, words, second].forEach((node, index) => { node.textContent = texts[index]; });
  const text = htmlNode("div", { class: "bf-muted" }, words, second);
  return { node: htmlNode("div", { class: "los-tile" }, value, text), draw };
}

/** What each fill stands for. */
function keys(id) {
  const hbm = "stroke: var(--bf-hbm)";
  return swatches({
    "Q, K, V, O in HBM": `fill: ${tensorFill(id, "Q")}; ${hbm}`,
    "S in HBM": `fill: ${tensorFill(id, "S")}; ${hbm}`,
    "P in HBM": `fill: ${tensorFill(id, "P")}; ${hbm}`,
    "S and P stay on the chip": "fill: none; stroke: var(--bf-sram); stroke-width: 2",
  });
}

function render({ model, el }) {
  const id = uniqueId("life-of-scores");
  const root = figureFrame(el, "The life of S and P in standard attention", CSS);
  const gpus = model.get("gpus");
  const control = (make, key, label, values, show) => make({ id, model, key, label, values, show });
  const powers = (low, high) => Array.from({ length: high - low + 1 }, (_, index) => 2 ** (low + index));
  const controls = [
    control(slider, "sequence_length", "Sequence length N", powers(7, 17)),
    control(slider, "batch_heads", "Batch × heads", powers(0, 9)),
    control(choice, "head_dim", "Head dimension d", [16, 32, 64, 128, 256]),
    control(choice, "dtype", "Data type", ["fp32", "fp16", "bf16"]),
    control(select, "gpu", "GPU", gpus.map(({ name, source }) => ({ value: name, text: `${name} (${source})` }))),
  ];
  const rates = htmlNode("p", { class: "bf-muted los-rates" });
  const tiles = ["score-fraction", "peak", "seconds"].map(tile);
  const pill = htmlNode("span", { class: "bf-pill" });
  const { svg, draw: drawTimeline } = timeline(id);
  const { node: tableNode, draw: drawTable } = table(id);
  const status = htmlNode("p", { class: "bf-hidden", role: "status" });
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "The life of S and P" }),
      htmlNode("span", { class: "bf-muted", text: "standard attention, forward, N × N scores in HBM" })),
    htmlNode("div", { class: "bf-controls" }, ...controls.map(({ node }) => node), rates),
    htmlNode("div", { class: "los-tiles" }, ...tiles.map(({ node }) => node)),
    htmlNode("div", { class: "los-stage" },
      htmlNode("div", { class: "los-heading" }, htmlNode("span", { text: "Memory held, over time" }), pill),
      svg),
    tableNode,
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id),
      htmlNode("p", { text: "Each kernel takes the longer of bytes ÷ bandwidth and FLOPs ÷ peak rate. " +
        "Only the two matrix products are counted as arithmetic; launches cost nothing here. " +
        "S is freed once P is complete. 1 kB is 1000 bytes." })),
    status,
  );

  let width = 0;
  function draw() {
    const shape = Object.fromEntries(SHAPE.map((key) => [key, model.get(key)]));
    const gpu = gpus.find(({ name }) => name === model.get("gpu"));
    const cost = attentionCost(shape, gpu);
    controls.forEach(({ refresh }) => refresh());
    rates.textContent = gpuLine(gpu, shape.dtype);
    tiles[0].draw(formatPercent(cost.scoreFraction), "of the bytes moved are S and P",
      `${formatBytes(cost.scoreFraction * cost.bytes)} of ${formatBytes(cost.bytes)}`);
    tiles[1].draw(formatBytes(cost.peak), "of memory at the peak",
      `${formatBytes(cost.onChip.heldBytes)} if they stay on chip`);
    tiles[2].draw(formatSeconds(cost.seconds), "at the roofline",
      `${formatSeconds(cost.onChip.seconds)} if they stay on chip`);
    pill.textContent = cost.firstTooLarge ? `does not fit in ${gpu.memory_gb} GB` : `fits in ${gpu.memory_gb} GB`;
    pill.dataset.fits = cost.firstTooLarge ? "no" : "yes";
    drawTable(cost);
    if (width) drawTimeline(cost, gpu, width);
    status.textContent = summary(shape, gpu, cost);
  }

  const events = [...SHAPE, "gpu"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stop = onWidth(svg, (newWidth) => { width = newWidth; draw(); });
  return () => {
    stop();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
