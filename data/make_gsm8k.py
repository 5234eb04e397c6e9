"""Make a SCoRe CSV of GSM8K's labelled model solutions: question, a model's wrong solution, the official solution.

    python data/make_gsm8k.py example_model_solutions.jsonl --out gsm8k.csv

The file is part of GSM8K (github.com/openai/grade-school-math, MIT). Each line is an object with `question`,
`ground_truth` and, for each model, `solution` and `is_correct`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from scorefast.data.example import COLUMNS
from scorefast.files.text import without_calculator


def wrong_solution(row: dict[str, Any], models: list[str]) -> str | None:
    """The first solution, in the order of `models`, that is labelled wrong; None if all are right."""
    return next((row[name]["solution"] for name in models if not row[name]["is_correct"]), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("solutions", type=Path, help="example_model_solutions.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", help="use only this model's solutions; may be repeated")
    arguments = parser.parse_args()
    read = written = 0
    with (
        arguments.solutions.open(encoding="utf-8") as source,
        arguments.out.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for line in source:
            row = json.loads(line)
            models = arguments.model or [name for name, value in row.items() if isinstance(value, dict)]
            wrong = wrong_solution(row, models)
            read += 1
            if wrong is not None:
                writer.writerow([row["question"], *map(without_calculator, (wrong, row["ground_truth"]))])
                written += 1
    print(f"{written} of {read} questions have a wrong solution", file=sys.stderr)


if __name__ == "__main__":
    main()
