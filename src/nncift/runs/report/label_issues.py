"""Rows that look wrong: of very low utility, duplicates, empty or nearly so, far from every other row; and what that rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.seeds import shuffled
from nncift.runs.bad_rows import nearest_other
from nncift.runs.finished import FinishedRun
from nncift.runs.report.samples import Sample

MOST_COMPARED = 4000
"""Rows that are held against each other for the distance to the nearest."""

MOST_LISTED = 8
CERTAIN = ("duplicate", "empty")
LIKENESS = ("rds", "delift-se")
"""Teachers whose utility is how alike two rows are: a low one says that a row is of something else, not that it is wrong."""

FAR = 1.5
"""Interquartile ranges beyond a quartile from which on a value is an outlier (Tukey)."""


@dataclass(frozen=True)
class IssueRow:
    """A row with an issue. figure: what it was found by, for people."""

    id: str
    text: str
    figure: str
    selected: bool


@dataclass(frozen=True)
class Issue:
    """Rows of one kind. rests_on: what they were found by. auc: chance that a bad row is found before a good one, where known.

    certain: a row is of this kind or is not, as of duplicates.
    """

    kind: str
    rests_on: str
    looked_at: int
    rows: int
    selected: int
    examples: list[IssueRow]
    auc: float | None = None
    certain: bool = False
    ids: frozenset[str] = field(default=frozenset(), repr=False)


def issues(run: FinishedRun, sample: Sample, known_auc: Mapping[str, float] | None = None) -> list[Issue]:
    """Return all kinds with rows of them. known_auc: by kind, where it is known which rows are bad, as in a demo."""
    known = known_auc or {}
    found = [
        _issue(run, sample, *part, known.get(str(part[0])))
        for part in (_low(run), _duplicates(run), _empty(run), _far(run))
    ]
    return [one for one in found if one.rows]


def _issue(
    run: FinishedRun,
    sample: Sample,
    kind: str,
    rests_on: str,
    looked_at: int,
    figures: dict[str, str],
    auc: float | None,
) -> Issue:
    rows = [
        IssueRow(item, sample.text(item), figure, run.choices[item].selected)
        for item, figure in list(figures.items())[:MOST_LISTED]
    ]
    selected = sum(run.choices[item].selected for item in figures)
    certain = kind in CERTAIN
    return Issue(kind, rests_on, looked_at, len(figures), selected, rows, auc, certain, frozenset(figures))


def _low(run: FinishedRun) -> tuple[str, str, int, dict[str, str]]:
    """Rows whose mean utility is far below that of the others: what trains nothing, or trains against the targets."""
    ids = list(run.choices)
    score = np.array([np.nan if run.choices[item].score is None else run.choices[item].score for item in ids], float)
    # A loss as a teacher takes first what the model does not know.
    sign = -1.0 if run.settings.teacher == "loss" else 1.0
    places = outliers(sign * score) if run.settings.teacher not in LIKENESS else ()
    what = "a mean loss far above" if sign < 0 else "a mean utility far below"
    return (
        "likely wrong",
        f"{what} that of the other rows, by labels and predictions; a row that is merely unlike the targets has it, too",
        int(np.isfinite(score).sum()),
        {ids[at]: f"score {score[at]:.4g}" for at in places},
    )


def _duplicates(run: FinishedRun) -> tuple[str, str, int, dict[str, str]]:
    first: dict[Any, str] = {}
    found = {}
    for item, content in zip(run.rows.ids, run.rows.content, strict=True):
        if first.setdefault(content, item) != item:
            found[item] = f"same as {first[content]}"
    return "duplicate", "the same prompt and response as an earlier row", len(run.rows.ids), found


def _empty(run: FinishedRun) -> tuple[str, str, int, dict[str, str]]:
    ids = run.rows.ids
    sizes = zip(ids, run.rows.column("prompt_chars", ids), run.rows.column("response_chars", ids), strict=True)
    found = {
        item: f"prompt {prompt} characters, response {response}"
        for item, prompt, response in sizes
        if not prompt or not response
    }
    return "empty", "a prompt or a response without a character", len(ids), found


def _far(run: FinishedRun) -> tuple[str, str, int, dict[str, str]]:
    """Rows whose nearest other row is far off: of another topic, or of no language at all."""
    ids = shuffled(run.rows.ids, run.settings.seed, "report", "far")[:MOST_COMPARED]
    rests_on = "a nearest other row by embedding that is far less similar than other rows have"
    if len(ids) < 3:
        return "off-topic", rests_on, len(ids), {}
    nearest = nearest_other(run.vectors(ids))
    return (
        "off-topic",
        rests_on,
        len(ids),
        {ids[at]: f"cosine to the nearest row {nearest[at]:.2f}" for at in outliers(nearest)},
    )


def outliers(values: npt.NDArray[np.floating[Any]]) -> Sequence[int]:
    """Return the places of values far below the others, the lowest first; values that are not finite are left out."""
    finite = values[np.isfinite(values)]
    if len(finite) < 4:
        return []
    low, high = np.quantile(finite, [0.25, 0.75])
    bound = low - FAR * (high - low)
    places = np.flatnonzero(np.isfinite(values) & (values < bound))
    return [int(at) for at in places[np.argsort(values[places], kind="stable")]]
