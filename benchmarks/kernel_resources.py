"""Registers, shared memory and spills of the triton kernels, compiled for GPUs that need not be here.

    python -m benchmarks kernel_resources     # benchmarks/results/kernels.md

Per kernel, architecture, dtype and alignment of V and D, with the tile chosen for it and everything switched on
(reference, soft cap, stored gradient; where V or D is odd a bias, too). A stack above 0 would be registers spilt to
memory. Nothing is timed: it takes a GPU to do that.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.common import RESULTS, argument_parser, markdown_table, write_page
from scorefast.kernels import triton as kernels

TABLE = RESULTS / "kernels.md"
HEADS = (
    *("GPU", "dtype", "multiples of 16", "kernel", "tile", "warps", "stages"),
    *("registers", "shared, KB", "stack, bytes"),
)
# Shared memory that one block may have, bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
WARPS = 4  # Triton's default


@dataclass(frozen=True)
class Resources:
    kernel: str
    sm: int
    dtype: str
    aligned: str
    tile: str
    warps: int
    stages: int
    registers: int
    shared: int
    stack: int


def all_resources(sm: int) -> Iterator[Resources]:
    """Everything switched on; then, in bf16, heads whose sizes no vector load can take."""
    for dtype in DTYPES:
        yield from _kernels(sm, dtype, ("V", "D"))
    yield from _kernels(sm, torch.bfloat16, ("D",))
    yield from _kernels(sm, torch.bfloat16, ())


def _kernels(sm: int, dtype: torch.dtype, aligned: tuple[str, ...]) -> Iterator[Resources]:
    depth = 16 if "D" in aligned else 1
    tile = kernels.tile_for((sm // 10, sm % 10), dtype, depth)
    compiled = partial(_compile, sm=sm, dtype=DTYPES[dtype], aligned=aligned)
    sizes = {"ROWS": tile.rows, "VOCABULARY": tile.vocabulary, "DEPTH": tile.depth, "WIDEN": False}
    odd = len(aligned) < 2
    switches = {"WITH_REF": True, "WITH_BIAS": odd, "CAPPED": True, "STORE": True, "EVEN_DEPTH": not odd}
    shape = f"{tile.rows} x {tile.vocabulary} x {tile.depth}"
    yield compiled(kernels._sweep, shape, sizes | switches, tile.warps, tile.stages)
    grouped = {"WITH_REF": True, "GROUP": kernels.DZ_COLUMNS // tile.vocabulary, "VOCABULARY": tile.vocabulary}
    yield compiled(kernels._dz, f"1 x {kernels.DZ_COLUMNS}", grouped, WARPS, 3)
    wide = kernels.skip_depth(dtype, depth)
    skipping = {"ROWS": kernels.SKIP_ROWS, "VOCABULARY": tile.vocabulary, "DEPTH": wide, "WIDEN": False}
    shape = f"{kernels.SKIP_ROWS} x {wide} x {tile.vocabulary}"
    yield compiled(kernels._skipping_matmul, shape, skipping, kernels.SKIP_WARPS, kernels.SKIP_STAGES)


def _compile(
    kernel: Any,
    tile: str,
    constants: dict[str, Any],
    warps: int,
    stages: int,
    *,
    sm: int,
    dtype: str,
    aligned: tuple[str, ...],
) -> Resources:
    types = {"inverse": "fp32", "scale": "fp32", "y_ptr": "*i64", "order_ptr": "*i64", "kept_ptr": "*i64"}
    types |= dict.fromkeys(("parts_ptr", "of_target_ptr", "per_row_ptr", "out_ptr"), "*fp32")
    signature = {}
    for name in kernel.arg_names:
        default = f"*{dtype}" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
    # What Triton finds at a launch: pointers of torch, and Gemma's V and D, are multiples of 16.
    multiples = [i for i, n in enumerate(kernel.arg_names) if n.endswith("_ptr") or n in aligned]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in multiples},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a default that changes in Triton 3.10
        options = {"num_warps": warps, "num_stages": stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    name, sizes = kernel.__name__, ", ".join(aligned) or "none"
    return Resources(
        name, sm, dtype, sizes, tile, warps, stages, usage["REG"], compiled.metadata.shared, usage["STACK"]
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", printed)}


def row(r: Resources) -> str:
    """The line of the table."""
    cells = [f"sm_{r.sm}", r.dtype, r.aligned, f"`{r.kernel}`", r.tile, r.warps, r.stages, r.registers]
    cells += [f"{r.shared / 1024:.0f} of {SHARED_LIMIT[r.sm] // 1024}", r.stack]
    return markdown_table(HEADS, [cells])[-1]


def main(argv: Sequence[str]) -> None:
    """Parse the flags, compile everything and write the page."""
    parser = argument_parser("benchmarks kernel_resources", __doc__)
    parser.add_argument("--sm", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of kernels.md")
    given = parser.parse_args(argv)
    lines = [
        "# The triton kernels as compiled",
        "",
        f"Written by `python -m benchmarks kernel_resources`, triton {triton.__version__}, without a GPU. A stack of 0",
        "says that no register was spilt to memory.",
        "",
        *markdown_table(HEADS, []),
        *(row(r) for sm in given.sm for r in all_resources(sm)),
    ]
    write_page(given.out / TABLE.name, lines)
    print("\n".join(lines))
