"""A run whose teacher reads every row for a target set, by size: `python benchmarks/target_table.py [--rows N] [--targets T]`.

The teacher costs nothing (numbers from ids), rows are made up and vectors hashed, so that what is left is nncift's own: the table
of all pairs, the student that is kept for new rows, selection and report. Prints processor seconds and peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from nncift import pipeline
from nncift.core.arrays import Floats
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.teachers import RowLabels


class Free:
    """Sixteen numbers of a row from its id, at the price of RDS."""

    name = "rds"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    width = 16
    options: Mapping[str, Any] = {"teacher": "rds"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Take all rows."""
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return numbers of unit norm, `(n, 16)`."""
        drawn = [np.frombuffer(hashlib.blake2b(item.encode()).digest(), np.uint32) for item in ids]
        values = np.array(drawn, np.float64) / 2**31 - 1
        return RowLabels(np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32), 0, len(ids))

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return cosines."""
        return np.asarray(targets @ sources.T, np.float32)

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values."""
        return {"teacher": "numbers from ids"}


def main() -> None:
    """Make rows, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--targets", type=int, default=256)
    given = parser.parse_args()

    def made(count: int, name: str) -> list[dict[str, str]]:
        return [
            {"id": f"{name}{k}", "prompt": f"say {k} of {name}", "completion": f"it is {k * 7919 % 10007}"}
            for k in range(count)
        ]

    with tempfile.TemporaryDirectory() as folder:
        began, pool, wanted = time.process_time(), made(given.rows, "p"), made(given.targets, "t")
        more: dict[str, Any] = {"labels": "100%", "budget": "1%", "encoder": "hash", "device": "cpu"}
        run = pipeline.run(pool, target=wanted, teacher=Free(), out=folder, **more)
        spent, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{given.rows:,} rows, {given.targets:,} targets, all measured: {run.summary['all_labelled']}")
    print(f"{spent:.0f} processor seconds, {peak:.1f} GB at the peak")


if __name__ == "__main__":
    main()
