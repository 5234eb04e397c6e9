"""The terminal conversation: a first attempt, the correction turn, a second attempt, and what changed."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from scorefast.model import Policy, generate
from scorefast.recipe import Recipe
from scorefast.report import printable

HELP = """Type a question. The model answers, is asked to check itself, and answers again.
/again   another correction turn on the last answer
/reset   forget the conversation's record
/save F  write the conversation to the file F as JSON lines
/help    this text
/quit    leave (or Ctrl-D)"""


@dataclass
class Exchange:
    """A question and every attempt at it; prompt and reply are the conversation so far as tokens."""

    question: str
    attempts: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    reply: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "question": self.question,
            "attempts": self.attempts,
            "changed": len(self.attempts) > 1 and self.attempts[-1] != self.attempts[-2],
        }


class Speaker:
    """Greedy replies of a policy within its context limit."""

    def __init__(self, policy: Policy, recipe: Recipe):
        self.policy, self.recipe = policy, recipe

    def ask(self, exchange: Exchange, on_text: Callable[[str], None] | None = None) -> None:
        self._attempt(exchange, self.policy.chat.first_turn(exchange.question), on_text)

    def correct(self, exchange: Exchange, on_text: Callable[[str], None] | None = None) -> None:
        following = self.policy.chat.next_turn(exchange.reply)
        self._attempt(exchange, exchange.prompt + exchange.reply + following, on_text)

    def _attempt(self, exchange: Exchange, prompt: list[int], on_text: Callable[[str], None] | None) -> None:
        limit, new = self.recipe.model.max_seq_length, self.recipe.rollout.max_new_tokens
        if len(prompt) + new > limit:
            raise TooLong(f"{len(prompt)} tokens and {new} new ones exceed model.max_seq_length = {limit}")
        streamer = None if on_text is None else TextChunks(self.policy, on_text)
        reply = generate(self.policy, [prompt], max_new_tokens=new, temperature=0.0, batch_size=1, streamer=streamer)[0]
        # Only a finished reply enters the conversation: one that was stopped leaves it as it was.
        exchange.prompt, exchange.reply = prompt, reply
        exchange.attempts.append(self.policy.chat.decode(reply))


class TooLong(Exception):
    """The conversation does not fit the model's context."""


class TextChunks(BaseStreamer):
    """Hands text on as its tokens arrive; bytes of an unfinished UTF-8 character wait for the rest."""

    def __init__(self, policy: Policy, on_text: Callable[[str], None]):
        self.policy, self.on_text = policy, on_text
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        ends = self.policy.chat.end_tokens
        self.ids += [token for token in value.flatten().tolist() if token not in ends]
        text = self.policy.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd") and text.startswith(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        pass


def pipe(policy: Policy, recipe: Recipe, lines: Iterable[str], out: TextIO) -> None:
    """One question a line in, one JSON object a line out; a question that does not fit gets {"error": ...}."""
    speaker = Speaker(policy, recipe)
    for line in lines:
        question = line.strip()
        if not question:
            continue
        try:
            exchange = Exchange(question)
            speaker.ask(exchange)
            speaker.correct(exchange)
            content = exchange.as_json()
        except TooLong as error:
            content = {"question": question, "error": str(error)}
        out.write(json.dumps(content, ensure_ascii=False) + "\n")
        out.flush()


def converse(policy: Policy, recipe: Recipe, console: Console) -> None:
    """The interactive loop: Ctrl-C stops a reply, Ctrl-D or /quit leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()
    speaker = Speaker(policy, recipe)
    record: list[Exchange] = []
    console.print(f"{recipe.model.name}; /help lists the commands", style="dim", highlight=False)
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
            _handle(line, speaker, record, console)
        except KeyboardInterrupt:
            console.print("\n(stopped)", style="dim")
        except TooLong as error:
            console.print(str(error), style="red", highlight=False)


def _handle(line: str, speaker: Speaker, record: list[Exchange], console: Console) -> None:
    command, _, argument = line.partition(" ")
    if not line:
        return
    if command == "/help":
        console.print(HELP, highlight=False, markup=False)
    elif command == "/reset":
        record.clear()
        console.print("forgotten", style="dim")
    elif command == "/save":
        _save(record, argument.strip(), console)
    elif command == "/again":
        if record:
            _show_attempt(record[-1], speaker, console)
        else:
            console.print("nothing to correct yet: ask a question first", style="dim")
    elif line.startswith("/"):
        console.print(f"no command {printable(command)}: /help lists them", style="dim", markup=False, highlight=False)
    else:
        exchange = Exchange(line)
        _stream(console, "first ", lambda on_text: speaker.ask(exchange, on_text))
        record.append(exchange)
        _show_attempt(exchange, speaker, console)


def _show_attempt(exchange: Exchange, speaker: Speaker, console: Console) -> None:
    label = "second" if len(exchange.attempts) == 1 else f"no. {len(exchange.attempts) + 1} "
    _stream(console, label, lambda on_text: speaker.correct(exchange, on_text))
    console.print(changes(*exchange.attempts[-2:]))


def _stream(console: Console, label: str, run: Callable[[Callable[[str], None]], None]) -> None:
    console.print(Text(f"{label} ", style="dim"), end="")
    run(lambda text: console.print(Text(printable(text)), end="", soft_wrap=True))
    console.print()


def changes(before: str, after: str) -> Text:
    """Word by word: what the second attempt dropped (red, struck) and what it added (green)."""
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


def _save(record: list[Exchange], name: str, console: Console) -> None:
    if not name:
        console.print("/save needs a file name", style="dim")
        return
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            for exchange in record:
                file.write(json.dumps(exchange.as_json(), ensure_ascii=False) + "\n")
    except OSError as error:
        console.print(f"{printable(name)}: {error.strerror}", style="red", markup=False, highlight=False)
    else:
        console.print(f"saved {len(record)} exchanges to {printable(name)}", style="dim", markup=False, highlight=False)
