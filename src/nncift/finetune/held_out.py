"""The rows that judge: read from files, and kept apart from everything that was selected from or looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nncift.data import Example, Examples, read
from nncift.errors import DataError
from nncift.finetune.tune_settings import TuneSettings
from nncift.runs.finished import FinishedRun


@dataclass(frozen=True)
class HeldOut:
    """The test rows, and sentences about what was found in them."""

    rows: Examples
    notes: tuple[str, ...]


def held_out(run: FinishedRun, settings: TuneSettings) -> HeldOut:
    """Read the test files and keep out what the run has seen.

    Raises DataError for rows that the pool or the target set has too, unless they are to be dropped, and where none is left.
    """
    read_rows = read(
        *settings.test, format=settings.format, map=settings.map, limit=settings.limit_test, seed=settings.seed
    )
    notes = [*read_rows.notes]
    if read_rows.rejected:
        notes.append(f"{len(read_rows.rejected)} test rows cannot be used; the first: {read_rows.rejected[0].reason}.")
    seen = {*run.rows.content, *(run.rows.targets.content if run.rows.targets else ())}
    fresh = [row for row in read_rows if row.content_hash not in seen]
    known = len(read_rows) - len(fresh)
    if known and not settings.drop_seen:
        first = next(row for row in read_rows if row.content_hash in seen)
        raise DataError(
            f"{known} of {len(read_rows)} test rows are in the run's pool or target set too, the first {first.id!r}: what was "
            "trained on judges nothing. Give rows that the run has not seen, or leave these out with --drop-seen"
        )
    if known:
        notes.append(
            f"{known} of {len(read_rows)} test rows are in the run's pool or target set too, and were left out."
        )
    if not fresh:
        raise DataError("no test row is left: the run has seen all of them")
    asked = len(fresh) - len(_without_prompts(fresh, run.rows.examples))
    if asked:
        notes.append(f"{asked} of {len(fresh)} test rows ask what a row of the pool asks, with another response.")
    return HeldOut(Examples(tuple(fresh)), tuple(notes))


def _without_prompts(rows: Iterable[Example], pool: Examples) -> list[Example]:
    known = {row.messages for row in pool}
    return [row for row in rows if row.messages not in known]
