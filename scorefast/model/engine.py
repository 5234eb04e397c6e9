"""Replies over one or more turns: a prompt encoded once for its samples, keys and values kept, slots refilled.

Three passes through transformers' own decoder layers: the prompts of some questions, in a cache of their own, from
which each sample gets a copy; the turn that follows a reply, in its slot; and one token for every slot. What all
prompts begin with is computed once. The tokens are those of `generate`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefast.model.attention import attending_to_slots
from scorefast.model.decoder import Decoder
from scorefast.model.merged import merged_lora
from scorefast.model.policy import Policy, generating
from scorefast.model.slots import SlotCache

CDF_CELLS = 2**24  # of float64, held at once while tokens are drawn
WORTH_A_PASS = 256  # tokens


@dataclass(frozen=True)
class Reply:
    """One reply: token ids, the closing token included where one was drawn, and log p of each as it was drawn.

    p is softmax(logits / temperature). A greedy token is certain: log p = 0.
    """

    ids: list[int]
    logp: list[float]


@dataclass(frozen=True)
class Noise:
    """One uniform number for every (seed, step, conversation, turn, position), whatever is computed beside it.

    Philox4x64 counts: its key is (seed, step), and its counter starts at (0, 0, turn, conversation). So samples depend
    neither on slots nor on processes, and a resumed run draws them again. conversations: the number of each
    conversation of a call, where it is not its index: a process names its own share of a step.
    """

    seed: int
    step: int = 0
    conversations: Sequence[int] | None = None

    def uniforms(self, index: int, turn: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(count,) in [0, 1), by position in the reply. A shorter row is the beginning of a longer one."""
        number = index if self.conversations is None else self.conversations[index]
        bits = np.random.Philox(key=[self.seed, self.step], counter=[0, 0, turn, number])
        return np.random.Generator(bits).random(count)


# (index of the conversation, its replies so far) -> ids of the turn that follows, or None where it ends.
# Conversation i is sample i % samples of prompt i // samples.
Follow = Callable[[int, list[Reply]], list[int] | None]


@dataclass
class Work:
    """What a call of `converse` computed. Tokens count with their padding."""

    prefill_tokens: int = 0
    prefill_passes: int = 0
    decode_tokens: int = 0
    decode_passes: int = 0


@dataclass
class Engine:
    """Writes replies with a policy that `can_serve` accepts.

    slots: conversations held at once; their keys and values take most of the memory. prefill_tokens: most tokens of a
    pass over prompts and turns, padding included. merge: add LoRA to float32 weights for the time of a call, which
    takes a copy of them. work: of the last call.
    """

    policy: Policy
    slots: int
    max_new_tokens: int
    prefill_tokens: int = 4096
    merge: bool = True
    work: Work = field(default_factory=Work)
    longest: int = 0  # conversation so far: what the cache is made for, so that it seldom grows

    def converse(
        self,
        prompts: Sequence[list[int]],
        samples: int,
        follow: Follow = lambda index, replies: None,
        *,
        temperature: float,
        noise: Noise | None = None,
        on_token: Callable[[], None] = lambda: None,
        on_replies: Callable[[int], None] = lambda count: None,
    ) -> list[list[Reply]]:
        """The replies of prompts x samples conversations, one for each turn. temperature 0 is greedy.

        Samples come from the whole softmax of logits / temperature, by inverse CDF in float64, and need `noise`.
        on_token is called after each pass; what it raises ends the call. on_replies gets the number of ended replies.
        Raises UserError if a prompt or a later turn leaves no room for a reply.
        """
        if temperature > 0 and noise is None:
            raise ValueError("samples need noise")
        self.work = Work()
        self.policy.require_room(max(map(len, prompts), default=0), self.max_new_tokens)
        decoder = Decoder.of(self.policy)
        merged = merged_lora(self.policy.model) if self.merge else nullcontext()
        with generating(self.policy), torch.no_grad(), attending_to_slots(decoder.config), merged:
            run = _Run(self, decoder, prompts, samples, follow, temperature, noise, on_token, on_replies)
            return run.replies()


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(B, V) logits and (B,) uniforms -> (B,) token ids and (B,) their log p; temperature 0 takes the likeliest.

    Token t is drawn where cdf[t - 1] <= u < cdf[t], with the CDF of softmax(logits / temperature) in float64.
    """
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    tokens, logp = [], []
    at_once = max(1, CDF_CELLS // logits.shape[1])
    for block, u in zip(logits.split(at_once), uniforms.split(at_once), strict=True):
        p = (block if temperature == 1 else block / temperature).softmax(-1)
        cdf = p.cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp_(max=p.shape[1] - 1)
        tokens.append(token[:, 0])
        logp.append(p.gather(1, token)[:, 0].log())
    return torch.cat(tokens), torch.cat(logp)


def shared_beginning(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, each having one more; 0 where a pass over them would save little."""
    if not prompts:
        return 0
    pairs = zip(min(prompts), max(prompts), strict=False)  # what these two share, all between them share
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if shared * (len(prompts) - 1) >= WORTH_A_PASS else 0


@dataclass
class _Slot:
    """The conversation in a slot.

    start: the position of the reply's first token. fed: ids to be computed before the next reply (the last token drawn,
    whose keys are missing, and the turn after it); None while a reply is written.
    """

    index: int
    start: int
    replies: list[Reply] = field(default_factory=list)
    fed: list[int] | None = None


class _Run:
    """The state of one call of `converse`.

    Slots 0 .. W - 1 are decoded together. Some of them are idle: left, or waiting to be fed. They take part with what
    comes out unused, until an eighth of the slots is idle. Then all are refilled, fed or closed up in one go.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: Decoder,
        prompts: Sequence[list[int]],
        samples: int,
        follow: Follow,
        temperature: float,
        noise: Noise | None,
        on_token: Callable[[], None],
        on_replies: Callable[[int], None],
    ):
        self.engine, self.decoder, self.prompts, self.samples = engine, decoder, prompts, samples
        self.follow, self.temperature, self.noise = follow, temperature, noise
        self.on_token, self.on_replies = on_token, on_replies
        self.waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # the longest is taken first
        self.ready: list[tuple[int, int]] = []  # (conversation, row of `encoded` that its prompt lies in)
        self.encoded, self.first_logits = SlotCache(1, 1), torch.zeros(0)
        self.shared, self.prefix = shared_beginning(prompts), SlotCache(1, 1)
        size, new, device = min(engine.slots, len(prompts) * samples), engine.max_new_tokens, decoder.device
        self.cache = SlotCache(size, max(engine.longest, max(map(len, prompts), default=0) + new))
        self.slots: list[_Slot | None] = []  # None: left
        self.done: list[list[Reply]] = [[] for _ in range(len(prompts) * samples)]
        self.ends = torch.tensor(sorted(engine.policy.chat.end_tokens), device=device)
        self.last = torch.zeros(size, dtype=torch.long, device=device)  # token of each slot, whose keys are missing
        self.position = torch.zeros(size, dtype=torch.long, device=device)  # of that token
        self.count = torch.zeros(size, dtype=torch.long, device=device)  # tokens of the reply so far
        self.live = torch.zeros(size, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(size, new, dtype=torch.long, device=device)
        self.logp = torch.zeros(size, new, device=device)
        self.uniforms = torch.zeros(size, new, dtype=torch.float64, device=device)  # of its positions
        self.state = (self.last, self.position, self.count, self.live, self.tokens, self.logp, self.uniforms)
        self.idle = 0
        self.upto = 0  # one more than the greatest position in the slots

    def replies(self) -> list[list[Reply]]:
        while self.waiting or self.ready or self.slots:
            if self.idle * 8 < len(self.slots):
                self._decode()
                continue
            self._refill()
            if not (self.waiting or self.ready):
                self._close_up()
            self._feed()
            self.idle = sum(slot is None or slot.fed is not None for slot in self.slots)
            self.upto = 1 + max(self.position[: len(self.slots)].tolist(), default=0)
        self.engine.longest = max(self.engine.longest, self.cache.length)
        return self.done

    def _decode(self) -> None:
        """One token for every slot."""
        count, work = len(self.slots), self.engine.work
        rows, position = slice(0, count), self.position[:count]
        logits = self.decoder.next_logits(self.cache, rows, self.last[rows, None], position, self.upto)
        position += self.live[rows]
        work.decode_tokens += count
        work.decode_passes += 1
        self.upto += 1
        self._draw(torch.arange(count, device=logits.device), logits)

    def _draw(self, rows: Tensor, logits: Tensor) -> None:
        """(B,) slots and (B, V) logits: their next token each, which may end the reply."""
        count, live = self.count[rows], self.live[rows]
        token, logp = draw(logits, self.temperature, self.uniforms[rows, count])
        self.tokens[rows, count], self.logp[rows, count], self.last[rows] = token, logp, token
        count = count + live
        self.count[rows] = count
        ended = live & ((token[:, None] == self.ends).any(1) | (count == self.engine.max_new_tokens))
        if which := rows[ended].tolist():
            self._end(which)
        self.on_token()

    def _end(self, which: list[int]) -> None:
        """The replies in these slots are whole: their conversations go on with the next turn, or leave."""
        rows = torch.tensor(which, device=self.count.device)
        made = zip(which, *(part[rows].tolist() for part in (self.count, self.tokens, self.logp)), strict=True)
        for i, count, tokens, logp in made:
            slot = self.slots[i]
            assert slot is not None
            slot.replies.append(Reply(tokens[:count], logp[:count]))
            turn = self.follow(slot.index, slot.replies)
            if turn is None:
                self.done[slot.index], self.slots[i] = slot.replies, None
                self.position[i] = 0
            else:
                self.engine.policy.require_room(slot.start + count + len(turn), self.engine.max_new_tokens)
                slot.start, slot.fed = slot.start + count - 1, [tokens[count - 1], *turn]
        self.live[rows], self.count[rows] = False, 0
        self.idle += len(which)
        self.on_replies(len(which))

    def _refill(self) -> None:
        """Gives free slots to the conversations that wait, each with a copy of its prompt's keys and values."""
        free = [i for i, slot in enumerate(self.slots) if slot is None]
        free += range(len(self.slots), self.cache.slots)
        self.slots += [None] * (self.cache.slots - len(self.slots))
        while free and (self.ready or self.waiting):
            if not self.ready:
                self._encode(len(free))
            taken, self.ready = self.ready[: len(free)], self.ready[len(free) :]
            to, free = free[: len(taken)], free[len(taken) :]
            sources = [row for _, row in taken]
            self.cache.copy(self.encoded, sources, to, self.encoded.length)
            for i, (index, _) in zip(to, taken, strict=True):
                self.slots[i] = _Slot(index, len(self.prompts[index // self.samples]))
            self._begin(to, self.first_logits[sources])

    def _encode(self, free: int) -> None:
        """Computes the prompts of the next questions, once each, for `free` slots or as many as a pass may hold."""
        longest = len(self.prompts[self.waiting[-1]])
        own = longest - self.shared
        count = min(-(-free // self.samples), max(1, self.engine.prefill_tokens // own), len(self.waiting))
        chosen = [self.waiting.pop() for _ in range(count)]
        self.encoded = SlotCache(count, longest)
        if self.shared:
            if not self.prefix.keys:
                self.prefix = SlotCache(1, self.shared)
                list(self._passes(self.prefix, [0], [self.prompts[0][: self.shared]], [0]))
            self.encoded.copy(self.prefix, [0] * count, range(count), self.shared)
        chunks = [self.prompts[i][self.shared :] for i in chosen]
        passes = self._passes(self.encoded, range(count), chunks, [self.shared] * count)
        self.first_logits = torch.cat([logits for _, logits in passes])
        self.ready = [(i * self.samples + k, row) for row, i in enumerate(chosen) for k in range(self.samples)]

    def _close_up(self) -> None:
        """Moves the last slots into those that are free."""
        kept = [i for i, slot in enumerate(self.slots) if slot is not None]
        moved = [i for i in kept if i >= len(kept)]
        to = [i for i in range(len(kept)) if self.slots[i] is None]
        if moved:
            self.cache.copy(self.cache, moved, to, 1 + max(self.position[moved].tolist()))
            for part in self.state:
                part[to] = part[moved]
            for i, j in zip(moved, to, strict=True):
                self.slots[j] = self.slots[i]
        del self.slots[len(kept) :]

    def _feed(self) -> None:
        """Computes the turns that follow replies, in their slots, and draws the first token after each."""
        waiting = {i: slot for i, slot in enumerate(self.slots) if slot is not None and slot.fed is not None}
        if not waiting:
            return
        rows = sorted(waiting, key=lambda i: -len(waiting[i].fed or ()))
        chunks, starts = [waiting[i].fed or [] for i in rows], [waiting[i].start for i in rows]
        for slot in waiting.values():
            slot.start, slot.fed = slot.start + len(slot.fed or ()), None
        room = max(map(len, chunks))  # of padding, which may lie behind a reply's room
        self.cache.grow(max(slot.start for slot in waiting.values()) + max(room, self.engine.max_new_tokens))
        for fed, logits in self._passes(self.cache, rows, chunks, starts):
            self._begin(fed, logits)

    def _begin(self, which: list[int], logits: Tensor) -> None:
        """(B,) slots and (B, V) logits after what they were fed: a reply begins in each."""
        slots = [slot for i in which if (slot := self.slots[i]) is not None]
        rows = torch.tensor(which, device=logits.device)
        self.position[rows] = torch.tensor([slot.start for slot in slots], device=logits.device)
        self.live[rows], self.count[rows] = True, 0
        if self.noise is not None:
            size = self.engine.max_new_tokens
            uniforms = np.stack([self.noise.uniforms(slot.index, len(slot.replies), size) for slot in slots])
            self.uniforms[rows] = torch.from_numpy(uniforms).to(logits.device)
        self._draw(rows, logits)

    def _passes(
        self, cache: SlotCache, rows: Sequence[int], chunks: list[list[int]], starts: list[int]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Computes chunks of ids, longest first, from positions on; yields slots and (B, V) logits after their chunks.

        A pass takes as many rows as the engine's bound allows, and a chunk beyond the bound in pieces.
        """
        bound, work, device = self.engine.prefill_tokens, self.engine.work, self.decoder.device
        first = 0
        while first < len(rows):
            width = len(chunks[first])
            some = slice(first, first + max(1, bound // width))
            ids = torch.tensor([chunk + [0] * (width - len(chunk)) for chunk in chunks[some]], device=device)  # (B, L)
            which, start = torch.tensor(rows[some], device=device), torch.tensor(starts[some], device=device)
            last = torch.tensor([len(chunk) - 1 for chunk in chunks[some]], device=device)
            begun = max(starts[some])
            for at in range(0, width, bound):
                piece = ids[:, at : at + bound]
                logits = self.decoder.next_logits(
                    cache, which, piece, start + at, begun + at + piece.shape[1], (last - at).clamp(max=bound - 1)
                )
                work.prefill_tokens += piece.numel()
                work.prefill_passes += 1
            yield list(rows[some]), logits
            first = some.stop
