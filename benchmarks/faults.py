"""What a run survives: kills, signals, a full disk, a vanished folder, a damaged checkpoint, its log, its run.json or
its lock taken away; each against the same run left alone.

    python benchmarks/faults.py run [--kills 30] [--signals 10] [--seed 0]

Every trial is a process of its own, forked from this one (which has imported all that is slow), and ends with the
weights and the metrics of the unbroken run, or is counted as lost. Writes benchmarks/results/faults.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
RESULTS = REPOSITORY / "benchmarks" / "results" / "faults.md"
STEPS = 12
STAGE = [f"max_steps={STEPS}", "questions_per_step=2", "samples_per_question=4", "save_steps=2", "eval_steps=4"]
STAGE += ["learning_rate=2e-3"]
SETTINGS = ["eval.max_questions=6"]
KINDS = {  # of runs, and what is particular to them
    "stage1": [],
    "stage2": ["stage2.lr_scheduler=cosine", "stage2.warmup_steps=3"],  # from the unbroken Stage I
    "supervised": ["stage1.method=supervised", "stage1.first_attempt=sampled", "stage1.lr_scheduler=linear"],
    "full": ["model.tuning=full", "stage1.normalize=token"],
}


def command_of(kind: str, work: Path) -> list[str]:
    section = "stage2" if kind == "stage2" else "stage1"
    settings = [*(f"{section}.{setting}" for setting in STAGE), *SETTINGS, *KINDS[kind]]
    start = ["--from", str(work / "whole-stage1")] if kind == "stage2" else []
    flags = [word for setting in settings for word in ("--set", setting)]
    return [section, "--data", str(REPOSITORY / "data" / "score.csv"), *start, *flags, "--resume", "--quiet"]


@dataclass(frozen=True)
class Outcome:
    """exit_codes: of each time the command was given; equal: weights and metrics are those of the unbroken run."""

    fault: str
    kind: str
    at_step: int
    exit_codes: tuple[int, ...]
    equal: bool


class Child:
    """The command in a process forked from this one: everything is imported already, so it trains at once. The kind of
    run is the last word of the folder's name."""

    def __init__(self, folder: Path):
        self.folder = folder
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            command = command_of(folder.name.rpartition("-")[2], folder.parent)
            _become([*command, "--out", str(folder)], folder.with_suffix(".log"))

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def limit_file_size(self, size: int) -> None:
        """Files can grow to `size` bytes and no further, as on a full disk (the error is EFBIG instead of ENOSPC)."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def step(self) -> int:
        """The last step in the log."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError:
            return -1
        return max((json.loads(m)["step"] for m in lines if m.endswith("\n")), default=-1)

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true before the child ended."""
        while not condition():
            if self.ended():
                return False
            time.sleep(0.0005)
        return True

    def wait_for_step(self, target: int) -> tuple[int, float]:
        """(the step that has been reached, the seconds that a step takes here)."""
        self.wait_until(lambda: self.step() >= 0)
        began = time.monotonic()
        self.wait_until(lambda: self.step() >= target)
        return self.step(), (time.monotonic() - began) / target

    def exit_code(self) -> int:
        """As a shell shows it: 128 + the signal where it was killed."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code


def _become(arguments: list[str], log: Path) -> None:
    """The scorefast command, in this process, from here on."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from scorefast.cli import main

        sys.argv = ["scorefast", *arguments]
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_everything() -> None:
    """All that is slow to import, so that a fork trains at once. Nothing is computed here: no thread is running."""


def outcome_of(folder: Path) -> tuple[bytes, list[dict[str, object]]]:
    """(the trained weights, the metrics without clock times)."""
    from scorefast.rl.record import TIMING_METRICS

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [{k: v for k, v in json.loads(m).items() if k not in TIMING_METRICS} for m in lines]
    return next(folder.glob("*model.safetensors")).read_bytes(), metrics


def finish(folder: Path, codes: list[int]) -> tuple[int, ...]:
    """Give the command again until it ends; the exit codes of all processes."""
    for _ in range(3):
        codes.append(Child(folder).exit_code())
        if codes[-1] == 0:
            break
    return tuple(codes)


def unbroken(work: Path, kind: str = "stage1") -> None:
    whole = work / f"whole-{kind}"
    code = Child(whole).exit_code()
    assert code == 0, whole.with_suffix(".log").read_text()


# --- faults: each takes (folder of a new run, random numbers) and returns (its name, the step it struck at, exit codes)


def kill_at_a_moment(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """SIGKILL once, in a random step, at a random moment of it."""
    return _struck(folder, chance, signal.SIGKILL, "SIGKILL in a step")


def kill_in_a_save(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def kill_three_times(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """SIGKILL, and again while it recovers, and again."""
    codes, step = [], -1
    for _ in range(3):
        child = Child(folder)
        target = step + chance.randrange(1, 4)
        child.wait_until(lambda child=child, target=target: child.step() >= target)
        time.sleep(chance.uniform(0, 0.2))
        step = child.step()
        child.signal(signal.SIGKILL)
        codes.append(child.exit_code())
    return "SIGKILL three times", step, finish(folder, codes)


def interrupt(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    return _struck(folder, chance, signal.SIGINT, "SIGINT")


def terminate(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    return _struck(folder, chance, signal.SIGTERM, "SIGTERM")


def hang_up(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """A terminal that is closed: shell and kernel each send one."""
    return _struck(folder, chance, signal.SIGHUP, "SIGHUP twice", again=True)


def interrupt_twice(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """The second Ctrl-C comes while the first one's checkpoint is being written, or just before or after."""
    child, target = Child(folder), chance.randrange(0, STEPS)
    child.wait_until(lambda: child.step() >= target)
    step = child.step()
    child.signal(signal.SIGINT)
    time.sleep(chance.uniform(0, 0.1))
    if not child.ended():
        child.signal(signal.SIGINT)
    return "SIGINT twice", step, finish(folder, [child.exit_code()])


def _struck(
    folder: Path, chance: random.Random, signum: signal.Signals, name: str, again: bool = False
) -> tuple[str, int, tuple[int, ...]]:
    child, target = Child(folder), chance.randrange(0, STEPS)
    child.wait_until(lambda: child.step() >= target)
    time.sleep(chance.uniform(0, 0.25))
    step = child.step()
    child.signal(signum)
    if again:
        time.sleep(0.02)
        child.signal(signum)
    return name, step, finish(folder, [child.exit_code()])


def disk_full(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def file_system_full(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def folder_gone(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def newest_damaged(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def log_struck(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """metrics.jsonl is removed, or a link, a pipe or (for some steps) a folder stands in its place."""
    child = Child(folder)
    step, seconds = child.wait_for_step(chance.randrange(1, STEPS - 3))
    log, outside = folder / "metrics.jsonl", folder.with_suffix(".outside")
    outside.write_text("precious")
    put = chance.choice([lambda: None, lambda: log.symlink_to(outside), lambda: os.mkfifo(log), log.mkdir])
    log.unlink()
    with contextlib.suppress(FileExistsError):  # the run has written it anew already
        put()
    time.sleep(chance.uniform(0.5, 2.5) * seconds)
    with contextlib.suppress(OSError):
        log.rmdir()
    codes = [child.exit_code()]
    harm = "" if outside.read_text() == "precious" else ", written through a link"
    return f"metrics.jsonl taken away{harm}", step, tuple(codes) if codes == [0] else finish(folder, codes)


def papers_removed(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
    """run.json and recipe.yaml are removed, and after a step the run is killed: it needs both to go on."""
    child = Child(folder)
    step, _ = child.wait_for_step(chance.randrange(1, STEPS - 3))
    for name in ("run.json", "recipe.yaml"):
        (folder / name).unlink()
    child.wait_until(lambda: child.step() > step + 1)
    child.signal(signal.SIGKILL)
    return "run.json and recipe.yaml removed, then SIGKILL", step, finish(folder, [child.exit_code()])


def lock_taken(folder: Path, chance: random.Random) -> tuple[str, int, tuple[int, ...]]:
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


def suffer(
    fault: Callable[..., tuple[str, int, tuple[int, ...]]], work: Path, number: int, seed: int, kind: str = "stage1"
) -> Outcome:
    """One trial in a new run folder."""
    chance = random.Random(f"{seed}/{fault.__name__}/{number}")
    folder = work / f"{fault.__name__}-{number}-{kind}"
    name, step, codes = fault(folder, chance)
    equal = codes[-1] == 0 and outcome_of(folder) == outcome_of(work / f"whole-{kind}")
    if equal:
        shutil.rmtree(folder)
    return Outcome(name, kind, step, codes, equal)


def run(kills: int, signals: int, seed: int) -> None:
    import_everything()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    for kind in KINDS:
        unbroken(work, kind)
    plan = [
        (kill_at_a_moment, kills // 2),
        (kill_in_a_save, kills - kills // 2),
        (kill_three_times, max(1, kills // 5)),
    ]
    plan += [(fault, signals) for fault in (interrupt, terminate, hang_up, interrupt_twice)]
    taken = [disk_full, file_system_full] if may_mount() else [disk_full]
    taken += [folder_gone, newest_damaged, log_struck, papers_removed, lock_taken]
    plan += [(fault, max(1, signals // 2)) for fault in taken]
    outcomes = []
    for fault, trials in plan:
        for number in range(trials):
            outcomes.append(suffer(fault, work, number, seed, list(KINDS)[number % len(KINDS)]))
            print(outcomes[-1], flush=True)
    lost = [o for o in outcomes if not o.equal]
    given = f"--kills {kills} --signals {signals} --seed {seed}"
    RESULTS.write_text(report(outcomes, given), encoding="utf-8")
    print(f"{len(outcomes) - len(lost)} of {len(outcomes)} ended as the unbroken run; {RESULTS}")
    if lost:
        sys.exit(f"lost: {lost}; their folders are in {work}")
    shutil.rmtree(work)


def report(outcomes: list[Outcome], given: str) -> str:
    import platform

    import torch
    import transformers

    def named(outcome: Outcome) -> str:
        return "one bit of a file of the newest checkpoint flipped" if "one bit" in outcome.fault else outcome.fault

    rows = []
    for name in dict.fromkeys(map(named, outcomes)):
        chosen = [o for o in outcomes if named(o) == name]
        steps = ", ".join(str(s) for s in sorted(o.at_step for o in chosen))
        codes = Counter(o.exit_codes[0] for o in chosen)
        first = ", ".join(f"{code} ({n})" for code, n in sorted(codes.items()))
        rows.append(f"| {name} | {len(chosen)} | {sum(o.equal for o in chosen)} | {first} | {steps} |")
    kinds = ", ".join(f"{kind} {sum(o.kind == kind for o in outcomes)}" for kind in KINDS)
    return f"""# Faults

`python benchmarks/faults.py run {given}`: runs of {STEPS} optimizer steps on the embedded model, a checkpoint
every second step, struck as below and then given the same command again (with `--resume`) until they end. By kind of
run: {kinds}; that is Stage I, Stage II from its result (cosine rate, warm-up), Stage I supervised
(linear rate) and Stage I of all weights (normalised by token). Equal: the trained weights are the same bytes as those
of the run left alone, and `metrics.jsonl` has the same lines but for clock times: none missing, none twice, none
different.

| fault | trials | equal | exit code when struck (trials) | after step |
|---|---|---|---|---|
{chr(10).join(rows)}

137 is SIGKILL, 130 SIGINT, 143 SIGTERM, 129 SIGHUP; 0: the run was not stopped by it. Step -1: before anything was
logged, step 0: after the first validation. "A full file system" takes root to mount one, and is left out without.

CPU, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, transformers \
{transformers.__version__}. On a GPU equal bytes are not promised: its kernels add in no fixed order.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signals", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run(given.kills, given.signals, given.seed)
