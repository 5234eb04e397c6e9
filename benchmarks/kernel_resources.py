"""Registers, shared memory and spills of the triton kernels, compiled for GPUs that need not be here.

python benchmarks/kernel_resources.py        # writes benchmarks/results/kernels.md

Per kernel, architecture and dtype, with the tile chosen for it and everything switched on (reference, soft cap,
stored gradient). A stack above 0 would be registers spilt to memory. Nothing is timed: it takes a GPU to do that.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scorefast.kernels import triton as kernels

TABLE = Path(__file__).parent / "results" / "kernels.md"
# Shared memory that one block may have, bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
WARPS = 4  # Triton's default


@dataclass(frozen=True)
class Resources:
    kernel: str
    sm: int
    dtype: str
    tile: str
    warps: int
    stages: int
    registers: int
    shared: int
    stack: int


def all_resources(sm: int) -> Iterator[Resources]:
    for dtype, name in DTYPES.items():
        tile = kernels.tile_for((sm // 10, sm % 10), dtype)
        sizes = {"ROWS": tile.rows, "VOCABULARY": tile.vocabulary, "DEPTH": tile.depth, "WIDEN": False}
        switches = {"WITH_REF": True, "WITH_BIAS": False, "CAPPED": True, "STORE": True, "EVEN_DEPTH": True}
        shape = f"{tile.rows} x {tile.vocabulary} x {tile.depth}"
        yield _compile(kernels._sweep, sm, name, shape, sizes | switches, tile.warps, tile.stages)
        group = kernels.DZ_COLUMNS // tile.vocabulary
        grouped = {"WITH_REF": True, "GROUP": group, "VOCABULARY": tile.vocabulary}
        yield _compile(kernels._dz, sm, name, f"1 x {kernels.DZ_COLUMNS}", grouped, WARPS, 3)
        skipping = {"ROWS": kernels.SKIP_ROWS, "VOCABULARY": tile.vocabulary, "DEPTH": kernels.skip_depth(dtype)}
        shape = f"{kernels.SKIP_ROWS} x {kernels.skip_depth(dtype)} x {tile.vocabulary}"
        options = kernels.SKIP_WARPS, kernels.SKIP_STAGES
        yield _compile(kernels._skipping_matmul, sm, name, shape, skipping | {"WIDEN": False}, *options)


def _compile(
    kernel: Any, sm: int, dtype: str, tile: str, constants: dict[str, Any], warps: int, stages: int
) -> Resources:
    types = {"inverse": "fp32", "scale": "fp32", "y_ptr": "*i64", "order_ptr": "*i64", "kept_ptr": "*i64"}
    types |= dict.fromkeys(("parts_ptr", "of_target_ptr", "per_row_ptr", "out_ptr"), "*fp32")
    signature = {}
    for name in kernel.arg_names:
        default = f"*{dtype}" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
    # What Triton assumes of the arguments at a launch: pointers of torch, and Gemma's V and D, are multiples of 16.
    aligned = [i for i, n in enumerate(kernel.arg_names) if n.endswith("_ptr") or n in ("V", "D")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a default that changes in Triton 3.10
        options = {"num_warps": warps, "num_stages": stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    name = kernel.__name__
    return Resources(name, sm, dtype, tile, warps, stages, usage["REG"], compiled.metadata.shared, usage["STACK"])


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", printed)}


def row(r: Resources) -> str:
    cells = [f"sm_{r.sm}", r.dtype, f"`{r.kernel}`", r.tile, r.warps, r.stages, r.registers]
    cells += [f"{r.shared / 1024:.0f} of {SHARED_LIMIT[r.sm] // 1024}", r.stack]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    rows = [row(r) for sm in SHARED_LIMIT for r in all_resources(sm)]
    lines = [
        "# The triton kernels as compiled",
        "",
        f"Written by `python benchmarks/kernel_resources.py`, triton {triton.__version__}, without a GPU. A stack of 0",
        "says that no register was spilt to memory.",
        "",
        "| architecture | dtype | kernel | tile | warps | stages | registers | shared memory, KB | stack, bytes |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
