// A ring of slots. FlashAttention-3's producer and consumers at the ring of K and V, event by event: what
// each slot holds, what its two barriers count, and who waits for whom.

// ---- the model ----------------------------------------------------------------------------------
// Runs come from Python; instruments/ring_of_slots.py says what the numbers of their events mean.

const LONGEST_RING = 3;
const TILES = ["key", "value"];
const LETTERS = { key: "K", value: "V" };

export const runOf = ({ runs }, { stages, mistake }) =>
  runs.find((run) => run.stages === stages && run.mistake === mistake);

/** An event with names in place of numbers. */
export function eventOf(data, run, at) {
  const [cycle, does, who, what, slot, number, pending, bytes, phase] = run.events[at];
  return {
    cycle, does: data.does[does], who: data.partitions[who], what: data.what[what], slot, number,
    after: pending === undefined ? null : { pending, bytes, phase },
  };
}

const consumersOf = (data) => data.partitions.slice(-data.consumers);

const newSlot = (data) => ({
  key: null, value: null, released: [], overwritten: null,
  full: { pending: 1, bytes: 0, phase: 0 }, empty: { pending: data.consumers, bytes: 0, phase: 0 },
});

/** How everything stands after event number `step`: slots, and partitions by name. */
export function stateAt(data, run, step) {
  const slots = Array.from({ length: run.stages }, () => newSlot(data));
  const partitions = Object.fromEntries(data.partitions.map((name) =>
    [name, { waits: null, reads: [], holds: null, last: null, left: 0 }]));
  run.events.forEach((_, at) => {
    const event = eventOf(data, run, at);
    if (at > step) {
      if (event.does !== "lands" && event.does !== "deadlock") partitions[event.who].left += 1;
      return;
    }
    apply(data, slots, partitions, event);
  });
  slots.forEach((slot, place) => {
    slot.readers = data.partitions.filter((name) =>
      partitions[name].reads.some((read) => read.slot === place));
    slot.state = stateOf(slot);
  });
  return { slots, partitions, cycle: run.events[step][0], whole: run.mistake === "none" };
}

function apply(data, slots, partitions, { does, who, what, slot: place, number, after }) {
  const partition = partitions[who];
  const slot = slots[place];
  if (does === "deadlock") return;
  if (does !== "lands") partition.last = { does, what, slot: place };
  if (does === "waits") partition.waits = { what, slot: place, parity: number };
  if (does === "goes on") partition.waits = null;
  if ((does === "goes on" || does === "passes") && what === "full") partition.holds = place;
  if (does === "copies") slot[what] = { tile: number, there: false };
  if (does === "lands") slot[what].there = true;
  if (does === "race") slot.overwritten = what;
  if (does === "multiplies") partition.reads.push({ what, slot: place, tile: number });
  if (does === "has multiplied") {
    partition.reads = partition.reads.filter((read) =>
      read.what !== what || read.slot !== place || read.tile !== number);
  }
  if (does === "expects" || does === "lands") slot.full = after;
  if (does === "releases") {
    const over = after.phase > slot.empty.phase;
    slot.released = over ? [] : [...slot.released, who];
    // What a product still reads, though its slot was released, stays in sight.
    const read = Object.values(partitions).flatMap(({ reads }) => reads).filter((one) => one.slot === place);
    if (over) TILES.forEach((tensor) => { if (!read.some((one) => one.what === tensor)) slot[tensor] = null; });
    slot.empty = after;
    partition.holds = null;
  }
}

function stateOf(slot) {
  const held = TILES.map((tensor) => slot[tensor]).filter(Boolean);
  if (slot.overwritten) return "overwritten";
  if (slot.readers.length) return "in use";
  if (slot.full.bytes > 0 || held.some(({ there }) => !there)) return "being filled";
  return held.length ? "full" : "empty";
}

// ---- the words ----------------------------------------------------------------------------------

const joined = (names) => (names.length < 2 ? names.join("")
  : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);
const capital = (words) => words[0].toUpperCase() + words.slice(1);
const theName = (name) => (name === "producer" ? "the producer" : name);
const tileText = (tensor, tile) => `${LETTERS[tensor]} tile ${tile}`;
const bytesText = (bytes) => `${formatInteger(bytes)} bytes`;
const arrivalsText = (count) => `${count} arrival${count === 1 ? "" : "s"}`;

/** Whom a wait is for: "until consumer 1 releases it". */
function untilText(data, slots, { what, slot }) {
  if (what === "queries") return "its queries to land";
  const { full, empty, released } = slots[slot];
  if (what === "full") {
    return full.pending ? `slot ${slot} to be full; nothing has been asked for yet`
      : `slot ${slot} to be full; ${bytesText(full.bytes)} are on their way`;
  }
  const missing = consumersOf(data).filter((name) => !released.includes(name));
  return `slot ${slot} to be empty; ${joined(missing)} ${missing.length > 1 ? "have" : "has"} to release it` +
    (empty.pending === missing.length ? "" : ` (${arrivalsText(empty.pending)} missing)`);
}

const barrierName = ({ what, slot, parity }) =>
  `${what === "queries" ? "queries.full" : what}[${slot}], parity ${parity}`;

/** A wait for a parity is over when the barrier has gone on to a phase of the other. */
const isOver = ({ slots }, { what, slot, parity }) =>
  what !== "queries" && (slots[slot][what].phase & 1) !== parity;

/** What a partition does after an event. */
export function partitionText(data, state, name) {
  const { waits, reads, holds, last, left } = state.partitions[name];
  if (waits && isOver(state, waits)) return `may go on: ${barrierName(waits)} is complete`;
  if (waits) return `waits for ${untilText(data, state.slots, waits)} · ${barrierName(waits)}`;
  if (reads.length) {
    const tiles = joined(reads.map(({ what, tile }) => tileText(what, tile)));
    return `multiplies with ${tiles} in slot ${reads[0].slot}`;
  }
  if (!last) return "has done nothing here yet";
  if (left === 0 && state.whole) return name === "producer" ? "done: all is asked for" : "done with the ring";
  if (name === "producer") return `gives orders for slot ${last.slot}`;
  if (last.what === "queries") return "has its queries";
  if (holds === null) return "computes, and needs no slot";
  return last.does === "has multiplied" ? `is done with slot ${holds}, and has not released it`
    : `may read slot ${holds}`;
}

/** "K tile 2, there; V tile 3, on its way": what a slot holds. */
export function heldText(slot) {
  const held = TILES.filter((tensor) => slot[tensor]);
  if (!held.length) return "nothing";
  return held.map((tensor) =>
    `${tileText(tensor, slot[tensor].tile)}, ${slot[tensor].there ? "there" : "on its way"}`).join("; ");
}

/** What completes with an event, if anything does. */
function completedText(event, before) {
  const name = event.does === "releases" ? "empty" : "full";
  const { phase } = event.after;
  const old = before.slots[event.slot][name].phase;
  if (phase === old) return "";
  return ` That completes phase ${old} of ${name}[${event.slot}]: its bit is now ${phase & 1}` +
    (name === "empty" ? ", and the slot is empty." : ", and the slot is full.");
}

const END_TEXTS = {
  parity: "The producer waits for the parity that only a release can bring about. No slot has been used, so " +
    "nobody has anything to release, and nothing will ever be loaded.",
  never: "Consumer 1 keeps its slots. Its arrival is missing at “empty”, the producer cannot load, and both " +
    "consumers wait for what is never loaded.",
};

/** One event in words. */
export function eventText(data, run, at) {
  const event = eventOf(data, run, at);
  const { does, what, slot, number, after } = event;
  const before = at ? stateAt(data, run, at - 1) : { slots: Array.from({ length: run.stages }, () => newSlot(data)) };
  const who = capital(theName(event.who));
  const wait = { what, slot, parity: number };
  switch (does) {
    case "waits": return `${who} waits at ${barrierName(wait)}, for ${untilText(data, before.slots, wait)}.`;
    case "goes on": return `${who} goes on: ${what === "queries" ? "its queries have landed" : `slot ${slot} is ${what}`} ` +
      `(${barrierName(wait)}, is complete).`;
    case "passes": return `${who} need not wait at ${barrierName(wait)}: ` + (what === "empty" &&
      before.slots[slot].empty.phase === 0 ? "before the first use a barrier counts as completed."
      : "that phase is over.");
    case "expects": return `${who} arrives at full[${slot}], which from now on expects ${bytesText(number)}.`;
    case "copies": return `${who} starts the copy of ${tileText(what, number)} into slot ${slot}.`;
    case "lands": return `${tileText(what, number)} has landed in slot ${slot}; full[${slot}] ` +
      (after.phase > before.slots[slot].full.phase ? "misses nothing more."
        : `still misses ${bytesText(after.bytes)}.`) + completedText(event, before);
    case "multiplies": return `${who} starts a product that reads ${tileText(what, number)} in slot ${slot}.`;
    case "has multiplied": return `${who} has waited for its product with ${tileText(what, number)} in slot ${slot}: ` +
      "it is over.";
    case "releases": return `${who} releases slot ${slot}: it arrives at empty[${slot}]` +
      (after.phase > before.slots[slot].empty.phase ? "." : `, which still misses ${arrivalsText(after.pending)}.`) +
      completedText(event, before);
    case "race": return `A race. The copy of ${tileText(what, number)} begins to overwrite ` +
      `${tileText(what, before.slots[slot][what].tile)} in slot ${slot}, which a product of ` +
      `${joined(before.slots[slot].readers)} still reads: the slot was released too early. The simulator stops here.`;
    default: return `A deadlock: everybody waits, and nothing is on its way. ${END_TEXTS[run.mistake]}`;
  }
}

// ---- the look -----------------------------------------------------------------------------------

const CSS = `
.bf .rs-says { padding: 11px 16px 0; }
.bf p.rs-event { min-height: 4.2em; font-size: 15px; }
@container (max-width: 719.9px) { .bf p.rs-event { min-height: 5.6em; } }
@container (max-width: 479.9px) { .bf p.rs-event { min-height: 9.8em; font-size: 14px; } }
.bf .rs-event b { font-weight: 650; }
.bf .rs-time { display: grid; grid-template-columns: auto 1fr; align-items: end; gap: 8px 20px;
  padding: 0 16px 12px; }
@container (max-width: 559.9px) { .bf .rs-time { grid-template-columns: 1fr; } }
.bf .rs-who { padding: 9px 16px 10px; border-top: 1px solid var(--bf-line); }
.bf .rs-row { display: grid; grid-template-columns: 6.2rem 1fr; gap: 0 12px; min-height: 1.55em; }
.bf .rs-row > :first-child { font-weight: 650; }
.bf .rs-row[data-waits] > :last-child { text-decoration: underline dotted; text-underline-offset: 3px; }
@container (max-width: 719.9px) { .bf .rs-row { min-height: 3em; } }
@container (max-width: 479.9px) { .bf .rs-row { min-height: 4.4em; grid-template-columns: 5.8rem 1fr; }
  .bf .rs-row[data-partition="producer"] { min-height: 5.7em; } }
.bf .rs-slots { display: grid; gap: 12px; padding: 2px 16px 14px; }
@container (min-width: 720px) { .bf .rs-slots { grid-template-columns: repeat(3, 1fr); } }
.bf .rs-slot { min-width: 0; padding: 8px 10px 9px; border: 1.5px solid var(--bf-sram); border-radius: 8px;
  background: color-mix(in srgb, var(--bf-sram) 5%, var(--bf-paper)); }
.bf .rs-slot[data-state="absent"] { border: 1.5px dashed var(--bf-line); background: none; }
.bf .rs-slot[data-state="absent"] > * { visibility: hidden; }
.bf .rs-slot[data-state="absent"] > .rs-head { visibility: visible; color: var(--bf-muted); }
@container (max-width: 719.9px) { .bf .rs-slot[data-state="absent"] > :not(.rs-head) { display: none; } }
.bf .rs-slot[data-now] { outline: 2px solid var(--bf-ink); outline-offset: 1px; }
.bf .rs-slot[data-state="overwritten"] { border-color: var(--bf-danger); outline-color: var(--bf-danger); }
.bf .rs-head { display: flex; justify-content: space-between; align-items: center; margin-bottom: 6px; }
.bf .rs-head b { font-weight: 650; }
.bf [data-state="in use"] .bf-pill { color: var(--bf-paper); background: var(--bf-ink); }
.bf [data-state="full"] .bf-pill { background: color-mix(in srgb, var(--bf-sram) 38%, var(--bf-paper)); }
.bf .rs-tiles { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.bf .rs-tile { height: 30px; display: grid; place-items: center; font-size: 13px; font-weight: 650;
  border: 1.5px dashed var(--bf-line); border-radius: 4px; white-space: nowrap; }
.bf .rs-tile span { padding: 0 6px; border-radius: 3px; }
.bf .rs-tile[data-tile="coming"] { border: 1.5px solid var(--bf-hbm);
  background: repeating-linear-gradient(135deg, var(--bf-hbm-light) 0 4px, var(--bf-paper) 4px 9px); }
.bf .rs-tile[data-tile="coming"] span { background: var(--bf-paper); }
.bf .rs-tile[data-tile="there"] { border: 1.5px solid var(--bf-sram);
  background: color-mix(in srgb, var(--bf-sram) 38%, var(--bf-paper)); }
.bf .rs-tile[data-tile="overwritten"] { border: 2.5px dotted var(--bf-danger);
  background: color-mix(in srgb, var(--bf-danger) 22%, var(--bf-paper)); }
.bf .rs-readers { min-height: 1.5em; margin: 2px 0 5px; font-size: 12px; }
.bf .rs-barrier { display: grid; grid-template-columns: 2.9rem 1.5rem 1fr; gap: 0 8px; align-items: start;
  padding: 5px 0 0; margin-top: 5px; border-top: 1px solid var(--bf-line); font-size: 12.5px; }
.bf .rs-barrier > b { font-weight: 650; }
.bf .rs-bit { display: grid; place-items: center; height: 1.5rem; border: 1.5px solid var(--bf-ink);
  border-radius: 4px; font-weight: 650; }
.bf .rs-bit[data-bit="1"] { background: var(--bf-ink); color: var(--bf-paper); }
.bf .rs-count > span { display: block; min-height: 1.4em; }
.bf .rs-waiter { grid-column: 2 / -1; min-height: 1.4em; font-weight: 650; }
`;

// ---- the slots ----------------------------------------------------------------------------------

function barrierCard(name) {
  const bit = htmlNode("span", { class: "rs-bit" });
  const [phase, missing, waiter] = ["", "", "rs-waiter"].map((kind) => htmlNode("span", { class: kind }));
  const node = htmlNode("div", { class: "rs-barrier", "data-barrier": name },
    htmlNode("b", { text: name }), bit, htmlNode("div", { class: "rs-count" }, phase, missing), waiter);
  function draw(barrier, waiters) {
    bit.textContent = barrier.phase & 1;
    bit.dataset.bit = barrier.phase & 1;
    phase.textContent = `bit ${barrier.phase & 1}: in phase ${barrier.phase}`;
    missing.textContent = name === "full" && !barrier.pending ? `misses ${bytesText(barrier.bytes)}`
      : `misses ${arrivalsText(barrier.pending)}`;
    waiter.textContent = waiters.length > 1 ? "both consumers wait" : waiters.length ? `${waiters[0]} waits` : "";
    node.dataset.numbers = JSON.stringify([barrier.pending, barrier.bytes, barrier.phase]);
  }
  return { node, draw };
}

function slotCard(place) {
  const pill = htmlNode("span", { class: "bf-pill" });
  const tiles = Object.fromEntries(TILES.map((tensor) =>
    [tensor, htmlNode("div", { class: "rs-tile" }, htmlNode("span"))]));
  const readers = htmlNode("div", { class: "rs-readers" });
  const barriers = { full: barrierCard("full"), empty: barrierCard("empty") };
  const node = htmlNode("div", { class: "rs-slot", role: "group", "aria-label": `Slot ${place}`, "data-slot": place },
    htmlNode("div", { class: "rs-head" }, htmlNode("b", { text: `slot ${place}` }), pill),
    htmlNode("div", { class: "rs-tiles" }, ...Object.values(tiles)), readers,
    barriers.full.node, barriers.empty.node);

  function draw(data, state, now) {
    const slot = state.slots[place];
    node.dataset.state = slot ? slot.state : "absent";
    node.toggleAttribute("data-now", Boolean(slot) && now);
    pill.textContent = slot ? slot.state : "not there";
    const shown = slot ?? newSlot(data);
    TILES.forEach((tensor) => {
      const tile = shown[tensor];
      tiles[tensor].dataset.tile = shown.overwritten === tensor ? "overwritten"
        : tile ? (tile.there ? "there" : "coming") : "none";
      tiles[tensor].firstChild.textContent = tile ? tileText(tensor, tile.tile) : `no ${LETTERS[tensor]}`;
    });
    readers.textContent = shown.readers?.length ? `read by ${joined(shown.readers)}`
      : shown.released.length ? `released by ${joined(shown.released)}` : "";
    for (const [name, { draw: drawBarrier }] of Object.entries(barriers)) {
      const waiters = slot ? data.partitions.filter((partition) => {
        const { waits } = state.partitions[partition];
        return waits?.what === name && waits.slot === place && !isOver(state, waits);
      }) : [];
      drawBarrier(shown[name], waiters);
    }
  }
  return { node, draw };
}

function partitionTable(data) {
  const cells = Object.fromEntries(data.partitions.map((name) => [name, htmlNode("span", { role: "cell" })]));
  const rows = Object.fromEntries(data.partitions.map((name) => [name, htmlNode("div",
    { class: "rs-row", role: "row", "data-partition": name },
    htmlNode("span", { role: "rowheader", text: name }), cells[name])]));
  const node = htmlNode("div", { class: "rs-who", role: "table", "aria-label": "Who does what" }, ...Object.values(rows));
  function draw(state) {
    for (const name of data.partitions) {
      cells[name].textContent = partitionText(data, state, name);
      rows[name].toggleAttribute("data-waits", cells[name].textContent.startsWith("waits"));
    }
  }
  return { node, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const MISTAKES = [
  { value: "none", text: "none: the kernel as it is" },
  { value: "parity", text: "producer waits for the wrong parity" },
  { value: "early", text: "released before the product is over" },
  { value: "never", text: "consumer 1 stops releasing" },
];

/** The model as the slider sees it: never beyond the run's last event. */
const withinRun = (model, last) => ({
  get: (key) => Math.min(model.get(key), last()),
  set: (key, value) => model.set(key, value),
  save_changes: () => model.save_changes(),
});

function render({ model, el }) {
  const id = uniqueId("ring-of-slots");
  const root = figureFrame(el, "A ring of slots", CSS);
  const data = () => model.get("runs");
  const run = () => runOf(data(), { stages: model.get("stages"), mistake: model.get("mistake") });
  const last = () => run().events.length - 1;
  const time = withinRun(model, last);
  const stages = choice({ id, model, key: "stages", label: "Slots, each for a tile of K and one of V", values: [1, 2, 3] });
  const mistake = select({ id, model, key: "mistake", label: "Mistake in the kernel", values: MISTAKES });
  const steps = transport({ model: time, key: "step", last });
  const most = Math.max(...data().runs.map(({ events }) => events.length));
  const moment = slider({ id, model: time, key: "step", label: "Event",
    values: Array.from({ length: most }, (_, at) => at),
    show: (at) => `${at + 1} of ${last() + 1}, cycle ${formatInteger(run().events[at][0])}` });
  const says = htmlNode("p", { class: "rs-event", role: "status" });
  const slots = Array.from({ length: LONGEST_RING }, (_, place) => slotCard(place));
  const table = partitionTable(data());
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "A ring of slots" }),
      htmlNode("span", { class: "bf-muted", text: "K and V of FlashAttention-3, one producer, two consumers" })),
    htmlNode("div", { class: "bf-controls" }, stages.node, mistake.node),
    htmlNode("div", { class: "rs-says" }, says),
    htmlNode("div", { class: "rs-time" }, steps.node, moment.node),
    htmlNode("div", { class: "rs-slots" }, ...slots.map(({ node }) => node)),
    table.node,
    htmlNode("div", { class: "bf-notes bf-muted" }, htmlNode("p", { text: caption(data()) })),
  );

  function draw() {
    const step = time.get("step");
    const state = stateAt(data(), run(), step);
    const event = eventOf(data(), run(), step);
    [stages, mistake, steps, moment].forEach(({ refresh }) => refresh());
    const input = moment.node.querySelector("input");
    input.max = last();
    input.value = step;
    const words = eventText(data(), run(), step);
    says.replaceChildren(htmlNode("b", { text: `Cycle ${formatInteger(state.cycle)}. ` }), words);
    input.setAttribute("aria-valuetext", `event ${step + 1} of ${last() + 1}: ${words}`);
    const atSlot = event.what !== "queries" && event.does !== "deadlock";
    slots.forEach((slot, place) => slot.draw(data(), state, atSlot && event.slot === place));
    table.draw(state);
  }

  // Drawn once for all that changes together.
  let waiting = false;
  function drawSoon() {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; draw(); });
  }
  const events = ["stages", "mistake", "step", "runs"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, drawSoon));
  draw();
  return () => {
    steps.stop();
    events.forEach((event) => model.off(event, drawSoon));
  };
}

const caption = ({ tiles, tile_bytes }) =>
  `The kernel’s own source runs on the simulator, for d = 128: one tile of queries, ${tiles} tiles of 128 keys ` +
  `from the last to the first, ${formatInteger(tile_bytes)} bytes a tile. A slot takes K of a step and V of the ` +
  "step before. “In use” lasts until a consumer has waited for its product. The bit is the parity of the phase that a barrier is in; a wait for parity p passes when the bit " +
  "is not p. A mistake is one edit of the kernel’s text. Order is the kernel’s; cycles are a model’s (HopperClock).";

export default { render };
