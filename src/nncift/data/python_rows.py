"""Rows that Python holds already: dicts, data frames, data sets, Arrow tables, and anything that yields rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nncift.config import Turns
from nncift.data.examples import Examples
from nncift.data.json_files import rows_of_table
from nncift.data.layout import Layout
from nncift.data.reading import ReadOptions, collect, is_usable, read
from nncift.data.records import Record, from_value, shown
from nncift.data.tables import BATCH_ROWS, dataset_records, split_of, table_records
from nncift.errors import DataError, UsageError

SOURCE = "rows"
"""Name of the source of rows that come from no file."""

_EXPECTED = "paths, a list of dicts, a DataFrame, a datasets.Dataset or another iterable of dicts"


def are_paths(rows: object) -> bool:
    """Tell files and hub names, one or several, from rows."""
    if isinstance(rows, (str, Path)):
        return True
    return isinstance(rows, (list, tuple)) and bool(rows) and all(isinstance(item, (str, Path)) for item in rows)


def rows_from(
    rows: Any,
    *,
    format: str = "auto",  # noqa: A002
    map: Mapping[str, str] | None = None,  # noqa: A002
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    turns: Turns = "last",
) -> Examples:
    """Return rows as examples, whatever holds them. Settings: as those of `read`.

    rows: paths, a list of dicts, a DataFrame of pandas or polars, a `datasets.Dataset` (of several splits `train`), an Arrow
    table, a dict of columns, or any iterable of rows, which is read once. NaN, NaT and NA are null.

    Raises UsageError for something else, and for columns without a name of their own; DataError where no row is usable, and
    where an iterable ends in an error.
    """
    if isinstance(rows, Examples):
        return rows
    if are_paths(rows):
        paths = (rows,) if isinstance(rows, (str, Path)) else rows
        return read(*paths, format=format, map=map, limit=limit, seed=seed, strict=strict, turns=turns)
    layout = Layout.from_settings(format, map, turns)
    options = ReadOptions(limit, seed, strict)
    return collect([(f"the {type(rows).__name__}", SOURCE, _records(rows, layout))], layout, options)


def _records(rows: Any, layout: Layout) -> Iterator[Record]:
    """Return the records of rows in whatever holds them. Raises UsageError where nothing known does."""
    kind = type(rows)
    library = kind.__module__.partition(".")[0]
    if library == "datasets" and hasattr(rows, "column_names"):
        return _of_data_set(rows, layout)
    if library == "pyarrow" and hasattr(rows, "to_batches"):
        return table_records(rows, layout.row_columns)
    if library == "pandas" and hasattr(rows, "iloc") and hasattr(rows, "columns"):
        return _of_pandas(rows)
    if library == "polars" and hasattr(rows, "iter_rows"):
        return _numbered(rows.iter_rows(named=True))
    if isinstance(rows, Mapping):
        table = None if is_usable(layout)(dict(rows)) else rows_of_table(_as_lists(rows))
        if table is None:
            raise UsageError(f"the rows are one dict; expected {_EXPECTED}: put rows into a list")
        return _numbered(table)
    if isinstance(rows, (str, bytes, bytearray, Path)) or not isinstance(rows, Iterable):
        raise UsageError(f"the rows are {kind.__name__} ({shown(rows)}); expected {_EXPECTED}")
    return _numbered(rows)


def _of_data_set(rows: Any, layout: Layout) -> Iterator[Record]:
    if isinstance(rows, Mapping):
        rows = split_of(rows, None, f"the {type(rows).__name__}", lambda split: f"rows[{split!r}]")
    # A data set that is streamed has no Arrow table.
    return dataset_records(rows, layout.row_columns) if hasattr(rows, "data") else _numbered(rows)


def _as_lists(rows: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value.tolist() if hasattr(value, "tolist") else value for name, value in rows.items()}


def _of_pandas(frame: Any) -> Iterator[Record]:
    # A level of the index that has a name is a column that somebody set apart, such as the ids.
    if levels := [name for name in frame.index.names if isinstance(name, str) and name not in frame.columns]:
        frame = frame.reset_index(level=levels)
    names = list(frame.columns)
    if not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"the DataFrame has the column {shown(next(name for name in names if not isinstance(name, str)))}, expected texts as "
            "names; name its columns: df.columns = [...]"
        )
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise UsageError(f"the DataFrame has the column {shown(twice)} twice; rename one")
    parts = (frame.iloc[at : at + BATCH_ROWS].to_dict("records") for at in range(0, len(frame), BATCH_ROWS))
    return _numbered(row for part in parts for row in part)


def _numbered(rows: Iterable[Any]) -> Iterator[Record]:
    number = 0
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        # Whatever the user's own code raises.
        except Exception as error:
            raise DataError(
                f"the rows end after {number} with {type(error).__name__}: {shown(str(error), 160)}"
            ) from error
        number += 1
        yield from_value(number, _without_missing(row))


def _without_missing(value: Any) -> Any:
    """Return a value in which what libraries write for a missing one is None."""
    if isinstance(value, Mapping):
        return {key: _without_missing(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_missing(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value
