"""A run in a process of its own, to be struck: how it is started, what is seen of it, and what it leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import ROOT, set_flags

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
    data = str(ROOT / "data" / "score.csv")
    return [section, "--data", data, *start, *set_flags(settings), "--resume", "--quiet"]


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
