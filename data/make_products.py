"""Make products.csv: 2-digit products, each with a first attempt sampled from the embedded model for products.

``python data/make_products.py`` makes data/products.csv as it is in the repository. With ``--rows 1000 --split test
--out FILE`` it makes a larger file of test questions for a study. There are about 1,000 of them.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import torch
from make_score import HERE, SPLIT, first_attempts

from scorefast.assets.make_tiny_products import NUMBERS, first_attempt, question, trainable_pairs
from scorefast.data.example import COLUMNS, SPLITS
from scorefast.data.splits import split_of
from scorefast.recipe import EMBEDDED_MODELS


def draw_pairs(rows: int, split: str, rng: random.Random) -> list[tuple[int, int]]:
    """Distinct operand pairs, each in the same split as its mirror. Both may be drawn, because their work differs.

    "all" takes the shares 40 / 10 / 50 % from test, validation and train, as far as the questions suffice, in random
    order. The model was pretrained on the training questions.
    """
    trainable, pools = set(trainable_pairs()), dict[str, list[tuple[int, int]]]({name: [] for name in SPLITS})
    for a, b in ((a, b) for a in NUMBERS for b in NUMBERS):
        home = split_of(question(a, b), SPLIT)
        if split_of(question(b, a), SPLIT) == home and (home != "train" or (a, b) in trainable):
            pools[home].append((a, b))
    if split != "all":
        return rng.sample(pools[split], min(rows, len(pools[split])))
    test = round(rows * SPLIT.test_fraction)
    validation = min(round(rows * SPLIT.validation_fraction), len(pools["validation"]))
    wanted = {"test": test, "validation": validation, "train": rows - test - validation}
    pairs = [pair for name in SPLITS for pair in rng.sample(pools[name], wanted[name])]
    rng.shuffle(pairs)
    return pairs


def main() -> None:
    """Parse the flags, draw the questions, sample first attempts, and write the CSV."""
    parser = argparse.ArgumentParser(description="Make a CSV of 2-digit products with sampled first attempts.")
    parser.add_argument("--rows", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="all")
    parser.add_argument("--out", type=Path, default=HERE / "products.csv")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODELS["tiny-gemma2-products"])
    flags = parser.parse_args()
    torch.set_num_threads(1)
    pairs = draw_pairs(flags.rows, flags.split, random.Random(flags.seed))
    questions = [question(a, b) for a, b in pairs]
    attempts = first_attempts(questions, flags.model, flags.seed)
    answers = [first_attempt(a, b, a * b) for a, b in pairs]
    with flags.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(questions, attempts, answers, strict=True))


if __name__ == "__main__":
    main()
