"""What a tune says: every arm's values, and every arm beside the run's selection, the full teacher and chance.

An arm is called better or worse where the interval of its difference lies on one side of 0, and is otherwise not told apart;
nothing is called equal. `within` says whether the whole interval of the difference is smaller than a share of the other's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.errors import UsageError
from nncift.finetune.arms import ARMS
from nncift.finetune.results_store import Outcome
from nncift.finetune.test_set import LOSS, Values
from nncift.generation.paired_comparison import Comparison, compare

AGAINST = ("selected", "teacher", "random")
MARGIN = 0.02
"""How far apart, as a share of the other arm's mean, the issue of "no compromise in performance" is decided."""

UNTRAINED = "none"
VERDICTS = {"better": "better", "worse": "worse"}


@dataclass(frozen=True)
class Group:
    """The cells that are set side by side: one way to use the rows, one budget. outcomes: by arm, one per seed."""

    how: str
    budget: str
    k: int
    outcomes: Mapping[str, Sequence[Outcome]]

    def table(self, arm: str, metric: str) -> Values:
        """Return an arm's values of a metric, `(n_seeds, n_items)`."""
        return np.stack([outcome.marks.values[metric] for outcome in self.outcomes[arm]])


def joined(parts: Sequence[Group]) -> Group:
    """Return the groups of several runs, of one budget and over the same test rows, as one whose seeds are all of theirs.

    An arm with a single outcome in a run counts as often as that run has seeds, so that seeds stay beside each other; the
    untouched model stays one. Raises UsageError where the groups are not of one kind, or differ in their arms.
    """
    first = parts[0]
    for part in parts:
        if (part.how, part.k, set(part.outcomes)) != (first.how, first.k, set(first.outcomes)):
            raise UsageError(
                f"groups of {part.how} with {part.k} rows and {first.how} with {first.k} rows, or of other arms, cannot be joined"
            )
    found: dict[str, list[Outcome]] = {arm: [] for arm in first.outcomes}
    for part in parts:
        seeds = max(map(len, part.outcomes.values()))
        for arm, outcomes in part.outcomes.items():
            found[arm] += outcomes if len(outcomes) == seeds else [*outcomes] * seeds
    if UNTRAINED in found:
        found[UNTRAINED] = found[UNTRAINED][:1]
    return Group(first.how, first.budget, first.k, found)


def tell(group: Group, units: Mapping[str, tuple[str, bool]], seed: int) -> dict[str, Any]:
    """Return what a group of cells says, as JSON: arms by name, and comparisons by metric."""
    arms = {arm: _arm(group, arm, units) for arm in ARMS if arm in group.outcomes}
    comparisons = [
        {"metric": metric, "arm": arm, "against": other, **_side_by_side(group, arm, other, metric, higher, seed)}
        for metric, (_, higher) in units.items()
        for arm in arms
        for other in AGAINST
        if other in arms and _is_asked(arm, other)
    ]
    return {"how": group.how, "budget": group.budget, "rows": group.k, "arms": arms, "comparisons": comparisons}


def _is_asked(arm: str, other: str) -> bool:
    """Return whether an arm is set beside another: every pair once, the selection and then the teacher first."""
    return arm not in AGAINST or AGAINST.index(arm) < AGAINST.index(other)


def _arm(group: Group, arm: str, units: Mapping[str, tuple[str, bool]]) -> dict[str, Any]:
    outcomes = group.outcomes[arm]
    facts = [outcome.facts for outcome in outcomes]
    record: dict[str, Any] = {
        name: _mean([one[name] for one in facts]) for name in ("rows", "steps", "epochs", "tokens") if name in facts[0]
    }
    for name in ("shown", "shortened", "left_out"):
        if name in facts[0]:
            record[name] = _mean([one[name] for one in facts])
    record["seconds"] = {
        name: _mean([outcome.cost.get(name, 0.0) for outcome in outcomes]) for name in ("training", "judging")
    }
    if "training_loss" in facts[0]:
        record["training_loss"] = [_mean([one["training_loss"][end] for one in facts]) for end in (0, 1)]
    record["metrics"] = {metric: _metric(group, arm, metric) for metric in units}
    return record


def _metric(group: Group, arm: str, metric: str) -> dict[str, Any]:
    """Return mean, every seed's mean, their standard deviation, and failures; missing values count nowhere but there."""
    table = group.table(arm, metric)
    by_seed = [_mean(row[np.isfinite(row)].tolist()) for row in table]
    known = [value for value in by_seed if value is not None]
    record: dict[str, Any] = {
        "mean": _mean(known),
        "by_seed": by_seed,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "between_seeds": between_seeds(known),
        "failed": int((~np.isfinite(table)).sum()),
    }
    reasons = [one.marks.failures[metric] for one in group.outcomes[arm] if metric in one.marks.failures]
    if reasons:
        record["first_failure"] = reasons[0]
    if metric == LOSS:
        record["perplexity"] = _mean([_perplexity(one) for one in group.outcomes[arm]])
    return record


def between_seeds(by_seed: Sequence[float | None]) -> float | None:
    """Return the mean size of the difference of two seeds of one arm, None with fewer than two.

    What an arm differs from itself by: no other arm can be expected to differ from it by less in mean absolute difference.
    """
    known = np.array([value for value in by_seed if value is not None])
    if len(known) < 2:
        return None
    first, second = np.triu_indices(len(known), 1)
    return float(np.abs(known[first] - known[second]).mean())


def _perplexity(outcome: Outcome) -> float | None:
    """Return exp of the mean loss over all response tokens of the rows that were read."""
    loss, tokens = outcome.marks.values[LOSS], outcome.marks.tokens
    read = np.isfinite(loss) & (tokens > 0)
    return float(np.exp(np.average(loss[read], weights=tokens[read]))) if read.any() else None


def _side_by_side(group: Group, arm: str, other: str, metric: str, higher: bool, seed: int) -> dict[str, Any]:
    found = compare(group.table(arm, metric), group.table(other, metric), higher_is_better=higher, seed=seed)
    return {
        "difference": _number(found.difference),
        "interval": _pair(found.interval),
        "level": found.level,
        "relative": _number(found.relative),
        "relative_interval": _pair(found.relative_interval),
        "mean_absolute": _number(found.absolute),
        "relative_mean_absolute": _number(found.relative_absolute),
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "items": found.items,
        "left_out": found.left_out,
        "seeds": found.seeds,
        "verdict": verdict(found),
        "within": within(found),
    }


def verdict(found: Comparison) -> str:
    """Return better, worse or not told apart, by the interval alone."""
    return VERDICTS.get(found.verdict(), "not told apart")


def within(found: Comparison, margin: float = MARGIN) -> bool | None:
    """Return whether the whole interval of the relative difference lies within a margin; None where there is no interval."""
    bounds = _pair(found.relative_interval)
    return None if bounds is None else max(map(abs, bounds)) <= margin


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pair(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None or not np.isfinite(bounds).all() else [float(bound) for bound in bounds]
