"""Tables: text to types over every row, kinds, special columns, and each refusal with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fathom.core.errors import DataError
from fathom.core.recipe import Data
from fathom.core.tensors import to_list
from fathom.sources import open_source, read_inputs
from fathom.sources.delimited import MISSING, has_header, parse_numbers, read_delimited
from fathom.sources.tables import Tables

MISSING_WORDS = set(MISSING.to_pylist())


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(count: int, line: str = "{i}.5,{w},{y}") -> str:
    """Body lines with a number, a word and a class."""
    return "".join(line.format(i=i, w="ab"[i % 2], y="pq"[i // 2 % 2]) + "\n" for i in range(count))


def kinds(source: Any) -> dict[str, str]:
    schema = source.schema()
    return {name: item.kind for item in schema.fields().values() for name in item.columns}


def values(source: Any, name: str) -> list[Any]:
    return to_list(source.columns()[name])


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b"a,b,y\n1.5,u,p\n2.5,v,q\n"),
        ("t.csv", b"a;b;y\n1.5;u;p\n2.5;v;q\n"),
        ("t.csv", b"a;b;y\n1,5;u;p\n2,5;v;q\n"),
        ("t.tsv", b"a\tb\ty\n1.5\tu\tp\n2.5\tv\tq\n"),
        ("t.csv", b"a|b|y\n1.5|u|p\n2.5|v|q\n"),
        ("t.csv", b"\xef\xbb\xbfa,b,y\r\n1.5,u,p\r\n2.5,v,q"),
        ("t.csv", b"a,b,y\r1.5,u,p\r2.5,v,q\r"),
        ("t.csv", b'"a","b","y"\n"1.5","u","p"\n\n"2.5","v","q"\n'),
        ("t.csv", b" a ,b,y\n 1.5,u,p\n2.5 ,v,q\n"),
        ("t.csv", "a,b,y\n1.5,u,p\n2.5,v,q\n".encode("utf-16")),
        ("t.csv", "a,b,y\n1.5,u,p\n2.5,v,q\n".encode("utf-16-be")),
        ("t.csv.gz", gzip.compress(b"a,b,y\n1.5,u,p\n2.5,v,q\n")),
        ("t.jsonl", b'{"a": 1.5, "b": "u", "y": "p"}\n\n{"a": 2.5, "b": "v", "y": "q"}\n'),
        ("t.ndjson.gz", gzip.compress(b'{"a": 1.5, "b": "u", "y": "p"}\n{"a": 2.5, "b": "v", "y": "q"}\n')),
    ],
)
def test_every_dialect_gives_the_same_table(tmp_path: Path, name: str, data: bytes) -> None:
    source = open_source(write(tmp_path / name, data), Data())
    assert {column: values(source, column) for column in source.columns()} == {
        "a": [1.5, 2.5],
        "b": ["u", "v"],
        "y": ["p", "q"],
    }


def test_parquet_and_frames_give_the_same_table(tmp_path: Path) -> None:
    table = pa.table({"a": [1.5, 2.5], "b": ["u", "v"], "y": pa.array(["p", "q"]).dictionary_encode()})
    parquet.write_table(table, tmp_path / "t.parquet")
    records = table.to_pylist()
    for location in (tmp_path / "t.parquet", table, table.to_reader(), records):
        source = open_source(location, Data())
        assert values(source, "a") == [1.5, 2.5]
        assert values(source, "y") == ["p", "q"]


def test_the_index_of_a_pandas_frame_is_no_column() -> None:
    table = pa.table({"a": [1.5, 2.5, 3.0], "y": ["p", "q", "p"], "__index_level_0__": [7, 3, 5]})
    source = open_source(table, Data())
    assert list(source.columns()) == ["a", "y"]
    assert any("reset_index" in note for note in source.notes())


def test_string_views_decimals_and_large_strings_become_plain() -> None:
    table = pa.table(
        {
            "a": pa.array(["u", "v", "u"], pa.string_view()),
            "b": pa.array(["1.50", "2.25", "3.00"]).cast(pa.decimal128(5, 2)),
            "y": pa.array(["p", "q", "q"], pa.large_string()),
        }
    )
    assert kinds(open_source(table, Data())) == {"b": "number", "a": "category", "y": "category"}


def test_quoted_line_ends_and_delimiters_stay_in_their_cell(tmp_path: Path) -> None:
    text = 'a,b,y\n1,"x, and\nmore ""so""",p\n2,plain,q\n'
    source = open_source(write(tmp_path / "t.csv", text), Data())
    assert values(source, "b") == ['x, and\nmore "so"', "plain"]


def test_windows_1252_is_read_and_told(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", b"a,y\n1.5,caf\xe9\n2.5,th\xe9\n"), Data())
    assert values(source, "y") == ["café", "thé"]
    assert "Windows-1252" in " ".join(source.notes())
    assert "line 2" in " ".join(source.notes())


def test_a_type_change_far_behind_any_sample_is_still_right(tmp_path: Path) -> None:
    body = "".join(f"{i},{i},{i % 2}\n" for i in range(300_000))
    text = "a,b,y\n" + body + "0.25,x,1\n"
    read = read_delimited(write(tmp_path / "t.csv", text), {}, 2**40).table
    assert read["a"].type == pa.float64()
    assert read["a"][-1].as_py() == 0.25
    assert read["b"].type == pa.string()
    assert read["b"][0].as_py() == "0"
    with pytest.raises(DataError, match=r"line 300002: column 'b' holds numbers, but 'x' came"):
        open_source(tmp_path / "t.csv", Data()).schema()


def test_a_file_above_the_budget_is_memory_mapped_and_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal():.6f},{'abc'[rng.integers(3)]},{i},{rng.integers(2)}" for i in range(60_000)]
    path = write(tmp_path / "t.csv", "a,b,c,y\n" + "\n".join(lines) + "\nNA,a,60000,1\n")
    small = read_delimited(path, {}, 1)
    large = read_delimited(path, {}, 2**40)
    assert small.table.to_pydict() == large.table.to_pydict()
    assert small.table.schema == large.table.schema
    assert small.notes == large.notes
    (cached,) = (tmp_path / "cache" / "tables").iterdir()
    stamp = cached.stat().st_mtime_ns
    assert read_delimited(path, {}, 1).notes == large.notes
    assert cached.stat().st_mtime_ns == stamp  # read from the cache
    cached.write_bytes(b"rot")
    assert read_delimited(path, {}, 1).table.num_rows == 60_001
    write(path, "a,b,c,y\n1,a,2,0\n")
    assert read_delimited(path, {}, 1).table.num_rows == 1  # a changed file is noticed


def test_a_large_parquet_file_is_memory_mapped_and_equal(tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(5000) / 7, "b": ["u", "v"] * 2500, "y": [0, 1] * 2500})
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", Data(memory=1e-6))
    assert values(source, "b") == table["b"].to_pylist()
    assert any((tmp_path / "cache" / "tables").iterdir())


def test_wide_tables_are_read(tmp_path: Path) -> None:
    header = ",".join(f"g{i}" for i in range(3000))
    body = "".join(
        ",".join(str((r * 7 + i) % 13 + (0.5 if i == 5 else 0)) for i in range(3000)) + "\n" for r in range(30)
    )
    read = read_delimited(write(tmp_path / "t.csv", f"{header}\n{body}"), {}, 2**40).table
    assert read["g4"].to_pylist()[:3] == [4, 11, 5]
    assert read["g5"].type == pa.float64()
    assert read["g6"].type == pa.int64()


def test_large_and_small_parquet_files_have_one_schema(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": np.arange(3000) / 7,
            "b": ["u", "v", None] * 1000,
            "c": [f"w{i}" for i in range(3000)],
            "d": pa.array(["p", "q"] * 1500).dictionary_encode(),
            "e": pa.array([f"w{i}" for i in range(3000)]).dictionary_encode(),
            "f": pa.array(range(3000)).dictionary_encode(),
            "g": pa.array(["r"] * 3000, pa.large_string()),
            "__index_level_0__": np.arange(3000),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    (tmp_path / "u.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    small, *others = (
        Tables(tmp_path / name, Data(memory=memory))
        for name, memory in (("t.parquet", 1.0), ("t.parquet", 1e-6), ("u.parquet.gz", 1.0), ("u.parquet.gz", 1e-6))
    )
    kinds = {name: column.type for name, column in small.raw().items()}
    assert list(kinds) == list("abcdefg")
    for other in others:
        assert {name: column.type for name, column in other.raw().items()} == kinds
        assert {n: to_list(c) for n, c in other.raw().items()} == {n: to_list(c) for n, c in small.raw().items()}
        assert any("reset_index" in note for note in other.reading_notes)


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ",".join(f"g{i}" for i in range(100_001)) + "\n")
    with pytest.raises(DataError, match=r"has 100,001 columns; a table may have 100,000"):
        open_source(path, Data()).columns()


@pytest.mark.parametrize(
    ("first", "rest", "expected"),
    [
        (["a", "b"], [["1", "x"]], True),
        (["5.1", "3.5", "setosa"], [["4.9", "3.0", "setosa"]], False),
        (["a", "b"], [["x", "y"]], True),
        (["0", "1", "2"], [["4", "5", "6"]], True),
        (["773869", "767541"], [["64.5", "67.25"]], True),
        (["1.5", "2.5"], [["64.5", "67.25"]], False),
        (["7", "5"], [["6", "4"]], False),
        (["", "a"], [["1", "2"]], True),
        (["", "a"], [["1", "x"]], True),
        (["?", "5.1", "3"], [["1", "4.5", "2"], ["2", "4.1", "1"]], False),
        (["?", "setosa"], [["1", "setosa"], ["2", "virginica"]], False),
        (["3", "5.1", "3"], [["NA", "4.5", "2"], ["2", "NA", "1"], ["4", "5.5", "NA"]], False),
        (["NA", "K"], [["1", "2"], ["3", "4"]], True),
    ],
)
def test_header_detection(first: list[str], rest: list[list[str]], expected: bool) -> None:
    assert has_header(first, rest) is expected


def test_a_missing_header_is_told(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", "5.1,3.5,setosa\n4.9,3.1,virginica\n4.5,2.5,setosa\n"), Data())
    assert list(source.columns()) == ["column1", "column2", "column3"]
    assert source.columns().rows == 3
    assert "no header line" in " ".join(source.notes())


def test_names_that_are_numbers_are_told(tmp_path: Path) -> None:
    read = read_delimited(write(tmp_path / "t.csv", "773869,767541\n64.5,67.25\n"), {}, 2**40)
    assert "although it holds numbers: 773869, 767541" in " ".join(read.notes)


@pytest.mark.parametrize("start", ["\n", "\n\r\n", "   \n\n"])
@pytest.mark.parametrize("budget", [1, 2**40])
def test_blank_lines_before_the_header_are_skipped(tmp_path: Path, start: str, budget: int) -> None:
    path = write(tmp_path / "t.csv", start + "a,b\n1,x\n2,y\n")
    read = read_delimited(path, {}, budget)
    assert read.table.to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    assert read.line_of(1) == start.count("\n") + 3
    with pytest.raises(DataError, match=rf"line {start.count(chr(10)) + 3}: column 'a' is read as numbers, but 'z'"):
        read_delimited(write(path, start + "a,b\n1,x\nz,y\n"), {"a": "number"}, budget)


@pytest.mark.parametrize(
    ("texts", "style", "expected"),
    [
        (["1,5", "2"], "comma", [1.5, 2.0]),
        (["1.234,5", "-2,25", ",5"], "comma", [1234.5, -2.25, 0.5]),
        (["1.5"], "comma", None),
        (["1,234", "1,234,567.5", "9"], "thousands", [1234.0, 1234567.5, 9.0]),
        (["12,34"], "thousands", None),
        (["+5", " 6", "7e2"], "plain", [5.0, 6.0, 700.0]),
        (["0x1A"], "plain", None),
        (["1_000"], "plain", None),
        (["0,964"], "thousands", None),
        (["0.964"], "comma", None),
        (["0,964", "12,5"], "comma", [0.964, 12.5]),
    ],
)
def test_ways_to_write_numbers(texts: list[str], style: str, expected: list[float] | None) -> None:
    read = parse_numbers(pa.array(texts), style)
    assert (None if read is None else read.to_pylist()) == expected


def test_decimal_commas_and_thousands_are_told(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", "a;b;y\n1,5;3;u\n2,25;4;v\n1.000,5;3;u\n"), Data())
    assert values(source, "a") == [1.5, 2.25, 1000.5]
    assert values(source, "b") == [3, 4, 3]
    assert "decimal comma: a" in " ".join(source.notes())
    source = open_source(write(tmp_path / "u.csv", 'a,y\n"1,500",u\n900,v\n'), Data())
    assert values(source, "a") == [1500.0, 900.0]
    assert "thousands separators: a" in " ".join(source.notes())


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("a\tb\n0,964\tx\n3,3\ty\n", [0.964, 3.3], "decimal comma: a"),
        ("a|b\n1,5|x\n2|y\n", [1.5, 2.0], "decimal comma: a"),
        ("a;b\n1.234;0,5\n2.500;1,25\n", [1234.0, 2500.0], "read with a decimal comma in a"),
        ("a;b\n1.234;0.5\n2.500;1.25\n", [1.234, 2.5], "read with a decimal point in a"),
        ("a;b\n1.234;x\n2.500;y\n", [1.234, 2.5], "read with a decimal point in a"),
        ("a;b\n1,234;x\n2,500;y\n", [1.234, 2.5], "read with a decimal comma in a"),
        ("a\tb\n1,234\tx\n2,500\ty\n", [1234.0, 2500.0], "read with a decimal point in a"),
        ("a\tb\n1,234\t0,5\n2,500\t1,5\n", [1.234, 2.5], "read with a decimal comma in a"),
        ("a\tb\n7e2\tx\n2.5\ty\n", [700.0, 2.5], None),
    ],
)
@pytest.mark.parametrize("budget", [1, 2**40])
def test_styles_of_numbers_are_judged_over_the_file(
    tmp_path: Path, text: str, expected: list[float], note: str | None, budget: int
) -> None:
    read = read_delimited(write(tmp_path / ("t.tsv" if "\t" in text else "t.csv"), text), {}, budget)
    assert read.table["a"].to_pylist() == expected
    assert note is None or note in " ".join(read.notes)


@given(
    values=st.lists(st.integers(-(10**9), 10**9).map(lambda n: n / 1000), min_size=1, max_size=20),
    decimal=st.sampled_from(".,"),
    separated=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_column_beside_it_settles_the_style(
    tmp_path: Path, values: list[float], decimal: str, separated: bool
) -> None:
    swap = str.maketrans(".,", ",.") if decimal == "," else {}
    lines = [f"{f'{v:,.3f}' if separated else f'{v:.3f}'};0.5".translate(swap) for v in values]
    read = read_delimited(write(tmp_path / "t.csv", "a;b\n" + "\n".join(lines) + "\n"), {}, 2**40).table
    assert read["a"].to_pylist() == values


def test_missing_words_are_missing_and_counted(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", "a,b,y\n1,?,u\nNA,x,v\n,null,u\nNaN, ?,v\n2,z,u\n"), Data())
    assert values(source, "a") == [1, None, None, None, 2]
    assert values(source, "b") == [None, "x", None, None, "z"]
    assert "Read as missing: '?' (2)" in " ".join(source.notes())


def test_leading_zeros_and_long_digits_stay_text(tmp_path: Path) -> None:
    body = "".join(f"{i % 3:03d},{10**20 + i},{i / 4},{'uv'[i % 2]}\n" for i in range(60))
    source = open_source(write(tmp_path / "t.csv", "code,long,x,y\n" + body), Data())
    assert values(source, "code")[:4] == ["000", "001", "002", "000"]
    assert kinds(source)["code"] == "category"
    assert kinds(source)["x"] == "number"


def test_tabs_with_stray_quotation_marks_are_text(tmp_path: Path) -> None:
    text = 'a\ty\nhe said "no"\tp\n"open\tq\n5" pipe\tp\n'
    source = open_source(write(tmp_path / "t.tsv", text), Data())
    assert values(source, "a") == ['he said "no"', '"open', '5" pipe']
    assert "quotation marks are kept" in " ".join(source.reading_notes)


def test_an_inch_sign_is_no_open_quote(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "t.csv", 'a,y\n5" pipe,p\nrod,q\n'), Data())
    assert values(source, "a") == ['5" pipe', "rod"]


# ---------------------------------------------------------------- properties


def is_float(text: str) -> bool:
    """Whether a word is read as a number: inf and infinity are."""
    try:
        float(text)
    except ValueError:
        return False
    return True


CELLS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=("Cs", "Cc")) | st.just("\n"), max_size=8
).filter(
    lambda text: (
        text.strip() == text and text not in MISSING_WORDS and not is_float(text) and not any(c.isdigit() for c in text)
    )
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.integers(2, 4).flatmap(
        lambda k: st.lists(st.lists(CELLS, min_size=k, max_size=k), min_size=1, max_size=12)
    ),
    delimiter=st.sampled_from(",;|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_text_tables_are_read_back_equal(
    tmp_path: Path, table: list[list[str]], delimiter: str, quoting: int, newline: str, encoding: str
) -> None:
    names = [f"col{'abcd'[i]}" for i in range(len(table[0]))]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=newline)  # type: ignore[arg-type]
    writer.writerow(names)
    writer.writerows(table)
    read = read_delimited(write(tmp_path / "t.csv", out.getvalue().encode(encoding)), {}, 2**40).table
    assert read.column_names == names
    assert [[str(row[name]) for name in names] for row in read.to_pylist()] == table


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=20),
    whole=st.lists(st.integers(-(2**53), 2**53), min_size=20, max_size=20),
    budget=st.sampled_from([1, 2**40]),
)
def test_numbers_are_read_back_exactly(
    tmp_path: Path, numbers: list[float | None], whole: list[int], budget: int
) -> None:
    lines = [f"{'' if n is None else repr(n)},{w},x" for n, w in zip(numbers, whole, strict=False)]
    read = read_delimited(write(tmp_path / "t.csv", "a,b,c\n" + "\n".join(lines) + "\n"), {}, budget).table
    assert read["a"].cast(pa.float64()).to_pylist() == numbers
    assert read["b"].to_pylist() == whole[: len(numbers)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=200)
    | st.text(st.sampled_from('a1,;"\n\t |.\r'), min_size=1, max_size=80).map(str.encode)
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    try:
        read = read_delimited(write(tmp_path / "t.csv", data), {}, 2**40)
    except DataError as error:
        assert 1 <= len(str(error).splitlines()) <= 6  # noqa: PT017
    else:
        assert read.table.num_columns >= 1


# ---------------------------------------------------------------- kinds


def test_kinds_and_notes_of_a_mixed_table(tmp_path: Path) -> None:
    header = "id,name,age,town,flag,code,empty,same,when,comment,income"
    body = "".join(
        f"{i + 1},Person{i},{20 + i % 50},{['Ulm', 'Bonn'][i % 2]},{['true', 'false'][i % 3 == 0]},{i % 5},,7,"
        f"2024-01-{i % 28 + 1:02d},free text number {i} here,{['low', 'high'][i % 4 == 0]}\n"
        for i in range(200)
    )
    source = open_source(write(tmp_path / "t.csv", f"{header}\n{body}"), Data())
    schema = source.schema()
    assert schema.inputs["numbers"].columns == ("age", "code")
    assert schema.inputs["categories"].columns == ("town", "flag")
    assert (schema.inputs["comment"].kind, schema.inputs["comment"].columns) == ("text", ("comment",))
    assert {name: item.kind for name, item in schema.targets.items()} == {"income": "category"}
    told = " ".join(source.notes())
    for part in (
        "they number or name the rows: id, name",
        "they hold no value: empty",
        "every value is the same: same",
        "they are dates: when",
        "'income' (it is the last column)",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("names", "target"),
    [(["a", "Target", "b"], "Target"), (["y", "a", "CLASS"], "CLASS"), (["a", "Y", "b"], "Y"), (["a", "b", "c"], "c")],
)
def test_target_guess(names: list[str], target: str) -> None:
    table = pa.table({name: [0.5, 1.5, 2.5, 3.25] for name in names})
    source = open_source(table, Data())
    assert list(source.schema().targets) == [target]
    assert f"The target is '{target}'" in source.notes()[0]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ([0, 1] * 20, "category"),
        ([True, False] * 20, "category"),
        (["a", "b"] * 20, "category"),
        ([0.0, 1.0] * 20, "category"),
        (list(range(40)), "number"),
        ([i / 7 for i in range(40)], "number"),
        ([0.5, 1.5] * 20, "number"),
        ([["a"], ["a", "b"]] * 20, "labels"),
        (["1", "2", "x", "1"] * 10, "category"),
    ],
)
def test_kind_of_a_target(target: list[Any], kind: str) -> None:
    source = open_source(pa.table({"x": np.linspace(0, 1, 40), "y": target}), Data())
    assert source.schema().targets["y"].kind == kind


def test_whole_number_target_says_how_to_override() -> None:
    table = pa.table({"x": np.linspace(0, 1, 40), "y": [3, 4] * 20})
    assert "data.types.y=number" in " ".join(open_source(table, Data()).notes())
    assert open_source(table, Data(types={"y": "number"})).schema().targets["y"].kind == "number"


def test_several_binary_targets_are_labels() -> None:
    table = pa.table({"x": np.linspace(0, 1, 40), "a": [0, 1] * 20, "b": [1, 1, 0, 0] * 10, "c": ["u", "v"] * 20})
    schema = open_source(table, Data(target=["a", "b"])).schema()
    assert {name: (item.kind, item.columns) for name, item in schema.targets.items()} == {
        "labels": ("labels", ("a", "b"))
    }
    note, _ = open_source(table, Data(target=["a", "b"])).notes()
    assert note.startswith("a, b hold 0 and 1, so they are predicted together as 2 labels; data.types.a=category")
    apart = open_source(table, Data(target=["a", "b"], types={"a": "category"})).schema()
    assert {name: item.kind for name, item in apart.targets.items()} == {"a": "category", "b": "category"}
    schema = open_source(table, Data(target=["a", "c"])).schema()
    assert {name: item.kind for name, item in schema.targets.items()} == {"a": "category", "c": "category"}


def test_a_target_called_like_an_input_keeps_its_place() -> None:
    table = pa.table({"x": np.linspace(0, 1, 40), "numbers": np.linspace(3, 4, 40)})
    schema = open_source(table, Data(target=["numbers"])).schema()
    assert set(schema.fields()) == {"numbers", "numbers (target)"}


def test_overrides() -> None:
    table = pa.table(
        {"a": [1, 2] * 20, "b": ["1", "x"] * 20, "c": np.linspace(0, 1, 40), "n": ["3", "4.5"] * 20, "y": [0, 1] * 20}
    )
    options = Data(
        target=["y"], types={"a": "category", "b": "ignore", "n": "number"}, fields={"number": {"clip": 3.0}}
    )
    schema = open_source(table, options).schema()
    assert schema.inputs["categories"].columns == ("a",)
    assert schema.inputs["numbers"].columns == ("c", "n")
    assert schema.inputs["numbers"].options == {"clip": 3.0}
    assert open_source(table, Data(target=["y"], input=["c"])).schema().inputs["numbers"].columns == ("c",)


def test_consecutive_numbers_are_kept_when_they_are_all_there_is() -> None:
    schema = open_source(pa.table({"x": np.arange(50), "y": np.linspace(0, 3, 50)}), Data()).schema()
    assert schema.inputs["numbers"].columns == ("x",)
    shuffled = np.random.default_rng(0).permutation(50)
    table = pa.table({"id": shuffled, "x": np.linspace(0, 1, 50), "y": np.linspace(0, 3, 50)})
    assert open_source(table, Data()).schema().inputs["numbers"].columns == ("x",)
    assert open_source(table, Data(input=["id", "x"])).schema().inputs["numbers"].columns == ("id", "x")


def test_group_time_and_weight_leave_the_inputs(tmp_path: Path) -> None:
    body = "".join(
        f"{i / 3},{'abc'[i % 3]},2024-02-{i % 28 + 1:02d} 10:00,{1 + i % 2},{'uv'[i % 2]}\n" for i in range(50)
    )
    path = write(tmp_path / "t.csv", "x,who,when,w,y\n" + body)
    source = open_source(path, Data(group="who", time="when", weight="w"))
    schema = source.schema()
    assert schema.special == {"group": "who", "time": "when", "weight": "w"}
    assert [name for item in schema.inputs.values() for name in item.columns] == ["x"]
    assert pa.types.is_timestamp(source.columns()["when"].type)


def test_columns_of_picture_files(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for i in range(4):
        (tmp_path / "p" / f"{i}.png").write_bytes(b"-")
    body = "".join(f"p/{i % 4}.png,{i / 3},{'uv'[i % 2]}\n" for i in range(8))
    source = open_source(write(tmp_path / "t.csv", "file,x,y\n" + body), Data())
    assert source.schema().inputs["image"].columns == ("file",)
    assert values(source, "file")[0] == str(tmp_path / "p" / "0.png")
    assert pa.types.is_string(source.columns()["file"].type)


def test_words_are_no_files_where_one_is_none(tmp_path: Path) -> None:
    body = "".join(f"{'cover.png' if i == 0 else 'ab'[i % 2]},{i / 3},{'uv'[i % 2]}\n" for i in range(40))
    source = open_source(write(tmp_path / "t.csv", "name,x,y\n" + body), Data())
    assert values(source, "name")[:3] == ["cover.png", "b", "a"]
    assert kinds(source)["name"] == "category"
    many = "".join(f"{'cover.png' if i == 0 else f'word {i}'},{i / 3},{'uv'[i % 2]}\n" for i in range(1500))
    source = open_source(write(tmp_path / "u.csv", "name,x,y\n" + many), Data())
    assert kinds(source)["name"] == "text"
    assert values(source, "name")[0] == "cover.png"


# ---------------------------------------------------------------- refusals

GOOD = "a,b,y\n" + rows(40)


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("", {}, ["is empty"]),
        ("a,b,y\n", {}, ["holds no rows"]),
        ("a,b,y\n1,2,p\n3,4\n", {}, ["line 3", "2 cells", "3 are expected", "header"]),
        ('a,b,y\n1,"x\ny",p\n3,4,5,6\n', {}, ["line 4", "4 cells", "3 are expected"]),
        ('a,b,y\n1,x,p\n2,"z,q\n3,w,p\n', {}, ["line 3", "opened and not closed"]),
        ('a,y\n1,"x\n2,"y\n', {}, ["line 2", "written twice"]),
        ('a,y\n1,"x\n2,"y', {}, ["line 2", "written twice"]),
        ('a,y\rz"z,p\r1,"x\r', {}, ["line 3", "not closed"]),
        ('a,y\nz"z,p\n1,"x\n', {}, ["line 3", "not closed"]),
        ("a,b,a,y\n1,2,3,4\n", {}, ["'a' (2 times)", "rename"]),
        (b"a,y\n1,p\n2,\0q\n", {}, ["NUL byte", "offset 10", "line 3"]),
        (b"a,y\n1,\x81p\n", {}, ["neither UTF-8", "offset 6", "line 2"]),
        ("a,y\n1,é\n".encode() + b"2,\xff\n", {}, ["0xff", "offset 11", "line 3", "damaged or joined"]),
        (GOOD, {"target": ["z"]}, ["no column 'z'", "Known: a, b, y"]),
        (GOOD, {"target": ["yy"]}, ["Did you mean 'y'?"]),
        (GOOD, {"input": ["aa"]}, ["no column 'aa'", "Did you mean 'a'?"]),
        (GOOD, {"input": ["y", "a"], "target": ["y"]}, ["cannot be an input"]),
        (GOOD, {"group": "bb"}, ["data.group", "Did you mean 'b'?"]),
        (GOOD, {"weight": "b"}, ["data.weight needs a column of numbers"]),
        (GOOD, {"time": "b"}, ["data.time", "YYYY-MM-DD"]),
        (GOOD, {"group": "y", "target": ["y"]}, ["data.group at once"]),
        (GOOD, {"types": {"a": "numbr"}}, ["no kind 'numbr'", "Did you mean 'number'?"]),
        (GOOD, {"types": {"aa": "number"}}, ["no column 'aa'", "data.types"]),
        (GOOD, {"types": {"b": "number"}}, ["line 2", "'b'", "read as numbers", "'a' came"]),
        (GOOD, {"types": {"y": "ignore"}, "target": ["y"]}, ["cannot be ignored"]),
        ("a,y\n" + "".join(f"{i / 3},7\n" for i in range(30)), {}, ["target 'y' is '7' in every row"]),
        ("a,y\n" + "".join(f"{i / 3},\n" for i in range(30)), {}, ["target 'y' has no value"]),
        ("a,y\n" + "".join(f"{i / 3},w{i}\n" for i in range(60)), {}, ["text with 60 different values", "no classes"]),
        ("a,y\n" + "".join(f"7,{i % 2}\n" for i in range(30)), {}, ["no column to learn from", "a: every value is the same"]),
        ("a,y\n" + "".join(f"{i / 3},{i % 2}\n" for i in range(50)) + "abc,1\n", {}, ["line 52", "'a'", "'abc'", "data.types.a"]),
        ("a,y\n" + "".join(f"{i / 3},{i % 2}\n" for i in range(50)) + "1e999,1\n", {}, ["line 52", "'a'", "infinite or too"]),
        ("t,y\n" + "".join(f"2024-01-01,{i}\n" for i in range(30)) + ",1\n", {"time": "t", "target": ["y"]}, ["in row 31"]),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_their_place(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], parts: list[str]
) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(DataError) as caught:
        open_source(path, Data(**options)).schema()
    told = str(caught.value)
    assert not [part for part in parts if part not in told], told
    assert len(told.splitlines()) <= 6


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": oops}\n', ["line 2", "no JSON"]),
        ("t.jsonl", b'{"a": 1}\n[1]\n', ["line 2", "list came"]),
        ("t.jsonl", b'{"a": 1}\n{"a": "x"}\n', ["line 2", "'a' is a str", "number in line 1"]),
        ("t.jsonl", b"\n", ["no rows"]),
        ("t.parquet", b"PAR1 no", ["no readable Parquet file"]),
        ("t.csv.gz", gzip.compress(b"a,y\n" + b"1,2\n" * 9000)[:-20], ["damaged gzip"]),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, data: bytes, parts: list[str]) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        open_source(path, Data()).schema()
    assert not [part for part in [name, *parts] if part not in str(caught.value)], str(caught.value)


def test_bad_frames_are_refused() -> None:
    twice = pa.table([pa.array([1.0, 2.0]), pa.array([1.0, 2.0])], names=["a", "a"])
    with pytest.raises(DataError, match="names a more than once"):
        open_source(twice, Data()).columns()
    with pytest.raises(DataError, match="values of one type"):
        open_source([{"a": 1}, {"a": "x"}], Data()).columns()


# ---------------------------------------------------------------- joined and predict


def fitted(source: Any) -> Any:
    schema, columns = source.schema(), source.columns()
    for item in schema.fields().values():
        item.fit([columns])
    return schema


def test_validation_and_test_files_are_joined(tmp_path: Path) -> None:
    main = write(tmp_path / "train.csv", "a,b,y,extra\n" + rows(40, "{i},{w},{y},1"))
    valid = write(tmp_path / "valid.csv", "y,b,a\n" + rows(6, "{y},{w},{i}.5"))
    test = write(tmp_path / "test.tsv", "a\tb\ty\n" + rows(4, "{i}\tc\t{y}"))
    source = open_source(str(main), Data(target=["y"], validation=str(valid), test=str(test)))
    assert {name: len(index) for name, index in source.given_splits().items()} == {
        "train": 40,
        "validation": 6,
        "test": 4,
    }
    columns = source.columns()
    assert columns.rows == 50
    taken = columns.take(source.given_splits()["validation"])
    assert to_list(taken["a"])[:2] == [0.5, 1.5]
    assert to_list(columns.take(source.given_splits()["test"])["b"]) == ["c"] * 4
    assert list(source.schema().targets) == ["y"]


def test_a_joined_file_reads_words_and_numbers_as_the_training_file_does(tmp_path: Path) -> None:
    main = write(
        tmp_path / "train.csv",
        "a,code,y\n" + "".join(f"{i / 3},{['1.0', '2.0', 'u'][i % 3]},{'pq'[i % 2]}\n" for i in range(30)),
    )
    test = write(tmp_path / "test.csv", "a,code,y\n1,1.0,p\n2,2.0,q\n")
    source = open_source(str(main), Data(test=str(test)))
    assert to_list(source.columns()["code"])[-2:] == ["1.0", "2.0"]
    write(test, "a,code,y\n1,1.0,p\nfive,2.0,q\n")
    with pytest.raises(DataError, match=r"test.csv, line 3: column 'a' is read as numbers, but 'five' came"):
        open_source(str(main), Data(test=str(test))).columns()


def test_a_joined_file_without_a_column_is_refused(tmp_path: Path) -> None:
    main = write(tmp_path / "train.csv", GOOD)
    test = write(tmp_path / "test.csv", "a,bb,y\n1.5,a,p\n")
    with pytest.raises(DataError, match=r"test.csv lacks the column 'b'.*Nearest: 'bb'"):
        open_source(str(main), Data(test=str(test))).columns()
    with pytest.raises(DataError, match=r"Did you mean '.*test.csv'"):
        open_source(str(main), Data(test=str(tmp_path / "tset.csv")))


def test_predict_reads_files_dicts_lists_and_frames(tmp_path: Path) -> None:
    schema = fitted(open_source(write(tmp_path / "train.csv", "a,b,c,y\n" + rows(40, "{i}.5,{w},{i},{y}")), Data()))
    names = [name for item in schema.inputs.values() for name in item.columns]
    assert names == ["a", "b"]  # c numbers the rows
    new = write(tmp_path / "new.csv", "extra,b,c,a\n9,a,1,3\n9,zz,2,\n")
    columns, told = read_inputs([str(new)], schema)
    assert told == ["row 1", "row 2"]
    assert to_list(columns["a"]) == [3, None]
    assert to_list(columns["b"]) == ["a", "zz"]
    columns, told = read_inputs([{"a": "2.5", "b": "a", "c": 1}, {"a": None, "b": "b", "c": 2}], schema)
    assert to_list(columns["a"]) == [2.5, None]
    columns, _ = read_inputs([pa.table({"a": [1.0], "b": ["a"], "c": [1]})], schema)
    assert columns.rows == 1
    row = {"a": 1.5, "b": "a", "c": 3}
    columns, _ = read_inputs([[row[name] for name in names]], schema)
    assert to_list(columns["b"]) == ["a"]


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (["new.csv"], ["new.csv lacks the column 'b'", "It has: a"]),
        (["nwe.csv"], ["nwe.csv does not exist", "Did you mean", "new.csv"]),
        (["none/new.csv"], ["The folder none does not exist"]),
        (["train.txt"], ["is no table"]),
        ([{"a": 1.0}], ["row 1 lacks the column 'b'"]),
        ([{"a": "five", "b": "a"}], ["row 1", "'a' is read as numbers", "'five' came"]),
        ([[1.0]], ["row 1 has 1 values", "reads 2"]),
        ([[]], ["row 1 has 0 values", "reads 2"]),
        ([object()], ["no row"]),
        ([{"a": 1.0, "b": object()}], ["neither number nor text"]),
        ([], ["Nothing came"]),
    ],
)
def test_bad_inputs_of_predict(tmp_path: Path, inputs: list[Any], parts: list[str]) -> None:
    schema = fitted(open_source(write(tmp_path / "train.csv", GOOD), Data()))
    write(tmp_path / "new.csv", "a\n1.5\n2.5\n")
    write(tmp_path / "train.txt", "x")
    with pytest.raises(DataError) as caught:
        read_inputs(inputs, schema)
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_rows_without_names_are_in_the_order_of_the_training_data(tmp_path: Path) -> None:
    body = "".join(f"{'ab'[i % 2]},{i},{i % 7 + 0.5},7,{'pq'[i // 2 % 2]}\n" for i in range(40))
    schema = fitted(open_source(write(tmp_path / "t.csv", "zone,id,age,same,y\n" + body), Data()))
    schema = schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert schema.order == ("zone", "id", "age", "same")
    for row in (["b", 44.5], ["b", 1, 44.5, 7], ["b", None, 44.5, "text"], np.array(["b", 1, 44.5, 7], object)):
        columns, _ = read_inputs([row], schema)
        assert {name: to_list(column) for name, column in columns.items()} == {"zone": ["b"], "age": [44.5]}
    with pytest.raises(DataError, match=r"has 3 values; the model reads 2 \(of 4 columns of the data\): zone, age"):
        read_inputs([["b", 1, 44.5]], schema)


def test_dates_that_are_categories_are_known_at_serving(tmp_path: Path) -> None:
    days = [f"2020-01-{i % 3 + 1:02d}" for i in range(30)]
    text = write(tmp_path / "t.csv", "day,a,y\n" + "".join(f"{d},{i / 3},{'pq'[i % 2]}\n" for i, d in enumerate(days)))
    lines = "".join(json.dumps({"day": d, "a": i / 3, "y": "pq"[i % 2]}) + "\n" for i, d in enumerate(days))
    for path in (text, write(tmp_path / "t.jsonl", lines)):
        schema = fitted(open_source(path, Data(types={"day": "category"})))
        assert schema.inputs["categories"].state["vocabularies"] == [["2020-01-01", "2020-01-02", "2020-01-03"]]
        new = write(tmp_path / "new.csv", "day,a\n2020-01-02,3\n")
        for given_input in (str(new), {"day": "2020-01-02", "a": 3}):
            columns, _ = read_inputs([given_input], schema)
            assert schema.inputs["categories"].encode(columns).tolist() == [[2]]
    table = pa.table({"day": pa.array(days).cast(pa.timestamp("us")), "a": np.linspace(0, 1, 30), "y": ["p", "q"] * 15})
    schema = fitted(open_source(table, Data(types={"day": "category"})))
    columns, _ = read_inputs([table.slice(1, 1).drop_columns("y")], schema)
    assert schema.inputs["categories"].encode(columns).tolist() == [[2]]


def test_the_style_of_numbers_is_that_of_training(tmp_path: Path) -> None:
    body = "8.213,5;p\n" + "".join(f"{i},25;{'pq'[i % 2]}\n" for i in range(40))
    train = write(tmp_path / "t.csv", "price;y\n" + body)
    for memory in (8.0, 1e-9):
        schema = fitted(open_source(train, Data(memory=memory)))
        schema = schema.from_json(json.loads(json.dumps(schema.to_json())))
        assert schema.reading == {"price": "number:comma"}
        new = write(tmp_path / "new.csv", "price;x\n1.234;1\n2.500;2\n")
        assert to_list(read_inputs([str(new)], schema)[0]["price"]) == [1234.0, 2500.0]
        assert to_list(read_inputs([{"price": "1.234"}], schema)[0]["price"]) == [1234.0]
        write(new, "price;x\n1234.5;1\n2.500;2\n")  # a point that can only be a decimal point
        assert to_list(read_inputs([str(new)], schema)[0]["price"]) == [1234.5, 2.5]
        write(new, "price,x\n1.234,1\n2.500,2\n")
        with pytest.raises(DataError, match="'price' was written with a decimal comma in training"):
            read_inputs([str(new)], schema)
    test = write(tmp_path / "test.csv", "price;y\n1.234;p\n2.500;q\n")
    assert values(open_source(train, Data(test=str(test))), "price")[-2:] == [1234.0, 2500.0]


def test_predict_keeps_words_that_look_like_numbers(tmp_path: Path) -> None:
    body = "".join(f"{i / 3},{['1.0', '2.0', 'u'][i % 3]},{'pq'[i % 2]}\n" for i in range(30))
    schema = fitted(open_source(write(tmp_path / "train.csv", "a,code,y\n" + body), Data()))
    columns, _ = read_inputs([str(write(tmp_path / "new.csv", "a,code\n1,1.0\n"))], schema)
    assert schema.inputs["categories"].encode(columns).tolist() == [[1]]


def test_adult_census(data_folder: Path) -> None:
    folder = data_folder / "fairness"
    if not folder.is_dir():
        pytest.skip("the fairness set is not there")
    options = Data(target=["income"], test=str(folder / "adult_test.csv.gz"))
    source = open_source(str(folder / "adult_train.csv.gz"), options)
    schema = source.schema()
    assert {name: len(index) for name, index in source.given_splits().items()} == {"train": 32561, "test": 16281}
    assert len(schema.inputs["numbers"].columns) == 6
    assert len(schema.inputs["categories"].columns) == 8
    assert schema.targets["income"].kind == "category"


def test_titanic(data_folder: Path) -> None:
    path = data_folder / "tabular" / "titanic.csv"
    if not path.is_file():
        pytest.skip("the tabular set is not there")
    source = open_source(str(path), Data(target=["Survived"]))
    assert source.schema().inputs["numbers"].columns == ("Pclass", "Age", "SibSp", "Parch", "Fare")
    assert source.schema().inputs["categories"].columns == ("Sex", "Embarked")
    assert json.dumps(source.schema().to_json())
