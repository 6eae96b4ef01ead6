"""Speed, side by side in one run: `make bench`, or `python benchmarks/speed.py [--only pairs|fl|teachers] [--json]`.

Plain versions are written here as anyone would write them first; medians of several repeats; ratios are within one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

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


def teachers(sources: int = 6, targets: int = 48) -> dict[str, Any]:
    """Label pairs with DELIFT on the demo model: shipped way, and joint sequences in padded batches with full logits."""
    import tempfile

    import torch

    from nncift.data import read
    from nncift.demo import make_world, model_path
    from nncift.teachers import Chunk
    from nncift.teachers.delift import Delift

    with tempfile.TemporaryDirectory() as folder:
        pool = read(make_world(200, 0).write(folder).pool)
    teacher = Delift(str(model_path()), device="cpu")
    teacher.prepare(pool)
    chosen, others = pool.ids[:sources], pool.ids[-targets:]

    def shipped() -> None:
        for source in chosen:
            teacher.label(Chunk(0, source, others))

    def plain() -> None:
        rows = {item: teacher.wording.tokens(pool.by_id(item)) for item in others}
        for source in chosen:
            front = [*teacher.wording.bos, *teacher.wording.block(pool.by_id(source), teacher.block_tokens).ids]
            for start in range(0, targets, 16):
                batch = [[*front, *rows[item].prompt, *rows[item].response] for item in others[start : start + 16]]
                width = max(map(len, batch))
                ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in batch])
                mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in batch])
                with torch.inference_mode():
                    teacher.lm.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)

    fast, slow = seconds(shipped), seconds(plain)
    return {"delift_pairs_per_second": sources * targets / fast, "times_faster_than_joint_sequences": slow / fast}


def main() -> None:
    """Run the chosen comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["pairs", "fl", "teachers"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {"pairs": pairs, "fl": facility_location, "teachers": teachers}
    import os

    told: dict[str, Any] = {"machine": {"platform": platform.platform(), "cores": os.cpu_count()}}
    told.update({name: part() for name, part in parts.items() if given.only in (None, name)})
    if given.json:
        print(json.dumps(told))
        return
    for name, values in told.items():
        print(name)
        for key, value in values.items():
            print(f"  {key.replace('_', ' ')}: {value if isinstance(value, str | int) else f'{value:,.4g}'}")


if __name__ == "__main__":
    main()
