"""stage1 and stage2 as a user runs them: check, load, train with progress, save, draw the curve."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict, ValidationError, create_model
from rich.console import Console
from transformers import TrainerState
from transformers.integrations import get_available_reporting_integrations

from scorefast.data.example import Dataset
from scorefast.errors import Interrupted, RunError, StepDropped, UserError
from scorefast.files.atomic import is_own_file
from scorefast.files.bounded import read_json
from scorefast.files.model_folder import require_sound_folder
from scorefast.files.seal import damage
from scorefast.files.text import one_line, shortened
from scorefast.grading.function import load_reward, try_reward
from scorefast.kernels import resolve_impl
from scorefast.model import memory
from scorefast.model.backends import resolve_backend
from scorefast.model.chat_format import ChatFormat
from scorefast.model.load import load_policy
from scorefast.model.tokenizer import chat_format
from scorefast.recipe import Recipe, Stage1, Stage2, load_recipe
from scorefast.rl.evaluate import longest_conversation, require_room
from scorefast.rl.objective import is_on_policy, turns_sampled
from scorefast.rl.optimizers import require_usable
from scorefast.rl.schedule import micro_batch_size, samples_per_question
from scorefast.rl.trainer import ScoreTrainer
from scorefast.runs.checkpoint import Checkpoint, find_last
from scorefast.runs.layout import METRICS, RECIPE, RUN, step_of
from scorefast.runs.log import log_bound, metrics_until, read_metrics
from scorefast.runs.owner import Owner
from scorefast.runs.processes import place
from scorefast.runs.resume import change_recipe, changes_allowed
from scorefast.stats import Graded
from scorefast.ui.plots import draw_learning_curve
from scorefast.ui.tables import print_signs, transcript
from scorefast.ui.training import ProgressLine, StopOnSignal

Section = Literal["stage1", "stage2"]
# What trainer_state.json may say: the Trainer itself takes values of any kind, and fails on them later.
_KINDS = get_type_hints(TrainerState) | {"train_batch_size": int, "stateful_callbacks": dict[str, Any]}
_NEEDED = ("global_step", "train_batch_size", "log_history")
SavedState: Any = create_model(
    "SavedState",
    __config__=ConfigDict(strict=True, extra="forbid"),
    **{name: (kind, ... if name in _NEEDED else None) for name, kind in _KINDS.items()},  # type: ignore[call-overload]
)


@dataclass(frozen=True)
class StageRun:
    """One run of a stage, everything about it decided."""

    section: Section
    recipe: Recipe
    dataset: Dataset
    start: Checkpoint | None
    folder: Path
    owner: Owner | None = None


def check_stage(section: Section, recipe: Recipe, dataset: Dataset, *, elsewhere: bool = False) -> None:
    """Everything that can be wrong before a model is loaded; `elsewhere`: on another machine. Raises UserError."""
    stage = getattr(recipe, section)
    micro_batch_size(stage, section, place().processes)
    resolve_loss(recipe)
    require_usable(recipe, section, elsewhere=elsewhere)
    if recipe.report_to not in ("none", "all", *(known := get_available_reporting_integrations())):
        raise UserError(f"report_to: {recipe.report_to!r} is not installed here; there are: none, {', '.join(known)}")
    train = dataset.split("train", "training")
    if recipe.reward.function:
        if isinstance(stage, Stage2) and stage.shaping == "origin":
            raise UserError("reward.function: the origin's shaping compares grades; take stage2.shaping=paper with it")
        try_reward(load_reward(recipe.reward.function), train, recipe.prompt.correction)
    if not turns_sampled(stage):
        missing = sum(e.original_answer is None for e in train)
        if missing:
            raise UserError(
                f"{dataset.source}: {missing} of {len(train)} training rows have no original_answer, which "
                f"stage1.method=supervised needs; fill it, or set stage1.first_attempt=sampled"
            )


def resolve_loss(recipe: Recipe) -> str:
    """The implementation of the loss that this run uses. Raises UserError where the one asked for cannot run here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return resolve_impl(recipe.loss.impl, device, getattr(torch, recipe.model.dtype))
    except ValueError as error:
        raise UserError(f"loss.impl: {error}") from None


def check_lengths(section: Section, recipe: Recipe, dataset: Dataset) -> None:
    """Longer sequences would be cut silently further down. Raises UserError naming the longest question.

    Needs the tokenizer, and so, for a model on the hub, the network.
    """
    require_room(*longest_sequence(section, recipe, dataset, chat_format(recipe)), recipe)


def longest_sequence(section: Section, recipe: Recipe, dataset: Dataset, chat: ChatFormat) -> tuple[int, str]:
    """(tokens of two turns at their longest, the question that needs so many) in training and validation."""
    examples, reply = dataset.splits["train"] + dataset.splits["validation"], recipe.rollout.max_new_tokens
    if is_on_policy(getattr(recipe, section)):
        return longest_conversation(chat, examples, reply)
    return longest_conversation(chat, examples, reply, lambda e: (e.original_answer or "", e.correct_answer))


def plan_stage(section: Section, recipe: Recipe, dataset: Dataset) -> memory.Plan:
    """The memory of a run of this stage on this machine. Where the tokenizer is not here, nothing is downloaded:
    sequences are planned at model.max_seq_length."""
    stage: Stage1 | Stage2 = getattr(recipe, section)
    processes = place().processes
    try:
        tokens, _ = longest_sequence(section, recipe, dataset, chat_format(recipe, download=False))
    except UserError:
        tokens = recipe.model.max_seq_length
    trajectories = stage.questions_per_step * samples_per_question(stage) // processes if turns_sampled(stage) else 0
    validated = min(len(dataset.splits["validation"]), recipe.eval.max_questions)
    try:
        return memory.plan_memory(
            recipe,
            stage,
            tokens=tokens,
            generated=min(recipe.rollout.batch_size, max(trajectories, validated)),
            micro_batch=micro_batch_size(stage, section, processes),
            base=memory.memory_here()[2],
        )
    except RuntimeError as error:  # an operation of the model's own that needs numbers: of experts, in float32
        raise RunError(f"{recipe.model.name}: its memory cannot be planned: {one_line(error)}") from None


def run_stage(job: StageRun, console: Console, *, resume: bool = False) -> Path:
    """Train, save into job.folder, draw curve.png; returns the folder. job.folder is this process's own.

    Raises Interrupted after a SIGINT, SIGTERM or SIGHUP, with what was done saved; RunError where it cannot go on.
    """
    recipe, stage = job.recipe, getattr(job.recipe, job.section)
    train, validation = job.dataset.split("train", "training"), job.dataset.splits["validation"]
    validation = validation[: recipe.eval.max_questions]
    last, metrics = find_resumable(job, console) if resume else (None, [])
    console.print(
        f"{job.section}: {recipe.model.name} on {resolve_backend(recipe.model)}, {resolve_loss(recipe)} loss, "
        f"{len(train)} training and {len(validation)} validation questions, {stage.max_steps} steps"
        + (f", resuming after {last.name}" if last else "")
    )
    owner = job.owner or Owner(job.folder)
    owner.keep(RECIPE, RUN)
    with StopOnSignal() as stop:
        policy = load_policy(recipe, job.start, trainable=True)
        if place().rank == 0:
            _require_still_there(owner)
        if policy.chat.rule:
            console.print(policy.chat.rule, soft_wrap=True)
        progress = ProgressLine(console, stage.max_steps)

        def show(step: int, graded: list[Graded]) -> None:
            if (step - 1) % stage.show_steps == 0:
                progress.print(transcript(graded[0], f"sampled at step {step}"))

        trainer = ScoreTrainer(
            policy,
            recipe,
            job.section,
            train,
            validation,
            job.folder,
            owner=owner,
            show=show,
            note=progress.print,
            interrupt=stop.check,
            wrote=progress.wrote,
            callbacks=[progress, stop],
            already=metrics,
        )
        trainer.args.eval_on_start = bool(validation) and _validation_is_due(metrics, last, stage)
        with progress.bar:
            stop.begin(trainer.args.world_size)
            if resume and trainer.is_world_process_zero():
                change_recipe(job.folder, recipe)
                owner.keep(RECIPE)
            try:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            except StepDropped:
                trainer.save_where_it_stands()
                raise Interrupted(stop.signum or signal.SIGINT) from None
            except UserError as error:  # of the reward function, in the middle of a night
                if trainer.state.global_step == (step_of(last) if last else 0) or trainer.args.world_size > 1:
                    raise
                trainer.save_where_it_stands()
                raise RunError(f"{error}; {trainer.last_saved()}, go on from it with --resume") from None
        if stop.signum is not None and trainer.state.global_step < stage.max_steps:
            raise Interrupted(stop.signum)
        trainer.save_result()
    if trainer.is_world_process_zero():
        metrics = trainer.log_file.lines
        print_signs(console, metrics, job.section)
        try:
            draw_learning_curve(metrics, f"{job.folder.name}: {job.section}", job.folder / "curve.png")
        except Exception as error:  # a full disk, a font, a setting of matplotlib's: what was trained is saved
            why = getattr(error, "strerror", None) or one_line(error)
            console.print(f"{job.folder / 'curve.png'}: not drawn: {why}", soft_wrap=True)
    return job.folder


def _require_still_there(owner: Owner) -> None:
    try:
        owner.confirm()
    except OSError:
        raise UserError(f"{owner.folder}: is no longer there: it was removed while the model was loading") from None


def find_resumable(job: StageRun, console: Console) -> tuple[Path | None, list[dict[str, Any]]]:
    """(the checkpoint to resume from, the metrics up to it); says what is passed over or mended.

    Raises UserError where the run cannot go on as asked; changes nothing.
    """
    most = getattr(job.recipe, job.section).max_steps
    last, passed_over = find_last(job.folder)
    for line in passed_over:
        console.print(line, soft_wrap=True)
    if last is None:
        if damage(job.folder) is None:
            raise UserError(f"{job.folder}: has finished, and has no checkpoint left to go on from; take another --out")
        if passed_over:
            console.print("no whole checkpoint is left: the run begins again")
        return None, []
    if step_of(last) > most:
        raise UserError(f"{last}: the run is already past {job.section}.max_steps = {most}")
    if (last / RECIPE).is_file():  # sealed with what it was trained by; the run's own can be edited
        changes_allowed(job.folder, job.section, load_recipe(str(last / RECIPE)), job.recipe)
    metrics, damaged = metrics_until(job.folder, step_of(last), require_resumable(last), log_bound(most))
    if damaged:
        console.print(f"{damaged}; written anew from {last}", soft_wrap=True)
    return last, metrics


def require_resumable(last: Path) -> list[dict[str, Any]]:
    """The log up to that checkpoint, which holds it: one of an earlier version in trainer_state.json. Raises UserError
    where the checkpoint holds what is not to be loaded."""
    require_sound_folder(last)
    path = last / "trainer_state.json"
    state = read_json(path, log_bound(step_of(last)))
    try:
        SavedState.model_validate(state)
        history = [{"step": line["step"], **line} for line in state["log_history"] if "train_runtime" not in line]
    except ValidationError as error:
        problem = error.errors()[0]
        key = shortened(".".join(map(str, problem["loc"])), 100)
        raise UserError(f"{path}: not a state of the Trainer: {key}: {problem['msg']}") from None
    except KeyError:
        raise UserError(f"{path}: not a state of the Trainer: log_history has a line without its step") from None
    if state["global_step"] != step_of(last):
        raise UserError(f"{path}: is of step {state['global_step']}; its folder has been renamed; name it as it was")
    return read_metrics(last, log_bound(step_of(last))) if is_own_file(last / METRICS) else history


def _validation_is_due(metrics: list[dict[str, Any]], last: Path | None, stage: Stage1 | Stage2) -> bool:
    """Before the first step, and where a kill came between a step's checkpoint and its validation."""
    if last is None:
        return True
    done = step_of(last)
    return done % stage.eval_steps == 0 and not any(m["step"] == done and "eval_acc_t1" in m for m in metrics)
