"""What a tune says: every arm's values, and every arm beside the run's selection, the full teacher and chance.

An arm is called better or worse where the interval of its difference lies on one side of 0; else there is no significant
difference, and nothing is called equal. `within` says whether the whole interval of the difference is smaller than a share of
the other's mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from nncift.core.arrays import Doubles
from nncift.core.result_types import JsonObject
from nncift.evaluation.metrics import number
from nncift.finetune.results_store import Outcome
from nncift.finetune.test_set import LOSS, Scores
from nncift.generation.likelihood import Losses, perplexity
from nncift.generation.paired_comparison import Comparison, compare
from nncift.storage.ledger import STEP

AGAINST = ("selected", "teacher", "random")
MARGIN = 0.02
"""The share of the other arm's mean within which "no compromise in performance" is decided."""

UNTRAINED = "none"
OPTIONAL = frozenset(
    (
        "steps epochs tokens share_of_training shown shortened left_out training_loss learning_rates first_failure "
        "perplexity"
    ).split()
)
"""Facts of an arm or a metric that are stored only where there are any."""


@dataclass(frozen=True)
class RateSummary:
    """What an arm reached at a learning rate: means on the validation rows, and on those that judge. used: whether it counts."""

    learning_rate: float
    validation: float | None
    metrics: dict[str, float | None]
    used: bool


@dataclass(frozen=True)
class Group:
    """The cells that are set side by side: one way to use the rows, one budget. outcomes: by arm, one per seed.

    tried: every learning rate of the arms that were trained at several.
    """

    how: str
    budget: str
    k: int
    outcomes: Mapping[str, Sequence[Outcome]]
    tried: Mapping[str, Sequence[RateSummary]] = field(default_factory=dict)

    def table(self, arm: str, metric: str) -> Doubles:
        """Return an arm's values of a metric, `(n_seeds, n_items)`."""
        return np.stack([outcome.scores.values[metric] for outcome in self.outcomes[arm]])

    def mean(self, arm: str, fact: str) -> float | None:
        """Return the mean of a fact over seeds; None where it is not known."""
        return _mean([outcome.facts.get(fact) for outcome in self.outcomes[arm]])


@dataclass(frozen=True)
class MetricSummary:
    """An arm's values of a metric: means, and how many items failed. by_seed: None where every item of a seed failed.

    between_seeds: see `between_seeds`. perplexity: of the metric loss.
    """

    mean: float | None
    by_seed: list[float | None]
    deviation: float | None
    between_seeds: float | None
    failed: int
    first_failure: str | None = None
    perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """Means over an arm's seeds: rows, what was trained (None: nothing), what was shown (None: nothing), seconds, values.

    share_of_training: see `with_costs`.
    """

    rows: float | None
    steps: float | None = None
    epochs: float | None = None
    tokens: float | None = None
    share_of_training: float | None = None
    shown: float | None = None
    shortened: float | None = None
    left_out: float | None = None
    seconds: dict[str, float | None]
    training_loss: list[float | None] | None = None
    learning_rates: list[RateSummary] | None = None
    metrics: dict[str, MetricSummary]


@dataclass(frozen=True, kw_only=True)
class ArmComparison(Comparison):
    """An arm less another in one metric. within: see `within`."""

    metric: str
    arm: str
    against: str
    within: bool | None


@dataclass(frozen=True)
class GroupSummary:
    """What a group says: arms by name, and comparisons by metric."""

    how: str
    budget: str
    rows: int
    arms: dict[str, ArmSummary]
    comparisons: list[ArmComparison]

    def to_json(self) -> JsonObject:
        """Return the summary as it is stored, without those facts of arms and metrics that there are not."""
        arms = {
            name: {**_there(asdict(arm)), "metrics": {name: _there(asdict(of)) for name, of in arm.metrics.items()}}
            for name, arm in self.arms.items()
        }
        return {**asdict(self), "arms": arms, "comparisons": [one.to_json() for one in self.comparisons]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> GroupSummary:
        """Return a summary that was stored."""
        return TypeAdapter(GroupSummary).validate_python(record)


def summarise(group: Group, units: Mapping[str, tuple[str, bool]], seed: int) -> GroupSummary:
    """Return what a group of cells says."""
    arms = {arm: _arm(group, arm, units) for arm in group.outcomes}
    comparisons = [
        _compared(group, metric, arm, other, higher, seed)
        for metric, (_, higher) in units.items()
        for arm in arms
        for other in AGAINST
        # Every pair once, the selection and then the teacher first.
        if other in arms and (arm not in AGAINST or AGAINST.index(arm) < AGAINST.index(other))
    ]
    return GroupSummary(group.how, group.budget, group.k, arms, comparisons)


def with_costs(found: GroupSummary, costs: Mapping[str, Mapping[str, Any]], pool: int) -> GroupSummary:
    """Return a group whose arms say what they cost as a share of training on everything (method.md 6).

    An arm costs its choice, in forward passes (`cost` among costs; an arm without costs nothing), and three for every row read in
    training. Everything is every row of the pool, as often as the run's selection is read. Nothing is said where nothing trains.
    """
    usual = found.arms.get("selected") or next((arm for name, arm in found.arms.items() if name != "full"), None)
    if usual is None or not usual.epochs:
        return found
    everything = STEP * usual.epochs * pool
    arms = {
        name: arm
        if arm.epochs is None or arm.rows is None
        else replace(
            arm, share_of_training=(costs.get(name, {}).get("cost", 0) + STEP * arm.epochs * arm.rows) / everything
        )
        for name, arm in found.arms.items()
    }
    return replace(found, arms=arms)


def _arm(group: Group, arm: str, units: Mapping[str, tuple[str, bool]]) -> ArmSummary:
    outcomes = group.outcomes[arm]
    facts = ("rows", "steps", "epochs", "tokens", "shown", "shortened", "left_out")
    losses = [outcome.facts["training_loss"] for outcome in outcomes if "training_loss" in outcome.facts]
    return ArmSummary(
        **{fact: group.mean(arm, fact) for fact in facts},
        seconds={name: _mean([one.cost.get(name, 0.0) for one in outcomes]) for name in ("training", "judging")},
        training_loss=[_mean([ends[end] for ends in losses]) for end in (0, 1)] if losses else None,
        learning_rates=list(group.tried[arm]) if arm in group.tried else None,
        metrics={metric: _metric(group, arm, metric) for metric in units},
    )


def _metric(group: Group, arm: str, metric: str) -> MetricSummary:
    """Return mean, every seed's mean, their standard deviation, and failures; missing values count nowhere but there."""
    table = group.table(arm, metric)
    by_seed = _by_seed(table)
    known = [value for value in by_seed if value is not None]
    scores = [outcome.scores for outcome in group.outcomes[arm]]
    return MetricSummary(
        mean=_mean(known),
        by_seed=by_seed,
        deviation=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        between_seeds=between_seeds(known),
        failed=int((~np.isfinite(table)).sum()),
        first_failure=next((one.failures[metric] for one in scores if metric in one.failures), None),
        perplexity=_perplexity(scores) if metric == LOSS else None,
    )


def mean_of_seeds(outcomes: Sequence[Outcome], metric: str) -> float | None:
    """Return the mean over seeds of each seed's mean over the items that have a value; None where none has."""
    return _mean(_by_seed([outcome.scores.values[metric] for outcome in outcomes]))


def _by_seed(table: Iterable[Doubles]) -> list[float | None]:
    return [_mean(row[np.isfinite(row)].tolist()) for row in table]


def _perplexity(scores: Sequence[Scores]) -> float | None:
    return _mean([number(perplexity(Losses((), one.values[LOSS], one.tokens))) for one in scores])


def between_seeds(by_seed: Sequence[float | None]) -> float | None:
    """Return the mean size of the difference of two seeds of one arm, None with fewer than two.

    What an arm differs from itself by: no other arm can be expected to differ from it by less in mean absolute difference.
    """
    known = np.array([value for value in by_seed if value is not None])
    if len(known) < 2:
        return None
    first, second = np.triu_indices(len(known), 1)
    return float(np.abs(known[first] - known[second]).mean())


def _compared(group: Group, metric: str, arm: str, other: str, higher: bool, seed: int) -> ArmComparison:
    found = compare(group.table(arm, metric), group.table(other, metric), higher_is_better=higher, seed=seed)
    return ArmComparison(metric=metric, arm=arm, against=other, within=within(found), **vars(found))


def within(found: Comparison) -> bool | None:
    """Return whether the whole interval of the relative difference lies within MARGIN; None where there is no interval."""
    bounds = found.relative_interval
    return None if bounds is None else max(map(abs, bounds)) <= MARGIN


def _there(record: JsonObject) -> JsonObject:
    return {name: value for name, value in record.items() if value is not None or name not in OPTIONAL}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
