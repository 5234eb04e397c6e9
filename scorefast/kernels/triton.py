"""The fused loss's kernels for CUDA: one sweep over the vocabulary for both models, one pass to dz, one matmul.

`_sweep` multiplies a tile of the head with both models' hidden states at once (the tile is read once), reduces the
tile to a few numbers a row in registers, and stores in the hidden states' dtype what the gradient needs:
e = exp(z - max of the tile) * (1 - x^2), and d = z - z_ref minus its mean in the tile. Tiles are then combined into
the rows' statistics, `_dz` turns e and d into dz in place, and dz @ W is a plain matmul, or `_skipping_matmul`, which
leaves out tiles of little weight. Nothing here synchronises with the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scorefast.kernels.chunked import Head, Rows, TokenStats

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: on the CPU, for tests
SKIP_ROWS = 64  # rows that share their choice of skipped tiles
SKIP_WARPS, SKIP_STAGES = 8, 2
DZ_COLUMNS = 2048  # of a row, a program of _dz


@dataclass(frozen=True)
class Tile:
    """rows x vocabulary of the sweep's two accumulators, depth of its matmul's steps."""

    rows: int
    vocabulary: int
    depth: int
    warps: int
    stages: int


def tile_for(capability: tuple[int, int], dtype: torch.dtype, depth: int = 16) -> Tile:
    """As deep a pipeline as fits a block's shared memory: 163 KB on sm_80, 227 on sm_90 and sm_100, else 99.

    Two accumulators of 64 x 128 are the most whose epilogue stays in registers; see benchmarks/results/kernels.md.
    """
    if dtype.itemsize == 4 or depth % 16:  # exact float32 multiplication, or rows that no vector load can take
        return Tile(rows=32, vocabulary=64, depth=32, warps=4, stages=2)
    large = capability in ((8, 0), (9, 0), (10, 0))
    return Tile(rows=64, vocabulary=128, depth=64, warps=8, stages=4 if large else 3)


def skip_depth(dtype: torch.dtype, depth: int = 16) -> int:
    """Columns of W that a program of _skipping_matmul multiplies with."""
    return 64 if dtype.itemsize == 4 or depth % 16 else 128


def _tile(like: Tensor, depth: int) -> Tile:
    if INTERPRETED:
        return Tile(rows=64, vocabulary=512, depth=256, warps=4, stages=1)
    return tile_for(torch.cuda.get_device_capability(like.device), like.dtype, depth)


def bytes_per_row(rows: Rows, vocabulary: int) -> int:
    """e and d, and six float32 a tile."""
    stored = 1 if rows.ref_hidden is None else 2
    tiles = triton.cdiv(vocabulary, _tile(rows.hidden, rows.hidden.shape[1]).vocabulary)
    return vocabulary * stored * rows.hidden.dtype.itemsize + tiles * 6 * 4


def make_buffers(rows: Rows, count: int, vocabulary: int) -> list[Tensor]:
    """e and, where there is a reference, d: each (count, V)."""
    tensors = 1 if rows.ref_hidden is None else 2
    return [rows.hidden.new_empty(count, vocabulary) for _ in range(tensors)]


def statistics_and_dz(rows: Rows, head: Head, buffers: list[Tensor], *, gradient: bool) -> tuple[TokenStats, Tensor]:
    """As `chunked.statistics_and_dz`, with dz in the hidden states' dtype; the head is contiguous and of that dtype."""
    hidden = rows.hidden.contiguous()
    with_ref = rows.ref_hidden is not None
    ref_hidden = rows.ref_hidden.contiguous() if rows.ref_hidden is not None else hidden
    weight = head.weight
    (c, depth), v = hidden.shape, len(weight)
    scale = 1.0 if head.softcap is None else head.softcap / head.temperature
    divisor = head.temperature if head.softcap is None else head.softcap
    tile = _tile(hidden, depth)
    tiles = triton.cdiv(v, tile.vocabulary)
    parts = hidden.new_empty(c, 6, tiles, dtype=torch.float32)
    of_target = hidden.new_full((3, c), torch.nan, dtype=torch.float32)  # what a target out of range leaves as it is
    targets = rows.targets.contiguous()
    e, d = buffers[0][:c], buffers[-1][:c]
    _sweep[(triton.cdiv(c, tile.rows) * tiles,)](
        hidden, ref_hidden, weight, weight if head.bias is None else head.bias, targets, e, d, parts, of_target,
        c, v, depth, tiles, 1 / divisor, scale,
        WITH_REF=with_ref, WITH_BIAS=head.bias is not None, CAPPED=head.softcap is not None, STORE=gradient,
        EVEN_DEPTH=depth % tile.depth == 0, ROWS=tile.rows, VOCABULARY=tile.vocabulary, DEPTH=tile.depth,
        WIDEN=INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    stats, peak, total, mean_d = _combine(parts, of_target, with_ref)
    if not gradient:
        return stats, e
    pg, kl_coef = rows.pg_coef, rows.kl_coef
    factor = 1 / (total * head.temperature)
    at_target = pg * stats.logp.expm1()  # p - 1 without cancellation
    if mean_d is not None:
        at_target = at_target + kl_coef * stats.logp.exp() * (of_target[2] - mean_d)
    at_target = at_target / head.temperature
    if head.softcap is not None:
        at_target = at_target * (1 - (of_target[0] / scale) ** 2)
    per_row = torch.stack((peak, pg * factor, kl_coef * factor, at_target, peak if mean_d is None else mean_d))
    group = triton.next_power_of_2(tiles) if INTERPRETED else max(1, DZ_COLUMNS // tile.vocabulary)
    _dz[(c, triton.cdiv(tiles, group))](
        e, d, parts, per_row, targets, c, v, tiles,
        WITH_REF=with_ref, GROUP=group, VOCABULARY=tile.vocabulary,
    )  # fmt: skip
    return stats, e


def _combine(parts: Tensor, of_target: Tensor, with_ref: bool) -> tuple[TokenStats, Tensor, Tensor, Tensor | None]:
    """(C, 6, tiles) -> statistics of the rows; max z, sum exp(z - max), and the mean of d = z - z_ref under p."""
    peak_t, sum_t, sum_z_t, ref_peak_t, ref_sum_t, mean_d_t = parts.unbind(1)
    peak, share, total = _log_sum_exp(peak_t, sum_t)
    logp = of_target[0] - peak - total.log()
    mean_z = (share * (sum_z_t + sum_t * (peak_t - peak[:, None]))).sum(1) / total  # of z - peak
    entropy = total.log() - mean_z
    if not with_ref:
        return TokenStats(logp, entropy, None, None), peak, total, None
    ref_peak, _, ref_total = _log_sum_exp(ref_peak_t, ref_sum_t)
    ref_logp = of_target[1] - ref_peak - ref_total.log()
    level = peak - ref_peak + (total / ref_total).log()
    mean_d = (share * sum_t * mean_d_t).sum(1) / total
    return TokenStats(logp, entropy, ref_logp, mean_d - level), peak, total, mean_d


def _log_sum_exp(peak_t: Tensor, sum_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per tile (C, tiles) -> the row's maximum (C,), each tile's exp(its maximum - that), the row's sum (C,)."""
    peak = peak_t.amax(1)
    share = (peak_t - peak[:, None]).exp()
    return peak, share, (share * sum_t).sum(1)


def hidden_gradient_skipping(dz: Tensor, head: Head, skip: float) -> tuple[Tensor, Tensor]:
    """dz @ W (C, D) without the lightest tiles of the vocabulary, and the share of ||dz_n||_1 left out, (C,).

    For a block of rows, a tile weighs max_n ||dz_n over the tile||_1 / ||dz_n||_1. The lightest are left out while
    their weights sum to at most `skip`; so no row loses more than that share, and no element of its gradient more
    than skip * ||dz_n||_1 * max|W|.
    """
    c, v = dz.shape
    weight = head.weight
    width = _tile(dz, weight.shape[1]).vocabulary
    share = tile_shares(dz, width)  # (C, tiles)
    order, kept = choose_tiles(share, skip)
    out = dz.new_empty(c, weight.shape[1], dtype=torch.float32)
    depth = skip_depth(dz.dtype, weight.shape[1])
    _skipping_matmul[(triton.cdiv(weight.shape[1], depth), len(kept))](
        dz, weight, order, kept, out, c, v, weight.shape[1], order.shape[1],
        ROWS=SKIP_ROWS, VOCABULARY=width, DEPTH=depth, WIDEN=INTERPRETED, num_warps=SKIP_WARPS, num_stages=SKIP_STAGES,
    )  # fmt: skip
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=dz.device).expand_as(order))
    left_out = (rank >= kept[:, None]).repeat_interleave(SKIP_ROWS, 0, output_size=len(kept) * SKIP_ROWS)[:c]
    return out, (share * left_out).sum(1)


def tile_shares(dz: Tensor, width: int) -> Tensor:
    """(C, V) -> (C, tiles) float32: ||dz_n over the tile||_1 / ||dz_n||_1"""
    c, v = dz.shape
    whole = v - v % width
    mass = torch.linalg.vector_norm(dz[:, :whole].reshape(c, -1, width), ord=1, dim=-1, dtype=torch.float32)
    if whole < v:
        rest = torch.linalg.vector_norm(dz[:, whole:], ord=1, dim=-1, keepdim=True, dtype=torch.float32)
        mass = torch.cat((mass, rest), 1)
    return mass / mass.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def choose_tiles(share: Tensor, skip: float) -> tuple[Tensor, Tensor]:
    """(C, tiles) -> per block of SKIP_ROWS rows: tiles, heaviest first (blocks, tiles), and how many stay (blocks,)."""
    blocks = triton.cdiv(len(share), SKIP_ROWS)
    padded = torch.nn.functional.pad(share, (0, 0, 0, blocks * SKIP_ROWS - len(share)))
    weight, order = padded.view(blocks, SKIP_ROWS, -1).amax(1).sort(1, descending=True)
    from_here_on = weight.double().flip(1).cumsum(1).flip(1)  # what would be lost from this tile on
    return order, (~(from_here_on <= skip)).sum(1)  # NaN stays


@triton.jit
def _tanh(x):
    t = tl.exp(-2 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1 - t) / (1 + t)
    s = x * x
    return tl.where(s < 0.0225, x * (1 + s * (-1 / 3 + s * (2 / 15 - s * 17 / 315))), far)  # 1 - t cancels near 0


@triton.jit
def _products(
    h_ptr, r_ptr, w_ptr, b_ptr, first_row, first_column, row, column, columns, row_ok, column_ok, D,
    WITH_REF: tl.constexpr, WITH_BIAS: tl.constexpr, EVEN_DEPTH: tl.constexpr, ROWS: tl.constexpr,
    VOCABULARY: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """h @ W^T + bias and r @ W^T + bias of one tile, each ROWS x VOCABULARY in float32.

    Out of range, the tile's first row or column is multiplied instead: the caller masks the result.
    """
    depths = tl.arange(0, DEPTH)
    # int64 for where the tile begins, int32 within it
    h_ptr += first_row.to(tl.int64) * D
    r_ptr += first_row.to(tl.int64) * D
    w_ptr += first_column.to(tl.int64) * D
    from_rows = tl.where(row_ok, row, 0)[:, None] * D + depths[None, :]
    from_columns = tl.where(column_ok, column, 0)[None, :] * D + depths[:, None]
    p = tl.zeros((ROWS, VOCABULARY), tl.float32)
    q = tl.zeros((ROWS, VOCABULARY), tl.float32)
    for k in range(0, D, DEPTH):
        if EVEN_DEPTH:
            w = tl.load(w_ptr + from_columns + k)
            h = tl.load(h_ptr + from_rows + k)
        else:
            w = tl.load(w_ptr + from_columns + k, mask=(depths + k < D)[:, None], other=0.0)
            h = tl.load(h_ptr + from_rows + k, mask=(depths + k < D)[None, :], other=0.0)
        if WIDEN:
            w, h = w.to(tl.float32), h.to(tl.float32)
        p = tl.dot(h, w, p, input_precision="ieee")
        if WITH_REF:
            if EVEN_DEPTH:
                r = tl.load(r_ptr + from_rows + k)
            else:
                r = tl.load(r_ptr + from_rows + k, mask=(depths + k < D)[None, :], other=0.0)
            if WIDEN:
                r = r.to(tl.float32)
            q = tl.dot(r, w, q, input_precision="ieee")
    if WITH_BIAS:
        bias = tl.load(b_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
        p += bias
        if WITH_REF:
            q += bias
    return p, q


@triton.jit
def _sweep(
    h_ptr, r_ptr, w_ptr, b_ptr, y_ptr, e_ptr, d_ptr, parts_ptr, of_target_ptr,
    C, V, D, TILES, inverse, scale,
    WITH_REF: tl.constexpr, WITH_BIAS: tl.constexpr, CAPPED: tl.constexpr, STORE: tl.constexpr,
    EVEN_DEPTH: tl.constexpr, ROWS: tl.constexpr, VOCABULARY: tl.constexpr, DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile, ROWS x VOCABULARY: z of both models, their sums relative to the tile's maximum, e and d."""
    # Neighbouring programs share a tile of W, which then stays in L2.
    row_blocks = tl.cdiv(C, ROWS)
    tile = tl.program_id(0) // row_blocks
    first_row, first_column = (tl.program_id(0) % row_blocks) * ROWS, tile * VOCABULARY
    row, column = tl.arange(0, ROWS), tl.arange(0, VOCABULARY)
    rows, columns = first_row + row, first_column + column
    row_ok, column_ok = rows < C, columns < V
    p, q = _products(
        h_ptr, r_ptr, w_ptr, b_ptr, first_row, first_column, row, column, columns, row_ok, column_ok, D,
        WITH_REF, WITH_BIAS, EVEN_DEPTH, ROWS, VOCABULARY, DEPTH, WIDEN,
    )  # fmt: skip
    p *= inverse
    if CAPPED:
        p = _tanh(p)
    y = tl.load(y_ptr + rows, mask=row_ok, other=0)
    has_target = row_ok & (y >= first_column) & (y < tl.minimum(first_column + VOCABULARY, V))
    at_target = column[None, :] == tl.where(has_target, y - first_column, -1).to(tl.int32)[:, None]
    part = rows.to(tl.int64) * 6 * TILES + tile
    begin = first_row.to(tl.int64) * V + first_column
    into = row[:, None] * V + column[None, :]
    ok = row_ok[:, None] & column_ok[None, :]

    z = tl.where(column_ok[None, :], p * scale, -float("inf"))
    peak = tl.max(z, 1)
    e = tl.exp(z - peak[:, None])
    tl.store(parts_ptr + part, peak, mask=row_ok)
    tl.store(parts_ptr + TILES + part, tl.sum(e, 1), mask=row_ok)
    # p * scale, not z: no infinity times zero in the columns that do not exist
    tl.store(parts_ptr + 2 * TILES + part, tl.sum(e * (p * scale - peak[:, None]), 1), mask=row_ok)
    tl.store(of_target_ptr + rows, tl.sum(tl.where(at_target, p * scale, 0.0), 1), mask=has_target)
    if WITH_REF:
        q *= inverse
        if CAPPED:
            q = _tanh(q)
        d = (p - q) * scale
        z = tl.where(column_ok[None, :], q * scale, -float("inf"))
        peak = tl.max(z, 1)
        tl.store(parts_ptr + 3 * TILES + part, peak, mask=row_ok)
        tl.store(parts_ptr + 4 * TILES + part, tl.sum(tl.exp(z - peak[:, None]), 1), mask=row_ok)
        mean_d = tl.sum(e * d, 1) / tl.sum(e, 1)
        tl.store(parts_ptr + 5 * TILES + part, mean_d, mask=row_ok)
        tl.store(of_target_ptr + C + rows, tl.sum(tl.where(at_target, q * scale, 0.0), 1), mask=has_target)
        tl.store(of_target_ptr + 2 * C + rows, tl.sum(tl.where(at_target, d, 0.0), 1), mask=has_target)
        if STORE:
            d -= mean_d[:, None]  # what is left may be rounded to 16 bit: a common offset of the logits is gone
            if d_ptr.dtype.element_ty == tl.float16:
                d = tl.minimum(tl.maximum(d, -65504.0), 65504.0)
            tl.store(d_ptr + begin + into, d.to(d_ptr.dtype.element_ty), mask=ok)
    if STORE:
        if CAPPED:
            e *= 1 - p * p
        tl.store(e_ptr + begin + into, e.to(e_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _dz(
    e_ptr, d_ptr, parts_ptr, per_row_ptr, y_ptr, C, V, TILES,
    WITH_REF: tl.constexpr, GROUP: tl.constexpr, VOCABULARY: tl.constexpr,
):  # fmt: skip
    """GROUP tiles of one row, in place: e <- e * exp(tile's maximum - row's) * (a + b * d); at the target, its own."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    columns = tiles[:, None] * VOCABULARY + tl.arange(0, VOCABULARY)[None, :]
    ok = columns < V
    peak = tl.load(per_row_ptr + row)
    factor = tl.load(per_row_ptr + C + row)
    at_target = tl.load(per_row_ptr + 3 * C + row)
    tile_peak = tl.load(parts_ptr + row * 6 * TILES + tiles, mask=tiles < TILES, other=0.0)
    e = tl.load(e_ptr + row * V + columns, mask=ok, other=0.0).to(tl.float32)
    if WITH_REF:
        d = tl.load(d_ptr + row * V + columns, mask=ok, other=0.0).to(tl.float32)
        tile_d = tl.load(parts_ptr + (row * 6 + 5) * TILES + tiles, mask=tiles < TILES, other=0.0)
        d += (tile_d - tl.load(per_row_ptr + 4 * C + row))[:, None]
        factor += tl.load(per_row_ptr + 2 * C + row) * d
    dz = e * tl.exp(tile_peak - peak)[:, None] * factor
    dz = tl.where(columns == tl.load(y_ptr + row), at_target, dz)
    tl.store(e_ptr + row * V + columns, dz.to(e_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _skipping_matmul(
    dz_ptr, w_ptr, order_ptr, kept_ptr, out_ptr, C, V, D, TILES,
    ROWS: tl.constexpr, VOCABULARY: tl.constexpr, DEPTH: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out (ROWS x DEPTH) = sum over the tiles kept for this block of rows of dz[:, tile] @ W[tile]"""
    block = tl.program_id(1)
    rows = block * ROWS + tl.arange(0, ROWS)
    depths = tl.program_id(0) * DEPTH + tl.arange(0, DEPTH)
    row_ok, depth_ok = rows < C, depths < D
    total = tl.zeros((ROWS, DEPTH), tl.float32)
    for i in range(tl.load(kept_ptr + block)):
        columns = tl.load(order_ptr + block * TILES + i) * VOCABULARY + tl.arange(0, VOCABULARY)
        ok = columns < V
        dz = tl.load(
            dz_ptr + rows.to(tl.int64)[:, None] * V + columns[None, :], mask=row_ok[:, None] & ok[None, :], other=0.0
        )
        w = tl.load(
            w_ptr + columns.to(tl.int64)[:, None] * D + depths[None, :], mask=ok[:, None] & depth_ok[None, :], other=0.0
        )
        if WIDEN:
            dz, w = dz.to(tl.float32), w.to(tl.float32)
        total = tl.dot(dz, w, total, input_precision="ieee")
    into = rows.to(tl.int64)[:, None] * D + depths[None, :]
    tl.store(out_ptr + into, total, mask=row_ok[:, None] & depth_ok[None, :])
