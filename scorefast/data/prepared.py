"""Load a folder that `scorefast prepare` wrote, and check every row. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from scorefast.data.example import MAX_CHARACTERS, SPLITS, Dataset, Example, Split
from scorefast.data.rows import BadRow, Row
from scorefast.data.sources import read_rows
from scorefast.data.splits import split_settings
from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256
from scorefast.files.bounded import MAX_DEPTH, JsonObject, is_deep, read_json
from scorefast.files.text import one_line, shortened
from scorefast.schema import Data, GraderName

MANIFEST = "manifest.json"


Preview = list[tuple[str, list[tuple[str, bool]]]]  # (title, pieces of (text, whether it is a control token))


@dataclass(frozen=True)
class Prepared:
    manifest: JsonObject
    lengths: dict[str, list[int]]  # tokens of each measured row, for plots
    limits: dict[str, int]  # the most tokens of each that the recipe allows
    preview: Preview


def is_prepared(source: str) -> bool:
    return (Path(source) / MANIFEST).is_file()


def from_columns(row: Mapping[str, Any]) -> Example:
    extra = row.get("extra")
    return Example(**{**row, "extra": json.loads(extra) if extra else None})


def _prepared_rows(path: Path) -> list[Example]:
    """Raises UserError with the row's number if `prepare` cannot have written it, even if the manifest matches."""
    try:
        return [_prepared_row(row) for row in read_rows(str(path))]
    except UserError as error:
        raise UserError(f"{path}: not prepared rows: {str(error).removeprefix(f'{path}: ')}") from None


def _prepared_row(row: Row | BadRow) -> Example:
    needed = {"id", "question", "correct_answer"}
    try:
        if isinstance(row, BadRow) or not needed <= row.values.keys() <= set(Example._fields):
            raise ValueError(f"its columns are not {', '.join(Example._fields)}")
        example = from_columns(row.values)
        for name, value in example._asdict().items():
            if name == "extra":
                if not isinstance(value, dict | None) or is_deep(value or {}):
                    raise ValueError(f"extra is not a JSON object of at most {MAX_DEPTH} levels")
            elif not isinstance(value, str if name in needed else str | None):
                raise ValueError(f"{name} is {shortened(repr(value), 60)}, which is not text")
            elif name in needed and not value.strip():
                raise ValueError(f"{name} is blank")
            elif value and len(value) > MAX_CHARACTERS:
                raise ValueError(f"{name} has more than {MAX_CHARACTERS:,} characters")
        if example.grader not in (None, *get_args(GraderName)):
            raise ValueError(f"grader is {shortened(repr(example.grader), 60)}; no grader has that name")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"row {row.line}: {one_line(error)}") from None
    return example


def load_prepared(folder: Path, settings: Data | None, note: Callable[[str], None] = lambda line: None) -> Dataset:
    try:
        manifest = read_json(folder / MANIFEST)
        expected, source, read_as = dict(manifest["sha256"]), str(manifest["source"]), dict(manifest["read_as"])
        rows_read, dropped = int(manifest["rows_read"]), {str(k): int(n) for k, n in manifest["dropped"].items()}
        prepared_with = {name: read_as[name] for name in split_settings(Data())}
    except (UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{folder / MANIFEST}: not a manifest; run `scorefast prepare` again") from None
    if settings is not None:
        if other := [name for name, value in split_settings(settings).items() if value != prepared_with[name]]:
            shown = [
                ", ".join(f"{name}={s[name]}" for name in other) for s in (prepared_with, split_settings(settings))
            ]
            raise UserError(f"{folder}: was prepared with {shown[0]}, but the recipe has {shown[1]}; prepare it again")
        for name, value in settings.model_dump(exclude_defaults=True).items():
            if value != read_as.get(name):
                note(f"{folder}: data.{name}={value} has no effect: it was prepared with {read_as.get(name)}")
    splits: dict[Split, list[Example]] = {}
    for name in SPLITS:
        path = folder / f"{name}.parquet"
        if not path.is_file() or file_sha256(path) != expected.get(path.name):
            raise UserError(f"{path}: missing or changed since it was prepared; run `scorefast prepare` again")
        splits[name] = _prepared_rows(path)
    return Dataset(f"{folder} (from {shortened(source)})", rows_read, dropped, splits)
