"""SCoRe and its baselines on the embedded task: five seeds on two bases, equally tuned, on questions never tuned on.

    python -m studies self_correction run                                 # over an hour on one core
    python -m scorefast.assets.make_tiny_gemma2 --seed 2 --out runs/base2                 # another base, 7 minutes
    python -m studies self_correction run --base runs/base2 --name seed2 --methods score \\
        --tuned-by studies/results/self_correction_shipped.json
    python -m studies self_correction page                                # studies/results/self_correction.md

Every method starts from the same base and trains on the train split of data/score.csv, 450 questions. Its learning rate
is chosen from the same three by acc@t2 on 300 validation questions with seed 0. The recipe's 2e-3 stands where it is
within one standard error of the best. The page reports 1,000 test questions that neither training nor tuning saw.

What the supervised baselines are trained to say:

- pair-sft short:  wrong first attempts sampled from the base, corrected by "The answer is N";
- pair-sft worked: the same, corrected by the column addition written out (text no sample of the base is needed for);
- star:            the base's own sampled second attempts, where they turned wrong into right;
- supervised:      `stage1.method=supervised` on the CSV as it is: short corrections of right and wrong first
                   attempts, with KL on the first.

Every training and evaluation is a scorefast command. Its folder stays under --work and is not made again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import common
from benchmarks.common import ROOT, argument_parser, markdown_table, set_flags, write_page
from scorefast.assets.make_tiny_gemma2 import question, worked
from scorefast.recipe import load_recipe
from studies.common import HEADINGS, RATES, RESULTS, is_number, load_model, percent

RECIPE = "tiny-cpu"
LEARNING_RATES = (5e-4, 2e-3, 8e-3)
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by the number of seeds, two-sided 95 %

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


@dataclass(frozen=True)
class Study:
    """base: a model folder, or the embedded model. settings: key=value, in every command, after a method's own."""

    base: str
    work: Path
    seeds: int = 5
    rows: int = 1000
    tuning_rows: int = 300
    samples: int = 8
    rates: tuple[float, ...] = LEARNING_RATES
    settings: tuple[str, ...] = ()

    @property
    def common(self) -> list[str]:
        """Flags that every command gets."""
        return ["--recipe", RECIPE, *set_flags([f"model.name={self.base}", "reward.grader=numeric", *self.settings])]


# --- data -------------------------------------------------------------------------------------------------------------


def questions_file(study: Study, split: str, rows: int, seed: int) -> Path:
    """A CSV of fresh additions of one split, none of them (or their mirrors) in data/score.csv."""
    path = study.work / f"{split}-{rows}.csv"
    if path.is_file():
        return path
    sys.path.insert(0, str(ROOT / "data"))
    from make_score import draw_pairs

    with (ROOT / "data" / "score.csv").open(encoding="utf-8", newline="") as file:
        shipped = {row["question"] for row in csv.DictReader(file)}
    pairs = draw_pairs(rows + len(shipped), split, random.Random(seed))
    new = [(a, b) for a, b in pairs if not {question(a, b), question(b, a)} & shipped]
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = [(question(a, b), f"The answer is {a + b}") for a, b in new[:rows]]
        csv.writer(file).writerows([("question", "correct_answer"), *lines])
    return path


def training_folders(study: Study) -> dict[str, Path]:
    """Prepared folders of training rows alone: the CSV's, and the three supervised files."""
    folders = {name: study.work / "data" / name for name in ("csv", "short", "worked", "star")}
    if not folders["csv"].is_dir():
        common.run_scorefast("prepare", ROOT / "data" / "score.csv", *study.common, "--out", folders["csv"])
        for split in ("validation", "test"):
            replace_split(folders["csv"], split, [])
    if not folders["star"].is_dir():
        train = pq.read_table(folders["csv"] / "train.parquet").to_pylist()
        for name, pairs in correction_pairs(study, train).items():
            shutil.copytree(folders["csv"], folders[name])
            rows = [train[0] | {"id": str(i), **pair} for i, pair in enumerate(pairs)]
            replace_split(folders[name], "train", rows)
    return folders


def replace_split(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    """Other rows in a prepared folder, and their hash in its manifest. Unlike a CSV, it may repeat a question."""
    path, manifest = folder / f"{split}.parquet", folder / "manifest.json"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(facts), encoding="utf-8")


def correction_pairs(study: Study, train: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """The three supervised files, from two-turn samples of the base, eight for every training question."""
    torch.manual_seed(0)
    base = load_model(load_recipe(RECIPE, [f"model.name={study.base}", *study.settings]))
    asked = [row for row in train for _ in range(study.samples)]
    questions = [row["question"] for row in asked]
    first = base.first(questions, temperature=1.0)
    second = [base.text(reply) for reply in base.second(questions, first, temperature=1.0)]
    pairs: dict[str, list[dict[str, str]]] = {"short": [], "worked": [], "star": []}
    for row, y1, y2 in zip(asked, map(base.text, first), second, strict=True):
        if is_number(y1, row["correct_answer"]):
            continue
        a, b = map(int, re.findall(r"\d+", row["question"]))
        given = {"question": row["question"], "original_answer": y1}
        pairs["short"].append({**given, "correct_answer": row["correct_answer"]})
        pairs["worked"].append({**given, "correct_answer": worked(a, b)})
        if is_number(y2, row["correct_answer"]):
            pairs["star"].append({**given, "correct_answer": y2})
    return pairs


# --- runs -------------------------------------------------------------------------------------------------------------


def train_method(study: Study, method: dict[str, Any], rate: float, seed: int) -> list[Path]:
    """Run a method's stages one after the other; returns their checkpoints. What two methods share is run once."""
    data = method.get("data", "csv")
    key, checkpoints = f"{data}-{rate}-{seed}", list[Path]()
    for section, overrides in method["stages"]:
        key += f"-{section}-{'-'.join(overrides)}"
        folder = study.work / "trained" / hashlib.sha256(key.encode()).hexdigest()[:16] / section
        if not (folder / "adapter_config.json").is_file():
            settings = [f"{section}.learning_rate={rate}", f"{section}.save_steps=1000000", *overrides]
            start = ["--from", checkpoints[-1]] if checkpoints else []
            given = ["--data", study.work / "data" / data, "--seed", seed, *set_flags(settings), *study.common]
            common.run_scorefast(section, *given, *start, "--out", folder, "--resume", "--quiet")
        checkpoints.append(folder)
    return checkpoints


def greedy(study: Study, who: Sequence[object], split: str, *flags: str) -> dict[str, Any]:
    """The report of `eval` on fresh questions of a split: 300 validation or 1,000 test questions."""
    rows, seed = (study.rows, 2) if split == "test" else (study.tuning_rows, 1)
    data = questions_file(study, split, rows, seed)
    given = ["--data", data, "--split", split, *study.common, *flags, "--json", "--quiet"]
    report: dict[str, Any] = json.loads(common.run_scorefast("eval", *who, *given))
    return report


def chosen_rate(scores: dict[float, float], n: int) -> float:
    """The recipe's own rate where it is within a standard error of the best (Agresti-Coull), else the best."""
    best = max(scores, key=lambda r: scores[r])
    p = (scores[best] * n + 2) / (n + 4)
    return 2e-3 if scores.get(2e-3, 0.0) >= scores[best] - (p * (1 - p) / (n + 4)) ** 0.5 else best


def tuned_rate(study: Study, method: dict[str, Any]) -> tuple[float, dict[float, float]]:
    """(the chosen learning rate, acc@t2 of each on the validation questions with seed 0)."""
    scores = {}
    for rate in study.rates:
        last = train_method(study, method, rate, 0)[-1]
        scores[rate] = greedy(study, [last], "validation")["results"][0]["acc_t2"]
    return chosen_rate(scores, study.tuning_rows), scores


def run(study: Study, name: str, out: Path, tuned: dict[str, float] | None, methods: dict[str, Any]) -> None:
    """Tune, train and evaluate every method, then probe; the report is written after each of them."""
    torch.set_num_threads(1)
    folders = training_folders(study)
    report: dict[str, Any] = {"base": name, "tuning": {}, "results": {}, "probe": {}}
    report["results"]["base"] = greedy(study, ["base"], "test")["results"]
    report["supervised_rows"] = {
        key: pq.read_metadata(folder / "train.parquet").num_rows for key, folder in folders.items() if key != "csv"
    }
    for title, method in methods.items():
        rate, scores = tuned_rate(study, method) if tuned is None else (tuned[title], {})
        report["tuning"][title] = {"learning_rate": rate, "acc_t2": {str(r): s for r, s in scores.items()}}
        runs = [train_method(study, method, rate, seed) for seed in range(study.seeds)]
        if title == "score":
            alone = greedy(study, [r[0] for r in runs], "test")["results"]
            report["results"]["score, stage 1 alone"] = alone
        report["results"][title] = greedy(study, [r[-1] for r in runs], "test")["results"]
        print(title, scores, [(r["acc_t1"], r["acc_t2"]) for r in report["results"][title]], flush=True)
        if title == "score":
            halved = ("--set", f"eval.max_questions={study.rows // 2}", "--probe")
            rates = greedy(study, ["base", runs[0][-1]], "test", *halved)["probe"]
            report["probe"] = dict(zip(("base", "score"), rates.values(), strict=True))
        write_page(out / f"self_correction_{name}.json", [json.dumps(report, indent=1)])


# --- the page ---------------------------------------------------------------------------------------------------------


def mean_interval(values: list[float]) -> str:
    """Mean over seeds with Student's 95 % interval; one value alone has no spread over seeds."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}"
    half = T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def base_lines(report: dict[str, Any]) -> list[str]:
    """The tables of one base."""
    n, seeds = report["results"]["base"][0]["n"], max(map(len, report["results"].values()))
    heading = f"{n} test questions, greedy, per cent; mean over {seeds} seeds ± 95 % (Student's t)."
    base_t1, rows = report["results"]["base"][0]["acc_t1"], []
    for title, results in report["results"].items():
        tuned = report["tuning"].get("score" if title == "score, stage 1 alone" else title)
        cells = [title, f"{tuned['learning_rate']:g}" if tuned else ""]
        cells += [mean_interval([r[key] for r in results]) for key in RATES]
        cells.append(f"{100 * min(r['delta'] for r in results):+.1f}")
        cells.append(f"{100 * (min(r['acc_t1'] for r in results) - base_t1):+.1f}")
        cells.append(f"{100 * max(r['delta_c2i'] for r in results):.1f}")
        rows.append(cells)
    heads = ["", "lr", *HEADINGS, "worst seed: delta", "t1 - base", "right->wrong"]
    lines = [f"### Base `{report['base']}`", "", heading, "", *markdown_table(heads, rows), ""]
    probed = []
    for label, rates in report["probe"].items():
        kinds = [rates[kind] for kind in ("correct", "wrong", "unrelated", "empty")]
        right = ["-" if k["right_after"] is None else percent(k["right_after"], k["ci95"]) for k in kinds]
        probed.append([label, *right])
    if probed:
        told = f"({n // 2} questions, seed 0, 95 % Wilson interval):"
        lines += [f"Right after turn 2 when the first attempt is replaced {told}", ""]
        heads = ["", "correct answer", "own wrong sample", "another question's", "empty"]
        lines += [*markdown_table(heads, probed), ""]
    return lines


def page(out: Path) -> None:
    """self_correction.md from the reports of all bases."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("self_correction_*.json"))]
    write_page(out / "self_correction.md", [line for report in reports for line in base_lines(report)])
    print(out / "self_correction.md")


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run one action."""
    parser = argument_parser("studies self_correction", __doc__)
    parser.add_argument("action", choices=["run", "page"])
    parser.add_argument("--base", default="shipped", help="`shipped` or a model folder")
    parser.add_argument("--name", default="shipped")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="what is there is not run again; default: runs/self_correction/NAME")
    parser.add_argument("--tuned-by", type=Path, help="report whose learning rates to use instead of tuning")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--rows", type=int, default=1000, help="test questions")
    parser.add_argument("--tuning-rows", type=int, default=300, help="validation questions")
    parser.add_argument("--samples", type=int, default=8, help="of each training question, for the supervised files")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES, help="learning rates to tune over")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="key=value, beside the recipe's")
    given = parser.parse_args(argv)
    if given.action == "page":
        page(given.out)
        return
    tuned = None
    if given.tuned_by:
        chosen = json.loads(given.tuned_by.read_text(encoding="utf-8"))["tuning"]
        tuned = {title: entry["learning_rate"] for title, entry in chosen.items()}
    base = "tiny-gemma2" if given.base == "shipped" else str(Path(given.base).resolve())
    work = (given.work or ROOT / "runs" / "self_correction" / given.name).resolve()
    work.mkdir(parents=True, exist_ok=True)
    sizes = (given.seeds, given.rows, given.tuning_rows, given.samples)
    study = Study(base, work, *sizes, rates=tuple(given.rates), settings=tuple(given.settings))
    run(study, given.name, given.out, tuned, {title: METHODS[title] for title in given.methods})
