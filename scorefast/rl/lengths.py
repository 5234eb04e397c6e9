"""The longest conversation of a data set, which has to fit the context of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scorefast.data.example import Example
from scorefast.errors import UserError
from scorefast.model.chat_format import ChatFormat
from scorefast.schema import Recipe

Given = Callable[[Example], tuple[str, str]]


def longest_conversation(
    chat: ChatFormat, examples: Iterable[Example], reply: int, given: Given = lambda e: ("", "")
) -> tuple[int, str]:
    """(upper bound of the tokens in two turns, the question with that bound).

    A reply counts as `reply` tokens. given: texts of the two replies, by example; a longer text counts in full.
    """
    worst, longest, correction = 0, "", len(chat.next_turn([]))
    for e in examples:
        replies = sum(max(reply, len(chat.reply(text))) if text else reply for text in given(e))
        total = len(chat.first_turn(e.question)) + correction + replies
        if total > worst:
            worst, longest = total, e.question
    return worst, longest


def require_room(needed: int, question: str, recipe: Recipe) -> None:
    """Raise UserError naming the longest question if its conversation exceeds model.max_seq_length. Without this check
    the libraries truncate it silently."""
    if needed > recipe.model.max_seq_length:
        raise UserError(
            f"question {question[:60]!r}: needs up to {needed} tokens in two turns, model.max_seq_length is "
            f"{recipe.model.max_seq_length}; raise it, lower rollout.max_new_tokens, or drop the question"
        )
