"""SCoRe and its baselines on the embedded task: five seeds on two bases, equally tuned, on questions never tuned on.

    python benchmarks/self_correction.py run                              # about an hour on one core
    python -m scorefast.assets.make_tiny_gemma2 --seed 2 --out runs/base2                 # another base, 7 minutes
    python benchmarks/self_correction.py run --base runs/base2 --name seed2 --methods score \\
        --tuned-by benchmarks/results/self_correction_shipped.json
    python benchmarks/self_correction.py table

Every method starts from the same base and trains on the train split of data/score.csv (450 questions). Its learning
rate is chosen from the same three by acc@t2 on 300 validation questions with seed 0 (within one standard error of the
best, the recipe's 2e-3 stands); the table reports 1,000 test questions that neither training nor tuning saw. What the
supervised baselines are trained to say:

- pair-sft short:  wrong first attempts sampled from the base, corrected by "The answer is N";
- pair-sft worked: the same, corrected by the column addition written out (text no sample of the base is needed for);
- star:            the base's own sampled second attempts, where they turned wrong into right;
- supervised:      `stage1.method=supervised` on the CSV as it is: short corrections of right and wrong first
                   attempts, with KL on the first.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import statistics
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from scorefast import train
from scorefast.assets.make_tiny_gemma2 import question, worked
from scorefast.data.example import Dataset, Example
from scorefast.data.load import load_dataset
from scorefast.grading.answer import Grade
from scorefast.grading.grade import grade
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.probe import probe
from scorefast.recipe import load_recipe
from scorefast.rl.evaluate import evaluate, grade_all
from scorefast.rl.rollout import two_turn_rollout
from scorefast.runs.checkpoint import open_checkpoint
from scorefast.runs.job import Job
from scorefast.schema import Recipe
from scorefast.stats import summarize

ROOT = Path(__file__).parent.parent
SEEDS = range(5)
LEARNING_RATES = (5e-4, 2e-3, 8e-3)
T_975 = 2.776  # Student's t, 4 degrees of freedom, two-sided 95 %
HEADINGS = ("acc@t1", "acc@t2", "delta", "wrong->right", "right->wrong")
RATES = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")

# Method -> the stages it runs, each with its overrides; `data` names a training file other than the CSV.
SFT = ["stage1.method=supervised", "stage1.max_steps=60", "stage1.questions_per_step=32"]
METHODS: dict[str, dict[str, Any]] = {
    "score": {"stages": [("stage1", []), ("stage2", [])]},
    "score, alpha = 0": {"stages": [("stage1", []), ("stage2", ["stage2.alpha=0"])]},
    "stage 2 without stage 1": {"stages": [("stage2", ["stage2.max_steps=40"])]},
    "supervised": {"stages": [("stage1", SFT)]},
    "pair-sft short": {"stages": [("stage1", [*SFT, "stage1.beta2=0"])], "data": "short"},
    "pair-sft worked": {"stages": [("stage1", [*SFT, "stage1.beta2=0"])], "data": "worked"},
    "star": {"stages": [("stage1", [*SFT, "stage1.beta2=0"])], "data": "star"},
}


def by_number(reply: str, example: Example) -> Grade:
    return grade(reply, example.correct_answer, "numeric")


def addition_examples(split: str, rows: int, seed: int) -> list[Example]:
    """Fresh additions of one split, none of them (or their mirrors) in data/score.csv."""
    sys.path.insert(0, str(ROOT / "data"))
    from make_score import draw_pairs

    with (ROOT / "data" / "score.csv").open(encoding="utf-8", newline="") as file:
        shipped = {row["question"] for row in csv.DictReader(file)}
    pairs = draw_pairs(rows + len(shipped), split, random.Random(seed))
    new = [(a, b) for a, b in pairs if not {question(a, b), question(b, a)} & shipped]
    return [Example(question(a, b), question(a, b), None, f"The answer is {a + b}") for a, b in new[:rows]]


def base_recipe(base: str, overrides: list[str]) -> Recipe:
    return load_recipe("tiny-cpu", [f"model.name={'tiny-gemma2' if base == 'shipped' else base}", *overrides])


def generator(recipe: Recipe, checkpoint: Path | None, temperature: float) -> tuple[Any, Any]:
    policy = load_policy(recipe, open_checkpoint(str(checkpoint)) if checkpoint else None)
    settings = recipe.rollout
    decode = partial(generate, policy, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    return partial(decode, temperature=temperature), policy.chat


def greedy_result(name: str, recipe: Recipe, checkpoint: Path | None, examples: list[Example]) -> dict[str, Any]:
    decode, chat = generator(recipe, checkpoint, 0.0)
    return summarize(name, evaluate(decode, chat, examples, by_number), 10_000).as_json()


def correction_pairs(recipe: Recipe, train: list[Example], folder: Path) -> dict[str, Path]:
    """The three supervised files, from eight two-turn samples of the base for every training question."""
    torch.manual_seed(0)
    sample, chat = generator(recipe, None, 1.0)
    graded = grade_all(two_turn_rollout(sample, chat, [e for e in train for _ in range(8)]), by_number)
    wrong = [g for g in graded if not g.first.correct]
    star = [(g.trajectory, g.trajectory.second.text) for g in wrong if g.second.correct]
    operands = [tuple(map(int, re.findall(r"\d+", g.trajectory.example.question))) for g in wrong]
    short = [(g.trajectory, g.trajectory.example.correct_answer) for g in wrong]
    rows = {
        "short": short,
        "worked": [(g.trajectory, worked(a, b)) for g, (a, b) in zip(wrong, operands, strict=True)],
        "star": star,
    }
    files = {}
    for name, pairs in rows.items():
        files[name] = folder / f"{name}.json"
        content = [[t.example.question, t.first.text, target] for t, target in pairs]
        files[name].write_text(json.dumps(content), encoding="utf-8")
    return files


def chosen_rate(scores: dict[float, float], n: int) -> float:
    """The recipe's own rate where it is within a standard error of the best (Agresti-Coull), else the best."""
    best = max(scores, key=lambda r: scores[r])
    p = (scores[best] * n + 2) / (n + 4)
    return 2e-3 if scores[2e-3] >= scores[best] - (p * (1 - p) / (n + 4)) ** 0.5 else best


def train_method(
    method: dict[str, Any], base: str, rate: float, seed: int, dataset: Dataset, files: dict[str, Path], scratch: Path
) -> list[Path]:
    """Run a method's stages one after the other; returns their checkpoints. What two methods share is run once."""
    if "data" in method:
        rows = json.loads(files[method["data"]].read_text(encoding="utf-8"))
        pairs = [Example(str(i), *row) for i, row in enumerate(rows)]
        dataset = Dataset(method["data"], len(pairs), {}, {"train": pairs, "validation": [], "test": []})
    key, checkpoints = f"{method.get('data', 'csv')}-{rate}-{seed}", []
    for section, overrides in method["stages"]:
        key += f"-{section}-{'-'.join(overrides)}"
        folder = scratch / hashlib.sha256(key.encode()).hexdigest()[:16] / section
        if not folder.exists():
            silent = [f"{section}.eval_steps=1000000", f"{section}.save_steps=1000000"]
            recipe = base_recipe(base, [f"seed={seed}", f"{section}.learning_rate={rate}", *overrides, *silent])
            folder.mkdir(parents=True)
            start = open_checkpoint(str(checkpoints[-1])) if checkpoints else None
            train.run(Job(section, recipe, dataset, start, folder), Console(quiet=True))
        checkpoints.append(folder)
    return checkpoints


def run(base: str, name: str, out: Path, tuned: dict[str, float] | None, methods: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    recipe = base_recipe(base, [])
    shipped = load_dataset(str(ROOT / "data" / "score.csv"), recipe.data)
    dataset = Dataset(shipped.source, shipped.rows_read, shipped.dropped, {**shipped.splits, "validation": []})
    tuning, test = addition_examples("validation", 300, 1), addition_examples("test", 1000, 2)
    report: dict[str, Any] = {"base": name, "tuning": {}, "results": {}, "probe": {}}
    report["results"]["base"] = [greedy_result("base", recipe, None, test)]
    target = out / f"self_correction_{name}.json"
    with TemporaryDirectory() as scratch:
        files = correction_pairs(recipe, dataset.splits["train"], Path(scratch))
        report["supervised_rows"] = {key: len(json.loads(path.read_text())) for key, path in files.items()}
        for title, method in methods.items():
            train = partial(train_method, method, base, dataset=dataset, files=files, scratch=Path(scratch))
            scores = {}
            for rate in LEARNING_RATES if tuned is None else ():
                scores[rate] = greedy_result(title, recipe, train(rate, 0)[-1], tuning)["acc_t2"]
            rate = chosen_rate(scores, len(tuning)) if tuned is None else tuned[title]
            report["tuning"][title] = {"learning_rate": rate, "acc_t2": {str(r): s for r, s in scores.items()}}
            runs = [train(rate, seed) for seed in SEEDS]
            if title == "score":
                report["results"]["score, stage 1 alone"] = [greedy_result("", recipe, r[0], test) for r in runs]
            report["results"][title] = results = [greedy_result(title, recipe, r[-1], test) for r in runs]
            print(title, scores, [(round(r["acc_t1"], 3), round(r["acc_t2"], 3)) for r in results], flush=True)
            target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if "score" not in methods:
            return
        score = train_method(
            METHODS["score"], base, report["tuning"]["score"]["learning_rate"], 0, dataset, files, Path(scratch)
        )
        for label, checkpoint in (("base", None), ("score", score[-1])):
            greedy, chat = generator(recipe, checkpoint, 0.0)
            torch.manual_seed(0)
            report["probe"][label] = probe(greedy, generator(recipe, checkpoint, 1.0)[0], chat, test[:500], by_number)
    target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def mean_interval(values: list[float]) -> str:
    """Mean over seeds with Student's 95 % interval; one value alone has no spread over seeds."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}"
    half = T_975 * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def table(out: Path) -> None:
    lines = []
    for path in sorted(out.glob("self_correction_*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        n = report["results"]["base"][0]["n"]
        heading = f"{n} test questions, greedy, per cent; mean over 5 seeds ± 95 % (Student's t)."
        lines += [f"### Base `{report['base']}`", "", heading, ""]
        lines += [f"| | lr | {' | '.join(HEADINGS)} | worst seed: delta | t1 - base | right->wrong |"]
        lines += ["|---" * (len(HEADINGS) + 5) + "|"]
        base_t1 = report["results"]["base"][0]["acc_t1"]
        for title, results in report["results"].items():
            tuned = report["tuning"].get("score" if title == "score, stage 1 alone" else title)
            rate = f"{tuned['learning_rate']:g}" if tuned else ""
            cells = [mean_interval([r[key] for r in results]) for key in RATES]
            cells.append(f"{100 * min(r['delta'] for r in results):+.1f}")
            cells.append(f"{100 * (min(r['acc_t1'] for r in results) - base_t1):+.1f}")
            cells.append(f"{100 * max(r['delta_c2i'] for r in results):.1f}")
            lines.append(f"| {title} | {rate} | {' | '.join(cells)} |")
        lines += [
            "",
            "Right after turn 2 when the first attempt is replaced (500 questions, seed 0, 95 % Wilson interval):",
            "",
        ]
        lines += ["| | correct answer | own wrong sample | another question's | empty |", "|---|---|---|---|---|"]
        for label, rates in report["probe"].items():
            cells = []
            for kind in ("correct", "wrong", "unrelated", "empty"):
                low, high = rates[kind]["ci95"]
                right = rates[kind]["right_after"]
                cells.append("-" if right is None else f"{100 * right:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    (out / "self_correction.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--base", default="shipped", help="`shipped` or a model folder")
    parser.add_argument("--name", default="shipped")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--tuned-by", type=Path, help="report whose learning rates to use instead of tuning")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    if flags.action == "table":
        table(flags.out)
        return
    tuned = None
    if flags.tuned_by:
        chosen = json.loads(flags.tuned_by.read_text(encoding="utf-8"))["tuning"]
        tuned = {title: entry["learning_rate"] for title, entry in chosen.items()}
    run(flags.base, flags.name, flags.out, tuned, {title: METHODS[title] for title in flags.methods})


if __name__ == "__main__":
    main()
