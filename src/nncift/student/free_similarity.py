"""Free students: similarity alone, with a slope and an intercept from the training labels and nothing else learned.

They are the baselines that a student has to beat (method.md 2), as students, so that selection can use one where it is better;
and they are where the ridge regression of the others starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nncift.core.arrays import Codes, Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import ranges
from nncift.models.views import HIDDEN, OUTPUT, TEXT, centre_of, unit
from nncift.storage.vector_store import rows_of
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.pretrained_map import PRETRAINED, applies, mapped, mapping

NAMES = {TEXT: "cosine", HIDDEN: "hidden", OUTPUT: "output"}
GATHERED = 1 << 15
"""Pairs whose vectors are gathered at once."""

SUM = "sum"
"""The cosines of all views, each in units of its spread over the training pairs."""


@dataclass(frozen=True)
class ViewCosines:
    """The rows that the labelled pairs are about, view by view, as vectors of length 1 after `centres` were taken off.

    used: their codes, see `TrainingData.used`. Centres are those of all rows.
    """

    used: tuple[Codes, Codes]
    target: dict[str, Floats]
    source: dict[str, Floats]
    centres: dict[str, Floats]

    @classmethod
    def of(cls, training_data: TrainingData) -> ViewCosines:
        """Centre and scale the views that have a cosine; none for a pointwise teacher."""
        target, source, centres = {}, {}, {}
        same = training_data.targets is training_data.sources
        for name in training_data.views.similar if training_data.targets.shape[1] else ():
            axes = (training_data.sources,) if same else (training_data.targets, training_data.sources)
            raw = [training_data.views.take(axis, name) for axis in axes]
            centres[name] = centre_of(name, raw)
            parts = zip((raw[0], raw[-1]), training_data.used, strict=True)
            target[name], source[name] = (unit(rows_of(part, rows), centres[name]) for part, rows in parts)
        return cls(training_data.used, target, source, centres)

    def cosine(self, name: str, pairs: LabelledPairs) -> Doubles:
        """Return the cosines of labelled pairs in a view, `(n_pairs,)`."""
        target, source = (np.searchsorted(*both) for both in zip(self.used, (pairs.target, pairs.source), strict=True))
        found = np.empty(len(pairs))
        for at in ranges(len(pairs), GATHERED):
            found[at] = np.einsum("nd,nd->n", self.target[name][target[at]], self.source[name][source[at]])
        return found


def free_lines(
    training_data: TrainingData, alike: ViewCosines, *, rising: bool = True
) -> dict[str, tuple[float, dict[str, float]]]:
    """Return by name the intercept, and the slope of every view's cosine, fitted to the training labels.

    rising: only those that rise; where alike items help each other less, similarity is no predictor to select by.
    """
    train = training_data.train.present()
    cosine = {name: alike.cosine(name, train) for name in alike.centres}
    wanted = {NAMES[name]: {name: 1.0} for name in cosine}
    if len(cosine) > 1:
        wanted[SUM] = {name: 1.0 / (float(values.std()) or 1.0) for name, values in cosine.items()}
    found = {}
    for name, sizes in wanted.items():
        x = np.sum([size * cosine[view] for view, size in sizes.items()], axis=0)
        slope, intercept = _line(x, train.value)
        if slope > 0 or not rising:
            found[name] = intercept, {view: slope * size for view, size in sizes.items()}
    return found


def free_students(training_data: TrainingData, *, rising: bool = True) -> dict[str, FittedStudent]:
    """Return similarity students (networks `towers`) by name, `rising` as in `free_lines`; none for a pointwise teacher."""
    if not len(training_data.train.present()):
        return {}
    alike = ViewCosines.of(training_data)
    lines = free_lines(training_data, alike, rising=rising)
    found = {
        name: FittedStudent(_towers(training_data, alike, slopes), intercept, 1.0, {})
        for name, (intercept, slopes) in lines.items()
    }
    if training_data.targets.shape[1] and applies(training_data.views):
        learned, slope = pretrained_student(training_data)
        found |= {PRETRAINED: learned} if slope > 0 or not rising else {}
    return found


def pretrained_student(training_data: TrainingData) -> tuple[FittedStudent, float]:
    """Return the map in the package with a slope and an intercept from the labels, as `towers`, and the slope.

    Raises UsageError where rows were embedded by another encoder.
    """
    train, views = training_data.train.present(), training_data.views
    x = np.empty(len(train))
    for at in ranges(len(train), GATHERED):
        rows = (training_data.targets, train.target[at]), (training_data.sources, train.source[at])
        x[at] = np.einsum("nd,nd->n", *(mapped(views, rows_of(*of)) for of in rows))
    slope, intercept = _line(x, train.value)
    weight, bias = np.zeros((views.dim, mapping().shape[1]), np.float32), mapping()[-1]
    weight[views.place(TEXT)] = mapping()[:-1]
    size = np.float32(slope)
    weights = {"target_weight": weight * size, "target_bias": bias * size, "source_weight": weight, "source_bias": bias}
    return FittedStudent(weights, intercept, 1.0, {}), slope


def _line(x: Doubles, value: Floats) -> tuple[float, float]:
    """Return slope and intercept of values over `x`."""
    spread = float(np.var(x)) if len(x) else 0.0
    slope = float(np.mean((x - x.mean()) * value)) / spread if spread > 0 else 0.0
    return slope, float(value.mean(dtype=np.float64)) - slope * float(x.mean())


def tail_of(training_data: TrainingData, spread: float) -> tuple[dict[str, Floats], float] | None:
    """Return weights and mean of a tail: similarity over all views with this spread over the training pairs, in label units.

    None where similarity predicts nothing, or is the same for all pairs.
    """
    train = training_data.train.present()
    alike = ViewCosines.of(training_data)
    lines = free_lines(training_data, alike)
    name = SUM if SUM in lines else next(iter(lines), None)
    if name is None:
        return None
    slopes = lines[name][1]
    x = np.sum([slope * alike.cosine(view, train) for view, slope in slopes.items()], axis=0)
    size = spread / float(x.std())
    return _towers(training_data, alike, {view: size * slope for view, slope in slopes.items()}), size * float(x.mean())


def _towers(training_data: TrainingData, alike: ViewCosines, slopes: Mapping[str, float]) -> dict[str, Floats]:
    """Return the weights of towers that hold nothing but similarity."""
    nothing, zero = np.zeros((training_data.views.dim, 1), np.float32), np.zeros(1, np.float32)
    weights = {"target_weight": nothing, "target_bias": zero, "source_weight": nothing, "source_bias": zero}
    for view, slope in slopes.items():
        weights |= {f"{view}_powers": np.array([slope], np.float32), f"{view}_centre": alike.centres[view]}
    return weights
