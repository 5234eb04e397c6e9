"""What a chat template writes around messages. Text alone: `safe_encoding` makes token ids of it. Imports no torch.

The template renders two conversations with a slot in place of each message. The text between the slots is what the
template writes itself, so a prompt is that text with messages in the slots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from scorefast.files.bounded import bounded_work
from scorefast.files.text import one_line, shortened
from scorefast.grading.thoughts import TAGS
from scorefast.model.safe_encoding import Segment, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Some templates write today's date into the prompt, which would change during a run and after it. They are told this
# date instead, which Llama-3's template takes where it cannot know.
THE_DAY = date(2024, 7, 26)
TEMPLATE_WORK = (10.0, 2**28)  # seconds and bytes that compiling and filling a template may take; Gemma's takes 0.1 s

TemplateOption = bool | int | float | str

SLOTS = {"system": "SystemSlot", "user": "QuestionSlot", "assistant": "ReplySlot", "again": "CorrectionSlot"}


def unfit(tokenizer: PreTrainedTokenizerFast, what: str) -> ValueError:
    """The error for a template that cannot be served."""
    return ValueError(f"{tokenizer.name_or_path or 'tokenizer'}: its chat template {what}")


@dataclass(frozen=True)
class Form:
    """What a template writes around messages of some kinds, in order.

    pieces: the text before, between and after the messages. stripped: the kinds whose outer white space it removes.
    """

    pieces: tuple[str, ...]
    stripped: frozenset[str]


@dataclass(frozen=True)
class TemplateLayout:
    """A chat template taken apart. The arguments are those of `ChatFormat`.

    Raises ValueError, one line, for a template that fails or does not write each message once, unchanged, in order.
    """

    tokenizer: PreTrainedTokenizerFast
    correction: str
    system: str | None
    options: Mapping[str, TemplateOption]
    thoughts: tuple[str, str] | None

    def render(self, turns: Sequence[str]) -> str:
        """The system message, then `turns` of user and assistant, up to where the next reply begins."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self._rendered(messages)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        variables: dict[str, Any] = {"strftime_now": THE_DAY.strftime, **self.options}
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        return cast(str, text)

    def _form(self, *kinds: str) -> Form:
        slots = {kind: SLOTS[kind] for kind in (*(["system"] if self.system is not None else []), *kinds)}
        roles = {"again": "user"}
        spoken = "on " + ", ".join(roles.get(kind, kind) for kind in slots)
        try:
            with bounded_work(*TEMPLATE_WORK):
                text, spaced = (
                    self._rendered([{"role": roles.get(k, k), "content": form.format(s)} for k, s in slots.items()])
                    for form in ("{}", " {} ")
                )
        except Exception as error:  # a template is a program: it can raise anything
            instead = "; say it in prompt.question" if self.system is not None else ""
            raise unfit(self.tokenizer, f"fails {spoken}: {one_line(error)}{instead}") from error
        names = "|".join(slots.values())
        if re.findall(names, text) != [*slots.values()]:
            raise unfit(self.tokenizer, "does not write each message once, unchanged and in order")
        stripped = frozenset(kind for kind, slot in slots.items() if f" {slot} " not in spaced)
        return Form(tuple(re.split(names, text)), stripped)

    @cached_property
    def question(self) -> Form:
        """Around a question: [system,] user, and the generation prompt."""
        return self._form("user")

    @cached_property
    def exchange(self) -> Form:
        """Around a whole turn and the correction: [system,] user, assistant, again, and the generation prompt."""
        return self._form("user", "assistant", "again")

    def filled(self, form: Form, **messages: str) -> list[Segment]:
        """The form with messages in its slots: a piece, a message, a piece, and so on to the last piece."""
        if self.system is not None:
            messages = {"system": self.system, **messages}
        segments = [Segment(form.pieces[0])]
        for (kind, text), piece in zip(messages.items(), form.pieces[1:], strict=True):
            segments += [Segment(text.strip() if kind in form.stripped else text, data=True), Segment(piece)]
        return segments

    def asking(self, text: str) -> list[Segment]:
        """A first message. Where a template reads it for a switch such as /no_think, what it writes then."""
        usual = self.filled(self.question, user=text)
        if "/" not in text:
            return usual
        written = self.render([text])
        said = text.strip() if "user" in self.question.stripped else text
        if written == joined(usual) or written.count(said) != 1:
            return usual
        before, after = written.split(said)
        return [Segment(before), Segment(said, data=True), Segment(after)]

    def retold(self, said: str) -> str:
        """What the template writes of a reply that a message follows."""
        around = self.filled(self.exchange, user=SLOTS["user"], assistant="", again=SLOTS["again"])
        left, right = joined(around[:-4]), joined(around[-3:])
        with bounded_work(*TEMPLATE_WORK):
            text = self.render([SLOTS["user"], said, SLOTS["again"]])
        return text[len(left) : len(text) - len(right)] if text.startswith(left) and text.endswith(right) else said

    @cached_property
    def before_reply(self) -> tuple[str, str]:
        """The text between a question and the reply: (in the generation prompt, in the history)."""
        at = 2 if self.system is not None else 1
        return self.question.pieces[at], self.exchange.pieces[at]

    @property
    def lead(self) -> str | None:
        """White space that the history has before a reply beyond the generation prompt: a model samples it itself. None
        where the two differ by anything else."""
        new, old = self.before_reply
        return old[len(new) :] if old.startswith(new) and not old[len(new) :].strip() else None

    @cached_property
    def tags(self) -> tuple[str, str] | None:
        """What opens and closes a thought; None where the template names no tags of thoughts."""
        source = self.tokenizer.get_chat_template()
        return self.thoughts or next((pair for pair in TAGS if pair[0] in source or pair[1] in source), None)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the generation prompt leaves a thought open, so that a reply begins inside it."""
        generation = self.before_reply[0]
        return self.tags is not None and generation.rfind(self.tags[0]) > generation.rfind(self.tags[1])

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template changes a reply when it writes it into the history."""
        if self.lead is None or self.tags is None:
            return self.lead is None
        thought, reply = f"{self.tags[0]}\nHm.\n{self.tags[1]}\n\n", "46"
        with bounded_work(*TEMPLATE_WORK):
            return f"{thought}{reply}" not in self.render(["12 + 34?", thought + reply, self.correction])

    def require_options(self) -> None:
        """Raises ValueError for an option that the template's source does not name."""
        source = self.tokenizer.get_chat_template()
        for name in self.options:
            if not re.search(rf"\b{re.escape(name)}\b", source):
                raise unfit(self.tokenizer, f"takes no option {shortened(name, 60)!r} (prompt.options)")

    def require_known_generation_prompt(self) -> None:
        """Raises ValueError unless the history shows before a reply what the generation prompt writes there. Tags of
        thoughts and white space may differ."""
        pieces, whole = self.question.pieces, self.exchange.pieces
        if pieces[:-1] != whole[: len(pieces) - 1]:
            raise unfit(self.tokenizer, "writes a question otherwise once a reply follows it")
        new, old = self.before_reply
        shared = next((i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
        tags = "|".join(re.escape(tag) for pair in (*TAGS, self.tags or TAGS[0]) for tag in pair)
        if all(re.fullmatch(rf"(?:\s|{tags})*", text[shared:]) for text in (new, old)):
            return
        asked, shown = (shortened(repr(text[shared:]), 60) for text in (new, old))
        if old.startswith(new):
            what = f"leaves {shown} out of its generation prompt, and has it before replies in the history"
        else:
            what = f"asks for a reply by {asked}, and has {shown} before replies in the history"
        raise unfit(self.tokenizer, what)

    def require_unchanged(self, question: str, reply: str) -> None:
        """Raises ValueError unless the filled forms are what the template renders of these messages."""
        first = self.filled(self.question, user=question)
        whole = self.filled(self.exchange, user=question, assistant=reply, again=self.correction)
        with bounded_work(*TEMPLATE_WORK):
            texts = self.render([question]), self.render([question, reply, self.correction])
        if texts != (joined(first), joined(whole)):
            raise unfit(self.tokenizer, "changes what a message says, other than at its ends")
