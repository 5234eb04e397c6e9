"""One loss for every method: policy gradient and exact KL, from hidden states. Imports torch and triton only.

Implementations: `reference` is plain torch and holds several N x V tensors. `chunked` is torch on any device. `triton`
needs a CUDA GPU. The last two never hold N x V, and compute the gradient in the forward.

Notes on `score_loss`:
- The loss is differentiable once. In float16 the gradient is computed without the scale of a GradScaler, which
  multiplies it afterwards. Under autocast hidden is cast to autocast's dtype, as torch.nn.functional.linear does.
- A gradient reaches the weight through the policy alone: the reference's distribution is a constant.
- A row where both coefficients are 0 costs nothing. A row where kl_coef is 0 costs no reference pass. Finding those
  rows synchronises a CUDA device once, before the first product; nothing after it does.
- A target out of range is an IndexError on the CPU, a device-side assertion on CUDA, and a NaN with `triton`.
- buffer_bytes defaults to 512 MiB, or to a quarter of the free memory where that is less, but at least to 64 MiB.
- docs/method.md has the bound for skip.
"""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch
from torch import Tensor

from scorefast.kernels import reference
from scorefast.kernels.fused import NO_REFERENCE, score_loss_op
from scorefast.kernels.reference import ScoreStats

__all__ = ["Impl", "ScoreStats", "resolve_impl", "score_loss"]

Impl = Literal["auto", "reference", "chunked", "triton"]


def _settle_mkl() -> None:
    """Call once, on one element, what is later called by several threads at once.

    oneMKL 2024.2 chooses a function's kernel in its first call; when threads race for that, one of them may compute
    its part with a kernel accurate to 4 digits (pytorch issue 188792). Seen here as a loss off by 1.6e-4.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in (torch.exp, torch.expm1, torch.log, torch.tanh, torch.sin, torch.cos, torch.erf, torch.sqrt):
            function(one)


_settle_mkl()


def resolve_impl(impl: Impl, device: torch.device, dtype: torch.dtype) -> Impl:
    """`auto` is chunked: triton has not yet run on a GPU. Raises ValueError with the reason where it cannot run."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl {impl!r} is not one of {', '.join(get_args(Impl))}")
    if impl == "triton" and (reason := _why_no_triton(device, dtype)):
        raise ValueError(f"impl 'triton' cannot run here: {reason}; use 'chunked'")
    return "chunked" if impl == "auto" else impl


def _why_no_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its kernels have no {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from scorefast.kernels.triton import INTERPRETED

    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"it needs a CUDA GPU, the device is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere (compute capability 8.0)"
    return None


def score_loss(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    impl: Impl = "auto",
    buffer_bytes: int | None = None,
    skip: float = 0.0,
) -> tuple[Tensor, ScoreStats]:
    """loss = sum_n [ -pg_coef_n * log p_n(target_n) + kl_coef_n * KL(p_n || q_n) ]

    p and q are the softmax of softcap * tanh((h @ W^T + bias) / softcap) / temperature for h = hidden, h = ref_hidden.

    Args:
        hidden, ref_hidden: (N, D) last hidden states of policy and reference at the positions that predict the
            targets. ref_hidden may be None where every kl_coef is 0.
        weight, bias: (V, D) and (V,), the output head; bias may be None.
        targets: (N,) int64 token ids; any number where both coefficients are 0.
        pg_coef, kl_coef: (N,) float32 coefficients, constants for autograd.
        softcap: the model's final-logit soft cap (30.0 in Gemma-2), or None.
        temperature: the sampling temperature, so that scores are those of the distribution sampled from.
        impl: an implementation, or `auto`; see the module.
        buffer_bytes: bound of the logits held at once; at least one row is held.
        skip: `triton` only: the share of a row's ||d loss / d logits||_1 that the gradient of hidden may leave out,
            tile by tile of the vocabulary; 0 is exact.

    Returns:
        The scalar loss (float32 or wider, NOT divided by anything) and detached per-token statistics.

    Raises:
        ValueError: shapes disagree, a number is out of range, a kl_coef is not 0 without ref_hidden, impl cannot run.
    """
    _require_shapes(hidden, ref_hidden, weight, targets, pg_coef, kl_coef, bias)
    impl = resolve_impl(impl, hidden.device, hidden.dtype)
    _require_ranges(softcap, temperature, impl, skip)
    ref_hidden = None if ref_hidden is None else ref_hidden.detach()
    pg_coef, kl_coef = pg_coef.detach(), kl_coef.detach()
    if impl == "reference":
        pg_coef, kl_coef = pg_coef.to(hidden.device), kl_coef.to(hidden.device)
        if ref_hidden is None and bool((kl_coef != 0).any()):
            raise ValueError(NO_REFERENCE)
        return reference.score_loss(hidden, ref_hidden, weight, targets, pg_coef, kl_coef, bias, softcap, temperature)
    hidden, ref_hidden = _in_autocast_dtype(hidden), None if ref_hidden is None else _in_autocast_dtype(ref_hidden)
    grad = torch.is_grad_enabled()
    gradients = [grad and t is not None and t.requires_grad for t in (hidden, weight, bias)]
    loss, *outputs = score_loss_op(
        hidden, ref_hidden, weight, targets, pg_coef, kl_coef, bias, softcap, temperature,
        impl, buffer_bytes or 0, skip, gradients,
    )  # fmt: skip
    logp, ref_logp, kl, entropy, dropped, *_ = (t.detach() for t in outputs)
    alone = ref_hidden is None
    return loss, ScoreStats(
        logp, None if alone else ref_logp, None if alone else kl, entropy, dropped if skip else None
    )


def _require_shapes(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    bias: Tensor | None,
) -> None:
    n, d = hidden.shape
    if weight.shape[1] != d or any(t.shape != (n,) for t in (targets, pg_coef, kl_coef)):
        raise ValueError(
            f"score_loss: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}, "
            f"pg_coef {tuple(pg_coef.shape)}, kl_coef {tuple(kl_coef.shape)}: expected (N, D), (V, D), (N,), (N,), (N,)"
        )
    if ref_hidden is not None and ref_hidden.shape != hidden.shape:
        raise ValueError(f"score_loss: ref_hidden {tuple(ref_hidden.shape)} differs from hidden {tuple(hidden.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"score_loss: bias {tuple(bias.shape)} is not the (V,) of weight {tuple(weight.shape)}")


def _require_ranges(softcap: float | None, temperature: float, impl: Impl, skip: float) -> None:
    if not (temperature > 0 and (softcap is None or softcap > 0) and 0 <= skip < 1):
        raise ValueError(
            f"score_loss: temperature {temperature} and softcap {softcap} must be above 0, skip {skip} within [0, 1)"
        )
    if skip and impl != "triton":
        raise ValueError(f"score_loss: skip = {skip} needs impl 'triton', not {impl!r}")


def _in_autocast_dtype(hidden: Tensor) -> Tensor:
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return hidden
