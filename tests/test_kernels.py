"""The loss against its definition in float64: every implementation, every statistic, every gradient, and the edges.

The triton kernels run where there is a CUDA GPU, and under Triton's interpreter: TRITON_INTERPRET=1 pytest -k triton
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from scorefast.kernels import chunked, fused, resolve_impl, score_loss
from scorefast.kernels.reference import log_softmax_head
from scorefast.kernels.triton import INTERPRETED

CUDA = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(
    not (CUDA or INTERPRETED), reason="neither a CUDA GPU nor Triton's interpreter (TRITON_INTERPRET=1)"
)
needs_gpu = pytest.mark.skipif(
    not CUDA or INTERPRETED, reason="no CUDA GPU (the interpreter multiplies 16 bit wrongly)"
)
FUSED = ["chunked", pytest.param("triton", marks=needs_triton)]
EVERY = ["reference", *FUSED]
HALF = [torch.bfloat16, torch.float16]
OUTPUTS = ("loss", "logp", "entropy", "ref_logp", "kl", "grad_hidden", "grad_weight", "grad_bias")


def device_for(impl):
    return "cuda" if CUDA and impl == "triton" and not INTERPRETED else "cpu"


def case(n=7, v=257, d=48, dtype=torch.float64, seed=0, scale=1.0, masked=0.0):
    """hidden, ref_hidden, weight, targets, pg, kl; `masked` is the share of rows without coefficients or a target."""
    g = torch.Generator().manual_seed(seed)
    hidden, ref = (torch.randn(n, d, generator=g, dtype=torch.float64) * scale for _ in range(2))
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=g)
    pg, kl = torch.randn(n, generator=g), torch.rand(n, generator=g)
    off = torch.rand(n, generator=g) < masked
    pg[off], kl[off], targets[off] = 0.0, 0.0, -100
    return hidden.to(dtype), ref.to(dtype), weight.to(dtype), targets, pg, kl


def by_definition(hidden, ref, weight, targets, pg, kl, softcap, temperature):
    """sum_n [ -pg_n log p_n(y_n) + kl_n sum_v p log(p / q) ], written token by token with torch.distributions."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(hidden)):
        dists = []
        for h in (hidden[n], ref[n]):
            z = weight @ h
            z = softcap * torch.tanh(z / softcap) if softcap else z
            dists.append(torch.distributions.Categorical(logits=z / temperature))
        p, q = dists
        total = total - pg[n] * p.log_prob(targets[n]) + kl[n] * torch.distributions.kl_divergence(p, q)
    return total


def outputs(impl, tensors, bias=None, device="cpu", **options):
    """Loss, statistics and gradients of hidden, weight and bias, by name, on the CPU in float64."""
    hidden, ref, weight, targets, pg, kl = (None if t is None else t.to(device) for t in tensors)
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    bias = None if bias is None else bias.detach().to(device).requires_grad_()
    loss, stats = score_loss(hidden, ref, weight, targets, pg, kl, bias=bias, impl=impl, **options)
    loss.backward()
    values = [loss, stats.logp, stats.entropy, stats.ref_logp, stats.kl]
    values += [None if t is None else t.grad for t in (hidden, weight, bias)]
    return {k: v.detach().cpu().double() for k, v in zip(OUTPUTS, values, strict=True) if v is not None}


def roundings(wide, truth, bias, softcap=None, temperature=1.0):
    """How far each float32 output may move if every logit is rounded once, to first order; from the truth.

    d logp = dz_y - p.dz,  d entropy = -p (log p + entropy).dz,  d KL = p (u - KL).dz + (q - p).dz_ref with
    u = log p - log q;  p itself, and with it the gradients, move by a factor of 1 +- dz. What the gradients have of the
    KL, kl p (u - KL) in every logit, moves by as much as u besides: by kl p (dz + dz_ref).
    """
    hidden, ref, weight, _, pg, kl = wide
    no_ref, ref = ref is None, hidden if ref is None else ref
    if len(hidden) == 0:
        return dict.fromkeys(OUTPUTS, 0.0)
    p, q = (log_softmax_head(h, weight, softcap, temperature, bias) for h in (hidden, ref))
    raw = max((h @ weight.T + (0 if bias is None else bias)).abs().max().item() for h in (hidden, ref))
    dz = torch.finfo(torch.float32).eps * (raw if softcap is None else min(raw, softcap)) / temperature
    entropy = -(p.exp() * p).sum(-1, keepdim=True)
    kl_n = (p.exp() * (p - q)).sum(-1, keepdim=True)
    of_entropy = dz * (p.exp() * (p + entropy).abs()).sum(-1)
    of_kl = dz * ((p.exp() * (p - q - kl_n).abs()).sum(-1) + 2)
    of_loss = (pg.abs() * 2 * dz + kl.abs() * of_kl).sum()
    known = {"entropy": of_entropy.max(), "kl": of_kl.max(), "logp": 2 * dz, "ref_logp": 2 * dz, "loss": of_loss}
    moved = torch.zeros_like(p) if no_ref else 2 * dz / temperature * kl.abs()[:, None] * p.exp()
    of_u = {"grad_hidden": moved @ weight.abs(), "grad_weight": moved.T @ hidden.abs(), "grad_bias": moved.sum(0)}
    relative = {name: dz * value.abs().max() + of_u[name].max() for name, value in truth.items() if name in of_u}
    return known | relative


def assert_as_near_the_truth_as_reference(impl, tensors, bias=None, **options):
    """max |truth - ours| <= max |truth - reference of the same dtype| + roundings, output by output.

    The truth is the reference in float64 on the same (rounded) inputs; the roundings are one of every logit and a few
    of the result (float32's for statistics, the inputs' dtype's for gradients).
    """
    wide = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]
    truth = outputs("reference", wide, None if bias is None else bias.double(), **options)
    same = outputs("reference", tensors, bias, **options)
    ours = outputs(impl, tensors, bias, device_for(impl), **options)
    of_logits = roundings(wide, truth, None if bias is None else bias.double(), **options)
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(ours[name].isnan(), value.isnan())
        if not value.isfinite().any():
            continue
        value = value.nan_to_num()
        limit, error = ((value - other[name].nan_to_num()).abs().max() for other in (same, ours))
        eps = torch.finfo(tensors[0].dtype if name.startswith("grad") else torch.float32).eps
        allowed = limit + 4 * eps * max(1.0, value.abs().max()) + of_logits[name]
        assert error <= allowed, f"{name}: {error:.2e} from the truth, reference {limit:.2e}"


# --- the specification itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("n", "v", "d"), [(1, 257, 48), (7, 1031, 130), (53, 257, 48)])
def test_value_and_gradient_match_the_definition(impl, n, v, d, softcap, temperature):
    hidden, ref, weight, targets, pg, kl = case(n, v, d)
    mine, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, _ = score_loss(mine, ref, weight, targets, pg, kl, softcap=softcap, temperature=temperature, impl=impl)
    expected = by_definition(theirs, ref, weight, targets, pg.double(), kl.double(), softcap, temperature)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_gradient_formula_of_the_derivation():
    """dz = pg (p - onehot) + kl p (log p - log q - KL), times the soft cap's 1 - tanh^2, times 1 / temperature."""
    softcap, temperature = 30.0, 0.7
    hidden, ref, weight, targets, pg, kl = case()
    hidden.requires_grad_()
    loss, stats = score_loss(
        hidden, ref, weight, targets, pg, kl, softcap=softcap, temperature=temperature, impl="reference"
    )
    loss.backward()
    raw = hidden.detach() @ weight.T
    p = torch.log_softmax(softcap * torch.tanh(raw / softcap) / temperature, -1)
    q = torch.log_softmax(softcap * torch.tanh(ref @ weight.T / softcap) / temperature, -1)
    onehot = torch.nn.functional.one_hot(targets, weight.shape[0])
    kl_n = (p.exp() * (p - q)).sum(-1, keepdim=True)
    dz = pg[:, None] * (p.exp() - onehot) + kl[:, None] * p.exp() * (p - q - kl_n)
    dz = dz * (1 - torch.tanh(raw / softcap) ** 2) / temperature
    torch.testing.assert_close(hidden.grad, dz @ weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stats.kl.double(), kl_n.squeeze(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_gradcheck_of_hidden_weight_and_bias(impl):
    hidden, ref, weight, targets, pg, kl = case(3, 17, 5)
    bias = torch.randn(17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (hidden, weight, bias):
        t.requires_grad_()

    def through_policy(h, w, b):
        # q is a constant of the loss, so the finite differences must not move it either.
        return score_loss(h, None, w, targets, pg, torch.zeros_like(kl), bias=b, softcap=30.0, impl=impl)[0]

    def through_hidden(h):
        return score_loss(h, ref, weight.detach(), targets, pg, kl, softcap=30.0, temperature=1.3, impl=impl)[0]

    assert torch.autograd.gradcheck(through_policy, (hidden, weight, bias))
    assert torch.autograd.gradcheck(through_hidden, (hidden,))


# --- every implementation against it ---------------------------------------------------------------------------

SHAPES = [(1, 257, 48), (7, 4099, 130), (253, 257, 130), (253, 4099, 48), (7, 50003, 48)]


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("n", "v", "d"), SHAPES)
def test_fused_is_as_near_the_truth_as_reference(impl, n, v, d, softcap, temperature):
    tensors = case(n, v, d, torch.float32, scale=0.5, masked=0.2)
    bias = torch.randn(v, generator=torch.Generator().manual_seed(2))
    assert_as_near_the_truth_as_reference(impl, tensors, bias, softcap=softcap, temperature=temperature)


@pytest.mark.parametrize("impl", ["chunked", pytest.param("triton", marks=[needs_gpu, pytest.mark.gpu])])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(("n", "v", "d"), [(1, 257, 48), (253, 4099, 130), (53, 50003, 48)])
def test_fused_in_16_bit_is_as_near_the_truth_as_reference(impl, n, v, d, dtype, softcap):
    tensors = case(n, v, d, dtype, scale=0.3, masked=0.2)
    assert_as_near_the_truth_as_reference(impl, tensors, softcap=softcap)


def test_the_path_for_native_16_bit_matmuls_is_as_near_the_truth(monkeypatch):
    """CPUs with AMX, and GPUs, multiply in the inputs' dtype; a CPU without it can still run that path."""
    monkeypatch.setattr(chunked, "multiplication_dtype", lambda hidden: hidden.dtype)
    assert_as_near_the_truth_as_reference("chunked", case(53, 4099, 130, torch.bfloat16, scale=0.3), softcap=30.0)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("kind", ["one-hot", "all equal", "huge", "near the reference"])
def test_extreme_logits(impl, kind, softcap):
    hidden, ref, weight, targets, pg, kl = case(9, 1031, 48, torch.float32, masked=0.2)
    if kind == "one-hot":
        hidden = 10 * weight[targets.clamp(min=0)]
    elif kind == "all equal":
        hidden = torch.zeros_like(hidden)
    elif kind == "huge":  # +-1e4 before the soft cap
        hidden, ref = hidden * 500, ref * 500
    else:
        ref = hidden + 1e-5 * ref
    assert_as_near_the_truth_as_reference(impl, (hidden, ref, weight, targets, pg, kl), softcap=softcap)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("drift", [3e-4, 3e-2])
def test_a_small_kl_is_right_to_the_rounding_of_the_logits(impl, drift):
    """True values 2e-7 .. 7e-7 and 2e-3 .. 7e-3, of logits up to 15: one rounding of those is 1e-6."""
    hidden, ref, weight, targets, pg, kl = case(16, 4099, 48, torch.float32, scale=0.5)
    ref = hidden + drift * ref
    tensors = (hidden, ref, weight, targets, pg, kl)
    truth = outputs("reference", [t.double() if t.is_floating_point() else t for t in tensors], softcap=30.0)["kl"]
    ours = outputs(impl, tensors, device=device_for(impl), softcap=30.0)["kl"]
    assert ours.min() >= -1e-6
    torch.testing.assert_close(ours, truth, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("impl", ["chunked", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("offset", [0.0, 10.0, 40.0])
def test_16_bit_storage_survives_a_common_offset_of_the_logits(impl, offset, monkeypatch):
    """A softmax does not see it, but z - z_ref does: rounded as it is, its gradient would be noise."""
    hidden, ref, weight, targets, _, _ = case(16, 4099, 48, scale=0.3)
    weight[:, 0] = 1.0
    ref = hidden + 0.05 * ref
    hidden[:, 0] = ref[:, 0] + offset
    tensors = (hidden.float(), ref.float(), weight.float(), targets, torch.zeros(16), torch.ones(16))
    truth = outputs("reference", [t.double() if t.is_floating_point() else t for t in tensors])
    if impl == "triton" and INTERPRETED:  # its matmuls have to stay in float32
        from scorefast.kernels import triton

        make = triton.make_buffers
        monkeypatch.setattr(triton, "make_buffers", lambda *a: [b.bfloat16() for b in make(*a)])
    elif impl == "triton":
        tensors = [t.bfloat16() if t.is_floating_point() and t.ndim == 2 else t for t in tensors]
        truth = outputs("reference", [t.double() if t.is_floating_point() else t for t in tensors])
    ours = outputs(impl, tensors, device=device_for(impl))
    error = (ours["grad_hidden"] - truth["grad_hidden"]).norm() / truth["grad_hidden"].norm()
    assert error < 0.02


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize(("softcap", "temperature"), [(30.0, 0.05), (1000.0, 1.0), (1000.0, 0.05), (None, 0.05)])
def test_cold_and_loosely_capped_logits(impl, softcap, temperature):
    tensors = case(53, 1031, 48, torch.float32, scale=0.5, masked=0.2)
    assert_as_near_the_truth_as_reference(impl, tensors, softcap=softcap, temperature=temperature)


@pytest.mark.parametrize("impl", EVERY)
def test_equal_models_have_zero_kl_and_no_kl_gradient(impl):
    dtype = torch.float32 if impl == "triton" else torch.float64
    hidden, _, weight, targets, _, kl = case(dtype=dtype)
    got = outputs(impl, (hidden, hidden, weight, targets, torch.zeros(7), kl), device=device_for(impl), softcap=30.0)
    assert got["kl"].abs().max() == 0
    assert got["grad_hidden"].abs().max() < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("impl", EVERY)
def test_uniform_logits_give_log_v(impl):
    v = 100
    tensors = torch.zeros(2, 4), None, torch.randn(v, 4), torch.tensor([0, 99]), torch.ones(2), torch.zeros(2)
    got = outputs(impl, tensors, device=device_for(impl))
    torch.testing.assert_close(got["logp"], torch.full((2,), -math.log(v)).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(got["entropy"], torch.full((2,), math.log(v)).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", EVERY)
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    v=st.integers(2, 300),
    d=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    softcap=st.sampled_from([None, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_statistics_stay_finite_and_kl_non_negative(impl, n, v, d, scale, softcap, dtype, seed):
    if impl == "triton" and INTERPRETED:
        dtype = torch.float32
    tensors = [t.to(device_for(impl)) for t in case(n, v, d, dtype, seed, scale)]
    tensors[0].requires_grad_()
    loss, stats = score_loss(*tensors, softcap=softcap, impl=impl)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(tensors[0].grad).all()
    assert (stats.kl >= -1e-5 * (1 + stats.kl.abs())).all()
    assert (stats.logp <= 1e-6).all()
    assert (stats.entropy >= -1e-5).all()
    assert loss.dtype == torch.float32
    assert stats.logp.shape == (n,)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), v=st.integers(2, 500), d=st.integers(1, 40), rows=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_the_result_does_not_depend_on_the_chunks(n, v, d, rows, seed):
    tensors = case(n, v, d, seed=seed, masked=0.3)
    whole = outputs("chunked", tensors, softcap=30.0)
    cut = outputs("chunked", tensors, softcap=30.0, buffer_bytes=2 * 8 * v * rows)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-10, atol=1e-12, equal_nan=True)


# --- what is not computed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", EVERY)
def test_statistics_are_nan_exactly_where_no_coefficient_asks_for_them(impl):
    hidden, ref, weight, targets, _, _ = case(dtype=torch.float32)
    pg = torch.tensor([1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
    kl = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5])
    targets[2] = -100
    got = outputs(impl, (hidden, ref, weight, targets, pg, kl), device=device_for(impl))
    idle = (pg == 0) & (kl == 0)
    assert torch.equal(got["logp"].isnan(), idle)
    assert torch.equal(got["entropy"].isnan(), idle)
    assert torch.equal(got["kl"].isnan(), kl == 0)
    assert torch.equal(got["ref_logp"].isnan(), kl == 0)
    assert torch.equal(got["grad_hidden"].abs().sum(1) == 0, idle)


def test_rows_without_coefficients_reach_no_matmul_and_those_without_kl_no_reference_pass(monkeypatch):
    hidden, ref, weight, targets, _, _ = case(100, 257, 48, torch.float32)
    pg, kl = torch.zeros(100), torch.zeros(100)
    pg[:30], kl[20:50] = 1.0, 1.0  # 20 rows of policy gradient alone, 30 with KL, 50 idle
    multiplied, logits = [], chunked._logits
    monkeypatch.setattr(chunked, "_logits", lambda h, *rest: (multiplied.append(len(h)), logits(h, *rest)))
    outputs("chunked", (hidden, ref, weight, targets, pg, kl))
    assert sorted(multiplied) == [20, 30, 30]
    multiplied.clear()
    score_loss(hidden, ref, weight, targets, torch.zeros(100), torch.zeros(100), impl="chunked")
    assert multiplied == []


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("which", ["no rows", "all idle", "no kl", "no pg"])
def test_edges(impl, which):
    tensors = list(case(0 if which == "no rows" else 7, dtype=torch.float32))
    if which in ("all idle", "no kl"):
        tensors[5] = torch.zeros(7)
    if which in ("all idle", "no pg"):
        tensors[4] = torch.zeros(7)
    assert_as_near_the_truth_as_reference(impl, tensors, softcap=30.0)
    if which in ("no rows", "all idle"):
        got = outputs(impl, tensors, device=device_for(impl))
        assert got["loss"] == 0
        assert got["grad_weight"].abs().sum() == 0


def test_gradients_are_made_only_for_what_requires_them():
    hidden, ref, weight, targets, pg, kl = case(dtype=torch.float32)
    for wants in ([True, False, False], [False, True, False], [False, False, False]):
        *_, of_hidden, of_weight, of_bias = fused.score_loss_op(
            hidden, ref, weight, targets, pg, kl, None, 30.0, 1.0, "chunked", 0, 0.0, wants
        )
        assert [t.numel() > 0 for t in (of_hidden, of_weight, of_bias)] == wants
    with torch.no_grad():
        loss, _ = score_loss(hidden.requires_grad_(), ref, weight, targets, pg, kl)
    assert not loss.requires_grad


@pytest.mark.parametrize("impl", EVERY)
def test_no_gradient_reaches_the_reference(impl):
    dtype = torch.float32 if impl == "triton" else torch.float64
    hidden, ref, weight, targets, pg, kl = (t.to(device_for(impl)) for t in case(dtype=dtype))
    hidden.requires_grad_()
    ref.requires_grad_()
    score_loss(hidden, ref, weight, targets, pg, kl, impl=impl)[0].backward()
    assert ref.grad is None
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("impl", FUSED)
def test_nothing_is_read_before_it_is_written(impl):
    """Every torch.empty comes filled with NaN here."""
    tensors = case(70, 1031, 130, torch.float32, masked=0.2)
    expected = outputs(impl, tensors, device=device_for(impl), softcap=30.0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all(), "torch no longer poisons memory in this mode"
    try:
        got = outputs(impl, tensors, device=device_for(impl), softcap=30.0)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], equal_nan=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from Linux")
@pytest.mark.parametrize("without_kl", [0, 2048])
def test_memory_stays_within_the_buffer(without_kl):
    """4,096 x 50,003 float32 logits are 819 MB a tensor; the buffer is 64 MB, and scratch of 4 MB is allowed on top."""
    program = (
        "import torch\nfrom pathlib import Path\nfrom scorefast.kernels import score_loss\n"
        "def kib(key):\n"
        "    return next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith(key))\n"
        "w, h = torch.randn(50003, 48), torch.randn(4096, 48, requires_grad=True)\n"
        "r, y, c = h.detach() + 0.1, torch.randint(50003, (4096,)), torch.ones(4096)\n"
        f"k = c.clone(); k[:{without_kl}] = 0\n"
        "score_loss(h[:1], r[:1], w, y[:1], c[:1], c[:1], buffer_bytes=64 << 20)[0].backward()\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "before = kib('VmRSS')\n"
        "score_loss(h, r, w, y, c, k, buffer_bytes=64 << 20)[0].backward()\n"
        "print((kib('VmHWM') - before) / 1024)\n"
    )
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # freed memory is given back, not kept
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert 32 < float(done.stdout) < 64 * 1.2


# --- as one operator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("wants", [[True, False, False], [True, True, True], [False, False, False]])
def test_opcheck(impl, wants):
    hidden, ref, weight, targets, pg, kl = (t.to(device_for(impl)) for t in case(dtype=torch.float32))
    bias = torch.randn(len(weight), device=weight.device)
    for tensor, wanted in zip((hidden, weight, bias), wants, strict=True):
        tensor.requires_grad_(wanted)
    arguments = (hidden, ref, weight, targets, pg, kl, bias, 30.0, 0.9, impl, 0, 0.0, wants)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    done = torch.library.opcheck(fused.score_loss_op, arguments, test_utils=checks)
    assert set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize("impl", FUSED)
def test_it_compiles_without_a_graph_break(impl):
    hidden, ref, weight, targets, pg, kl = (t.to(device_for(impl)) for t in case(dtype=torch.float32))

    def loss_of(h, w):
        loss, stats = score_loss(torch.sin(h), ref, w, targets, pg, kl, softcap=30.0, impl=impl)
        return 2 * loss, stats.kl

    grads = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, kl_n = function(h, w)
        loss.backward()
        grads.append((loss.detach(), kl_n, h.grad, w.grad))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("impl", FUSED)
def test_checkpointing_autocast_and_a_kept_graph(impl):
    hidden, ref, weight, targets, pg, kl = (t.to(device_for(impl)) for t in case(dtype=torch.float32))
    leaf = hidden.requires_grad_()

    def loss_of(h):
        return score_loss(h, ref, weight, targets, pg, kl, softcap=30.0, impl=impl)[0]

    (plain,) = torch.autograd.grad(loss_of(leaf), leaf)
    (again,) = torch.autograd.grad(checkpoint(loss_of, leaf, use_reentrant=False), leaf)
    assert torch.equal(again, plain)
    loss = loss_of(leaf)
    first, second = (torch.autograd.grad(3 * loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, 3 * plain)
    if impl == "chunked":
        with torch.autocast("cpu", torch.bfloat16):
            under = loss_of(leaf)
        cast = [t.to(torch.bfloat16) for t in (leaf, ref)]
        by_hand, _ = score_loss(*cast, weight, targets, pg, kl, softcap=30.0, impl=impl)
        assert torch.equal(under, by_hand)
        assert torch.autograd.grad(under, leaf)[0].dtype == torch.float32


@pytest.mark.parametrize("impl", FUSED)
def test_inputs_may_be_the_same_tensor_or_not_contiguous(impl):
    hidden, _, weight, targets, pg, _ = case(12, 257, 48, torch.float32)
    tensors = (hidden[:, ::2], hidden[:, ::2], weight.T[::2].T, targets, pg, pg)
    assert not tensors[0].is_contiguous()
    assert not tensors[2].is_contiguous()
    assert_as_near_the_truth_as_reference(impl, tensors, softcap=30.0)
    leaf = hidden.to(device_for(impl)).requires_grad_()
    rest = [t.to(device_for(impl)) for t in (weight, targets, pg, pg)]
    loss, stats = score_loss(leaf, leaf, *rest, impl=impl)  # one tensor, twice: differentiated as the policy alone
    loss.backward()
    alone = outputs(impl, (hidden, hidden, weight, targets, pg, pg), device=device_for(impl))
    torch.testing.assert_close(leaf.grad.cpu().double(), alone["grad_hidden"])
    assert stats.kl.abs().max() == 0


def test_a_second_derivative_is_refused_not_wrong():
    hidden, ref, weight, targets, pg, kl = case()
    hidden.requires_grad_()
    loss, _ = score_loss(hidden, ref, weight, targets, pg, kl, impl="chunked")
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("factor", [65536.0, 1 / 771])
def test_the_backward_factor_is_not_rounded_to_16_bit(dtype, factor):
    hidden, ref, weight, targets, pg, kl = case(9, dtype=dtype, scale=1e-2)
    leaf = hidden.requires_grad_()
    loss, _ = score_loss(leaf, ref, weight * 1e-2, targets, pg, kl, impl="chunked")
    (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * factor, leaf)
    expected = (plain.double() * factor).to(dtype)
    assert torch.isfinite(expected).all()
    assert torch.equal(scaled, expected)


def test_one_graph_serves_every_number_of_tokens():
    counter = CompileCounterWithBackend("aot_eager")

    def loss_of(h, r, w, y, a, b):
        return score_loss(h, r, w, y, a, b, softcap=30.0, impl="chunked")[0]

    compiled = torch.compile(loss_of, fullgraph=True, backend=counter, dynamic=True)
    graphs = set()
    for n in (5, 9, 14, 22):
        hidden, *rest = case(n, dtype=torch.float32)
        leaf = hidden.requires_grad_()
        (grad,) = torch.autograd.grad(compiled(leaf, *rest), leaf)
        torch.testing.assert_close(grad, torch.autograd.grad(loss_of(leaf, *rest), leaf)[0])
        graphs.add(counter.frame_count)
    assert len(graphs) == 1, "the first number of tokens is compiled for, the others are not"


# --- skipping tiles --------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize("skip", [2**-9, 0.05, 0.5])
@pytest.mark.parametrize("n", [7, 70])
def test_skipping_with_triton_keeps_its_bound(n, skip):
    """No row loses more of ||dz_n||_1 than `skip`, none of its gradient more than that times max|W|."""
    hidden, ref, weight, targets, pg, kl = case(n, 50003, 48, torch.float32, scale=0.5, masked=0.2)
    ref = hidden + 0.1 * ref
    tensors = [t.to(device_for("triton")) for t in (hidden, ref, weight, targets, pg, kl)]
    tensors[0].requires_grad_()
    loss, stats = score_loss(*tensors, softcap=30.0, impl="triton", skip=skip)
    loss.backward()
    exact = outputs("reference", (hidden, ref, weight, targets, pg, kl), softcap=30.0)
    p, q = (torch.log_softmax(30 * torch.tanh(h @ weight.T / 30), -1) for h in (hidden.detach(), ref))
    onehot = torch.nn.functional.one_hot(targets.clamp(min=0), len(weight))
    kl_n = (p.exp() * (p - q)).sum(-1, keepdim=True)
    dz = pg[:, None] * (p.exp() - onehot) + kl[:, None] * p.exp() * (p - q - kl_n)
    mass = (dz * (1 - torch.tanh(hidden.detach() @ weight.T / 30) ** 2)).abs().sum(1)
    dropped = stats.dropped.cpu()
    idle = (pg == 0) & (kl == 0)
    assert torch.equal(dropped.isnan(), idle)
    assert dropped[~idle].max() <= skip
    if skip > 0.01:
        assert dropped[~idle].max() > 0, "nothing was left out: the test shows nothing"
    error = (tensors[0].grad.cpu().double() - exact["grad_hidden"]).abs().max(1).values
    bound = dropped.nan_to_num() * mass * weight.abs().max()
    assert (error <= bound + 1e-4).all()
    assert loss.item() == pytest.approx(exact["loss"].item(), rel=1e-5), "the loss itself is exact"


@needs_triton
def test_a_nan_is_not_skipped_by_triton():
    tensors = [t.to(device_for("triton")) for t in case(8, 4099, 48, torch.float32)]
    tensors[0][3] = torch.nan
    tensors[0].requires_grad_()
    score_loss(*tensors, impl="triton", skip=0.01)[0].backward()
    grad = tensors[0].grad.cpu()
    assert grad[3].isnan().all()
    assert (grad[[0, 1, 2, 4, 5, 6, 7]].abs().sum(1) > 0).all(), "its neighbours keep their gradients"


# --- misuse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_hidden": None}, "no ref_hidden"),
        ({"weight": torch.zeros(257, 5)}, "expected"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "expected"),
        ({"ref_hidden": torch.zeros(2, 48)}, "differs"),
        ({"bias": torch.zeros(2)}, "is not the"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"softcap": 0.0}, "must be above 0"),
        ({"skip": -0.1}, "skip -0.1 within"),
    ],
)
def test_misuse_is_named(impl, change, message):
    names = ("hidden", "ref_hidden", "weight", "targets", "pg_coef", "kl_coef")
    arguments = dict(zip(names, case(dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        score_loss(**{k: t.to(device_for(impl)) if torch.is_tensor(t) else t for k, t in arguments.items()}, impl=impl)


def test_an_implementation_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="'fast' is not one of auto, reference, chunked, triton"):
        score_loss(*case(), impl="fast")
    with pytest.raises(ValueError, match=r"its kernels have no torch\.float64"):
        score_loss(*case(), impl="triton")
    with pytest.raises(ValueError, match="needs impl 'triton'"):
        score_loss(*case(), skip=0.1)
    if not INTERPRETED:
        with pytest.raises(ValueError, match="it needs a CUDA GPU, the device is cpu; use 'chunked'"):
            score_loss(*case(dtype=torch.float32), impl="triton")
    assert resolve_impl("auto", torch.device("cpu"), torch.float32) == "chunked"
