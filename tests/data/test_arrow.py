"""Parquet and Arrow: what a column means rather than what holds it, and the folders that `save_to_disk` writes."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift.data import read, rows_from
from nncift.data.tables import batch_values
from nncift.errors import DataError

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
ROW = {"prompt": "Q", "completion": "A"}


def values(array: Any, name: str = "c", **known: Any) -> list[Any]:
    table = pa.table({name: array})
    return [row[name] for row in batch_values(table, **known)]


def json_type() -> Any:
    if not hasattr(pa, "json_"):
        pytest.skip("this pyarrow has no JSON type")
    return pa.json_()


def as_json(items: list[Any]) -> Any:
    storage = pa.array([None if item is None else json.dumps(item) for item in items], pa.string())
    return pa.ExtensionArray.from_storage(json_type(), storage)


MIXED = [{"a": [1, "x"]}, "text", 3, None, [1.5, None], True]


def test_json_columns_are_decoded_at_every_depth() -> None:
    inner = as_json(MIXED)
    assert values(inner) == MIXED
    offsets = pa.array([0, 2, 6], pa.int32())
    assert values(pa.ListArray.from_arrays(offsets, inner)) == [MIXED[:2], MIXED[2:]]
    assert values(pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), inner)) == [MIXED[:2], MIXED[2:]]
    struct = pa.StructArray.from_arrays([inner, pa.array(range(6))], ["j", "n"])
    assert values(struct) == [{"j": item, "n": k} for k, item in enumerate(MIXED)]
    assert values(pa.ListArray.from_arrays(offsets, struct))[0] == [{"j": MIXED[0], "n": 0}, {"j": "text", "n": 1}]
    assert values(pa.FixedSizeListArray.from_arrays(inner, 3)) == [MIXED[:3], MIXED[3:]]


def test_a_type_that_arrow_does_not_know_is_told_by_its_name() -> None:
    field = pa.field("c", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})
    table = pa.table([pa.array(['{"a": 1}', None])], schema=pa.schema([field]))
    assert [row["c"] for row in batch_values(table)] == [{"a": 1}, None]


def test_a_json_value_that_is_none_costs_its_row_alone() -> None:
    storage = pa.array(['"A"', "{", '"B"'])
    rows = list(batch_values(pa.table({"c": pa.ExtensionArray.from_storage(json_type(), storage)})))
    assert (rows[0], rows[2]) == ({"c": "A"}, {"c": "B"})
    assert isinstance(rows[1], ValueError)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ],
)
def test_text_of_every_type_is_text(tmp_path: Path, kind: Any) -> None:
    try:
        table = pa.table({name: pa.array([text]).cast(kind) for name, text in ROW.items()})
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow casts no text to views, and writes none")
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet")
    assert found.row == ROW


def test_bytes_in_turns_are_text_and_bytes_of_an_image_are_not(tmp_path: Path) -> None:
    turns = [{key: text.encode() for key, text in turn.items()} for turn in TURNS]
    image = {"bytes": b"abc", "path": None}
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "images": [image]}]), tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet")
    assert found.row == {"messages": TURNS, "images": [{"bytes": "YWJj", "path": None}]}


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [b"Q", b"\xff"], "completion": ["A", "B"]}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [row.response for row in found] == ["A"]
    assert [(no.line, no.kind) for no in found.rejected] == [(2, "not readable")]


def test_maps_are_objects() -> None:
    kind = pa.map_(pa.string(), pa.int64())
    assert values(pa.array([[("a", 1), ("b", 2)], None], kind)) == [{"a": 1, "b": 2}, None]
    # Two values under one name would be one.
    assert values(pa.array([[("a", 1), ("a", 2)]], kind)) == [[("a", 1), ("a", 2)]]
    assert values(pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64()))) == [[(1, 2)]]


def test_a_json_column_gives_the_rows_of_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": content}, TURNS[1]]}
        for content in ("Q", [{"type": "text", "text": "Q"}])
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    contents = as_json([turn["content"] for row in rows for turn in row["messages"]])
    roles = pa.array([turn["role"] for row in rows for turn in row["messages"]])
    turns = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()), pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    )
    pq.write_table(pa.table({"messages": turns}), tmp_path / "a.parquet")
    assert [row.raw for row in read(tmp_path / "a.parquet")] == [row.raw for row in read(tmp_path / "a.jsonl")]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["Q"]), pa.array(["A"]), pa.array(["B"])]
    table = pa.Table.from_arrays(columns, ["prompt", "completion", "completion"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column 'completion' twice"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column 'completion' twice"):
        rows_from(table)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a"])
def test_arrow_files_and_streams(tmp_path: Path, stream: bool, name: str) -> None:
    table = pa.Table.from_pylist([{**ROW, "id": k} for k in range(3000)])
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(tmp_path / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=2000)
    found = read(tmp_path / name)
    assert found.ids == tuple(map(str, range(3000)))
    assert [row.line for row in found] == [*range(1, 3001)]


def test_a_damaged_arrow_file_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**ROW, "id": k} for k in range(300)])
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cannot read .* as Arrow"):
        read(tmp_path / "a.arrow")


def test_an_arrow_bomb_is_refused(tmp_path: Path) -> None:
    table = pa.table({"prompt": pa.nulls(2_000_000), "completion": pa.nulls(2_000_000)})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="2,000,000 rows in"):
        read(tmp_path / "a.arrow")


def save(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> None:
    """Write what `save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    for k, name in enumerate(names):
        table = pa.Table.from_pylist(rows[k::shards])
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    rows = [{**ROW, "id": k} for k in range(4)]
    save(tmp_path / "one", rows, shards=2)
    found = read(tmp_path / "one")
    assert (found.ids, found[0].source) == (("0", "2", "1", "3"), "one")
    for split in ("train", "test"):
        save(tmp_path / "several" / split, rows[: 3 if split == "train" else 1])
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(read(tmp_path / "several")) == 3
    assert len(read(tmp_path / "several" / "test")) == 1
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(DataError, match=r"holds the splits 'dev', 'test'; name one: .*/several/dev"):
        read(tmp_path / "several")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}'),
        ("state.json", "{"),
        ("state.json", '{"_data_files": [1]}'),
        ("state.json", '{"_data_files": [{"filename": "none.arrow"}]}'),
        ("dataset_dict.json", '{"splits": ["../one"]}'),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str, text: str) -> None:
    save(tmp_path / "one", [ROW])
    (tmp_path / "one" / name).write_text(text)
    if name == "dataset_dict.json":
        (tmp_path / "one" / "state.json").unlink()
    with pytest.raises(DataError):
        read(tmp_path / "one")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed")
def test_what_datasets_saves_is_read_without_it(tmp_path: Path) -> None:
    import datasets

    rows = [{"messages": TURNS, "id": k} for k in range(5)]
    table = datasets.Dataset.from_list(rows).select([3, 1])
    table.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert [row.row for row in read(tmp_path / "saved")] == [rows[3], rows[1]]
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "dict"))
    assert [row.row for row in read(tmp_path / "dict")] == [rows[3], rows[1]]
    assert [row.raw for row in read(f"hub:{tmp_path / 'saved'}")] == [row.raw for row in read(tmp_path / "saved")]
