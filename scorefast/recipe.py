"""The settings of a run: one frozen tree, read from YAML, overridden by `--set key=value`, saved as resolved.

Order of precedence: defaults below < recipe file < `--set` < command-line flags. Every key of every shipped
recipe is commented in `recipes/`. Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scorefast.errors import UserError
from scorefast.files.bounded import read_text
from scorefast.files.bounded_yaml import LARGEST_RECIPE, parse_yaml
from scorefast.files.text import shortened

# The wording of the paper's mathematics prompt (arXiv 2409.12917, appendix), without its formatting demand.
# It neither contains the answer nor says whether the first attempt was right.
CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution."
)
# What the tokenizer itself passes to a template.
RESERVED_OPTIONS = {"messages", "add_generation_prompt", "tools", "documents", "continue_final_message", "tokenize"}

PACKAGE = Path(__file__).parent
EMBEDDED_MODELS = {name: PACKAGE / "assets" / name for name in ("tiny-gemma2", "tiny-gemma2-products")}

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
MOST_QUESTIONS = 10**8  # of a stage; their order is drawn before it begins
NonNegative = Annotated[float, Field(ge=0.0)]
Tag = Annotated[str, Field(min_length=1, max_length=50)]

StageName = Literal["stage1", "stage2"]
GraderName = Literal["auto", "text", "numeric", "math", "exact", "choice", "contains"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Lora(_Settings):
    r: Positive = 16
    alpha: Positive = 16
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @model_validator(mode="after")
    def _leaves_the_head(self) -> Lora:
        if {"lm_head", "embed_tokens"} & set(self.target_modules):
            raise ValueError("lm_head and embed_tokens stay frozen: policy and reference share the output head")
        return self


class Model(_Settings):
    name: str = "tiny-gemma2"
    backend: Literal["auto", "transformers", "unsloth"] = "auto"
    load_in_4bit: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_seq_length: Positive = 2048
    tuning: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _full_tuning_keeps_small_steps(self) -> Model:
        if self.tuning == "full" and (self.load_in_4bit or self.dtype != "float32"):
            raise ValueError("tuning: full needs dtype: float32 and load_in_4bit: false (small steps vanish in 16 bit)")
        return self


class Prompt(_Settings):
    """What is asked, and how the chat template is filled; see scorefast.model.chat_format.ChatFormat."""

    correction: Annotated[str, Field(min_length=1)] = CORRECTION
    system: Annotated[str, Field(min_length=1)] | None = None
    question: str = "{question}"
    options: dict[str, bool | int | float | str] = {}
    history: Literal["as_sampled", "as_template"] = "as_sampled"
    thoughts: tuple[Tag, Tag] | None = None

    @model_validator(mode="after")
    def _asks_the_question(self) -> Prompt:
        if self.question.count("{question}") != 1:
            raise ValueError("question has to hold {question} once")
        if reserved := RESERVED_OPTIONS & set(self.options):
            raise ValueError(f"options: {min(reserved)} is passed to every template, and is no option of one")
        return self


class Data(_Settings):
    test_fraction: Fraction = 0.2
    validation_fraction: Fraction = 0.1
    preset: Literal[
        "auto", "score", "gsm8k", "qa", "math", "squad", "alpaca", "verl", "trl", "messages", "sharegpt"
    ] = "auto"
    columns: dict[str, str] = {}
    encoding: str = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    near_duplicates: Fraction = 0.8

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Data:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction + validation_fraction must stay below 1")
        return self


class Reward(_Settings):
    grader: GraderName = "auto"
    function: str | None = None  # module:name or file.py:name, with TRL's signature


class Rollout(_Settings):
    max_new_tokens: Positive = 512
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    batch_size: Positive = 64


class Loss(_Settings):
    """How the loss is computed, not what it is; see scorefast.kernels.score_loss."""

    impl: Literal["auto", "reference", "chunked", "triton"] = "auto"
    buffer_mb: Positive | None = None
    skip: Fraction = 0.0

    @model_validator(mode="after")
    def _only_triton_skips(self) -> Loss:
        if self.skip and self.impl != "triton":
            raise ValueError(f"skip = {self.skip} needs impl: triton (it is {self.impl})")
        return self


class Stage(_Settings):
    """What both stages share: how long, how fast, how a step is cut, how strong the KL terms are."""

    name: ClassVar[StageName]
    max_steps: Positive = 100
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    lr_scheduler: str = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    optimizer: str = "adamw_torch"
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    questions_per_step: Positive = 16
    samples_per_question: Annotated[int, Field(ge=2)] = 8
    micro_batch_size: Positive = 8
    normalize: Literal["trajectory", "token"] = "trajectory"
    beta1: NonNegative = 0.01
    save_steps: Positive = 50
    save_total_limit: Positive = 2
    eval_steps: Positive = 10
    show_steps: Positive = 10
    max_kl: Annotated[float, Field(gt=0.0)] = 5.0

    @model_validator(mode="after")
    def _comes_to_an_end(self) -> Stage:
        if self.max_steps * self.questions_per_step > MOST_QUESTIONS:
            raise ValueError(f"max_steps x questions_per_step is more than {MOST_QUESTIONS:,} questions")
        return self

    @property
    def turns_sampled(self) -> int:
        """How many attempts of a trajectory the model writes. The others come from the data."""
        return 2

    @property
    def on_policy(self) -> bool:
        """False where the second attempt is the data's correct answer."""
        return self.turns_sampled == 2

    @property
    def samples(self) -> int:
        """Trajectories of a question in a step: K, or 1 where nothing has to be compared."""
        return self.samples_per_question if self.on_policy else 1

    @property
    def trajectories(self) -> int:
        """Trajectories of a step."""
        return self.questions_per_step * self.samples


class Stage1(Stage):
    name = "stage1"
    method: Literal["score", "supervised"] = "score"
    beta2: NonNegative = 0.1
    first_attempt: Literal["data", "sampled"] = "data"

    @property
    def turns_sampled(self) -> int:
        if self.method == "score":
            return 2
        return int(self.first_attempt == "sampled")


class OriginReward(_Settings):
    """The origin's reward of a second attempt, by what it did to the first."""

    corrected: float = 1.0
    partial: float = 0.5
    kept: float = 0.0
    unchanged: float = -0.5
    worse: float = -1.0


class Stage2(Stage):
    name = "stage2"
    shaping: Literal["paper", "origin"] = "paper"
    alpha: NonNegative = 10.0
    origin: OriginReward = OriginReward()


class Eval(_Settings):
    max_questions: Positive = 2000
    bootstrap_samples: Annotated[int, Field(ge=1, le=10**6)] = 10_000


class Recipe(_Settings):
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: Model = Model()
    prompt: Prompt = Prompt()
    data: Data = Data()
    reward: Reward = Reward()
    rollout: Rollout = Rollout()
    loss: Loss = Loss()
    stage1: Stage1 = Stage1()
    stage2: Stage2 = Stage2()
    eval: Eval = Eval()
    report_to: str = "none"

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


# Folders by the relative names that a run has for them, where its run.json says they lie; see runs.find_base.
RECORDED_FOLDERS: dict[str, str] = {}


def model_path(name: str) -> str:
    """The folder of an embedded model or of one that a run recorded, or the name unchanged (a folder or a hub id)."""
    return str(EMBEDDED_MODELS.get(name) or RECORDED_FOLDERS.get(name, name))


def may_be_of_the_hub(name: str) -> bool:
    """Whether the hub could have a model of that name, so that a folder of the same name hides it."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None


def recipe_folder() -> Path:
    """`scorefast/recipes` in an installed wheel, `recipes` beside the package in a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_recipe(source: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of that file or shipped name, with `key.path=value` overrides (values are YAML).

    Raises UserError naming the file and the key, with the nearest known key where one is unknown.
    """
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = recipe_folder() / f"{source}.yaml"
        if not path.is_file():
            raise UserError(f"no recipe {source!r}: give a .yaml file or one of {', '.join(shipped_recipes())}")
    try:
        tree = parse_yaml(read_text(path, LARGEST_RECIPE))
    except UserError as error:
        raise UserError(f"recipe {error}") from None
    except ValueError as error:
        raise UserError(f"recipe {path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path}: expected keys such as 'model:' and 'stage1:', found none")
    for override in overrides or []:
        _apply(tree, override)
    return parse_recipe(tree, str(path), {override.partition("=")[0].strip() for override in overrides or []})


def parse_recipe(tree: dict[str, Any], origin: str, overridden: Collection[str] = ()) -> Recipe:
    """Raises UserError naming the key, and as its origin `--set` where it is one of those overridden."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        whole = ".".join(map(str, problem["loc"]))
        key = shortened(whole, 100) or "(whole recipe)"
        where = "--set" if whole in overridden else f"recipe {origin}:"
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where} unknown key {key!r}{_nearest(key)}") from None
        given = (
            ""
            if isinstance(problem["input"], dict | BaseModel)
            else f" (given: {shortened(repr(problem['input']), 100)})"
        )
        raise UserError(f"{where} {key}: {problem['msg'].removeprefix('Value error, ')}{given}") from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back as the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def flat(recipe: Recipe) -> dict[str, Any]:
    """{"stage2.alpha": 10.0, ...}"""

    def leaves(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in node.items():
            found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    return leaves(recipe.model_dump(mode="json"), "")


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {shortened(override, 100)}: expected key=value, for example --set stage2.alpha=5")
    *parents, leaf = key.strip().split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {shortened(key, 100)}: {name!r} is a value, not a group of keys")
    try:
        value = parse_yaml(text)  # YAML 1.1 reads 2e-4 as a string; pydantic makes it a number where one is due
    except ValueError as error:
        if not _is_text(key.strip()):
            message = f"--set {shortened(key, 100)}: {shortened(text, 100)!r} is not a YAML value: {error}"
            raise UserError(message) from None
        value = text
    node[leaf] = value if isinstance(value, str | None) or not _is_text(key.strip()) else text


def _is_text(key: str) -> bool:
    """Whether a recipe's key holds text: `--set prompt.system=Note: be brief` means what it says."""
    model: Any = Recipe
    for name in key.split("."):
        field = getattr(model, "model_fields", {}).get(name)
        if field is None:
            return False
        model = field.annotation
    kinds = get_args(model) if get_origin(model) in (Union, UnionType) else (model,)
    return str in {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds}


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
