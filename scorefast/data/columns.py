"""Map the columns of a source to examples: native columns, common layouts, or names the user gives. Imports no torch.

Column names match in any case, with surrounding spaces, and with spaces or hyphens in place of `_`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, cast, get_args

from scorefast.data.example import COLUMNS, MAX_CHARACTERS, OPTIONAL
from scorefast.data.messages import (
    exchange,
    messages_of,
    messages_or_text,
    paragraphs,
    parsed_json,
    text_cell,
    text_of,
    visible,
)
from scorefast.data.rows import Rows
from scorefast.errors import UserError
from scorefast.files.text import listed, shortened, without_calculator
from scorefast.schema import Data, GraderName


def _gsm8k(row: Mapping[str, object]) -> Mapping[str, object]:
    answer = text_cell(row, "answer")
    if answer and "####" not in answer:
        raise ValueError("answer does not end in `#### n`")
    return {"question": row.get("question"), "correct_answer": without_calculator(answer)}


def _qa(row: Mapping[str, object]) -> Mapping[str, object]:
    return {"question": row.get("question"), "correct_answer": row.get("answer")}


def _math(row: Mapping[str, object]) -> Mapping[str, object]:
    solution = text_cell(row, "solution")
    if solution and "\\boxed" not in solution:
        raise ValueError("solution contains no \\boxed answer")
    return {"question": row.get("problem"), "correct_answer": solution}


def _squad(row: Mapping[str, object]) -> Mapping[str, object]:
    answers = parsed_json(row.get("answers"))
    if isinstance(answers, str) and answers.startswith(("{", "[")):
        raise ValueError("answers are not JSON")
    texts = answers.get("text") if isinstance(answers, Mapping) else answers
    first = (texts[0] if texts else None) if isinstance(texts, list | tuple) else texts
    return {"question": paragraphs(row, "context", "question"), "correct_answer": first}


def _alpaca(row: Mapping[str, object]) -> Mapping[str, object]:
    return {"question": paragraphs(row, "instruction", "input"), "correct_answer": row.get("output")}


def _messages(row: Mapping[str, object]) -> Mapping[str, object]:
    return exchange(messages_of(row.get("messages"), "messages"))


def _sharegpt(row: Mapping[str, object]) -> Mapping[str, object]:
    return exchange(messages_of(row.get("conversations"), "conversations"))


def _trl(row: Mapping[str, object]) -> Mapping[str, object]:
    return exchange([*messages_or_text(row, "prompt", "user"), *messages_or_text(row, "completion", "assistant")])


def _verl(row: Mapping[str, object]) -> Mapping[str, object]:
    model = parsed_json(row.get("reward_model"))
    if isinstance(model, str):
        raise ValueError("reward_model is not JSON")
    if not isinstance(model, Mapping) or "ground_truth" not in model:
        raise ValueError("reward_model has no ground_truth")
    truth = model["ground_truth"]
    if isinstance(truth, list | tuple) and len(truth) == 1:
        model = {"ground_truth": truth[0]}
    return exchange([*messages_or_text(row, "prompt", "user"), ("assistant", text_cell(model, "ground_truth"))])


Reader = Callable[[Mapping[str, object]], Mapping[str, object]]


class Preset(NamedTuple):
    needs: tuple[str, ...]  # required columns
    read: Reader | None  # None: the columns already have the names of Example's fields
    also: tuple[str, ...] = ()  # optional columns


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

_KNOWN_NAMES = {*COLUMNS, *OPTIONAL, *(column for p in PRESETS.values() for column in (*p.needs, *p.also))}


@lru_cache(maxsize=1024)
def normalized_name(column: str) -> str:
    """correct_answer for `Correct Answer `."""
    return re.sub(r"[\s_-]+", "_", column.strip("\ufeff").strip().casefold())


def columns_by_name(columns: Iterable[str]) -> dict[str, str]:
    """{normalized name: column}. An exact match takes precedence, then the first column."""
    names = list(columns)
    return {normalized_name(name): name for name in reversed(names)} | {name: name for name in names}


def find_preset(rows: Rows, settings: Data, note: Callable[[str], None] = lambda line: None) -> Preset:
    """The layout of a file, from its first rows.

    Notes ambiguous columns that --columns does not resolve. Raises UserError naming the missing columns.
    """
    file, here = rows.file, list(rows.names())
    if wrong := [new for new in settings.columns if new not in _KNOWN_NAMES]:
        ours = ", ".join((*COLUMNS, *OPTIONAL))
        raise UserError(
            f"columns: {shortened(wrong[0], 50)}: expected one of {ours} or a preset's column, as in question=problem"
        )
    spelled = columns_by_name(here)
    if missing := [
        old for old in settings.columns.values() if old not in spelled and normalized_name(old) not in spelled
    ]:
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
        note(f"{file}: no answer ends in `#### n`: each whole answer is the reference (preset qa)")
    for name in fitting[chosen].needs:
        if len(alike := [column for column in here if normalized_name(column) == name]) > 1:
            note(f"{file}: {listed(alike)} match one column; using {spelled[name]}")
    if others and not named:
        note(
            f"{file}: using {', '.join(fitting[chosen].needs)} ({chosen}); the columns also fit {', '.join(others)} "
            f"(choose with --set data.preset={others[0]} or --columns)"
        )
    return fitting[chosen]


QUESTION_COLUMNS = (
    "question",
    "problem",
    "instruction",
    "messages",
    "conversations",
    "prompt",
)  # in order of precedence


def question_of(row: Mapping[str, object]) -> str | None:
    """The question of a row of any layout, with or without an answer.

    "" if it cannot be read; None if the row has none of QUESTION_COLUMNS.
    """
    ours = {name: row[column] for name, column in columns_by_name(row).items()}
    name = next((name for name in QUESTION_COLUMNS if name in ours), None)
    try:
        if name in ("question", "problem", "instruction"):
            before, after = ("context",) if "answers" in ours else (), ("input",) if name == "instruction" else ()
            return paragraphs(ours, *before, name, *after)
        said = messages_or_text(ours, name, "user") if name else []
    except ValueError:
        return ""
    return next((text.strip() for role, text in said if role == "user"), "") if name else None


class Parsed(NamedTuple):
    """Rows by column.

    texts: question, original_answer, correct_answer, grader and original_answer_by, stripped, "" where missing.
    extra: the other columns of each row, or None. problems: {row: why it cannot be used}.
    """

    texts: dict[str, list[str]]
    extra: Sequence[Mapping[str, object] | None]
    problems: dict[int, str]


def parse_rows(rows: Rows, preset: Preset, renames: Mapping[str, str]) -> Parsed:
    problems: dict[int, str] = {}
    n = len(rows.lines)
    spelled = columns_by_name(rows.names())
    given = {new: spelled.get(old, spelled.get(normalized_name(old), old)) for new, old in renames.items()}
    known = (*COLUMNS, *OPTIONAL, *preset.needs, *preset.also)
    names = {name: spelled[name] for name in known if name in spelled and spelled[name] not in given.values()} | given
    here = {name: rows.column(column) for name, column in names.items()}
    read: Mapping[str, Sequence[object]] = here
    if preset.read is not None:
        found = [_read(preset.read, i, row, problems) for i, row in enumerate(_by_row(here) if here else [{}] * n)]
        read = {name: [row.get(name) for row in found] for name in COLUMNS} | {
            name: here[name] for name in renames if name in COLUMNS
        }
    texts = {name: _texts(read[name], name, problems) if name in read else [""] * n for name in COLUMNS}
    for name, values in texts.items():
        if "\0" in "".join(values):
            problems.update({i: "NUL character" for i, text in enumerate(values) if "\0" in text and i not in problems})
        if any(len(text) > MAX_CHARACTERS for text in values):
            longer = f"{name} of more than {MAX_CHARACTERS:,} characters"
            problems.update(
                {i: longer for i, text in enumerate(values) if len(text) > MAX_CHARACTERS and i not in problems}
            )
        if name != "original_answer" and not all(values):
            for i, text in enumerate(values):
                if not text:
                    problems.setdefault(i, f"blank {name}")
    for name in OPTIONAL:
        texts[name] = _texts(here[name], name, problems) if name in here else [""] * n
    for i, grader in enumerate(texts["grader"]) if "grader" in here else ():
        if grader and grader not in get_args(GraderName):
            problems.setdefault(
                i, f"grader {shortened(repr(grader), 60)} is not one of {', '.join(get_args(GraderName))}"
            )
    ours = (*COLUMNS, *OPTIONAL)
    others = {name: column for name, column in rows.columns.items() if name not in ours}
    extra: Sequence[Mapping[str, object] | None] = list(_by_row(others)) if others else [None] * n
    if rows.records:
        extra = [{name: v for name, v in record.items() if name not in ours} or None for record in rows.records]
    return Parsed(texts, extra, problems)


def _by_row(columns: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _read(read: Reader, i: int, row: Mapping[str, object], problems: dict[int, str]) -> Mapping[str, object]:
    try:
        return read(row)
    except ValueError as error:
        problems[i] = str(error)
        return {}


def _texts(values: Sequence[object], name: str, problems: dict[int, str]) -> list[str]:
    if set(map(type, values)) == {str}:  # the common case, without a call per cell
        cells = cast(Sequence[str], values)
        return [text if (text := value.strip()).isascii() else visible(text) for value in cells]
    return [text_of(value, name, i, problems) for i, value in enumerate(values)]
