"""Equality with plain torch, seconds, and peak memory of the contenders."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import environment
from benchmarks.score_loss.contenders import (
    CHECKED,
    CONTENDERS,
    FLOORS,
    YARDSTICKS,
    Inputs,
    Run,
    impossible,
    make_inputs,
    scorefast,
    scorefast_ce,
)

WARM_UP = 16  # tokens of the untimed run on a CPU


def forward_backward(x: Inputs, run: Run) -> Tensor | None:
    """The loss; x.hidden.grad is then its gradient."""
    x.hidden.grad = None
    loss = run()
    if loss is not None:
        loss.backward()
    return loss


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


def largest_difference(value: Tensor | None, expected: Tensor | None) -> float:
    """max |value - expected| / max |expected|"""
    assert value is not None
    assert expected is not None
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
    """Of one forward and backward; on a GPU by its own clock."""
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


def in_process(flags: list[str], more: dict[str, str]) -> dict[str, Any]:
    """What this benchmark prints last with these flags and environment variables, or {reason}."""
    words = [sys.executable, "-m", "benchmarks", "score_loss", *flags]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(**more))
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    if done.returncode < 0:
        return {"reason": f"killed by signal {-done.returncode}" + ", out of memory" * (done.returncode == -9)}
    return {"reason": reason((done.stderr.strip().splitlines() or ["no message"])[-1])}
