"""What selecting shifts: shares of sources, labels, lengths and turns in the pool, the selection and a random draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

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


def tables(run: FinishedRun) -> list[dict[str, Any]]:
    """Return a table for the source, every label column, the length and the turns; those with one group are left out.

    Each group has its share of the pool, of the selection and of one random draw of the same size, and `beyond_chance`: the
    selected share lies outside what 95 % of random draws give. `distance` is the total variation distance from the pool.
    """
    ids = run.rows.ids
    groups = {"source": run.rows.column("source", ids), **_labels(run), "length": _lengths(run), "turns": _turns(run)}
    chosen, random = set(run.chosen), set(random_ids(ids, len(run.chosen), run.settings.seed))
    found = []
    for name, values in groups.items():
        of = dict(zip(ids, values, strict=True))
        if len({value for value in values if value is not None}) > 1:
            found.append({"name": name, **_table(ids, of, chosen, random, ordered=name in ("length", "turns"))})
    return found


def _table(
    ids: Sequence[str], of: dict[str, str | None], chosen: set[str], random: set[str], *, ordered: bool
) -> dict[str, Any]:
    known = [item for item in ids if of[item] is not None]
    full = Counter(str(of[item]) for item in known)
    picked = Counter(str(of[item]) for item in known if item in chosen)
    drawn = Counter(str(of[item]) for item in known if item in random)
    k, r = max(1, sum(picked.values())), max(1, sum(drawn.values()))
    names = (
        list(dict.fromkeys(str(of[item]) for item in known)) if ordered else [name for name, _ in full.most_common()]
    )
    if ordered:
        names.sort(key=lambda name: float(name.split()[0].rstrip("+").replace(",", "")))
    lines = []
    for name in names[:MOST_GROUPS]:
        share, mine = full[name] / len(known), picked[name] / k
        # Drawing without replacement: the spread shrinks as the draw becomes the pool.
        spread = math.sqrt(share * (1 - share) / k * max(0.0, (len(known) - k) / max(1, len(known) - 1)))
        lines.append(
            {
                "group": name,
                "rows": full[name],
                "full": share,
                "selected": mine,
                "random": drawn[name] / r,
                "beyond_chance": abs(mine - share) > 1.96 * spread + 0.5 / k,
            }
        )
    distance = {
        what: 0.5 * sum(abs(counts[name] / size - full[name] / len(known)) for name in full)
        for what, counts, size in (("selected", picked, k), ("random", drawn, r))
    }
    return {"groups": lines, "more_groups": max(0, len(names) - MOST_GROUPS), "distance": distance, "rows": len(known)}


def _labels(run: FinishedRun) -> dict[str, list[str | None]]:
    """Return the label columns of the rows; what a label is is told from a sample of a large pool."""
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
