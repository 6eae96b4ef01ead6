"""A teacher of your own: rows whose response uses many different words score high. It needs no model.

python examples/custom_teacher.py [POOL.jsonl [OUT]]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import nncift
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.demo import make_world
from nncift.teachers import RowLabels
from nncift.testing import check_teacher


class Variety:
    """Score of a row: number of different words in its response. Higher is better."""

    name = "variety"
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    width = 1
    workspace: Path | None = None

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {"teacher": self.name}
        self._words: dict[str, int] = {}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Remember the rows; all are usable."""
        self._words |= {row.id: len(set(row.response.lower().split())) for row in examples}
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the scores of rows; no model was asked."""
        values = np.array([[self._words[item]] for item in ids], np.float32)
        return RowLabels(values, tokens=0, passes=0)

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the scores, so that a run is never continued with another teacher."""
        return {"teacher": self.name, "counts": "distinct lower-case words"}


def main(arguments: list[str]) -> None:
    """Check the teacher, and run with it."""
    out = Path(arguments[1] if len(arguments) > 1 else "runs/custom")
    pool = nncift.read(arguments[0] if arguments else make_world(120, seed=3).write(out.parent / "custom-world").pool)
    check_teacher(Variety(), pool)
    run = nncift.run(pool, teacher=Variety(), encoder="hash", labels=0.3, budget=10, out=out)
    for row in run.subset[:3]:
        print(f"{row.response[:80]!r}")
    print(f"Spearman on rows never seen: {run.fidelity['fidelity']['q4']['spearman']}")


if __name__ == "__main__":
    main(sys.argv[1:])
