"""Evaluate checkpoints on held-out questions: two greedy turns, and the probe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from scorefast.data.example import Example
from scorefast.errors import ReportNotWritten, UserError
from scorefast.files.atomic import write_file
from scorefast.files.text import printable
from scorefast.grading.graded_example import grade_example
from scorefast.model.load import load_policy
from scorefast.model.tokenizer import chat_format
from scorefast.probe import probe
from scorefast.rl.lengths import longest_conversation, require_room
from scorefast.rl.rollout import evaluate, generator
from scorefast.runs.checkpoint import Checkpoint
from scorefast.runs.folder import claim_run
from scorefast.schema import Recipe
from scorefast.stats import Graded, ProbeRates, Result, summarize
from scorefast.ui.progress import counting
from scorefast.ui.tables import gains_lines, print_before_and_after, probe_table, results_table, unsure_lines

Report = dict[str, Any]  # the content of report.json


def evaluate_checkpoints(
    checkpoints: Sequence[Checkpoint | None],
    recipe: Recipe,
    examples: Sequence[Example],
    context: Mapping[str, str],
    console: Console,
    *,
    out: Path | None = None,
    with_probe: bool = False,
) -> tuple[Report, Path]:
    """Evaluate each checkpoint, print the table, and write report.json and transcripts.jsonl.

    A checkpoint of None is the base model. The files are written into each checkpoint's folder, and for all checkpoints
    into `out`. context: fields that are added to each report. Returns the whole report and its path. Raises
    ReportNotWritten if a file could not be written.
    """
    chat, reply = chat_format(recipe), recipe.rollout.max_new_tokens
    require_room(
        *longest_conversation(chat, examples, reply, lambda e: (e.correct_answer if with_probe else "", "")), recipe
    )
    if chat.rule:
        console.print(chat.rule, soft_wrap=True)
    named: list[tuple[str, list[Graded]]] = []
    probes: dict[str, ProbeRates] = {}
    names = [checkpoint.name if checkpoint else "base" for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        names = [str(checkpoint.path) if checkpoint else "base" for checkpoint in checkpoints]
    for name, checkpoint in zip(names, checkpoints, strict=True):
        graded, rates = _evaluate_one(name, checkpoint, recipe, examples, console, with_probe)
        named.append((name, graded))
        if rates is not None:
            probes[name] = rates
    baseline = named[0][1]
    samples = recipe.eval.bootstrap_samples
    results = [summarize(n, g, samples, None if g is baseline else baseline) for n, g in named]
    console.print(results_table(results, context["split"]))
    for line in (*gains_lines(results), *unsure_lines(results)):
        console.print(line)
    if probes:
        console.print(probe_table(probes))
    print_before_and_after(console, named)

    return _write_reports(checkpoints, results, named, probes, context, out)


def _write_reports(
    checkpoints: Sequence[Checkpoint | None],
    results: Sequence[Result],
    named: Sequence[tuple[str, list[Graded]]],
    probes: Mapping[str, ProbeRates],
    context: Mapping[str, str],
    out: Path | None,
) -> tuple[Report, Path]:
    """Write one report into each checkpoint's folder and the whole report into `out`. Raises ReportNotWritten."""
    whole = {"results": [r.as_json() for r in results], **context} | ({"probe": probes} if probes else {})
    unwritten: list[str] = []
    folder = out
    for checkpoint, result, (name, graded) in zip(checkpoints, results, named, strict=True):
        one = {"results": [result.as_json()], **context} | ({"probe": {name: probes[name]}} if probes else {})
        try:
            beside = _folder_for(checkpoint, out)
            _write(beside, one, [(name, graded)])
            folder = out or beside
        except (OSError, UserError) as error:
            unwritten.append(_reason(error))
    try:
        if out is not None:
            _write(out, whole, named)
    except OSError as error:
        unwritten.append(_reason(error))
    if unwritten or folder is None:
        raise ReportNotWritten(whole, f"{unwritten[0]}: the report was not written")
    return whole, folder / "report.json"


def _reason(error: OSError | UserError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return str(error)


def _evaluate_one(
    name: str,
    checkpoint: Checkpoint | None,
    recipe: Recipe,
    examples: Sequence[Example],
    console: Console,
    with_probe: bool,
) -> tuple[list[Graded], ProbeRates | None]:
    clear_device_cache(garbage_collection=True)  # frees the previous model, which is in a reference cycle
    with console.status(printable(f"loading {name}")):
        policy = load_policy(recipe, checkpoint)

    grade = partial(grade_example, grader=recipe.reward.grader)
    with counting(console, f"evaluating {name}", 2 * len(examples)) as count:
        graded = evaluate(generator(policy, recipe.rollout, 0.0, on_replies=count), policy.chat, examples, grade)
    if not with_probe:
        return graded, None
    torch.manual_seed(recipe.seed)
    with counting(console, f"probing {name}") as count:
        rollout = recipe.rollout
        greedy, sample = (generator(policy, rollout, t, on_replies=count) for t in (0.0, rollout.temperature))
        return graded, probe(greedy, sample, policy.chat, examples, grade)


def _folder_for(checkpoint: Checkpoint | None, out: Path | None) -> Path:
    if checkpoint is not None and os.access(checkpoint.path, os.W_OK):
        return checkpoint.path
    return out or claim_run(None, f"eval-{checkpoint.path.name if checkpoint else 'base'}")


def _write(folder: Path, content: Report, named: Iterable[tuple[str, Sequence[Graded]]]) -> None:
    lines = [{"checkpoint": name, **g.as_json()} for name, graded in named for g in graded]
    write_file(folder / "transcripts.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    write_file(folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
