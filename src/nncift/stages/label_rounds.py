"""How many labels: in rounds until held-out fidelity stops improving, or until it is what the user asked for.

`--labels auto` starts small and doubles. `--min-spearman` and `--min-skill` are gates: labels are added up to `--max-labels`, and
where that is not enough the run stops with exit code 5 and says what was reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nncift.config import RunSettings
from nncift.core.pairs import LabelledPairs
from nncift.errors import QualityError, UsageError
from nncift.labels import LabelPlan, parse_labels
from nncift.labels.row_labels import RowPlan
from nncift.labels.store import Axes
from nncift.labels.vectors import Vectors
from nncift.stages import RunContext, label, label_budget_of, plan_labels
from nncift.storage.atomic import write_json
from nncift.student.model import Student

FILE = "growth.json"
AUTO = "auto"
FIRST_PAIRS, FIRST_SHARE = 1000, 0.025
"""Where `auto` starts: training pairs, or the share of rows for a teacher that is paid by the row."""

MOST_SHARE = 0.25
"""Where `auto` ends without --max-labels: this share of each axis."""

WORTH = 0.01
"""Gain in Spearman or R^2 on unseen items below which twice the labels are not worth their price."""


def round_settings(settings: RunSettings, axes: Axes, *, by_row: bool) -> list[RunSettings]:
    """Return the settings of every round, which differ in `labels`; a single one where nothing is to grow.

    Raises UsageError or InfeasibleError for labels that cannot be read.
    """
    auto, gated = settings.labels == AUTO, settings.min_spearman is not None or settings.min_skill is not None
    if settings.max_labels is not None and not (auto or gated):
        raise UsageError(
            "--max-labels says how far labels may grow; it goes with --labels auto, --min-spearman or --min-skill"
        )
    if not auto and (not gated or settings.max_labels is None):
        return [settings]
    sizes = _sizes(settings, axes, by_row=by_row)
    return [settings.model_copy(update={"labels": as_setting(size, settings, axes, by_row=by_row)}) for size in sizes]


def remaining(rounds: Sequence[RunSettings], axes: Axes, *, by_row: bool, have: int) -> list[RunSettings]:
    """Return the rounds that are not below the training labels (pairs, or rows) of an earlier session; the last at least."""
    return [each for each in rounds if size_of(each.labels, each, axes, by_row=by_row) >= have] or list(rounds[-1:])


def label_in_rounds(
    context: RunContext, axes: Axes, vectors: Vectors, plan: LabelPlan | RowPlan | None, rounds: Sequence[RunSettings]
) -> tuple[dict[str, LabelledPairs], Student, dict[str, Any]]:
    """Label and fit round by round until it is enough; return the last round's labels, student and fidelity.

    plan: of the first round. Raises QualityError where a gate is not reached with the last round.
    """
    from nncift.stages.fit import fit_student

    history: list[dict[str, Any]] = context.directory.read_json(FILE, [])
    for number, settings in enumerate(rounds):
        if number:
            context.settings = settings
            plan = plan_labels(context, axes)
        labels = label(context, axes, plan, vectors)
        student, fidelity = fit_student(context, vectors, labels)
        reached = _reached(labels, fidelity)
        history = [*(step for step in history if step["labels"] < reached["labels"]), reached]
        if len(rounds) > 1 or settings.labels == AUTO:
            write_json(context.directory.file(FILE), history)
        if _enough(context.directory.settings, history):
            break
    _check_length(context.directory.settings, history[-1])
    return labels, student, {**fidelity, "growth": history if len(history) > 1 else []}


def size_of(labels: str, settings: RunSettings, axes: Axes, *, by_row: bool) -> int:
    """Return how many labels a value of `--labels` stands for: pairs, or rows of the sources."""
    share, count = parse_labels(labels)
    if by_row:
        sources = len(axes.sources)
        return max(2, round(share * sources)) if share is not None else min(int(count or 0), sources)
    return label_budget_of(settings.model_copy(update={"labels": labels})).pairs(
        len(axes.target_ids), len(axes.sources)
    )


def as_setting(size: int, settings: RunSettings, axes: Axes, *, by_row: bool) -> str:
    """Return the value of `--labels` for so many labels: a share of the rows where a share was asked for, else a number."""
    counted = not by_row or (settings.labels != AUTO and parse_labels(settings.labels)[1] is not None)
    return str(size) if counted else f"{100 * size / len(axes.sources):.10g}%"


def _sizes(settings: RunSettings, axes: Axes, *, by_row: bool) -> list[int]:
    """Return how many labels each round has: pairs, or rows of the sources."""
    targets, sources = len(axes.target_ids), len(axes.sources)
    most = size_of(settings.max_labels or f"{100 * MOST_SHARE:g}%", settings, axes, by_row=by_row)
    if settings.labels == AUTO:
        every = sources if by_row else targets * sources
        first = max(2, math.ceil(FIRST_SHARE * sources)) if by_row else min(FIRST_PAIRS, math.ceil(0.05 * every))
    else:
        first = size_of(settings.labels, settings, axes, by_row=by_row)
    if first > most:
        raise UsageError(f"--labels starts at {first} and --max-labels ends at {most}; give a higher end")
    found = [first]
    while found[-1] < most:
        found.append(min(most, 2 * found[-1]))
    return found


def _reached(labels: Mapping[str, LabelledPairs], fidelity: Mapping[str, Any]) -> dict[str, Any]:
    unseen = fidelity["fidelity"]["q4"]
    skill = fidelity["gate"]["skill"].get(fidelity["gate"]["used"], {}).get("skill")
    return {"labels": len(labels["train"]), "spearman": unseen["spearman"], "r2": unseen["r2"], "skill": skill}


def _enough(settings: RunSettings, history: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the gates are reached and, for `auto`, whether the last round brought too little."""
    if _missed(settings, history[-1]):
        return False
    if settings.labels != AUTO:
        return True
    if len(history) < 2:
        return False
    before, now = history[-2:]
    gains = [now[key] - before[key] for key in ("spearman", "r2") if now[key] is not None and before[key] is not None]
    return bool(gains) and max(gains) < WORTH


def _missed(settings: RunSettings, reached: Mapping[str, Any]) -> list[str]:
    found = []
    for name, key, what in (
        ("min_spearman", "spearman", "Spearman correlation on unseen items"),
        ("min_skill", "skill", "selection skill on held-out items"),
    ):
        wanted = getattr(settings, name)
        if wanted is not None and (reached[key] is None or reached[key] < wanted):
            value = "none that can be measured" if reached[key] is None else f"{reached[key]:.3f}"
            found.append(f"--{name.replace('_', '-')} {wanted:g} was asked for and the {what} is {value}")
    return found


def _check_length(settings: RunSettings, reached: Mapping[str, Any]) -> None:
    missed = _missed(settings, reached)
    if missed:
        bounded = settings.max_labels or settings.labels == AUTO
        more = "a higher --max-labels" if bounded else "--max-labels, so that labels are added"
        raise QualityError(
            f"{'; '.join(missed)}, with {reached['labels']} labels to learn from. Nothing was selected; the labels are kept. "
            f"Give {more}, another --plan or --features, or a lower gate"
        )
