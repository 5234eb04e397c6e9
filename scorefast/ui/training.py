"""What is shown while a stage trains."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from scorefast.errors import Interrupted, StepDropped
from scorefast.ui.progress import Pulse


class StopOnSignal(TrainerCallback):
    """The first SIGINT, SIGTERM or SIGHUP (a terminal that is closed) drops the step in the making, a second one leaves
    at once; one that was ignored before (by nohup) still is. Before training begins there is nothing to save, and the
    first one leaves. With several processes the step is ended, as all must agree."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.training = self.alone = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for signum in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signum not in self._before and signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: it was not Python that had set it

    def begin(self, processes: int) -> None:
        self.training, self.alone = True, processes == 1

    def check(self) -> None:
        if self.signum is not None and self.alone:
            raise StepDropped

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == getattr(signal, "SIGHUP", None):
            return  # a closed terminal sends it more than once
        if self.signum is not None or not self.training:
            raise Interrupted(signum)
        self.signum = signum

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop = torch.tensor(self.signum or 0, device=args.device)
        if not self.alone:
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop:
            self.signum = int(stop)
            control.should_save = control.should_training_stop = True


class ProgressLine(TrainerCallback):
    """A live bar with ETA on a terminal; elsewhere a plain line after a tenth of the steps, or after a minute."""

    def __init__(self, console: Console, steps: int):
        self.console = console
        self.every = max(1, steps // 10)
        self.pulse = Pulse()
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("{task.fields[written]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=steps, status="", written="")

    def print(self, what: Any) -> None:
        self.pulse.said()
        self.bar.console.print(what)

    def wrote(self, done: int, due: int) -> None:
        written = f"{done} of {due} replies" if done < due else ""
        self.bar.update(self.task, written=written)
        if written and self._silent():
            self.print(written)

    def _silent(self) -> bool:
        return not self.console.is_terminal and self.pulse.due()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "eval_acc_t1" in logs:
            self.print(
                f"step {state.global_step}: validation (greedy) acc@t1 {logs['eval_acc_t1']:.3f}, "
                f"acc@t2 {logs['eval_acc_t2']:.3f}, delta {logs['eval_delta']:+.3f}"
            )
        elif "loss" in logs:
            status = status_line(logs)
            self.bar.update(self.task, completed=state.global_step, status=status)
            if self._silent() or (not self.console.is_terminal and state.global_step % self.every == 0):
                self.print(f"step {state.global_step}/{state.max_steps} {status}")


def status_line(logs: dict[str, float]) -> str:
    names = {
        "loss": "loss {:.3f}",
        "reward_t2": "reward {:+.2f}",
        "acc_t1": "acc@t1 {:.2f}",
        "acc_t2": "acc@t2 {:.2f}",
        "kl_t1": "KL1 {:.3f}",
        "kl_t2": "KL2 {:.3f}",
        "rollout_tokens_per_second": "{:.0f} tokens/s",
    }
    return "  ".join(form.format(logs[name]) for name, form in names.items() if name in logs)
