// The fast Hadamard transform of a row of 16, step by step: where the outlier goes, how large the largest
// element is, and what e4m3 makes of the row with and without it.

// ---- the model ----------------------------------------------------------------------------------
// Every sum and product is rounded to float32, as the kernel's are.

export const CHANNELS = 16;
const BUTTERFLIES = 4;
export const LAST = BUTTERFLIES + 2;
const LARGEST = 448;
const COARSEST = 32; // between the largest numbers of e4m3

/** Ordinary channels, standard normal, rounded to eighths. */
export const ORDINARY = [-7, 3, 7, -11, -1, 2, -5, -7, 7, -4, -9, -4, 6, 8, 2, 9].map((eighths) => eighths / 8);

/** kernels.hadamard.random_signs(16, seed), for each seed. */
const DRAWN = ["+--+-------++-++", "--++-----++-+--+", "+--++-+-+-+-----", "++--+++---+---+-",
  "++---+-++-++--+-", "-+--+++-++-+-+++", "+--++--+++-----+", "-+-+----+-+-+-++"];
export const signsOf = (seed) => [...DRAWN[seed]].map((sign) => (sign === "-" ? -1 : 1));

export const rowOf = ({ place, size }) => ORDINARY.map((number, at) => (at === place ? size : number));

/** One step of the transform: two elements so far apart become their sum and their difference. */
export const butterfly = (row, distance) => row.map((number, at) => Math.fround(
  at & distance ? row[at - distance] - number : number + row[at + distance]));

/** The row, with its signs, after each butterfly, and divided by the root of its length. */
export function stagesOf(row, signs) {
  const stages = [row, row.map((number, at) => number * signs[at])];
  for (let step = 0; step < BUTTERFLIES; step += 1) stages.push(butterfly(stages.at(-1), 2 ** step));
  return [...stages, stages.at(-1).map((number) => number / Math.sqrt(CHANNELS))];
}

export const largestOf = (row) => Math.max(...row.map(Math.abs));

/** The nearest e4m3 number, of two as near the one with an even fraction; at most 448. */
function roundToE4m3(number) {
  const magnitude = Math.min(Math.abs(number), LARGEST);
  const exponent = magnitude < 2 ** -6 ? -6 : Math.floor(Math.log2(magnitude));
  const step = 2 ** (exponent - 3);
  // 2^52 leaves float64 no bits for fractions, so the addition rounds, and to even.
  return Math.sign(number) * (magnitude / step + 2 ** 52 - 2 ** 52) * step;
}

/** What a row stands for after it was rounded to e4m3, with a scale of its own. */
export function rounded(row) {
  const largest = largestOf(row);
  const [scale, inverse] = [Math.fround(largest / LARGEST), Math.fround(LARGEST / largest)];
  return row.map((number) => Math.fround(roundToE4m3(Math.fround(number * inverse)) * scale));
}

/** The distance between the largest e4m3 numbers, at the scale that brings a row's largest element to 448. */
export const coarsestStep = (row) => (COARSEST * largestOf(row)) / LARGEST;

const lengthOf = (row) => Math.sqrt(row.reduce((total, number) => total + number * number, 0));

function errorOf(row, found, place) {
  const error = found.map((number, at) => number - row[at]);
  return {
    error, whole: lengthOf(error) / lengthOf(row), outlier: Math.abs(error[place]),
    others: largestOf(error.filter((_, at) => at !== place)),
  };
}

/** All that the figure shows of a setting: the stages, and the row's errors as it is and rotated. */
export function modelOf({ place, size, seed }) {
  const [row, signs] = [rowOf({ place, size }), signsOf(seed)];
  const stages = stagesOf(row, signs);
  const ones = signs.map(() => 1);
  // The transform is its own inverse, with the signs afterwards.
  const back = stagesOf(rounded(stages[LAST]), ones)[LAST].map((number, at) => number * signs[at]);
  return { stages, signs, plain: errorOf(row, rounded(row), place), rotated: errorOf(row, back, place) };
}

/** Whether the outlier is part of an element after a step. */
export const holdsOutlier = (step, place, at) => {
  const mixed = Math.max(0, Math.min(step - 1, BUTTERFLIES));
  return at >> mixed === place >> mixed;
};

// ---- the words ----------------------------------------------------------------------------------

export const showNumber = (number) =>
  `${number < 0 ? "−" : ""}${String(Number(Math.abs(number).toPrecision(3)))}`;
const showShare = (share) => `${(100 * share).toFixed(2)}%`;

/** Where an element of a step comes from: "4 − 5". */
export function originText(step, signs, at) {
  if (step === 0) return "";
  if (step === 1) return signs[at] < 0 ? "· −1" : "· 1";
  if (step === LAST) return "/ 4";
  const distance = 2 ** (step - 2);
  return at & distance ? `${at - distance} − ${at}` : `${at} + ${at + distance}`;
}

export function stepText({ place, size }, { stages, signs }, step) {
  const largest = showNumber(largestOf(stages[step]));
  const spread = stages[0].filter((_, at) => holdsOutlier(step, place, at)).length;
  if (step === 0) {
    const others = largestOf(stages[0].filter((_, at) => at !== place));
    return `The row: channel ${place} is ${size}, the others are at most ${showNumber(others)}.`;
  }
  if (step === 1) {
    return `Each channel is multiplied with its random sign: ${signs.filter((sign) => sign < 0).length} of ` +
      `${CHANNELS} change theirs.`;
  }
  if (step === LAST) {
    return `All are divided by √16 = 4. The row is as long as before, ${showNumber(lengthOf(stages[LAST]))}; its ` +
      `largest element went from ${showNumber(largestOf(stages[0]))} to ${largest}.`;
  }
  const distance = 2 ** (step - 2);
  return `Distance ${distance}: channels 0 and ${distance} become their sum and their difference, and so do all ` +
    `others that lie so far apart: ${CHANNELS} additions. The outlier is now part of ${spread} channels.`;
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
@container (min-width: 720px) { .bf .hs-controls { grid-template-columns: 1fr 1fr 1.4fr; } }
.bf p.hs-says { margin: 11px 16px 0; font-size: 15px; min-height: 4.2em; }
@container (max-width: 479.9px) { .bf p.hs-says { font-size: 14px; min-height: 7em; } }
.bf .hs-time { display: grid; grid-template-columns: auto 1fr; align-items: end; gap: 8px 20px;
  padding: 0 16px 12px; }
@container (max-width: 559.9px) { .bf .hs-time { grid-template-columns: 1fr; } }
.bf .hs-row { display: grid; grid-template-columns: repeat(16, 1fr); gap: 3px; padding: 0 16px 14px; }
@container (max-width: 799.9px) { .bf .hs-row { grid-template-columns: repeat(8, 1fr); gap: 8px 2px; } }
@container (max-width: 479.9px) { .bf .hs-row { grid-template-columns: repeat(4, 1fr); } }
.bf .hs-cell { min-width: 0; text-align: center; font-size: 12px; white-space: nowrap; }
.bf .hs-cell > * { display: block; }
.bf .hs-bar { position: relative; height: 84px; background: color-mix(in srgb, var(--bf-ink) 5%, var(--bf-paper));
  border-radius: 3px; }
@container (max-width: 479.9px) { .bf .hs-bar { height: 48px; } }
.bf .hs-bar::before { content: ""; position: absolute; inset: 50% 0 auto; border-top: 1px solid var(--bf-muted); }
.bf .hs-bar i { position: absolute; left: 15%; right: 15%; background: var(--bf-registers-mid); }
.bf [data-outlier] .hs-bar i { background: var(--bf-registers); }
.bf [data-outlier] b { text-decoration: underline; text-underline-offset: 3px; }
.bf .hs-cell b { font-weight: 650; }
.bf .hs-origin { min-height: 1.4em; font-size: 11px; }
@media (prefers-reduced-motion: no-preference) { .bf .hs-bar i { transition: top .18s, height .18s; } }
.bf .hs-table { padding: 6px 16px 10px; border-top: 1px solid var(--bf-line); font-size: 13px; }
.bf .hs-line { display: grid; grid-template-columns: 1.7fr 1fr 1fr 1fr; gap: 8px; padding: 4px 0; }
.bf .hs-line + .hs-line { border-top: 1px solid var(--bf-line); }
.bf .hs-line > :not(:first-child) { text-align: right; font-weight: 650; }
.bf .hs-line > [role="columnheader"], .bf .hs-line > :first-child { color: var(--bf-muted); font-weight: 400; }
`;

// ---- the figure ---------------------------------------------------------------------------------

function rowOfCells() {
  const cells = Array.from({ length: CHANNELS }, (_, at) => {
    const [bar, value, origin] = [htmlNode("i"), htmlNode("b"), htmlNode("span", { class: "hs-origin bf-muted" })];
    const node = htmlNode("div", { class: "hs-cell", role: "listitem" },
      htmlNode("span", { class: "bf-muted", text: at }),
      htmlNode("span", { class: "hs-bar", "aria-hidden": "true" }, bar), value, origin);
    return { node, bar, value, origin };
  });
  const node = htmlNode("div", { class: "hs-row", role: "list", "aria-label": "The 16 channels" },
    ...cells.map((cell) => cell.node));
  function draw({ stages, signs }, step, place) {
    const most = Math.max(...stages.map(largestOf));
    cells.forEach((cell, at) => {
      const number = stages[step][at];
      const height = (50 * Math.abs(number)) / most;
      cell.bar.style.cssText = `top: ${number < 0 ? 50 : 50 - height}%; height: ${height}%`;
      cell.value.textContent = showNumber(number);
      cell.node.dataset.number = number;
      cell.origin.textContent = originText(step, signs, at);
      cell.node.toggleAttribute("data-outlier", holdsOutlier(step, place, at));
    });
  }
  return { node, draw };
}

const LINES = {
  largest: "largest element", coarsest: "e4m3’s step below it", whole: "error of the row",
  outlier: "error of the outlier’s channel", others: "largest error of another",
};
const COLUMNS = { plain: "as it is", now: "this step", rotated: "rotated" };

function errorTable() {
  const cell = (role, text = "") => htmlNode("span", { role, text });
  const cells = {};
  const lines = Object.entries(LINES).map(([name, words]) => {
    cells[name] = Object.fromEntries(Object.keys(COLUMNS).map((column) => [column, cell("cell")]));
    return htmlNode("div", { class: "hs-line", role: "row", "data-line": name }, cell("rowheader", words),
      ...Object.values(cells[name]));
  });
  const head = htmlNode("div", { class: "hs-line", role: "row" }, cell("columnheader", "of 16 numbers"),
    ...Object.values(COLUMNS).map((words) => cell("columnheader", words)));
  const node = htmlNode("div", { class: "hs-table", role: "table", "aria-label": "Range and errors" }, head, ...lines);
  function draw(model, step) {
    const rows = { plain: model.stages[0], now: model.stages[step], rotated: model.stages[LAST] };
    for (const [column, row] of Object.entries(rows)) {
      cells.largest[column].textContent = showNumber(largestOf(row));
      cells.coarsest[column].textContent = showNumber(coarsestStep(row));
      for (const name of ["whole", "outlier", "others"]) {
        const errors = model[column];
        const show = name === "whole" ? showShare : showNumber;
        cells[name][column].textContent = errors ? show(errors[name]) : "–";
        if (errors) cells[name][column].dataset.number = errors[name];
      }
    }
  }
  return { node, draw };
}

const STEP_NAMES = ["the row", "signs", "distance 1", "distance 2", "distance 4", "distance 8", "divided by 4"];
const KEYS = ["place", "size", "seed", "step"];
const upTo = (length) => Array.from({ length }, (_, at) => at);

function render({ model, el }) {
  const id = uniqueId("hadamard-steps");
  const root = figureFrame(el, "Butterflies, step by step", CSS);
  const control = (key, label, values, show = String) => slider({ id, model, key, label, values, show });
  const controls = [
    control("size", "Size of the outlier", upTo(11).map((power) => 2 ** power), formatInteger),
    control("place", "Its channel", upTo(CHANNELS)),
    choice({ id, model, key: "seed", label: "Seed of the signs", values: upTo(DRAWN.length) }),
  ];
  const moment = control("step", "Step", upTo(LAST + 1), (step) => `${step} of ${LAST}: ${STEP_NAMES[step]}`);
  const steps = transport({ model, key: "step", last: () => LAST });
  const says = htmlNode("p", { class: "hs-says", role: "status" });
  const [cells, table] = [rowOfCells(), errorTable()];
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "Butterflies, step by step" }),
      htmlNode("span", { class: "bf-muted", text: "the fast Hadamard transform of 16 channels" })),
    htmlNode("div", { class: "bf-controls hs-controls" }, ...controls.map(({ node }) => node)),
    says, htmlNode("div", { class: "hs-time" }, steps.node, moment.node), cells.node, table.node,
    htmlNode("div", { class: "bf-notes bf-muted" }, htmlNode("p", { text: CAPTION })),
  );

  function draw() {
    const setting = Object.fromEntries(KEYS.map((key) => [key, model.get(key)]));
    const shown = modelOf(setting);
    [...controls, moment, steps].forEach(({ refresh }) => refresh());
    const words = stepText(setting, shown, setting.step);
    says.textContent = words;
    moment.node.querySelector("input").setAttribute("aria-valuetext", words);
    cells.draw(shown, setting.step, setting.place);
    table.draw(shown, setting.step);
  }

  const events = KEYS.map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  return () => {
    steps.stop();
    events.forEach((event) => model.off(event, draw));
  };
}

const CAPTION = "Below a number is where it comes from; dark bars and underlined numbers hold the outlier. The row is " +
  "rounded to e4m3 with a scale of its own, amax / 448. Then the largest element is exact, and near it the numbers " +
  "of e4m3 lie amax / 14 apart; near 0 they lie closer. Errors are of the row in its own channels: after rounding " +
  "the rotated row is rotated back.";

export default { render };
