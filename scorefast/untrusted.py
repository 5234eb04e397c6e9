"""Files that somebody else may have written, read within bounds or refused in one line. Imports no torch.

Nothing here runs code that a file names, follows a path out of a folder, or takes more memory than a limit says.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

LARGEST_RECIPE = 100_000  # bytes of YAML; the longest shipped recipe has 6,000
LARGEST_JSON = 2**24  # bytes of a configuration or an index of weights
LARGEST_TOKENIZER = 2**27  # bytes; Gemma's has 34 million
LARGEST_TEMPLATE = 100_000  # characters of a chat template
NODES, DEPTH = 10_000, 50  # of YAML, its aliases written out

TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"}


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2."""


def shortened(text: str, most: int = 300) -> str:
    """The text on one line, its middle left out where it is long."""
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most and len(text) <= 10 * most else f"{line[: most - 3]}..."


def listed(names: Iterable[Any]) -> str:
    """Names in a line, of many the first."""
    every = list(names)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return ", ".join(shortened(str(name), 50) for name in every[:20]) + more


def one_line(error: BaseException) -> str:
    return shortened(str(error)) or type(error).__name__


def read_text(path: Path, largest: int) -> str:
    """A regular file as text. Raises UserError: no file, a pipe or a device, larger than that many bytes, not UTF-8."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise UserError(f"{path}: larger than the {largest:,} bytes that such a file may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    text = read_text(path, largest)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # malformed, a number of too many digits, nested too deeply
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


class _BoundedLoader(yaml.SafeLoader):
    """Plain YAML: no tags, no key twice in a mapping, at most DEPTH levels, and NODES nodes with every alias counted
    as what it stands for (ten aliases of ten aliases of ... are as many nodes as they would become)."""

    def __init__(self, text: str):
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise self._refusal(f"the tag {event.tag} is not allowed", event)
        before = self._nodes
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._depth > DEPTH:
            raise self._refusal(f"nested deeper than {DEPTH} levels", event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise self._refusal(f"the alias {event.anchor} stands for something that holds it", event)
            self._nodes = before + self._sizes[id(node)]
        if self._nodes > NODES:
            raise self._refusal(f"more than {NODES:,} values", event)
        self._depth -= 1
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys and key.value != "<<":
                    raise self._refusal(f"the key {key.value[:100]!r} stands there twice", key)
                keys.add(key.value)
        return node

    def construct_number(self, node: Any) -> float | int:
        if len(node.value) > 100:
            raise self._refusal("a number of more than 100 digits", node)
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)

    @staticmethod
    def _refusal(problem: str, where: Any) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


for _kind in ("int", "float"):
    _BoundedLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _BoundedLoader.construct_number)


def parse_yaml(text: str) -> Any:
    """Raises ValueError, one line, where it is not plain YAML of bounded size."""
    if len(text) > LARGEST_RECIPE:
        raise ValueError(f"longer than {LARGEST_RECIPE:,} characters")
    try:
        return yaml.load(text, _BoundedLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{shortened(error.problem or error.context or 'not YAML')}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML has not; 2026-99-99, 0b_
        raise ValueError(one_line(error)) from None


@contextmanager
def bounded_work(seconds: float, memory: int) -> Iterator[None]:
    """Raises RuntimeError where what is done inside takes longer, MemoryError where it takes more than `memory` bytes:
    a program of somebody else's, such as a chat template, then ends.

    Time is bounded on the main thread (by SIGALRM, not on Windows), memory on Linux.
    """
    with bounded_memory(memory):
        if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
            yield
            return

        def late(signum: int, frame: Any) -> None:
            raise RuntimeError(f"takes more than {seconds:g} seconds")

        before = signal.signal(signal.SIGALRM, late)
        # And again every second: Jinja folds constants, swallows what that raises, and computes them once more.
        left, again = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, again)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(memory: int) -> Iterator[None]:
    """Of this process, that many bytes more than it has now; beyond them an allocation fails. On Linux alone."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + memory
    resource.setrlimit(resource.RLIMIT_AS, (wanted if before == resource.RLIM_INFINITY else min(before, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def require_sound_folder(folder: Path) -> None:
    """Raises UserError where a model's or an adapter's folder holds what must not reach the libraries that load it:
    weights that are a pickle or damaged, an index that leads out of the folder, code or a model of its own to fetch."""
    for path in sorted(folder.iterdir()):
        if path.name in TOKENIZER_FILES:
            _require_size(path, LARGEST_TOKENIZER)
        elif path.suffix == ".jinja":
            require_short_template(read_text(path, 4 * LARGEST_TEMPLATE), str(path))
        elif path.suffix == ".safetensors":
            _require_safetensors(path)
        elif path.name.endswith("_config.json") or path.name in ("config.json", "special_tokens_map.json"):
            read_json(path)
        elif path.name.endswith(".index.json"):
            _require_own_files(path)
    if not any(folder.glob("*.safetensors")):
        _refuse_pickles(folder)
    if (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            raise UserError(f"{folder}: holds a model and an adapter; keep each in a folder of its own")
        plain_lora(folder)


def require_short_template(template: str, owner: str) -> None:
    if len(template) > LARGEST_TEMPLATE:
        raise UserError(f"{owner}: a chat template of {len(template):,} characters; at most {LARGEST_TEMPLATE:,}")


def _require_size(path: Path, largest: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    if path.stat().st_size > largest:
        raise UserError(f"{path}: larger than the {largest:,} bytes that such a file may have")


def _require_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    _require_size(path, 2**63)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {one_line(error)}") from None


def _require_own_files(index: Path) -> None:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise UserError(f"{index}: expected a weight_map from names to files")
    for file in sorted(set(named.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(f"{index}: names {shortened(file, 100)!r}; expected a .safetensors file of its own folder")
        if not (index.parent / file).is_file():
            raise UserError(f"{index}: names {file}, which is not there")


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.glob("*")):
        if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"} and path.stem != "training_args":
            raise UserError(
                f"{path}: weights in pickle, which can run any code as it is read; where they are trusted, convert "
                'them: safetensors.torch.save_file(torch.load("....bin", weights_only=True), "....safetensors")'
            )


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
OF_NO_ACCOUNT = {
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
        elif key not in OF_NO_ACCOUNT and value and value not in HARMLESS.get(key, []):
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
