"""Every shipped recipe loads, is commented key by key, survives a round trip; a wrong key names the nearest."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from scorefast.recipe import (
    Recipe,
    UserError,
    dump_recipe,
    known_keys,
    load_recipe,
    recipe_folder,
    shipped_recipes,
)


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


def test_a_recipe_cannot_be_changed_after_it_was_read():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("tiny-cpu").stage2.alpha = 3  # type: ignore[misc]
