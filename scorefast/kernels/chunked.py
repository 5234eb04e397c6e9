"""The fused loss in torch alone, on any device: a few rows of logits at a time, the gradient written in the forward.

The coefficients are constants, so d loss / d logits is known as soon as a row's statistics are. Three matmuls a row
(policy logits, reference logits, dz @ W) and two buffers of `rows x V`, bounded in bytes; between the matmuls,
elementwise passes arranged for few reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BUFFER_BYTES = 512 << 20  # default bound of the buffers, where a quarter of the free memory is not less
MIN_BUFFER_BYTES = 64 << 20  # the least, however little is free
CPU_ELEMENTS = 1 << 20  # of a block of rows: it stays in a CPU's cache during the elementwise passes
GPU_ELEMENTS = 1 << 24  # of such a block on a GPU: enough to fill it, and little scratch memory
TILE_BYTES = 16 << 20  # of the head, converted at a time where it is not in the dtype multiplied in
PLAIN_SHIFT = 40.0  # exp(-2 * 40) is a normal float32: logits capped below this need no row maximum


@dataclass(frozen=True)
class Head:
    """The output head, from hidden states to log-probabilities; see `scorefast.kernels.score_loss`."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    softcap: float | None
    temperature: float


@dataclass(frozen=True)
class Rows:
    """Some of the N tokens. ref_hidden is None where no row has a KL term."""

    hidden: Tensor  # (C, D)
    ref_hidden: Tensor | None  # (C, D)
    targets: Tensor  # (C,)
    pg_coef: Tensor  # (C,)
    kl_coef: Tensor  # (C,)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        ref = None if self.ref_hidden is None else self.ref_hidden[index]
        return Rows(self.hidden[index], ref, self.targets[index], self.pg_coef[index], self.kl_coef[index])


@dataclass(frozen=True)
class TokenStats:
    """Each (C,), in the accumulation dtype. ref_logp and kl are None without ref_hidden."""

    logp: Tensor
    entropy: Tensor
    ref_logp: Tensor | None
    kl: Tensor | None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def multiplication_dtype(hidden: Tensor) -> torch.dtype:
    """The hidden states' own, but float32 on a CPU that only emulates 16-bit matmuls: there it is faster and exact."""
    native = {torch.bfloat16: torch.cpu._is_amx_tile_supported, torch.float16: torch.cpu._is_amx_fp16_supported}
    emulated = hidden.device.type == "cpu" and hidden.dtype in native and not native[hidden.dtype]()
    return torch.float32 if emulated else hidden.dtype


def default_buffer_bytes(device: torch.device) -> int:
    """512 MiB, or a quarter of the free memory where that is less, but at least 64 MiB."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reusable
    elif (meminfo := Path("/proc/meminfo")).is_file():
        lines = meminfo.read_text(encoding="ascii").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    else:  # not Linux
        return BUFFER_BYTES
    return min(BUFFER_BYTES, max(MIN_BUFFER_BYTES, free // 4))


def bytes_per_row(rows: Rows, vocabulary: int) -> int:
    """Logits of policy and reference, and where the matmul is in another dtype, its operand or result in that one."""
    wide, narrow = accumulation_dtype(rows.hidden.dtype), multiplication_dtype(rows.hidden)
    logits = 1 if rows.ref_hidden is None else 2
    return vocabulary * (logits * wide.itemsize + (0 if wide == narrow else narrow.itemsize))


def make_buffers(rows: Rows, count: int, vocabulary: int) -> list[Tensor]:
    """The logits of `count` rows: of the policy and, where there is a reference, of the reference."""
    dtype = accumulation_dtype(rows.hidden.dtype)
    tensors = 1 if rows.ref_hidden is None else 2
    return [torch.empty(count, vocabulary, dtype=dtype, device=rows.hidden.device) for _ in range(tensors)]


def statistics_and_dz(rows: Rows, head: Head, buffers: list[Tensor], *, gradient: bool) -> tuple[TokenStats, Tensor]:
    """The statistics of C rows, and dz (C, V) in buffers[0]: d loss / d (h @ W^T + bias). `gradient` False: no dz.

    With raw = h @ W^T + bias, x = tanh(raw / softcap), scale = softcap / temperature, p = softmax(scale * x):

        dz = [ pg * (p - onehot) + kl_coef * p * (log p - log q - KL) ] * (1 - x^2) / temperature

    and without a soft cap x = raw / temperature, scale = 1, no factor 1 - x^2.
    """
    c = len(rows.hidden)
    x = buffers[0][:c]
    y = None if rows.ref_hidden is None else buffers[1][:c]
    _logits(rows.hidden, head, x)
    if y is not None:
        assert rows.ref_hidden is not None
        _logits(rows.ref_hidden, head, y)
    block = max(1, (CPU_ELEMENTS if x.device.type == "cpu" else GPU_ELEMENTS) // x.shape[1])
    work = torch.empty_like(x[:block])
    columns: list[tuple[Tensor, ...]] = []
    for start in range(0, c, block):
        some = slice(start, min(start + block, c))
        of_reference = None if y is None else y[some]
        columns.append(_block(x[some], of_reference, work, rows[some], head, gradient=gradient))
    logp, entropy, *of_kl = (torch.cat(column).squeeze(1) for column in zip(*columns, strict=True))
    ref_logp, kl = of_kl or (None, None)
    return TokenStats(logp, entropy, ref_logp, kl), x


def _block(x: Tensor, y: Tensor | None, work: Tensor, rows: Rows, head: Head, *, gradient: bool) -> tuple[Tensor, ...]:
    """(logp, entropy[, ref_logp, kl]), each (R, 1), of a few rows. x (R, V) becomes dz; y and work are used up."""
    work, target = work[: len(x)], rows.targets[:, None]
    capped = head.softcap is not None
    scale = head.softcap / head.temperature if head.softcap is not None else 1.0
    # e = exp(t) with t = scale * x - shift, log p = t - log(total), and p = e / total.
    if y is not None:
        shift_q = _squash(y, scale, capped)
        t_q = _centred(y, scale, shift_q, capped)
        total_q = _exponential(y, scale, shift_q, t_q, work).sum(-1, keepdim=True)
        ref_logp = _at(t_q, y, target, scale, shift_q) - total_q.log()
    shift = _squash(x, scale, capped)
    t = _centred(x, scale, shift, capped)
    x_target = x.gather(1, target)
    e = _exponential(x, scale, shift, t, work)
    total = e.sum(-1, keepdim=True)
    logp = _at(t, x, target, scale, shift) - total.log()
    mean_t = _dot(e, t) / total if t is not None else scale * _dot(e, x - 1) / total  # x - 1: exact near the cap
    entropy = total.log() - mean_t
    statistics: tuple[Tensor, ...] = (logp, entropy)
    if y is not None:
        d = torch.sub(x, y, out=y)  # log p - log q = scale * d - level
        level = shift - shift_q + (total / total_q).log()
        mean_d = scale * _dot(e, d) / total
        kl = mean_d - level
        d_target = scale * d.gather(1, target)
        statistics = (logp, entropy, ref_logp, kl)
    if not gradient:
        return statistics
    pg, kl_coef = rows.pg_coef[:, None], rows.kl_coef[:, None]
    at_target = pg * logp.expm1()  # p - 1 without cancellation
    factor = 1 / (total * head.temperature)
    out = e if capped else x
    if y is None:
        torch.mul(e, pg * factor, out=out)
    else:
        at_target += kl_coef * logp.exp() * (d_target - mean_d)  # log p - log q - KL, without their large parts
        torch.mul(_affine(d, kl_coef * scale * factor, (pg - kl_coef * mean_d) * factor), e, out=out)
    at_target /= head.temperature
    if capped:
        at_target *= 1 - x_target**2
        torch.ops.aten.tanh_backward.grad_input(e, x, grad_input=x)  # x <- e * (1 - x^2)
    x.scatter_(1, target, at_target)
    return statistics


def _squash(x: Tensor, scale: float, capped: bool) -> Tensor:
    """In place: tanh, or without a soft cap minus the row's maximum. (R, 1): the shift, a bound of scale * x."""
    if not capped:
        x.sub_(x.amax(-1, keepdim=True))
        return torch.zeros_like(x[:, :1])
    x.tanh_()
    return torch.full_like(x[:, :1], scale) if scale <= PLAIN_SHIFT else scale * x.amax(-1, keepdim=True)


def _centred(x: Tensor, scale: float, shift: Tensor, capped: bool) -> Tensor | None:
    """scale * x - shift as a tensor: x itself without a soft cap, None where a cap makes it cheap to do without."""
    if not capped:
        return x
    return None if scale <= PLAIN_SHIFT else (x - x.amax(-1, keepdim=True)) * scale  # exact at the maximum


def _exponential(x: Tensor, scale: float, shift: Tensor, t: Tensor | None, out: Tensor) -> Tensor:
    """out <- exp(scale * x - shift)"""
    return torch.add(-shift, x, alpha=scale, out=out).exp_() if t is None else torch.exp(t, out=out)


def _at(t: Tensor | None, x: Tensor, target: Tensor, scale: float, shift: Tensor) -> Tensor:
    """(scale * x - shift) at the target, (R, 1)"""
    return scale * x.gather(1, target) - shift if t is None else t.gather(1, target)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(R, V), (R, V) -> (R, 1). Summed by torch, pairwise: MKL's dot on CPUs other than Intel's is 40 times less exact
    over 256,000 terms, and bmm may round to TF32 on a GPU."""
    return (a * b).sum(-1, keepdim=True)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """In place: x (R, V) <- scale (R, 1) * x + shift (R, 1)"""
    if x.device.type == "cpu":  # broadcasting addcmul is not vectorised there
        for row, a, b in zip(x, scale.flatten().tolist(), shift, strict=True):
            torch.add(b, row, alpha=a, out=row)
        return x
    return torch.addcmul(shift, x, scale, out=x)


def _logits(hidden: Tensor, head: Head, out: Tensor) -> None:
    """out (C, V) <- (h @ W^T + bias) / softcap, or / temperature without a soft cap."""
    divisor = head.temperature if head.softcap is None else head.softcap
    dtype = multiplication_dtype(hidden)
    exact = dtype == out.dtype  # dividing h instead rounds no more than the matmul itself, and spares a pass
    h = hidden.to(dtype) / divisor if exact else hidden
    for columns, weight in _head_tiles(head.weight, dtype):
        into = out[:, columns]
        if exact:
            torch.mm(h, weight.T, out=into)
        elif h.is_cuda:
            torch.ops.aten.mm.dtype_out(h, weight.T, out.dtype, out=into)
        else:
            into.copy_(h @ weight.T)
    if not exact:
        out /= divisor
    if head.bias is not None:
        out += head.bias / divisor


def hidden_gradient(dz: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """(C, V) -> (C, D): dz @ W, multiplied in `dtype`, summed over tiles in the accumulation dtype."""
    dz = dz.to(dtype)
    total = torch.zeros(len(dz), head.weight.shape[1], dtype=accumulation_dtype(dtype), device=dz.device)
    for columns, weight in _head_tiles(head.weight, dtype):
        if dtype == total.dtype:
            total.addmm_(dz[:, columns], weight)
        else:
            total += dz[:, columns] @ weight
    return total


def add_weight_gradient(total: Tensor, dz: Tensor, hidden: Tensor, dtype: torch.dtype) -> None:
    """total (V, D) += dz^T @ h, a tile of the vocabulary at a time."""
    h = hidden.to(dtype)
    for columns in _columns(total):
        total[columns] += dz[:, columns].to(dtype).T @ h


def _columns(weight: Tensor) -> Iterator[slice]:
    step = max(1, TILE_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), step):
        yield slice(start, min(start + step, len(weight)))


def _head_tiles(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The head in `dtype`: whole where it is that already, else tile by tile."""
    if weight.dtype == dtype:
        yield slice(0, len(weight)), weight
        return
    for columns in _columns(weight):
        yield columns, weight[columns].to(dtype)
