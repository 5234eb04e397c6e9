"""Import, try and call a user's reward function with TRL's signature. Imports no torch."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import cast

from scorefast.data.example import COLUMNS, OPTIONAL, Example
from scorefast.errors import UserError
from scorefast.files.text import one_line, shortened

# TRL's signature: prompts and completions are lists of chat messages, every column is a keyword list. The function
# returns one float per completion, or None if it does not apply. It may be `async`.
RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]


def load_reward(name: str) -> RewardFunction:
    """Import `module:function` or `path/to/file.py:function`.

    It can import neighbours of the file, or modules of the working directory; installed modules take precedence.
    Raises UserError.
    """
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise UserError(
            f"reward.function {name!r}: expected module:function or file.py:function, for example my_rewards:brief"
        )
    try:
        found = getattr(_module_of_file(Path(where)) if where.endswith(".py") else _module(where), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward.function {name!r}: {one_line(error)}") from None
    except (Exception, SystemExit) as error:  # user code can fail in any way
        raise UserError(f"reward.function {name!r}: {where} fails when imported: {_with_type(error)}") from None
    if not callable(found):
        raise UserError(f"reward.function {name!r}: is not a function")
    return found


class _Neighbours(MetaPathFinder):
    """Finds modules in the folders of reward functions, after all installed modules.

    It is active only while a reward function is imported or called, since libraries also probe for optional packages.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, self.folders, target) if path is None else None

    @contextmanager
    def found(self, folder: Path | None = None) -> Iterator[None]:
        if folder is not None and str(folder) not in self.folders:
            self.folders.append(str(folder))
        sys.meta_path.append(self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)


_NEIGHBOURS = _Neighbours()


def _module(name: str) -> ModuleType:
    with _NEIGHBOURS.found(Path.cwd()):
        return importlib.import_module(name)


def _module_of_file(path: Path) -> ModuleType:
    """Execute the file once, under a unique module name."""
    path = path.expanduser().resolve()
    name = "reward_function_" + re.sub(r"\W", "_", str(path))
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ImportError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(cast(ModuleSpec, spec))  # every .py file has one
    try:
        with _NEIGHBOURS.found(path.parent):
            cast(Loader, module.__loader__).exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def rewards_of(
    function: RewardFunction, examples: Sequence[Example], prompts: Sequence[list[str]], replies: Sequence[str]
) -> list[float | None]:
    """The reward of each reply; None where the function does not apply.

    prompts: the messages before each reply, user and assistant in turn. Raises UserError naming the row if the function
    fails or does not return one number or None per reply.
    """
    try:
        return _called(function, examples, prompts, replies)
    except (Exception, SystemExit) as error:
        for example, prompt, reply in zip(examples, prompts, replies, strict=True):
            try:
                _called(function, [example], [prompt], [reply])
            except (Exception, SystemExit) as alone:
                raise UserError(f"reward function: row {_row(example)}: {_with_type(alone)}") from alone
        raise UserError(f"reward function: {_with_type(error)} (for {len(replies)} rows together)") from error


def try_reward(function: RewardFunction, examples: Sequence[Example], correction: str) -> None:
    """Call the function as training does, on the first attempts and the correct answers of a few rows.

    Raises UserError, also if a reward is not finite. Training skips a step with such a reward.
    """
    few = list(examples[:4])
    for replies in ([e.original_answer or "" for e in few], [e.correct_answer for e in few]):
        for turns in ([[e.question] for e in few], [[e.question, e.original_answer or "", correction] for e in few]):
            for example, value in zip(few, rewards_of(function, few, turns, replies), strict=True):
                if value is not None and not math.isfinite(value):
                    raise UserError(f"reward function: row {_row(example)}: returned {value}, which is not finite")


def _called(
    function: RewardFunction, examples: Sequence[Example], prompts: Sequence[list[str]], replies: Sequence[str]
) -> list[float | None]:
    roles = ("user", "assistant")
    with _NEIGHBOURS.found():
        result = function(
            prompts=[[{"role": roles[i % 2], "content": text} for i, text in enumerate(p)] for p in prompts],
            completions=[[{"role": "assistant", "content": reply}] for reply in replies],
            **_columns(examples),
        )
        values = list(_awaited(result) if inspect.isawaitable(result) else result)
    if len(values) != len(replies):
        raise ValueError(f"returned {len(values)} rewards for {len(replies)} completions")
    return [_number(value) for value in values]


def _columns(examples: Sequence[Example]) -> dict[str, list[object]]:
    """The columns of the source and of Example, each as a list.

    Example's columns take precedence, except over the source's `id` and `solution`. `solution` is the reference in
    TRL's own rewards.
    """
    theirs = dict.fromkeys(name for e in examples for name in e.extra or {})
    if taken := theirs.keys() & {"prompts", "completions"}:
        raise ValueError(f"the data has a column {min(taken)}, which is reserved by TRL's signature: rename the column")
    columns: dict[str, list[object]] = {name: [(e.extra or {}).get(name) for e in examples] for name in theirs}
    columns.setdefault("id", [e.id for e in examples])
    columns.setdefault("solution", [e.correct_answer for e in examples])
    for name in COLUMNS:
        columns[name] = [getattr(e, name) for e in examples]
    for name in OPTIONAL:
        if any(given := [getattr(e, name) for e in examples]):
            columns[name] = given
    return columns


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop per process, as in TRL: clients and semaphores that a function keeps belong to their loop.

    It has its own thread, since the caller may already run a loop, as notebooks do.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop


def _awaited(result: Awaitable[Sequence[float | None]]) -> Sequence[float | None]:
    async def settled() -> Sequence[float | None]:
        try:
            return await result
        except SystemExit as stop:  # would end the loop's thread, so this one would wait for ever
            raise RuntimeError(f"SystemExit: {stop}") from stop

    future = asyncio.run_coroutine_threadsafe(settled(), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # interrupted while waiting
        raise


def _number(value: float | None) -> float | None:
    try:
        return None if value is None else float(value)  # also NumPy and torch scalars
    except (TypeError, ValueError):
        raise ValueError(f"returned {shortened(repr(value), 100)}, which is not a number") from None


def _row(example: Example) -> str:
    return f"{example.id} ({example.question[:60]!r})"


def _with_type(error: BaseException) -> str:
    return f"{type(error).__name__}: {shortened(str(error))}"
