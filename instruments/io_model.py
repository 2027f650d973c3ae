"""How many bytes attention must move, predicted from the shapes alone.

Two counts for each kernel and buffer, in the form of :class:`instruments.traffic.Bytes`:

* *requested*: what the kernel's tiles ask for, repeats included; equal, to the byte, to what
  :mod:`instruments.traffic` counts;
* *compulsory*: every buffer read or written once, which is what reaches HBM when the caches catch
all
  repeats. The book's roofline uses this one.
"""

from dataclasses import dataclass
from math import ceil

from instruments.traffic import Bytes

BYTES_PER_ELEMENT = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention problem; ``dtype`` is ``"float16"``, ``"bfloat16"`` or ``"float32"``."""

    seq_query: int
    seq_key: int
    head_dim: int
    dtype: str = "float16"
    batch: int = 1
    heads: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in BYTES_PER_ELEMENT:
            accepted = ", ".join(BYTES_PER_ELEMENT)
            raise ValueError(f"dtype must be one of {accepted}, got {self.dtype!r}")

    @property
    def all_heads(self) -> int:
        """Attention problems that are independent: one a head of each sequence."""
        return self.batch * self.heads

    @property
    def element(self) -> int:
        """Bytes an element."""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def rows_bytes(self) -> int:
        """Bytes of Q, or of O."""
        return self.all_heads * self.seq_query * self.head_dim * self.element

    @property
    def keys_bytes(self) -> int:
        """Bytes of K, or of V."""
        return self.all_heads * self.seq_key * self.head_dim * self.element

    @property
    def square_bytes(self) -> int:
        """Bytes of S, or of P."""
        return self.all_heads * self.seq_query * self.seq_key * self.element

    @property
    def flops(self) -> int:
        """Floating-point operations of the two matrix products, a multiply-add counting as two."""
        return 4 * self.all_heads * self.seq_query * self.seq_key * self.head_dim


def naive_requested(shape: AttentionShape) -> dict[tuple[str, str], Bytes]:
    """Bytes that :mod:`kernels.naive` requests, when query and key have the same number of heads."""
    import torch

    from kernels import naive

    dtype = getattr(torch, shape.dtype)
    tiles, _ = naive.scores_blocks(dtype, shape.head_dim)
    softmax, _, _ = naive.softmax_blocks(shape.seq_key)
    output_tiles, _ = naive.output_blocks(dtype, shape.head_dim)
    # A tile of Q is read by every column of programs, a tile of K (or V) by every row of them.
    column_programs = ceil(shape.seq_key / tiles["BLOCK_N"])
    row_programs = ceil(shape.seq_query / tiles["BLOCK_M"])
    output_programs = ceil(shape.seq_query / output_tiles["BLOCK_M"])
    passes = 3 if softmax is naive.softmax_long_row_kernel else 1
    name = softmax.fn.__name__
    return {
        ("scores_kernel", "query"): Bytes(loaded=column_programs * shape.rows_bytes),
        ("scores_kernel", "key"): Bytes(loaded=row_programs * shape.keys_bytes),
        ("scores_kernel", "scores"): Bytes(stored=shape.square_bytes),
        (name, "scores"): Bytes(loaded=passes * shape.square_bytes),
        (name, "probabilities"): Bytes(stored=shape.square_bytes),
        (name, "logsumexp"): Bytes(stored=4 * shape.all_heads * shape.seq_query),
        ("output_kernel", "probabilities"): Bytes(loaded=shape.square_bytes),
        ("output_kernel", "value"): Bytes(loaded=output_programs * shape.keys_bytes),
        ("output_kernel", "output"): Bytes(stored=shape.rows_bytes),
    }


def naive_compulsory(shape: AttentionShape) -> dict[tuple[str, str], Bytes]:
    """Bytes of standard attention when each of its three kernels touches each buffer once."""
    return {
        ("scores_kernel", "query"): Bytes(loaded=shape.rows_bytes),
        ("scores_kernel", "key"): Bytes(loaded=shape.keys_bytes),
        ("scores_kernel", "scores"): Bytes(stored=shape.square_bytes),
        ("softmax_kernel", "scores"): Bytes(loaded=shape.square_bytes),
        ("softmax_kernel", "probabilities"): Bytes(stored=shape.square_bytes),
        ("softmax_kernel", "logsumexp"): Bytes(stored=4 * shape.all_heads * shape.seq_query),
        ("output_kernel", "probabilities"): Bytes(loaded=shape.square_bytes),
        ("output_kernel", "value"): Bytes(loaded=shape.keys_bytes),
        ("output_kernel", "output"): Bytes(stored=shape.rows_bytes),
    }


def printed_requested(
    shape: AttentionShape, block_n: int | None = None
) -> dict[tuple[str, str], Bytes]:
    """Bytes that FlashAttention-1 requests with the keys in its outer loop, as Algorithm 1 prints it.

    A mask saves nothing, and neither does a larger tile of queries: only ``block_n`` counts.
    """
    from kernels import flash1

    block_n = block_n or _tuned(flash1.printed_blocks, shape)["BLOCK_N"]
    rounds = ceil(shape.seq_key / block_n)
    statistics = 4 * shape.all_heads * shape.seq_query
    in_float32 = statistics * shape.head_dim
    kernel = "printed_kernel"
    # In the last round the output and the logsumexp are written in place of the other three.
    again = Bytes(loaded=rounds * statistics, stored=(rounds - 1) * statistics)
    return {
        (kernel, "query"): Bytes(loaded=rounds * shape.rows_bytes),
        (kernel, "key"): Bytes(loaded=shape.keys_bytes),
        (kernel, "value"): Bytes(loaded=shape.keys_bytes),
        (kernel, "accumulator"): Bytes(rounds * in_float32, (rounds - 1) * in_float32),
        (kernel, "running_max"): again,
        (kernel, "running_sum"): again,
        (kernel, "output"): Bytes(stored=shape.rows_bytes),
        (kernel, "logsumexp"): Bytes(stored=statistics),
    }


def swapped_requested(
    shape: AttentionShape,
    block_m: int | None = None,
    block_n: int | None = None,
    causal: bool = False,
) -> dict[tuple[str, str], Bytes]:
    """Bytes that FlashAttention requests with the loops swapped: each tile of queries reads the keys."""
    from kernels import flash1

    tuned = _tuned(flash1.swapped_blocks, shape)
    block_m, block_n = block_m or tuned["BLOCK_M"], block_n or tuned["BLOCK_N"]
    keys = 0
    for start_m in range(0, shape.seq_query, block_m):
        visible = shape.seq_key
        if causal:
            # The tile's last query, padded to a whole tile, sees this many; tiles are loaded whole.
            visible = max(0, min(visible, start_m + block_m + shape.seq_key - shape.seq_query))
        keys += min(shape.seq_key, block_n * ceil(visible / block_n))
    return _row_owner_requested("swapped_kernel", shape, keys)


def block_sparse_requested(
    shape: AttentionShape, block_mask, block_size: int = 128
) -> dict[tuple[str, str], Bytes]:
    """Bytes that block-sparse FlashAttention requests under a mask that all heads share.

    Args:
        block_mask: boolean, ``[rows][columns]`` of blocks; nested lists or an array.
    """
    from kernels import block_sparse

    tiles = _tuned(block_sparse.block_sparse_blocks, shape, block_size)
    rows_a_block = block_size // tiles["BLOCK_M"]
    tiles_a_block = block_size // tiles["BLOCK_N"]
    programs = ceil(shape.seq_query / tiles["BLOCK_M"])
    keys = visited = 0
    for program in range(programs):
        for column, visible in enumerate(block_mask[program // rows_a_block]):
            if visible:
                keys += min(block_size, shape.seq_key - column * block_size)
                visited += tiles_a_block
    kernel = "block_sparse_kernel"
    return _row_owner_requested(kernel, shape, keys) | {
        (kernel, "counts"): Bytes(loaded=4 * shape.all_heads * programs),
        (kernel, "full_counts"): Bytes(loaded=4 * shape.all_heads * programs),
        (kernel, "columns"): Bytes(loaded=4 * shape.all_heads * visited),
    }


def _row_owner_requested(
    kernel: str, shape: AttentionShape, keys: int
) -> dict[tuple[str, str], Bytes]:
    """Bytes of a kernel whose programs own tiles of queries and read ``keys`` keys in all, a head."""
    keys_bytes = shape.all_heads * keys * shape.head_dim * shape.element
    return {
        (kernel, "query"): Bytes(loaded=shape.rows_bytes),
        (kernel, "key"): Bytes(loaded=keys_bytes),
        (kernel, "value"): Bytes(loaded=keys_bytes),
        (kernel, "output"): Bytes(stored=shape.rows_bytes),
        (kernel, "logsumexp"): Bytes(stored=4 * shape.all_heads * shape.seq_query),
    }


def _tuned(blocks, shape: AttentionShape, *more) -> dict:
    """The tile sizes that a launcher chooses on the H200, and in the interpreter."""
    import torch

    from kernels.configurations import SHARED_BYTES

    constants, _ = blocks(getattr(torch, shape.dtype), shape.head_dim, SHARED_BYTES[90], *more)
    return constants


def softmax_requested(form: str, rows: int, columns: int, dtype: str) -> dict:
    """Bytes that a row softmax of :mod:`kernels.online_softmax` requests.

    Args:
        form: ``"three_pass"``, ``"two_pass"``, ``"fused"`` or ``"split"``.
    """
    from kernels import online_softmax

    matrix = rows * columns * BYTES_PER_ELEMENT[dtype]
    read, written = Bytes(loaded=matrix), Bytes(stored=matrix)
    if form == "split":
        splits = ceil(columns / online_softmax.SPLIT)
        # Every program writes one maximum and one sum, and then reads those of its whole row.
        pairs, row_pairs = 4 * rows * splits, 4 * rows * splits * splits
        return {
            ("split_statistics_kernel", "values"): read,
            ("split_statistics_kernel", "split_max"): Bytes(stored=pairs),
            ("split_statistics_kernel", "split_sum"): Bytes(stored=pairs),
            ("split_normalise_kernel", "split_max"): Bytes(loaded=row_pairs),
            ("split_normalise_kernel", "split_sum"): Bytes(loaded=row_pairs),
            ("split_normalise_kernel", "values"): read,
            ("split_normalise_kernel", "probabilities"): written,
        }
    passes = {"three_pass": 3, "two_pass": 2, "fused": 1}[form]
    return {
        (f"{form}_kernel", "values"): Bytes(loaded=passes * matrix),
        (f"{form}_kernel", "probabilities"): written,
    }


def fused_compulsory(shape: AttentionShape) -> int:
    """Bytes of attention whose S and P never leave the chip: Q, K and V read once, O written once."""
    return 2 * shape.rows_bytes + 2 * shape.keys_bytes


def total_bytes(buffers: dict[tuple[str, str], Bytes]) -> int:
    """All bytes, loaded and stored."""
    return sum(entry.loaded + entry.stored for entry in buffers.values())


def naive_memory(shape: AttentionShape) -> int:
    """The most bytes that standard attention holds at once: Q, K, V, S, P and the logsumexp.

    That is while the softmax runs; S is freed before O is allocated.
    """
    inputs = shape.rows_bytes + 2 * shape.keys_bytes
    return inputs + 2 * shape.square_bytes + 4 * shape.all_heads * shape.seq_query
