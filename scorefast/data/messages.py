"""Cells as text: plain text, lists of chat messages, and JSON of either. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from scorefast.files.text import listed, shortened


def text_cell(row: Mapping[str, object], name: str) -> str:
    problems: dict[int, str] = {}
    text = text_of(row.get(name), name, 0, problems)
    if problems:
        raise ValueError(problems[0])
    return text


def paragraphs(row: Mapping[str, object], *names: str) -> str:
    return "\n\n".join(filter(None, (text_cell(row, name) for name in names)))


def parsed_json(value: object) -> object:
    """Decode a cell that contains a JSON list or object, as CSV files store them; return any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # malformed, or nested too deeply
        return value.strip()


ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
TEXTUAL = (None, "text", "input_text", "output_text")  # types of content parts that are text
_REPR = re.compile(r"""\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
Message = tuple[str, str]  # (role, text); the role is system, user, assistant or unknown


def messages_of(value: object, name: str) -> list[Message]:
    """The messages of a list of {role, content} or {from, value}, or of JSON of such a list."""
    messages = parsed_json(value)
    if isinstance(messages, str):
        raise ValueError(f"{name} are not JSON")
    if not isinstance(messages, list | tuple) or not all(isinstance(_role(m), str) for m in messages):
        raise ValueError(f"{name} are not a list of objects with role and content, or from and value")
    roles = [str(_role(m)).strip().lower() for m in messages]
    return [(ROLES.get(r, r), _content(_first(m, "content", "value"))) for r, m in zip(roles, messages, strict=True)]


def _role(message: object) -> object:
    return _first(message, "role", "from") if isinstance(message, Mapping) else None


def _first(row: Mapping[str, object], *names: str) -> object:
    """The first value that is not None: a table gives every row all columns."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _content(content: object) -> str:
    """A message's content as text; the parts of a list are joined by line feeds."""
    if not isinstance(content, list | tuple):
        return text_cell({"a message's content": content}, "a message's content")
    for part in content:
        text, kind = (part.get("text"), part.get("type")) if isinstance(part, Mapping) else (part, None)
        if not isinstance(text, str) or kind not in TEXTUAL:
            shown = kind or (listed(part) if isinstance(part, Mapping) else part)
            raise ValueError(f"a message has a part that is not text: {shortened(str(shown), 50)}")
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content)


def exchange(messages: Sequence[Message]) -> dict[str, str | None]:
    """The row of one user-assistant exchange, or of two.

    Of two, the second user message is the correction turn and the first reply is the original answer.
    """
    turns = [message for message in messages if message[0] != "system"]
    roles = [role for role, _ in turns]
    if roles not in (["user", "assistant"], ["user", "assistant"] * 2):
        raise ValueError(f"messages have the roles {listed(roles) or '(none)'}; expected user, assistant once or twice")
    system = [text for role, text in messages if role == "system"]
    return {
        "question": "\n\n".join(filter(None, [*system, turns[0][1]])),
        "original_answer": turns[1][1] if len(turns) > 2 else None,
        "correct_answer": turns[-1][1],
    }


def messages_or_text(row: Mapping[str, object], name: str, role: str) -> list[Message]:
    """The messages of a cell; plain text is one message of `role`."""
    value = parsed_json(row.get(name))
    if isinstance(value, list | tuple) and value and all(_role(message) is not None for message in value):
        return messages_of(value, name)
    if isinstance(value, str) and _REPR.match(value):
        raise ValueError(f"{name} are messages in Python's repr, not JSON")
    return [(role, text_cell(row, name))]


def text_of(value: object, name: str, i: int, problems: dict[int, str]) -> str:
    """A cell as stripped text, "" if it is empty. Adds a value that is not text to `problems` under `i`."""
    if isinstance(value, str):
        return visible(value.strip())
    if value is None or value != value:  # NaN: a missing value of a table
        return ""
    if isinstance(value, Mapping | list | tuple | bytes):
        try:
            return _of_messages(value, name).strip()
        except ValueError as error:
            problems.setdefault(i, str(error))
            return ""
    return str(value)


def _of_messages(value: object, name: str) -> str:
    """The text of a list of content parts, or of a list with one message besides system messages."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(part, Mapping) for part in value):
        raise ValueError(f"{name} is a {type(value).__name__}, not text")
    if all(_role(message) is None for message in value):
        return _content(value)
    messages = messages_of(value, name)
    if sum(role != "system" for role, _ in messages) != 1:
        raise ValueError(f"{name} is a conversation, not text: {listed(role for role, _ in messages)}")
    return "\n\n".join(text for _, text in messages if text)


def visible(text: str) -> str:
    """The text, or "" if no character is visible, as with zero-width characters."""
    return text if len(text) > 50 or any(c.isprintable() and not c.isspace() for c in text) else ""
