"""Free students: similarity alone, with a slope and an intercept from the training labels and nothing else learned.

They are the baselines that a student has to beat (method.md 2), as students, so that selection can use one where it is better;
and they are where the ridge regression of the others starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import ranges
from nncift.models.views import HIDDEN, OUTPUT, TEXT, centre_of, unit
from nncift.storage.atomic import rows_of
from nncift.student.networks import Codes, Floats, Learned, Lesson

Doubles = npt.NDArray[np.float64]

NAMES = {TEXT: "cosine", HIDDEN: "hidden", OUTPUT: "output"}
GATHERED = 1 << 15
"""Pairs whose vectors are gathered at once."""

SUM = "sum"
"""The cosines of all views, each in units of its spread over the training pairs."""


@dataclass(frozen=True)
class Alike:
    """The rows that a lesson's pairs are about, view by view, as vectors of length 1 after `centres` were taken off.

    used: their codes, see `Lesson.used`. Centres are those of all rows.
    """

    used: tuple[Codes, Codes]
    target: dict[str, Floats]
    source: dict[str, Floats]
    centres: dict[str, Floats]

    @classmethod
    def of(cls, lesson: Lesson) -> Alike:
        """Centre and scale the views that have a cosine; none for a pointwise teacher."""
        target, source, centres = {}, {}, {}
        same = lesson.targets is lesson.sources
        for name in lesson.views.similar if lesson.targets.shape[1] else ():
            axes = (lesson.sources,) if same else (lesson.targets, lesson.sources)
            raw = [lesson.views.take(axis, name) for axis in axes]
            centres[name] = centre_of(name, raw)
            parts = zip((raw[0], raw[-1]), lesson.used, strict=True)
            target[name], source[name] = (unit(rows_of(part, rows), centres[name]) for part, rows in parts)
        return cls(lesson.used, target, source, centres)

    def cosine(self, name: str, pairs: LabelledPairs) -> Doubles:
        """Return the cosines of pairs of the lesson in a view, `(n_pairs,)`."""
        target, source = (np.searchsorted(*both) for both in zip(self.used, (pairs.target, pairs.source), strict=True))
        found = np.empty(len(pairs))
        for at in ranges(len(pairs), GATHERED):
            found[at] = np.einsum("nd,nd->n", self.target[name][target[at]], self.source[name][source[at]])
        return found


def free_lines(lesson: Lesson, alike: Alike, *, rising: bool = True) -> dict[str, tuple[float, dict[str, float]]]:
    """Return by name the intercept, and the slope of every view's cosine, fitted to the training labels.

    rising: only those that rise; where alike items help each other less, similarity is no predictor to select by.
    """
    train = lesson.train.present()
    cosine = {name: alike.cosine(name, train) for name in alike.centres}
    wanted = {NAMES[name]: {name: 1.0} for name in cosine}
    if len(cosine) > 1:
        wanted[SUM] = {name: 1.0 / (float(values.std()) or 1.0) for name, values in cosine.items()}
    found = {}
    for name, sizes in wanted.items():
        x = np.sum([size * cosine[view] for view, size in sizes.items()], axis=0)
        spread = float(np.var(x))
        slope = float(np.mean((x - x.mean()) * train.value)) / spread if spread > 0 else 0.0
        if slope > 0 or not rising:
            intercept = float(train.value.mean(dtype=np.float64)) - slope * float(x.mean())
            found[name] = intercept, {view: slope * size for view, size in sizes.items()}
    return found


def free_students(lesson: Lesson, *, rising: bool = True) -> dict[str, Learned]:
    """Return similarity students (networks `towers`) by name, `rising` as in `free_lines`; none for a pointwise teacher."""
    if not len(lesson.train.present()):
        return {}
    alike = Alike.of(lesson)
    lines = free_lines(lesson, alike, rising=rising)
    return {
        name: Learned(_towers(lesson, alike, slopes), intercept, 1.0, {}) for name, (intercept, slopes) in lines.items()
    }


def tail_of(lesson: Lesson, spread: float) -> tuple[dict[str, Floats], float] | None:
    """Return weights and mean of a tail: similarity over all views with this spread over the training pairs, in label units.

    None where similarity predicts nothing, or is the same for all pairs.
    """
    train = lesson.train.present()
    alike = Alike.of(lesson)
    lines = free_lines(lesson, alike)
    name = SUM if SUM in lines else next(iter(lines), None)
    if name is None:
        return None
    slopes = lines[name][1]
    x = np.sum([slope * alike.cosine(view, train) for view, slope in slopes.items()], axis=0)
    size = spread / float(x.std())
    return _towers(lesson, alike, {view: size * slope for view, slope in slopes.items()}), size * float(x.mean())


def _towers(lesson: Lesson, alike: Alike, slopes: Mapping[str, float]) -> dict[str, Floats]:
    """Return the weights of towers that hold nothing but similarity."""
    nothing, zero = np.zeros((lesson.views.dim, 1), np.float32), np.zeros(1, np.float32)
    weights = {"target_weight": nothing, "target_bias": zero, "source_weight": nothing, "source_bias": zero}
    for view, slope in slopes.items():
        weights |= {f"{view}_powers": np.array([slope], np.float32), f"{view}_centre": alike.centres[view]}
    return weights
