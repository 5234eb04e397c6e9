"""Reduce PEFT's adapter_config.json to numbers and module names. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from scorefast.errors import UserError
from scorefast.files.bounded import JsonObject, read_json
from scorefast.files.text import shortened

NAME = re.compile(r"[\w.-]{1,200}")
# Keys that are passed on to PEFT, each with a check of its value.
SUPPORTED_KEYS: dict[str, Callable[[Any], bool]] = {
    "r": lambda v: type(v) is int and v > 0,
    "lora_alpha": lambda v: _is_number(v),
    "lora_dropout": lambda v: _is_number(v) and 0 <= v < 1,
    "target_modules": lambda v: isinstance(v, str) or _are_names(v),
    "rank_pattern": lambda v: (
        isinstance(v, dict) and _are_names([*v]) and all(SUPPORTED_KEYS["r"](r) for r in v.values())
    ),
    "alpha_pattern": lambda v: isinstance(v, dict) and _are_names([*v]) and all(map(_is_number, v.values())),
    "use_rslora": lambda v: isinstance(v, bool),
    "use_dora": lambda v: isinstance(v, bool),
    "fan_in_fan_out": lambda v: isinstance(v, bool),
    "task_type": lambda v: v == "CAUSAL_LM",
}
BY_LAYER = ("exclude_modules", "layers_to_transform", "layers_pattern")  # replaced by the module names of the weights
HARMLESS: dict[str, list[object]] = {"bias": ["none"], "init_lora_weights": [True, "gaussian", "orthogonal"]}
IGNORED_KEYS = {
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
    *BY_LAYER,
}


def plain_lora(folder: Path) -> JsonObject:
    """The keys of adapter_config.json to pass on to PEFT: numbers and module names only.

    PEFT itself also accepts regular expressions that never end, names of code to import, and changes to the base model.
    A pattern in target_modules is replaced by the module names of the weights. Raises UserError for an unsupported key
    or value.
    """
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {shortened(repr(config.get('peft_type')), 100)}; expected LORA")
    supported: JsonObject = {"task_type": "CAUSAL_LM"}
    for key, value in config.items():
        if key in SUPPORTED_KEYS and value is not None:
            if not SUPPORTED_KEYS[key](value):
                raise UserError(f"{path}: {key} is {shortened(repr(value), 100)}, which is not supported")
            supported[key] = value
        elif key not in IGNORED_KEYS and value and value not in HARMLESS.get(key, []):
            raise UserError(f"{path}: {shortened(key, 50)} is set, which is not supported")
    if {"r", "lora_alpha", "target_modules"} - supported.keys():
        raise UserError(f"{path}: expected r, lora_alpha and target_modules")
    if weights.is_file():
        shapes = _shapes(weights)
        modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in shapes}
        if shared := sorted(m for m in modules if m.rpartition(".")[2] in ("lm_head", "embed_tokens")):
            raise UserError(f"{weights}: adapts {shared[0]}, which the trained model shares with the original")
        largest = max((n for shape in shapes.values() for n in shape), default=0)
        if max([supported["r"], *supported.get("rank_pattern", {}).values()]) > largest:
            raise UserError(f"{path}: r or rank_pattern is larger than any matrix of {weights.name}")
        pattern = isinstance(supported["target_modules"], str) and supported["target_modules"] != "all-linear"
        if pattern or any(config.get(key) for key in BY_LAYER):
            supported["target_modules"] = sorted(modules)
    return supported


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast(float, value))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)


def _shapes(weights: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(weights, framework="np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
