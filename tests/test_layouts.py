"""One data set in every layout in common use: the same examples come out. What only looks like one is told."""

from __future__ import annotations

import csv
import json
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorefast.data.columns import PRESETS, normalized_name, parse_rows, question_of
from scorefast.data.example import SPLITS, Example
from scorefast.data.load import load_dataset, read_questions
from scorefast.data.rows import Rows
from scorefast.errors import UserError
from scorefast.schema import Data
from tests.conftest import REPOSITORY, SHIPPED

with SHIPPED.open(encoding="utf-8", newline="") as _file:
    SCORE = [(row["question"], row["original_answer"], row["correct_answer"]) for row in csv.DictReader(_file)]


def said(role, content, keys=("role", "content")):
    return dict(zip(keys, (role, content), strict=True))


def parts(text, kind="text"):
    return [{"type": kind, "text": text}]


SHAREGPT = ("from", "value")
LAYOUTS = {  # of one row; without the first attempt, but for those with (o)
    "capitals (o)": lambda q, o, a: {"Question": q, "Original Answer": o, " CORRECT_ANSWER ": a},
    "Question,Answer": lambda q, o, a: {"Question": q, "Answer": a},
    "QUESTION": lambda q, o, a: {"QUESTION": q, "ANSWER": a, "Level": 1},
    "trl": lambda q, o, a: {"prompt": q, "completion": a},
    "trl, conversational": lambda q, o, a: {"prompt": [said("user", q)], "completion": [said("assistant", a)]},
    "trl, two turns (o)": lambda q, o, a: {
        "prompt": [said("user", q), said("assistant", o), said("user", "Check it.")],
        "completion": [said("assistant", a)],
    },
    "sharegpt": lambda q, o, a: {"conversations": [said("human", q, SHAREGPT), said("gpt", a, SHAREGPT)]},
    "sharegpt, roles": lambda q, o, a: {"conversations": [said("User", q, SHAREGPT), said("Assistant", a, SHAREGPT)]},
    "messages (o)": lambda q, o, a: {
        "messages": [said("user", q), said("assistant", o), said("user", "Check it."), said("assistant", a)]
    },
    "messages in parts": lambda q, o, a: {
        "Messages": [said("user", parts(q, "input_text")), said("assistant", parts(a, "output_text"))]
    },
    "verl": lambda q, o, a: {
        "data_source": "sums",
        "prompt": [said("user", q)],
        "reward_model": {"ground_truth": a, "style": "rule"},
        "extra_info": {"index": 0},
    },
    "alpaca": lambda q, o, a: {"instruction": q, "input": "", "output": a},
    "squad": lambda q, o, a: {"id": "7", "question": q, "answers": {"text": [a, "other"], "answer_start": [0, 1]}},
}


def write(folder, name, rows):
    path = folder / f"d.{name}"
    if name == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in r.items()} for r in rows
            )
    return str(path)


def load(path, notes=None, **settings):
    dataset = load_dataset(path, Data(near_duplicates=0, **settings), (notes if notes is not None else []).append)
    return [e for name in SPLITS for e in dataset.splits[name]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(tmp_path, layout, kind):
    own = [e._replace(extra=None) for e in load(str(SHIPPED))]
    if "(o)" not in layout:
        own = [e._replace(original_answer=None) for e in own]
    path = write(tmp_path, kind, [LAYOUTS[layout](*row) for row in SCORE])
    read = load(path)
    assert [e._replace(extra=None) for e in read] == own
    assert set(read_questions(path)) == {q for q, _, _ in SCORE}


def examples(tmp_path, *rows, notes=None, **settings):
    return load(write(tmp_path, "jsonl", list(rows)), notes, **settings)


def bad(tmp_path, row):
    with pytest.raises(UserError) as caught:
        examples(tmp_path, row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_knows_every_preset_and_the_page_on_data_too():
    assert set(get_args(Data.model_fields["preset"].annotation)) == {"auto", *PRESETS}
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {', '.join(f'`{column}`' for column in (*preset.needs, *preset.also))}" in page


def test_what_comes_before_the_question_stands_before_it(tmp_path):
    for row in (
        {"messages": [said("system", "Be brief."), said("user", "q"), said("assistant", "a")]},
        {"messages": [said("developer", parts("Be brief.")), said("user", "q"), said("assistant", "a")]},
        {"conversations": [{"from": "system", "value": "Be brief."}, said("human", "q", SHAREGPT), said("gpt", "a")]},
        {"prompt": [said("system", "Be brief."), said("user", "q")], "completion": "a"},
        {"instruction": "Be brief.", "input": "q", "output": "a"},
        {"context": "Be brief.", "question": "q", "answers": {"text": ["a"]}},
    ):  # fmt: skip
        (e,) = examples(tmp_path, row)
        assert (e.question, e.correct_answer) == ("Be brief.\n\nq", "a"), row


def test_parts_are_lines_and_a_part_that_is_no_text_is_a_bad_row(tmp_path):
    three = [*parts("1"), {"text": "+ 1"}, "= ?"]
    (e,) = examples(tmp_path, {"messages": [said("user", three), said("assistant", "2")]})
    assert e.question == "1\n+ 1\n= ?"
    for part, kind in (
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "image"}, "image"),
        ({"type": "text", "text": None}, "text"),
        ({"inline_data": {}}, "inline_data"),
        ({"type": "thinking", "text": "hm"}, "thinking"),
        (7, "7"),
    ):
        row = {"messages": [said("user", [*parts("what is this?"), part]), said("assistant", "2")]}
        assert bad(tmp_path, row).endswith(f"d.jsonl:1: a message has a part that is not text: {kind}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [said("user", {}), said("assistant", "a")]}, "a message's content is a dict, not text"),
        (
            {"messages": [said("user", "q"), said("tool", "4"), said("assistant", "a")]},
            "messages have the roles user, tool, ",
        ),
        ({"messages": [said("user", "q"), said("assistant", None)]}, "blank correct_answer"),
        ({"conversations": [{"value": "q"}]}, "conversations are not a list of objects"),
        ({"conversations": "[{"}, "conversations are not JSON"),
        ({"prompt": "q", "completion": {"a": 1}}, "completion is a dict, not text"),
        ({"prompt": [said("user", "q")], "completion": [said("user", "a")]}, "messages have the roles user, user"),
        ({"prompt": "[{'role': 'user'}]", "completion": "a"}, "prompt are messages in Python's repr, not JSON"),
        ({"prompt": "q", "reward_model": "{'ground_truth': 4}"}, "reward_model is not JSON"),
        ({"prompt": "q", "reward_model": {"style": "rule"}}, "reward_model has no ground_truth"),
        ({"prompt": "q", "reward_model": {"ground_truth": {"target": ["a"]}}}, "ground_truth is a dict, not text"),
        ({"question": "q", "answer": ["#### 4"]}, "answer is a list, not text"),
        ({"problem": "q", "solution": ["\\boxed{4}"]}, "solution is a list, not text"),
        ({"question": "q", "answers": {"text": []}}, "blank correct_answer"),
        ({"question": "q", "answers": "{'text': array(['a'])}"}, "answers are not JSON"),
    ],
)  # fmt: skip
def test_a_row_that_a_layout_does_not_allow_is_bad_with_its_reason(tmp_path, row, reason):
    assert f"d.jsonl:1: {reason}" in bad(tmp_path, row)


@pytest.mark.parametrize("answer", ["reply", "response", "text", "chosen", "prediction"])
def test_no_column_is_guessed_to_be_the_answer(tmp_path, answer):
    assert f"has the columns question, {answer}; expected" in bad(tmp_path, {"question": "q", answer: "a"})


def test_where_the_columns_fit_two_layouts_the_choice_is_said_and_can_be_made(tmp_path):
    row = {"problem": "p", "solution": "\\boxed{1}", "messages": [said("user", "q"), said("assistant", "a")]}
    notes = []
    assert examples(tmp_path, row, notes=notes)[0].question == "p"
    assert (
        "using problem, solution (math); the columns also fit messages (choose with --set data.preset=messages"
        in notes[0]
    )
    notes.clear()
    assert examples(tmp_path, row, notes=notes, preset="messages")[0].question == "q"
    columns = {"question": "Problem", "correct_answer": "solution"}
    assert examples(tmp_path, row, notes=notes, columns=columns)[0].correct_answer == "\\boxed{1}"
    assert not notes
    assert (
        examples(tmp_path, {"question": "q", "Question": "other", "correct_answer": "a"}, notes=notes)[0].question
        == "q"
    )
    assert "question, Question match one column; using question" in notes[0]


def test_a_column_of_a_layout_may_be_named(tmp_path):
    notes = []
    row = {"question": "p", "correct_answer": "1", "Dialog": [said("user", "q"), said("assistant", "a")]}
    (e,) = examples(tmp_path, row, notes=notes, columns={"messages": "dialog"})
    assert (e.question, e.correct_answer, notes) == ("q", "a", [])
    with pytest.raises(UserError, match="columns: reply: expected one of question"):
        examples(tmp_path, row, columns={"reply": "dialog"})


def test_an_answer_is_gsm8ks_where_any_of_the_file_is(tmp_path):
    notes = []
    (e,) = examples(tmp_path, {"question": "q", "answer": 18}, notes=notes)
    assert e.correct_answer == "18"
    assert "no answer ends in `#### n`: each whole answer is the reference (preset qa)" in notes[0]
    with pytest.raises(UserError, match="answer does not end in `#### n`"):
        examples(tmp_path, {"question": "q", "answer": "18"}, preset="gsm8k")


def test_a_named_column_may_hold_messages(tmp_path):
    row = {"prompt": [said("system", "Be brief."), said("user", parts("q"))], "truth": "a"}
    (e,) = examples(tmp_path, row, columns={"question": "prompt", "correct_answer": "truth"})
    assert (e.question, e.correct_answer) == ("Be brief.\n\nq", "a")
    row["prompt"] += [said("assistant", "b"), said("user", "c")]
    with pytest.raises(UserError, match="question is a conversation, not text: system, user, assistant, user"):
        examples(tmp_path, row, columns={"question": "prompt", "correct_answer": "truth"})


def test_every_column_is_handed_on_under_its_own_name(tmp_path):
    (e,) = examples(tmp_path, {"Question": "q", "answer": "2+2=<<2+2=4>>4\n#### 4", "level": 5})
    assert e.extra == {"Question": "q", "answer": "2+2=<<2+2=4>>4\n#### 4", "level": 5}
    row = {"question": "other", "problem": "q", "truth": "4", "correct_answer": "no"}
    (e,) = examples(tmp_path, row, columns={"question": "problem", "correct_answer": "truth"})
    assert e == Example(e.id, "q", None, "4", extra={"problem": "q", "truth": "4"})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "[{", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "type", "text", "ground_truth"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([*PRESETS]), st.data())
def test_whatever_stands_in_a_layouts_columns_is_an_example_or_a_bad_row(name, data):
    preset = PRESETS[name]
    columns = [*preset.needs, *preset.also, "original_answer", "grader"]
    records = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, VALUES)), min_size=1, max_size=3))
    texts, _, problems = parse_rows(Rows("f", range(len(records)), records=records), preset, {})
    for i in range(len(records)):
        cells = [texts[column][i] for column in ("question", "correct_answer")]
        assert i in problems or all(isinstance(text, str) and text for text in cells)
        assert "\n" not in problems.get(i, "")
        assert isinstance(question_of(records[i]), str)


def test_names_of_columns():
    assert {normalized_name(name) for name in ("correct_answer", " Correct Answer", "CORRECT-ANSWER ")} == {
        "correct_answer"
    }
