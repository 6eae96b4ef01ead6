"""Networks conform, ours and those that somebody brings; broken ones are told what is wrong."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from nncift.core.arrays import Codes, Floats
from nncift.errors import DataError
from nncift.models.views import Views
from nncift.student.networks import NETWORKS, FittedStudent, TrainingData, Weights, network
from nncift.student.pretrained_map import PRETRAINED
from nncift.testing import ConformanceError, check_network

Make = Callable[..., TrainingData]


class Constant:
    """A network as it should be: each item has a number, and a pair has their product."""

    recipes: ClassVar[tuple[str, ...]] = ("default",)
    width = 1

    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        slope = weights.get("slope")
        if slope is None or slope.dtype != np.float32 or slope.shape != (views.dim if views else 0,):
            raise DataError("slope does not fit")
        self._slope, self._mean, self._scale = slope, np.float32(mean), np.float32(scale)

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        slope = np.ones(training_data.views.dim, np.float32)
        return FittedStudent({"slope": slope}, float(training_data.train.value.mean()), 1.0, {"epochs": 0})

    def project_targets(self, vectors: Floats) -> Floats:
        found: Floats = (vectors @ self._slope)[:, None]
        return found

    def project_sources(self, vectors: Floats) -> Floats:
        return self.project_targets(vectors)

    def block(self, targets: Floats, sources: Floats) -> Floats:
        return np.asarray(np.asfortranarray(targets @ sources.T) * self._scale + self._mean, order="F")

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        return np.asarray(targets[target, 0] * sources[source, 0] * self._scale + self._mean, np.float32)


class NoRecipe(Constant):
    recipes = ()


class Moody(Constant):
    asked = 0

    @classmethod
    def learn(cls, training_data: TrainingData, **given: Any) -> FittedStudent:
        cls.asked += 1
        learned = super().learn(training_data, **given)
        return FittedStudent({"slope": learned.weights["slope"] * np.float32(cls.asked)}, learned.mean, 1.0, {})


class Burst(Constant):
    @classmethod
    def learn(cls, training_data: TrainingData, **given: Any) -> FittedStudent:
        learned = super().learn(training_data, **given)
        return FittedStudent({"slope": learned.weights["slope"] * np.float32(np.nan)}, learned.mean, 1.0, {})


class Wide(Constant):
    width = 2


class Turned(Constant):
    def block(self, targets: Floats, sources: Floats) -> Floats:
        return super().block(targets[:4], sources).T


class RowOrder(Constant):
    def block(self, targets: Floats, sources: Floats) -> Floats:
        return np.ascontiguousarray(super().block(targets, sources))


class Centring(Constant):
    """Centres by the batch: the mistake that is made most."""

    def project_sources(self, vectors: Floats) -> Floats:
        found = super().project_sources(vectors)
        return np.asarray(found - found.mean(), np.float32)


class Positions(Constant):
    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        return super().pairs(targets, sources, np.sort(target), np.sort(source))


class Trusting(Constant):
    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        self._slope, self._mean, self._scale = weights["slope"], np.float32(mean), np.float32(scale)


class Careless(Constant):
    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        slope = weights.get("slope", np.zeros(1, np.float32))
        self._slope, self._mean, self._scale = slope, np.float32(mean), np.float32(scale)


class Untold(Constant):
    @classmethod
    def learn(cls, training_data: TrainingData, **given: Any) -> FittedStudent:
        learned = super().learn(training_data, **given)
        return FittedStudent(learned.weights, learned.mean, 1.0, {"net": object()})


ANY_VECTORS = [name for name in NETWORKS if name != PRETRAINED]
"""Networks of vectors of any encoder; `test_pretrained.py` has the one that reads those of minilm alone."""


@pytest.mark.parametrize("views", ["text", "probe"])
@pytest.mark.parametrize("name", ANY_VECTORS)
def test_shipped_networks_conform(name: str, views: str, training_data: Make) -> None:
    check_network(network(name), training_data(views=views))


@pytest.mark.parametrize("name", ANY_VECTORS)
def test_they_conform_for_a_pointwise_teacher_too(name: str, training_data: Make) -> None:
    check_network(network(name), training_data(pointwise=True))


def test_a_sound_plug_in_passes(training_data: Make) -> None:
    check_network(Constant, training_data())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (NoRecipe, r"has recipes \(\), not a tuple of names"),
        (Moody, "learns something else from the same training data and seed"),
        (Burst, "learns slope that is not an array of finite float32"),
        (Wide, r"projects targets to \(36, 1\), not \(36, 2\)"),
        (Turned, r"predicts a block of \(36, 4\), not"),
        (RowOrder, "not in Fortran order"),
        (Centring, "predicts a source differently beside others"),
        (Positions, "predicts pairs unlike their block"),
        (Careless, "takes slope with float64"),
        (Trusting, "takes slope with float64"),
        (Untold, "has a course that JSON cannot hold"),
    ],
)
def test_broken_networks_are_told_what_is_wrong(made: Any, said: str, training_data: Make) -> None:
    with pytest.raises(ConformanceError, match=said):
        check_network(made, training_data())
