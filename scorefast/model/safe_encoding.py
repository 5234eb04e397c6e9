"""Text to token ids. Data never yields a control token. Imports no torch.

A prompt is a row of segments: text that the chat template writes, and data (questions, replies, instructions). The
whole text is encoded at once, as `apply_chat_template` does. Where data spell out a control token, such as
`<end_of_turn>`, the text around the template's own control tokens is encoded again as plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, zip_longest
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 256  # texts encoded at once: the tokenizer keeps their offsets in memory

Token = tuple[int, int, int]  # (id, start, end): text[start:end] is the token's text
Span = tuple[int, int]  # (start, end) in a text


@dataclass(frozen=True)
class Segment:
    """A part of a prompt's text. data: it may hold anything, and yields no control token."""

    text: str
    data: bool = False


@dataclass(frozen=True)
class Encoder:
    """Encodes segments. control: the ids that data must not yield, see `control_ids`."""

    tokenizer: PreTrainedTokenizerFast
    control: frozenset[int]

    def tokens(self, segments: Sequence[Segment]) -> list[Token]:
        """The tokens of the whole text. If data spell out a control token, the text between the template's own control
        tokens is encoded again as plain text."""
        text, data = joined(segments), _data_spans(segments)
        tokens = _tokenize(self.tokenizer, [text])[0]
        if not any(token in self.control and _inside(text, a, b, data) for token, a, b in tokens):
            return tokens
        own = [(t, a, b) for t, a, b in tokens if t in self.control and not _inside(text, a, b, data)]
        edges = list(pairwise([0, *(edge for _, a, b in own for edge in (a, b)), len(text)]))[::2]
        parts = self._plain_tokens([(text[a:b], _shifted(data, a)) for a, b in edges])
        told = [[(t, at + a, at + b) for t, a, b in part] for (at, _), part in zip(edges, parts, strict=True)]
        return [token for part, mark in zip_longest(told, own) for token in (*part, *([mark] if mark else []))]

    def ids(self, segments: Sequence[Segment]) -> list[int]:
        """The ids of `tokens`."""
        return ids_of(self.tokens(segments))

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as data, without the white space at its ends."""
        found = []
        for start in range(0, len(texts), BATCH):
            stripped = [text.strip() for text in texts[start : start + BATCH]]
            found += [ids_of(tokens) for tokens in self._plain_tokens([(text, [(0, len(text))]) for text in stripped])]
        return found

    def _plain_tokens(self, texts: Sequence[tuple[str, list[Span]]]) -> list[list[Token]]:
        """Tokens of (text, spans of data in it), for texts without control tokens of the template. A control token that
        is not flagged special is found even in plain text: then the data are cut inside it, and the parts encoded."""
        if not texts:
            return []
        found = _tokenize(self.tokenizer, [text for text, _ in texts], plain=True)
        parts: list[tuple[str, list[Span]]] = []
        places: list[tuple[int, list[int]]] = []  # (index of a text, where its parts begin)
        for index, ((text, data), tokens) in enumerate(zip(texts, found, strict=True)):
            seen = [(a, b) for token, a, b in tokens if token in self.control and b - a > 1]
            if cuts := [(a + b) // 2 for a, b in seen if _inside(text, a, b, data)]:
                edges = [0, *cuts, len(text)]
                parts += [(text[a:b], _shifted(data, a)) for a, b in pairwise(edges)]
                places.append((index, edges[:-1]))
        again = iter(self._plain_tokens(parts))
        for index, starts in places:
            found[index] = [(token, at + a, at + b) for at in starts for token, a, b in next(again)]
        return found

    def render(self, ids: Iterable[int]) -> list[tuple[str, bool]]:
        """The ids as a model sees them: (text, False), and (token, True) for every control token."""
        shown: list[tuple[str, bool]] = []
        for control, run in groupby(ids, key=self.control.__contains__):
            if control:
                shown += [(token, True) for token in self.tokenizer.convert_ids_to_tokens(list(run))]
            else:
                text = self.tokenizer.decode(list(run), clean_up_tokenization_spaces=False)
                shown.append((cast(str, text), False))
        return shown


def control_ids(tokenizer: PreTrainedTokenizerFast, written: set[int], vocabulary: int | None) -> frozenset[int]:
    """Ids that data must not yield: special tokens, added tokens that the template writes, and ids from `vocabulary`
    on, for which the model has no embedding.

    Many ChatML models have `<|im_end|>`, and Qwen `<tool_call>`, as added tokens without the special flag. A token that
    the template's source names counts as well: the template may write it in other conversations. White space (Gemma
    adds a token for a line break) and single characters control nothing.
    """
    source = tokenizer.get_chat_template()
    control = set(tokenizer.all_special_ids)
    for token, added in tokenizer.added_tokens_decoder.items():
        known = vocabulary is None or token < vocabulary
        named = len(added.content.strip()) > 1 and (token in written or added.content in source)
        if added.special or named or not known:
            control.add(token)
    return frozenset(control)


def ids_outside_data(tokenizer: PreTrainedTokenizerFast, segments: Sequence[Segment]) -> set[int]:
    """Ids of the tokens that the template writes itself, without a character of data."""
    spans = _data_spans(segments)
    tokens = _tokenize(tokenizer, [joined(segments)])[0]
    return {token for token, start, end in tokens if not any(a < end and start < b for a, b in spans)}


def joined(segments: Iterable[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def ids_of(tokens: Iterable[Token]) -> list[int]:
    return [token for token, _, _ in tokens]


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, plain: bool = False) -> list[list[Token]]:
    """The tokenizer's own tokens of each text. plain: a special token that is spelt out is text."""
    coded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True)
    pairs = zip(coded.input_ids, coded.offset_mapping, strict=True)
    return [[(token, *span) for token, span in zip(ids, spans, strict=True)] for ids, spans in pairs]


def _data_spans(segments: Iterable[Segment]) -> list[Span]:
    spans, at = [], 0
    for segment in segments:
        if segment.data:
            spans.append((at, at + len(segment.text)))
        at += len(segment.text)
    return spans


def _shifted(spans: Iterable[Span], start: int) -> list[Span]:
    """The spans in the text that begins at `start`."""
    return [(a - start, b - start) for a, b in spans]


def _inside(text: str, start: int, end: int, data: Sequence[Span]) -> bool:
    """Whether any of the token text[start:end] is data. White space at the token's ends does not count."""
    token = text[start:end]
    start, end = end - len(token.lstrip()), start + len(token.rstrip())
    return any(a < end and start < b for a, b in data)
