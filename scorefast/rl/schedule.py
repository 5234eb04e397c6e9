"""The order of a run's questions, the micro-batch size, and the Trainer's arguments."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from scorefast.errors import UserError
from scorefast.schema import Recipe, Stage1, Stage2


class QuestionOrder(Dataset[int]):
    """The order of questions in the whole run, each repeated `stage.samples` times: slot i -> index of the question.

    The order depends only on the seed, not on the micro-batch size, on resuming or on max_steps. Questions are
    reshuffled for each pass over the data.
    """

    def __init__(self, questions: int, stage: Stage1 | Stage2, seed: int):
        self.samples = stage.samples
        needed = stage.max_steps * stage.questions_per_step
        passes = -(-needed // questions)
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(questions, generator=generator) for _ in range(passes)])
        self.order: list[int] = order[:needed].tolist()

    def __len__(self) -> int:
        return len(self.order) * self.samples

    def __getitem__(self, slot: int) -> int:
        return self.order[slot // self.samples]


def micro_batch_size(stage: Stage1 | Stage2, processes: int = 1) -> int:
    """The largest size, at most the recipe's, that divides the trajectories of one process in a step.

    Raises UserError if the trajectories of a step cannot be divided evenly among the processes.
    """
    share, rest = divmod(stage.trajectories, processes)
    if rest:
        raise UserError(
            f"{stage.name}: a step's {stage.trajectories} trajectories (questions_per_step x samples_per_question) "
            f"cannot be shared evenly by {processes} processes"
        )
    return max(size for size in range(1, min(stage.micro_batch_size, share) + 1) if share % size == 0)


def training_arguments(recipe: Recipe, stage: Stage1 | Stage2, run: Path, *, validate: bool) -> TrainingArguments:
    """The Trainer's settings. Raises UserError as `micro_batch_size` does."""
    arguments = TrainingArguments(
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
    size = micro_batch_size(stage, arguments.world_size)
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = stage.trajectories // (size * arguments.world_size)
    arguments._n_gpu = 1  # no DataParallel, which would replicate the patched forward; torchrun uses all GPUs
    return arguments
