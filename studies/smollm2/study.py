"""The questions, and the trainings and evaluations of the study, as commands that a user types."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from benchmarks.common import ROOT, set_flags, write_page
from scorefast.data.load import load_dataset
from scorefast.data.splits import split_of
from scorefast.grading.grade import auto_grader, grade
from scorefast.recipe import load_recipe
from studies.common import load_model

RECIPE = "smollm2-135m-cpu"
KOREAN = Path("data/questions-ko.csv")
SHOWN, SHOWN_KOREAN = 8, 16  # the first so many questions of the split are shown

# Samples ramble where greedy replies do not: 24 tokens are enough for "7 + 5 = 12. The answer is 12." twice, and every
# evaluation has the recipe's 48, so that nothing can be won by learning to fit.
TRAINING = ["rollout.max_new_tokens=24", "data.validation_fraction=0"]
ROOM = ["rollout.max_new_tokens=48"]
SUPERVISED = ["stage1.method=supervised", "stage1.first_attempt=sampled", "stage1.questions_per_step=8"]
SUPERVISED += ["stage1.max_steps=12"]
WHOLE = ["data.test_fraction=0", "data.validation_fraction=0"]
MEMORISING = [*WHOLE, "stage1.method=supervised", "stage1.beta2=0", "stage1.questions_per_step=16"]
MEMORISING += ["stage1.max_steps=16", "stage1.learning_rate=2.0e-3"]


def sum_question(a: int, b: int) -> str:
    return f"What is {a} + {b}? End with: The answer is ..."


def write_sums(path: Path, largest: int = 21, seed: int = 0) -> None:
    """Sums of two numbers up to `largest`. A sum and its mirror are both there only if they fall into one split."""
    settings = load_recipe(RECIPE).data
    draw, rows = random.Random(seed), []
    for a in range(1, largest + 1):
        for b in range(1, a + 1):
            pair = [(a, b), (b, a)]
            draw.shuffle(pair)
            one_split = len({split_of(sum_question(*p), settings) for p in pair}) == 1
            rows += pair if one_split and a != b else pair[:1]
    draw.shuffle(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "correct_answer"])
        writer.writerows([sum_question(a, b), f"The answer is {a + b}."] for a, b in rows)


def write_worked(sums: Path, path: Path) -> None:
    """The same questions; the answer to learn by heart in the supervised run is worked out."""
    with sums.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        a, b = re.findall(r"\d+", row["question"])
        row["correct_answer"] = f"{a} + {b} = {int(a) + int(b)}. {row['correct_answer']}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Study:
    """work: where the runs are kept, from the repository's root. settings: key=value, in every command, after its
    own."""

    work: Path = Path("runs/smollm2")
    settings: tuple[str, ...] = ()

    def folder(self, name: str) -> Path:
        """The folder of one training or evaluation."""
        return ROOT / self.work / name

    def finished(self, name: str) -> bool:
        """A training leaves its adapter, an evaluation its report."""
        return any((self.folder(name) / file).is_file() for file in ("adapter_config.json", "report.json"))

    def command(self, section: str, name: str, *words: object, settings: Sequence[str] = ()) -> None:
        """What it says goes into a log beside its results."""
        given = [*words, *set_flags([*settings, *self.settings]), "--out", self.work / name]
        print("scorefast", section, *given, flush=True)
        common.run_scorefast(section, *given, log=ROOT / self.work / f"{name}.log")

    def train(self, section: str, name: str, data: Path, settings: list[str], start: str | None = None) -> None:
        """Train, or go on with what was broken off."""
        if not self.finished(name):
            source = ["--from", self.work / start] if start else ["--recipe", RECIPE]
            self.command(section, name, "--data", data, *source, "--resume", settings=settings)

    def measure(self, name: str, what: str, data: Path, settings: Sequence[str] = ()) -> None:
        """Evaluate the base, or the checkpoint of that name, which brings its recipe."""
        if not self.finished(name):
            who = ["base", "--recipe", RECIPE] if what == "base" else [self.work / what]
            self.command("eval", name, *who, "--data", data, settings=settings)


def run(study: Study) -> None:
    """Base, Stage I, Stage II and a supervised Stage I, each evaluated; then the Korean and English questions."""
    (ROOT / study.work).mkdir(parents=True, exist_ok=True)
    sums, worked = study.work / "sums.csv", study.work / "sums-worked.csv"
    write_sums(ROOT / sums)
    write_worked(ROOT / sums, ROOT / worked)
    study.measure("eval-base", "base", sums)
    for seed in (0, 1):
        stages = [f"{name}-seed1" if seed else name for name in ("stage1", "stage2")]
        settings = [*TRAINING, "seed=1"] if seed else TRAINING
        for section, name, start in (("stage1", stages[0], None), ("stage2", stages[1], stages[0])):
            study.train(section, name, sums, settings, start)
            study.measure(f"eval-{name}", name, sums, ROOM)
        if not seed and not study.finished("probe"):
            both = [study.work / name for name in stages]
            study.command("eval", "probe", *both, "--data", sums, "--probe", settings=ROOM)
    study.train("stage1", "supervised", worked, [*TRAINING, *SUPERVISED])
    study.measure("eval-supervised", "supervised", sums, ROOM)
    study.train("stage1", "korean", KOREAN, MEMORISING)
    for name, what in (("korean-before", None), ("korean-after", "korean")):
        correct_given_attempts(study, name, what)


def correct_given_attempts(study: Study, name: str, checkpoint: str | None) -> None:
    """As in training: the first attempt is the file's, greedy is the second alone. Of the first SHOWN_KOREAN rows."""
    if study.finished(name):
        return
    recipe = load_recipe(RECIPE, [*WHOLE, *study.settings])
    examples = load_dataset(str(ROOT / KOREAN), recipe.data).splits["train"][:SHOWN_KOREAN]
    model = load_model(recipe, study.folder(checkpoint) if checkpoint else None)
    first = [model.reply(example.original_answer or "") for example in examples]
    second = model.second([example.question for example in examples], first)
    rows = []
    for example, replies in zip(examples, zip(first, second, strict=True), strict=True):
        fit = auto_grader(example.correct_answer)  # a text is right if it contains the reference
        grader = "contains" if fit == "exact" else fit
        row: dict[str, str | bool] = {"question": example.question, "correct_answer": example.correct_answer}
        for turn, text in enumerate(map(model.text, replies), 1):
            mark = grade(text, example.correct_answer, grader, example.question).correct
            row |= {f"attempt{turn}": text, f"correct{turn}": mark}
        rows.append(json.dumps(row, ensure_ascii=False))
    write_page(study.folder(name) / "transcripts.jsonl", rows)
    write_page(study.folder(name) / "report.json", [json.dumps({"n": len(rows)})])
