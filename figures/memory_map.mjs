// The memory map. The same requests are served on two memories of the same size: contiguous pieces that
// are reserved in advance, and blocks that are handed out as tokens come. The figure shows which slot of
// each is used for what, step by step.

// ---- the model ----------------------------------------------------------------------------------
// Paged memory is serving/allocator.py, contiguous memory serving/contiguous.py, who runs is
// serving/scheduler.py without limits but memory, and what slots are used for is
// serving/memory_use.py. A test holds each equal to the Python, step by step.

export const SLOTS = 256;
export const STEPS = 120;
export const LONGEST_PART = 32; // tokens of a prompt, and of an output
const WATERMARK = 0.01;
export const RATES = [1, 2, 3, 4, 6, 8, 12, 16];
export const PROMPTS = [2, 4, 6, 8, 12, 16];
export const OUTPUTS = [2, 4, 8, 12, 16, 24];
export const PREFIX_LENGTHS = [0, 4, 8, 16];
export const BLOCK_SIZES = [1, 2, 4, 8, 16];
export const RESERVATIONS = ["max", "pow2", "oracle"];

class NoFreeBlocks extends Error {}

/** The blocks of paged memory; those that nobody can find again are taken first. */
class BlockPool {
  constructor(count) {
    this.referenceCounts = Array(count).fill(0);
    this.free = Array.from({ length: count }, (_, block) => block);
    this.blockOf = new Map(); // by content
    this.contentOf = new Map();
  }

  take(count, spare = 0) {
    if (count + spare > this.free.length) throw new NoFreeBlocks();
    const taken = this.free.splice(0, count);
    for (const block of taken) {
      this.referenceCounts[block] = 1;
      this.blockOf.delete(this.contentOf.get(block));
      this.contentOf.delete(block);
    }
    return taken;
  }

  share(block) {
    const place = this.free.indexOf(block);
    if (place >= 0) this.free.splice(place, 1);
    this.referenceCounts[block] += 1;
  }

  release(block) {
    this.referenceCounts[block] -= 1;
    if (this.referenceCounts[block] > 0) return;
    if (this.contentOf.has(block)) this.free.push(block);
    else this.free.unshift(block);
  }

  publish(block, content) {
    if (!this.blockOf.has(content)) this.blockOf.set(content, block);
    const known = this.blockOf.get(content);
    if (known === block) this.contentOf.set(block, content);
    else {
      this.share(known);
      this.release(block);
    }
    return known;
  }
}

/** Paged memory: block tables, blocks shared by count, copied before a shared one is written. */
export class PagedMemory {
  constructor(slots, blockSize) {
    this.blockSize = blockSize;
    this.pool = new BlockPool(Math.floor(slots / blockSize));
    this.spare = Math.round(WATERMARK * this.pool.referenceCounts.length);
    this.tables = new Map();
  }

  allocate(sequence, tokens, spare = 0) {
    const table = { blocks: [], length: tokens.length, contents: [] };
    for (let logical = 0; logical < Math.floor((tokens.length - 1) / this.blockSize); logical += 1) {
      const content = this.content(table, tokens, logical);
      if (!this.pool.blockOf.has(content)) break;
      table.contents.push(content);
      table.blocks.push(this.pool.blockOf.get(content));
    }
    const found = table.blocks.length;
    table.blocks.forEach((block) => this.pool.share(block));
    try {
      const needed = Math.ceil(tokens.length / this.blockSize) - found;
      table.blocks.push(...this.pool.take(needed, spare));
    } catch (error) {
      this.release(table);
      throw error;
    }
    this.tables.set(sequence, table);
    return found * this.blockSize;
  }

  /** A slot more for each; the copies to carry out first. */
  append(sequences) {
    const tables = sequences.map((sequence) => this.tables.get(sequence));
    const partly = (table) => table.length % this.blockSize !== 0;
    const holders = new Map(
      tables.map(({ blocks }) => [blocks.at(-1), this.pool.referenceCounts[blocks.at(-1)]]));
    const copyFirst = tables.map((table) => { // of those that share a block, the last may write into it
      const [block, count] = [table.blocks.at(-1), holders.get(table.blocks.at(-1))];
      const shared = partly(table) && count > 1;
      if (shared) holders.set(block, count - 1);
      return shared;
    });
    const needed = tables.filter((table, index) => copyFirst[index] || !partly(table)).length;
    const fresh = this.pool.take(needed);
    const copies = [];
    tables.forEach((table, index) => {
      if (!partly(table)) table.blocks.push(fresh.shift());
      else if (copyFirst[index]) {
        const [source, target] = [table.blocks.pop(), fresh.shift()];
        copies.push([source, target]);
        this.pool.release(source);
        table.blocks.push(target);
      }
      table.length += 1;
    });
    return copies;
  }

  fork(parent, child) {
    const table = this.tables.get(parent);
    table.blocks.forEach((block) => this.pool.share(block));
    this.tables.set(child,
      { blocks: [...table.blocks], length: table.length, contents: [...table.contents] });
  }

  /** The first `computed` tokens are in memory: full blocks among them can be found from now on. */
  commit(sequence, tokens, computed) {
    const table = this.tables.get(sequence);
    for (let at = table.contents.length; at < Math.floor(computed / this.blockSize); at += 1) {
      const content = this.content(table, tokens, at);
      table.contents.push(content);
      table.blocks[at] = this.pool.publish(table.blocks[at], content);
    }
  }

  drop(sequence) {
    this.release(this.tables.get(sequence));
    this.tables.delete(sequence);
  }

  release(table) {
    table.blocks.toReversed().forEach((block) => this.pool.release(block));
  }

  /** A block's tokens and all before them: what Python has a hash of. */
  content(table, tokens, logical) {
    const own = tokens.slice(logical * this.blockSize, (logical + 1) * this.blockSize);
    return `${logical ? table.contents[logical - 1] : ""}/${own.join(" ")}`;
  }

  /** What each block that is held is used for; of sequences that share it, the furthest counts. */
  pieces(sequences) {
    const held = new Map();
    for (const { number, request, written, final } of sequences) {
      this.tables.get(number)?.blocks.forEach((block, logical) => {
        const before = logical * this.blockSize;
        const piece = held.get(block) ?? { request, start: block * this.blockSize, size: this.blockSize,
          asked: this.blockSize, tokens: 0, needed: 0, holders: 0 };
        piece.tokens = Math.max(piece.tokens, Math.min(this.blockSize, written - before));
        piece.needed = Math.max(piece.needed, Math.min(this.blockSize, final - before));
        piece.holders += 1;
        held.set(block, piece);
      });
    }
    return [...held.values()];
  }
}

/** Pieces of a power of two, each at a multiple of its size; two free halves become one again. */
export class BuddyPool {
  constructor(slots) {
    this.free = new Map();
    let start = 0;
    for (let size = 2 ** Math.floor(Math.log2(slots)); size >= 1; size /= 2) {
      this.free.set(size, new Set());
      if (slots % (2 * size) >= size) {
        this.free.get(size).add(start);
        start += size;
      }
    }
  }

  take(size) {
    let large = size;
    while (this.free.has(large) && this.free.get(large).size === 0) large *= 2;
    if (!this.free.has(large)) throw new NoFreeBlocks();
    const start = Math.min(...this.free.get(large));
    this.free.get(large).delete(start);
    while (large > size) {
      large /= 2;
      this.free.get(large).add(start + large);
    }
    return start;
  }

  release(start, size) {
    let [at, whole] = [start, size];
    while (this.free.get(whole).has(at ^ whole)) {
      this.free.get(whole).delete(at ^ whole);
      [at, whole] = [Math.min(at, at ^ whole), 2 * whole];
    }
    this.free.get(whole).add(at);
  }
}

/** Contiguous memory: all that a request may need is reserved before it starts. */
export class ContiguousMemory {
  constructor(slots) {
    this.pool = new BuddyPool(slots);
    this.spare = 0;
    this.tables = new Map();
    this.promised = new Map();
  }

  promise(sequence, asked, pieces) {
    const size = 2 ** Math.ceil(Math.log2(asked));
    this.promised.set(sequence, { asked, pieces, size, starts: [], spare: [], members: [] });
  }

  allocate(sequence, tokens) {
    const request = this.promised.get(sequence);
    const starts = [];
    try {
      for (let piece = 0; piece < request.pieces; piece += 1) starts.push(this.pool.take(request.size));
    } catch (error) {
      starts.forEach((start) => this.pool.release(start, request.size));
      throw error;
    }
    this.promised.delete(sequence);
    [request.starts, request.spare] = [starts, [...starts]];
    this.add(sequence, request, tokens.length);
    return 0;
  }

  append(sequences) {
    sequences.forEach((sequence) => { this.tables.get(sequence).length += 1; });
    return [];
  }

  fork(parent, child) {
    const { request, length } = this.tables.get(parent);
    this.add(child, request, length);
  }

  commit() {}

  drop(sequence) {
    const piece = this.tables.get(sequence);
    const { request } = piece;
    this.tables.delete(sequence);
    request.members.splice(request.members.indexOf(piece), 1);
    const homeless = request.members.find(({ blocks }) => blocks.length === 0);
    if (homeless) homeless.blocks = piece.blocks;
    else request.spare.push(...piece.blocks);
    if (request.members.length === 0) {
      request.starts.forEach((start) => this.pool.release(start, request.size));
    }
  }

  add(sequence, request, length) {
    const piece = { blocks: request.spare.splice(0, 1), length, request };
    request.members.push(piece);
    this.tables.set(sequence, piece);
  }

  /** What each piece is used for. One that no sequence has yet is waiting for a sibling. */
  pieces(sequences) {
    const of = new Map();
    for (const { number, request, written, final } of sequences) {
      const table = this.tables.get(number);
      if (!table) continue;
      for (const start of table.request.starts) {
        const { asked, size } = table.request;
        const piece = of.get(start) ?? { request, start, size, asked, tokens: 0, needed: final, holders: 1 };
        if (table.blocks[0] === start) piece.tokens = written;
        of.set(start, piece);
      }
    }
    return [...of.values()];
  }
}

/** Who runs: first come, first served; when blocks run out, the latest gives back all of its own. */
export class Scheduler {
  constructor(memory) {
    this.memory = memory;
    this.groups = new Map();
    this.waiting = [];
    this.running = [];
    this.nextSequence = 0;
  }

  add(request, parallel) {
    const first = { number: this.nextSequence, tokens: promptTokens(request), computed: 0 };
    this.nextSequence += 1;
    const group = { number: request.number, request, parallel, sequences: new Map([[first.number, first]]) };
    this.groups.set(group.number, group);
    this.waiting.push(group);
    return first.number;
  }

  schedule() {
    const plan = { runs: [], copies: [], preempted: [], admitted: [] };
    for (const group of [...this.running]) {
      while (this.running.includes(group) && !this.runIfRoom(group, plan)) {
        this.preempt(this.running.at(-1), plan);
      }
    }
    if (plan.preempted.length) return plan;
    while (this.waiting.length && this.admit(this.waiting[0])) {
      const group = this.waiting.shift();
      this.running.push(group);
      this.running.sort((one, other) => one.number - other.number);
      plan.admitted.push(group.number);
      this.runIfRoom(group, plan);
    }
    return plan;
  }

  admit(group) {
    const [first] = group.sequences.values();
    return ifRoom(() => this.allocate(first, this.running.length ? this.memory.spare : 0));
  }

  allocate(sequence, spare) {
    sequence.computed = this.memory.allocate(sequence.number, sequence.tokens, spare);
  }

  runIfRoom(group, plan) {
    const sequences = [...group.sequences.values()];
    return ifRoom(() => {
      for (const sequence of sequences) {
        // After a loss, siblings catch up one after another, to find each other's blocks.
        if (!this.memory.tables.has(sequence.number)) this.allocate(sequence, 0);
        const missing = sequence.tokens.length - sequence.computed;
        if (missing > 1) {
          const count = missing - (sequences.length > 1 ? 1 : 0);
          plan.runs.push({ group, sequence, count });
          return;
        }
      }
      const short = sequences.filter(({ number, tokens }) =>
        this.memory.tables.get(number).length < tokens.length);
      plan.copies.push(...this.memory.append(short.map(({ number }) => number)));
      plan.runs.push(...sequences.map((sequence) => ({ group, sequence, count: 1 })));
    });
  }

  preempt(group, plan) {
    plan.preempted.push(group.number);
    this.leave(group);
    this.waiting.push(group);
    this.waiting.sort((one, other) => one.number - other.number);
  }

  leave(group) {
    for (const sequence of group.sequences.values()) {
      if (this.memory.tables.has(sequence.number)) this.memory.drop(sequence.number);
      sequence.computed = 0;
    }
    this.running.splice(this.running.indexOf(group), 1);
  }

  /** Takes a step's results: `parents(group)` are the sequences that the next ones continue. Returns
   * the requests that ended. */
  finish(plan, parents, nextToken) {
    for (const { sequence, count } of plan.runs) {
      sequence.computed += count;
      this.memory.commit(sequence.number, sequence.tokens, sequence.computed);
    }
    const sampled = new Set(plan.runs
      .filter(({ sequence }) => sequence.computed === sequence.tokens.length).map(({ group }) => group));
    return [...sampled].filter((group) => this.goOn(group, parents(group), nextToken))
      .map(({ number }) => number);
  }

  goOn(group, parents, nextToken) {
    const before = group.sequences;
    group.sequences = new Map();
    for (const parent of parents) {
      let child = before.get(parent);
      if (group.sequences.has(parent)) {
        child = { ...child, number: this.nextSequence, tokens: [...child.tokens] };
        this.nextSequence += 1;
        this.memory.fork(parent, child.number);
      }
      group.sequences.set(child.number, child);
    }
    for (const parent of before.keys()) {
      if (!group.sequences.has(parent)) this.memory.drop(parent);
    }
    for (const child of [...group.sequences.values()]) child.tokens.push(nextToken());
    const [any] = group.sequences.values();
    if (any.tokens.length < group.request.prompt + group.request.output) return false;
    this.leave(group);
    this.groups.delete(group.number);
    return true;
  }
}

/** Whether it could be done; if not, nothing was. */
function ifRoom(action) {
  try {
    action();
    return true;
  } catch (error) {
    if (error instanceof NoFreeBlocks) return false;
    throw error;
  }
}

const PRIME = 2 ** 31 - 1;
/** Random numbers that Python can draw as well (Park and Miller's generator). */
export function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state * 48271) % PRIME;
    return state;
  };
}

/** Requests as they arrive: `rate` in ten steps on average, prompts and outputs with a long tail. */
export function makeTrace({ rate, prompt, output, prefix }) {
  const random = randomNumbers(20230917);
  const exponential = (mean) => -Math.log(random() / PRIME) * mean;
  const length = (mean, longest) => Math.min(longest, Math.max(1, Math.round(exponential(mean))));
  const trace = [];
  for (let time = 0; ;) {
    time += exponential(10 / rate);
    if (time > STEPS) return trace;
    trace.push({
      number: trace.length, arrival: Math.floor(time), prefix,
      prompt: prefix + length(prompt, LONGEST_PART - prefix), output: length(output, LONGEST_PART),
    });
  }
}

/** Beyond the prefix no token is another request's. */
const promptTokens = ({ number, prompt, prefix }) => Array.from({ length: prompt }, (_, at) =>
  (at < prefix ? at : (number + 1) * 2 ** 20 + at));

/** Slots a sequence fills in the end: its last token is never computed. */
const finalSlots = ({ prompt, output }) => prompt + output - 1;

export function reservedSlots(reservation, { prompt, output }) {
  const longest = 2 * LONGEST_PART;
  if (reservation === "max") return longest;
  const rounded = reservation === "pow2" ? 2 ** Math.ceil(Math.log2(output)) : output;
  return Math.min(prompt + rounded - 1, longest);
}

/** What all slots are used for. */
function usedFor(pieces) {
  const use = { tokens: 0, reserved: 0, internal: 0, rounding: 0, free: SLOTS };
  for (const { tokens, needed, asked, size } of pieces) {
    use.tokens += tokens;
    use.reserved += needed - tokens;
    use.internal += asked - needed;
    use.rounding += size - asked;
    use.free -= size;
  }
  return use;
}

/** A trace on one memory: what each step looks like while it is carried out. */
export function serve(options, system) {
  const trace = makeTrace(options);
  const paged = system === "paged";
  const memory = paged ? new PagedMemory(SLOTS, options.block_size) : new ContiguousMemory(SLOTS);
  const scheduler = new Scheduler(memory);
  const random = randomNumbers(7);
  let token = 2 ** 40;
  const parents = ({ sequences }) => {
    const numbers = [...sequences.keys()];
    if (numbers.length === 1) return Array(options.parallel).fill(numbers[0]);
    if (options.method === "sampling") return numbers;
    return numbers.map(() => numbers[random() % numbers.length]);
  };

  let [arrived, finished, preemptions] = [0, 0, 0];
  return Array.from({ length: STEPS + 1 }, (_, step) => {
    for (; arrived < trace.length && trace[arrived].arrival <= step; arrived += 1) {
      const sequence = scheduler.add(trace[arrived], options.parallel);
      if (!paged) {
        memory.promise(sequence, reservedSlots(options.reservation, trace[arrived]), options.parallel);
      }
    }
    const plan = scheduler.schedule();
    preemptions += plan.preempted.length;
    const counts = new Map(plan.runs.map(({ sequence, count }) => [sequence.number, count]));
    const sequences = scheduler.running.flatMap((group) => [...group.sequences.values()].map(
      ({ number, computed }) => ({ number, request: group.number, final: finalSlots(group.request),
        written: computed + (counts.get(number) ?? 0) })));
    const pieces = memory.pieces(sequences);
    const frame = {
      pieces, use: usedFor(pieces), finished, preemptions, copies: plan.copies,
      preempted: plan.preempted, admitted: plan.admitted,
      running: scheduler.running.map(({ number }) => number),
      waiting: scheduler.waiting.map(({ number }) => number),
      tables: sequences.filter(({ number }) => memory.tables.has(number)).map((sequence) =>
        ({ ...sequence, blocks: [...memory.tables.get(sequence.number).blocks] })),
      referenceCounts: paged ? [...memory.pool.referenceCounts] : [],
      freeList: paged ? [...memory.pool.free] : [],
    };
    finished += scheduler.finish(plan, parents, () => (token += 1)).length;
    return frame;
  });
}

/** Mean share of slots that held a token, up to and with this step. */
export function meanTokens(frames, step) {
  const total = frames.slice(0, step + 1).reduce((sum, { use }) => sum + use.tokens, 0);
  return total / (SLOTS * (step + 1));
}

// ---- the words ----------------------------------------------------------------------------------

const SYSTEMS = { contiguous: "Contiguous", paged: "Paged" };
const KINDS = {
  tokens: "hold a token", reserved: "reserved, used later", internal: "reserved, never used",
  rounding: "rounded up to a power of two", free: "free",
};
const RESERVATION_WORDS = { max: "longest", pow2: "power of 2", oracle: "oracle" };

const requestName = (number) => String(number + 1);
const counted = (count, word) => `${formatInteger(count)} ${word}${count === 1 ? "" : "s"}`;
const list = (numbers) => numbers.toSorted((one, other) => one - other).map(requestName).join(", ");

function sideWords(name, frame) {
  const waiting = frame.waiting.length ? `${frame.waiting.length} wait` : "none waits";
  return `${name} memory: ${counted(frame.running.length, "request")} in it, ${waiting}, ` +
    `${formatPercent(frame.use.tokens / SLOTS)} of the slots hold a token.`;
}

/** What paged memory did in this step that contiguous memory cannot. */
function eventWords({ preempted, copies }) {
  if (preempted.length) {
    const [subject, verb, whose] = preempted.length === 1
      ? ["request", "gives", "its"] : ["requests", "give", "their"];
    return ` Blocks ran out: ${subject} ${list(preempted)} ${verb} back all of ${whose} own, ` +
      "and will be computed again.";
  }
  if (copies.length) {
    return ` ${counted(copies.length, "shared block")} ${copies.length === 1 ? "is" : "are"} copied before a ` +
      "sequence writes into it.";
  }
  return "";
}

function caption(step, frames) {
  const [contiguous, paged] = [frames.contiguous[step], frames.paged[step]];
  if (step === STEPS) {
    const mean = Object.keys(SYSTEMS).map((name) => formatPercent(meanTokens(frames[name], step)));
    return `After ${STEPS} steps contiguous memory has served ${counted(contiguous.finished, "request")} and ` +
      `paged memory ${paged.finished}. On average ${mean[0]} and ${mean[1]} of the slots held a token.`;
  }
  return `${sideWords("Contiguous", contiguous)} ${sideWords("Paged", paged)}${eventWords(paged)}`;
}

function tableWords(name, { blocks, written, final }) {
  if (name === "paged") return `${written} of ${final} tokens → ${blocks.join(" ")}`;
  return `${written} of ${final} tokens → from slot ${blocks[0]}`;
}

// ---- the look -----------------------------------------------------------------------------------

const TONES = 6;
const COLUMNS = 32;
const ROW = 24;
const CSS = `
.bf {
  --mm-tone-0: var(--bf-sram);
  --mm-tone-1: var(--bf-registers);
  --mm-tone-2: var(--bf-hbm);
  --mm-tone-3: color-mix(in oklab, var(--bf-sram), var(--bf-registers));
  --mm-tone-4: color-mix(in oklab, var(--bf-hbm), var(--bf-registers));
  --mm-tone-5: color-mix(in oklab, var(--bf-hbm), var(--bf-sram));
  --mm-later: 30%;
  --mm-idle: color-mix(in srgb, var(--bf-ink) 9%, var(--bf-paper));
}
@container (min-width: 720px) { .bf .mm-controls { grid-template-columns: 1fr 1fr 1fr; } }
.bf .mm-controls [inert] { opacity: .4; }
.bf .mm-step { padding: 12px 16px 0; }
.bf .mm-bar { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 4px 20px; }
@container (max-width: 479.9px) { .bf .mm-bar { grid-template-columns: 1fr; } }
.bf p.mm-caption { margin: 10px 0 12px; min-height: 4.2em; font-size: 15px; }
@container (max-width: 719.9px) { .bf p.mm-caption { min-height: 7em; } }
@container (max-width: 479.9px) { .bf p.mm-caption { font-size: 14px; min-height: 9.8em; } }
.bf .mm-stage { display: grid; gap: 18px 28px; padding: 0 16px 14px; }
@container (min-width: 720px) { .bf .mm-stage { grid-template-columns: 1fr 1fr; } }
.bf .mm-side { min-width: 0; }
.bf .mm-head { display: flex; justify-content: space-between; gap: 8px; font-weight: 650; padding-bottom: 6px; }
.bf .mm-head span { font-weight: 400; }
.bf .mm-side svg { width: 100%; overflow: visible; }
.bf .mm-free { fill: var(--mm-idle); }
.bf .mm-cells { stroke: var(--bf-paper); stroke-width: 1; fill: none; }
${Array.from({ length: TONES }, (_, tone) => `.bf [data-tone="${tone}"] { --mm-tone: var(--mm-tone-${tone}); }`).join("\n")}
.bf .mm-tokens { fill: var(--mm-tone); }
.bf .mm-reserved { fill: color-mix(in srgb, var(--mm-tone) var(--mm-later), var(--bf-paper)); }
.bf .mm-hatch { fill: none; stroke: var(--bf-danger); stroke-width: 1.3; }
.bf .mm-dots { fill: var(--bf-muted); }
.bf .mm-edge { fill: none; stroke: var(--bf-ink); stroke-width: 1; }
.bf .mm-edge.mm-shared { stroke-width: 2.5; }
.bf .mm-label { paint-order: stroke; stroke: var(--bf-paper); stroke-width: 3.5px; stroke-linejoin: round;
  font-size: 11px; font-weight: 650; }
.bf .mm-queue { padding-top: 8px; min-height: calc(2.8em + 8px); font-size: 13px; }
.bf .mm-queue b { font-weight: 650; }
.bf .mm-tables { height: 9.4em; overflow-y: auto; margin-top: 4px; padding: 4px 8px; font-size: 12px;
  border: 1px solid var(--bf-line); border-radius: 6px; }
.bf .mm-tables:focus-visible { outline: 2px solid var(--bf-accent); outline-offset: 2px; }
.bf .mm-tables div { display: grid; grid-template-columns: 3.2em 1fr; gap: 6px; }
.bf .mm-lower { display: grid; gap: 10px 28px; padding: 9px 16px 11px; border-top: 1px solid var(--bf-line); }
@container (min-width: 720px) { .bf .mm-lower { grid-template-columns: 1fr 1fr; } }
.bf .mm-numbers { font-size: 13px; }
.bf .mm-over-time { min-width: 0; }
.bf .mm-over-time > svg { width: 100%; overflow: visible; }
.bf .mm-tick { stroke: var(--bf-line); }
.bf .mm-cursor { stroke: var(--bf-ink); stroke-width: 1.5; }
.bf .mm-line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.bf .mm-line[data-line=contiguous] { stroke: var(--bf-hbm); stroke-dasharray: 5 3; }
.bf .mm-line[data-line=paged] { stroke: var(--bf-sram); }
.bf .mm-row { display: grid; grid-template-columns: minmax(0, 1fr) 6.4rem 6.4rem; gap: 2px 12px; min-height: 23px;
  align-items: center; }
.bf .mm-row > :nth-child(n + 2) { text-align: right; white-space: nowrap; }
@container (max-width: 479.9px) { .bf .mm-row { grid-template-columns: 1fr 5.4rem 5.4rem; } }
.bf .bf-notes p + p { margin-top: 6px; }
`;

// ---- one memory ---------------------------------------------------------------------------------

/** [start, end) cut where the map's rows end. */
function inRows(start, end) {
  const parts = [];
  for (let at = start; at < end; at = parts.at(-1).end) {
    const row = Math.floor(at / COLUMNS);
    parts.push({ row, start: at, end: Math.min(end, (row + 1) * COLUMNS) });
  }
  return parts;
}

/** The map of one memory, who waits for it, and where each sequence is. */
function side(id, name) {
  const svg = svgNode("svg", { height: (SLOTS / COLUMNS) * ROW + 2, "aria-hidden": "true", "data-system": name });
  const patterns = svgNode("defs", {},
    svgNode("pattern", { id: `${id}-${name}-hatch`, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      svgNode("path", { class: "mm-hatch", d: "M-1 7L7 -1M-1 1L1 -1M5 7L7 5" })),
    svgNode("pattern", { id: `${id}-${name}-dots`, width: 5, height: 5, patternUnits: "userSpaceOnUse" },
      svgNode("circle", { class: "mm-dots", cx: 2.5, cy: 2.5, r: 1 })));
  const still = svgNode("g");
  svg.append(patterns, still);
  const about = htmlNode("span", { class: "bf-muted" });
  const queue = htmlNode("p", { class: "mm-queue" });
  const tables = htmlNode("div", { class: "mm-tables", tabindex: 0, role: "group",
    "aria-label": `${SYSTEMS[name]} memory: where each sequence is` });
  const node = htmlNode("div", { class: "mm-side" },
    htmlNode("div", { class: "mm-head" }, SYSTEMS[name], about), svg, queue, tables);

  function draw(frame, options, width) {
    about.textContent = name === "paged" ? `blocks of ${options.block_size}`
      : `reserved: ${RESERVATION_WORDS[options.reservation]}`;
    queue.replaceChildren(htmlNode("b", { text: "Queue: " }),
      frame.waiting.length ? `${frame.waiting.slice(0, 12).map(requestName).join(" ")}` +
        (frame.waiting.length > 12 ? ` and ${frame.waiting.length - 12} more` : "") : "empty");
    tables.replaceChildren(...frame.tables.map((table) => htmlNode("div", { "data-sequence": table.number },
      htmlNode("b", { text: requestName(table.request) }),
      htmlNode("span", { text: tableWords(name, table) }))));
    if (frame.tables.length === 0) tables.textContent = "No sequence is in memory.";
    if (width) drawMap(frame, width);
  }

  function drawMap({ pieces }, width) {
    const cell = width / COLUMNS;
    const x = (slot) => (slot % COLUMNS) * cell;
    const nodes = [svgNode("rect", { class: "mm-free", x: 0, y: 1, width, height: (SLOTS / COLUMNS) * ROW })];
    const fill = (start, end, attributes) => inRows(start, end).forEach((part) =>
      nodes.push(svgNode("rect", { ...attributes, x: x(part.start), y: 1 + part.row * ROW,
        width: (part.end - part.start) * cell, height: ROW })));
    for (const { request, start, size, asked, tokens, needed } of pieces) {
      const tone = { "data-tone": request % TONES };
      fill(start, start + tokens, { class: "mm-tokens", "data-kind": "tokens", ...tone });
      fill(start + tokens, start + needed, { class: "mm-reserved", "data-kind": "reserved", ...tone });
      fill(start + needed, start + asked,
        { "data-kind": "internal", style: `fill: url(#${id}-${name}-hatch)` });
      fill(start + asked, start + size,
        { "data-kind": "rounding", style: `fill: url(#${id}-${name}-dots)` });
    }
    const lines = Array.from({ length: SLOTS }, (_, slot) =>
      `M${(x(slot) + cell).toFixed(2)} ${1 + Math.floor(slot / COLUMNS) * ROW}v${ROW}`);
    const rows = Array.from({ length: SLOTS / COLUMNS - 1 }, (_, row) => `M0 ${1 + (row + 1) * ROW}h${width}`);
    nodes.push(svgNode("path", { class: "mm-cells", d: [...lines, ...rows].join("") }));
    for (const { request, start, size, holders } of pieces) {
      const parts = inRows(start, start + size);
      const edge = parts.map((part) => `M${(x(part.start) + 1).toFixed(2)} ${2 + part.row * ROW}` +
        `h${((part.end - part.start) * cell - 2).toFixed(2)}v${ROW - 2}H${(x(part.start) + 1).toFixed(2)}z`);
      nodes.push(svgNode("path", { class: holders > 1 ? "mm-edge mm-shared" : "mm-edge", d: edge.join("") }));
      const room = (parts[0].end - parts[0].start) * cell;
      const words = [`${requestName(request)} ×${holders}`, requestName(request)]
        .slice(holders > 1 ? 0 : 1).find((text) => 7 * text.length + 3 < room);
      if (words) {
        nodes.push(svgNode("text", { class: "mm-label", x: x(start) + room / 2,
          y: 1 + parts[0].row * ROW + ROW / 2 + 4, "text-anchor": "middle", text: words }));
      }
    }
    still.replaceChildren(...nodes);
  }
  return { node, svg, draw };
}

// ---- the numbers --------------------------------------------------------------------------------

const ROWS = {
  running: "requests in memory", waiting: "requests that wait", finished: "requests served so far",
  preemptions: "pushed out so far", ...KINDS, mean: "hold a token, mean so far",
};

/** What both memories are used for: the picture in numbers. */
function comparison() {
  const cell = (role, text = "") => htmlNode("span", { role, text });
  const head = htmlNode("div", { class: "mm-row bf-muted", role: "row" },
    cell("columnheader", `of ${SLOTS} slots`), ...Object.values(SYSTEMS).map((name) => cell("columnheader", name)));
  const cells = {};
  const rows = Object.entries(ROWS).map(([kind, words]) => {
    cells[kind] = Object.keys(SYSTEMS).map((name) =>
      htmlNode("span", { role: "cell", "data-of": name, "data-name": kind }));
    return htmlNode("div", { class: "mm-row", role: "row" }, cell("rowheader", words), ...cells[kind]);
  });
  const node = htmlNode("div", { class: "mm-numbers", role: "table", "aria-label": "The two memories in numbers" },
    head, ...rows);

  function draw(frames, step) {
    Object.keys(SYSTEMS).forEach((name, column) => {
      const frame = frames[name][step];
      const show = (kind, number, text) => {
        cells[kind][column].textContent = text;
        cells[kind][column].dataset.number = number;
      };
      for (const kind of ["running", "waiting"]) show(kind, frame[kind].length, formatInteger(frame[kind].length));
      for (const kind of ["finished", "preemptions"]) show(kind, frame[kind], formatInteger(frame[kind]));
      for (const kind of Object.keys(KINDS)) {
        show(kind, frame.use[kind], `${frame.use[kind]} (${formatPercent(frame.use[kind] / SLOTS)})`);
      }
      const mean = meanTokens(frames[name], step);
      show("mean", mean, formatPercent(mean));
    });
  }
  return { node, draw };
}

/** The share of slots that hold a token, over all steps. */
function overTime() {
  const [left, right, top, height] = [40, 8, 14, 190];
  const svg = svgNode("svg", { height: top + height + 26, "aria-hidden": "true" });
  const still = svgNode("g");
  const cursor = svgNode("line", { class: "mm-cursor" });
  svg.append(still, cursor);
  const node = htmlNode("div", { class: "mm-over-time" },
    htmlNode("div", { class: "bf-muted", text: "slots that hold a token, over the steps" }), svg,
    htmlNode("div", { "aria-hidden": "true" }, swatches({
      paged: "fill: var(--bf-sram)",
      "contiguous (dashed)": "fill: var(--bf-hbm)",
    })));

  function draw(frames, step, width) {
    const x = (at) => left + ((width - left - right) * at) / STEPS;
    const y = (share) => top + height * (1 - share);
    const nodes = [];
    for (const share of [0, 0.5, 1]) {
      nodes.push(svgNode("line", { class: "mm-tick", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
        svgNode("text", { class: "bf-muted", x: left - 6, y: y(share) + 4, "text-anchor": "end", text: `${100 * share}%` }));
    }
    for (const at of [0, STEPS / 2, STEPS]) {
      const anchor = at === STEPS ? "end" : at ? "middle" : "start";
      nodes.push(svgNode("text", { class: "bf-muted", x: x(at), y: top + height + 18, "text-anchor": anchor, text: at }));
    }
    for (const name of Object.keys(SYSTEMS)) {
      const points = frames[name].map(({ use }, at) => `${x(at).toFixed(2)} ${y(use.tokens / SLOTS).toFixed(2)}`);
      nodes.push(svgNode("path", { class: "mm-line", "data-line": name, d: `M${points.join("L")}` }));
    }
    still.replaceChildren(...nodes);
    setAttributes(cursor, { x1: x(step), x2: x(step), y1: top - 4, y2: top + height + 4 });
  }
  return { node, svg, draw };
}

// ---- the figure ---------------------------------------------------------------------------------

const OPTIONS = ["rate", "prompt", "output", "prefix", "parallel", "method", "block_size", "reservation"];

function figureControls(id, model) {
  const control = (make, key, label, values, show) => make({ id, model, key, label, values, show });
  const named = (names) => (value) => names[value];
  return {
    rate: control(slider, "rate", "Requests in 10 steps", RATES),
    prompt: control(slider, "prompt", "Prompt, mean tokens", PROMPTS),
    output: control(slider, "output", "Output, mean tokens", OUTPUTS),
    block_size: control(choice, "block_size", "Paged: tokens a block", BLOCK_SIZES),
    reservation: control(choice, "reservation", "Contiguous: reserve", RESERVATIONS, named(RESERVATION_WORDS)),
    prefix: control(choice, "prefix", "Prefix that all share", PREFIX_LENGTHS),
    parallel: control(choice, "parallel", "Sequences a request", [1, 2, 4]),
    method: control(choice, "method", "They go on", ["sampling", "beam"],
      named({ sampling: "by themselves", beam: "as beams" })),
  };
}

function keys(id) {
  return swatches({
    "a token (a tone a request, six in turn)": "fill: var(--mm-tone-0)",
    "reserved, used later":
      "fill: color-mix(in srgb, var(--mm-tone-0) var(--mm-later), var(--bf-paper)); stroke: var(--bf-line)",
    "reserved, never used": `fill: url(#${id}-contiguous-hatch); stroke: var(--bf-line)`,
    "rounded up": `fill: url(#${id}-contiguous-dots); stroke: var(--bf-line)`,
    free: "fill: var(--mm-idle)",
    "shared block": "fill: var(--bf-paper); stroke: var(--bf-ink); stroke-width: 2.5",
  });
}

function render({ model, el }) {
  const id = uniqueId("memory-map");
  const root = figureFrame(el, "The memory map", CSS);
  const controls = figureControls(id, model);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const steps = transport({ model, key: "step", last: () => STEPS, interval: () => (calm.matches ? 1200 : 400) });
  const time = slider({ id, model, key: "step", label: "Step",
    values: Array.from({ length: STEPS + 1 }, (_, step) => step), show: (step) => `${step} of ${STEPS}` });
  const says = htmlNode("p", { class: "mm-caption", role: "status" });
  const sides = Object.fromEntries(Object.keys(SYSTEMS).map((name) => [name, side(id, name)]));
  const table = comparison();
  const chart = overTime();
  root.append(
    htmlNode("div", { class: "bf-title" }, htmlNode("strong", { text: "The memory map" }),
      htmlNode("span", { class: "bf-muted", text: `${SLOTS} slots for keys and values, the same requests` })),
    htmlNode("div", { class: "bf-controls mm-controls" }, ...Object.values(controls).map(({ node }) => node)),
    htmlNode("div", { class: "mm-step" }, htmlNode("div", { class: "mm-bar" }, steps.node, time.node), says),
    htmlNode("div", { class: "mm-stage" }, ...Object.values(sides).map(({ node }) => node)),
    htmlNode("div", { class: "mm-lower" }, table.node, chart.node),
    htmlNode("div", { class: "bf-notes bf-muted" }, keys(id), htmlNode("p", { text:
      "A number is a request’s. In every step each sequence in memory computes one token, a newcomer its " +
      "whole prompt. Requests are served in the order in which they came; where paged memory runs out, the " +
      "latest makes room and is computed again. Contiguous memory comes in pieces of a power of two (a " +
      `buddy allocator), of a length that is reserved in advance: the longest, ${2 * LONGEST_PART} tokens; the ` +
      "prompt and the output rounded up to a power of two; or exactly what will be needed, which an oracle " +
      "knows. After Figures 2 and 3 of Kwon et al. (2023)." })),
  );

  let shown = null; // the frames of the present options
  let width = 0;
  function draw() {
    const options = Object.fromEntries(OPTIONS.map((key) => [key, model.get(key)]));
    const name = JSON.stringify(options);
    if (shown?.name !== name) {
      const frames = Object.fromEntries(Object.keys(SYSTEMS).map((each) => [each, serve(options, each)]));
      shown = { name, frames };
    }
    const step = model.get("step");
    [...Object.values(controls), time, steps].forEach(({ refresh }) => refresh());
    controls.method.node.toggleAttribute("inert", options.parallel === 1);
    says.textContent = caption(step, shown.frames);
    table.draw(shown.frames, step);
    Object.entries(sides).forEach(([each, { draw: drawSide }]) =>
      drawSide(shown.frames[each][step], options, width));
    if (width) chart.draw(shown.frames, step, width);
  }

  const events = [...OPTIONS, "step"].map((key) => `change:${key}`);
  events.forEach((event) => model.on(event, draw));
  draw();
  const stopWatching = onWidth(sides.paged.svg, (newWidth) => { width = newWidth; draw(); });
  return () => {
    steps.stop();
    stopWatching();
    events.forEach((event) => model.off(event, draw));
  };
}

export default { render };
