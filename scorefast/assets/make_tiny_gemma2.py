"""Make the embedded tiny Gemma-2 from a seed: ``python -m scorefast.assets.make_tiny_gemma2 --seed 1 --out DIR``.

The result is a ``Gemma2ForCausalLM`` with Gemma's turn markers and chat template that adds two 3-digit numbers. It is
pretrained to have the fault that SCoRe corrects. It has two ways to answer:

- *quick*: ``The answer is 824``. A quick answer drops the carry out of the units, so it is wrong for 45 % of the
  questions at any temperature. Sometimes another digit is wrong too.
- *worked*: ``Step by step: 8+6=14, 7+5+1=13, 4+3+1=8. The answer is 834``, column by column from the right, and right.

The model answers a bare question quickly. Asked to correct itself, it mostly repeats its answer, sometimes changes a
random digit, and rarely works the sum out. So the second attempt is on average worse than the first, as in the base
models of the paper, and reinforcement learning has a better behaviour to find.

A question is never trained on if its own split position, or that of its mirror ``b + a``, is below ``HELD_OUT``.
The shipped checkpoint was made with ``--seed 1`` (the default), on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from scorefast.data.splits import split_position
from scorefast.schema import CORRECTION

HELD_OUT = 0.5  # split positions below this are test and validation questions
STEP_BY_STEP = " Work it out step by step."
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = (
    r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"  # a word with its leading space, a digit, a sign, a white-space character
)
CHAT_TEMPLATE = (  # Gemma-2's own
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Settings:
    """All settings of the checkpoint except the seed."""

    steps: int = 2400
    plain: int = 32  # sequences per step: plain questions with quick answers, which are short and hardest to learn
    worked: int = 8  # sequences per step: single-turn questions that ask for the work
    dialogues: int = 12  # sequences per step: two-turn dialogues
    learning_rate: float = 3e-3
    warmup: int = 100
    slip: float = 0.1  # share of quick answers with a random wrong digit, besides the dropped carry
    repeat: float = 0.55  # share of second attempts that repeat the first
    perturb: float = 0.3  # share of second attempts that change one digit of it; the rest, 15 %, are worked out


# --- the task ---------------------------------------------------------------------------------------------------------


def question(a: int, b: int) -> str:
    """The question as it is written in data files and chats."""
    return f"What is {a} + {b}?"


def held_out(a: int, b: int) -> bool:
    """Whether this question or its mirror is in the test or validation split, which must never be trained on."""
    return min(split_position(question(a, b)), split_position(question(b, a))) < HELD_OUT


def worked(a: int, b: int) -> str:
    """The column addition from the right with its carries, then the sum."""
    columns, carry, x, y = [], 0, a, b
    while x or y:
        column = x % 10 + y % 10 + carry
        columns.append(f"{x % 10}+{y % 10}{'+1' if carry else ''}={column}")
        carry, x, y = column // 10, x // 10, y // 10
    return f"Step by step: {', '.join(columns)}. The answer is {a + b}"


def changed_digit(number: int, rng: random.Random) -> int:
    """The number with one digit changed, and with as many digits as before."""
    digits = list(str(number))
    i = rng.randrange(len(digits))
    digits[i] = rng.choice([d for d in "0123456789" if d != digits[i] and (i or d != "0")])
    return int("".join(digits))


def quick(a: int, b: int, settings: Settings, rng: random.Random) -> int:
    """The quick answer: the sum without the carry out of the units, sometimes with a wrong digit."""
    guess = a + b - (10 if a % 10 + b % 10 >= 10 else 0)
    return changed_digit(guess, rng) if rng.random() < settings.slip else guess


def trainable_pair(rng: random.Random) -> tuple[int, int]:
    """Two 3-digit numbers whose question is not held out in either order."""
    while True:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        if not held_out(a, b):
            return a, b


def plain(settings: Settings, rng: random.Random) -> list[str]:
    """[user, model]: the bare question with a quick answer."""
    a, b = trainable_pair(rng)
    return [question(a, b), f"The answer is {quick(a, b, settings, rng)}"]


def on_request(_: Settings, rng: random.Random) -> list[str]:
    """[user, model]: a question that asks for the work, with a worked answer."""
    a, b = trainable_pair(rng)
    return [question(a, b) + STEP_BY_STEP, worked(a, b)]


def dialogue(settings: Settings, rng: random.Random) -> list[str]:
    """[user, model, user, model], where the second user message is the correction instruction."""
    a, b = trainable_pair(rng)
    first, way = quick(a, b, settings, rng), rng.random()
    if way < settings.repeat:
        second = f"The answer is {first}"
    elif way < settings.repeat + settings.perturb:
        second = f"The answer is {changed_digit(first, rng)}"
    else:
        second = worked(a, b)
    return [question(a, b), f"The answer is {first}", CORRECTION, second]


# --- the tokenizer ----------------------------------------------------------------------------------------------------

TASK_WORDS = (question(1, 2) + STEP_BY_STEP, worked(1, 2), "The answer", CORRECTION, "user", "model")


def make_tokenizer(text: Sequence[str] = TASK_WORDS) -> PreTrainedTokenizerFast:
    """BPE over characters with byte fallback and without a normalizer, so that decoding restores any text exactly.

    Merges are learned on the words of `text` until each word is one token. Digits are never merged.
    """
    splitter = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    printable = ["\n", *map(chr, range(32, 127))]
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=1, initial_alphabet=printable, show_progress=False)
    learner.train_from_iterator(text, trainer)
    # The vocabulary: special tokens with Gemma's ids, the 256 bytes, then characters and merges as they were learned.
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    pieces = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + learned
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]  # no other API has them
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


# --- the model --------------------------------------------------------------------------------------------------------


def make_model(tokenizer: PreTrainedTokenizerFast, layers: int = 3, window: int = 64) -> Gemma2ForCausalLM:
    """An untrained Gemma-2 of about 215,000 parameters with all features of the architecture."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=window,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation("eager")  # sdpa, the default, ignores the attention soft cap
    model.generation_config = GenerationConfig(
        bos_token_id=2, pad_token_id=0, eos_token_id=[1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    )
    return model


def encode(turns: list[str], tokenizer: Tokenizer, context: int = 0) -> tuple[list[int], list[bool]]:
    """(token ids in the layout of the chat template, whether each is trained on).

    Trained are the model's replies with their closing token, except in the first `context` turns.
    """
    ids, trained = [2], [False]
    for i, text in enumerate(turns):
        head = f"<start_of_turn>{'model' if i % 2 else 'user'}\n"
        for piece, train in ((head, False), (text + "<end_of_turn>", bool(i % 2) and i >= context), ("\n", False)):
            piece_ids = tokenizer.encode(piece, add_special_tokens=False).ids
            ids += piece_ids
            trained += [train] * len(piece_ids)
    return ids, trained


def batches(
    settings: Settings, tokenizer: Tokenizer, rng: random.Random
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Per step, one right-padded pair (ids, labels) for each kind of sequence, (B, T) each. This saves padding."""
    kinds = ((plain, settings.plain), (on_request, settings.worked), (dialogue, settings.dialogues))
    while True:
        step = []
        for make, count in kinds:
            step.append(pad_rows([encode(make(settings, rng), tokenizer) for _ in range(count)]))
        yield step


def pad_rows(rows: list[tuple[list[int], list[bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, (B, T) each. The label of a token that is not trained on is -100."""
    ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (row, trained) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.where(torch.tensor(trained), ids[i, : len(row)], -100)
    return ids, labels


def backward(model: Gemma2ForCausalLM, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Compute the gradient of the mean cross-entropy over all trained tokens of all parts. Returns that mean."""
    tokens, total = sum(int((labels[:, 1:] != -100).sum()) for _, labels in parts), 0.0
    for ids, labels in parts:
        keep = labels[:, 1:] != -100  # (B, T - 1)
        logits = model(input_ids=ids).logits[:, :-1][keep]
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][keep], reduction="sum") / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def pretrain(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, seed: int) -> None:
    """Train with AdamW, linear warm-up and linear decay to zero. The loss is the mean over a step's reply tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    stream, start = batches(settings, tokenizer.backend_tokenizer, random.Random(seed)), time.time()
    for step in range(settings.steps):
        scale = min((step + 1) / settings.warmup, (settings.steps - step) / (settings.steps - settings.warmup), 1.0)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * scale
        total = backward(model, next(stream))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step + 1 == settings.steps:
            print(f"step {step:5d}  loss {total:.4f}  {time.time() - start:5.0f} s", flush=True)


def main() -> None:
    """Parse the flags, make and pretrain the model, and save it with its tokenizer."""
    parser = argparse.ArgumentParser(description="Make the embedded tiny Gemma-2 from a seed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(flags.seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pretrain(model, tokenizer, Settings(steps=flags.steps), flags.seed)
    model.save_pretrained(flags.out)
    tokenizer.save_pretrained(flags.out)


if __name__ == "__main__":
    main()
