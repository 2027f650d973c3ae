"""The recording that the specimen page shows: a strided kernel on two views, as in the primer.

python -m tests.site.specimen_trace      writes the page anew
"""

import json
from pathlib import Path

import torch
import triton
import triton.language as tl

from instruments import kernel_trace
from instruments.traffic import Bytes

SPECIMEN = Path(__file__).parent / "specimen" / "book" / "kernel_trace.md"


@triton.jit
def scale_kernel(
    source_ptr,
    target_ptr,
    rows,
    columns,
    row_stride,
    column_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(
        source_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside
    )
    tl.store(target_ptr + row[:, None] * columns + column[None, :], 2 * tile, mask=inside)


def scale(source):
    rows, columns = source.shape
    target = torch.empty(rows, columns)
    grid = (triton.cdiv(rows, 4), triton.cdiv(columns, 8))
    scale_kernel[grid](source, target, rows, columns, *source.stride(), BLOCK_M=4, BLOCK_N=8)


def example():
    matrix = torch.arange(60.0).view(6, 10)
    return {"plain": lambda: scale(matrix), "transposed": lambda: scale(matrix.T)}


def recorded() -> list[dict]:
    """The runs, with the transposed one's formula left out."""
    once = {("scale_kernel", "source"): Bytes(240), ("scale_kernel", "target"): Bytes(stored=240)}
    return kernel_trace.record(example, scale, scale_kernel, predicted={"plain": once})


def main() -> None:
    state = json.dumps({"runs": recorded()}, separators=(",", ":"))
    SPECIMEN.write_text(
        f"# A kernel's loads and stores\n\n```{{book-figure}} KernelTrace\n{state}\n```\n\n"
        "## The roofline\n\n```{book-figure} Roofline\n```\n",
        "utf-8",
    )


if __name__ == "__main__":
    main()
