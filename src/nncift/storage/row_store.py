"""Rows of numbers on disk that fill up over time: a memory map, a header, and one checksum per row.

A row counts as filled only while its numbers match its checksum, which is written after they are on disk: whatever kills a
process or damages a file, what counts as filled is whole, and the rest is computed again.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.errors import DataError
from nncift.storage.atomic import read_json, reporting_full_disk, write_sealed
from nncift.storage.vector_store import load_array

log = logging.getLogger(__name__)
SUMS = ".sums.npy"


class RowStore:
    """`(rows, width)` float64 or float32 numbers under a path prefix: `.npy`, `.sums.npy` and `.json`.

    filled: `(rows,)` which rows hold what was written. Opened with `RowStore.open`, which creates it where it does not exist.
    """

    def __init__(self, values: npt.NDArray[Any], sums: npt.NDArray[np.uint32]) -> None:
        self.values = values
        self._sums = sums
        written = np.flatnonzero(sums)
        self.filled = np.zeros(len(sums), bool)
        self.filled[written] = sums[written] == _checksums(values, written)
        self.damaged = len(written) - int(self.filled.sum())

    @classmethod
    def open(
        cls, prefix: Path, rows: int, width: int, *, dtype: str = "float32", header: Mapping[str, Any] | None = None
    ) -> RowStore:
        """Open or create a store; damaged rows are named in the log and count as not filled.

        Raises DataError where the one on disk has another shape, type or header, ResourceError where the disk is too full for it.
        """
        wanted = {"rows": rows, "width": width, "dtype": dtype, **(header or {})}
        head, values, sums = (prefix.with_name(prefix.name + end) for end in (".json", ".npy", SUMS))
        if not head.exists():
            prefix.parent.mkdir(parents=True, exist_ok=True)
            _create(values, (rows, width), dtype)
            _create(sums, (rows,), "uint32")
            write_sealed(head, wanted)
        try:
            found = read_json(head)
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(head, error) from error
        if found != wanted:
            raise DataError(f"{str(head)!r} describes {found}, but {wanted} was expected; it belongs to another run")
        array = _map(values, (rows, width), dtype)
        store = cls(array, _map(sums, (rows,), "uint32"))
        if store.damaged:
            log.warning(
                "%s is damaged: %d of %d rows do not match their checksums; they count as missing and are computed again",
                values,
                store.damaged,
                rows,
            )
        return store

    def write(self, rows: int | npt.NDArray[np.intp], values: npt.ArrayLike) -> None:
        """Write numbers into rows, flush, then their checksums and flush again."""
        self.values[rows] = values
        _flush(self.values)
        at = np.atleast_1d(rows)
        self._sums[at] = _checksums(self.values, at)
        _flush(self._sums)
        self.filled[at] = True


def _checksums(values: npt.NDArray[Any], rows: Iterable[np.intp]) -> npt.NDArray[np.uint32]:
    """Return the CRC-32 of rows with their places, never 0, which says that nothing was written."""
    found = [zlib.crc32(np.ascontiguousarray(values[row]).data, int(row) & 0xFFFFFFFF) or 1 for row in rows]
    return np.array(found, np.uint32)


def _create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape).flush()
    # A map of a file with holes dies on a full disk when it is written to, and no error can be raised then.
    if hasattr(os, "posix_fallocate"):
        with reporting_full_disk(path), path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Map an array of known shape and type; raises DataError where the file is missing, cut short or something else."""
    try:
        # Mapped for reading first: numpy fills a file that is too short with zeros when it maps it for writing.
        array = load_array(path, "r")
        if path.is_symlink():
            raise ValueError("it is a link, and rows are written in place")
        if os.access(path, os.W_OK):
            array = load_array(path, "r+")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise _damaged(path, f"it holds {array.dtype} of shape {array.shape}, expected {dtype} of {shape}")
    return array


def _damaged(path: Path, why: object) -> DataError:
    return DataError(f"{str(path)!r} is missing or damaged ({why}); use another --out, or restore the file")


def _flush(array: npt.NDArray[Any]) -> None:
    # An empty array has no map underneath.
    if isinstance(array, np.memmap):
        array.flush()
