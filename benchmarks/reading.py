"""Does a second attempt read the first? Two-digit products, through the commands as a user types them.

    python benchmarks/reading.py run --out benchmarks/results     # both stages for each seed, then `eval --probe`
    python benchmarks/reading.py hidden --out benchmarks/results  # the same without a view of the first attempt
    python benchmarks/reading.py table --out benchmarks/results

`run` trains on data/products.csv by recipes/products-cpu.yaml and reports test questions that neither pretraining, nor
training, nor tuning saw. Besides `eval --probe` it puts two kinds of first attempt before the model: another question's
(is the second attempt right for that other question?), and one whose first partial product has a digit changed while
its answer stays right (does the second attempt add up the changed work?).

`hidden` is the baseline: the second turn shows PLACEHOLDER where the first attempt stood, in the rollouts, in the loss
and in the evaluation; the first attempt is sampled, rewarded and held near the reference as always. A base that never
saw the placeholder has no second attempt to make of it. So the base is first pretrained on for some steps, on the mix
it was made with, the placeholder in its dialogues; from there both stages run as for the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scorefast.assets import make_tiny_products as task
from scorefast.assets.make_tiny_gemma2 import changed_digit
from scorefast.data.example import Example
from scorefast.data.load import load_dataset
from scorefast.grading.answer import Grade
from scorefast.grading.grade import grade
from scorefast.model.chat_format import ChatFormat
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.tokenizer import load_tokenizer
from scorefast.recipe import load_recipe, model_path
from scorefast.rl.evaluate import grade_all
from scorefast.rl.rollout import Generate, first_attempts, second_attempts
from scorefast.rl.trainer import ScoreTrainer
from scorefast.rl.trajectory import Trajectory, attempt, data_attempt
from scorefast.runs.checkpoint import open_checkpoint
from scorefast.schema import Recipe
from scorefast.stats import summarize, wilson

ROOT = Path(__file__).parent.parent
RECIPE, MODEL = "products-cpu", "tiny-gemma2-products"
PLACEHOLDER = "(hidden)"
RATES = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")


def by_number(reply: str, example: Example) -> Grade:
    return grade(reply, example.correct_answer, "numeric")


def generator(recipe: Recipe, checkpoint: Path | None, temperature: float) -> tuple[Generate, ChatFormat]:
    policy = load_policy(recipe, open_checkpoint(str(checkpoint)) if checkpoint else None)
    settings = recipe.rollout
    decode = partial(generate, policy, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    return partial(decode, temperature=temperature), policy.chat


# --- the commands -----------------------------------------------------------------------------------------------------


def scorefast(*words: str | Path) -> str:
    """Run one command as a user would; its last line of output."""
    command = [sys.executable, "-m", "scorefast", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def test_file(work: Path, rows: int) -> Path:
    """Test questions with first attempts of the base, made as data/products.csv is, with another seed."""
    path = work / f"test-{rows}.csv"
    if not path.is_file():
        script = [sys.executable, str(ROOT / "data" / "make_products.py"), "--split", "test", "--seed", "1"]
        subprocess.run([*script, "--rows", str(rows), "--out", str(path)], cwd=ROOT, check=True)
    return path


def trained(work: Path, seed: int) -> list[Path]:
    """The folders of both stages of one seed; what is there already is not run again."""
    data, stages = work / "products", [work / f"stage1-seed{seed}", work / f"stage2-seed{seed}"]
    if not data.is_dir():
        scorefast("prepare", ROOT / "data" / "products.csv", "--recipe", RECIPE, "--out", data)
    flags = ["--data", data, "--recipe", RECIPE, "--seed", str(seed)]
    if not (stages[0] / "adapter_config.json").is_file():
        scorefast("stage1", *flags, "--out", stages[0])
    if not (stages[1] / "adapter_config.json").is_file():
        scorefast("stage2", *flags, "--from", stages[0], "--out", stages[1])
    return stages


# --- two more probes --------------------------------------------------------------------------------------------------


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    return {"right_after": sum(hits) / len(hits), "ci95": wilson(sum(hits), len(hits)), "n": len(hits)}


def operands(example: Example) -> tuple[int, int]:
    a, b = map(int, re.findall(r"\d+", example.question))
    return a, b


def with_changed_work(example: Example, units: bool, rng: random.Random) -> tuple[str, int]:
    """A first attempt with its right answer, but a digit of its first partial product changed, the units' or another;
    and what its partial products now add up to."""
    a, b = operands(example)
    first, second = task.partials(a, b)
    changed = changed_digit(first, rng)
    while (abs(changed - first) < 10) != units:
        changed = changed_digit(first, rng)
    text = task.first_attempt(a, b, a * b)
    return text.replace(f"={first},", f"={changed},", 1), changed + second


def reading_probes(greedy: Generate, chat: ChatFormat, examples: list[Example]) -> dict[str, dict[str, Any]]:
    """Whose numbers does the second attempt add: the question's, or those of the first attempt it is shown?"""
    own = first_attempts(greedy, chat, examples)
    swapped = second_attempts(greedy, chat, examples, own[1:] + own[:1])
    others = examples[1:] + examples[:1]
    answered = [by_number(t.second.text, e).correct for t, e in zip(swapped, others, strict=True)]
    rates = {"other_question_answered": rate(answered)}
    rng = random.Random(0)
    for kind, units in (("changed_work", False), ("changed_units", True)):
        given = [with_changed_work(e, units, rng) for e in examples]
        after = second_attempts(greedy, chat, examples, [data_attempt(chat, text) for text, _ in given])
        followed = [extract_number(t.second.text) == total for t, (_, total) in zip(after, given, strict=True)]
        rates[f"{kind}_followed"] = rate(followed)
        rates[f"{kind}_right"] = rate([by_number(t.second.text, t.example).correct for t in after])
    return rates


def run(work: Path, out: Path, seeds: Sequence[int], rows: int) -> None:
    """Train every seed, evaluate base and all stages with one command, add the two probes."""
    stages = [folder for seed in seeds for folder in trained(work, seed)]
    test = test_file(work, rows)
    report = json.loads(scorefast("eval", "base", *stages, "--data", test, "--recipe", RECIPE, "--probe", "--json"))
    recipe = load_recipe(RECIPE)
    examples = load_dataset(str(test), recipe.data).split("test", "evaluation")
    for name, checkpoint in (("base", None), *((s.name, s) for s in stages if s.name.startswith("stage2"))):
        report["probe"][name] |= reading_probes(*generator(recipe, checkpoint, 0.0), examples)
    report["seeds"], report["data"] = list(seeds), "test split"
    merge(out, {"shown": report})


# --- the baseline that sees no first attempt --------------------------------------------------------------------------


def blind_turns(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
    """Two attempts at each question, the second of which is shown the placeholder instead of the first."""
    first = first_attempts(generate, chat, examples)
    hidden = chat.reply(PLACEHOLDER)
    seen = second_attempts(generate, chat, examples, [attempt(chat, hidden) for _ in examples])
    return [replace(t, first=y1, retold=[*t.prompt, *hidden, *t.bridge]) for t, y1 in zip(seen, first, strict=True)]


class BlindTrainer(ScoreTrainer):
    """Each attempt is trained on in the context that it was written in; all else is its parent's."""

    def _trajectories(self, examples: list[Example]) -> list[Trajectory]:
        sample = self.generate(self.recipe.rollout.temperature, 2 * len(examples))
        return blind_turns(sample, self.policy.chat, examples)


def blind_base(folder: Path, steps: int, seed: int) -> None:
    """The shipped base, pretrained on with the placeholder in its dialogues; the work of first attempts stays in."""

    def dialogue(settings: task.Settings, rng: random.Random) -> list[str]:
        user, _, correction, second = task.dialogue(settings, rng)
        return [user, PLACEHOLDER, correction, second]

    torch.manual_seed(seed)
    tokenizer = load_tokenizer(MODEL)
    model = AutoModelForCausalLM.from_pretrained(model_path(MODEL), attn_implementation="eager")
    task.pretrain(model, tokenizer, task.Settings(steps=steps, singles=0.0), seed, dialogue)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def hidden(work: Path, out: Path, seeds: Sequence[int], rows: int, steps: int) -> None:
    """Both stages of the baseline for every seed, evaluated on the same test questions."""
    base = work / f"blind-base-{steps}"
    if not base.is_dir():
        blind_base(base, steps, 0)
    results = []
    for seed in seeds:
        recipe = load_recipe(RECIPE, [f"model.name={base}", f"seed={seed}"])
        train = load_dataset(str(ROOT / "data" / "products.csv"), recipe.data).split("train", "training")
        test = load_dataset(str(test_file(work, rows)), recipe.data).split("test", "evaluation")
        checkpoint = None
        for section in (None, "stage1", "stage2"):
            if section:
                folder = work / f"blind-{section}-seed{seed}"
                start = open_checkpoint(str(checkpoint)) if checkpoint else None
                policy = load_policy(recipe, start, trainable=True)
                trainer = BlindTrainer(policy, recipe, section, train, [], folder)
                trainer.train()
                trainer.save_model(str(folder))
                checkpoint = folder
            graded = grade_all(blind_turns(*generator(recipe, checkpoint, 0.0), test), by_number)
            name = f"{section or 'base'}-seed{seed}"
            results.append(summarize(name, graded, recipe.eval.bootstrap_samples).as_json())
            print(results[-1], flush=True)
    merge(out, {"hidden": {"results": results, "pretraining_steps": steps, "placeholder": PLACEHOLDER}})


# --- the report -------------------------------------------------------------------------------------------------------


def merge(out: Path, part: dict[str, Any]) -> None:
    path = out / "reading.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(report | part, indent=1) + "\n", encoding="utf-8")


def cell(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def rates_table(results: list[dict[str, Any]]) -> list[str]:
    lines = ["| | acc@t1 | acc@t2 | delta | wrong->right | right->wrong |", "|---|---|---|---|---|---|"]
    for result in results:
        cells = [cell(result[key], result["ci95"][key]) for key in RATES]
        lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


def probes_table(probes: dict[str, Any]) -> list[str]:
    lines = [f"| first attempt replaced | {' | '.join(probes)} |", "|---|" + "---|" * len(probes)]
    titles = {
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
    for key, title in titles.items():
        cells = [f"{cell(p[key]['right_after'], p[key]['ci95'])} (n {p[key]['n']})" for p in probes.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def table(out: Path) -> None:
    """reading.md from reading.json: figures and, beside them, what they do not show."""
    report = json.loads((out / "reading.json").read_text(encoding="utf-8"))
    lines = ["# A second attempt that reads the first", ""]
    if "shown" in report:
        shown = report["shown"]
        n = shown["results"][0]["n"]
        probes = {name: p for name, p in shown["probe"].items() if "changed_work_followed" in p}
        lines += [f"Two-digit products, {n} test questions, greedy, per cent [95 % interval]; one base.", ""]
        lines += [*rates_table(shown["results"]), "Greedy second turn with the first attempt replaced:", ""]
        lines += probes_table(probes)
    if "hidden" in report:
        blind = report["hidden"]
        lines += [
            f"The same with `{blind['placeholder']}` where the first attempt stood, from a base pretrained on for "
            f"{blind['pretraining_steps']} steps with it:",
            "",
            *rates_table(blind["results"]),
        ]
    lines += [LIMITS.strip(), ""]
    (out / "reading.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


LIMITS = """
What this shows, and what it does not:

- The second attempt reads the *work* of the first and adds it up again. It does not weigh the first answer, and a slip
  in the work is not caught: it mostly follows a changed digit although the answer beside it was right. The units are
  the exception: they stand in the table product and in the answer too, and follow from the factors; from which of these
  the model takes them was not asked.
- The fault of the first attempt (dropped carries) and the ability that mends it (the check) are both planted in
  pretraining. Training finds that the check pays; it does not invent it.
- Work and check together are longer than the limit of a reply, but nothing forbids a second attempt to work the product
  out in its head. The hidden baseline measures how far that carries, for a model that was given fewer steps to learn it
  than the shown one had to learn its check; it is a baseline of this size and training, not a bound.
- One base; seeds are those of LoRA initialisation, order and sampling. Intervals are over test questions.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "hidden", "table"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reading", help="what is there is not run again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=500, help="test questions")
    parser.add_argument("--steps", type=int, default=1500, help="further pretraining of the hidden baseline")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    flags.out.mkdir(parents=True, exist_ok=True)
    if flags.action == "table":
        table(flags.out)
        return
    flags.work.mkdir(parents=True, exist_ok=True)
    if flags.action == "run":
        run(flags.work, flags.out, flags.seeds, flags.rows)
    else:
        hidden(flags.work, flags.out, flags.seeds, flags.rows, flags.steps)


if __name__ == "__main__":
    main()
