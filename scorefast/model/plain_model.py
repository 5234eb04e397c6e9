"""Checks of a model's folder before a library loads it: a plain configuration and plain weights.

No file of the folder decides where code comes from, how attention is computed, how weights are stored, or how much time
and memory the load takes before a weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from scorefast.errors import UserError
from scorefast.files.bounded import bounded_work, read_json
from scorefast.files.model_folder import require_sound_folder
from scorefast.files.text import shortened

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from scorefast.model.types import LanguageModel

CONFIG_WORK = (30.0, 2**31)  # seconds and bytes: to read a configuration, or to build its model without numbers
BUFFERS = 2**30  # bytes of tables (masks, rotations) that a model may have beside its weights
# The largest whole number that a key may have, by how the key ends. A base of rotations (theta) is no size.
MOST = {"layers": 1000, "labels": 10_000, "experts": 10_000, "heads": 10_000, "theta": 2**63}
MOST_ELSEWHERE = 2**27  # Llama 4 has 10,485,760 positions
SIZES = re.compile(r".*(size|dim|heads|layers|experts|window|embeddings|labels|rank|groups)")
NEVER_ZERO = {"hidden_size", "vocab_size", "head_dim", "num_attention_heads", "num_key_value_heads", "sliding_window"}
NEVER_ZERO |= {"attn_logit_softcapping", "final_logit_softcapping"}
ELSEWHERE = {"transformers_weights", "fusion_config", "distributed_config", "kernel_config"}
PLAIN = {"F64", "F32", "F16", "BF16"}
MASK, POSITIONS = re.compile(r"(.*\.)?(attn|attention)\.bias"), re.compile(r"(.*\.)?position_ids")  # of older models
FOUR_BIT = re.compile(r"(?P<weight>.+)\.(absmax|quant_map|nested_\w+|quant_state\.bitsandbytes__(nf4|fp4))")


def require_sound_model(folder: Path) -> None:
    """Raises UserError as `require_sound_folder`, and for a configuration or a kind of weights that is not plain."""
    require_sound_folder(folder)
    if (folder / "config.json").is_file():
        require_plain_config(folder / "config.json")
        require_plain_types(folder)


def require_plain_config(path: Path) -> None:
    """Raises UserError for a key that names something outside the folder, for weights in an unsupported format, and for
    sizes far beyond any model: the library would take memory and time for them."""
    for key, value in _leaves(read_json(path)):
        shown = f"{path}: {shortened(key, 50)} is {shortened(repr(value), 50)}"
        if key.endswith(("attn_implementation", "attn_implementation_internal")):
            named = [*value.values()] if isinstance(value, dict) else [value]
            if not all(name in (None, "eager", "sdpa") for name in named):
                raise UserError(f"{shown}, which names something to be fetched or built; remove that key")
        elif key in ELSEWHERE and value:
            raise UserError(f"{path}: {key} names something to be fetched or read elsewhere; remove that key")
        elif key in ("quantization_config", "compression_config") and value and not _is_four_bit(value):
            raise UserError(f"{shown}; of quantized weights, only bitsandbytes' 4 bit is supported: get the original")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _require_sane(key, value, shown)


def _is_four_bit(config: object) -> bool:
    if not isinstance(config, dict) or config.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return False
    return not any(config.get(f"{under}load_in_8bit") for under in ("", "_")) and any(
        config.get(f"{under}load_in_4bit") is True for under in ("", "_")
    )


def _require_sane(key: str, value: int | float, shown: str) -> None:
    most = next((most for end, most in MOST.items() if key.endswith(end)), MOST_ELSEWHERE)
    if value != value:
        raise UserError(f"{shown}; expected a number")
    if isinstance(value, int) and abs(value) > most:
        raise UserError(f"{shown}; at most {most}")
    if (value < 0 and SIZES.fullmatch(key)) or (value == 0 and key in NEVER_ZERO):
        raise UserError(f"{shown}; expected {1 if key in NEVER_ZERO else 0} or more")


def _leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every (key, value) at any depth. Items of a list come under the list's key."""
    if key:
        yield key, tree
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, name or key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)


def weight_files(folder: Path) -> list[Path]:
    """The files that are loaded: the libraries prefer a single file to an index."""
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def require_plain_types(folder: Path) -> None:
    """Raises UserError for integer, boolean, complex and 8-bit weights: a library would cast them and drop their
    scales. Reads only headers."""
    from safetensors import safe_open

    config = folder / "config.json"
    four_bit = config.is_file() and any(key == "quantization_config" and v for key, v in _leaves(read_json(config)))
    files, packed = weight_files(folder), set()
    for path in files if four_bit else []:
        with safe_open(path, framework="np") as file:
            packed |= {found["weight"] for name in file.keys() if (found := FOUR_BIT.fullmatch(name))}  # noqa: SIM118
    if four_bit and files and not packed:
        raise UserError(f"{config}: quantization_config is set, and no weights here are quantized; remove that key")
    for path in files:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            for name in sorted(names):
                part = file.get_slice(name)
                if part.get_dtype() in PLAIN or POSITIONS.fullmatch(name):
                    continue
                if (MASK.fullmatch(name) and len(part.get_shape()) == 4) or name in packed:
                    continue
                if (found := FOUR_BIT.fullmatch(name)) and found["weight"] in packed:
                    continue
                raise UserError(
                    f"{path}: {shortened(name, 100)} is of type {part.get_dtype()}; expected floating point of 16 bits "
                    "or more: get the original weights"
                )


def require_finite(folder: Path) -> None:
    """Raises UserError naming the first tensor with a NaN or an infinite value. Reads all weights once."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                # Both ends are NaN if any value is. Many times faster than torch.isfinite, and without a copy.
                ends = tensor.aminmax() if tensor.is_floating_point() and tensor.numel() else ()
                if not all(math.isfinite(end) for end in ends):
                    raise UserError(f"{path}: {shortened(name, 100)} holds NaN or infinite values; damaged?")


def read_config(path: str) -> PretrainedConfig:
    """A folder's configuration, or that of the hub's copy. The time bound does not include the download."""
    from transformers import AutoConfig

    file = file_of(path, "config.json")
    if file is not None:
        require_plain_config(file)
    with bounded_work(*CONFIG_WORK):
        return AutoConfig.from_pretrained(path if file is None else file.parent, trust_remote_code=False)


def file_of(path: str, name: str, *, download: bool = True) -> Path | None:
    """A file of a model's folder, or of the hub's cache of it; None if there is none."""
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    try:
        found = cached_file(path, name, local_files_only=not download, **quiet)
    except OSError:  # loading the file itself tells why
        return None
    return None if found is None else Path(found)


def require_weights_for(config: PretrainedConfig, folder: Path) -> None:
    """Raises ValueError if a folder's configuration has far more parameters, or larger tables, than its files can hold:
    the library would allocate them before it finds one missing. No format stores less than 2 bits a parameter."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if stored:
        model = built_of_shapes(config)
        told, tables = model.num_parameters(), sum(buffer.nbytes for buffer in model.buffers())
        if told > 4 * stored:
            raise ValueError(f"config.json tells of {told:,} parameters, the weights have {stored:,} bytes")
        if tables > 4 * stored + BUFFERS:
            raise ValueError(f"config.json tells of tables of {tables:,} bytes, the weights have {stored:,}")


def built_of_shapes(config: PretrainedConfig, **settings: object) -> LanguageModel:
    """The model on torch's meta device, within CONFIG_WORK: a configuration can ask for anything."""
    from transformers import AutoModelForCausalLM

    with bounded_work(*CONFIG_WORK), torch.device("meta"):
        return cast("LanguageModel", AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings))
