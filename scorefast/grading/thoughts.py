"""Split a model's reply into its thoughts and the answer after them. Pure functions of text. Imports no torch."""

from __future__ import annotations

import re
from functools import lru_cache

# Known opening and closing tags of thoughts.
TAGS: tuple[tuple[str, str], ...] = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")),
    *(("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|inner_prefix|>", "<|inner_suffix|>")),
    *(("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>")),
    *(("<|channel>thought", "<channel|>"), ("<unused94>thought", "<unused95>")),
)
# In Harmony, thoughts are separate messages.
THOUGHTS = (
    *TAGS,
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
)
# Harmony without its special tokens: `analysis3*5=15assistantfinalThe answer is 15`.
_HARMONY = re.compile(r"analysis(?=\s*[A-Z\d]).*(?:assistant\s*|(?<![^\W\d_]))final(?=\s*[A-Z\d$\\*])", re.DOTALL)
_CONTROL = re.compile(r"\s*<\|(?:return|end|im_end|end_of_text|eot_id|START_RESPONSE|END_RESPONSE)\|>")


def split_thoughts(
    text: str, tags: tuple[tuple[str, str], ...] = THOUGHTS, *, opened: bool = False
) -> tuple[str, str | None]:
    """(The thoughts, the text after the last of them). The text is None if a thought never closes.

    tags: pairs of opening and closing tags, in any case. opened: the text begins inside a thought, as does any
    text with only a closing tag.
    """
    if text.startswith("analysis") and (harmony := _HARMONY.match(text)):
        return text[: harmony.end()], text[harmony.end() :].strip()
    starts, opening, closing = _patterns(tags)
    if not opened and not any(letter in text and start.search(text) for letter, start in starts):
        return "", text
    end = max((match.end() for match in closing.finditer(text)), default=0)
    inside = (opened and not end) or opening.search(text, end) is not None
    thoughts = opening.sub(" ", closing.sub(" ", text if inside else text[:end])).strip()
    said = _CONTROL.sub("", text[end:]) if end else text
    return thoughts, None if inside else said.strip()


def without_thoughts(text: str) -> str | None:
    """The text after the last thought; None if a thought never closes, so that there is no answer."""
    return split_thoughts(text)[1]


@lru_cache(maxsize=16)
def _patterns(
    tags: tuple[tuple[str, str], ...],
) -> tuple[list[tuple[str, re.Pattern[str]]], re.Pattern[str], re.Pattern[str]]:
    """(First characters of tags with patterns of the first two for a cheap search, opening and closing patterns)."""
    seconds: dict[str, str] = {}
    for side in (side for tag in tags for side in tag):
        seconds[side[0]] = seconds.get(side[0], "") + re.escape(side[1:2].lower() + side[1:2].upper())
    starts = [
        (first, re.compile(re.escape(first) + (f"[{second}]" if second else ""))) for first, second in seconds.items()
    ]
    opening, closing = ("|".join(map(re.escape, dict.fromkeys(side))) for side in zip(*tags, strict=True))
    return starts, re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE)
