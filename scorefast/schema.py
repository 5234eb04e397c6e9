"""The schema of a recipe: type, default, bounds and description of every key. Imports no torch.

`python docs/generate.py` generates `recipes/reference.yaml` and `docs/recipe.md` from the descriptions.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The paper's mathematics prompt (arXiv 2409.12917, appendix) without its formatting instruction.
# It neither contains the answer nor says whether the first attempt was right.
CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution."
)

# Variables that the tokenizer itself passes to a template.
RESERVED_OPTIONS = {"messages", "add_generation_prompt", "tools", "documents", "continue_final_message", "tokenize"}

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
MOST_QUESTIONS = 10**8  # of a stage; their order is drawn before the first step
NonNegative = Annotated[float, Field(ge=0.0)]
Tag = Annotated[str, Field(min_length=1, max_length=50)]


StageName = Literal["stage1", "stage2"]
GraderName = Literal["auto", "text", "numeric", "math", "exact", "choice", "contains"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Lora(_Settings):
    r: Positive = Field(default=16, description="Rank.")
    alpha: Positive = Field(default=16, description="The adapter is scaled by alpha / r.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description="Modules that get an adapter: all-linear (every linear layer except the output head), or a list of "
        "names such as [q_proj, v_proj].",
    )

    @model_validator(mode="after")
    def _leaves_the_head(self) -> Lora:
        if {"lm_head", "embed_tokens"} & set(self.target_modules):
            raise ValueError("lm_head and embed_tokens stay frozen: policy and reference share the output head")
        return self


class Model(_Settings):
    name: str = Field(
        default="tiny-gemma2",
        description="The base model: a folder, a Hugging Face id, or an embedded model (tiny-gemma2 or "
        "tiny-gemma2-products).",
    )
    backend: Literal["auto", "transformers", "unsloth"] = Field(
        default="auto", description="Library that loads the model. auto is unsloth on CUDA and transformers elsewhere."
    )
    load_in_4bit: bool = Field(
        default=False,
        description="Quantize the frozen weights to 4 bits each (NF4, through bitsandbytes). Needs tuning: lora.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Floating-point type of the weights and of the forward pass."
    )
    max_seq_length: Positive = Field(
        default=2048,
        description="Most tokens of a conversation: question, first attempt, correction message and second attempt.",
    )
    tuning: Literal["lora", "full"] = Field(
        default="lora",
        description="Which weights are trained. lora: an adapter. full: all weights except embeddings and output "
        "head; it needs dtype: float32 and keeps a frozen copy of the model as the reference.",
    )
    lora: Lora = Field(default=Lora(), description="The adapter; tuning: full ignores it.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more time."
    )

    @model_validator(mode="after")
    def _full_tuning_keeps_small_steps(self) -> Model:
        if self.tuning == "full" and (self.load_in_4bit or self.dtype != "float32"):
            raise ValueError("tuning: full needs dtype: float32 and load_in_4bit: false (small steps vanish in 16 bit)")
        return self


class Prompt(_Settings):
    """The messages of a conversation and the chat template; see scorefast.model.chat_format.ChatFormat."""

    correction: Annotated[str, Field(min_length=1)] = Field(
        default=CORRECTION,
        description="The user message of turn 2. It must not contain the answer or tell whether the first attempt was "
        "right.",
    )
    system: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="The system message of every conversation. null: only what the chat template writes itself.",
    )
    question: str = Field(
        default="{question}",
        description="The user message of turn 1, with {question} exactly once. It can ask for a form of answer that "
        "the grader reads.",
    )
    options: dict[str, bool | int | float | str] = Field(
        default={}, description="Variables for the chat template, such as {enable_thinking: false}."
    )
    history: Literal["as_sampled", "as_template"] = Field(
        default="as_sampled",
        description="The first attempt as turn 2 sees it: as it was sampled, or as the chat template rewrites it, "
        "which can drop thoughts.",
    )
    thoughts: tuple[Tag, Tag] | None = Field(
        default=None,
        description="The opening and closing tag of a model's thoughts, as a list of two. null: the tags that the chat "
        "template names.",
    )

    @model_validator(mode="after")
    def _asks_the_question(self) -> Prompt:
        if self.question.count("{question}") != 1:
            raise ValueError("question must contain {question} exactly once")
        if reserved := RESERVED_OPTIONS & set(self.options):
            raise ValueError(f"options: {min(reserved)} is reserved: the tokenizer passes it to every template")
        return self


class Data(_Settings):
    test_fraction: Fraction = Field(
        default=0.2,
        description="Share of the questions held out for `eval`. A hash of a question's text decides its split.",
    )
    validation_fraction: Fraction = Field(
        default=0.1, description="Share of the questions held out for evaluation during training."
    )
    preset: Literal[
        "auto", "score", "gsm8k", "qa", "math", "squad", "alpaca", "verl", "trl", "messages", "sharegpt"
    ] = Field(default="auto", description="Layout of the columns of the source. auto: recognized by their names.")
    columns: dict[str, str] = Field(
        default={},
        description="Your column names, keyed by the layout's names: {question: problem, correct_answer: answer}.",
    )
    encoding: str = Field(
        default="auto",
        description="Encoding of text files: a name that Python knows, such as utf-8 or cp949. auto: detected and "
        "printed, or refused if uncertain.",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="What to do if more than 1 % of the rows are bad. Up to 1 % are always skipped.",
    )
    near_duplicates: Fraction = Field(
        default=0.8,
        description="Jaccard index of words and word pairs from which two questions in different splits count as one. "
        "0 turns the search off.",
    )

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Data:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction + validation_fraction must be below 1")
        return self


class Reward(_Settings):
    grader: GraderName = Field(
        default="auto",
        description="How a reply is compared with the correct answer. auto: chosen by the form of each answer.",
    )
    function: str | None = Field(
        default=None,
        description="Reward function with TRL's signature, as module:name or file.py:name; the grader then only "
        "measures. null: 1 for a correct attempt, 0 for any other.",
    )


class Rollout(_Settings):
    max_new_tokens: Positive = Field(
        default=512, description="Most tokens of one attempt. Twice this must be less than model.max_seq_length."
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="Softmax temperature of both sampling and the loss."
    )
    batch_size: Positive = Field(
        default=64, description="Sequences generated at once. They take most of the memory of a rollout."
    )
    engine: Literal["generate", "own"] = Field(
        default="generate",
        description="generate: transformers' generate. own: encodes a prompt once for its samples and keeps keys and "
        "values from turn to turn; greedy replies are the same, samples are other draws.",
    )


class Loss(_Settings):
    """The implementation of the loss; see scorefast.kernels.score_loss."""

    impl: Literal["auto", "reference", "chunked", "triton"] = Field(
        default="auto",
        description="reference keeps the logits of all tokens; chunked runs on any device; triton needs CUDA. "
        "auto is chunked.",
    )
    buffer_mb: Positive | None = Field(
        default=None,
        description="Most MiB of logits in memory at once. null: 512, or a quarter of the free memory if that is less.",
    )
    skip: Fraction = Field(
        default=0.0,
        description="Share of a token's gradient that may be left out. 0 is exact; more needs impl: triton.",
    )

    @model_validator(mode="after")
    def _only_triton_skips(self) -> Loss:
        if self.skip and self.impl != "triton":
            raise ValueError(f"skip = {self.skip} needs impl: triton (it is {self.impl})")
        return self


class Stage(_Settings):
    """Settings of both stages: duration, optimizer, batching and KL weights."""

    name: ClassVar[StageName]
    max_steps: Positive = Field(default=100, description="Optimizer steps.")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        default=1e-5, description="Peak learning rate of the schedule."
    )
    lr_scheduler: str = Field(
        default="constant",
        description="Schedule of the learning rate, by its name in transformers, such as constant, linear or cosine. "
        "A schedule that follows a metric is refused.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps in which the learning rate rises from 0. `constant` has no warm-up."
    )
    optimizer: str = Field(
        default="adamw_torch",
        description="Optimizer, by its name in transformers, such as adamw_torch, adafactor or adamw_8bit, which "
        "takes less memory on a GPU.",
    )
    weight_decay: NonNegative = Field(default=0.0, description="Weight decay of the optimizer; 0 is off.")
    max_grad_norm: NonNegative = Field(
        default=1.0, description="Gradient clipping: the largest gradient norm; 0 is off."
    )
    questions_per_step: Positive = Field(default=16, description="Questions in one optimizer step.")
    samples_per_question: Annotated[int, Field(ge=2)] = Field(
        default=8,
        description="Trajectories per question; supervised uses one. The RLOO baseline is the mean of the others.",
    )
    micro_batch_size: Positive = Field(
        default=8, description="Most trajectories in one forward and backward pass. It changes memory and speed only."
    )
    normalize: Literal["trajectory", "token"] = Field(
        default="trajectory",
        description="The loss of a step is divided by the number of its trajectories or of its trained tokens.",
    )
    beta1: NonNegative = Field(
        default=0.01,
        description="KL weight on the second attempt, unless method is supervised; in stage 2 on both attempts.",
    )
    save_steps: Positive = Field(default=50, description="Steps between checkpoints.")
    save_total_limit: Positive = Field(default=2, description="Number of newest checkpoints that are kept.")
    eval_steps: Positive = Field(default=10, description="Steps between greedy evaluations on the validation split.")
    show_steps: Positive = Field(default=10, description="Steps between printed transcripts.")
    max_kl: Annotated[float, Field(gt=0.0)] = Field(
        default=5.0,
        description="A step is skipped if the mean KL per token of either attempt exceeds this, in nats.",
    )

    @model_validator(mode="after")
    def _comes_to_an_end(self) -> Stage:
        if self.max_steps * self.questions_per_step > MOST_QUESTIONS:
            raise ValueError(f"max_steps x questions_per_step exceeds {MOST_QUESTIONS:,} questions")
        return self

    @property
    def turns_sampled(self) -> int:
        """Attempts of a trajectory that the model samples. The others come from the data."""
        return 2

    @property
    def on_policy(self) -> bool:
        """False if the second attempt is the data's correct answer."""
        return self.turns_sampled == 2

    @property
    def samples(self) -> int:
        """Trajectories per question in a step: K, or 1 if training is off-policy."""
        return self.samples_per_question if self.on_policy else 1

    @property
    def trajectories(self) -> int:
        """Trajectories per step."""
        return self.questions_per_step * self.samples


class Stage1(Stage):
    name = "stage1"
    method: Literal["score", "supervised"] = Field(
        default="score",
        description="score: Stage I of the paper, on-policy. supervised: cross-entropy on the correct answers of the "
        "data as second attempts.",
    )
    beta2: NonNegative = Field(
        default=0.1,
        description="KL weight on the first attempt; a large weight keeps it close to the original model.",
    )
    first_attempt: Literal["data", "sampled"] = Field(
        default="data",
        description="First attempts of method: supervised. data: original_answer of the data. sampled: the "
        "model's own. method: score ignores it.",
    )

    @property
    def turns_sampled(self) -> int:
        return int(self.first_attempt == "sampled") if self.method == "supervised" else 2


class OriginReward(_Settings):
    """The origin's reward of the second attempt, by how it changed the first."""

    corrected: float = Field(default=1.0, description="First attempt wrong, second right.")
    partial: float = Field(default=0.5, description="Both wrong, the second closer to the correct answer.")
    kept: float = Field(default=0.0, description="Both right.")
    unchanged: float = Field(default=-0.5, description="Both wrong, the second no closer and no further away.")
    worse: float = Field(
        default=-1.0, description="First right and second wrong, or both wrong and the second further away."
    )


class Stage2(Stage):
    name = "stage2"
    shaping: Literal["paper", "origin"] = Field(
        default="paper",
        description="Reward of the second attempt. paper: r2 + alpha (r2 - r1), from the rewards r1 and r2 of both "
        "attempts. origin: the table `origin`.",
    )
    alpha: NonNegative = Field(
        default=10.0, description="Weight of the improvement r2 - r1; shaping: origin ignores it."
    )
    origin: OriginReward = Field(
        default=OriginReward(),
        description="Reward of the second attempt by what it changed; shaping: paper ignores it.",
    )


class Eval(_Settings):
    max_questions: Positive = Field(
        default=2000, description="Most questions of a split that are evaluated, in `eval` and during training."
    )
    bootstrap_samples: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=10_000, description="Bootstrap samples of the paired 95 % intervals."
    )


class Recipe(_Settings):
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="Seed of shuffling, LoRA initialization and sampling."
    )
    model: Model = Field(default=Model(), description="The model, and which of its weights are trained.")
    prompt: Prompt = Field(default=Prompt(), description="The messages of a conversation.")
    data: Data = Field(
        default=Data(), description="How the source is read and split. The remaining questions are for training."
    )
    reward: Reward = Field(default=Reward(), description="How an attempt is rewarded.")
    rollout: Rollout = Field(default=Rollout(), description="How attempts are sampled.")
    loss: Loss = Field(
        default=Loss(), description="The implementation of the loss. All give the same value while skip is 0."
    )
    stage1: Stage1 = Field(
        default=Stage1(),
        description="Stage I rewards the second attempt and keeps the first close to the original model.",
    )
    stage2: Stage2 = Field(
        default=Stage2(),
        description="Stage II rewards both attempts; shaping rewards the second for improving on the first.",
    )
    eval: Eval = Field(default=Eval(), description="How checkpoints are evaluated.")
    report_to: str = Field(
        default="none",
        description="Where metrics go besides the log of the run, by its name in transformers: none, tensorboard, "
        "wandb, trackio, ... or all.",
    )

    def stage(self, name: StageName) -> Stage1 | Stage2:
        return self.stage1 if name == "stage1" else self.stage2

    @model_validator(mode="after")
    def _replies_fit(self) -> Recipe:
        if 2 * self.rollout.max_new_tokens >= self.model.max_seq_length:
            raise ValueError(
                f"two attempts of rollout.max_new_tokens = {self.rollout.max_new_tokens} do not fit "
                f"model.max_seq_length = {self.model.max_seq_length} together with a question"
            )
        return self
