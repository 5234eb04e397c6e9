"""Greedy two-turn evaluation of checkpoints on held-out questions, and the probe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from scorefast.data.example import Example
from scorefast.errors import NotWritten, UserError
from scorefast.files.atomic import write_file
from scorefast.files.text import printable
from scorefast.grading.answer import Grade
from scorefast.grading.reward import grade_example
from scorefast.model.load import load_policy
from scorefast.model.policy import Policy
from scorefast.model.tokenizer import chat_format
from scorefast.probe import probe
from scorefast.recipe import Recipe
from scorefast.rl.evaluate import decode_with, evaluate, longest_conversation, require_room
from scorefast.rl.rollout import first_attempts
from scorefast.runs.checkpoint import Checkpoint
from scorefast.runs.folder import claim_run
from scorefast.stats import Graded, summarize
from scorefast.ui.progress import Pulse, counting
from scorefast.ui.tables import gains_lines, print_before_and_after, probe_table, results_table, unsure_lines


def first_attempt_writer(
    recipe: Recipe, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> Callable[[list[Example]], list[Example]]:
    """Fills missing original answers with replies sampled from the checkpoint (None: the base model), and notes who
    wrote them. The model is loaded with the first call, when the data has been read and found good."""
    settings, author = recipe.rollout, checkpoint.name if checkpoint else recipe.model.name
    pulse, done = Pulse(), 0

    def count(replies: int) -> None:
        nonlocal done
        done += replies
        if pulse.due():
            pulse.said()
            note(f"{done} first attempts written")

    @cache
    def writer() -> Policy:
        policy = load_policy(recipe, checkpoint)
        torch.manual_seed(recipe.seed)
        return policy

    def fill(examples: list[Example]) -> list[Example]:
        missing = [e for e in examples if e.original_answer is None]
        if not missing:
            return examples
        room = recipe.model.max_seq_length - settings.max_new_tokens
        missing = [e for e in missing if len(writer().chat.first_turn(e.question)) <= room]  # others stay without one
        sample = decode_with(writer(), recipe, settings.temperature, count)
        written = dict(zip([e.id for e in missing], first_attempts(sample, writer().chat, missing), strict=True))
        return [
            e._replace(original_answer=written[e.id].text or None, original_answer_by=author) if e.id in written else e
            for e in examples
        ]

    return fill


def evaluate_checkpoints(
    checkpoints: Sequence[Checkpoint | None],
    recipe: Recipe,
    examples: Sequence[Example],
    context: dict[str, Any],
    console: Console,
    *,
    out: Path | None = None,
    with_probe: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Evaluate each checkpoint (None is the base model), print the table, write report.json and transcripts.jsonl
    beside each (and all of them into `out`). Returns the whole report and where it stands."""
    chat, reply = chat_format(recipe), recipe.rollout.max_new_tokens
    require_room(
        *longest_conversation(chat, examples, reply, lambda e: (e.correct_answer if with_probe else "", "")), recipe
    )
    if chat.rule:
        console.print(chat.rule, soft_wrap=True)
    named: list[tuple[str, list[Graded]]] = []
    probes: dict[str, Any] = {}
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
            unwritten.append(_why(error))
    try:
        if out is not None:
            _write(out, whole, named)
    except OSError as error:
        unwritten.append(_why(error))
    if unwritten or folder is None:
        raise NotWritten(whole, f"{unwritten[0]}: the report was not written")
    return whole, folder / "report.json"


def _why(error: OSError | UserError) -> str:
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
) -> tuple[list[Graded], dict[str, Any] | None]:
    clear_device_cache(garbage_collection=True)  # of the model before, which is part of a cycle
    with console.status(printable(f"loading {name}")):
        policy = load_policy(recipe, checkpoint)

    def grade_reply(reply: str, example: Example) -> Grade:
        return grade_example(reply, example, recipe.reward.grader)

    with counting(console, f"evaluating {name}", 2 * len(examples)) as count:
        graded = evaluate(decode_with(policy, recipe, 0.0, count), policy.chat, examples, grade_reply)
    if not with_probe:
        return graded, None
    torch.manual_seed(recipe.seed)
    with counting(console, f"probing {name}") as count:
        greedy, sample = (decode_with(policy, recipe, t, count) for t in (0.0, recipe.rollout.temperature))
        return graded, probe(greedy, sample, policy.chat, examples, grade_reply)


def _folder_for(checkpoint: Checkpoint | None, out: Path | None) -> Path:
    if checkpoint is not None and os.access(checkpoint.path, os.W_OK):
        return checkpoint.path
    return out or claim_run(None, f"eval-{checkpoint.path.name if checkpoint else 'base'}")


def _write(folder: Path, content: dict[str, Any], named: Iterable[tuple[str, Sequence[Graded]]]) -> None:
    lines = [{"checkpoint": name, **g.as_json()} for name, graded in named for g in graded]
    write_file(folder / "transcripts.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    write_file(folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
