"""Export a checkpoint: a PEFT adapter, a merged 16-bit model, or a GGUF file with an Ollama Modelfile."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from scorefast.errors import RunError, UserError
from scorefast.files.atomic import WORK, filled_at_the_end
from scorefast.files.text import one_line, shortened
from scorefast.model.chat_format import ChatFormat
from scorefast.model.load import load_merged
from scorefast.model.policy import settings_to_save
from scorefast.model.tokenizer import chat_format
from scorefast.recipe import load_recipe, model_path
from scorefast.runs.checkpoint import Checkpoint
from scorefast.runs.layout import RECIPE
from scorefast.schema import Model, Recipe
from scorefast.ui.options import ExportFormat

CONVERTER = "convert_hf_to_gguf.py"
_CONTENT = "{{ .Content }}"
# Text that would end a TEMPLATE in a Modelfile, or begin an action in it, also together with a following brace.
_DANGEROUS = re.compile(r'\{+|"{3,}')


def export_recipe(checkpoint: Checkpoint) -> Recipe:
    """The run's recipe for plain transformers and 16 bit, because Unsloth cannot merge a 4-bit model on a CPU."""
    recipe = _run_recipe(checkpoint)
    plain = recipe.model.model_copy(update={"backend": "transformers", "load_in_4bit": False})
    return recipe.model_copy(update={"model": plain})


def _run_recipe(checkpoint: Checkpoint) -> Recipe:
    path = checkpoint.path.resolve()
    if checkpoint.recipe is None and path.name.startswith("checkpoint-") and (path.parent / RECIPE).is_file():
        return load_recipe(str(path.parent / RECIPE), saved=True)
    return checkpoint.recipe or Recipe(model=Model(name=checkpoint.base))


def export_checkpoint(checkpoint: Checkpoint, format: ExportFormat, out: Path, note: Callable[[str], None]) -> Path:
    """Write the checkpoint into the new or empty folder `out`. If anything fails, `out` is left as it was.

    Raises UserError, before a model loads, for every fault that can be found by then.
    """
    if os.path.lexists(partial := out / WORK):
        raise UserError(f"{out}: holds what a killed export left behind, {partial}; remove that")
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds files; name a new or empty folder with --out")
    if format == "adapter" and not checkpoint.is_adapter:
        raise UserError(f"{checkpoint.path}: is a full model (tuning: full), not an adapter; use --format merged-16bit")
    again = shlex.join(["scorefast", "export", str(checkpoint.path), "--format", format, "--out", str(out)])
    converter = find_converter(again) if format == "gguf" else None
    recipe = export_recipe(checkpoint)
    chat, base = chat_format(recipe), Path(model_path(recipe.model.name))
    if format == "adapter" and base.is_dir():
        note(f"the adapter needs its base model, the folder {base.resolve()}: copy it too, and write its new path")
        note("into base_model_name_or_path of adapter_config.json")
    if format != "adapter" and _run_recipe(checkpoint).model.load_in_4bit:
        note("trained on a 4-bit base, merged into the 16-bit one: replies can differ a little from those in `eval`")
    if format == "gguf":
        ollama_template(chat)  # both raise UserError for what they cannot write, before a model loads
        ollama_stops(chat)
    with _one_line_errors(out), filled_at_the_end(out) as folder:
        if converter is not None:
            _write_gguf(checkpoint, recipe, chat, folder, converter)
        elif format == "adapter":
            _write_adapter(checkpoint, recipe, chat, folder)
        else:
            _write_merged(checkpoint, recipe, chat, folder)
    return out


@contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    """Turn a write error into a RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk without an errno
        where = getattr(error, "filename", None)
        why = getattr(error, "strerror", None) or one_line(error)
        raise RunError(f"{out}: not written: {why}{f' ({where})' if where else ''}") from None


def _write_adapter(checkpoint: Checkpoint, recipe: Recipe, chat: ChatFormat, folder: Path) -> None:
    """Write only the files that PEFT reads. The base is the recipe's, because Unsloth may record a 4-bit copy of it."""
    base = model_path(recipe.model.name)
    config = json.loads((checkpoint.path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
    _write_json(folder / "adapter_config.json", config)
    shutil.copyfile(checkpoint.path / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    _save_tokenizer(recipe, chat, folder)


def _write_merged(checkpoint: Checkpoint, recipe: Recipe, chat: ChatFormat, folder: Path) -> None:
    model = load_merged(recipe, checkpoint).to(torch.bfloat16)
    model.generation_config = settings_to_save(chat)
    model.save_pretrained(folder)
    _save_tokenizer(recipe, chat, folder)


def _save_tokenizer(recipe: Recipe, chat: ChatFormat, folder: Path) -> None:
    """Save the tokenizer with its template, and the base's SentencePiece file. transformers does not save that file;
    llama.cpp needs it for Gemma."""
    from transformers.utils import cached_file

    chat.tokenizer.save_pretrained(folder)
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    pieces = cached_file(model_path(recipe.model.name), "tokenizer.model", **quiet)
    if pieces is not None:
        shutil.copyfile(pieces, folder / "tokenizer.model")


def find_converter(again: str) -> Path:
    """llama.cpp's converter, from the folder LLAMA_CPP or from PATH. Downloads nothing. Raises UserError with the
    commands to get it; `again` is the command to repeat."""
    named = os.environ.get("LLAMA_CPP")
    found = str(Path(named) / CONVERTER) if named else shutil.which(CONVERTER)
    if found is not None and Path(found).is_file():
        return Path(found)
    lack = f"LLAMA_CPP={named}: has no {CONVERTER}" if named else f"gguf needs {CONVERTER}, which is not on PATH"
    clone = "git clone --depth 1 https://github.com/ggml-org/llama.cpp"
    needs = f"{shlex.quote(sys.executable)} -m pip install sentencepiece protobuf"
    raise UserError(f"{lack}; get llama.cpp and try again: {clone} && {needs} && LLAMA_CPP=llama.cpp {again}")


def _write_gguf(checkpoint: Checkpoint, recipe: Recipe, chat: ChatFormat, folder: Path, converter: Path) -> None:
    """Write NAME.gguf and the Modelfile. The merged model is written first and removed afterwards."""
    name = re.sub(r"[^\w.-]", "-", checkpoint.name)  # white space would end FROM in the Modelfile
    template, adds_bos = ollama_template(chat)
    merged, target = folder / "merged", folder / f"{name}.gguf"
    _write_merged(checkpoint, recipe, chat, merged)
    # Explicit, because llama.cpp guesses it by the kind of tokenizer. A prompt must begin as it did in training.
    config = json.loads((merged / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(merged / "tokenizer_config.json", config | {"add_bos_token": adds_bos})
    done = subprocess.run(
        [sys.executable, converter, merged, "--outfile", target, "--outtype", "bf16", "--model-name", name],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": ""},  # it imports modules from its own folder
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode or not _is_gguf(target):
        output = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        last = shortened(output[-1]) if output else "it printed nothing"
        raise UserError(f"{converter}: wrote no GGUF file (exit code {done.returncode}): {last}")
    shutil.rmtree(merged)
    (folder / "Modelfile").write_text(modelfile(name, template, chat, recipe), encoding="utf-8")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def ollama_template(chat: ChatFormat) -> tuple[str, bool]:
    """(the chat template in Go's syntax, whether llama.cpp adds the begin-of-sequence token).

    The template covers alternating user and assistant turns, as in training. If llama.cpp adds the begin-of-sequence
    token, the template leaves it out. Raises UserError if the chat template contains the placeholder itself.
    """
    text = chat.template([chat.asked(_CONTENT), _CONTENT, _CONTENT])
    bos = chat.tokenizer.bos_token or ""
    # Only a template that names bos_token writes that token. SmolLM2's bos_token is <|im_start|>, with which its
    # template opens a turn.
    adds_bos = bool(bos) and text.startswith(bos) and "bos_token" in chat.tokenizer.get_chat_template()
    pieces = text.removeprefix(bos if adds_bos else "").split(_CONTENT)
    if len(pieces) != 4:
        raise UserError(f"this model's chat template writes {_CONTENT!r} itself; use --format merged-16bit")
    before, ask, between, after = (_DANGEROUS.sub(_as_go_action, piece) for piece in pieces)
    first, later = before + _CONTENT + ask, between + _CONTENT + after
    user = "{{ if $later }}" + later + "{{ else }}" + first + "{{ end }}{{ $later = true }}"
    roles = '{{ if eq .Role "user" }}' + user + '{{ else if eq .Role "assistant" }}' + _CONTENT + "{{ end }}"
    return "{{ $later := false }}{{ range .Messages }}" + roles + "{{ end }}", adds_bos


def _as_go_action(found: re.Match[str]) -> str:
    """A Go template action that writes the matched text."""
    return '{{ "' + found[0].replace('"', r"\x22") + '" }}'


def ollama_stops(chat: ChatFormat) -> list[str]:
    """The tokens that end a reply. Raises UserError for a token that a Modelfile, which has no escapes, cannot hold."""
    stops = cast(list[str], chat.tokenizer.convert_ids_to_tokens(sorted(chat.end_tokens)))
    for stop in stops:
        if '"' in stop or stop != stop.strip() or not stop.isprintable():
            raise UserError(
                f"{shortened(repr(stop), 100)} ends a reply of this model and cannot be written in a Modelfile; use "
                "--format merged-16bit"
            )
    return stops


def modelfile(name: str, template: str, chat: ChatFormat, recipe: Recipe) -> str:
    """The Modelfile for `ollama create`. It decodes as `scorefast eval` does, and explains the second turn."""
    lines = [
        f"# ollama create {name} -f Modelfile && ollama run {name}",
        "#",
        "# Two turns, as in training: ask the question. After the reply, send this as your second message:",
        "#",
        *(f"#     {line}" for line in chat.correction.strip().splitlines()),
        "#",
        "# Your system messages are ignored: training had none except what the template writes itself.",
        f"FROM ./{name}.gguf",
        f'TEMPLATE """{template}"""',
        *(f'PARAMETER stop "{stop}"' for stop in ollama_stops(chat)),
        "# Greedy and without Ollama's own penalty, as `scorefast eval` decodes.",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "# The recipe's model.max_seq_length. If a conversation does not fit, Ollama drops the question first.",
        f"PARAMETER num_ctx {recipe.model.max_seq_length}",
    ]
    return "\n".join(lines) + "\n"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
