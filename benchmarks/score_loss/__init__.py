"""The fused loss against what else computes it: time, and peak memory beyond the inputs, of one forward and backward.

    python -m benchmarks score_loss time --shape gemma-3-270m --tokens 256 1024 --dtype float32 bfloat16 --rounds 3
    python -m benchmarks score_loss peak-all --shape gemma-3-270m --tokens 64 256 1024 4096
    python -m benchmarks score_loss report         # score_loss_tables.md and score_loss.png from score_loss.json
    python -m benchmarks score_loss check          # the largest relative differences from plain torch
    python -m benchmarks score_loss peak --shape tiny --tokens 64 --contender naive         # one measurement

The loss is sum_n [-pg_n * log p_n(y_n) + 0.1 * KL(p_n || q_n)] with a frozen head: its gradient reaches the hidden
states alone. The coefficient of KL is one number because Unsloth's divergence has but one. Before anything is timed,
every contender's loss and gradient are compared with plain torch (impl="reference") in float32; one that computes
something else is not timed. Exempt are those that cannot compute this loss, and say so in their names: Liger's GRPO
loss (estimates KL by k3, has no soft cap) and cut-cross-entropy (one model's cross-entropy, and in 16 bits only on
CUDA), which has `scorefast chunked (CE only)` to be compared with. TRL's kernels are written in Triton: on a CPU they
are checked in Triton's interpreter, but not timed. A floor is the three matmuls alone: in the inputs' dtype, and in
float32, which is the faster one on a CPU that only emulates 16 bits.

`time` runs the contenders in turns, round by round, in one process, so that noise hits all alike; ratios are medians
over rounds of two times of the same round. `peak-all` gives every measurement a process of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, argument_parser
from benchmarks.score_loss.contenders import CONTENDERS, FLOORS, SHAPES, impossible, make_inputs
from benchmarks.score_loss.measure import check, differs, in_process, limit_memory, peak_bytes, time_contenders
from benchmarks.score_loss.report import environment, report, save


def time_all(given: argparse.Namespace, names: list[str], reasons: dict[str, str]) -> None:
    """Check the contenders, then time them at every size and dtype. The yardsticks they are compared with join in."""
    device, where = given.device, environment(given.device)
    compared_with = {"scorefast chunked (CE only)" if CONTENDERS[n].ce else "scorefast chunked" for n in names}
    names = [n for n in CONTENDERS if n in compared_with.union(names)]
    equality = check(names, device)
    print(json.dumps(equality, indent=1), flush=True)
    reasons |= {name: why for name in names if name not in reasons and (why := differs(name, equality))}
    limit_memory(device)
    for dtype in given.dtype:
        for tokens in given.tokens:
            x = make_inputs(SHAPES[given.shape], tokens, getattr(torch, dtype), device)
            new = time_contenders(x, names, given.rounds, reasons)
            key = key_of(given, where, dtype, tokens)
            save(given.out, key, {name: fields | where for name, fields in new.items()}, equality)
            for name, fields in new.items():
                print(tokens, dtype, name, {k: v for k, v in fields.items() if v is not None}, flush=True)


def peak_all(given: argparse.Namespace, names: list[str], reasons: dict[str, str]) -> None:
    """The peak of every contender at every size and dtype, each in a process of its own."""
    where = environment(given.device)
    for dtype in given.dtype:
        for tokens in given.tokens:
            for name in (n for n in names if n not in FLOORS):
                words = ["peak", "--shape", given.shape, "--tokens", str(tokens), "--dtype", dtype]
                words += ["--device", given.device, "--contender", name]
                # glibc gives back what is freed, instead of keeping it for the process's next request
                answer = in_process(words, {"MALLOC_MMAP_THRESHOLD_": "131072"}) if name not in reasons else {}
                why = reasons.get(name, answer.get("reason"))
                fields = {"peak_bytes": answer.get("peak_bytes"), "peak_reason": why}
                save(given.out, key_of(given, where, dtype, tokens), {name: fields | where}, {})
                print(tokens, dtype, name, fields, flush=True)


def key_of(given: argparse.Namespace, where: dict[str, Any], dtype: str, tokens: int) -> dict[str, Any]:
    """What a row of the results is found by, beside its contender."""
    device = where["machine"] if given.device == "cuda" else "cpu"
    return {"device": device, "shape": given.shape, "dtype": dtype, "tokens": tokens}


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run one action."""
    parser = argument_parser("benchmarks score_loss", __doc__)
    parser.add_argument("action", choices=["time", "peak", "peak-all", "check", "report"])
    parser.add_argument("--shape", choices=SHAPES, default="gemma-3-270m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", "--contender", nargs="+", choices=CONTENDERS, help="default: all that can run")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of score_loss.json")
    given = parser.parse_args(argv)
    everybody = [n for n in CONTENDERS if given.device == "cuda" or not n.startswith("scorefast triton")]
    names: list[str] = given.contenders or everybody
    if given.action == "report":
        report(given.out, given.shape, given.dtype[0])
    elif given.action == "check":
        print(json.dumps(check(names, given.device)))
    elif given.action == "peak":
        limit_memory(given.device)
        x = make_inputs(SHAPES[given.shape], given.tokens[0], getattr(torch, given.dtype[0]), given.device)
        print(json.dumps({"peak_bytes": peak_bytes(names[0], x)}))
    else:
        reasons = {name: why for name in names if (why := impossible(name, given.device))}
        {"time": time_all, "peak-all": peak_all}[given.action](given, names, reasons)
