"""Runs of tests that look neither at intervals nor at how sure a selection is: resamples, refits and epochs are few."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, partialmethod

import pytest


def hasten(patch: pytest.MonkeyPatch, epochs: int | None = None) -> None:
    """Draw fewer resamples and refits; epochs: of students that are trained by descent."""
    from nncift.evaluation.fidelity import measure
    from nncift.selection.stability import Refits

    patch.setattr("nncift.evaluation.fidelity.measure", partial(measure, resamples=20))
    patch.setattr("nncift.evaluation.selection_skill.RESAMPLES", 8)
    patch.setattr(Refits, "stability", partialmethod(Refits.stability, refits=4))
    if epochs is not None:
        from nncift.student.paper_recipe import RECIPES

        patch.setitem(RECIPES, "default", replace(RECIPES["default"], epochs=epochs))
