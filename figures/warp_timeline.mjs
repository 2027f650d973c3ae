// Warps over time. One SM runs FlashAttention-3's kernel on one tile of queries: what each partition
// and each unit does in every cycle, and which slot of shared memory holds which tiles.

// ---- the model ----------------------------------------------------------------------------------
// Runs come from Python; instruments/warp_timeline.py says what the numbers of their rows mean.

export const STAGES = [1, 2, 3];
const SWITCHES = ["loader", "stages", "overlap", "pingpong", "head_dim"];
const [QUERY, KEY, VALUE] = [0, 1, 2];
const NO_TILE = -1;
const LONGEST_RING = 3;

/** The run of a setting. One consumer alone has nobody to take turns with. */
export function runOf({ runs }, setting) {
  const pingpong = setting.loader === "producer" && setting.pingpong;
  const wanted = { ...setting, pingpong };
  return runs.find((run) => SWITCHES.every((key) => run[key] === wanted[key]));
}

const lengthOf = (spans) => spans.reduce((total, [start, end]) => total + end - start, 0);

/** How much of `span` lies under any of `others`, which may overlap. */
function covered([start, end], others) {
  let [total, from] = [0, start];
  for (const [left, right] of [...others].sort((one, other) => one[0] - other[0])) {
    total += Math.max(0, Math.min(right, end) - Math.max(left, from));
    from = Math.max(from, Math.min(right, end));
  }
  return total;
}

/** Shares of the run's time, and of the exponentials' time: under a product of the same consumer, and
 * under one of another. */
export function shares({ cycles, products, exponentials, copies, stores }) {
  const [running, exp] = [products.map((row) => row.slice(4)), exponentials.map((row) => row.slice(2))];
  const copying = [...copies.map((row) => row.slice(4, 6)), ...stores.map((row) => row.slice(2, 4))];
  const under = (same) => exponentials.reduce((total, [consumer, , start, end]) =>
    total + covered([start, end],
      products.filter((row) => (row[0] === consumer) === same).map((row) => row.slice(4))), 0) /
    lengthOf(exp);
  return {
    cycles, tensorCores: lengthOf(running) / cycles, exponentials: lengthOf(exp) / cycles,
    copies: lengthOf(copying) / cycles, underOwn: under(true), underOther: under(false),
  };
}

/** Of the steps with two products, QKᵀ and the PV of the tile before: how many there are, and in how many
 * a consumer issues both with no other's product between. */
export function stepsInOnePiece({ products }) {
  const issued = [...products].sort((one, other) => one[3] - other[3]);
  const starts = issued.slice(0, -1).map((row, at) => [row, issued[at + 1]])
    .filter(([[consumer, kind, tile]]) => kind === 0 &&
      products.some((row) => row[0] === consumer && row[1] === 0 && row[2] > tile));
  const whole = starts.filter(([[consumer], [following, kind]]) => consumer === following && kind === 1);
  return { steps: starts.length, whole: whole.length };
}

/** The times at which anything begins or ends. */
export function eventsOf(run) {
  const times = [0, run.cycles];
  run.partitions.forEach((rows) => rows.forEach((row) => times.push(row[1], row[2])));
  run.products.forEach((row) => times.push(...row.slice(3)));
  run.exponentials.forEach((row) => times.push(...row.slice(2)));
  run.copies.forEach((row) => times.push(...row.slice(3)));
  run.stores.forEach((row) => times.push(...row.slice(1)));
  return [...new Set(times)].sort((one, other) => one - other);
}

const during = (cycle, start, end) => start <= cycle && cycle < end;
const hasProducer = ({ loader }) => loader === "producer";
const consumersOf = (run) => run.partitions.length - (hasProducer(run) ? 1 : 0);
// V is due one step after the K of the same keys.
const slotOf = (run, { tiles }, tensor, tile) => (tiles - 1 - tile + (tensor - KEY)) % run.stages;

// ---- the words ----------------------------------------------------------------------------------

const PRODUCTS = ["QKᵀ", "PV"];
const LETTERS = ["Q", "K", "V"];

/** "K tile 4 and V tile 5", of a step: the first has no V, and the last no K. */
const pairText = (data, step) => [KEY, VALUE].map((tensor) => [tensor, data.tiles - 1 - step + (tensor - KEY)])
  .filter(([, tile]) => tile >= 0 && tile < data.tiles)
  .map(([tensor, tile]) => `${LETTERS[tensor]} tile ${tile}`).join(" and ");

/** "K tile 4 and V tile 5 (pairs.full[1], phase 0)": what a partition waits for at a barrier. */
function barrierText(data, run, name, slot, phase) {
  const what = {
    "turn": "its turn",
    "queries.full": "its queries",
    "pairs.empty": `slot ${slot} to be empty`,
    "pairs.full": pairText(data, phase * run.stages + slot),
  };
  return `${what[name]} (${name}[${slot}], phase ${phase})`;
}

function doesText(data, run, [place, , , which, phase]) {
  const does = data.does[place];
  if (does === "work") return which === NO_TILE ? "divides and stores its output" : `softmax of tile ${which}`;
  if (does === "products") return "waits for the tensor cores";
  if (does === "store") return "waits until its output is stored";
  if (which === undefined) return `waits for the ${does}`;
  return `waits for ${barrierText(data, run, does, which, phase)}`;
}

function partitionText(data, run, place, cycle) {
  const rows = run.partitions[place];
  const consumer = place - (hasProducer(run) ? 1 : 0);
  const row = rows.find(([, start, end]) => during(cycle, start, end));
  const over = rows.length > 0 && cycle >= rows.at(-1)[2];
  if (consumer < 0) {
    const left = run.copies.some((copy) => copy[3] >= cycle);
    return row ? doesText(data, run, row) : left ? "starts copies" : "done: all is asked for";
  }
  if (over) return "done";
  const flying = run.products
    .filter((product) => product[0] === consumer && during(cycle, product[3], product[5]))
    .map(([, kind, tile, , start]) => `${PRODUCTS[kind]} ${tile}${cycle < start ? " (queued)" : ""}`);
  const words = row ? doesText(data, run, row) : "gives orders to copies, products and barriers";
  return words + (flying.length ? `. In flight: ${flying.join(", ")}` : "");
}

/** "K tile 4, read for consumer 0; V tile 5, arriving": what a slot holds. */
function slotText(data, run, slot, cycle) {
  const held = run.copies.filter((row) =>
    row[0] !== QUERY && row[1] === slot && during(cycle, row[3], row[7]));
  const texts = held.map(([tensor, , tile, , , , landed]) => {
    const readers = run.products
      .filter(([, kind, of, , start, end]) => kind + KEY === tensor && of === tile && during(cycle, start, end))
      .map(([consumer]) => consumerName(run, consumer));
    const state = cycle < landed ? "arriving" : readers.length ? `read for ${readers[0]}` : "there";
    return `${LETTERS[tensor]} tile ${tile}, ${state}`;
  });
  return texts.join("; ") || "empty";
}

const consumerName = (run, consumer) => (hasProducer(run) ? `consumer ${consumer}` : "the consumer");

function unitTexts(data, run, cycle) {
  const product = run.products.find((row) => during(cycle, row[4], row[5]));
  const exp = run.exponentials.find((row) => during(cycle, row[2], row[3]));
  const copy = run.copies.find((row) => during(cycle, row[4], row[5]));
  const store = run.stores.find((row) => during(cycle, row[2], row[3]));
  const copyText = () => copy[0] === QUERY ? `queries of ${consumerName(run, copy[1])}`
    : `${LETTERS[copy[0]]} tile ${copy[2]} into slot ${copy[1]}`;
  return {
    tensorCores: product ? `${PRODUCTS[product[1]]} ${product[2]} of ${consumerName(run, product[0])}` : "idle",
    exponentials: exp ? `tile ${exp[1]} of ${consumerName(run, exp[0])}` : "idle",
    copies: copy ? copyText() : store ? `output of ${consumerName(run, store[0])}` : "idle",
  };
}

/** What everybody does at a cycle: [name, words] each, the partitions first. */
export function momentTexts(data, run, cycle) {
  const names = run.partitions.map((_, place) => laneName(run, place));
  const units = unitTexts(data, run, cycle);
  return [
    ...names.map((name, place) => [name, partitionText(data, run, place, cycle)]),
    ["tensor cores", units.tensorCores], ["exponentials", units.exponentials],
    ["copies", units.copies],
    ...STAGES.slice(0, run.stages).map((_, slot) => [`slot ${slot}`, slotText(data, run, slot, cycle)]),
  ];
}

function laneName(run, place) {
  if (!hasProducer(run)) return "consumer";
  return place === 0 ? "producer" : `consumer ${place - 1}`;
}

const OVERLAPS = {
  none: "no overlap", maximum: "overlap of the maximum", softmax: "overlap of the softmax",
};

function settingText({ loader, stages, overlap, pingpong, head_dim, partitions }) {
  const who = loader === "producer" ? `A producer and ${partitions.length - 1} consumers` : "One consumer alone";
  const slots = `${stages} slot${stages > 1 ? "s" : ""}`;
  return `${who}, ${slots}, ${OVERLAPS[overlap]}` +
    `${loader === "producer" ? (pingpong ? ", pingpong" : ", no pingpong") : ""}, d = ${head_dim}`;
}

/** Cycles against the setting before, for the same work. */
export function changeText(run, before) {
  if (!before) return "";
  if (run.head_dim !== before.head_dim) return "other work: compare shares";
  const ratio = (run.cycles / run.queries) / (before.cycles / before.queries);
  const each = run.queries === before.queries ? "" : " a query";
  if (Math.abs(ratio - 1) < 0.0005) return `as many${each} as before`;
  return `${formatPercent(Math.abs(ratio - 1))} ${ratio < 1 ? "fewer" : "more"}${each} than before`;
}

/** What an overlap puts under the product with V. */
const OVERLAP_LESSONS = {
  none: (underOwn) => "Each consumer waits for both of its products before its softmax: " +
    `${underOwn} of the exponentials fall under a product of their own consumer.`,
  maximum: (underOwn) => "Only the maxima of a tile’s rows are found while the product of the tile before with " +
    `V is in flight. The exponentials come after it: ${underOwn} of them fall under a product of their own consumer.`,
  softmax: (underOwn) => "The whole softmax of a tile may run while the product of the tile before with V is in " +
    `flight: ${underOwn} of the exponentials fall under a product of their own consumer. The pair of tiles is ` +
    "given back only after both.",
};

/** What the switch that changed does. */
function lesson(run, before, { underOwn }) {
  const changed = before && SWITCHES.find((key) => run[key] !== before[key]);
  if (!before) return "Change a switch, and this says what it does; the setting before stays below the slots.";
  if (changed === "loader") {
    return hasProducer(run)
      ? "The producer asks for a pair of tiles as soon as its slot is empty, and each consumer goes at its own " +
        "pace."
      : "Both warpgroups work in step as one consumer: while it does its softmax, it starts no copy.";
  }
  if (changed === "stages") {
    return run.stages === 1 ? "A pair of tiles is asked for only when the one before it is used up."
      : `While one pair of tiles is multiplied, the next ${run.stages === 2 ? "" : "two "}can arrive: copies run ` +
        "under products.";
  }
  if (changed === "overlap") return OVERLAP_LESSONS[run.overlap](formatPercent(underOwn));
  if (changed === "pingpong") {
    const { steps, whole } = stepsInOnePiece(run);
    const found = `in ${whole} of ${steps} steps, before in ${stepsInOnePiece(before).whole}`;
    return run.pingpong
      ? `In turns, a consumer issues the two products of a step in one piece: ${found}. That is an order; ` +
        "this model, which serves whole products as they come, shows little gain from it, none or a loss."
      : `Without turns the products of consumers may mix: those of a step come in one piece ${found}.`;
  }
  return run.head_dim === 64
    ? "At d = 64 the exponentials keep their unit as many cycles as the products keep the tensor cores."
    : "At d = 128 the exponentials keep their unit half as many cycles as the products the tensor cores.";
}

// ---- the look -----------------------------------------------------------------------------------

const CHART = { left: 88, right: 6, top: 8 };
const THUMB = 8; // half of a slider's thumb: its middle is to stand under the cursor
const POSITIONS = 400;
const CSS = `
.bf {
  --wt-copy: var(--bf-hbm);
  --wt-scores: color-mix(in srgb, var(--bf-sram) 86%, #000);
  --wt-output: color-mix(in oklab, color-mix(in oklab, var(--bf-sram), var(--bf-registers)) 80%, #000);
  --wt-softmax: var(--bf-registers);
  --wt-track: color-mix(in srgb, var(--bf-ink) 6%, var(--bf-paper));
  --wt-full: color-mix(in srgb, var(--bf-hbm) 42%, var(--bf-paper));
}
@container (min-width: 640px) {
  .bf .wt-controls { grid-template-columns: repeat(6, 1fr); }
  .bf .wt-controls > * { grid-column: span 2; }
  .bf .wt-controls > :nth-child(n + 4) { grid-column: span 3; }
}
.bf .wt-controls [inert] { opacity: .4; }
.bf p.wt-verdict { padding: 11px 16px; min-height: calc(4.2em + 22px); border-bottom: 1px solid var(--bf-line); }
@container (max-width: 559.9px) { .bf p.wt-verdict { min-height: calc(9.8em + 22px); } }
.bf .wt-verdict b { font-weight: 650; }
.bf .wt-stage { padding: 10px 16px 12px; }
.bf .wt-stage > svg { width: 100%; overflow: visible; }
.bf .wt-track { fill: var(--wt-track); }
.bf .wt-none { fill: none; stroke: var(--bf-line); stroke-dasharray: 3 3; }
.bf .wt-scores { fill: var(--wt-scores); }
.bf .wt-output { fill: var(--wt-output); }
.bf .wt-softmax { fill: var(--wt-softmax); }
.bf .wt-copy { fill: var(--wt-copy); }
.bf .wt-full { fill: var(--wt-full); }
.bf text.wt-on { fill: #fff; font-size: 11px; }
.bf text.wt-tile { font-size: 11px; }
.bf .wt-tick { stroke: var(--bf-line); }
.bf .wt-cursor { stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .wt-time { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 4px 20px; }
.bf .wt-time .bf-control { display: contents; }
.bf .wt-time input { grid-area: 1 / 1 / 2 / -1; width: auto;
  margin: 0 ${CHART.right - THUMB}px 0 ${CHART.left - THUMB}px; }
.bf .wt-time .bf-control-head { grid-row: 2; grid-column: 2; margin: 0; }
.bf .wt-time .bf-value { white-space: nowrap; }
@container (max-width: 559.9px) {
  .bf .wt-time .bf-control-head { grid-row: 3; grid-column: 1 / -1; }
}
.bf .wt-words { padding: 9px 16px 10px; border-top: 1px solid var(--bf-line); font-size: 13px; }
.bf .wt-row { display: grid; grid-template-columns: 6.6rem 1fr; gap: 0 12px; min-height: 1.55em;
  padding-bottom: 2px; }
.bf .wt-row > :first-child { color: var(--bf-muted); }
@container (max-width: 639.9px) { .bf .wt-row { min-height: 3em; } }
@container (max-width: 479.9px) { .bf .wt-row { grid-template-columns: 5.4rem 1fr; }
  .bf .wt-row[data-partition] { min-height: 4.4em; } }
.bf .wt-numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px;
  background: var(--bf-line); border-block: 1px solid var(--bf-line); }
@container (max-width: 559.9px) { .bf .wt-numbers { grid-template-columns: 1fr 1fr; } }
.bf .wt-number { background: var(--bf-paper); padding: 8px 16px 9px; min-width: 0; }
.bf .wt-number b { display: block; font-size: 18px; line-height: 1.3; font-weight: 650; }
.bf .wt-number .bf-muted { display: block; }
.bf .wt-number .wt-change { min-height: 1.4em; }
@container (max-width: 559.9px) { .bf .wt-number .wt-change { min-height: 2.8em; } }
.bf .bf-notes p + p { margin-top: 6px; }
`;

/** Stripes for what waits, and for what is on its way. */
function patterns(id) {
  const stripes = (name, back, line) => svgNode(
    "pattern",
    { id: `${id}-${name}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
    svgNode("rect", { width: 6, height: 6, style: `fill: ${back}` }),
    svgNode("path", { d: "M-1 1l2 -2M0 6L6 0M5 7l2 -2", style: `stroke: ${line}; stroke-width: 1.2` }),
  );
  return svgNode("defs", {},
    stripes("wait", "var(--bf-paper)", "color-mix(in srgb, var(--bf-ink) 38%, var(--bf-paper))"),
    stripes("arriving", "var(--bf-paper)", "var(--wt-copy)"));
}

// ---- the chart ----------------------------------------------------------------------------------

/** The lanes from the top: name, y and height of each; `plain` ones get a track. */
function lanesOf(run) {
  let y = CHART.top;
  const lanes = {};
  const add = (key, name, height, gap = 4) => {
    lanes[key] = { name, y, height };
    y += height + gap;
  };
  add("producer", "producer", 16);
  for (let consumer = 0; consumer < consumersOf(run); consumer += 1) {
    add(`consumer${consumer}`, hasProducer(run) ? `consumer ${consumer}` : "consumer", 34);
  }
  y += 5;
  add("tensorCores", "tensor cores", 20);
  add("exponentials", "exponentials", 16);
  add("copies", "copies", 16);
  y += 5;
  for (let slot = 0; slot < LONGEST_RING; slot += 1) {
    add(`slot${slot}${KEY}`, `slot ${slot}: K`, 15, 1);
    add(`slot${slot}${VALUE}`, "V", 15, 5);
  }
  y += 2;
  lanes.floor = { y };
  y += 30;
  lanes.beforeTitle = { y: y + 12 };
  y += 18;
  add("beforeTensor", "tensor cores", 12, 3);
  add("beforeExp", "exponentials", 12, 3);
  lanes.end = { y };
  return lanes;
}

function chart(id) {
  const svg = svgNode("svg", { "aria-hidden": "true" });
  const still = svgNode("g");
  const cursor = svgNode("path", { class: "wt-cursor" });
  svg.append(patterns(id), still, cursor);

  function draw(data, run, before, axis, width) {
    const lanes = lanesOf(run);
    const inner = width - CHART.left - CHART.right;
    const x = (time) => CHART.left + (inner * time) / axis;
    setAttributes(svg, { height: lanes.end.y });
    const [nodes, words] = [[], []];
    const text = (atX, atY, anchor, said, name) =>
      words.push(svgNode("text", { class: name, x: atX, y: atY, "text-anchor": anchor, text: said }));
    const style = (name) => (name === "wait" || name === "arriving"
      ? { style: `fill: url(#${id}-${name})` } : { class: `wt-${name}` });
    /** One path for many bars of a kind: [start, end] each. */
    const bars = (spans, y, height, name) => {
      const path = spans.map(([start, end]) => {
        const long = Math.max(0.6, x(end) - x(start) - 0.6).toFixed(2);
        return `M${x(start).toFixed(2)} ${y}h${long}v${height}h-${long}z`;
      });
      if (path.length) nodes.push(svgNode("path", { ...style(name), d: path.join("") }));
    };
    /** The longest of some words that fits into a bar. */
    const label = (start, end, y, choices, name = "wt-on") => {
      const fits = choices.find((said) => 6.2 * said.length + 3 <= x(end) - x(start));
      if (fits) text((x(start) + x(end)) / 2, y, "middle", fits, name);
    };
    const track = ({ name, y, height }, end, there = true) => {
      if (name) text(CHART.left - 7, y + height / 2 + 4, "end", name, "bf-muted");
      nodes.push(svgNode("rect", { class: there ? "wt-track" : "wt-none", x: CHART.left, y,
        width: x(end) - CHART.left, height }));
    };
    const productBars = (rows, y, height) => [0, 1].forEach((kind) => {
      // Products with V are lower: they can be told without colour.
      const lower = kind ? Math.round(height / 5) : 0;
      bars(rows.filter((row) => row[1] === kind).map((row) => row.slice(4)), y + lower, height - lower,
        kind ? "output" : "scores");
    });

    partitionBars();
    unitBars();
    slotBars();
    drawAxis();
    drawBefore();
    still.replaceChildren(...nodes, ...words);
    const { floor, beforeTensor, end } = lanes;
    setAttributes(cursor, { d: `M0 ${CHART.top - 5}V${floor.y + 3}M0 ${beforeTensor.y}V${end.y}` });

    function partitionBars() {
      track(lanes.producer, run.cycles, hasProducer(run));
      run.partitions.forEach((rows, place) => {
        const consumer = place - (hasProducer(run) ? 1 : 0);
        const lane = consumer < 0 ? lanes.producer : lanes[`consumer${consumer}`];
        const [y, height] = consumer < 0 ? [lane.y, lane.height] : [lane.y + 17, lane.height - 17];
        if (consumer >= 0) {
          track(lane, run.cycles);
          const own = run.products.filter((row) => row[0] === consumer);
          productBars(own, lane.y, 16);
          own.forEach(([, kind, tile, , start, end]) =>
            label(start, end, lane.y + 13, [`${PRODUCTS[kind]} ${tile}`, `${tile}`]));
        }
        const spans = (wanted) => rows.filter((row) => (data.does[row[0]] === "work") === wanted)
          .map((row) => row.slice(1, 3));
        bars(spans(false), y, height, "wait");
        bars(spans(true), y, height, "softmax");
        rows.filter((row) => data.does[row[0]] === "work").forEach(([, start, end, tile]) =>
          label(start, end, y + 13, tile === NO_TILE ? ["out"] : [`softmax ${tile}`, `${tile}`]));
      });
      if (hasProducer(run)) {
        const asked = run.copies.map((row) => [row[3] - axis / inner, row[3] + axis / inner]);
        bars(asked, lanes.producer.y, lanes.producer.height, "copy");
      }
    }

    function unitBars() {
      const { tensorCores, exponentials, copies } = lanes;
      [tensorCores, exponentials, copies].forEach((lane) => track(lane, run.cycles));
      productBars(run.products, tensorCores.y, tensorCores.height);
      run.products.forEach(([consumer, kind, tile, , start, end]) => {
        const of = hasProducer(run) ? `·${consumer}` : "";
        label(start, end, tensorCores.y + 15, [`${PRODUCTS[kind]} ${tile}${of}`, `${tile}${of}`, `${tile}`]);
      });
      bars(run.exponentials.map((row) => row.slice(2)), exponentials.y, exponentials.height, "softmax");
      run.exponentials.forEach(([consumer, tile, start, end]) => label(start, end, exponentials.y + 12,
        [hasProducer(run) ? `${tile}·${consumer}` : `${tile}`, `${tile}`]));
      bars(run.copies.map((row) => row.slice(4, 6)), copies.y, copies.height, "copy");
      bars(run.stores.map((row) => row.slice(2, 4)), copies.y, copies.height, "copy");
      run.copies.forEach(([tensor, , tile, , start, end]) => label(start, end, copies.y + 12,
        tensor === QUERY ? ["Q"] : [`${LETTERS[tensor]} ${tile}`]));
      run.stores.forEach(([, , start, end]) => label(start, end, copies.y + 12, ["O"]));
    }

    function slotBars() {
      for (let slot = 0; slot < LONGEST_RING; slot += 1) {
        for (const tensor of [KEY, VALUE]) {
          const lane = lanes[`slot${slot}${tensor}`];
          const { y, height } = lane;
          const there = slot < run.stages;
          track(lane, run.cycles, there);
          if (!there) continue;
          const held = run.copies.filter((row) => row[0] === tensor && row[1] === slot);
          bars(held.map((row) => [row[3], row[6]]), y, height, "arriving");
          bars(held.map((row) => [row[6], row[7]]), y, height, "full");
          const read = run.products.filter(([, kind, tile]) =>
            kind + KEY === tensor && slotOf(run, data, tensor, tile) === slot);
          bars(read.map((row) => row.slice(4)), y + height - 3, 3, tensor === KEY ? "scores" : "output");
          held.forEach((row) => label(row[6], row[7], y + 11, [`tile ${row[2]}`, `${row[2]}`], "wt-tile"));
        }
      }
    }

    function drawAxis() {
      const { y } = lanes.floor;
      const last = `${formatInteger(run.cycles)} cycles`;
      text(Math.min(x(run.cycles) + 4, CHART.left + inner), y + 17, "end", last, "bf-muted");
      const left = Math.min(x(run.cycles) + 4, CHART.left + inner) - 7 * last.length;
      for (const time of ticks(axis, Math.max(2, Math.floor(inner / 110)))) {
        nodes.push(svgNode("line", { class: "wt-tick", x1: x(time), x2: x(time), y1: y, y2: y + 5 }));
        const said = formatInteger(time);
        const half = 3.6 * said.length + 6;
        if (x(time) + half < left || (x(time) - half > x(run.cycles) + 4 && x(time) + half < width)) {
          text(x(time), y + 17, "middle", said, "bf-muted");
        }
      }
    }

    function drawBefore() {
      const { beforeTitle, beforeTensor, beforeExp } = lanes;
      const narrow = width < 560;
      text(0, beforeTitle.y, "start", before ? narrow
        ? `Before: ${formatInteger(before.cycles)} cycles`
        : `Before: ${settingText(before)}: ${formatInteger(before.cycles)} cycles`
        : "Before: nothing yet", "bf-muted");
      track(beforeTensor, before ? before.cycles : axis, Boolean(before));
      track(beforeExp, before ? before.cycles : axis, Boolean(before));
      if (!before) return;
      productBars(before.products, beforeTensor.y, beforeTensor.height);
      bars(before.exponentials.map((row) => row.slice(2)), beforeExp.y, beforeExp.height, "softmax");
    }
  }

  function drawMoment(cycle, axis, width) {
    const x = CHART.left + ((width - CHART.left - CHART.right) * cycle) / axis;
    setAttributes(cursor, { transform: `translate(${x.toFixed(2)} 0)` });
  }
  return { svg, draw, drawMoment };
}

// ---- the numbers and the words ------------------------------------------------------------------

function number(name, words) {
  const value = htmlNode("b", { "data-name": name });
  const below = htmlNode("span", { class: "bf-muted", text: words });
  const change = htmlNode("span", { class: "bf-muted wt-change" });
  const draw = (text, exact, changed, under = words) => {
    value.textContent = text;
    value.dataset.number = exact;
    below.textContent = under;
    change.textContent = changed;
  };
  return { node: htmlNode("div", { class: "wt-number" }, value, below, change), draw };
}

const SHARES = {
  tensorCores: "of the time the tensor cores work",
  exponentials: "of the time the exponential unit works",
  copies: "of the time the copy engine works",
  underOwn: "of the exponentials under a product of the same consumer",
  underOther: "of the exponentials under a product of another consumer",
};

function momentTable() {
  const node = htmlNode("div", { class: "wt-words", role: "table", "aria-label": "At the cursor" });
  function draw(texts, partitions) {
    node.replaceChildren(...texts.map(([name, words], place) => {
      const row = htmlNode("div", { class: "wt-row", role: "row", "data-lane": name },
        htmlNode("span", { role: "rowheader", text: name }), htmlNode("span", { role: "cell", text: words }));
      row.toggleAttribute("data-partition", place < partitions);
      return row;
    }));
  }
  return { node, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

/** The model as slider and buttons see it: "position" along the axis, "event" by its number. */
function withTime(model, scene) {
  const cycle = () => Math.min(model.get("cycle"), scene().axis);
  const get = {
    position: () => Math.round((cycle() * POSITIONS) / scene().axis),
    event: () => Math.max(0, scene().events.findLastIndex((time) => time <= cycle())),
  };
  const cycleOf = {
    position: (value) => Math.round((value * scene().axis) / POSITIONS),
    event: (value) => scene().events[value],
  };
  return {
    get: (key) => get[key](),
    set: (key, value) => model.set("cycle", cycleOf[key](value)),
    save_changes: () => model.save_changes(),
  };
}

function figureControls(id, model) {
  const control = (key, label, values, names) =>
    choice({ id, model, key, label, values, show: (value) => (names ? names[value] : String(value)) });
  const onOff = { false: "off", true: "on" };
  return {
    loader: control("loader", "Who loads", ["alone", "producer"],
      { alone: "consumer", producer: "producer" }),
    stages: control("stages", "Slots, each for a tile of K and one of V", STAGES),
    head_dim: control("head_dim", "Head dimension d", [64, 128]),
    overlap: control("overlap", "Overlap: runs under the product with V", Object.keys(OVERLAPS)),
    pingpong: control("pingpong", "Pingpong: take turns", [false, true], onOff),
  };
}

function keys(id) {
  return swatches({
    "QKᵀ": "fill: var(--wt-scores)",
    "PV (lower)": "fill: var(--wt-output)",
    "softmax": "fill: var(--wt-softmax)",
    "waits": `fill: url(#${id}-wait); stroke: var(--bf-line)`,
    "copy": "fill: var(--wt-copy)",
    "slot: tile arriving": `fill: url(#${id}-arriving)`,
    "slot: tile there (line below: being read)": "fill: var(--wt-full)",
  });
}

function render({ model, el }) {
  const id = uniqueId("warp-timeline");
  const root = figureFrame(el, "Warps over time", CSS);
  const controls = figureControls(id, model);
  const picture = chart(id);
  const table = momentTable();
  const cycles = number("cycles", "");
  const numbers = Object.fromEntries(Object.entries(SHARES).map(([name, words]) => [name, number(name, words)]));
  let shown = null; // the run of the present setting, the one before, and what they have in common
  const time = withTime(model, () => shown);
  // A slow pace where the reader asked for little motion.
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const steps = transport({ model: { ...time, get: (key) => (shown ? time.get(key) : 0) }, key: "event",
    last: () => (shown ? shown.events.length - 1 : 1), interval: () => (calm.matches ? 800 : 200) });
  const moment = slider({ id, model: time, key: "position", label: "Cycle",
    values: Array.from({ length: POSITIONS + 1 }, (_, at) => at),
    show: () => `${formatInteger(cycle())} of ${formatInteger(shown.run.cycles)}` });
  const says = htmlNode("p", { class: "wt-verdict", role: "status" });
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "Warps over time" }),
      htmlNode("span", { class: "bf-muted", text: "one SM, one tile of queries, FlashAttention-3" })),
    htmlNode("div", { class: "bf-controls wt-controls" }, ...Object.values(controls).map(({ node }) => node)),
    says,
    htmlNode("div", { class: "wt-stage" }, picture.svg,
      htmlNode("div", { class: "wt-time" }, moment.node, steps.node)),
    table.node,
    htmlNode("div", { class: "wt-numbers" }, cycles.node, ...Object.values(numbers).map(({ node }) => node)),
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id), htmlNode("p", { text: caption(model.get("runs")) })),
  );

  const cycle = () => Math.min(model.get("cycle"), shown.axis);
  let width = 0;
  function draw() {
    const data = model.get("runs");
    const run = runOf(data, Object.fromEntries(SWITCHES.map((key) => [key, model.get(key)])));
    if (shown?.run !== run) {
      const before = shown?.data === data ? shown.run : null;
      shown = { data, run, before, events: eventsOf(run), axis: Math.max(run.cycles, before?.cycles ?? 0) };
      drawNumbers();
    }
    const name = `${SWITCHES.map((key) => run[key])} ${shown.axis} ${width}`;
    if (width && shown.drawn !== name) {
      picture.draw(data, run, shown.before, shown.axis, width);
      shown.drawn = name;
    }
    [...Object.values(controls), moment, steps].forEach(({ refresh }) => refresh());
    if (width) picture.drawMoment(cycle(), shown.axis, width);
    const texts = momentTexts(data, run, cycle());
    table.draw(texts, run.partitions.length);
    const partitions = texts.slice(0, run.partitions.length).map((pair) => pair.join(" "));
    moment.node.querySelector("input")
      .setAttribute("aria-valuetext", `cycle ${formatInteger(cycle())}: ${partitions.join("; ")}`);
  }

  function drawNumbers() {
    const { run, before } = shown;
    const [now, then] = [shares(run), before && shares(before)];
    controls.pingpong.node.toggleAttribute("inert", !hasProducer(run));
    const change = changeText(run, before);
    says.replaceChildren(
      htmlNode("b", { text: `${settingText(run)}: ${formatInteger(run.cycles)} cycles, tensor cores busy ` +
        `${formatPercent(now.tensorCores)} of them.` }),
      ` ${change ? `${change[0].toUpperCase()}${change.slice(1)}. ` : ""}${lesson(run, before, now)}`);
    cycles.draw(formatInteger(run.cycles), run.cycles, change, `cycles for ${run.queries} queries`);
    for (const [name, each] of Object.entries(numbers)) {
      each.draw(formatPercent(now[name]), now[name], then ? `before: ${formatPercent(then[name])}` : "");
    }
  }

  // Drawn once for all that changes together.
  let waiting = false;
  function drawSoon() {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; draw(); });
  }
  const events = [...SWITCHES, "cycle", "runs"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, drawSoon));
  draw();
  const stop = onWidth(picture.svg, (newWidth) => { width = newWidth; draw(); });
  return () => {
    steps.stop();
    stop();
    events.forEach((event) => model.off(event, drawSoon));
  };
}

const caption = ({ tiles, block_n, clock }) =>
  "The kernel’s own source runs on the simulator, one tile of queries against " +
  `${tiles} tiles of ${block_n} keys, walked from the last to the first. A slot takes what a step multiplies: ` +
  "its tile of K, and the tile of V of the step before. What comes after what, and what overlaps, is the " +
  "kernel’s own. How long it takes is a model’s (HopperClock): each unit works at its " +
  `data-sheet rate on one operation after the other; copies get ${clock.bytes_per_cycle} bytes a cycle, chosen ` +
  `between measured rates, and land ${clock.latency} cycles later, assumed; what starts or synchronises ` +
  `something takes ${clock.step}. It predicts no time. With so few tiles, beginning and end weigh more than in ` +
  "a long run. " +
  "In the lane of a consumer: above, its products on the tensor cores; below, what its warps do. Short " +
  "waits for a unit in use count as softmax. Bars are marked with their tile and, where there is room, " +
  "with their consumer after a dot.";

export default { render };
