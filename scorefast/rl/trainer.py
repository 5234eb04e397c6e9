"""A transformers.Trainer for both stages: `step.make_step` makes the micro-batches, the Trainer's loop trains on them.

The parent class owns the loop, the optimizer, the scheduler and the checkpoint format. An optimizer step calls these
overrides in order: `get_batch_samples` (rollout), `training_step` and `compute_loss` for each micro-batch,
`_get_grad_norm` (skips a bad step), `log`, `_save_checkpoint`. They delegate memory, metrics, log and files to
`AutoBatchSize`, `StepRecord`, `LogFile` and `Checkpoints`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.data.data_collator import DataCollator
from transformers.trainer_callback import PrinterCallback

from scorefast.data.example import Example
from scorefast.errors import RunError
from scorefast.grading.graded_example import grade_example
from scorefast.grading.reward_function import load_reward
from scorefast.model.policy import Policy
from scorefast.rl import monitor
from scorefast.rl.batch import Batch
from scorefast.rl.log_file import LogFile
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.oom import AutoBatchSize
from scorefast.rl.optimizers import require_compatible_state
from scorefast.rl.record import StepRecord, rollout_metrics
from scorefast.rl.reporter import Reporter
from scorefast.rl.rollout import RollOut, evaluate
from scorefast.rl.rollout import roll_out as default_roll_out
from scorefast.rl.sampling import Sampler
from scorefast.rl.saving import Checkpoints, RandomState, resuming
from scorefast.rl.schedule import QuestionOrder, training_arguments
from scorefast.rl.step import Processes, make_step
from scorefast.runs.job import Job
from scorefast.runs.log import Metrics
from scorefast.runs.owner import Owner
from scorefast.schema import StageName
from scorefast.stats import rates

MAX_CONSECUTIVE_SKIPS = 3  # a run stops after so many skipped steps in a row


class ScoreTrainer(Trainer):
    def __init__(
        self,
        policy: Policy,
        job: Job,
        *,
        owner: Owner | None = None,
        reporter: Reporter | None = None,
        metrics: Sequence[Metrics] = (),
        roll_out: RollOut | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        """owner: checked before each write into the job's folder. metrics: the log up to the resumed step.
        roll_out: makes the trajectories; default, the stage's own."""
        recipe, stage = job.recipe, job.stage
        arguments = training_arguments(recipe, stage, job.folder, validate=bool(job.validation))
        self.micro_batch = arguments.per_device_train_batch_size
        self.policy, self.recipe, self.stage = policy, recipe, stage
        self.questions, self.validation = job.train, job.validation
        seed = 2 * recipe.seed + (stage.name == "stage2")  # the stages differ in question order and samples
        self.reward_function = load_reward(recipe.reward.function) if recipe.reward.function else None
        self.reporter, owner = reporter or Reporter(), owner or Owner(job.folder)
        self.log_file = LogFile(owner, self.reporter.note, metrics)
        self.checkpoints = Checkpoints(policy, recipe, stage, owner, self.log_file, self.reporter.note)
        last_saved = self.checkpoints.last_saved
        self.auto_batch = AutoBatchSize(recipe.rollout.batch_size, self.micro_batch, self.reporter.note, last_saved)
        roll_out = roll_out or default_roll_out(stage)
        self.sampler = Sampler(policy, recipe.rollout, stage, roll_out, seed, self.auto_batch, self.reporter)
        self.record, self._random_state = StepRecord(), RandomState.now()
        self._resumed_from: str | None = None
        super().__init__(
            model=policy.model,
            args=arguments,
            data_collator=cast(DataCollator, list),  # a batch is a list of question indices; `collate` makes tensors
            train_dataset=QuestionOrder(len(job.train), stage, seed),
            eval_dataset=cast("Dataset[Example]", job.validation) or None,
            processing_class=policy.tokenizer,
            callbacks=[_RunCallback(self.log_file, self.checkpoints, self.reporter), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # compute_loss divides by the normalizer of the whole step; the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    # --- batches -----------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[int] | None = None) -> SequentialSampler:
        return SequentialSampler(cast(Sized, train_dataset if train_dataset is not None else self.train_dataset))

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Roll out one optimizer step: question indices in, micro-batches and the normalizer of their loss out."""
        indices = [index for _ in range(num_batches) for index in next(epoch_iterator)]  # B of them
        if self._resumed_from is not None:  # only now: the first `next` draws a random number
            with resuming(self._resumed_from):
                super()._load_rng_state(self._resumed_from)
            self._resumed_from = None
        self._random_state, self.record = RandomState.now(), StepRecord()
        processes = Processes(self.args.process_index, lambda t: self.accelerator.gather(t.to(device)).cpu())
        step = make_step(
            [self.questions[index] for index in indices],
            torch.tensor(indices),
            sample=partial(self.sampler.trajectories, step=self.state.global_step, rank=processes.rank),
            chat=self.policy.chat,
            recipe=self.recipe,
            stage=self.stage,
            micro_batch=self.micro_batch,
            reward_function=self.reward_function,
            processes=processes,
        )
        self.reporter.show(self.state.global_step + 1, step.graded)
        self.record = StepRecord(rollout_metrics(step, self.stage.turns_sampled, self.sampler.seconds), step.problem)
        return step.batches, step.normalizer.to(device)

    # --- loss and gradient -------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of a micro-batch, summed over its trained tokens and divided by the normalizer of the whole step."""
        assert num_items_in_batch is not None
        loss, stats, turn = micro_batch_loss(model, self.policy, inputs, self.recipe)
        trajectories = int((inputs["turn"] == 2).any(1).sum())  # every trajectory has one row with a second attempt
        self.record.add_loss(stats, turn, trajectories)
        # DDP averages gradients over processes, but the normalizer already counts all of them.
        return loss * self.args.world_size / num_items_in_batch

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Accumulate the gradient of a micro-batch, in as many pieces as memory requires."""
        self.reporter.interrupt()
        self.record.batches.append(inputs)

        def gradient(batch: Batch) -> Tensor:
            rows, size = len(batch["input_ids"]), self.auto_batch.rows
            pieces = [{name: t[i : i + size] for name, t in batch.items()} for i in range(0, rows, size)]
            backward = super(ScoreTrainer, self).training_step
            return torch.stack([backward(model, piece, num_items_in_batch) for piece in pieces]).sum()

        def reset() -> None:
            model.zero_grad()
            self.record.forget_loss()

        def whole_step() -> Tensor:
            return [gradient(batch) for batch in self.record.batches][-1]

        alone = self.args.world_size == 1
        loss = self.auto_batch.retry_training(partial(gradient, inputs), reset, whole_step, alone=alone)
        if bool(loss.isfinite()):
            return loss
        self.record.problem = self.record.problem or "the loss is not finite"
        return torch.zeros_like(loss)  # a NaN would stay in the Trainer's running sum

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        """The gradient norm. If the step is bad, drop its gradient: the optimizer then changes neither the weights nor
        its own state. This is the Trainer's last call before the optimizer."""
        norm: Tensor | float = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            self.record.problem = self.record.problem or "the gradient is not finite"
        if self.record.highest_kl() > self.stage.max_kl:
            self.record.problem = self.record.problem or f"KL is above {self.stage.name}.max_kl"
        bad = torch.tensor(self.record.problem is not None, device=self.args.device)
        if bool(self.accelerator.gather(bad).any()):
            self.record.problem = self.record.problem or "another process skips the step"
            model.zero_grad()
        return norm

    # --- validation and log ------------------------------------------------------------------------------------

    def evaluate(self, *args: object, metric_key_prefix: str = "eval", **kwargs: object) -> dict[str, float]:
        """Greedy two-turn accuracy on the validation split, never on the test split."""
        grade = partial(grade_example, grader=self.recipe.reward.grader)
        due = 2 * len(self.validation)
        graded = self.auto_batch.retry_sampling(
            lambda: evaluate(self.sampler.generate(0.0, due), self.policy.chat, self.validation, grade)
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in rates(graded).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to metrics.jsonl, not to the Trainer's state. Raises RunError after too many skipped steps in a row."""
        if "loss" in logs:
            step = self.state.global_step
            logs.update(_step_metrics(self.record, self.log_file, self.reporter, self.stage.name, step, logs))
        super().log(logs, start_time)
        self.state.log_history = []
        if "loss" in logs and (skips := monitor.consecutive_skips(self.log_file.lines)) >= MAX_CONSECUTIVE_SKIPS:
            raise RunError(
                f"{skips} steps in a row were skipped ({self.record.problem}); stopped after step "
                f"{self.state.global_step}, {self.checkpoints.last_saved()}; start again from there with a lower "
                f"{self.stage.name}.learning_rate"
            )

    # --- checkpoints and resuming ------------------------------------------------------------------------------

    def _get_output_dir(self, trial: object = None) -> str:
        return str(self.checkpoints.work)  # the parent writes here; a complete checkpoint is renamed into the run

    def _save_checkpoint(self, model: nn.Module, trial: object = None) -> None:
        def write() -> None:
            self.accelerator.wait_for_everyone()
            super(ScoreTrainer, self)._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()

        self.checkpoints.require_finite_weights(self.state.global_step)
        if self.is_world_process_zero():
            self.checkpoints.save(self.state.global_step, write, alone=self.args.world_size == 1)
        else:
            write()

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        self.checkpoints.write_policy(Path(output_dir or str(self.args.output_dir)))

    def save_last_step(self) -> None:
        """After a dropped step, save a checkpoint of the state at the end of the last finished step."""
        step = self.state.global_step
        if step and step != self.checkpoints.last_step():
            self._random_state.restore()
            self._save_checkpoint(self.policy.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with resuming(checkpoint):
            new = [dict(group) for group in self.optimizer.param_groups] if self.optimizer else []
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and self.optimizer is not None:
                require_compatible_state(new, self.optimizer)
        self._resumed_from = checkpoint

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Does nothing: `get_batch_samples` loads the random state, right before the first rollout."""


def _step_metrics(
    record: StepRecord, log_file: LogFile, reporter: Reporter, stage: StageName, step: int, logs: Metrics
) -> Metrics:
    """The metrics of a step that the Trainer's own `logs` lack, with one per sign of collapse. Notes new signs."""
    found: Metrics = record.metrics() | record.speed()
    if record.problem:
        found |= {"loss": math.nan, "skipped": 1.0}
        reporter.note(f"step {step} is skipped: {record.problem}")
    for sign, line in monitor.signs([*log_file.lines, logs | found]).items():
        found[f"warning_{sign}"] = 1.0
        if f"warning_{sign}" not in log_file.names:
            reporter.note(f"step {step}: {line}; {monitor.remedy(sign, stage)}")
    return found


class _RunCallback(TrainerCallback):
    """Passes the Trainer's events to the log and the reporter, and stops the loop after a signal."""

    def __init__(self, log_file: LogFile, checkpoints: Checkpoints, reporter: Reporter):
        self.log_file, self.checkpoints, self.reporter = log_file, checkpoints, reporter

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self.log_file.begin()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not logs or "train_runtime" in logs:
            return
        self.log_file.add(state.global_step, logs)  # in every process: `monitor` reads it
        if state.is_world_process_zero:
            self.log_file.flush()
        self.reporter.log(state.global_step, logs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop all processes if one of them received a signal, and save if a checkpoint is due."""
        stop = torch.tensor(self.reporter.stopped_by or 0, device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop:
            self.reporter.stopped_by = int(stop)
            control.should_training_stop = True
        control.should_save = control.should_save or self.checkpoints.save_pending or bool(stop)
