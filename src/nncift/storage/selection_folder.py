"""Selections on disk: the table that a run leaves, and folders of `nncift select --out`.

Of such a folder everything but what was selected lies in the run that it was selected from.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nncift.core.memory import pass_on
from nncift.errors import DataError
from nncift.storage import checksums
from nncift.storage.atomic import read_json
from nncift.storage.parquet import read_columns

RECORD, TABLE = "selection.json", "selection.parquet"
REQUIRED = ("id", "source", "rank", "selected")
TEXTS, NUMBERS = ("id", "source", "reason"), {"rank": "int64", "length": "int64", "selected": "bool"}
"""Columns of texts, and of numbers that are no fractions; all others are fractions."""


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
    """Raise ValueError or KeyError for a table that no selection leaves."""
    from pyarrow import compute, types

    for name in table.column_names:
        held = table[name]
        kind = held.type.value_type if types.is_dictionary(held.type) else held.type
        wanted = "string" if name in TEXTS else NUMBERS.get(name, "double")
        if str(kind) != wanted:
            raise ValueError(f"its column {name!r} holds {kind}, expected {wanted}")
        if wanted == "double" and compute.all(compute.is_finite(held)).as_py() is False:
            raise ValueError(f"its column {name!r} holds a number that is not finite")
    ids, selected, ranks = table["id"], table["selected"], table["rank"]
    if ids.null_count or table["source"].null_count or selected.null_count:
        raise ValueError("a row has no id, no source, or is neither selected nor left")
    if compute.count_distinct(ids).as_py() != len(ids):
        raise ValueError("it names a row twice")
    given = sorted(rank or 0 for rank in compute.filter(ranks, selected).to_pylist())
    if given != list(range(1, len(given) + 1)):
        raise ValueError(f"the ranks of the {len(given)} selected rows are not 1 to {len(given)}")


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
