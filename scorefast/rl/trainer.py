"""One transformers.Trainer for both stages: roll out a whole optimizer step, then train on it in micro-batches."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from rapidfuzz.distance import Levenshtein
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from scorefast.data.example import Example
from scorefast.errors import RunError, UserError
from scorefast.files.atomic import WORK, write_file
from scorefast.files.seal import remove_folder, written_whole
from scorefast.files.text import one_line
from scorefast.grading.answer import Grade
from scorefast.grading.function import load_reward, rewards_of
from scorefast.grading.reward import grade_example
from scorefast.kernels import ScoreStats
from scorefast.model.generate import generate
from scorefast.model.policy import Policy, save_policy
from scorefast.recipe import Recipe, Stage1, Stage2, dump_recipe
from scorefast.rl import monitor, objective
from scorefast.rl.batch import collate
from scorefast.rl.evaluate import evaluate, grade_all
from scorefast.rl.log_file import LogFile
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.optimizers import require_alike
from scorefast.rl.rollout import Generate, first_attempts, supervised_trajectories, two_turn_rollout
from scorefast.rl.schedule import QuestionOrder, micro_batch_size, samples_per_question, training_arguments
from scorefast.rl.trajectory import Trajectory, data_attempt
from scorefast.runs.checkpoint import find_last, rotate
from scorefast.runs.layout import METRICS, RECIPE, step_of
from scorefast.runs.model_card import model_card
from scorefast.runs.owner import Owner
from scorefast.stats import Graded, rates

MAX_CONSECUTIVE_SKIPS = 3  # steps in a row that come to nothing before a run stops
# Metrics of the machine, which two equal runs do not share.
TIMING_METRICS = {f"{part}_{what}" for part in ("rollout", "update") for what in ("seconds", "tokens_per_second")}
TIMING_METRICS |= {"gpu_allocated_gb", "gpu_reserved_gb"}
Sampled = TypeVar("Sampled")
RewardPair = tuple[float | None, float | None]  # of the two attempts; None where the function does not apply
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # torch.save and safetensors have errors of their own


@dataclass
class StepRecord:
    """What is known of the optimizer step in the making."""

    batches: list[dict[str, Tensor]] = field(default_factory=list)  # whose gradient has been taken
    trajectories: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the loss's statistics, over tokens
    tokens: dict[str, int] = field(default_factory=dict)
    rollout: dict[str, float] = field(default_factory=dict)
    update_began: float = 0.0
    problem: str | None = None  # why the step must not be taken

    def add(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + values.sum().item()
        self.tokens[name] = self.tokens.get(name, 0) + len(values)

    def metrics(self) -> dict[str, float]:
        """entropy in nats a token, KL in nats a reply."""
        kl = {name: total / self.trajectories for name, total in self.sums.items() if name != "entropy"}
        entropy = {"entropy": self.sums["entropy"] / self.tokens["entropy"]} if "entropy" in self.sums else {}
        return self.rollout | entropy | kl

    def speed(self) -> dict[str, float]:
        """Of the update that ends now: forward, backward and optimizer, over all tokens of the trajectories. gpu: the
        most of the card that tensors have taken since the process began, and torch held for them, in 10^9 bytes."""
        seconds = time.perf_counter() - self.update_began
        tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)
        gpu = {}
        if torch.cuda.is_available():
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            gpu = {"gpu_allocated_gb": allocated / 1e9, "gpu_reserved_gb": reserved / 1e9}
        return {"update_seconds": seconds, "update_tokens_per_second": tokens / seconds} | gpu

    def highest_kl(self) -> float:
        """Of the two turns, in nats a token."""
        return max((self.sums[n] / self.tokens[n] for n in ("kl_t1", "kl_t2") if n in self.sums), default=0.0)


class ScoreTrainer(Trainer):
    """Differs from its parent in where a step's batches come from, in their loss, and in what is done when numbers,
    memory, disk or user get in the way. The training loop is the parent's."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        section: str,
        train: Sequence[Example],
        validation: Sequence[Example],
        run: Path,
        *,
        owner: Owner | None = None,
        show: Callable[[int, list[Graded]], None] = lambda step, graded: None,
        note: Callable[[str], None] = lambda line: None,
        interrupt: Callable[[], None] = lambda: None,
        wrote: Callable[[int, int], None] = lambda done, due: None,
        callbacks: Sequence[TrainerCallback] = (),
        already: Sequence[dict[str, Any]] = (),
    ):
        """interrupt is called between micro-batches and between sampled tokens; what it raises ends the step. wrote is
        told how many replies are there, of how many. already: the metrics up to the step that is resumed from. owner:
        of the folder `run`; asked before each write."""
        stage: Stage1 | Stage2 = getattr(recipe, section)
        self.seed = 2 * recipe.seed + (section == "stage2")  # the stages neither ask nor sample in the same order
        arguments = training_arguments(recipe, stage, run, validate=bool(validation))
        self.micro_batch = micro_batch_size(stage, section, arguments.world_size)
        arguments.per_device_train_batch_size = self.micro_batch
        arguments._n_gpu = 1  # several cards are for torchrun: DataParallel would replicate the patched forward
        arguments.gradient_accumulation_steps = (
            stage.questions_per_step * samples_per_question(stage) // (self.micro_batch * arguments.world_size)
        )
        self.run, self.section, self.note, self.interrupt = run, section, note, interrupt
        self.wrote = wrote
        self.owner = owner or Owner(run)
        self.log_file = LogFile(self.owner, note, already)
        as_list: Any = list  # batches of question indices: tensors are made after the rollout
        super().__init__(
            model=policy.model,
            args=arguments,
            data_collator=as_list,
            train_dataset=QuestionOrder(len(train), stage, samples_per_question(stage), self.seed),
            eval_dataset=list(validation) or None,
            processing_class=policy.tokenizer,
            callbacks=[self.log_file, *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # The loss below is divided by the whole step's normaliser; the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.policy, self.recipe, self.stage, self.show = policy, recipe, stage, show
        self.questions, self.validation = list(train), list(validation)
        self.reward_function = load_reward(recipe.reward.function) if recipe.reward.function else None
        self.rows_at_once, self.prompts_at_once = self.micro_batch, recipe.rollout.batch_size
        self.step, self._rng = StepRecord(), rng_state()
        self._resumed_from: str | None = None

    def grade(self, reply: str, example: Example) -> Grade:
        return grade_example(reply, example, self.recipe.reward.grader)

    def generate(self, temperature: float, due: int) -> Generate:
        """due: how many replies are to be written with it."""
        settings, done = self.recipe.rollout, 0

        def count(replies: int) -> None:
            nonlocal done
            done += replies
            self.wrote(done, due)

        return partial(
            generate,
            self.policy,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            batch_size=self.prompts_at_once,
            on_token=self.interrupt,
            on_replies=count,
        )

    # --- where batches come from -------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        slots: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(slots)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One optimizer step: its questions in, its scored trajectories out, cut into micro-batches; the normaliser."""
        indices = [index for _ in range(num_batches) for index in next(epoch_iterator)]  # the first draws a number
        if self._resumed_from is not None:
            with _resuming(self._resumed_from):
                super()._load_rng_state(self._resumed_from)
            self._resumed_from = None
        self._rng, self.step = rng_state(), StepRecord()
        examples = [self.questions[index] for index in indices]
        started = time.perf_counter()
        trajectories = self._trajectories(examples)
        seconds = time.perf_counter() - started
        graded = grade_all(trajectories, self.grade)
        raw = self._raw_rewards(trajectories)
        rewards = objective.turn_rewards(self.stage, [g.first for g in graded], [g.second for g in graded], raw)
        advantages = self._advantages(rewards, torch.tensor(indices))
        coefs = objective.coefficients(self.stage, advantages)
        self._record_rollout(graded, rewards, advantages, seconds)
        self.show(self.state.global_step + 1, graded)

        m = self.micro_batch
        pad = self.policy.tokenizer.pad_token_id
        batches = [collate(trajectories[i : i + m], coefs[i : i + m], pad) for i in range(0, len(trajectories), m)]
        if self.stage.normalize == "token":
            count = sum(int(((b["pg_coef"] != 0) | (b["kl_coef"] != 0)).sum()) for b in batches)
        else:
            count = len(trajectories)
        total = self.accelerator.gather(torch.tensor(count, device=device)).sum()
        self.step.update_began = time.perf_counter()
        return batches, total.clamp(min=1)

    def _trajectories(self, examples: list[Example]) -> list[Trajectory]:
        """Samples depend on seed, step and process alone: a resumed run draws what the unbroken one would have."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return self._within_memory(lambda: self._rolled_out(examples))

    def _within_memory(self, sample: Callable[[], Sampled]) -> Sampled:
        """What `sample` returns, with half as many prompts at once for each time that memory runs out."""
        while True:
            try:
                return sample()
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                if self.prompts_at_once == 1:
                    raise RunError(f"out of memory: {str(error).splitlines()[0]}; {self.last_saved()}") from None
            self.prompts_at_once //= 2
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory while sampling: from here on {self.prompts_at_once} prompts at once")

    def _rolled_out(self, examples: list[Example]) -> list[Trajectory]:
        torch.manual_seed((self.seed << 31) + (self.state.global_step << 10) + self.args.process_index)
        chat, turns = self.policy.chat, objective.turns_sampled(self.stage)
        sample = self.generate(self.recipe.rollout.temperature, turns * len(examples))
        if turns == 2:
            return two_turn_rollout(sample, chat, examples)
        if turns == 1:
            first = first_attempts(sample, chat, examples)
        else:
            first = [data_attempt(chat, e.original_answer or "") for e in examples]
        return supervised_trajectories(chat, examples, first)

    def _raw_rewards(self, trajectories: Sequence[Trajectory]) -> list[RewardPair] | None:
        """(r1, r2) of the recipe's reward function, or None where grades are the reward."""
        if self.reward_function is None or not objective.is_on_policy(self.stage):
            return None
        examples = [t.example for t in trajectories]
        first, second = ([t.first.text for t in trajectories], [t.second.text for t in trajectories])
        turns = [[self.policy.chat.asked(e.question)] for e in examples]
        corrected = [[*q, y1, self.policy.chat.correction] for q, y1 in zip(turns, first, strict=True)]
        r1 = rewards_of(self.reward_function, examples, turns, first)
        r2 = rewards_of(self.reward_function, examples, corrected, second)
        if not all(r is None or math.isfinite(r) for r in [*r1, *r2]):
            self.step.problem = "a reward is not finite"
        return list(zip(r1, r2, strict=True))

    def _advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Leave-one-out over all processes: a question's samples may be spread over them."""
        if not objective.is_on_policy(self.stage):
            return torch.zeros_like(rewards)
        device, size, rank = self.args.device, len(rewards), self.args.process_index
        everyone = [self.accelerator.gather(t.to(device)).cpu() for t in (rewards, groups)]
        if self.step.problem or everyone[0].isinf().any():
            self.step.problem = "a reward is not finite"
            return torch.zeros_like(rewards)
        return objective.leave_one_out_advantage(*everyone)[rank * size : (rank + 1) * size]

    # --- their loss --------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """score_loss over the trained tokens of a micro-batch, divided by the whole step's normaliser."""
        assert num_items_in_batch is not None
        loss, stats, turn = micro_batch_loss(model, self.policy, inputs, self.recipe)
        self._record_loss(stats, turn, int((inputs["turn"] == 2).any(1).sum()))  # every trajectory has one such row
        # DDP averages gradients over processes; the normaliser already counts all of them.
        return loss * self.args.world_size / num_items_in_batch

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A micro-batch's gradient, in as many pieces as memory asks for. Out of memory in the middle of a backward
        pass leaves a part of a gradient, so the step's gradient is taken again from its first micro-batch on."""
        self.interrupt()
        self.step.batches.append(inputs)
        again = [inputs]
        while True:
            try:
                for batch in again:
                    loss = self._gradient(model, batch, num_items_in_batch)
                if bool(loss.isfinite()):
                    return loss
                self.step.problem = self.step.problem or "the loss is not finite"
                return torch.zeros_like(loss)  # the Trainer's running sum would stay NaN for ever
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                if self.rows_at_once == 1 or self.args.world_size > 1:
                    raise RunError(f"out of memory: {str(error).splitlines()[0]}; {self.last_saved()}") from None
            self.rows_at_once = (self.rows_at_once + 1) // 2
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory: from here on {self.rows_at_once} trajectories at once; the loss stays the same")
            again = self.step.batches
            self.step = replace(self.step, trajectories=0, sums={}, tokens={})

    def _gradient(self, model: nn.Module, batch: dict[str, Tensor], total: Tensor | int | None) -> Tensor:
        rows, size = len(batch["input_ids"]), self.rows_at_once
        pieces = [{name: t[i : i + size] for name, t in batch.items()} for i in range(0, rows, size)]
        return torch.stack([super(ScoreTrainer, self).training_step(model, piece, total) for piece in pieces]).sum()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Where the Trainer looks at a gradient last. That of a step gone bad is taken away: the optimizer then changes
        neither weights nor its own state."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            self.step.problem = self.step.problem or "the gradient is not finite"
        if self.step.highest_kl() > self.stage.max_kl:
            self.step.problem = self.step.problem or f"KL is above {self.section}.max_kl"
        bad = torch.tensor(self.step.problem is not None, device=self.args.device)
        if bool(self.accelerator.gather(bad).any()):
            self.step.problem = self.step.problem or "another process had a bad number"
            model.zero_grad()
        return norm

    # --- what is evaluated and logged --------------------------------------------------------------------------

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Greedy two-turn accuracy on the validation split (never the test split)."""
        chat, grade = self.policy.chat, self.grade
        due = 2 * len(self.validation)
        graded = self._within_memory(lambda: evaluate(self.generate(0.0, due), chat, self.validation, grade))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in rates(graded).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Not into the Trainer's own state: metrics.jsonl is the log."""
        if "loss" in logs:
            self._add_to(logs)
        super().log(logs, start_time)
        self.state.log_history = []
        if "loss" in logs and (lost := monitor.skipped_in_a_row(self.log_file.lines)) >= MAX_CONSECUTIVE_SKIPS:
            raise RunError(
                f"{lost} steps in a row came to nothing ({self.step.problem}); stopped after step "
                f"{self.state.global_step}, {self.last_saved()}; begin again from there with a lower "
                f"{self.section}.learning_rate"
            )

    def _add_to(self, logs: dict[str, float]) -> None:
        """What is known of the step, and signs that the run goes wrong."""
        logs.update(self.step.metrics() | self.step.speed())
        if self.step.problem:
            logs.update(loss=math.nan, skipped=1.0)
            self.note(f"step {self.state.global_step} is skipped: {self.step.problem}")
        for name, seen in monitor.signs([*self.log_file.lines, logs]).items():
            logs[f"warning_{name}"] = 1.0
            if f"warning_{name}" not in self.log_file.names:
                self.note(f"step {self.state.global_step}: {seen}; {monitor.what_to_turn(name, self.section)}")

    def _record_rollout(self, graded: list[Graded], rewards: Tensor, advantages: Tensor, seconds: float) -> None:
        lengths = [(len(g.trajectory.first.ids), len(g.trajectory.second.ids)) for g in graded]
        distances = [Levenshtein.normalized_distance(g.trajectory.first.text, g.trajectory.second.text) for g in graded]
        given = [turn[~turn.isnan()] for turn in rewards.T]  # the rewards that apply
        values = {
            **rates(graded),
            **{f"reward_t{turn + 1}": known.mean().item() for turn, known in enumerate(given) if len(known)},
            "advantage_zero": 1 - (advantages[:, 1] != 0).sum().item() / max(len(given[1]), 1),
            "edit_distance": sum(distances) / len(distances),
            "length_t1": sum(a for a, _ in lengths) / len(lengths),
            "length_t2": sum(b for _, b in lengths) / len(lengths),
        }
        turns = objective.turns_sampled(self.stage)
        if turns < 2:  # attempts of the data say nothing of the policy
            values = {name: values[name] for name in ("length_t1", "length_t2")}
        if turns:
            written = sum(sum(attempts[:turns]) for attempts in lengths)
            values |= {"rollout_seconds": seconds, "rollout_tokens_per_second": written / seconds}
        self.step.rollout = values

    def _record_loss(self, stats: ScoreStats, turn: Tensor, trajectories: int) -> None:
        # NaN is what the loss did not need, and so did not compute: a turn without a KL coefficient has no KL.
        self.step.trajectories += trajectories
        for name, values in (
            ("entropy", stats.entropy),
            *((f"kl_t{k}", stats.kl[turn == k]) for k in (1, 2) if stats.kl is not None),
        ):
            if len(measured := values[~values.isnan()]):
                self.step.add(name, measured)

    # --- what is saved and resumed -----------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self.run / WORK)  # the parent writes beside; what is whole is renamed into the run

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Where it cannot be written the last one stays, the run goes on, and the next step tries again."""
        folder, first = self.run / f"checkpoint-{self.state.global_step}", self.is_world_process_zero()
        try:
            self._require_finite_weights()
            if first:
                self.log_file.flush()
                self.owner.confirm()
                remove_folder(folder)  # a damaged one, or none
            with written_whole(folder, self.run / WORK, self.note) if first else nullcontext() as beside:
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                if beside is not None:
                    write_file(beside / METRICS, self.log_file.text())
                self.accelerator.wait_for_everyone()
            self.log_file.save_again = False
        except WRITE_ERRORS as error:
            if self.args.world_size > 1:  # the others wait for this one
                raise
            self.log_file.save_again = True
            again = "" if self.state.global_step == self.stage.max_steps else ", to be tried again after the next step"
            self.note(f"{folder}: not saved{again}: {_reason(error, self.run)}")
            return
        if first:
            try:
                rotate(self.run, self.stage.save_total_limit, folder)
            except OSError as error:
                self.note(f"{self.run}: an old checkpoint was not deleted: {_reason(error, self.run)}")

    def _require_finite_weights(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.policy.model.parameters() if p.requires_grad):
            raise RunError(f"a weight is not finite after step {self.state.global_step}; {self.last_saved()}")

    def save_where_it_stands(self) -> None:
        """After a step that was dropped: the run as its last finished step left it."""
        last, _ = find_last(self.run)
        if self.state.global_step and (last is None or step_of(last) != self.state.global_step):
            set_rng_state(self._rng)
            self._save_checkpoint(self.policy.model)

    def save_result(self) -> None:
        """The trained policy, into the run's own folder, whole. Raises RunError where it cannot be written."""
        if not self.is_world_process_zero():
            return
        try:
            self.log_file.flush()
            self.owner.confirm()
            with written_whole(self.run, self.run / WORK, self.note) as folder:
                self._save(str(folder))
        except WRITE_ERRORS as error:
            raise RunError(
                f"{self.run}: trained, but not saved: {_reason(error, self.run)}; {self.last_saved()}"
            ) from None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        save_policy(self.policy, folder)
        write_file(folder / "README.md", model_card(self.recipe, self.section))
        write_file(folder / RECIPE, dump_recipe(self.recipe))

    def last_saved(self) -> str:
        if not self.run.is_dir():
            return "the folder is gone: put it back, and give the same command with --resume"
        last, _ = find_last(self.run)
        return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _resuming(checkpoint):
            new = [dict(group) for group in self.optimizer.param_groups] if self.optimizer else []
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                require_alike(new, self.optimizer)
        self._resumed_from = checkpoint

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Not here, after the first step's rewards: `get_batch_samples` does it before them."""


@contextmanager
def _resuming(checkpoint: str | None) -> Iterator[None]:
    """What fails inside becomes one line: a checkpoint that was sealed anew can hold anything. (No pickle in it is run:
    it is read with weights_only.)"""
    try:
        yield
    except Exception as error:
        if should_reduce_batch_size(error):
            raise
        raise UserError(f"{checkpoint}: cannot be resumed from: {one_line(error)}") from None


def rng_state() -> tuple[Any, ...]:
    """Of Python, NumPy, torch and every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_rng_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def _reason(error: BaseException, folder: Path) -> str:
    """torch.save says of a full disk no more than that a stream failed: then the room that is left tells."""
    told = getattr(error, "strerror", None)
    if told or not folder.exists():
        return str(told or one_line(error))
    return f"{one_line(error)} ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there)"
