"""Chat in the terminal: a first attempt, the correction turn, a second attempt, and what changed."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from scorefast.errors import TooLong
from scorefast.files.text import json_line, printable, shortened
from scorefast.model.generate import generate
from scorefast.model.policy import Policy
from scorefast.rl.rollout import attempt
from scorefast.schema import Recipe
from scorefast.ui.console import InertConsole

HELP = """Type a question. The model answers, is asked to check itself, and answers again.
/again   another correction turn on the last answer
/reset   clear the record of this conversation
/save F  write the conversation to the file F as JSON lines
/help    this text
/quit    leave (or Ctrl-D)"""

OnText = Callable[[str, bool], None]  # (new text, whether it is a thought)
CHARACTERS_PER_TOKEN = 100  # far more than any language needs; a longer question is refused before tokenization


@dataclass
class Exchange:
    """A question and all attempts at it: texts without thoughts, and token ids."""

    question: str
    attempts: list[str] = field(default_factory=list)
    replies: list[list[int]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "question": self.question,
            "attempts": self.attempts,
            "changed": len(self.attempts) > 1 and self.attempts[-1] != self.attempts[-2],
        }


class Responder:
    """Greedy replies of a policy within its context limit. Raises TooLong for a conversation beyond it."""

    def __init__(self, policy: Policy, recipe: Recipe):
        self.policy, self.recipe = policy, recipe

    @property
    def most_characters(self) -> int:
        return CHARACTERS_PER_TOKEN * self.recipe.model.max_seq_length

    def ask(self, exchange: Exchange, on_text: OnText | None = None) -> None:
        if len(exchange.question) > self.most_characters:
            raise TooLong(
                f"a question has at most {self.most_characters} characters ({CHARACTERS_PER_TOKEN} for each of "
                f"model.max_seq_length = {self.recipe.model.max_seq_length} tokens)"
            )
        self.correct(exchange, on_text)

    def correct(self, exchange: Exchange, on_text: OnText | None = None) -> None:
        """Append the next attempt: the first, or one after another correction turn."""
        prompt = self.policy.chat.prompt(exchange.question, *exchange.replies)
        limit, new = self.recipe.model.max_seq_length, self.recipe.rollout.max_new_tokens
        if len(prompt) + new > limit:
            raise TooLong(f"{len(prompt)} tokens and {new} new ones exceed model.max_seq_length = {limit}")
        streamer = None if on_text is None else TextChunks(self.policy, on_text)
        reply = generate(self.policy, [prompt], max_new_tokens=new, temperature=0.0, batch_size=1, streamer=streamer)[0]
        # Only a finished reply enters the conversation; an interrupted one leaves it unchanged.
        exchange.replies.append(reply)
        exchange.attempts.append(attempt(self.policy.chat, reply).text)


class TextChunks(BaseStreamer):
    """Passes text to `on_text` as its tokens arrive. Bytes of an incomplete UTF-8 character wait for the rest."""

    def __init__(self, policy: Policy, on_text: OnText):
        self.policy, self.on_text = policy, on_text
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        inside = self.policy.chat.answer(self.ids)[1] is None
        self.ids += value.flatten().tolist()
        text = self.policy.chat.decode(self.ids)
        if not text.endswith("\ufffd") and text.startswith(self.shown):
            self.on_text(text[len(self.shown) :], inside or self.policy.chat.answer(self.ids)[1] is None)
            self.shown = text

    def end(self) -> None:
        pass


def truncated_lines(stream: TextIO, most: int) -> Iterator[str]:
    """The lines of a stream, each cut after `most` characters."""
    while line := stream.readline(most):
        rest = line
        while len(rest) == most and not rest.endswith("\n"):
            rest = stream.readline(most)
        yield line


def pipe(policy: Policy, recipe: Recipe, stream: TextIO, out: TextIO) -> None:
    """Read one question per line, write one JSON object per line; a question that is too long gets {"error": ...}."""
    responder = Responder(policy, recipe)
    for line in truncated_lines(stream, responder.most_characters + 2):  # one more than allowed, and the line end
        question = line.strip()
        if not question:
            continue
        try:
            exchange = Exchange(question)
            responder.ask(exchange)
            responder.correct(exchange)
            content = exchange.as_json()
        except TooLong as error:
            content = {"question": shortened(question), "error": str(error)}
        out.write(json_line(content) + "\n")
        out.flush()


def converse(policy: Policy, recipe: Recipe, console: InertConsole) -> None:
    """The interactive loop. Ctrl-C stops a reply; Ctrl-D or /quit ends the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()
    responder = Responder(policy, recipe)
    record: list[Exchange] = []
    console.print(f"{recipe.model.name}; /help lists the commands", style="dim")
    while True:
        try:
            line = console.input("[bold]you>[/bold] ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if line == "/quit":
            return
        try:
            _handle(line, responder, record, console)
        except KeyboardInterrupt:
            console.print("\n(stopped)", style="dim")
        except TooLong as error:
            console.print(str(error), style="red")


def _handle(line: str, responder: Responder, record: list[Exchange], console: InertConsole) -> None:
    command, _, argument = line.partition(" ")
    if not line:
        return
    if command == "/help":
        console.print(HELP)
    elif command == "/reset":
        record.clear()
        console.print("record cleared", style="dim")
    elif command == "/save":
        _save(record, argument.strip(), console)
    elif command == "/again":
        if record:
            _show_attempt(record[-1], responder, console)
        else:
            console.print("nothing to correct yet: ask a question first", style="dim")
    elif line.startswith("/"):
        console.print(f"no command {command}: /help lists the commands", style="dim")
    else:
        exchange = Exchange(line)
        _stream(console, "first ", lambda on_text: responder.ask(exchange, on_text))
        record.append(exchange)
        _show_attempt(exchange, responder, console)


def _show_attempt(exchange: Exchange, responder: Responder, console: InertConsole) -> None:
    label = "second" if len(exchange.attempts) == 1 else f"no. {len(exchange.attempts) + 1} "
    _stream(console, label, lambda on_text: responder.correct(exchange, on_text))
    console.print(changes(*exchange.attempts[-2:]))


def _stream(console: InertConsole, label: str, run: Callable[[OnText], None]) -> None:
    console.print(Text(f"{label} ", style="dim"), end="")
    run(lambda text, thinking: console.print(Text(printable(text), "dim" * thinking), end="", soft_wrap=True))
    console.print()


def changes(before: str, after: str) -> Text:
    """The difference by words: removed words in red and struck through, added words in green."""
    if before == after:
        return Text("unchanged", style="dim")
    a, b = printable(before).split(), printable(after).split()
    text = Text("change ", style="dim")
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            text.append(" ".join(a[a0:a1]) + " ", style="not dim")
            continue
        if a1 > a0:
            text.append(" ".join(a[a0:a1]), style="red strike not dim")
            text.append(" ")
        if b1 > b0:
            text.append(" ".join(b[b0:b1]), style="green not dim")
            text.append(" ")
    return text


def _save(record: list[Exchange], name: str, console: InertConsole) -> None:
    if not name:
        console.print("/save needs a file name", style="dim")
        return
    lines = [json.dumps(exchange.as_json(), ensure_ascii=False) + "\n" for exchange in record]
    try:
        write_private(Path(name).expanduser(), "".join(lines))
    except (OSError, RuntimeError, ValueError) as error:  # the last two: an unknown ~user, an invalid name
        console.print(f"{name}: {getattr(error, 'strerror', None) or error}", style="red")
    else:
        console.print(f"saved {len(record)} exchange{'s' * (len(record) != 1)} to {name}", style="dim")


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, completely or not at all. Raises FileExistsError if it exists."""
    descriptor, beside = tempfile.mkstemp(prefix=".scorefast-", dir=path.parent)  # with mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.link(beside, path)  # unlike a rename, it replaces nothing
    finally:
        os.unlink(beside)
