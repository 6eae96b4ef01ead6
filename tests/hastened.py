"""Runs of tests that look neither at intervals nor at how sure a selection is: resamples, refits, folds and epochs are few."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, partialmethod

import pytest


def hasten(patch: pytest.MonkeyPatch, epochs: int | None = None) -> None:
    """Draw fewer resamples, refits, repetitions and folds; epochs: of students that are trained by descent."""
    from nncift.evaluation.fidelity import measure
    from nncift.selection.stability import Refits

    patch.setattr("nncift.evaluation.fidelity.measure", partial(measure, resamples=20))
    patch.setattr("nncift.evaluation.selection_skill.RESAMPLES", 8)
    for name, count in {"MOST_REPETITIONS": 6, "LEAST_REPETITIONS": 6, "FEWER_REPETITIONS": 3}.items():
        patch.setattr(f"nncift.evaluation.repeated_runs.{name}", count)
    patch.setattr("nncift.evaluation.cross_fit.FOLDS", 4)
    patch.setattr("nncift.evaluation.cross_fit.FEWER_FOLDS", 3)
    patch.setattr(Refits, "stability", partialmethod(Refits.stability, refits=4))
    if epochs is not None:
        from nncift.student.paper_recipe import RECIPES

        patch.setitem(RECIPES, "default", replace(RECIPES["default"], epochs=epochs))
