"""The inputs, and what computes the loss on them: each prepares itself and returns the function that is timed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefast.kernels import score_loss

KL_COEF = 0.1
FLOOR_ROWS = {"cpu": 256, "cuda": 2048}  # of logits at a time
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


def impossible(name: str, device: str) -> str | None:
    """Why a contender cannot be measured here, if that is known beforehand."""
    contender = CONTENDERS[name]
    if contender.package and importlib.util.find_spec(contender.package.replace("-", "_")) is None:
        return f"not installed: pip install --no-deps {contender.package}"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "its Triton kernels need CUDA" if contender.triton and device == "cpu" and not interpreted else None
