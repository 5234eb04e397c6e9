"""The command line. A command parses its options, makes one call, and prints one line on stdout.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, get_args

import typer

from scorefast import __version__
from scorefast.errors import DONE, FAILURE, ReportNotWritten, UserError, outcome
from scorefast.files.text import json_line, printable, shortened
from scorefast.recipe import RECORDED_FOLDERS, dump_recipe
from scorefast.runs.processes import world
from scorefast.runs.signals import leaving_on_signals
from scorefast.schema import GraderName, Recipe, StageName
from scorefast.ui.libraries import isolate_libraries, loaded_libraries
from scorefast.ui.options import (
    SOURCES,
    ColumnsOption,
    DataOption,
    DryRunOption,
    FromOption,
    GraderOption,
    OnErrorOption,
    OutOption,
    QuietOption,
    RecipeOption,
    ResumeOption,
    RewardOption,
    SeedOption,
    SetOption,
    export_format,
    grader_name,
    overrides,
    split_name,
)
from scorefast.ui.streams import set_up_streams, terminal

if TYPE_CHECKING:
    from scorefast.runs.job import Request
    from scorefast.ui.console import InertConsole

app = typer.Typer(
    help="Teach a language model to correct itself (SCoRe, arXiv 2409.12917), on one consumer GPU or none.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FORCE_TERMINAL = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}  # typer treats any stream as a terminal if one is set
LONGEST_ERROR = 3000  # characters of the line that ends a command


def main() -> NoReturn:
    """Run a command and exit.

    Exit codes: 0 done, 1 failure, 2 bad usage or input, 130 / 143 / 129 interrupted (SIGINT, SIGTERM, SIGHUP).
    """
    set_up_streams()
    if os.environ.keys() & FORCE_TERMINAL:
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # typer's escapes would be printed visibly on stderr
    RECORDED_FOLDERS.clear()
    isolate_libraries()
    try:
        _require_text(sys.argv)
        with leaving_on_signals():
            app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except BaseException as error:
        known = outcome(error)
        if known is None:
            raise
        code, line = known
        if line:
            print(f"scorefast: {shortened(printable(line), LONGEST_ERROR)}", file=sys.stderr)
        sys.exit(code)
    sys.exit(DONE)


def _require_text(arguments: list[str]) -> None:
    """Raise UserError for an argument that is not UTF-8, such as an old file name. No report or recipe can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"{argument.encode(errors='backslashreplace').decode()}: not UTF-8; rename it") from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help=f"{SOURCES}.")],
    out: OutOption = None,
    columns: ColumnsOption = None,
    on_error: OnErrorOption = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Benchmark whose questions are left out of the data.")
    ] = None,
    sample_from: Annotated[
        str | None,
        typer.Option("--sample-first-attempts", help="Checkpoint (or `base`) that writes missing original answers."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Also write report.html into the folder.")] = False,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    grader: GraderOption = None,
    seed: SeedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read, check, deduplicate and split SOURCE; measure it in tokens; write Parquet files and a manifest."""
    from scorefast.data.prepared import is_prepared
    from scorefast.data.sources import source_files
    from scorefast.runs.checkpoint import open_checkpoint
    from scorefast.runs.folder import require_free
    from scorefast.runs.recipe_choice import chosen_recipe

    console = _console(quiet)
    if is_prepared(source):
        raise UserError(f"{source}: is already prepared; give the file it was made from")
    writer = open_checkpoint(sample_from) if sample_from not in (None, "base") else None
    changes = overrides(set_, seed, columns, on_error, grader)
    chosen = chosen_recipe(recipe, changes, writer, console.note, rewards=False)
    for name in (source, against):
        if name and not is_prepared(name):
            source_files(name)
    if dry_run:
        _print_plan(console, chosen, f"prepare {source}")
        return
    require_free(out)
    with loaded_libraries(console, chosen):
        from scorefast.prepare import fill_with, run

        fill = None if sample_from is None else fill_with(writer, chosen, console)
        folder = run(source, chosen, out, console, against=against, fill=fill, page=report)
    print(folder)


@app.command()
def grade(
    file: Annotated[
        str, typer.Argument(help="JSONL of objects with answer, reference and, optionally, label; - is stdin.")
    ],
    grader: Annotated[
        str, typer.Option("--grader", help=f"{', '.join(get_args(GraderName))}; for lines that name no grader.")
    ] = "auto",
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Print on stderr what was read in each line, and why it is right or wrong."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Grade each line of FILE. Prints the objects with `correct`, `score`, `reason` and `unsure` on stdout, and the
    agreement with labels on stderr.

    A line may name its own `grader`, and the `question` that was asked.
    """
    from scorefast.grade import grade_lines
    from scorefast.grading.grade import auto_grader
    from scorefast.ui.tables import explanation, print_agreement

    console = _console(quiet)
    graded = []
    for number, row in grade_lines(file, grader_name(grader)):
        print(json_line(row))
        graded.append((number, row))
        if explain:
            console.print(explanation(number, row), soft_wrap=True)
    if not graded:
        raise UserError(f"{file}: no line to grade")
    named = Counter(auto_grader(str(row["reference"])) for _, row in graded if row.get("grader", grader) == "auto")
    if named:
        console.note(f"grader: auto, so {', '.join(f'{name} for {n} lines' for name, n in named.most_common())}")
    print_agreement(console, graded)


def _stage_command(name: StageName, description: str) -> None:
    """Register `stage1` or `stage2`, which have the same options."""

    @app.command(name=name, help=description)
    def command(
        data: DataOption,
        from_: FromOption = None,
        recipe: RecipeOption = "auto",
        set_: SetOption = None,
        out: OutOption = None,
        seed: SeedOption = None,
        columns: ColumnsOption = None,
        on_error: OnErrorOption = None,
        grader: GraderOption = None,
        reward: RewardOption = None,
        resume: ResumeOption = False,
        dry_run: DryRunOption = False,
        quiet: QuietOption = False,
    ) -> None:
        from scorefast.runs.job import Request

        changes = overrides(set_, seed, columns, on_error, grader, reward)
        run_stage(Request(name, data, from_, recipe, changes, out, resume), dry_run=dry_run, quiet=quiet)


_stage_command("stage1", "Stage I: reward the second attempt while KL holds the first near the original model.")
_stage_command(
    "stage2",
    "Stage II: on-policy reinforcement learning of both attempts. The reward of the second is shaped by improvement.",
)


def run_stage(request: Request, *, dry_run: bool = False, quiet: bool = False) -> None:
    """Run a stage from its arguments to the line on stdout."""
    from scorefast.runs.job import claim, resolve
    from scorefast.ui.data_report import print_dataset

    console = _console(quiet)
    with contextlib.ExitStack() as cleanup:
        job, owner = resolve(request, console.note, cleanup, dry_run=dry_run)
        print_dataset(console, job.dataset, job.recipe.reward.grader)
        with loaded_libraries(console, job.recipe, dry_run=dry_run):
            from scorefast import train

            job = train.check(job, console.note, elsewhere=dry_run)
            if dry_run:
                train.print_plan(job, console)
                return
            train.check_lengths(job)
            job, owner = claim(request, job, owner, cleanup)
            train.begin(job, console.note)
            train.run(job, console, owner)
    if world().rank == 0:
        print(job.folder)


def _print_plan(console: InertConsole, recipe: Recipe, plan: str) -> None:
    console.print(dump_recipe(recipe))
    console.note(f"plan: {plan}. Nothing was run.")


@app.command(name="eval")
def eval_(
    checkpoints: Annotated[list[str], typer.Argument(help="Checkpoint folders. `base` is the recipe's base model.")],
    data: DataOption,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    columns: ColumnsOption = None,
    on_error: OnErrorOption = None,
    grader: GraderOption = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    probe: Annotated[
        bool, typer.Option("--probe", help="Also test whether turn 2 reads turn 1; see docs/runs.md.")
    ] = False,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    seed: SeedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Greedy two-turn evaluation of CHECKPOINTS on held-out questions. The first one is the baseline of the others."""
    from scorefast.data.load import load_dataset
    from scorefast.prepare import write_dropped_aside
    from scorefast.runs.checkpoint import open_checkpoint, require_same_terms
    from scorefast.runs.folder import claimed, require_free
    from scorefast.runs.recipe_choice import chosen_recipe
    from scorefast.ui.data_report import print_dataset

    console, part = _console(quiet), split_name(split)
    opened = [None if text == "base" else open_checkpoint(text) for text in checkpoints]
    changes = overrides(set_, seed, columns, on_error, grader)
    chosen = chosen_recipe(recipe, changes, next((c for c in opened if c), None), console.note, rewards=False)
    for checkpoint in filter(None, opened):
        require_same_terms(checkpoint, chosen)
    dataset = load_dataset(data, chosen.data, console.note)
    print_dataset(console, dataset, chosen.reward.grader)
    examples = dataset.split(part, "evaluation")[: chosen.eval.max_questions]
    require_free(out)
    if dry_run:
        plan = f"evaluate {', '.join(checkpoints)} on {len(examples)} {split} questions of {data}"
        _print_plan(console, chosen, plan)
        return
    context = {"data": dataset.source, "split": split, "model": chosen.model.name, "version": __version__}
    unwritten, path = None, None
    with loaded_libraries(console, chosen):
        from scorefast.evaluate import evaluate_checkpoints

        try:
            with claimed(out, "eval") if out else contextlib.nullcontext() as folder:
                report, path = evaluate_checkpoints(
                    opened, chosen, examples, context, console, out=folder, with_probe=probe
                )
        except ReportNotWritten as error:
            report, unwritten = error.content, error
    if as_json or path is not None:
        print(json.dumps(report) if as_json else path)
    if unwritten is not None:
        raise unwritten
    if path is not None:
        write_dropped_aside(dataset, path.parent, console.note)


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or `base`.")] = "base",
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Read a question per line, print a JSON object per line.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Ask a question and watch the first attempt, then the correction. /help lists the commands."""
    from scorefast.files.lines import stdin_text
    from scorefast.runs.checkpoint import open_checkpoint, require_same_terms
    from scorefast.runs.recipe_choice import chosen_recipe
    from scorefast.ui.console import InertConsole

    console = _console(quiet)
    opened = None if checkpoint == "base" else open_checkpoint(checkpoint)
    chosen = chosen_recipe(recipe, set_ or [], opened, console.note, rewards=False)
    if opened is not None:
        require_same_terms(opened, chosen)
    with loaded_libraries(console, chosen):
        from scorefast.chat import converse, pipe
        from scorefast.model.load import load_policy

        policy = load_policy(chosen, opened)
    if as_json or not sys.stdin.isatty():
        pipe(policy, chosen, stdin_text(), sys.stdout)
    else:
        converse(policy, chosen, InertConsole())


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.", readable=False)],
    format_: Annotated[str, typer.Option("--format", help="adapter, merged-16bit or gguf.")] = "merged-16bit",
    quiet: QuietOption = False,
) -> None:
    """Write CHECKPOINT for use elsewhere: a PEFT adapter, a merged 16-bit model, or GGUF with an Ollama Modelfile."""
    from scorefast.runs.checkpoint import open_checkpoint

    console = _console(quiet)
    chosen = export_format(format_)
    opened = open_checkpoint(checkpoint)
    from scorefast.export import export_checkpoint, export_recipe

    with loaded_libraries(console, export_recipe(opened)):
        export_checkpoint(opened, chosen, out, console.note)
    print(out)


def _console(quiet: bool) -> InertConsole:
    from scorefast.ui.console import InertConsole

    console = InertConsole(file=terminal(), quiet=quiet or world().rank != 0)
    if not console.is_terminal:
        console.width = 160  # wide enough for the tables in a log file
    return console
