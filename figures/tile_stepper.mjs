// The tile stepper. FlashAttention-1 visits the tiles of S one after the other, in one of two loop
// orders; the figure shows each visit: what crosses between HBM and the chip, and what it computes.

// ---- the model ----------------------------------------------------------------------------------

export const BYTES_PER_ELEMENT = { fp32: 4, fp16: 2, bf16: 2 };
// A maximum, a sum, a logsumexp and a number of the accumulator are kept in float32.
const STATISTIC_BYTES = 4;

/** A small example whose scores are whole numbers: vectors of length 2, scale 1. */
export function example(seqQuery, seqKey) {
  const rows = (count, row) => Array.from({ length: count }, (_, index) => row(index));
  return {
    query: rows(seqQuery, (r) => [(r + 1) % 3, ((3 * r) % 4) - 1]),
    key: rows(seqKey, (c) => [((3 * c + 2) % 4) - 1, ((2 * c) % 3) - 1]),
    value: rows(seqKey, (c) => [(3 * c + 1) % 5, c % 2]),
  };
}

/** [from, to) of each tile. */
export function tiles(length, block) {
  return Array.from({ length: Math.ceil(length / block) }, (_, tile) =>
    [tile * block, Math.min((tile + 1) * block, length)]);
}

/** With a causal mask, aligned at the bottom right, a row sees the keys before this one. */
export const visibleKeys = ({ seq_query, seq_key, causal }, row) =>
  causal ? Math.max(0, Math.min(seq_key, row + 1 + seq_key - seq_query)) : seq_key;

/** The visits in their order. `j` is null where a tile of queries sees no key: its zeros are stored
 * without a visit. `first` and `last` say where the outer loop begins and ends a tile of queries. */
function visits(shape) {
  const queryTiles = tiles(shape.seq_query, shape.block_m);
  const keyTiles = tiles(shape.seq_key, shape.block_n);
  if (shape.order === "keys") {
    return keyTiles.flatMap((_, j) =>
      queryTiles.map((_, i) => ({ i, j, first: j === 0, last: j === keyTiles.length - 1 })));
  }
  return queryTiles.flatMap(([, end], i) => {
    const visible = visibleKeys(shape, end - 1);
    const count = keyTiles.filter(([from]) => from < visible).length;
    if (count === 0) return [{ i, j: null, first: true, last: true }];
    return Array.from({ length: count }, (_, j) => ({ i, j, first: j === 0, last: j === count - 1 }));
  });
}

/** Bytes of one tile of each buffer; [from, to) count rows or columns of the picture. */
function tileBytes(buffer, [from, to], { head_dim, dtype, row_tokens }) {
  const tokens = (to - from) * row_tokens;
  switch (buffer) {
    case "accumulator": return tokens * head_dim * STATISTIC_BYTES;
    case "running_max": case "running_sum": case "logsumexp": return tokens * STATISTIC_BYTES;
    default: return tokens * head_dim * BYTES_PER_ELEMENT[dtype];
  }
}

const dot = (one, other) => one.reduce((total, number, index) => total + number * other[index], 0);

/** One row and one tile of keys: the online softmax, with O either divided at every visit (as
 * Algorithm 1 prints it) or at the last one only. */
function updateRow({ max, sum, output }, scores, values, { order, last }) {
  const newMax = Math.max(max, ...scores);
  // With nothing but hidden scores the maximum is −∞, and −∞ − (−∞) is no number.
  const shift = newMax === -Infinity ? 0 : newMax;
  const rescale = Math.exp(max - shift);
  const exponentials = scores.map((score) => Math.exp(score - shift));
  const newSum = rescale * sum + exponentials.reduce((total, term) => total + term, 0);
  const weighted = output.map((number, dim) =>
    number * rescale * (order === "keys" ? sum : 1) + dot(exponentials, values.map((value) => value[dim])));
  const divisor = (order === "keys" || last) && newSum > 0 ? newSum : 1;
  return {
    max: newMax, sum: newSum, rescale, exponentials, scores,
    output: weighted.map((number) => number / divisor),
  };
}

/** Every visit: its tiles, what it loads and stores, and its rows before and after. */
export function tileTrace(shape) {
  const { query, key, value } = example(shape.seq_query, shape.seq_key);
  const queryTiles = tiles(shape.seq_query, shape.block_m);
  const keyTiles = tiles(shape.seq_key, shape.block_n);
  const state = query.map((row) => ({ max: -Infinity, sum: 0, output: row.map(() => 0) }));

  return visits(shape).map(({ i, j, first, last }) => {
    const [start, end] = queryTiles[i];
    const columns = j === null ? [0, 0] : keyTiles[j];
    const ofRows = (buffers) =>
      buffers.map((buffer) => ({ buffer, tile: i, bytes: tileBytes(buffer, queryTiles[i], shape) }));
    const ofColumns = (buffers) =>
      buffers.map((buffer) => ({ buffer, tile: j, bytes: tileBytes(buffer, columns, shape) }));
    const kept = ["accumulator", "running_max", "running_sum"];
    const results = ofRows(["output", "logsumexp"]);
    const keysOutside = shape.order === "keys";
    const keyAndValue = j === null ? [] : ofColumns(["key", "value"]);
    const loads = keysOutside
      ? [...(i === 0 ? keyAndValue : []), ...ofRows(["query", ...kept])]
      : [...(first ? ofRows(["query"]) : []), ...keyAndValue];
    const stores = last ? results : keysOutside ? ofRows(kept) : [];

    const rows = query.slice(start, end).map((vector, index) => {
      const row = start + index;
      const before = state[row];
      if (j === null) return { row, before, ...before, rescale: 1, exponentials: [], scores: [] };
      const scores = key.slice(...columns).map((other, offset) =>
        columns[0] + offset < visibleKeys(shape, row) ? dot(vector, other) : -Infinity);
      state[row] = updateRow(before, scores, value.slice(...columns), { order: shape.order, last });
      return { row, before, ...state[row] };
    });
    const hidden = rows.every(({ scores }) => scores.every((score) => score === -Infinity));
    return { i, j, first, last, columns, rows, hidden, loads, stores };
  });
}

// The tensors of the picture, and the buffers of the kernels that each stands for.
const TENSORS = {
  Q: ["query"], K: ["key"], V: ["value"], O: ["accumulator", "output"],
  m: ["running_max"], "ℓ": ["running_sum"], L: ["logsumexp"],
};
const TENSOR_OF = Object.fromEntries(
  Object.entries(TENSORS).flatMap(([tensor, buffers]) => buffers.map((buffer) => [buffer, tensor])));
// What attention cannot do without: each of these must cross once. All else is repetition.
const NEEDED = ["query", "key", "value", "output", "logsumexp"];

/** What these visits moved: bytes of each buffer, of each tensor (the first time and again), in all;
 * and how often each tile of a tensor crossed. */
export function movedBy(steps) {
  const buffers = {};
  const tensors = Object.fromEntries(Object.keys(TENSORS).map((name) => [name, { once: 0, again: 0 }]));
  const crossings = {};
  const seen = new Set();
  let total = 0;
  const count = (kind) => ({ buffer, tile, bytes }) => {
    const tensor = TENSOR_OF[buffer];
    const fresh = NEEDED.includes(buffer) && !seen.has(`${buffer} ${tile}`);
    seen.add(`${buffer} ${tile}`);
    (buffers[buffer] ??= { loaded: 0, stored: 0 })[kind] += bytes;
    tensors[tensor][fresh ? "once" : "again"] += bytes;
    const place = `${tensor} ${tile}`;
    crossings[place] = (crossings[place] ?? 0) + 1;
    total += bytes;
  };
  for (const { loads, stores } of steps) {
    loads.forEach(count("loaded"));
    stores.forEach(count("stored"));
  }
  return { buffers, tensors, crossings, total };
}

/** Standard attention at its best: each of its three kernels touches each of its buffers once. */
export function standardBytes({ seq_query, seq_key, head_dim, dtype, row_tokens }) {
  const element = BYTES_PER_ELEMENT[dtype];
  const [rows, columns] = [seq_query * row_tokens, seq_key * row_tokens];
  const [ofRows, ofColumns] = [rows, columns].map((tokens) => tokens * head_dim * element);
  const square = 2 * rows * columns * element; // written and read
  const bytes = {
    Q: ofRows, K: ofColumns, V: ofColumns, O: ofRows, L: rows * STATISTIC_BYTES, S: square, P: square,
  };
  const tensors = Object.fromEntries(
    Object.entries(bytes).map(([name, once]) => [name, { once, again: 0 }]));
  return { tensors, total: Object.values(bytes).reduce((total, part) => total + part, 0) };
}

// What a program may use on one SM of an H100 or H200 (compute capability 9.0).
const SHARED_MEMORY = 227 * 1024;
const REGISTERS = 256 * 1024;

/** Bytes on the chip while whole tiles meet, and whether one SM has room for them. */
export function chipUse(shape) {
  const { seq_query, seq_key, block_m, block_n, row_tokens } = shape;
  const rows = [0, Math.min(block_m, seq_query)];
  const columns = [0, Math.min(block_n, seq_key)];
  const shared = tileBytes("query", rows, shape) + 2 * tileBytes("key", columns, shape);
  const registers = tileBytes("accumulator", rows, shape) + 2 * tileBytes("running_max", rows, shape) +
    scoreBytes(rows, columns, row_tokens);
  return { shared, registers, fits: shared <= SHARED_MEMORY && registers <= REGISTERS };
}

const scoreBytes = (rows, columns, tokens) =>
  (rows[1] - rows[0]) * (columns[1] - columns[0]) * tokens * tokens * STATISTIC_BYTES;

const HELD = [
  { tensor: "K", level: "sram", buffers: ["key"], along: "j" },
  { tensor: "V", level: "sram", buffers: ["value"], along: "j" },
  { tensor: "Q", level: "sram", buffers: ["query"], along: "i" },
  { tensor: "O", level: "registers", buffers: ["accumulator"], along: "i" },
  { tensor: "m", level: "registers", buffers: ["running_max", "running_sum"], along: "i" },
];

/** What is on the chip during a visit: each tile's name, memory, bytes, and what happens to it. */
export function onChip(steps, index, shape) {
  const step = steps[index];
  const { i, j, columns, rows, loads, stores } = step;
  const extent = { i: [rows[0].row, rows.at(-1).row + 1], j: columns };
  const touched = (moves, tensor) => moves.some(({ buffer }) => TENSOR_OF[buffer] === tensor);
  const held = HELD.filter(({ along }) => step[along] !== null).map(({ tensor, level, buffers, along }) => {
    const came = touched(loads, tensor) ? "loaded"
      : steps[index - 1]?.[along] === step[along] ? "stays" : "made here";
    const went = tensor === "m" && step.last ? ", L stored" : touched(stores, tensor) ? ", stored" : "";
    const name = (tensor === "m" ? ["m", "ℓ"] : [tensor])
      .map((letter) => tileName(letter, step[along])).join(", ");
    const bytes = buffers.reduce((total, buffer) => total + tileBytes(buffer, extent[along], shape), 0);
    return { tensor, name, level, bytes, words: came + went };
  });
  if (j === null) return held;
  const scores = {
    tensor: "S", name: scoreName(i, j), level: "registers", words: "computed",
    bytes: scoreBytes(extent.i, columns, shape.row_tokens),
  };
  return [...held.slice(0, 3), scores, ...held.slice(3)];
}

// ---- the words ----------------------------------------------------------------------------------

const MINUS = "−";

const subscript = (tile) => [...String(tile + 1)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");
const tileName = (tensor, tile) => `${tensor}${subscript(tile)}`;
const scoreName = (i, j) => `S${subscript(i)}${i > 8 || j > 8 ? "," : ""}${subscript(j)}`;

/** A statistic of a row: whole numbers as they are, others with two decimals. */
export function showStatistic(number) {
  if (number === -Infinity) return `${MINUS}∞`;
  const text = Number.isInteger(number) ? String(number)
    : number < 0.005 ? "0.00" : number.toFixed(2);
  return text.replace("-", MINUS);
}

const ORDERS = {
  keys: { name: "Outer loop over keys", other: "queries", source: "as Algorithm 1 prints it" },
  queries: { name: "Outer loop over queries", other: "keys", source: "the loops swapped" },
};

function startCaption({ order }) {
  const plan = order === "keys"
    ? "O, m and ℓ lie there too, as 0, −∞ and 0. Each tile of K and V will be loaded once and " +
      "meets every tile of Q."
    : "Each tile of Q will be loaded once and meets the tiles of K and V.";
  return `Q, K and V lie in HBM, cut into tiles. ${plan} Which loop order moves more bytes? ` +
    "Guess, then step to the end.";
}

function visitCaption(step, steps, shape) {
  const { i, j, first, last, rows, hidden, loads, stores } = step;
  const [q, o, m, l] = ["Q", "O", "m", "ℓ"].map((tensor) => tileName(tensor, i));
  const [k, v] = ["K", "V"].map((tensor) => tileName(tensor, j));
  const bytes = [...loads, ...stores].reduce((total, move) => total + move.bytes, 0);
  const moved = bytes ? `${formatBytes(bytes)} cross.` : "Nothing crosses.";
  if (j === null) {
    return `The rows of ${q} see no key. ${q} is loaded all the same, and zeros are stored as ` +
      `${o}. ${moved}`;
  }
  const sentences = [];
  if (shape.order === "keys") {
    sentences.push(i === 0 ? `${k} and ${v} are loaded, and stay for all of Q.` : `${k} and ${v} stay.`);
    sentences.push(`${q}, ${o}, ${m} and ${l} are loaded and meet them; ` +
      (last ? `the finished ${o} is stored.` : `${o}, ${m} and ${l} go back.`));
    if (hidden) sentences.push("The mask hides this whole tile; it is visited all the same.");
  } else {
    const again = steps.slice(0, steps.indexOf(step)).some((other) => other.j === j);
    sentences.push(first ? `${q} is loaded and stays; ${o}, ${m} and ${l} are made on the chip.`
      : `${q}, ${o}, ${m} and ${l} stay.`);
    sentences.push(`${k} and ${v} are loaded${again ? " again" : ""}.`);
    if (last) sentences.push(`${o} is divided by ${l} and stored, once and for all.`);
  }
  const risen = rows.filter(({ before, max }) => max > before.max && before.max > -Infinity).length;
  if (risen && !hidden) {
    const count = rows.length === 1 ? "The" : `In ${risen} of ${rows.length} rows the`;
    sentences.push(`${count} maximum rises, and what was summed is rescaled by α.`);
  }
  return `${sentences.join(" ")} ${moved}`;
}

function endCaption(shape, totals) {
  const { order } = shape;
  const mine = totals[order];
  const share = (names) => {
    const part = names.reduce((total, name) => {
      const { once, again } = mine.tensors[name];
      return total + once + again;
    }, 0);
    return formatPercent(part / mine.total);
  };
  const why = order === "keys"
    ? `O, m and ℓ, read and written for every tile of keys, are ${share(["O", "m", "ℓ"])} of it.`
    : `K and V, read for every tile of queries, are ${share(["K", "V"])} of it; O, m and ℓ never came back.`;
  return `Done: ${formatBytes(mine.total)} crossed. ${why} With the outer loop over ` +
    `${ORDERS[order].other} it is ${formatBytes(totals[ORDERS[order].other].total)}; ` +
    `standard attention moves at least ${formatBytes(totals.standard.total)}.`;
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
@container (min-width: 640px) {
  .bf .ts-controls { grid-template: auto auto / repeat(3, 1fr); grid-auto-flow: column; }
}
@container (max-width: 639.9px) { .bf .ts-controls { grid-template-columns: 1fr 1fr; gap: 10px 18px; } }
.bf .ts-step { padding: 12px 16px 0; }
.bf .ts-bar { display: flex; justify-content: space-between; align-items: center; gap: 8px; }
.bf .ts-position { white-space: nowrap; }
.bf .ts-short { display: none; }
@container (max-width: 519.9px) { .bf .ts-short { display: inline; } .bf .ts-long { display: none; } }
.bf p.ts-caption { min-height: 4.2em; margin: 10px 0 8px; font-size: 15px; }
@container (max-width: 639.9px) { .bf p.ts-caption { min-height: 5.6em; } }
@container (max-width: 479.9px) { .bf p.ts-caption { min-height: 8.4em; font-size: 14px; } }
.bf .ts-stage { display: grid; gap: 14px; padding: 0 16px 14px; }
.bf .ts-hbm { justify-self: center; }
@container (min-width: 720px) { .bf .ts-stage { grid-template-columns: auto minmax(0, 1fr); } }
@container (max-width: 479.9px) { .bf .ts-stage { padding: 0 8px 12px; } }
.bf .ts-hbm rect.ts-ground { fill: color-mix(in srgb, var(--bf-hbm) 8%, var(--bf-paper));
  stroke: color-mix(in srgb, var(--bf-hbm) 40%, var(--bf-paper)); }
.bf .ts-place { font-size: 13px; font-weight: 650; }
.bf .ts-letter { font-size: 13px; font-weight: 650; }
.bf .ts-tile { fill: var(--bf-paper); stroke: var(--bf-hbm); }
.bf .ts-tile[data-crossed="once"] { fill: var(--bf-hbm-light); }
.bf .ts-tile[data-crossed="again"] { fill: var(--bf-hbm-mid); }
.bf .ts-tile[data-here] { stroke: var(--bf-sram); stroke-width: 3; }
.bf text.ts-count { font-size: 11px; font-weight: 600; }
.bf .ts-ghost { fill: none; stroke: var(--bf-muted); stroke-dasharray: 3 3; }
.bf .ts-paper { fill: var(--bf-paper); }
.bf .ts-cells { fill: none; stroke: var(--bf-line); stroke-width: .75; }
.bf .ts-grid { fill: none; stroke: var(--bf-muted); stroke-width: 1; }
.bf .ts-visited { fill: color-mix(in srgb, var(--bf-registers) 24%, var(--bf-paper)); }
.bf .ts-weight { fill: var(--bf-registers); }
.bf .ts-now { fill: none; stroke: var(--bf-registers); stroke-width: 3; }
.bf .ts-hidden { fill: color-mix(in srgb, var(--bf-ink) 12%, transparent); }
.bf .ts-cross { fill: none; stroke: var(--bf-muted); stroke-width: 1.25; }
.bf text.ts-score { font-weight: 600; }
.bf .ts-halo { paint-order: stroke; stroke: var(--bf-paper); stroke-width: 3.5px; stroke-linejoin: round; }
.bf .ts-chip { min-width: 0; padding: 9px 12px 8px; border: 1.5px solid var(--bf-sram);
  border-radius: 8px; background: color-mix(in srgb, var(--bf-sram) 5%, var(--bf-paper)); }
.bf .ts-chip-head { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between;
  gap: 2px 8px; margin-bottom: 4px; }
.bf .ts-chip-head .bf-muted { width: 100%; white-space: nowrap; }
.bf .ts-held { height: 120px; margin-bottom: 5px; }
.bf .ts-held > div { display: grid; grid-template-columns: 3.4rem 1fr 4.1rem 6.7rem; gap: 8px;
  align-items: center; height: 20px; font-size: 13px; white-space: nowrap; }
.bf .ts-held:empty { display: grid; place-items: center; color: var(--bf-muted); font-size: 13px; }
.bf .ts-held:empty::before { content: attr(data-empty); }
.bf .ts-held b { font-weight: 650; }
.bf .ts-held i { height: 12px; border-radius: 2px; min-width: 2px; background: var(--bf-sram); }
.bf .ts-held [data-level="registers"] i { background: var(--bf-registers); }
.bf .ts-held span:nth-child(3) { text-align: right; }
.bf .ts-rows { border-top: 1px solid var(--bf-line); padding-top: 5px; }
.bf .ts-row { display: grid; grid-template-columns: 1.7rem 1fr .7fr 1.55fr 1.55fr; gap: 6px; height: 17px;
  font-size: 12.5px; line-height: 17px; white-space: nowrap; }
.bf .ts-row > * { text-align: right; }
.bf .ts-row [data-same] { color: var(--bf-muted); }
.bf .ts-rule { display: flex; flex-wrap: wrap; align-content: start; gap: 0 14px; min-height: 51px;
  margin-top: 3px; }
.bf .ts-rule span { white-space: nowrap; }
.bf .ts-lanes { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line); }
.bf .ts-lane { padding: 4px 0 5px; }
.bf .ts-lane-head { display: flex; justify-content: space-between; gap: 10px; font-size: 13px; }
.bf .ts-lane b { font-weight: 600; }
.bf .ts-lane[data-now] b { font-weight: 700; }
.bf .ts-lane-head > :last-child { white-space: nowrap; font-weight: 650; }
.bf .ts-lane svg { width: 100%; margin: 3px 0 2px; overflow: visible; }
.bf .ts-detail { display: flex; flex-wrap: wrap; gap: 0 12px; min-height: 17px; }
.bf .ts-detail span { white-space: nowrap; }
@container (max-width: 559.9px) { .bf .ts-detail { min-height: 34px; } .bf .ts-source { display: none; } }
.bf .ts-first { fill: var(--bf-hbm-light); stroke: var(--bf-hbm-mid); }
.bf .ts-again { fill: var(--bf-hbm-mid); stroke: var(--bf-hbm-mid); }
.bf .ts-square { stroke: var(--bf-hbm-mid); }
`;

// ---- HBM and the scores -------------------------------------------------------------------------

/** Where everything lies; `cell` is one row or column of the picture. */
function layout({ width, height }, { seq_query, seq_key }) {
  const wide = width >= 440;
  const [strip, narrow, gap] = wide ? [30, 20, 6] : [25, 17, 4];
  const left = wide ? 26 : 18;
  const top = wide ? 104 : 92;
  const outside = left + strip + gap + gap + strip + 3 * (narrow + gap) + 10;
  const side = Math.min(300, width - outside);
  const longest = Math.max(seq_query, seq_key);
  const cell = { width: side / longest, height: (height - top - 30) / longest };
  const grid = { x: left + strip + gap, y: top };
  grid.right = grid.x + seq_key * cell.width;
  grid.bottom = grid.y + seq_query * cell.height;
  const o = grid.right + gap;
  const across = {
    Q: [left, strip], O: [o, strip],
    ...Object.fromEntries(["m", "ℓ", "L"].map((name, index) =>
      [name, [o + strip + gap + index * (narrow + gap), narrow]])),
  };
  return {
    cell, grid, across,
    down: { K: [top - 2 * strip - 24, strip], V: [top - strip - 21, strip] },
    width: outside + side, height,
  };
}

function hbm() {
  const svg = svgNode("svg", { class: "ts-hbm", "aria-hidden": "true" });

  function draw({ shape, steps, index, place }) {
    const { cell, grid, across, down } = place;
    const step = steps[index];
    const { crossings } = movedBy(steps.slice(0, index + 1));
    const queryTiles = tiles(shape.seq_query, shape.block_m);
    const keyTiles = tiles(shape.seq_key, shape.block_n);
    const x = (column) => grid.x + column * cell.width;
    const y = (row) => grid.y + row * cell.height;
    const box = ([top, bottom], [left, right]) => ({
      x: x(left), y: y(top), width: x(right) - x(left), height: y(bottom) - y(top),
    });
    const add = (tag, attributes) => svg.appendChild(svgNode(tag, attributes));
    const text = (atX, atY, words, name, anchor = "middle") =>
      add("text", { class: name, x: atX, y: atY, "text-anchor": anchor, text: words });

    svg.replaceChildren();
    setAttributes(svg, { width: place.width, height: place.height });
    const ground = { x: .5, y: .5, width: place.width - 1, height: place.height - 1 };
    add("rect", { class: "ts-ground", rx: 8, ...ground });
    text(7, 18, "HBM", "ts-place", "start");
    drawScores();
    drawStrips();
    drawLoops();

    function drawScores() {
      const all = [[0, shape.seq_query], [0, shape.seq_key]];
      add("rect", { class: "ts-paper", ...box(...all) });
      const lines = (rows, columns) =>
        rows.map((row) => `M${grid.x} ${y(row)} H${grid.right}`).join("") +
        columns.map((column) => `M${x(column)} ${grid.y} V${grid.bottom}`).join("");
      const count = (length) => Array.from({ length }, (_, at) => at);
      steps.filter(({ j }, visit) => visit < index && j !== null).forEach(({ i, j }) =>
        add("rect", { class: "ts-visited", ...box(queryTiles[i], keyTiles[j]) }));
      if (step && step.j !== null) drawWeights();
      drawHidden();
      add("path", { class: "ts-cells", d: lines(count(shape.seq_query), count(shape.seq_key)) });
      const inner = (cut) => cut.slice(1).map(([from]) => from);
      add("path", { class: "ts-grid", d: lines(inner(queryTiles), inner(keyTiles)) });
      add("rect", { class: "ts-ghost", ...box(...all) });
      if (step && step.j !== null) {
        add("rect", { class: "ts-now", "data-name": "now", ...box(queryTiles[step.i], keyTiles[step.j]) });
      }
      text(place.width / 2, place.height - 11, "S: made on the chip, never stored", "bf-muted");
    }

    /** The tile that is computed now: how much each score weighs, and the score where it fits. */
    function drawWeights() {
      for (const { row, scores, exponentials } of step.rows) {
        scores.forEach((score, offset) => {
          const column = step.columns[0] + offset;
          const at = box([row, row + 1], [column, column + 1]);
          add("rect", { class: "ts-weight", ...at, "fill-opacity": 0.08 + 0.72 * exponentials[offset] });
          if (score === -Infinity || cell.height < 17 || cell.width < 15) return;
          text(at.x + at.width / 2, at.y + at.height / 2 + 4, showStatistic(score), "ts-score ts-halo");
        });
      }
    }

    /** Hidden scores are greyed; tiles that will not be visited are crossed out. */
    function drawHidden() {
      if (!shape.causal) return;
      const visited = new Set(steps.map(({ i, j }) => `${i} ${j}`));
      let cross = "";
      queryTiles.forEach((rows, i) => {
        for (let row = rows[0]; row < rows[1]; row += 1) {
          const visible = visibleKeys(shape, row);
          if (visible < shape.seq_key) {
            add("rect", { class: "ts-hidden", ...box([row, row + 1], [visible, shape.seq_key]) });
          }
        }
        keyTiles.forEach((columns, j) => {
          if (visited.has(`${i} ${j}`)) return;
          const tile = box(rows, columns);
          const [right, bottom] = [tile.x + tile.width, tile.y + tile.height];
          cross += `M${tile.x} ${tile.y}L${right} ${bottom}M${right} ${tile.y}L${tile.x} ${bottom}`;
        });
      });
      add("path", { class: "ts-cross", "data-name": "skipped", d: cross });
    }

    function drawStrips() {
      const vertical = (tensor, tile, [from, to]) => drawTile(tensor, tile, {
        x: across[tensor][0], width: across[tensor][1], y: y(from), height: y(to) - y(from),
      });
      const horizontal = (tensor, tile, [from, to]) => drawTile(tensor, tile, {
        y: down[tensor][0], height: down[tensor][1], x: x(from), width: x(to) - x(from),
      });
      keyTiles.forEach((tile, j) => ["K", "V"].forEach((tensor) => horizontal(tensor, j, tile)));
      queryTiles.forEach((tile, i) => ["Q", "O", "L"].forEach((tensor) => vertical(tensor, i, tile)));
      for (const tensor of ["m", "ℓ"]) {
        const [left, width] = across[tensor];
        if (shape.order === "keys") queryTiles.forEach((tile, i) => vertical(tensor, i, tile));
        else add("rect", { class: "ts-ghost", x: left, width, y: grid.y, height: grid.bottom - grid.y });
      }
      for (const [tensor, [left, width]] of Object.entries(across)) {
        text(left + width / 2, grid.y - 7, tensor, "ts-letter");
      }
      for (const [tensor, [top, height]] of Object.entries(down)) {
        text(grid.x - 6, top + height / 2 + 5, tensor, "ts-letter", "end");
      }
    }

    function drawTile(tensor, tile, place) {
      const count = crossings[`${tensor} ${tile}`] ?? 0;
      const here = step && tensor !== "L" && step["KV".includes(tensor) ? "j" : "i"] === tile;
      add("rect", {
        class: "ts-tile", rx: 2, x: place.x + 1, y: place.y + 1,
        width: place.width - 2, height: place.height - 2,
        "data-tensor": tensor, "data-tile": tile, "data-count": count,
        "data-crossed": count > 1 ? "again" : count ? "once" : "never", ...(here && { "data-here": "" }),
      });
      const words = String(count);
      if (count && place.height > 12 && place.width > 3 + 6.2 * words.length) {
        text(place.x + place.width / 2, place.y + place.height / 2 + 4, words, "ts-count");
      }
    }

    function drawLoops() {
      const outerKeys = shape.order === "keys";
      text(grid.x + 2, down.K[0] - 6, `${outerKeys ? "outer" : "inner"} loop →`, "bf-muted", "start");
      const words = `← ${outerKeys ? "inner" : "outer"} loop`;
      const [turnX, turnY] = [across.Q[0] - 6, grid.y];
      const label = text(turnX, turnY, words, "bf-muted", "end");
      label.setAttribute("transform", `rotate(-90 ${turnX} ${turnY})`);
    }
  }
  return { svg, draw };
}

// ---- the chip -----------------------------------------------------------------------------------

const RULES = ["m′ = max(m, max S)", "α = exp(m − m′)", "P̃ = exp(S − m′)", "ℓ′ = α · ℓ + Σ P̃"];

/** What is on the chip now, and the statistics of the rows that are there. */
function chip() {
  const pill = htmlNode("span", { class: "bf-pill" });
  const sizes = htmlNode("span", { class: "bf-muted", "data-name": "chip-use" });
  const held = htmlNode("div", { class: "ts-held" });
  const rule = htmlNode("div", { class: "bf-muted ts-rule" });
  const rows = htmlNode("div", { role: "table", "aria-label": "The rows on the chip" });
  const node = htmlNode("div", { class: "ts-chip" },
    htmlNode("div", { class: "ts-chip-head" },
      htmlNode("span", { class: "ts-place", text: "On the chip" }), pill, sizes),
    held, htmlNode("div", { class: "ts-rows" }, rows, rule));

  function draw({ shape, steps, index }) {
    const use = chipUse(shape);
    const step = steps[index];
    pill.textContent = use.fits ? "fits one SM" : "too large for one SM";
    pill.dataset.fits = use.fits ? "yes" : "no";
    sizes.textContent =
      `${formatBytes(use.shared)} of shared memory, ${formatBytes(use.registers)} of registers`;
    const entries = step ? onChip(steps, index, shape) : [];
    const largest = Math.max(...entries.map(({ bytes }) => bytes));
    held.dataset.empty = index < 0 ? "nothing yet" : "nothing: all has gone back to HBM";
    held.replaceChildren(...entries.map(({ name, level, bytes, words }) =>
      htmlNode("div", { "data-level": level },
        htmlNode("b", { text: name }),
        htmlNode("i", { style: `width: ${(100 * bytes) / largest}%` }),
        htmlNode("span", { text: formatBytes(bytes) }),
        htmlNode("span", { class: "bf-muted", text: words }))));
    drawRows(step, shape);
  }

  function drawRows(step, { order, seq_query, block_m }) {
    const cell = (text, same, role = "cell") =>
      htmlNode("span", { role, text, ...(same && { "data-same": "" }) });
    const change = (before, after) => (before === after ? showStatistic(after)
      : `${showStatistic(before)} → ${showStatistic(after)}`);
    const head = ["row", "m", "α", "ℓ", "O"].map((text) => cell(text, true, "columnheader"));
    const lines = (step?.rows ?? []).map(({ row, before, max, sum, rescale, output }) =>
      htmlNode("div", { role: "row", class: "ts-row", "data-row": row },
        cell(String(row + 1), true), cell(change(before.max, max), before.max === max),
        cell(showStatistic(rescale), rescale === 1), cell(change(before.sum, sum), before.sum === sum),
        cell(change(before.output[0], output[0]), before.output[0] === output[0])));
    rows.replaceChildren(htmlNode("div", { role: "row", class: "ts-row" }, ...head), ...lines);
    rows.style.height = `${17 * (Math.min(block_m, seq_query) + 1)}px`;
    const output = order === "keys" ? "(ℓ · α · O + P̃V) / ℓ′"
      : step?.last ? "(α · O + P̃V) / ℓ′" : "α · O + P̃V";
    rule.replaceChildren(...[...RULES, `O′ = ${output}`].map((text) => htmlNode("span", { text })));
  }
  return { node, draw };
}

// ---- the bytes ----------------------------------------------------------------------------------

const BAR = 24;

/** One bar a way to compute attention: what it has moved, tensor by tensor. */
function lane(id, name, words, source) {
  const total = htmlNode("span", { "data-name": `total-${name}` });
  const svg = svgNode("svg", { height: BAR, "aria-hidden": "true" });
  const detail = htmlNode("div", { class: "ts-detail bf-muted" });
  const node = htmlNode("div", { class: "ts-lane", "data-lane": name },
    htmlNode("div", { class: "ts-lane-head" },
      htmlNode("span", {}, htmlNode("b", { text: words }),
        htmlNode("span", { class: "bf-muted ts-source", text: `, ${source}` })),
      total),
    svg, detail);
  const rects = {};
  const rect = (key, attributes) =>
    setAttributes(rects[key] ??= svg.appendChild(svgNode("rect")), attributes);
  const letters = svgNode("g");

  /** `moved` has bytes so far, `whole` is the total where it may be told. */
  function draw({ moved, whole, scale, width, now }) {
    node.toggleAttribute("data-now", now);
    total.textContent = now ? formatBytes(moved.total) : whole ? formatBytes(whole) : "?";
    let at = 0;
    letters.replaceChildren();
    for (const [tensor, { once, again }] of Object.entries(moved.tensors)) {
      const [first, second] = [once * scale, again * scale];
      const style = "SP".includes(tensor) ? `fill: ${tensorFill(id, tensor)}` : "";
      const part = (key, name, x, width) => rect(`${tensor} ${key}`, {
        class: name, x, y: 1, width, height: BAR - 2, style, "stroke-width": width > 1 ? 1 : 0,
      });
      part("once", style ? "ts-square" : "ts-first", at, first);
      part("again", "ts-again", at + first, second);
      const width = first + second;
      if (width > 16) {
        letters.append(svgNode("text", { class: "ts-letter ts-halo", x: at + width / 2, y: BAR / 2 + 5,
          "text-anchor": "middle", text: tensor }));
      }
      at += width;
    }
    const unknown = !whole && !now;
    const ghost = unknown ? width : now ? whole * scale : 0;
    rect("whole", { class: "ts-ghost", x: .5, y: 1, width: Math.max(0, ghost - 1), height: BAR - 2 });
    if (unknown) {
      letters.append(svgNode("text", { class: "bf-muted", x: width / 2, y: BAR / 2 + 4,
        "text-anchor": "middle", text: "more or less? shown when a run has ended" }));
    }
    svg.append(letters);
    detail.replaceChildren(...Object.entries(moved.tensors)
      .filter(([, { once, again }]) => once + again > 0)
      .map(([tensor, { once, again }]) => htmlNode("span", {
        "data-tensor": tensor, "data-number": once + again, text: `${tensor} ${formatBytes(once + again)}`,
      })));
  }
  return { node, draw };
}

function lanes(id) {
  const all = {
    keys: lane(id, "keys", ORDERS.keys.name, ORDERS.keys.source),
    queries: lane(id, "queries", ORDERS.queries.name, ORDERS.queries.source),
    standard: lane(id, "standard", "Standard attention", "each matrix once a kernel"),
  };
  const node = htmlNode("div", { class: "ts-lanes" },
    svgNode("svg", { width: 0, height: 0, "aria-hidden": "true" }, tensorPatterns(id)),
    htmlNode("div", { class: "ts-place", text: "Bytes that cross, one head" }),
    ...Object.values(all).map((one) => one.node));

  function draw({ shape, soFar, totals, revealed, width }) {
    const scale = Math.max(0, width - 1) / Math.max(...Object.values(totals).map(({ total }) => total));
    for (const [name, { draw: drawLane }] of Object.entries(all)) {
      const now = name === shape.order;
      const told = revealed || name === "standard";
      const moved = now ? soFar : told ? totals[name] : movedBy([]);
      drawLane({ moved, whole: told ? totals[name].total : 0, scale, width, now });
    }
  }
  return { node, draw };
}

function keys(id) {
  const hbm = "stroke: var(--bf-hbm)";
  return swatches({
    "lies in HBM": `fill: var(--bf-paper); ${hbm}`,
    "crossed once": `fill: var(--bf-hbm-light); ${hbm}`,
    "crossed again": `fill: var(--bf-hbm-mid); ${hbm}`,
    "in SRAM now": "fill: var(--bf-sram)",
    "in registers now": "fill: var(--bf-registers)",
    "computed before, forgotten":
      "fill: color-mix(in srgb, var(--bf-registers) 24%, var(--bf-paper)); stroke: var(--bf-muted)",
  });
}

// ---- the figure ---------------------------------------------------------------------------------

const CONTROLS = ["order", "causal", "seq_query", "seq_key", "block_m", "block_n"];
const FIXED = ["head_dim", "dtype", "row_tokens"];

/** A run of any length plays in about half a minute, and a short one not hastily. */
const playInterval = (count) => Math.max(120, Math.min(1600, 30000 / count));

function render({ model, el }) {
  const id = uniqueId("tile-stepper");
  const root = figureFrame(el, "FlashAttention, tile by tile", CSS);
  const lengths = Array.from({ length: 13 }, (_, index) => index + 4);
  const shapeNow = () => Object.fromEntries([...CONTROLS, ...FIXED].map((key) => [key, model.get(key)]));
  const lastStep = () => tileTrace(shapeNow()).length + 1;
  const tokens = (count) => formatInteger(count * model.get("row_tokens"));

  const controls = [
    choice({ id, model, key: "order", label: "Outer loop over", values: ["keys", "queries"] }),
    choice({ id, model, key: "causal", label: "Mask", values: [false, true],
      show: (causal) => (causal ? "causal" : "none") }),
    slider({ id, model, key: "seq_query", label: "Queries (rows)", values: lengths }),
    slider({ id, model, key: "seq_key", label: "Keys (columns)", values: lengths }),
    choice({ id, model, key: "block_m", label: "Rows in a tile", values: [1, 2, 4, 8] }),
    choice({ id, model, key: "block_n", label: "Columns in a tile", values: [1, 2, 4, 8] }),
  ];
  const steps = transport({ model, key: "step", last: lastStep, interval: () => playInterval(lastStep()) });
  const position = htmlNode("span", { class: "bf-muted ts-position" });
  const words = htmlNode("span");
  const alsoSaid = htmlNode("span", { class: "bf-hidden" });
  const picture = hbm();
  const panel = chip();
  const bars = lanes(id);
  const scaleNote = htmlNode("p");
  const stage = htmlNode("div", { class: "ts-stage" }, picture.svg, panel.node);
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "FlashAttention, tile by tile" }),
      htmlNode("span", { class: "bf-muted", text: "one head: what crosses between HBM and the chip" })),
    htmlNode("div", { class: "bf-controls ts-controls" }, ...controls.map(({ node }) => node)),
    htmlNode("div", { class: "ts-step" }, htmlNode("div", { class: "ts-bar" }, steps.node, position),
      htmlNode("p", { class: "ts-caption", role: "status" }, words, alsoSaid)),
    stage, bars.node,
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id), scaleNote),
  );

  let revealed = false;
  let width = 0;

  function draw() {
    const shape = shapeNow();
    const trace = tileTrace(shape);
    const last = trace.length + 1;
    const step = Math.min(model.get("step"), last);
    const index = step - 1; // of the visit; none at the first step and at the last
    const orders = Object.keys(ORDERS).map((order) => [order, movedBy(tileTrace({ ...shape, order }))]);
    const totals = { ...Object.fromEntries(orders), standard: standardBytes(shape) };
    const soFar = movedBy(trace.slice(0, step));
    revealed ||= step === last;
    controls.forEach(({ refresh }) => refresh());
    steps.refresh();
    position.replaceChildren(htmlNode("span", { class: "ts-long", text: `step ${step} of ${last}` }),
      htmlNode("span", { class: "ts-short", text: `${step} / ${last}` }));
    const sentence = step === 0 ? startCaption(shape)
      : step === last ? endCaption(shape, totals) : visitCaption(trace[index], trace, shape);
    words.textContent = sentence.replaceAll(" kB", "\u00a0kB").replaceAll(" MB", "\u00a0MB");
    alsoSaid.textContent = ` So far ${formatBytes(soFar.total)}: ` + Object.entries(soFar.tensors)
      .map(([tensor, { once, again }]) => `${tensor} ${formatBytes(once + again)}`).join(", ") + ".";
    scaleNote.textContent =
      "A number in a tile says how often it has crossed. For the bytes, a row or column of the picture " +
      `stands for ${formatInteger(shape.row_tokens)} tokens of a head with d = ${shape.head_dim} in ` +
      `${shape.dtype}: ${tokens(shape.seq_query)} queries, ${tokens(shape.seq_key)} keys. O is kept in ` +
      "float32 until it is finished; L is the logsumexp. One SM of an H100 has " +
      `${formatBytes(SHARED_MEMORY)} of shared memory for a program and ${formatBytes(REGISTERS)} of registers. The scores are a small ` +
      "example, one query a row and one key a column; O shows the first of its numbers.";
    panel.draw({ shape, steps: trace, index });
    if (!width) return;
    picture.draw({ shape, steps: trace, index, place: layout(pictureSize(), shape) });
    bars.draw({ shape, soFar, totals, revealed, width: width - 32 });
  }

  /** Beside the chip the picture is as high as the chip with its longest table. */
  function pictureSize() {
    const { paddingLeft, paddingRight } = getComputedStyle(stage);
    const inner = width - parseFloat(paddingLeft) - parseFloat(paddingRight);
    return width >= 720 ? { width: Math.min(470, inner * 0.54), height: 406 } : { width: inner, height: 340 };
  }

  const events = [...CONTROLS, "step"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(root, (newWidth) => { width = newWidth; draw(); });
  return () => {
    steps.stop();
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
