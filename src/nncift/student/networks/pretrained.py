"""The student in the package: a fixed map of embeddings (`student.pretrained_map`), to which labels give slope and intercept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nncift.errors import DataError
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.networks.bilinear import Towers


class Pretrained(Towers):
    """Two towers whose weights were learned before."""

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Fit slope and intercept. Raises UsageError for embeddings of another encoder, DataError for a pointwise teacher."""
        from nncift.student.free_similarity import pretrained_student

        if not training_data.targets.shape[1]:
            raise DataError(
                "--student pretrained predicts utilities of pairs, and a pointwise teacher has none; give another --student"
            )
        advance(1)
        return pretrained_student(training_data)[0]

    @classmethod
    def refit(
        cls, training_data: TrainingData, *, courses: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> FittedStudent | None:
        """Fit slope and intercept to other labels."""
        return cls.learn(training_data, recipe="default", seed=0, advance=advance)
