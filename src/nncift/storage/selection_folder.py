"""Selections on disk: the table that a run leaves, and folders of `nncift select --out`.

Of such a folder everything but what was selected lies in the run that it was selected from.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.memory import pass_on
from nncift.errors import DataError
from nncift.storage import checksums
from nncift.storage.atomic import read_json
from nncift.storage.parquet import check_types, read_columns

RECORD, TABLE = "selection.json", "selection.parquet"
THERE = ("source", "reason")
"""Columns that every row has a text in."""

REQUIRED = ("id", "source", "rank", "selected")
LARGEST = 1e100
"""Beyond sums of float32 over any number of targets."""

FRACTIONS = ("gain", "would_add", "score", "stability")
TYPES = {"id": "string", "source": "string", "reason": "string", "rank": "int64", "length": "int64", "selected": "bool"}
TYPES |= dict.fromkeys(FRACTIONS, "double")


def read_selection(folder: Path, names: Collection[str]) -> Any:
    """Return those of some columns that a folder's `selection.parquet` has, an Arrow table.

    Raises DataError where it cannot be read, and where no selection is such: it names a row twice, ranks are not 1, 2, 3 and so
    on, or a number is not finite.
    """
    import pyarrow as pa

    checksums.verify(folder, TABLE)
    try:
        table = read_columns(folder / TABLE, {*names, *REQUIRED})
        _check(table)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no finished run in {str(folder)!r}, and no folder of `nncift select --out`; give the --out of a run that "
            "has ended"
        ) from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        pass_on(error)
        raise DataError(f"{TABLE} of {str(folder)!r} cannot be read: {error}; run the same run again") from error
    return table


def _check(table: Any) -> None:
    """Raise ValueError or KeyError for a table that no selection leaves.

    Without pyarrow.compute, whose import ends the process where it is refused memory.
    """
    check_types(table, TYPES)
    for name in {*table.column_names} & {*FRACTIONS}:
        if not _is_finite(table[name]):
            raise ValueError(f"its column {name!r} holds a number that is not finite, or far too large")
    ids, selected = table["id"].to_pylist(), table["selected"].to_pylist()
    if None in ids or None in selected or any(table[name].null_count for name in {*table.column_names} & {*THERE}):
        raise ValueError("a row has no id, no source, no reason, or is neither selected nor left")
    if len(set(ids)) != len(ids):
        raise ValueError("it names a row twice")
    ranks = sorted(rank or 0 for rank, chosen in zip(table["rank"].to_pylist(), selected, strict=True) if chosen)
    if ranks != list(range(1, len(ranks) + 1)):
        raise ValueError(f"the ranks of the {len(ranks)} selected rows are not 1 to {len(ranks)}")


def _is_finite(held: Any) -> bool:
    parts = (part for part in held.chunks if len(part))
    values = (np.frombuffer(part.buffers()[1], np.float64, len(part), part.offset * 8) for part in parts)
    if all((np.abs(part) < LARGEST).all() for part in values):
        return True
    # What stands in the place of a missing number is no number.
    return all(value is None or abs(value) < LARGEST for value in held.to_pylist())


def place_of(run: Path, folder: Path) -> dict[str, str]:
    """Return what the record of a folder says of its run: where it is, also as seen from the folder, should both be moved."""
    return {"run": str(run.resolve()), "run_from_here": os.path.relpath(run.resolve(), folder.resolve())}


def is_selection_folder(folder: Path) -> bool:
    """Tell a folder of `nncift select --out` from a run, whose own record names no run."""
    return "run" in _record(folder)


def run_behind(folder: Path) -> Path:
    """Return the directory of the run behind a folder: the folder itself, or what its selection was made from.

    Raises DataError where that run is gone.
    """
    if not is_selection_folder(folder):
        return folder
    record = _record(folder)
    places = [Path(str(record["run"])), folder / str(record.get("run_from_here", "."))]
    found = next((place for place in places if (place / RECORD).exists()), None)
    if found is None:
        raise DataError(
            f"{str(folder)!r} was selected from the run in {str(places[0])!r}, which is not there; put it back, or give the run"
        )
    return found


def _record(folder: Path) -> dict[str, object]:
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError, RecursionError):
        # What is damaged is named by whoever reads it.
        return {}
    return found if isinstance(found, dict) else {}
