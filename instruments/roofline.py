"""The roofline: the speed that memory bandwidth and arithmetic allow, from ceilings measured here."""

from dataclasses import dataclass

import torch

from instruments.timing import time_interleaved


@dataclass(frozen=True)
class Ceilings:
    """What one GPU reaches on the simplest work.

    Attributes:
        copy_tbs: terabytes a second of a large device-to-device copy, bytes read plus bytes written.
        tflops: dtype name to TFLOP/s of a large square matrix product on random data.
    """

    copy_tbs: float
    tflops: dict[str, float]

    def ridge(self, dtype: str) -> float:
        """Arithmetic intensity, in FLOP a byte, above which arithmetic is the limit."""
        return self.tflops[dtype] / self.copy_tbs

    def attainable_tflops(self, intensity: float, dtype: str) -> float:
        """The roof over a computation of that many FLOP a byte."""
        return min(self.tflops[dtype], intensity * self.copy_tbs)

    def milliseconds(self, flops: float, bytes_moved: float, dtype: str) -> float:
        """The least time for that much work: the slower of arithmetic and memory."""
        return 1e-9 * max(flops / self.tflops[dtype], bytes_moved / self.copy_tbs)


def measure_ceilings(size: int = 8192, copy_bytes: int = 4 * 2**30) -> Ceilings:
    """Measure this GPU: a copy of ``copy_bytes``, and ``size`` x ``size`` products in each dtype.

    The float32 product runs without TF32, as the book's float32 kernels do.

    Raises:
        RuntimeError: there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("ceilings are measured on a CUDA GPU, and there is none here")
    source = torch.randint(256, (copy_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    work = {"copy": lambda: target.copy_(source)}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = torch.randn(2, size, size, device="cuda", dtype=dtype)
        work[str(dtype).removeprefix("torch.")] = lambda a=a, b=b: a @ b
    taken = time_interleaved(work, rounds=9)
    copied = 1e-9 * 2 * copy_bytes / taken.pop("copy").median
    products = {name: 1e-9 * 2 * size**3 / timing.median for name, timing in taken.items()}
    return Ceilings(copy_tbs=copied, tflops=products)


def device_limits() -> dict:
    """What this GPU says of itself: SMs, and the bytes of each level of its memory.

    Raises:
        RuntimeError: there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("a GPU's limits are asked of a CUDA GPU, and there is none here")
    facts = torch.cuda.get_device_properties()
    return {
        "sms": facts.multi_processor_count,
        "register_bytes_per_sm": 4 * facts.regs_per_multiprocessor,
        "shared_bytes_per_sm": facts.shared_memory_per_multiprocessor,
        "l2_bytes": facts.L2_cache_size,
        "hbm_bytes": facts.total_memory,
    }


def load_ceilings(gpu: str | None = None) -> Ceilings:
    """The recorded ceilings of a GPU, as :func:`instruments.records.load` finds them."""
    from instruments import records

    (row,) = records.load("ceilings", gpu).rows
    return Ceilings(row["copy_tbs"], row["tflops"])
