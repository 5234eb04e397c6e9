"""One transformers.Trainer for both stages: roll out a whole optimizer step, then train on it in micro-batches."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from scorefast import evaluate, objective, rollout
from scorefast.data import Example
from scorefast.grading import Grade
from scorefast.kernels import ScoreStats, score_loss
from scorefast.metrics import Graded, rates
from scorefast.model import Policy, generate, last_hidden, save_policy
from scorefast.recipe import Recipe, Stage1, Stage2, UserError, dump_recipe
from scorefast.reward import grade_example, load_reward, rewards_of
from scorefast.runs import METRICS, RECIPE, read_metrics


class Slots(Dataset[int]):
    """The whole run's order of questions, each repeated for its samples: slot i -> index of the question.

    A pure function of the seed: question q of step s is the same however a run is cut into micro-batches,
    resumed or prolonged. Questions are shuffled anew for each pass over the data.
    """

    def __init__(self, questions: int, stage: Stage1 | Stage2, samples: int, seed: int):
        self.samples = samples
        needed = stage.max_steps * stage.questions_per_step
        passes = -(-needed // questions)
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(questions, generator=generator) for _ in range(passes)])
        self.order: list[int] = order[:needed].tolist()

    def __len__(self) -> int:
        return len(self.order) * self.samples

    def __getitem__(self, slot: int) -> int:
        return self.order[slot // self.samples]


def samples_per_question(stage: Stage1 | Stage2) -> int:
    return stage.samples_per_question if objective.is_on_policy(stage) else 1


def micro_batch_size(stage: Stage1 | Stage2, section: str, processes: int = 1) -> int:
    """The largest size up to the recipe's that cuts a process's share of a step evenly.

    Raises UserError where a step cannot be shared evenly between processes.
    """
    trajectories = stage.questions_per_step * samples_per_question(stage)
    share, rest = divmod(trajectories, processes)
    if rest:
        raise UserError(
            f"{section}: a step's {trajectories} trajectories (questions_per_step x samples_per_question) "
            f"cannot be shared evenly by {processes} processes"
        )
    return max(size for size in range(1, min(stage.micro_batch_size, share) + 1) if share % size == 0)


class ScoreTrainer(Trainer):
    """Only three things differ from its parent: where a step's batches come from, their loss, and what is saved."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        section: str,
        train: Sequence[Example],
        validation: Sequence[Example],
        run: Path,
        *,
        show: Callable[[int, list[Graded]], None] = lambda step, graded: None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        stage: Stage1 | Stage2 = getattr(recipe, section)
        self.seed = 2 * recipe.seed + (section == "stage2")  # the stages neither ask nor sample in the same order
        arguments = training_arguments(recipe, stage, run, validate=bool(validation))
        self.micro_batch = micro_batch_size(stage, section, arguments.world_size)
        arguments.per_device_train_batch_size = self.micro_batch
        arguments._n_gpu = 1  # several cards are for torchrun: DataParallel would replicate the patched forward
        arguments.gradient_accumulation_steps = (
            stage.questions_per_step * samples_per_question(stage) // (self.micro_batch * arguments.world_size)
        )
        as_list: Any = list  # batches of question indices: tensors are made after the rollout
        super().__init__(
            model=policy.model,
            args=arguments,
            data_collator=as_list,
            train_dataset=Slots(len(train), stage, samples_per_question(stage), self.seed),
            eval_dataset=list(validation) or None,
            processing_class=policy.tokenizer,
            callbacks=[MetricsFile(run), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # The loss below is divided by the whole step's normaliser; the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.policy, self.recipe, self.stage, self.show = policy, recipe, stage, show
        self.questions, self.validation = list(train), list(validation)
        self.reward_function = load_reward(recipe.reward.function) if recipe.reward.function else None
        self._metrics: dict[str, list[float]] = defaultdict(list)

    def grade(self, reply: str, example: Example) -> Grade:
        return grade_example(reply, example, self.recipe.reward.grader)

    def generate(self, temperature: float) -> rollout.Generate:
        settings = self.recipe.rollout
        return partial(
            generate,
            self.policy,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            batch_size=settings.batch_size,
        )

    # --- where batches come from -------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        slots: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(slots)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One optimizer step: its questions in, its scored trajectories out, cut into micro-batches; the normaliser."""
        indices = [index for _ in range(num_batches) for index in next(epoch_iterator)]
        examples = [self.questions[index] for index in indices]
        started = time.perf_counter()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            # Samples depend on seed, step and process alone: a resumed run draws what the unbroken one would have.
            torch.manual_seed((self.seed << 31) + (self.state.global_step << 10) + self.args.process_index)
            trajectories = self._trajectories(examples)
        seconds = time.perf_counter() - started
        graded = evaluate.grade_all(trajectories, self.grade)
        raw = self._raw_rewards(trajectories)
        rewards = objective.turn_rewards(self.stage, [g.first for g in graded], [g.second for g in graded], raw)
        advantages = self._advantages(rewards, torch.tensor(indices))
        coefs = objective.coefficients(self.stage, advantages)
        self._record_rollout(graded, rewards, advantages, seconds)
        self.show(self.state.global_step + 1, graded)

        m = self.micro_batch
        pad = self.policy.tokenizer.pad_token_id
        batches = [
            rollout.collate(trajectories[i : i + m], coefs[i : i + m], pad) for i in range(0, len(trajectories), m)
        ]
        if self.stage.normalize == "token":
            count = sum(int(((b["pg_coef"] != 0) | (b["kl_coef"] != 0)).sum()) for b in batches)
        else:
            count = len(trajectories)
        total = self.accelerator.gather(torch.tensor(count, device=device)).sum()
        return batches, total.clamp(min=1)

    def _trajectories(self, examples: list[Example]) -> list[rollout.Trajectory]:
        chat, sample = self.policy.chat, self.generate(self.recipe.rollout.temperature)
        if objective.is_on_policy(self.stage):
            return rollout.two_turn_rollout(sample, chat, examples)
        if isinstance(self.stage, Stage1) and self.stage.first_attempt == "sampled":
            first = rollout.first_attempts(sample, chat, examples)
        else:
            first = [rollout.data_attempt(chat, e.original_answer or "") for e in examples]
        return rollout.supervised_trajectories(chat, examples, first)

    def _raw_rewards(self, trajectories: Sequence[rollout.Trajectory]) -> list[tuple[float, float]] | None:
        """(r1, r2) of the recipe's reward function, or None where grades are the reward."""
        if self.reward_function is None or not objective.is_on_policy(self.stage):
            return None
        examples = [t.example for t in trajectories]
        first, second = ([t.first.text for t in trajectories], [t.second.text for t in trajectories])
        turns = [[e.question] for e in examples]
        corrected = [[*q, y1, self.policy.chat.correction] for q, y1 in zip(turns, first, strict=True)]
        r1 = rewards_of(self.reward_function, examples, turns, first)
        return list(zip(r1, rewards_of(self.reward_function, examples, corrected, second), strict=True))

    def _advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Leave-one-out over all processes: a question's samples may be spread over them."""
        if not objective.is_on_policy(self.stage):
            return torch.zeros_like(rewards)
        device, size, rank = self.args.device, len(rewards), self.args.process_index
        everyone = [self.accelerator.gather(t.to(device)).cpu() for t in (rewards, groups)]
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
        self._record_loss(stats, turn, len(inputs["input_ids"]))
        # DDP averages gradients over processes; the normaliser already counts all of them.
        return loss * self.args.world_size / num_items_in_batch

    # --- what is evaluated, logged and saved -------------------------------------------------------------------

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Greedy two-turn accuracy on the validation split (never the test split)."""
        graded = evaluate.evaluate(self.generate(0.0), self.policy.chat, self.validation, self.grade)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in rates(graded).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        save_policy(self.policy, folder)
        (folder / RECIPE).write_text(dump_recipe(self.recipe), encoding="utf-8")

    def _record_rollout(self, graded: list[Graded], rewards: Tensor, advantages: Tensor, seconds: float) -> None:
        lengths = [(len(g.trajectory.first.ids), len(g.trajectory.second.ids)) for g in graded]
        values = {
            **rates(graded),
            "reward_t1": rewards[:, 0].mean().item(),
            "reward_t2": rewards[:, 1].mean().item(),
            "advantage_zero": (advantages[:, 1] == 0).float().mean().item(),
            "length_t1": sum(a for a, _ in lengths) / len(lengths),
            "length_t2": sum(b for _, b in lengths) / len(lengths),
            "rollout_tokens_per_second": sum(a + b for a, b in lengths) / seconds,
        }
        if not objective.is_on_policy(self.stage):  # attempts of the data say nothing of the policy
            values = {name: values[name] for name in ("length_t1", "length_t2")}
        for name, value in values.items():
            self._metrics[name].append(value)

    def _record_loss(self, stats: ScoreStats, turn: Tensor, trajectories: int) -> None:
        # NaN is what the loss did not need, and so did not compute: a turn without a KL coefficient has no KL.
        measured = stats.entropy[~stats.entropy.isnan()]
        if len(measured):
            self._metrics["entropy"].append(measured.mean().item())  # nats a token
        if stats.kl is None:
            return
        for which in (1, 2):
            of_turn = stats.kl[turn == which]
            measured = of_turn[~of_turn.isnan()]
            if len(measured):  # nats a reply: micro-batches are of one size, so their mean is the step's
                self._metrics[f"kl_t{which}"].append(measured.sum().item() / trajectories)


def micro_batch_loss(
    model: nn.Module, policy: Policy, inputs: dict[str, Tensor], recipe: Recipe
) -> tuple[Tensor, ScoreStats, Tensor]:
    """(sum of the loss over trained tokens, their statistics, their turn (N,)). Hidden at t - 1 predicts token t."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.shape[1] > recipe.model.max_seq_length:  # Unsloth would cut it, with one warning
        raise RuntimeError(f"sequence of {ids.shape[1]} tokens, model.max_seq_length is {recipe.model.max_seq_length}")
    trained = inputs["turn"][:, 1:] > 0
    kl_coef = inputs["kl_coef"][:, 1:][trained]
    hidden = last_hidden(model, ids, mask)[:, :-1][trained]  # (N, D)
    ref_hidden = None
    if bool((kl_coef != 0).any()):
        with policy.reference() as reference:
            ref_hidden = last_hidden(reference, ids, mask)[:, :-1][trained]
    loss, stats = score_loss(
        hidden,
        ref_hidden,
        policy.head,
        ids[:, 1:][trained],
        inputs["pg_coef"][:, 1:][trained],
        kl_coef,
        softcap=policy.softcap,
        temperature=recipe.rollout.temperature,
        impl=recipe.loss.impl,
        buffer_bytes=recipe.loss.buffer_mb and recipe.loss.buffer_mb << 20,
        skip=recipe.loss.skip,
    )
    return loss, stats, inputs["turn"][:, 1:][trained]


def training_arguments(recipe: Recipe, stage: Stage1 | Stage2, run: Path, *, validate: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(run),
        seed=recipe.seed,
        max_steps=stage.max_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.lr_scheduler,
        warmup_steps=stage.warmup_steps,
        optim=stage.optimizer,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        save_strategy="steps",
        save_steps=stage.save_steps,
        save_total_limit=stage.save_total_limit,
        eval_strategy="steps" if validate else "no",
        eval_steps=stage.eval_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=recipe.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.model.gradient_checkpointing else None,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
    )


class MetricsFile(TrainerCallback):
    """Every log as one JSON line with its step, flushed at once. Lines past the step resumed from are cut away."""

    def __init__(self, run: Path):
        self.path = run / METRICS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = [
                m for m in read_metrics(self.path.parent) if state.global_step > 0 and m["step"] <= state.global_step
            ]
            self.path.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
