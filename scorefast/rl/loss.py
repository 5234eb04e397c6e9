"""The loss of a micro-batch: `score_loss` over its trained tokens."""

from __future__ import annotations

from torch import Tensor, nn

from scorefast.kernels import ScoreStats, score_loss
from scorefast.model.policy import Policy, last_hidden
from scorefast.schema import Recipe


def micro_batch_loss(
    model: nn.Module, policy: Policy, inputs: dict[str, Tensor], recipe: Recipe
) -> tuple[Tensor, ScoreStats, Tensor]:
    """(loss summed over the N trained tokens, their statistics, their turns (N,)).

    inputs: the output of `collate`, each (B, T). The hidden state at position t - 1 predicts the token at position t.
    The reference runs only if some KL coefficient is not 0. Raises RuntimeError if T exceeds model.max_seq_length.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.shape[1] > recipe.model.max_seq_length:  # Unsloth would truncate it with a warning
        raise RuntimeError(f"sequence of {ids.shape[1]} tokens, model.max_seq_length is {recipe.model.max_seq_length}")
    trained = inputs["turn"][:, 1:] > 0  # (B, T - 1); N of them are true
    kl_coef = inputs["kl_coef"][:, 1:][trained]  # (N,)
    hidden = last_hidden(model, ids, mask)[:, :-1][trained]  # (N, D)
    ref_hidden = None  # or (N, D)
    if bool((kl_coef != 0).any()):
        with policy.reference() as reference:
            ref_hidden = last_hidden(reference, ids, mask)[:, :-1][trained]
    loss, stats = score_loss(
        hidden,
        ref_hidden,
        policy.head,
        ids[:, 1:][trained],
        inputs["pg_coef"][:, 1:][trained],
        kl_coef,
        softcap=policy.softcap,
        temperature=recipe.rollout.temperature,
        impl=recipe.loss.impl,
        buffer_bytes=recipe.loss.buffer_mb and recipe.loss.buffer_mb << 20,
        skip=recipe.loss.skip,
    )
    return loss, stats, inputs["turn"][:, 1:][trained]
