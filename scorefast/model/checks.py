"""Checks of a loaded model: it is trained on what it samples, and the loss can compute its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefast.errors import UserError
from scorefast.files.text import one_line
from scorefast.kernels.reference import log_softmax_head
from scorefast.model import four_bit
from scorefast.model.generate import generation_config
from scorefast.model.policy import Policy, generating, last_hidden


def require_plain_head(policy: Policy) -> None:
    """Check that logits are softcap * tanh(h @ W^T / softcap), which the loss computes from hidden states in training.

    Raises UserError for a model with other logits, and for one whose hidden states change from pass to pass, or between
    training and evaluation.
    """
    ids = torch.tensor([policy.chat.first_turn("2 + 2 = ?")], device=policy.model.device)
    mask = torch.ones_like(ids)
    kind = policy.model.config.model_type
    with torch.no_grad():
        theirs = policy.model(input_ids=ids, attention_mask=mask).logits[0, -1:].float()
        hidden = last_hidden(policy.model, ids, mask).float()
        ours = log_softmax_head(hidden[0, -1:].to(policy.head.dtype), policy.head, policy.softcap, 1.0)
        policy.model.train()
        once, again = (last_hidden(policy.model, ids, mask).float() for _ in range(2))
        policy.model.eval()
    if (once - again).norm() > 0.02 * once.norm():
        raise UserError(
            f"{kind}: draws at random in training (it drops units or layers by its own configuration), which is not "
            "supported; set what does so in its config.json to 0"
        )
    if (once - hidden).norm() > 0.2 * hidden.norm():  # in 16 bit, other kernels differ by a few per cent
        raise UserError(f"{kind}: is another function in training than in evaluation, which is not supported")
    gap = (ours - theirs.log_softmax(-1)).abs().max().item()
    around = [logits - logits.mean() for logits in (theirs, ours)]
    scale = (around[0] * around[1]).sum() / around[1].square().sum()  # 16-bit rounding averages out over many logits
    if gap > 0.05 * theirs.abs().max().item() + 1e-3 or abs(scale.item() - 1) > 0.005:
        raise UserError(f"{kind}: its output head scales or shifts logits, which is not supported")


def require_answers(policy: Policy) -> None:
    """Raises UserError for a model that fails on a first question, or whose logits hold NaN or +infinity there."""
    kind = policy.model.config.model_type
    try:
        logits, _ = _sampled_logits(policy, policy.chat.first_turn("2 + 2 = ?"))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an untrusted configuration can fail in any way
        raise UserError(f"{kind}: fails on a first question: {one_line(error)}; is its config.json whole?") from None
    if logits.isnan().any() or logits.isposinf().any():
        raise UserError(f"{kind}: says NaN or infinity to a first question; is its config.json whole?")


def require_trained_as_sampled(policy: Policy) -> None:
    """Raises UserError for a model that samples other logits than it trains on, or with wrong 4-bit gradients.

    The check generates first: a layer that changes itself, as bitsandbytes' do on some CPUs, does so then. A gradient
    above 0 proves nothing, since residual connections carry a part of it past a layer that drops its own. So every
    adapter's gradient is compared with the one that the same weights give when torch multiplies them dequantised.
    """
    kind, prompt = policy.model.config.model_type, policy.chat.first_turn("2 + 2 = ?")
    sampled, ids = _sampled_logits(policy, prompt)
    modes = [(module, module.training) for module in policy.model.modules()]
    policy.model.train()
    try:
        with torch.no_grad():
            hidden = last_hidden(policy.model, ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
        trained = log_softmax_head(hidden.to(policy.head.dtype), policy.head, policy.softcap, 1.0)
        logp = sampled.log_softmax(-1)
        kl = (logp.exp() * (logp - trained)).sum(-1).max().item()
        if not kl < 0.2:  # in 16 bit, kernels for one row and for many round differently: a hundredth of that
            raise UserError(f"{kind}: samples from another distribution than it trains on (KL {kl:.2g}), not supported")
        wrong = _wrong_gradient(policy, ids) if four_bit.layers(policy.model) else None
        if wrong is not None:
            raise UserError(
                f"{kind}: its 4-bit layers give a wrong gradient here ({wrong}); --set model.load_in_4bit=false, "
                "or install another version of bitsandbytes"
            )
    finally:
        for module, training in modes:
            module.training = training


def _sampled_logits(policy: Policy, prompt: list[int]) -> tuple[Tensor, Tensor]:
    """(T, V) logits of T <= 2 greedily sampled tokens, the second one from the KV cache; (1, P + T) ids with them."""
    ids = torch.tensor([prompt], device=policy.model.device)
    config = generation_config(policy.tokenizer.pad_token_id, policy.chat.end_tokens, 2, 0.0)
    config.update(output_logits=True, return_dict_in_generate=True)
    with generating(policy), torch.no_grad():
        made = policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert not isinstance(made, Tensor)
    assert made.logits is not None
    return torch.cat(made.logits).float(), made.sequences


def _wrong_gradient(policy: Policy, ids: Tensor) -> str | None:
    """The first adapter with another gradient than the same layers give with dequantised weights; None if all agree."""
    theirs = _gradients(policy, ids)
    with four_bit.in_plain_arithmetic(policy.model):
        truth = _gradients(policy, ids)
    least = 0.01 * max(float(g.norm()) for g in truth.values())
    if least == 0:
        return "no gradient reaches an adapter"
    for name, gradient in truth.items():
        apart = float((theirs[name] - gradient).norm())
        if not apart <= 0.2 * max(float(gradient.norm()), least):
            return f"{name}: {float(theirs[name].norm()):.3g}, and should be {float(gradient.norm()):.3g}"
    return None


def _gradients(policy: Policy, ids: Tensor) -> dict[str, Tensor]:
    """{name: gradient} of sum_t -log p(y_t), for every trained parameter; ids (1, T)."""
    hidden = last_hidden(policy.model, ids, torch.ones_like(ids))[0, :-1]
    logp = log_softmax_head(hidden.to(policy.head.dtype), policy.head, policy.softcap, 1.0)
    loss = -logp.gather(-1, ids[0, 1:, None]).sum()
    loss.backward()  # torch.autograd.grad does not see through re-entrant checkpoints such as Unsloth's
    found = {}
    for name, weight in policy.model.named_parameters():
        if weight.requires_grad:
            found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.float()
            weight.grad = None
    return found
