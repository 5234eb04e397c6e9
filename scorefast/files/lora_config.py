"""adapter_config.json of PEFT, reduced to numbers and names of modules. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scorefast.errors import UserError
from scorefast.files.bounded import read_json
from scorefast.files.text import shortened

NAME = re.compile(r"[\w.-]{1,200}")
# What an adapter's configuration may say, and is heeded; then what may stand there, and is not.
LORA: dict[str, Callable[[Any], bool]] = {
    "r": lambda v: type(v) is int and v > 0,
    "lora_alpha": lambda v: _is_number(v),
    "lora_dropout": lambda v: _is_number(v) and 0 <= v < 1,
    "target_modules": lambda v: isinstance(v, str) or _are_names(v),
    "rank_pattern": lambda v: isinstance(v, dict) and _are_names([*v]) and all(LORA["r"](r) for r in v.values()),
    "alpha_pattern": lambda v: isinstance(v, dict) and _are_names([*v]) and all(map(_is_number, v.values())),
    "use_rslora": lambda v: isinstance(v, bool),
    "use_dora": lambda v: isinstance(v, bool),
    "fan_in_fan_out": lambda v: isinstance(v, bool),
    "task_type": lambda v: v == "CAUSAL_LM",
}
BY_LAYER = ("exclude_modules", "layers_to_transform", "layers_pattern")  # the weights tell which modules are meant
HARMLESS: dict[str, list[Any]] = {"bias": ["none"], "init_lora_weights": [True, "gaussian", "orthogonal"]}
IGNORED_KEYS = {
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
    *BY_LAYER,
}


def plain_lora(folder: Path) -> dict[str, Any]:
    """What of adapter_config.json PEFT is to be told: numbers and names. PEFT itself would take patterns that run for
    ever, names of code to import, and ways to change the base.

    A pattern in target_modules becomes the names of the modules that the weights are of. Raises UserError for a key
    or value that is none of LORA's.
    """
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {shortened(repr(config.get('peft_type')), 100)}; expected LORA")
    heeded: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    for key, value in config.items():
        if key in LORA and value is not None:
            if not LORA[key](value):
                raise UserError(f"{path}: {key} is {shortened(repr(value), 100)}, which is not supported")
            heeded[key] = value
        elif key not in IGNORED_KEYS and value and value not in HARMLESS.get(key, []):
            raise UserError(f"{path}: {shortened(key, 50)} is set, which is not supported")
    if {"r", "lora_alpha", "target_modules"} - heeded.keys():
        raise UserError(f"{path}: expected r, lora_alpha and target_modules")
    if weights.is_file():
        shapes = _shapes(weights)
        modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in shapes}
        if shared := sorted(m for m in modules if m.rpartition(".")[2] in ("lm_head", "embed_tokens")):
            raise UserError(f"{weights}: adapts {shared[0]}, which the trained and the original model share here")
        largest = max((n for shape in shapes.values() for n in shape), default=0)
        if max([heeded["r"], *heeded.get("rank_pattern", {}).values()]) > largest:
            raise UserError(f"{path}: r or rank_pattern is larger than any matrix of {weights.name}")
        pattern = isinstance(heeded["target_modules"], str) and heeded["target_modules"] != "all-linear"
        if pattern or any(config.get(key) for key in BY_LAYER):
            heeded["target_modules"] = sorted(modules)
    return heeded


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)


def _shapes(weights: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(weights, framework="np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
