"""What a run survives: kills, signals, a full disk, a vanished folder, a damaged checkpoint, its log, its run.json or
its lock taken away; each against the same run left alone.

    python -m tests.harness.faults run [--kills 30] [--signals 10] [--seed 0]     # tests/harness/results/faults.md
    python -m tests.harness.faults run --faults terminate disk_full --kinds stage1 --out DIR

Every trial is a process of its own, forked from this one (which has imported all that is slow), and ends with the
weights and the metrics of the unbroken run, or is counted as lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT, argument_parser, machine_line, markdown_table, write_page
from tests.harness.child import KINDS, SETTINGS, STEPS, Child, finish, import_everything, outcome_of, unbroken

__all__ = ["SETTINGS", "import_everything", "outcome_of", "suffer", "unbroken"]

RESULTS = ROOT / "tests" / "harness" / "results"
Struck = tuple[str, int, tuple[int, ...]]  # the fault's name, the step it struck at, exit codes


@dataclass(frozen=True)
class Outcome:
    """exit_codes: of each time the command was given; equal: weights and metrics are those of the unbroken run."""

    fault: str
    kind: str
    at_step: int
    exit_codes: tuple[int, ...]
    equal: bool


# --- faults: each takes (folder of a new run, random numbers) and returns (its name, the step it struck at, exit codes)


def kill_at_a_moment(folder: Path, chance: random.Random) -> Struck:
    """SIGKILL once, in a random step, at a random moment of it."""
    return _struck(folder, chance, signal.SIGKILL, "SIGKILL in a step")


def kill_in_a_save(folder: Path, chance: random.Random) -> Struck:
    """SIGKILL while a checkpoint, or the result, is being written."""
    child, which = Child(folder), chance.randrange(1, STEPS // 2 + 2)
    work = folder / ".partial"
    for number in range(which):
        if not child.wait_until(work.exists) or (
            number < which - 1 and not child.wait_until(lambda: not work.exists())
        ):
            break
    time.sleep(chance.uniform(0, 0.03))
    step, caught = child.step(), work.exists()
    child.signal(signal.SIGKILL)
    name = "SIGKILL in a save" if caught else "SIGKILL just after a save"
    return name, step, finish(folder, [child.exit_code()])


def kill_three_times(folder: Path, chance: random.Random) -> Struck:
    """SIGKILL, and again while it recovers, and again."""
    codes, step = [], -1
    for _ in range(3):
        child = Child(folder)
        target = step + chance.randrange(1, 4)
        child.wait_until(partial(_reached, child, target))
        time.sleep(chance.uniform(0, 0.2))
        step = child.step()
        child.signal(signal.SIGKILL)
        codes.append(child.exit_code())
    return "SIGKILL three times", step, finish(folder, codes)


def _reached(child: Child, target: int) -> bool:
    return child.step() >= target


def interrupt(folder: Path, chance: random.Random) -> Struck:
    return _struck(folder, chance, signal.SIGINT, "SIGINT")


def terminate(folder: Path, chance: random.Random) -> Struck:
    return _struck(folder, chance, signal.SIGTERM, "SIGTERM")


def hang_up(folder: Path, chance: random.Random) -> Struck:
    """A terminal that is closed: shell and kernel each send one."""
    return _struck(folder, chance, signal.SIGHUP, "SIGHUP twice", again=True)


def interrupt_twice(folder: Path, chance: random.Random) -> Struck:
    """The second Ctrl-C comes while the first one's checkpoint is being written, or just before or after."""
    child, target = Child(folder), chance.randrange(0, STEPS)
    child.wait_until(lambda: child.step() >= target)
    step = child.step()
    child.signal(signal.SIGINT)
    time.sleep(chance.uniform(0, 0.1))
    if not child.ended():
        child.signal(signal.SIGINT)
    return "SIGINT twice", step, finish(folder, [child.exit_code()])


def _struck(folder: Path, chance: random.Random, signum: signal.Signals, name: str, again: bool = False) -> Struck:
    child, target = Child(folder), chance.randrange(0, STEPS)
    child.wait_until(lambda: child.step() >= target)
    time.sleep(chance.uniform(0, 0.25))
    step = child.step()
    child.signal(signum)
    if again:
        time.sleep(0.02)
        child.signal(signum)
    return name, step, finish(folder, [child.exit_code()])


def disk_full(folder: Path, chance: random.Random) -> Struck:
    """No file can grow for some steps, then there is room again: the run goes on all the while."""
    child = Child(folder)
    step, seconds = child.wait_for_step(chance.randrange(1, STEPS - 3))
    child.limit_file_size(chance.choice([0, 1000, 200_000]))
    time.sleep(chance.uniform(0.5, 2.5) * seconds)
    if not child.ended():
        child.limit_file_size(resource.RLIM_INFINITY)
    codes = [child.exit_code()]
    return "no file can grow (EFBIG)", step, tuple(codes) if codes == [0] else finish(folder, codes)


def may_mount() -> bool:
    """Whether a file system can be mounted here, which takes root."""
    with tempfile.TemporaryDirectory() as place:
        return _mount(Path(place)) and not subprocess.run(["umount", place], check=False).returncode


def _mount(place: Path) -> bool:
    """A file system of 4 MB in memory."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4M", "scorefast-faults", str(place)]
    return not subprocess.run(command, check=False, capture_output=True).returncode


def file_system_full(folder: Path, chance: random.Random) -> Struck:
    """The run's folder is a file system of its own. Something else fills it to the last byte, and later goes away."""
    folder.mkdir()
    assert _mount(folder)
    child, filler = Child(folder), folder / "filler"
    step, seconds = child.wait_for_step(chance.randrange(1, STEPS - 3))
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    time.sleep(chance.uniform(0.5, 2.5) * seconds)
    filler.unlink()
    codes = [child.exit_code()]
    every = tuple(codes) if codes == [0] else finish(folder, codes)
    kept = shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    kept.rename(folder)
    return "a full file system (ENOSPC)", step, every


def folder_gone(folder: Path, chance: random.Random) -> Struck:
    """The run's folder is not there for some steps, an empty one stands in its place, then it is back."""
    child, target = Child(folder), chance.randrange(1, STEPS - 3)
    child.wait_until(lambda: child.step() >= target)
    step, away = child.step(), folder.with_name(f"{folder.name}-away")
    folder.rename(away)
    folder.mkdir()
    time.sleep(chance.uniform(0.3, 1.0))
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    away.rename(folder)
    codes = [child.exit_code()]
    name = "the folder gone for a while" + (f", {len(left)} files written elsewhere" if left else "")
    return name, step, tuple(codes) if codes == [0] else finish(folder, codes)


def newest_damaged(folder: Path, chance: random.Random) -> Struck:
    """Killed, and then one bit of one file of the newest checkpoint is another."""
    child, target = Child(folder), chance.randrange(4, STEPS)
    child.wait_until(lambda: child.step() >= target)
    step = child.step()
    child.signal(signal.SIGKILL)
    codes = [child.exit_code()]
    newest = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    victim = chance.choice(sorted(p for p in newest.iterdir() if p.name != "README.md"))
    content = bytearray(victim.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    return f"one bit of {victim.name} flipped", step, finish(folder, codes)


def log_struck(folder: Path, chance: random.Random) -> Struck:
    """metrics.jsonl is removed, or a link, a pipe or (for some steps) a folder stands in its place."""
    child = Child(folder)
    step, seconds = child.wait_for_step(chance.randrange(1, STEPS - 3))
    log, outside = folder / "metrics.jsonl", folder.with_suffix(".outside")
    outside.write_text("precious")
    ways: list[Callable[[], object]] = [
        lambda: None,
        lambda: log.symlink_to(outside),
        lambda: os.mkfifo(log),
        log.mkdir,
    ]
    put = chance.choice(ways)
    log.unlink()
    with contextlib.suppress(FileExistsError):  # the run has written it anew already
        put()
    time.sleep(chance.uniform(0.5, 2.5) * seconds)
    with contextlib.suppress(OSError):
        log.rmdir()
    codes = [child.exit_code()]
    harm = "" if outside.read_text() == "precious" else ", written through a link"
    return f"metrics.jsonl taken away{harm}", step, tuple(codes) if codes == [0] else finish(folder, codes)


def papers_removed(folder: Path, chance: random.Random) -> Struck:
    """run.json and recipe.yaml are removed, and after a step the run is killed: it needs both to go on."""
    child = Child(folder)
    step, _ = child.wait_for_step(chance.randrange(1, STEPS - 3))
    for name in ("run.json", "recipe.yaml"):
        (folder / name).unlink()
    child.wait_until(lambda: child.step() > step + 1)
    child.signal(signal.SIGKILL)
    return "run.json and recipe.yaml removed, then SIGKILL", step, finish(folder, [child.exit_code()])


def lock_taken(folder: Path, chance: random.Random) -> Struck:
    """.lock is removed or replaced, and the same command is given a second time meanwhile."""
    child = Child(folder)
    step, _ = child.wait_for_step(chance.randrange(1, STEPS - 3))
    (folder / ".lock").unlink()
    if chance.random() < 0.5:
        (folder / ".lock").touch()
    second = Child(folder).exit_code()
    codes = [child.exit_code()]
    name = ".lock taken away" + ("" if second == 2 else f", and a second command ended with {second}")
    return name, step, tuple(codes) if codes == [0] else finish(folder, codes)


def suffer(fault: Callable[..., Struck], work: Path, number: int, seed: int, kind: str = "stage1") -> Outcome:
    """One trial in a new run folder."""
    chance = random.Random(f"{seed}/{fault.__name__}/{number}")
    folder = work / f"{fault.__name__}-{number}-{kind}"
    name, step, codes = fault(folder, chance)
    equal = codes[-1] == 0 and outcome_of(folder) == outcome_of(work / f"whole-{kind}")
    if equal:
        shutil.rmtree(folder)
    return Outcome(name, kind, step, codes, equal)


def plan_of(kills: int, signals: int) -> dict[Callable[..., Struck], int]:
    """Every fault with its number of trials."""
    plan: dict[Callable[..., Struck], int] = {kill_at_a_moment: kills // 2, kill_in_a_save: kills - kills // 2}
    plan[kill_three_times] = max(1, kills // 5)
    plan |= dict.fromkeys((interrupt, terminate, hang_up, interrupt_twice), signals)
    taken = [disk_full, file_system_full] if may_mount() else [disk_full]
    taken += [folder_gone, newest_damaged, log_struck, papers_removed, lock_taken]
    return plan | dict.fromkeys(taken, max(1, signals // 2))


def run(plan: dict[Callable[..., Struck], int], kinds: Sequence[str], seed: int, given: str, out: Path) -> None:
    """All trials, and the page. Exits with code 1 where a run was lost, and keeps its folder."""
    import_everything()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    for kind in dict.fromkeys([*["stage1"] * ("stage2" in kinds), *kinds]):  # Stage II starts from it
        unbroken(work, kind)
    outcomes = []
    for fault, trials in plan.items():
        for number in range(trials):
            outcomes.append(suffer(fault, work, number, seed, kinds[number % len(kinds)]))
            print(outcomes[-1], flush=True)
    lost = [o for o in outcomes if not o.equal]
    write_page(out / "faults.md", report(outcomes, given).splitlines())
    print(f"{len(outcomes) - len(lost)} of {len(outcomes)} ended as the unbroken run; {out / 'faults.md'}")
    if lost:
        sys.exit(f"lost: {lost}; their folders are in {work}")
    shutil.rmtree(work)


def report(outcomes: list[Outcome], given: str) -> str:
    """The text of faults.md. given: the command's arguments."""

    def named(outcome: Outcome) -> str:
        return "one bit of a file of the newest checkpoint flipped" if "one bit" in outcome.fault else outcome.fault

    rows = []
    for name in dict.fromkeys(map(named, outcomes)):
        chosen = [o for o in outcomes if named(o) == name]
        steps = ", ".join(str(s) for s in sorted(o.at_step for o in chosen))
        codes = Counter(o.exit_codes[0] for o in chosen)
        first = ", ".join(f"{code} ({n})" for code, n in sorted(codes.items()))
        rows.append([name, len(chosen), sum(o.equal for o in chosen), first, steps])
    kinds = ", ".join(f"{kind} {sum(o.kind == kind for o in outcomes)}" for kind in KINDS)
    table = markdown_table(["fault", "trials", "equal", "exit code when struck (trials)", "after step"], rows)
    return f"""# Faults

`python -m tests.harness.faults run {given}`: runs of {STEPS} optimizer steps on the embedded model, a checkpoint
every second step, struck as below and then given the same command again (with `--resume`) until they end. By kind of
run: {kinds}; that is Stage I, Stage II from its result (cosine rate, warm-up), Stage I supervised
(linear rate) and Stage I of all weights (normalised by token). Equal: the trained weights are the same bytes as those
of the run left alone, and `metrics.jsonl` has the same lines but for clock times: none missing, none twice, none
different.

{chr(10).join(table)}

137 is SIGKILL, 130 SIGINT, 143 SIGTERM, 129 SIGHUP; 0: the run was not stopped by it. Step -1: before anything was
logged, step 0: after the first validation. "A full file system" takes root to mount one, and is left out without.

{machine_line(("torch", "transformers"))}. On a GPU equal bytes are not promised: its kernels add in no fixed order.
"""


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run the study."""
    parser = argument_parser("tests.harness.faults", __doc__)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signals", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", metavar="NAME", help="functions of this file; all if left out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of faults.md")
    given = parser.parse_args(argv)
    plan = {f: n for f, n in plan_of(given.kills, given.signals).items() if f.__name__ in (given.faults or f.__name__)}
    words = f"--kills {given.kills} --signals {given.signals} --seed {given.seed}"
    words += f" --faults {' '.join(given.faults)}" if given.faults else ""
    words += f" --kinds {' '.join(given.kinds)}" if given.kinds != list(KINDS) else ""
    run(plan, given.kinds, given.seed, words, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
