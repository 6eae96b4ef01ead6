"""Selection on a neighbour graph, 10,000 to 1,000,000 generated rows: time, memory, recall, and value against dense greedy.

Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.selection.neighbours import Neighbours
from nncift.student.model import Student

Floats = npt.NDArray[np.float32]
DIM, NEAR = 384, 32


def clustered(n: int, dim: int = DIM, seed: int = 0) -> Floats:
    """Return unit vectors around centres, about 200 rows each, of unequal width."""
    random = np.random.default_rng(seed)
    count = max(n // 200, 4)
    centres = random.standard_normal((count, dim), dtype=np.float32)
    vectors = np.empty((n, dim), np.float32)
    for at in range(0, n, 1 << 16):
        part = vectors[at : at + (1 << 16)]
        of = random.integers(count, size=len(part))
        width = random.uniform(0.3, 1.2, size=(len(part), 1)).astype(np.float32)
        part[:] = centres[of] + width * random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def student(vectors: Floats) -> Student:
    """Return a paper network that has learned a little of the rows' cosines, so that its scores vary with its inputs."""
    import torch

    from nncift.core.pairs import LabelledPairs
    from nncift.models.views import TEXT, Views
    from nncift.student.networks import TrainingData
    from nncift.student.paper_recipe import RECIPES, fit

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = vectors[random.choice(len(vectors), size=min(len(vectors), 500), replace=False)]
    ids = tuple(str(i) for i in range(len(rows)))

    def pairs(size: int) -> LabelledPairs:
        t, s = (random.integers(len(rows), size=size).astype(np.int32) for _ in range(2))
        return LabelledPairs(ids, ids, t, s, np.einsum("pd,pd->p", rows[t], rows[s]).astype(np.float32))

    training_data = TrainingData(pairs(20_000), pairs(2_000), rows, rows, Views.of({TEXT: rows.shape[1]}))
    learned = fit(training_data, recipe=replace(RECIPES["default"], epochs=5), seed=0)
    return Student("paper", learned.weights, learned.mean, learned.scale)


def one(n: int, share: float = 0.1, probes: int = 12) -> dict[str, Any]:
    """Build the graph, score its pairs and select a share of `n` rows; return seconds of each and the peak memory."""
    from nncift.selection.graphs import scored_graph
    from nncift.selection.neighbours import nearest
    from nncift.selection.sparse import Graph, SparseCoverage

    vectors = clustered(n)
    trained = student(vectors)
    ids = tuple(f"{i:07d}" for i in range(n))
    # Compiled code is loaded before anything is timed.
    few = clustered(500)
    small = scored_graph(trained, ids[:500], few, nearest(few, NEAR, probes=12))
    SparseCoverage(small).choose(50)
    began = time.perf_counter()
    known = nearest(vectors, NEAR, probes=probes)
    found = time.perf_counter()
    graph = scored_graph(trained, ids, vectors, known)
    scored = time.perf_counter()
    problem = SparseCoverage(graph)
    solution = problem.choose(int(share * n))
    chosen = time.perf_counter()
    record = {
        "rows": n,
        "recall": known.recall,
        "graph_seconds": found - began,
        "score_seconds": scored - found,
        "select_seconds": chosen - scored,
        "seconds": chosen - began,
        "share_of_optimum": solution.share_of_optimum,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    del graph, problem
    # A student that has learned little ranks rows alike for all targets, which makes greedy easy: the cosines are harder.
    sources = np.concatenate([np.arange(n, dtype=np.int32)[:, None], known.codes], axis=1)
    began = time.perf_counter()
    problem = SparseCoverage(
        Graph(ids, ids, sources, np.concatenate([np.ones((n, 1), np.float32), known.cosine], axis=1))
    )
    solution = problem.choose(int(share * n))
    record["cosine_select_seconds"] = time.perf_counter() - began
    record["cosine_share_of_optimum"] = solution.share_of_optimum
    del problem
    return {**record, **in_turn(ids, known)}


def in_turn(ids: tuple[str, ...], known: Neighbours, share: float = 0.1) -> dict[str, Any]:
    """Return seconds of round-robin on the cosines of the graph, from edges to the chosen rows, and its share of the bound."""
    from nncift.selection.sparse import Graph
    from nncift.selection.sparse_round_robin import SparseTurns

    few = np.zeros((3, 1), np.int32), np.ones((3, 1), np.float32)
    SparseTurns(Graph(ids[:3], ids[:3], *few)).choose(1)
    began = time.perf_counter()
    problem = SparseTurns(Graph(ids, ids, known.codes, known.cosine))
    solution = problem.choose(int(share * len(ids)))
    return {
        "turns_seconds": time.perf_counter() - began,
        "turns_share_of_bound": solution.share_of_optimum,
        "turns_by_score": solution.by_score,
    }


def value(n: int = 20_000) -> dict[str, Any]:
    """Return the value of a selection on a graph of cosines over that of central dense greedy, at 1, 10 and 30 %."""
    from nncift.core.pairs import UtilityMatrix
    from nncift.selection import pose
    from nncift.selection.neighbours import nearest
    from nncift.selection.sparse import Graph, SparseCoverage

    vectors = clustered(n)
    ids = tuple(f"{i:07d}" for i in range(n))
    known = nearest(vectors, 64, probes=12)
    sources = np.concatenate([np.arange(n, dtype=np.int32)[:, None], known.codes], axis=1)
    utility = np.concatenate([np.ones((n, 1), np.float32), known.cosine], axis=1)
    sparse = SparseCoverage(Graph(ids, ids, sources, utility))
    dense = pose(UtilityMatrix(ids, ids, (vectors @ vectors.T).T), reuse=True)
    record: dict[str, Any] = {"rows": n, "recall": known.recall}
    for share in (0.01, 0.1, 0.3):
        k = int(share * n)
        best = dense.choose(k).value
        record[f"lazy_at_{100 * share:.0f}_percent"] = dense.value(sparse.choose(k).ids) / best
        drawn = np.random.default_rng(0).permutation(n)[:k]
        record[f"random_at_{100 * share:.0f}_percent"] = dense.value([ids[i] for i in drawn]) / best
    return record


def compare(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Run every size in its own process."""
    record: dict[str, Any] = {"value_over_dense_greedy": _alone("value", 20_000)}
    for n in sizes:
        record[f"{n}_rows"] = _alone("one", n)
    return record


def _alone(what: str, n: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, what, str(n)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    rows = int(sys.argv[2])
    print(json.dumps(one(rows) if sys.argv[1] == "one" else value(rows)))
