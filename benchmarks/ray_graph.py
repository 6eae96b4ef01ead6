"""What Ray costs and gives where no model is asked: `python benchmarks/ray_graph.py [--rows 60000] [--rounds 2] [--json]`.

The neighbour graph of clustered vectors, its scores, a selection in parts, and the matrix of all pairs of the first rows: by this
process, by one local Ray worker and by two, one thread each, in turn. All is sent, also what a run keeps back because sending
does not pay. Results are compared to the byte. Seconds on the clock, and CPU seconds of the busiest process.
"""

from __future__ import annotations

import os

# Before anything compiled is loaded, and for the workers, which inherit it.
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray_scale import cpu_seconds, made
from sparse import NEAR, clustered, student

from nncift import config
from nncift.core import parallel as calculation
from nncift.core.parallel import Calculation, Executor, Keep, ParallelMap, map_by
from nncift.distributed.ray_cluster import RayExecutor
from nncift.selection import graphs
from nncift.selection.graphs import scored_graph
from nncift.selection.neighbours import nearest
from nncift.student import score
from nncift.student.score import all_pairs

WORKERS = (0, 1, 2)


def doubled(numbers: Any, task: int) -> dict[str, Any]:
    """Do something small, so that a worker is there."""
    return {"found": numbers[:1] * 2}


def steps(vectors: Any, trained: Any, dense: int, how: ParallelMap) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return what is measured, one after the other; each is given what came before."""
    ids = tuple(f"{i:07d}" for i in range(len(vectors)))
    sides = trained.project_targets(vectors[:dense]), trained.project_sources(vectors[:dense])
    return {
        "neighbours": lambda found: nearest(vectors, NEAR, probes=12, calculate=how),
        "scores": lambda found: scored_graph(trained, ids, vectors, found["neighbours"], calculate=how),
        "all pairs": lambda found: all_pairs(trained, *sides, how),
    }


def measure(executor: Executor, vectors: Any, trained: Any, dense: int) -> dict[str, Any]:
    """Do every step, and return seconds, CPU seconds of every process, and a hash of all results."""
    how = map_by(executor)

    def began() -> list[float]:
        return [time.perf_counter(), *map(cpu_seconds, processes)]

    def small(keep: Keep) -> None:
        how(Calculation("", doubled, np.ones(3), range(8), 0, 0), keep)

    small(lambda place, found: None)
    while isinstance(executor, RayExecutor) and len(executor.processes()) < wanted(executor):
        small(lambda place, found: None)
    processes = [os.getpid(), *(executor.processes() if isinstance(executor, RayExecutor) else [])]
    found: dict[str, Any] = {}
    record: dict[str, Any] = {}
    # Compiled code is loaded by everyone before anything is timed: in parts so small that all have some.
    usual = graphs._PAIRS, score.SIDE
    graphs._PAIRS, score.SIDE = 1 << 12, 64
    for name, step in steps(vectors[:2000], trained, 500, how).items():
        found[name] = step(found)
    graphs._PAIRS, score.SIDE = usual
    for name, step in steps(vectors, trained, dense, how).items():
        before = began()
        found[name] = step(found)
        spent = [now - was for now, was in zip(began(), before, strict=True)]
        record[name] = {"seconds": spent[0], "driver": spent[1], "workers": spent[2:], "busiest": max(spent[1:])}
    near, graph, matrix = found.values()
    whole = hashlib.sha256()
    for part in (near.codes, near.cosine, graph.utility, matrix.T):
        whole.update(np.ascontiguousarray(part).tobytes())
    return {"steps": record, "hash": whole.hexdigest()}


def wanted(executor: RayExecutor) -> int:
    """Return how many workers an executor shall have."""
    return executor._wanted()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dense", type=int, default=8000, help="rows of the matrix of all pairs")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    calculation.WORTH, calculation.BYTES_A_SECOND = 0.0, float("inf")
    settings = config.resolve({"teacher": "delift-se", "encoder": "hash", "device": "cpu"})
    vectors = clustered(given.rows)
    trained = student(vectors)
    runs: dict[int, list[dict[str, Any]]] = {workers: [] for workers in WORKERS}
    for _ in range(given.rounds):
        for workers in WORKERS:
            executor = made(workers, waiting=False)
            with tempfile.TemporaryDirectory() as folder, executor.open(Path(folder) / "run", settings):
                runs[workers].append(measure(executor, vectors, trained, given.dense))
    record: dict[str, Any] = {
        "rows": given.rows,
        "dense_rows": given.dense,
        "rounds": given.rounds,
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
        "same_bytes": len({run["hash"] for each in runs.values() for run in each}) == 1,
    }
    for name in runs[0][0]["steps"]:
        median = {
            workers: {
                what: statistics.median(run["steps"][name][what] for run in each) for what in ("seconds", "busiest")
            }
            for workers, each in runs.items()
        }
        record[name] = {
            **{f"{workers or 'no'} workers": figures for workers, figures in median.items()},
            "busiest process, two over one": median[1]["busiest"] / median[2]["busiest"],
            "clock, two over one": median[1]["seconds"] / median[2]["seconds"],
            "driver, two workers": statistics.median(run["steps"][name]["driver"] for run in runs[2]),
        }
    print(json.dumps(record, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
