"""The loss against an independent fp64 evaluation of its definition, its gradients, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefast.kernels import score_loss


def case(n=7, v=257, d=48, dtype=torch.float64, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    hidden, ref = (torch.randn(n, d, generator=g, dtype=torch.float64) * scale for _ in range(2))
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=g)
    pg, kl = torch.randn(n, generator=g), torch.rand(n, generator=g)
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


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("n", "v", "d"), [(1, 257, 48), (7, 1031, 130), (53, 257, 48)])
def test_value_and_gradient_match_the_definition(n, v, d, softcap, temperature):
    hidden, ref, weight, targets, pg, kl = case(n, v, d)
    mine, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, _ = score_loss(mine, ref, weight, targets, pg, kl, softcap=softcap, temperature=temperature)
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
    loss, stats = score_loss(hidden, ref, weight, targets, pg, kl, softcap=softcap, temperature=temperature)
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


def test_gradcheck_including_the_weight():
    hidden, ref, weight, targets, pg, kl = case(3, 17, 5)
    hidden.requires_grad_()
    weight.requires_grad_()

    def through_policy(h, w):
        # q is a constant of the loss, so the finite differences must not move it either.
        loss, _ = score_loss(h, None, w, targets, pg, torch.zeros_like(kl), softcap=30.0)
        return loss

    assert torch.autograd.gradcheck(through_policy, (hidden, weight))
    assert torch.autograd.gradcheck(
        lambda h: score_loss(h, ref, weight.detach(), targets, pg, kl, softcap=30.0, temperature=1.3)[0], (hidden,)
    )


def test_no_gradient_reaches_the_reference():
    hidden, ref, weight, targets, pg, kl = case()
    hidden.requires_grad_()
    ref.requires_grad_()
    score_loss(hidden, ref, weight, targets, pg, kl)[0].backward()
    assert ref.grad is None
    assert hidden.grad.abs().sum() > 0


def test_equal_models_have_zero_kl_and_no_kl_gradient():
    hidden, _, weight, targets, _, kl = case()
    hidden.requires_grad_()
    loss, stats = score_loss(hidden, hidden.detach(), weight, targets, torch.zeros(7), kl, softcap=30.0)
    loss.backward()
    assert stats.kl.abs().max() == 0
    assert hidden.grad.abs().max() < 1e-14


def test_uniform_logits_give_log_v():
    v = 100
    _, stats = score_loss(
        torch.zeros(2, 4), None, torch.randn(v, 4), torch.tensor([0, 99]), torch.ones(2), torch.zeros(2)
    )
    torch.testing.assert_close(stats.logp, torch.full((2,), -math.log(v)))
    torch.testing.assert_close(stats.entropy, torch.full((2,), math.log(v)))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    v=st.integers(2, 300),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    softcap=st.sampled_from([None, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_statistics_stay_finite_and_kl_non_negative(n, v, scale, softcap, dtype, seed):
    hidden, ref, weight, targets, pg, kl = case(n, v, 16, dtype, seed, scale)
    hidden.requires_grad_()
    loss, stats = score_loss(hidden, ref, weight, targets, pg, kl, softcap=softcap)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()
    assert (stats.kl >= -1e-5 * (1 + stats.kl.abs())).all()
    assert (stats.logp <= 0).all()
    assert loss.dtype == torch.float32
    assert stats.logp.shape == (n,)


def test_bf16_is_as_close_to_the_truth_as_its_inputs_allow():
    hidden, ref, weight, targets, pg, kl = case(31, 999, 64)
    truth, _ = score_loss(hidden, ref, weight, targets, pg, kl, softcap=30.0)
    rounded = [t.bfloat16() for t in (hidden, ref, weight)]
    ours, _ = score_loss(*rounded, targets, pg, kl, softcap=30.0)
    widened, _ = score_loss(*(t.double() for t in rounded), targets, pg, kl, softcap=30.0)
    # Rounding the inputs moves the truth; computing in bf16 may add about one more rounding of the logits.
    assert abs(ours - widened) <= 2 * abs(widened - truth) + 1e-2 * abs(truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_hidden": None}, "no ref_hidden"),
        ({"weight": torch.zeros(257, 5, dtype=torch.float64)}, "expected"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "expected"),
        ({"ref_hidden": torch.zeros(2, 48, dtype=torch.float64)}, "differs"),
        ({"impl": "triton"}, "not one of"),
    ],
)
def test_misuse_is_named(change, message):
    names = ("hidden", "ref_hidden", "weight", "targets", "pg_coef", "kl_coef")
    with pytest.raises(ValueError, match=message):
        score_loss(**(dict(zip(names, case(), strict=True)) | change))
