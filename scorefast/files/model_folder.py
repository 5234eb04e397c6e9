"""Check untrusted model and adapter folders before any library loads them. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256
from scorefast.files.bounded import read_json, read_text
from scorefast.files.lora_config import plain_lora
from scorefast.files.seal import SEAL
from scorefast.files.text import one_line, shortened

LARGEST_TOKENIZER = 2**27  # bytes of a tokenizer file; Gemma's has 34 million
LARGEST_TEMPLATE = 100_000  # characters of a chat template

TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"}


def require_sound_folder(folder: Path) -> None:
    """Raises UserError if a model or adapter folder contains what must not reach the libraries that load it.

    Refused are pickled or damaged weights, an index that points outside the folder, and adapter settings that import
    code or fetch another model.
    """
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
            raise UserError(f"{folder}: contains a model and an adapter; keep each in its own folder")
        plain_lora(folder)


def require_short_template(template: str, owner: str) -> None:
    if len(template) > LARGEST_TEMPLATE:
        raise UserError(f"{owner}: a chat template of {len(template):,} characters; at most {LARGEST_TEMPLATE:,}")


def _require_size(path: Path, largest: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    if path.stat().st_size > largest:
        raise UserError(f"{path}: larger than {largest:,} bytes, the most for such a file")


def _require_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    _require_size(path, 2**63)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file: {one_line(error)}") from None


def _require_own_files(index: Path) -> None:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise UserError(f"{index}: expected a weight_map of tensor names to files")
    for file in sorted(set(named.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(f"{index}: names {shortened(file, 100)!r}; expected a .safetensors file in the same folder")
        if not (index.parent / file).is_file():
            raise UserError(f"{index}: names {file}, which does not exist")


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.glob("*")):
        if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"} and path.stem != "training_args":
            raise UserError(
                f"{path}: pickled weights, which can run arbitrary code when loaded; if you trust them, convert "
                'them: safetensors.torch.save_file(torch.load("....bin", weights_only=True), "....safetensors")'
            )


NOT_OF_THE_MODEL = {SEAL, "run.json", "trainer_state.json", "report.json"}


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weights, configuration, tokenizer and chat template of the model or adapter in `folder`."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name not in NOT_OF_THE_MODEL)
    kinds = (".safetensors", ".json", ".jinja")
    paths = sorted(path for path in files if path.suffix in kinds or path.name in TOKENIZER_FILES)
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in paths).encode()).hexdigest()
