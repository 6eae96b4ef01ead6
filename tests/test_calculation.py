"""Calculations in parts: another process, in another order, comes to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from nncift.core import parallel as calculation
from nncift.core.arrays import Floats
from nncift.core.parallel import Calculation, Keep, ParallelMap, may_pay, pays, ranges, serial_map
from nncift.selection import graphs, neighbours
from nncift.selection.graphs import scored_graph
from nncift.selection.neighbours import nearest
from nncift.student import score
from nncift.student.model import Student

N, DIM = 230, 8


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ParallelMap]:
    """Give a way to have parts done in a process of its own, the last part first."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:

        def calculate(calculation: Calculation, keep: Keep) -> None:
            assert len(calculation.tasks) > 1
            for place, task in reversed(list(enumerate(calculation.tasks))):
                keep(place, pool.submit(calculation.do, calculation.shared, task).result())

        yield calculate


@pytest.fixture
def vectors() -> Floats:
    """Return unit vectors, some of them twice."""
    found = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
    found[10:20] = found[:10]
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


@pytest.fixture
def student() -> Student:
    """Return a network of random weights."""
    random = np.random.default_rng(0)
    shapes = {"target_weight": (DIM, 12), "source_weight": (DIM, 12), "hidden_bias": (12,), "output_weight": (12,)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Student("paper", {**weights, "output_bias": np.array(0.3, np.float32)}, 0.1, 2.0)


def same(one: object, other: object) -> bool:
    """Compare results to the byte."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_ranges_cover_everything_once() -> None:
    assert [range(10)[part] for part in ranges(10, 4)] == [range(4), range(4, 8), range(8, 10)]
    assert ranges(0, 4) == []


def test_small_pools_have_nothing_that_pays(student: Student, vectors: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools that shards are done with before they know how much work there is."""
    asked: list[Calculation] = []

    def note(calculation: Calculation, keep: Keep) -> None:
        asked.append(calculation)
        serial_map(calculation, keep)

    sides = student.project_targets(vectors), student.project_sources(vectors)
    for what in (score.all_pairs, score.best_per_target, score.mean_per_source):
        what(student, *sides, calculate=note)
    scored_graph(student, tuple(map(str, range(N))), vectors, nearest(vectors, 6, calculate=note), calculate=note)
    nearest(vectors, 6, probes=12, calculate=note)
    assert not may_pay(7000, 7000)
    assert may_pay(8000, 8000)
    assert may_pay(2000, 10**6)
    # The target of scores is one.
    assert not may_pay(1, 10**7)
    assert len({found.what for found in asked}) == 7
    for found in asked:
        # Were this much worth sharing, its pool would not be taken for too small.
        monkeypatch.setattr(calculation, "WORTH", found.seconds)
        assert pays(replace(found, back=0.0))
        assert may_pay(N, N)


@pytest.mark.parametrize("what", [score.all_pairs, score.best_per_target, score.mean_per_source])
def test_predictions(
    what: Any, student: Student, vectors: Floats, elsewhere: ParallelMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "SIDE", 100)
    given = (student, student.project_targets(vectors), student.project_sources(vectors))
    more = {} if what is score.all_pairs else {"cap": 4 * 128 * 128}
    alone = what(*given, **more)
    assert same(alone, what(*given, **more, calculate=elsewhere))
    if what is score.all_pairs:
        assert alone.flags.f_contiguous
        np.testing.assert_allclose(alone, student.predict_block(*given[1:]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_neighbours(
    exact: bool, asked: bool, vectors: Floats, elsewhere: ParallelMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CAP", 4 * 15 * 100)
    queries, probes = vectors[::-1].copy() if asked else None, 0 if exact else 12
    search = partial(nearest, vectors, 7, queries=queries, probes=probes, cap=4 * N * 50)
    alone, other = search(), search(calculate=elsewhere)
    assert same((alone.codes, alone.cosine, alone.recall), (other.codes, other.cosine, other.recall))


def test_edges(student: Student, vectors: Floats, elsewhere: ParallelMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_PAIRS", 500)
    ids, known = tuple(f"{i:03d}" for i in range(N)), nearest(vectors, 6)
    alone, other = (
        scored_graph(student, ids, vectors, known, calculate=how).utility for how in (serial_map, elsewhere)
    )
    assert same(alone, other)
    graph = scored_graph(student, ids, vectors, known)
    block = student.predict_block(student.project_targets(vectors), student.project_sources(vectors))
    there = graph.sources >= 0
    rows = np.broadcast_to(np.arange(N)[:, None], there.shape)
    np.testing.assert_allclose(alone[there], block[rows[there], graph.sources[there]], rtol=1e-5, atol=1e-5)
    assert np.isnan(alone[~there]).all()
