"""The only module that knows bitsandbytes: its 4-bit layers as one function on every machine, and in plain arithmetic.

How bitsandbytes 0.50.2 multiplies, as its source says: on CUDA, `matmul_4bit` calls a fused kernel for few rows (at
most 1,536, by shape and card) and dequantises the weights for more. It does so with and without gradients. The gradient
for the input is g @ dequantised(W) in both cases. So the fused product is differentiable, and differs from the other by
rounding. On a CPU every product dequantises, except with the packed weights that `keep_unpacked` prevents.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import BitsAndBytesConfig


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantisation that `from_pretrained` is asked for: NF4, its scales quantised again, products in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def layers(model: nn.Module) -> list[tuple[nn.Module, str, Linear4bit]]:
    """Every bitsandbytes.nn.Linear4bit: the module that it is a child of, its name there, and itself."""
    if "bitsandbytes" not in sys.modules:
        return []
    from bitsandbytes.nn import Linear4bit

    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear4bit)
    ]


def keep_unpacked(model: nn.Module) -> None:
    """Keep the 4-bit layers one function: on every CPU, in evaluation and training, before and after a generation.

    On CPUs with AVX512-BF16, a Linear4bit packs its weights in its first pass in evaluation mode, and does not unpack
    them. The kernel for packed weights rounds to bfloat16, has no gradient for its input, and fails where a width is no
    multiple of 64. `forward` reads the attribute set here before it packs (bitsandbytes 0.49 to 0.50, nn/modules.py).
    """
    for _, _, layer in layers(model):
        layer.support_avx512bf16_for_cpu = False


@contextmanager
def in_plain_arithmetic(model: nn.Module) -> Iterator[None]:
    """Every 4-bit layer as y = x @ dequantised(W)^T + b, by torch alone."""
    found = layers(model)
    try:
        for parent, name, layer in found:
            setattr(parent, name, _Dequantised(layer))
        yield
    finally:
        for parent, name, layer in found:
            setattr(parent, name, layer)


class _Dequantised(nn.Module):
    """Dequantises the weights in every forward and backward pass, so that none are kept in 16 bit."""

    def __init__(self, layer: Linear4bit):
        super().__init__()
        self._layer = [layer]  # in a list, and so no child of this module
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        packed = cast("Params4bit", self._layer[0].weight)
        return dequantize_4bit(packed.data, packed.quant_state)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self._product, x, use_reentrant=False)
        return result

    def _product(self, x: Tensor) -> Tensor:
        dtype = self._layer[0].compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)
