"""Facility location by lazy greedy, the default objective (method.md 4, `fl`)."""

from __future__ import annotations

import numpy as np

from nncift.pairs import UtilityMatrix
from nncift.select import Subset, kernels
from nncift.select.coverage import account
from nncift.select.objectives import Similarity, similarity


class FacilityLocation:
    """Chooses the rows that together serve every target best: sum_t max_{s in A} sim[t, s]."""

    def select(self, matrix: UtilityMatrix, k: int, seed: int) -> Subset:
        """Return `k` sources; the seed changes nothing."""
        sim = similarity(matrix)
        return account(sim, greedy_order(sim, k), objective="fl")


def greedy_order(sim: Similarity, k: int) -> kernels.Longs:
    """Return the positions of `k` sources, `(k,)`, exactly as plain greedy would choose them, ties by id."""
    columns = sim.levels.T
    n_sources, n_targets = columns.shape
    best, gains, order = np.zeros(n_targets, np.int32), np.empty(n_sources, np.int64), np.empty(k, np.int64)
    kernels.in_threads(lambda a, b: kernels.gains_of(columns, a, b, best, gains), n_sources)
    kernels.lazy_greedy(columns, gains, best, k, order)
    return order
