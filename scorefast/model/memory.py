"""Memory that a stage will take, part by part, from the model's configuration alone.

The model is built of a FakeTensorMode's tensors, which have shapes and no numbers. One rollout and one update run on
it, and the bytes alive at once are counted. So every model family, attention and adapter is planned by its own code.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scorefast.kernels.chunked import BUFFER_BYTES
from scorefast.model.load import shape_of_policy
from scorefast.model.policy import last_hidden
from scorefast.schema import Recipe, Stage1, Stage2

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from transformers import Cache

    from scorefast.model.types import AdaptedModel, LanguageModel

CUDA_CONTEXT = 500 << 20  # driver and libraries: assumed, not measured
# Bytes of state per trained parameter. An optimizer that is not listed counts as AdamW, with 8.
OPTIMIZER_BYTES = {
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "sgd": 0,
    "adafactor": 0,
}
NF4_BYTES = 1 / 2 + 1 / 64 * (1 + 4 / 256)  # a weight: 4 bits, a scale byte per 64 weights, a float32 per 256 scales
# When memory is counted: in generation, in the loss, in the backward pass, in the optimizer's step.
MOMENTS = ("rollout", "loss", "backward", "step")


@dataclass(frozen=True)
class Part:
    """size: bytes. moments: those of MOMENTS in which it is held. smaller: the recipe's keys that lower it."""

    name: str
    size: int
    moments: tuple[str, ...] = MOMENTS
    smaller: str = ""


@dataclass(frozen=True)
class Plan:
    """parameters: of the model; trained: those with a gradient. tokens: of each sequence."""

    parameters: int
    trained: int
    tokens: int
    parts: tuple[Part, ...]

    @property
    def moments(self) -> dict[str, int]:
        """Bytes held at each of MOMENTS."""
        return {moment: sum(p.size for p in self.parts if moment in p.moments) for moment in MOMENTS}

    @property
    def peak(self) -> str:
        return max(MOMENTS, key=lambda moment: self.moments[moment])

    @property
    def total(self) -> int:
        """Bytes at the moment that needs most."""
        return max(self.moments.values())


def plan_memory(
    recipe: Recipe, stage: Stage1 | Stage2, *, tokens: int, generated: int, micro_batch: int, base: int
) -> Plan:
    """A plan for sequences of `tokens` tokens.

    generated: sequences generated at once; 0 if the stage trains on the data's attempts and validates nothing.
    micro_batch: sequences trained on at once. base: bytes held before a model is loaded, of the process or of the CUDA
    context. Not counted: what the allocator loses between tensors, and buffers of a backend's own kernels.
    """
    fake = FakeTensorMode()
    model = shape_of_policy(recipe, fake)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen, widest = _frozen_bytes(model, recipe.model.load_in_4bit)
    copy = sum(p.nbytes for p in model.parameters()) if recipe.model.tuning == "full" else 0
    adapter, count = sum(p.nbytes for p in trained), sum(p.numel() for p in trained)
    states = count * OPTIMIZER_BYTES.get(stage.optimizer, 8)
    section = "stage1" if isinstance(stage, Stage1) else "stage2"
    # AdamW's square roots: on CUDA of all trained parameters at once, else of one tensor.
    largest = max(p.numel() for p in trained)
    roots = 4 * (count if torch.cuda.is_available() else largest) if states == 8 * count else 0
    full, packed = recipe.model.tuning == "full", recipe.model.load_in_4bit
    four_bit, rank = "" if full or packed else "model.load_in_4bit=true", "" if full else "model.lora.r"
    parts = [
        Part("before a model is loaded", base),
        Part("frozen weights", frozen + copy, smaller=four_bit),
        Part("trained weights", adapter, smaller=rank),
        Part("optimizer", states, smaller=f"{section}.optimizer=adamw_8bit" if states == 8 * count else ""),
        Part("gradients", adapter, ("loss", "backward", "step"), rank),
        Part("optimizer, beside it", roots, ("step",)),
    ]
    if widest:
        parts.append(Part("a layer's weights out of 4 bit", widest, MOMENTS[:3]))
    with fake:
        if generated:
            cache, more = _rollout_bytes(model, generated, tokens, recipe.rollout.max_new_tokens)
            parts.append(Part("KV cache", cache, ("rollout",), "rollout.batch_size"))
            parts.append(Part("rollout, beside it", more, ("rollout",), "rollout.batch_size"))
        kept, again = _update_bytes(model, micro_batch, tokens, recipe.model.gradient_checkpointing)
    smaller = f"{section}.micro_batch_size, rollout.max_new_tokens"
    if not recipe.model.gradient_checkpointing:
        smaller = "model.gradient_checkpointing=true"
    rows = micro_batch * min(tokens, 2 * recipe.rollout.max_new_tokens)
    parts += [
        Part("activations", kept, ("loss", "backward"), smaller),
        Part("logits of the loss", _logits_bytes(recipe, rows, model), ("loss",), "loss.buffer_mb"),
        Part("backward, beside them", again, ("backward",), smaller),
    ]
    everything = sum(p.numel() for p in model.parameters())
    return Plan(everything - (count if recipe.model.tuning == "lora" else 0), count, tokens, tuple(parts))


def memory_here() -> tuple[str, int, int]:
    """(the device that a run would use, its free bytes, bytes taken before a model is loaded)."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()  # the context of this process exists by now
        return torch.cuda.get_device_name(0), free + CUDA_CONTEXT, CUDA_CONTEXT
    held = psutil.Process().memory_info().rss
    return "this machine", psutil.virtual_memory().available + held, held


def _frozen_bytes(model: LanguageModel, four_bit: bool) -> tuple[int, int]:
    """(bytes of the frozen weights, bytes of the largest one dequantised from 4 bit)."""
    head = model.get_output_embeddings()
    packed = {
        id(m.weight): m.weight.numel()
        for m in model.modules()
        if four_bit and isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
    }
    frozen = [p for p in model.parameters() if not p.requires_grad]
    size = sum(p.numel() * NF4_BYTES if id(p) in packed else p.nbytes for p in frozen)
    return int(size), 2 * max(packed.values(), default=0)


def _rollout_bytes(model: LanguageModel, batch: int, tokens: int, new: int) -> tuple[int, int]:
    """(bytes of the KV cache of whole sequences, bytes alive beside it in the prompt's or a token's pass)."""

    def step(length: int, cached: Cache | None = None) -> Cache:
        ids = torch.zeros(batch, 1 if cached else length, dtype=torch.int64)
        mask = torch.ones(batch, length, dtype=torch.int64)
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cached, use_cache=True, logits_to_keep=1)
        out.logits[:, -1].float().softmax(-1)
        return out.past_key_values

    model.eval()
    with torch.no_grad():
        with _alive() as prompt:
            step(max(1, tokens - new))
        with _alive() as token:
            cache = step(tokens - 1, step(tokens - 2))  # the first new token cuts a sliding window to its size
            token.forget_peak()
            held = token.now
            step(tokens, cache)
    return held, max(prompt.peak, token.peak) - held


def _update_bytes(model: LanguageModel, batch: int, tokens: int, checkpointing: bool) -> tuple[int, int]:
    """(bytes that the forward keeps for the backward, bytes alive beside them in the backward)."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.zeros(batch, tokens, dtype=torch.int64)
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    with _alive() as alive:
        adapted = hasattr(model, "disable_adapter")
        with torch.no_grad(), cast("AdaptedModel", model).disable_adapter() if adapted else nullcontext():
            reference = last_hidden(model, ids, mask)
        hidden = last_hidden(model, ids, mask)
        kept = alive.now
        hidden.backward(torch.ones_like(hidden))
        del reference
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return kept, max(0, alive.peak - kept - gradients)


def _logits_bytes(recipe: Recipe, rows: int, model: LanguageModel) -> int:
    v = model.get_output_embeddings().weight.shape[0]
    if recipe.loss.impl == "reference":
        return rows * v * 4 * 8  # float32, policy and reference: logits, log-softmax, softmax, gradient
    a_row = v * (2 * 4 + (0 if recipe.model.dtype == "float32" else 2))
    return min(rows * a_row, max(a_row, recipe.loss.buffer_mb << 20 if recipe.loss.buffer_mb else BUFFER_BYTES))


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations allocate, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and id(s := t.untyped_storage()) not in before and id(s) not in self._known:
                self._known[id(s)] = weakref.finalize(s, self._freed, id(s), s.nbytes())
                self.now += s.nbytes()
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def forget_peak(self) -> None:
        self.peak = self.now


@contextmanager
def _alive() -> Iterator[_Alive]:
    with _Alive() as counter:
        yield counter
    for finalizer in list(counter._known.values()):
        finalizer.detach()
