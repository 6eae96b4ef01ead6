"""Every arm is trained at each learning rate; it is judged at the one that does better on validation rows.

Validation rows are test rows that judge nothing else: which of two rates suits an arm is chosen without the rows that compare it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.seeds import shuffled
from nncift.errors import UsageError
from nncift.finetune.comparison import UNTRAINED, Group, RateSummary, mean_of_seeds
from nncift.finetune.results_store import Outcome
from nncift.finetune.test_set import CHOICE, LOSS

LEAST = 4
"""Validation rows, and rows that are left to judge."""

Units = Mapping[str, tuple[str, bool]]
"""Unit of every metric, and whether higher is better."""


def validation_ids(ids: Sequence[str], wanted: int | None) -> frozenset[str]:
    """Return which test rows choose among learning rates: as many as wanted, by default a quarter, the same under every seed.

    None of them where fewer than `LEAST` would be left on either side and no number was given. Raises UsageError for a number
    that leaves no row to judge.
    """
    count = len(ids) // 4 if wanted is None else wanted
    if wanted is not None and wanted >= len(ids):
        raise UsageError(
            f"--validation-rows {wanted} was given, and there are {len(ids)} test rows; some must be left to judge"
        )
    if wanted is None and min(count, len(ids) - count) < LEAST:
        return frozenset()
    return frozenset(shuffled(ids, 0, "tune", "validation")[:count])


@dataclass(frozen=True)
class RatedGroup:
    """A group of arms before a learning rate is chosen. outcomes: by arm and rate, one per seed; rate None: there is one only."""

    how: str
    budget: str
    k: int
    outcomes: Mapping[str, Mapping[float | None, Sequence[Outcome]]]


def joined(parts: Sequence[RatedGroup]) -> RatedGroup:
    """Return the groups of several runs, of one budget and over the same test rows, as one whose seeds are all of theirs.

    An arm with a single outcome in a run counts as often as that run has seeds, so that seeds stay beside each other; the
    untouched model stays one. Raises UsageError where the groups are not of one kind, or differ in their arms.
    """
    first = parts[0]
    for part in parts:
        if (part.how, part.k, _shape(part)) != (first.how, first.k, _shape(first)):
            raise UsageError(
                f"groups of {part.how} with {part.k} rows and {first.how} with {first.k} rows, or of other arms, cannot be joined"
            )
    found: dict[str, dict[float | None, list[Outcome]]] = {
        arm: {rate: [] for rate in rates} for arm, rates in first.outcomes.items()
    }
    for part in parts:
        seeds = max(len(outcomes) for rates in part.outcomes.values() for outcomes in rates.values())
        for arm, rates in part.outcomes.items():
            for rate, outcomes in rates.items():
                found[arm][rate] += outcomes if len(outcomes) == seeds else [*outcomes] * seeds
    if UNTRAINED in found:
        found[UNTRAINED] = {rate: outcomes[:1] for rate, outcomes in found[UNTRAINED].items()}
    return RatedGroup(first.how, first.budget, first.k, found)


def _shape(group: RatedGroup) -> dict[str, list[float | None]]:
    return {arm: list(rates) for arm, rates in group.outcomes.items()}


def best(group: RatedGroup, ids: Sequence[str], validation: frozenset[str], units: Units) -> Group:
    """Return every arm at its better rate, over the rows that judge.

    ids: of the test rows, in the order of all values. Rates are compared by the loss where it is among the metrics, else by the
    first of them, as its mean over seeds and validation rows.
    """
    inside = np.array([item in validation for item in ids])
    metric = LOSS if LOSS in units else next(name for name in units)
    higher = units[metric][1]
    chosen, tried = {}, {}
    for arm, rates in group.outcomes.items():
        own = {rate: _mean(outcomes, metric, inside) for rate, outcomes in rates.items()}
        # A training that diverged has no value; of equal ones the lower rate.
        order = sorted(own, key=lambda rate: (_worth(own[rate], higher), rate or 0.0))
        kept = {rate: [_part(one, ~inside) for one in outcomes] for rate, outcomes in rates.items()}
        chosen[arm] = kept[order[0]]
        if len(rates) > 1:
            tried[arm] = [
                RateSummary(
                    float(rate or 0.0),
                    own[rate],
                    {name: mean_of_seeds(kept[rate], name) for name in units},
                    used=rate == order[0],
                )
                for rate in rates
            ]
    return Group(group.how, group.budget, group.k, chosen, tried)


def _worth(value: float | None, higher: bool) -> float:
    return np.inf if value is None else (-value if higher else value)


def _mean(outcomes: Sequence[Outcome], metric: str, inside: npt.NDArray[np.bool_]) -> float | None:
    if not inside.any():
        return None
    if metric == CHOICE:
        # Its items are questions of their own, none of which is a test row.
        return mean_of_seeds(outcomes, metric)
    return mean_of_seeds([_part(one, inside) for one in outcomes], metric)


def _part(outcome: Outcome, rows: npt.NDArray[np.bool_]) -> Outcome:
    """Return an outcome over some of the test rows; questions of their own stay."""
    scores = outcome.scores
    values = {name: own if name == CHOICE else own[rows] for name, own in scores.values.items()}
    answers: Sequence[Any] = scores.answers
    if len(answers) == len(rows):
        answers = [answer for answer, wanted in zip(answers, rows, strict=True) if wanted]
    return replace(outcome, scores=replace(scores, values=values, tokens=scores.tokens[rows], answers=answers))
