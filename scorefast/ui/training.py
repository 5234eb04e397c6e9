"""Progress of training on a terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scorefast.rl.reporter import Reporter
from scorefast.runs.log import Metrics
from scorefast.runs.signals import StopOnSignal
from scorefast.schema import Stage1, Stage2
from scorefast.stats import Graded
from scorefast.ui.progress import Pulse
from scorefast.ui.tables import transcript


class TerminalReporter(Reporter):
    """A live bar with ETA on a terminal; elsewhere a line after each tenth of the steps, or after a silent minute."""

    def __init__(self, console: Console, stage: Stage1 | Stage2, stop: StopOnSignal):
        self.console, self.stage, self.stop = console, stage, stop
        self.every = max(1, stage.max_steps // 10)
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
        self.task = self.bar.add_task("train", total=stage.max_steps, status="", written="")

    @property
    def stopped_by(self) -> int | None:
        return self.stop.signum

    @stopped_by.setter
    def stopped_by(self, signum: int | None) -> None:
        self.stop.signum = signum

    def begin(self, processes: int) -> None:
        self.stop.begin(processes)

    def interrupt(self) -> None:
        self.stop.check()

    def note(self, line: str) -> None:
        self._print(line)

    def show(self, step: int, graded: Sequence[Graded]) -> None:
        if (step - 1) % self.stage.show_steps == 0:
            self._print(transcript(graded[0], f"sampled at step {step}"))

    def count(self, done: int, due: int) -> None:
        written = f"{done} of {due} replies" if done < due else ""
        self.bar.update(self.task, written=written)
        if written and self._silent():
            self._print(written)

    def log(self, step: int, metrics: Metrics) -> None:
        if "eval_acc_t1" in metrics:
            self._print(
                f"step {step}: validation (greedy) acc@t1 {metrics['eval_acc_t1']:.3f}, "
                f"acc@t2 {metrics['eval_acc_t2']:.3f}, delta {metrics['eval_delta']:+.3f}"
            )
        elif "loss" in metrics:
            status = status_line(metrics)
            self.bar.update(self.task, completed=step, status=status)
            if self._silent() or (not self.console.is_terminal and step % self.every == 0):
                self._print(f"step {step}/{self.stage.max_steps} {status}")

    def _print(self, renderable: RenderableType) -> None:
        self.pulse.reset()
        self.bar.console.print(renderable)

    def _silent(self) -> bool:
        return not self.console.is_terminal and self.pulse.due()


def status_line(metrics: Mapping[str, float]) -> str:
    """The main metrics of a step in one line."""
    names = {
        "loss": "loss {:.3f}",
        "reward_t2": "reward {:+.2f}",
        "acc_t1": "acc@t1 {:.2f}",
        "acc_t2": "acc@t2 {:.2f}",
        "kl_t1": "KL1 {:.3f}",
        "kl_t2": "KL2 {:.3f}",
        "rollout_tokens_per_second": "{:.0f} tokens/s",
    }
    return "  ".join(form.format(metrics[name]) for name, form in names.items() if name in metrics)
