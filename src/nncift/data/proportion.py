"""Samples of rows that are read already, in proportion over their sources."""

from __future__ import annotations

from collections.abc import Sequence

from nncift.core.seeds import shuffled
from nncift.data.examples import Examples


def sampled(rows: Examples, most: int | None, seed: int) -> Examples:
    """Return a sample of at most so many rows, all of them without a number, in their order, with rejections and notes."""
    if most is None or len(rows) <= most:
        return rows
    chosen = sorted(in_proportion(rows.ids, [row.source for row in rows], seed, "limit")[:most])
    return Examples(tuple(rows[k] for k in chosen), rows.rejected, rows.notes)


def in_proportion(ids: Sequence[str], sources: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Return the positions of rows in an order whose every beginning is a sample in proportion over the sources.

    Within a source rows are ordered by a hash of id and seed; the share of its source that a row completes is its key,
    so that a larger sample only adds rows.
    """
    position = {example_id: k for k, example_id in enumerate(ids)}
    by_source: dict[str, list[str]] = {}
    for example_id, source in zip(ids, sources, strict=True):
        by_source.setdefault(source, []).append(example_id)
    keyed = [
        ((rank + 0.5) / len(members), example_id)
        for members in by_source.values()
        for rank, example_id in enumerate(shuffled(members, seed, purpose))
    ]
    return [position[example_id] for _, example_id in sorted(keyed)]
