"""Measure what this GPU reaches on the simplest work, a copy and large matrix products, and note its
limits.

python -m benchmarks.ceilings
"""

from dataclasses import asdict

from instruments import records
from instruments.roofline import device_limits, measure_ceilings


def main() -> None:
    """Measure, print and record."""
    ceilings = measure_ceilings()
    print(f"copy {ceilings.copy_tbs:.2f} TB/s", flush=True)
    for dtype, tflops in ceilings.tflops.items():
        print(f"{dtype} product {tflops:.0f} TFLOP/s", flush=True)
    for experiment, row in {"ceilings": asdict(ceilings), "device": device_limits()}.items():
        print("recorded in", records.save(experiment, [row]).relative_to(records.ROOT))


if __name__ == "__main__":
    main()
