"""What the columns of a source mean: ours, those of layouts in common use, or those the user names. Imports no torch.

Names of columns are recognised in any capitals, with spaces around them or in the place of `_`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, get_args

from scorefast.data.example import COLUMNS, LONGEST, OPTIONAL
from scorefast.data.messages import (
    exchange_of,
    from_json,
    messages_of,
    paragraphs,
    said_by,
    text_cell,
    text_of,
    visible,
)
from scorefast.data.rows import Rows
from scorefast.errors import UserError
from scorefast.files.text import listed, shortened, without_calculator
from scorefast.schema import Data, GraderName


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = text_cell(row, "answer")
    if answer and "####" not in answer:
        raise ValueError("answer has no final `#### n`")
    return {"question": row.get("question"), "correct_answer": without_calculator(answer)}


def _qa(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": row.get("question"), "correct_answer": row.get("answer")}


def _math(row: Mapping[str, Any]) -> dict[str, Any]:
    solution = text_cell(row, "solution")
    if solution and "\\boxed" not in solution:
        raise ValueError("solution has no \\boxed answer")
    return {"question": row.get("problem"), "correct_answer": solution}


def _squad(row: Mapping[str, Any]) -> dict[str, Any]:
    answers = from_json(row.get("answers"))
    if isinstance(answers, str) and answers.startswith(("{", "[")):
        raise ValueError("answers are not JSON")
    texts = answers.get("text") if isinstance(answers, Mapping) else answers
    first = (texts[0] if texts else None) if isinstance(texts, list | tuple) else texts
    return {"question": paragraphs(row, "context", "question"), "correct_answer": first}


def _alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": paragraphs(row, "instruction", "input"), "correct_answer": row.get("output")}


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    return exchange_of(messages_of(row.get("messages"), "messages"))


def _sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    return exchange_of(messages_of(row.get("conversations"), "conversations"))


def _trl(row: Mapping[str, Any]) -> dict[str, Any]:
    return exchange_of([*said_by(row, "prompt", "user"), *said_by(row, "completion", "assistant")])


def _verl(row: Mapping[str, Any]) -> dict[str, Any]:
    model = from_json(row.get("reward_model"))
    if isinstance(model, str):
        raise ValueError("reward_model is not JSON")
    if not isinstance(model, Mapping) or "ground_truth" not in model:
        raise ValueError("reward_model has no ground_truth")
    truth = model["ground_truth"]
    if isinstance(truth, list | tuple) and len(truth) == 1:
        model = {"ground_truth": truth[0]}
    return exchange_of([*said_by(row, "prompt", "user"), ("assistant", text_cell(model, "ground_truth"))])


class Preset(NamedTuple):
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None  # None: the columns have our names already
    also: tuple[str, ...] = ()  # columns that are read where they are there


PRESETS = {
    "score": Preset(("question", "correct_answer"), None),
    "gsm8k": Preset(("question", "answer"), _gsm8k),
    "qa": Preset(("question", "answer"), _qa),
    "math": Preset(("problem", "solution"), _math),
    "squad": Preset(("question", "answers"), _squad, ("context",)),
    "alpaca": Preset(("instruction", "output"), _alpaca, ("input",)),
    "verl": Preset(("prompt", "reward_model"), _verl),
    "trl": Preset(("prompt", "completion"), _trl),
    "messages": Preset(("messages",), _messages),
    "sharegpt": Preset(("conversations",), _sharegpt),
}

_MEANT = {*COLUMNS, *OPTIONAL, *(column for p in PRESETS.values() for column in (*p.needs, *p.also))}


@lru_cache(maxsize=1024)
def plain_name(column: str) -> str:
    """`Correct Answer ` is correct_answer."""
    return re.sub(r"[\s_-]+", "_", column.strip("\ufeff").strip().casefold())


def spellings(columns: Iterable[str]) -> dict[str, str]:
    """Our names -> the columns that are called so: the very name before others, then the first."""
    every = list(columns)
    return {plain_name(name): name for name in reversed(every)} | {name: name for name in every}


def find_preset(rows: Rows, settings: Data, note: Callable[[str], None] = lambda line: None) -> Preset:
    """How to read rows like these, the first of their file. Raises UserError naming the columns that are missing;
    `note` is told where the columns fit more than one layout, and no --columns says what is meant."""
    file, here = rows.file, list(rows.names())
    if wrong := [new for new in settings.columns if new not in _MEANT]:
        ours = ", ".join((*COLUMNS, *OPTIONAL))
        raise UserError(
            f"columns: {shortened(wrong[0], 50)}: expected one of {ours} (or of a preset), as in question=problem"
        )
    spelled = spellings(here)
    if missing := [old for old in settings.columns.values() if old not in spelled and plain_name(old) not in spelled]:
        raise UserError(f"{file}: has no column {shortened(missing[0], 50)!r}; it has {listed(here)}")
    found = {*spelled, *settings.columns}
    if settings.preset != "auto":
        preset = PRESETS[settings.preset]
        if missing := [name for name in preset.needs if name not in found]:
            shown = listed([*here, *settings.columns])
            raise UserError(f"{file}: preset {settings.preset} needs the column {missing[0]}; it has {shown}")
        return preset
    fitting = {name: preset for name, preset in PRESETS.items() if found.issuperset(preset.needs)}
    if {"gsm8k", "qa"} <= fitting.keys():
        marked = any("####" in str(answer) for answer in rows.column(spelled.get("answer", "")))
        del fitting["qa" if marked else "gsm8k"]
    if not fitting:
        known = "; ".join(f"{', '.join(p.needs)} ({name})" for name, p in PRESETS.items())
        raise UserError(
            f"{file}: has the columns {listed([*here, *settings.columns]) or '(none)'}; expected {known}; "
            "or name yours: --columns question=...,correct_answer=..."
        )
    named = [name for name, preset in fitting.items() if not settings.columns.keys().isdisjoint(preset.needs)]
    chosen, *others = named or fitting
    if chosen == "qa":
        note(f"{file}: no answer ends in `#### n`: each is the reference as it stands (preset qa)")
    for name in fitting[chosen].needs:
        if len(alike := [column for column in here if plain_name(column) == name]) > 1:
            note(f"{file}: {listed(alike)} have one name; {spelled[name]} is read")
    if others and not named:
        note(
            f"{file}: read by {', '.join(fitting[chosen].needs)} ({chosen}); its columns also fit {', '.join(others)} "
            f"(--set data.preset={others[0]}, or --columns, chooses)"
        )
    return fitting[chosen]


ASKED = ("question", "problem", "instruction", "messages", "conversations", "prompt")  # columns that hold questions


def question_of(row: Mapping[str, Any]) -> str | None:
    """The question of a row of any layout, whether or not it has an answer, blank where it cannot be read; None where
    no column can hold one."""
    ours = {name: row[column] for name, column in spellings(row).items()}
    name = next((name for name in ASKED if name in ours), None)
    try:
        if name in ("question", "problem", "instruction"):
            before, after = ("context",) if "answers" in ours else (), ("input",) if name == "instruction" else ()
            return paragraphs(ours, *before, name, *after)
        said = said_by(ours, name, "user") if name else []
    except ValueError:
        return ""
    return next((text.strip() for role, text in said if role == "user"), "") if name else None


def parse_rows(
    rows: Rows, preset: Preset, renames: Mapping[str, str]
) -> tuple[dict[str, Sequence[Any]], dict[int, str]]:
    """Rows as columns question, original_answer, correct_answer, grader, original_answer_by (texts, stripped, "" for
    nothing) and extra (the columns that have none of our names, as mappings or None); and by row the reason why it
    cannot be used."""
    problems: dict[int, str] = {}
    n = len(rows.lines)
    spelled = spellings(rows.names())
    given = {new: spelled.get(old, spelled.get(plain_name(old), old)) for new, old in renames.items()}
    known = (*COLUMNS, *OPTIONAL, *preset.needs, *preset.also)
    names = {name: spelled[name] for name in known if name in spelled and spelled[name] not in given.values()} | given
    here = {name: rows.column(column) for name, column in names.items()}
    read: Mapping[str, Sequence[Any]] = here
    if preset.read is not None:
        found = [_read(preset.read, i, row, problems) for i, row in enumerate(_by_row(here) if here else [{}] * n)]
        read = {name: [row.get(name) for row in found] for name in COLUMNS} | {
            name: here[name] for name in renames if name in COLUMNS
        }
    parsed: dict[str, Sequence[Any]] = {
        name: _texts(read[name], name, problems) if name in read else [""] * n for name in COLUMNS
    }
    for name, values in parsed.items():
        if "\0" in "".join(values):
            problems.update({i: "NUL character" for i, text in enumerate(values) if "\0" in text and i not in problems})
        if any(len(text) > LONGEST for text in values):
            longer = f"{name} of more than {LONGEST:,} characters"
            problems.update({i: longer for i, text in enumerate(values) if len(text) > LONGEST and i not in problems})
        if name != "original_answer" and not all(values):
            for i, text in enumerate(values):
                if not text:
                    problems.setdefault(i, f"blank {name}")
    for name in OPTIONAL:
        parsed[name] = _texts(here[name], name, problems) if name in here else [""] * n
    for i, grader in enumerate(parsed["grader"]) if "grader" in here else ():
        if grader and grader not in get_args(GraderName):
            problems.setdefault(i, f"grader {shortened(repr(grader), 60)} is none of {', '.join(get_args(GraderName))}")
    ours = (*COLUMNS, *OPTIONAL)
    others = {name: column for name, column in rows.columns.items() if name not in ours}
    extra: Sequence[Any] = list(_by_row(others)) if others else [None] * n
    if rows.records:
        extra = [{name: v for name, v in record.items() if name not in ours} or None for record in rows.records]
    return parsed | {"extra": extra}, problems


def _by_row(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _read(
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]], i: int, row: Mapping[str, Any], problems: dict[int, str]
) -> Mapping[str, Any]:
    try:
        return read(row)
    except ValueError as error:
        problems[i] = str(error)
        return {}


def _texts(values: Sequence[Any], name: str, problems: dict[int, str]) -> list[str]:
    if set(map(type, values)) == {str}:  # as nearly always: no call a cell
        return [text if (text := value.strip()).isascii() else visible(text) for value in values]
    return [text_of(value, name, i, problems) for i, value in enumerate(values)]
