"""Predicted bytes equal counted bytes, buffer by buffer, to the byte."""

import pytest
import torch
import triton
import triton.language as tl
from allpairspy import AllPairs

import kernels
from instruments import io_model, traffic
from kernels import block_sparse, flash1, naive, online_softmax

on_cpu = pytest.mark.skipif(not kernels.INTERPRETED, reason="bytes are counted by the interpreter")


def _count(shape: io_model.AttentionShape, causal: bool = False) -> traffic.Traffic:
    query = torch.randn(shape.batch, shape.heads, shape.seq_query, shape.head_dim)
    key, value = (
        torch.randn(shape.batch, shape.heads, shape.seq_key, shape.head_dim) for _ in range(2)
    )
    dtype = getattr(torch, shape.dtype)
    with traffic.counting() as counted:
        naive.attention(query.to(dtype), key.to(dtype), value.to(dtype), causal=causal)
    return counted


@on_cpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        io_model.AttentionShape(128, 128, 64),
        io_model.AttentionShape(300, 190, 80, "bfloat16", 2, 2),
        io_model.AttentionShape(65, 257, 128, "float32", 1, 3),
        io_model.AttentionShape(1, 1000, 256),
    ],
    ids=str,
)
def test_naive_attention_requests_what_the_model_predicts(shape, causal):
    # Standard attention computes hidden scores too, so the causal mask saves no byte.
    counted = _count(shape, causal)
    assert dict(counted.buffers) == io_model.naive_requested(shape)
    assert counted.total == io_model.total_bytes(io_model.naive_requested(shape))


GRID = [  # N and tiles in all combinations, each with every mask, d and dtype; ragged and unequal shapes
    *(
        (io_model.AttentionShape(n, n, d, dtype), block_m, block_n, causal)
        for (n, block_m, block_n), causal, d, dtype in AllPairs(
            [
                [(n, *tile) for n in (64, 192) for tile in ((16, 16), (64, 32), (32, 128))],
                [False, True],
                [16, 64],
                ["float16", "float32"],
            ]
        )
    ),
    *(
        (*ragged, causal)
        for causal in (False, True)
        for ragged in (
            (io_model.AttentionShape(100, 257, 80, "bfloat16", 2, 2), 32, 64),
            (io_model.AttentionShape(257, 100, 32, "float16", 1, 3), 64, 16),
            (io_model.AttentionShape(1, 300, 64), 16, 64),
        )
    ),
]


def _inputs(shape: io_model.AttentionShape) -> list[torch.Tensor]:
    return [
        torch.randn(shape.batch, shape.heads, n, shape.head_dim).to(getattr(torch, shape.dtype))
        for n in (shape.seq_query, shape.seq_key, shape.seq_key)
    ]


@on_cpu
@pytest.mark.parametrize(("shape", "block_m", "block_n", "causal"), GRID, ids=str)
def test_flash_attention_requests_what_the_model_predicts(shape, block_m, block_n, causal):
    sizes = {"block_m": block_m, "block_n": block_n}
    with traffic.counting() as counted:
        flash1.printed_attention(*_inputs(shape), causal=causal, **sizes)
    assert _nonzero(counted.buffers) == _nonzero(io_model.printed_requested(shape, block_n))
    with traffic.counting() as counted:
        flash1.attention(*_inputs(shape), causal=causal, **sizes)
    predicted = io_model.swapped_requested(shape, block_m, block_n, causal)
    assert dict(counted.buffers) == predicted


def _nonzero(buffers) -> dict:
    """Without the buffers that one round never touches."""
    return {place: entry for place, entry in buffers.items() if entry.loaded or entry.stored}


@on_cpu
@pytest.mark.parametrize(
    "shape", [io_model.AttentionShape(300, 400, 128, "float16", 1, 2)], ids=str
)
def test_the_tuned_tiles_are_predicted_too(shape):
    for function, predicted in (
        (flash1.printed_attention, io_model.printed_requested(shape)),
        (flash1.attention, io_model.swapped_requested(shape)),
    ):
        with traffic.counting() as counted:
            function(*_inputs(shape))
        assert dict(counted.buffers) == predicted


@on_cpu
@pytest.mark.parametrize(
    ("pattern", "block_size", "shape"),
    list(
        AllPairs(
            [
                ["butterfly", "local", "strided", "random", "nothing"],
                [16, 64, 256],
                [
                    io_model.AttentionShape(256, 512, 64),
                    io_model.AttentionShape(300, 190, 128, "bfloat16", 2, 2),
                ],
            ]
        )
    ),
    ids=str,
)
def test_block_sparse_attention_requests_what_the_model_predicts(pattern, shape, block_size):
    rows, columns = -(-shape.seq_query // block_size), -(-shape.seq_key // block_size)
    mask = {
        "butterfly": block_sparse.butterfly_mask(rows, columns),
        "local": block_sparse.local_mask(rows, columns, 1),
        "strided": block_sparse.strided_mask(rows, columns, 3),
        "random": torch.rand(rows, columns) < 0.4,
        "nothing": torch.zeros(rows, columns, dtype=torch.bool),
    }[pattern]
    layout = block_sparse.block_layout(mask, shape.seq_query, shape.seq_key, block_size=block_size)
    with traffic.counting() as counted:
        block_sparse.attention(*_inputs(shape), layout)
    predicted = io_model.block_sparse_requested(shape, mask, block_size)
    assert dict(counted.buffers) == _nonzero(predicted)


@on_cpu
def test_long_rows_read_the_scores_three_times(monkeypatch):
    monkeypatch.setattr(naive, "LONGEST_ROW_IN_REGISTERS", 64)
    shape = io_model.AttentionShape(3, 5000, 16)
    counted = _count(shape)
    assert dict(counted.buffers) == io_model.naive_requested(shape)
    assert (
        counted.buffers["softmax_long_row_kernel", "scores"].loaded
        == 3 * counted.buffers["softmax_long_row_kernel", "probabilities"].stored
    )


def test_requested_equals_compulsory_when_one_tile_holds_everything():
    shape = io_model.AttentionShape(128, 64, 64)
    assert io_model.naive_requested(shape) == io_model.naive_compulsory(shape)


def test_the_subprocess_counts_the_same_and_works_beside_a_gpu():
    shape = io_model.AttentionShape(130, 70, 32, "float16", 1, 2)
    counted = traffic.count(
        "kernels.naive:attention", (1, 2, 130, 32), (1, 2, 70, 32), (1, 2, 70, 32), causal=True
    )
    assert dict(counted.buffers) == io_model.naive_requested(shape)


@on_cpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(3, 1000), (2, 9001), (1, 30001)], ids=str)
@pytest.mark.parametrize("form", ["three_pass", "two_pass", "fused", "split"])
def test_each_softmax_requests_what_the_model_predicts(form, shape, dtype):
    values = torch.randn(shape).to(getattr(torch, dtype))
    with traffic.counting() as counted:
        getattr(online_softmax, f"{form}_softmax")(values)
    predicted = io_model.softmax_requested(form, *shape, dtype)
    # The pipelined form of the fused kernel moves the same bytes under its own name.
    if online_softmax._needs_pipelining(values) and form == "fused":
        predicted = {("pipelined_kernel", buffer): n for (_, buffer), n in predicted.items()}
    assert dict(counted.buffers) == predicted


@pytest.mark.parametrize("function", ["kernels.naive", "os:remove"])
def test_counting_takes_the_books_functions_only(function):
    with pytest.raises(RuntimeError, match="function must be kernels.MODULE:FUNCTION"):
        traffic.count(function, (1, 1))


@triton.jit
def scatter_kernel(source_ptr, target_ptr, length, BLOCK: tl.constexpr):
    """Add each source element into the first target element."""
    offsets = tl.arange(0, BLOCK)
    values = tl.load(source_ptr + offsets, mask=offsets < length, other=0.0)
    tl.atomic_add(target_ptr + offsets * 0, values, mask=offsets < length)


@on_cpu
def test_atomics_count_as_a_load_and_a_store():
    source, target = torch.ones(10), torch.zeros(4)
    with traffic.counting() as counted:
        scatter_kernel[(1,)](source, target, 10, BLOCK=16)
    assert target[0] == 10
    assert counted.rows() == [
        {"kernel": "scatter_kernel", "buffer": "source", "loaded": 40, "stored": 0},
        {"kernel": "scatter_kernel", "buffer": "target", "loaded": 40, "stored": 40},
    ]


@triton.jit
def chosen_kernel(source_ptr, chosen_ptr, target_ptr, BLOCK: tl.constexpr):
    """Copy one block of the source for each program, if its element of a boolean tensor says so."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chosen = (offsets >= 0) & tl.load(chosen_ptr + tl.program_id(0))
    tl.store(target_ptr + offsets, tl.load(source_ptr + offsets, mask=chosen), mask=chosen)


@on_cpu
def test_a_mask_that_was_loaded_hides_what_it_hides():
    source, target = torch.ones(48), torch.zeros(48)
    with traffic.counting() as counted:
        chosen_kernel[(3,)](source, torch.tensor([False, True, False]), target, BLOCK=16)
    assert target.tolist() == 16 * [0.0] + 16 * [1.0] + 16 * [0.0]
    assert counted.buffers["chosen_kernel", "source"].loaded == 64
    assert counted.buffers["chosen_kernel", "target"].stored == 64


@on_cpu
def test_overlapping_tensors_are_refused_and_the_interpreter_restored():
    memory = torch.zeros(20)
    before = triton.runtime.interpreter.InterpreterBuilder.create_masked_load
    with pytest.raises(ValueError, match="source and target of scatter_kernel overlap"):
        with traffic.counting():
            scatter_kernel[(1,)](memory, memory[8:], 10, BLOCK=16)
    assert triton.runtime.interpreter.InterpreterBuilder.create_masked_load is before


def test_an_unknown_dtype_is_named():
    with pytest.raises(ValueError, match="dtype must be one of .* got 'float8'"):
        io_model.AttentionShape(1, 1, 16, "float8")


@pytest.mark.gpu
def test_counting_refuses_compiled_kernels():
    with pytest.raises(RuntimeError, match="this process compiles kernels"), traffic.counting():
        pass
