from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.data import read
from nncift.errors import DataError, UsageError
from nncift.labels import RowLabelStore
from nncift.pipeline import run
from nncift.runs.select_again import reselect
from nncift.selection.topk import BEST, best_subtask
from nncift.teachers.less import Less
from nncift.teachers.subtasks import names

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]
QUICK: dict[str, Any] = {
    "encoder": "hash",
    "labels": "60%",
    "budget": "30%",
    "objective": "topk",
    "test_items": 4,
    "validation_items": 4,
    "device": "cpu",
}
LESS: dict[str, Any] = {"projection": 64, "warmup_share": 0, "lora": False, "adam": "none"}


def targets(pool: Path, folder: Path, subtasks: list[Any]) -> Path:
    rows = [json.loads(line) for line in pool.read_text("utf-8").splitlines()]
    for row, name in zip(rows, subtasks, strict=True):
        row["skill"] = name
    path = folder / "targets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_best_subtask_is_the_maximum_of_means_over_what_is_there() -> None:
    values = np.array([[1, 0, np.nan], [3, np.nan, np.nan], [0, 5, np.nan]], np.float32)
    found = best_subtask(UtilityMatrix(("a", "b", "c"), ("x", "y", "z"), values), {"a": "one", "b": "one", "c": "two"})
    assert found.target_ids == BEST
    np.testing.assert_array_equal(found.values, [[2, 5, np.nan]])


@pytest.mark.parametrize("aggregate", ["cosine-of-mean", "mean-of-cosines"])
def test_a_run_selects_by_the_subtask_that_a_row_helps_most(
    llama_folder: Path, write_pool: Write, tmp_path: Path, aggregate: Any
) -> None:
    pool, wanted = write_pool(24), targets(write_pool(9, "wanted.jsonl", 40), tmp_path, ["b", "b", 7] * 3)
    less = Less(str(llama_folder), **LESS, subtask="skill", aggregate=aggregate)
    run(pool, target=wanted, teacher=less, out=tmp_path / "run", **{**QUICK, "labels": "100%"})
    columns = pq.read_table(tmp_path / "run" / "selection.parquet").to_pydict()
    found = {
        item: columns["would_add"][at] if columns["gain"][at] is None else columns["gain"][at]
        for at, item in enumerate(columns["id"])
    }
    score = dict(zip(columns["id"], columns["score"], strict=True))
    plain = Less(str(llama_folder), **LESS)
    sources, ours = read(pool), read(wanted)
    plain.prepare(sources)
    features = plain.measure(sources.ids).values
    renamed = read(wanted)
    plain.prepare(renamed)
    own = plain.measure(ours.ids).values
    groups = [str(row.row["skill"]) for row in ours]
    _, table_by_hand = plain._features.subtask_utility(own, features, [1.0], groups, aggregate)
    plan = RowLabelStore(tmp_path / "run" / "labels").plan
    assert plan is not None
    known = plan.measured
    expected = dict(zip(sources.ids, table_by_hand.max(axis=0).tolist(), strict=True))
    assert sum(item in known for item in sources.ids) >= 20
    # A row's score is its mean over all targets, three of the subtask "7" and six of "b".
    means = dict(zip(sources.ids, (table_by_hand * [[3 / 9], [6 / 9]]).sum(axis=0).tolist(), strict=True))
    for item in sources.ids:
        if item in known:
            # A run keeps features in half precision.
            assert found[item] == pytest.approx(expected[item], abs=3e-4)
            assert score[item] == pytest.approx(means[item], abs=3e-4)
    best = sorted(found, key=lambda item: -found[item])[:7]
    assert [
        row["id"] for row in map(json.loads, (tmp_path / "run" / "subset.jsonl").read_text("utf-8").splitlines())
    ] == best
    record = reselect(tmp_path / "run", {"budget": "4"}, tmp_path / "again").to_json()
    assert record["selected"] == 4
    again = (tmp_path / "again" / "subset.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in again] == best[:4]
    with pytest.raises(UsageError, match="and the objective is fl"):
        reselect(tmp_path / "run", {"objective": "fl"}, tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"objective": "fl"}, UsageError, "in turn \\(--objective rr\\)"),
        ({"target": None}, UsageError, "give --target"),
        ({"subtask": "kind"}, DataError, "'kind', which names its subtask"),
    ],
)
def test_subtasks_that_cannot_be_used_are_refused(
    llama_folder: Path, write_pool: Write, tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    wanted = targets(write_pool(6, "wanted.jsonl", 40), tmp_path, ["a", "b"] * 3)
    given = {"target": wanted, **QUICK, **{name: value for name, value in settings.items() if name != "subtask"}}
    less = Less(str(llama_folder), **LESS, subtask=settings.get("subtask", "skill"))
    with pytest.raises(error, match=words):
        run(write_pool(24), teacher=less, out=tmp_path / "run", **given)


def test_an_empty_name_is_refused_with_its_line(write_pool: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2"):
        names(read(targets(write_pool(3), tmp_path, ["a", " ", "b"])), "skill")
