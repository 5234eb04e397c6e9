"""The command line: parse, check, call one function, print. Heavy imports stand inside the commands."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast, get_args

import typer

from scorefast import __version__
from scorefast.errors import Interrupted, RunError, UserError
from scorefast.files.text import json_line, printable, shortened
from scorefast.recipe import RECORDED_FOLDERS, GraderName, Recipe, dump_recipe
from scorefast.runs.checkpoint import find_last, open_checkpoint, require_same_terms
from scorefast.runs.folder import abandoned_where_it_fails, claimed, has_begun, lock_run, require_free, start_run
from scorefast.runs.processes import place
from scorefast.runs.recipes import chosen_recipe, data_flags, grader_name, resumed_recipe, where_the_model_is
from scorefast.runs.resume import base_provenance, require_same_beginning, start_provenance
from scorefast.runs.signals import leaving_on_signals
from scorefast.ui.data_report import print_prepared, write_data_report
from scorefast.ui.streams import away_from_working_directory, settle_in, terminal
from scorefast.ui.tables import explanation, print_agreement

if TYPE_CHECKING:
    from scorefast.ui.console import InertConsole

app = typer.Typer(
    help="Teach a language model to correct itself (SCoRe, arXiv 2409.12917), on one consumer GPU or none.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
FORCING = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}  # variables by which typer takes any stream for a terminal
LONGEST_REFUSAL = 3000  # characters of a line that says why a command ends
DENIED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)  # by the system, to who named it
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # it would tell of every attempt to reach the hub
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # asked of the hub, where a model has no safetensors
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # drawn with control characters, which are not obeyed
    "PYTHONSAFEPATH": "1",  # for processes that libraries start: nothing comes from the working directory
}

SOURCES = "CSV, TSV, JSON, JSONL or Parquet file (also .gz, .zst), a folder of them, or hub:owner/name"
DataOption = Annotated[str, typer.Option("--data", help=f"{SOURCES}; or a folder made by `prepare`.")]
ColumnsOption = Annotated[
    str | None, typer.Option("--columns", help="Your names for ours, e.g. question=problem,correct_answer=answer.")
]
OnErrorOption = Annotated[
    str | None, typer.Option("--on-error", help="stop (at more than 1 % bad rows; the default) or skip.")
]
RewardOption = Annotated[
    str | None,
    typer.Option("--reward", help="module:function or file.py:function, TRL's signature; for the grader's 0 or 1."),
]
GraderOption = Annotated[
    str | None, typer.Option("--grader", help=f"{', '.join(get_args(GraderName))}; default: the recipe's.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A .yaml file or the name of a shipped recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key, e.g. stage2.alpha=5.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to make; default: a new one under runs/.", readable=False)
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the recipe's seed.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Checkpoint to start from; default: the base model.")]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out after its last checkpoint, or begin it."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and plan; load no model.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]


def main() -> NoReturn:
    """Exit codes: 0 done, 1 failure, 2 bad usage or input, 130 / 143 / 129 interrupted (SIGINT, SIGTERM, SIGHUP)."""
    settle_in()
    if os.environ.keys() & FORCING:
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None  # its errors go to stderr, where escapes that are not ours are made visible
    RECORDED_FOLDERS.clear()
    _keep_libraries_at_home()
    try:
        _require_text(sys.argv)
        with leaving_on_signals():
            app()
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except MemoryError:
        _fail("takes more memory than there is", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (*DISK, *DENIED):
            raise
        _fail(f"{error.filename or 'the disk'}: {error.strerror}", 1 if error.errno in DISK else 2)
    sys.exit(0)


def _keep_libraries_at_home() -> None:
    """Switch off the libraries' statistics, and their code from the hub and from the working directory. Call it before
    they are imported.

    Where a package `kernels` is installed, bitsandbytes fetches a kernel during its import (on CPUs with AVX512-BF16),
    and transformers fetches what a model's config names. Where none is, bitsandbytes warns. Python takes a module that
    is None for one that is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _require_text(given: list[str]) -> None:
    for argument in given:
        try:
            argument.encode()
        except UnicodeEncodeError:  # a name from a disk of another time, which no report or recipe could hold
            raise UserError(f"{argument.encode(errors='backslashreplace').decode()}: not UTF-8; rename it") from None


def _fail(message: str, code: int) -> NoReturn:
    print(f"scorefast: {shortened(printable(message), LONGEST_REFUSAL)}", file=sys.stderr)
    sys.exit(code)


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
    against: Annotated[str | None, typer.Option("--against", help="Leave out what stands in this benchmark.")] = None,
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
    from scorefast.prepare import prepare as prepare_

    console = _console(quiet)
    if is_prepared(source):
        raise UserError(f"{source}: already prepared; give the file it was made from")
    writer = open_checkpoint(sample_from) if sample_from not in (None, "base") else None
    overrides = _overrides(set_, data_flags(columns, on_error, grader), seed)
    settings = chosen_recipe(recipe, overrides, writer, console.note, rewards=False)
    for name in (source, against):
        if name and not is_prepared(name):
            source_files(name)
    if dry_run:
        _print_plan(console, settings, f"prepare {source}")
        return
    require_free(out)
    with _work(console, settings):
        from scorefast.model.tokenizer import chat_format

        chat, fill = None, None
        try:
            chat = chat_format(settings)
        except UserError as error:
            if sample_from is not None:
                raise
            console.note(f"token lengths not measured: {error}")
        if sample_from is not None:
            from scorefast.evaluate import first_attempt_writer

            fill = first_attempt_writer(settings, writer, console.note)
        note = console.note
        try:
            with claimed(out, "data") as folder, _byte_progress(console) as bar:
                done = prepare_(
                    source, settings, folder, against=against, chat=chat, fill=fill, note=note, progress=bar
                )
        except KeyboardInterrupt:
            console.print("interrupted; nothing was written")
            raise

        print_prepared(console, done)
        if report:
            page = folder / "report.html"
            if _written_aside(console, page, lambda: write_data_report(done, page)):
                console.note(f"report: {page}")
    print(folder)


@app.command()
def grade(
    file: Annotated[
        str, typer.Argument(help="JSONL of objects with answer, reference and, if known, label; - is stdin.")
    ],
    grader: Annotated[
        str, typer.Option("--grader", help=f"{', '.join(get_args(GraderName))}, where a line names none.")
    ] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say on stderr, line by line, what was read and why it is right or wrong.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Grade each line of FILE: on stdout the same objects with `correct`, `score`, `reason` and `unsure`, on stderr the
    agreement with labels.

    A line may name its own `grader`, and the `question` that was asked.
    """

    from scorefast.grade import grade_lines
    from scorefast.grading.grade import auto_grader

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


@app.command()
def stage1(
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
    """Stage I: reward the second attempt while the first is held near the original model."""
    flags = data_flags(columns, on_error, grader, reward)
    _stage("stage1", data, from_, recipe, _overrides(set_, flags, seed), out, resume, dry_run, quiet)


@app.command()
def stage2(
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
    """Stage II: on-policy reinforcement learning of both attempts, the second one's reward shaped by improvement."""
    flags = data_flags(columns, on_error, grader, reward)
    _stage("stage2", data, from_, recipe, _overrides(set_, flags, seed), out, resume, dry_run, quiet)


def _stage(
    section: Any,
    data: str,
    from_: str | None,
    recipe: str,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:

    from scorefast.data.load import content_sha256, load_dataset

    console, first = _console(quiet), place().rank == 0
    note = console.note
    if resume and out is None:
        raise UserError("--resume: name the run to continue with --out")
    begun, owner = out if resume and out is not None and has_begun(out) else None, None
    if begun is None and first:
        require_free(out, resume=resume)
    with contextlib.ExitStack() as held:
        if begun is not None and first and not dry_run:
            owner = held.enter_context(lock_run(begun))
        start = open_checkpoint(from_) if from_ else None
        facts: dict[str, Any] = {"stage": section, "data_sha256": content_sha256(data), "data": data}
        facts |= start_provenance(start)
        if begun is not None:
            require_same_beginning(begun, facts)
            settings = resumed_recipe(begun, section, recipe, overrides, note)
        else:
            settings = chosen_recipe(recipe, overrides, start, note, rewards=True)
        if start is not None:
            require_same_terms(start, settings, to_train=True)
        dataset = load_dataset(data, settings.data, note)
        _say_what_was_read(console, dataset, settings)
        with _work(console, settings, dry_run=dry_run):
            from scorefast.model.backends import resolve_backend
            from scorefast.train import StageRun, check_lengths, check_stage, find_resumable, resolve_loss

            check_stage(section, settings, dataset, elsewhere=dry_run)
            facts["loss"] = resolve_loss(settings)
            if not dry_run:
                facts["backend"] = resolve_backend(settings.model)
            facts |= base_provenance(settings) if first else {}
            if begun is not None:
                require_same_beginning(begun, facts, note)
            if dry_run:
                if begun is not None:
                    find_resumable(StageRun(section, settings, dataset, start, begun), console)
                _print_stage_plan(console, section, settings, dataset)
                return
            check_lengths(section, settings, dataset)
            if begun is None and first:
                out = held.enter_context(claimed(out, section, resume=resume))
                owner = held.enter_context(lock_run(out))
                require_free(out, resume=resume)  # once more: now nobody else can take it
                held.enter_context(abandoned_where_it_fails(owner))
            if out is None:
                raise UserError("several processes: name the run's folder with --out")
            if begun is None and first:
                _start_run(console, out, settings, facts, dataset)
            given = ["scorefast", section, "--data", data, *(["--from", from_] if from_ else []), "--out", str(out)]
            given += ["--reward", settings.reward.function] if settings.reward.function else []
            _run_stage(StageRun(section, settings, dataset, start, out, owner), console, begun is not None, given)
    if first:
        print(out)


def _start_run(console: InertConsole, out: Path, settings: Recipe, facts: dict[str, Any], dataset: Any) -> None:

    _write_dropped(console, dataset, out)
    start_run(out, settings, facts)


def _write_dropped(console: InertConsole, dataset: Any, folder: Path) -> None:
    from scorefast.prepare import write_dropped
    from scorefast.runs.layout import DROPPED

    if dataset.dropped_rows:
        _written_aside(console, folder / DROPPED, lambda: write_dropped(dataset.dropped_rows, folder / DROPPED))


def _written_aside(console: InertConsole, path: Path, write: Callable[[], None]) -> bool:
    """Whether a file was written that nothing depends on. Where it was not, that is said in a line."""
    try:
        write()
    except OSError as error:
        console.note(f"{path}: not written: {error.strerror}")
        return False
    return True


def _run_stage(job: Any, console: InertConsole, resume: bool, given: list[str]) -> None:
    """given: the command without --resume, to be shown to who interrupts it."""

    from scorefast.train import run_stage

    try:
        run_stage(job, console, resume=resume)
    except (Interrupted, KeyboardInterrupt) as stop:
        last, _ = find_last(job.folder)
        kept = f"{last} is saved" if last else "no checkpoint was saved"
        again = shlex.join([*given, "--resume"])
        console.print(f"interrupted: {kept}. Continue with: {again}", soft_wrap=True)
        raise Interrupted(stop.signum if isinstance(stop, Interrupted) else signal.SIGINT) from None


def _print_stage_plan(console: InertConsole, section: Any, settings: Recipe, dataset: Any) -> None:
    from scorefast.model.memory import memory_here
    from scorefast.train import plan_stage
    from scorefast.ui.tables import print_memory

    stage = getattr(settings, section)
    work = f"{stage.max_steps} steps of {stage.questions_per_step} questions"
    _print_plan(console, settings, f"{section} of {settings.model.name} on {dataset}: {work}")
    where, room, _ = memory_here()
    print_memory(console, plan_stage(section, settings, dataset), where, room)


def _print_plan(console: InertConsole, settings: Recipe, plan: str) -> None:
    console.print(dump_recipe(settings))
    console.note(f"plan: {plan}. Nothing was run.")


@app.command(name="eval")
def eval_(
    checkpoints: Annotated[list[str], typer.Argument(help="Checkpoint folders; `base` is the recipe's base model.")],
    data: DataOption,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    columns: ColumnsOption = None,
    on_error: OnErrorOption = None,
    grader: GraderOption = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    probe: Annotated[bool, typer.Option("--probe", help="Also: does turn 2 read turn 1? (see README)")] = False,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    seed: SeedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Greedy two-turn evaluation of CHECKPOINTS on held-out questions; the first one is the baseline of the others."""

    from scorefast.data.example import SPLITS
    from scorefast.data.load import load_dataset

    console = _console(quiet)
    opened = [None if text == "base" else open_checkpoint(text) for text in checkpoints]
    overrides = _overrides(set_, data_flags(columns, on_error, grader), seed)
    start = next((c for c in opened if c), None)
    settings = chosen_recipe(recipe, overrides, start, console.note, rewards=False)
    for checkpoint in opened:
        if checkpoint is not None:
            require_same_terms(checkpoint, settings)
    if split not in SPLITS:
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    dataset = load_dataset(data, settings.data, console.note)
    _say_what_was_read(console, dataset, settings)
    examples = dataset.split(split, "evaluation")[: settings.eval.max_questions]
    require_free(out)
    if dry_run:
        _print_plan(
            console, settings, f"evaluate {', '.join(checkpoints)} on {len(examples)} {split} questions of {data}"
        )
        return
    context = {"data": dataset.source, "split": split, "model": settings.model.name, "version": __version__}
    with _work(console, settings):
        from scorefast.errors import NotWritten
        from scorefast.evaluate import evaluate_checkpoints

        unwritten, path = None, None
        try:
            with claimed(out, "eval") if out else contextlib.nullcontext() as folder:
                content, path = evaluate_checkpoints(
                    opened, settings, examples, context, console, out=folder, with_probe=probe
                )
        except NotWritten as error:
            content, unwritten = error.content, error
    if as_json or path is not None:
        print(json.dumps(content) if as_json else path)
    if unwritten is not None:
        raise unwritten
    if path is not None:
        _write_dropped(console, dataset, path.parent)


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or `base`.")] = "base",
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A question a line in, a JSON object a line out.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Ask, watch the first attempt, then watch the model correct it. /help lists the commands."""

    console = _console(quiet)
    opened = None if checkpoint == "base" else open_checkpoint(checkpoint)
    settings = chosen_recipe(recipe, set_ or [], opened, console.note, rewards=False)
    if opened is not None:
        require_same_terms(opened, settings)
    with _work(console, settings):
        from scorefast.model.load import load_policy

        policy = load_policy(settings, opened)
    from scorefast.chat import converse, pipe
    from scorefast.files.lines import stdin_text
    from scorefast.ui.console import InertConsole

    if as_json or not sys.stdin.isatty():
        pipe(policy, settings, stdin_text(), sys.stdout)
    else:
        converse(policy, settings, InertConsole())


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.", readable=False)],
    format_: Annotated[str, typer.Option("--format", help="adapter, merged-16bit or gguf.")] = "merged-16bit",
    quiet: QuietOption = False,
) -> None:
    """Write CHECKPOINT for use elsewhere: a PEFT adapter, a merged 16-bit model, or GGUF with an Ollama Modelfile."""

    console = _console(quiet)
    if format_ not in (formats := ("adapter", "merged-16bit", "gguf")):
        raise UserError(f"--format {format_}: expected one of {', '.join(formats)}")
    opened = open_checkpoint(checkpoint)
    from scorefast.export import export_checkpoint, export_recipe

    with _work(console, export_recipe(opened)):
        export_checkpoint(opened, cast(Any, format_), out, console.note)
    print(out)


def _console(quiet: bool) -> InertConsole:
    from scorefast.ui.console import InertConsole

    console = InertConsole(file=terminal(), quiet=quiet or place().rank != 0)
    if not console.is_terminal:
        console.width = 160  # a log file has room for the table
    return console


def _say_what_was_read(console: InertConsole, dataset: Any, settings: Recipe) -> None:
    from scorefast.grading.reward import check_references, chosen_grader

    for reason, count in dataset.dropped.items():
        first = next((row for row in dataset.dropped_rows if row.kind == reason), None)
        where = f" (first: {first.file}:{first.line})" if first and first.line else ""
        console.note(f"left out, {reason}: {count}{where}")
    everything = [e for examples in dataset.splits.values() for e in examples]
    for line in check_references(everything, settings.reward.grader, some=True):
        console.note(line)
    if settings.reward.grader == "auto":
        chosen = Counter(chosen_grader(e, "auto") for e in everything)
        console.note(f"grader: auto, so {', '.join(f'{name} for {n} rows' for name, n in chosen.most_common())}")


@contextlib.contextmanager
def _byte_progress(console: InertConsole) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes read, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _overrides(set_: list[str] | None, flags: list[str], seed: int | None) -> list[str]:
    return [*(set_ or []), *flags, *([f"seed={seed}"] if seed is not None else [])]


@contextlib.contextmanager
def _work(console: InertConsole, settings: Recipe, *, dry_run: bool = False) -> Iterator[None]:
    """Heavy libraries at work: their chatter goes to stderr, or nowhere with --quiet; stdout stays ours. On a dry run
    a backend that is missing is said, and no error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.ExitStack() as stack:
        noise = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if console.quiet else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(noise))
        if console.quiet:
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.WARNING)
        with console.status("loading libraries") if console.is_terminal else contextlib.nullcontext():
            with away_from_working_directory():
                from scorefast.model.backends import import_backend, resolve_backend

            try:
                if dry_run:
                    resolve_backend(settings.model)
                else:
                    import_backend(settings.model)
            except UserError as lack:
                if not dry_run:
                    raise
                console.note(f"not to be run here: {lack}")
            import transformers
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if line := where_the_model_is(settings.model.name):
            console.note(line)
        yield
