"""A worker does what a run's own worker do, from what it is sent alone."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nncift import config
from nncift.core import parallel as calculation
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Calculation, Task, TaskGroup, TaskResult
from nncift.distributed import ray_worker as worker
from nncift.distributed.local import LocalExecutor
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.ray_worker import Worker, orders
from nncift.labels import LabelBudget, grow
from nncift.runs import select_again as reselect
from nncift.selection import graphs
from nncift.stages import inputs
from nncift.student import score
from nncift.teachers import registry

from .conftest import content


def tasks(sizes: list[int]) -> list[Task]:
    """Return tasks of these sizes."""
    return [Task(str(place), place, None, size) for place, size in enumerate(sizes)]


def test_orders_hold_every_piece_once_and_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ORDERS_PER_WORKER", 2)
    cut = orders(TaskGroup("label", "label", "", ""), tasks([1, 1, 1, 9, 1, 1, 1, 1]), 2)
    assert [[task.size for task in order.tasks] for order in cut] == [[1, 1, 1, 9], [1, 1, 1, 1]]
    monkeypatch.setattr(worker, "MOST_STEPS", 1)
    assert len(orders(TaskGroup("label", "label", "", ""), tasks([1] * 8), 2)) == 8


def test_a_worker_labels_as_the_run_itself_does(
    llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "pool": str(write_pool(25)),
        "teacher": "delift",
        "model": str(llama_folder),
        "template": "plain",
    }
    settings = config.resolve(given)
    pool, teacher = inputs.read_pool(settings), registry.create(settings)
    plan = grow(None, pool.ids, pool.ids, LabelBudget(None, 20, "scatter", 3, 3), 0, shared=True, relative=True)
    todo = [
        Task(str(chunk.place), chunk.place, chunk.task, len(chunk.positions), chunk.ids) for chunk in plan.chunks_of(0)
    ]
    group = TaskGroup("label", "label", fingerprint(dict(teacher.describe())), "", pool)
    here: dict[str, TaskResult] = {}
    worker = ModelWorker(teacher, lambda: pytest.fail("no encoder"), lambda: pytest.fail("no probe"))
    LocalExecutor().map(worker, group, todo, lambda task, result: here.update({task.name: result}))
    monkeypatch.chdir(tmp_path)
    elsewhere, there = Worker(settings, tmp_path / "teacher", os.getcwd()), {}
    for order in orders(group, todo, 2):
        assert order.group.rows is None
        assert len(order.rows) <= sum(len(task.ids) for task in order.tasks)
        key, results = elsewhere.do(order)
        assert key == group.key
        there.update({task.name: result for task, result in zip(order.tasks, results, strict=True)})
    assert there.keys() == here.keys()
    for name, result in here.items():
        assert there[name].arrays["values"].tobytes() == result.arrays["values"].tobytes()
        assert (there[name].tokens, there[name].passes) == (result.tokens, result.passes)


class OneWorker(LocalExecutor):
    """Has calculations done by a worker that has loaded no model, as orders and bytes, the last part first."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    @contextmanager
    def open(self, out: Path, settings: Any) -> Iterator[Any]:
        """Make the worker."""
        self._worker = Worker(settings, out.parent, str(out.parent))
        with super().open(out, settings) as directory:
            yield directory

    def map(self, worker: Any, group: Any, tasks: Any, keep: Any) -> None:
        """Send what is a calculation."""
        if group.calculation is None:
            super().map(worker, group, tasks, keep)
            return
        self.did.append(group.what)
        for order in orders(group, tasks, 2)[::-1]:
            assert order.group.calculation is not None
            assert order.group.calculation.shared is None
            assert not order.group.calculation.tasks
            sent = pickle.loads(pickle.dumps((order, group.calculation.shared)))
            key, results = self._worker.do(*sent)
            assert key == group.key
            for task, result in zip(order.tasks, results, strict=True):
                keep(task, result)
        assert "_worker" not in self._worker.__dict__


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({}, {"predicting all pairs"}),
        (
            {"neighbours": 8, "student": "paper"},
            {"predicting mean utilities", "comparing all rows", "predicting neighbours"},
        ),
    ],
)
def test_a_selection_by_a_worker_is_that_of_one_process(
    more: dict[str, Any], what: set[str], start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "SIDE", 16)
    monkeypatch.setattr(graphs, "_PAIRS", 100)
    start("alone", **more)
    executor = OneWorker()
    start("sent", executor=executor, **more)
    assert set(executor.did) == what
    assert content(tmp_path / "sent") == content(tmp_path / "alone")


def test_choosing_again_by_a_worker_is_choosing_again(start: Callable[..., Any], tmp_path: Path) -> None:
    run, executor = start("run", student="paper").path, OneWorker()
    again = {"budget": "5", "neighbours": 6}
    reselect.reselect(run, again, tmp_path / "alone")
    reselect.reselect(run, again, tmp_path / "sent", executor)
    assert "comparing all rows" in executor.did
    for name in ("subset.jsonl", "selection.parquet", "selection.json"):
        assert (tmp_path / "sent" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_small_calculations_and_large_results_stay_with_the_driver() -> None:
    def pays(seconds: float, back: float) -> bool:
        return calculation.pays(Calculation("", lambda shared, task: {}, None, [], seconds, back))

    assert pays(60, 1e6)
    assert not pays(1, 0)
    # An hour of a core, and results that the driver needs as long for.
    assert not pays(3600, 3600 * calculation.BYTES_A_SECOND)
