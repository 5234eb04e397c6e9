"""The rollout engine beside transformers' `generate`: the same replies, in how much less time.

    OMP_NUM_THREADS=1 python -m benchmarks rollout --from runs/stage1     # writes benchmarks/results/rollout.md

Rounds of the ways alternate in one process with one thread. CPU seconds are the process's own, so that other work on
the machine counts little. The rollout samples two turns, 16 questions with 8 samples each. The evaluation is greedy,
two turns of 200 questions. Greedy replies are compared token by token before anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import ROOT, about, argument_parser, machine_line, markdown_table, write_page
from scorefast.data.load import load_dataset
from scorefast.model.decoder import can_serve
from scorefast.model.engine import Engine, Noise, Reply
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.policy import Policy
from scorefast.recipe import load_recipe
from scorefast.runs.checkpoint import open_checkpoint

DATA = ROOT / "data" / "score.csv"
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft")
Replies = list[list[list[int]]]  # conversation, turn -> ids
Way = Callable[[Sequence[list[int]], int, float, int], Replies]  # prompts, samples, temperature, round


def with_generate(policy: Policy, new: int, batch: int) -> Way:
    def replies(prompts: Sequence[list[int]], samples: int, temperature: float, seed: int) -> Replies:
        torch.manual_seed(seed)
        asked = [prompt for prompt in prompts for _ in range(samples)]
        turns: Replies = [[] for _ in asked]
        for _ in range(2):
            made = generate(policy, asked, max_new_tokens=new, temperature=temperature, batch_size=batch)
            asked = [[*a, *ids, *policy.chat.next_turn(ids)] for a, ids in zip(asked, made, strict=True)]
            turns = [[*before, ids] for before, ids in zip(turns, made, strict=True)]
        return turns

    return replies


def with_engine(policy: Policy, engine: Engine) -> Way:
    def follow(index: int, replies: list[Reply]) -> list[int] | None:
        return policy.chat.next_turn(replies[-1].ids) if len(replies) == 1 else None

    def replies(prompts: Sequence[list[int]], samples: int, temperature: float, seed: int) -> Replies:
        made = engine.converse(prompts, samples, follow, temperature=temperature, noise=Noise(seed))
        return [[reply.ids for reply in conversation] for conversation in made]

    return replies


def compare(ways: dict[str, Way], prompts: Sequence[list[int]], samples: int, t: float, rounds: int) -> list[list[str]]:
    """A row for each way: tokens per CPU second, and the median over rounds of its ratio to the first way."""
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}  # tokens per CPU second, per second
    for i in range(rounds + 1):
        for way, replies in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            made = replies(prompts, samples, t, i)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            tokens = sum(len(ids) for turns in made for ids in turns)
            if i:  # the first round warms up
                seen[way].append((tokens / cpu, tokens / wall))
    first, rows = next(iter(ways)), []
    for way, rates in seen.items():
        by_cpu, by_wall = ([a[k] / b[k] for a, b in zip(rates, seen[first], strict=True)] for k in range(2))
        rate = statistics.median(a for a, _ in rates)
        spread = f"{statistics.median(by_cpu):.2f} [{min(by_cpu):.2f}, {max(by_cpu):.2f}]"
        rows.append([way, f"{rate:,.0f}", spread, f"{statistics.median(by_wall):.2f}"])
    return rows


def main(argv: Sequence[str]) -> None:
    """Parse the flags, compare and time, write the page."""
    parser = argument_parser("benchmarks rollout", __doc__)
    parser.add_argument("--recipe", default="tiny-cpu")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--from", dest="checkpoint")
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--evaluated", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rollout.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, options.set)
    checkpoint = open_checkpoint(options.checkpoint) if options.checkpoint else None
    policy, splits = load_policy(recipe, checkpoint, trainable=True), load_dataset(options.data, recipe.data).splits
    if reason := can_serve(policy):
        raise SystemExit(reason)
    asked = [policy.chat.first_turn(e.question) for e in splits["train"][: options.questions]]
    tested = [policy.chat.first_turn(e.question) for e in splits["test"][: options.evaluated]]
    new, size = recipe.rollout.max_new_tokens, recipe.rollout.batch_size
    own = Engine(policy, size, new)
    ways = {
        "generate": with_generate(policy, new, size),
        "engine": with_engine(policy, own),
        "engine, LoRA not merged": with_engine(policy, Engine(policy, size, new, merge=False)),
    }
    lines = ["# Rollouts", "", about(__doc__), "", f"{options.recipe}; {machine_line(PACKAGES)}.", ""]
    for prompts, samples, temperature in ((asked, options.samples, recipe.rollout.temperature), (tested, 1, 0.0)):
        theirs, *ours = (way(prompts, samples, 0.0, 0) for way in ways.values())
        same = [sum(a == b for a, b in zip(theirs, made, strict=True)) for made in ours]
        ways["engine"](prompts, samples, temperature, 0)
        lines += [f"## {len(prompts)} questions x {samples}, temperature {temperature:g}", ""]
        lines.append(
            f"Greedy, {' and '.join(map(str, same))} of {len(theirs)} conversations are identical to generate's. "
            f"The engine computed {own.work.prefill_tokens:,} tokens of prompts and turns, and "
            f"{own.work.decode_passes:,} decode passes."
        )
        heads = ["", "tokens a CPU second", "times generate, by CPU [least, most]", "times generate, by wall time"]
        lines += ["", *markdown_table(heads, compare(ways, prompts, samples, temperature, options.rounds)), ""]
    write_page(options.out / "rollout.md", lines)
    print("\n".join(lines))
