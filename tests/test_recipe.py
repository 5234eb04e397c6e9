"""Every shipped recipe loads, is commented key by key, survives a round trip; a wrong key names the nearest."""

from __future__ import annotations

import os
import re
from itertools import pairwise

import pytest
from pydantic import BaseModel

from scorefast.errors import UserError
from scorefast.recipe import Recipe, dump_recipe, known_keys, load_recipe, recipe_folder, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe


def test_the_three_recipes_are_there():
    assert set(shipped_recipes()) >= {"tiny-cpu", "gemma-2-2b-it", "score-paper"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_key_stands_in_the_file_and_is_explained_once(name):
    text = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    leaves = {k.split(".")[-1] for k in known_keys() if not _is_group(k)}
    explained = set()
    for line, before in zip(text.splitlines(), ["", *text.splitlines()], strict=False):
        found = re.match(r"\s*(\w+):", line)
        if found and ("#" in line or before.lstrip().startswith("#")):
            explained.add(found.group(1))
    missing_words = {"r", "questions_per_step", "gradient_checkpointing", "learning_rate", "warmup_steps"}
    assert leaves - explained <= missing_words | {"weight_decay"}, "keys whose name says all may go without"
    for leaf in leaves:
        assert re.search(rf"^\s*{leaf}:", text, re.MULTILINE), f"{name} leaves {leaf} out"


def _is_group(key: str) -> bool:
    node: type[BaseModel] = Recipe
    for part in key.split("."):
        annotation = node.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        node = annotation
    return True


def test_the_papers_hyperparameters():
    """arXiv 2409.12917, MATH."""
    r = load_recipe("score-paper")
    for stage in (r.stage1, r.stage2):
        assert (stage.learning_rate, stage.max_steps, stage.beta1) == (5e-6, 3000, 0.01)
        assert stage.questions_per_step * stage.samples_per_question == 512
    assert (r.stage1.beta2, r.stage2.alpha, r.rollout.temperature) == (0.1, 10.0, 1.0)


def test_overrides_win_over_the_file_and_numbers_may_be_written_as_people_do():
    r = load_recipe("tiny-cpu", ["stage2.alpha=5", "stage1.learning_rate=2e-4", "model.lora.target_modules=[q_proj]"])
    assert (r.stage2.alpha, r.stage1.learning_rate, r.model.lora.target_modules) == (5.0, 2e-4, ("q_proj",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage2.alhpa=5", "unknown key 'stage2.alhpa'; did you mean 'stage2.alpha'?"),
        ("stage3.alpha=5", "unknown key 'stage3'; did you mean 'stage"),
        ("stage2.alpha=minus one", "stage2.alpha"),
        ("stage2.alpha=-1", "stage2.alpha"),
        ("stage1.method=sft", "stage1.method"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("stage2.samples_per_question=1", "greater than or equal to 2"),
        ("data.test_fraction=0.95", "below 1"),
        ("rollout.max_new_tokens=256", "do not fit"),
        ("nonsense", "expected key=value"),
        ("seed.x=1", "is a value"),
        ("seed={", "not a YAML value"),
    ],
)
def test_a_bad_override_is_one_line_naming_the_key(override, message):
    with pytest.raises(UserError) as caught:
        load_recipe("tiny-cpu", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a\n", "a: [", "model: !!python/object:os.system {}\n"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(str(path))


def _laughs(line):
    return "a: &a [1, 1]\n" + "".join(f"{new}: &{new} {line(old)}\n" for old, new in pairwise("abcdefghij"))


HOSTILE = {
    "a million keys": ("".join(f"key{i}: 1\n" for i in range(1_000_000)), "larger than the 100,000 bytes"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(9000)), "more than 10,000 values"),
    "laughs": (_laughs(lambda old: f"[{', '.join([f'*{old}'] * 10)}]"), "more than 10,000 values"),
    "merged laughs": (_laughs(lambda old: f"{{<<: [{', '.join([f'*{old}'] * 10)}]}}"), "more than 10,000 values"),
    "itself": ("seed: &a [*a]", "stands for something that holds it"),
    "deep": ("seed: " + "[" * 5000, "nested deeper than 50"),
    "deep blocks": ("- " * 5000, "nested deeper than 50"),
    "twice": ("seed: 1\nmodel: {}\nseed: 2\n", "line 3, column 1: the key 'seed' stands there twice"),
    "twice inside": ("stage1:\n  beta1: 1\n  beta1: 2\n", "line 3, column 3: the key 'beta1'"),
    "tag": ("seed: !!int 1\n", "is not allowed"),
    "date": ("seed: 2026-99-99\n", "month must be"),
    "digits": ("seed: 0x" + "f" * 5000, "more than 100 digits"),
    "sexagesimal": ("seed: 1" + ":1" * 40_000, "more than 100 digits"),
    "no digits": ("seed: 0b_\n", "invalid literal"),
    "control": ("seed: \0\n", "not YAML"),
    "infinite": ("stage2: {alpha: .inf}\n", "stage2.alpha: Input should be a finite number"),
    "long key": ("? " + "k" * 90_000 + "\n: 1", "unknown key 'kkk"),
    "long value": (f"seed: [{'x' * 90_000}]", "seed: Input should be a valid integer"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_one_short_line_and_soon(tmp_path, name):
    text, message = HOSTILE[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^recipe .*bad\.yaml: .*{re.escape(message)}") as caught:
        load_recipe(str(path))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 5000, "&a [*a]", "{a: 1, a: 2}", "x" * 200_000, "!!python/none", "9" * 101])
def test_a_hostile_value_of_set_is_one_short_line(value):
    with pytest.raises(UserError, match=r"^--set seed: .* is not a YAML value: ") as caught:
        load_recipe("tiny-cpu", [f"seed={value}"])
    assert len(str(caught.value)) < 600


def test_aliases_within_bounds_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text("stage1: &both {beta1: 0.5}\nstage2: {<<: *both, alpha: 3}\n")
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert (recipe.stage1.beta1, recipe.stage2.beta1, recipe.stage2.alpha) == (0.5, 0.5, 3.0)


def test_a_recipe_that_is_no_regular_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(UserError, match=f"{name}.yaml: not a file"):
            load_recipe(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(UserError, match="No such file"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_a_recipe_cannot_be_changed_after_it_was_read():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("tiny-cpu").stage2.alpha = 3  # type: ignore[misc]
