"""The figure's memories and its scheduler against serving/, operation by operation and step by step."""

import itertools
import math
from random import Random

import pytest

from figures import memory_map
from figures.memory_map import MemoryMap
from serving.allocator import Allocator, NoFreeBlocks
from serving.contiguous import BuddyPool, ContiguousAllocator, reserved_slots
from serving.memory_use import memory_use
from serving.scheduler import Continuation, Scheduler
from serving.sequence import State
from serving.traces import Request

SLOTS = 256
LONGEST = 64

# ---- the allocators, one operation after the other --------------------------------------------------


def random_operations(seed, count=250):
    """Operations that a server could ask for: tokens may be another's, forks and appends meet."""
    random = Random(seed)
    lengths, operations = {}, []
    prompts = [[random.randrange(3) for _ in range(30)] for _ in range(3)]
    for number in range(count):
        kind = random.choice("allocate append append append fork commit free".split())
        known = [*lengths]
        if kind == "allocate" or not known:
            tokens = random.choice(prompts)[: random.randrange(1, 30)]
            lengths[number] = tokens + [random.randrange(3) for _ in range(random.randrange(9))]
            operations.append(["allocate", number, lengths[number], random.choice([0, 0, 2])])
        elif kind == "append":
            operations.append(["append", random.sample(known, random.randrange(1, len(known) + 1))])
        elif kind == "fork":
            operations.append(["fork", random.choice(known), number])
            lengths[number] = None
        elif kind == "commit":
            operations.append(["commit", random.choice(known)])
        else:
            gone = random.choice(known)
            del lengths[gone]
            operations.append(["free", gone])
    return operations


def python_states(operations, block_size):
    """Each operation's outcome, and what memory looks like after it."""
    allocator = Allocator(48 // block_size, block_size=block_size)
    tokens, states = {}, []
    for kind, *arguments in operations:
        outcome = None
        try:
            outcome = carry_out(allocator, tokens, kind, arguments)
        except NoFreeBlocks:
            outcome = "no room"
        except KeyError:  # it was refused before
            outcome = "unknown"
        states.append(
            [
                outcome,
                [[n, t.blocks.copy(), t.length] for n, t in sorted(allocator.tables.items())],
                allocator.gpu.reference_counts.copy(),
                [*allocator.gpu.free],
            ]
        )
    return states


def carry_out(allocator, tokens, kind, arguments):
    if kind == "allocate":
        sequence, own, spare = arguments
        found = allocator.allocate(sequence, own, spare=spare)
        tokens[sequence] = own.copy()
        return found
    if kind == "append":
        (sequences,) = arguments
        copies = allocator.append(sequences)
        for sequence in sequences:
            tokens[sequence].append(sequence)
        return [list(copy) for copy in copies]
    if kind == "fork":
        parent, child = arguments
        allocator.fork(parent, child)
        tokens[child] = tokens[parent].copy()
    elif kind == "commit":
        (sequence,) = arguments
        allocator.commit(sequence, tokens[sequence], allocator.tables[sequence].length)
    else:
        (sequence,) = arguments
        allocator.free(sequence)
    return None


JAVASCRIPT_STATES = """(({ operations, block_size }) => {
  const memory = new figure.PagedMemory(48, block_size);
  const tokens = new Map();
  return operations.map(([kind, ...args]) => {
    let outcome = null;
    const known = { allocate: [], append: args[0], fork: [args[0]], commit: [args[0]],
      free: [args[0]] }[kind];
    try {
      if (known.some((sequence) => !memory.tables.has(sequence))) outcome = "unknown";
      else if (kind === "allocate") {
        outcome = memory.allocate(...args);
        tokens.set(args[0], [...args[1]]);
      } else if (kind === "append") {
        outcome = memory.append(args[0]);
        args[0].forEach((sequence) => tokens.get(sequence).push(sequence));
      } else if (kind === "fork") {
        memory.fork(...args);
        tokens.set(args[1], [...tokens.get(args[0])]);
      } else if (kind === "commit") {
        memory.commit(args[0], tokens.get(args[0]), memory.tables.get(args[0]).length);
      } else memory.drop(args[0]);
    } catch (error) {
      if (error.constructor.name !== "NoFreeBlocks") throw error;
      outcome = "no room";
    }
    const tables = [...memory.tables].sort(([one], [other]) => one - other)
      .map(([number, { blocks, length }]) => [number, [...blocks], length]);
    return [outcome, tables, [...memory.pool.referenceCounts], [...memory.pool.free]];
  });
})"""


@pytest.mark.parametrize("block_size", [1, 4])
def test_after_every_operation_memory_is_pythons(in_node, block_size):
    outcomes = set()
    cases = [{"operations": random_operations(seed), "block_size": block_size} for seed in range(8)]
    answers = in_node("memory_map", f"data.map({JAVASCRIPT_STATES})", cases)
    for case, answer in zip(cases, answers, strict=True):
        expected = python_states(**case)
        for number, (found, wanted) in enumerate(zip(answer, expected, strict=True)):
            assert found == wanted, (number, case["operations"][number])
            outcome = wanted[0]
            outcomes |= {outcome if isinstance(outcome, str) else bool(outcome)}
            if any(count > 2 for count in wanted[2]):
                outcomes.add("shared by three")
    assert outcomes == {"no room", "unknown", True, False, "shared by three"}


@pytest.mark.parametrize("slots", [256, 100])
def test_buddies_are_pythons(in_node, slots):
    random = Random(slots)
    operations = [1 << random.randrange(6) if random.random() < 0.6 else 0 for _ in range(600)]
    picks = [random.randrange(1000) for _ in operations]
    pool, taken, expected = BuddyPool(slots), [], []
    for size, pick in zip(operations, picks, strict=True):
        if size:
            try:
                taken.append([pool.take(size), size])
            except NoFreeBlocks:
                pass
        elif taken:
            pool.release(*taken.pop(pick % len(taken)))
        expected.append([[size, sorted(starts)] for size, starts in pool.free.items()])
    found = in_node(
        "memory_map",
        """((pool, taken) => data.operations.map((size, index) => {
          if (size) { try { taken.push([pool.take(size), size]); } catch { } }
          else if (taken.length) pool.release(...taken.splice(data.picks[index] % taken.length, 1)[0]);
          return [...pool.free].map(([size, starts]) => [size, [...starts].sort((a, b) => a - b)]);
        }))(new figure.BuddyPool(data.slots), [])""",
        {"operations": operations, "picks": picks, "slots": slots},
    )
    assert found == expected


# ---- the whole figure, step by step -----------------------------------------------------------------


def random_numbers(seed):
    """Park and Miller's."""
    while True:
        seed = seed * 48271 % (2**31 - 1)
        yield seed


def make_trace(options):
    """The figure's requests: arrivals, prompts and outputs."""
    draws, time, trace = random_numbers(20230917), 0.0, []

    def exponential(mean):
        return -math.log(next(draws) / (2**31 - 1)) * mean

    def length(mean, longest):
        return min(longest, max(1, math.floor(exponential(mean) + 0.5)))

    while True:
        time += exponential(10 / options["rate"])
        if time > memory_map.STEPS:
            return trace
        prefix = options["prefix"]
        trace.append(
            {
                "number": len(trace),
                "arrival": math.floor(time),
                "prefix": prefix,
                "prompt": prefix + length(options["prompt"], 32 - prefix),
                "output": length(options["output"], 32),
            }
        )


def python_frames(trace, options, system):
    """The figure's steps, by serving's own scheduler."""
    paged = system == "paged"
    if paged:
        memory = Allocator(SLOTS // options["block_size"], block_size=options["block_size"])
    else:
        memory = ContiguousAllocator(SLOTS)
    scheduler = Scheduler(memory, token_budget=10**6, max_sequences=10**6, preemption="recompute")
    draws, tokens = random_numbers(7), itertools.count(1 << 40)
    requests = [Request(t["arrival"], t["prompt"], t["output"], t["prefix"]) for t in trace]
    arrived = finished = preemptions = 0
    frames = []
    for step in range(memory_map.STEPS + 1):
        while arrived < len(requests) and requests[arrived].arrival <= step:
            request = requests[arrived]
            group = scheduler.add(
                request.tokens(arrived),
                max_new_tokens=request.output,
                parallel=options["parallel"],
            )
            if not paged:
                asked = reserved_slots(
                    options["reservation"], request.prompt, request.output, LONGEST
                )
                memory.promise(min(group.sequences), asked, options["parallel"])
            arrived += 1
        plan = scheduler.schedule()
        preemptions += len(plan.preempted)
        written, final = {}, {}
        for number, group in scheduler.groups.items():
            for sequence in group.sequences.values():
                written[sequence.number] = sequence.computed
                final[sequence.number] = requests[number].slots
        for run in plan.runs:
            written[run.sequence] += len(run.tokens)
        use = memory_use(memory, written, final)
        running = scheduler.queues[State.RUNNING]
        frames.append(
            {
                "use": vars(use),
                "finished": finished,
                "preemptions": preemptions,
                "copies": [list(copy) for copy in plan.copies],
                "preempted": plan.preempted,
                "running": [group.number for group in running],
                "waiting": [group.number for group in scheduler.queues[State.WAITING]],
                "tables": [
                    {
                        "number": number,
                        "request": group.number,
                        "final": final[number],
                        "written": written[number],
                        "blocks": memory.tables[number].blocks.copy(),
                    }
                    for group in running
                    for number in group.sequences
                    if number in memory.tables
                ],
                "referenceCounts": memory.gpu.reference_counts.copy() if paged else [],
                "freeList": [*memory.gpu.free] if paged else [],
            }
        )
        results = {}
        for run in plan.runs:
            if run.samples and run.request not in results:
                numbers = [*scheduler.groups[run.request].sequences]
                if len(numbers) == 1:
                    parents = numbers * options["parallel"]
                elif options["method"] == "sampling":
                    parents = numbers
                else:
                    parents = [numbers[next(draws) % len(numbers)] for _ in numbers]
                results[run.request] = [Continuation(parent, next(tokens)) for parent in parents]
        finished += len(scheduler.finish_step(results))
    return frames


CASES = [
    {},
    {"block_size": 1, "reservation": "oracle"},
    {"rate": 16, "output": 24, "block_size": 16, "reservation": "pow2"},
    {"rate": 12, "parallel": 2, "reservation": "oracle", "prefix": 8},
    {"rate": 6, "parallel": 4, "method": "beam", "block_size": 2, "reservation": "pow2"},
    {"rate": 16, "parallel": 4, "method": "beam", "block_size": 8, "output": 24, "prefix": 16},
    {"rate": 1, "prompt": 2, "output": 2},
]


def all_options(options):
    return {name: value for name, value in MemoryMap(**options).state().items() if name != "step"}


def test_every_step_is_serving_itself(in_node):
    cases = [all_options(options) for options in CASES]
    answers = in_node(
        "memory_map",
        """data.map((options) => ({ trace: figure.makeTrace(options),
          contiguous: figure.serve(options, "contiguous"), paged: figure.serve(options, "paged") }))""",
        cases,
    )
    seen = {"preempted": 0, "copies": 0, "waiting": 0, "shared": 0}
    for options, answer in zip(cases, answers, strict=True):
        for system in ("contiguous", "paged"):
            expected = python_frames(answer["trace"], options, system)
            for step, (found, wanted) in enumerate(zip(answer[system], expected, strict=True)):
                assert {name: found[name] for name in wanted} == wanted, (options, system, step)
                seen["preempted"] += len(wanted["preempted"])
                seen["copies"] += len(wanted["copies"])
                seen["waiting"] += len(wanted["waiting"])
                seen["shared"] += any(count > 1 for count in wanted["referenceCounts"])
    assert all(seen.values()), seen


def test_what_is_drawn_is_what_is_counted(in_node):
    """Pieces do not overlap, and their parts add up to the counts."""
    cases = [all_options(options) for options in CASES[1:6]]
    answers = in_node(
        "memory_map",
        "data.flatMap((o) => [figure.serve(o, 'contiguous'), figure.serve(o, 'paged')])",
        cases,
    )
    for frame in itertools.chain(*answers):
        pieces = sorted(frame["pieces"], key=lambda piece: piece["start"])
        ends = [piece["start"] + piece["size"] for piece in pieces]
        assert all(end <= piece["start"] for end, piece in zip(ends, pieces[1:], strict=False))
        assert not ends or ends[-1] <= SLOTS
        for piece in pieces:
            assert 0 <= piece["tokens"] <= piece["needed"] <= piece["asked"] <= piece["size"]
        use = frame["use"]
        assert sum(use.values()) == SLOTS
        assert use["tokens"] == sum(piece["tokens"] for piece in pieces)
        assert use["free"] == SLOTS - sum(piece["size"] for piece in pieces)
        for piece in pieces:
            if frame["referenceCounts"]:
                block = piece["start"] // piece["size"]
                assert piece["holders"] == frame["referenceCounts"][block]


def test_traces_have_the_rate_and_the_lengths(in_node):
    traces = in_node(
        "memory_map",
        "data.map((options) => figure.makeTrace(options))",
        [all_options({"rate": rate, "prefix": 4}) for rate in memory_map.RATES],
    )
    for rate, trace in zip(memory_map.RATES, traces, strict=True):
        assert trace == make_trace(all_options({"rate": rate, "prefix": 4}))
        expected = rate * memory_map.STEPS / 10
        assert abs(len(trace) - expected) < 4 * expected**0.5
        assert [each["number"] for each in trace] == list(range(len(trace)))
        assert all(5 <= each["prompt"] <= 32 and 1 <= each["output"] <= 32 for each in trace)
    prompts = [each["prompt"] - 4 for each in traces[-1]]
    assert sum(prompts) / len(prompts) == pytest.approx(8, rel=4 / len(prompts) ** 0.5)


def test_the_mean_share_of_tokens(in_node):
    options = all_options({"rate": 8})
    mean, frames = in_node(
        "memory_map",
        "((frames) => [figure.meanTokens(frames, 40), frames])(figure.serve(data, 'paged'))",
        options,
    )
    assert mean == pytest.approx(sum(f["use"]["tokens"] for f in frames[:41]) / 41 / SLOTS)


def test_the_values_it_offers_are_the_ones_it_takes(in_node):
    offered = in_node(
        "memory_map",
        "[figure.RATES, figure.PROMPTS, figure.OUTPUTS, figure.PREFIX_LENGTHS, figure.BLOCK_SIZES,"
        " figure.RESERVATIONS, figure.STEPS]",
    )
    traits = MemoryMap.class_traits()
    names = ("rate", "prompt", "output", "prefix", "block_size", "reservation")
    assert offered == [*(traits[name].values for name in names), traits["step"].max]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 5}, "rate.*1, 2.*5"),
        ({"block_size": 3}, "block_size.*1, 2.*3"),
        ({"reservation": "some"}, "reservation.*max.*some"),
        ({"method": "greedy"}, "method.*sampling.*greedy"),
        ({"step": 121}, "step.*120.*121"),
        ({"window": 4}, "no option 'window'.*block_size"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_sentence(options, words):
    with pytest.raises(Exception, match=words) as caught:
        MemoryMap(**options)
    assert "\n" not in str(caught.value)
