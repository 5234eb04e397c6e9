"""Two-turn trajectories: token ids exactly as sampled, and which turn each of them belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from scorefast.data.example import Example
from scorefast.model.chat_format import ChatFormat


@dataclass(frozen=True)
class Attempt:
    """ids: as sampled. text: what is graded and shown, without the thoughts before it; empty where these never close.
    truncated: cut by the length limit, or inside a thought; it is graded as it stands."""

    ids: list[int]
    text: str
    truncated: bool
    thoughts: str = ""


@dataclass(frozen=True)
class Trajectory:
    """prompt, first attempt, bridge (the correction turn), second attempt. retold: the second attempt's whole prompt,
    where the template writes the first attempt otherwise into it than it was sampled."""

    example: Example
    prompt: list[int]
    first: Attempt
    bridge: list[int]
    second: Attempt
    retold: list[int] | None = None

    @property
    def sequences(self) -> tuple[tuple[tuple[int, list[int]], ...], ...]:
        """What the model is trained on: one sequence, or where the first attempt is retold, one for each attempt.

        Each is a row of (turn, ids): turn 0 is context, 1 and 2 are the tokens of the attempts.
        """
        first = ((0, self.prompt), (1, self.first.ids))
        if self.retold is None:
            return ((*first, (0, self.bridge), (2, self.second.ids)),)
        return first, ((0, self.retold), (2, self.second.ids))


def attempt(chat: ChatFormat, ids: list[int]) -> Attempt:
    thoughts, answer = chat.answer(ids)
    return Attempt(ids, answer or "", answer is None or not ids or ids[-1] not in chat.end_tokens, thoughts)


def data_attempt(chat: ChatFormat, text: str) -> Attempt:
    """A reply that stands in the data, as token ids."""
    return attempt(chat, chat.reply(text))
