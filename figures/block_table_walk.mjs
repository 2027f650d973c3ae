// The walk through a block table. One decode reads a sequence's keys tile by tile; the figure follows one
// token from its place in the sequence through the block table to its slot in memory, and into its tile.

// ---- the model ----------------------------------------------------------------------------------

export const SLOTS = 96;
export const LONGEST = 48;
export const BLOCK_SIZES = [1, 2, 4, 8, 16];
export const TILES = [4, 8, 16, 32];
export const KV_HEADS = 8;
export const HEAD_DIM = 128;
const BYTES = 2; // float16

/** A block table as allocators make them: any block may come next. */
export function blockTable({ context, block_size }) {
  const blocks = SLOTS / block_size;
  return Array.from({ length: Math.ceil(context / block_size) }, (_, logical) => (5 * logical + 3) % blocks);
}

/** Where one token's key is, and how it gets into a tile. */
export function walk(options) {
  const { context, block_size, tile } = options;
  const token = Math.min(options.token, context - 1);
  const table = blockTable(options);
  const slotOf = (each) => table[Math.floor(each / block_size)] * block_size + (each % block_size);
  const first = Math.floor(token / tile) * tile;
  const rows = Array.from({ length: tile }, (_, row) =>
    (first + row < context ? { token: first + row, slot: slotOf(first + row) } : null));
  const inTile = rows.filter(Boolean);
  return {
    table, token, rows,
    logical: Math.floor(token / block_size), offset: token % block_size,
    physical: table[Math.floor(token / block_size)], slot: slotOf(token),
    bytes: slotOf(token) * KV_HEADS * HEAD_DIM * BYTES,
    tileNumber: first / tile, row: token - first,
    tiles: Math.ceil(context / tile),
    blocks: [...new Set(inTile.map(({ slot }) => Math.floor(slot / block_size)))],
    pieces: inTile.filter(({ slot }, row) => row === 0 || slot !== inTile[row - 1].slot + 1).length,
  };
}

// ---- the words ----------------------------------------------------------------------------------

const counted = (count, word) => `${formatInteger(count)} ${word}${count === 1 ? "" : "s"}`;

function caption({ block_size, tile }, found) {
  const { token, logical, offset, physical, slot, tileNumber, row, tiles, blocks, pieces, rows } = found;
  const empty = rows.filter((each) => each === null).length;
  const masked = empty ? ` The ${counted(empty, "row")} after the last token ${empty === 1 ? "is" : "are"} masked.` : "";
  const sentence = `Token ${token} is number ${offset} in logical block ${logical}, as ` +
    `${token} = ${logical} · ${block_size} + ${offset}. The table says that this is physical block ${physical}, ` +
    `so its key is in slot ${physical} · ${block_size} + ${offset} = ${slot}. It is row ${row} of tile ` +
    `${tileNumber + 1} of ${tiles}, which gathers its ${counted(tile - empty, "key")} from ` +
    `${counted(blocks.length, "block")}, in ${counted(pieces, "run")} of neighbouring slots.${masked}`;
  return sentence.replace(/ ([·+=]) /g, "\u00a0$1\u00a0");
}

// ---- the look -----------------------------------------------------------------------------------

const CELL = 26;
const COLUMNS = 32;
const CSS = `
@container (min-width: 720px) { .bf .bw-controls { grid-template-columns: 1fr 1fr 1fr; } }
.bf .bw-bar { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 4px 20px; padding: 12px 16px 0; }
@container (max-width: 479.9px) { .bf .bw-bar { grid-template-columns: 1fr; } }
.bf p.bw-caption { margin: 10px 16px 8px; font-size: 15px; min-height: 4.2em; }
@container (max-width: 719.9px) { .bf p.bw-caption { min-height: 7em; } }
@container (max-width: 479.9px) { .bf p.bw-caption { font-size: 14px; min-height: 11.2em; } }
.bf .bw-stage { padding: 4px 16px 14px; }
.bf .bw-stage svg { width: 100%; overflow: visible; }
.bf .bw-name { font-weight: 650; font-size: 13px; paint-order: stroke; stroke: var(--bf-paper);
  stroke-width: 6px; stroke-linejoin: round; }
.bf .bw-cell { stroke: var(--bf-paper); stroke-width: 1; }
.bf .bw-even { fill: var(--bf-hbm-light); }
.bf .bw-odd { fill: var(--bf-hbm-mid); }
.bf .bw-other { fill: color-mix(in srgb, var(--bf-ink) 9%, var(--bf-paper)); }
.bf .bw-gathered { fill: color-mix(in srgb, var(--bf-sram) 45%, var(--bf-paper)); }
.bf .bw-masked { fill: none; stroke: var(--bf-muted); stroke-dasharray: 3 3; }
.bf .bw-here { fill: none; stroke: var(--bf-ink); stroke-width: 2.5; }
.bf .bw-path { fill: none; stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .bw-tile { fill: none; stroke: var(--bf-sram); stroke-width: 2.5; }
.bf .bw-block { fill: none; stroke: var(--bf-muted); stroke-width: 1; }
.bf .bw-numbers { display: grid; grid-template-columns: repeat(5, 1fr); gap: 1px; background: var(--bf-line);
  border-top: 1px solid var(--bf-line); }
@container (max-width: 639.9px) { .bf .bw-numbers { grid-template-columns: 1fr 1fr; } }
.bf .bw-number { background: var(--bf-paper); padding: 8px 16px; min-width: 0; }
.bf .bw-number b { display: block; font-size: 17px; font-weight: 650; }
@container (max-width: 639.9px) { .bf .bw-number:last-child { grid-column: 1 / -1; } }
`;

// ---- the picture --------------------------------------------------------------------------------

function picture() {
  const svg = svgNode("svg", { "aria-hidden": "true" });
  const tops = { tokens: 44, table: 44 + CELL + 58, memory: 44 + 2 * CELL + 116, tile: 44 + 5 * CELL + 174 };
  setAttributes(svg, { height: tops.tile + CELL + 8 });

  function draw(options, found, width) {
    const { context, block_size, tile } = options;
    const nodes = [];
    const add = (tag, attributes) => nodes.push(svgNode(tag, attributes));
    const titles = []; // above the way, which crosses them
    const title = (top, words) =>
      titles.push(svgNode("text", { class: "bw-name", x: 0, y: top - 30, text: words }));
    const label = (x, y, words) =>
      add("text", { class: "bf-muted", x, y, "text-anchor": "middle", text: words });
    const shade = (logical) => (logical % 2 ? "bw-odd" : "bw-even");
    const inTile = new Set(found.rows.filter(Boolean).map(({ token }) => token));

    // The sequence, as attention sees it.
    const cell = width / LONGEST;
    title(tops.tokens, "The sequence: tokens in their order");
    for (let token = 0; token < context; token += 1) {
      add("rect", { class: `bw-cell ${shade(Math.floor(token / block_size))}`, "data-token": token,
        x: token * cell, y: tops.tokens, width: cell, height: CELL });
    }
    const [start, end] = [found.tileNumber * tile, found.tileNumber * tile + inTile.size];
    add("path", { class: "bw-tile", d: `M${start * cell + 1} ${tops.tokens - 4}v-6H${end * cell - 1}v6` });
    const above = `tile ${found.tileNumber + 1}`;
    const middle = ((start + end) / 2) * cell;
    label(Math.min(width - 20, Math.max(20, middle)), tops.tokens - 13, above);
    const tokenAt = [(found.token + 0.5) * cell, tops.tokens];

    // The block table.
    const entry = Math.min(44, width / found.table.length);
    title(tops.table, "The block table: where each block is");
    found.table.forEach((block, logical) => {
      add("rect", { class: `bw-cell ${shade(logical)}`, "data-logical": logical,
        x: logical * entry, y: tops.table, width: entry, height: CELL });
      if (entry > 15) {
        add("text", { x: (logical + 0.5) * entry, y: tops.table + CELL / 2 + 4, "text-anchor": "middle", text: block });
      }
    });
    const entryAt = [(found.logical + 0.5) * entry, tops.table];

    // The cache's slots.
    const column = width / COLUMNS;
    title(tops.memory, "Memory: the slots of all blocks");
    const place = (slot) => [(slot % COLUMNS) * column, tops.memory + Math.floor(slot / COLUMNS) * CELL];
    const owner = new Map(found.table.map((block, logical) => [block, logical]));
    for (let slot = 0; slot < SLOTS; slot += 1) {
      const [x, y] = place(slot);
      const logical = owner.get(Math.floor(slot / block_size));
      const token = logical === undefined ? null : logical * block_size + (slot % block_size);
      const used = token !== null && token < context;
      const kind = !used ? "bw-other" : shade(logical);
      add("rect", { class: `bw-cell ${kind}`, "data-slot": slot, ...(used && { "data-holds": token }),
        x, y, width: column, height: CELL });
      if (used && inTile.has(token)) {
        add("rect", { class: "bw-gathered", x: x + 2, y: y + CELL - 7, width: column - 4, height: 5 });
      }
    }
    for (let block = 0; block < SLOTS / block_size; block += 1) {
      const [x, y] = place(block * block_size);
      add("rect", { class: "bw-block", x: x + 0.5, y: y + 0.5, width: block_size * column - 1, height: CELL - 1 });
      if (block_size * column > 8 * String(block).length + 4) {
        label(x + (block_size * column) / 2, y + CELL / 2 + 3, block);
      }
    }
    const slotAt = place(found.slot);

    // The tile.
    title(tops.tile, `Tile ${found.tileNumber + 1} on the chip: the token in each row`);
    found.rows.forEach((each, row) => {
      const at = { x: row * column, y: tops.tile, width: column, height: CELL };
      add("rect", each ? { class: "bw-cell bw-gathered", "data-row": row, ...at }
        : { class: "bw-masked", ...at, x: at.x + 2, width: column - 4, y: tops.tile + 1, height: CELL - 2 });
      if (each && column > 17) {
        add("text", { x: (row + 0.5) * column, y: tops.tile + CELL / 2 + 4, "text-anchor": "middle", text: each.token });
      }
    });
    const rowAt = [(found.row + 0.5) * column, tops.tile];

    // The way.
    const way = [
      [[tokenAt[0], tokenAt[1] + CELL], entryAt],
      [[entryAt[0], entryAt[1] + CELL], [slotAt[0] + column / 2, slotAt[1]]],
      [[slotAt[0] + column / 2, slotAt[1] + CELL], rowAt],
    ];
    way.forEach(([from, to]) => {
      const half = Math.min(14, (to[1] - from[1]) / 2);
      add("path", { class: "bw-path", d: `M${from.join(" ")}v${half}L${to[0]} ${to[1] - half}V${to[1]}` });
    });
    const here = (x, y, wide) =>
      add("rect", { class: "bw-here", x: x + 0.5, y: y + 0.5, width: wide - 1, height: CELL - 1 });
    here(found.token * cell, tops.tokens, cell);
    here(found.logical * entry, tops.table, entry);
    here(...slotAt, column);
    here(found.row * column, tops.tile, column);
    svg.replaceChildren(...nodes, ...titles);
  }
  return { svg, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const OPTIONS = ["context", "block_size", "tile", "token"];
const NUMBERS = {
  logical: "logical block", offset: "place in the block", physical: "physical block", slot: "slot",
  bytes: `bytes from the start of the layer’s keys, head 0`,
};

function render({ model, el }) {
  const id = uniqueId("block-table-walk");
  const root = figureFrame(el, "A walk through the block table", CSS);
  const last = () => model.get("context") - 1;
  const clamped = { // a token that the sequence has
    get: (key) => (key === "token" ? Math.min(model.get(key), last()) : model.get(key)),
    set: (key, value) => model.set(key, key === "token" ? Math.min(value, last()) : value),
    save_changes: () => model.save_changes(),
  };
  const upTo = (first, end) => Array.from({ length: end - first + 1 }, (_, index) => first + index);
  const controls = [
    slider({ id, model, key: "context", label: "Tokens in the sequence", values: upTo(1, LONGEST) }),
    choice({ id, model, key: "block_size", label: "Tokens a block", values: BLOCK_SIZES }),
    choice({ id, model, key: "tile", label: "Tokens a tile (BLOCK_N)", values: TILES }),
  ];
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const steps = transport({ model: clamped, key: "token", last, interval: () => (calm.matches ? 1600 : 700) });
  const token = slider({ id, model: clamped, key: "token", label: "Token", values: upTo(0, LONGEST - 1),
    show: (each) => `${each} (0 to ${last()})` });
  const says = htmlNode("p", { class: "bw-caption", role: "status" });
  const drawing = picture();
  const numbers = Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, htmlNode("b", { "data-name": name })]));
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "A walk through the block table" }),
      htmlNode("span", { class: "bf-muted", text: "how one decode finds its keys" })),
    htmlNode("div", { class: "bf-controls bw-controls" }, ...controls.map(({ node }) => node)),
    htmlNode("div", { class: "bw-bar" }, steps.node, token.node), says,
    htmlNode("div", { class: "bw-stage" }, drawing.svg),
    htmlNode("div", { class: "bw-numbers" }, ...Object.entries(NUMBERS).map(([name, words]) =>
      htmlNode("div", { class: "bw-number" }, numbers[name], htmlNode("span", { class: "bf-muted", text: words })))),
    htmlNode("div", { class: "bf-notes bf-muted" }, swatches({
      "this sequence’s blocks, in HBM, in two tones": "fill: var(--bf-hbm-mid)",
      "others’, or free": "fill: color-mix(in srgb, var(--bf-ink) 9%, var(--bf-paper))",
      "in the tile": "fill: color-mix(in srgb, var(--bf-sram) 45%, var(--bf-paper))",
    }), htmlNode("p", { text:
      "A number in memory is a physical block’s. Values lie in a cache of their own, in the same slots. The " +
      `cache here has ${KV_HEADS} heads of ${HEAD_DIM} numbers in float16 for each slot, so a slot is ` +
      `${formatInteger(KV_HEADS * HEAD_DIM * BYTES)} bytes.` })),
  );

  let width = 0;
  function draw() {
    const options = Object.fromEntries(OPTIONS.map((key) => [key, clamped.get(key)]));
    const found = walk(options);
    [...controls, token, steps].forEach(({ refresh }) => refresh());
    says.textContent = caption(options, found);
    for (const [name, node] of Object.entries(numbers)) {
      node.textContent = formatInteger(found[name]);
      node.dataset.number = found[name];
    }
    if (width) drawing.draw(options, found, width);
  }

  const events = OPTIONS.map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(drawing.svg, (newWidth) => { width = newWidth; draw(); });
  return () => {
    steps.stop();
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
