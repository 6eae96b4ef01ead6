"""Columns of Parquet files as sequences of Python values that are made when they are asked for: Arrow holds them in less."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from nncift.core.parallel import ranges
from nncift.storage.arrow_sizes import python_bytes
from nncift.storage.parquet_pages import BombError, Survey, survey

AT_ONCE = 1 << 14
SHORT = 1 << 16
"""Values up to which a column is made into Python objects once, and not anew whenever one is asked for."""


OWN_RATIO, OWN_LEAST = 16, 1 << 27
"""How many times its size a file of a run may stand for, and how many bytes it may in any case."""


def parquet_file(source: Path | IO[bytes], compact: Sequence[str] = ()) -> Any:
    """Open a Parquet file to be read by this thread alone. Raises what pyarrow raises.

    Reading ahead is left to a thread of Arrow's, which ends the process where it is refused memory. compact: columns that are
    read as places in a dictionary, so that a value that stands in many rows is in memory once.
    """
    import pyarrow.parquet as pq

    if isinstance(source, Path) and not _is_text(source):
        source = source.open("rb")
    return pq.ParquetFile(source, pre_buffer=False, read_dictionary=list(compact) or None)


def _is_text(path: Path) -> bool:
    """Tell whether a name is UTF-8, which pyarrow expects of it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(path: Path) -> Survey:
    """Survey a file of a run before it is read. Raises ValueError where it is damaged, or far more than a run writes."""
    found = survey(path)
    found.check()
    found.check_deltas(OWN_LEAST)
    return found


def _check_size(held: Any, path: Path) -> None:
    """Raise ValueError where values that are about to become Python objects are far more than their file."""
    size, found = path.stat().st_size, python_bytes(held)
    if found > max(OWN_LEAST, OWN_RATIO * size) + 64 * len(held):
        raise BombError(f"its {size:,} bytes stand for {found:,} bytes of values")


def read_columns(path: Path, names: Collection[str] | None = None, *, without: Collection[str] = ()) -> Any:
    """Return an Arrow table of some columns of a Parquet file, all by default.

    Read group by group: beside the columns themselves, no more than a group is in memory. Raises what pyarrow raises.
    """
    import pyarrow as pa

    compact = _checked(path).repeating(OWN_LEAST)
    with parquet_file(path, compact) as file:
        wanted = [name for name in file.schema_arrow.names if (names is None or name in names) and name not in without]
        groups = range(file.num_row_groups)
        parts = [file.read_row_group(group, columns=wanted, use_threads=False) for group in groups]
        table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table().select(wanted)
    for column in table.columns:
        _check_size(column, path)
    # Arrow keeps what it unpacked in.
    pa.default_memory_pool().release_unused()
    return table


def check_types(table: Any, types: Mapping[str, str]) -> None:
    """Raise ValueError where a column of an Arrow table holds another type than `types` says; those that it lacks pass."""
    import pyarrow as pa

    for name in {*table.column_names} & {*types}:
        kind = table[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(kind) != types[name]:
            raise ValueError(f"its column {name!r} holds {kind}, expected {types[name]}")


def text_column(values: Iterable[str]) -> Any:
    """Return texts as an Arrow array. Arrow's own way, here and below, loads pandas where that is installed."""
    import pyarrow as pa

    texts = [value.encode("utf-8") for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])


def number_column(values: Sequence[float | None] | npt.NDArray[Any], kind: Any) -> Any:
    """Return numbers below 2^53 as an Arrow array of a kind: int64, float64 or bool; None and NaN are missing."""
    import pyarrow as pa

    found = np.asarray(values, np.float64)
    there = ~np.isnan(found)
    known = np.where(there, found, 0.0)
    data = np.packbits(known != 0, bitorder="little") if kind == pa.bool_() else known.astype(str(kind))
    mask = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(kind, len(found), [mask, pa.py_buffer(data)])


def as_numpy(held: Any) -> npt.NDArray[Any]:
    """Return the values of an Arrow column: integers as such, anything else as objects."""
    import pyarrow as pa

    if held.null_count or not pa.types.is_integer(held.type):
        return np.array(held.to_pylist(), object)
    kind = np.dtype(str(held.type))
    parts = [np.frombuffer(part.buffers()[1], kind, len(part), part.offset * kind.itemsize) for part in held.chunks]
    return np.concatenate(parts) if parts else np.empty(0, kind)


class Column(Sequence[Any]):
    """The values of an Arrow column, which may have parts."""

    def __init__(self, held: Any) -> None:
        self._held = held

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if len(self._held) <= SHORT:
            return self._values[index]
        if isinstance(index, slice):
            return self._held[index].to_pylist()
        return self._held[index].as_py()

    @cached_property
    def _values(self) -> list[Any]:
        return self._held.to_pylist() if len(self._held) else []

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Any]:
        for at in ranges(len(self), AT_ONCE):
            yield from self[at]

    def at(self, places: Sequence[int]) -> list[Any]:
        """Return the values at some places."""
        return [self[place] for place in places]


class FileColumn(Sequence[Any]):
    """A column that stays in its file, of which one group of rows at a time is in memory.

    rows: which of the file's rows, all by default. Values one after the other, and `at`, are quick; single ones in any order read
    their group again.
    """

    def __init__(self, path: Path, name: str, rows: range | None = None) -> None:
        self._path, self._name = path, name
        self._compact = _checked(path).repeating(OWN_LEAST)
        about = parquet_file(path).metadata
        self._starts = [0, *accumulate(about.row_group(group).num_rows for group in range(about.num_row_groups))]
        self._rows = range(self._starts[-1]) if rows is None else rows
        self._group, self._held = -1, Column(())
        self._kept: dict[int, Any] = {}

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.at(range(*index.indices(len(self))))
        row = self._rows[index]
        return self._kept[row] if row in self._kept else self._read(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        for first, last in pairwise(self._starts):
            rows = range(max(first, self._rows.start), min(last, self._rows.stop))
            if rows:
                self._read(rows.start)
                held = self._held
                for at in ranges(len(rows), AT_ONCE):
                    yield from held[rows.start - first + at.start : rows.start - first + at.stop]

    def at(self, places: Sequence[int]) -> list[Any]:
        """Return the values at some places, each group of rows read once."""
        found: dict[int, Any] = {place: self[place] for place in sorted(set(places))}
        return [found[place] for place in places]

    def keep(self, places: Sequence[int]) -> None:
        """Hold the values at some places from now on, which will be asked for one by one."""
        self._kept.update(zip((self._rows[place] for place in places), self.at(places), strict=True))

    def _read(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        if group != self._group:
            with parquet_file(self._path, self._compact) as table:
                held = table.read_row_group(group, columns=[self._name], use_threads=False)[self._name]
            _check_size(held, self._path)
            self._held = Column(held)
            self._group = group
        return self._held[row - self._starts[group]]
