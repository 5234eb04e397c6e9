"""From a question to token ids, and on to the second turn, through the tokenizer's own chat template.

A prompt's ids are those of `apply_chat_template`: the template's text is encoded as a whole. Text from data is data: no
question, reply or instruction yields a control token, so `<end_of_turn>` inside a question stays text. A reply keeps
the ids it was sampled as. Some templates write a reply into the history otherwise than it was sampled: they drop
thoughts, or add empty ones. `history` says which of the two the second turn sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

from scorefast.grading.thoughts import split_thoughts
from scorefast.model.safe_encoding import Encoder, Segment, Token, control_ids, ids_of, ids_outside_data, joined
from scorefast.model.template import SLOTS, TemplateLayout, TemplateOption, unfit
from scorefast.schema import CORRECTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PROBES = (  # (question, reply)
    ("What is 12 + 34?", "The answer is 46"),
    ("  1 2\t3 ?", "12"),
    ("대한민국의 수도는?", "서울입니다."),
    ("🙂?\n\n - a\n", "(🙂)"),
)


@dataclass(frozen=True)
class ChatFormat:
    """A chat template, and how it is filled.

    system: the system message, if any. question: what is asked, with `{question}` in it. options: variables that the
    template takes, such as enable_thinking. thoughts: what opens and closes a model's thoughts; by default a pair of
    TAGS that the template names. vocabulary: rows of the model's embedding, where they are known.

    Raises ValueError, one line, for a template that cannot be served.
    """

    tokenizer: PreTrainedTokenizerFast  # with a chat template
    correction: str = CORRECTION
    system: str | None = None
    question: str = "{question}"
    options: Mapping[str, TemplateOption] = field(default_factory=dict)
    history: Literal["as_sampled", "as_template"] = "as_sampled"
    thoughts: tuple[str, str] | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        _require_served(self)  # what is wrong with a template shows here, not in the first rollout

    # --- the template --------------------------------------------------------------------------------------------

    @cached_property
    def _layout(self) -> TemplateLayout:
        return TemplateLayout(self.tokenizer, self.correction, self.system, self.options, self.thoughts)

    def template(self, turns: Sequence[str]) -> str:
        """The system message and `turns` of user and assistant as the template writes them, up to where the next reply
        begins. The date is fixed."""
        return self._layout.render(turns)

    def asked(self, question: str) -> str:
        """The first message of a conversation."""
        return self.question.replace("{question}", question)

    @property
    def tags(self) -> tuple[str, str] | None:
        """What opens and closes a thought; None where the template names no tags of thoughts."""
        return self._layout.tags

    @property
    def opens_thought(self) -> bool:
        """Whether the generation prompt leaves a thought open, so that a reply begins inside it."""
        return self._layout.opens_thought

    @property
    def rewrites_history(self) -> bool:
        """Whether the template writes a reply into the history otherwise than it was sampled."""
        return self._layout.rewrites_history

    @property
    def retells(self) -> bool:
        """Whether a later turn sees a reply as the template writes it, and not as it was sampled."""
        return self.history == "as_template" and self.rewrites_history

    @property
    def rule(self) -> str | None:
        """Where the template rewrites the history: what turn 2 sees of turn 1, in words for the user."""
        if not self.rewrites_history:
            return None
        seen = "as the template retells it" if self.retells else "as it was sampled"
        return f"the chat template rewrites thoughts in the history: turn 2 sees turn 1 {seen} (prompt.history)"

    # --- token ids -----------------------------------------------------------------------------------------------

    @cached_property
    def _written(self) -> set[int]:
        """Ids that the template writes itself."""
        forms = ((self._layout.question, ("user",)), (self._layout.exchange, ("user", "assistant", "again")))
        filled = (self._layout.filled(form, **dict.fromkeys(kinds, "a")) for form, kinds in forms)
        return set().union(*(ids_outside_data(self.tokenizer, segments) for segments in filled))

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer, control_ids(self.tokenizer, self._written, self.vocabulary))

    @cached_property
    def _after_reply(self) -> list[Token]:
        """What the template writes after a reply: its end, the correction, and the generation prompt."""
        layout = self._layout
        segments = layout.filled(layout.exchange, user="a", assistant=SLOTS["assistant"], again=self.correction)
        end = len(joined(segments[:-3]))
        return [token for token in self._encoder.tokens(segments) if token[1] >= end]

    @cached_property
    def _bridge(self) -> list[int]:
        return ids_of(self._after_reply)

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """What the template writes after a reply, up to and including its first control token."""
        for position, (token, _, _) in enumerate(self._after_reply):
            if token in self._encoder.control:
                return tuple(self._bridge[: position + 1])
        raise unfit(self.tokenizer, "closes a reply with no special or added token")

    @property
    def end_of_turn(self) -> int:
        """The token that closes a reply: the first control token that the template writes after it."""
        return self._closing[-1]

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end generation: the template's closing token and the tokenizer's end of sequence."""
        return {self.end_of_turn} | ({self.tokenizer.eos_token_id} - {None})

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: markers such as `<end_of_turn>` in it do not become control tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return self._encoder.plain_ids(texts)

    def first_turn(self, question: str) -> list[int]:
        """Ids of the question up to where the first attempt begins."""
        return self._encoder.ids(self._layout.asking(self.asked(question)))

    def next_turn(self, reply: list[int]) -> list[int]:
        """Ids that follow a reply as it was sampled, up to where the next attempt begins.

        A reply that ended its turn has sampled the closing token itself: it is not repeated.
        """
        closed = bool(reply) and reply[-1] == self.end_of_turn
        return self._bridge[len(self._closing) if closed else 0 :]

    def prompt(self, question: str, *replies: list[int]) -> list[int]:
        """Ids of the question, of each reply with the correction turn after it, up to where the next attempt begins."""
        if not replies or not self.retells:
            return sum(([*reply, *self.next_turn(reply)] for reply in replies), self.first_turn(question))
        layout = self._layout
        pieces = layout.filled(layout.exchange, user=self.asked(question), assistant="", again=self.correction)
        start, ask, (between, again, after) = pieces[:-5], pieces[-5], pieces[-3:]
        told = [part for reply in replies for part in (ask, *self._in_history(reply), between, again)]
        return self._encoder.ids([*start, *told, after])

    def _in_history(self, reply: list[int]) -> list[Segment]:
        """What the template makes of a reply that a message follows. Tags of thoughts that were sampled stay tokens."""
        tags = self.tags or ()
        opening = f"{tags[0]}\n" if tags and self.opens_thought else ""
        told = self._layout.retold(opening + self.decode(reply))
        sampled = [tag for tag in tags if self.tokenizer.convert_tokens_to_ids(tag) in reply]
        pattern = "|".join(map(re.escape, sampled)) or "(?!)"
        return [Segment(part, data=not re.fullmatch(pattern, part)) for part in re.split(f"({pattern})", told)]

    def reply(self, text: str) -> list[int]:
        """Ids of a whole reply with its closing token, as a model would sample it: after a thought with nothing in it
        where the generation prompt opens one."""
        before = self._layout.filled(self._layout.question, user="a")
        lead = f"{self.tags[1]}\n\n" if self.opens_thought and self.tags else self._layout.lead or ""
        tokens = self._encoder.tokens([*before, Segment(lead), Segment(text.strip(), data=True)])
        start = len(joined(before))
        return [*(token for token, at, _ in tokens if at >= start), *self._closing]

    # --- shown to people -----------------------------------------------------------------------------------------

    def decode(self, reply: list[int]) -> str:
        """The text of a reply with its thoughts, without special tokens and without the closing token."""
        said = self.tokenizer.decode([token for token in reply if token not in self._unsaid])
        return cast(str, said).strip()

    @cached_property
    def _unsaid(self) -> set[int]:
        """Ids that are no part of what a reply says: special tokens except tags of thoughts, and the closing tokens."""
        tags = {cast(int, self.tokenizer.convert_tokens_to_ids(tag)) for tag in self.tags or ()}
        flagged = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        return (flagged - tags) | self.end_tokens

    def answer(self, reply: list[int]) -> tuple[str, str | None]:
        """(the thoughts, what is said after them): what is said is None where a thought never closes."""
        if self.tags is None:
            return "", self.decode(reply)
        return split_thoughts(self.decode(reply), (self.tags,), opened=self.opens_thought)

    def render(self, ids: list[int]) -> list[tuple[str, bool]]:
        """The ids as a model sees them: (text, False), and (token, True) for every control token."""
        return self._encoder.render(ids)


def _require_served(chat: ChatFormat) -> None:
    if not getattr(chat.tokenizer, "is_fast", False):
        raise ValueError(f"{chat.tokenizer.name_or_path or 'tokenizer'}: has no tokenizer.json, which gives offsets")
    chat._layout.require_options()
    _ = chat._closing
    chat._layout.require_known_generation_prompt()
    if chat.vocabulary is not None and (beyond := [t for t in chat._written if t >= chat.vocabulary]):
        token = chat.tokenizer.convert_ids_to_tokens(beyond[0])
        what = f"writes {token!r}, token {beyond[0]} of a model with {chat.vocabulary} of them"
        raise unfit(chat.tokenizer, what)
    for question, reply in _PROBES:
        chat._layout.require_unchanged(question, reply)
        if not chat.rewrites_history:
            _require_joined(chat, question, reply)


def _require_joined(chat: ChatFormat, question: str, reply: str) -> None:
    """Raises ValueError unless prompt, reply and next turn, joined, are the ids of the whole rendering."""
    layout = chat._layout
    prompt = chat._encoder.ids(layout.filled(layout.question, user=question))
    ids = chat._encoder.ids(layout.filled(layout.exchange, user=question, assistant=reply, again=chat.correction))
    if prompt != ids[: len(prompt)]:
        what = "ends its generation prompt inside a token that a reply shares; part the two by a marker"
        raise unfit(chat.tokenizer, what)
    own = chat.reply(reply)
    if prompt + own + chat.next_turn(own) != ids:
        raise unfit(chat.tokenizer, "does not let a reply stand as it was sampled")
