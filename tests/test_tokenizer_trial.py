"""A stranger's tokenizer.json can neither end the process, nor hang it, nor fill the memory."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from scorefast.errors import UserError
from scorefast.model.tokenizer import load_tokenizer
from scorefast.model.tokenizer_trial import require_plain_pattern, require_sound_tokenizer
from scorefast.recipe import EMBEDDED_MODELS
from tests.conftest import scorefast
from tests.test_prompts import CHATML, CHATML_TOKENS, TOOL, byte_level

TINY = EMBEDDED_MODELS["tiny-gemma2"]
LETTERS = r"\p{Lm}\p{Lo}\p{M}"
REAL = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{LETTERS}]*[\p{{Ll}}{LETTERS}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{LETTERS}]+[\p{{Ll}}{LETTERS}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?|\p{N}{1,3}",
    "digits from the right": r"\d{1,3}(?=(?:\d{3})*\b)",
    "digits, other": r"(?=(\d{3})+(?!\d))",
}


@pytest.mark.parametrize("name", REAL)
def test_patterns_that_models_have_are_plain(name):
    require_plain_pattern(REAL[name])


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*$",
        "(?:a|a)*$",
        "(?:a|aa)+!",
        "(?:a?){50}!",
        "((a+)b?)+!",
        "(?<x>a+)+!",
        "(?i:a+)*!",
        "([^a]+)*$",
        "(?:[a-z]{1,9})+!",
        r"a{1,3}+!",
        r"(?:\p{L}+\s*)+!",
        "(?:(?:(?:a+)))+!",
        r"(a)\1*",
        r"(?<x>a\g<x>?b)",
        "(?(1)a|b)",
        "(?~abc)",
        "a)+",
    ],
)
def test_patterns_that_can_run_for_ever_are_not(pattern):
    with pytest.raises(ValueError, match="has a pattern"):
        require_plain_pattern(pattern)


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def rewrite(folder: Path, **changes) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace(pattern: str, content: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(steps: list, key: str = "normalizers") -> dict:
    return {"type": "Sequence", key: steps}


PADDING = {"strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
HOSTILE = {
    "exponential": {"pre_tokenizer": split("(a+)+$")},
    "exponential, nested": {"pre_tokenizer": sequence([split(r"\s+"), split("(?:x|x)*y")], "pretokenizers")},
    "polynomial": {"pre_tokenizer": split("q*q*q*q*q*q*!")},
    "exponential normalizer": {"normalizer": replace("(?:x|x)*y", "", "Regex")},
    "exponential decoder": {"decoder": replace("(?:x|x)*y", "", "Regex")},
    "growing": {"normalizer": replace("a", "a" * 1000)},
    "growing, of nothing": {"normalizer": replace("", "a" * 1000)},
    "growing, by steps": {"normalizer": sequence([replace("a", "aa")] * 60)},
    "growing, by other steps": {"normalizer": sequence([replace(c, 2 * chr(ord(c) + 1)) for c in "abcdef"])},
    "growing in front": {"normalizer": sequence([{"type": "Prepend", "prepend": "▁" * 10_000}])},
    "growing decoder": {"decoder": sequence([replace("a", "aaaa")] * 30, "decoders")},
    "many steps": {"normalizer": sequence([replace("a", "b")] * 2000)},
    "padding": {"padding": PADDING},
    "a damaged map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "no model": {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": [["a", "b"]]}},
    "an unknown kind": {"pre_tokenizer": {"type": "Mine"}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_one_line(model, name):
    rewrite(model, **HOSTILE[name])
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(model))
    assert str(caught.value).startswith(f"{model}/tokenizer.json: ")
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 45


def test_merges_at_random_are_refused(model):
    path = model / "tokenizer.json"
    told = json.loads(path.read_text())
    rewrite(model, model=told["model"] | {"dropout": 0.5})
    with pytest.raises(UserError, match="drops merges at random"):
        load_tokenizer(str(model))


def test_the_command_says_it_in_one_line(model):
    rewrite(model, pre_tokenizer=split("(a+)+$"))
    done = scorefast(
        "chat", "--set", f"model.name={model}", cwd=model, stdin="aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") <= 2, done.stderr
    assert "tokenizer.json: has a pattern with nested quantifiers" in done.stderr


@pytest.mark.parametrize("pattern", REAL.values(), ids=REAL)
def test_tokenizers_with_patterns_of_models_are_taken(pattern, tmp_path):
    byte_level(CHATML, CHATML_TOKENS, TOOL, eos_token="<|im_end|>").save_pretrained(tmp_path)
    byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    rewrite(tmp_path, pre_tokenizer=sequence([split(pattern), byte], "pretokenizers"))
    require_sound_tokenizer(tmp_path / "tokenizer.json")


def test_a_trial_costs_little_and_is_had_once(model):
    started = time.monotonic()
    rewrite(model, version="1.0")
    require_sound_tokenizer(model / "tokenizer.json")
    first = time.monotonic() - started
    started = time.monotonic()
    require_sound_tokenizer(model / "tokenizer.json")
    assert time.monotonic() - started < min(0.1, first)
    assert first < 10
