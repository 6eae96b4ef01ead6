"""Speed, side by side in one run: `make bench`, or `python benchmarks/speed.py [--only pairs|fl|teachers|costs] [--json]`.

Plain versions are written here as anyone would write them first; medians of several repeats; ratios are within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import teachers

REPEATS = 5


def seconds(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median seconds of an action after one warm-up."""
    action()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def pairs(size: int = 4096, dim: int = 1024, hidden: int = 100) -> dict[str, Any]:
    """Score all pairs of `size` x `size` items: fused kernel, batched concatenation, one pair per call."""
    import torch

    from nncift.student.kernels import relu_block

    random = np.random.default_rng(0)
    a = random.normal(size=(size, hidden)).astype(np.float32)
    b = random.normal(size=(size, hidden)).astype(np.float32)
    weights = random.normal(size=hidden).astype(np.float32)
    fused = seconds(lambda: relu_block(a, b, weights, 0.0)) / size**2

    network = torch.nn.Sequential(torch.nn.Linear(2 * dim, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
    vectors = torch.randn(256, dim)
    batch = torch.cat([vectors, vectors.flip(0)], dim=1)

    def concatenated() -> None:
        with torch.inference_mode():
            for row in vectors[:16]:
                network(torch.cat([row.expand(256, dim), vectors], dim=1))

    def one_by_one() -> None:
        with torch.inference_mode():
            for row in batch:
                network(row)

    plain = seconds(concatenated) / (16 * 256)
    single = seconds(one_by_one) / 256
    return {
        "fused_pairs_per_second": 1 / fused,
        "fused_billion_pair_hidden_steps_per_second": hidden / fused / 1e9,
        "times_faster_than_batched_concatenation": plain / fused,
        "times_faster_than_one_pair_per_call": single / fused,
    }


def facility_location(sizes: tuple[int, ...] = (2000, 5000)) -> dict[str, Any]:
    """Select 30 % of clustered points by facility location on their cosines, reasons included."""
    from nncift.pairs import UtilityMatrix
    from nncift.select import select

    found = {}
    for size in sizes:
        random = np.random.default_rng(0)
        centres = random.normal(size=(50, 64))
        points = centres[random.integers(50, size=size)] + 0.5 * random.normal(size=(size, 64))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        ids = tuple(f"{index:06d}" for index in range(size))
        matrix = UtilityMatrix(ids, ids, np.asfortranarray((points @ points.T).astype(np.float32)))
        found[f"seconds_at_{size}"] = seconds(lambda matrix=matrix, size=size: select(matrix, int(0.3 * size)), 3)  # type: ignore[misc]
    return found


def show(values: dict[str, Any], depth: int) -> None:
    """Print nested figures."""
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{key}")
            show(value, depth + 1)
        else:
            print(
                f"{'  ' * depth}{key.replace('_', ' ')}: {value if isinstance(value, str | int) else f'{value:,.4g}'}"
            )


def main() -> None:
    """Run the chosen comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["pairs", "fl", "teachers", "costs"])
    parser.add_argument("--model", help="a small local model; that of the demo where none is given")
    parser.add_argument("--data", help="rows for the teachers; those of the demo where none are given")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the teachers' comparisons")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "pairs": pairs,
        "fl": facility_location,
        "teachers": lambda: teachers.compare(given.model, given.data, REPEATS, given.threads),
        "costs": lambda: teachers.costs(given.model, given.data),
    }
    told: dict[str, Any] = {"machine": {"platform": platform.platform(), "cores": os.cpu_count()}}
    told.update({name: part() for name, part in parts.items() if given.only in (None, name)})
    if given.json:
        print(json.dumps(told))
        return
    for name, values in told.items():
        print(name)
        show(values, 1)


if __name__ == "__main__":
    main()
