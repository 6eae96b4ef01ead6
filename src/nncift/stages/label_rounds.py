"""How many labels: in rounds until held-out fidelity stops improving, or until it is what the user asked for.

`--labels auto` starts small and doubles. `--min-spearman` and `--min-skill` are gates: labels are added up to `--max-labels`, and
where that is not enough the run stops with exit code 5 and says what was reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from nncift.config import RunSettings
from nncift.core.amounts import LabelAmount
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import Incomplete, may_pay
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.errors import QualityError, UsageError
from nncift.evaluation.fidelity import FidelityReport, LabelRound
from nncift.labels import LabelBudget, LabelPlan, RowPlan
from nncift.labels.store import Axes
from nncift.labels.vectors import Vectors
from nncift.stages.allowance import Allowance, settle
from nncift.stages.context import RunContext, encoder_of
from nncift.stages.label import label, plan_labels
from nncift.stages.request import Request
from nncift.stages.timing import Rates, rates_of
from nncift.storage.atomic import write_json
from nncift.student.model import Student

FILE = "growth.json"
FIRST_PAIRS, FIRST_SHARE = 1000, 0.025
"""Where `auto` starts: training pairs, or the share of rows for a teacher that labels rows."""

MOST = LabelAmount.parse("25%")
"""Where `auto` ends without --max-labels: this share of each axis."""

WORTH = 0.01
"""Gain in Spearman or R^2 on unseen items below which twice the labels are not worth their price."""


def label_budgets(settings: RunSettings, axes: Axes) -> tuple[LabelBudget, ...]:
    """Return how much every round labels; a single round where labels do not grow.

    Raises UsageError for bounds that do not fit.
    """
    auto, gated = settings.labels.auto, settings.min_spearman is not None or settings.min_skill is not None
    if settings.max_labels is not None and not (auto or gated):
        raise UsageError(
            "--max-labels says how far labels may grow; it goes with --labels auto, --min-spearman or --min-skill"
        )
    budget = LabelBudget.of(settings)
    if not auto and (not gated or settings.max_labels is None):
        return (budget,)
    return tuple(budget.sized(size, len(axes.sources)) for size in _sizes(settings, axes))


def allowed_rounds(
    context: RunContext, axes: Axes, request: Request
) -> tuple[RunContext, Allowance, tuple[LabelBudget, ...]]:
    """Return what may be labelled, the rounds that are left, and the context with what that decides.

    Raises UsageError where the rules do not fit the rows that are left, and for a time in a shard.
    """
    request.constraints.check(PoolTable.of(axes.sources))
    rates = partial(_timed, context, axes, request.existing)
    allowance = settle(context, label_budgets(context.settings, axes), axes, request.existing, rates, request.notes)
    rounds = remaining(allowance.rounds, axes, context.labels().training())
    grows = len(rounds) > 1 or rounds[0].kind == "active"
    targets, sources, settings = len(axes.target_ids), len(axes.sources), context.settings
    # The targets of flmi are the pool's own rows.
    calculates = may_pay(max(targets, sources) if settings.objective == "flmi" else targets, sources)
    last = not (grows or calculates)
    return replace(context, whole=allowance.whole, features=allowance.features, labels_last=last), allowance, rounds


def _timed(context: RunContext, axes: Axes, existing: Examples | None) -> Rates:
    """Time passes. Raises UsageError in a shard."""
    if context.executor.partial:
        raise UsageError(
            "--time was given with --shard; shards time passes each for itself, and must label one plan. Give --cost or "
            "--labels: nncift run --time ... --dry-run tells what the time allows"
        )
    return rates_of(context.settings, axes, context.teacher, encoder_of(context), len(existing or ()))


def remaining(rounds: Sequence[LabelBudget], axes: Axes, have: int) -> tuple[LabelBudget, ...]:
    """Return the rounds that are not below the training labels (pairs, or rows) of an earlier session; the last at least."""
    targets, sources = len(axes.target_ids), len(axes.sources)
    return tuple(each for each in rounds if each.size(targets, sources) >= have) or tuple(rounds[-1:])


def label_in_rounds(
    context: RunContext, axes: Axes, vectors: Vectors, plan: LabelPlan | RowPlan | None, rounds: Sequence[LabelBudget]
) -> tuple[dict[str, LabelledPairs], Student, FidelityReport]:
    """Label and fit round by round until it is enough; return the last round's labels, student and fidelity.

    plan: of the first round. Raises QualityError where a gate is not reached with the last round.
    """
    from nncift.stages.fit import fit_student

    settings = context.settings
    file = context.directory.file(FILE)
    history = [LabelRound.of_json(step, str(file)) for step in context.directory.read_json(FILE, [])]
    for number, budget in enumerate(rounds):
        if number:
            plan = plan_labels(context, axes, budget)
        labels = label(context, axes, plan, budget, vectors)
        student, fidelity = fit_student(context, vectors, labels)
        reached = _reached(labels, fidelity)
        history = [*(step for step in history if step.labels < reached.labels), reached]
        if len(rounds) > 1 or settings.labels.auto:
            write_json(file, [step.to_json() for step in history])
        if _enough(settings, history):
            break
    if context.executor.partial and _missed(settings, history[-1]):
        # The run that joins says what was reached.
        raise Incomplete("label")
    _check_length(settings, history[-1])
    return labels, student, replace(fidelity, growth=tuple(history) if len(history) > 1 else ())


def _sizes(settings: RunSettings, axes: Axes) -> list[int]:
    """Return how many labels each round has: pairs, or rows of the sources."""
    budget, targets, sources = LabelBudget.of(settings), len(axes.target_ids), len(axes.sources)
    most = LabelBudget.of(settings, settings.max_labels or MOST).size(targets, sources)
    if not settings.labels.auto:
        first = budget.size(targets, sources)
    elif budget.kind == "rows":
        first = max(2, math.ceil(FIRST_SHARE * sources))
    else:
        first = min(FIRST_PAIRS, math.ceil(0.05 * targets * sources))
    if first > most:
        raise UsageError(f"--labels starts at {first} and --max-labels ends at {most}; give a higher end")
    found = [first]
    while found[-1] < most:
        found.append(min(most, 2 * found[-1]))
    return found


def _reached(labels: Mapping[str, LabelledPairs], fidelity: FidelityReport) -> LabelRound:
    headline, unseen = fidelity.gate.headline, fidelity.unseen
    skill = None if headline is None else headline.skill
    return LabelRound(len(labels["train"]), unseen.spearman, unseen.r2, skill)


def _enough(settings: RunSettings, history: Sequence[LabelRound]) -> bool:
    """Tell whether the gates are reached and, for `auto`, whether the last round brought too little."""
    if _missed(settings, history[-1]):
        return False
    if not settings.labels.auto:
        return True
    if len(history) < 2:
        return False
    before, now = history[-2:]
    pairs = ((before.spearman, now.spearman), (before.r2, now.r2))
    gains = [new - old for old, new in pairs if old is not None and new is not None]
    return bool(gains) and max(gains) < WORTH


def _missed(settings: RunSettings, reached: LabelRound) -> list[str]:
    found = []
    for flag, wanted, have, what in (
        ("--min-spearman", settings.min_spearman, reached.spearman, "Spearman correlation on unseen items"),
        ("--min-skill", settings.min_skill, reached.skill, "selection skill on held-out items"),
    ):
        if wanted is not None and (have is None or have < wanted):
            value = "none that can be measured" if have is None else f"{have:.3f}"
            found.append(f"{flag} {wanted:g} was asked for and the {what} is {value}")
    return found


def _check_length(settings: RunSettings, reached: LabelRound) -> None:
    missed = _missed(settings, reached)
    if missed:
        bounded = settings.max_labels or settings.labels.auto
        more = "a higher --max-labels" if bounded else "--max-labels, so that labels are added"
        raise QualityError(
            f"{'; '.join(missed)}, with {reached.labels} labels to learn from. Nothing was selected; the labels are kept. "
            f"Give {more}, another --plan or --features, or a lower gate"
        )
