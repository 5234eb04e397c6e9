"""Make score.csv: 3-digit additions, each with a first attempt sampled from the embedded model.

``python data/make_score.py`` makes data/score.csv as it is in the repository. With ``--rows 5000 --split test --out
FILE`` it makes a larger file of test questions for a study.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import scorefast
from scorefast.assets.make_tiny_gemma2 import question
from scorefast.data.example import COLUMNS, SPLITS
from scorefast.data.splits import split_of
from scorefast.model.chat_format import ChatFormat
from scorefast.schema import Data

HERE = Path(__file__).parent
SPLIT = Data(test_fraction=0.4, validation_fraction=0.1)  # as in recipes/tiny-cpu.yaml; pretraining used the rest
TINY = Path(scorefast.__file__).parent / "assets" / "tiny-gemma2"


def draw_pairs(rows: int, split: str, rng: random.Random) -> list[tuple[int, int]]:
    """Distinct operand pairs, each in the same split as its mirror. The mirror of a drawn pair is not drawn.

    "all" takes the shares 40 / 10 / 50 % from test, validation and train, in random order.
    """
    test, validation = round(rows * SPLIT.test_fraction), round(rows * SPLIT.validation_fraction)
    wanted = {"test": test, "validation": validation, "train": rows - test - validation}
    if split != "all":
        wanted = {name: rows if name == split else 0 for name in SPLITS}
    pairs: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    while len(pairs) < rows:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        home = split_of(question(a, b), SPLIT)
        if (a, b) in seen or not wanted[home] or split_of(question(b, a), SPLIT) != home:
            continue
        seen |= {(a, b), (b, a)}
        wanted[home] -= 1
        pairs.append((a, b))
    return pairs


@torch.no_grad()
def first_attempts(questions: list[str], model_folder: Path, seed: int, batch: int = 256) -> list[str]:
    """One reply per question, sampled at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
    chat = ChatFormat(tokenizer)
    torch.manual_seed(seed)
    replies = []
    for start in range(0, len(questions), batch):
        prompts = [chat.first_turn(text) for text in questions[start : start + batch]]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        sampled = model.generate(**inputs, max_new_tokens=64, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        replies += [chat.decode(row) for row in sampled[:, inputs["input_ids"].shape[1] :].tolist()]
    return replies


def main() -> None:
    """Parse the flags, draw the questions, sample first attempts, and write the CSV."""
    parser = argparse.ArgumentParser(description="Make a CSV of 3-digit additions with sampled first attempts.")
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="all")
    parser.add_argument("--out", type=Path, default=HERE / "score.csv")
    parser.add_argument("--model", type=Path, default=TINY, help="the model that makes the first attempts")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    pairs = draw_pairs(flags.rows, flags.split, random.Random(flags.seed))
    questions = [question(a, b) for a, b in pairs]
    attempts = first_attempts(questions, flags.model, flags.seed)
    with flags.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(
            (text, reply, f"The answer is {a + b}")
            for text, reply, (a, b) in zip(questions, attempts, pairs, strict=True)
        )


if __name__ == "__main__":
    main()
