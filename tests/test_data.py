"""Rows in, splits out: nothing leaks, nothing vanishes silently, a bad file is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorefast.data.duplicates import jaccard, near_duplicates, number_keys, shingles
from scorefast.data.example import SPLITS
from scorefast.data.load import load_dataset
from scorefast.data.splits import split_of, split_position
from scorefast.errors import UserError
from scorefast.files.text import normalized
from scorefast.schema import Data

HEADER = "question,original_answer,correct_answer\n"


def write(tmp_path, text, name="d.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_blank_and_repeated_rows_are_counted_by_reason(tmp_path):
    path = write(tmp_path, HEADER + "a,1,2\n,1,2\nb,1,\nA ,9,9\na,,2\n\uff42,,3\n\u200b,,3\n")
    dataset = load_dataset(path, Data(on_error="skip"))
    assert dataset.rows_read == 7
    assert dataset.dropped == {
        "blank question": 2,
        "blank correct_answer": 1,
        "repeated question": 1,
        "repeated question with another correct_answer": 1,
    }
    assert [(d.line, d.reason) for d in dataset.dropped_rows][:2] == [
        (3, "blank question"),
        (4, "blank correct_answer"),
    ]
    assert dataset.rows_kept + sum(dataset.dropped.values()) == dataset.rows_read
    (b,) = [e for split in dataset.splits.values() for e in split if normalized(e.question) == "b"]
    assert b.original_answer is None


@given(st.text())
def test_the_split_depends_on_the_normal_form_alone(text):
    assert 0 <= split_position(text) < 1
    assert split_position(text) == split_position(f"  {text}\n")


def test_split_positions_never_change():
    """Published data relies on them: these values are part of the format."""
    assert split_position("What is 1 + 2?") == split_position("WHAT  is 1 + 2?")
    assert split_position("1 + 2") == pytest.approx(0.3830938442788927, abs=1e-12)


def test_splits_have_their_share_and_adding_rows_moves_none():
    settings = Data(test_fraction=0.3, validation_fraction=0.1)
    names = [split_of(f"question {i}", settings) for i in range(20_000)]
    for name, share in zip(SPLITS, (0.6, 0.1, 0.3), strict=True):
        assert names.count(name) / 20_000 == pytest.approx(share, abs=0.015)
    wider = Data(test_fraction=0.3, validation_fraction=0.2)
    assert all(split_of(f"question {i}", wider) == "test" for i in range(2000) if names[i] == "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "the file is empty"),
        (
            "d.csv",
            b"question,reply\na,b\n",
            "has the columns question, reply; expected question, correct_answer (score",
        ),
        (
            "d.csv",
            b"question,answer\na,#### 18\nb,19\n",
            "1 of 2 rows are bad, more than 1%: {file}:3: answer does not end in `#### n`",
        ),
        ("d.csv", HEADER.encode(), "no usable row: it has no rows"),
        ("d.csv", HEADER.encode() + b"a,b\n", "no usable row: {file}:2: 2 cells, the header has 3"),
        ("d.csv", HEADER.encode() + b'a,"b,c\n', "line 2: a quote in this row is never closed"),
        ("d.csv", HEADER.encode() + b",,\n , ,\n", "{file}:2: blank question; {file}:3: blank question"),
        ("d.csv", HEADER.encode() + b"a,1,2\n,1,2\n", "1 of 2 rows are bad, more than 1%: {file}:3: blank question"),
        ("d.csv", b"question,correct_answer,grader\na,b,vibes\n", "grader 'vibes' is not one of auto,"),
        ("d.jsonl", b'{"question": "a"', "no usable row: {file}:1: not JSON"),
        ("d.jsonl", b'{"question": "a"}', "has the columns question; expected"),
        ("d.jsonl", b'{"question": ["a"], "correct_answer": "b"}', "{file}:1: question is a list, not text"),
        ("d.jsonl", b'{"question": "a\\u0000b", "correct_answer": "b"}', "{file}:1: NUL character"),
        ("d.jsonl", b"[1]", "{file}:1: not an object"),
        (
            "d.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "{file}:1: messages have the roles user; expected",
        ),
        ("d.parquet", b"PAR1", "not Parquet"),
        ("d.xlsx", b"PK", "expected one of"),
    ],
)
def test_a_bad_file_is_one_line_naming_it(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dataset(str(path), Data())
    assert message.format(file=path) in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def kept(path, **settings):
    dataset = load_dataset(path, Data(near_duplicates=0, **settings))
    return sorted((e for split in dataset.splits.values() for e in split), key=lambda e: e.question), dataset


def test_bad_rows_up_to_one_per_cent_are_left_out_and_more_stop(tmp_path):
    good = "".join(f"q{i},1,2\n" for i in range(99))
    examples, dataset = kept(write(tmp_path, HEADER + good + ",,\n"))
    assert len(examples) == 99
    assert dataset.dropped == {"blank question": 1}
    with pytest.raises(UserError, match=r"2 of 100 rows are bad, more than 1%.*--on-error skip"):
        kept(write(tmp_path, HEADER + good[7:] + ",,\n,,\n"))
    assert len(kept(write(tmp_path, HEADER + good[7:] + ",,\n,,\n"), on_error="skip")[0]) == 98


@pytest.mark.parametrize(
    ("row", "question", "original", "correct"),
    [
        ({"question": "a", "correct_answer": 18, "original_answer": 7.5}, "a", "7.5", "18"),
        ({"question": " a ", "answer": "6 * 3 = <<6*3=18>>18\n#### 18"}, "a", None, "6 * 3 = 18\n#### 18"),
        ({"problem": "a", "solution": "so \\boxed{18}", "level": "5"}, "a", None, "so \\boxed{18}"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "18"}]},
            *("a", None, "18"),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "17"},
                    {"role": "user", "content": "Check it."},
                    {"role": "assistant", "content": "18"},
                ]
            },
            *("Be brief.\n\na", "17", "18"),
        ),
    ],
)
def test_presets_are_recognised_by_their_columns(tmp_path, row, question, original, correct):
    ((e,), _) = kept(write(tmp_path, json.dumps(row), "d.jsonl"))
    assert (e.question, e.original_answer, e.correct_answer) == (question, original, correct)


def test_columns_by_name_and_the_others_are_kept_for_rewards(tmp_path):
    path = write(tmp_path, "problem,truth,level,grader\na,18,5,numeric\n")
    ((e,), _) = kept(path, columns={"question": "problem", "correct_answer": "truth"})
    assert (e.question, e.correct_answer, e.grader, e.extra) == (
        "a",
        "18",
        "numeric",
        {"problem": "a", "truth": "18", "level": "5"},
    )
    with pytest.raises(UserError, match="has no column 'answer'; it has problem, truth, level, grader"):
        kept(path, columns={"correct_answer": "answer"})


def test_a_named_column_goes_before_what_a_preset_reads(tmp_path):
    path = write(tmp_path, "problem,solution,answer\na,so \\boxed{18},18\n")
    assert kept(path)[0][0].correct_answer == "so \\boxed{18}"
    assert kept(path, columns={"correct_answer": "answer"})[0][0].correct_answer == "18"


def test_keys_may_vary_from_row_to_row(tmp_path):
    rows = [{"q": "a", "correct_answer": "1"}, {"q": "b", "correct_answer": "2", "first": "3"}]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)), "d.jsonl")
    examples, _ = kept(path, columns={"question": "q", "original_answer": "first"})
    assert [(e.question, e.original_answer) for e in examples] == [("a", None), ("b", "3")]


def test_reasons_are_counted_without_the_particulars_of_a_row(tmp_path):
    path = write(tmp_path, "\n".join(["{"] * 3 + ["{}}"] * 3 + ['{"question": "a", "correct_answer": "1"}']), "d.jsonl")
    _, dataset = kept(path, on_error="skip")
    assert dataset.dropped == {"not JSON": 6}
    assert "Expecting" in dataset.dropped_rows[0].reason


def test_mixed_normal_forms_are_one_question(tmp_path):
    import unicodedata

    texts = [unicodedata.normalize(form, "서울 café ½ ?") for form in ("NFC", "NFD", "NFKC")]
    (examples, dataset) = kept(write(tmp_path, HEADER + "".join(f"{t},,1\n" for t in texts)))
    assert len(examples) == 1
    assert dataset.dropped == {"repeated question": 2}


QUESTION = (
    "A farmer sells 12 boxes of {} at the market every day for five dollars a box, how much does she earn in a week?"
)


def test_no_question_stands_nearly_the_same_on_two_sides_of_a_split(tmp_path):
    """Of near duplicates on two sides the one nearer to training goes; other numbers make another question."""
    questions = [
        QUESTION.format(f"{fruit} {kind}") for fruit in ("red", "ripe", "fresh") for kind in ("plums", "pears")
    ]
    others = [QUESTION.replace("12", str(n)).format("red plums") for n in range(20, 40)]
    path = write(tmp_path, "question,correct_answer\n" + "".join(f'"{q}",1\n' for q in [*questions, *others]))
    dataset = load_dataset(path, Data(test_fraction=0.3, validation_fraction=0.2, near_duplicates=0.8))
    untouched = load_dataset(path, Data(test_fraction=0.3, validation_fraction=0.2, near_duplicates=0))
    sides = {split_of(q, Data(test_fraction=0.3, validation_fraction=0.2)) for q in questions}
    assert len(sides) > 1, "the six have to straddle a split for this test to say anything"
    left = [name for name in SPLITS for e in dataset.splits[name] if e.question in questions]
    assert len(set(left)) == 1
    assert left[0] == ("test" if "test" in sides else "validation")
    assert untouched.rows_kept == 26
    assert dataset.rows_kept == 26 - sum(n for reason, n in dataset.dropped.items() if "near duplicate of a" in reason)
    assert all(e.question in questions for s in SPLITS for e in untouched.splits[s] if e not in dataset.splits[s])


def test_no_twin_stays_in_a_large_family_of_questions(tmp_path):
    """Hundreds nearly alike: one pass of MinHash cannot compare all; none may be left opposite the test split."""
    import random

    draw = random.Random(0)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]
    base = words[:60]
    texts = []
    for _ in range(600):
        changed = list(base)
        for _ in range(2):
            changed[draw.randrange(60)] = draw.choice(words)
        texts.append(" ".join(changed))
    path = write(tmp_path, "question,correct_answer\n" + "".join(f"{t},1\n" for t in texts))
    splits = load_dataset(path, Data(test_fraction=0.02, validation_fraction=0.0)).splits
    held_out = [shingles(e.question) for e in splits["test"]]
    assert held_out
    assert not [e for e in splits["train"] if any(jaccard(shingles(e.question), other) >= 0.8 for other in held_out)]


def test_number_keys_are_the_same_in_every_process():
    """Else two processes of one run, or two runs, could leave out other rows of a large family."""
    code = "from scorefast.data.duplicates import number_keys; print(*number_keys(['3 of 1,200 eggs']))"
    environments = ({**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2"))
    keys = [subprocess.check_output([sys.executable, "-c", code], env=env, text=True) for env in environments]
    assert [int(key) for key in keys] == number_keys(["take 3 from 1200"]).tolist() * 2
    apart = ["3 of 12", "12 of 3", "3 of 1 2", "312", "none", "(1,171)", "(11,71)", "f(2,300)", "1171", "1,2,300"]
    assert len(set(number_keys(apart).tolist())) == len(apart)
    for same in (["3 of 12", "3.12", "3,12"], ["none", ""], ["1000 and 2", "1,000 and 2"], ["1234567", "1,234,567"]):
        assert len(set(number_keys(same).tolist())) == 1, same


def pairs_of(texts, threshold):
    keys = number_keys(texts)
    found = near_duplicates(keys, lambda wanted: [t for t, w in zip(texts, wanted, strict=True) if w], threshold)
    assert all(texts[i] == text for pair in found for i, text in pair)
    return [(i, j) for (i, _), (j, _) in found]


@given(
    st.lists(
        st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]),
        min_size=8,
    )
)
def test_near_duplicates_are_those_of_the_jaccard_index(words):
    changed = " ".join([*words[:-1], "omega"])
    pair = [" ".join(words), changed]
    near = jaccard(shingles(pair[0]), shingles(pair[1])) >= 0.8
    assert pairs_of(pair, 0.8) == ([(0, 1)] if near else [])


def test_near_duplicates_are_found_among_many():
    """Against every pair compared: MinHash may miss one in thousands, and proposes none that is not one."""
    import random

    draw = random.Random(0)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    texts = [" ".join(draw.choices(words, k=20)) for _ in range(200)]
    for text in texts[:100]:
        changed = text.split()
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(20)] = draw.choice(words)
        texts.append(" ".join(changed))
    sets = [shingles(t) for t in texts]
    expected = {(i, j) for j in range(len(sets)) for i in range(j) if jaccard(sets[i], sets[j]) >= 0.6}
    found = set(pairs_of(texts, 0.6))
    assert found <= expected
    assert len(expected) > 80
    assert len(found) >= 0.97 * len(expected)


def test_a_text_that_no_model_could_read_is_a_bad_row(tmp_path):
    """A tokenizer would take minutes over one of 30 MB, without a word."""
    rows = [f"What is {n} + 1?,{n + 1}" for n in range(300)]
    rows[7], rows[8] = f"{'x' * 100_000},2", f"{'x' * 100_001},2"
    (tmp_path / "d.csv").write_text("\n".join(["question,correct_answer", *rows]))
    dataset = load_dataset(str(tmp_path / "d.csv"), Data())
    assert [(row.line, row.reason) for row in dataset.dropped_rows] == [
        (10, "question of more than 100,000 characters")
    ]
