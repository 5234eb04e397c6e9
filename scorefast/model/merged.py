"""LoRA adapters merged into a float32 base for the time of a rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[int]:
    """Linear layers compute x @ (W + s B A)^T by one product; yields how many do. W takes a copy of itself meanwhile.

    The very same tensors come back, bit for bit, after an exception too. Only float32 weights are merged, where the
    sum is exact to 1e-7: rounded to 16 bit, and in 4 bit all the more, the merged layer would be another function than
    the one trained. Layers that PEFT computes in another way than by adding B A, DoRA among them, stay as they are.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    found: list[tuple[nn.Module, str, Any]] = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if _is_mergeable(layer)
        and uses[id(layer.get_parameter("base_layer.weight"))] == 1  # not of a head tied to the embeddings
    ]
    kept = [(layer.base_layer.weight, layer.base_layer.weight.data) for _, _, layer in found]
    try:
        for (parent, name, layer), (weight, data) in zip(found, kept, strict=True):
            with torch.no_grad():
                weight.data = data + sum(layer.get_delta_weight(active) for active in _active(layer))
            setattr(parent, name, layer.base_layer)
        yield len(found)
    finally:
        for parent, name, layer in found:
            setattr(parent, name, layer)
        for weight, data in kept:
            weight.data = data


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_mergeable(layer: Any) -> bool:
    """Whether it is a PEFT layer that adds B A x to a float32 base.weight x, and nothing else."""
    if not (hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer")):
        return False
    if not isinstance(layer.base_layer, nn.Linear) or layer.base_layer.weight.dtype != torch.float32:
        return False
    variants, biases = getattr(layer, "lora_variant", {}), getattr(layer, "lora_bias", {})
    plain = not any(name in variants or biases.get(name) for name in _active(layer))
    return bool(_active(layer)) and plain and not layer.disable_adapters and not layer.merged
