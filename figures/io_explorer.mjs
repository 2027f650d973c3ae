// The IO explorer. Four ways to compute attention for one head: the bytes each asks of HBM, its
// arithmetic, and which of the two a GPU waits for.

// ---- the model ----------------------------------------------------------------------------------

const ELEMENT_BYTES = { fp32: 4, fp16: 2, bf16: 2 };
const STATISTIC_BYTES = 4;
const ACCUMULATOR_BYTES = 4;
const TENSORS = ["Q", "K", "V", "S", "P", "O", "statistics"];

export const SEQUENCE_LENGTHS = Array.from({ length: 11 }, (_, index) => 2 ** (7 + index));
export const SRAM_KIB = [16, 20, 24, 32, 40, 48, 64, 80, 100, 128, 164, 196, 228];
const BLOCKS = [16, 32, 64, 128, 256];
const VISIBLE = Array.from({ length: 7 }, (_, index) => 0.5 ** index);

/** The tiles, and M, the numbers that fit into the SRAM of one program: by Algorithm 1's rule from
 * the SRAM's size, or the other way around. */
export function tileSizes({ tiles, sram_kib, block_m, block_n, head_dim: d, dtype }) {
  const element = ELEMENT_BYTES[dtype];
  if (tiles === "chosen") {
    const numbers = 2 * (block_m + block_n) * d; // Q, O and K, V
    return { blockM: block_m, blockN: block_n, numbers, bytes: numbers * element };
  }
  const bytes = 1024 * sram_kib;
  const numbers = bytes / element;
  const blockN = Math.ceil(numbers / (4 * d));
  return { blockM: Math.min(blockN, d), blockN, numbers, bytes };
}

/** Bytes each algorithm asks of HBM, by tensor, and its FLOPs; exact. `rounds` is how often the
 * inner loop comes back for what the outer loop does not keep. */
export function ioModel(options) {
  const { sequence_length: n, head_dim: d, dtype, visible } = options;
  const tile = tileSizes(options);
  const rows = n * d * ELEMENT_BYTES[dtype];
  const square = n * n * ELEMENT_BYTES[dtype];
  const statistics = n * STATISTIC_BYTES;
  const accumulator = n * d * ACCUMULATOR_BYTES;
  const keyTiles = Math.ceil(n / tile.blockN);
  const queryTiles = Math.ceil(n / tile.blockM);
  const flops = 4 * n * n * d;

  function algorithm(name, work, parts, rounds) {
    const bytes = Object.values(parts).reduce((total, part) => total + part, 0);
    return { name, flops: work, parts, bytes, rounds, intensity: work / bytes };
  }
  const ownsRows = (fraction) => {
    const keys = queryTiles * rows * fraction;
    return { Q: rows, K: keys, V: keys, O: rows, statistics };
  };
  // Partial outputs and two statistics are loaded in every round and stored in all but the last,
  // which stores the output and the logsumexp.
  const again = 2 * keyTiles - 1;
  return {
    tile, minimum: 4 * rows, flops,
    withinTheorem: d <= tile.numbers && tile.numbers <= n * d,
    comesBackFor: { printed: rows + accumulator + 2 * statistics, swapped: 2 * rows },
    algorithms: [
      algorithm("standard", flops,
        { Q: rows, K: rows, V: rows, S: 2 * square, P: 2 * square, O: rows, statistics }, 1),
      algorithm("printed", flops,
        { Q: keyTiles * rows, K: rows, V: rows, O: again * accumulator + rows,
          statistics: (2 * again + 1) * statistics }, keyTiles),
      algorithm("swapped", flops, ownsRows(1), queryTiles),
      algorithm("sparse", visible * flops, ownsRows(visible), visible * queryTiles),
    ],
  };
}

/** What the GPU offers at this dtype, in plain units. A dtype it lacks runs at its fp32 rate. */
export function ceilings(gpu, dtype) {
  const bytesPerSecond = gpu.bandwidth_tbs * 1e12;
  const flopsPerSecond = (gpu.tflops[dtype] ?? gpu.tflops.fp32) * 1e12;
  return { bytesPerSecond, flopsPerSecond, ridge: flopsPerSecond / bytesPerSecond };
}

export const attainable = (intensity, { bytesPerSecond, flopsPerSecond }) =>
  Math.min(flopsPerSecond, intensity * bytesPerSecond);

export const limit = (intensity, { ridge }) => (intensity > ridge ? "compute" : "memory");

/** For each algorithm the least of `values` of one option from which on arithmetic is the limit;
 * null if it is not even at the largest. */
export function computeBoundFrom(options, key, values, rates) {
  const bound = values.map((value) =>
    ioModel({ ...options, [key]: value }).algorithms.map(({ intensity }) => limit(intensity, rates)));
  return bound[0].map((_, index) =>
    values[bound.findLastIndex((limits) => limits[index] === "memory") + 1] ?? null);
}

// ---- the words ----------------------------------------------------------------------------------

const ALGORITHMS = {
  standard: { title: "Standard", label: "standard", theta: "Θ(Nd + N²)" },
  printed: { title: "Printed: keys outer", label: "printed", theta: "Θ(N²d² / M)" },
  swapped: { title: "Swapped: queries outer", label: "swapped", theta: "Θ(N²d² / M)" },
  sparse: { title: "Block-sparse", label: "sparse", theta: "Θ(Nd + N²d²s / M)" },
};

const showFraction = (fraction) => (fraction === 1 ? "1: all of them" : `1/${1 / fraction}`);

/** What an algorithm comes back for, and how often. */
function roundsText({ name, rounds }) {
  if (name === "standard") return "S and P: written, read";
  const times = `${Number.isInteger(rounds) ? formatInteger(rounds) : formatNumber(rounds)}×`;
  if (name === "printed") return `Q, O again: ⌈N/B_c⌉ = ${times}`;
  return `K, V again: ${name === "sparse" ? "s" : ""}⌈N/B_r⌉ = ${times}`;
}

/** From which N, and from which M, arithmetic is the limit: words that may stand on two lines. */
function thresholdText(name, thresholds) {
  const one = (letter, least, smallest, unit) => {
    if (least === null) return `no ${letter}`;
    return least === smallest ? `any ${letter}` : `${letter} ≥ ${formatInteger(least)}${unit}`;
  };
  const byLength = one("N", thresholds.n, SEQUENCE_LENGTHS[0], "");
  if (name === "standard" || thresholds.m === undefined) return [`(${byLength})`];
  return [`(${byLength},`, `${one("M", thresholds.m, SRAM_KIB[0], " KiB")})`];
}

/** What there is to say about M and the tiles, most important first. */
function notices(options, { tile, withinTheorem }, gpu) {
  const { sequence_length: n, head_dim: d, tiles } = options;
  const said = [];
  if (tiles === "chosen") {
    said.push(`Tiles of Q, O, K and V need M = 2(B_r + B_c)d = ${formatInteger(tile.numbers)} numbers, ` +
      `${formatNumber(tile.bytes / 1024)} KiB.`);
  }
  if (!withinTheorem) {
    const amount = tiles === "chosen" ? "M" : `M = ${formatInteger(tile.numbers)} numbers`;
    said.push(`${amount} is more than Nd = ${formatInteger(n * d)}: outside d ≤ M ≤ Nd, where the ` +
      "theorem holds.");
  }
  if (tile.bytes > 1024 * (gpu.sram_kib ?? Infinity)) {
    said.push(`${gpu.name} has ${gpu.sram_kib} KiB of SRAM a multiprocessor: these tiles do not fit.`);
  }
  if (withinTheorem && tiles === "rule") {
    said.push(tile.blockM < tile.blockN
      ? `d ≤ M ≤ Nd holds, but B_r stops at d = ${d}, and the swapped loops live by B_r: from here more ` +
        "SRAM helps only the printed order. Choose tall tiles by hand to see what they gain."
      : "d ≤ M ≤ Nd holds: Θ(N²d² / M) accesses suffice (Theorem 2), and no exact algorithm does " +
        "better for every such M (Proposition 3).");
  }
  return said.join(" ");
}

/** Sets a node's text; the letter after an underscore hangs below the line. */
function setSubscripted(node, text) {
  node.replaceChildren(...text.split(/_(\w)/).map((part, index) =>
    (index % 2 ? htmlNode("sub", { text: part }) : part)));
  return node;
}

const listed = (words) =>
  words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;

function ratioText(standard, bytes) {
  const less = standard / bytes;
  return less >= 1 ? `${formatNumber(less)}× fewer` : `${formatNumber(1 / less)}× more`;
}

/** The figure in a few sentences. */
function summary(visible, gpu, model, rates) {
  const [standard, ...others] = model.algorithms;
  const [printed, swapped, sparse] = others.map(({ bytes }) => ratioText(standard.bytes, bytes));
  const limitedBy = (what) => model.algorithms
    .filter(({ intensity }) => limit(intensity, rates) === what)
    .map(({ name }) => ALGORITHMS[name].label);
  const [memory, compute] = [limitedBy("memory"), limitedBy("compute")];
  const limits = [
    memory.length && `memory limits ${memory.length === 4 ? "all four" : listed(memory)}`,
    compute.length && `arithmetic limits ${compute.length === 4 ? "all four" : listed(compute)}`,
  ].filter(Boolean).join("; ");
  return `Against standard attention, FlashAttention asks HBM for ${printed} bytes as printed, ` +
    `${swapped} with its loops swapped, and ${sparse} block-sparse ` +
    `(${visible === 1 ? "all" : showFraction(visible)} of the blocks). ` +
    `On ${gpu.name}, if HBM answered every request, ${limits}.`;
}

function cacheText(model, gpu) {
  const { printed, swapped } = model.comesBackFor;
  const holds = gpu.l2_mib
    ? `the last cache of ${gpu.name} before HBM holds ${formatBytes(gpu.l2_mib * 2 ** 20)}`
    : "compare with the last cache before HBM";
  return "These are the bytes asked for: an upper bound on what crosses to HBM, for a cache between " +
    `may still hold what a loop comes back for. Of one head that is ${formatBytes(printed)} as printed ` +
    `(Q, O, statistics) and ${formatBytes(swapped)} with the loops swapped (K, V); ${holds}.`;
}

function gpuText(gpu, dtype, { ridge }) {
  const rate = gpu.tflops[dtype];
  const arithmetic = rate ? `${rate} TFLOP/s ${dtype}` : `no ${dtype} units: ${gpu.tflops.fp32} TFLOP/s fp32`;
  return `${gpu.bandwidth_tbs} TB/s · ${arithmetic} · ridge at ${formatNumber(ridge)} FLOP/B`;
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
.bf .io-pair { display: grid; gap: 12px 28px; grid-column: 1 / -1; }
.bf .io-pair > * { min-height: 48px; }
.bf .io-pair [hidden] { display: none; }
.bf .io-sizes { font-size: 13px; align-content: end; display: grid; }
.bf .io-sizes > span { display: flex; justify-content: space-between; gap: 8px; white-space: nowrap; }
.bf p.io-notice { grid-column: 1 / -1; font-size: 13px; }
.bf .io-notice[data-within="no"] { color: color-mix(in srgb, var(--bf-danger) 78%, var(--bf-ink)); }
.bf p.io-summary { padding: 12px 16px; font-size: 15px; box-sizing: content-box;
  border-bottom: 1px solid var(--bf-line); }
.bf .io-table { padding: 10px 16px 8px; font-size: 13px; }
.bf .io-row { display: grid; align-items: center; gap: 2px 14px; padding: 8px 0;
  border-top: 1px solid var(--bf-line);
  grid-template-columns: 12.4rem minmax(6rem, 1fr) 5.2rem 3.2rem 6.2rem; }
.bf .io-row > * { min-width: 0; }
.bf .io-row:first-child { border-top: 0; padding: 0 0 2px; align-items: end; }
.bf .io-row svg { width: 100%; overflow: visible; }
.bf .io-name { display: grid; grid-template-columns: 20px 1fr; }
.bf .io-name svg { width: 14px; margin-top: 2px; }
.bf .io-name b, .bf .io-number b { font-weight: 650; white-space: nowrap; }
.bf .io-name small, .bf .io-number small { display: block; font-size: 12px; color: var(--bf-muted);
  white-space: nowrap; }
.bf .io-name > * { grid-column: 2; }
.bf .io-name > svg { grid-column: 1; }
.bf .io-number { text-align: right; white-space: nowrap; }
.bf .io-limit { text-align: left; }
.bf .io-limit small { white-space: normal; }
.bf .io-limit small span { white-space: nowrap; }
.bf .io-limit[data-limit="compute"] b { color: color-mix(in srgb, var(--bf-sram) 78%, var(--bf-ink)); }
.bf .io-unit { display: none; font-weight: 400; }
.bf .io-part { stroke: var(--bf-paper); stroke-width: 1; }
.bf .io-frame { fill: none; stroke: var(--bf-hbm); }
.bf .io-letter { font-size: 12px; font-weight: 700; }
.bf .io-tag { fill: var(--bf-paper); }
.bf .io-grid { stroke: var(--bf-line); }
.bf .io-minimum { stroke: var(--bf-ink); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; }
.bf .io-stage { padding: 12px 16px 8px; border-top: 1px solid var(--bf-line); }
.bf .io-heading { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: baseline;
  align-content: start; font-size: 13px; }
.bf .io-heading strong { font-weight: 650; }
.bf .io-stage svg { width: 100%; overflow: visible; }
.bf .io-roof { fill: none; stroke: var(--bf-ink); stroke-width: 2; stroke-linejoin: round; }
.bf .io-side { fill: color-mix(in srgb, var(--bf-sram) 9%, var(--bf-paper)); }
.bf .io-ridge { stroke: var(--bf-sram); stroke-width: 1.5; }
.bf .io-leader { stroke: var(--bf-muted); }
.bf .io-curve { fill: none; stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .io-here { stroke: var(--bf-accent); stroke-width: 1.5; }
.bf .io-mark { fill: var(--bf-ink); stroke: var(--bf-paper); stroke-width: 1.5; }
.bf .io-mark[data-mark="sparse"] { fill: none; stroke: var(--bf-ink); stroke-width: 1.8; }
.bf .io-mark[data-mark="once"] { fill: var(--bf-paper); stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .io-label { font-weight: 650; }
.bf .io-halo { paint-order: stroke; stroke: var(--bf-paper); stroke-width: 4px; stroke-linejoin: round; }
.bf sub { line-height: 0; font-size: .8em; }
.bf .bf-notes p + p { margin-top: 6px; }
@container (min-width: 560px) {
  .bf .io-pair { grid-template-columns: 1fr 1fr; }
}
@container (max-width: 719.9px) {
  .bf .io-row { grid-template-columns: 1fr auto 5.2rem; gap: 8px 10px; padding: 10px 0; }
  .bf .io-row:first-child > :not(:nth-child(2)) { display: none; }
  .bf .io-row > :nth-child(2) { grid-column: 1 / -1; grid-row: 2; }
  .bf .io-row > :first-child { grid-column: 1 / 3; grid-row: 1; }
  .bf .io-row > :nth-child(3) { grid-column: 3; grid-row: 1; }
  .bf .io-row > :nth-child(4) { grid-column: 2 / 4; grid-row: 3; }
  .bf .io-row > :nth-child(5) { grid-column: 1; grid-row: 3; white-space: nowrap; }
  .bf .io-number.io-limit small { display: inline; margin-left: 6px; }
  .bf .io-unit { display: inline; }
}
@container (max-width: 479.9px) { .bf p.io-summary { font-size: 14px; } }
`;

// Room for the longest that each text becomes, in lines, by the figure's width: nothing below may
// move when the words change.
const PARAGRAPHS = ["p.io-notice", "p.io-summary", "p.io-cache", "p.io-sources", ".io-heading"];
const ROOM = [
  [0, 6, 9, 7, 5, 3], [320, 6, 7, 6, 5, 3], [400, 4, 6, 5, 4, 2], [478, 4, 5, 4, 3, 2],
  [558, 3, 4, 3, 3, 1], [640, 3, 4, 3, 2, 1], [800, 2, 3, 3, 2, 1], [930, 2, 3, 2, 2, 1],
];
const ROOM_CSS = ROOM.map(([width, ...lines]) => {
  const rules = lines.map((count, index) =>
    `.bf ${PARAGRAPHS[index]} { min-height: ${(1.4 * count).toFixed(1)}em; }`);
  return `@container (min-width: ${width}px) { ${rules.join(" ")} }`;
}).join("\n");

const MARKS = {
  standard: "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
  printed: "M-4.5 -4.5h9v9h-9z",
  swapped: "M0 -5.5L5.5 4.5H-5.5z",
  sparse: "M0 -7.5L7.5 0L0 7.5L-7.5 0z",
  once: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
};
const DASHES = { standard: "none", printed: "7 3", swapped: "none", sparse: "2 3" };

const mark = (name, x, y) =>
  svgNode("path", { class: "io-mark", "data-mark": name, d: MARKS[name], transform: `translate(${x} ${y})` });

// ---- the bars -----------------------------------------------------------------------------------

const BAR = { height: 24, axis: 34 };

/** The decades that hold every bar and start at least a factor of two below the minimum. */
export function byteDecades({ minimum, algorithms }) {
  const largest = Math.max(...algorithms.map(({ bytes }) => bytes));
  return [Math.floor(Math.log10(minimum / 2)), Math.ceil(Math.log10(largest))];
}

function bars(id) {
  const node = htmlNode("div", {
    class: "io-table", role: "table", "aria-label": "Bytes and limits of each algorithm",
  });
  const axis = svgNode("svg", { height: BAR.axis, "aria-hidden": "true" });
  const head = (...children) => htmlNode("span", { role: "columnheader", class: "io-number" }, ...children);
  node.append(htmlNode("div", { class: "io-row bf-muted", role: "row" },
    htmlNode("span", { role: "columnheader", text: "Algorithm" }),
    htmlNode("span", { role: "columnheader" },
      htmlNode("span", { class: "bf-hidden", text: "By tensor" }), axis),
    head("asked of HBM"), head("FLOP/B"), htmlNode("span", { role: "columnheader", text: "limited by" })));
  const rows = Object.entries(ALGORITHMS).map(([name, { title, theta }]) => {
    const small = () => htmlNode("small");
    const bold = () => htmlNode("b");
    const row = {
      svg: svgNode("svg", { height: BAR.height, "aria-hidden": "true" }),
      words: htmlNode("span", { class: "bf-hidden" }),
      rounds: small(), bytes: bold(), ratio: small(), intensity: bold(), limit: bold(), threshold: small(),
    };
    row.limitCell = htmlNode("span", { role: "cell", class: "io-number io-limit" }, row.limit, row.threshold);
    row.node = htmlNode("div", { class: "io-row", role: "row", "data-algorithm": name },
      htmlNode("span", { role: "rowheader", class: "io-name" },
        svgNode("svg", { width: 14, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
          mark(name, 0, 0)),
        htmlNode("b", { text: title }), htmlNode("small", { class: "io-theta", text: theta }), row.rounds),
      htmlNode("span", { role: "cell" }, row.svg, row.words),
      htmlNode("span", { role: "cell", class: "io-number" }, row.bytes, row.ratio),
      htmlNode("span", { role: "cell", class: "io-number" }, row.intensity,
        htmlNode("span", { class: "io-unit", text: " FLOP/B" })),
      row.limitCell);
    node.append(row.node);
    return [name, row];
  });
  const rowOf = Object.fromEntries(rows);

  function drawWords(model, rates, thresholds) {
    const [standard] = model.algorithms;
    model.algorithms.forEach((algorithm, index) => {
      const { name, bytes, parts, intensity } = algorithm;
      const row = rowOf[name];
      const bound = limit(intensity, rates);
      setSubscripted(row.rounds, roundsText(algorithm));
      row.bytes.textContent = formatBytes(bytes);
      row.node.dataset.bytes = bytes;
      row.node.dataset.intensity = intensity;
      row.ratio.textContent = name === "standard" ? "" : ratioText(standard.bytes, bytes);
      row.intensity.textContent = formatNumber(intensity);
      row.limit.textContent = bound === "compute" ? "arithmetic" : "memory";
      row.limitCell.dataset.limit = bound;
      row.threshold.replaceChildren(...thresholdText(name, thresholds[index])
        .flatMap((text) => [htmlNode("span", { text }), " "]));
      row.words.textContent = TENSORS.filter((tensor) => parts[tensor])
        .map((tensor) => `${tensor} ${formatBytes(parts[tensor])}`).join(", ");
    });
  }

  function drawBars(model, width) {
    const [low, high] = byteDecades(model);
    const x = (bytes) => (width * (Math.log10(bytes) - low)) / (high - low);
    const minimum = x(model.minimum);
    const every = Math.ceil((high - low) * 58 / width);
    axis.replaceChildren();
    for (let decade = low; decade <= high; decade += 1) {
      if ((decade - low) % every) continue;
      const anchor = decade === low ? "start" : x(10 ** decade) > width - 24 ? "end" : "middle";
      axis.append(svgNode("text", { class: "bf-muted", x: x(10 ** decade), y: BAR.axis - 3,
        "text-anchor": anchor, text: roundBytes(10 ** decade) }));
    }
    const words = `${width > 240 ? "each of Q, K, V, O once, " : ""}4Nd: ${formatBytes(model.minimum)}`;
    const least = svgNode("text", { x: minimum, y: 12, text: words, class: "io-least" });
    axis.append(least);
    // Over its line, as far as it fits.
    const half = least.getComputedTextLength() / 2;
    setAttributes(least, { x: Math.min(Math.max(minimum - half, 0), width - 2 * half) });
    const upright = (className, at) =>
      svgNode("line", { class: className, x1: at, x2: at, y1: -6, y2: BAR.height + 6 });
    for (const { name, parts, bytes } of model.algorithms) {
      const { svg } = rowOf[name];
      const nodes = [];
      for (let decade = low; decade <= high; decade += 1) {
        nodes.push(upright("io-grid", x(10 ** decade)));
      }
      const letters = [];
      let start = 0;
      for (const tensor of TENSORS.filter((each) => parts[each])) {
        const span = (x(bytes) * parts[tensor]) / bytes;
        nodes.push(svgNode("rect", { class: "io-part", x: start, width: span, y: 0, height: BAR.height,
          "data-tensor": tensor, "data-bytes": parts[tensor],
          style: `fill: ${partFill(id, tensor)}; stroke-width: ${span > 4 ? 1 : 0}` }));
        if (span > 20 && tensor !== "statistics") {
          const [middle, centre] = [start + span / 2, BAR.height / 2];
          letters.push(svgNode("circle", { class: "io-tag", cx: middle, cy: centre, r: 8.5 }),
            svgNode("text", {
              class: "io-letter", x: middle, y: centre + 4.5, "text-anchor": "middle", text: tensor,
            }));
        }
        start += span;
      }
      nodes.push(svgNode("rect", { class: "io-frame", x: 0, width: x(bytes), y: 0, height: BAR.height }),
        upright("io-minimum", minimum));
      svg.replaceChildren(...nodes, ...letters);
    }
  }
  return { node, measured: rowOf.standard.svg, drawWords, drawBars };
}

const roundBytes = (bytes) => formatBytes(bytes).replace(/\.0+(?= )/, "");

function partFill(id, tensor) {
  return tensor === "statistics" ? "var(--bf-hbm-mark)" : tensorFill(id, tensor);
}

// ---- the roofline, and intensity as N grows -----------------------------------------------------

const CHART = {
  left: 54, right: 8, roofTop: 26, roofFloor: 246, lengthTop: 276, lengthFloor: 416, height: 452,
};
const INTENSITIES = [-1, 17]; // powers of two: every state of the figure lies in between
const LANE = 15;

function chart() {
  const svg = svgNode("svg", { height: CHART.height, "aria-hidden": "true" });

  function draw(options, model, rates, width) {
    const right = Math.max(CHART.left + 120, width - CHART.right);
    const log = Math.log2;
    const scale = (value, [low, high], from, to) => from + ((to - from) * (value - low)) / (high - low);
    const x = (intensity) => scale(log(intensity), INTENSITIES, CHART.left, right);
    // Below the roof's left end stays room for the labels.
    const flops = [log(rates.bytesPerSecond * 2 ** INTENSITIES[0] / 20), log(rates.flopsPerSecond * 1.25)];
    const y = (rate) => scale(log(rate), flops, CHART.roofFloor, CHART.roofTop);
    const lengths = [SEQUENCE_LENGTHS[0], SEQUENCE_LENGTHS.at(-1)].map(log);
    const yLength = (n) => scale(log(n), lengths, CHART.lengthFloor, CHART.lengthTop);
    const nodes = [];
    const line = (name, x1, y1, x2, y2) => nodes.push(svgNode("line", { class: name, x1, y1, x2, y2 }));
    const text = (name, atX, atY, anchor, words) =>
      nodes.push(svgNode("text", { class: name, x: atX, y: atY, "text-anchor": anchor, text: words }));

    const ridge = Math.min(right, Math.max(CHART.left, x(rates.ridge)));
    for (const [top, floor] of [[CHART.roofTop, CHART.roofFloor], [CHART.lengthTop, CHART.lengthFloor]]) {
      nodes.push(svgNode("rect", {
        class: "io-side", x: ridge, width: right - ridge, y: top, height: floor - top,
      }));
    }
    for (let power = Math.ceil(flops[0] / log(10)); power <= flops[1] / log(10); power += 1) {
      line("io-grid", CHART.left, y(10 ** power), right, y(10 ** power));
      text("bf-muted", CHART.left - 6, y(10 ** power) + 4, "end", rateTick(10 ** power));
    }
    for (const n of SEQUENCE_LENGTHS.filter((_, index) => index % 2 === 1)) {
      line("io-grid", CHART.left, yLength(n), right, yLength(n));
      text("bf-muted", CHART.left - 6, yLength(n) + 4, "end", formatInteger(n));
    }
    for (let power = 0; power <= INTENSITIES[1]; power += width < 480 ? 4 : 2) {
      line("io-grid", x(2 ** power), CHART.lengthFloor, x(2 ** power), CHART.lengthFloor + 5);
      text("bf-muted", x(2 ** power), CHART.lengthFloor + 18, "middle", formatInteger(2 ** power));
    }
    text("bf-muted", CHART.left, 14, "start", "TFLOP/s the GPU can reach");
    text("bf-muted", CHART.left, CHART.lengthTop - 8, "start", "N");
    text("bf-muted", right, CHART.height - 1, "end", "arithmetic intensity, FLOP/B");
    line("io-ridge", ridge, CHART.roofTop, ridge, CHART.lengthFloor);
    text("bf-muted", ridge - 8, CHART.lengthTop - 8, "end", width < 480 ? "memory" : "memory limits");
    text("bf-muted", ridge + 8, CHART.lengthTop - 8, "start", width < 480 ? "arithmetic" : "arithmetic limits");

    const roof = [2 ** INTENSITIES[0], rates.ridge, 2 ** INTENSITIES[1]];
    nodes.push(svgNode("polyline", { class: "io-roof",
      points: roof.map((intensity) => `${x(intensity)},${y(attainable(intensity, rates))}`).join(" ") }));
    drawLengths();
    drawPoints();
    svg.replaceChildren(...nodes);

    function drawLengths() {
      const at = SEQUENCE_LENGTHS.map((n) => ioModel({ ...options, sequence_length: n }));
      const curve = (name, intensityOf, attributes) => {
        const points = at.map((each, index) =>
          `${x(intensityOf(each))},${yLength(SEQUENCE_LENGTHS[index])}`);
        nodes.push(svgNode("polyline", { class: name, ...attributes, points: points.join(" ") }));
      };
      curve("io-minimum", (each) => each.flops / each.minimum);
      model.algorithms.forEach(({ name }, index) =>
        curve("io-curve", (each) => each.algorithms[index].intensity,
          { "data-curve": name, "stroke-dasharray": DASHES[name] }));
      const here = yLength(options.sequence_length);
      line("io-here", CHART.left, here, right, here);
      nodes.push(mark("once", x(model.flops / model.minimum), here));
      model.algorithms.forEach(({ name, intensity }) => nodes.push(mark(name, x(intensity), here)));
    }

    function drawPoints() {
      const once = model.flops / model.minimum;
      const onceX = x(once);
      const onceY = y(attainable(once, rates));
      nodes.push(mark("once", onceX, onceY));
      const words = width < 480 ? "4Nd only" : "if Q, K, V, O moved once";
      // Above the roof: left of the point on the slope, over it on the flat part, while it fits.
      const [at, anchor] = onceX < ridge ? [onceX - 6, "end"] :
        onceX > right - 80 ? [right, "end"] : [onceX, "middle"];
      text("bf-muted io-halo io-point", at, onceY - 9, anchor, words);
      // From right to left each label hangs one lane lower, to the right of its line: no line can
      // cross a label then.
      const points = [...model.algorithms].sort((one, other) => other.intensity - one.intensity);
      const lanes = points.map((_, index) => CHART.roofFloor - 6 - LANE * (points.length - 1 - index));
      points.forEach(({ intensity }, index) =>
        line("io-leader", x(intensity), y(attainable(intensity, rates)), x(intensity), lanes[index]));
      points.forEach(({ name, intensity }, index) => {
        nodes.push(mark(name, x(intensity), y(attainable(intensity, rates))));
        text("io-label io-halo io-point", x(intensity) + 5, lanes[index], "start", ALGORITHMS[name].label);
      });
    }
  }
  return { svg, draw };
}

/** TFLOP/s of a power of ten. */
function rateTick(rate) {
  const teraflops = Number((rate / 1e12).toPrecision(1));
  return teraflops < 1 ? String(teraflops) : formatInteger(teraflops);
}

// ---- the figure ---------------------------------------------------------------------------------

const STATE_KEYS = [
  "sequence_length", "head_dim", "dtype", "tiles", "sram_kib", "block_m", "block_n", "visible",
];

function keys(id) {
  const hbm = "stroke: var(--bf-hbm)";
  return swatches({
    "Q, K, V, O": `fill: ${tensorFill(id, "Q")}; ${hbm}`,
    S: `fill: ${tensorFill(id, "S")}; ${hbm}`,
    P: `fill: ${tensorFill(id, "P")}; ${hbm}`,
    "statistics (m, ℓ, logsumexp)": "fill: var(--bf-hbm-mark)",
  });
}

function render({ model, el }) {
  const id = uniqueId("io-explorer");
  const root = figureFrame(el, "The IO explorer: bytes asked of HBM against arithmetic", CSS + ROOM_CSS);
  const gpus = model.get("gpus");
  const control = (make, key, label, values, show) => make({ id, model, key, label, values, show });
  const length = control(slider, "sequence_length", "Sequence length N", SEQUENCE_LENGTHS);
  const visible = control(slider, "visible", "Blocks visible s (block-sparse)", VISIBLE, showFraction);
  const dimension = control(choice, "head_dim", "Head dimension d", [64, 128, 256]);
  const dtype = control(choice, "dtype", "Data type", ["fp32", "fp16", "bf16"]);
  const gpuControl = control(select, "gpu", "GPU",
    gpus.map(({ name, source }) => ({ value: name, text: `${name} (${source})` })));
  const tiles = control(choice, "tiles", "Tile sizes", ["rule", "chosen"],
    (value) => ({ rule: "by Algorithm 1", chosen: "by hand" })[value]);
  const sram = control(slider, "sram_kib", "SRAM M of one program", SRAM_KIB, (kib) => `${kib} KiB`);
  const blockM = control(slider, "block_m", "Queries a tile, B_r", BLOCKS);
  const blockN = control(slider, "block_n", "Keys a tile, B_c", BLOCKS);
  [blockM, blockN].forEach(({ node }) => {
    const label = node.querySelector("label");
    setSubscripted(label, label.textContent);
  });
  const controls = [length, visible, dimension, dtype, tiles, gpuControl, sram, blockM, blockN];

  const [keysShown, queriesShown] = [0, 1].map(() => htmlNode("b", { class: "bf-value" }));
  const rule = (text) => setSubscripted(htmlNode("span", { class: "bf-muted" }), text);
  const sizes = htmlNode("div", { class: "io-sizes" },
    htmlNode("span", {}, rule("B_c = ⌈M / 4d⌉"), keysShown),
    htmlNode("span", {}, rule("B_r = min(B_c, d)"), queriesShown));
  const notice = htmlNode("p", { class: "io-notice" });
  const says = htmlNode("p", { class: "io-summary", role: "status" });
  const { node: table, measured, drawWords, drawBars } = bars(id);
  const { svg: chartSvg, draw: drawChart } = chart();
  const heading = htmlNode("strong");
  const rateWords = htmlNode("span", { class: "bf-muted io-rates" });
  const cache = htmlNode("p", { class: "io-cache" });
  const sources = htmlNode("p", { class: "io-sources" });
  root.append(
    svgNode("svg", { width: 0, height: 0, "aria-hidden": "true", style: "position: absolute" },
      tensorPatterns(id)),
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "The IO explorer" }),
      htmlNode("span", { class: "bf-muted", text: "one head, forward: bytes asked of HBM, and arithmetic" })),
    htmlNode("div", { class: "bf-controls" },
      length.node, visible.node, dimension.node, dtype.node, tiles.node, gpuControl.node,
      htmlNode("div", { class: "io-pair" }, sram.node, sizes, blockM.node, blockN.node), notice),
    says, table,
    htmlNode("div", { class: "io-stage" },
      htmlNode("div", { class: "io-heading" }, heading, rateWords), chartSvg),
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id),
      htmlNode("p", { text: "A bar's length is logarithmic; its parts are shares of it. FLOPs are those " +
        "of the two matrix products, 4N²d, of which block-sparse does a fraction s. In brackets: the N, " +
        "and the M, from which on arithmetic is the limit. M counts numbers, as the paper does." }),
      cache, sources),
  );

  let [barWidth, chartWidth] = [0, 0];
  function draw() {
    const options = Object.fromEntries(STATE_KEYS.map((key) => [key, model.get(key)]));
    const gpu = gpus.find(({ name }) => name === model.get("gpu"));
    const rates = ceilings(gpu, options.dtype);
    const cost = ioModel(options);
    const byRule = options.tiles === "rule";
    const fromLength = computeBoundFrom(options, "sequence_length", SEQUENCE_LENGTHS, rates);
    const fromSram = computeBoundFrom(options, "sram_kib", SRAM_KIB, rates);
    const thresholds = fromLength.map((n, index) => ({ n, m: byRule ? fromSram[index] : undefined }));
    controls.forEach(({ refresh }) => refresh());
    sram.node.hidden = sizes.hidden = !byRule;
    blockM.node.hidden = blockN.node.hidden = byRule;
    keysShown.textContent = `${formatInteger(cost.tile.blockN)} keys`;
    queriesShown.textContent = `${formatInteger(cost.tile.blockM)} queries`;
    setSubscripted(notice, notices(options, cost, gpu));
    notice.dataset.within = cost.withinTheorem ? "yes" : "no";
    says.textContent = summary(options.visible, gpu, cost, rates);
    heading.textContent = `The roofline of ${gpu.name}`;
    rateWords.textContent = gpuText(gpu, options.dtype, rates);
    cache.textContent = cacheText(cost, gpu);
    sources.textContent = `${gpu.name}: ${gpu.documents ? gpu.documents.join("; ") : gpu.source}.` +
      (gpu.sms ? ` ${gpu.sms} multiprocessors with ${gpu.sram_kib} KiB of SRAM each.` : "");
    drawWords(cost, rates, thresholds);
    if (barWidth) drawBars(cost, barWidth);
    if (chartWidth) drawChart(options, cost, rates, chartWidth);
  }

  const events = [...STATE_KEYS, "gpu"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stops = [
    onWidth(measured, (width) => { barWidth = width; draw(); }),
    onWidth(chartSvg, (width) => { chartWidth = width; draw(); }),
  ];
  return () => {
    stops.forEach((stop) => stop());
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
