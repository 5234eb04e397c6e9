"""Does a second attempt read the first? Two-digit products, through the commands as a user types them.

    python -m studies reading shown     # both stages for each seed, `eval --probe`, and two more probes
    python -m studies reading hidden    # the baseline: the second turn does not see the first attempt
    python -m studies reading page      # studies/results/reading.md from reading.json

`shown` trains on data/products.csv by recipes/products-cpu.yaml. It reports 1,000 test questions that pretraining,
training and tuning never saw. Two probes are added to those of `eval --probe`. The first puts another question's
attempt before the model: is the second attempt right for that other question? The second changes a digit of the first
partial product and leaves the answer right: does the second attempt add up the changed work?

`hidden` is the baseline. The chat template of its base writes PLACEHOLDER in place of every reply with an equation, and
`prompt.history=as_template` applies this to rollouts, loss and evaluation. The first attempt itself is sampled,
rewarded and held near the reference as always. The shipped base never saw the placeholder and has no second attempt
after it. So the base is first pretrained further on its own mix, with the placeholder in the dialogues.

Everything is kept under --work and is not run again: a run that was broken off goes on with the same command.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import common
from benchmarks.common import ROOT, argument_parser, machine_line, markdown_table, set_flags, write_page
from scorefast.assets import make_tiny_products as task
from scorefast.assets.make_tiny_gemma2 import changed_digit
from scorefast.data.example import Example
from scorefast.data.load import load_dataset
from scorefast.model.tokenizer import load_tokenizer
from scorefast.recipe import load_recipe, model_path
from studies.common import RESULTS, Model, is_number, load_model, percent, rate, rates_table

RECIPE, MODEL = "products-cpu", "tiny-gemma2-products"
PLACEHOLDER = "(hidden)"
# A template that also drops thoughts counts as one that rewrites the history. Replies here have none.
HIDING = "{% set said = message['content'].split('</think>')[-1] %}"
HIDING += "{% if role == 'model' and '=' in said %}{% set said = '" + PLACEHOLDER + "' %}{% endif %}"
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Study:
    """Where the runs are kept, how many test questions there are, and settings beside the recipe's."""

    work: Path
    rows: int
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_file(study: Study) -> Path:
    """Test questions with first attempts of the base, made as data/products.csv is, with another seed."""
    path = study.work / f"test-{study.rows}.csv"
    if not path.is_file():
        script = [sys.executable, str(ROOT / "data" / "make_products.py"), "--split", "test", "--seed", "1"]
        words = [*script, "--rows", str(study.rows), "--out", str(path)]
        paths = common.environment(PYTHONSAFEPATH="")  # the script imports its neighbour
        subprocess.run(words, cwd=ROOT, env=paths, check=True)
    return path


def trained(study: Study, seed: int, prefix: str = "", settings: Sequence[str] = ()) -> list[Path]:
    """The folders of both stages of one seed, Stage II from Stage I."""
    data, stages = study.work / "products", [study.work / f"{prefix}{name}-seed{seed}" for name in ("stage1", "stage2")]
    if not data.is_dir():
        common.run_scorefast("prepare", ROOT / "data" / "products.csv", "--recipe", RECIPE, "--out", data)
    for folder, start in zip(stages, ([], ["--from", stages[0]]), strict=True):
        if not (folder / "adapter_config.json").is_file():
            flags = ["--data", data, "--recipe", RECIPE, "--seed", seed, *set_flags([*study.settings, *settings])]
            section = folder.name.removeprefix(prefix).partition("-")[0]
            common.run_scorefast(section, *flags, *start, "--out", folder, "--resume")
    return stages


def evaluated(study: Study, name: str, stages: Sequence[Path], settings: Sequence[str], *flags: str) -> dict[str, Any]:
    """The report of base and stages on the test questions, from one command, so that gains are paired."""
    out = study.work / f"eval-{name}-{study.rows}-{'-'.join(map(str, study.seeds))}"
    if not (out / "report.json").is_file():
        given = ["--data", test_file(study), "--recipe", RECIPE, *set_flags([*study.settings, *settings])]
        common.run_scorefast("eval", "base", *stages, *given, *flags, "--out", out)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def shown(study: Study, out: Path) -> None:
    """Train every seed, evaluate base and all stages with one command, add the two probes."""
    stages = [folder for seed in study.seeds for folder in trained(study, seed)]
    found = evaluated(study, "shown", stages, (), "--probe")
    recipe = load_recipe(RECIPE, list(study.settings))
    examples = load_dataset(str(test_file(study)), recipe.data).split("test", "evaluation")
    for name, checkpoint in (("base", None), *((s.name, s) for s in stages if s.name.startswith("stage2"))):
        found["probe"][name] |= reading_probes(load_model(recipe, checkpoint), examples)
    merge(out, {"shown": described(study, found)})


def hidden(study: Study, out: Path, steps: int) -> None:
    """Both stages of the baseline for every seed, evaluated on the same test questions."""
    base = study.work / f"hidden-base-{steps}"
    if not base.is_dir():
        hiding_base(base, steps, 0)
    settings = [f"model.name={base}", "prompt.history=as_template"]
    stages = [s for seed in study.seeds for s in trained(study, seed, f"hidden-{steps}-", settings)]
    found = evaluated(study, f"hidden-{steps}", stages, settings)
    folder = study.work / f"eval-hidden-{steps}-{study.rows}-{'-'.join(map(str, study.seeds))}"
    lines = (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    seen = sum("=" not in json.loads(line)["attempt1"] for line in lines)
    more = {"pretraining_steps": steps, "placeholder": PLACEHOLDER, "first_attempts_seen": [seen, len(lines)]}
    merge(out, {"hidden": described(study, found) | more})


def described(study: Study, found: dict[str, Any]) -> dict[str, Any]:
    """What of a report is kept, with what was run, and where."""
    kept = {key: found[key] for key in ("results", "probe") if key in found}
    return kept | {"seeds": list(study.seeds), "settings": list(study.settings), "machine": machine_line(PACKAGES)}


def merge(out: Path, part: dict[str, Any]) -> None:
    """Put one part of reading.json in place of what was there."""
    path = out / "reading.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_page(path, [json.dumps(report | part, indent=1)])


# --- two more probes --------------------------------------------------------------------------------------------------


def with_changed_work(example: Example, units: bool, rng: random.Random) -> tuple[str, int]:
    """(a first attempt with its right answer and a changed digit in its first partial product, what its partial
    products now add up to). units: the units' digit is changed, else another one."""
    a, b = map(int, re.findall(r"\d+", example.question))
    first, second = task.partials(a, b)
    changed = changed_digit(first, rng)
    while (abs(changed - first) < 10) != units:
        changed = changed_digit(first, rng)
    text = task.first_attempt(a, b, a * b)
    return text.replace(f"={first},", f"={changed},", 1), changed + second


def reading_probes(model: Model, examples: list[Example]) -> dict[str, dict[str, Any]]:
    """Whose numbers does the second attempt add: the question's, or those of the first attempt it is shown?"""
    questions = [e.question for e in examples]

    def after(first: list[list[int]]) -> list[str]:
        return [model.text(reply) for reply in model.second(questions, first)]

    def right(texts: list[str], asked: list[Example]) -> dict[str, Any]:
        return rate([is_number(text, e.correct_answer) for text, e in zip(texts, asked, strict=True)])

    own, others = model.first(questions), examples[1:] + examples[:1]
    rates = {"other_question_answered": right(after(own[1:] + own[:1]), others)}
    rng = random.Random(0)
    for kind, units in (("changed_work", False), ("changed_units", True)):
        given = [with_changed_work(e, units, rng) for e in examples]
        texts = after([model.reply(text) for text, _ in given])
        totals = [f"The answer is {total}" for _, total in given]
        rates[f"{kind}_followed"] = rate([is_number(text, due) for text, due in zip(texts, totals, strict=True)])
        rates[f"{kind}_right"] = right(texts, examples)
    return rates


# --- the baseline that sees no first attempt --------------------------------------------------------------------------


def hiding_template(template: str) -> str:
    """The template of the embedded model, with PLACEHOLDER for every reply that has an equation in it."""
    changed = template.replace("{{ '<start_of_turn>' + role", HIDING + "{{ '<start_of_turn>' + role")
    return changed.replace("+ message['content'] | trim +", "+ said | trim +")


def hiding_base(folder: Path, steps: int, seed: int) -> None:
    """The shipped base, pretrained further with the placeholder in its dialogues, and the template that writes it."""

    def dialogue(settings: task.Settings, rng: random.Random) -> list[str]:
        user, _, correction, second = task.dialogue(settings, rng)
        return [user, PLACEHOLDER, correction, second]

    torch.manual_seed(seed)
    tokenizer = load_tokenizer(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path(MODEL), attn_implementation="eager")
    task.pretrain(model, tokenizer, task.Settings(steps=steps, singles=0.0), seed, dialogue)
    tokenizer.chat_template = hiding_template(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


# --- the page ---------------------------------------------------------------------------------------------------------

TITLES = {
    "correct": "right work, right answer: right after",
    "wrong": "a wrong sample of its own: right after",
    "unrelated": "another question's: right for this question",
    "other_question_answered": "another question's: right for that other question",
    "empty": "empty: right after",
    "changed_work_followed": "tens or hundreds of a partial product changed, answer right: adds the changed work",
    "changed_work_right": "... : right after",
    "changed_units_followed": "units of a partial product changed, answer right: adds the changed work",
    "changed_units_right": "... : right after",
}
LIMITS = """
What this shows, and what it does not:

- The second attempt reads the *work* of the first and adds it up again. It does not weigh the first answer, and a slip
  in the work is not caught: it mostly follows a changed digit although the answer beside it was right. The units are
  the exception. They stand in the table product and in the answer too, and follow from the factors. From which of these
  the model takes them was not asked.
- The fault of the first attempt (dropped carries) and the ability that mends it (the check) are both planted in
  pretraining. Training finds that the check pays; it does not invent it.
- Work and check together are longer than the limit of a reply, but nothing forbids a second attempt to work the product
  out in its head. The hidden baseline measures how far that carries, for a model that was given fewer steps to learn it
  than the shown one had to learn its check. It is a baseline of this size and training, not a bound.
- One base; seeds are those of LoRA initialisation, order and sampling. Intervals are over test questions.
"""


def probes_table(probes: dict[str, Any]) -> list[str]:
    """One row a kind of first attempt, one column a checkpoint."""
    rows = []
    for key, title in TITLES.items():
        cells = [f"{percent(p[key]['right_after'], p[key]['ci95'])} (n {p[key]['n']})" for p in probes.values()]
        rows.append([title, *cells])
    return markdown_table(["first attempt replaced", *probes], rows)


def page(out: Path) -> None:
    """reading.md from reading.json: figures, and what they do not show."""
    report = json.loads((out / "reading.json").read_text(encoding="utf-8"))
    lines = ["# A second attempt that reads the first", ""]
    if "shown" in report:
        lines += shown_lines(report["shown"])
    if "hidden" in report:
        lines += hidden_lines(report["hidden"])
    write_page(out / "reading.md", [*lines, LIMITS.strip()])
    print(out / "reading.md")


def what_was_run(action: str, part: dict[str, Any], more: str = "") -> list[str]:
    """The command, and in words what it did."""
    n, seeds = part["results"][0]["n"], part["seeds"]
    given = f"--rows {n} --seeds {' '.join(map(str, seeds))}{more}"
    words = " ".join([f"python -m studies reading {action} {given}", *set_flags(part["settings"])])
    what = f"Two-digit products, {n:,} test questions, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, one "
    what += f"base; greedy, per cent [95 % interval]. {part['machine']}."
    return [f"`{words}`", "", wrapped(what), ""]


def wrapped(text: str) -> str:
    """In lines of 120 characters; a per cent sign stays with its number."""
    return textwrap.fill(text.replace(" %", "\xa0%"), 120).replace("\xa0", " ")


def spread(fractions: Sequence[float]) -> str:
    """The least and the most, in per cent: 95.7 to 96.5."""
    return " to ".join(f"{100 * value:.1f}" for value in sorted({min(fractions), max(fractions)}))


def after_stage2(part: dict[str, Any], key: str) -> str:
    """`spread` of a rate over the seeds."""
    return spread([result[key] for result in part["results"] if "stage2" in result["name"]])


def shown_lines(part: dict[str, Any]) -> list[str]:
    """Rates of base and stages, then those with the first attempt replaced."""
    probes = {name: rates for name, rates in part["probe"].items() if "changed_work_followed" in rates}
    trained = [rates for name, rates in probes.items() if name != "base"]
    other, changed = (
        spread([rates[key]["right_after"] for rates in trained])
        for key in ("other_question_answered", "changed_work_followed")
    )
    told = f"After Stage II the second attempt is right for {after_stage2(part, 'acc_t2')} % of the questions, and the "
    told += f"first one for {after_stage2(part, 'gain_t1')} points more than the base's. Shown another question's "
    told += f"attempt, it answers that other question rightly in {other} % of the cases. Shown a partial product with "
    told += f"a changed digit, other than the units', it adds up the changed work in {changed} %."
    rests = "The greedy second turn with the first attempt replaced. n is the number of questions: all of them, or for "
    rests += "the probes of `eval --probe` those for which one of 8 samples was wrong."
    lines = ["## The first attempt shown", "", *what_was_run("shown", part), *rates_table(part["results"]), ""]
    return [*lines, wrapped(told), "", wrapped(rests), "", *probes_table(probes), ""]


def hidden_lines(part: dict[str, Any]) -> list[str]:
    """Rates of the baseline."""
    steps, (seen, written) = part["pretraining_steps"], part["first_attempts_seen"]
    told = f"`{part['placeholder']}` stands where the first attempt stood. The base is the shipped one after {steps:,} "
    told += "more steps of pretraining with the placeholder. After Stage II the second attempt is right for "
    told += (
        f"{after_stage2(part, 'acc_t2')} % of the questions. The template hides replies with an equation: {seen} of "
    )
    told += (
        f"the {written:,} first attempts in this evaluation had none and stayed in view. It was not counted for the "
    )
    told += "samples in training."
    lines = ["## The first attempt hidden", "", *what_was_run("hidden", part, f" --steps {steps}")]
    return [*lines, wrapped(told), "", *rates_table(part["results"]), ""]


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run one action."""
    parser = argument_parser("studies reading", __doc__)
    parser.add_argument("action", choices=["shown", "hidden", "page"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reading", help="what is there is not run again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1000, help="test questions")
    parser.add_argument("--steps", type=int, default=1500, help="further pretraining of the hidden baseline")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="key=value, beside the recipe's")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if given.action == "page":
        page(given.out)
        return
    study = Study(given.work, given.rows, tuple(given.seeds), tuple(given.settings))
    study.work.mkdir(parents=True, exist_ok=True)
    if given.action == "shown":
        shown(study, given.out)
    else:
        hidden(study, given.out, given.steps)
