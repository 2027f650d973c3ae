// Rounding a matrix to FP8: the numbers of the format, the scale that elements share, and the rotation
// that spreads an outlier over its row.

// ---- the model ----------------------------------------------------------------------------------
// All in float64, but for the rounding to FP8 itself.

export const ROWS = 16;
export const CHANNELS = 64;
const DECADES = [1, 10, 100, 1e3, 1e4, 1e5];
export const OUTLIERS = [...DECADES.flatMap((decade) => [decade, 2 * decade, 5 * decade]), 1e6];

/** Bits of the fraction, the exponent of the smallest normal number, and the largest number. */
export const FORMATS = {
  e4m3: { fraction: 3, lowest: -6, largest: 448 },
  e5m2: { fraction: 2, lowest: -14, largest: 57344 },
};

/** The whole part of a positive number's binary logarithm, exactly. */
function exponentOf(number) {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, number);
  return ((bits.getUint32(0) >> 20) & 0x7ff) - 1023;
}

/** The nearest number of the format; of two as near, the one with an even fraction; beyond the largest,
 * the largest. */
export function roundTo(name, number) {
  const { fraction, lowest, largest } = FORMATS[name];
  const magnitude = Math.min(Math.abs(number), largest);
  const step = 2 ** (Math.max(exponentOf(magnitude), lowest) - fraction);
  // 2^52 leaves float64 no bits for fractions, so the addition rounds, and to even.
  const rounded = (magnitude / step + 2 ** 52 - 2 ** 52) * step;
  return number < 0 || Object.is(number, -0) ? -rounded : rounded;
}

/** Every number of the format from 0 up. */
export function numbersOf(name) {
  const { fraction, lowest, largest } = FORMATS[name];
  const numbers = [];
  for (let code = 0; numbers.at(-1) !== largest; code += 1) {
    const [exponent, rest] = [code >> fraction, code & (2 ** fraction - 1)];
    const whole = exponent === 0 ? rest : rest + 2 ** fraction;
    numbers.push(whole * 2 ** (lowest - fraction + Math.max(0, exponent - 1)));
  }
  return numbers;
}

/** Uniform numbers in [0, 1): the generator mulberry32, which needs nothing but 32-bit integers. */
export function uniforms(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One normal number, cut to multiples of 2^-20: the same in every browser. */
function normal(uniform) {
  const [first, second] = [uniform(), uniform()];
  const number = Math.sqrt(-2 * Math.log(1 - first)) * Math.cos(2 * Math.PI * second);
  return Math.round(number * 2 ** 20) / 2 ** 20;
}

const OUTLIER_CHANNEL = 21;
const OUTLIER_ROWS = { query: 6, key: 11 };
const TAIL = 0.02;

/** Whether an element is an outlier: [row][channel]. Of a heavy tail all are ordinary. */
const isOutlier = (distribution, outlierRow) => (row, channel) =>
  channel === OUTLIER_CHANNEL &&
  (distribution === "outlier channel" || (distribution === "outlier element" && row === outlierRow));

/** The matrix, one Float64Array a row. `role` is "query" for the matrix shown and "key" for the other. */
export function drawMatrix({ distribution, outlier, seed }, role = "query") {
  const uniform = uniforms(2 * seed + (role === "key" ? 1 : 0));
  const larger = isOutlier(distribution, OUTLIER_ROWS[role]);
  return Array.from({ length: ROWS }, (_, row) => Float64Array.from({ length: CHANNELS }, (_, channel) => {
    const number = normal(uniform);
    const inTail = uniform() < TAIL; // drawn for every distribution, so that they share their numbers
    if (distribution === "heavy tail") return inTail ? number * outlier : number;
    if (!larger(row, channel)) return number;
    return distribution === "outlier channel" ? number * outlier : Math.sign(number) * outlier;
  }));
}

export function randomSigns(seed) {
  const uniform = uniforms(~seed);
  return Array.from({ length: CHANNELS }, () => (uniform() < 0.5 ? -1 : 1));
}

/** A row times the Hadamard matrix over √64, in butterflies: six rounds of sums and differences. */
export function hadamard(row) {
  const mixed = Float64Array.from(row);
  for (let half = 1; half < mixed.length; half *= 2) {
    for (let at = 0; at < mixed.length; at += 1) {
      if (at & half) continue;
      const [one, other] = [mixed[at], mixed[at + half]];
      mixed[at] = one + other;
      mixed[at + half] = one - other;
    }
  }
  return mixed.map((number) => number / Math.sqrt(row.length));
}

const rotate = (matrix, signs) =>
  matrix.map((row) => hadamard(row.map((number, channel) => number * signs[channel])));
/** The matrix is its own inverse, and so are the signs. */
const rotateBack = (matrix, signs) =>
  matrix.map((row) => hadamard(row).map((number, channel) => number * signs[channel]));

const ROWS_SHARING = { tensor: ROWS, block: 4, row: 1 };

const largestOf = (rows) =>
  rows.reduce((most, row) => row.reduce((best, number) => Math.max(best, Math.abs(number)), most), 0);

/** The scale of each row: the largest magnitude of what shares it over the format's largest number. */
export function scalesOf(matrix, sharing, format) {
  if (sharing === "none") return matrix.map(() => 1);
  const rows = ROWS_SHARING[sharing];
  return matrix.map((_, row) => {
    const first = row - (row % rows);
    return largestOf(matrix.slice(first, first + rows)) / FORMATS[format].largest;
  });
}

/** Rounds a matrix: what it was over its scales, what that was rounded to, and what it stands for. */
function quantize(matrix, { sharing, format }) {
  const scales = scalesOf(matrix, sharing, format);
  const scaled = matrix.map((row, index) => row.map((number) => number / scales[index]));
  const codes = scaled.map((row) => row.map((number) => roundTo(format, number)));
  const values = codes.map((row, index) => row.map((number) => number * scales[index]));
  return { scales, scaled, codes, values };
}

const subtract = (one, other) =>
  one.map((row, index) => row.map((number, channel) => number - other[index][channel]));
const products = (queries, keys) => queries.map((query) => Float64Array.from(keys, (key) =>
  query.reduce((total, number, channel) => total + number * key[channel], 0)));

/** The root of the sum of the squares of the elements for which `counts(row, channel)` is true. */
function norm(matrix, counts = () => true) {
  let total = 0;
  matrix.forEach((row, index) => row.forEach((number, channel) => {
    if (counts(index, channel)) total += number * number;
  }));
  return Math.sqrt(total);
}

function count(matrix, counted) {
  return matrix.reduce((total, row, index) =>
    total + row.reduce((some, _, channel) => some + (counted(index, channel) ? 1 : 0), 0), 0);
}

/** Whether it is more than half a step beyond the largest number. */
export const saturates = (format, scaled) => {
  const { largest, fraction } = FORMATS[format];
  return Math.abs(scaled) > largest + 2 ** (exponentOf(largest) - fraction - 1);
};

/** Everything the figure shows of one setting. Errors are relative to what they are errors of. */
export function quantizationModel(options) {
  const { distribution, format, rotated, seed } = options;
  const data = drawMatrix(options);
  const keys = drawMatrix(options, "key");
  const signs = randomSigns(seed);
  const turned = rotated ? rotate(data, signs) : data;
  const rounded = quantize(turned, options);
  const roundedKeys = quantize(rotated ? rotate(keys, signs) : keys, options).values;
  const error = subtract(rotated ? rotateBack(rounded.values, signs) : rounded.values, data);
  const outlier = isOutlier(distribution, OUTLIER_ROWS.query);
  const ordinary = (row, channel) => !outlier(row, channel);
  const scores = products(data, keys);
  const { scaled, codes } = rounded;
  return {
    ...rounded, data, turned, error,
    largest: largestOf(turned),
    dataError: norm(error) / norm(data),
    ordinaryError: norm(error, ordinary) / norm(data, ordinary),
    scoresError: norm(subtract(products(rounded.values, roundedKeys), scores)) / norm(scores),
    zeros: count(codes, (row, channel) => codes[row][channel] === 0 && scaled[row][channel] !== 0),
    saturated: count(scaled, (row, channel) => saturates(format, scaled[row][channel])),
  };
}

const SHARINGS = ["none", "tensor", "block", "row"];

/** The errors of all ways to scale, as they are and rotated. */
export const alternatives = (options) => [false, true].map((rotated) =>
  SHARINGS.map((sharing) => {
    const { dataError, scoresError } = quantizationModel({ ...options, rotated, sharing });
    return { rotated, sharing, dataError, scoresError };
  }));

/** How many elements lie in each bin of the number line: `edges` ascend, what is beyond counts at the end. */
export function histogram(numbers, edges) {
  const counts = Array(edges.length - 1).fill(0);
  for (const number of numbers) {
    let bin = edges.findIndex((edge) => edge > number) - 1;
    if (bin === -2) bin = counts.length - 1;
    counts[Math.max(0, bin)] += 1;
  }
  return counts;
}

// ---- the words ----------------------------------------------------------------------------------

const superscript = (number) =>
  [...String(number)].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign])).join("");
const powerOfTwo = (exponent) => `2${superscript(exponent)}`;

/** Three digits, with a true minus. */
export function showNumber(number) {
  const magnitude = Math.abs(number);
  const sign = number < 0 ? "−" : "";
  if (magnitude === 0) return "0";
  if (magnitude >= 999.5) return sign + formatInteger(Math.round(magnitude));
  if (magnitude >= 0.001) return sign + String(Number(magnitude.toPrecision(3)));
  const [digits, exponent] = magnitude.toExponential(1).split("e");
  return `${sign}${digits} · 10${superscript(exponent)}`;
}

/** An error in percent: three digits, since the interesting ones are small. */
export function showError(error) {
  const percent = 100 * error;
  if (percent >= 999.5) return `${formatInteger(Math.round(percent))}%`;
  if (percent > 0 && percent < 0.005) return "<0.01%";
  return `${percent >= 10 ? percent.toPrecision(3) : percent.toFixed(2)}%`;
}

const SHARING_NAMES = { none: "no scale", tensor: "tensor", block: "4 rows", row: "row" };
const DISTRIBUTION_NAMES = {
  gaussian: "Gaussian", "heavy tail": "heavy tail: one in fifty is large",
  "outlier channel": "Gaussian, one outlier channel", "outlier element": "Gaussian, one outlier element",
};

/** Where an ordinary element lies among the numbers of the format, and what that does to it. */
function landing({ format }, { scales }) {
  const { fraction, lowest } = FORMATS[format];
  const place = 1 / Math.max(...scales);
  const lands = `Next to the largest element, one of size 1 lands at ${showNumber(place)}`;
  if (place >= 2 ** lowest) return `${lands}, among the normal numbers: it keeps its ${fraction + 1} bits.`;
  if (place > 2 ** (lowest - fraction - 1)) {
    return `${lands}, below ${powerOfTwo(lowest)}, the smallest normal number: it loses bits.`;
  }
  return `${lands}, nearer to 0 than to the smallest number, ${powerOfTwo(lowest - fraction)}: it is lost.`;
}

const hasOutliers = ({ distribution, outlier }) => distribution !== "gaussian" && outlier > 1;

function sharingLesson(options, model) {
  const { sharing, distribution, format, rotated } = options;
  if (sharing === "none") {
    const largest = formatInteger(FORMATS[format].largest);
    return model.saturated ? `Without a scale, what is beyond ${largest} becomes ${largest}: it saturates.`
      : `Without a scale nothing is brought to ${largest}: the top of the range lies idle.`;
  }
  if (sharing === "tensor") return `The largest element sets the scale of all. ${landing(options, model)}`;
  if (!hasOutliers(options)) return "All rows are alike, so sharing with fewer gains little.";
  const group = sharing === "row" ? "row" : "group of 4 rows";
  if (distribution === "outlier element") {
    return `The outlier sets the scale of its own ${group} only: the others are spared.`;
  }
  if (distribution === "heavy tail") return `Each ${group} follows its own largest element.`;
  if (sharing === "row" && !rotated) {
    return "Where the outlier sets the scale of its row it is rounded exactly; but every row has one.";
  }
  return `The channel crosses every ${group}: a smaller group does not escape it.`;
}

function rotationLesson(options, model, before) {
  if (!hasOutliers(options)) return "Without an outlier little changes: what was Gaussian stays Gaussian.";
  const sizes = `The largest element goes from ${showNumber(before.largest)} to ${showNumber(model.largest)}`;
  if (!options.rotated) return `${sizes}: each outlier is back in one element, with its error.`;
  const spread = `${sizes}: each outlier is spread over its row, and so is its error.`;
  return model.ordinaryError > 1.2 * before.ordinaryError
    ? `${spread} The ordinary elements carry a share of it.` : spread;
}

const FORMAT_LESSONS = {
  e4m3: "e4m3 has a fraction of 3 bits: numbers lie twice as close as e5m2's, but only from 2⁻⁹ to 448.",
  e5m2: "e5m2 has a fraction of 2 bits: about twice the error, but a range from 2⁻¹⁶ to 57,344.",
};

function distributionLesson(options) {
  const { distribution, outlier } = options;
  if (distribution !== "gaussian" && !hasOutliers(options)) return "An outlier as large as the rest is none.";
  const large = `${formatInteger(outlier)} times as large`;
  switch (distribution) {
    case "gaussian": return "No element stands out: any scale will do that keeps all in the range.";
    case "heavy tail": return `One element in fifty is ${large}, in most rows.`;
    case "outlier channel": return `One channel is ${large}, in every row.`;
    default: return `One element is ${large} as the others. Where it sets a scale, it is rounded exactly.`;
  }
}

const CHOICES = ["distribution", "outlier", "format", "sharing", "rotated", "seed"];

/** What changed since `before`, a setting and its model, and why. */
export function lesson(options, model, before) {
  const changed = before && CHOICES.find((key) => options[key] !== before.options[key]);
  switch (changed) {
    case "sharing": return sharingLesson(options, model);
    case "rotated": return rotationLesson(options, model, before.model);
    case "format": return FORMAT_LESSONS[options.format];
    case "distribution": return distributionLesson(options);
    default: return options.sharing === "none" ? sharingLesson(options, model) : landing(options, model);
  }
}

/** The errors and how they were before; that of ordinary elements only where it is another one. */
function verdict(options, model, before) {
  const said = { "Error of the data": "dataError" };
  if (options.distribution.startsWith("outlier")) said["of ordinary elements"] = "ordinaryError";
  said["of QKᵀ"] = "scoresError";
  const errors = Object.entries(said).map(([words, name]) =>
    `${words} ${before ? `${showError(before.model[name])} → ` : ""}${showError(model[name])}`);
  return `${errors.join(", ")}. ${lesson(options, model, before)}`;
}

/** The element that is followed, step by step. */
export function elementText({ format, sharing, rotated }, model, element) {
  const [row, channel] = [Math.floor(element / CHANNELS), element % CHANNELS];
  const at = (matrix) => showNumber(matrix[row][channel]);
  // What float64 itself rounds is no error of the format.
  const error = model.error[row][channel];
  const lost = Math.abs(error) < 2 ** -40 * largestOf(model.data) ? 0 : error;
  const scale = sharing === "none" ? "" : ` / ${showNumber(model.scales[row])} = ${at(model.scaled)}`;
  return `Row ${row + 1}, channel ${channel + 1}: ${rotated ? `${at(model.data)}, rotated ` : ""}` +
    `${at(model.turned)}${scale}, in ${format} ${at(model.codes)}. ` +
    `Error of the data here: ${showNumber(lost)}.`;
}

// ---- the look -----------------------------------------------------------------------------------

const TONES = 14;
const toneRules = (name, colour) => Array.from({ length: TONES }, (_, tone) => {
  const part = Math.round((100 * tone) / (TONES - 1));
  return `.bf .qp-${name}-${tone} { fill: color-mix(in srgb, var(--bf-${colour}) ${part}%, var(--bf-wash)); }`;
}).join("\n");

const CSS = `
@container (min-width: 720px) { .bf .qp-controls { grid-template-columns: 1fr 1fr 1fr; } }
.bf .qp-controls [inert] { opacity: .4; }
.bf p.qp-verdict { padding: 11px 16px; font-size: 15px; min-height: calc(4.2em + 23px);
  border-bottom: 1px solid var(--bf-line); }
@container (max-width: 719.9px) { .bf p.qp-verdict { min-height: calc(5.6em + 23px); } }
@container (max-width: 559.9px) { .bf p.qp-verdict { font-size: 14px; min-height: calc(9.8em + 23px); } }
.bf .qp-part { padding: 10px 16px 12px; }
.bf .qp-part + .qp-part { border-top: 1px solid var(--bf-line); }
.bf .qp-head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: end; gap: 4px 16px;
  margin-bottom: 8px; }
.bf .qp-head strong { font-weight: 650; font-size: 13px; }
.bf .qp-head .bf-control { width: 19rem; max-width: 100%; }
.bf .qp-part > svg, .bf .qp-map > svg { width: 100%; overflow: visible; }
.bf .qp-map { position: relative; }
.bf .qp-map + .qp-head { margin-top: 12px; }
.bf .qp-picker { position: absolute; inset: 0; cursor: crosshair; touch-action: pan-y; border-radius: 3px; }
.bf .qp-picker:focus-visible { outline: 2px solid var(--bf-accent); outline-offset: 3px; }
.bf p.qp-element { margin-top: 8px; min-height: 1.4em; font-size: 13px; }
@container (max-width: 719.9px) { .bf p.qp-element { min-height: 2.8em; } }
@container (max-width: 479.9px) { .bf p.qp-element { min-height: 4.2em; } }
${toneRules("value", "hbm")}
${toneRules("error", "registers")}
.bf .qp-bound { fill: none; stroke: var(--bf-ink); }
.bf .qp-sets { fill: none; stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .qp-lost { fill: var(--bf-danger); }
.bf .qp-followed { fill: none; stroke: var(--bf-accent); stroke-width: 2; }
.bf .qp-bar { fill: var(--bf-hbm-mid); }
.bf .qp-bar[data-lost] { fill: var(--bf-danger); }
.bf .qp-axis { stroke: var(--bf-muted); }
.bf .qp-zone { stroke: var(--bf-line); stroke-dasharray: 3 3; }
.bf .qp-numbers-of { stroke: var(--bf-ink); }
.bf .qp-marker { fill: var(--bf-accent); }
.bf .qp-figures { display: grid; grid-template-columns: repeat(5, 1fr); gap: 1px;
  background: var(--bf-line); border-block: 1px solid var(--bf-line); }
.bf .qp-figure { background: var(--bf-paper); padding: 9px 16px 10px; min-width: 0; }
.bf .qp-figure b { display: block; font-size: 19px; line-height: 1.3; font-weight: 650; }
.bf .qp-figure .bf-muted { display: block; min-height: 2.8em; }
.bf .qp-figure .qp-before { min-height: 1.4em; }
@container (max-width: 719.9px) {
  .bf .qp-figures { grid-template-columns: 1fr 1fr; }
  .bf .qp-figure:first-child { grid-column: 1 / -1; }
}
@container (max-width: 719.9px) { .bf .qp-figure:first-child .bf-muted { min-height: 1.4em; } }
.bf .qp-table { font-size: 13px; }
.bf .qp-row { display: grid; grid-template-columns: 6.2rem repeat(4, 1fr); align-items: center; }
.bf .qp-row + .qp-row { border-top: 1px solid var(--bf-line); }
.bf .qp-row > * { padding: 4px 8px; }
.bf .qp-row > :first-child { padding-left: 0; }
.bf .qp-row b { display: block; font-weight: 650; }
.bf .qp-row [aria-current="true"] { background: var(--bf-ink); color: var(--bf-paper); border-radius: 6px; }
.bf .qp-row [aria-current="true"] .bf-muted { color: inherit; }
@container (max-width: 559.9px) {
  .bf .qp-row { grid-template-columns: 3.6rem repeat(4, 1fr); font-size: 12px; }
  .bf .qp-row > * { padding: 4px 3px; }
}
`;

// ---- the number line ----------------------------------------------------------------------------

const LINE = { top: 34, floor: 146, comb: 12, height: 188 };
const BINS = 80;

/** Where numbers lie on the line: `place` in [0, 1], the bins' edges, the numbers that are named. */
function lineScale({ format, line }) {
  const { fraction, lowest, largest } = FORMATS[format];
  if (line === "evenly") {
    return {
      place: (number) => 0.5 + Math.max(-1, Math.min(1, number / largest)) / 2,
      edges: Array.from({ length: BINS + 1 }, (_, bin) => ((2 * bin) / BINS - 1) * largest),
      marks: [-1, -0.5, 0, 0.5, 1].map((part) => [part * largest, showNumber(part * largest)]),
      zones: [],
    };
  }
  // Three powers below half of the smallest number, and one above the largest.
  const [first, last] = [lowest - fraction - 4, exponentOf(largest) + 2];
  const place = (number) => {
    const power = number === 0 ? first : Math.log2(Math.abs(number));
    return Math.max(0, Math.min(1, (power - first) / (last - first)));
  };
  const powers = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  return {
    place, marks: powers.map((power) => [2 ** power, powerOfTwo(power)]),
    edges: Array.from({ length: 2 * (last - first) + 1 }, (_, half) => 2 ** (first + half / 2)),
    zones: [
      { from: 2 ** first, to: 2 ** (lowest - fraction - 1), text: "→ 0", y: 12, lost: true },
      { from: 2 ** (lowest - fraction - 1), to: 2 ** lowest, text: "subnormal", y: 26 },
      { from: 2 ** lowest, to: largest, text: "normal", y: 12 },
    ],
  };
}

function numberLine() {
  const svg = svgNode("svg", { height: LINE.height, "aria-hidden": "true" });
  const still = svgNode("g");
  const marker = svgNode("path", { class: "qp-marker" });
  svg.append(still, marker);
  let x = null;

  function draw(options, model, width) {
    const { place, edges, marks, zones } = lineScale(options);
    const margin = 6;
    x = (number) => margin + (width - 2 * margin) * place(number);
    const { largest } = FORMATS[options.format];
    const nodes = [];
    const add = (tag, attributes) => nodes.push(svgNode(tag, attributes));
    const signed = options.line === "evenly";
    const all = model.scaled.flatMap((row) => [...row].map((number) => (signed ? number : Math.abs(number))));
    const counts = histogram(all, edges);
    // By the logarithm, or one outlier among a thousand would not be seen.
    const unit = (LINE.floor - LINE.top) / Math.log2(1 + ROWS * CHANNELS);
    counts.forEach((count, bin) => {
      if (!count) return;
      const [left, right] = [x(edges[bin]), x(edges[bin + 1])];
      const height = unit * Math.log2(1 + count);
      const lost = zones.some(({ to, lost: gone }) => gone && edges[bin + 1] <= to);
      const box = { x: left, width: Math.max(1, right - left - 1), y: LINE.floor - height, height };
      add("rect", { class: "qp-bar", ...box, "data-count": count, ...(lost && { "data-lost": "" }) });
    });
    for (const { from, to, text, y } of zones) {
      add("line", { class: "qp-zone", x1: x(to), x2: x(to), y1: 2, y2: LINE.floor });
      add("text", { class: "bf-muted", x: (x(from) + x(to)) / 2, y, "text-anchor": "middle", text });
    }
    add("line", { class: "qp-axis", x1: margin, x2: width - margin, y1: LINE.floor, y2: LINE.floor });
    const positive = numbersOf(options.format);
    const shown = signed ? [...positive.map((number) => -number), ...positive] : positive.slice(1);
    const comb = shown.map((number) => `M${x(number).toFixed(2)} ${LINE.floor + 3}v${LINE.comb}`);
    // Where they lie closer than a pixel, thinner lines would be no truer.
    add("path", { class: "qp-numbers-of", d: comb.join(""), "stroke-width": width < 560 ? 0.5 : 0.8 });
    const room = 42;
    const skip = Math.max(1, Math.ceil((room * marks.length) / width));
    // Of the powers, the smallest normal number is named in any case.
    const normal = 2 ** FORMATS[options.format].lowest;
    const named = signed ? 0 : marks.findIndex(([number]) => number === normal) % skip;
    marks.forEach(([number, text], index) => {
      if (index % skip !== named || number > largest) return;
      const anchor = index === 0 ? "start" : signed && index === marks.length - 1 ? "end" : "middle";
      const at = anchor === "middle" ? x(number) : anchor === "start" ? 0 : width;
      add("text", { class: "bf-muted", x: at, y: LINE.floor + 32, "text-anchor": anchor, text });
    });
    still.replaceChildren(...nodes);
  }

  /** Points at the number that the followed element is rounded to. */
  function follow(code) {
    setAttributes(marker, { d: `M${x(code).toFixed(2)} ${LINE.floor + 1}l-5 -8h10z` });
  }
  return { svg, draw, follow };
}

// ---- the maps -----------------------------------------------------------------------------------

/** A cell for each element, by tone: `tone(row, channel)` is from 0 to 1. */
function tonePaths(name, tone, cell) {
  const paths = Array.from({ length: TONES }, () => []);
  for (let row = 0; row < ROWS; row += 1) {
    for (let channel = 0; channel < CHANNELS; channel += 1) {
      const level = Math.round((TONES - 1) * Math.max(0, Math.min(1, tone(row, channel))));
      const { x, y } = cell.at(row, channel);
      const across = cell.width.toFixed(2);
      paths[level].push(`M${x.toFixed(2)} ${y}h${across}v${cell.height}h-${across}z`);
    }
  }
  return paths.map((parts, level) => svgNode("path", {
    class: `qp-${name}-${level}`, d: parts.join(""), "shape-rendering": "crispEdges",
  }));
}

function heatMap(name) {
  const svg = svgNode("svg", { "aria-hidden": "true" });
  const still = svgNode("g");
  const followed = svgNode("rect", { class: "qp-followed" });
  svg.append(still, followed);
  const node = htmlNode("div", { class: "qp-map", "data-map": name }, svg);
  let cell = null;

  /** `marks(cell)` gives what is drawn over the cells. */
  function draw(tone, width, marks) {
    const size = { width: width / CHANNELS, height: width < 560 ? 8 : 11 };
    cell = { ...size, at: (row, channel) => ({ x: channel * size.width, y: row * size.height }) };
    setAttributes(svg, { height: ROWS * cell.height });
    still.replaceChildren(...tonePaths(name, tone, cell), ...marks(cell));
  }

  function follow(element) {
    const { x, y } = cell.at(Math.floor(element / CHANNELS), element % CHANNELS);
    setAttributes(followed, { x: x - 1, y: y - 1, width: cell.width + 2, height: cell.height + 2 });
  }
  return { node, draw, follow };
}

/** Tones go with the logarithm, from `least` to `most`. */
const logTone = (least, most) => (number) =>
  (number === 0 ? 0 : (Math.log2(Math.abs(number)) - Math.log2(least)) / (Math.log2(most) - Math.log2(least)));

/** The bounds of what shares a scale, the element that sets each, and what is lost. */
function valueMarks({ sharing, format }, { turned, scaled, codes }, cell) {
  const outlines = [];
  if (sharing !== "none") {
    const rows = ROWS_SHARING[sharing];
    for (let first = 0; first < ROWS; first += rows) {
      outlines.push(svgNode("rect", { class: "qp-bound", x: 0, y: first * cell.height, "data-group": first,
        width: cell.width * CHANNELS, height: rows * cell.height, "stroke-width": rows === 1 ? 0.5 : 1 }));
    }
    for (let first = 0; first < ROWS; first += rows) {
      const largest = largestOf(turned.slice(first, first + rows));
      const row = turned.findIndex((numbers, index) =>
        index >= first && numbers.some((number) => Math.abs(number) === largest));
      const channel = turned[row].findIndex((number) => Math.abs(number) === largest);
      const { x, y } = cell.at(row, channel);
      outlines.push(svgNode("rect", { class: "qp-sets", "data-sets": row * CHANNELS + channel,
        x: x - 1, y: y - 1, width: cell.width + 2, height: cell.height + 2 }));
    }
  }
  const [zeros, saturated] = [[], []];
  codes.forEach((numbers, row) => numbers.forEach((code, channel) => {
    const { x, y } = cell.at(row, channel);
    const [w, h] = [cell.width, cell.height];
    const number = scaled[row][channel];
    if (code === 0 && number !== 0) zeros.push(`M${x + w / 4} ${y + h / 4}h${w / 2}v${h / 2}h${-w / 2}z`);
    else if (saturates(format, number)) saturated.push(`M${x} ${y}h${w}v${h}h${-w}z`);
  }));
  return [...outlines, svgNode("path", { class: "qp-lost", d: zeros.join("") }),
    svgNode("path", { class: "qp-lost", d: saturated.join("") })];
}

const KEY_STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -CHANNELS, ArrowDown: CHANNELS };

/** A slider in two directions over the upper map: which element is followed. */
function picker(model) {
  const node = htmlNode("div", {
    class: "qp-picker", role: "slider", tabindex: 0, "aria-label": "Element", "data-key": "element",
    "aria-valuemin": 1, "aria-valuemax": ROWS * CHANNELS,
  });
  const pick = (element) => {
    model.set("element", element);
    model.save_changes();
  };
  const fromPointer = (event) => {
    const box = node.getBoundingClientRect();
    const within = (part, count) => Math.max(0, Math.min(count - 1, Math.floor(part * count)));
    pick(CHANNELS * within((event.clientY - box.top) / box.height, ROWS) +
      within((event.clientX - box.left) / box.width, CHANNELS));
  };
  node.addEventListener("pointerdown", (event) => {
    node.setPointerCapture(event.pointerId);
    fromPointer(event);
  });
  node.addEventListener("pointermove", (event) => {
    if (node.hasPointerCapture(event.pointerId)) fromPointer(event);
  });
  node.addEventListener("keydown", (event) => {
    const change = KEY_STEPS[event.key];
    if (change === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const target = model.get("element") + change;
    if (target >= 0 && target < ROWS * CHANNELS) pick(target);
  });
  const refresh = (text) =>
    setAttributes(node, { "aria-valuenow": model.get("element") + 1, "aria-valuetext": text });
  return { node, refresh };
}

// ---- the numbers --------------------------------------------------------------------------------

const FIGURES = {
  dataError: { words: "error of the data (root mean square), over theirs", show: showError },
  ordinaryError: { words: "error of the ordinary elements, over theirs", show: showError },
  scoresError: { words: "error of the scores QKᵀ, over theirs", show: showError },
  zeros: { words: `of ${formatInteger(ROWS * CHANNELS)} elements fall to zero`, show: formatInteger },
  saturated: { words: "saturate at the largest number", show: formatInteger },
};

function figures() {
  const parts = Object.entries(FIGURES).map(([name, { words, show }]) => {
    const value = htmlNode("b", { "data-name": name });
    const was = htmlNode("span", { class: "bf-muted qp-before" });
    const draw = (model, before) => {
      value.textContent = show(model[name]);
      value.dataset.number = model[name];
      was.textContent = before ? `before: ${show(before.model[name])}` : "";
    };
    const below = htmlNode("span", { class: "bf-muted", text: words });
    return { node: htmlNode("div", { class: "qp-figure" }, value, below, was), draw };
  });
  const node = htmlNode("div", { class: "qp-figures" }, ...parts.map((part) => part.node));
  return { node, draw: (...shown) => parts.forEach((part) => part.draw(...shown)) };
}

/** The errors of every sharing, rotated or not; the chosen one stands out. */
function comparison() {
  const label = "Errors of all ways to scale";
  const node = htmlNode("div", { class: "qp-table", role: "table", "aria-label": label });
  const heading = (text) => htmlNode("span", { role: "columnheader", text });
  const head = htmlNode("div", { class: "qp-row bf-muted", role: "row" },
    ...["A scale for", ...SHARINGS.map((sharing) => SHARING_NAMES[sharing])].map(heading));

  function draw(options) {
    const rows = alternatives(options).map((cells, index) => htmlNode("div", { class: "qp-row", role: "row" },
      htmlNode("span", { role: "rowheader", text: index ? "rotated" : "as it is" }),
      ...cells.map(({ rotated, sharing, dataError, scoresError }) => htmlNode("span", {
        role: "cell", "data-cell": `${sharing} ${rotated}`, "data-errors": `${dataError} ${scoresError}`,
        "aria-current": rotated === options.rotated && sharing === options.sharing,
      }, htmlNode("b", { text: showError(dataError) }),
      htmlNode("span", { class: "bf-muted", text: `QKᵀ ${showError(scoresError)}` })))));
    node.replaceChildren(head, ...rows);
  }
  return { node, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const NOTES = "Sizes are in standard deviations of the ordinary elements. A scale is the largest magnitude of " +
  "what shares it over the format’s largest number. QKᵀ takes this matrix as Q and a second one, drawn " +
  "alike, as K: its outliers are in the same channel, it is rounded alike, and rotating both with the same " +
  "signs leaves QKᵀ as it is. An error of QKᵀ is large where an error in Q meets a large element of K; " +
  "a rotation spreads both. Computed in float64, rounded to nearest even. After Section 3.3 of " +
  "FlashAttention-3 (Shah et al., 2024).";

function keys() {
  return swatches({
    "an element, stronger is larger": "fill: var(--bf-hbm-mid)",
    "sets its group’s scale": "fill: none; stroke: var(--bf-ink); stroke-width: 1.5",
    "falls to zero (small) or saturates (whole cell)": "fill: var(--bf-danger)",
    "error, stronger is larger": "fill: var(--bf-registers-mid)",
    followed: "fill: none; stroke: var(--bf-accent); stroke-width: 2",
  });
}

function figureControls(id, model) {
  const control = (make, key, label, values, show) => make({ id, model, key, label, values, show });
  const named = (names) => (value) => names[value];
  return {
    distribution: control(select, "distribution", "The elements are",
      Object.entries(DISTRIBUTION_NAMES).map(([value, text]) => ({ value, text }))),
    outlier: control(slider, "outlier", "Outliers, times as large", OUTLIERS),
    format: control(choice, "format", "Format", Object.keys(FORMATS)),
    sharing: control(choice, "sharing", "A scale is shared by", SHARINGS,
      named({ ...SHARING_NAMES, none: "none" })),
    rotated: control(choice, "rotated", "Rows are rotated", [false, true], named({ false: "no", true: "yes" })),
  };
}

function render({ model, el }) {
  const id = uniqueId("quantization-playground");
  const root = figureFrame(el, "Rounding to FP8", CSS);
  const controls = figureControls(id, model);
  const lineChoice = choice({ id, model, key: "line", label: "Drawn", values: ["evenly", "powers"],
    show: (line) => (line === "evenly" ? "evenly" : "by powers of two") });
  const says = htmlNode("p", { class: "qp-verdict", role: "status" });
  const line = numberLine();
  const [values, errors] = [heatMap("value"), heatMap("error")];
  const pick = picker(model);
  values.node.append(pick.node);
  const element = htmlNode("p", { class: "qp-element" });
  const numbers = figures();
  const table = comparison();
  const head = (text, ...more) => htmlNode("div", { class: "qp-head" }, htmlNode("strong", { text }), ...more);
  const rounded = htmlNode("strong");
  const stage = htmlNode("div", { class: "qp-part" },
    htmlNode("div", { class: "qp-head" }, rounded), values.node,
    head("The error of each element of the data"), errors.node, element);
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "Rounding to FP8" }),
      htmlNode("span", { class: "bf-muted", text: "one matrix, its scales, and what an outlier costs" })),
    htmlNode("div", { class: "bf-controls qp-controls" }, ...Object.values(controls).map(({ node }) => node)),
    says, numbers.node, stage,
    htmlNode("div", { class: "qp-part" },
      head("The numbers of the format, and how many elements lie where (logarithmic)", lineChoice.node),
      line.svg),
    htmlNode("div", { class: "qp-part" },
      head("Every way to scale: error of the data, and of QKᵀ"), table.node),
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(), htmlNode("p", { text: NOTES })),
  );

  let width = 0;
  let shown = null; // the present setting and its model
  let before = null; // the last one that differed
  function draw() {
    const options = Object.fromEntries(CHOICES.map((key) => [key, model.get(key)]));
    const name = JSON.stringify(options);
    if (shown?.name !== name) {
      before = shown;
      shown = { name, options, model: quantizationModel(options) };
      drawWords();
    }
    [...Object.values(controls), lineChoice].forEach(({ refresh }) => refresh());
    if (width) drawPictures({ ...options, line: model.get("line") });
    drawElement();
  }

  function drawWords() {
    const { options } = shown;
    controls.outlier.node.toggleAttribute("inert", options.distribution === "gaussian");
    says.textContent = verdict(options, shown.model, before);
    rounded.textContent = options.rotated ? "What is rounded: the rotated rows"
      : "What is rounded: 16 rows of 64 channels";
    numbers.draw(shown.model, before);
    table.draw(options);
  }

  let drawn = "";
  function drawPictures(options) {
    const name = JSON.stringify([options, width]);
    if (drawn === name) return;
    drawn = name;
    const { data, turned, error } = shown.model;
    // The same tones before and after a rotation.
    const most = largestOf(data);
    const [valueTone, errorTone] = [logTone(2 ** -4, most), logTone(2 ** -10, most / 8)];
    values.draw((row, channel) => valueTone(turned[row][channel]), width,
      (cell) => valueMarks(options, shown.model, cell));
    errors.draw((row, channel) => errorTone(error[row][channel]), width, () => []);
    line.draw(options, shown.model, width);
  }

  function drawElement() {
    const at = model.get("element");
    const text = elementText(shown.options, shown.model, at);
    element.textContent = text;
    pick.refresh(text);
    if (!width) return;
    [values, errors].forEach((map) => map.follow(at));
    line.follow(shown.model.codes[Math.floor(at / CHANNELS)][at % CHANNELS]);
  }

  const events = [...CHOICES, "line", "element"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(line.svg, (newWidth) => { width = newWidth; draw(); });
  return () => {
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
