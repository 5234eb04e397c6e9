"""Greedy two-turn evaluation of checkpoints on held-out questions, and the probe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from scorefast import report
from scorefast.data import Example
from scorefast.durable import write_file
from scorefast.grading import Grade
from scorefast.metrics import Graded, summarize, wilson
from scorefast.model import Policy, chat_format, generate, load_policy
from scorefast.prompts import ChatFormat
from scorefast.recipe import Recipe, RunError, UserError
from scorefast.reward import grade_example
from scorefast.rollout import Attempt, Generate, Trajectory, attempt, first_attempts, second_attempts
from scorefast.runs import Checkpoint, claim_run

Given = Callable[[Example], tuple[str, str]]
GradeReply = Callable[[str, Example], Grade]


def evaluate(generate: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply) -> list[Graded]:
    """Both attempts at each question. `generate` decides how to decode; the reported figures are greedy."""
    first = first_attempts(generate, chat, examples)
    return grade_all(second_attempts(generate, chat, examples, first), grade)


def grade_all(trajectories: Sequence[Trajectory], grade: GradeReply) -> list[Graded]:
    return [Graded(t, grade(t.first.text, t.example), grade(t.second.text, t.example)) for t in trajectories]


def probe(
    greedy: Generate, sample: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply
) -> dict[str, dict[str, Any]]:
    """Does the second attempt READ the first? Turn 2 again, with the first attempt replaced.

    correct: by the data's correct answer (how often is right kept right?); wrong: by a wrong attempt sampled from the
    same model for the same question (how often is it fixed?); unrelated: by the greedy attempt at another question;
    empty: by an empty reply. All four are measured on the same questions, those for which one of 8 samples is wrong.
    If `unrelated` and `empty` equal `wrong`, the model answers anew without reading.
    """
    wrong = _sampled_wrong(sample, chat, examples, grade)
    asked = [e for e in examples if e.id in wrong]
    own = first_attempts(greedy, chat, asked)
    given: dict[str, list[Attempt]] = {
        "correct": [_given(chat, e.correct_answer) for e in asked],
        "wrong": [wrong[e.id] for e in asked],
        "unrelated": own[1:] + own[:1] if len(asked) > 1 else [],
        "empty": [_given(chat, "") for _ in asked],
    }
    rates = {}
    for kind, attempts in given.items():
        graded = grade_all(second_attempts(greedy, chat, asked[: len(attempts)], attempts), grade)
        right, n = sum(g.second.correct for g in graded), len(graded)
        rates[kind] = {"right_after": right / n if n else None, "ci95": wilson(right, n), "n": n}
    return rates


def first_attempt_writer(
    recipe: Recipe, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> Callable[[list[Example]], list[Example]]:
    """Fills missing original answers with replies sampled from the checkpoint (None: the base model), and notes who
    wrote them. The model is loaded with the first call, when the data has been read and found good."""
    settings, author = recipe.rollout, checkpoint.name if checkpoint else recipe.model.name
    pulse, done = report.Pulse(), 0

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
        sample = _decode(writer(), recipe, settings.temperature, count)
        written = dict(zip([e.id for e in missing], first_attempts(sample, writer().chat, missing), strict=True))
        return [
            e._replace(original_answer=written[e.id].text or None, original_answer_by=author) if e.id in written else e
            for e in examples
        ]

    return fill


def _given(chat: ChatFormat, text: str) -> Attempt:
    return attempt(chat, chat.reply(text))


def _sampled_wrong(
    sample: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply, tries: int = 8
) -> dict[str, Attempt]:
    wrong: dict[str, Attempt] = {}
    for _ in range(tries):
        left = [e for e in examples if e.id not in wrong]
        if not left:
            break
        for e, y1 in zip(left, first_attempts(sample, chat, left), strict=True):
            if not grade(y1.text, e).correct:
                wrong[e.id] = y1
    return wrong


def longest_conversation(
    chat: ChatFormat, examples: Iterable[Example], reply: int, given: Given = lambda e: ("", "")
) -> tuple[int, str]:
    """(tokens of two turns at their longest, the question that needs so many). A reply takes `reply` tokens, or where
    that is longer, those of the text that is given for it."""
    worst, longest, correction = 0, "", len(chat.next_turn([]))
    for e in examples:
        replies = sum(max(reply, len(chat.reply(text))) if text else reply for text in given(e))
        total = len(chat.first_turn(e.question)) + correction + replies
        if total > worst:
            worst, longest = total, e.question
    return worst, longest


def require_room(needed: int, question: str, recipe: Recipe) -> None:
    """Longer conversations would be cut silently further down. Raises UserError naming the longest question."""
    if needed > recipe.model.max_seq_length:
        raise UserError(
            f"question {question[:60]!r}: needs up to {needed} tokens in two turns, model.max_seq_length is "
            f"{recipe.model.max_seq_length}; raise it, lower rollout.max_new_tokens, or drop the question"
        )


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
    console.print(report.results_table(results, context["split"]))
    for line in (*report.gains_lines(results), *report.unsure_lines(results)):
        console.print(line)
    if probes:
        console.print(report.probe_table(probes))
    report.print_before_and_after(console, named)

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


class NotWritten(RunError):
    """All was evaluated, `content` is the report, and there is no place for it."""

    def __init__(self, content: dict[str, Any], message: str):
        super().__init__(message)
        self.content = content


def _evaluate_one(
    name: str,
    checkpoint: Checkpoint | None,
    recipe: Recipe,
    examples: Sequence[Example],
    console: Console,
    with_probe: bool,
) -> tuple[list[Graded], dict[str, Any] | None]:
    clear_device_cache(garbage_collection=True)  # of the model before, which is part of a cycle
    with console.status(report.printable(f"loading {name}")):
        policy = load_policy(recipe, checkpoint)

    def grade_reply(reply: str, example: Example) -> Grade:
        return grade_example(reply, example, recipe.reward.grader)

    with report.counting(console, f"evaluating {name}", 2 * len(examples)) as count:
        graded = evaluate(_decode(policy, recipe, 0.0, count), policy.chat, examples, grade_reply)
    if not with_probe:
        return graded, None
    torch.manual_seed(recipe.seed)
    with report.counting(console, f"probing {name}") as count:
        greedy, sample = (_decode(policy, recipe, t, count) for t in (0.0, recipe.rollout.temperature))
        return graded, probe(greedy, sample, policy.chat, examples, grade_reply)


def _decode(policy: Policy, recipe: Recipe, temperature: float, count: Callable[[int], None]) -> Generate:
    settings = recipe.rollout
    return partial(
        generate,
        policy,
        max_new_tokens=settings.max_new_tokens,
        temperature=temperature,
        batch_size=settings.batch_size,
        on_replies=count,
    )


def _folder_for(checkpoint: Checkpoint | None, out: Path | None) -> Path:
    if checkpoint is not None and os.access(checkpoint.path, os.W_OK):
        return checkpoint.path
    return out or claim_run(None, f"eval-{checkpoint.path.name if checkpoint else 'base'}")


def _write(folder: Path, content: dict[str, Any], named: Iterable[tuple[str, Sequence[Graded]]]) -> None:
    lines = [{"checkpoint": name, **g.as_json()} for name, graded in named for g in graded]
    write_file(folder / "transcripts.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    write_file(folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
