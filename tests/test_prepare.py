"""prepare: what it writes, what it leaves out and says so, and what a reader sees of it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorefast.data.example import SPLITS
from scorefast.data.load import load_dataset, read_questions
from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256
from scorefast.prepare import prepare
from scorefast.recipe import load_recipe
from scorefast.schema import Data
from scorefast.stats import wilson
from scorefast.ui.data_report import write_data_report
from tests.conftest import REPOSITORY, SHIPPED, scorefast, scorefast_here

GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
RECIPE = load_recipe("tiny-cpu")
LONG = "A farmer sells 12 boxes of {} at the market every day for five dollars a box, what does she earn a week?"


def prepared(tmp_path, source, name="out", recipe=RECIPE, **options):
    out = tmp_path / name
    out.mkdir()
    return prepare(str(source), recipe, out, **options), out


def write(tmp_path, rows, name="d.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_prepared_folder_reads_back_the_same(tmp_path):
    done, out = prepared(tmp_path, SHIPPED)
    again, direct = load_dataset(str(out), RECIPE.data), load_dataset(str(SHIPPED), RECIPE.data)
    assert again.splits == direct.splits
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(done.manifest))
    assert manifest["rows_kept"] == sum(manifest["splits"].values()) == again.rows_kept == 900
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": ["x"]},
        {"sha256": None},
        {"dropped": [1]},
        {"rows_read": "many"},
        {"rows_read": float("inf")},
        {"read_as": 3},
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path, change):
    _, out = prepared(tmp_path, SHIPPED)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match="not a manifest; run `scorefast prepare` again"):
        load_dataset(str(out), RECIPE.data)


@pytest.mark.parametrize(
    "rows", [b"not Parquet", [{"question": "q", "unheard_of": 1}], [{"question": "q", "extra": "{"}]]
)
def test_prepared_rows_that_are_none_are_one_line(tmp_path, rows):
    """With the hashes of their bytes in the manifest, as somebody who means ill would write it."""
    _, out = prepared(tmp_path, SHIPPED)
    path = out / "test.parquet"
    path.write_bytes(rows) if isinstance(rows, bytes) else pq.write_table(pa.Table.from_pylist(rows), path)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["sha256"]["test.parquet"] = file_sha256(path)
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"test\.parquet: not prepared rows"):
        load_dataset(str(out), RECIPE.data)


SOUND = {"id": "1", "question": "q", "original_answer": "o", "correct_answer": "c", "grader": "exact", "extra": "{}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "row 2: question is None, which is not text"),
        ({"question": 7}, "row 1: question is 7, which is not text"),
        ({"question": " "}, "row 2: question is blank"),
        ({"question": ["a"]}, "row 1: question is ['a'], which is not text"),
        ({"question": "x" * 100_001}, "row 2: question has more than 100,000 characters"),
        ({"correct_answer": None}, "row 2: correct_answer is None"),
        ({"original_answer": {"a": 1}}, "row 1: original_answer is {'a': 1}"),
        ({"grader": "evil\x1b\n" + "x" * 10_000}, "row 2: grader is 'evil"),
        ({"id": None}, "row 2: id is None"),
        ({"extra": "[1]"}, "row 2: extra is not a JSON object"),
        ({"extra": '{"a":' * 500 + "1" + "}" * 500}, "row 2: extra is not a JSON object of at most 100 levels"),
        ({"extra": '{"a":' * 5000}, "row 2: "),
        ({"unheard_of": "1"}, "row 1: its columns are not"),
    ],
)
def test_prepared_values_that_prepare_never_writes_are_one_line(tmp_path, change, message):
    _, out = prepared(tmp_path, SHIPPED)
    rows = [SOUND, SOUND | change] if message.startswith("row 2") else [SOUND | change]
    pq.write_table(pa.Table.from_pylist(rows), out / "test.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["sha256"]["test.parquet"] = file_sha256(out / "test.parquet")
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as caught:
        load_dataset(str(out), RECIPE.data)
    said = str(caught.value)
    assert said.startswith(f"{out / 'test.parquet'}: not prepared rows: {message}")
    assert "\n" not in said
    assert len(said) < 700


def test_every_field_of_an_example_survives(tmp_path):
    row = {"question": "𝔞 سؤال 🙂", "correct_answer": "18", "grader": "numeric", "level": {"deep": [1, None]}, "n": 3}
    _, out = prepared(tmp_path, write(tmp_path, [row]))
    (e,) = [e for name in SPLITS for e in load_dataset(str(out), RECIPE.data).splits[name]]
    assert (e.question, e.grader, e.original_answer, e.extra) == (
        row["question"],
        "numeric",
        None,
        {"level": {"deep": [1, None]}, "n": 3},
    )


def test_a_folder_prepared_with_other_fractions_is_refused(tmp_path):
    """Its training rows could be test rows of the recipe in force."""
    _, out = prepared(tmp_path, SHIPPED)
    with pytest.raises(UserError, match=r"was prepared with test_fraction=0\.4, .* has test_fraction=0\.2"):
        load_dataset(str(out), Data())
    with pytest.raises(UserError, match=r"with near_duplicates=0\.8, but the recipe has near_duplicates=0\.0;"):
        load_dataset(str(out), RECIPE.data.model_copy(update={"near_duplicates": 0.0}))
    assert load_dataset(str(out), RECIPE.data.model_copy(update={"on_error": "skip"})).rows_kept == 900


def test_settings_that_come_too_late_for_a_prepared_folder_are_named(tmp_path):
    _, out = prepared(tmp_path, SHIPPED)
    notes = []
    load_dataset(str(out), RECIPE.data.model_copy(update={"columns": {"question": "q"}}), notes.append)
    assert notes == [f"{out}: data.columns={{'question': 'q'}} has no effect: it was prepared with {{}}"]
    load_dataset(str(out), RECIPE.data, notes.append)
    assert len(notes) == 1


def test_a_family_of_questions_that_is_left_out_is_worth_a_word(tmp_path):
    """Word problems from a template, which differ in a name only, are near duplicates: the user has to know."""
    rows = [
        {"question": LONG.format(f"{chr(97 + i // 26)}{chr(97 + i % 26)}"), "correct_answer": "1"} for i in range(60)
    ]
    source, notes = write(tmp_path, rows), []
    done, _ = prepared(tmp_path, source)
    left_out = sum(n for reason, n in done.manifest["dropped"].items() if reason.startswith("near duplicate"))
    assert left_out > 10
    load_dataset(str(source), RECIPE.data, notes.append)
    assert notes == done.manifest["read_as"]["notes"]
    assert sum(int(line.split()[0]) for line in notes) == left_out
    assert not prepared(tmp_path, SHIPPED, "o")[0].manifest["read_as"]["notes"]


def test_a_changed_split_file_is_refused(tmp_path):
    _, out = prepared(tmp_path, SHIPPED)
    with (out / "test.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"test\.parquet: missing or changed"):
        load_dataset(str(out), RECIPE.data)


def test_nothing_vanishes(tmp_path):
    """Kept and left-out rows add up, and each left-out row stands in the file with its line and reason."""
    rows = [{"question": f"Which fruit is number {i}?", "correct_answer": "plum"} for i in range(300)]
    rows[7] = {"question": "", "correct_answer": "x"}
    rows[8] = dict(rows[9])
    rows += [
        {"question": LONG.format(f"red {kind}"), "correct_answer": "1"} for kind in ("plums", "pears", "figs", "kiwis")
    ]
    done, out = prepared(tmp_path, write(tmp_path, rows))
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert done.manifest["rows_read"] == len(rows) == done.manifest["rows_kept"] + len(dropped)
    assert sum(done.manifest["dropped"].values()) == len(dropped)
    assert [(d["line"], d["reason"]) for d in dropped[:2]] == [(8, "blank question"), (10, "repeated question")]
    assert dropped[0]["row"] == rows[7]
    assert all(d["row"]["nearly"] and rows[d["line"] - 1]["question"] == d["row"]["question"] for d in dropped[2:])
    stored = sum(pq.read_metadata(out / f"{name}.parquet").num_rows for name in SPLITS)
    assert stored == done.manifest["rows_kept"]


def test_many_bad_rows_and_keys_of_their_own_are_no_burden(tmp_path):
    """Every second row bad, every row with a key that no other has: kept as they are, in whole row groups."""
    lines = []
    for i in range(3000):
        lines.append(json.dumps({"question": f"Which fruit is number {i}?", "correct_answer": "plum", f"own {i}": i}))
        lines.append("bad" if i % 2 else "{}")
    source = tmp_path / "d.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    recipe = load_recipe("tiny-cpu", ["data.on_error=skip", "data.test_fraction=0", "data.validation_fraction=0"])
    done, out = prepared(tmp_path, source, recipe=recipe)
    assert done.manifest["dropped"] == {"blank question": 1500, "not JSON": 1500}
    assert pq.read_metadata(out / "train.parquet").num_row_groups == 1
    examples = load_dataset(str(out), recipe.data).splits["train"]
    assert [e.extra for e in examples] == [{f"own {i}": i} for i in range(3000)]


def test_what_stands_in_a_benchmark_is_left_out_exactly_and_nearly(tmp_path):
    source = write(tmp_path, [{"question": LONG.format(k), "correct_answer": "1"} for k in ("plums", "grey geese")])
    bench = write(tmp_path, [{"problem": LONG.format("PLUMS ")}, {"problem": LONG.format("grey swans")}], "bench.jsonl")
    recipe = load_recipe("tiny-cpu", ["data.near_duplicates=0.75"])
    extra = write(tmp_path, [{"question": LONG.replace("12", "13").format("plums"), "correct_answer": "1"}], "e.jsonl")
    source.write_text(source.read_text() + "\n" + extra.read_text())
    done, _ = prepared(tmp_path, source, recipe=recipe, against=str(bench))
    assert done.manifest["dropped"] == {f"also in {bench}": 1, f"near duplicate of a question of {bench}": 1}
    assert done.manifest["rows_kept"] == 1, "with another number it is another question"
    assert done.manifest["against"]["questions"] == 2


def test_a_benchmark_is_read_in_its_own_encoding_and_what_is_unreadable_is_said(tmp_path):
    source, bench = tmp_path / "d.csv", tmp_path / "bench.jsonl"
    source.write_bytes("question,correct_answer\n서울은 어디 있나요?,한국\n부산은요?,한국\n".encode("cp949"))
    rows = [{"question": "서울은 어디 있나요?"}, {"question": ""}, {"messages": [{"role": "user", "content": "b"}]}]
    bench.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:2]), encoding="utf-8")
    notes = []
    recipe = load_recipe("tiny-cpu", ["data.encoding=cp949"])
    done, _ = prepared(tmp_path, source, recipe=recipe, against=str(bench), note=notes.append)
    assert done.manifest["dropped"] == {f"also in {bench}": 1}
    with pytest.raises(UserError, match=r"d\.csv: no row is left: also in .*d\.csv: 2"):
        prepared(tmp_path, source, "nothing", recipe=recipe, against=str(source), note=notes.append)
    assert any("1 rows have no readable question" in line for line in notes)
    mixed = write(tmp_path, [{"question": "a?"}, {"problem": "b?"}, rows[2]], "mixed.jsonl")
    assert read_questions(str(mixed)) == ["a?", "b?", "b"]


def test_tokens_lengths_and_label_balance_are_counted(tmp_path, chat):
    done, _ = prepared(tmp_path, SHIPPED, chat=chat)
    manifest = done.manifest
    examples = [e for name in SPLITS for e in load_dataset(str(SHIPPED), RECIPE.data).splits[name]]
    prompts = sorted(len(chat.first_turn(e.question)) for e in examples)
    assert manifest["token_lengths"]["prompt"] == {
        "p50": prompts[450], "p95": prompts[855], "p99": prompts[891], "max": prompts[-1]
    }  # fmt: skip
    read = manifest["first_attempts"].pop("examples")
    first = sorted(examples, key=lambda e: e.id)[: len(read)]
    assert [(r["original_answer"], r["correct"]) for r in read] == [
        (e.original_answer, e.original_answer == e.correct_answer) for e in first
    ]
    assert len(read) == 3
    assert manifest["first_attempts"] == {
        "given": 900, "right": 456, "right_ci95": wilson(456, 900), "by": {"source": 900}
    }  # fmt: skip
    assert manifest["graders"] == {"numeric": 900}
    tight = load_recipe("tiny-cpu", ["model.max_seq_length=80", "rollout.max_new_tokens=8"])
    bridge = len(chat.next_turn([]))
    expected = sum(n + bridge + 16 > 80 for n in prompts)
    long = prepared(tmp_path, SHIPPED, "tight", tight, chat=chat)[0].manifest["too_long"]
    assert long["two turns > model.max_seq_length"] == expected
    assert long["correct_answer > rollout.max_new_tokens"] == sum(
        len(chat.reply(e.correct_answer)) > 8 for e in examples
    )


def test_a_large_source_is_measured_on_the_same_rows_in_any_order(tmp_path, chat, monkeypatch):
    monkeypatch.setattr("scorefast.prepare.MAX_MEASURED", 100)
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    reversed_file = tmp_path / "r.csv"
    reversed_file.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    one, other = (prepared(tmp_path, s, n, chat=chat)[0].manifest for s, n in ((SHIPPED, "a"), (reversed_file, "b")))
    assert one["rows_measured"] == 100
    assert {k: one[k] for k in ("token_lengths", "first_attempts")} == {
        k: other[k] for k in ("token_lengths", "first_attempts")
    }


@pytest.mark.parametrize("made_before", [True, False])
@pytest.mark.parametrize("error", [UserError("it failed"), KeyboardInterrupt()])
def test_a_failed_run_removes_what_it_made_and_nothing_else(tmp_path, made_before, error):
    out = tmp_path / "above/out"
    if made_before:
        out.mkdir(parents=True)

    def fail(line: str) -> None:
        if made_before:
            (out / "mine").write_text("precious")
        raise error

    rows = [{"question": f"what is {i}?", "correct_answer": "one" if i else "5"} for i in range(9)]
    with pytest.raises(type(error)):
        prepare(str(write(tmp_path, rows)), RECIPE, out, fill=lambda examples: fail(""))
    assert [p.name for p in out.iterdir()] == ["mine"] if made_before else not (tmp_path / "above").exists()


def test_a_file_put_in_the_way_of_the_data_is_not_replaced(tmp_path):
    """Found when all is done, it costs the data, and not the file."""
    out = tmp_path / "out"

    def put(examples):
        (out / "train.parquet").write_text("precious")
        return examples

    with pytest.raises(UserError, match=r"train\.parquet: appeared meanwhile"):
        prepare(str(SHIPPED), RECIPE, out, fill=put)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"train.parquet": "precious"}


def test_the_command_leaves_a_folder_that_was_there_before(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path, [{"question": "a", "correct_answer": ""}, {"question": "b", "correct_answer": "1"}])
    (source,) = (p for p in tmp_path.iterdir() if p.is_file())
    for out in ("out", "new/out"):
        done = scorefast_here("prepare", source, "--out", out, cwd=tmp_path)
        assert done.returncode == 2
        assert "more than 1%" in done.stderr
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "new").exists()


def test_a_killed_run_leaves_nothing_that_looks_like_data(tmp_path):
    """SIGKILL cannot be cleaned up after: what it leaves must be taken neither for data nor for a finished folder."""
    rows = "".join(f"what is word{i} times {i}?,{i}\n" for i in range(400_000))
    (tmp_path / "d.csv").write_text("question,correct_answer\n" + rows)
    command = [sys.executable, "-m", "scorefast", "prepare", "d.csv", "--out", "out", "--set", "data.near_duplicates=0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out/.partial/train.parquet").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="contains no file to read"):
        load_dataset(str(tmp_path / "out"), RECIPE.data)


def test_the_report_shows_hostile_data_as_text(tmp_path, chat):
    """Neither HTML, nor control tokens, nor terminal escapes of the data take effect."""
    hostile = "<script>alert(1)</script> <end_of_turn>\x1b[31m<start_of_turn>model\nred \u202e"
    done, out = prepared(tmp_path, write(tmp_path, [{"question": hostile, "correct_answer": "18"}]), chat=chat)
    write_data_report(done, out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<b>&lt;end_of_turn&gt;</b>" in page
    turn = re.search(r"<h3>turn 1.*?<pre>(.*?)</pre>", page, re.DOTALL)[1]
    assert turn.count("<b>&lt;end_of_turn&gt;</b>") == 1, "the template's own; the data's is text"
    assert page.count("<svg") == 2
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page), "one page, nothing fetched"


def test_the_command_shows_control_tokens_and_escapes_inert(tmp_path):
    write(tmp_path, [{"question": "What is <end_of_turn> \x1b[31m?", "correct_answer": "18"}])
    done = scorefast("prepare", "d.jsonl", "--report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/data\n"
    assert "What is <end_of_turn> \\x1b[31m?⟦<end_of_turn>⟧" in done.stderr
    assert "\x1b" not in done.stderr
    assert (tmp_path / "runs/data/report.html").is_file()


def test_no_model_is_loaded_for_bad_data(tmp_path):
    """The checkpoint's configuration says nothing: to load it would be another message."""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/config.json").write_text("{}")
    (tmp_path / "ckpt/model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    write(tmp_path, [{"question": "a", "correct_answer": ""}, {"question": "b", "correct_answer": "1"}])
    done = scorefast("prepare", "d.jsonl", "--sample-first-attempts", "ckpt", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 of 2 rows are bad" in done.stderr


def test_missing_first_attempts_are_sampled_and_signed(tmp_path):
    rows = [{"question": f"What is {i} + 345?", "correct_answer": str(i + 345)} for i in range(500, 530)]
    rows[0]["original_answer"] = "mine"
    rows.append({"question": f"{'What is more than this? ' * 200}", "correct_answer": "1"})
    write(tmp_path, rows)
    done = scorefast("prepare", "d.jsonl", "--sample-first-attempts", "base", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = load_dataset(str(tmp_path / "runs/data"), RECIPE.data)
    examples = {e.question: e for name in SPLITS for e in dataset.splits[name]}
    assert len(examples) == 31
    assert examples.pop(rows[-1]["question"].strip()).original_answer is None, "it leaves no room for one"
    by = {e.original_answer_by for e in examples.values()}
    assert by == {None, "tiny-gemma2"}
    assert examples["What is 500 + 345?"].original_answer == "mine"
    assert all(re.search(r"\d", e.original_answer) for e in examples.values() if e.original_answer_by)
    manifest = json.loads((tmp_path / "runs/data/manifest.json").read_text())
    assert manifest["first_attempts"]["by"] == {"tiny-gemma2": 29, "source": 1}


needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="lacks the GSM8K files, which are not in the repository")


@needs_gsm8k
def test_gsm8k_and_its_labelled_solutions_as_benchmark(tmp_path):
    done, _ = prepared(tmp_path, GSM8K / "train.jsonl", against=str(GSM8K / "labelled_solutions.jsonl"))
    assert done.manifest["rows_read"] == 7473
    assert done.manifest["graders"] == {"numeric": done.manifest["rows_measured"]}
    assert done.manifest["against"]["questions"] == 660
    assert sum(done.manifest["dropped"].values()) <= 5, "GSM8K's test questions do not stand in its training set"


@needs_gsm8k
def test_the_way_from_gsm8k_to_score_data_in_the_readme(tmp_path):
    """The commands of data/README.md, with the counts it gives."""
    text = " ".join((REPOSITORY / "data" / "README.md").read_text(encoding="utf-8").split())

    def make(*flags: str) -> str:
        command = [sys.executable, REPOSITORY / "data" / "make_gsm8k.py", GSM8K / "labelled_solutions.jsonl", *flags]
        done = subprocess.run([*command, "--out", tmp_path / "gsm8k.csv"], capture_output=True, text=True, check=True)
        return done.stderr.split()[0]

    one, any_of = make("--model", "175b_verification"), make()
    counted = f"Of the 660 questions that were tried here, {any_of} have a wrong solution, or {one} with `--model "
    assert counted + "175b_verification`." in text
    manifest = prepared(tmp_path, tmp_path / "gsm8k.csv")[0].manifest
    splits = manifest["splits"]
    parts = "{train} train, {validation} validation and {test} test rows".format(**splits)
    assert f"keeps all {any_of} and splits them into {parts}" in text
    assert manifest["first_attempts"]["right"] == 0
    (row,) = list(csv.DictReader((tmp_path / "gsm8k.csv").open(encoding="utf-8")))[:1]
    assert set(row) == {"question", "original_answer", "correct_answer"}
    assert "<<" not in row["original_answer"] + row["correct_answer"]


def test_references_that_no_reply_can_meet_are_said(tmp_path):
    rows = [{"question": f"Fruit {i}?", "correct_answer": "plum" if i % 3 else "3 plums"} for i in range(30)]
    recipe = load_recipe("tiny-cpu", ["reward.grader=numeric"])
    done, _ = prepared(tmp_path, write(tmp_path, rows), recipe=recipe)
    said = "20 of 30 rows can never be graded right: correct_answer contains no number, which grader numeric needs"
    assert done.manifest["read_as"]["notes"] == [said]
    auto = load_recipe("tiny-cpu", ["reward.grader=auto"])
    assert not prepared(tmp_path, write(tmp_path, rows), "auto", auto)[0].manifest["read_as"]["notes"]
