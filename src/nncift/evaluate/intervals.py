"""An interval for the mean utility of a row that was never labelled, from held-out rows (split conformal)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.errors import UsageError
from nncift.pairs import LabelledPairs


@dataclass(frozen=True)
class MeanUtilityInterval:
    """Half the width of the interval around a predicted mean utility; None where the held-out rows are too few."""

    half_width: float | None
    level: float
    items: int

    def note(self) -> str:
        """Return in one sentence what the interval rests on."""
        if self.half_width is None:
            return (
                f"No {self.level:.0%} interval for new rows: {self.items} held-out rows were labelled, "
                f"and it takes {_needed(self.level)}."
            )
        return f"{self.level:.0%} interval for new rows from {self.items} held-out rows."


def interval_of_mean_utility(
    held_out: LabelledPairs, prediction: npt.ArrayLike, level: float = 0.9
) -> MeanUtilityInterval:
    """Return the half-width that holds for a new row with probability `level`, with rows as the units.

    held_out: labelled pairs whose sources were not trained on (validation and test together); prediction: `(n_pairs,)`.
    A held-out row's residual is the mean of its labels minus the mean of the predictions on the same pairs. Of m such
    residuals the ceil((m+1) level)-th smallest in size covers one more exchangeable row with at least that probability.
    Two things bend the promise: a mean over the few held-out targets is noisier than one over all targets, which
    widens the interval; validation rows also decided when training stopped, which narrows it a little.
    Raises UsageError for a level outside (0, 1) and for predictions of another length.
    """
    if not 0 < level < 1:
        raise UsageError(f"level {level} given; expected a probability between 0 and 1, such as 0.9")
    guess = np.asarray(prediction, dtype=np.float64)
    if guess.shape != held_out.value.shape:
        raise UsageError(f"{guess.shape} predictions given for {len(held_out)} pairs; expected one for each pair")
    present = np.isfinite(held_out.value)
    _, row = np.unique(held_out.source[present], return_inverse=True)
    error = np.bincount(row, held_out.value[present] - guess[present]) / np.bincount(row)
    rank = _rank(len(error), level)
    half_width = float(np.sort(np.abs(error))[rank - 1]) if rank <= len(error) else None
    return MeanUtilityInterval(half_width, level, len(error))


def _rank(items: int, level: float) -> int:
    # The subtraction keeps a product that is a whole number in exact arithmetic from being rounded up by one.
    return math.ceil((items + 1) * level - 1e-9)


def _needed(level: float) -> int:
    """Return the smallest number of rows for which the rank exists: m >= level / (1 - level)."""
    return math.ceil(level / (1 - level) - 1e-9)
