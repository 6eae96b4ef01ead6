"""What selecting shifts: shares of sources, labels, lengths and turns in the pool, the selection and a random draw."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nncift.core.parallel import ranges
from nncift.core.seeds import shuffled
from nncift.data.formats import LabelColumns, label
from nncift.data.records import kept_row
from nncift.runs.finished import FinishedRun
from nncift.selection.controls import random_ids

MOST_READ = 20_000
MOST_GROUPS = 12
AT_ONCE = 1 << 14
"""Rows whose labels are read at once."""


@dataclass(frozen=True)
class Group:
    """Rows of one kind: how many there are, and their shares of the pool, of the selection and of one random draw as large.

    beyond_chance: the selected share lies outside what 95 % of random draws give.
    """

    group: str
    rows: int
    full: float
    selected: float
    random: float
    beyond_chance: bool


@dataclass(frozen=True)
class ShiftTable:
    """Shares by group. distance: total variation distance of the selection and of the random draw from the pool."""

    name: str
    groups: list[Group]
    more_groups: int
    distance: dict[str, float]
    rows: int


def tables(run: FinishedRun) -> list[ShiftTable]:
    """Return a table for the source, every label column, the length and the turns; those with one group are left out."""
    ids = run.rows.ids
    groups = {"source": run.rows.column("source", ids), **_labels(run), "length": _lengths(run), "turns": _turns(run)}
    chosen, random = set(run.chosen), set(random_ids(ids, len(run.chosen), run.settings.seed))
    return [
        _table(name, dict(zip(ids, values, strict=True)), chosen, random)
        for name, values in groups.items()
        if len({value for value in values if value is not None}) > 1
    ]


def _table(name: str, of: dict[str, str | None], chosen: set[str], random: set[str]) -> ShiftTable:
    known = {item: str(group) for item, group in of.items() if group is not None}
    full = Counter(known.values())
    counts = {
        "selected": Counter(group for item, group in known.items() if item in chosen),
        "random": Counter(group for item, group in known.items() if item in random),
    }
    k, r = (max(1, sum(drawn.values())) for drawn in counts.values())
    names = [group for group, _ in full.most_common()]
    if name in ("length", "turns"):
        names.sort(key=lambda group: float(group.split()[0].rstrip("+").replace(",", "")))
    lines = []
    for group in names[:MOST_GROUPS]:
        share, mine = full[group] / len(known), counts["selected"][group] / k
        # Drawing without replacement: the spread shrinks as the draw becomes the pool.
        spread = math.sqrt(share * (1 - share) / k * max(0.0, (len(known) - k) / max(1, len(known) - 1)))
        beyond = abs(mine - share) > 1.96 * spread + 0.5 / k
        lines.append(Group(group, full[group], share, mine, counts["random"][group] / r, beyond))
    if name not in ("length", "turns"):
        # What shifts most first; lengths and turns have an order of their own.
        lines.sort(key=lambda line: -abs(line.selected - line.full))
    distance = {
        what: 0.5 * sum(abs(drawn[group] / size - full[group] / len(known)) for group in full)
        for (what, drawn), size in zip(counts.items(), (k, r), strict=True)
    }
    return ShiftTable(name, lines, max(0, len(names) - MOST_GROUPS), distance, len(known))


def _labels(run: FinishedRun) -> dict[str, list[str | None]]:
    """Return the label columns of the rows; what counts as a label is judged on a sample of a large pool."""
    ids = run.rows.ids
    columns = LabelColumns()
    for raw in run.rows.column("raw", shuffled(ids, run.settings.seed, "report", "labels")[:MOST_READ]):
        columns.add(kept_row(raw))
    names = [name for name in columns.counts() if name != "source"]
    if not names:
        return {}
    found: dict[str, list[str | None]] = {name: [] for name in names}
    for at in ranges(len(ids), AT_ONCE):
        for raw in run.rows.column("raw", ids[at]):
            row = kept_row(raw)
            for name, labels in found.items():
                labels.append(label(row.get(name)))
    return found


def _lengths(run: FinishedRun) -> list[str | None]:
    """Return the length of prompt and response together, in four groups of about the same size."""
    ids = run.rows.ids
    sizes = np.array(run.rows.column("prompt_chars", ids)) + np.array(run.rows.column("response_chars", ids))
    edges = np.unique(np.quantile(sizes, [0.25, 0.5, 0.75], method="lower"))
    starts = [0, *(int(edge) + 1 for edge in edges)]
    names = [
        f"{start:,} to {starts[at + 1] - 1:,} characters" if at + 1 < len(starts) else f"{start:,}+ characters"
        for at, start in enumerate(starts)
    ]
    return [names[int(np.searchsorted(edges, size))] for size in sizes]


def _turns(run: FinishedRun) -> list[str | None]:
    return [f"{turns} turns" if turns < 8 else "8+ turns" for turns in run.rows.column("turns", run.rows.ids)]
