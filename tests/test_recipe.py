"""A recipe states what differs; shipped ones load and survive a round trip; what is wrong is one line with its file."""

from __future__ import annotations

import os
import re
import runpy
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel

from scorefast.files.seal import seal
from scorefast.recipe import REFERENCE, UserError, dump_recipe, known_keys, load_recipe, recipe_folder, shipped_recipes
from scorefast.runs.checkpoint import Checkpoint, open_checkpoint
from scorefast.runs.recipe_choice import chosen_recipe, resumed_recipe
from scorefast.runs.resume import change_recipe
from scorefast.schema import Recipe
from tests.conftest import REPOSITORY

PAGES = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))["PAGES"]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe
    assert load_recipe(str(tmp_path / "r.yaml"), saved=True) == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_states_what_differs_and_no_more(name):
    text = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 30


# What each is for: name, questions x samples, micro batch, steps of both stages, sequences at once, tokens, b2, alpha.
TELLING = {
    "tiny-cpu": ("tiny-gemma2", 16, 8, 64, (20, 20), 256, 64, 1.0, 1.0),
    "products-cpu": ("tiny-gemma2-products", 16, 8, 64, (15, 10), 256, 40, 1.0, 1.0),
    "smollm2-135m-cpu": ("./models/smollm2-135m", 4, 4, 16, (60, 30), 32, 48, 1.0, 1.0),
    "gemma-2-2b-it": ("google/gemma-2-2b-it", 8, 8, 1, (200, 200), 8, 512, 0.1, 10.0),
    "gemma-2-2b-it-12gb": ("google/gemma-2-2b-it", 8, 8, 2, (200, 200), 16, 512, 0.1, 10.0),
    "gemma-2-2b-it-24gb": ("google/gemma-2-2b-it", 8, 8, 4, (200, 200), 40, 512, 0.1, 10.0),
    "gemma-2-9b-it-24gb": ("google/gemma-2-9b-it", 8, 8, 1, (200, 200), 12, 512, 0.1, 10.0),
    "score-paper": ("google/gemma-2-2b-it", 64, 8, 1, (3000, 3000), 64, 1024, 0.1, 10.0),
}


def test_each_recipe_resolves_to_what_it_is_for():
    resolved = {name: load_recipe(name) for name in shipped_recipes()}
    assert {
        name: (
            *(r.model.name, r.stage2.questions_per_step, r.stage2.samples_per_question, r.stage2.micro_batch_size),
            *((r.stage1.max_steps, r.stage2.max_steps), r.rollout.batch_size, r.rollout.max_new_tokens),
            *(r.stage1.beta2, r.stage2.alpha),
        )
        for name, r in resolved.items()
    } == TELLING
    four_bit = {name for name, r in resolved.items() if r.model.load_in_4bit}
    assert four_bit == {name for name in TELLING if name.startswith("gemma")}
    assert {r.model.dtype for name, r in resolved.items() if name in four_bit} == {"bfloat16"}
    assert resolved["smollm2-135m-cpu"].model.lora.target_modules == ("q_proj", "v_proj", "o_proj")
    assert resolved["products-cpu"].data == resolved["tiny-cpu"].data


def test_a_whole_recipe_of_earlier_versions_still_loads():
    assert load_recipe(str(REPOSITORY / "tests" / "old_recipe.yaml")) == load_recipe("gemma-2-2b-it")


# --- the reference, and pages made from the schema ---------------------------------------------------------------


def test_the_reference_has_every_key_at_its_default_and_is_none_to_train_by():
    assert load_recipe(REFERENCE) == Recipe()
    assert REFERENCE not in shipped_recipes()
    text = (recipe_folder() / f"{REFERENCE}.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^ *(\w+):", text, re.MULTILINE) == [key.split(".")[-1] for key in known_keys()]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_what_the_code_says(path):
    assert path.read_bytes() == PAGES[path]().encode(), "run python docs/generate.py"


def test_a_page_that_differs_is_named_and_written_anew(tmp_path, capsys):
    generate = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))
    main, page = generate["main"], tmp_path / "page.md"
    main.__globals__.update(ROOT=tmp_path, PAGES={page: lambda: "new\n"})
    page.write_text("old\n")
    assert (main(["--check"]), page.read_text()) == (1, "old\n")
    assert capsys.readouterr().out.startswith("page.md: differs")
    assert (main([]), page.read_text(), main(["--check"])) == (0, "new\n", 0)


@pytest.mark.parametrize("key", known_keys())
def test_every_key_is_described_in_a_sentence(key):
    node: type[BaseModel] = Recipe
    *groups, leaf = key.split(".")
    for name in groups:
        node = node.model_fields[name].annotation  # type: ignore[assignment]
    assert re.fullmatch(r"\S.*\.", node.model_fields[leaf].description or ""), key


# --- extends -----------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_a_file_lies_over_its_base_and_set_over_both(tmp_path):
    write(tmp_path, base="extends: tiny-cpu\nseed: 1\nstage2: {alpha: 3, beta1: 0.5}\n")
    write(tmp_path, mine="extends: base.yaml\nseed: 2\nstage2: {alpha: 4}\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), ["seed=3", "stage1.beta2=0.5"])
    assert (recipe.seed, recipe.stage2.alpha, recipe.stage2.beta1) == (3, 4.0, 0.5)
    assert recipe.stage1 == load_recipe("tiny-cpu", ["stage1.beta2=0.5"]).stage1
    assert load_recipe(str(tmp_path / "mine.yaml")).seed == 2


def test_a_base_is_sought_from_the_file_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path, base="seed: 7\n")
    write(tmp_path / "deep", middle="extends: ../base.yaml\n", top="extends: middle.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("deep/top.yaml").seed == 7


def test_mappings_merge_and_all_else_replaces(tmp_path):
    write(
        tmp_path,
        base="model: {lora: {r: 4, target_modules: [q_proj, v_proj]}}\n"
        "prompt: {system: Be brief., options: {a: 1, b: 2}}\n"
        "data: {columns: {question: q, correct_answer: a}}\nstage2: {origin: {kept: 0.1, worse: -2}}\n",
        mine="extends: base.yaml\nmodel: {lora: {target_modules: [o_proj]}}\n"
        "prompt: {system: null, options: {b: 3}}\n"
        "data: {columns: {question: ask}}\nstage2: {origin: {kept: 0.2}}\n",
    )
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.model.lora.r, recipe.model.lora.target_modules) == (4, ("o_proj",))
    assert (recipe.prompt.system, recipe.prompt.options) == (None, {"a": 1, "b": 3})
    assert recipe.data.columns == {"question": "ask", "correct_answer": "a"}
    assert (recipe.stage2.origin.kept, recipe.stage2.origin.worse) == (0.2, -2.0)


def test_stages_that_share_an_alias_are_overridden_one_by_one(tmp_path):
    write(tmp_path, base="stage1: &both {max_steps: 9}\nstage2: *both\n")
    write(tmp_path, mine="extends: base.yaml\nstage1: {save_steps: 3}\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), ["stage1.max_steps=7"])
    assert (recipe.stage1.max_steps, recipe.stage2.max_steps) == (7, 9)
    assert (recipe.stage1.save_steps, recipe.stage2.save_steps) == (3, 50)


CHAINS = {
    "a base's key": ("extends: b.yaml\n", "stage2: {alhpa: 1}\n", "b.yaml: unknown key 'stage2.alhpa'; did you mean"),
    "a base's value": ("extends: b.yaml\nstage2: {beta1: 1}\n", "stage2: {alpha: -1}\n", "b.yaml: stage2.alpha: "),
    "a value over a base": ("extends: b.yaml\nstage2: {alpha: -1}\n", "stage2: {alpha: 1}\n", "a.yaml: stage2.alpha: "),
    "a group that is none": ("extends: b.yaml\nstage2: 3\n", "stage2: {alpha: 1}\n", "a.yaml: stage2: "),
    "no base": ("extends: c.yaml\n", "", "a.yaml: extends: {folder}/c.yaml: No such file"),
    "no YAML": ("extends: b.yaml\n", "a: [", "a.yaml: extends: {folder}/b.yaml: not YAML: "),
    "no mapping": ("extends: b.yaml\n", "- a\n", "a.yaml: extends: {folder}/b.yaml: expected keys such as"),
    "too many values": ("extends: b.yaml\n", "".join(f"k{i}: 1\n" for i in range(9000)), "more than 10,000 values"),
    "too many bytes": ("extends: b.yaml\n", "#" * 100_001, "b.yaml: larger than 100,000 bytes"),
    "no name": (
        "extends: nothing-such\n",
        "",
        "a.yaml: extends: no recipe 'nothing-such': give a .yaml file or one of g",
    ),
    "no list": ("extends: [tiny-cpu]\n", "", "a.yaml: extends: expected the name of a shipped recipe or the path of a"),
    "nothing": ("extends:\n", "", "a.yaml: extends: expected the name of a shipped recipe or the path of a .yaml file"),
    "itself": ("extends: a.yaml\n", "", "a.yaml: extends: circular: {folder}/a.yaml -> {folder}/a.yaml"),
    "a circle": (
        "extends: b.yaml\n",
        "extends: ../x/a.yaml\n",
        "b.yaml: extends: circular: {folder}/a.yaml -> ",
    ),
    "misspelled": ("extend: tiny-cpu\n", "", "a.yaml: unknown key 'extend'; did you mean 'extends'?"),
    "inside a group": ("model: {extends: tiny-cpu}\n", "", "a.yaml: unknown key 'model.extends'"),
    "no folder of recipes": ("extends: ../recipes/tiny-cpu\n", "", "a.yaml: extends: no recipe '../recipes/tiny-cpu'"),
    "a long path": (f"extends: {'x' * 5000}.yaml\n", "", "File name too long"),
    "a NUL": ('extends: "b\\0.yaml"\n', "", "a.yaml: extends: embedded null byte"),
    "half a character": ('extends: "\\ud800.yaml"\n', "", "a.yaml: extends: 'utf-8' codec can't encode"),
}


@pytest.mark.parametrize("case", CHAINS)
def test_what_is_wrong_in_a_chain_is_one_line_naming_the_file_and_key(tmp_path, case):
    first, base, message = CHAINS[case]
    folder = tmp_path / "x"
    folder.mkdir()
    write(folder, a=first, b=base)
    with pytest.raises(UserError, match=f"^recipe .*{re.escape(message.format(folder=folder))}") as caught:
        load_recipe(str(folder / "a.yaml"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_chain_has_five_bases_at_most(tmp_path):
    write(tmp_path, **{f"r{i}": f"extends: r{i + 1}.yaml\n" for i in range(6)}, r6="seed: 8\n")
    assert load_recipe(str(tmp_path / "r1.yaml")).seed == 8
    with pytest.raises(UserError, match=r"r5\.yaml: extends: a chain of more than 5 bases.*r0\.yaml -> .*r6\.yaml$"):
        load_recipe(str(tmp_path / "r0.yaml"))


def test_a_base_that_is_no_regular_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    write(tmp_path, mine="extends: pipe.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml: extends: .*pipe\.yaml: not a file"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_set_does_not_choose_a_base():
    with pytest.raises(UserError, match=r"^--set extends: only a recipe file can extend another"):
        load_recipe("tiny-cpu", ["extends=gemma-2-2b-it"])


def _open(folder: Path) -> object:
    return open_checkpoint(str(folder))


def _start_from(folder: Path) -> object:
    start = Checkpoint("theirs", folder, True, "tiny-gemma2", Recipe())
    return chosen_recipe("auto", [], start, lambda line: None, rewards=True)


def _resume(folder: Path) -> object:
    return resumed_recipe(folder, "stage1", "auto", [], lambda line: None)


def _go_on(folder: Path) -> object:
    return change_recipe(folder, Recipe())


def _export(folder: Path) -> object:
    from scorefast.export import export_recipe

    (folder / "checkpoint-1").mkdir()
    return export_recipe(Checkpoint("theirs", folder / "checkpoint-1", True, "tiny-gemma2", None))


@pytest.mark.parametrize("base", ["tiny-cpu", "other.yaml", "../mine.yaml"])
@pytest.mark.parametrize("read", [_open, _start_from, _resume, _go_on, _export])
def test_the_recipe_of_a_run_or_a_checkpoint_extends_none(tmp_path, read, base):
    """It may be somebody else's: no file outside of its folder is read, and the folder's own need not be."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    write(tmp_path, mine="report_to: precious\n")
    write(folder, recipe=f"extends: {base}\n", other="seed: 1\n")
    seal(folder)
    with pytest.raises(UserError, match=r"recipe\.yaml: extends: not allowed in the folder of a run or a checkpoint"):
        read(folder)


def test_a_bases_file_is_not_named_where_set_is_to_blame(tmp_path):
    write(tmp_path, base="stage2: {alpha: 1}\n", mine="extends: base.yaml\n")
    with pytest.raises(UserError, match=r"^--set stage2\.alpha: "):
        load_recipe(str(tmp_path / "mine.yaml"), ["stage2.alpha=-1"])


# --- values ------------------------------------------------------------------------------------------------------


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
    "a million keys": ("".join(f"key{i}: 1\n" for i in range(1_000_000)), "larger than 100,000 bytes"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(9000)), "more than 10,000 values"),
    "laughs": (_laughs(lambda old: f"[{', '.join([f'*{old}'] * 10)}]"), "more than 10,000 values"),
    "merged laughs": (_laughs(lambda old: f"{{<<: [{', '.join([f'*{old}'] * 10)}]}}"), "more than 10,000 values"),
    "itself": ("seed: &a [*a]", "refers to a value that contains it"),
    "deep": ("seed: " + "[" * 5000, "nested deeper than 50"),
    "deep blocks": ("- " * 5000, "nested deeper than 50"),
    "twice": ("seed: 1\nmodel: {}\nseed: 2\n", "line 3, column 1: duplicate key 'seed'"),
    "twice inside": ("stage1:\n  beta1: 1\n  beta1: 2\n", "line 3, column 3: duplicate key 'beta1'"),
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


@pytest.mark.parametrize("key", ["seed", "extends"])
def test_a_refused_value_of_many_aliases_is_not_written_out(tmp_path, key):
    """9,000 times 60,000 characters."""
    (tmp_path / "r.yaml").write_text(f"report_to: &a {'x' * 60_000}\n{key}: [{','.join(['*a'] * 9000)}]\n")
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"r\.yaml: {key}: .*\(given: \['x"):
        load_recipe(str(tmp_path / "r.yaml"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


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
