"""What the compiler made of a kernel, with no GPU: registers, spills, shared memory, tensor cores.

    python -m instruments.compile_report kernels.naive --arch 90          a table
    python -m instruments.compile_report kernels.naive --arch 80 90 --json

A kernel module declares the forms it ships in ``configurations()``; each is compiled by Triton's
own compiler for the architecture asked for, and the machine code is read with the tools Triton
brings.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Matrix instructions by name in the machine code: HMMA (Ampere, Ada, GeForce Blackwell), HGMMA and
# QGMMA (Hopper), UTC...MMA (data-centre Blackwell).
_TENSOR_CORE = re.compile(r"\b(?:[HQIDO]G?MMA|UTC\w*MMA)\b")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def report(module: str, architectures: tuple[int, ...] = (90,)) -> list[dict]:
    """Compile every configuration of a module for each architecture, in a process of its own.

    A separate process, because compiling needs Triton's compiler even where this process runs
    kernels through the CPU interpreter.

    Returns:
        One row a form: ``kernel``, ``configuration``, ``arch``, ``registers`` a thread,
        ``spill_bytes`` (stores and loads), ``shared_bytes``, ``tensor_core_instructions``.
    """
    command = [sys.executable, "-m", "instruments.compile_report", module, "--json", "--arch"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, *map(str, architectures)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"compiling {module} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def compile_configuration(configuration, arch: int):
    """Triton's compiled kernel for one declared configuration and one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(configuration.kernel.arg_names):
        if name in configuration.constants:
            signature[name] = "constexpr"
            constants[(position,)] = configuration.constants[name]
            continue
        kind = configuration.arguments[name]
        if isinstance(kind, tuple):
            signature[name] = tuple("constexpr" if k == "unit" else k for k in kind)
            for index, k in enumerate(kind):
                if k == "unit":
                    constants[(position, index)] = 1
                else:
                    attributes[(position, index)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr" if kind == "unit" else kind.removesuffix("x16")
            if kind == "unit":
                constants[(position,)] = 1
            elif kind.startswith("*") or kind.endswith("x16"):
                attributes[(position,)] = [["tt.divisibility", 16]]
    language = GluonASTSource if configuration.kernel.is_gluon() else ASTSource
    source = language(configuration.kernel, signature, constants, attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options=dict(configuration.options)
    )


def inspect_compiled(compiled) -> dict:
    """Registers, spills, shared memory and tensor-core instructions of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        registers, stack = map(
            int, _RESOURCES.search(_run("cuobjdump", "-res-usage", cubin)).groups()
        )
        machine_code = _run("cuobjdump", "-sass", cubin)
        # What is spilled lies on the stack; how much it is only the assembler says.
        spill_bytes = _spilled(compiled.asm["ptx"], ptx, Path(folder, "out")) if stack else 0
    return {
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_bytes": compiled.metadata.shared,
        "tensor_core_instructions": len(_TENSOR_CORE.findall(machine_code)),
    }


def _spilled(text: str, ptx: Path, out: Path) -> int:
    """Bytes of spill stores and loads, from assembling once more."""
    target = re.search(r"\.target (sm_\w+)", text)[1]
    blackwell = int(re.search(r"\d+", target)[0]) >= 100
    assembler = "ptxas-blackwell" if blackwell else "ptxas"
    stores, loads = _SPILLS.search(
        _run(assembler, "-v", f"-arch={target}", ptx, "-o", out)
    ).groups()
    return int(stores) + int(loads)


def _run(tool: str, *arguments) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr


def _report_here(module: str, architectures: list[int]) -> list[dict]:
    configurations = getattr(importlib.import_module(module), "configurations", None)
    if configurations is None:
        raise SystemExit(f"{module} declares no configurations(), so there is nothing to compile")
    return [
        {
            "kernel": configuration.kernel.__name__,
            "configuration": configuration.label,
            "arch": arch,
            **inspect_compiled(compile_configuration(configuration, arch)),
        }
        for arch in architectures
        for configuration in configurations()
        if arch in configuration.architectures
    ]


def table(rows: list[dict]) -> str:
    """The report as text, one aligned line a form."""
    heads = list(rows[0]) if rows else []
    cells = [[head.replace("_", " ") for head in heads]]
    cells += [[str(row[head]) for head in heads] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    align = [str.ljust if isinstance(rows[0][head], str) else str.rjust for head in heads]
    return "\n".join(
        "  ".join(fit(cell, width) for fit, cell, width in zip(align, line, widths, strict=True))
        for line in cells
    )


def main() -> None:
    """Command line."""
    # Before Triton is imported: its interpreter cannot compile.
    os.environ["TRITON_INTERPRET"] = "0"
    from kernels.configurations import ARCHITECTURES

    parser = argparse.ArgumentParser(description="Compile a kernel module's forms with no GPU.")
    parser.add_argument("module", help="such as kernels.naive")
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=[90],
        choices=ARCHITECTURES,
        help="compute capabilities, such as 80 90 (default 90)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list and no table")
    arguments = parser.parse_args()
    if not arguments.module.startswith("kernels."):
        parser.error(f"module must be one of the book's, kernels.NAME; got {arguments.module}")
    rows = _report_here(arguments.module, arguments.arch)
    print(json.dumps(rows, indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
