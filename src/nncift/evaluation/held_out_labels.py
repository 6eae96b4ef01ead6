"""What students predict of labels that they have not seen, and how they are fitted for it (docs/method.md, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive
from nncift.evaluation.baselines import fit_baselines, predict_quadrants
from nncift.evaluation.selection_skill import Block
from nncift.labels.vectors import Vectors
from nncift.models.views import TEXT
from nncift.student.candidates import OTHER, Candidate
from nncift.student.networks import FittedStudent, TrainingData, network, refittable

Quadrants = dict[str, LabelledPairs]


def silent(step: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Recipe:
    """Which network learns, and how."""

    student: str
    recipe: str
    seed: int

    @property
    def other(self) -> Recipe | None:
        """The student that is fitted beside this one, None beside all but the default."""
        return Recipe(OTHER, self.recipe, self.seed) if (self.student, self.recipe) == ("product", "default") else None

    def learn(self, training_data: TrainingData) -> FittedStudent:
        """Train on data that has validation pairs."""
        return network(self.student).learn(
            training_data, recipe=self.recipe, seed=derive(self.seed, "student"), advance=silent
        )


@dataclass(frozen=True)
class HeldOut:
    """What is known of a student's predictions where it has not seen the labels.

    quadrants: labelled pairs by what was seen of them. predictions: predictor to quadrant to `(n_pairs,)`. blocks: items on which
    selections are repeated. folds: 1 = items that the plan set apart. shipped: the candidates that a run can select by, fitted on
    all labels. course: of the student's training. source_unseen: pairs whose source was not seen, with the predictions of each
    candidate. pair_blocks: pairs of which neither item was seen, likewise, in parts that have no source in common.
    """

    quadrants: Quadrants
    predictions: dict[str, dict[str, Floats]]
    blocks: tuple[Block, ...]
    folds: int
    shipped: dict[str, Candidate]
    course: Mapping[str, Any]
    source_unseen: tuple[LabelledPairs, dict[str, Floats]]
    pair_blocks: tuple[tuple[LabelledPairs, dict[str, Floats]], ...] = field(default=())


def data_of(train: LabelledPairs, validation: LabelledPairs, vectors: Vectors) -> TrainingData:
    """Return labels and vectors as a network takes them."""
    return TrainingData(train, validation, vectors.targets, vectors.sources, vectors.views)


def others_of(
    recipe: Recipe, train: LabelledPairs, validation: LabelledPairs, vectors: Vectors
) -> dict[str, Candidate]:
    """Return the student that is fitted beside another, by name; empty where none is."""
    if recipe.other is None:
        return {}
    learned = recipe.other.learn(data_of(train, validation, vectors))
    return {recipe.other.student: Candidate.of(recipe.other.student, learned, vectors)}


def fit_again(
    train: LabelledPairs,
    validation: LabelledPairs,
    courses: Sequence[Mapping[str, Any]],
    vectors: Vectors,
    recipe: Recipe,
) -> FittedStudent:
    """Return what is learned with choices that were made before, from validation pairs where a network has none."""
    again = refittable(network(recipe.student))
    if again is not None and courses:
        learned = again.refit(data_of(train, train.take(np.arange(0)), vectors), courses=courses, advance=silent)
        if learned is not None:
            return learned
    return recipe.learn(data_of(train, validation, vectors))


def fit_on_all(
    every: LabelledPairs, first: FittedStudent, courses: Sequence[Mapping[str, Any]], vectors: Vectors, recipe: Recipe
) -> FittedStudent:
    """Return what is learned from all labels where choices can be settled beforehand, else what was learned first."""
    again = refittable(network(recipe.student))
    if again is None:
        return first
    nothing = every.take(np.arange(0))
    learned = again.refit(data_of(every, nothing, vectors), courses=courses, advance=silent)
    return first if learned is None else learned


def baselines_of(
    train: LabelledPairs, validation: LabelledPairs, vectors: Vectors, quadrants: Quadrants
) -> dict[str, dict[str, Floats]]:
    """Return what baselines predict that learned from the training pairs, by name and quadrant."""
    wanted = vectors.targets if not vectors.targets.shape[1] else vectors.views.take(vectors.targets, TEXT)
    return predict_quadrants(fit_baselines(train, validation, wanted, vectors.text), quadrants)


def coded(codes: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the different codes of an axis in order, and the place of each among them: `np.unique`, without sorting."""
    there = np.bincount(codes) > 0
    return np.flatnonzero(there), (np.cumsum(there) - 1)[codes]


def same_items(pairs: LabelledPairs, targets: npt.NDArray[Any], sources: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the place among the targets of the item that each source is, -1 where it is none of them."""
    place = {pairs.target_ids[code]: row for row, code in enumerate(targets.tolist())}
    return np.array([place.get(pairs.source_ids[code], -1) for code in sources.tolist()], np.intp)
