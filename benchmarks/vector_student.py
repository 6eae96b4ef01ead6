"""A linear teacher's vectors learned as features, beside its pairs: `python benchmarks/vector_student.py judge --world DIR`.

LESS gives a row two vectors, whose inner products are its utilities. Ridge regression of these vectors on what the student reads,
`t = W T`, `s = W S`, predicts `W (T S') W'`: of the measured rows it needs no more than their utilities, each row's with itself
among them, which pairs do not have. So it is computed here from a real world's matrix (see real.py), with the same labels,
features and budgets as the default student. `kept`: measured rows keep their own vectors, which meet predicted ones of others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from judging import AGREEMENT, SKILLS, Seen, Way, World, label, pm, spread, table
from real_world import RealWorld, default_folder
from rivals import measured

from nncift.core.pairs import UtilityMatrix
from nncift.evaluation.metrics import r2, spearman
from nncift.labels import LabelBudget
from nncift.labels.pair_labels import combine
from nncift.storage.vector_store import load_array
from nncift.student.block_ridge import CONSTANT, PENALTIES
from nncift.student.item_features import ItemFeatures

Doubles = npt.NDArray[np.float64]
SHARE_OF_ROWS = {240: 0.2, 600: 0.1}
STUDENTS = ("product", "vectors", "vectors, kept")


def main() -> None:
    """Judge all students on the pools of a world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["judge"])
    parser.add_argument("--world", type=Path, default=default_folder("smollm2"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    real = RealWorld(given.world)
    whole = load_array(real.array("less")).astype(np.float64)
    rows = []
    for world in real.worlds(["less"]):
        for student in STUDENTS:
            line = spread([judged(world, whole, student, seed) for seed in range(given.seeds)])
            rows.append([world.name, student, *(pm(line, key) for key in (*AGREEMENT, *SKILLS))])
            print(*rows[-1], sep=" | ", flush=True)
    print("\n".join(table(["world", "student", "R²", "Spearman", *SKILLS], rows)))


def judged(world: World, whole: Doubles, student: str, seed: int) -> Mapping[str, float]:
    """Return R^2 and Spearman on pairs that were not measured, and skill, of one student on the labels of one plan."""
    way = Way("product", "default", "probe", LabelBudget(SHARE_OF_ROWS[len(world.matrix.source_ids)], None, "rows"))
    if student == "product":
        figures: dict[str, float] = measured(world, way, seed)["figures"]
        return figures
    seen = label(world, world.vectors["probe"], way.label_budget, seed)
    values = vectors_of(world, whole, seen, kept=student != "vectors")
    known = combine(dict(seen.labels)).present()
    left = np.isfinite(world.matrix.values)
    left[known.target, known.source] = False
    truth, guess, once = world.matrix.values[left].astype(np.float64), values[left], np.ones(int(left.sum()))
    found = {
        "r2": float(r2(truth, guess, float(known.value.mean(dtype=np.float64)), once)),
        "spearman": float(spearman(truth, guess, once)),
    }
    values[known.target, known.source] = known.value
    np.fill_diagonal(values, np.nan)
    ids = world.matrix.source_ids
    return {**found, **world.skills(UtilityMatrix(ids, ids, np.asfortranarray(values, np.float32)))}


def vectors_of(world: World, whole: Doubles, seen: Seen, *, kept: bool) -> Doubles:
    """Return utilities of all pairs from predicted vectors, with the penalty that predicts left-out rows best."""
    vectors, size = world.vectors["probe"], len(world.matrix.source_ids)
    codes = np.unique(combine(dict(seen.labels)).present().source)
    utility, apart = whole[:size, :size][np.ix_(codes, codes)], ~np.eye(len(codes), dtype=bool)
    features = ItemFeatures.of(seen.training_data(vectors)).rows(vectors.sources)
    kernel = features @ features[codes].T + CONSTANT
    own, errors, maps = kernel[codes], [], []
    for penalty in PENALTIES:
        inverse = np.linalg.inv(own + penalty * np.eye(len(codes)))
        hat = own @ inverse
        without = hat / (1 - np.diag(hat))[:, None]
        np.fill_diagonal(without, 0.0)
        errors.append(float(np.mean((utility - without @ utility @ without.T)[apart] ** 2)))
        maps.append(kernel @ inverse)
    best = maps[int(np.argmin(errors))]
    if kept:
        best[codes] = np.eye(len(codes))
    return np.asarray(best @ utility @ best.T)


if __name__ == "__main__":
    main()
