"""Rows in, splits out: nothing leaks, nothing vanishes silently, a bad file is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorefast.data import SPLITS, load_dataset, normalized, split_of, split_position, write_prepared
from scorefast.recipe import Data, UserError
from tests.conftest import SHIPPED

HEADER = "question,original_answer,correct_answer\n"


def write(tmp_path, text, name="d.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_blank_and_repeated_rows_are_counted_by_reason(tmp_path):
    path = write(tmp_path, HEADER + "a,1,2\n,1,2\nb,1,\nA ,9,9\n\uff42,,3\n")
    dataset = load_dataset(path, Data())
    assert dataset.rows_read == 5
    assert dataset.dropped == {"blank question": 1, "blank correct_answer": 1, "repeated question": 1}
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


def test_prepared_folder_reads_back_the_same(tmp_path):
    dataset = load_dataset(str(SHIPPED), Data())
    manifest = write_prepared(dataset, Data(), tmp_path / "p", None)
    again = load_dataset(str(tmp_path / "p"), Data())
    assert again.splits == dataset.splits
    assert manifest["rows_kept"] == sum(manifest["splits"].values()) == again.rows_kept
    assert json.loads((tmp_path / "p/manifest.json").read_text()) == manifest


def test_a_folder_prepared_with_other_fractions_is_refused(tmp_path):
    """Its training rows could be test rows of the recipe in force."""
    write_prepared(load_dataset(str(SHIPPED), Data()), Data(), tmp_path / "p", None)
    with pytest.raises(UserError, match=r"was prepared with test_fraction=0\.2"):
        load_dataset(str(tmp_path / "p"), Data(test_fraction=0.4))


def test_half_a_surrogate_pair_is_no_crash(tmp_path):
    path = write(tmp_path, '{"question": "a\\ud800", "correct_answer": "1"}', "d.jsonl")
    (e,) = [e for split in load_dataset(path, Data()).splits.values() for e in split]
    assert e.question == "a?"


def test_a_changed_split_file_is_refused(tmp_path):
    write_prepared(load_dataset(str(SHIPPED), Data()), Data(), tmp_path / "p", None)
    with (tmp_path / "p/test.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"test\.parquet: missing or changed"):
        load_dataset(str(tmp_path / "p"), Data())


def test_csv_jsonl_and_parquet_agree(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"question": f'질문 {i}, "quoted"\nline', "original_answer": "가", "correct_answer": "나"} for i in range(9)
    ]
    from_csv = HEADER + "".join(f'"{r["question"].replace(chr(34), chr(34) * 2)}",가,나\r\n' for r in rows)
    paths = [write(tmp_path, from_csv, encoding="utf-8-sig")]
    paths.append(write(tmp_path, "\n".join(json.dumps(r) for r in rows), "d.jsonl"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    paths.append(str(tmp_path / "d.parquet"))
    splits = [load_dataset(path, Data()).splits for path in paths]
    assert splits[0] == splits[1] == splits[2]
    assert sum(map(len, splits[0].values())) == 9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "empty"),
        ("d.csv", b"question,answer\na,b\n", "missing column correct_answer; it has question, answer"),
        ("d.csv", HEADER.encode(), "no usable row"),
        ("d.csv", HEADER.encode() + b"a,b\n", "line 2"),
        ("d.csv", HEADER.encode() + b"a,b,c,d\n", "line 2"),
        ("d.csv", HEADER.encode() + b'a,"b,c\n', "line 2"),
        ("d.csv", HEADER.encode() + "é,1,2".encode("latin-1"), "not UTF-8"),
        ("d.csv", HEADER.encode() + b",,\n , ,\n", "2 blank question"),
        ("d.jsonl", b'{"question": "a"', "line 1: not JSON"),
        ("d.jsonl", b'{"question": "a"}', "missing column correct_answer"),
        ("d.jsonl", b"[1]", "line 1: expected an object"),
        ("d.parquet", b"PAR1", "not Parquet"),
        ("d.xlsx", b"PK", "expected one of"),
    ],
)
def test_a_bad_file_is_one_line_naming_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dataset(str(tmp_path / name), Data())
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
