"""Plan `active`: labels in rounds, part of them on pairs that decide the selection (docs/method.md, section 2, plans).

Facility location lives on the highest utilities of each target, and pairs drawn evenly hardly ever show one. So half of the
labels are scattered, and in each round after that a student is trained on what is known and the pairs that it ranks highest for
their target are drawn from. Deterministic from labels, vectors and seed, so that a run that was killed goes on alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nncift.core.arrays import Codes
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive, generator
from nncift.labels import NO_SOURCE, LabelBudget, LabelPlan, extended
from nncift.labels.vectors import Vectors
from nncift.student.model import Student
from nncift.student.networks import TrainingData, network
from nncift.student.score import tiles

ROUNDS = (0.75, 1.0)
"""Share of the training labels that exists after each further round."""

NEAREST = 10
"""Pairs per target that a round draws from, or more where that would not fill it."""


def next_target(have: int, total: int) -> int | None:
    """Return how many training labels there shall be after the next round, None where the last is done."""
    return next((size for share in ROUNDS if (size := round(share * total)) > have), None)


def next_round(
    plan: LabelPlan,
    labels: Mapping[str, LabelledPairs],
    vectors: Vectors,
    budget: LabelBudget,
    seed: int,
    *,
    relative: bool,
) -> LabelPlan | None:
    """Return the plan grown by a round, None where all rounds are done or no pair is left to label.

    labels: utilities of the plan so far, by split; vectors: on the axes of the plan.
    """
    have = len(labels["train"])
    wanted = next_target(have, budget.pairs(len(plan.target_ids), len(plan.source_ids)))
    if wanted is None:
        return None
    entries, roles = plan.entries, plan.roles
    target = _free(plan.target_ids, roles.test_targets, roles.validation_targets)
    source = _free(plan.source_ids, roles.test_sources, roles.validation_sources)
    paired = entries.source != NO_SOURCE
    taken = [entries.target[paired], entries.source[paired]]
    if plan.shared:
        every = np.arange(len(plan.target_ids), dtype=np.int32)
        taken = [np.concatenate([codes, every]) for codes in taken]
    training_data = TrainingData(labels["train"], labels["validation"], vectors.targets, vectors.sources, vectors.views)
    pairs = deciding_pairs(
        training_data, target, source, (taken[0], taken[1]), wanted - have, derive(seed, "active", str(have))
    )
    return extended(plan, *pairs, relative=relative) if len(pairs[0]) else None


def _free(ids: Sequence[str], *held: Sequence[str]) -> Codes:
    """Return the codes of items that are not set apart, in the order of their ids: the order of rows decides nothing."""
    out = {item for part in held for item in part}
    return np.array(sorted((i for i, item in enumerate(ids) if item not in out), key=ids.__getitem__), np.int32)


def deciding_pairs(
    training_data: TrainingData, target: Codes, source: Codes, taken: tuple[Codes, Codes], count: int, seed: int
) -> tuple[Codes, Codes]:
    """Return codes of `count` pairs, drawn from those with the highest predictions for each target.

    training_data: labels so far. target, source: codes of the items that may be labelled to train on. taken: codes of pairs that
    are labelled, masked or set apart. Fewer pairs come back where there are not so many.
    """
    net = network("product")
    learned = net.learn(training_data, recipe="default", seed=seed, advance=lambda step: None)
    student = Student("product", learned.weights, learned.mean, learned.scale, views=training_data.views)
    across = student.project_targets(training_data.targets[target])
    along = student.project_sources(training_data.sources[source])
    each = min(len(source), max(NEAREST, math.ceil(2 * count / max(1, len(target)))))
    row = np.full(len(training_data.targets), -1, np.int64)
    row[target] = np.arange(len(target))
    column = np.full(len(training_data.sources), -1, np.int64)
    column[source] = np.arange(len(source))
    at, beside = row[taken[0]], column[taken[1]]
    inside = (at >= 0) & (beside >= 0)
    at, beside = at[inside], beside[inside]
    found_t, found_s, found_v = [], [], []
    for rows, columns, block in tiles(student, across, along):
        values = np.array(block)
        here = (at >= rows.start) & (at < rows.stop) & (beside >= columns.start) & (beside < columns.stop)
        values[at[here] - rows.start, beside[here] - columns.start] = -np.inf
        most = min(each, values.shape[1])
        best = np.argpartition(-values, most - 1, axis=1)[:, :most]
        found_t.append(np.repeat(np.arange(rows.start, rows.stop), most))
        found_s.append((best + columns.start).ravel())
        found_v.append(np.take_along_axis(values, best, axis=1).ravel())
    t, s, v = (np.concatenate(part) for part in (found_t, found_s, found_v))
    # Over several tiles a target has more than its share: the best of them all are kept.
    order = np.lexsort((s, -v, t))
    t, s, v = t[order], s[order], v[order]
    rank = np.arange(len(t)) - np.searchsorted(t, t)
    kept = np.flatnonzero((rank < each) & np.isfinite(v))
    drawn = np.sort(generator(seed, "active").permutation(kept)[:count])
    return target[t[drawn]].astype(np.int32), source[s[drawn]].astype(np.int32)
