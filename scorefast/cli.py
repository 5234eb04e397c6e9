"""The command line: parse, check, call one function, print. Heavy imports stand inside the commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from scorefast import __version__
from scorefast.recipe import Recipe, UserError, dump_recipe, load_recipe

app = typer.Typer(
    help="Teach a language model to correct itself (SCoRe, arXiv 2409.12917), on one consumer GPU or none.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[str, typer.Option("--data", help="CSV, JSONL or Parquet file, or a folder made by `prepare`.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A .yaml file or the name of a shipped recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key, e.g. stage2.alpha=5.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to make; default: a new one under runs/.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the recipe's seed.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Checkpoint to start from; default: the base model.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and plan; load no model.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]


def main() -> NoReturn:
    """Exit codes: 0 done, 1 failure, 2 bad usage or input, 130 / 143 interrupted (SIGINT / SIGTERM)."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    from scorefast.report import printable

    print(f"scorefast: {' '.join(printable(message).split())}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file.")],
    out: OutOption = None,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read, check and split SOURCE; measure it in tokens; write Parquet files and a manifest."""
    from scorefast.data import load_dataset, token_lengths, write_prepared
    from scorefast.runs import claim_run

    console = _console(quiet)
    settings = _recipe(recipe, set_, None, console)
    dataset = load_dataset(source, settings.data)
    if not Path(source).is_file():
        raise UserError(f"{source}: already prepared; give the file it was made from")
    if dry_run:
        _print_plan(console, settings, f"split {dataset}")
        return
    folder = claim_run(out, "data")
    with _work(console, settings):
        from scorefast.model import load_tokenizer
        from scorefast.prompts import ChatFormat

        try:
            chat = ChatFormat(load_tokenizer(settings.model.name), settings.prompt.correction)
            lengths = token_lengths(dataset, chat)
        except UserError as error:
            console.print(f"token lengths not measured: {error}")
            lengths = None
    manifest = write_prepared(dataset, settings.data, folder, lengths)
    for key in ("rows_read", "rows_kept", "dropped", "splits", "token_lengths"):
        console.print(f"{key}: {json.dumps(manifest[key])}")
    print(folder)


@app.command()
def stage1(
    data: DataOption,
    from_: FromOption = None,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stage I: reward the second attempt while the first is held near the original model."""
    _stage("stage1", data, from_, recipe, set_, out, seed, resume, dry_run, quiet)


@app.command()
def stage2(
    data: DataOption,
    from_: FromOption = None,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    out: OutOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stage II: on-policy reinforcement learning of both attempts, the second one's reward shaped by improvement."""
    _stage("stage2", data, from_, recipe, set_, out, seed, resume, dry_run, quiet)


def _stage(
    section: Any,
    data: str,
    from_: str | None,
    recipe: str,
    set_: list[str] | None,
    out: Path | None,
    seed: int | None,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    from scorefast import runs
    from scorefast.data import content_sha256, load_dataset

    console = _console(quiet)
    if not resume and _rank() == 0:
        runs.require_free(out)
    start = runs.open_checkpoint(from_) if from_ else None
    origin = str(start.path.resolve()) if start else None
    facts = {
        "stage": section,
        "data_sha256": content_sha256(data),
        "from": origin,
        "data": data,
        "version": __version__,
    }
    if resume:
        if out is None:
            raise UserError("--resume: name the run to continue with --out")
        if recipe != "auto" or set_ or seed is not None:
            raise UserError("--resume continues with the run's own recipe: drop --recipe, --set and --seed")
        settings = runs.reopen_run(out, facts)
    else:
        settings = _recipe(recipe, set_, seed, console, start)
    if start is not None:
        runs.require_same_terms(start, settings)
        if start.is_adapter != (settings.model.tuning == "lora"):
            kind = "an adapter" if start.is_adapter else "a whole model"
            raise UserError(f"{start.path}: is {kind}, but model.tuning is {settings.model.tuning}")
    dataset = load_dataset(data, settings.data)
    with _work(console, settings):
        from scorefast.model import resolve_backend
        from scorefast.stages import Interrupted, StageRun, check_lengths, check_stage, resolve_loss, run_stage

        check_stage(section, settings, dataset)
        if dry_run:
            stage = getattr(settings, section)
            work = f"{stage.max_steps} steps of {stage.questions_per_step} questions"
            _print_plan(console, settings, f"{section} of {settings.model.name} on {dataset}: {work}")
            return
        check_lengths(section, settings, dataset)
        if not resume and _rank() == 0:
            out = runs.claim_run(out, section)
            chosen = {"backend": resolve_backend(settings.model), "loss": resolve_loss(settings)}
            runs.start_run(out, settings, facts | chosen)
        if out is None:
            raise UserError("several processes: name the run's folder with --out")
        try:
            run_stage(StageRun(section, settings, dataset, start, out), console, resume=resume)
        except Interrupted as stop:
            begun = ["scorefast", section, "--data", data, *(["--from", from_] if from_ else []), "--out", str(out)]
            again = shlex.join([*begun, "--resume"])
            console.print(f"interrupted, saved. Continue with: {again}", soft_wrap=True)
            raise typer.Exit(128 + stop.signum) from None
        except UserError:
            if not resume and _rank() == 0:
                runs.abandon_run(out)
            raise
    if _rank() == 0:
        print(out)


def _print_plan(console: Console, settings: Recipe, plan: str) -> None:
    console.print(dump_recipe(settings))
    console.print(f"plan: {plan}. Nothing was run.")


@app.command(name="eval")
def eval_(
    checkpoints: Annotated[list[str], typer.Argument(help="Checkpoint folders; `base` is the recipe's base model.")],
    data: DataOption,
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    probe: Annotated[bool, typer.Option("--probe", help="Also: does turn 2 read turn 1? (see README)")] = False,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    seed: SeedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Greedy two-turn evaluation of CHECKPOINTS on held-out questions; the first one is the baseline of the others."""
    from scorefast import runs
    from scorefast.data import SPLITS, load_dataset

    console = _console(quiet)
    opened = [None if text == "base" else runs.open_checkpoint(text) for text in checkpoints]
    settings = _recipe(recipe, set_, seed, console, next((c for c in opened if c is not None), None))
    for checkpoint in opened:
        if checkpoint is not None:
            runs.require_same_terms(checkpoint, settings)
    if split not in SPLITS:
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    dataset = load_dataset(data, settings.data)
    examples = dataset.split(split, "evaluation")[: settings.eval.max_questions]
    runs.require_free(out)
    if dry_run:
        _print_plan(
            console, settings, f"evaluate {', '.join(checkpoints)} on {len(examples)} {split} questions of {data}"
        )
        return
    context = {"data": dataset.source, "split": split, "model": settings.model.name, "version": __version__}
    with _work(console, settings):
        from scorefast.evaluate import evaluate_checkpoints

        content, path = evaluate_checkpoints(opened, settings, examples, context, console, out=out, with_probe=probe)
    print(json.dumps(content) if as_json else path)


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or `base`.")] = "base",
    recipe: RecipeOption = "auto",
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A question a line in, a JSON object a line out.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Ask, watch the first attempt, then watch the model correct it. /help lists the commands."""
    from scorefast import runs

    console = _console(quiet)
    opened = None if checkpoint == "base" else runs.open_checkpoint(checkpoint)
    settings = _recipe(recipe, set_, None, console, opened)
    if opened is not None:
        runs.require_same_terms(opened, settings)
    with _work(console, settings):
        from scorefast.model import load_policy

        policy = load_policy(settings, opened)
    from scorefast.chat import converse, pipe

    if as_json or not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        pipe(policy, settings, sys.stdin, sys.stdout)
    else:
        converse(policy, settings, Console())


def _console(quiet: bool) -> Console:
    quiet = quiet or _rank() != 0
    console = Console(stderr=True, quiet=quiet, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160  # a log file has room for the table
    return console


def _recipe(source: str, set_: list[str] | None, seed: int | None, console: Console, start: Any = None) -> Recipe:
    """The named recipe; `auto` is the recipe of the checkpoint that is given, else the one that fits this machine."""
    overrides = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    if source == "auto" and start is not None and start.recipe is not None:
        console.print(f"recipe: that of {start.path}")
        return load_recipe(str(start.path / "recipe.yaml"), overrides)
    if source == "auto":
        source = _recipe_for_this_machine()
    console.print(f"recipe: {source}")
    return load_recipe(source, overrides)


def _recipe_for_this_machine() -> str:
    from importlib.util import find_spec

    if find_spec("unsloth") is None:
        return "tiny-cpu"
    import torch

    return "gemma-2-2b-it" if torch.cuda.is_available() else "tiny-cpu"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def _work(console: Console, settings: Recipe) -> Iterator[None]:
    """Heavy libraries at work: their chatter goes to stderr, or nowhere with --quiet; stdout stays ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.ExitStack() as stack:
        noise = stack.enter_context(open(os.devnull, "w")) if console.quiet else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(noise))
        with console.status("loading libraries") if console.is_terminal else contextlib.nullcontext():
            from scorefast.model import import_backend

            import_backend(settings.model)
            import transformers
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield
