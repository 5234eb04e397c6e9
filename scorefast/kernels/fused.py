"""The fused loss as one opaque operator: which rows, in which chunks, by which kernels; the gradient in the forward."""

import importlib
from typing import Protocol, cast

import torch
from torch import Tensor

from scorefast.kernels import chunked
from scorefast.kernels.chunked import Head, Rows, TokenStats

Nine = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
NO_REFERENCE = "score_loss: kl_coef is not 0 but there is no ref_hidden to measure KL against"
STATISTICS = ("logp", "ref_logp", "kl", "entropy", "dropped")


class Kernels(Protocol):
    """The functions that `chunked` and `triton` both have; see there."""

    def bytes_per_row(self, rows: Rows, vocabulary: int) -> int: ...
    def make_buffers(self, rows: Rows, count: int, vocabulary: int) -> list[Tensor]: ...
    def statistics_and_dz(
        self, rows: Rows, head: Head, buffers: list[Tensor], *, gradient: bool
    ) -> tuple[TokenStats, Tensor]: ...


class Context(Protocol):
    """What autograd hands from the forward to the backward."""

    wanted: list[bool]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


@torch.library.custom_op("scorefast::score_loss", mutates_args=())
def score_loss_op(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    impl: str,
    buffer_bytes: int,
    skip: float,
    gradients: list[bool],
) -> Nine:
    """(loss, logp, ref_logp, kl, entropy, dropped, grad_hidden, grad_weight, grad_bias)

    `gradients` says which of the last three are wanted; the others come back empty.
    """
    kernels = _kernels(impl)
    device, dtype = hidden.device, chunked.accumulation_dtype(hidden.dtype)
    loss, *outputs = _outputs(hidden, weight, skip, gradients)
    stats = dict(zip(STATISTICS, outputs, strict=False))
    grad_hidden, grad_weight, grad_bias = outputs[len(STATISTICS) :]
    multiplied_in = chunked.multiplication_dtype(hidden)
    groups = _groups(pg_coef, kl_coef)
    same = weight.to(hidden.dtype).contiguous() if impl == "triton" and groups else weight  # the kernels' one layout
    head = Head(same, bias, softcap, temperature)
    with torch.autocast(device.type, enabled=False), torch.cuda.device_of(hidden):
        for with_kl, index in groups:
            if with_kl and ref_hidden is None:
                raise ValueError(NO_REFERENCE)
            index = index.to(device, non_blocking=True)
            coefs = (c.to(device, dtype, non_blocking=True) for c in (pg_coef, kl_coef))
            group = Rows(hidden, ref_hidden if with_kl else None, targets, *coefs)
            budget = buffer_bytes or chunked.default_buffer_bytes(device)
            size = max(1, budget // kernels.bytes_per_row(group, len(weight)))
            chunks = index.chunk(-(-len(index) // size))
            buffers = kernels.make_buffers(group, len(chunks[0]), len(weight))
            for chunk in chunks:
                rows = group[chunk]
                found, dz = kernels.statistics_and_dz(rows, head, buffers, gradient=any(gradients))
                loss -= rows.pg_coef @ found.logp
                if found.kl is not None:
                    loss += rows.kl_coef @ found.kl
                _store(stats, chunk, found)
                if gradients[0]:
                    new, left_out = _hidden_gradient(dz, head, multiplied_in, skip)
                    grad_hidden[chunk] = new.to(hidden.dtype)
                    if left_out is not None:
                        stats["dropped"][chunk] = left_out
                if gradients[1]:
                    chunked.add_weight_gradient(grad_weight, dz, rows.hidden, multiplied_in)
                if gradients[2]:
                    grad_bias += dz.sum(0, dtype=dtype)
            del buffers, dz, found  # before the next group makes its own
    return _in_their_dtypes([loss, *outputs], weight, bias)


def _kernels(impl: str) -> Kernels:
    """The module of that name beside this one. Raises ImportError if there is none."""
    return cast(Kernels, importlib.import_module(f"scorefast.kernels.{impl}"))


def _store(stats: dict[str, Tensor], chunk: Tensor, found: TokenStats) -> None:
    """The statistics of the rows `chunk` (C,) into those of all rows (N,)."""
    for name in ("logp", "entropy", "ref_logp", "kl"):
        if getattr(found, name) is not None:
            stats[name][chunk] = getattr(found, name).float()


def _hidden_gradient(dz: Tensor, head: Head, dtype: torch.dtype, skip: float) -> tuple[Tensor, Tensor | None]:
    """(C, V) -> (dz @ W (C, D), with `skip` the share of each row left out (C,))."""
    if not skip:
        return chunked.hidden_gradient(dz, head, dtype), None
    from scorefast.kernels.triton import hidden_gradient_skipping

    return hidden_gradient_skipping(dz, head, skip)


def _groups(pg_coef: Tensor, kl_coef: Tensor) -> list[tuple[bool, Tensor]]:
    """(is KL asked for, indices of the rows); rows whose coefficients are both 0 are in no group."""
    with_kl = kl_coef != 0
    groups = [(True, with_kl.nonzero().flatten()), (False, ((pg_coef != 0) & ~with_kl).nonzero().flatten())]
    return [(kl, index) for kl, index in groups if len(index)]


def _outputs(hidden: Tensor, weight: Tensor, skip: float, gradients: list[bool]) -> list[Tensor]:
    """loss, statistics, grad_hidden, grad_weight, grad_bias, as they are when no row is active."""
    dtype = chunked.accumulation_dtype(hidden.dtype)
    n, (v, d) = hidden.shape[0], weight.shape  # not len(): n may be symbolic
    lengths = [n, n, n, n, n if skip else 0]  # of STATISTICS
    of_hidden, of_weight, of_bias = gradients
    return [
        hidden.new_zeros((), dtype=dtype),
        *(hidden.new_full((length,), torch.nan, dtype=torch.float32) for length in lengths),
        hidden.new_zeros((n, d) if of_hidden else (0,)),
        weight.new_zeros((v, d) if of_weight else (0,), dtype=dtype),
        weight.new_zeros((v,) if of_bias else (0,), dtype=dtype),
    ]


@score_loss_op.register_fake
def _(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    impl: str,
    buffer_bytes: int,
    skip: float,
    gradients: list[bool],
) -> Nine:
    return _in_their_dtypes(_outputs(hidden, weight, skip, gradients), weight, bias)


def _in_their_dtypes(outputs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Nine:
    *rest, grad_weight, grad_bias = outputs
    return cast(Nine, (*rest, grad_weight.to(weight.dtype), grad_bias.to((weight if bias is None else bias).dtype)))


def _keep_gradients(ctx: Context, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # statistics are not differentiated: no zeros (V, D) in place of nothing
    ctx.wanted = cast(list[bool], inputs[-1])
    ctx.save_for_backward(*output[-3:])


def _backward(ctx: Context, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("score_loss is differentiable once: its gradient is not a function of its inputs any more")
    # The factor is not rounded to 16 bit: it may be a GradScaler's 65536, or 1 / 771.
    of_hidden, of_weight, of_bias = (
        (grad.to(grad_loss.dtype) * grad_loss).to(grad.dtype) if wanted else None
        for wanted, grad in zip(ctx.wanted, ctx.saved_tensors, strict=True)
    )
    return of_hidden, None, of_weight, None, None, None, of_bias, *(None,) * 6


score_loss_op.register_autograd(_backward, setup_context=_keep_gradients)
