"""The embedded model and the shipped data: what they are, that nothing held out leaked, that the tool improves them."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from itertools import islice

import pytest
from safetensors.torch import load_file

from scorefast.assets import make_tiny_gemma2 as make
from scorefast.data.load import load_dataset
from scorefast.data.splits import split_of, split_position
from scorefast.grading.grade import grade
from scorefast.recipe import EMBEDDED_MODELS, load_recipe
from scorefast.schema import Data
from tests.conftest import REPOSITORY, SHIPPED, scorefast

sys.path.insert(0, str(REPOSITORY / "data"))

TINY = EMBEDDED_MODELS["tiny-gemma2"]
ADDITION = re.compile(r"What is (\d+) \+ (\d+)\?")


def test_the_embedded_model_is_a_small_whole_gemma2():
    config = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["Gemma2ForCausalLM"]
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
    assert config["tie_word_embeddings"]
    weights = load_file(TINY / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) < 1_000_000
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 2_000_000


@pytest.mark.parametrize("kind", [make.plain, make.on_request, make.dialogue])
def test_pretraining_never_sees_a_held_out_question_or_its_mirror(kind):
    rng = random.Random(0)
    held_out = load_recipe("tiny-cpu").data
    assert held_out.test_fraction + held_out.validation_fraction <= make.HELD_OUT
    for _ in range(3000):
        turns = kind(make.Settings(), rng)
        a, b = map(int, ADDITION.search(turns[0]).groups())
        for question in (make.question(a, b), make.question(b, a)):
            assert split_position(question) >= make.HELD_OUT


def test_pretraining_batches_train_on_replies_alone():
    settings, tokenizer = make.Settings(), make.make_tokenizer()
    for step in islice(make.batches(settings, tokenizer.backend_tokenizer, random.Random(0)), 3):
        for ids, labels in step:
            for row, trained in zip(ids.tolist(), labels.tolist(), strict=True):
                text = tokenizer.decode([t for t, label in zip(row, trained, strict=True) if label != -100])
                assert "What is" not in text
                assert "Please correct" not in text
                assert text.endswith("<end_of_turn>")


def test_shipped_rows_are_what_their_readme_says():
    data = load_recipe("tiny-cpu").data
    dataset = load_dataset(str(SHIPPED), data)
    assert (dataset.rows_read, dataset.dropped) == (900, {})
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"test": 360, "validation": 90, "train": 450}
    right = 0
    for examples in dataset.splits.values():
        for e in examples:
            a, b = map(int, ADDITION.fullmatch(e.question).groups())
            assert grade(e.correct_answer, str(a + b), "numeric").correct
            assert split_of(make.question(b, a), data) == split_of(e.question, data)
            right += grade(e.original_answer, e.correct_answer, "numeric").correct
    assert f"{right} of the" in (REPOSITORY / "data/README.md").read_text()


def test_shipped_questions_come_from_the_committed_script():
    from make_score import draw_pairs

    drawn = [make.question(a, b) for a, b in draw_pairs(900, "all", random.Random(0))]
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        assert [row["question"] for row in csv.DictReader(file)] == drawn


def test_the_korean_questions_load():
    dataset = load_dataset(str(REPOSITORY / "data/questions-ko.csv"), Data())
    assert dataset.dropped == {}
    assert sum(bool(re.search("[가-힣]", e.question)) for s in dataset.splits.values() for e in s) == 32


def test_a_few_steps_of_stage_one_teach_the_second_attempt_and_leave_the_first(tmp_path):
    """The real thing, shortened: on held-out questions t2 gains at least 15 points and t1 loses at most 2."""
    flags = ["--set", "stage1.max_steps=12", "--set", "stage1.eval_steps=12"]
    done = scorefast("stage1", "--data", SHIPPED, *flags, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = scorefast("eval", "base", "run", "--data", SHIPPED, "--json", cwd=tmp_path)
    base, trained = json.loads(done.stdout)["results"]
    assert base["acc_t2"] <= base["acc_t1"]
    assert trained["ci95"]["gain_t2"][0] > 0.15
    assert trained["gain_t1"] >= -0.02
    assert trained["delta_c2i"] <= 0.02
