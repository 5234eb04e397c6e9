"""A model's own layers and head over slots, and whether they compute there what the model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefast.files.text import one_line
from scorefast.model.attention import attending_to_slots, masks, window_of, windows
from scorefast.model.policy import Policy, generating
from scorefast.model.slots import Rows, SlotCache


@dataclass(frozen=True)
class Decoder:
    """A model's layers and head, called with explicit positions, masks and slots."""

    layers: Any
    head: Any
    softcap: float | None
    windows: dict[str, int | None]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(policy: Policy) -> Decoder:
        layers, head = policy.model.get_decoder(), policy.model.get_output_embeddings()
        embedded = policy.model.get_input_embeddings().weight
        return Decoder(layers, head, policy.softcap, windows(layers.config), embedded.dtype, embedded.device)

    @property
    def config(self) -> Any:
        return self.layers.config

    def next_logits(
        self, cache: SlotCache, rows: Rows, ids: Tensor, start: Tensor, upto: int, last: Tensor | None = None
    ) -> Tensor:
        """(B, L) ids of the slots `rows`, right-padded, from the positions `start` (B,) on -> (B, V) float32 logits.

        They are those after each row's token `last` (B,), by default its only one. Padding lies behind what it pads.
        upto: one more than the greatest position.
        """
        positions = start[:, None] + torch.arange(ids.shape[1], device=ids.device)  # (B, L)
        cache.aim(rows, positions, upto)
        hidden = self.layers(
            input_ids=ids,
            attention_mask=masks(self.windows, positions, upto, self.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (B, L, D)
        hidden = hidden[:, 0] if last is None else hidden[torch.arange(len(ids), device=ids.device), last]
        logits: Tensor = self.head(hidden).float()
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


def can_serve(policy: Policy) -> str | None:
    """Why the engine cannot serve this policy, in one line; None where it can.

    Compares its logits with the model's own, on three prompts of unequal length encoded together, and two tokens after
    each from the cache. Where layers have a window, it is 5 tokens for the time of the check, so that it counts.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    lengths, kind = [11, 7, 4], policy.model.config.model_type
    try:
        decoder = Decoder.of(policy)
        ids = torch.randint(vocabulary, (3, max(lengths) + 2), generator=generator).to(decoder.device)
        with generating(policy), torch.no_grad():
            pairs = zip(ids, lengths, strict=True)
            with window_of(5, decoder.config):
                decoder = Decoder.of(policy)
                theirs = [policy.model(input_ids=row[None, : n + 2]).logits[0, n - 1 :] for row, n in pairs]
                with attending_to_slots(decoder.config):
                    ours = _logits_from_slots(decoder, ids, lengths)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # somebody else's layers: they can fail in any way
        return f"{kind}: {one_line(error)}"
    expected = torch.stack(theirs).float()
    apart = float((ours - expected).norm() / expected.norm())
    most = 1e-3 if decoder.dtype == torch.float32 else 0.05
    return None if apart <= most else f"{kind}: its logits from slots differ by {apart:.2g} of their size"


def _logits_from_slots(decoder: Decoder, ids: Tensor, lengths: list[int]) -> Tensor:
    """(3, T) ids -> (3, 3, V) logits after `lengths` tokens, and after one and two more."""
    cache, rows, n = SlotCache(3, ids.shape[1]), slice(0, 3), torch.tensor(lengths, device=ids.device)
    found = [decoder.next_logits(cache, rows, ids[:, : max(lengths)], torch.zeros_like(n), max(lengths), n - 1)]
    for step in range(2):
        token = ids.gather(1, n[:, None] + step)
        found.append(decoder.next_logits(cache, rows, token, n + step, max(lengths) + step + 1))
    return torch.stack(found, 1)
