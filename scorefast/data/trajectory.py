"""Two-turn trajectories: token ids exactly as sampled, and the turn of each token."""

from __future__ import annotations

from dataclasses import dataclass

from scorefast.data.example import Example


@dataclass(frozen=True)
class Attempt:
    """One reply of the model.

    ids: token ids as sampled. text: the answer that is graded and shown, without the thoughts before it; empty if the
    thoughts never close. truncated: cut by the length limit, or inside a thought; it is graded nevertheless.
    """

    ids: list[int]
    text: str
    truncated: bool
    thoughts: str = ""


@dataclass(frozen=True)
class Trajectory:
    """Both attempts at one question, with the tokens between them.

    prompt: token ids of turn 1. bridge: token ids of the correction turn. retold: the second attempt's whole prompt, if
    the chat template rewrites the first attempt in it; otherwise None.
    """

    example: Example
    prompt: list[int]
    first: Attempt
    bridge: list[int]
    second: Attempt
    retold: list[int] | None = None

    @property
    def sequences(self) -> tuple[tuple[tuple[int, list[int]], ...], ...]:
        """The training sequences: one for the trajectory, or one per attempt if the first attempt is retold.

        A sequence is a tuple of (turn, ids). Turn 0 is context; 1 and 2 are the tokens of the attempts.
        """
        first = ((0, self.prompt), (1, self.first.ids))
        if self.retold is None:
            return ((*first, (0, self.bridge), (2, self.second.ids)),)
        return first, ((0, self.retold), (2, self.second.ids))
