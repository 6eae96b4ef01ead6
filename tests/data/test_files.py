"""Bytes to records and back: kinds of file, line separators, damaged files, writing."""

import base64
import gzip
import json
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data import Rejection, read, write_rejected, write_rows
from nncift.data.records import MAX_DEPTH, from_json, to_json
from nncift.errors import DataError, ResourceError

ROW = {"instruction": "Q", "output": "A"}
LINE = json.dumps(ROW)


def put(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", f"{LINE}\n{LINE}\n"),
        ("a.ndjson", f"{LINE}\n{LINE}"),
        ("a.JSONL", f"{LINE}\n\n  \n{LINE}\n"),
        ("a.jsonl.gz", gzip.compress(f"{LINE}\n{LINE}\n".encode(), mtime=0)),
        ("a.json", json.dumps([ROW, ROW], indent=2)),
        ("a.json", json.dumps({"version": 1, "data": [ROW, ROW]})),
        ("a.json", f"{LINE}\n{LINE}\n"),
        ("a.json.gz", gzip.compress(json.dumps([ROW, ROW]).encode(), mtime=0)),
    ],
)
def test_kinds_of_file(tmp_path: Path, name: str, data: str | bytes) -> None:
    found = read(put(tmp_path, name, data))
    assert [(item.prompt, item.response, item.source) for item in found] == [("Q", "A", "a")] * 2


def test_lone_object_with_turns_is_a_row_and_not_a_wrapper(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert read(put(tmp_path, "a.json", json.dumps({"messages": turns})))[0].response == "A"
    mapped = put(tmp_path, "b.json", json.dumps({"dialog": turns}))
    assert read(mapped, map={"messages": "dialog"})[0].response == "A"


def test_several_lists_in_a_document_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'train', 'test'"):
        read(put(tmp_path, "a.json", json.dumps({"train": [ROW], "test": [ROW]})))


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0b"
    line = json.dumps({"prompt": text.rstrip("\x0b"), "completion": "🙂\x00"}, ensure_ascii=False)
    (found,) = read(put(tmp_path, "a.jsonl", line + "\r\n"))
    assert (found.prompt, found.response, found.raw) == ("a\u2028b\u2029c\x85d", "🙂\x00", line)


def test_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, "a.jsonl", "\ufeff" + LINE))
    assert found.raw == LINE


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.jsonl", f"\n{LINE}\r\n\r\n{{\n{LINE}"))
    assert [item.line for item in found] == [2, 5]
    assert [item.line for item in found.rejected] == [4]


def test_row_of_a_hundred_thousand_characters(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, "a.jsonl", json.dumps({"prompt": "Q", "completion": "x" * 100_000})))
    assert len(found.response) == 100_000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "Q"', "broken JSON: Expecting ',' delimiter (character 15)"),
        (b'{"prompt": "\xff"}', "not valid UTF-8: byte 0xff at position 13"),
        (b"[1, 2]", "not an object: the row is a list"),
        (b"7", "not an object: the row is a number (7)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number too long: an integer has more digits than Python reads"),
        (b"[" * 100_000, "nested too deeply: more than 100 levels"),
        (b'{"a":' * 100_000, "nested too deeply: more than 100 levels"),
    ],
)
def test_lines_that_are_no_rows(line: bytes, reason: str) -> None:
    record = from_json(3, line)
    assert (record.line, record.row, record.reason) == (3, None, reason)


@pytest.mark.parametrize(("depth", "usable"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_depth_is_bounded_alike_everywhere(depth: int, usable: bool) -> None:
    inner = depth - 1
    record = from_json(1, b'{"a":' + b"[" * inner + b"]" * inner + b"}")
    assert (record.row is not None) == usable


def test_parquet_values_become_json(tmp_path: Path) -> None:
    row = {**ROW, "day": date(2024, 2, 3), "blob": b"\x00\xff", "price": Decimal("1.50"), "score": float("nan")}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    (found,) = read(path)
    blob = base64.b64encode(b"\x00\xff").decode()
    assert found.row == {**ROW, "day": "2024-02-03", "blob": blob, "price": "1.50", "score": None}


def test_parquet_of_chats_over_several_batches(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"conversations": turns}] * 2500), path, row_group_size=700)
    found = read(path)
    assert [item.line for item in found] == list(range(1, 2501))
    assert {item.response for item in found} == {"A"}


def test_parquet_row_with_bad_utf8_costs_only_itself(tmp_path: Path) -> None:
    prompts = pa.array([b"Q", b"\xff", b"R"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, prompts.buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": bad, "completion": ["A", "B", "C"]}), path)
    found = read(path)
    assert [item.response for item in found] == ["A", "C"]
    assert [(item.line, item.kind) for item in found.rejected] == [(2, "not readable")]


def test_json_text_of_numpy_values() -> None:
    value = {"a": np.arange(2), "b": np.float32(0.5), "c": np.float64("inf")}
    assert json.loads(to_json(value)) == {"a": [0, 1], "b": 0.5, "c": None}


def test_json_text_of_a_lone_surrogate_can_be_written() -> None:
    text = to_json({"note": "\ud83d", "é": 1})
    assert json.loads(text.encode("utf-8")) == {"note": "\ud83d", "é": 1}


def test_parquet_row_with_an_impossible_date_costs_only_itself(tmp_path: Path) -> None:
    days = pa.array([0, 2**60, None], pa.timestamp("us"))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["Q"] * 3, "completion": ["A", "B", "C"], "day": days}), path)
    found = read(path)
    assert [item.response for item in found] == ["A", "C"]
    assert found[0].row["day"] == "1970-01-01T00:00:00"


def test_parquet_with_a_damaged_column_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{"role": "user", "content": "Q"}]}]), path)
    with pytest.raises(DataError, match="as Parquet"):
        read(put(tmp_path, "b.parquet", path.read_bytes().replace(b"content", b"con\xffent")))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"  ", "has no rows"),
        ("a.json", b'[{"a": 1}', "broken JSON"),
        ("a.json", b'["\xff"]', "not valid UTF-8"),
        ("a.json", b"3", "holds a number"),
        ("a.txt", b"a,b", "unknown suffix"),
        ("a.jsonl.gz", b"no gzip", "cannot read"),
        ("a.jsonl.gz", gzip.compress(LINE.encode() * 500, mtime=0)[:60], "cannot read"),
        ("a.parquet", b"PAR1 no more", "as Parquet"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n[]', "none of the 3 rows .*: 2 x no known format: .*; 1 x not an object"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read(put(tmp_path, name, data))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read("a\x00b.jsonl")


def test_one_unusable_input_is_an_error_beside_a_usable_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.jsonl"):
        read(put(tmp_path, "a.jsonl", LINE), put(tmp_path, "b.jsonl", b"{}"))


@given(lines=st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["", " ", "\t"])), min_size=1, max_size=5))
def test_rows_come_back_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    texts = [f'{pad}{{"prompt":"Q" , "completion": "A", "note": {json.dumps(note)}}}{pad}' for note, pad in lines]
    source = put(folder, "a.jsonl", "".join(text + "\n" for text in texts))
    write_rows(folder / "b.jsonl", read(source))
    assert (folder / "b.jsonl").read_bytes() == source.read_bytes()


@given(data=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"]))
def test_arbitrary_bytes_end_in_our_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    with pytest.raises(DataError):
        read(put(tmp_path_factory.mktemp("noise"), name, data))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)
_COLUMNS = st.sampled_from(
    ["messages", "conversations", "instruction", "input", "output", "prompt", "completion", "id"]
)


@given(row=st.dictionaries(_COLUMNS, _JSON, max_size=6), name=st.sampled_from(["a.jsonl", "a.json"]))
def test_any_row_is_used_or_rejected_with_one_short_line(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], name: str
) -> None:
    lines = "\n".join([LINE, json.dumps(row)])
    found = read(put(tmp_path_factory.mktemp("any"), name, lines))
    assert len(found) + len(found.rejected) == 2
    for item in found.rejected:
        assert len(item.reason) <= 300
        assert len(item.reason.splitlines()) == 1


def test_rejected_are_json_lines(tmp_path: Path) -> None:
    write_rejected(tmp_path / "r.jsonl", [Rejection("é", 3, "why: 'x'")])
    assert (tmp_path / "r.jsonl").read_bytes() == '{"source": "é", "line": 3, "reason": "why: \'x\'"}\n'.encode()


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = put(tmp_path, "r.jsonl", "old")
    with pytest.raises(UnicodeEncodeError):
        write_rejected(path, [Rejection("a", 1, "x"), Rejection("\ud800", 2, "x")])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_hub_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match="pip install datasets"):
        read("hub:org/name")


def fake_hub(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[tuple[str, str | None]]:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, split: str | None) -> Any:
        asked.append((name, split))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


class FakeTable:
    """The two calls of a data set that reading needs."""

    def with_format(self, kind: str) -> "FakeTable":
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int) -> Any:
        return iter([pa.Table.from_pylist([ROW])])


def test_hub_split_may_be_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_hub(monkeypatch, FakeTable())
    (found,) = read("hub:org/name:train[:10]")
    assert asked == [("org/name", "train[:10]")]
    assert (found.source, found.response) == ("org/name:train[:10]", "A")


def test_hub_takes_train_of_several_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, {"test": None, "train": FakeTable()})
    assert read("hub:org/name")[0].source == "org/name"
    fake_hub(monkeypatch, {"one": None, "two": None})
    with pytest.raises(DataError, match="its splits: one, two"):
        read("hub:org/name")


def test_hub_failure_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ConnectionError("no\nnetwork"))
    with pytest.raises(DataError, match=r"ConnectionError: 'no.*network'"):
        read("hub:org/name")


def test_hub_reads_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "plain").mkdir()
    put(tmp_path / "plain", "train.jsonl", f"{LINE}\n{LINE}\n")
    assert [item.source for item in read(f"hub:{tmp_path / 'plain'}")] == ["plain"] * 2
    datasets.Dataset.from_list([ROW]).save_to_disk(tmp_path / "saved")
    assert read(f"hub:{tmp_path / 'saved'}")[0].response == "A"
