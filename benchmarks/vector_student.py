"""A linear teacher's vectors learned as features, beside its pairs: `python benchmarks/vector_student.py judge --world DIR`.

LESS gives a row two vectors, whose inner products are its utilities. Ridge regression of these vectors on what the student reads,
`t = W T`, `s = W S`, predicts `W (T S') W'`: of the measured rows it needs no more than their utilities, each row's with itself
among them, which pairs do not have. So it is computed here from a real world's matrix (see real.py), with the same labels,
features and budgets as the default student. `kept`: measured rows keep their own vectors, which meet predicted ones of others.

`python benchmarks/vector_student.py gist --world DIR` asks whether GIST, whose vector has one number for every target row, needs
fewer measured rows: LESS and GIST at the same checkpoint, the same target set, pool, measured rows and student. The utilities of
GIST are made first, in some minutes, and kept in the world's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from judging import AGREEMENT, SKILLS, Seen, Way, World, label, pm, spread, table
from real_world import SEED, WHOLE, Maker, Pieces, RealWorld, default_folder
from rivals import measured
from target_sets import OBJECTIVE, Task

from nncift.core.pairs import LabelledPairs, UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.evaluation.held_out_labels import Recipe, data_of
from nncift.evaluation.metrics import r2, skill, spearman
from nncift.labels import LabelBudget
from nncift.labels.pair_labels import combine
from nncift.models.causal_lm import CausalLM
from nncift.selection import pose
from nncift.selection.controls import random_ids
from nncift.storage.vector_store import load_array
from nncift.student.block_ridge import CONSTANT, PENALTIES
from nncift.student.candidates import Candidate
from nncift.student.item_features import ItemFeatures
from nncift.student.model import predict_all, with_known
from nncift.teachers import Gist

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
SHARE_OF_ROWS = {240: 0.2, 600: 0.1}
STUDENTS = ("product", "vectors", "vectors, kept")
COUNTS = (6, 12, 24, 48, 96)
"""Pool rows that are measured, of those of `target_sets`; all of its targets are."""

BUDGETS = (0.05, 0.1, 0.3)
DRAWS = 30


def main() -> None:
    """Judge all students on the pools of a world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["judge", "gist"])
    parser.add_argument("--world", type=Path, default=default_folder("smollm2"))
    parser.add_argument("--model", default="smollm2", help="gist: the world's")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    real = RealWorld(given.world)
    if given.what == "gist":
        heads = ["teacher", "pool rows measured", "R²", "Spearman", *(f"skill at {budget:.0%}" for budget in BUDGETS)]
        print("\n".join(table(heads, list(few_rows(real, given.model, given.seeds)))))
        return
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


def few_rows(real: RealWorld, model: str, seeds: int) -> Iterator[list[str]]:
    """Yield a line for each teacher and number of measured rows, over seeds of these rows."""
    whole = list(real.worlds(["less"]))[-1]
    task = Task.drawn(whole, 0)
    truths = {"LESS": task.values, "GIST": gist_values(real, task, model)}
    for teacher, truth in truths.items():
        for count in COUNTS:
            line = spread([from_few(task, truth, count, seed) for seed in range(seeds)])
            yield [teacher, str(count), *(pm(line, key) for key in line)]


def gist_values(real: RealWorld, task: Task, model: str) -> UtilityMatrix:
    """Return GIST's utilities of a task, at the checkpoint of the world's LESS; they are made where they are not there."""
    path = real.array("gist-task")
    if not path.exists():
        teacher = Gist(CausalLM.load(model), epochs=1, seed=SEED, workspace=real.folder / "less")
        if rejected := teacher.prepare(real.rows):
            raise SystemExit(f"{model!r} cannot read {len(rejected)} of the rows, the first: {rejected[0]}")
        teacher.aim(real.rows.subset(task.targets))
        items = [*task.targets, *task.pool]
        groups = [items[start : start + 24] for start in range(0, len(items), 24)]

        def join(parts: Any) -> Floats:
            features = np.concatenate(parts)
            return np.asarray(teacher.utility(features[: len(task.targets)], features[len(task.targets) :]), np.float32)

        folder = Maker(real.folder, teacher.lm)._pieces("gist", teacher.describe())
        pieces = Pieces(folder, len(groups), lambda number: teacher.measure(groups[number]).values, join)
        pieces.fill(WHOLE)
        pieces.joined(path)
    return UtilityMatrix(task.targets, task.pool, np.asfortranarray(load_array(path)))


def from_few(task: Task, truth: UtilityMatrix, count: int, seed: int) -> dict[str, float]:
    """Return R^2 and Spearman on rows that were not measured, and skill, of a student that learned from few rows."""
    vectors, values = task.vectors["probe"], truth.values
    seen = set(shuffled(task.pool, seed, "few rows")[:count])
    own = np.array([item in seen for item in task.pool])
    targets = np.arange(len(task.targets), dtype=np.int32)
    s = np.flatnonzero(own).astype(np.int32)
    t, s = np.repeat(targets, len(s)), np.tile(s, len(targets))
    known = LabelledPairs(task.targets, task.pool, t, s, values[t, s])
    learned = Recipe("product", "default", seed).learn(data_of(known, known.take(np.arange(0)), vectors))
    predicted = predict_all(Candidate.of("product", learned, vectors).student, vectors.targets, vectors.sources)
    truths, guess = (of[:, ~own].ravel().astype(np.float64) for of in (values, predicted))
    once = np.ones(len(truths))
    found = {
        "r2": float(r2(truths, guess, float(known.value.mean(dtype=np.float64)), once)),
        "spearman": float(spearman(truths, guess, once)),
    }
    problem, chosen = pose(truth, OBJECTIVE), pose(with_known(predicted, known, shared=False), OBJECTIVE)
    for budget in BUDGETS:
        k = round(budget * len(task.pool))
        chance = float(np.mean([problem.value(random_ids(task.pool, k, draw)) for draw in range(DRAWS)]))
        best, mine = (float(problem.value(of.choose(k, 0).ids)) for of in (problem, chosen))
        found[f"skill at {budget:.0%}"] = skill(mine, chance, best) or 0.0
    return found


if __name__ == "__main__":
    main()
