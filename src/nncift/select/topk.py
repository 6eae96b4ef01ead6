"""The highest mean utilities: for teachers whose values do not depend on each other (method.md 4, `topk`)."""

from __future__ import annotations

import math

import numpy as np

from nncift.pairs import UtilityMatrix
from nncift.select import Subset
from nncift.select.objectives import refuse_infinite


class TopK:
    """Chooses the rows with the highest mean utility over the targets that have one."""

    def select(self, matrix: UtilityMatrix, k: int, seed: int) -> Subset:
        """Return `k` sources, highest mean first, those without any utility last; the seed changes nothing.

        The gain of a row is its mean utility, NaN where it has none; the value is the sum of those that exist.
        """
        refuse_infinite(matrix)
        ids, n_targets = matrix.source_ids, len(matrix.target_ids)
        mean = matrix.mean_per_source().tolist()

        def place_of(i: int) -> tuple[bool, float, str]:
            missing = math.isnan(mean[i])
            return missing, 0.0 if missing else -mean[i], ids[i]

        ranked = sorted(range(len(ids)), key=place_of)
        value = math.fsum(mean[i] for i in ranked[:k] if not math.isnan(mean[i]))
        last = f"the last chosen row has {_mean(mean[ranked[k - 1]])}" if k else "no row was chosen"
        reasons = {}
        for place, i in enumerate(ranked):
            if place < k:
                text = f"Chosen at rank {place + 1} of {k}: {_mean(mean[i])} over {n_targets} targets."
            else:
                text = f"Not chosen: place {place + 1} with {_mean(mean[i])}, {last}."
            reasons[ids[i]] = text
        return Subset(
            objective="topk",
            ids=tuple(ids[i] for i in ranked[:k]),
            gains=np.array([mean[i] for i in ranked[:k]], dtype=np.float64),
            value=value,
            upper_bound=value,
            final_gain={ids[i]: mean[i] for i in ranked[k:]},
            reasons=reasons,
        )


def _mean(mean: float) -> str:
    return "no utility known for any target" if math.isnan(mean) else f"mean utility {mean:.4g}"
