"""Finding bad rows: how well a score tells rows that are known to be bad from the others (area under the ROC curve).

One sign for all: a low score is suspicious. Teachers and students keep their own direction, a row's score being its mean utility
over the targets (method.md 4): what they would take last is suspicious. A short response is, too. The loss is turned around: as
a teacher it takes first what the model does not know, and here a high loss is suspicious. `ifd` is the teacher's ranking (ratios
above 1 last); `ifd ratio` has the ratio itself turned around, high being suspicious: a prompt that does not help. Embeddings of a
run say `near copy` (a very similar other row is suspicious) and, the other way round, `off-topic`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles
from nncift.core.pairs import UtilityMatrix
from nncift.core.result_types import Record
from nncift.core.seeds import generator
from nncift.data.examples import Examples
from nncift.errors import DataError, UsageError
from nncift.evaluation.bootstrap import MIN_ITEMS, percentile_interval
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.teachers import RowTeacher

Scores = Mapping[str, float]

BLOCK, LEVEL = 64, 0.95
"""Resamples per block, and the level of intervals."""

ROWS = 64
"""Rows that a teacher measures at once."""

FREE = ("random", "length", "loss", "ifd")
"""Teachers whose scores of all rows `free_scores` gives."""

NEAREST_BLOCK = 512
"""Rows that are held against all others at once."""


@dataclass(frozen=True)
class Difference(Record):
    """How much larger one score's area is than another's, on the same rows; interval: None with too few rows."""

    score: str
    other: str
    difference: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Found(Record):
    """Areas of several scores on the same rows, for each score's name.

    auc: chance that a bad row scores below a good one, ties counted half; 0.5 = chance, below it: the wrong way round.
    intervals: over other rows, bad and good ones drawn apart. bad, good: rows judged. left_out: rows that some score has no
    number for; without: their number by score.
    """

    auc: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float] | None]
    differences: tuple[Difference, ...]
    bad: int
    good: int
    left_out: int
    without: Mapping[str, int]
    level: float


def auc(scores: Scores, bad: Collection[str]) -> float:
    """Return the chance that a bad row scores below a good one, ties counted half.

    bad: ids among those of `scores`. Raises DataError without a bad or a good row, and for a score that is no number.
    """
    ids = sorted(scores)
    values = np.array([[scores[item] for item in ids]], np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            "a score is no finite number; give only rows that have one, or use find_bad, which counts the others"
        )
    mask = _mask(ids, bad)
    return float(_areas(values, mask, np.ones((len(ids), 1)))[0, 0])


def find_bad(
    scores: Mapping[str, Scores],
    bad: Collection[str],
    *,
    against: Collection[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Found:
    """Return the areas of named scores on the rows that all of them have, with intervals.

    scores: by name, each row's score by id, NaN or missing where there is none. against: names of scores that every other is
    held against, the differences drawn with the same rows. Raises UsageError without a score and for an unknown name in
    `against`, DataError where no bad or no good row is left.
    """
    unknown = [name for name in against if name not in scores]
    if not scores or unknown:
        raise UsageError(f"find_bad needs at least one score and knows {sorted(scores)}; against names {unknown}")
    every = sorted(set().union(*scores.values()))
    table = np.array([[of.get(item, np.nan) for item in every] for of in scores.values()], np.float64)
    has = np.isfinite(table)
    kept = has.all(axis=0)
    ids = [every[place] for place in np.flatnonzero(kept)]
    values, mask = table[:, kept], _mask(ids, set(bad) & set(ids))
    names = list(scores)
    found = dict(zip(names, _areas(values, mask, np.ones((len(ids), 1)))[:, 0].tolist(), strict=True))
    drawn = _draws(values, mask, resamples, seed)
    row = {name: place for place, name in enumerate(names)}
    differences = tuple(
        Difference(name, other, found[name] - found[other], _interval(drawn[row[name]] - drawn[row[other]]))
        for other in against
        for name in names
        if name != other and name not in against
    )
    return Found(
        found,
        {name: _interval(drawn[row[name]]) for name in names},
        differences,
        int(mask.sum()),
        int((~mask).sum()),
        len(every) - len(ids),
        dict(zip(names, (~has).sum(axis=1).tolist(), strict=True)),
        LEVEL,
    )


def bad_data(
    examples: Examples,
    bad: Collection[str],
    *,
    runs: Mapping[str, Path] | None = None,
    matrices: Mapping[str, UtilityMatrix] | None = None,
    lm: CausalLM | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Found:
    """Return how well teachers, their students and what is free find known-bad rows of a pool.

    bad: ids of the bad rows. runs: name -> directory of a finished run on these examples; its rows' scores are its student's (and
    its teacher's where it was asked). matrices: name -> every pair's utility by a teacher (`truth.true_matrix`), a low mean being
    suspicious. lm: a model for loss and IFD, which are left out without one. Length and random are always there. The others are
    held against random, loss and length. Raises UsageError where a name stands for two scores, and the errors of `find_bad`.
    """
    scores = pool_scores(examples, runs=runs, matrices=matrices, lm=lm, seed=seed)
    return judge(scores, bad, seed=seed, resamples=resamples)


def pool_scores(
    examples: Examples,
    *,
    runs: Mapping[str, Path] | None = None,
    matrices: Mapping[str, UtilityMatrix] | None = None,
    lm: CausalLM | None = None,
    seed: int = 0,
) -> dict[str, Scores]:
    """Return every score of `bad_data` for every row of a pool, NaN where it has none."""
    finished = {name: FinishedRun(folder) for name, folder in (runs or {}).items()}
    parts: list[dict[str, Scores]] = [
        {name: matrix_scores(matrix) for name, matrix in (matrices or {}).items()},
        {name: run_scores(run) for name, run in finished.items()},
        embedding_scores(next(iter(finished.values()))) if finished else {},
        free_scores(examples, lm, seed),
    ]
    twice = [name for name, count in Counter(name for part in parts for name in part).items() if count > 1]
    if twice:
        raise UsageError(
            f"{twice[0]!r} names two scores; random, length, loss, ifd, ifd ratio, near copy and off-topic are those of the "
            "rows alone"
        )
    return {name: {item: of.get(item, np.nan) for item in examples.ids} for part in parts for name, of in part.items()}


def judge(
    scores: Mapping[str, Scores],
    bad: Collection[str],
    *,
    among: Collection[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Found:
    """Return how well the scores of a pool find bad rows, against random, loss and length.

    among: ids of the rows that are judged, the bad ones included; None: all. Raises UsageError where a bad row has no place in
    them, and the errors of `find_bad`.
    """
    judged = {
        name: of if among is None else {item: of[item] for item in of if item in among} for name, of in scores.items()
    }
    missing = set(bad) - set().union(*judged.values())
    if missing:
        raise UsageError(f"{len(missing)} ids of bad rows are not in the pool, the first: {min(missing)!r}")
    against = [name for name in ("random", "loss", "length") if name in judged]
    return find_bad(judged, bad, against=against, seed=seed, resamples=resamples)


def matrix_scores(matrix: UtilityMatrix) -> dict[str, float]:
    """Return every source's mean utility over the targets."""
    return dict(zip(matrix.source_ids, matrix.mean_per_source().tolist(), strict=True))


def run_scores(run: FinishedRun) -> dict[str, float]:
    """Return the score of every row of a finished run, its mean utility as the selection saw it; a loss is turned around."""
    sign = -1.0 if run.settings.teacher == "loss" else 1.0
    return {item: np.nan if row.score is None else sign * float(row.score) for item, row in run.choices.items()}


def embedding_scores(run: FinishedRun) -> dict[str, Scores]:
    """Return what embeddings alone say: `near copy`, suspicious with a very similar other row; `off-topic`, without one."""
    ids = run.rows.ids
    nearest = dict(zip(ids, nearest_other(run.vectors(ids)).tolist(), strict=True))
    return {"near copy": {item: -value for item, value in nearest.items()}, "off-topic": nearest}


def nearest_other(vectors: npt.NDArray[np.float32]) -> Doubles:
    """Return the cosine of each unit vector `(n, dim)` with the nearest other one; -inf for a single one."""
    nearest = np.empty(len(vectors))
    for start in range(0, len(vectors), NEAREST_BLOCK):
        cosine = vectors[start : start + NEAREST_BLOCK] @ vectors.T
        at = np.arange(len(cosine))
        cosine[at, start + at] = -np.inf
        nearest[start : start + NEAREST_BLOCK] = cosine.max(axis=1)
    return nearest


def free_scores(examples: Examples, lm: CausalLM | None = None, seed: int = 0) -> dict[str, Scores]:
    """Return the scores that cost at most two passes a row: random, length and, with a model, loss and IFD."""
    from nncift.teachers.given_scores import Length, Random
    from nncift.teachers.ifd import Ifd
    from nncift.teachers.loss import Loss

    found: dict[str, Scores] = {
        "random": teacher_scores(Random(seed), examples),
        "length": teacher_scores(Length(), examples),
    }
    if lm is not None:
        found["loss"] = {item: -value for item, value in teacher_scores(Loss(lm), examples).items()}
        ratio = teacher_scores(Ifd(lm, above_one="keep"), examples)
        found["ifd"] = {item: 0.0 if value > 1 else value for item, value in ratio.items()}
        found["ifd ratio"] = {item: -value for item, value in ratio.items()}
    return found


def teacher_scores(teacher: RowTeacher, examples: Examples) -> dict[str, float]:
    """Return a pointwise teacher's scores, NaN for rows that it refuses."""
    refused = {(one.source, one.line) for one in teacher.prepare(examples)}
    found = dict.fromkeys(examples.ids, np.nan)
    usable = [one.id for one in examples if (one.source, one.line) not in refused]
    for start in range(0, len(usable), ROWS):
        block = usable[start : start + ROWS]
        found.update(zip(block, teacher.measure(block).values[:, 0].astype(np.float64).tolist(), strict=True))
    return found


def _mask(ids: list[str], bad: Collection[str]) -> npt.NDArray[np.bool_]:
    known = set(bad)
    mask = np.array([item in known for item in ids], bool)
    if not mask.any() or mask.all():
        raise DataError(
            f"{int(mask.sum())} of {len(ids)} rows with a score are bad; finding them needs at least one bad and one good row"
        )
    return mask


def _interval(values: Doubles) -> tuple[float, float] | None:
    return percentile_interval(values, LEVEL) if len(values) else None


def _draws(values: Doubles, bad: npt.NDArray[np.bool_], resamples: int, seed: int) -> Doubles:
    """Return areas with rows drawn again, `(n_scores, resamples)`; none where bad or good rows are too few."""
    if min(int(bad.sum()), int((~bad).sum())) < MIN_ITEMS:
        return np.zeros((len(values), 0))
    random = generator(seed, "evaluate", "detection")
    found = []
    for start in range(0, resamples, BLOCK):
        weights = np.empty((len(bad), min(BLOCK, resamples - start)))
        for group in (bad, ~bad):
            size = int(group.sum())
            weights[group] = random.multinomial(size, np.full(size, 1 / size), size=weights.shape[1]).T
        found.append(_areas(values, bad, weights))
    return np.concatenate(found, axis=1)


def _areas(values: Doubles, bad: npt.NDArray[np.bool_], weights: Doubles) -> Doubles:
    """Return the areas of scores `(n_scores, n)` under weights of the rows `(n, n_draws)`: `(n_scores, n_draws)`."""
    pairs = weights[bad].sum(axis=0) * weights[~bad].sum(axis=0)
    found = np.empty((len(values), weights.shape[1]))
    for place, row in enumerate(values):
        order = np.argsort(row, kind="stable")
        changes = np.diff(row[order]) != 0
        starts = np.flatnonzero(np.r_[True, changes])
        good = np.add.reduceat(np.where(bad[order, None], 0.0, weights[order]), starts, axis=0)
        wrong = np.add.reduceat(np.where(bad[order, None], weights[order], 0.0), starts, axis=0)
        above = good.sum(axis=0) - np.cumsum(good, axis=0)
        found[place] = (wrong * (above + 0.5 * good)).sum(axis=0) / pairs
    return found
