"""Every kind of file gives the same rows, what is no row is told, and no encoding is guessed wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorefast.data.rows import BadRow, Row
from scorefast.data.sources import read_chunks, read_rows, source_files
from scorefast.errors import UserError

HEADER = b"question,original_answer,correct_answer\n"
ROWS = [
    {"question": f'질문 {i}, "quoted"\r\nnext line', "original_answer": "", "correct_answer": f"é\t{i}"}
    for i in range(5000)
]
ENGLISH = ["Doesn’t she have {}?", "He can’t say; it’s Tom’s.", "They’ll go.", "That isn’t right, they’ve {}."]
KOREAN = [
    "사과 {} 개를 세 명이 나누면?",
    "기차는 {} 시에 출발한다.",
    "그 수의 합은 {} 이다.",
    "정답을 다시 확인해 보세요.",
]
FRENCH = [
    "Combien font {} et deux ?",
    "L’élève a répété la leçon.",
    "Où est la forêt près du château ?",
    "Ça coûte {} €",
]
SPANISH = ["¿Cuántos niños hay en {}?", "El año tiene {} días.", "La señora cogió el tren mañana.", "¡Está bien!"]
GERMAN = ["Wie groß ist die Fläche?", "Für {} Äpfel genügt ein Körbchen.", "Das Mädchen läuft über die Brücke."]
POLISH = [
    "Ile jabłek można kupić za {} zł?",
    "Pociąg odjeżdża późno.",
    "Źle, spróbuj jeszcze raz.",
    "Część tę dał mąż.",
]
RUSSIAN = ["Сколько яблок купил мальчик?", "Поезд прибыл в {} часов.", "Ответ нужно проверить ещё раз."]
JAPANESE = ["りんごを{}個買いました。", "電車は何時に出発しますか。", "答えをもう一度確認してください。"]
CHINESE = ["他买了{}个苹果,一共是多少钱?", "这个问题的答案是什么?", "我们在学校里学习数学。", "请你再看一下这个数。"]
TAIWANESE = ["他買了{}個蘋果,一共是多少錢?", "這個問題的答案是什麼?", "我們在學校裡學習數學。", "請你再看一下這個數。"]
LEGACY = {"cp949": KOREAN, "cp932": JAPANESE, "gb18030": CHINESE, "cp950": TAIWANESE}
LEGACY |= {"cp1252": FRENCH, "cp1250": POLISH, "cp1251": RUSSIAN}


def csv_text(rows, delimiter=","):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def texts(sentences, count):
    cells = [sentences[i % len(sentences)].format(i) for i in range(count + 1)]
    return [{"question": cells[i], "answer": cells[i + 1]} for i in range(count)]


def values(source, **options):
    """What it holds, where every row is a good one."""
    rows = list(read_rows(str(source), **options))
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row.values for row in rows]


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        list(read_rows(str(source), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def kinds(tmp_path):
    """ROWS in every kind of file; two CSV files of one half each in the folder `halves`."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    text = {"d.csv": csv_text(ROWS), "d.tsv": csv_text(ROWS, "\t"), "d.jsonl": lines, "e.NDJSON": lines}
    text |= {"d.json": json.dumps(ROWS), "e.json": json.dumps({"version": 1, "tags": ["a"], "data": ROWS})}
    for name, content in text.items():
        put(tmp_path, name, content.encode())
        put(tmp_path, f"{name}.gz", gzip.compress(content.encode(), 1))
        put(tmp_path, f"{name}.zst", pa.compress(content.encode(), "zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet", row_group_size=999)
    halves = tmp_path / "halves"
    halves.mkdir()
    put(halves, "b.csv", csv_text(ROWS[2500:]).encode())
    put(halves, "a.csv", csv_text(ROWS[:2500]).encode())
    for name in ("README.md", "LICENSE", ".hidden.csv", "notes.txt", "picture.png"):
        put(halves, name, b"x")
    return tmp_path


def test_every_kind_of_file_gives_the_same_rows(kinds):
    files = [path for path in sorted(kinds.iterdir()) if path.is_file()]
    assert len(files) == 19
    for path in files:
        assert values(path) == ROWS, path.name
        assert source_files(str(path)) == [path]


def test_a_folder_is_read_in_the_order_of_names(kinds):
    notes = []
    assert values(kinds / "halves", note=notes.append) == ROWS
    assert [path.name for path in source_files(str(kinds / "halves"))] == ["a.csv", "b.csv"]
    assert len(notes) == 1
    assert "picture.png: skipped" in notes[0]


def test_a_saved_dataset_is_read_and_one_of_splits_is_asked_for(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(str(tmp_path / "d"))
    assert values(tmp_path / "d" / "train") == ROWS
    assert [path.suffix for path in source_files(str(tmp_path / "d" / "train"))] == [".arrow"]
    assert f"has the splits train, test: give one of them, e.g. {tmp_path / 'd' / 'train'}" in refusal(tmp_path / "d")


@pytest.mark.parametrize("named", ["../outside.arrow", "/etc/hostname", "absent.arrow"])
def test_a_saved_dataset_does_not_lead_out_of_its_folder(tmp_path, named):
    (tmp_path / "outside.arrow").touch()
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": named}]}))
    assert refusal(folder) == f"{folder / 'state.json'}: names a file that is not in its folder"


def test_a_picture_is_not_taken_for_an_old_encoding(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20)
    assert "d.csv: not text: it contains NUL bytes" in refusal(tmp_path / "d.csv")


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.jsonl.zst", "d.parquet", "halves"])
def test_progress_ends_at_the_bytes_on_disk(kinds, name):
    seen = []
    list(read_rows(str(kinds / name), progress=lambda done, total: seen.append((done, total))))
    size = sum(path.stat().st_size for path in source_files(str(kinds / name)))
    assert len(seen) >= 2
    assert seen[-1] == (size, size)
    assert all(0 <= done <= total == size for done, total in seen)


def test_the_hub_offline_is_one_line_naming_the_id():
    assert refusal("hub:nobody/no-such-data:test").startswith("hub:nobody/no-such-data:test: cannot be loaded: ")
    assert "expected hub:owner/name" in refusal("hub:gsm8k")
    assert source_files("hub:nobody/no-such-data") == []


def test_a_row_has_the_line_on_which_it_begins(tmp_path):
    path = put(tmp_path, "d.csv", b'\r\na,b\r\n"1\r\n2\r\n3",x\r\n\r\nshort\r\ny,z\r\n')
    rows = list(read_rows(str(path)))
    assert [row.line for row in rows] == [3, 7, 8]
    assert rows[0] == Row(str(path), 3, {"a": "1\r\n2\r\n3", "b": "x"})
    assert rows[1] == BadRow(str(path), 7, "1 cells, the header has 2", "short\r\n")
    lines = put(tmp_path, "d.jsonl", b'{"a": 1}\n\n{"a": 2}\n')
    assert [row.line for row in read_rows(str(lines))] == [1, 3]


@pytest.mark.parametrize(
    ("name", "broken", "line", "reason"),
    [
        ("d.csv", b"1,2,3\n", 2, "3 cells, the header has 2"),
        ("d.csv", b'"1"x,2\n', 2, "not CSV"),
        ("d.csv", b'"1\n1"x,2\n', 2, "not CSV: ',' expected after '\"' in lines 2 to 3"),
        ("d.csv", b"1\0,2\n", 2, "NUL character"),
        ("d.csv", "é,é,é\n".encode() + b"\xff,2\n", 3, "not UTF-8"),
        ("d.jsonl", b'{"a": 1\n', 2, "not JSON: Expecting"),
        ("d.jsonl", b"[1]\n", 2, "not an object"),
        ("d.jsonl", b'{"a": "\\ud800"}\n', 2, "half a surrogate pair"),
        ("d.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", 2, "not JSON: maximum recursion depth"),
        ("d.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", 2, "not JSON: Exceeds the limit (4300 digits)"),
        ("d.jsonl", '{"a": "é"}\n'.encode() * 2 + b'{"a": "\xe9"}\n', 4, "not UTF-8"),
        ("d.json", b'1, {"a": "\\ud800"},', 2, "not an object"),
    ],
)
def test_what_is_no_row_is_told_and_the_next_row_is_read(tmp_path, name, broken, line, reason):
    start, end = {
        "d.csv": (b"a,b\n", b"x,y\n"),
        "d.jsonl": (b'{"a": "w"}\n', b'{"a": "x", "b": "y"}\n'),
        "d.json": (b'[{"a": "w"},', b'{"a": "x", "b": "y"}]'),
    }[name]
    rows = list(read_rows(str(put(tmp_path, name, start + broken + end))))
    bad = [row for row in rows if isinstance(row, BadRow) and row.reason.startswith(reason)]
    assert [row.line for row in bad] == [line]
    assert 0 < len(bad[0].raw) <= 2000
    assert rows[-1].values == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "the file is empty"),
        ("d.csv", b"\n\n", "the file is empty"),
        ("d.csv", b"a,b, a\n1,2,3\n", "the header names a more than once"),
        ("d.csv", b"a,,c\n1,2,3\n", "column 2 of 3 has no name"),
        ("d.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "line 3: a quote in this row is never closed"),
        ("d.csv", b"a,b\n1," + b"x" * (2**25 + 1), "line 2: a quote in this row is never closed (field larger"),
        ("d.csv", b'"a"x,b\n1,2\n', "line 1: ',' expected after"),
        ("d.csv", b"a\0,b\n" + b"1,2\n" * 9, "NUL character"),
        ("d.json", b"[{]", "not JSON"),
        ("d.json", b"[" * 100_000, "not JSON: maximum recursion depth"),
        ("d.json", b'{"a": [{}], "b": [{}]}', "exactly one such list"),
        ("d.json", b"3", "expected a list of objects"),
        ("d.parquet", b"PAR1", "not Parquet"),
        ("d.csv.gz", gzip.compress(HEADER * 999)[:-20], "d.csv.gz: "),
        ("d.csv.gz", b"no gzip", "d.csv.gz: "),
        ("d.csv.zst", pa.compress(bytes(range(256)) * 999, "zstd", asbytes=True)[:-20], "d.csv.zst: "),
        ("d.jsonl.zst", b"no zstd", "d.jsonl.zst: "),
        ("d.xlsx", b"PK", "expected one of .csv, .tsv, .jsonl, .ndjson, .json, .parquet"),
        ("d.parquet.gz", b"", "expected one of .csv"),
    ],
)
def test_a_bad_file_is_one_line_naming_it(tmp_path, name, content, message):
    path = put(tmp_path, name, content)
    assert message in refusal(path)
    assert str(path) in refusal(path)


def test_a_truncated_parquet_file_a_missing_one_and_a_folder_without_any_are_refused(tmp_path, kinds):
    whole = (kinds / "d.parquet").read_bytes()
    assert "not Parquet, or damaged" in refusal(put(tmp_path, "t.parquet", whole[: len(whole) // 2]))
    assert refusal(tmp_path / "no.csv") == f"{tmp_path / 'no.csv'}: no such file or folder"
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty", "picture.png", b"x")
    assert "contains no file to read" in refusal(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder"):
        source_files(str(tmp_path / "no.csv"))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_another_delimiter_in_the_header_is_taken_and_noted(tmp_path, delimiter):
    notes = []
    path = put(tmp_path, "d.csv", csv_text(ROWS[:9], delimiter).encode("utf-8-sig"))
    assert values(path, note=notes.append) == ROWS[:9]
    assert notes == [f"{path}: the header has no comma: assumed the delimiter {delimiter!r}"]


def test_lines_that_end_in_carriage_returns_alone(tmp_path):
    assert values(put(tmp_path, "d.csv", b"a,b\r1,2\r3,4\r")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_a_cell_of_ten_megabytes(tmp_path):
    path = put(tmp_path, "d.csv", b'a,b\n"' + b"x\n" * 5_000_000 + b'",1\n2,3\n')
    big, small = read_rows(str(path))
    assert (len(big.values["a"]), big.values["b"]) == (10_000_000, "1")
    assert small == Row(str(path), 5_000_003, {"a": "2", "b": "3"})


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("sentences", [KOREAN, FRENCH], ids=["Korean", "French"])
def test_unicode_is_read_with_and_without_a_mark(tmp_path, codec, sentences):
    rows = texts(sentences, 30)
    notes = []
    assert values(put(tmp_path, "d.csv", csv_text(rows).encode(codec)), note=notes.append) == rows
    assert [codec in line and "assumed" in line for line in notes] == [True] * codec.endswith(("le", "be"))


@pytest.mark.parametrize(
    ("codec", "sentences"),
    [*LEGACY.items(), ("euc_jp", JAPANESE), ("cp1252", SPANISH), ("cp1252", GERMAN), ("cp1252", ENGLISH)],
)
def test_legacy_encodings_are_right_from_thirty_rows_and_never_wrong(tmp_path, codec, sentences):
    for count in (1, 2, 3, 5, 30, 200):
        rows, notes = texts(sentences, count), []
        path = put(tmp_path, f"{count}.csv", csv_text(rows).encode(codec))
        try:
            assert values(path, note=notes.append) == rows
        except UserError as error:
            assert "the encoding is not certain" in str(error) and count < 30  # noqa: PT017, PT018
        else:
            assert notes == [f"{path}: not UTF-8, read as {codec} (assumed; --set data.encoding=... overrides)"]


def test_an_unsure_encoding_is_refused_until_it_is_named(tmp_path):
    path = put(tmp_path, "d.csv", "a\n차\n".encode("cp949"))
    assert "d.csv: not UTF-8, and the encoding is not certain (" in refusal(path)
    assert "name it with --set data.encoding=" in refusal(path)
    assert values(path, encoding="cp949") == [{"a": "차"}]
    assert "data.encoding=cp94: not a text encoding" in refusal(path, encoding="cp94")
    assert "data.encoding=rot13: not a text encoding" in refusal(path, encoding="rot13")


def test_a_named_encoding_is_taken_at_its_word(tmp_path):
    path = put(tmp_path, "d.csv", "a,b\n가,1\n".encode("cp949") + b"\xff,2\n" + "나,3\n".encode("cp949"))
    good, bad, last = read_rows(str(path), encoding="cp949")
    assert (good.values["a"], last.values["a"]) == ("가", "나")
    assert bad[1:3] == (3, "not CP949")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2), min_size=1)
)
def test_any_cells_survive_a_csv_file(cells):
    rows = [{"a": a, "b": b} for a, b in cells]
    with tempfile.TemporaryDirectory() as folder:
        assert values(put(Path(folder), "d.csv", csv_text(rows).encode())) == rows


def test_rows_keep_the_keys_they_have(tmp_path):
    """Of JSON objects: a key that other rows have is not there, be they thousands or one."""
    rows = [{"a": str(i)} | ({f"own {i}": i} if i % 3 else {}) for i in range(5000)]
    rows[7] = {}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in (("d.jsonl", lines.replace(json.dumps(rows[9]), "bad")), ("d.json", json.dumps([*rows, 3]))):
        read = list(read_rows(str(put(tmp_path, name, text.encode()))))
        bad = [i for i, row in enumerate(read) if isinstance(row, BadRow)]
        assert bad == ([9] if name == "d.jsonl" else [5000])
        good = [row.values for row in read if isinstance(row, Row)]
        assert good == [row for i, row in enumerate(rows) if i not in bad]
        assert [row.line for row in read] == [*range(1, len(read) + 1)]


def test_large_cells_are_not_gathered_by_the_thousand(tmp_path):
    cell = "x" * 2**22
    for name, row in (("d.csv", f"{cell},1\n"), ("d.jsonl", json.dumps({"a": cell}) + "\n")):
        text = ("a,b\n" if name == "d.csv" else "") + row * 20
        parts = list(read_chunks(str(put(tmp_path, name, text.encode()))))
        assert [len(part.lines) for part in parts] == [4] * 5, "16 MB, and the row that passes them"


@pytest.mark.parametrize(
    "name",
    [
        "rot13",
        "base64",
        "zlib",
        "hex",
        "idna",
        "punycode",
        "unicode_escape",
        "raw_unicode_escape",
        "undefined",
        "",
        "a\0",
    ],
)
def test_a_codec_that_is_no_encoding_of_text_is_refused(tmp_path, name):
    (tmp_path / "a.csv").write_bytes(HEADER + b"a,b,c\n")
    with pytest.raises(UserError, match="not a text encoding that Python knows"):
        list(read_rows(str(tmp_path / "a.csv"), encoding=name))


@pytest.mark.parametrize("name", ["utf-7", "utf-16", "utf-32", "hz", "iso2022_jp", "cp037", "big5", "utf-8"])
def test_an_encoding_that_fails_in_the_middle_is_one_line_or_bad_rows(tmp_path, name):
    (tmp_path / "a.csv").write_bytes(HEADER + b"a,b,c\n" * 9000 + b"+AA\xff~{\x1b$B\xd8\0" * 9)
    said = f"{tmp_path / 'a.csv'}: "
    try:
        list(read_rows(str(tmp_path / "a.csv"), encoding=name))
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{tmp_path / 'a.csv'}: ")
    assert "\n" not in said
