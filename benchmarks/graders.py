"""Graders of answers side by side, on labelled pairs: which replies does each of them take for right?

    python -m benchmarks graders pairs --labelled PATH     # and tests/hard_pairs*.jsonl, or the files given
    python -m benchmarks graders speed --labelled PATH

Writes benchmarks/results/graders.json and, from it, graders.md; each action keeps the other's figures. PATH is OpenAI's
labelled_solutions.jsonl, four models' solutions to GSM8K's questions. Where trl is not installed, TRL is left out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from time import process_time
from timeit import timeit
from typing import Any

from math_verify import parse, verify

from benchmarks.common import RESULTS, ROOT, argument_parser, machine_line, markdown_table, write_page
from scorefast.grading.grade import grade
from scorefast.stats import wilson

LIMIT = 10.0  # seconds for one pair
FIRST = "445 of 472 labels (numeric 201/212, math 113/125, exact 56/56, choice 45/48, contains 30/31)"
KINDS, BARE = ("numeric", "math", "exact", "choice", "contains"), ", reference as it stands"
HELD = "192 of 200 (numeric 85/90, math 48/50, exact 25/25, choice 19/20, contains 15/15; 96.0 % [92.3, 98.0])"
VERDICTS = {  # on a disagreement of scorefast's: (file, line)
    ("hard_pairs.jsonl", 90): "breaks off in mid sentence: no rule here finds a broken-off sentence",
    ("hard_pairs_held_out.jsonl", 14): "breaks off before any result: no rule here finds that",
}
INTRODUCTION = r"""# Graders of answers side by side

Written by `python -m benchmarks graders` on WHERE.
Both files of hard pairs were written without knowledge of scorefast's grader, by its stated rules. At first contact it
agreed with FIRST
of `hard_pairs.jsonl`, and was then improved on them. `hard_pairs_held_out.jsonl` was run after that, once: it agreed
with
HELD.
That is the figure to trust. What it got wrong there by its own rules was mended, so its rows below are fitted.
They were written by those rules, which the others do not share: this shows where graders differ, not which is the best.
Each was given:

- scorefast: reply, reference, the pair's kind and, where there is one, the question.
- math-verify: `verify(parse(reference), parse(reply))`, defaults. A math reference without `$` or `\boxed` is put in
  `$`, of a numeric one it gets what follows `####` or `A:`; "as it stands": in `$` only where it reads nothing bare.
- TRL: `accuracy_reward`, the same references. It looks for LaTeX alone: a reply in plain words is wrong for it.
- lm-eval: filters and `exact_match` of lm-evaluation-harness 0.4.13, task gsm8k 3.0. strict-match takes the first
  `#### x` of the reply, flexible-extract its last number; of the same references, the last match of flexible-extract.
- last number: the last numbers of the reply and of the same reference are equal.
- The labelled solutions end on `A: x`: TRL is given them with `\boxed{x}` instead, strict-match with `#### x`.

Cells: % agreement with labels [95 % Wilson interval], false positives / false negatives. Korean: agreeing pairs with
Hangul, by kind. Failed: raised or took over LIMIT s; counted as wrong. Not graded: unreadable reference; not counted.
"""
SPEED = """CPU seconds of 100,000 numeric gradings, the labelled solutions over and over, one thread, one run;
math-verify and TRL: from 300 of them. scorefast keeps the references it has read."""
ATTACKED = "Hostile texts (two brackets: nested), repeated; longest seconds of scorefast's graders, one call:"


def given(pair: dict[str, Any]) -> str:
    """The reference as someone would hand it over who knows what a grader expects."""
    if pair["grader"] == "math":
        return pair["reference"] if re.search(r"\$|\\boxed|\\[(\[]", pair["reference"]) else f"${pair['reference']}$"
    return (re.findall(r"(?:####|^A:)\s*(.+)", pair["reference"], re.MULTILINE) or [pair["reference"]])[-1]


def shaped(pair: dict[str, Any], shape: str) -> str:
    return re.sub(r"(?m)^A: (.*)", shape, pair["answer"]) if "labelled" in pair else pair["answer"]


def scorefast(pair: dict[str, Any]) -> bool:
    return grade(pair["answer"], pair["reference"], pair["grader"], pair.get("question")).correct


def symbolic(pair: dict[str, Any], trl: bool, bare: bool = False) -> float | None:
    gold = pair["reference"] if bare else given(pair)
    gold, parsed = next(((g, p) for g in (gold, f"${gold}$") if (p := parse(g))), (gold, []))
    if not trl:
        return verify(parsed, parse(pair["answer"])) if parsed else None
    from trl.rewards import accuracy_reward

    found: float | None = accuracy_reward([[{"role": "assistant", "content": shaped(pair, r"\\boxed{\1}")}]], [gold])[0]
    return found


def lm_eval(pair: dict[str, Any], strict: bool) -> bool:
    number, gold = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+"), given(pair)
    marked, last = re.findall(r"#### (\-?[0-9\.\,]+)", shaped(pair, r"#### \1")), number.findall(pair["answer"])
    both = [((marked[:1] if strict else last[-1:]) or ["[invalid]"])[0], (number.findall(gold) or [gold])[-1]]
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        both = [re.sub(ignored, "", text) for text in both]
    return both[0].lower() == both[1].lower()


def last_number(pair: dict[str, Any]) -> bool:
    found = [re.findall(r"-?\d[\d,]*(?:\.\d+)?", text) for text in (pair["answer"], given(pair))]
    return all(found) and len({float(numbers[-1].replace(",", "")) for numbers in found}) == 1


Verdict = Callable[[dict[str, Any]], float | None]  # None: not graded
CONTENDERS: dict[str, tuple[tuple[str, ...], Verdict]] = {
    "scorefast": (KINDS, scorefast),
    "math-verify": (KINDS[:2], partial(symbolic, trl=False)),
    f"math-verify{BARE}": (KINDS[:2], partial(symbolic, trl=False, bare=True)),
    "TRL": (KINDS[:2], partial(symbolic, trl=True)),
    f"TRL{BARE}": (KINDS[:2], partial(symbolic, trl=True, bare=True)),
    "lm-eval strict-match": (KINDS[:1], partial(lm_eval, strict=True)),
    "lm-eval flexible-extract": (KINDS[:1], partial(lm_eval, strict=False)),
    "last number": (KINDS[:1], last_number),
}
if importlib.util.find_spec("trl") is None:
    CONTENDERS = {name: its for name, its in CONTENDERS.items() if not name.startswith("TRL")}


def warm_up() -> None:
    logging.disable(logging.ERROR)
    for _, verdict in CONTENDERS.values():
        verdict({"answer": r"$\frac{1}{2}$", "reference": r"\frac{1}{3}", "grader": "math"})


def limited(pools: list[Any], seconds: float, function: Any, *arguments: Any) -> Any:
    """The function's result, from a process that is ended where it raises or takes too long."""
    if not pools:
        pools.append(Pool(1, warm_up))
        pools[0].apply(int)
    try:
        return pools[0].apply_async(function, arguments).get(seconds)
    except Exception as error:
        pools.pop().terminate()
        return f"failed: {type(error).__name__}"


def pairs_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) | {"line": n} for n, line in enumerate(path.open(encoding="utf-8"), 1)]
    pairs = [row for row in rows if "label" in row]
    for row, model in [(r, key) for r in rows for key in r if isinstance(r[key], dict)]:
        pair = {"line": row["line"], "grader": "numeric", "kind": model, "reference": row["ground_truth"]}
        pairs.append(pair | {"answer": row[model]["solution"], "label": row[model]["is_correct"], "labelled": True})
    return pairs


def measure(pairs: list[dict[str, Any]], pools: list[Any]) -> dict[str, Any]:
    """Of each grader: outcomes by kind of grader, and where it differs (of others' disagreements, one per `kind`)."""
    report: dict[str, Any] = {name: {"counts": defaultdict(Counter), "differing": {}} for name in CONTENDERS}
    for name, pair in ((name, p) for name, (kinds, _) in CONTENDERS.items() for p in pairs if p["grader"] in kinds):
        found = limited(pools, LIMIT, CONTENDERS[name][1], pair)
        outcome = {None: "none", True: "fp", False: "fn", pair["label"]: "agree"}.get(found, "failed")
        korean = bool(re.search("[가-힣]", f"{pair['answer']}{pair['reference']}{pair.get('question')}"))
        for group in (pair["grader"], f"korean {pair['grader']}")[: 1 + korean]:
            report[name]["counts"][group][outcome] += 1
        if outcome != "agree":
            key = f"{pair['line']} {pair['kind']}" if name == "scorefast" else pair["kind"]
            report[name]["differing"].setdefault(key, pair | {"outcome": outcome})
    return report


ATTACKS = [("{", "}", 100_000), ("(", ")", 100_000), ("10^10^10", "", 1), ("9", "", 1_000_000), (" ", "", 10**7)]
ATTACKS += [("\\boxed{", "", 10**7 // 7), ("the answer is ", "", 10**7 // 14), ("1,", "", 1_000_000)]
ATTACKS += [("1/", "", 500_000), ("or 1 ", "", 2_000_000)]


def attack(before: str, after: str, n: int, grader: Any) -> float:
    """The most seconds: as reply, as reference too, as question too; and, after a marker, as much of it as is read."""
    long, short = (before * m + "1" * bool(after) + after * m for m in (n, min(n, 18_000 // len(before + after))))
    plain, short = {"choice": "B", "math": r"\frac{1}{2}"}.get(grader, "18"), f"The answer is ${short}$"
    cases = [(long, plain, None), (long, long, None), (long, plain, long), (short, plain, None), (short, short, None)]
    calls = (partial(grade, reply, reference, grader, question) for reply, reference, question in cases)
    return max(timeit(call, number=1) for call in calls)


def speed(pairs: list[dict[str, Any]], pools: list[Any], shrink: int) -> dict[str, Any]:
    """CPU seconds of 100,000 gradings, and the longest of each attack. shrink divides the numbers of both."""
    warm_up()
    timed: dict[str, float] = {}
    for name, n in (("scorefast", 100_000), ("math-verify", 300), ("TRL", 300)):
        if name in CONTENDERS:
            n, stride = max(1, n // shrink), 8 if n == 300 else 1
            own = [pairs[i * stride % len(pairs)] for i in range(n)]
            grade_all: Any = partial(list, map(CONTENDERS[name][1], own))
            timed[name] = timeit(grade_all, timer=process_time, number=1) * 100_000 / n
    attacks = [(before, after, max(1, n // shrink)) for before, after, n in ATTACKS]
    return {"timed": timed, "attacks": [[*a, *(limited(pools, 120, attack, *a, k) for k in KINDS)] for a in attacks]}


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """With an empty line on either side; numbers with two digits, line breaks shown."""
    cells = [[f"{x:,.2f}" if isinstance(x, float) else str(x).replace("\n", "⏎") for x in row] for row in rows]
    return ["", *markdown_table(heads, cells), ""]


def cell(counts: dict[str, int]) -> str:
    right, n = counts.get("agree", 0), sum(counts.values()) - counts.get("none", 0)
    low, high = (100 * bound for bound in wilson(right, n))
    return f"{100 * right / (n or 1):.1f} [{low:.1f}, {high:.1f}], {counts.get('fp', 0)} / {counts.get('fn', 0)}"


def section(name: str, graders: dict[str, Any]) -> list[str]:
    heads = {k: f"{k} (n {sum(c.values())})" for k, c in graders["scorefast"]["counts"].items() if k in KINDS}
    rows, odd = [], []
    for grader, its in graders.items():
        row = [cell(its["counts"][k]) if k in its["counts"] else "-" for k in heads]
        korean = [f"{c.get('agree', 0)}/{sum(c.values())}" for k, c in its["counts"].items() if k.startswith("korean")]
        sums = [sum(its["counts"].get(k, {}).get(key, 0) for k in heads) for key in ("failed", "none")]
        rows.append([grader, *row, ", ".join(korean) or "-", *sums])
        for p in list(its["differing"].values())[: None if grader == "scorefast" else 12] * (BARE not in grader):
            said = VERDICTS.get((name, p["line"]), "not looked at yet") if grader == "scorefast" else p["outcome"]
            texts = [f"` {p[k][-90:].replace('`', '´')} `" for k in ("answer", "reference")]
            odd.append([grader, p["line"], p["kind"], p["label"], *texts, p.get("why", ""), said])
    told = "Disagreements: all of scorefast's; of others', the first of each kind of pair, 12 at most (ends of texts)."
    lines = [f"## {name}", *table(["", *heads.values(), "Korean", "failed", "not graded"], rows), told]
    return lines + table(["", "line", "kind", "label", "reply", "reference", "why", "verdict"], odd or [["none"]])


def page(report: dict[str, Any]) -> list[str]:
    """The lines of graders.md."""
    told = {"FIRST": FIRST, "HELD": HELD, "LIMIT": f"{LIMIT:g}", "WHERE": report.get("where", "nothing yet")}
    lines = [re.sub("|".join(told), lambda found: told[found[0]], INTRODUCTION)]
    lines += [line for name, graders in report["pairs"].items() for line in section(name, graders)]
    if fast := report["speed"]:
        rows = [[k, s, s / fast["timed"]["scorefast"]] for k, s in fast["timed"].items()]
        lines += [f"## Speed\n\n{fast['where']}. {SPEED}", *table(["", "CPU seconds", "ratio"], rows), ATTACKED]
        rows = [[f"`{a + b}`".replace(" ", "␣"), *rest] for a, b, *rest in fast["attacks"]]
        lines += table(["text", "times", *KINDS], rows)
    return lines


def main(argv: Sequence[str]) -> None:
    """Parse the flags, measure, and write the results and the page."""
    parser = argument_parser("benchmarks graders", __doc__)
    parser.add_argument("action", choices=["pairs", "speed"])
    parser.add_argument("files", type=Path, nargs="*", default=sorted(ROOT.glob("tests/**/hard_pairs*")))
    parser.add_argument("--labelled", type=Path, help="needed by speed")
    parser.add_argument("--shrink", type=int, default=1, help="divides the work of speed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of graders.json")
    given = parser.parse_args(argv)
    if given.action == "speed" and given.labelled is None:
        parser.error("speed needs --labelled")
    pools: list[Any] = []
    target = given.out / "graders.json"
    report = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {"pairs": {}, "speed": {}}
    where = machine_line(("math-verify", "latex2sympy2_extended", "sympy", "trl"))
    if given.action == "speed":
        report["speed"] = speed(pairs_of(given.labelled), pools, given.shrink) | {"where": where}
    else:
        for file in given.files + [given.labelled] * bool(given.labelled):
            report["pairs"][file.name] = measure(pairs_of(file), pools)
        report["where"] = where
    for pool in pools:
        pool.terminate()
    write_page(target, [json.dumps(report, indent=1, ensure_ascii=False)])
    write_page(target.with_suffix(".md"), page(report))
