// Programs on multiprocessors. An attention kernel is launched as a list of programs; the figure shows
// which SM of a GPU runs which of them, and when, and how much of the GPU stands idle at the end.

// ---- the model ----------------------------------------------------------------------------------
// Time counts in tile steps: one tile of BLOCK_M x BLOCK_N scores. instruments/schedule.py says what
// the model assumes; the two are held equal by a test.

const OVERHEAD = 1;
const MERGE = 1;
/** Heads are left out beyond this many programs, so that the figure follows the hand. */
export const LARGEST_LAUNCH = 2 ** 18;
export const MOST_TRIED = 2 ** 16;
export const BATCHES = [1, 2, 4, 8, 16, 32, 64];
export const HEADS = [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64];
export const LENGTHS = Array.from({ length: 10 }, (_, index) => 2 ** (8 + index));
export const SPLITS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
export const MOMENTS = 60;

/** Tiles of keys that each tile of queries sees; causal is aligned at the bottom right. */
function visitedTiles({ seq_query, seq_key, block_m, block_n, causal }) {
  return Array.from({ length: Math.ceil(seq_query / block_m) }, (_, tile) => {
    const end = Math.min((tile + 1) * block_m, seq_query);
    const visible = causal ? Math.max(0, end + seq_key - seq_query) : seq_key;
    return Math.ceil(visible / block_n);
  });
}

/** A program a head takes all keys. */
const splitsOf = ({ parallel, splits }) => (parallel === "heads" ? 1 : splits);

function programsPerHead(options) {
  if (options.parallel === "heads") return 1;
  return Math.ceil(options.seq_query / options.block_m) * splitsOf(options);
}

/** The programs in the order of their ids: what each costs, and its head. */
function launch(options, heads) {
  const visited = visitedTiles(options);
  const splits = splitsOf(options);
  const run = Math.ceil(Math.ceil(options.seq_key / options.block_n) / splits);
  const count = heads * programsPerHead(options);
  const [costs, headOf] = [new Float64Array(count), new Int32Array(count)];
  let id = 0;
  const add = (head, tiles) => {
    costs[id] = tiles + OVERHEAD + (splits > 1 ? MERGE : 0);
    headOf[id] = head;
    id += 1;
  };
  if (options.parallel === "heads") {
    const all = visited.reduce((total, tiles) => total + tiles, 0);
    for (let head = 0; head < heads; head += 1) add(head, all);
    return { costs, headOf };
  }
  for (let split = 0; split < splits; split += 1) {
    const tilesOf = visited.map((tiles) => Math.max(0, Math.min(tiles - split * run, run)));
    if (options.order === "first") {
      for (let head = 0; head < heads; head += 1) tilesOf.forEach((tiles) => add(head, tiles));
    } else {
      for (const tiles of tilesOf.toReversed()) {
        for (let head = 0; head < heads; head += 1) add(head, tiles);
      }
    }
  }
  return { costs, headOf };
}

/** Programs in their order, each to the slot that is free first; slot k is on SM k % sms. */
export function greedySchedule(costs, sms, slots) {
  const lanes = sms * slots;
  const [starts, slotOf] = [new Float64Array(costs.length), new Int32Array(costs.length)];
  const slotEnds = new Float64Array(lanes);
  // A heap of slots by the time they are free, then by number; both in one whole number.
  const heap = Float64Array.from({ length: lanes }, (_, slot) => slot);
  for (let id = 0; id < costs.length; id += 1) {
    const slot = heap[0] % lanes;
    starts[id] = slotEnds[slot];
    slotOf[id] = slot;
    slotEnds[slot] += costs[id];
    replaceLeast(heap, slotEnds[slot] * lanes + slot);
  }
  return { starts, slotOf, slotEnds };
}

function replaceLeast(heap, value) {
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1] < heap[child]) child += 1;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = value;
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** One launch, scheduled. `heads` of the batch's `allHeads` are: as many as LARGEST_LAUNCH allows. */
function scheduled(options, heads) {
  const { costs, headOf } = launch(options, heads);
  const schedule = greedySchedule(costs, options.sms, options.slots);
  const { slotEnds } = schedule;
  const makespan = slotEnds.reduce((most, end) => Math.max(most, end));
  return {
    ...schedule, costs, headOf, makespan, programs: costs.length,
    waves: costs.length / slotEnds.length,
    utilisation: sum(slotEnds) / (slotEnds.length * makespan),
    tailStart: slotEnds.reduce((least, end) => Math.min(least, end)),
    unused: slotEnds.filter((end) => end === 0).length,
  };
}

/** The launch that was chosen, and how long two others would take: a program a head, and the same
 * with the keys whole. */
export function scheduleModel(options) {
  const allHeads = options.batch * options.heads;
  const mostPerHead = programsPerHead({ ...options, parallel: "tiles" });
  const heads = Math.min(allHeads, Math.floor(LARGEST_LAUNCH / mostPerHead));
  const chosen = scheduled(options, heads);
  const other = (change) => {
    const { makespan, utilisation, programs } = scheduled({ ...options, ...change }, heads);
    return { makespan, utilisation, programs, speedup: makespan / chosen.makespan };
  };
  return {
    ...chosen, heads, allHeads,
    perHead: other({ parallel: "heads" }), oneSplit: other({ splits: 1 }),
  };
}

/** Slots at work in the step after `time`. None waits before its last program. */
export const busyAt = ({ slotEnds }, time) => sum(slotEnds.map((end) => (end > time ? 1 : 0)));

/** The one change that would end it soonest, if it gains 5% or more. Splits that make more programs
 * than MOST_TRIED are not tried: the tail of so many is short. */
export function advice(options, { heads, makespan }) {
  const wholeKeys = heads * programsPerHead({ ...options, splits: 1 });
  const splitsToTry = SPLITS.filter((splits) => splits === 1 || splits * wholeKeys <= MOST_TRIED);
  const changes = options.parallel === "heads" ? [{ parallel: "tiles" }]
    : [{ order: "longest" }, ...splitsToTry.map((splits) => ({ splits }))];
  const [best] = changes.map((change) => {
    const outcome = scheduled({ ...options, ...change }, heads);
    return { change, programs: outcome.programs, speedup: makespan / outcome.makespan };
  }).sort((one, other) => other.speedup - one.speedup);
  return best.speedup >= 1.05 ? best : null;
}

/** The bars of the chart, by tone. Neighbouring lanes with bars that begin and end together share one;
 * programs narrower than `narrowest` are drawn together, in the tone of the first. */
export function chartBars({ starts, costs, slotOf, headOf }, { sms, slots, tones, narrowest }) {
  const lanes = Array.from({ length: sms * slots }, () => []);
  for (let id = 0; id < starts.length; id += 1) {
    const lane = lanes[(slotOf[id] % sms) * slots + Math.floor(slotOf[id] / sms)];
    const last = lane.at(-1);
    const end = starts[id] + costs[id];
    if (last && costs[id] < narrowest && last.end - last.start < narrowest) {
      last.end = end;
      last.single = false;
    } else {
      lane.push({ start: starts[id], end, tone: headOf[id] % tones, single: true });
    }
  }
  const open = new Map();
  const bars = Array.from({ length: tones }, () => []);
  lanes.forEach((own, lane) => {
    for (const bar of own) {
      const place = `${bar.start} ${bar.end} ${bar.tone}`;
      const above = open.get(place);
      if (above && above.lane + above.lanes === lane) above.lanes += 1;
      else {
        const started = { ...bar, lane, lanes: 1 };
        open.set(place, started);
        bars[bar.tone].push(started);
      }
    }
  });
  return bars;
}

// ---- the words ----------------------------------------------------------------------------------

const times = (ratio) => `${formatNumber(ratio)}×`;
const placeName = ({ slots }) => (slots > 1 ? "slot" : "SM");
const counted = (count, word) => `${formatInteger(count)} ${word}${count === 1 ? "" : "s"}`;

function adviceText(found, { parallel }) {
  if (!found) {
    return parallel === "heads" ? "A program a tile of queries would not gain 5%."
      : "Neither another order nor another number of splits would gain 5%.";
  }
  const { change, programs, speedup } = found;
  const would = `would make that ${formatInteger(programs)}, ${times(speedup)} as fast.`;
  if (change.parallel) return `A program a tile of queries ${would}`;
  if (change.order) return `Starting with the longest would be ${times(speedup)} as fast.`;
  if (change.splits === 1) return `Leaving the keys whole ${would}`;
  return `Cutting the keys into ${change.splits} splits ${would}`;
}

/** The figure in two or three sentences. */
function verdict(options, schedule, found) {
  const { programs, utilisation, unused } = schedule;
  const places = `${options.sms} SMs${options.slots > 1 ? " with 2 slots each" : ""}`;
  const idle = unused ? ` ${counted(unused, placeName(options))} ${unused === 1 ? "gets" : "get"} none.` : "";
  return `${counted(programs, "program")} on ${places}: ${formatPercent(utilisation)} busy.` +
    `${idle} ${adviceText(found, options)}`;
}

function launchText(options, { heads }) {
  if (options.parallel === "heads") return `${counted(heads, "head")}, a program each`;
  const tiles = counted(Math.ceil(options.seq_query / options.block_m), "tile");
  return `${counted(heads, "head")} × ${tiles} × ${counted(splitsOf(options), "split")}`;
}

function momentText(options, schedule, moment) {
  const { makespan, programs, slotEnds } = schedule;
  if (moment === MOMENTS) return `step ${formatInteger(makespan)}: ${counted(programs, "program")} done`;
  const time = Math.round((makespan * moment) / MOMENTS);
  return `step ${formatInteger(time)}: ${formatInteger(busyAt(schedule, time))} of ` +
    `${counted(slotEnds.length, placeName(options))} busy`;
}

function tailText(options, { makespan, tailStart, unused, slotEnds }) {
  if (unused) {
    return `${formatInteger(unused)} of ${counted(slotEnds.length, placeName(options))} get no program`;
  }
  if (tailStart === makespan) return "no tail: all end together";
  return `tail: ${formatPercent((makespan - tailStart) / makespan)} of the time`;
}

// ---- the look -----------------------------------------------------------------------------------

const TONES = 6;
const CHART = { left: 46, right: 4, top: 24, axis: 36 };
const THUMB = 8; // half of a slider's thumb: its middle is to stand under the cursor
const CSS = `
.bf {
  --ps-blue: color-mix(in oklab, var(--bf-sram), var(--bf-registers));
  --ps-tone-0: var(--bf-sram);
  --ps-tone-1: var(--ps-blue);
  --ps-tone-2: var(--bf-registers);
  --ps-tone-3: color-mix(in oklab, var(--bf-registers) 45%, #fff);
  --ps-tone-4: color-mix(in oklab, var(--ps-blue) 45%, #fff);
  --ps-tone-5: color-mix(in oklab, var(--bf-sram) 45%, #fff);
  --ps-idle: color-mix(in srgb, var(--bf-ink) 13%, var(--bf-paper));
}
@container (min-width: 720px) {
  .bf .ps-controls { grid-template-columns: 1fr 1fr 1fr; }
  .bf .ps-controls > :has(select) { grid-column: span 2; }
}
.bf .ps-controls [inert] { opacity: .4; }
.bf p.ps-verdict { padding: 12px 16px; font-size: 15px; min-height: calc(2.8em + 25px);
  border-bottom: 1px solid var(--bf-line); }
@container (max-width: 559.9px) { .bf p.ps-verdict { font-size: 14px; min-height: calc(5.6em + 25px); } }
.bf .ps-stage { padding: 10px 16px 12px; }
.bf .ps-stage > svg { width: 100%; overflow: visible; }
.bf .ps-idle { fill: var(--ps-idle); }
${Array.from({ length: TONES }, (_, tone) => `.bf .ps-tone-${tone} { fill: var(--ps-tone-${tone}); }`).join("\n")}
.bf .ps-between { fill: none; stroke: var(--bf-paper); }
.bf .ps-future { fill: var(--bf-paper); fill-opacity: .8; }
.bf .ps-cursor { stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .ps-tail { fill: none; stroke: var(--bf-danger); stroke-width: 1.5; }
.bf text.ps-tail-words { font-weight: 650; }
.bf .ps-tick { stroke: var(--bf-line); }
.bf .ps-time { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 4px 20px; }
.bf .ps-time .bf-control { display: contents; }
.bf .ps-time input { grid-area: 1 / 1 / 2 / -1; width: auto;
  margin: 0 ${CHART.right - THUMB}px 0 ${CHART.left - THUMB}px; }
.bf .ps-time .bf-control-head { grid-row: 2; grid-column: 2; margin: 0; }
.bf .ps-time .bf-value { white-space: nowrap; }
@container (max-width: 559.9px) {
  .bf .ps-time .bf-control-head { grid-row: 3; grid-column: 1 / -1; }
}
.bf .ps-numbers { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px;
  background: var(--bf-line); border-block: 1px solid var(--bf-line); }
@container (max-width: 639.9px) { .bf .ps-numbers { grid-template-columns: 1fr 1fr; } }
.bf .ps-number { background: var(--bf-paper); padding: 9px 16px 10px; min-width: 0; }
.bf .ps-number b { display: block; font-size: 19px; line-height: 1.3; font-weight: 650; }
.bf .ps-number .bf-muted { display: block; min-height: 2.8em; }
@container (max-width: 479.9px) { .bf .ps-number .bf-muted { min-height: 4.2em; } }
.bf .ps-table { padding: 9px 16px 11px; font-size: 13px; }
.bf .ps-row { display: grid; grid-template-columns: 9.6rem 1fr 5.6rem 6.4rem; gap: 4px 12px;
  align-items: center; min-height: 26px; }
.bf .ps-row > :nth-child(n + 3) { text-align: right; white-space: nowrap; }
.bf .ps-row b { font-weight: 650; }
.bf .ps-row svg { width: 100%; }
.bf .ps-busy { fill: var(--bf-sram); }
@container (max-width: 559.9px) {
  .bf .ps-row { grid-template-columns: 1fr 4.4rem 5.4rem; padding: 3px 0; }
  .bf .ps-row > :nth-child(2) { grid-column: 1 / -1; grid-row: 2; }
  .bf .ps-row:first-child > :nth-child(2) { display: none; }
}
.bf .bf-notes p + p { margin-top: 6px; }
.bf p.ps-left-out { min-height: 1.4em; }
@container (max-width: 639.9px) { .bf p.ps-left-out { min-height: 2.8em; } }
`;

// ---- the chart ----------------------------------------------------------------------------------

/** Narrower bars than this, in pixels, are drawn together. */
const NARROWEST = 3;

function chart() {
  const svg = svgNode("svg", { "aria-hidden": "true" });
  const still = svgNode("g");
  const future = svgNode("rect", { class: "ps-future" });
  const cursor = svgNode("line", { class: "ps-cursor" });
  svg.append(still, future, cursor);

  const plot = (width) => ({ left: CHART.left, width: width - CHART.left - CHART.right,
    top: CHART.top, height: width < 560 ? 300 : 400 });

  function draw(options, schedule, width) {
    const { left, width: inner, top, height } = plot(width);
    const { makespan, tailStart } = schedule;
    const { sms, slots } = options;
    const [x, lane] = [(time) => left + (inner * time) / makespan, height / (sms * slots)];
    const floor = top + height;
    setAttributes(svg, { height: floor + CHART.axis });
    const nodes = [];
    const add = (tag, attributes) => nodes.push(svgNode(tag, attributes));
    const text = (atX, atY, anchor, words, name = "bf-muted") =>
      add("text", { class: name, x: atX, y: atY, "text-anchor": anchor, text: words });

    add("rect", { class: "ps-idle", x: left, y: top, width: inner, height });
    const narrowest = (NARROWEST * makespan) / inner;
    chartBars(schedule, { sms, slots, tones: TONES, narrowest }).forEach((bars, tone) => {
      const path = bars.map((bar) => {
        const span = x(bar.end) - x(bar.start);
        const gap = bar.single ? Math.min(1, span / 4) : 0;
        const shown = [x(bar.start), top + bar.lane * lane].map((at) => at.toFixed(2));
        const right = (span - gap).toFixed(2);
        return `M${shown.join(" ")}h${right}v${(bar.lanes * lane).toFixed(2)}h-${right}z`;
      });
      add("path", { class: `ps-tone-${tone}`, d: path.join("") });
    });
    const rows = Array.from({ length: sms - 1 }, (_, sm) =>
      `M${left} ${(top + (sm + 1) * slots * lane).toFixed(2)}h${inner}`);
    add("path", { class: "ps-between", d: rows.join(""), "stroke-width": Math.min(1, slots * lane * 0.2) });

    text(left - 6, top + 10, "end", "SM 1");
    text(left - 6, floor - 1, "end", `SM ${sms}`);
    const last = `${formatInteger(makespan)} steps`;
    const room = (words) => 7.2 * words.length;
    for (const time of ticks(makespan, Math.max(2, Math.floor(inner / 110)))) {
      add("line", { class: "ps-tick", x1: x(time), x2: x(time), y1: floor, y2: floor + 5 });
      const words = formatInteger(time);
      const free = left + inner - room(last) - room(words) / 2 - 8;
      if (x(time) < free) text(x(time), floor + 18, "middle", words);
    }
    text(left + inner, floor + 18, "end", last);
    const tail = `M${x(tailStart)} ${top - 2}v-5H${x(makespan)}v5`;
    if (tailStart < makespan) add("path", { class: "ps-tail", d: tail });
    text(left + inner, top - 11, "end", tailText(options, schedule), "ps-tail-words");
    still.replaceChildren(...nodes);
  }

  function drawMoment(moment, width) {
    const { left, width: inner, top, height } = plot(width);
    const x = left + (inner * moment) / MOMENTS;
    setAttributes(future, { x, y: top, width: left + inner - x, height });
    setAttributes(cursor, { x1: x, x2: x, y1: top - 2, y2: top + height + 5 });
  }
  return { svg, draw, drawMoment };
}

// ---- the numbers --------------------------------------------------------------------------------

function number(name, words) {
  const value = htmlNode("b", { "data-name": name });
  const below = htmlNode("span", { class: "bf-muted", text: words });
  const draw = (text, exact, under = words) => {
    value.textContent = text;
    value.dataset.number = exact;
    below.textContent = under;
  };
  return { node: htmlNode("div", { class: "ps-number" }, value, below), draw };
}

const LAUNCHES = { chosen: "as chosen", perHead: "a program a head", oneSplit: "keys not split" };

/** How long the launch takes, and two others: a bar each, of its busy and its idle part. */
function comparison() {
  const cell = (role, text = "") => htmlNode("span", { role, text });
  const head = htmlNode("div", { class: "ps-row bf-muted", role: "row" },
    ...["launch", "busy and idle until the end", "steps", "chosen is"].map((text) => cell("columnheader", text)));
  const rows = Object.entries(LAUNCHES).map(([name, text]) => {
    const svg = svgNode("svg", { height: 14, "aria-hidden": "true" });
    const words = htmlNode("span", { class: "bf-hidden" });
    const [steps, speedup] = [cell("cell"), cell("cell")];
    const label = htmlNode("span", { role: "rowheader" }, htmlNode(name === "chosen" ? "b" : "span", { text }));
    const node = htmlNode("div", { class: "ps-row", role: "row", "data-launch": name },
      label, htmlNode("span", { role: "cell" }, svg, words), steps, speedup);
    return { name, node, svg, words, steps, speedup };
  });
  const node = htmlNode("div", { class: "ps-table", role: "table", "aria-label": "The launch against others" },
    head, ...rows.map((row) => row.node));

  function draw(schedule, width) {
    const launches = { ...schedule, chosen: { ...schedule, speedup: 1 } };
    const longest = Math.max(...Object.keys(LAUNCHES).map((name) => launches[name].makespan));
    for (const { name, node: row, svg, words, steps, speedup } of rows) {
      const each = launches[name];
      row.dataset.makespan = each.makespan;
      steps.textContent = formatInteger(each.makespan);
      speedup.textContent = name === "chosen" ? "" : `${times(each.speedup)} as fast`;
      words.textContent = `${formatPercent(each.utilisation)} busy`;
      const all = Math.max(1, (width * each.makespan) / longest);
      svg.replaceChildren(
        svgNode("rect", { class: "ps-idle", width: all, height: 14 }),
        svgNode("rect", { class: "ps-busy", width: all * each.utilisation, height: 14 }));
    }
  }
  return { node, measured: rows[0].svg, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const STATE_KEYS = ["batch", "heads", "seq_query", "seq_key", "block_m", "block_n", "causal", "order",
  "splits", "parallel", "slots", "gpu"];

/** The model as the controls see it: "queries" is all of them or one. */
function withQueries(model) {
  const oneQuery = () => model.get("seq_query") === 1;
  return {
    get: (key) => (key === "queries" ? (oneQuery() ? "one" : "all") : model.get(key)),
    set(key, value) {
      if (key === "queries") {
        model.set("seq_query", value === "one" ? 1 : model.get("seq_key"));
        return;
      }
      model.set(key, value);
      if (key === "seq_key" && !oneQuery()) model.set("seq_query", value);
    },
    save_changes: () => model.save_changes(),
  };
}

function figureControls(id, model) {
  const control = (make, key, label, values, show) => make({ id, model, key, label, values, show });
  const named = (names) => (value) => names[value];
  return {
    batch: control(slider, "batch", "Batch", BATCHES),
    heads: control(slider, "heads", "Heads", HEADS),
    seq_key: control(slider, "seq_key", "Keys N", LENGTHS),
    queries: control(choice, "queries", "Queries", ["all", "one"],
      named({ all: "N: prefill", one: "1: decode" })),
    causal: control(choice, "causal", "Mask", [false, true], named({ false: "none", true: "causal" })),
    block_m: control(choice, "block_m", "BLOCK_M, queries a tile", [64, 128, 256]),
    parallel: control(choice, "parallel", "A program for each", ["heads", "tiles"],
      named({ heads: "head", tiles: "tile of queries" })),
    order: control(choice, "order", "Tiles of queries start", ["first", "longest"],
      named({ first: "first to last", longest: "longest first" })),
    splits: control(slider, "splits", "Splits of the keys", SPLITS),
    gpu: control(select, "gpu", "GPU",
      model.get("gpus").map(({ name, sms }) => ({ value: name, text: `${name}: ${sms} SMs` }))),
    slots: control(choice, "slots", "Programs an SM holds", [1, 2]),
  };
}

function keys() {
  return swatches({
    "programs, a tone a head (six in turn; drawn together where too narrow)": "fill: var(--ps-tone-0)",
    idle: "fill: var(--ps-idle)",
    "after the cursor": "fill: color-mix(in srgb, var(--ps-tone-0) 20%, var(--bf-paper))",
  });
}

function render({ model, el }) {
  const id = uniqueId("program-scheduler");
  const root = figureFrame(el, "Programs on multiprocessors", CSS);
  const controls = figureControls(id, withQueries(model));
  const picture = chart();
  const table = comparison();
  const numbers = {
    programs: number("programs", ""),
    waves: number("waves", ""),
    busy: number("utilisation", "of all SMs’ time is busy"),
    makespan: number("makespan", ""),
  };
  // A slow pace where the reader asked for little motion.
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const steps = transport({ model, key: "moment", last: () => MOMENTS,
    interval: () => (calm.matches ? 800 : 150) });
  let shown = null; // what the model says about the present options
  const moment = slider({ id, model, key: "moment", label: "Time",
    values: Array.from({ length: MOMENTS + 1 }, (_, at) => at),
    show: (at) => (shown ? momentText(shown.options, shown.schedule, at) : "") });
  const says = htmlNode("p", { class: "ps-verdict", role: "status" });
  const leftOut = htmlNode("p", { class: "ps-left-out" });
  const assumptions = htmlNode("p");
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "Programs on multiprocessors" }),
      htmlNode("span", { class: "bf-muted", text: "which SM runs which program, and when" })),
    htmlNode("div", { class: "bf-controls ps-controls" }, ...Object.values(controls).map(({ node }) => node)),
    says,
    htmlNode("div", { class: "ps-stage" }, picture.svg,
      htmlNode("div", { class: "ps-time" }, moment.node, steps.node)),
    htmlNode("div", { class: "ps-numbers" }, ...Object.values(numbers).map(({ node }) => node)),
    table.node,
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(), leftOut, assumptions),
  );

  let [width, barWidth] = [0, 0];
  function draw() {
    const options = Object.fromEntries(STATE_KEYS.map((key) => [key, model.get(key)]));
    options.sms = model.get("gpus").find(({ name }) => name === options.gpu).sms;
    const name = JSON.stringify([options, width, barWidth]);
    if (shown?.name !== name) {
      const schedule = scheduleModel(options);
      shown = { name, options, schedule };
      drawWords();
      if (barWidth) table.draw(schedule, barWidth);
      if (width) picture.draw(options, schedule, width);
    }
    [...Object.values(controls), moment, steps].forEach(({ refresh }) => refresh());
    if (width) picture.drawMoment(model.get("moment"), width);
  }

  function drawWords() {
    const { options, schedule } = shown;
    const { programs, waves, utilisation, makespan, heads, allHeads, slotEnds, costs } = schedule;
    const perHead = options.parallel === "heads";
    controls.splits.node.toggleAttribute("inert", perHead);
    controls.order.node.toggleAttribute("inert", perHead);
    says.textContent = verdict(options, schedule, advice(options, schedule));
    numbers.programs.draw(formatInteger(programs), programs, launchText(options, schedule));
    numbers.waves.draw(formatNumber(waves), waves,
      `waves: ${slotEnds.length} run at a time`);
    numbers.busy.draw(formatPercent(utilisation), utilisation);
    const longest = costs.reduce((most, cost) => Math.max(most, cost));
    numbers.makespan.draw(`${formatInteger(makespan)} steps`, makespan,
      `until the end, ${formatInteger(longest)} for the longest program`);
    leftOut.textContent = heads < allHeads
      ? `Of ${formatInteger(allHeads)} heads the first ${formatInteger(heads)} are scheduled, ` +
        `in each launch: no more than ${formatInteger(LARGEST_LAUNCH)} programs.`
      : "All heads of the batch are scheduled. The tail begins when the first SM finds none left.";
    assumptions.textContent =
      `A step is one tile of ${options.block_m} × ${options.block_n} scores. A program costs ${OVERHEAD} ` +
      "more, to load its queries and store its output, and with several splits another for its share of " +
      "the merge. Each goes to the SM that is free first, and a tile takes as long on every one: the model " +
      "knows nothing of memory. Where two programs share an SM, a step is the time a tile takes beside a " +
      "neighbour: compare no steps of one and of two. After Section 3.2 of FlashAttention-2 (Dao, 2023).";
  }

  // Drawn once for all that changes together: with the keys' number that of the queries.
  let waiting = false;
  function drawSoon() {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; draw(); });
  }

  const events = [...STATE_KEYS, "moment"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, drawSoon));
  draw();
  const stops = [
    onWidth(picture.svg, (newWidth) => { width = newWidth; draw(); }),
    onWidth(table.measured, (newWidth) => { barWidth = newWidth; draw(); }),
  ];
  return () => {
    steps.stop();
    stops.forEach((stop) => stop());
    events.forEach((event) => model.off(event, drawSoon));
  };
}

export default { render };
