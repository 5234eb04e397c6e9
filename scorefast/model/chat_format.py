"""From a question to token ids, and on to the second turn, through the tokenizer's own chat template.

A prompt's ids are those of `apply_chat_template`: the text that the template writes is encoded as a whole. Text from
data is data: no question, reply or instruction yields a control token, so `<end_of_turn>` inside a question stays text.
A reply keeps the ids it was sampled as. Where a template writes a reply otherwise into the history than it was sampled
(it drops thoughts, or adds empty ones), `history` says which of the two the second turn sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from itertools import groupby, pairwise, zip_longest
from typing import Any, Literal

from scorefast.files.bounded import bounded_work
from scorefast.files.text import one_line, shortened
from scorefast.grading.thoughts import TAGS, split_thoughts
from scorefast.schema import CORRECTION

# What a template is told of the date: some write it into the prompt, which then would change during a run, and after
# it. Llama-3's own choice, where it cannot know.
THE_DAY = date(2024, 7, 26)
TEMPLATE_WORK = (10.0, 2**28)  # seconds and bytes that compiling and filling a template may take; Gemma's takes 0.1 s

_SLOTS = {"system": "SystemSlot", "user": "QuestionSlot", "assistant": "ReplySlot", "again": "CorrectionSlot"}
_PROBES = (  # (question, reply)
    ("What is 12 + 34?", "The answer is 46"),
    ("  1 2\t3 ?", "12"),
    ("대한민국의 수도는?", "서울입니다."),
    ("🙂?\n\n - a\n", "(🙂)"),
)

Token = tuple[int, int, int]  # id, and where in the text it begins and ends


@dataclass(frozen=True)
class Segment:
    """A part of a prompt's text. data: it may hold anything, and yields no control token."""

    text: str
    data: bool = False


@dataclass(frozen=True)
class ChatFormat:
    """A chat template taken apart once, and how it is filled.

    system: the system message, if any. question: what is asked, with `{question}` in it. options: variables that the
    template takes, such as enable_thinking. thoughts: what opens and closes a model's thoughts; by default a pair of
    TAGS that the template names. vocabulary: rows of the model's embedding, where they are known.

    Raises ValueError, one line, for a template that cannot be served.
    """

    tokenizer: Any  # a transformers fast tokenizer with a chat template
    correction: str = CORRECTION
    system: str | None = None
    question: str = "{question}"
    options: Mapping[str, Any] = field(default_factory=dict)
    history: Literal["as_sampled", "as_template"] = "as_sampled"
    thoughts: tuple[str, str] | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        self._require_served()  # what is wrong with a template shows here, not in the first rollout

    def _unfit(self, what: str) -> ValueError:
        return ValueError(f"{self.tokenizer.name_or_path or 'tokenizer'}: its chat template {what}")

    # --- what the template writes --------------------------------------------------------------------------------

    def template(self, turns: Sequence[str]) -> str:
        """The messages of user and assistant in turns, as the template writes them after the system message, up to
        where the next reply begins. On every day as on the same one."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self._rendered(messages)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, strftime_now=THE_DAY.strftime, **self.options
        )
        return text

    def _pieces(self, *kinds: str) -> tuple[list[str], set[str]]:
        """What the template writes around messages of these kinds, and the kinds that it strips of white space."""
        slots = {kind: _SLOTS[kind] for kind in (*(["system"] if self.system is not None else []), *kinds)}
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
            raise self._unfit(f"fails {spoken}: {one_line(error)}{instead}") from error
        names = "|".join(slots.values())
        if re.findall(names, text) != [*slots.values()]:
            raise self._unfit("does not write each message once, unchanged and in order")
        return re.split(names, text), {kind for kind, slot in slots.items() if f" {slot} " not in spaced}

    @cached_property
    def _alone(self) -> tuple[list[str], set[str]]:
        return self._pieces("user")

    @cached_property
    def _in_full(self) -> tuple[list[str], set[str]]:
        return self._pieces("user", "assistant", "again")

    def asked(self, question: str) -> str:
        """The first message of a conversation."""
        return self.question.replace("{question}", question)

    def _filled(self, form: tuple[list[str], set[str]], **messages: str) -> list[Segment]:
        pieces, stripped = form
        if self.system is not None:
            messages = {"system": self.system, **messages}
        filled = [Segment(pieces[0])]
        for (kind, text), piece in zip(messages.items(), pieces[1:], strict=True):
            filled += [Segment(text.strip() if kind in stripped else text, data=True), Segment(piece)]
        return filled

    @cached_property
    def _before_reply(self) -> tuple[str, str]:
        """What stands between a question and the reply to it: where the reply is to be written, and in the history."""
        at = 2 if self.system is not None else 1
        return self._alone[0][at], self._in_full[0][at]

    @property
    def _lead(self) -> str | None:
        """White space that the history has before a reply, and a model samples itself; None where the history has
        something else there than the generation prompt."""
        new, old = self._before_reply
        return old[len(new) :] if old.startswith(new) and not old[len(new) :].strip() else None

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the generation prompt leaves a thought open, so that a reply begins inside it."""
        generation = self._before_reply[0]
        return self.tags is not None and generation.rfind(self.tags[0]) > generation.rfind(self.tags[1])

    @cached_property
    def tags(self) -> tuple[str, str] | None:
        """What opens and closes a thought; None where the template knows of none."""
        source = self.tokenizer.get_chat_template()
        return self.thoughts or next((pair for pair in TAGS if pair[0] in source or pair[1] in source), None)

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template writes a reply otherwise into the history than it was sampled."""
        if self._lead is None or self.tags is None:
            return self._lead is None
        thought, reply = f"{self.tags[0]}\nHm.\n{self.tags[1]}\n\n", "46"
        with bounded_work(*TEMPLATE_WORK):
            return f"{thought}{reply}" not in self.template(["12 + 34?", thought + reply, self.correction])

    @property
    def rule(self) -> str | None:
        """Where the template rewrites the history: what turn 2 sees of turn 1, in words for the user."""
        if not self.rewrites_history:
            return None
        seen = "as the template retells it" if self.retells else "as it was sampled"
        return f"the chat template rewrites thoughts in the history: turn 2 sees turn 1 {seen} (prompt.history)"

    # --- what is served ------------------------------------------------------------------------------------------

    def _require_served(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"{self.tokenizer.name_or_path or 'tokenizer'}: has no tokenizer.json, which gives offsets"
            )
        source = self.tokenizer.get_chat_template()
        for name in self.options:
            if not re.search(rf"\b{re.escape(name)}\b", source):
                raise self._unfit(f"takes no option {shortened(name, 60)!r} (prompt.options)")
        _ = self._closing, self._alone
        self._require_known_generation_prompt()
        if self.vocabulary is not None and (beyond := [t for t in self._written if t >= self.vocabulary]):
            token = self.tokenizer.convert_ids_to_tokens(beyond[0])
            raise self._unfit(f"writes {token!r}, token {beyond[0]} of a model with {self.vocabulary} of them")
        for question, reply in _PROBES:
            self._require_equal(question, reply)

    def _require_known_generation_prompt(self) -> None:
        """What a reply is written after has to be what the history shows before it, but for tags of thoughts."""
        pieces, whole = self._alone[0], self._in_full[0]
        if pieces[:-1] != whole[: len(pieces) - 1]:
            raise self._unfit("writes a question otherwise once a reply follows it")
        new, old = self._before_reply
        shared = next((i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
        tags = "|".join(re.escape(tag) for pair in (*TAGS, self.tags or TAGS[0]) for tag in pair)
        if all(re.fullmatch(rf"(?:\s|{tags})*", text[shared:]) for text in (new, old)):
            return
        if old.startswith(new):
            missing = shortened(repr(old[shared:]), 60)
            raise self._unfit(
                f"leaves {missing} out of its generation prompt, and has it before replies in the history"
            )
        raise self._unfit(
            f"asks for a reply by {shortened(repr(new[shared:]), 60)}, and has {shortened(repr(old[shared:]), 60)} "
            "before replies in the history"
        )

    def _require_equal(self, question: str, reply: str) -> None:
        """Prompts are `apply_chat_template`'s, and what is joined from them and a reply is the whole rendering's."""
        first = self._filled(self._alone, user=question)
        whole = self._filled(self._in_full, user=question, assistant=reply, again=self.correction)
        with bounded_work(*TEMPLATE_WORK):
            texts = self.template([question]), self.template([question, reply, self.correction])
        if texts != tuple("".join(segment.text for segment in segments) for segments in (first, whole)):
            raise self._unfit("changes what a message says, other than at its ends")
        if self.rewrites_history:
            return
        ids, prompt = _ids(self._tokens(whole)), _ids(self._tokens(first))
        if prompt != ids[: len(prompt)]:
            raise self._unfit("ends its generation prompt inside a token that a reply shares; part the two by a marker")
        own = self.reply(reply)
        if prompt + own + self.next_turn(own) != ids:
            raise self._unfit("does not let a reply stand as it was sampled")

    # --- token ids -----------------------------------------------------------------------------------------------

    @cached_property
    def _written(self) -> set[int]:
        """Ids that the template writes itself."""
        written = set()
        for form, messages in (
            (self._alone, {"user": "a"}),
            (self._in_full, {"user": "a", "assistant": "a", "again": "a"}),
        ):
            segments = self._filled(form, **messages)
            spans = _data_spans(segments)
            coded = self._coded(["".join(segment.text for segment in segments)])[0]
            written |= {token for token, start, end in coded if not any(a < end and start < b for a, b in spans)}
        return written

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids that text must not yield: special tokens, added tokens that the template writes, and ids that the model
        has no embedding for.

        Many ChatML models have `<|im_end|>`, and Qwen `<tool_call>`, as added tokens without the special flag. The
        template's source counts too, for what it writes in other conversations. White space (Gemma adds a token for
        a line break) and single characters control nothing.
        """
        source = self.tokenizer.get_chat_template()
        control = set(self.tokenizer.all_special_ids)
        for token, added in self.tokenizer.added_tokens_decoder.items():
            known = self.vocabulary is None or token < self.vocabulary
            named = len(added.content.strip()) > 1 and (token in self._written or added.content in source)
            if added.special or named or not known:
                control.add(token)
        return frozenset(control)

    def _coded(self, texts: Sequence[str], *, plain: bool = False) -> list[list[Token]]:
        """What the tokenizer makes of each text; `plain`: where special tokens are spelt out, they are text."""
        coded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True
        )
        pairs = zip(coded.input_ids, coded.offset_mapping, strict=True)
        return [[(token, *span) for token, span in zip(ids, spans, strict=True)] for ids, spans in pairs]

    def _tokens(self, segments: Sequence[Segment]) -> list[Token]:
        """The whole text's tokens. Where data spell out a control token, what stands between the template's own ones is
        encoded again, as plain text."""
        text, data = "".join(segment.text for segment in segments), _data_spans(segments)
        tokens = self._coded([text])[0]
        if not any(token in self._control and _inside(text, a, b, data) for token, a, b in tokens):
            return tokens
        own = [(t, a, b) for t, a, b in tokens if t in self._control and not _inside(text, a, b, data)]
        edges = list(pairwise([0, *(edge for _, a, b in own for edge in (a, b)), len(text)]))[::2]
        parts = self._plain_tokens([(text[a:b], [(s - a, e - a) for s, e in data]) for a, b in edges])
        told = [[(t, at + a, at + b) for t, a, b in part] for (at, _), part in zip(edges, parts, strict=True)]
        return [token for part, mark in zip_longest(told, own) for token in (*part, *([mark] if mark else []))]

    def _plain_tokens(self, texts: Sequence[tuple[str, list[tuple[int, int]]]]) -> list[list[Token]]:
        """Of texts without control tokens of the template's, each with where its data stand. Where the tokenizer sees a
        control token all the same (one not flagged special), the data are cut inside it, and encoded again in parts."""
        if not texts:
            return []
        found = self._coded([text for text, _ in texts], plain=True)
        parts: list[tuple[str, list[tuple[int, int]]]] = []
        places: list[tuple[int, list[int]]] = []  # which text, and where its parts begin
        for index, ((text, data), tokens) in enumerate(zip(texts, found, strict=True)):
            seen = [(a, b) for token, a, b in tokens if token in self._control and b - a > 1]
            if cuts := [(a + b) // 2 for a, b in seen if _inside(text, a, b, data)]:
                edges = [0, *cuts, len(text)]
                parts += [(text[a:b], [(s - a, e - a) for s, e in data]) for a, b in pairwise(edges)]
                places.append((index, edges[:-1]))
        again = iter(self._plain_tokens(parts))
        for index, starts in places:
            found[index] = [(token, at + a, at + b) for at in starts for token, a, b in next(again)]
        return found

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """What the template puts after a reply, up to and including its first control token."""
        tokens = self._tokens_after_reply()
        for position, (token, _, _) in enumerate(tokens):
            if token in self._control:
                return tuple(_ids(tokens[: position + 1]))
        raise self._unfit("closes a reply with no special or added token")

    def _tokens_after_reply(self) -> list[Token]:
        segments = self._filled(self._in_full, user="a", assistant=_SLOTS["assistant"], again=self.correction)
        end = sum(len(segment.text) for segment in segments[:-3])
        return [token for token in self._tokens(segments) if token[1] >= end]

    @cached_property
    def _bridge(self) -> list[int]:
        return _ids(self._tokens_after_reply())

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
            found += [_ids(tokens) for tokens in self._plain_tokens([(text, [(0, len(text))]) for text in stripped])]
        return found

    def first_turn(self, question: str) -> list[int]:
        """Ids of the question up to where the first attempt begins."""
        return _ids(self._tokens(self._asking(self.asked(question))))

    def _asking(self, text: str) -> list[Segment]:
        """The first message as the template writes it: around what it says, and where a template reads that (for a
        switch such as /no_think), as it comes out then."""
        usual = self._filled(self._alone, user=text)
        if "/" not in text:
            return usual
        written = self.template([text])
        said = text.strip() if "user" in self._alone[1] else text
        if written == "".join(segment.text for segment in usual) or written.count(said) != 1:
            return usual
        before, after = written.split(said)
        return [Segment(before), Segment(said, data=True), Segment(after)]

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
        pieces = self._filled(self._in_full, user=self.asked(question), assistant="", again=self.correction)
        start, ask, (between, again, after) = pieces[:-5], pieces[-5], pieces[-3:]
        told = [part for reply in replies for part in (ask, *self._in_history(reply), between, again)]
        return _ids(self._tokens([*start, *told, after]))

    @property
    def retells(self) -> bool:
        """Whether a later turn sees a reply as the template writes it, and not as it was sampled."""
        return self.history == "as_template" and self.rewrites_history

    def _in_history(self, reply: list[int]) -> list[Segment]:
        """What the template makes of a reply that a message follows. Tags of thoughts that were sampled stay tokens."""
        said = f"{self.tags[0]}\n" * self.opens_thought + self.decode(reply) if self.tags else self.decode(reply)
        around = self._filled(self._in_full, user=_SLOTS["user"], assistant="", again=_SLOTS["again"])
        left, right = ("".join(part.text for part in parts) for parts in (around[:-4], around[-3:]))
        with bounded_work(*TEMPLATE_WORK):
            text = self.template([_SLOTS["user"], said, _SLOTS["again"]])
        told = text[len(left) : len(text) - len(right)] if text.startswith(left) and text.endswith(right) else said
        sampled = [tag for tag in self.tags or () if self.tokenizer.convert_tokens_to_ids(tag) in reply]
        tags = "|".join(map(re.escape, sampled)) or "(?!)"
        return [Segment(part, data=not re.fullmatch(tags, part)) for part in re.split(f"({tags})", told)]

    def reply(self, text: str) -> list[int]:
        """Ids of a whole reply with its closing token, as a model would sample it: after a thought with nothing in it
        where the generation prompt opens one."""
        before = self._filled(self._alone, user="a")
        start = sum(len(segment.text) for segment in before)
        lead = f"{self.tags[1]}\n\n" if self.opens_thought and self.tags else self._lead or ""
        tokens = self._tokens([*before, Segment(lead), Segment(text.strip(), data=True)])
        return [*(token for token, at, _ in tokens if at >= start), *self._closing]

    # --- shown to people -----------------------------------------------------------------------------------------

    def decode(self, reply: list[int]) -> str:
        """The text of a reply, thoughts and all, without special tokens and what closes it, flagged special or not."""
        said: str = self.tokenizer.decode([token for token in reply if token not in self._unsaid])
        return said.strip()

    @cached_property
    def _unsaid(self) -> set[int]:
        """Ids that are no part of what a reply says: special ones, but for tags of thoughts, and what closes it."""
        tags = {self.tokenizer.convert_tokens_to_ids(tag) for tag in self.tags or ()}
        flagged = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        return (flagged - tags) | self.end_tokens

    def answer(self, reply: list[int]) -> tuple[str, str | None]:
        """(the thoughts, what is said after them): what is said is None where a thought never closes."""
        if self.tags is None:
            return "", self.decode(reply)
        return split_thoughts(self.decode(reply), (self.tags,), opened=self.opens_thought)

    def render(self, ids: list[int]) -> list[tuple[str, bool]]:
        """The ids as a model sees them: text (False), and every control token by itself (True)."""
        shown: list[tuple[str, bool]] = []
        for control, run in groupby(ids, key=self._control.__contains__):
            if control:
                shown += [(token, True) for token in self.tokenizer.convert_ids_to_tokens(list(run))]
            else:
                shown.append((self.tokenizer.decode(list(run), clean_up_tokenization_spaces=False), False))
        return shown


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token for token, _, _ in tokens]


def _data_spans(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    spans, at = [], 0
    for segment in segments:
        if segment.data:
            spans.append((at, at + len(segment.text)))
        at += len(segment.text)
    return spans


def _inside(text: str, start: int, end: int, data: Sequence[tuple[int, int]]) -> bool:
    """Whether a token stands in data, even in part. White space that a token takes in from its sides does not count."""
    token = text[start:end]
    start, end = end - len(token.lstrip()), start + len(token.rstrip())
    return any(a < end and start < b for a, b in data)
