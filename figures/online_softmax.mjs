// Online softmax, step by step. A row of scores is read once, block by block; what has been summed
// so far is repaired by one factor whenever the maximum rises.

// ---- the model ----------------------------------------------------------------------------------

/** What is subtracted from a score. With nothing but hidden scores the maximum is −∞, and
 * −∞ − (−∞) is no number: subtract 0 there. */
export const shiftFor = (max) => (max === -Infinity ? 0 : max);

const NOTHING_READ = { max: -Infinity, sum: 0 };

/** Takes one block of scores into the running maximum and sum. */
export function readBlock({ max, sum }, scores) {
  const blockMax = Math.max(...scores);
  const newMax = Math.max(max, blockMax);
  const shift = shiftFor(newMax);
  const alpha = Math.exp(max - shift);
  const blockSum = scores.reduce((total, score) => total + Math.exp(score - shift), 0);
  return { blockMax, max: newMax, alpha, blockSum, sum: alpha * sum + blockSum };
}

/** The statistics before the first block and after each; [from, to) is the block that was read. */
export function onlineTrace(scores, block) {
  const trace = [{ from: 0, to: 0, blockMax: -Infinity, alpha: 1, blockSum: 0, ...NOTHING_READ }];
  for (let from = 0; from < scores.length; from += block) {
    const to = Math.min(from + block, scores.length);
    trace.push({ from, to, ...readBlock(trace.at(-1), scores.slice(from, to)) });
  }
  return trace;
}

/** The statistics of two parts of a row as one, and the factor of each. */
export function merge(left, right) {
  const max = Math.max(left.max, right.max);
  const shift = shiftFor(max);
  const alphas = [left, right].map((part) => Math.exp(part.max - shift));
  return { max, alphas, sum: alphas[0] * left.sum + alphas[1] * right.sum };
}

/** Terms relative to the maximum, divided by the sum; zeros for a row that is hidden. */
export function probabilities(scores, { max, sum }) {
  return scores.map((score) => (sum === 0 ? 0 : Math.exp(score - shiftFor(max)) / sum));
}

// The largest number, the least that rounds to infinity, and the largest that rounds to zero.
export const FORMATS = {
  fp16: { largest: 65504, infinite: 65520, vanishing: 2 ** -25 },
  fp32: { largest: (2 - 2 ** -23) * 2 ** 127, infinite: 2 ** 128 - 2 ** 103, vanishing: 2 ** -150 },
};

/** The sum of exp(x) with no maximum subtracted, in a small floating-point format. */
export function naiveSum(scores, dtype) {
  const { infinite, vanishing } = FORMATS[dtype];
  const largest = Math.exp(Math.max(...scores));
  const sum = scores.reduce((total, score) => total + Math.exp(score), 0);
  if (largest >= infinite) return { sum, largest, outcome: "a term overflows" };
  if (sum >= infinite) return { sum, largest, outcome: "the sum overflows" };
  return { sum, largest, outcome: largest <= vanishing ? "vanishes" : "fits" };
}

/** The row's parts, each read on its own: [start, end) of each. */
const partsOf = (count, split) =>
  split ? [[0, Math.ceil(count / 2)], [Math.ceil(count / 2), count]] : [[0, count]];

/**
 * Every step of the figure. Each has `groups`, the stretches of the row whose terms share one factor:
 * [start, read) is read, [from, read) is new; `before` and `after` are the statistics, `factor` is
 * what the terms before `from` were multiplied with. And `sums`, the sums held at this step.
 */
export function softmaxFrames(scores, block, split) {
  const parts = partsOf(scores.length, split).map(([start, end]) => ({
    start, end, trace: onlineTrace(scores.slice(start, end), block),
  }));
  const last = Math.max(...parts.map(({ trace }) => trace.length)) - 1;
  const sumOf = ({ start, end, read, after }) => ({ start, end, read, ...after });
  const frames = Array.from({ length: last + 1 }, (_, index) => {
    const groups = parts.map(({ start, end, trace }) => {
      const idle = index >= trace.length;
      const after = trace[Math.min(index, trace.length - 1)];
      const before = idle ? after : (trace[index - 1] ?? after);
      const from = start + (idle ? after.to : after.from);
      const factor = idle ? 1 : after.alpha;
      return { start, end, from, read: start + after.to, before, after, factor, idle };
    });
    return { kind: index ? "block" : "start", index, groups, sums: groups.map(sumOf) };
  });
  const ends = frames.at(-1).groups.map(({ start, end, after }) => ({ start, end, after }));
  const whole = { start: 0, end: scores.length, from: scores.length, read: scores.length };
  let total = ends[0].after;
  if (split) {
    const { alphas, ...merged } = merge(ends[0].after, ends[1].after);
    total = merged;
    const groups = ends.map(({ start, end, after }, index) => ({
      start, end, from: end, read: end, before: after, after: merged, factor: alphas[index],
    }));
    frames.push({ kind: "merge", groups, sums: [sumOf({ ...whole, after: merged })] });
  }
  const groups = [{ ...whole, before: total, after: total, factor: 1 }];
  frames.push({ kind: "divide", groups, sums: [sumOf({ ...whole, after: total })] });
  return frames;
}

/** What each score contributes at a step, and what it did before it; null where not read. */
export function frameTerms(frame, scores) {
  const term = (score, { max }) => Math.exp(score - shiftFor(max));
  const shares = probabilities(scores, frame.sums[0]);
  return scores.map((score, index) => {
    const group = frame.groups.find(({ start, end }) => start <= index && index < end);
    if (index >= group.read) return { state: "unread", held: null, value: null, before: null };
    const held = term(score, group.after);
    if (index >= group.from) return { state: "new", held, value: held, before: null };
    const divide = frame.kind === "divide";
    return {
      state: divide ? "probability" : "old", held, value: divide ? shares[index] : held,
      before: divide ? held : term(score, group.before),
    };
  });
}

// ---- the words ----------------------------------------------------------------------------------

const MINUS = "−";

/** A score, with one decimal or two. */
export function showScore(score) {
  if (score === -Infinity) return `${MINUS}∞`;
  const rounded = Number(score.toFixed(2)) || 0;
  return rounded.toFixed(Number(rounded.toFixed(1)) === rounded ? 1 : 2).replace("-", MINUS);
}

/** A factor, a term or a sum: three decimals, and never 0 or 1 for a number that only is near it. */
export function showNumber(number) {
  if (number === 0 || number === 1) return String(number);
  return number < 0.0005 ? number.toExponential(0).replace("-", MINUS) : number.toFixed(3);
}

/** A sum that may be far too large. */
function showLarge(number) {
  if (number < 1e6) return number < 100 ? showNumber(number) : formatInteger(Math.round(number));
  const [digits, exponent] = number.toExponential(1).split("e+");
  return `${digits} · 10${[...exponent].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

function difference(score, max) {
  const shown = showScore(score);
  if (max === -Infinity) return `${shown} ${MINUS} ${shiftFor(max)}`;
  return max < 0 ? `${shown} + ${showScore(-max)}` : `${shown} ${MINUS} ${showScore(max)}`;
}

const RULES = {
  block: ["m′ = max(m, block max)", "α = exp(m − m′)", "ℓ′ = α · ℓ + Σ exp(x − m′)"],
  merge: ["m = max(m₁, m₂)", "α₁ = exp(m₁ − m), α₂ = exp(m₂ − m)", "ℓ = α₁ · ℓ₁ + α₂ · ℓ₂"],
  divide: ["m of the whole row", "p = exp(x − m) / ℓ", "ℓ of the whole row"],
};

/** What was computed at this step: a list of lines for the maximum, for α, and for the sum. */
function arithmetic(frame, terms) {
  const { groups, sums } = frame;
  const rescale = ({ before, after, factor }) =>
    `exp(${difference(before.max, after.max)}) = ${showNumber(factor)}`;
  const product = ({ before, factor }) => `${showNumber(factor)} · ${showNumber(before.sum)}`;
  const total = { m: showScore(sums[0].max), sum: showNumber(sums[0].sum) };
  switch (frame.kind) {
    case "start":
      return [groups.map(() => showScore(-Infinity)), groups.map(() => "–"), groups.map(() => "0")];
    case "block":
      return [
        groups.map(({ before, after, idle }) => (idle ? showScore(after.max)
          : `max(${showScore(before.max)}, ${showScore(after.blockMax)}) = ${showScore(after.max)}`)),
        groups.map((group) => (group.idle ? "–" : rescale(group))),
        groups.map((group) => (group.idle ? showNumber(group.after.sum)
          : `${product(group)} + ${showNumber(group.after.blockSum)} = ${showNumber(group.after.sum)}`)),
      ];
    case "merge":
      return [
        [`max(${groups.map(({ before }) => showScore(before.max)).join(", ")}) = ${total.m}`],
        groups.map(rescale),
        [`${groups.map(product).join(" + ")} = ${total.sum}`],
      ];
    default: {
      const sum = terms.reduce((all, { value }) => all + value, 0);
      return [[total.m], [`Σ p = ${showNumber(Number(sum.toFixed(12)))}`], [total.sum]];
    }
  }
}

function blockCaption({ before, after }, index) {
  const [max, sum, alpha] = [showScore(after.max), showNumber(after.sum), showNumber(after.alpha)];
  if (after.max === -Infinity) {
    return `All scores so far are hidden: m = ${MINUS}∞. Since ${MINUS}∞ ${MINUS} (${MINUS}∞) is no ` +
      `number, 0 is subtracted in its place: every term is exp(${MINUS}∞) = 0, and ℓ = 0.`;
  }
  if (before.max === -Infinity) {
    return `Block ${index} sets the maximum to m = ${max}. There is nothing to rescale yet: ` +
      `α = 0, and ℓ = ${sum}.`;
  }
  if (after.max === before.max) {
    return `Block ${index} holds nothing larger than m = ${max}: α = 1, the old terms stay as they ` +
      `are, and ℓ = ${sum}.`;
  }
  return `Block ${index} raises the maximum from ${showScore(before.max)} to m = ${max}. The old terms ` +
    `were computed with the old one: multiplying by α = ${alpha} repairs all of them at once. ℓ = ${sum}.`;
}

/** One or two sentences on the present step, with its numbers. */
function caption(frame, onePass) {
  const [left, right] = frame.groups;
  const total = frame.sums[0];
  const statistics = ({ after }, name) =>
    `m${name} = ${showScore(after.max)}, ℓ${name} = ${showNumber(after.sum)}`;
  switch (frame.kind) {
    case "start":
      return `Nothing is read yet: m = ${MINUS}∞ and ℓ = 0. Step forward to read the first block` +
        (right ? " of each half." : ".");
    case "block":
      if (!right) return blockCaption(left, frame.index);
      return `Each half is read on its own: ${statistics(left, "₁")} and ${statistics(right, "₂")}.` +
        ` Neither needs the other.`;
    case "merge":
      return `The halves merge: m = ${showScore(total.max)}, α₁ = ${showNumber(left.factor)}, ` +
        `α₂ = ${showNumber(right.factor)}, ℓ = ${showNumber(total.sum)}. One pass over the whole row ` +
        `gives m = ${showScore(onePass.max)} and ℓ = ${showNumber(onePass.sum)}: ` +
        `${agree(total, onePass) ? "equal" : "not equal"}.`;
    default:
      if (total.sum === 0) {
        return `The whole row is hidden: m = ${MINUS}∞ and ℓ = 0. Nothing is divided, and every p is 0.`;
      }
      return `A second pass over the row writes p = exp(x ${MINUS} m) / ℓ with ` +
        `m = ${showScore(total.max)} and ℓ = ${showNumber(total.sum)}. The p sum to 1.`;
  }
}

/** Equal but for the rounding of a different order of additions. */
const agree = (one, other) =>
  one.max === other.max && Math.abs(one.sum - other.sum) <= 1e-12 * other.sum;

function naiveWords({ sum, largest, outcome }, dtype) {
  const limit = `the largest ${dtype} is ${showLarge(FORMATS[dtype].largest)}`;
  switch (outcome) {
    case "a term overflows":
      return { pill: `overflows ${dtype}`, words: `exp(max) = ${showLarge(largest)}; ${limit}` };
    case "the sum overflows":
      return { pill: `overflows ${dtype}`, words: `Σ exp(x) = ${showLarge(sum)}; ${limit}` };
    case "vanishes":
      return { pill: "0 / 0", words: `every exp(x) is 0 in ${dtype}` };
    default:
      return { pill: `fits in ${dtype}`, words: `Σ exp(x) = ${showLarge(sum)}; ${limit}` };
  }
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
.bf .os-step { padding: 12px 16px 0; }
.bf .os-bar { display: flex; justify-content: space-between; align-items: center; gap: 8px; }
.bf .os-position { white-space: nowrap; }
.bf p.os-caption { min-height: 2.8em; margin: 10px 0; font-size: 15px; }
@container (max-width: 639.9px) { .bf p.os-caption { min-height: 4.2em; } }
@container (max-width: 479.9px) { .bf p.os-caption { min-height: 5.6em; font-size: 14px; } }
.bf .os-formulas { display: grid; gap: 1px; background: var(--bf-line);
  border: solid var(--bf-line); border-width: 1px 0; }
.bf .os-formula { background: var(--bf-paper); padding: 7px 16px 8px; min-height: 72px; }
.bf .os-formula > div:last-child { display: grid; align-content: center; min-height: 38px;
  white-space: nowrap; }
.bf .os-formula [data-group] { font-size: 13px; line-height: 19px; }
.bf .os-formula [data-group=""] { font-size: 15px; font-weight: 650; }
@container (min-width: 680px) { .bf .os-formulas { grid-template-columns: 1fr 1fr 1.25fr; } }
@container (min-width: 480px) { .bf .os-controls { grid-template-columns: repeat(3, 1fr); } }
.bf .os-scroller { padding: 12px 16px 10px; overflow-x: auto; }
@container (max-width: 519.9px) { .bf .os-scroller { padding: 12px 10px 8px; } }
.bf .os-stage { position: relative; }
.bf .os-stage svg { width: 100%; overflow: visible; }
.bf .os-band { fill: color-mix(in srgb, var(--bf-registers) 9%, var(--bf-paper)); }
.bf .os-axis { stroke: var(--bf-line); }
.bf .os-zero { stroke: var(--bf-muted); }
.bf .os-score { stroke: var(--bf-hbm); }
.bf .os-score[data-state="unread"] { opacity: .42; }
.bf .os-knob { fill: var(--bf-paper); stroke: var(--bf-ink); stroke-width: 2; }
.bf .os-term, .bf .os-piece { fill: var(--bf-registers); stroke: var(--bf-paper); stroke-width: 1; }
.bf .os-term[data-state="old"], .bf .os-piece[data-state="old"] { fill: var(--bf-registers-mid); }
.bf .os-ghost { fill: none; stroke: var(--bf-muted); stroke-dasharray: 3 3; }
.bf .os-max { stroke: var(--bf-registers); stroke-width: 2.5; }
.bf .os-old-max { stroke: var(--bf-registers); stroke-width: 1.5; stroke-dasharray: 4 4; }
.bf .os-ceiling { stroke: var(--bf-danger); stroke-width: 1.5; stroke-dasharray: 7 4; }
.bf .os-bracket { fill: none; stroke: var(--bf-ink); }
.bf .os-bracket[data-idle] { stroke: var(--bf-line); }
.bf .os-halo { paint-order: stroke; stroke: var(--bf-paper); stroke-width: 4px;
  stroke-linejoin: round; }
.bf .os-strong { font-weight: 650; }
.bf .os-name { font-size: 13px; font-weight: 650; }
.bf text.os-small { font-size: 11px; }
.bf .os-block rect { fill: var(--bf-wash); stroke: var(--bf-line); }
.bf .os-block[data-state="now"] rect { fill: var(--bf-ink); stroke: var(--bf-ink); }
.bf .os-block[data-state="now"] text { fill: var(--bf-paper); }
.bf .os-block text { font-weight: 600; }
.bf .os-slider { position: absolute; border-radius: 5px; cursor: ns-resize; user-select: none;
  -webkit-user-select: none; }
.bf .os-slider:hover { background: color-mix(in srgb, var(--bf-ink) 5%, transparent); }
.bf .os-slider:focus-visible { outline: 2px solid var(--bf-accent); outline-offset: -1px; }
.bf .os-grip { position: absolute; left: 0; right: 0; height: 36px; touch-action: none; }
.bf .os-hides { position: absolute; left: 0; display: grid; justify-items: center; }
.bf .os-hides button { width: calc(100% - 4px); max-width: 44px; height: 24px; padding: 0;
  font-size: 11.5px; }
.bf .os-hides button:first-child { justify-self: start; max-width: 56px; }
.bf .os-hides button[aria-pressed="true"] { color: var(--bf-paper); background: var(--bf-ink); }
.bf .os-short { display: none; }
@container (max-width: 519.9px) { .bf .os-short { display: inline; } .bf .os-long { display: none; } }
.bf .os-table { padding-top: 6px; }
.bf .os-row { display: grid; align-items: center; height: 25px; border-top: 1px solid var(--bf-line);
  font-size: 13px; }
.bf .os-row > :first-child { color: var(--bf-muted); font-size: 12px; line-height: 24px; }
.bf .os-row [role="cell"], .bf .os-row [role="columnheader"] { text-align: center;
  white-space: nowrap; line-height: 24px; }
.bf .os-row [data-state="now"] { font-weight: 700;
  background: color-mix(in srgb, var(--bf-registers) 9%, var(--bf-paper)); }
.bf .os-row [data-state="unread"] { color: var(--bf-muted); }
@container (max-width: 519.9px) { .bf .os-row { font-size: 11px; letter-spacing: -.01em; } }
.bf .os-passes { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line); }
.bf .os-pass { display: grid; grid-template-columns: 1fr 15.5rem; gap: 3px 12px;
  align-items: center; padding: 5px 0; }
.bf .os-pass b { font-weight: 650; }
.bf .os-reads { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px; }
.bf .os-reads span { padding: 1px 0; border: 1px solid var(--bf-hbm); border-radius: 4px;
  background: var(--bf-hbm-light); font-size: 12px; text-align: center; white-space: nowrap; }
.bf .os-reads span[data-now] { background: var(--bf-ink); border-color: var(--bf-ink);
  color: var(--bf-paper); }
.bf .os-naive { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 8px; }
@container (max-width: 519.9px) {
  .bf .os-pass { grid-template-columns: 1fr; }
  .bf .os-naive { min-height: 46px; }
}
@media (prefers-reduced-motion: no-preference) {
  .bf .os-term, .bf .os-piece, .bf .os-max { transition: all .5s; }
}
.bf .os-dragged rect, .bf .os-dragged line { transition: none; }
`;

// ---- the picture --------------------------------------------------------------------------------

// Heights in the picture, from the top: the blocks' numbers, the scores, the buttons that hide them,
// the terms under their bracket, and the sum.
const PLOT = { top: 54, bottom: 222 };
const HIDES = 235;
const TERMS = { name: 279, bracket: 304, top: 322, bottom: 400 };
const SUM = { name: 426, top: 433, bottom: 453 };
const HEIGHT = 472;
const NARROWEST_COLUMN = 30;

/** Where the columns lie: one a score, with a gap between the halves of a split row. */
function layout(width, count, split) {
  const gutter = width < 500 ? 34 : 78;
  const gap = split ? 22 : 0;
  const column = Math.max(NARROWEST_COLUMN, (width - gutter - gap - 4) / count);
  const middle = Math.ceil(count / 2);
  const left = (index) => gutter + index * column + (index >= middle ? gap : 0);
  const columns = (first, last) => `repeat(${last - first}, ${column}px)`;
  return {
    gutter, column, left,
    right: (end) => left(end - 1) + column,
    width: gutter + gap + 4 + count * column,
    // With the gap as a column of its own: score j is in grid column j + 2, or j + 3 behind the gap.
    template: `${gutter}px ${columns(0, middle)} ${gap}px ${columns(middle, count)}`,
    gridColumn: (index) => index + (index < middle ? 2 : 3),
  };
}

/** Scores from −4 to 12 fit, the usual range and fp16's limit; wider where the row needs it. */
function scoreDomain(scores, known) {
  const finite = scores.filter(Number.isFinite);
  return {
    low: Math.min(known.low, 4 * Math.floor(Math.min(...finite, known.low) / 4)),
    high: Math.max(known.high, 4 * Math.ceil(Math.max(...finite, known.high) / 4)),
  };
}

function scoreTicks({ low, high }) {
  const step = 4 * Math.ceil((high - low) / 20);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

/** The bars and lines. `draw` shows a frame; the sliders lie over it. */
function picture(id, count) {
  const svg = svgNode("svg", { height: HEIGHT, "aria-hidden": "true" }, tensorPatterns(id));
  const group = () => svg.appendChild(svgNode("g"));
  const back = group();
  const each = (tag, attributes) => {
    const parent = group();
    return Array.from({ length: count }, () => parent.appendChild(svgNode(tag, attributes)));
  };
  const scoreBars = each("rect", { class: "os-score", style: `fill: ${tensorFill(id, "S")}` });
  const terms = each("rect", { class: "os-term" });
  const pieces = each("rect", { class: "os-piece" });
  const ghosts = group();
  const maxLines = [0, 1].map(() => svg.appendChild(svgNode("line", { class: "os-max" })));
  const knobs = each("circle", { class: "os-knob", r: 5 });
  const front = group();

  function draw({ frame, frames, terms: values, scores, block, dtype, domain, place }) {
    const { column, left, right } = place;
    const barWidth = Math.min(40, column - 8);
    const middle = (index) => left(index) + column / 2;
    const y = (score) =>
      PLOT.bottom - ((PLOT.bottom - PLOT.top) * (score - domain.low)) / (domain.high - domain.low);
    const line = (parent, name, x1, x2, at) =>
      parent.append(svgNode("line", { class: name, x1, x2, y1: at, y2: at }));
    const text = (x, at, words, name = "", anchor = "middle") =>
      front.append(svgNode("text", { class: name, x, y: at, "text-anchor": anchor, text: words }));
    [back, ghosts, front].forEach((node) => node.replaceChildren());

    const parts = frames[0].groups;
    const joined = frame.kind === "merge" || frame.kind === "divide";
    drawBlocks();
    drawScores();
    drawMaximum();
    drawTerms();
    drawSum();

    function drawBlocks() {
      let number = 0;
      for (const { start, end } of parts) {
        for (let from = start; from < end; from += block) {
          number += 1;
          const to = Math.min(from + block, end);
          const group = frame.groups.find((one) => one.start <= from && from < one.end);
          const now = frame.kind === "block" && group.from === from && group.read === to;
          const state = now ? "now" : from < group.read ? "read" : "unread";
          const box = { x: left(from) + 1, width: right(to) - left(from) - 2 };
          if (now) {
            const band = { x: left(from), width: right(to) - left(from), y: 10, height: HEIGHT - 10 };
            back.append(svgNode("rect", { class: "os-band", ...band }));
          }
          front.append(svgNode("g", { class: "os-block", "data-state": state },
            svgNode("rect", { ...box, y: 0, height: 20, rx: 5 }),
            svgNode("text", { x: box.x + box.width / 2, y: 14, "text-anchor": "middle",
              text: box.width > 70 ? `block ${number}` : number })));
        }
      }
    }

    function drawScores() {
      for (const tick of scoreTicks(domain)) {
        parts.forEach(({ start, end }) =>
          line(back, tick === 0 ? "os-zero" : "os-axis", left(start), right(end), y(tick)));
        // The maximum's own label has precedence.
        const covered = Math.abs(y(tick) - y(frame.sums[0].max)) < 12;
        if (!covered) text(left(0) - 6, y(tick) + 4, String(tick).replace("-", MINUS), "bf-muted", "end");
      }
      drawCeiling();
      scores.forEach((score, index) => {
        const hidden = score === -Infinity;
        const [from, to] = [y(0), hidden ? PLOT.bottom : y(score)].sort((a, b) => a - b);
        const box = { x: middle(index) - barWidth / 2, width: barWidth, y: from, height: to - from };
        setAttributes(scoreBars[index], {
          ...box, height: hidden ? 0 : box.height, "data-state": values[index].state,
        });
        if (hidden) ghosts.append(svgNode("rect", { class: "os-ghost", ...box }));
        const end = hidden ? PLOT.bottom : y(score);
        setAttributes(knobs[index], { cx: middle(index), cy: end });
        text(middle(index), Math.min(end, y(0)) - 10, showScore(score), "os-halo os-strong");
      });
    }

    function drawCeiling() {
      const ceiling = Math.log(FORMATS[dtype].largest);
      const inView = ceiling <= domain.high;
      if (inView) line(back, "os-ceiling", left(0), right(count), y(ceiling));
      text(right(count), PLOT.top - 21,
        `${inView ? "" : "↑ "}exp(x) overflows ${dtype} above ${ceiling.toFixed(2)}`, "bf-muted", "end");
    }

    function drawMaximum() {
      maxLines.forEach((node, index) => {
        const sum = frame.sums[index];
        const shown = sum && sum.max !== -Infinity;
        const at = shown ? y(sum.max) : PLOT.bottom;
        const part = parts[Math.min(index, parts.length - 1)];
        const ends = shown ? [left(sum.start), right(sum.read)] : [left(part.start), left(part.start)];
        setAttributes(node, {
          x1: ends[0], x2: ends[1], y1: at, y2: at, visibility: shown ? "visible" : "hidden",
        });
        if (!shown) return;
        const name = frame.sums.length > 1 ? `m${"₁₂"[index]}` : "m";
        text(ends[0] - 4, at + 4, name, "os-halo os-strong", "end");
      });
      for (const { start, from, before, after } of frame.groups) {
        if (before.max === after.max || before.max === -Infinity) continue;
        line(ghosts, "os-old-max", left(start), right(from), y(before.max));
      }
    }

    function drawTerms() {
      const height = TERMS.bottom - TERMS.top;
      text(left(0), TERMS.name, frame.kind === "divide" ? "p = exp(x − m) / ℓ" : "Terms exp(x − m)",
        "os-name", "start");
      parts.forEach(({ start, end }) => {
        line(back, "os-zero", left(start), right(end), TERMS.bottom);
        line(back, "os-axis", left(start), right(end), TERMS.top);
      });
      text(left(0) - 6, TERMS.top + 4, "1", "bf-muted", "end");
      text(left(0) - 6, TERMS.bottom + 4, "0", "bf-muted", "end");
      values.forEach(({ state, value, before }, index) => {
        const box = (part) => ({
          x: middle(index) - barWidth / 2, width: barWidth,
          y: TERMS.bottom - height * part, height: height * part,
        });
        setAttributes(terms[index], {
          ...box(value ?? 0), "data-state": state, "data-number": value ?? "",
          style: state === "probability" ? `fill: ${tensorFill(id, "P")}; stroke: var(--bf-hbm)` : "",
        });
        if (before > value) ghosts.append(svgNode("rect", { class: "os-ghost", ...box(before) }));
        if (value !== null) {
          text(middle(index), TERMS.bottom - height * value - 4, showNumber(value), "os-halo os-small");
        }
      });
      for (const { start, from, factor } of frame.groups) {
        if (from === start) continue;
        const sum = frame.sums[0].sum;
        const words = frame.kind !== "divide" ? `× ${showNumber(factor)}`
          : sum === 0 ? "no division" : `÷ ${showNumber(sum)}`;
        const idle = frame.kind !== "divide" && factor === 1;
        const ends = [left(start) + 4, right(from) - 4];
        front.append(svgNode("path", {
          class: "os-bracket", d: `M${ends[0]} ${TERMS.bracket + 4} v-5 H${ends[1]} v5`,
          ...(idle && { "data-idle": "" }),
        }));
        text((ends[0] + ends[1]) / 2, TERMS.bracket - 5, words,
          idle ? "bf-muted" : "os-halo os-strong");
      }
    }

    function drawSum() {
      const top = Math.max(1, ...frames.flatMap(({ sums }) => sums.map(({ sum }) => Math.ceil(sum))));
      const narrowest = Math.min(...parts.map(({ start, end }) => right(end) - left(start)));
      const unit = narrowest / top;
      const starts = joined ? [0] : parts.map(({ start }) => start);
      starts.forEach((start) => {
        for (const tick of ticks(top, narrowest < 200 ? 3 : 8).filter(Number.isInteger)) {
          const x = left(start) + tick * unit;
          back.append(svgNode("line", { class: "os-axis", x1: x, x2: x, y1: SUM.top - 2, y2: SUM.bottom + 2 }));
          text(x, SUM.bottom + 15, tick, "bf-muted");
        }
      });
      frame.sums.forEach(({ start, read, sum }, index) => {
        const name = frame.sums.length > 1 ? `ℓ${"₁₂"[index]}` : "ℓ";
        text(left(start), SUM.name, `${index ? "" : "Their sum "}${name} = ${showNumber(sum)}`, "os-name",
          "start");
        let x = left(start);
        for (let element = start; element < read; element += 1) {
          const width = values[element].held * unit;
          setPiece(element, { x, width, state: values[element].state === "new" ? "new" : "old" });
          x += width;
        }
        const { end } = joined ? { end: count } : parts[index];
        for (let element = read; element < end; element += 1) {
          setPiece(element, { x, width: 0, state: "unread" });
        }
      });
    }

    function setPiece(element, { x, width, state }) {
      setAttributes(pieces[element], {
        x, width, y: SUM.top, height: SUM.bottom - SUM.top, "data-state": state,
        // The outline separates the pieces; around one without a width it would be seen.
        "stroke-width": width > 2 ? 1 : 0,
      });
    }
  }
  return { svg, draw };
}

// ---- the row's sliders and buttons --------------------------------------------------------------

const KEY_STEPS = {
  ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1,
  PageUp: 1, PageDown: -1, Home: -Infinity, End: Infinity,
};

/** A slider over each score's column and a button under it that hides the score. `row` has
 * `scores()`, `set(scores)` and `domain()`. */
function handles(count, row) {
  // What a hidden score was, for when it is shown again.
  const remembered = Array(count).fill(0);
  const valueOf = (index) => row.scores()[index] ?? remembered[index];
  const set = (index, score) => row.set(row.scores().with(index, score));
  const slide = (index, score) => {
    const { low, high } = row.domain();
    set(index, Math.max(low, Math.min(high, Math.round(score * 10) / 10)));
  };
  const hide = (hidden) => {
    row.set(row.scores().map((score, index) => {
      if (score !== null) remembered[index] = score;
      return hidden(index) ? null : (score ?? remembered[index]);
    }));
  };

  const sliders = Array.from({ length: count }, (_, index) => {
    const grip = htmlNode("div", { class: "os-grip" });
    const node = htmlNode("div", {
      class: "os-slider", role: "slider", tabindex: 0, "aria-orientation": "vertical",
      "aria-label": `Score ${index + 1}`, "data-score": index,
    }, grip);
    followPointer(node, grip, row, () => valueOf(index), (score) => slide(index, score));
    node.addEventListener("keydown", (event) => {
      const change = KEY_STEPS[event.key];
      if (change === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      slide(index, valueOf(index) + change);
    });
    return { node, grip };
  });
  const hideAll = htmlNode("button", { type: "button" },
    htmlNode("span", { class: "os-long", text: "hide all" }),
    htmlNode("span", { class: "os-short", text: "all", "aria-hidden": "true" }));
  hideAll.setAttribute("aria-label", "hide all scores");
  hideAll.addEventListener("click", () => {
    const all = row.scores().every((score) => score === null);
    hide(() => !all);
  });
  const buttons = sliders.map((_, index) => {
    const button = htmlNode("button", {
      type: "button", "aria-label": `hide score ${index + 1}`, "data-hide": index, text: "hide",
    });
    button.addEventListener("click", () => {
      const scores = row.scores();
      hide((other) => (other === index ? scores[other] !== null : scores[other] === null));
    });
    return button;
  });
  const hides = htmlNode("div", { class: "os-hides", style: `top: ${HIDES}px` }, hideAll, ...buttons);

  function draw(place) {
    const { low, high } = row.domain();
    hides.style.gridTemplateColumns = place.template;
    const scores = row.scores();
    hideAll.setAttribute("aria-pressed", scores.every((score) => score === null));
    scores.forEach((score, index) => {
      const { node, grip } = sliders[index];
      const end = score === null ? 1 : (high - score) / (high - low);
      node.style.cssText = `left: ${place.left(index)}px; width: ${place.column}px; ` +
        `top: ${PLOT.top}px; height: ${PLOT.bottom - PLOT.top}px`;
      grip.style.top = `calc(${100 * end}% - 18px)`;
      setAttributes(node, {
        "aria-valuemin": low, "aria-valuemax": high, "aria-valuenow": score ?? low,
        "aria-valuetext": score === null ? "minus infinity, hidden" : showScore(score),
      });
      buttons[index].style.gridColumn = place.gridColumn(index);
      buttons[index].setAttribute("aria-pressed", score === null);
    });
  }
  return { nodes: [...sliders.map(({ node }) => node), hides], draw };
}

/** Dragging. A finger must take the grip, so that a page can be scrolled over the bars. */
function followPointer(node, grip, row, value, slide) {
  let offset = null;
  const scoreAt = (event) => {
    const { low, high } = row.domain();
    const box = node.getBoundingClientRect();
    return high - ((event.clientY - box.top) / box.height) * (high - low);
  };
  node.addEventListener("pointerdown", (event) => {
    const gripped = event.target === grip;
    if (event.button !== 0 || (event.pointerType === "touch" && !gripped)) return;
    node.setPointerCapture(event.pointerId);
    node.closest(".os-stage").classList.add("os-dragged");
    // A hidden score has no place of its own to be gripped at.
    offset = gripped && row.scores()[node.dataset.score] !== null ? value() - scoreAt(event) : 0;
    slide(scoreAt(event) + offset);
  });
  node.addEventListener("pointermove", (event) => {
    if (offset !== null) slide(scoreAt(event) + offset);
  });
  const end = () => {
    offset = null;
    node.closest(".os-stage").classList.remove("os-dragged");
  };
  node.addEventListener("pointerup", end);
  node.addEventListener("pointercancel", end);
}

// ---- the table ----------------------------------------------------------------------------------

const QUANTITIES = [
  { long: "block max", short: "max", value: ({ blockMax }) => showScore(blockMax) },
  { long: "max so far m", short: "m", value: ({ max }) => showScore(max) },
  { long: "rescale α", short: "α", value: ({ alpha }) => showNumber(alpha) },
  { long: "sum ℓ", short: "ℓ", value: ({ sum }) => showNumber(sum) },
];

/** One column a block, under the block's bars. */
function blockTable() {
  const node = htmlNode("div", { class: "os-table", role: "table", "aria-label": "The statistics after each block" });

  function draw(frames, step, place) {
    const columns = frames[0].groups.flatMap((_, part) =>
      frames.filter(({ kind, groups }) => kind === "block" && !groups[part].idle).map((frame) => ({
        ...frame.groups[part], index: frame.index,
        state: frame.index === step ? "now" : frame.index < step ? "read" : "unread",
      })));
    const row = (cells, header) => htmlNode("div", {
      role: "row", class: header ? "bf-hidden" : "os-row",
      style: header ? "" : `grid-template-columns: ${place.template}`,
    }, ...cells);
    const head = [{ text: "quantity" }, ...columns.map((_, index) => ({ text: `block ${index + 1}` }))]
      .map((attributes) => htmlNode("span", { role: "columnheader", ...attributes }));
    const rows = QUANTITIES.map(({ long, short, value }) => row([
      htmlNode("span", { role: "rowheader" },
        htmlNode("span", { class: "os-long", text: long }),
        htmlNode("span", { class: "os-short", text: short })),
      ...columns.map(({ state, from, read, after }) => htmlNode("span", {
        role: "cell", "data-state": state, text: state === "unread" ? "·" : value(after),
        style: `grid-column: ${place.gridColumn(from)} / ${place.gridColumn(read - 1) + 1}`,
      })),
    ]));
    node.replaceChildren(row(head, true), ...rows);
  }
  return { node, draw };
}

// ---- the arithmetic of the step and the passes --------------------------------------------------

/** The three rules and the present step's numbers in them. */
function formulas() {
  const cells = ["m", "alpha", "sum"].map((name) => {
    const rule = htmlNode("div", { class: "bf-muted" });
    const lines = htmlNode("div", { "data-name": name });
    return { rule, lines, node: htmlNode("div", { class: "os-formula" }, rule, lines) };
  });

  function draw(frame, terms) {
    const rules = RULES[frame.kind === "start" ? "block" : frame.kind];
    arithmetic(frame, terms).forEach((texts, index) => {
      cells[index].rule.textContent = rules[index];
      cells[index].lines.replaceChildren(...texts.map((text, group) => {
        const half = texts.length > 1 ? "₁₂"[group] : "";
        return htmlNode("div", {
          "data-group": half, text: half ? `${"mαℓ"[index]}${half} = ${text}` : text,
        });
      }));
    });
  }
  return { node: htmlNode("div", { class: "os-formulas" }, ...cells.map(({ node }) => node)), draw };
}

/** How often each way to a softmax reads the row. */
function passes() {
  const read = (text, kind) => htmlNode("span", { text, ...(kind && { "data-pass": kind }) });
  const way = (name, reads, remark) =>
    htmlNode("div", { class: "os-pass" },
      htmlNode("div", {}, htmlNode("b", { text: name }), `: ${reads.length} passes`,
        htmlNode("div", { class: "bf-muted" }, remark)),
      htmlNode("div", { class: "os-reads" }, ...reads));
  const pill = htmlNode("span", { class: "bf-pill" });
  const words = htmlNode("span", { "data-name": "naive" });
  const online = [read("max and sum", "block"), read("divide", "divide")];
  const node = htmlNode("div", { class: "os-passes" },
    way("Safe softmax", [read("maximum"), read("sum"), read("divide")], "the sum waits for the maximum"),
    way("Online softmax", online, "the sum is repaired when the maximum rises"),
    way("Without a maximum", [read("sum"), read("divide")],
      htmlNode("span", { class: "os-naive" }, pill, words)));

  function draw(frame, naive, dtype) {
    const said = naiveWords(naive, dtype);
    pill.textContent = said.pill;
    pill.dataset.fits = naive.outcome === "fits" ? "yes" : "no";
    words.textContent = said.words;
    online.forEach((span) => span.toggleAttribute("data-now", span.dataset.pass === frame.kind));
  }
  return { node, draw };
}

/** What each fill stands for. */
function keys(id) {
  const hbm = "stroke: var(--bf-hbm)";
  return swatches({
    "scores x, in HBM": `fill: ${tensorFill(id, "S")}; ${hbm}`,
    "new terms, in registers": "fill: var(--bf-registers)",
    "older terms, rescaled": "fill: var(--bf-registers-mid)",
    "before this step": "fill: none; stroke: var(--bf-muted); stroke-dasharray: 3 3",
    "probabilities p, to HBM": `fill: ${tensorFill(id, "P")}; ${hbm}`,
  });
}

// ---- the figure ---------------------------------------------------------------------------------

function render({ model, el }) {
  const id = uniqueId("online-softmax");
  const root = figureFrame(el, "Online softmax, step by step", CSS);
  let domain = { low: -4, high: 12 };
  const scoresOf = () => model.get("scores").map((score) => score ?? -Infinity);
  const framesNow = () => softmaxFrames(scoresOf(), model.get("block"), model.get("split"));
  const row = {
    scores: () => model.get("scores"),
    set: (scores) => { model.set("scores", scores); model.save_changes(); },
    domain: () => domain,
  };

  const controls = [
    choice({ id, model, key: "block", label: "Block size", values: [1, 2, 4, 8] }),
    choice({ id, model, key: "split", label: "The row is read", values: [false, true],
      show: (split) => (split ? "in two halves" : "in one go") }),
    choice({ id, model, key: "dtype", label: "Data type of the naive sum", values: ["fp16", "fp32"] }),
  ];
  const steps = transport({ model, key: "step", last: () => framesNow().length - 1 });
  const position = htmlNode("span", { class: "bf-muted os-position" });
  const words = htmlNode("span");
  const alsoSaid = htmlNode("span", { class: "bf-hidden" });
  const formula = formulas();
  const stage = htmlNode("div", { class: "os-stage" });
  const scroller = htmlNode("div", { class: "os-scroller" }, stage);
  const table = blockTable();
  const ways = passes();
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "Online softmax, step by step" }),
      htmlNode("span", { class: "bf-muted", text: "one row of scores; drag a bar to change its score" })),
    htmlNode("div", { class: "bf-controls os-controls" }, ...controls.map(({ node }) => node)),
    htmlNode("div", { class: "os-step" }, htmlNode("div", { class: "os-bar" }, steps.node, position),
      htmlNode("p", { class: "os-caption", role: "status" }, words, alsoSaid)),
    formula.node, scroller, ways.node,
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id),
      htmlNode("p", { text: "A hidden score is −∞, as under a mask. All numbers are computed in " +
        "float64; the data type only decides what a sum without a maximum can hold." })),
  );

  let view = null;
  let width = 0;
  let shownStep = null;
  /** The picture and its sliders, made anew for a row of another length. */
  function viewFor(count) {
    if (view?.count === count) return view;
    const drawing = picture(id, count);
    const handle = handles(count, row);
    stage.replaceChildren(drawing.svg, ...handle.nodes, table.node);
    view = { count, drawing, handle };
    return view;
  }

  function draw() {
    const scores = scoresOf();
    const [block, split, dtype] = ["block", "split", "dtype"].map((key) => model.get(key));
    const frames = framesNow();
    const step = Math.min(model.get("step"), frames.length - 1);
    const frame = frames[step];
    const terms = frameTerms(frame, scores);
    const naive = naiveSum(scores, dtype);
    domain = scoreDomain(scores, domain);
    controls.forEach(({ refresh }) => refresh());
    steps.refresh();
    const last = frames.length - 1;
    position.replaceChildren(htmlNode("span", { class: "os-long", text: `step ${step} of ${last}` }),
      htmlNode("span", { class: "os-short", text: `${step} / ${last}` }));
    const sentence = caption(frame, onlineTrace(scores, block).at(-1));
    words.textContent = sentence.replaceAll(" = ", "\u00a0=\u00a0"); // no line ends in an equation
    const said = naiveWords(naive, dtype);
    alsoSaid.textContent = ` Without a maximum: ${said.pill}; ${said.words}.`;
    formula.draw(frame, terms);
    ways.draw(frame, naive, dtype);
    const { drawing, handle } = viewFor(scores.length);
    if (!width) return;
    const place = layout(width, scores.length, split);
    stage.style.width = `${place.width}px`;
    drawing.draw({ frame, frames, terms, scores, block, dtype, domain, place });
    handle.draw(place);
    table.draw(frames, step, place);
    if (step !== shownStep) scrollTo(frame.groups[0], place);
    shownStep = step;
  }

  /** A long row is wider than a phone: brings the block that is read into view. */
  function scrollTo({ from, read }, place) {
    if (from === read) return;
    const nearest = Math.max(scroller.scrollLeft, place.right(read) + 20 - scroller.clientWidth);
    scroller.scrollLeft = Math.min(nearest, place.left(from));
  }

  const events = ["scores", "block", "step", "split", "dtype"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(formula.node, (newWidth) => { width = innerWidth(newWidth); draw(); });
  return () => {
    steps.stop();
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };

  function innerWidth(outer) {
    const { paddingLeft, paddingRight } = getComputedStyle(scroller);
    return outer - parseFloat(paddingLeft) - parseFloat(paddingRight);
  }
}

export default { render };
