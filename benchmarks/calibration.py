"""How true the selection skill is that runs state of themselves: `python benchmarks/real.py calibrate`.

Runs on random pools of worlds whose utilities are all known: each states a skill from its own labels, and the truth
tells the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from judging import SKILLS, Way, World, judged, table

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import generator
from nncift.evaluation.selection_skill import NINETY
from nncift.labels import LabelBudget
from nncift.labels.vectors import Vectors
from nncift.student.candidates import is_student


@dataclass(frozen=True)
class Setting:
    """A kind of run: rows of the pool, the share of them that is measured to train on, and what the student reads."""

    rows: int
    share: float
    features: str

    @property
    def way(self) -> Way:
        """The default student on these labels."""
        return Way("product", "default", self.features, LabelBudget(self.share, None, "rows"))


SETTINGS = (
    Setting(240, 0.2, "probe"),
    Setting(240, 0.1, "probe"),
    Setting(240, 0.2, "text"),
    Setting(400, 0.1, "probe"),
    Setting(150, 0.2, "probe"),
)


MOST_ERROR, LEAST_HELD, MOST_HELD = 0.05, 0.87, 0.93
"""What was asked of the stated skill before it was measured."""


def pool_of(world: World, rows: int, seed: int) -> World:
    """Return a random pool of a world's rows as a world of its own."""
    places = np.sort(generator(seed, "pool", world.name).permutation(len(world.matrix.source_ids))[:rows])
    ids = tuple(world.matrix.source_ids[place] for place in places)
    values = np.asfortranarray(world.matrix.values[np.ix_(places, places)])
    vectors = {}
    for name, of in world.vectors.items():
        part = of.sources[places]
        vectors[name] = Vectors(part, part, of.views)
    name = f"{world.name}, pool {seed} of {rows}"
    return replace(world, name=name, matrix=UtilityMatrix(ids, ids, values), vectors=vectors)


def calibrated(worlds: Sequence[World], seeds: int) -> list[dict[str, Any]]:
    """Return a line for every world and setting."""
    lines = []
    for world in worlds:
        for setting in SETTINGS:
            found = [judged(pool_of(world, setting.rows, seed), setting.way, seed) for seed in range(seeds)]
            line = {
                "world": world.name,
                "rows": setting.rows,
                "measured": found[0]["measured"],
                "features": setting.features,
                "runs": [_run(of) for of in found],
            }
            lines.append(line)
            print(*_cells(line), sep=" | ", flush=True, file=sys.stderr)
    return lines


def _run(of: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by budget, the stated skill, its error and the true one, and who selected well: the choice, and the best of all."""
    found = {}
    for key in SKILLS:
        if of["headline"][key] is not None:
            stated, error = of["headline"][key]
            true = {name: skills[key] for name, skills in of["candidates"].items()}
            used = of["used"][key]
            free = max(value for name, value in true.items() if not is_student(name))
            found[key] = {"stated": stated, "error": error, "true": true[used], "free": not is_student(used)}
            found[key] |= {"student": true["student"], "best free": free}
    return found


def calibration_table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of all lines, the sum of them last, and what became of the choice between student and free."""
    every = [run for line in lines for run in line["runs"]]
    heads = [
        "world",
        "rows",
        "measured",
        "features",
        "runs",
        "stated - true",
        "mean size of it",
        "intervals that hold",
    ]
    total = {"world": "all", "rows": "", "measured": "", "features": "", "runs": every}
    rows = [_cells(line) for line in (*lines, total)]
    return [*table(heads, rows), "", _verdict(every), _choices(every), ""]


def _verdict(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what was asked of all runs beside what was found."""
    size, held = (
        [float(np.mean([measure(of) for of in _of(runs, key)])) for key in SKILLS]
        for measure in (_size, lambda of: _size(of) <= NINETY * of["error"])
    )
    small = sum(of < MOST_ERROR for of in size)
    # In whole percent, as the table shows them.
    within = sum(LEAST_HELD <= round(of, 2) <= MOST_HELD for of in held)
    return (
        f"Asked: a mean size below {MOST_ERROR:.2f}, which holds at {small} of {len(SKILLS)} budgets, and intervals of 90 % "
        f"that hold in {100 * LEAST_HELD:.0f} to {100 * MOST_HELD:.0f} % of the runs, which they do at {within} of {len(SKILLS)}."
    )


def _size(of: Mapping[str, Any]) -> float:
    return float(abs(of["stated"] - of["true"]))


def _cells(line: Mapping[str, Any]) -> list[str]:
    """Return the cells of a line; three numbers by budget."""
    start = [str(line[key]) for key in ("world", "rows", "measured", "features")]
    errors = {
        key: np.array([run[key]["stated"] - run[key]["true"] for run in line["runs"] if key in run]) for key in SKILLS
    }
    held = {
        key: [abs(of["stated"] - of["true"]) <= NINETY * of["error"] for of in _of(line["runs"], key)] for key in SKILLS
    }
    return [
        *start,
        str(len(line["runs"])),
        " / ".join(f"{errors[key].mean():+.2f}" for key in SKILLS),
        " / ".join(f"{np.abs(errors[key]).mean():.2f}" for key in SKILLS),
        " / ".join(f"{100 * np.mean(held[key]):.0f} %" for key in SKILLS),
    ]


def _of(runs: Sequence[Mapping[str, Any]], key: str) -> Iterator[Mapping[str, Any]]:
    return (run[key] for run in runs if key in run)


def _choices(runs: Sequence[Mapping[str, Any]]) -> str:
    every = [of for key in SKILLS for of in _of(runs, key)]
    free = [of for of in every if of["free"]]
    kept = [of for of in every if not of["free"]]
    right = sum(of["true"] >= of["student"] for of in free)
    better = sum(of["student"] >= of["best free"] for of in kept)
    return (
        f"A free similarity was used instead of the student in {len(free)} of {len(every)} selections, and selected no worse in "
        f"{right} of these. Where the student was kept, it selected no worse than the best free similarity in hindsight in "
        f"{better} of {len(kept)}."
    )
