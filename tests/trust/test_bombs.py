"""Small files that stand for gigabytes are refused by their lengths, before what they stand for is made."""

from __future__ import annotations

import io
import os
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nncift.core import texts
from nncift.core.yaml_text import read_yaml
from nncift.data import file_rows, formats, json_arrays, read, records, starters
from nncift.data.tokenizer_files import check_tokenizer
from nncift.errors import DataError, NnciftError, UsageError
from nncift.models.prompt_format import PromptFormat
from nncift.runs.finished import FinishedRun
from nncift.selection.constraints import ids_of
from nncift.storage import arrow_messages, parquet_pages
from nncift.storage.arrow_sizes import python_bytes
from nncift.storage.atomic import read_json
from nncift.storage.parquet import FileColumn, read_columns
from nncift.studies import grid

Write = Callable[[Path, pa.Table], None]


def _feather(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)


def _repeated(value: str, rows: int) -> pa.Table:
    places = pa.array([0] * rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(places, pa.array([value]))
    return pa.table({"instruction": column, "output": column})


def _parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


WRITERS: dict[str, Write] = {".parquet": _parquet, ".arrow": _feather}


@pytest.mark.parametrize("suffix", WRITERS)
def test_one_long_value_in_many_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pool{suffix}"
    WRITERS[suffix](path, _repeated("x" * (1 << 18), 4000))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(DataError, match="stands for more than"):
        read(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_value_that_repeats_as_much_as_in_data_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pool{suffix}"
    WRITERS[suffix](path, _repeated("x" * 2000, 500))
    assert len(read(path)) == 500


def test_a_page_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"instruction": ["a" * (1 << 21)], "output": ["b"]}), path, compression="zstd")
    assert len(read(path)) == 1
    monkeypatch.setattr(parquet_pages, "MOST_PAGE", 1 << 20)
    with pytest.raises(DataError, match="a page of it unpacks"):
        read(path)


def test_a_message_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.arrow"
    table = pa.table({"instruction": ["a" * (1 << 21)], "output": ["b"]})
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as sink:
        sink.write_table(table)
    assert len(read(path)) == 1
    monkeypatch.setattr(arrow_messages, "MOST_MESSAGE", 1 << 20)
    with pytest.raises(DataError, match="unpack to"):
        read(path)


def test_a_row_of_millions_of_empty_turns(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 3_000_000)], names=["role"])
    lists = pa.ListArray.from_arrays(pa.array([0, 3_000_000], pa.int32()), turns)
    pq.write_table(pa.table({"messages": lists}), path)
    with pytest.raises(DataError, match=r"too long|stands for"):
        read(path)


def test_far_more_values_than_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({f"c{at}": pa.nulls(400_000, pa.string()) for at in range(4)}), path)
    monkeypatch.setattr(parquet_pages, "MANY_CELLS", 1_000_000)
    with pytest.raises(DataError, match="stand for 1,600,000 values"):
        read(path)


def test_files_of_a_run_have_the_same_guard(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(_repeated("x" * (1 << 18), 4000), path)
    with pytest.raises(ValueError, match="stand for"):
        read_columns(path)
    with pytest.raises(ValueError, match="stand for"):
        FileColumn(path, "output")[0]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_row_of_nothing_but_brackets(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_PARTS", 20_000)
    monkeypatch.setattr(json_arrays, "MANY_BYTES", 1 << 13)
    path, row = tmp_path / f"pool.{suffix}", '{"instruction":"a","output":"b","more":[' + "[]," * 20_001 + "1]}"
    path.write_text(f"[{row}]" if suffix == "json" else row + "\n")
    with pytest.raises(DataError, match="20,000 lists and objects"):
        read(path)


@pytest.mark.parametrize("values", ["1.5,", '"ab",', '"k":1,'])
@pytest.mark.parametrize("form", ["pool.json", "pool.jsonl", "columns.json"])
def test_a_row_of_nothing_but_short_values(
    tmp_path: Path, values: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MOST_PARTS", 20_000)
    monkeypatch.setattr(texts, "MOST_HELD", 1 << 20)
    monkeypatch.setattr(json_arrays, "MANY_BYTES", 1 << 13)
    body = values * 30_000 + ('"k":1' if ":" in values else "1")
    row = '{"instruction":"a","output":"b","more":' + (f"{{{body}}}" if ":" in values else f"[{body}]") + "}"
    path = tmp_path / form
    path.write_text({"pool.json": f"[{row}]", "pool.jsonl": f"{row}\n", "columns.json": row}[form])
    with pytest.raises(DataError, match="so many values that they take more than 1 MiB"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("pool.json", '{"a":[' + "1," * 200 + "1]}", "more than 100 values in lists"),
        ("pool.json", '{"a":[' + '{"a":{}},' * 200 + "1]}", "more than 100 objects that are too small"),
        ("pool.json", "{" + '"k":1,' * 200 + '"k":1}', "more than 100 names"),
        ("pool.jsonl", '{"instruction":"a","output":"b"}\n' + "\n" * 200, "more than 100 lines of a file are blank"),
        ("pool.csv", "instruction,output\na,b\n" + "\n" * 200, "more than 100 lines of a file are blank"),
        ("pool.csv", "instruction,output\n" + "ab," * 200 + "\n", "more than 100 cells"),
        ("pool.csv", ",".join(map(str, range(200))) + "\n", "more than 100 cells"),
    ],
)
def test_files_of_next_to_nothing_are_given_up(
    tmp_path: Path, name: str, text: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, bound in (
        (json_arrays, "MOST_LISTED"),
        (json_arrays, "MOST_NAMES"),
        (json_arrays, "MOST_TINY"),
        (records, "MOST_BLANK"),
        (file_rows, "MOST_CELLS"),
    ):
        monkeypatch.setattr(module, bound, 100)
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read(path)


def test_brackets_are_counted_once_however_many_values_were_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "MANY_BYTES", 1 << 13)
    counted = list[int]()
    monkeypatch.setattr(json_arrays, "too_many_parts", lambda text, start: counted.append(start))
    path = tmp_path / "pool.json"
    path.write_text("[" + ",".join(['{"instruction":"a","output":"b"}'] * 5000) + "]")
    assert len(read(path)) == 5000
    # Once to see how the file is laid out, and once to read it.
    assert len(counted) == 2


def test_a_file_of_rows_that_cannot_be_used_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_UNUSABLE", 100)
    path = tmp_path / "pool.jsonl"
    path.write_text("{}\n" * 200)
    with pytest.raises(DataError, match="more than 100 rows"):
        read(path)


TABLE = pa.table(
    {
        "text": [f"text {at} " * 20 for at in range(3000)],
        "same": ["same"] * 3000,
        "none": pa.nulls(3000, pa.string()),
        "turns": [[{"role": "user", "content": "x" * (at % 50)}, {"role": "a", "content": None}] for at in range(3000)],
    }
)


@pytest.mark.parametrize("pages", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4"])
@pytest.mark.parametrize(
    "how", [{}, {"use_dictionary": False}, {"write_page_index": True}, {"row_group_size": 700, "data_page_size": 512}]
)
def test_pages_are_found_as_pyarrow_finds_them(pages: str, codec: str, how: dict[str, Any]) -> None:
    file = io.BytesIO()
    pq.write_table(TABLE, file, compression=codec, data_page_version=pages, **how)
    found, about = parquet_pages.survey(file), pq.ParquetFile(file).metadata
    assert [rows for rows, _ in found.groups] == [about.row_group(at).num_rows for at in range(about.num_row_groups)]
    for at, (_, chunks) in enumerate(found.groups):
        columns = [about.row_group(at).column(place) for place in range(about.num_columns)]
        assert [(one.path, one.values) for one in chunks] == [(one.path_in_schema, one.num_values) for one in columns]
    by_name = {one.path: one for one in found.groups[0][1]}
    # Of a column whose values are written once each, none stands in many rows; else the longest is known.
    assert by_name["same"].longest == (0 if "use_dictionary" in how else 4)
    assert not by_name["same"].nested
    assert by_name["turns.list.element.content"].nested


def test_every_cut_or_changed_footer_is_an_error_or_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(TABLE.slice(0, 20), file)
    whole = file.getvalue()
    for at in range(len(whole) - 900, len(whole), 7):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            try:
                parquet_pages.survey(io.BytesIO(data))
            except ValueError:
                continue


@pytest.mark.parametrize(
    "values",
    [
        ["a" * 100, None, "b"],
        [["a"] * 5, [], None],
        [{"role": "user", "content": "x" * 50}] * 3,
        [[{"role": "user", "content": "x" * 50}] * 3],
        [1.5, 2.5],
        [None, None],
    ],
)
def test_sizes_are_near_what_python_takes(values: list[Any]) -> None:
    def size(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return sys.getsizeof(value) + sum(map(size, inner))

    array = pa.array(values)
    real = sum(size(value) for value in array.to_pylist())
    assert real / 3 <= python_bytes(array) <= 3 * real
    several = pa.array(values * 4)
    assert python_bytes(several) == 4 * python_bytes(array)
    assert python_bytes(several.slice(len(values), len(values))) == python_bytes(array)


def test_a_value_of_a_dictionary_counts_where_it_is_meant() -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None], pa.int32()), pa.array(["x" * 1000, "y"]))
    assert python_bytes(long) == 2 * (56 + 1000) + (56 + 1) + 4 * 8
    assert python_bytes(long.slice(1, 1)) == 56 + 1 + 8


def test_json_of_a_run_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_PARTS", 1000)
    path = tmp_path / "summary.json"
    path.write_text(f"[{'[],' * 998}1]")
    assert len(read_json(path)) == 999
    path.write_text(f"[{'[],' * 1000}1]")
    with pytest.raises(ValueError, match="more than 1,000 lists"):
        read_json(path)
    with pytest.raises(DataError, match="more than 1,000 lists"):
        _ = FinishedRun(tmp_path).summary


def _of_holes(path: Path) -> Path:
    """Make a file of 600 MiB that takes no place on a disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, 600 << 20)
    return path


@pytest.mark.parametrize(
    ("name", "read_it", "match"),
    [
        ("summary.json", lambda path: read_json(path), "more than 512 MiB"),
        ("summary.json", lambda path: FinishedRun(path.parent).summary, "more than 512 MiB"),
        ("manifest.yaml", lambda path: read_yaml(path), "more than 4 MiB"),
        ("ids.txt", lambda path: ids_of(str(path), "--include"), "more than 512 MiB"),
        ("subset.jsonl", lambda path: records.kept_lines(path, 3), "has more than 128 MiB"),
        ("rows.trl.py", lambda path: starters.check_is_ours(path), "is not what an export left"),
        ("tokenizer.json", lambda path: check_tokenizer(path.parent), "more than 128 MiB"),
        (
            "template.txt",
            lambda path: PromptFormat(cast(Any, SimpleNamespace(chat_template=None)), str(path)),
            "more than 1 MiB",
        ),
    ],
)
def test_a_file_of_holes_is_refused_by_its_size(
    tmp_path: Path, name: str, read_it: Callable[[Path], Any], match: str
) -> None:
    path = _of_holes(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, NnciftError), match=match):
            read_it(path)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_of_a_template_of_holes_nothing_is_known(tmp_path: Path) -> None:
    _of_holes(tmp_path / "chat_template.jinja")
    assert starters.has_generation_marks(str(tmp_path)) is None


def test_rows_of_a_run_are_as_many_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "subset.jsonl"
    path.write_bytes('{"a": "\u2028"}\n\n{"b": 1}\n'.encode())
    assert records.kept_lines(path, 2) == ['{"a": "\u2028"}', '{"b": 1}']
    for count, match in ((1, "more than 1 row"), (3, "2 rows of 3")):
        with pytest.raises(ValueError, match=match):
            records.kept_lines(path, count)


def test_files_are_read_whole_by_the_readers_with_a_bound_alone() -> None:
    source = Path(texts.__file__).parents[1]
    # The readers themselves, what the kernel says, and files of this package.
    own = {"core/texts.py", "core/memory.py", "storage/ledger.py", "runs/report/__init__.py", "runs/report/charts.py"}
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"\.read_text\(|\.read_bytes\(|json\.load\(", path.read_text(encoding="utf-8"))
    }
    assert found == {*own, "models/adapters.py"}, "use core.texts; adapters read what this process gives their own"


def test_row_of_more_text_than_any_example_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_TEXT", 10)
    path = tmp_path / "pool.jsonl"
    path.write_text('{"instruction": "12345", "output": "12345"}\n{"instruction": "12345", "output": "123456"}\n')

    found = read(path)

    assert len(found) == 1
    assert [(no.line, no.reason) for no in found.rejected] == [
        (2, "too long: its texts have 11 characters, at most 10")
    ]


def test_rest_of_a_line_that_is_too_long_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_rows, "MAX_BYTES", 1 << 20)
    path = tmp_path / "pool.csv"
    path.write_text(f"instruction,output\n{'x' * (1 << 20)}rest,answer\n")

    with pytest.raises(DataError, match="has more than 1 MiB"):
        read(path)


def test_tokenizer_is_given_little_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "AT_ONCE", 6)
    given: list[list[str]] = []

    def count(part: list[str]) -> list[int]:
        given.append(list(part))
        return [text.count("a") for text in part]

    assert texts.counted(["aa", "b", "aaab", "", "ababababab" + "bb"], count) == [2, 0, 3, 0, 6]
    assert given == [["aa", "b"], ["aaab", ""], ["ababab"]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes that have names")
def test_pipe_or_device_in_a_run_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "labels").mkdir()
    FinishedRun(tmp_path)
    os.mkfifo(tmp_path / "labels" / "rows.npy")
    with pytest.raises(DataError, match=r"rows\.npy' is not a regular file"):
        FinishedRun(tmp_path)
    (tmp_path / "labels" / "rows.npy").unlink()
    (tmp_path / "manifest.yaml").symlink_to(os.devnull)
    with pytest.raises(DataError, match=r"manifest\.yaml' is not a regular file"):
        FinishedRun(tmp_path)


@pytest.mark.parametrize(
    ("study", "analysis"),
    [
        ({}, {"over": {f"setting{at}": [1] * 10 for at in range(40)}}),
        (
            {},
            {
                "over": {
                    "labels": [f"{at}%" for at in range(10, 20)],
                    "objective": ["fl", "rr"],
                    "student": ["product"] * 200,
                }
            },
        ),
        ({"seeds": 10**9}, {}),
        ({}, {"seeds": 10**30}),
        ({}, {"budgets": [0.1] * 5000}),
    ],
)
def test_a_study_of_more_than_a_lifetime_is_refused_before_anything_runs(
    tmp_path: Path, study: dict[str, Any], analysis: dict[str, Any]
) -> None:
    file = tmp_path / "study.yaml"
    one = {"name": "one", "kind": "sweep", "pool": "p", "run": {"teacher": "length"}}
    plain = {"name": "s", "pools": {"p": {"files": ["x"]}}}
    file.write_text(yaml.safe_dump({**plain, "analyses": [one]}))
    grid.load(file, {})
    file.write_text(yaml.safe_dump({**plain, **study, "analyses": [{**one, **analysis}]}))
    with pytest.raises(UsageError, match=r"more than 10,000 runs|at most 1000 items"):
        grid.load(file, {})


def _views(length: int, shown: int, count: int) -> pa.Array:
    """Return views that all show the same text, and say that it is `shown` bytes long. Old pyarrow makes none from buffers."""
    view = np.zeros(count, [("length", "<i4"), ("begin", "S4"), ("buffer", "<i4"), ("offset", "<i4")])
    view["length"], view["begin"] = shown, b"xxxx"
    buffers = [None, pa.py_buffer(view.tobytes()), pa.py_buffer(b"x" * length)]
    try:
        return pa.Array.from_buffers(pa.string_view(), count, buffers)
    except ValueError:
        pytest.skip("this pyarrow makes no views from buffers")


def test_views_are_measured_and_not_made() -> None:
    views = _views(1 << 20, 1 << 20, 100_000)
    assert python_bytes(views) == 100_000 * (56 + (1 << 20))
    assert python_bytes(views.slice(7, 2)) == 2 * (56 + (1 << 20))
    plain = pa.array(["a", None, "b" * 40, ""], pa.string_view())
    assert python_bytes(plain) == python_bytes(pa.array(["a", "", "b" * 40, ""])) == 4 * 56 + 41
    with pytest.raises(ValueError, match="cut off"):
        python_bytes(_views(20, -1, 3))


@pytest.mark.parametrize("stream", [False, True])
def test_views_of_one_text_in_many_rows_are_refused(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"instruction": _views(1 << 16, 1 << 16, 10_000), "output": pa.array(["b"] * 10_000)})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(tmp_path / "pool.arrow", table.schema) as sink:
        sink.write_table(table)
    with pytest.raises(DataError, match="stands for more than 200 times its size"):
        read(tmp_path / "pool.arrow")


def _deltas(path: Path, texts: list[str], **more: Any) -> Path:
    table = pa.table({"instruction": texts, "output": ["b"] * len(texts)})
    pq.write_table(table, path, use_dictionary=False, column_encoding={"instruction": "DELTA_BYTE_ARRAY"}, **more)
    return path


def test_rows_that_are_written_as_differences_are_read(tmp_path: Path) -> None:
    texts = [f"{at * at} " * 100 for at in range(2000)]
    found = read(_deltas(tmp_path / "pool.parquet", texts))
    assert [row.prompt for row in found] == texts


@pytest.mark.parametrize("group", [50, 10_000])
def test_differences_that_stand_for_gigabytes_are_refused_before_rows_are_made(
    tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _deltas(tmp_path / "pool.parquet", ["y" * 200_000] * 2000, compression="zstd", row_group_size=group)
    monkeypatch.setattr("nncift.data.tables.batch_values", lambda *_: pytest.fail("rows were made"))
    with pytest.raises(DataError, match="stands for more than 200 times its size"):
        read(path)
    with pytest.raises(ValueError, match="DELTA_BYTE_ARRAY"):
        read_columns(path)


def test_values_that_repeat_in_many_small_groups_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(_repeated("x" * (1 << 18), 4000), tmp_path / "rows.parquet", row_group_size=100)
    # Nothing is unpacked but places: 4,000 texts would be a gigabyte.
    before = pa.total_allocated_bytes()
    peak = 0

    def measured(held: Any) -> int:
        nonlocal peak
        peak = max(peak, pa.total_allocated_bytes() - before)
        return python_bytes(held)

    monkeypatch.setattr("nncift.storage.parquet.python_bytes", measured)
    with pytest.raises(ValueError, match="stand for"):
        read_columns(tmp_path / "rows.parquet")
    assert 0 < peak < 1 << 26


def test_differences_in_lists_are_refused(tmp_path: Path) -> None:
    table = pa.table({"messages": [[{"role": "user", "content": "y" * 100_000}] * 3000]})
    encodings = {"messages.list.element.content": "DELTA_BYTE_ARRAY"}
    pq.write_table(
        table, tmp_path / "pool.parquet", use_dictionary=False, column_encoding=encodings, compression="zstd"
    )
    with pytest.raises(DataError, match=r"DELTA_BYTE_ARRAY|200 times|unpack to"):
        read(tmp_path / "pool.parquet")
