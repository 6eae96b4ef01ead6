"""A worker does what a run's own hands do, from what it is sent alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift import config, pipeline
from nncift.files import fingerprint
from nncift.plan import Wish, grow
from nncift.scale import worker
from nncift.scale.hands import Hands
from nncift.scale.pieces import Here, Job, Outcome, Piece
from nncift.scale.records import unpack
from nncift.scale.worker import Worker, orders
from nncift.teachers import registry


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
    given: dict[str, Any] = {"pool": str(write_pool(25)), "model": str(llama_folder), "template": "plain"}
    settings = config.resolve(given)
    pool, teacher = pipeline.read_pool(settings), registry.create(settings)
    plan = grow(None, pool.ids, pool.ids, Wish(None, 20, "scatter", 3, 3), 0, shared=True, relative=True)
    todo = [
        Piece(
            str(chunk.index), chunk.index, chunk, len(chunk.targets),
            tuple(item for item in (*chunk.targets, chunk.source) if item),
        )
        for chunk, _ in plan.generation_chunks(0)
    ]  # fmt: skip
    job = Job("label", "label", fingerprint(dict(teacher.describe())), "", pool)
    here: dict[str, Outcome] = {}
    hands = Hands(teacher, lambda: pytest.fail("no encoder"), lambda: pytest.fail("no probe"))
    Here().each(hands, job, todo, lambda piece, outcome: here.update({piece.name: outcome}))
    monkeypatch.chdir(tmp_path)
    hired, there = Worker(settings, tmp_path / "teacher", os.getcwd()), {}
    for order in orders(job, todo, 2):
        assert order.job.rows is None
        assert len(order.rows) <= sum(len(piece.ids) for piece in order.pieces)
        for packed in hired.do(order):
            record = unpack(packed)
            assert record.job == job.key
            there[record.piece] = record.outcome
    assert there.keys() == here.keys()
    for name, outcome in here.items():
        assert there[name].arrays["values"].tobytes() == outcome.arrays["values"].tobytes()
        assert (there[name].tokens, there[name].passes) == (outcome.tokens, outcome.passes)
