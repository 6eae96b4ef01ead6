"""Rows of a run by rank or by a text in them, where their ids are not known."""

from __future__ import annotations

from dataclasses import dataclass

from nncift.core.result_types import Record
from nncift.errors import UsageError
from nncift.runs.finished import FinishedRun

MOST = 20
"""Rows that are listed."""
SHOWN = 200
"""Characters of their texts."""


@dataclass(frozen=True)
class Match(Record):
    """A row that a text is in, with the beginning of what it says."""

    id: str
    source: str
    line: int | None
    selected: bool
    rank: int | None
    prompt: str
    response: str


@dataclass(frozen=True)
class Matches(Record):
    """The rows that a text is in. found: how many; rows: the first of them, selected ones by rank before others."""

    search: str
    found: int
    rows: tuple[Match, ...]


def id_at_rank(run: FinishedRun, rank: int) -> str:
    """Return the id of the selected row at a rank, from 1. Raises UsageError where there is none."""
    if not 1 <= rank <= len(run.chosen):
        raise UsageError(f"--rank {rank} was given; the run selected {len(run.chosen)} rows, with ranks from 1")
    return run.chosen[rank - 1]


def rows_with(run: FinishedRun, text: str) -> Matches:
    """Return the rows whose id, prompt or response holds a text, whatever its case. Raises UsageError where none does."""
    wanted = text.casefold()
    if not wanted.strip():
        raise UsageError("--search was given without a text; give words of the row that is looked for")
    ids = []
    for item in run.rows.ids:
        row = run.rows.example(item)
        if any(wanted in part.casefold() for part in (item, row.prompt, row.response)):
            ids.append(item)
    if not ids:
        raise UsageError(
            f"no row of {str(run.path)!r} has {text!r} in its id, prompt or response; give other words, or look into "
            "rejected.jsonl for rows that were not read"
        )
    place = {item: rank for rank, item in enumerate(run.chosen, 1)}
    ids.sort(key=lambda item: place.get(item, len(place) + 1))
    return Matches(text, len(ids), tuple(_match(run, item, place.get(item)) for item in ids[:MOST]))


def _match(run: FinishedRun, item: str, rank: int | None) -> Match:
    row = run.rows.example(item)
    return Match(item, row.source, row.line, rank is not None, rank, row.prompt[:SHOWN], row.response[:SHOWN])
