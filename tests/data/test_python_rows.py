"""Rows that Python holds: every holder gives what the file gives, and bad ones are named."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nncift.data import read, rows_from
from nncift.errors import DataError, UsageError

ROWS = [{"id": k, "prompt": f"Q{k}", "completion": "A", "note": None if k else "n"} for k in range(4)]


def pandas() -> Any:
    return pytest.importorskip("pandas")


def datasets() -> Any:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed")
    import datasets as found

    return found


HOLDERS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: (row for row in ROWS),
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "frame": lambda: pandas().DataFrame(ROWS),
    "frame with an index": lambda: pandas().DataFrame(
        ROWS, index=pandas().MultiIndex.from_product([["a", "b"], [0, 1]])
    ),
    "data set": lambda: datasets().Dataset.from_list(ROWS),
    "shards": lambda: datasets().concatenate_datasets(
        [datasets().Dataset.from_list(part) for part in (ROWS[:1], ROWS[1:])]
    ),
    "splits": lambda: datasets().DatasetDict(
        train=datasets().Dataset.from_list(ROWS), test=datasets().Dataset.from_list(ROWS[:1])
    ),
    "stream": lambda: datasets().Dataset.from_list(ROWS).to_iterable_dataset(num_shards=2),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_holder_gives_the_rows_of_the_file(tmp_path: Path, holder: str) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    found, expected = rows_from(HOLDERS[holder]()), read(tmp_path / "rows.jsonl")
    assert (found.ids, [row.row for row in found]) == (expected.ids, ROWS)
    assert [(row.source, row.line) for row in found] == [(row.source, row.line) for row in expected]


def test_paths_and_examples(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    expected = read(tmp_path / "a.jsonl")
    for paths in (tmp_path / "a.jsonl", str(tmp_path / "a.jsonl"), [tmp_path / "a.jsonl"]):
        assert rows_from(paths).ids == expected.ids
    assert rows_from(expected) is expected


def test_missing_values_categories_and_times_of_a_frame() -> None:
    pd = pandas()
    frame = pd.DataFrame(
        {
            "prompt": ["Q", "R"],
            "input": [float("nan"), 1.0],
            "completion": pd.Categorical(["A", "B"]),
            "when": [pd.Timestamp("2024-02-03"), pd.NaT],
            "n": pd.array([1, None], "Int64"),
            "id": [1.0, 2.0],
        }
    )
    found = rows_from(frame)
    assert found.ids == ("1", "2")
    assert found[0].row == {
        "prompt": "Q",
        "input": None,
        "completion": "A",
        "when": "2024-02-03T00:00:00",
        "n": 1,
        "id": 1.0,
    }
    assert found[1].row == {"prompt": "R", "input": 1.0, "completion": "B", "when": None, "n": None, "id": 2.0}


def test_columns_of_a_frame_need_names() -> None:
    pd = pandas()
    several = pd.DataFrame([["Q", "A"]], columns=pd.MultiIndex.from_tuples([("a", "prompt"), ("a", "completion")]))
    with pytest.raises(UsageError, match=r"has the column \('a', 'prompt'\), expected texts as names"):
        rows_from(several)
    with pytest.raises(UsageError, match="the column 'prompt' twice"):
        rows_from(pd.DataFrame([["Q", "A"]], columns=["prompt", "prompt"]))


def test_an_image_column_keeps_its_paths_and_bytes(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    images = [[{"bytes": None, "path": "a.png"}]] * 2
    turns = [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}]
    kit = datasets()
    features = kit.Features(
        {"messages": [{"role": kit.Value("string"), "content": kit.Value("string")}], "images": [kit.Image()]}
    )
    table = kit.Dataset.from_dict({"messages": [turns] * 2, "images": images}, features=features)
    assert [row.row["images"] for row in rows_from(table)] == images


def test_an_iterable_that_ends_in_an_error_is_named() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise ConnectionError("gone")

    with pytest.raises(DataError, match="the rows end after 1 with ConnectionError: 'gone'"):
        rows_from(rows())


@pytest.mark.parametrize("rows", [None, 3, b"rows", object(), {"prompt": "Q"}, {"a": [1], "b": [1, 2]}, ROWS[0]])
def test_what_holds_no_rows_is_refused(rows: Any) -> None:
    with pytest.raises(UsageError, match="expected paths, a list of dicts"):
        rows_from(rows)


@pytest.mark.parametrize("rows", [[], [1, 2], [{("a",): 1}], [{1: "a"}], iter(())])
def test_rows_that_cannot_be_used(rows: Any) -> None:
    with pytest.raises(DataError, match=r"no rows|none of the"):
        rows_from(rows)


def test_settings_are_those_of_files() -> None:
    rows = [{"question": f"Q{k}", "answer": "A"} for k in range(9)]
    columns = {"prompt": "question", "completion": "answer"}
    assert len(rows_from(rows, map=columns, limit=3)) == 3
    with pytest.raises(DataError, match="rows, line 1"):
        rows_from(rows, strict=True)


def test_ids_1_and_text_1_are_one_id() -> None:
    rows = [{**ROWS[0], "id": 1}, {**ROWS[1], "id": "1"}, {**ROWS[2], "id": 2}]
    found = rows_from(rows)
    assert found.ids[2] == "2"
    assert any("Ids that several rows share in 2 rows (first: '1')" in note for note in found.notes)
    assert len(set(found.ids)) == 3


def test_named_levels_of_an_index_are_columns() -> None:
    pd = pandas()
    frame = pd.DataFrame({"prompt": ["p", "q"], "completion": ["a", "b"], "id": ["x", "y"], "part": [1, 2]})
    assert rows_from(frame.set_index("id")).ids == ("x", "y")
    found = rows_from(frame.set_index(["part", "id"]))
    assert [(row.id, row.row["part"]) for row in found] == [("x", 1), ("y", 2)]
    # An index without a name, or of a column that is there, counts rows.
    assert rows_from(frame.set_index("id", drop=False)).ids == ("x", "y")
    assert "index" not in rows_from(frame.iloc[::-1])[0].row


@pytest.mark.parametrize("digits", [400, 5000])
def test_whole_numbers_of_any_length_are_text_or_of_the_wrong_type(digits: int) -> None:
    found = rows_from([{"prompt": 10**digits, "completion": "a"}, {"prompt": "b", "completion": "c"}], strict=False)
    if digits < 4300:
        assert found[0].prompt == "1" + "0" * digits
    else:
        assert len(found) == len(found.rejected) == 1
