"""Import the heavy libraries without telemetry, without code from elsewhere, and without output on stdout.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from scorefast.errors import UserError
from scorefast.runs.recipe_choice import model_location
from scorefast.schema import Recipe
from scorefast.ui.console import InertConsole
from scorefast.ui.streams import away_from_working_directory

ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # otherwise it logs every attempt to reach the hub
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # otherwise the hub is asked to convert a model without safetensors
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # their control characters would be printed visibly
    "PYTHONSAFEPATH": "1",  # processes that libraries start import nothing from the working directory
}


def isolate_libraries() -> None:
    """Disable the libraries' telemetry, and code from the hub or the working directory. Call this before their import.

    If the package `kernels` is installed, bitsandbytes downloads a kernel during its import (on CPUs with AVX512-BF16),
    and transformers downloads what a model's config names. A module that is None counts as not installed.
    bitsandbytes warns about that, so its logger is silenced.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextlib.contextmanager
def loaded_libraries(console: InertConsole, recipe: Recipe, *, dry_run: bool = False) -> Iterator[None]:
    """Import the libraries that the recipe needs. Their output goes to stderr, or nowhere with --quiet, never to
    stdout. On a dry run, a missing backend is a note and not an error."""
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
                    resolve_backend(recipe.model)
                else:
                    import_backend(recipe.model)
            except UserError as error:
                if not dry_run:
                    raise
                console.note(f"cannot run here: {error}")
            import transformers
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if line := model_location(recipe.model.name):
            console.note(line)
        yield
