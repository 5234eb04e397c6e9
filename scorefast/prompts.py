"""From a question to token ids, and on to the second turn, through the tokenizer's own chat template.

Text from data is data: questions and replies are encoded without special tokens, so `<end_of_turn>` inside a question
stays text. What the template puts around them is encoded as the template means it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

# The wording of the paper's mathematics prompt (arXiv 2409.12917, appendix), without its formatting demand.
# It neither contains the answer nor says whether the first attempt was right.
CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution."
)

_USER, _REPLY, _AGAIN = "QuestionSlot", "ReplySlot", "CorrectionSlot"


@dataclass(frozen=True)
class ChatFormat:
    """A chat template taken apart once: token ids are joined from its pieces, replies stay exactly as sampled."""

    tokenizer: Any  # a transformers fast tokenizer with a chat template
    correction: str = CORRECTION

    @cached_property
    def _pieces(self) -> tuple[tuple[int, ...], ...]:
        """Ids before the question, between question and reply, between reply and next user turn, and after that."""
        turns = [
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _REPLY},
            {"role": "user", "content": _AGAIN},
        ]
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, rest = text.split(_USER)
        ask, rest = rest.split(_REPLY)
        between, after = rest.split(_AGAIN)
        pieces = (before, ask, between, after)
        return tuple(tuple(self.tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)

    @property
    def end_of_turn(self) -> int:
        """The token that closes a reply: the first one the template puts after it."""
        return self._pieces[2][0]

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end generation: the template's closing token and the tokenizer's end of sequence."""
        return {self.end_of_turn} | ({self.tokenizer.eos_token_id} - {None})

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: markers such as `<end_of_turn>` in it do not become control tokens."""
        return self.tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids

    def first_turn(self, question: str) -> list[int]:
        """Ids of the question up to where the first attempt begins."""
        before, ask, _, _ = self._pieces
        return [*before, *self.encode(question), *ask]

    def next_turn(self, reply: list[int], user: str | None = None) -> list[int]:
        """Ids that follow a reply up to where the next attempt begins; `user` defaults to the correction instruction.

        A reply that ended its turn has sampled the closing token itself: it is not repeated.
        """
        _, _, between, after = self._pieces
        closed = bool(reply) and reply[-1] == self.end_of_turn
        return [*between[1 if closed else 0 :], *self.encode(self.correction if user is None else user), *after]

    def reply(self, text: str) -> list[int]:
        """Ids of a whole reply with its closing token, as a model would sample it."""
        return [*self.encode(text), self.end_of_turn]

    def decode(self, reply: list[int]) -> str:
        """The text of a reply, without its closing token."""
        return self.tokenizer.decode(reply, skip_special_tokens=True).strip()
