"""Columns of rows for quotas: the file, a row's own column, and what could mean both."""

import json
from pathlib import Path
from typing import Any

import pytest

from nncift.data import read
from nncift.data.pool import PoolTable
from nncift.errors import UsageError


def rows_of(folder: Path, **files: list[dict[str, Any]]) -> PoolTable:
    for name, rows in files.items():
        lines = [json.dumps({"prompt": f"{name} {k}", "completion": "A", **row}) for k, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return PoolTable.of(read(*(folder / f"{name}.jsonl" for name in files)))


def test_source_is_the_file_unless_rows_of_one_file_have_their_own(tmp_path: Path) -> None:
    assert set(rows_of(tmp_path, a=[{}], b=[{}]).texts("source").values()) == {"a", "b"}
    assert [*rows_of(tmp_path, a=[{"source": "x"}, {"source": "y"}]).texts("source").values()] == ["x", "y"]
    assert [*rows_of(tmp_path, a=[{"source": "x"}, {}]).texts("source").values()] == ["a", "a"]
    assert [*rows_of(tmp_path, a=[{}, {"source": "x"}]).texts("source").values()] == ["a", "a"]


def test_where_source_could_mean_both_it_is_refused_and_both_have_a_name(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, a=[{"source": "x"}], b=[{"source": "y"}])
    with pytest.raises(UsageError, match=r"write `file` for the file, or `row.source` for the column"):
        rows.texts("source")
    assert [*rows.texts("file").values()] == ["a", "b"]
    assert [*rows.texts("row.source").values()] == ["x", "y"]


def test_fields_of_objects_are_columns_too(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, a=[{"meta": {"task": "x"}}, {"meta": {"task": 3}}])
    assert [*rows.texts("meta.task").values()] == ["x", "3"]
    with pytest.raises(UsageError, match="1 of 2 rows lack it"):
        rows_of(tmp_path, a=[{"meta": {"task": "x"}}, {}]).texts("meta.task")
