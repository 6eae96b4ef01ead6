"""A worker does what a run's own hands do, from what it is sent alone."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nncift import config
from nncift.core import parallel as calculation
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Calculation
from nncift.core.tasks import Here, Job, Outcome, Piece
from nncift.distributed import ray_worker as worker
from nncift.distributed.model_worker import Hands
from nncift.distributed.piece_records import unpack
from nncift.distributed.ray_worker import Worker, orders
from nncift.distributed.start import ClusterSettings
from nncift.labels import LabelBudget, grow
from nncift.runs import select_again as reselect
from nncift.selection import graphs
from nncift.stages import inputs
from nncift.student import score
from nncift.teachers import registry

from .conftest import content


def pieces(sizes: list[int]) -> list[Piece]:
    """Return pieces of these sizes."""
    return [Piece(str(place), place, None, size) for place, size in enumerate(sizes)]


def test_orders_hold_every_piece_once_and_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ORDERS_PER_WORKER", 2)
    cut = orders(Job("label", "label", "", ""), pieces([1, 1, 1, 9, 1, 1, 1, 1]), 2)
    assert [[piece.size for piece in order.pieces] for order in cut] == [[1, 1, 1, 9], [1, 1, 1, 1]]
    monkeypatch.setattr(worker, "MOST_STEPS", 1)
    assert len(orders(Job("label", "label", "", ""), pieces([1] * 8), 2)) == 8


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
        Piece(
            str(chunk.index),
            chunk.index,
            chunk,
            len(chunk.targets),
            tuple(item for item in (*chunk.targets, chunk.source) if item),
        )
        for chunk, _ in plan.generation_chunks(0)
    ]
    job = Job("label", "label", fingerprint(dict(teacher.describe())), "", pool)
    serial_map: dict[str, Outcome] = {}
    hands = Hands(teacher, lambda: pytest.fail("no encoder"), lambda: pytest.fail("no probe"))
    Here().each(hands, job, todo, lambda piece, outcome: serial_map.update({piece.name: outcome}))
    monkeypatch.chdir(tmp_path)
    hired, there = Worker(settings, tmp_path / "teacher", os.getcwd()), {}
    for order in orders(job, todo, 2):
        assert order.job.rows is None
        assert len(order.rows) <= sum(len(piece.ids) for piece in order.pieces)
        for packed in hired.do(order):
            record = unpack(packed)
            assert record.job == job.key
            there[record.piece] = record.outcome
    assert there.keys() == serial_map.keys()
    for name, outcome in serial_map.items():
        assert there[name].arrays["values"].tobytes() == outcome.arrays["values"].tobytes()
        assert (there[name].tokens, there[name].passes) == (outcome.tokens, outcome.passes)


class OneWorker(Here):
    """Has calculations done by a worker that has loaded no model, as orders and bytes, the last part first."""

    def __init__(self, settings: Any, folder: Path) -> None:
        self._worker = Worker(settings, folder, str(folder))
        self.did: list[str] = []

    def each(self, hands: Any, job: Any, pieces: Any, keep: Any) -> None:
        """Send what is a calculation."""
        if job.calculation is None:
            super().each(hands, job, pieces, keep)
            return
        self.did.append(job.what)
        for order in orders(job, pieces, 2)[::-1]:
            assert order.job.calculation is not None
            assert order.job.calculation.shared is None
            assert not order.job.calculation.tasks
            sent = pickle.loads(pickle.dumps((order, job.calculation.shared)))
            for piece, packed in zip(order.pieces, self._worker.do(*sent), strict=True):
                record = unpack(packed)
                assert record.job == job.key
                keep(piece, record.outcome)
        assert "_hands" not in self._worker.__dict__


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({}, {"predicting all pairs"}),
        (
            {"neighbours": 8, "optimiser": "partition", "student": "paper"},
            {"predicting mean utilities", "comparing all rows", "predicting neighbours", "selecting in parts"},
        ),
    ],
)
def test_a_selection_by_a_worker_is_that_of_one_process(
    more: dict[str, Any], what: set[str], start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "SIDE", 16)
    monkeypatch.setattr(graphs, "_PAIRS", 100)
    start("alone", **more)
    made = []

    def engine(settings: Any, out: str) -> Any:
        made.append(OneWorker(settings, tmp_path))
        return nullcontext(made[0])

    start("sent", engine=engine, **more)
    assert set(made[0].did) == what
    assert content(tmp_path / "sent") == content(tmp_path / "alone")


def test_choosing_again_by_a_worker_is_choosing_again(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = start("run", student="paper").path, []
    again = {"budget": "5", "neighbours": 6, "optimiser": "partition"}
    reselect.reselect(run, again, tmp_path / "alone")

    def engine_of(cluster: object, settings: Any, path: Path) -> Any:
        assert (cluster, path) == (ClusterSettings(workers=3, gpus_per_worker=0.0), run)
        made.append(OneWorker(settings, tmp_path))
        return nullcontext(made[0])

    monkeypatch.setattr(reselect, "engine_of", engine_of)
    reselect.reselect(run, again, tmp_path / "sent", ClusterSettings(workers=3))
    assert "comparing all rows" in made[0].did
    for name in ("subset.jsonl", "selection.parquet", "selection.json"):
        assert (tmp_path / "sent" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_small_calculations_and_large_results_stay_with_the_driver() -> None:
    def pays(seconds: float, back: float) -> bool:
        return calculation.pays(Calculation("", lambda shared, task: {}, None, [], seconds, back))

    assert pays(60, 1e6)
    assert not pays(1, 0)
    # An hour of a core, and results that the driver needs as long for.
    assert not pays(3600, 3600 * calculation.BYTES_A_SECOND)
