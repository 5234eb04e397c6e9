"""Tokenizer, configuration and chat format of a model, from its folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from scorefast.errors import UserError
from scorefast.files.model_folder import require_short_template
from scorefast.files.text import one_line
from scorefast.model.chat_format import ChatFormat
from scorefast.model.plain_model import file_of, read_config, require_sound_model
from scorefast.model.tokenizer_trial import require_sound_tokenizer
from scorefast.recipe import PACKAGE, model_path
from scorefast.schema import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

CONFIGS = PACKAGE / "assets" / "configs"  # of models that recipes name: they can be planned for offline


def load_tokenizer(name: str, *, download: bool = True) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    require_sound_files(model_path(name))
    if file_of(model_path(name), "config.json", download=download) is not None:
        load_config(name)  # AutoTokenizer reads it too: check it first
    if (file := file_of(model_path(name), "tokenizer.json", download=download)) is not None:
        require_sound_tokenizer(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_path(name), local_files_only=not download, trust_remote_code=False
        )
    except BaseException as error:  # untrusted files can fail in any way, in Rust too
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"model {name!r}: {hub_error_message(name, 'tokenizer', error)}") from None
    if tokenizer.chat_template is None:
        raise UserError(f"model {name!r} has no chat template; use an instruction-tuned model")
    require_short_template(str(tokenizer.chat_template), f"model {name!r}")
    return cast("PreTrainedTokenizerFast", tokenizer)  # what is not fast, ChatFormat refuses


def chat_format(recipe: Recipe, *, download: bool = True) -> ChatFormat:
    """The chat format of the recipe's model. Loads its tokenizer and configuration, no weights.

    A model without a padding token pads with its end of sequence, or else with the closing token: padding is never
    attended to. Raises UserError for a template that cannot be served.
    """
    name = recipe.model.name
    tokenizer = load_tokenizer(name, download=download)
    here = download or Path(model_path(name)).is_dir()
    rows = load_config(name).get_text_config().vocab_size if here else None
    try:
        chat = ChatFormat(tokenizer, vocabulary=rows, **recipe.prompt.model_dump())
    except ValueError as error:
        raise UserError(f"model {error}") from None
    except Exception as error:  # an untrusted tokenizer or template can fail in any way
        raise UserError(f"model {name!r}: its chat template and tokenizer fail: {one_line(error)}") from None
    fit = (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, chat.end_of_turn) if token is not None)
    pad = next(token for token in fit if rows is None or token < rows)
    if pad != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return chat


def load_config(name: str) -> PretrainedConfig:
    """A model's configuration: from its folder, from the package's assets, or else from the hub."""
    shipped = CONFIGS / name.replace("/", "--")
    path = str(shipped) if shipped.is_dir() and not Path(name).is_dir() else model_path(name)
    require_sound_files(path)
    try:
        return read_config(path)
    except UserError:
        raise
    except Exception as error:  # an untrusted file can fail in any way
        raise UserError(f"model {name!r}: {hub_error_message(name, 'configuration', error)}") from None


def hub_error_message(name: str, what: str, error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError

    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, GatedRepoError):
        chain = chain.__cause__ or chain.__context__
    if chain is not None:
        return (
            f"is gated: accept its terms at https://huggingface.co/{name} and log in with `hf auth login`, or give "
            "model.name another copy, or a folder"
        )
    sought = "" if Path(model_path(name)).is_dir() else "no such folder here; from the Hugging Face hub, "
    return f"{sought}no {what} to be had: {one_line(error)}"


def require_sound_files(path: str) -> None:
    if Path(path).is_dir():
        require_sound_model(Path(path))
