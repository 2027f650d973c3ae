"""One measured sentence a chapter, read from the records: what the front page says of it.

Each function takes ``load``, which returns the record of a name, and raises what ``load`` raises: of
a chapter whose record is missing, nothing is said.
"""

from statistics import fmean, median

from instruments.claims import (
    Load,
    fp8_per_tensor,
    gpt2_traffic,
    passes_over_a_row,
    served_over_max,
    served_over_oracle,
)


def gpu_and_triton(load: Load) -> str:
    """What a byte costs beside an operation."""
    row = load("ceilings").rows[0]
    multiplied, copied = row["tflops"]["float16"], row["copy_tbs"]
    return (
        f"Float16 products run at {multiplied:.0f} TFLOP/s and copies at {copied:.1f} TB/s: "
        f"{multiplied / copied:.0f} operations in the time of one byte."
    )


def naive_attention(load: Load) -> str:
    """Bytes moved, over those of the four tensors that attention is about."""
    record = load("naive_dram")
    longest = max(row["n"] for row in record.rows)
    rows = record.where(n=longest)
    moved = sum(row["read_bytes"] + row["written_bytes"] for row in rows)
    shape = rows[0]
    tensors = 4 * 2 * shape["batch"] * shape["heads"] * longest * shape["d"]
    return (
        f"At {grouped(longest)} tokens, three kernels move {moved / tensors:.0f} times the bytes of "
        f"$Q$, $K$, $V$ and $O$ together: {moved * 1e-9:.1f} GB."
    )


def online_softmax(load: Load) -> str:
    """The row softmax that reads its row once less."""
    shown = passes_over_a_row(load).shown
    return f"A softmax with two passes over its row has {shown} the speed of one with three."


def tiling(load: Load) -> str:
    """The paper's traffic experiment."""
    shown = gpt2_traffic(load).shown
    return f"GPT-2 medium's attention, forward, moves fewer bytes to and from HBM: {shown}."


def io_analysis(load: Load) -> str:
    """What a mask of one block in eight gains at the longest sequence."""
    record = load("block_sparse")
    longest = max(row["n"] for row in record.rows)
    ratios = [row["dense_ratio"] for row in record.where(n=longest, fraction=1 / 8)]
    return (
        f"At {grouped(longest)} tokens, a mask that keeps one block in eight makes attention "
        f"{fmean(ratios):.1f} times as fast."
    )


def work_partitioning(load: Load) -> str:
    """The forward pass beside two in CUDA."""
    return _beside(load, "flash2", {"fa2": "FlashAttention-2's", "cudnn": "cuDNN's"})


def warp_specialization(load: Load) -> str:
    """The same, on Hopper."""
    return _beside(load, "flash3", {"fa3": "FlashAttention-3's", "cudnn": "cuDNN's"})


def fp8(load: Load) -> str:
    """The same with eight bits; the peer is given inputs that are already quantized. And the error."""
    peers = {"fa3_fp8": "FlashAttention-3's on inputs already in FP8"}
    return (
        _beside(load, "fp8", peers, "Quantizing included, the")
        + f" With outliers, one scale a tensor has {fp8_per_tensor(load).value:.1f} times the error."
    )


def _beside(load: Load, kernel: str, peers: dict[str, str], article: str = "The") -> str:
    rows = load(kernel).where(kernel=kernel)
    ratios = {peer: median(row["speedup"][peer] for row in rows) for peer in peers}
    shown = " and ".join(f"{ratios[peer]:.2f} times {whose}" for peer, whose in peers.items())
    best = max(row["tflops"] for row in rows)
    return (
        f"{article} forward pass reaches {best:.0f} TFLOP/s; its speed is {shown}, "
        f"the middle of {len(rows)} problems."
    )


def paged_memory(load: Load) -> str:
    """What a server gains by pages, and what the block table costs in decoding."""
    rows = load("paged_decode").where(kernel="paged")
    over_contiguous = median(row["speedup"]["contiguous"] for row in rows)
    return (
        f"With pages a server takes {served_over_max(load).value:.1f} times the requests, at the same "
        f"latency, of one that reserves the longest sequence, and {served_over_oracle(load).value:.1f} "
        f"times those of one that knows all lengths (simulated clock). Decoding through block tables "
        f"has {over_contiguous:.2f} times the speed of contiguous memory, the middle of {len(rows)} "
        "problems."
    )


def grouped(number: int) -> str:
    """Thousands apart, as the claims have them."""
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}") if number >= 10_000 else str(number)


HEADLINES = {
    function.__name__: function
    for function in (
        gpu_and_triton,
        naive_attention,
        online_softmax,
        tiling,
        io_analysis,
        work_partitioning,
        warp_specialization,
        fp8,
        paged_memory,
    )
}
"""By the chapter's name without its number."""
