"""Rows of numbers on disk that fill up over time: a memory map, a header, and one flag per row.

A row counts as filled only after its numbers are on disk, so whatever kills a process, what is flagged is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.errors import DataError
from nncift.files import write_json


class RowStore:
    """`(rows, width)` float64 or float32 numbers under a path prefix: `.npy`, `.filled.npy` and `.json`.

    Opened with `RowStore.open`, which creates it where it does not exist.
    """

    def __init__(self, values: npt.NDArray[Any], filled: npt.NDArray[np.bool_]) -> None:
        self.values = values
        self.filled = filled

    @classmethod
    def open(
        cls, prefix: Path, rows: int, width: int, *, dtype: str = "float32", header: Mapping[str, Any] | None = None
    ) -> RowStore:
        """Open or create a store. Raises DataError where the one on disk has another shape, type or header."""
        wanted = {"rows": rows, "width": width, "dtype": dtype, **(header or {})}
        head, values, filled = (prefix.with_name(prefix.name + end) for end in (".json", ".npy", ".filled.npy"))
        if not head.exists():
            prefix.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(values, "w+", dtype=dtype, shape=(rows, width)).flush()
            np.lib.format.open_memmap(filled, "w+", dtype="bool", shape=(rows,)).flush()
            write_json(head, wanted)
        try:
            found = json.loads(head.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(head, error) from error
        if found != wanted:
            raise DataError(f"{str(head)!r} describes {found}, but {wanted} was expected; it belongs to another run")
        return cls(_map(values, (rows, width), dtype), _map(filled, (rows,), "bool"))

    def write(self, rows: int | npt.NDArray[np.intp], values: npt.ArrayLike) -> None:
        """Write numbers into rows, flush, then flag the rows as filled and flush again."""
        self.values[rows] = values
        _flush(self.values)
        self.filled[rows] = True
        _flush(self.filled)


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Map an array of known shape and type; raises DataError where the file is missing, cut short or something else."""
    try:
        # Mapped for reading first: numpy fills a file that is too short with zeros when it maps it for writing.
        np.load(path, mmap_mode="r", allow_pickle=False)
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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
