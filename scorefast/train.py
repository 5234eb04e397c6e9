"""stage1 and stage2: check a job, plan its memory, and train."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers.integrations import get_available_reporting_integrations

from scorefast.errors import Interrupted, RunError, StepDropped, UserError
from scorefast.files.text import one_line
from scorefast.grading.reward_function import load_reward, try_reward
from scorefast.kernels import resolve_impl
from scorefast.model.backends import resolve_backend
from scorefast.model.chat_format import ChatFormat
from scorefast.model.load import load_policy
from scorefast.model.memory import Plan, memory_here, plan_memory
from scorefast.model.tokenizer import chat_format
from scorefast.prepare import write_dropped_aside
from scorefast.recipe import dump_recipe
from scorefast.rl.lengths import longest_conversation, require_room
from scorefast.rl.optimizers import require_usable
from scorefast.rl.schedule import micro_batch_size
from scorefast.rl.trainer import ScoreTrainer
from scorefast.runs.checkpoint import find_last
from scorefast.runs.folder import start_run
from scorefast.runs.job import Job
from scorefast.runs.layout import RECIPE, RUN, step_of
from scorefast.runs.log import Metrics
from scorefast.runs.owner import Owner
from scorefast.runs.processes import world
from scorefast.runs.resume import base_provenance, change_recipe, find_resumable, require_same_beginning
from scorefast.runs.signals import StopOnSignal
from scorefast.schema import Recipe, Stage1, Stage2
from scorefast.ui.console import InertConsole
from scorefast.ui.plots import draw_learning_curve
from scorefast.ui.tables import print_memory, print_warnings
from scorefast.ui.training import TerminalReporter

Note = Callable[[str], None]


def check(job: Job, note: Note = lambda line: None, *, elsewhere: bool = False) -> Job:
    """The job with all its facts. Raises UserError for every fault that can be found before a model is loaded.

    elsewhere: the run is planned for another machine, so packages may be missing here.
    """
    recipe, stage = job.recipe, job.stage
    micro_batch_size(stage, world().size)
    facts = job.facts | {"loss": resolve_loss(recipe)}
    require_usable(recipe, stage, elsewhere=elsewhere)
    if recipe.report_to not in ("none", "all", *(known := get_available_reporting_integrations())):
        raise UserError(f"report_to: {recipe.report_to!r} is not installed here; use one of none, {', '.join(known)}")
    if recipe.reward.function:
        if isinstance(stage, Stage2) and stage.shaping == "origin":
            raise UserError("reward.function: stage2.shaping=origin compares grades; set stage2.shaping=paper")
        try_reward(load_reward(recipe.reward.function), job.train, recipe.prompt.correction)
    missing = sum(e.original_answer is None for e in job.train)
    if missing and stage.turns_sampled == 0:
        raise UserError(
            f"{job.dataset.source}: {missing} of {len(job.train)} training rows have no original_answer, which "
            f"stage1.method=supervised needs; fill it, or set stage1.first_attempt=sampled"
        )
    if not elsewhere:
        facts["backend"] = resolve_backend(recipe.model)
    if world().rank == 0:
        facts |= base_provenance(recipe)
    if job.begun:
        require_same_beginning(job.folder, facts, note)
    return replace(job, facts=facts)


def resolve_loss(recipe: Recipe) -> str:
    """The implementation of the loss that this run uses. Raises UserError if the requested one cannot run here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return resolve_impl(recipe.loss.impl, device, getattr(torch, recipe.model.dtype))
    except ValueError as error:
        raise UserError(f"loss.impl: {error}") from None


def check_lengths(job: Job) -> None:
    """Raise UserError naming the longest question if its sequence exceeds model.max_seq_length.

    Without this check the libraries truncate it silently. It needs the tokenizer, so a hub model may be downloaded.
    """
    require_room(*longest_sequence(job, chat_format(job.recipe)), job.recipe)


def longest_sequence(job: Job, chat: ChatFormat) -> tuple[int, str]:
    """(upper bound of the tokens in two turns, the question with that bound), in training and validation data."""
    examples = job.dataset.splits["train"] + job.dataset.splits["validation"]
    reply = job.recipe.rollout.max_new_tokens
    if job.stage.on_policy:
        return longest_conversation(chat, examples, reply)
    return longest_conversation(chat, examples, reply, lambda e: (e.original_answer or "", e.correct_answer))


def plan(job: Job) -> Plan:
    """The memory plan of a run on this machine. Downloads nothing: without a local tokenizer, sequences are planned at
    model.max_seq_length."""
    recipe, stage, processes = job.recipe, job.stage, world().size
    try:
        tokens, _ = longest_sequence(job, chat_format(recipe, download=False))
    except UserError:
        tokens = recipe.model.max_seq_length
    sampled = stage.trajectories // processes if stage.turns_sampled else 0
    try:
        return plan_memory(
            recipe,
            stage,
            tokens=tokens,
            generated=min(recipe.rollout.batch_size, max(sampled, len(job.validation))),
            micro_batch=micro_batch_size(stage, processes),
            base=memory_here()[2],
        )
    except RuntimeError as error:  # some models need values, which fake tensors lack: experts in float32
        raise RunError(f"{recipe.model.name}: its memory cannot be planned: {one_line(error)}") from None


def print_plan(job: Job, console: InertConsole) -> None:
    """--dry-run: print the resolved recipe, the plan of the run, and the memory that it needs."""
    if job.begun:
        find_resumable(job.folder, job.stage, job.recipe, console.note)
    console.print(dump_recipe(job.recipe))
    work = f"{job.stage.max_steps} steps of {job.stage.questions_per_step} questions"
    console.note(f"plan: {job.name} of {job.recipe.model.name} on {job.dataset}: {work}. Nothing was run.")
    where, room, _ = memory_here()
    print_memory(console, plan(job), where, room)


def begin(job: Job, note: Note) -> None:
    """Write the files of a new run. run.json, the last file, marks it as begun."""
    if world().rank == 0 and not job.begun:
        write_dropped_aside(job.dataset, job.folder, note)
        start_run(job.folder, job.recipe, job.facts)


def run(job: Job, console: Console, owner: Owner | None = None) -> Path:
    """Train, save into the job's folder, and draw curve.png. This process must own the folder. Returns the folder.

    Raises Interrupted after SIGINT, SIGTERM or SIGHUP, when the finished steps are saved. Raises RunError if the run
    cannot continue.
    """
    try:
        metrics = _train(job, console, owner or Owner(job.folder))
        if world().rank == 0:
            print_warnings(console, metrics, job.name)
            _draw_curve(job, metrics, console)
    except (Interrupted, KeyboardInterrupt) as stop:
        last, _ = find_last(job.folder)
        kept = f"{last} is saved" if last else "no checkpoint was saved"
        console.print(f"interrupted: {kept}. Continue with: {job.command}", soft_wrap=True)
        raise Interrupted(stop.signum if isinstance(stop, Interrupted) else signal.SIGINT) from None
    return job.folder


def _note(console: Console) -> Note:
    return partial(console.print, soft_wrap=True)


def _train(job: Job, console: Console, owner: Owner) -> Sequence[Metrics]:
    """Train, and save the result. Returns the log of the run."""
    last, metrics = find_resumable(job.folder, job.stage, job.recipe, _note(console)) if job.begun else (None, [])
    console.print(
        f"{job.name}: {job.recipe.model.name} on {resolve_backend(job.recipe.model)}, {resolve_loss(job.recipe)} loss, "
        f"{len(job.train)} training and {len(job.validation)} validation questions, {job.stage.max_steps} steps"
        + (f", resuming after {last.name}" if last else "")
    )
    owner.keep(RECIPE, RUN)
    with StopOnSignal() as stop:
        policy = load_policy(job.recipe, job.start, trainable=True)
        if world().rank == 0:
            _require_folder(owner)
        if policy.chat.rule:
            console.print(policy.chat.rule, soft_wrap=True)
        reporter = TerminalReporter(console, job.stage, stop)
        trainer = ScoreTrainer(policy, job, owner=owner, reporter=reporter, metrics=metrics)
        trainer.args.eval_on_start = bool(job.validation) and _validation_is_due(metrics, last, job.stage)
        with reporter.bar:
            reporter.begin(trainer.args.world_size)
            if job.begun and trainer.is_world_process_zero():
                change_recipe(job.folder, job.recipe)
                owner.keep(RECIPE)
            _train_from(last, trainer, stop)
        if stop.signum is not None and trainer.state.global_step < job.stage.max_steps:
            raise Interrupted(stop.signum)
        if trainer.is_world_process_zero():
            trainer.checkpoints.save_result()
    return trainer.log_file.lines


def _train_from(last: Path | None, trainer: ScoreTrainer, stop: StopOnSignal) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except StepDropped:
        trainer.save_last_step()
        raise Interrupted(stop.signum or signal.SIGINT) from None
    except UserError as error:  # raised by the reward function
        if trainer.state.global_step == (step_of(last) if last else 0) or trainer.args.world_size > 1:
            raise
        trainer.save_last_step()
        raise RunError(f"{error}; {trainer.checkpoints.last_saved()}, continue from it with --resume") from None


def _require_folder(owner: Owner) -> None:
    try:
        owner.confirm()
    except OSError:
        raise UserError(f"{owner.folder}: was removed while the model was loading") from None


def _validation_is_due(metrics: Sequence[Metrics], last: Path | None, stage: Stage1 | Stage2) -> bool:
    """Whether to validate before the next step: in a new run, and if a kill came between a checkpoint and its
    validation."""
    if last is None:
        return True
    done = step_of(last)
    return done % stage.eval_steps == 0 and not any(m["step"] == done and "eval_acc_t1" in m for m in metrics)


def _draw_curve(job: Job, metrics: Sequence[Metrics], console: Console) -> None:
    path = job.folder / "curve.png"
    try:
        draw_learning_curve(metrics, f"{job.folder.name}: {job.name}", path)
    except Exception as error:  # a full disk, a font, a matplotlib setting: the trained policy is already saved
        why = getattr(error, "strerror", None) or one_line(error)
        console.print(f"{path}: not drawn: {why}", soft_wrap=True)
