// A kernel's loads and stores, recorded by Triton's interpreter while it ran the real kernel. The figure
// computes nothing of the algorithm: it draws what was touched, in its order, and adds up the bytes.

// ---- the model ----------------------------------------------------------------------------------

/** An entry of the recording with names for its numbers. `to` is exclusive. */
export function access(run, index) {
  const [launch, program, tensor, stored, top, bottom, left, right, tileRows, tileColumns] =
    run.accesses[index];
  const { element } = run.tensors[tensor];
  const numbers = (bottom - top) * (right - left);
  return {
    launch, program, tensor, stored: stored === 1, top, bottom, left, right, tileRows, tileColumns,
    numbers, bytes: numbers * element, masked: tileRows * tileColumns - numbers,
  };
}

/** After how many accesses each step ends, from 0; a step is one access, program or kernel. */
export function boundaries(run, by) {
  const parts = { access: 10, program: 2, kernel: 1 }[by];
  const unit = (index) => (by === "access" ? index : run.accesses[index].slice(0, parts).join());
  const ends = [0];
  run.accesses.forEach((_, index) => {
    if (index + 1 === run.accesses.length || unit(index + 1) !== unit(index)) ends.push(index + 1);
  });
  return ends;
}

/** Which step has been reached after so many accesses: the last that has begun. */
export const stepAt = (ends, count) => ends.findIndex((end) => end >= count);

/** The distinct places where a tensor is cut by the run's accesses, and its pieces between them. */
export function pieces(run, tensor) {
  const { rows, columns } = run.tensors[tensor];
  const [down, across] = [new Set([0, rows]), new Set([0, columns])];
  for (const entry of run.accesses) {
    if (entry[2] !== tensor) continue;
    down.add(entry[4]).add(entry[5]);
    across.add(entry[6]).add(entry[7]);
  }
  const sorted = (cuts) => [...cuts].sort((one, other) => one - other);
  return { down: sorted(down), across: sorted(across) };
}

/** How often each piece of each tensor was loaded and stored by the first `count` accesses, and the
 * bytes of each tensor: read, read again (after a load or store of the same place), written. */
export function touchedBy(run, count) {
  const tensors = run.tensors.map((_, tensor) => {
    const cuts = pieces(run, tensor);
    const crossings = Array((cuts.down.length - 1) * (cuts.across.length - 1)).fill(0);
    const { down, across } = cuts;
    return {
      down, across, crossings, loads: [...crossings], read: 0, again: 0, written: 0,
      rowAt: new Map(down.map((cut, index) => [cut, index])),
      columnAt: new Map(across.map((cut, index) => [cut, index])),
    };
  });
  for (let index = 0; index < count; index += 1) {
    const { tensor, stored, top, bottom, left, right, bytes } = access(run, index);
    const state = tensors[tensor];
    const { down, across, rowAt, columnAt } = state;
    state[stored ? "written" : "read"] += bytes;
    for (let row = rowAt.get(top); row < rowAt.get(bottom); row += 1) {
      for (let column = columnAt.get(left); column < columnAt.get(right); column += 1) {
        const piece = row * (across.length - 1) + column;
        const size = (down[row + 1] - down[row]) * (across[column + 1] - across[column]);
        if (!stored && state.loads[piece]) state.again += size * run.tensors[tensor].element;
        if (!stored) state.loads[piece] += 1;
        state.crossings[piece] += 1;
      }
    }
  }
  return tensors;
}

/** Bytes that the whole run reads and writes. */
export function totals(run) {
  return run.accesses.reduce((total, _, index) => {
    const { stored, bytes } = access(run, index);
    total[stored ? "written" : "read"] += bytes;
    return total;
  }, { read: 0, written: 0 });
}

/** What a formula says a tensor's bytes will be; without one, each number of it once each way that
 * the run moves it at all. */
export function expected(run) {
  const { predicted } = run;
  if (predicted) {
    return run.tensors.map(({ name }) => {
      const [read, written] = predicted[name] ?? [0, 0];
      return { read, written };
    });
  }
  return touchedBy(run, run.accesses.length).map(({ read, written }, tensor) => {
    const { rows, columns, element } = run.tensors[tensor];
    const once = rows * columns * element;
    return { read: read ? once : 0, written: written ? once : 0 };
  });
}

/** The runs of neighbouring addresses that an access touches: [first, length] in elements. */
export function segments(run, { tensor, top, bottom, left, right }) {
  const { row_stride, column_stride } = run.tensors[tensor];
  const addresses = [];
  for (let row = top; row < bottom; row += 1) {
    for (let column = left; column < right; column += 1) {
      addresses.push(row * row_stride + column * column_stride);
    }
  }
  addresses.sort((one, other) => one - other);
  const found = [];
  for (const address of addresses) {
    const last = found.at(-1);
    if (last && last[0] + last[1] === address) last[1] += 1;
    else found.push([address, 1]);
  }
  return found;
}

// ---- the words ----------------------------------------------------------------------------------

const LETTERS = {
  query: "Q", key: "K", value: "V", output: "O", scores: "S", probabilities: "P", logsumexp: "L",
  running_max: "m", running_sum: "ℓ", accumulator: "O so far",
};
export const tensorName = (name) =>
  name.replace(/\w+$/, (word) => LETTERS[word] ?? word).replaceAll("_", " ");

const plural = (count, one, many = `${one}s`) => `${formatInteger(count)} ${count === 1 ? one : many}`;
const range = (word, from, to) => (to - from === 1 ? `${word} ${from}` : `${word}s ${from} to ${to - 1}`);

/** Rows and columns of an access in words; a side that is touched whole is left out. */
export function placeWords({ rows, columns }, { top, bottom, left, right }) {
  if (rows * columns === 1) return "the number";
  if (rows === 1) return range("element", left, right);
  if (columns === 1) return range("element", top, bottom);
  const parts = [];
  if (bottom - top < rows) parts.push(range("row", top, bottom));
  if (right - left < columns) parts.push(range("column", left, right));
  return parts.length ? parts.join(", ") : `all ${rows} rows`;
}

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];

function programWords(run, launch, program) {
  const { kernel, grid } = run.launches[launch];
  const used = grid.map((size, axis) => [size, axis]).filter(([size, axis]) => size > 1 || axis === 0);
  const index = [program % grid[0], Math.floor(program / grid[0]) % grid[1],
    Math.floor(program / (grid[0] * grid[1]))];
  const words = used.length > 1 ? `(${used.map(([, axis]) => index[axis]).join(", ")})` : index[used[0][1]];
  return `Program ${words} of ${kernel}`;
}

function accessCaption(run, index, loadsBefore) {
  const entry = access(run, index);
  const tensor = run.tensors[entry.tensor];
  const verb = entry.stored ? "stores" : "loads";
  const parts = [`${programWords(run, entry.launch, entry.program)} ${verb} ` +
    `${placeWords(tensor, entry)} of ${tensorName(tensor.name)}: ${formatBytes(entry.bytes)}` +
    (!entry.stored && loadsBefore ? `, for the ${ORDINALS[loadsBefore] ?? `${loadsBefore + 1}th`} time.` : ".")];
  if (entry.masked) {
    parts.push(`${plural(entry.masked, "address", "addresses")} of its ` +
      `${entry.tileRows} × ${entry.tileColumns} block ${entry.masked === 1 ? "is" : "are"} masked off.`);
  }
  const found = segments(run, entry);
  if (found.length > 1) {
    parts.push(`In memory that is ${formatInteger(found.length)} pieces of ${plural(found[0][1], "number")}, ` +
      `${formatInteger(found[1][0] - found[0][0])} apart.`);
  } else if (entry.numbers > 1) {
    parts.push(`In memory that is ${formatInteger(entry.numbers)} neighbours.`);
  }
  return parts.join(" ");
}

/** What a program or a kernel moved, in words. */
function unitCaption(run, from, to, by) {
  const moved = { loads: new Map(), stores: new Map() };
  const programs = new Set();
  for (let index = from; index < to; index += 1) {
    const entry = access(run, index);
    const kind = moved[entry.stored ? "stores" : "loads"];
    const name = tensorName(run.tensors[entry.tensor].name);
    kind.set(name, (kind.get(name) ?? 0) + entry.bytes);
    programs.add(entry.program);
  }
  const { launch, program } = access(run, from);
  const who = by === "program" ? programWords(run, launch, program)
    : `${run.launches[launch].kernel}, with ${plural(programs.size, "program")},`;
  const list = (kind) => [...moved[kind]].map(([name, bytes]) => `${name} ${formatBytes(bytes)}`).join(", ");
  const parts = ["loads", "stores"].filter((kind) => moved[kind].size)
    .map((kind) => `${kind} ${list(kind)}`);
  return `${who} ${parts.join(" and ")}.`;
}

function startCaption(run) {
  const programs = new Set(run.accesses.map(([launch, program]) => `${launch} ${program}`)).size;
  return `Nothing has happened yet. Recorded: ${plural(run.accesses.length, "load or store", "loads and stores")} ` +
    `by ${plural(programs, "program")} of ${plural(run.launches.length, "kernel")}. ` +
    "Which bytes will be read more than once? Step through them.";
}

function endCaption(run, state) {
  const { read, written } = totals(run);
  const again = state.reduce((total, tensor) => total + tensor.again, 0);
  const wanted = expected(run);
  const equal = state.every((tensor, index) =>
    tensor.read === wanted[index].read && tensor.written === wanted[index].written);
  const verdict = !run.predicted ? ""
    : equal ? " Every tensor's bytes are what the formula says." : " That is not what the formula says.";
  return `Done: ${formatBytes(read)} read, ${formatBytes(written)} written. Of what was read, ` +
    `${formatBytes(again)} had been read before.${verdict}`;
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
.bf .kt-step { padding: 12px 16px 0; }
.bf .kt-bar { display: flex; justify-content: space-between; align-items: center; gap: 8px; }
.bf .kt-position { white-space: nowrap; }
@container (max-width: 399.9px) { .bf .kt-bar, .bf .kt-bar .bf-transport { gap: 4px; } }
.bf input.kt-track { margin-top: 6px; }
.bf p.kt-caption { min-height: 4.2em; margin: 6px 0 8px; font-size: 15px; }
@container (max-width: 639.9px) { .bf p.kt-caption { min-height: 7em; } }
@container (max-width: 479.9px) { .bf p.kt-caption { min-height: 9.8em; font-size: 14px; } }
.bf .kt-kernels { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 0; }
.bf .kt-kernels button { height: 26px; font-family: var(--pst-font-family-monospace, monospace); font-size: 12px; }
.bf .kt-kernels button[aria-current="true"] { font-weight: 700; background: var(--bf-ink); color: var(--bf-paper); }
.bf .kt-kernels [data-away] { visibility: hidden; }
.bf .kt-picture { padding: 0 16px; }
.bf .kt-letter { font-size: 13px; font-weight: 650; }
.bf .kt-ground { fill: var(--bf-paper); stroke: var(--bf-hbm); }
.bf .kt-piece { fill: var(--bf-paper); }
.bf .kt-piece[data-crossed="once"] { fill: var(--bf-hbm-light); }
.bf .kt-piece[data-crossed="again"] { fill: var(--bf-hbm-mid); }
.bf .kt-lines { fill: none; stroke: color-mix(in srgb, var(--bf-hbm) 45%, var(--bf-paper)); stroke-width: .75; }
.bf text.kt-count { font-size: 11px; font-weight: 600; }
.bf text.kt-number { font-size: 10.5px; }
.bf .kt-before, .bf .kt-load, .bf .kt-store, .bf .kt-tile { fill: none; }
.bf .kt-before { stroke: var(--bf-sram); stroke-width: 1.5; stroke-dasharray: 2 2; }
.bf .kt-load { stroke: var(--bf-sram); stroke-width: 3; }
.bf .kt-store { stroke: var(--bf-registers); stroke-width: 3; }
.bf .kt-tile { stroke: var(--bf-muted); stroke-dasharray: 4 3; }
.bf .kt-memory { padding: 4px 16px 12px; }
.bf .kt-memory div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bf .kt-memory svg { margin-top: 3px; }
.bf .kt-strip { fill: var(--bf-wash); stroke: var(--bf-line); }
.bf .kt-strip-load { fill: var(--bf-sram); }
.bf .kt-strip-store { fill: var(--bf-registers); }
.bf .kt-bytes { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line); }
.bf .kt-heading { font-size: 13px; font-weight: 650; margin-bottom: 4px; }
.bf .kt-row { display: grid; grid-template-columns: minmax(4.2rem, 1.2fr) repeat(4, minmax(0, 1fr)); gap: 6px;
  height: 19px; font-size: 12.5px; line-height: 19px; white-space: nowrap; }
@container (max-width: 519.9px) { .bf .kt-row { grid-template-columns: minmax(38px, 1fr) repeat(4, 58px);
  gap: 4px; font-size: 11.5px; } }
.bf .kt-row > * + * { text-align: right; }
.bf .kt-row > :nth-child(2n + 3), .bf .kt-row[data-head] { color: var(--bf-muted); }
.bf .kt-row > :first-child { overflow: hidden; text-overflow: ellipsis; }
.bf .kt-row [data-equal] { font-weight: 650; color: var(--bf-ink); }
.bf .kt-row[data-total] { border-top: 1px solid var(--bf-line); font-weight: 650; }
.bf .kt-lanes { padding: 10px 16px 12px; border-top: 1px solid var(--bf-line); }
.bf .kt-lane { padding: 2px 0; }
.bf .kt-lane-head { display: flex; justify-content: space-between; gap: 10px; font-size: 13px; }
.bf .kt-lane[data-now] .kt-lane-head { font-weight: 700; }
.bf .kt-lane svg { width: 100%; margin: 2px 0; overflow: visible; }
.bf .kt-first { fill: var(--bf-hbm-light); stroke: var(--bf-hbm-mid); }
.bf .kt-again { fill: var(--bf-hbm-mid); stroke: var(--bf-hbm-mid); }
.bf .kt-ghost { fill: none; stroke: var(--bf-muted); stroke-dasharray: 3 3; }
`;

// ---- the tensors --------------------------------------------------------------------------------

const SIZES = Array.from({ length: 90 }, (_, index) => 30 * 0.94 ** index);
const [LABEL, GAP, SMALLEST] = [20, 18, 12];
// Room for one of a tensor's own numbers, which are written where all are short enough for it.
const [NUMBER, LONGEST] = [[24, 15], 4];

const shortNumber = (number) => (Number.isInteger(number) ? String(number)
  : number.toFixed(2).replace(/^(-?)0\./, "$1.")).replace("-", "−");
const writes = ({ values }) => values?.every((number) => shortNumber(number).length <= LONGEST);

/** Where each tensor of a run lies in a picture so wide: the largest size of an element at which all
 * fit into the height, one beside the other and in as many lines as that takes. */
export function layout(run, width) {
  const most = width >= 600 ? 370 : 480;
  const beyond = width >= 600 ? 40 : 14;
  const overhang = run.tensors.map(() => [0, 0]);
  run.accesses.forEach((_, index) => {
    const { tensor, top, left, tileRows, tileColumns } = access(run, index);
    const { rows, columns } = run.tensors[tensor];
    const [down, across] = overhang[tensor];
    overhang[tensor] = [Math.max(down, top + tileRows - rows), Math.max(across, left + tileColumns - columns)];
  });
  const flow = (size) => {
    const places = [];
    let [x, y, line, widest] = [0, 0, 0, 0];
    run.tensors.forEach((entry, tensor) => {
      const { name, rows, columns } = entry;
      // Where there are numbers to write, they need room.
      const [cellWide, cellHigh] = writes(entry) && columns * NUMBER[0] <= width - 2 ? NUMBER : [0, 0];
      const wide = Math.max(SMALLEST, columns * Math.max(size, cellWide));
      const high = Math.max(SMALLEST, rows * Math.max(size, cellHigh));
      const [below, beside] = overhang[tensor].map((count) => Math.min(beyond, count * size));
      const labelled = 7.5 * `${tensorName(name)} ${rows}×${columns}`.length;
      const taken = Math.max(wide + beside, labelled);
      if (x > 0 && x + taken > width - 2) [x, y, line] = [0, y + line + GAP, 0];
      places.push({ x: x + 1, y: y + LABEL, width: wide, height: high, below, beside });
      x += taken + GAP;
      widest = Math.max(widest, x - GAP);
      line = Math.max(line, LABEL + high + below);
    });
    return { places, width: widest, height: y + line + 3 };
  };
  const fits = SIZES.map(flow).find((place) => place.height <= most && place.width <= width - 2);
  return fits ?? flow(SIZES.at(-1));
}

function picture() {
  const svg = svgNode("svg", { class: "kt-tensors", "aria-hidden": "true" });
  let drawn = null;
  let parts = [];

  /** The tensors of a run as nothing has touched them. */
  function prepare(run, place) {
    drawn = { run, place };
    svg.replaceChildren();
    parts = run.tensors.map((tensor, index) => {
      const { x, y, width, height } = place.places[index];
      const { down, across } = pieces(run, index);
      const [left, top] = [(column) => x + (column / tensor.columns) * width,
        (row) => y + (row / tensor.rows) * height];
      const group = svgNode("g", { "data-tensor": tensor.name });
      group.append(
        svgNode("text", { x, y: y - 6 },
          svgNode("tspan", { class: "kt-letter", text: tensorName(tensor.name) }),
          svgNode("tspan", { class: "bf-muted", text: ` ${tensor.rows}×${tensor.columns}` })),
        svgNode("rect", { class: "kt-ground", x, y, width, height }));
      const rects = [];
      for (let row = 0; row + 1 < down.length; row += 1) {
        for (let column = 0; column + 1 < across.length; column += 1) {
          rects.push(svgNode("rect", {
            class: "kt-piece", x: left(across[column]), y: top(down[row]),
            width: left(across[column + 1]) - left(across[column]), height: top(down[row + 1]) - top(down[row]),
          }));
        }
      }
      // Lines where there is room for them: between all elements, or else between the pieces.
      const fine = width / tensor.columns >= 8 && height / tensor.rows >= 8;
      const cuts = (count, positions) => (fine ? Array.from({ length: count + 1 }, (_, cut) => cut) : positions);
      const spaced = (count, positions, side) => (side / (positions.length - 1) >= 3 ? cuts(count, positions) : []);
      const path = [
        ...spaced(tensor.rows, down, height).map((row) => `M${x} ${top(row)}H${x + width}`),
        ...spaced(tensor.columns, across, width).map((column) => `M${left(column)} ${y}V${y + height}`),
      ].join("");
      const [words, outlines] = [svgNode("g"), svgNode("g")];
      group.append(...rects, svgNode("path", { class: "kt-lines", d: path }), words, outlines,
        svgNode("rect", { class: "kt-ground", x, y, width, height, style: "fill: none" }));
      svg.append(group);
      return { rects, words, outlines, left, top, place: place.places[index] };
    });
  }

  function draw({ run, place, width, height, state, from, count, by }) {
    if (drawn?.run !== run || drawn.place.width !== place.width || drawn.place.height !== place.height) {
      prepare(run, place);
    }
    setAttributes(svg, { width, height });
    run.tensors.forEach((tensor, index) => drawTouched(tensor, parts[index], state[index]));
    if (count === 0) return;
    if (by === "access") {
      const { launch, program } = access(run, count - 1);
      for (let before = count - 2; before >= 0; before -= 1) {
        const entry = access(run, before);
        if (entry.launch !== launch || entry.program !== program) break;
        outline(entry, "kt-before");
      }
    }
    const marked = new Set();
    for (let index = from; index < count; index += 1) {
      const entry = access(run, index);
      const key = run.accesses[index].slice(2, 8).join();
      if (!marked.has(key)) outline(entry, entry.stored ? "kt-store" : "kt-load");
      marked.add(key);
      if (by === "access" && entry.masked) ghost(entry);
    }
  }

  function drawTouched(tensor, { rects, words, outlines, left, top }, { down, across, crossings }) {
    words.replaceChildren();
    outlines.replaceChildren();
    rects.forEach((rect, piece) => {
      const count = crossings[piece];
      setAttributes(rect, {
        "data-count": count, "data-crossed": count > 1 ? "again" : count ? "once" : "never",
      });
      const [row, column] = [Math.floor(piece / (across.length - 1)), piece % (across.length - 1)];
      const [x, y] = [left(across[column]), top(down[row])];
      const [width, height] = [left(across[column + 1]) - x, top(down[row + 1]) - y];
      const numbers = writes(tensor) && left(1) - left(0) > NUMBER[0] - .1 && top(1) - top(0) > NUMBER[1] - .1;
      if (numbers) {
        if (tensor.written && !count) return;
        for (let r = down[row]; r < down[row + 1]; r += 1) {
          for (let c = across[column]; c < across[column + 1]; c += 1) {
            words.append(svgNode("text", { class: "kt-number", "text-anchor": "middle",
              x: (left(c) + left(c + 1)) / 2, y: (top(r) + top(r + 1)) / 2 + 4,
              text: shortNumber(tensor.values[r * tensor.columns + c]) }));
          }
        }
      } else if (count > 0 && height >= 12 && width > 3 + 6.4 * String(count).length) {
        words.append(svgNode("text", { class: "kt-count", "text-anchor": "middle",
          x: x + width / 2, y: y + height / 2 + 4, text: count }));
      }
    });
  }

  function outline({ tensor, top, bottom, left, right }, name) {
    const part = parts[tensor];
    part.outlines.append(svgNode("rect", { class: name, rx: 1, x: part.left(left), y: part.top(top),
      width: part.left(right) - part.left(left), height: part.top(bottom) - part.top(top) }));
  }

  /** The block of addresses, with what its mask switches off, as far as there is room. */
  function ghost({ tensor, top, left, tileRows, tileColumns }) {
    const { outlines, left: across, top: down, place } = parts[tensor];
    const [x, y] = [across(left), down(top)];
    const right = Math.min(across(left + tileColumns), place.x + place.width + place.beside);
    const bottom = Math.min(down(top + tileRows), place.y + place.height + place.below);
    outlines.append(svgNode("rect", { class: "kt-tile", x, y, width: right - x, height: bottom - y }));
  }
  return { svg, draw };
}

// ---- memory as a line ---------------------------------------------------------------------------

function memoryLine() {
  const words = htmlNode("div", { class: "bf-muted" });
  const svg = svgNode("svg", { height: 16, "aria-hidden": "true" });
  const node = htmlNode("div", { class: "kt-memory" }, words, svg);

  function draw({ run, count, width }) {
    svg.setAttribute("width", width);
    svg.replaceChildren(svgNode("rect", { class: "kt-strip", x: .5, y: .5, width: width - 1, height: 15 }));
    if (count === 0) {
      words.textContent = "In memory: nothing touched yet";
      return;
    }
    const entry = access(run, count - 1);
    const { name, rows, columns, row_stride, column_stride } = run.tensors[entry.tensor];
    const span = (rows - 1) * row_stride + (columns - 1) * column_stride + 1;
    words.textContent = `In memory: ${tensorName(name)}, strides (${row_stride}, ${column_stride})`;
    for (const [first, length] of segments(run, entry)) {
      svg.append(svgNode("rect", {
        class: entry.stored ? "kt-strip-store" : "kt-strip-load", x: (first / span) * width, y: 1,
        width: Math.max(.75, (length / span) * width), height: 14,
      }));
    }
  }
  return { node, draw };
}

// ---- the bytes ----------------------------------------------------------------------------------

function byteTable(most) {
  const node = htmlNode("div", { role: "table", "aria-label": "Bytes of each tensor" });
  node.style.height = `${19 * (most + 2) + 1}px`;

  function draw({ run, state, wanted }) {
    const formula = run.predicted ? "formula" : "each once";
    const cell = (text, role = "cell", attributes = {}) => htmlNode("span", { role, text, ...attributes });
    const row = (attributes, cells) => htmlNode("div", { role: "row", class: "kt-row", ...attributes }, ...cells);
    const pair = (now, goal) => [
      cell(now ? formatBytes(now) : "–"),
      cell(goal ? `${now === goal ? "= " : "of "}${formatBytes(goal)}` : "", "cell", now && now === goal ? { "data-equal": "" } : {}),
    ];
    const sum = (list, key) => list.reduce((total, entry) => total + entry[key], 0);
    const head = ["tensor", "read", formula, "written", formula].map((text) => cell(text, "columnheader"));
    node.replaceChildren(
      row({ "data-head": "" }, head),
      ...run.tensors.map(({ name }, index) => row(
        { "data-tensor": name, "data-read": state[index].read, "data-written": state[index].written },
        [cell(tensorName(name)), ...pair(state[index].read, wanted[index].read),
          ...pair(state[index].written, wanted[index].written)])),
      row({ "data-total": "" }, [cell("all"), ...pair(sum(state, "read"), sum(wanted, "read")),
        ...pair(sum(state, "written"), sum(wanted, "written"))]));
  }
  return { node, draw };
}

/** A bar a run, with what it has moved: the first time, and read again. */
function lanes(runs) {
  const wholes = runs.map((run) => {
    const { read, written } = totals(run);
    return read + written;
  });
  const all = runs.map(({ name }) => {
    const total = htmlNode("span");
    const svg = svgNode("svg", { height: 16, "aria-hidden": "true" });
    const node = htmlNode("div", { class: "kt-lane", "data-lane": name },
      htmlNode("div", { class: "kt-lane-head" }, htmlNode("span", { text: name }), total), svg);
    return { node, svg, total };
  });
  const node = htmlNode("div", { class: "kt-lanes" },
    htmlNode("div", { class: "kt-heading", text: "All bytes, run by run" }), ...all.map((lane) => lane.node));

  function draw({ run, state, finished, width }) {
    const scale = (width - 1) / Math.max(...wholes);
    all.forEach(({ node: lane, svg, total }, index) => {
      const now = runs[index] === run;
      const told = finished.has(runs[index].name);
      const shown = now ? state : told ? touchedBy(runs[index], runs[index].accesses.length) : [];
      const moved = shown.reduce((sum, { read, written }) => sum + read + written, 0);
      const again = shown.reduce((sum, tensor) => sum + tensor.again, 0);
      lane.toggleAttribute("data-now", now);
      total.textContent = now || told ? formatBytes(moved) : "? (shown when it has run)";
      svg.replaceChildren(
        svgNode("rect", { class: "kt-ghost", x: .5, y: 1, height: 14,
          width: told ? Math.max(0, wholes[index] * scale - 1) : width - 1 }),
        svgNode("rect", { class: "kt-first", x: 0, y: 1, width: (moved - again) * scale, height: 14 }),
        svgNode("rect", { class: "kt-again", x: (moved - again) * scale, y: 1, width: again * scale, height: 14 }));
    });
  }
  return { node, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const UNITS = { access: "load or store", program: "program", kernel: "kernel" };
/** A run of any length plays in about half a minute, and a short one not hastily. */
const playInterval = (count) => Math.max(60, Math.min(1600, 30000 / count));

function render({ model, el }) {
  const id = uniqueId("kernel-trace");
  const title = "A kernel's loads and stores";
  const root = figureFrame(el, title, CSS);
  const runs = model.get("runs").map((run) => {
    const written = new Set(run.accesses.filter(([, , , stored]) => stored).map(([, , tensor]) => tensor));
    const tensors = run.tensors.map((tensor, index) => ({ ...tensor, written: written.has(index) }));
    return { ...run, tensors };
  });
  const ends = new Map(runs.map((run) => [run.name,
    Object.fromEntries(Object.keys(UNITS).map((by) => [by, boundaries(run, by)]))]));
  const now = () => runs.find(({ name }) => name === model.get("run"));
  const endsNow = () => ends.get(model.get("run"))[model.get("by")];
  const position = () => Math.min(model.get("step"), now().accesses.length);
  // Steps of the chosen size, for the buttons and the track; the model keeps the accesses done.
  const inUnits = {
    get: () => stepAt(endsNow(), position()),
    set: (_, unit) => model.set("step", endsNow()[unit]),
    save_changes: () => model.save_changes(),
  };
  const last = () => endsNow().length - 1;

  const names = runs.map(({ name }) => name);
  const letters = names.join("").length;
  const many = runs.some(({ launches }) => launches.length > 1);
  const controls = [
    ...(runs.length === 1 ? []
      : letters <= 28 ? [choice({ id, model, key: "run", label: "Recorded run", values: names })]
        : [select({ id, model, key: "run", label: "Recorded run", values: names.map((name) => ({ value: name, text: name })) })]),
    choice({ id, model, key: "by", label: "A step is one", values: Object.keys(UNITS).filter((by) => many || by !== "kernel"),
      show: (by) => UNITS[by] }),
  ];
  const steps = transport({ model: inUnits, key: "step", last, interval: () => playInterval(last()) });
  const track = htmlNode("input", { type: "range", class: "kt-track", min: 0, step: 1, "aria-label": "Step", "data-key": "track" });
  track.addEventListener("input", () => {
    steps.stop();
    inUnits.set("step", Number(track.value));
    inUnits.save_changes();
  });
  const where = htmlNode("span", { class: "bf-muted kt-position" });
  const kernels = htmlNode("div", { class: "kt-kernels", role: "group", "aria-label": "Go to a kernel" });
  const buttons = Array.from({ length: Math.max(...runs.map(({ launches }) => launches.length)) }, (_, launch) => {
    const button = htmlNode("button", { type: "button", "data-launch": launch });
    button.addEventListener("click", () => {
      steps.stop();
      const first = now().accesses.findIndex(([of]) => of === launch);
      if (first < 0) return;
      model.set("step", endsNow()[stepAt(endsNow(), first + 1)]);
      model.save_changes();
    });
    return button;
  });
  if (many) kernels.append(...buttons);
  const words = htmlNode("span");
  const alsoSaid = htmlNode("span", { class: "bf-hidden" });
  const tensors = picture();
  const line = memoryLine();
  const table = byteTable(Math.max(...runs.map((run) => run.tensors.length)));
  const bars = lanes(runs);
  const hbm = "stroke: var(--bf-hbm)";
  const keys = swatches({
    "not touched": `fill: var(--bf-paper); ${hbm}`,
    "touched once": `fill: var(--bf-hbm-light); ${hbm}`,
    "touched again": `fill: var(--bf-hbm-mid); ${hbm}`,
    "being loaded": "fill: none; stroke: var(--bf-sram); stroke-width: 2.5",
    "being stored": "fill: none; stroke: var(--bf-registers); stroke-width: 2.5",
    "earlier, by the same program": "fill: none; stroke: var(--bf-sram); stroke-dasharray: 2 2",
    "block of addresses, with what is masked off": "fill: none; stroke: var(--bf-muted); stroke-dasharray: 4 3",
  });
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: title }),
      htmlNode("span", { class: "bf-muted", text: "recorded while Triton's interpreter ran the kernel" })),
    htmlNode("div", { class: "bf-controls" }, ...controls.map(({ node }) => node)),
    htmlNode("div", { class: "kt-step" }, htmlNode("div", { class: "kt-bar" }, steps.node, where), track,
      ...(many ? [kernels] : []), htmlNode("p", { class: "kt-caption", role: "status" }, words, alsoSaid)),
    htmlNode("div", { class: "kt-picture" }, tensors.svg), line.node,
    htmlNode("div", { class: "kt-bytes" }, htmlNode("div", { class: "kt-heading", text: "Bytes asked for so far" }), table.node),
    ...(runs.length > 1 ? [bars.node] : []),
    htmlNode("div", { class: "bf-notes bf-muted" }, keys,
      htmlNode("p", { text: "A number in a tile says how often it was touched, unless the tensor is so small that its " +
        "own numbers are shown. Rows, columns and programs count from 0, as in the code. The interpreter runs " +
        "programs one after another; a GPU runs many at once, in any order. The bytes are those asked for: of what " +
        "is read again, a GPU's caches may serve a part." })),
  );

  const finished = new Set();
  let width = 0;

  function draw() {
    const run = now();
    const by = model.get("by");
    const units = endsNow();
    const unit = inUnits.get();
    const count = position();
    const from = count ? units[unit - 1] : 0;
    const state = touchedBy(run, count);
    if (count === run.accesses.length) finished.add(run.name);
    controls.forEach(({ refresh }) => refresh());
    steps.refresh();
    track.max = last();
    track.value = unit;
    track.setAttribute("aria-valuetext", `step ${unit} of ${last()}`);
    where.textContent = `${unit} / ${last()}`;
    const launch = count ? access(run, count - 1).launch : -1;
    buttons.forEach((button, index) => {
      const { kernel } = run.launches[index] ?? { kernel: "–" };
      button.textContent = kernel;
      button.setAttribute("aria-current", String(index === launch));
      button.toggleAttribute("data-away", !run.launches[index]);
    });
    const done = count === run.accesses.length && by !== "access";
    let sentence = count === 0 ? startCaption(run) : "";
    if (count && by === "access") {
      const entry = run.accesses[count - 1];
      const before = run.accesses.slice(0, count - 1)
        .filter((other) => !other[3] && other.slice(2, 8).join() === entry.slice(2, 8).join()).length;
      sentence = accessCaption(run, count - 1, before);
    } else if (count) sentence = unitCaption(run, from, count, by);
    if (count === run.accesses.length) sentence = `${done ? "" : `${sentence.split(": ")[0]}. `}${endCaption(run, state)}`;
    words.textContent = sentence.replaceAll(" kB", "\u00a0kB").replaceAll(" MB", "\u00a0MB");
    const sum = (key) => state.reduce((total, tensor) => total + tensor[key], 0);
    alsoSaid.textContent = ` So far ${formatBytes(sum("read"))} read and ${formatBytes(sum("written"))} written.`;
    table.draw({ run, state, wanted: expected(run) });
    if (!width) return;
    const inner = width - 32;
    const places = runs.map((other) => layout(other, inner));
    const height = Math.max(...places.map((place) => place.height));
    tensors.draw({ run, place: places[runs.indexOf(run)], width: inner, height, state, from, count, by });
    line.draw({ run, count, width: inner });
    bars.draw({ run, state, finished, width: inner });
  }

  function changeRun() {
    steps.stop();
    if (model.get("step") === 0) return draw();
    model.set("step", 0);
    model.save_changes();
    draw();
  }
  const events = { "change:run": changeRun, "change:step": draw, "change:by": draw };
  Object.entries(events).forEach(([event, act]) => model.on(event, act));
  draw();
  const stopWatching = onWidth(root, (newWidth) => { width = newWidth; draw(); });
  return () => {
    steps.stop();
    stopWatching();
    Object.entries(events).forEach(([event, act]) => model.off(event, act));
  };
}

export default { render };
