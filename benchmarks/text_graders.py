"""Graders of short texts side by side: on labelled pairs, on made-up attacks, on ten replies to two questions.

    python -m benchmarks text_graders [PAIRS.jsonl ...]     # benchmarks/results/text_graders.md

Pairs are objects with answer, reference, label and, for texts, question and kind. Without files,
tests/text_pairs_held_out.jsonl is taken. Attacks are made of pairs with questions.
Cells are agreeing pairs / pairs, and false rights where there are any. Each grader was given:

- text, and scorefast's other graders `exact` and `contains`: reply, reference, question. `auto` takes `numeric` where
  the reference is a number.
- math-verify: `verify(parse(reference), parse(reply))`. TRL: `accuracy_reward`. Both are made for mathematics, and are
  what a user meets first. Where trl is not installed, TRL is left out.
- lm-eval: `exact_match` of lm-evaluation-harness with `ignore_case` and `ignore_punctuation`, on the whole reply.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

from math_verify import parse, verify

from benchmarks.common import RESULTS, ROOT, about, argument_parser, machine_line, markdown_table, write_page
from scorefast.grading.grade import grade
from scorefast.schema import GraderName
from scorefast.stats import wilson
from tests.text_attacks import attacks

Verdict = Callable[[str, str, str | None], bool]


def ours(grader: GraderName) -> Verdict:
    return lambda reply, reference, question: grade(reply, reference, grader, question).correct


def by_math_verify(reply: str, reference: str, question: str | None) -> bool:
    gold = parse(reference) or parse(f"${reference}$")
    return bool(gold) and bool(verify(gold, parse(reply)))


def by_trl(reply: str, reference: str, question: str | None) -> bool:
    from trl.rewards import accuracy_reward

    return bool(accuracy_reward([[{"role": "assistant", "content": reply}]], [reference])[0] == 1.0)


def by_lm_eval(reply: str, reference: str, question: str | None) -> bool:
    said, right = (text.lower().translate(str.maketrans("", "", string.punctuation)) for text in (reply, reference))
    return said == right


CONTENDERS: dict[str, Verdict] = {
    **{name: ours(name) for name in ("text", "auto", "exact", "contains")},
    "math-verify": by_math_verify,
    **({"TRL": by_trl} if importlib.util.find_spec("trl") else {}),
    "lm-eval": by_lm_eval,
}
TEN = {  # the two rows that scorefast's first user came with, and ten replies to each
    ("2 + 2 = ?", "2 + 2 = 4"): [
        *("4", "The answer is 4.", "2 + 2 = 4", "2 + 2 equals four.", "답은 4입니다."),
        *("5", "2 + 2 = 5", "It is 4 or 5.", "The answer is not 4.", "2 + 2"),
    ],
    ("What is the capital of France?", "The capital of France is Paris"): [
        *(
            "Paris",
            "The capital of France is Paris.",
            "It's **Paris**, on the Seine.",
            "My first answer was wrong. It is Paris.",
        ),
        *("프랑스의 수도는 파리(Paris)입니다.", "Lyon", "The capital of France is Lyon."),
        *("Paris or Lyon", "Many say Paris, but it is Lyon.", "I cannot answer that."),
    ],
}


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """With an empty line on either side."""
    return ["", *markdown_table(heads, rows), ""]


def by_kind(pairs: list[dict[str, Any]]) -> list[str]:
    counts: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in CONTENDERS}
    for name, verdict in CONTENDERS.items():
        for pair in pairs:
            found = verdict(pair["answer"], pair["reference"], pair.get("question"))
            outcome = "agree" if found is pair["label"] else "false right" if found else "false wrong"
            for kind in (pair.get("kind", "all kinds"), "all"):
                counts[name][kind][outcome] += 1
    rows = []
    for kind in [*dict.fromkeys(pair.get("kind", "all kinds") for pair in pairs), "all"]:
        cells = []
        for name in CONTENDERS:
            c = counts[name][kind]
            cells.append(
                f"{c['agree']}/{c.total()}" + (f", {c['false right']} false right" if c["false right"] else "")
            )
        rows.append([kind, *cells])
    n = len(pairs)
    rates = [(c["all"]["agree"], *wilson(c["all"]["agree"], n)) for c in counts.values()]
    shown = [f"{100 * a / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for a, low, high in rates]
    return table(["kind", *CONTENDERS], [*rows, ["per cent [95 %]", *shown]])


def attacked(pairs: list[dict[str, Any]]) -> list[str]:
    made = list(attacks(pairs)) if all("question" in pair for pair in pairs) else []
    if not made:
        return []
    rows = []
    for name in ("text", "auto", "exact", "contains"):
        began = process_time()
        paid = sum(CONTENDERS[name](reply, reference, question) for _, reply, reference, question in made)
        spent = 1e6 * (process_time() - began) / len(made)
        rows.append([name, f"{paid} ({100 * paid / len(made):.2f} %)", f"{spent:.0f}"])
    return [f"{len(made):,} made-up wrong replies:", *table(["", "graded right", "microseconds each"], rows)]


def ten_replies() -> list[str]:
    rows = []
    for (question, reference), replies in TEN.items():
        for reply in replies:
            found = grade(reply, reference, "auto", question)
            verdict = "right" if found.correct else "unsure, so wrong" if found.unsure else "wrong"
            rows.append([question, reply, verdict, found.reason])
    return table(["question", "reply", "", "reason"], rows)


def main(argv: Sequence[str]) -> None:
    """Parse the flags, grade, and write the page."""
    parser = argument_parser("benchmarks text_graders", __doc__)
    parser.add_argument("files", type=Path, nargs="*", default=sorted(ROOT.glob("tests/**/text_pairs_held_out.jsonl")))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of text_graders.md")
    given = parser.parse_args(argv)
    logging.disable(logging.ERROR)
    where = f"{machine_line(('math-verify', 'sympy', 'trl'))}, one process."
    lines = ["# Graders of short texts", "", about(__doc__), "", where]
    for path in given.files:
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines += ["", f"## {path.name}: {len(pairs)} pairs", *by_kind(pairs), *attacked(pairs)]
    lines += ["## Ten replies to two questions, by `auto`", *ten_replies()]
    write_page(given.out / "text_graders.md", lines)
    print(given.out / "text_graders.md")
