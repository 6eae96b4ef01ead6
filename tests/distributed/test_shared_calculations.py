"""What is calculated from the labels, shared out among shards: the bytes of one process, whatever happens to a shard."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift.core import parallel as calculation
from nncift.core.parallel import Calculation, Task, TaskGroup
from nncift.distributed.content import content_of
from nncift.distributed.local import LocalExecutor
from nncift.distributed.piece_cache import PieceCache
from nncift.student.score import Sides, _whole

from .conftest import content

Start = Callable[..., Any]
GRAPH: dict[str, Any] = {"neighbours": 8, "student": "paper"}
CASES: dict[str, dict[str, Any]] = {"matrix": {}, "graph": GRAPH}
MORE: dict[str, dict[str, Any]] = {
    "active, graph": {"plan": "active", "neighbours": 8},
    "auto": {"labels": "auto", "max_labels": "30%", **GRAPH},
    "aimed": {"objective": "flmi"},
    "probe": {"features": "probe", "neighbours": 8},
    "a score": {"teacher": "loss", "labels": "30%", "objective": "topk"},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many tasks, all worth sharing."""
    monkeypatch.setattr("nncift.models.embedding_cache.BLOCK", 7)
    monkeypatch.setattr("nncift.labels.row_labels.CHUNK_ROWS", 3)
    monkeypatch.setattr(calculation, "WORTH", 0.0)
    monkeypatch.setattr(calculation, "BYTES_A_SECOND", float("inf"))
    monkeypatch.setattr("nncift.student.score.SIDE", 8)
    monkeypatch.setattr("nncift.selection.graphs._PAIRS", 32)


_ALONE: dict[str, dict[str, Any]] = {}


@pytest.fixture
def alone(start: Start, tmp_path: Path) -> dict[str, Any]:
    """Return the content of the run on a graph that one process makes, made once."""
    if "graph" not in _ALONE:
        start("alone", **GRAPH)
        _ALONE["graph"] = content(tmp_path / "alone")
    return _ALONE["graph"]


class Counting(LocalExecutor):
    """Counts the parts of calculations that are left for the run that joins."""

    def __init__(self) -> None:
        super().__init__()
        self.did: Counter[str] = Counter()

    def map(self, worker: Any, group: TaskGroup, tasks: Sequence[Task], keep: Any) -> None:
        """Count, and do."""
        if group.calculation is not None and tasks:
            self.did[group.what] += len(tasks)
        super().map(worker, group, tasks, keep)


def joined(start: Start, out: str, **more: Any) -> tuple[Counter[str], Any]:
    """Run without a shard; return the parts that it had to calculate, and the run."""
    counting = Counting()
    done = start(out, executor=counting, **more)
    return counting.did, done


def all_shards(start: Start, out: str, count: int = 2, **more: Any) -> list[dict[str, Any]]:
    """Run every shard, again and again, until none has anything left; return what the last round told."""
    for _ in range(20):
        details = [start(out, f"{number}/{count}", **more) for number in range(1, count + 1)]
        if all(one["finished"] for one in details):
            return details
    raise AssertionError(details)


@pytest.mark.parametrize("case", CASES)
def test_the_run_that_joins_calculates_nothing_that_shards_did(case: str, start: Start, tmp_path: Path) -> None:
    start("alone", **CASES[case])
    details = all_shards(start, "joined", **CASES[case])
    assert all(one["stages"]["score"]["pieces"] + one["stages"]["score"]["before"] > 0 for one in details)
    left, done = joined(start, "joined", **CASES[case])
    # Comparing 40 rows is one part, so that what only one shard has is found, too.
    assert not left
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    for name in ("selection.parquet", "fidelity.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert done.ledger["stages"]["score"]["seconds"] > 0
    assert not [note for note in done.warnings if "piece" in note]
    assert not (tmp_path / "joined/pieces").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_in_rounds_and_for_every_kind_of_selection(
    case: str, start: Start, write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    more = dict(MORE[case])
    if case == "aimed":
        more["target"] = str(write_pool(24, "target.jsonl", start=60))
    start("alone", **more)
    all_shards(start, "joined", 3, **more)
    left, done = joined(start, "joined", **more)
    assert not left
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    assert not [note for note in done.warnings if "piece" in note]


def test_what_shards_have_not_done_is_done_by_the_run_that_joins(
    start: Start, alone: dict[str, Any], tmp_path: Path
) -> None:
    details = [start("joined", f"{number}/2", **GRAPH) for number in (1, 2)]
    # The last that labels goes on, up to what it lacks of the first calculation that is read.
    assert [sorted(one["stages"]) for one in details] == [["embed", "label"], ["embed", "label", "score"]]
    assert details[1]["left"].keys() == {"score"}
    assert all("run every shard again" in one["next"] and not one["finished"] for one in details)
    left, _ = joined(start, "joined", **GRAPH)
    assert left["predicting mean utilities"] + left["comparing all rows"] > 0
    assert content(tmp_path / "joined") == alone


def test_a_damaged_part_is_named_and_calculated_again(start: Start, alone: dict[str, Any], tmp_path: Path) -> None:
    all_shards(start, "joined", **GRAPH)
    files = sorted((tmp_path / "joined/pieces").glob("score-*/1-of-2-*"), key=lambda file: file.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[-1] ^= 4
    files[-1].write_bytes(data)
    left, done = joined(start, "joined", **GRAPH)
    assert len(left) == 1
    assert [note for note in done.warnings if str(files[-1]) in note and "does not match its checksum" in note]
    assert content(tmp_path / "joined") == alone


def test_a_shard_makes_good_what_is_damaged_of_another(start: Start, alone: dict[str, Any], tmp_path: Path) -> None:
    """Labels of a shard that is not there any more, which this one needs whole."""
    for number in (1, 2):
        start("joined", f"{number}/2", **GRAPH)
    (file,) = (tmp_path / "joined/pieces").glob("label-*/2-of-2-*")
    data = bytearray(file.read_bytes())
    # The first number behind the header, whose length stands in front.
    data[8 + int.from_bytes(data[:8], "little")] ^= 4
    file.write_bytes(data)
    details = start("joined", "1/2", **GRAPH)
    assert details["stages"]["label"]["pieces"] > 0
    assert details["stages"]["score"]["pieces"] > 0
    assert [note for note in details["warnings"] if str(file) in note]
    joined(start, "joined", **GRAPH)
    found = content(tmp_path / "joined")
    assert found == alone


def test_parts_of_other_labels_are_not_used_and_are_named(start: Start, tmp_path: Path) -> None:
    start("alone", **{**GRAPH, "labels": "60%"})
    all_shards(start, "joined", **GRAPH)
    # As if it went on with more labels at once, and then once more by shards.
    left, done = joined(start, "joined", **{**GRAPH, "labels": "60%"})
    assert left["predicting neighbours"] > 2
    assert [note for note in done.warnings if "score-" in note and "other labels" in note]
    assert content(tmp_path / "joined")["selection"] == content(tmp_path / "alone")["selection"]
    assert list((tmp_path / "joined/pieces").glob("score-*"))


def test_parts_for_another_selection_are_named_and_removed(start: Start, tmp_path: Path) -> None:
    start("alone", **{**GRAPH, "neighbours": 6})
    all_shards(start, "joined", **GRAPH)
    left, done = joined(start, "joined", **{**GRAPH, "neighbours": 6})
    assert left["predicting neighbours"] > 2
    assert [note for note in done.warnings if "score-" in note and "other settings of the selection" in note]
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    assert not (tmp_path / "joined/pieces").exists()


def test_a_shard_that_is_stopped_while_it_calculates_goes_on(
    start: Start, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        start("joined", f"{number}/2", **GRAPH)
    score, came = calculation.timed, list[Any]()

    def stopping(worker: Any, group: TaskGroup, task: Task) -> Any:
        if group.calculation is not None and len(came) == 1:
            raise KeyboardInterrupt
        came.append(group.calculation)
        return score(worker, group, task)

    with monkeypatch.context() as patch:
        patch.setattr("nncift.distributed.shards.timed", stopping)
        with pytest.raises(KeyboardInterrupt):
            start("joined", "1/2", **GRAPH)
    assert len(came) == 1
    assert list((tmp_path / "joined/pieces").glob("score-*/1-of-2-*"))
    # And one whose file is cut.
    file = max((tmp_path / "joined/pieces").glob("score-*/*"), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size - 1)
    details = all_shards(start, "joined", **GRAPH)
    assert details[0]["stages"]["score"]["before"] > 0
    left, _ = joined(start, "joined", **GRAPH)
    assert not left
    assert content(tmp_path / "joined") == alone


def test_joining_that_was_stopped_after_its_selection_leaves_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_shards(start, "joined", **GRAPH)

    def stopped(pieces: PieceCache, finished: Any, basis: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PieceCache, "tidy", stopped)
        with pytest.raises(KeyboardInterrupt):
            start("joined", **GRAPH)
    assert list((tmp_path / "joined/pieces").glob("score-*"))
    done = start("joined", **GRAPH)
    assert not [note for note in done.warnings if "piece" in note]
    assert not (tmp_path / "joined/pieces").exists()


def test_a_small_pool_is_finished_with_its_labels(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fitted, nothing kept twice."""
    monkeypatch.setattr(calculation, "WORTH", 10.0)
    start("joined", "1/2")
    assert start("joined", "2/2")["finished"]
    assert start("joined", "1/2")["finished"]
    assert {path.name.split("-")[0] for path in (tmp_path / "joined/pieces").iterdir()} == {"embed", "label", "shards"}
    assert {path.suffix for path in (tmp_path / "joined/pieces/shards").iterdir()} == {".lock"}


def of(shared: Any, tasks: Sequence[Any] = (), do: Any = _whole) -> str | None:
    """Return the hash of a calculation."""
    return content_of(Calculation("", do, shared, tasks, 1.0, 1.0))


class Network:
    """Something from elsewhere."""

    def __init__(self, weight: float) -> None:
        self.weight = {"a": np.full(3, weight)}


def test_everything_that_decides_a_calculation_is_in_its_hash() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    network: Any = Network(1.0)
    kinds: list[Any] = [
        (rows, ()),
        (rows + 1, ()),
        (rows.astype(np.float64), ()),
        (rows.reshape(4, 3), ()),
        (np.asfortranarray(rows), ()),
        (rows[:, ::2], ()),
        (rows[:, 1::2], ()),
        (rows, (1,)),
        (rows, (slice(0, 1),)),
        (rows, (slice(0, 2),)),
        (rows, ((slice(0, 2), rows),)),
        (rows, ((slice(0, 2), rows + 1),)),
        ((rows, 3), ()),
        ((rows, 3.0), ()),
        ((rows, None), ()),
        ((rows, "3"), ()),
        ({"a": rows}, ()),
        ({"b": rows}, ()),
        (Network(1.0), ()),
        (Network(2.0), ()),
        (Sides(network, rows, rows), ()),
    ]
    known = {of(shared, tasks) for shared, tasks in kinds} | {of(rows, (), content_of)}
    assert None not in known
    assert len(known) == 22
    assert of(rows) == of(rows.copy())
    assert of(Network(1.0)) == of(Network(1.0))


def test_what_cannot_be_told_by_its_content_is_not_shared() -> None:
    held: list[Any] = []
    held.append(held)
    for shared in (lambda: 1, held, np.array([lambda: 1])):
        assert of(shared) is None, shared
