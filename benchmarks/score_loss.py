"""The fused loss against what else computes it: time, and peak memory beyond the inputs, of one forward and backward.

    python benchmarks/score_loss.py time --shape gemma-3-270m --tokens 256 1024 --dtype float32 bfloat16 --rounds 3
    python benchmarks/score_loss.py peak-all --shape gemma-3-270m --tokens 64 256 1024 4096
    python benchmarks/score_loss.py report         # score_loss_tables.md and score_loss.png from score_loss.json
    python benchmarks/score_loss.py check          # the largest relative differences from plain torch
    python benchmarks/score_loss.py peak --shape tiny --tokens 64 --contender naive         # one measurement

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
import importlib.metadata
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefast.kernels import score_loss

RESULTS = Path(__file__).parent / "results"
KL_COEF = 0.1
WARM_UP = 16  # tokens of the untimed run on a CPU
FLOOR_ROWS = {"cpu": 256, "cuda": 2048}  # of logits at a time
PACKAGES = ("torch", "triton", "trl", "unsloth_zoo", "liger-kernel", "cut-cross-entropy")
MIB = 1 << 20
Run = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Shape:
    """An output head: V, D and the final-logit soft cap."""

    vocabulary: int
    width: int
    softcap: float | None


SHAPES = {
    "gemma-2-2b": Shape(256000, 2304, 30.0),
    "gemma-3-270m": Shape(262144, 640, None),
    "smollm2": Shape(49152, 576, None),
    "tiny": Shape(4099, 64, 30.0),
}
CHECKED = Shape(4099, 64, 3.0)  # a cap that logits of deviation 1 feel


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor  # (N, D), a leaf: its .grad is the result
    ref_hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (N,)
    pg_coef: Tensor  # (N,)
    kl_coef: Tensor  # (N,), all equal to kl
    kl: float
    softcap: float | None

    def first(self, n: int) -> Inputs:
        per_token = {key: getattr(self, key)[:n].clone() for key in ("ref_hidden", "targets", "pg_coef", "kl_coef")}
        return replace(self, hidden=self.hidden.detach()[:n].clone().requires_grad_(), **per_token)


def make_inputs(
    shape: Shape, tokens: int, dtype: torch.dtype, device: str, kl: float = KL_COEF, drift: float = 0.1
) -> Inputs:
    """Seeded. `drift` is how far the policy has moved from the reference."""
    torch.manual_seed(0)
    weight = torch.randn(shape.vocabulary, shape.width, device=device).mul_(shape.width**-0.5).to(dtype)
    hidden = torch.randn(tokens, shape.width, device=device)
    ref_hidden = (hidden + drift * torch.randn_like(hidden)).to(dtype)
    targets = torch.randint(shape.vocabulary, (tokens,), device=device)
    pg_coef, kl_coef = torch.randn(tokens, device=device), torch.full((tokens,), kl, device=device)
    hidden = hidden.to(dtype).requires_grad_()
    return Inputs(hidden, ref_hidden, weight, targets, pg_coef, kl_coef, kl, shape.softcap)


# --- the contenders: each imports and prepares what it needs, and returns what is timed: a function that gives the loss


def scorefast(x: Inputs, impl: Any, skip: float = 0.0) -> Run:
    args = (x.hidden, x.ref_hidden, x.weight, x.targets, x.pg_coef, x.kl_coef)
    return lambda: score_loss(*args, softcap=x.softcap, impl=impl, skip=skip)[0]


def scorefast_ce(x: Inputs, impl: Any) -> Run:
    """F.cross_entropy(softcap * tanh(h @ W^T / softcap), y, reduction="sum")"""
    args = (x.hidden, None, x.weight, x.targets, torch.ones_like(x.pg_coef), torch.zeros_like(x.kl_coef))
    return lambda: score_loss(*args, softcap=x.softcap, impl=impl)[0]


def unsloth_zoo(x: Inputs) -> Run:
    os.environ.setdefault("UNSLOTH_IS_PRESENT", "1")  # else it asks for `import unsloth`, which patches much
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir()) / "unsloth_compiled_cache"))
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_jsd, fused_linear_logprobs

    cap = x.softcap or 0.0
    caps = {"student_logit_softcapping": cap, "teacher_logit_softcapping": cap}

    def run() -> Tensor:
        logp = fused_linear_logprobs(x.hidden, x.weight, x.targets, logit_softcapping=cap)
        # beta=1 is KL(student || teacher); divided by one item it is the sum over tokens
        kl = fused_linear_jsd(x.hidden, x.weight, x.ref_hidden, x.weight, beta=1.0, num_items_in_batch=1, **caps)
        return x.kl * kl - x.pg_coef @ logp

    return run


def trl(x: Inputs) -> Run:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    head = (x.weight, None)
    beta, temperature, scale = 1.0, 1.0, 1.0  # beta=1 is KL(student || teacher)

    def run() -> Tensor:
        logp, *_ = ChunkedLogProbFunction.apply(
            x.hidden, *head, x.targets, temperature, CHUNK, x.softcap, scale, ()
        )  # fmt: skip
        kl, _ = ChunkedDivergenceFunction.apply(
            x.hidden, *head, x.ref_hidden, *head, beta, temperature, scale, x.softcap, scale, x.softcap
        )
        return x.kl_coef @ kl - x.pg_coef @ logp

    return run


def liger(x: Inputs) -> Run:
    """Every token a sequence of length 1, as many at a time as its own inner loop takes; summed, not averaged.

    The N numbers its torch.compile would fuse are a trifle, and compiling on a CPU is not: compiled=False.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=x.kl, compiled=False, chunk_size=2048, loss_type="dapo")
    targets, mask = x.targets[:, None], torch.ones_like(x.targets)[:, None]
    ref = {"ref_input": x.ref_hidden[:, None], "ref_weight": x.weight, "num_items_in_batch": 1}
    return lambda: loss(x.hidden[:, None], x.weight, targets, mask, x.pg_coef, **ref)[0]


def cut_cross_entropy(x: Inputs) -> Run:
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if x.hidden.is_cuda else "torch_compile"
    return lambda: linear_cross_entropy(x.hidden, x.weight, x.targets, softcap=x.softcap, reduction="sum", impl=impl)


def floor(x: Inputs, dtype: torch.dtype | None = None) -> Run:
    """h @ W^T, r @ W^T, dz @ W"""
    hidden, ref_hidden, weight = (t.detach().to(dtype or t.dtype) for t in (x.hidden, x.ref_hidden, x.weight))
    rows = min(len(hidden), FLOOR_ROWS[hidden.device.type])
    dz, logits = hidden.new_empty(rows, len(weight)), hidden.new_empty(rows, len(weight))
    grad = torch.empty_like(hidden)

    def run() -> None:
        for h, r, out in zip(hidden.split(rows), ref_hidden.split(rows), grad.split(rows), strict=True):
            torch.mm(h, weight.T, out=dz[: len(h)])
            torch.mm(r, weight.T, out=logits[: len(h)])
            torch.mm(dz[: len(h)], weight, out=out)

    return run


@dataclass(frozen=True)
class Contender:
    prepare: Callable[[Inputs], Run]
    package: str | None = None  # to install, beside scorefast
    triton: bool = False  # has no kernels but Triton's: CUDA, or the interpreter
    ce: bool = False  # cross-entropy of one model
    tolerance: float | None = 1e-4  # of the relative differences from the reference; None exempts


CONTENDERS = {
    "scorefast chunked": Contender(partial(scorefast, impl="chunked")),
    "scorefast triton": Contender(partial(scorefast, impl="triton"), triton=True),
    "scorefast triton, skip=2^-9": Contender(
        partial(scorefast, impl="triton", skip=2.0**-9), triton=True, tolerance=2e-2
    ),
    "naive": Contender(partial(scorefast, impl="reference")),
    "unsloth zoo": Contender(unsloth_zoo, "unsloth_zoo"),
    "trl": Contender(trl, "trl", triton=True),
    "liger (k3, no soft cap)": Contender(liger, "liger-kernel", tolerance=None),
    "scorefast chunked (CE only)": Contender(partial(scorefast_ce, impl="chunked"), ce=True),
    "cut-cross-entropy (CE only)": Contender(cut_cross_entropy, "cut-cross-entropy", ce=True, tolerance=None),
    "floor": Contender(floor, tolerance=None),
    "floor, float32": Contender(partial(floor, dtype=torch.float32), tolerance=None),
}
FLOORS = ("floor", "floor, float32")
YARDSTICKS = ("scorefast chunked", "scorefast triton", "scorefast chunked (CE only)", *FLOORS)


def forward_backward(x: Inputs, run: Run) -> Tensor | None:
    x.hidden.grad = None
    loss = run()
    if loss is not None:
        loss.backward()
    return loss


def impossible(name: str, device: str) -> str | None:
    """Why a contender cannot be measured here, if that is known beforehand."""
    contender = CONTENDERS[name]
    if contender.package and importlib.util.find_spec(contender.package.replace("-", "_")) is None:
        return f"not installed: pip install --no-deps {contender.package}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "its Triton kernels need CUDA" if contender.triton and device == "cpu" and not interpreted else None


def reason(error: BaseException | str) -> str:
    """One line; what CPU and CUDA say of an allocation that fails is told in the same words."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
    if any(sign in text for sign in ("can't allocate memory", "CUDA out of memory", "MemoryError")):
        return "out of memory"
    return text.strip().splitlines()[0][:160]


def kibibytes(path: str, key: str) -> int:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def limit_memory(device: str) -> None:
    """On a CPU, an allocation beyond what is available fails, and is recorded, before the kernel kills the process."""
    if device == "cpu" and sys.platform == "linux":
        most = 1024 * (kibibytes("/proc/meminfo", "MemAvailable") + kibibytes("/proc/self/status", "VmRSS"))
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


# --- equality ---------------------------------------------------------------------------------------------------------


def largest_difference(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def check(names: list[str], device: str) -> dict[str, dict[str, Any]]:
    """Relative differences of loss and gradient from the reference; KL is given as much weight as the scores."""
    found: dict[str, dict[str, Any]] = {}
    interpreted = []
    for name in names:
        contender = CONTENDERS[name]
        if name in FLOORS or (contender.tolerance is None and not contender.ce):
            continue
        if why := impossible(name, device):
            if "Triton" in why:
                interpreted.append(name)
            else:
                found[name] = {"reason": why}
            continue
        x = make_inputs(CHECKED, 37, torch.float32, device, kl=1.0, drift=1.0)
        reference = forward_backward(x, (scorefast_ce if contender.ce else scorefast)(x, impl="reference"))
        gradient = x.hidden.grad
        try:
            loss = forward_backward(x, contender.prepare(x))
            pairs = {"loss": (loss, reference), "gradient": (x.hidden.grad, gradient)}
            found[name] = {key: largest_difference(*pair) for key, pair in pairs.items()}
        except Exception as error:  # recorded, whatever it is
            found[name] = {"reason": reason(error)}
    if interpreted:
        flags = ["check", "--device", device, "--contenders", *interpreted]
        answer = in_process(flags, {"TRITON_INTERPRET": "1"})
        found |= {name: answer if "reason" in answer else answer[name] for name in interpreted}
    return found


def differs(name: str, found: dict[str, dict[str, Any]]) -> str | None:
    """Why a contender is not measured: it failed on the tiny shape, or computes something else."""
    tolerance, result = CONTENDERS[name].tolerance, found.get(name)
    if tolerance is None or result is None:
        return None
    if "reason" in result:
        return f"fails the equality check: {result['reason']}"
    worst = max(result.values())
    return None if worst <= tolerance else f"differs from the reference by {worst:.1e}"


# --- measurements -----------------------------------------------------------------------------------------------------


def seconds_of(x: Inputs, run: Run) -> float:
    if not x.hidden.is_cuda:
        start = time.perf_counter()
        forward_backward(x, run)
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    forward_backward(x, run)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def time_contenders(x: Inputs, names: list[str], rounds: int, reasons: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Contender -> {seconds of each round, ratios to the yardsticks}, or {time_reason}."""
    # A CPU is warm after a few tokens; Triton, cuBLAS and the caching allocator want the size that is timed.
    warm_up = x if x.hidden.is_cuda else x.first(WARM_UP)
    runs: dict[str, Run] = {}
    seconds: dict[str, list[float]] = {}
    reasons = dict(reasons)
    for number in range(-1, rounds):
        for name in names:
            if name in reasons:
                continue
            try:
                if number < 0:
                    forward_backward(warm_up, CONTENDERS[name].prepare(warm_up))
                    runs[name], seconds[name] = CONTENDERS[name].prepare(x), []
                else:
                    seconds[name].append(seconds_of(x, runs[name]))
            except Exception as error:
                reasons[name] = reason(error)
    rows: dict[str, dict[str, Any]] = {name: {"time_reason": reasons[name]} for name in reasons}
    for name in set(names) - set(reasons):
        mine = seconds[name]
        ratios = {
            other: round(statistics.median(a / b for a, b in zip(seconds[other], mine, strict=True)), 4)
            for other in YARDSTICKS
            if other in names and other not in reasons
        }
        rows[name] = {"seconds": [round(s, 6) for s in mine], "ratios": ratios}
    return {name: {"seconds": None, "ratios": None, "time_reason": None} | rows[name] for name in names}


def peak_bytes(name: str, x: Inputs) -> int:
    """Of memory that the inputs do not take; the gradient counts."""
    small = x.first(WARM_UP)
    forward_backward(small, CONTENDERS[name].prepare(small))
    run = CONTENDERS[name].prepare(x)
    if x.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(x, run)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins here
    before = kibibytes("/proc/self/status", "VmRSS")
    forward_backward(x, run)
    return 1024 * (kibibytes("/proc/self/status", "VmHWM") - before)


def in_process(flags: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What this script prints last with these flags, or {reason}."""
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {"reason": f"killed by signal {-done.returncode}" + ", out of memory" * (done.returncode == -9)}
    return {"reason": reason((done.stderr.strip().splitlines() or ["no message"])[-1])}


# --- results ----------------------------------------------------------------------------------------------------------


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment(device: str) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    machine = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    return {"machine": machine, "threads": torch.get_num_threads(), "versions": {p: version(p) for p in PACKAGES}}


def load(results: Path) -> dict[str, Any]:
    path = results / "score_loss.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"equality": {}, "rows": []}


def save(results: Path, key: dict[str, Any], new: dict[str, dict[str, Any]], equality: dict[str, Any]) -> None:
    """Merge: what a row says of the other kind of measurement stays; None takes a field away."""
    report = load(results)
    report["equality"].setdefault(key["device"], {}).update(equality)
    rows = {tuple(row[k] for k in (*key, "contender")): row for row in report["rows"]}
    for name, fields in new.items():
        row = rows.setdefault((*key.values(), name), {**key, "contender": name})
        row.update(fields)
        rows[*key.values(), name] = {k: v for k, v in row.items() if v is not None}
    lines = ",\n  ".join(json.dumps(row) for row in sorted(rows.values(), key=sort_key))
    text = f'{{\n "equality": {json.dumps(report["equality"])},\n "rows": [\n  {lines}\n ]\n}}\n'
    (results / "score_loss.json").write_text(text, encoding="utf-8")


def sort_key(row: dict[str, Any]) -> tuple[Any, ...]:
    order = {name: i for i, name in enumerate(CONTENDERS)}
    return row["device"], row["shape"], row["dtype"], row["tokens"], order.get(row["contender"], len(order))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Of one device, shape and dtype."""
    on_triton = any("scorefast triton" in row.get("ratios", {}) for row in rows)
    headings = ["N", "", "seconds", "scorefast chunked / it", *["scorefast triton / it"] * on_triton]
    headings += ["floor / it", "float32 floor / it", "peak MiB"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    notes: dict[str, list[int]] = {}
    for row in rows:
        name, ratios = row["contender"], row.get("ratios", {})
        ce = name in CONTENDERS and CONTENDERS[name].ce
        cells = [str(row["tokens"]), name, f"{statistics.median(row['seconds']):.3g}" if "seconds" in row else "-"]
        chunked = ratios.get("scorefast chunked (CE only)" if ce else "scorefast chunked")
        triton = [None if ce else ratios.get("scorefast triton")] * on_triton
        cells += ["-" if ratio is None else f"{ratio:.2f}" for ratio in (chunked, *triton)]
        cells += [f"{100 * ratios[key]:.0f} %" if key in ratios and not ce else "-" for key in FLOORS]
        cells.append(f"{row['peak_bytes'] / MIB:,.0f}" if "peak_bytes" in row else "-")
        lines.append(f"| {' | '.join(cells)} |")
        for kind in ("time", "peak"):
            if f"{kind}_reason" in row:
                notes.setdefault(f"{name}, {kind}: {row[f'{kind}_reason']}", []).append(row["tokens"])
    notes_of = [f"- {note} (N = {', '.join(map(str, tokens))})" for note, tokens in notes.items()]
    return [*lines, "", *notes_of, *[""] * bool(notes_of)]


def report(results: Path, shape: str, dtype: str) -> None:
    measured = load(results)
    lines = ["# The fused loss: measurements", "", "Written by `python benchmarks/score_loss.py report`. ", ""]
    lines[2] += "`a / it` is a's time over the contender's: below 1, a is faster. `peak` is beyond the inputs. "
    lines[2] += f"KL's coefficient is {KL_COEF}; CE only is one model, and compared with scorefast's CE."
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(measured["rows"], key=sort_key):
        groups.setdefault((row["device"], row["shape"], row["dtype"]), []).append(row)
    for (device, group_shape, group_dtype), rows in groups.items():
        where = sorted({f"{r['machine']}, {r['threads']} threads" for r in rows})
        lines += [f"## {group_shape}, {group_dtype}, {device}", "", f"{'; '.join(where)}.", "", *table(rows)]
    lines += ["## Largest relative differences from plain torch, float32", ""]
    for device, found in measured["equality"].items():
        lines += [f"On {device}, V = {CHECKED.vocabulary}, D = {CHECKED.width}, soft cap {CHECKED.softcap}:", ""]
        for name, result in found.items():
            values = [f"{key} {v if isinstance(v, str) else format(v, '.1e')}" for key, v in result.items()]
            lines.append(f"- {name}: {', '.join(values)}")
        lines.append("")
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in measured["rows"]})
    lines += ["Versions:", "", *(f"- {v}" for v in versions), ""]
    (results / "score_loss_tables.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    rows = groups.get(("cpu", shape, dtype), [])
    if rows:
        figure(rows, f"{shape}, {dtype}, {rows[0]['threads']} CPU threads", results / "score_loss.png")


def figure(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter, NullFormatter

    fig, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    values = {
        "peak memory beyond the inputs, MiB": lambda r: r["peak_bytes"] / MIB if "peak_bytes" in r else math.nan,
        "seconds, forward and backward": lambda r: statistics.median(r["seconds"]) if "seconds" in r else math.nan,
    }
    names = [n for n in CONTENDERS if any(r["contender"] == n and {"seconds", "peak_bytes"} & {*r} for r in rows)]
    ticks = sorted({row["tokens"] for row in rows})
    for panel, (label, value) in zip(panels, values.items(), strict=True):
        for i, name in enumerate(names):
            own = [row for row in rows if row["contender"] == name]
            style = {"linestyle": ":" if name in FLOORS else "--" if CONTENDERS[name].ce else "-"}
            style |= {"linewidth": 3 if name.startswith("scorefast") else 1.5, "marker": "osD^vP*Xhpd"[i]}
            panel.plot([r["tokens"] for r in own], [value(r) for r in own], label=name, color=f"C{i % 10}", **style)
        panel.set(xlabel="tokens N", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(LogFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter())
        panel.grid(alpha=0.3)
    handles, labels = panels[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    fig.suptitle(title)
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["time", "peak", "peak-all", "check", "report"])
    parser.add_argument("--shape", choices=SHAPES, default="gemma-3-270m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", "--contender", nargs="+", choices=CONTENDERS, help="default: all that can run")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    device, results = flags.device, flags.results
    if flags.action == "report":
        report(results, flags.shape, flags.dtype[0])
        return
    everybody = [n for n in CONTENDERS if device == "cuda" or not n.startswith("scorefast triton")]
    names = flags.contenders or everybody
    if flags.action == "check":
        print(json.dumps(check(names, device)))
        return
    if flags.action == "peak":
        limit_memory(device)
        x = make_inputs(SHAPES[flags.shape], flags.tokens[0], getattr(torch, flags.dtype[0]), device)
        print(json.dumps({"peak_bytes": peak_bytes(names[0], x)}))
        return
    results.mkdir(parents=True, exist_ok=True)
    where = environment(device)
    reasons = {name: why for name in names if (why := impossible(name, device))}
    if flags.action == "time":
        compared_with = {"scorefast chunked (CE only)" if CONTENDERS[n].ce else "scorefast chunked" for n in names}
        names = [n for n in CONTENDERS if n in compared_with.union(names)]
        equality = check(names, device)
        print(json.dumps(equality, indent=1), flush=True)
        reasons |= {name: why for name in names if name not in reasons and (why := differs(name, equality))}
        limit_memory(device)
    for dtype in flags.dtype:
        for tokens in flags.tokens:
            key = {"device": where["machine"] if device == "cuda" else "cpu", "shape": flags.shape}
            key |= {"dtype": dtype, "tokens": tokens}
            if flags.action == "time":
                x = make_inputs(SHAPES[flags.shape], tokens, getattr(torch, dtype), device)
                new = time_contenders(x, names, flags.rounds, reasons)
                save(results, key, {name: fields | where for name, fields in new.items()}, equality)
                for name, fields in new.items():
                    print(tokens, dtype, name, {k: v for k, v in fields.items() if v is not None}, flush=True)
                continue
            for name in (n for n in names if n not in FLOORS):
                command = ["peak", "--shape", flags.shape, "--tokens", str(tokens), "--dtype", dtype]
                command += ["--device", device, "--contender", name]
                # glibc gives back what is freed, instead of keeping it for the process's next request
                answer = in_process(command, {"MALLOC_MMAP_THRESHOLD_": "131072"}) if name not in reasons else {}
                why = reasons.get(name, answer.get("reason"))
                fields = {"peak_bytes": answer.get("peak_bytes"), "peak_reason": why}
                save(results, key, {name: fields | where}, {})
                print(tokens, dtype, name, fields, flush=True)


if __name__ == "__main__":
    main()
