"""The account of a facility location: what each row added or would still add, and why, for any order of choosing."""

from __future__ import annotations

import numpy as np

from nncift.select import Subset, kernels
from nncift.select.objectives import Similarity


def account(similarity: Similarity, order: kernels.Longs, objective: str, chosen_how: str = "Chosen") -> Subset:
    """Return the subset of the sources at `order` (`(k,)` positions), valued as facility location (method.md 4).

    The bound on the optimum is the value plus the k largest gains that are left: by submodularity no set of k rows can
    add more than they would one by one.
    """
    columns, unit, k = similarity.levels.T, similarity.scale.unit, len(order)
    n_sources, n_targets = columns.shape
    best, holder = np.zeros(n_targets, np.int32), np.full(n_targets, -1, np.int64)
    gains, raised, top, top_by = (np.zeros(k, np.int64) for _ in range(4))
    kernels.replay(columns, order, best, holder, gains, raised, top, top_by)

    left, favourite = np.zeros(n_sources, np.int64), np.zeros(n_sources, np.int64)
    out = np.setdiff1d(np.arange(n_sources), order)
    kernels.in_threads(lambda a, b: kernels.gains_of(columns, a, b, best, left), n_sources)
    kernels.in_threads(lambda a, b: kernels.best_targets(columns, a, b, favourite), n_sources)
    value = int(gains.sum())
    bound = value + int(np.sort(left[out])[max(len(out) - k, 0) :].sum())

    sources, targets = similarity.source_ids, similarity.target_ids
    reasons: dict[str, str] = {}
    for rank, s in enumerate(order.tolist()):
        text = f"{chosen_how} at rank {rank + 1} of {k}: "
        if raised[rank]:
            text += (
                f"adds {gains[rank] * unit:.4g} of coverage; serves {raised[rank]} of {n_targets} targets better than "
                f"all rows before it, most of all {targets[top[rank]]} (by {top_by[rank] * unit:.4g})."
            )
        else:
            text += f"adds nothing, {_without_gain(similarity, s)}."
        reasons[sources[s]] = text
    last = f"the last chosen row added {gains[-1] * unit:.4g}" if k else "no row was chosen"
    for s in out.tolist():
        text = f"Not chosen: would still add {left[s] * unit:.4g} of coverage, {last}"
        t = favourite[s]
        if t < 0:
            text += f"; {_without_gain(similarity, s)}."
        else:
            text += f"; the target that it serves best, {targets[t]} (utility {_utility(similarity, t, s)}), "
            if holder[t] < 0:
                text += "is served by no chosen row."
            else:
                rival = order[holder[t]]
                text += (
                    f"is served best by {sources[rival]} (rank {holder[t] + 1}, "
                    f"utility {_utility(similarity, t, rival)})."
                )
        reasons[sources[s]] = text
    return Subset(
        objective=objective,
        ids=tuple(sources[s] for s in order),
        gains=gains.astype(np.float64) * unit,
        value=value * unit,
        upper_bound=bound * unit,
        final_gain={sources[s]: float(left[s] * unit) for s in out},
        reasons=reasons,
    )


def _without_gain(similarity: Similarity, source: int) -> str:
    if not similarity.known[source]:
        return "since no utility is known for it"
    if not similarity.levels[:, source].any():
        return "since none of its utilities is above the lowest of all"
    return "since the rows before it serve every target at least as well"


def _utility(similarity: Similarity, target: int, source: int) -> str:
    return f"{similarity.scale.utility(similarity.levels[target, source]):.4g}"
