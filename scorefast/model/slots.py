"""Keys and values of conversations, one slot each, as a cache that transformers' attention layers write to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Rows = slice | Tensor


class SlotCache:
    """A layer's keys are (slots, Hkv, length, D), and so are its values; position t of a conversation is column t.

    `aim` says which slots and positions the next pass is about. Columns past a conversation's end hold zeros or what
    padding wrote there. They are masked, and written over before they are seen.
    """

    is_compileable = False  # read by transformers

    def __init__(self, slots: int, length: int):
        self.slots, self.length = slots, length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._rows: Rows = slice(0, slots)
        self._upto = 0
        self._slots = self._columns = torch.zeros(0, dtype=torch.long)
        self._targets: dict[int, Tensor] = {}

    def aim(self, rows: Rows, positions: Tensor, upto: int) -> None:
        """The next pass computes `positions` (B, L) of the B slots `rows`, and sees columns below `upto`."""
        self._rows, self._upto, self._targets = rows, upto, {}
        self._slots = torch.arange(self.slots, device=positions.device)[rows]
        self._columns = positions

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes (B, Hkv, L, D) at the positions aimed at, and returns (B, Hkv, upto, D) of those slots.

        A slice of slots is returned without a copy.
        """
        self._allocate(layer, keys, values)
        target = self._target(keys.shape[1])
        found = []
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            store.view(-1, store.shape[-1]).index_copy_(0, target, new.reshape(-1, new.shape[-1]))
            found.append(store[self._rows, :, : self._upto])
        return found[0], found[1]

    def get_seq_length(self, *_: Any) -> int:
        """Called by transformers where positions are not given; here they always are."""
        return 0

    def grow(self, length: int) -> None:
        """Makes room for conversations of `length` tokens, and for some more, layer by layer."""
        if length <= self.length:
            return
        self.length = max(length, self.length * 9 // 8)
        for stores in (self.keys, self.values):
            for layer, old in stores.items():
                stores[layer] = old.new_zeros(*old.shape[:2], self.length, old.shape[3])
                stores[layer][:, :, : old.shape[2]] = old

    def copy(self, source: SlotCache, rows: Sequence[int], to: Sequence[int], upto: int) -> None:
        """Copies the first `upto` columns of the source's `rows` into the slots `to`. The source may be this cache."""
        device = next(iter(source.keys.values())).device
        here, there = torch.tensor(to, device=device), torch.tensor(rows, device=device)
        for layer, keys in source.keys.items():
            self._allocate(layer, keys, source.values[layer])
            for mine, theirs in ((self.keys[layer], keys), (self.values[layer], source.values[layer])):
                mine[here, :, :upto] = theirs[there, :, :upto]

    def _allocate(self, layer: int, keys: Tensor, values: Tensor) -> None:
        if layer not in self.keys:
            for stores, like in ((self.keys, keys), (self.values, values)):
                stores[layer] = like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3])

    def _target(self, heads: int) -> Tensor:
        """(B * Hkv * L,): rows of a store seen as (slots * Hkv * length, D) that this pass writes. Layers share it."""
        if heads not in self._targets:
            head = torch.arange(heads, device=self._columns.device)
            start = (self._slots[:, None] * heads + head) * self.length  # (B, Hkv)
            self._targets[heads] = (start[:, :, None] + self._columns[:, None]).view(-1)
        return self._targets[heads]
