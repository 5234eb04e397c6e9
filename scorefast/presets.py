"""What the columns of a source mean: ours, GSM8K's, MATH's, messages, or those the user names. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from scorefast.recipe import Data, GraderName, UserError
from scorefast.sources import Rows
from scorefast.untrusted import listed, shortened

COLUMNS = ("question", "original_answer", "correct_answer")
OPTIONAL = ("grader", "original_answer_by")
LONGEST = 100_000  # characters of a text: several times what a model reads at once, a second of its tokenizer

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def without_calculator(text: str) -> str:
    """Without GSM8K's calculator marks: `48/2 = <<48/2=24>>24` is `48/2 = 24`."""
    return _CALCULATOR.sub("", text)


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = str(row.get("answer") or "")
    if answer.strip() and "####" not in answer:
        raise ValueError("answer has no final `#### n`")
    return {"question": row.get("question"), "correct_answer": without_calculator(answer)}


def _math(row: Mapping[str, Any]) -> dict[str, Any]:
    solution = str(row.get("solution") or "")
    if solution.strip() and "\\boxed" not in solution:
        raise ValueError("solution has no \\boxed answer")
    return {"question": row.get("problem"), "correct_answer": solution}


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """One exchange, or two: then the second question is a correction turn, and the first reply the original answer."""
    messages = row.get("messages")
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):  # malformed, or nested too deeply
            raise ValueError("messages are not JSON") from None
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise ValueError("messages are not a list of objects with role and content")
    system = [str(m.get("content") or "") for m in messages if m["role"] == "system"]
    turns = [m for m in messages if m["role"] != "system"]
    roles = [m["role"] for m in turns]
    if roles not in (["user", "assistant"], ["user", "assistant"] * 2):
        raise ValueError(f"messages go {listed(roles) or 'nowhere'}; expected user, assistant once or twice")
    contents = [m.get("content") for m in turns]
    question = "\n\n".join([*system, str(contents[0] or "")])
    return {
        "question": question,
        "original_answer": contents[1] if len(turns) > 2 else None,
        "correct_answer": contents[-1],
    }


class Preset(NamedTuple):
    needs: tuple[str, ...]
    used: frozenset[str]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None  # None: the columns have our names already


PRESETS = {
    "score": Preset(("question", "correct_answer"), frozenset(COLUMNS), None),
    "gsm8k": Preset(("question", "answer"), frozenset(("question", "answer")), _gsm8k),
    "math": Preset(("problem", "solution"), frozenset(("problem", "solution")), _math),
    "messages": Preset(("messages",), frozenset(("messages",)), _messages),
}


def find_preset(file: str, columns: Iterable[str], settings: Data) -> Preset:
    """How to read rows of these columns. Raises UserError naming the columns that are missing."""
    here = list(columns)
    found = [*here, *settings.columns]
    if wrong := [new for new in settings.columns if new not in (*COLUMNS, *OPTIONAL)]:
        ours = ", ".join((*COLUMNS, *OPTIONAL))
        raise UserError(f"columns: {shortened(wrong[0], 50)}: expected one of {ours}, as in question=problem")
    if missing := [old for old in settings.columns.values() if old not in here]:
        raise UserError(f"{file}: has no column {shortened(missing[0], 50)!r}; it has {listed(here)}")
    if settings.preset != "auto":
        preset = PRESETS[settings.preset]
        if missing := [name for name in preset.needs if name not in found]:
            raise UserError(f"{file}: preset {settings.preset} needs the column {missing[0]}; it has {listed(found)}")
        return preset
    for preset in PRESETS.values():
        if all(name in found for name in preset.needs):
            return preset
    known = "; ".join(f"{', '.join(p.needs)} ({name})" for name, p in PRESETS.items())
    raise UserError(
        f"{file}: has the columns {listed(found) or '(none)'}; expected {known}; "
        "or name yours: --columns question=...,correct_answer=..."
    )


def parse_rows(
    rows: Rows, preset: Preset, renames: Mapping[str, str]
) -> tuple[dict[str, Sequence[Any]], dict[int, str]]:
    """Rows as columns question, original_answer, correct_answer, grader, original_answer_by (texts, stripped, "" for
    nothing) and extra (mappings or None); and by row the reason why it cannot be used."""
    problems: dict[int, str] = {}
    n = len(rows.lines)
    old = dict.fromkeys(renames.values())
    names = dict.fromkeys([*(name for name in rows.names() if name not in old), *renames])
    known = {*preset.used, *COLUMNS, *OPTIONAL}
    here = {name: rows.column(renames.get(name, name)) for name in names if name in known}
    read: Mapping[str, Sequence[Any]] = here
    if preset.read is not None:
        found = [_read(preset.read, i, row, problems) for i, row in enumerate(_by_row(here) if here else [{}] * n)]
        read = {name: [row.get(name) for row in found] for name in COLUMNS} | {name: here[name] for name in renames}
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
    others = {name: rows.columns[name] for name in rows.columns if name in names and name not in known}
    extra: Sequence[Any] = list(_by_row(others)) if others else [None] * n
    if rows.records:
        leave = known | old.keys()
        extra = [{name: v for name, v in record.items() if name not in leave} or None for record in rows.records]
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
        return [text if (text := value.strip()).isascii() else _seen(text) for value in values]
    return [text_of(value, name, i, problems) for i, value in enumerate(values)]


def text_of(value: Any, name: str, i: int, problems: dict[int, str]) -> str:
    """A cell as stripped text, blank where there is nothing; what is no text is noted under `i` in `problems`."""
    if isinstance(value, str):
        return _seen(value.strip())
    if value is None or value != value:  # NaN, as tables have it for nothing
        return ""
    if isinstance(value, Mapping | list | tuple | bytes):
        problems.setdefault(i, f"{name} is a {type(value).__name__}, not text")
        return ""
    return str(value)


def _seen(text: str) -> str:
    """The text, or nothing where there is nothing to be seen: zero-width characters and the like."""
    return text if len(text) > 50 or any(c.isprintable() and not c.isspace() for c in text) else ""
