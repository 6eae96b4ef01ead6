"""The networks that a student can have, behind one protocol (docs/method.md, section 2).

A network turns every item into a projection, once, and the value of a pair is cheap arithmetic on two projections; no
concatenated pair is ever built. Other packages add networks as entry points of `nncift.students`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from nncift.core.arrays import Codes, Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.plugins import class_of
from nncift.errors import DataError
from nncift.models.views import Views

Weights = Mapping[str, Floats]

NETWORKS: Mapping[str, str] = {
    "paper": "nncift.student.networks.paper:Paper",
    "towers": "nncift.student.networks.bilinear:Towers",
    "product": "nncift.student.networks.bilinear:Product",
    "landmark": "nncift.student.networks.landmark:Landmark",
    "ranker": "nncift.student.networks.ranker:Ranker",
    "pretrained": "nncift.student.networks.pretrained:Pretrained",
}


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from.

    train, validation: labelled pairs, missing values removed. targets, sources: `(n_targets, dim)` and `(n_sources, dim)` on the
    axes of the pairs; dim 0 for a pointwise teacher's one target. views: what the vectors consist of.
    """

    train: LabelledPairs
    validation: LabelledPairs
    targets: Floats
    sources: Floats
    views: Views

    @property
    def known(self) -> LabelledPairs:
        """Training pairs that have a value. Raises DataError where none has."""
        found = self.train.present()
        if not len(found):
            raise DataError(
                f"no training pair has a label: the teacher gave no number for any of the {len(self.train)} planned pairs, as it "
                "does for rows that are too long for its context; check its values, or label other rows (--seed)"
            )
        return found

    @cached_property
    def used(self) -> tuple[Codes, Codes]:
        """Codes of the targets and of the sources that the pairs are about, ascending: few of the rows of a large pool."""
        target, source = (
            np.unique(np.concatenate([getattr(self.train, axis), getattr(self.validation, axis)]))
            for axis in ("target", "source")
        )
        return target, source


def scaling(values: Floats) -> tuple[float, float]:
    """Return mean and standard deviation of labels; 1 in the place of a deviation of 0."""
    spread = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), spread if spread > 0 else 1.0


@dataclass(frozen=True)
class FittedStudent:
    """Weights of a trained network, the labels' mean and scale, and the course of training as JSON."""

    weights: dict[str, Floats]
    mean: float
    scale: float
    course: Mapping[str, Any]


class Predictor(Protocol):
    """Predicts pairs from projections of their two items, in units of the labels."""

    @property
    def width(self) -> int:
        """Numbers per projection."""
        ...

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, width)`."""
        ...

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, width)`."""
        ...

    def block(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` predictions for all pairs of two sets of projections, in Fortran order."""
        ...

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        """Return `(n_pairs,)` predictions for pairs given by codes into projections."""
        ...


class Network(Predictor, Protocol):
    """A trained network: made from weights, and from `views` what its vectors consist of.

    Raises DataError on construction where weights are missing or do not fit each other: compiled code would read beyond their
    ends. recipes: ways to train it.
    """

    recipes: ClassVar[tuple[str, ...]]

    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None: ...

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Train; deterministic from the seed on one machine. Raises DataError where labels are too few."""
        ...


@runtime_checkable
class Refittable(Protocol):
    """Optional ability of a network: it can be fitted again on all labels with what several fits have decided."""

    @classmethod
    def refit(
        cls, training_data: TrainingData, *, courses: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> FittedStudent:
        """Train without looking at its validation pairs. courses: of the fits that did."""
        ...


def refittable(made: type[Network]) -> type[Refittable] | None:
    """Return a network that can be fitted again with settled choices; None for one that needs validation pairs each time."""
    return made if issubclass(made, Refittable) else None


def network(name: str) -> type[Network]:
    """Return the network registered under a name. Raises UsageError as `class_of`."""
    return class_of("student", name, NETWORKS, "nncift.students")
