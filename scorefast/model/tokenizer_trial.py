"""Tries an untrusted tokenizer.json in a process of its own before the library loads it here. Imports no torch.

The library is written in Rust: a failure there can end the process, and a pattern that runs for ever cannot be stopped.
`require_sound_tokenizer` runs `python -m scorefast.model.tokenizer_trial FILE`, which prints nothing, or the reason.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scorefast.errors import UserError
from scorefast.files.bounded import read_json
from scorefast.files.model_folder import LARGEST_TOKENIZER
from scorefast.files.text import one_line, shortened

SECONDS, MEMORY = 30, 2**32  # for a trial
RUN = 2_000  # characters of one kind in a row, in a probe
GROWTH = 18  # characters that a character may become, at most: NFKC makes 18 of one
STEPS = 1_000  # parts of a tokenizer's pipeline
KINDS = " \t\n\r\u00a0\u3000aAzZ09_-.,'\"!?#/(\\éλж中あ한अ\u0301🙂"
PIPELINE = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
REFUSED = 3  # the exit code with which the trial says why

_verdicts: dict[str, str] = {}  # by a file's digest: the reason against it, or nothing


def require_sound_tokenizer(path: Path) -> None:
    """Raises UserError, one line, for a file with which the library fails, runs for ever or takes unbounded memory."""
    if not path.is_file() or path.stat().st_size > LARGEST_TOKENIZER:
        raise UserError(f"{path}: not a file of at most {LARGEST_TOKENIZER:,} bytes")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in _verdicts:
        _verdicts[digest] = _verdict(path)
    if _verdicts[digest]:
        raise UserError(f"{path}: {_verdicts[digest]}; take the file of the original model")


def _verdict(path: Path) -> str:
    package = str(Path(__file__).parent.parent)
    known = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "scorefast.model.tokenizer_trial", str(path)],
            env=os.environ | {"PYTHONPATH": known},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {SECONDS} seconds to load and to encode a page"
    if done.returncode == 0:
        return ""
    said = done.stdout.strip()
    return shortened(said) if done.returncode == REFUSED and said else "ends the tokenizers library"


def main(path: Path) -> None:
    import resource

    if sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        told = read_json(path, LARGEST_TOKENIZER)
        require_bounded(told)
        _try(path, {*KINDS, *"".join(pattern for _, pattern in _patterns(told))})
    except Exception as error:  # an untrusted file can fail in any way
        print(one_line(error).removeprefix(f"{path}: "))
        raise SystemExit(REFUSED) from None


def _try(path: Path, kinds: set[str]) -> None:
    """Load the file, then encode and decode a run of every kind of character, `kinds` included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.normalizer is not None:
        every = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
        for start in range(0, len(every), 16):
            few = "".join(every[start : start + 16])
            if len(tokenizer.normalizer.normalize_str(few)) > GROWTH * len(few):
                raise ValueError(f"rewrites {few[:1]!r}, or what follows it, to more than {GROWTH} times its length")
    shown = sorted(kinds)[:300]
    rest = "\u2603" + "".join(shown)  # a pattern that wants another end fails after a run, and tries again
    for text in (rest * 3, *(kind * RUN + rest for kind in shown)):
        tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)


def _patterns(tokenizer: dict[str, object]) -> Iterator[tuple[str, str]]:
    """("Regex" or "String", pattern) of every part of the pipeline that has a pattern."""
    for part in _parts([tokenizer.get(key) for key in PIPELINE]):
        pattern = part.get("pattern")
        for kind, text in pattern.items() if isinstance(pattern, dict) else ():
            if isinstance(text, str):
                yield kind, text


def require_bounded(tokenizer: dict[str, object]) -> None:
    """Raises ValueError for a pattern that can take exponential time, and for parts that rewrite text to many times its
    length. The library matches patterns by backtracking."""
    for kind, pattern in _patterns(tokenizer):
        if kind == "Regex":
            require_plain_pattern(pattern)
    growth, steps = 1.0, 0
    for part in _parts([tokenizer.get(key) for key in PIPELINE]):
        steps += 1
        written = part.get("content", part.get("prepend", part.get("replacement")))
        if isinstance(written, str) and part.get("type") in ("Replace", "Prepend", "Metaspace"):
            told = part.get("pattern")
            read = told.get("String") if isinstance(told, dict) else None
            growth *= max(1.0, len(written) / (len(read) if isinstance(read, str) and read else 1))
    if growth > GROWTH:
        raise ValueError(f"rewrites text to {growth:.3g} times its length; at most {GROWTH}")
    if steps > STEPS:
        raise ValueError(f"has {steps:,} steps; at most {STEPS:,}")
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ValueError("drops merges at random (dropout): a text has many encodings")


def _parts(tree: object) -> Iterator[dict[str, object]]:
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _parts(value)


_TOKEN = re.compile(
    r"""(?P<escape>\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|[xuU][0-9a-fA-F]+|.))
      | (?P<set>\[)
      | (?P<open>\((?:\?(?:<?[=!]|[a-zA-Z-]*[:)]|>|<\w+>))?)
      | (?P<close>\))
      | (?P<repeat>[*+?]|\{\d*,?\d*\})(?P<manner>[?+]?)
      | (?P<either>\|)
      | (?P<one>.)""",
    re.VERBOSE | re.DOTALL,
)


def require_plain_pattern(pattern: str) -> None:
    """Raises ValueError if a repeated part can itself match in several ways, since it repeats or chooses: backtracking
    then tries every way. Raises it for a pattern that refers to itself, too."""
    at, last, stack = 0, False, [False]  # stack: whether the group so far can match in several ways
    while at < len(pattern):
        found = _TOKEN.match(pattern, at)
        assert found is not None  # `one` matches any character
        kind, at = found.lastgroup if found["repeat"] is None else "repeat", found.end()
        if kind == "set":
            at, last = _after_set(pattern, at), False
        elif kind == "open":
            if found["open"] == "(" and pattern[at : at + 1] == "?":  # a condition, a call, an absence
                raise ValueError(f"has a pattern of a kind that is not supported: {shortened(pattern, 60)!r}")
            last = False
            if not found["open"].endswith(")"):
                stack.append(False)
        elif kind == "close":
            if len(stack) == 1:
                raise ValueError(f"has a pattern with a bracket too many: {shortened(pattern, 60)!r}")
            last = stack.pop()
            stack[-1] |= last
        elif kind == "repeat":
            once = found["repeat"] in ("?", "{0,1}", "{,1}", "{1}")
            if last and not once:
                raise ValueError(f"has a pattern with nested quantifiers: {shortened(pattern, 60)!r}")
            # Here `{1,3}+` repeats a repeat: harmless at the end of an alternative alone, after which nothing can fail.
            if found["repeat"].startswith("{") and found["manner"] == "+" and pattern[at : at + 1] not in ("", "|"):
                raise ValueError(f"has a pattern with nested quantifiers: {shortened(pattern, 60)!r}")
            fixed = re.fullmatch(r"\{\d+\}", found["repeat"]) is not None
            last = stack[-1] = True if not fixed else last
            stack[-1] |= not fixed
        elif kind == "either":
            stack[-1], last = True, False
        elif kind == "escape" and re.fullmatch(r"\\[1-9kgGKRX]", found["escape"]):
            raise ValueError(f"has a pattern that refers to what it matched: {shortened(pattern, 60)!r}")
        else:
            last = False


def _after_set(pattern: str, at: int) -> int:
    """Where a bracketed set of characters ends, sets in it included."""
    depth, first = 1, True
    while at < len(pattern) and depth:
        character = pattern[at]
        if character == "\\":
            at += 1
        elif character == "[":
            depth += 1
        elif character == "]" and not first:
            depth -= 1
        first = (character == "^" and first) or character == "["
        at += 1
    return at


if __name__ == "__main__":
    main(Path(sys.argv[1]))
