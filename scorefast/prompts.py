"""From a question to token ids, and on to the second turn, through the tokenizer's own chat template.

Text from data is data: no question, reply or instruction yields a control token, so `<end_of_turn>` inside a question
stays text. What the template puts around them is encoded as the template means it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

from scorefast.untrusted import bounded_work, one_line

# The wording of the paper's mathematics prompt (arXiv 2409.12917, appendix), without its formatting demand.
# It neither contains the answer nor says whether the first attempt was right.
CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution."
)

# What a template is told of the date: some write it into the prompt, which then would change during a run, and after
# it. Llama-3's own choice, where it cannot know.
THE_DAY = date(2024, 7, 26)
TEMPLATE_WORK = (10.0, 2**28)  # seconds and bytes that compiling and filling a template may take; Gemma's takes 0.1 s
_SLOTS = ["QuestionSlot", "ReplySlot", "CorrectionSlot"]


@dataclass(frozen=True)
class ChatFormat:
    """A chat template taken apart once: token ids are joined from its pieces, replies stay exactly as sampled.

    Raises ValueError, one line, for a template that cannot be taken apart.
    """

    tokenizer: Any  # a transformers fast tokenizer with a chat template
    correction: str = CORRECTION

    def __post_init__(self) -> None:
        _ = self._closing  # what is wrong with a template shows here, not in the first rollout

    def _unfit(self, what: str) -> ValueError:
        return ValueError(f"{self.tokenizer.name_or_path or 'tokenizer'}: its chat template {what}")

    def template(self, turns: Sequence[dict[str, str]]) -> str:
        """The turns as the template writes them, up to where the next reply begins; on every day as on the same one."""
        return self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, strftime_now=THE_DAY.strftime
        )

    @cached_property
    def _pieces(self) -> tuple[tuple[int, ...], ...]:
        """Ids before the question, between question and reply, between reply and next user turn, and after that."""
        turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), _SLOTS, strict=True)]
        try:
            with bounded_work(*TEMPLATE_WORK):
                text = self.template(turns)
        except Exception as error:  # a template is a program: it can raise anything
            raise self._unfit(f"fails on user, assistant, user: {one_line(error)}") from error
        slots = "|".join(_SLOTS)
        if re.findall(slots, text) != _SLOTS:
            raise self._unfit("does not write each message once, unchanged and in order")
        pieces = re.split(slots, text)
        return tuple(tuple(self.tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces)

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids that text must not yield: special tokens, and added tokens that the template writes.

        Many ChatML models have `<|im_end|>`, and Qwen `<tool_call>`, as added tokens without the special flag. The
        template's source counts too, for what it writes in other conversations. White space (Gemma adds a token for
        a line break) and single characters control nothing.
        """
        written = {token for piece in self._pieces for token in piece}
        source = self.tokenizer.get_chat_template()
        control = set(self.tokenizer.all_special_ids)
        for token, added in self.tokenizer.added_tokens_decoder.items():
            if added.special or (len(added.content.strip()) > 1 and (token in written or added.content in source)):
                control.add(token)
        return frozenset(control)

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """What the template puts after a reply, up to and including its first control token."""
        between = self._pieces[2]
        for position, token in enumerate(between):
            if token in self._control:
                return between[: position + 1]
        raise self._unfit("closes a reply with no special or added token")

    @property
    def end_of_turn(self) -> int:
        """The token that closes a reply: the first control token the template puts after it."""
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
        found = []
        for start in range(0, len(texts), 256):  # of so many the tokenizer keeps offsets and more in memory
            stripped = [text.strip() for text in texts[start : start + 256]]
            coded = self.tokenizer(stripped, add_special_tokens=False, split_special_tokens=True).input_ids
            found += [self._without_control(text, ids) for text, ids in zip(stripped, coded, strict=True)]
        return found

    def _without_control(self, text: str, ids: list[int]) -> list[int]:
        """Where the tokenizer saw a control token (one not flagged special), the text is cut inside it, and again."""
        if self._control.isdisjoint(ids):
            return ids
        coded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        seen = zip(coded.input_ids, coded.offset_mapping, strict=True)
        cuts = [(start + end) // 2 for token, (start, end) in seen if token in self._control and end - start > 1]
        if not cuts:
            return ids
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        again = [self.tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids for part in parts]
        return [token for pair in zip(parts, again, strict=True) for token in self._without_control(*pair)]

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
        rest = between[len(self._closing) if closed else 0 :]
        return [*rest, *self.encode(self.correction if user is None else user), *after]

    def reply(self, text: str) -> list[int]:
        """Ids of a whole reply with its closing token, as a model would sample it."""
        return [*self.encode(text), *self._closing]

    def decode(self, reply: list[int]) -> str:
        """The text of a reply, without special tokens and what closes it, be that flagged special or not."""
        ends = self.end_tokens
        ids = [token for token in reply if token not in ends]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def render(self, ids: list[int]) -> list[tuple[str, bool]]:
        """The ids as a model sees them: text (False), and every control token by itself (True)."""
        shown: list[tuple[str, bool]] = []
        for control, run in groupby(ids, key=self._control.__contains__):
            if control:
                shown += [(token, True) for token in self.tokenizer.convert_ids_to_tokens(list(run))]
            else:
                shown.append((self.tokenizer.decode(list(run), clean_up_tokenization_spaces=False), False))
        return shown
