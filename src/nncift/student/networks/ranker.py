"""The rival `ranker`: two linear maps trained to rank the sources of each target (docs/method.md, section 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nncift.core.seeds import derive
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.networks.bilinear import Towers


class Ranker(Towers):
    """Two towers without a path from similarity, whose weights are trained on the order of sources."""

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Train by Adam on RankNet's loss (`student.rank_training`)."""
        from nncift.student.rank_training import fit_ranker

        return fit_ranker(training_data, seed=seed, advance=advance)

    @classmethod
    def refit(
        cls, training_data: TrainingData, *, courses: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> FittedStudent | None:
        """Train as many steps as earlier fits needed, with the slope that they found on pairs they had not seen."""
        from nncift.student.rank_training import RankChoices, fit_ranker

        choices = RankChoices.agreed(courses)
        return fit_ranker(training_data, seed=derive(0, "ranker"), choices=choices, advance=advance)
