"""Make the embedded tiny Gemma-2 for products: ``python -m scorefast.assets.make_tiny_products --seed 0 --out DIR``.

In this task the second attempt has to read the first. To ``What is 47 x 36?`` the model writes the products of digits,
the two partial products and their sum: ``42+240=282, 210+1200=1410. The answer is 1682``. The work is right, but the
last sum often drops carries. Asked to correct itself, the model can add the partial products again, column by column:
``2+0=2, 8+1=9, 2+4=6, 1. The answer is 1692``. The question does not contain these columns. Work and check together are
longer than the recipe's ``rollout.max_new_tokens``, so the second attempt must take the columns from the first attempt.
Before training, the model mostly repeats its first answer or changes a digit of it.

A question is trained on only if its split position and that of its mirror ``b x a`` are at least ``HELD_OUT``, and if
its partial products are not those of a held-out question. Drills in column addition follow the same rule.
The shipped checkpoint was made with ``--seed 0`` (the default), on one CPU core.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast

from scorefast.assets.make_tiny_gemma2 import (
    HELD_OUT,
    backward,
    changed_digit,
    encode,
    make_model,
    make_tokenizer,
    pad_rows,
)
from scorefast.data.splits import split_position
from scorefast.schema import CORRECTION

NUMBERS = tuple(10 * tens + units for tens in range(1, 10) for units in range(1, 10))  # two digits, neither of them 0
LAYERS, WINDOW = 4, 128
Dialogue = Callable[["Settings", random.Random], list[str]]


@dataclass(frozen=True)
class Settings:
    """All settings of the checkpoint except the seed."""

    steps: int = 2800
    singles: float = 0.33  # share of the steps, at the start, without dialogues
    early: tuple[int, int, int] = (19, 13, 0)  # sequences per step at the start: first attempts, drills, dialogues
    late: tuple[int, int, int] = (4, 4, 24)  # the same, afterwards
    check: float = 0.25  # share of second attempts that add the partial products again
    perturb: float = 0.25  # share of second attempts that change one digit of the first answer; the rest repeat it
    haste: float = 0.9  # probability of dropping the carry of a column whose sum is 10 to 13
    slip: float = 0.1  # probability of dropping the carry of a larger sum
    matrix_rate: float = 0.02  # learning rate of the hidden matrices (Muon)
    other_rate: float = 3e-3  # learning rate of embeddings and norms (AdamW)
    warmup: int = 100


# --- the task ---------------------------------------------------------------------------------------------------------


def question(a: int, b: int) -> str:
    """The question as it is written in data files and chats."""
    return f"What is {a} x {b}?"


def partials(a: int, b: int) -> tuple[int, int]:
    """The two partial products: a times the units and a times the tens of b."""
    return a * (b % 10), a * (b - b % 10)


def held_out(a: int, b: int) -> bool:
    """Whether this question or its mirror is in the test or validation split."""
    return min(split_position(question(a, b)), split_position(question(b, a))) < HELD_OUT


@cache
def held_out_sums() -> frozenset[tuple[int, int]]:
    """The partial products of all held-out questions. Their sums must not be trained on either."""
    return frozenset(partials(a, b) for a in NUMBERS for b in NUMBERS if held_out(a, b))


@cache
def trainable_pairs() -> tuple[tuple[int, int], ...]:
    """The operands of all questions that may be trained on."""
    pairs = ((a, b) for a in NUMBERS for b in NUMBERS)
    return tuple(pair for pair in pairs if not held_out(*pair) and partials(*pair) not in held_out_sums())


def hasty_sum(p: int, q: int, settings: Settings, rng: random.Random) -> int:
    """p + q by columns with some carries dropped: often if a column's sum is 10 to 13, rarely if it is larger."""
    total, carry, power = 0, 0, 1
    while p or q or carry:
        column = p % 10 + q % 10 + carry
        total += column % 10 * power
        dropped = rng.random() < (settings.haste if column <= 13 else settings.slip)
        carry = 1 if column >= 10 and not dropped else 0
        p, q, power = p // 10, q // 10, power * 10
    return total


def first_attempt(a: int, b: int, answer: int) -> str:
    """The work, which is always right, and the given answer."""
    products = []
    for digit in (b % 10, b - b % 10):
        units, tens = a % 10 * digit, (a - a % 10) * digit
        products.append(f"{units}+{tens}={units + tens}")
    return f"{', '.join(products)}. The answer is {answer}"


def check(p: int, q: int) -> str:
    """p + q by columns from the right with the carries, then the sum."""
    total, columns, carry = p + q, [], 0
    while p or q or carry:
        terms = [p % 10] * (p > 0) + [q % 10] * (q > 0) + [1] * carry
        column = sum(terms)
        columns.append(f"{'+'.join(map(str, terms))}={column}" if len(terms) > 1 else str(column))
        carry, p, q = column // 10, p // 10, q // 10
    return f"{', '.join(columns)}. The answer is {total}"


def single(settings: Settings, rng: random.Random) -> list[str]:
    """[user, model]: a question and a hasty first attempt."""
    a, b = rng.choice(trainable_pairs())
    return [question(a, b), first_attempt(a, b, hasty_sum(*partials(a, b), settings, rng))]


def drill(_: Settings, rng: random.Random) -> list[str]:
    """[user, model]: a sum by columns. It teaches the check without the products."""
    while True:
        p, q = rng.randint(11, 891), 10 * rng.randint(11, 891)
        if (p, q) not in held_out_sums():
            return [f"What is {p} + {q}?", check(p, q)]


def dialogue(settings: Settings, rng: random.Random) -> list[str]:
    """[user, model, user, model]. Half of the checked attempts are right and half are wrong. Otherwise a check would
    reveal how often carries are dropped."""
    a, b = rng.choice(trainable_pairs())
    answer, way = hasty_sum(*partials(a, b), settings, rng), rng.random()
    if way < settings.check:
        want = rng.random() < 0.5
        for _ in range(6):
            if want == (answer == a * b):
                break
            answer = hasty_sum(*partials(a, b), settings, rng)
        second = check(*partials(a, b))
    elif way < settings.check + settings.perturb:
        second = f"The answer is {changed_digit(answer, rng)}"
    else:
        second = f"The answer is {answer}"
    return [question(a, b), first_attempt(a, b, answer), CORRECTION, second]


# --- the training -----------------------------------------------------------------------------------------------------


class Muon:
    """Momentum with an orthogonalized update (five Newton-Schulz iterations); matrices of one shape are batched.

    AdamW alone does not learn the work in so few steps. torch.optim.Muon iterates in bfloat16 over one matrix at a
    time, and takes five times as long on a CPU.
    """

    def __init__(self, matrices: Iterable[Tensor], momentum: float = 0.95, decay: float = 0.01):
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            shapes.setdefault(tuple(matrix.shape), []).append(matrix)
        self.groups = [(group, torch.zeros(len(group), *shape)) for shape, group in shapes.items()]
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, average in self.groups:
            gradient = torch.stack([m.grad for m in group if m.grad is not None])  # (N, rows, columns)
            average.lerp_(gradient, 1 - self.momentum)
            x = gradient.lerp(average, self.momentum)
            wide = x if x.shape[1] <= x.shape[2] else x.mT
            wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                gram = wide @ wide.mT
                wide = 3.4445 * wide + (2.0315 * gram @ gram - 4.7750 * gram) @ wide
            update = wide if x.shape[1] <= x.shape[2] else wide.mT
            scale = rate * max(1.0, x.shape[1] / x.shape[2]) ** 0.5
            for matrix, u in zip(group, update, strict=True):
                matrix.mul_(1 - self.decay * rate).sub_(u, alpha=scale)


def batches(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, rng: random.Random, dialogue: Dialogue
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Per step, one pair (ids, labels) for single turns and, later, one for dialogues. Only the last reply of a
    dialogue is trained on."""
    fast = tokenizer.backend_tokenizer
    for step in range(settings.steps):
        singles, drills, dialogues = settings.early if step < settings.singles * settings.steps else settings.late
        turns = [single(settings, rng) for _ in range(singles)] + [drill(settings, rng) for _ in range(drills)]
        parts = [pad_rows([encode(t, fast) for t in turns])]
        if dialogues:
            parts.append(pad_rows([encode(dialogue(settings, rng), fast, context=2) for _ in range(dialogues)]))
        yield parts


def pretrain(
    model: Gemma2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    seed: int,
    dialogue: Dialogue = dialogue,
) -> None:
    """Train with Muon and AdamW, linear warm-up and cosine decay to zero. The loss is the mean over a step's trained
    tokens."""
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    others = [p for n, p in model.named_parameters() if n not in matrices]
    muon = Muon(matrices.values())
    adamw = torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.time()
    for step, parts in enumerate(batches(settings, tokenizer, random.Random(seed), dialogue)):
        scale = min(1.0, (step + 1) / settings.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        adamw.param_groups[0]["lr"] = settings.other_rate * scale
        loss = backward(model, parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(settings.matrix_rate * scale)
        adamw.step()
        model.zero_grad(set_to_none=True)
        if step % 100 == 0 or step + 1 == settings.steps:
            print(f"step {step:5d}  loss {loss:.4f}  {time.time() - start:5.0f} s", flush=True)


def task_words() -> list[str]:
    """Texts with every word of the task. The tokenizer makes each word one token."""
    return [question(1, 2), "What is 1 + 2?", first_attempt(11, 11, 121), "The answer", CORRECTION, "user", "model"]


def main() -> None:
    """Parse the flags, make and pretrain the model, and save it with its tokenizer."""
    parser = argparse.ArgumentParser(description="Make the embedded tiny Gemma-2 for products from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(flags.seed)
    tokenizer = make_tokenizer(task_words())
    model = make_model(tokenizer, LAYERS, WINDOW)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(trainable_pairs())} questions")
    pretrain(model, tokenizer, Settings(steps=flags.steps), flags.seed)
    model.save_pretrained(flags.out)
    tokenizer.save_pretrained(flags.out)


if __name__ == "__main__":
    main()
