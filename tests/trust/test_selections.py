"""Tables of rows and of selections that somebody else has written."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift.data.pool import PoolTable
from nncift.errors import DataError
from nncift.labels.plan import RowPlan
from nncift.runs.finished import FinishedRun
from nncift.storage.selection_folder import read_selection


def _selection(**changed: Any) -> pa.Table:
    """Return a table of three rows, two of them selected."""
    columns = {"id": ["a", "b", "c"], "source": ["x"] * 3, "rank": [2, None, 1], "selected": [True, False, True]}
    return pa.table({**columns, "score": [0.5, None, 1.0], "reason": [""] * 3, **changed})


def test_a_selection_is_read_as_it_was_written(tmp_path: Path) -> None:
    pq.write_table(_selection(), tmp_path / "selection.parquet")
    found = read_selection(tmp_path, ("score",))
    assert found.column_names == ["id", "source", "rank", "selected", "score"]
    assert found["rank"].to_pylist() == [2, None, 1]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"id": ["a", "b", "a"]}, "names a row twice"),
        ({"id": [1, 2, 3]}, "'id' holds int64, expected string"),
        ({"id": ["a", None, "c"]}, "has no id"),
        ({"selected": [True, None, True]}, "neither selected nor left"),
        ({"rank": [2, None, 2]}, "ranks of the 2 selected rows are not 1 to 2"),
        ({"rank": [3, None, 1]}, "not 1 to 2"),
        ({"rank": [None, None, 1]}, "not 1 to 2"),
        ({"rank": ["2", None, "1"]}, "'rank' holds string"),
        ({"score": [0.5, math.inf, 1.0]}, "not finite"),
        ({"score": [0.5, 1e308, 1.0]}, "far too large"),
        ({"reason": ["", None, ""]}, "no reason"),
        ({"score": [math.nan, 0.5, 1.0]}, "not finite"),
    ],
)
def test_a_selection_that_no_run_leaves_is_damaged(tmp_path: Path, changed: dict[str, Any], match: str) -> None:
    pq.write_table(_selection(**changed), tmp_path / "selection.parquet")
    with pytest.raises(DataError, match=match):
        read_selection(tmp_path, ("score", "reason"))


def test_a_selection_that_lacks_a_column_is_damaged(tmp_path: Path) -> None:
    pq.write_table(_selection().drop_columns(["rank"]), tmp_path / "selection.parquet")
    with pytest.raises(DataError, match="rank"):
        read_selection(tmp_path, ("score",))


def _rows(**changed: Any) -> pa.Table:
    """Return the table of a pool of two rows and a target set of one."""
    columns = {"axis": ["source", "source", "target"], "id": ["a", "b", "a"], "source": ["x"] * 3, "content": ["h"] * 3}
    numbers = {name: [1] * 3 for name in ("line", "tokens", "prompt_chars", "response_chars")}
    raw = ['{"prompt": "p", "response": "r"}'] * 3
    return pa.table({**columns, **numbers, "turns": pa.array([2] * 3, pa.int32()), "raw": raw, **changed})


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    pq.write_table(_rows(), tmp_path / "rows.parquet")
    found = PoolTable.open(tmp_path)
    assert (found.ids, found.target_ids) == (("a", "b"), ("a",))
    assert found.example("b").prompt == "p"


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"id": ["a", "a", "a"]}, "the id of another"),
        ({"id": ["a", None, "a"]}, "or no id"),
        ({"id": [1, 2, 3]}, "'id' holds int64"),
        ({"source": ["x", None, "x"]}, "or no id, source"),
        ({"axis": ["source", "target", "source"]}, "targets stand among"),
        ({"turns": pa.nulls(3, pa.int32())}, "or no id, source, content, turns"),
        ({"response_chars": [1.5, 2.5, 3.5]}, "'response_chars' holds double"),
        ({"raw": [b"{}"] * 3}, "'raw' holds binary"),
    ],
)
def test_rows_that_no_run_keeps_are_damaged(tmp_path: Path, changed: dict[str, Any], match: str) -> None:
    pq.write_table(_rows(**changed), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=match):
        PoolTable.open(tmp_path)


def test_a_row_whose_text_is_missing_is_damaged(tmp_path: Path) -> None:
    pq.write_table(_rows(raw=['{"prompt": "p", "response": "r"}', None, None]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="a row that the run kept is damaged"):
        PoolTable.open(tmp_path).example("b")


def test_rows_and_selection_of_two_pools_are_damage(tmp_path: Path) -> None:
    for name, table in {"rows": _rows(), "selection": _selection()}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    for name in ("summary.json", "manifest.yaml"):
        (tmp_path / name).write_text("{}")
    run = FinishedRun(tmp_path)
    run.__dict__["rows"] = PoolTable.open(tmp_path)
    with pytest.raises(DataError, match="'c' is in one of them"):
        run.check_same_rows()


@pytest.mark.parametrize("changed", [{"id": [["a"], ["b"]]}, {"id": [1, 2]}, {"chunk": [0.5, 1.5]}])
def test_planned_rows_are_texts_in_chunks(changed: dict[str, list[Any]]) -> None:
    head = {"target_ids": ["a", "b"], "source_ids": ["a", "b"], "shared": True, "roles": {}}
    head |= {"train_targets": ["a"], "train_sources": ["a"]}
    table = {"id": np.array(["a", "b"], object), "chunk": np.array([0, 1])}
    assert RowPlan.of(head, [table]).order == ["a", "b"]
    objects = np.empty(2, object)
    objects[:] = next(iter(changed.values()))
    with pytest.raises(ValueError, match="no texts"):
        RowPlan.of(head, [{**table, next(iter(changed)): objects}])
