"""Vectors on disk: gathered in the order of texts, written block by block, and mapped and read by ids.

A file `NAME.npy` holds vectors `(n, dim)`; `NAME.json` beside it says which id each row has.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats, Longs, Places
from nncift.core.parallel import ranges
from nncift.errors import DataError, ResourceError
from nncift.storage import checksums
from nncift.storage.atomic import read_json

KEY_BYTES = 16
_KEY = np.dtype(f"S{KEY_BYTES}")
_AT_ONCE = 512
_LOOKED_AT = 1 << 24
"""Bytes of vectors that are looked at together."""

LARGEST = np.float32(1e15)
"""Beyond any number of a vector; squares of larger ones are not finite when they are added up."""

_MAPPED = 1 << 26
"""Bytes of a mapped file that are looked at before they are let go."""


class Table(Protocol):
    """Takes vectors row by row, in any order."""

    dim: int

    def write(self, rows: Places, vectors: Floats) -> None:
        """Take vectors `(n, dim)` for some rows."""
        ...

    def read(self, rows: Places) -> Floats:
        """Return vectors that were written."""
        ...


class InMemory:
    """A table in memory. vectors: `(n, dim)`."""

    def __init__(self, rows: int, dim: int) -> None:
        self.vectors: Floats = np.empty((rows, dim), np.float32)
        self.dim = dim

    def write(self, rows: Places, vectors: Floats) -> None:
        """Take vectors."""
        self.vectors[rows] = vectors

    def read(self, rows: Places) -> Floats:
        """Return vectors."""
        return self.vectors[rows]


class InFile:
    """A table in a `.npy` file, the same to the byte as `numpy.save` leaves.

    It is written through the file and not through a map of it, whose changed pages would count as this process's memory.
    """

    def __init__(self, stream: IO[bytes], rows: int, dim: int) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (rows, dim),
        }
        np.lib.format.write_array_header_1_0(stream, header)
        self._stream, self.dim, self._start = stream, dim, stream.tell()
        stream.truncate(self._start + 4 * rows * dim)

    @classmethod
    @contextmanager
    def at(cls, path: Path, rows: int, dim: int) -> Iterator[InFile]:
        """Give a table in a new file."""
        with path.open("w+b") as stream:
            yield cls(stream, rows, dim)

    def write(self, rows: Places, vectors: Floats) -> None:
        """Take vectors."""
        if vectors.shape != (len(rows), self.dim):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} rows of {self.dim} numbers")
        vectors = np.ascontiguousarray(vectors, np.float32)
        for first, last in _runs(rows):
            self._seek(rows[first])
            self._stream.write(vectors[first:last].data)

    def read(self, rows: Places) -> Floats:
        """Return vectors."""
        found = np.empty((len(rows), self.dim), np.float32)
        for first, last in _runs(rows):
            self._seek(rows[first])
            data = self._stream.read(4 * self.dim * (last - first))
            found[first:last] = np.frombuffer(data, np.float32).reshape(-1, self.dim)
        return found

    def _seek(self, row: np.intp) -> None:
        self._stream.seek(self._start + 4 * self.dim * int(row))


def _runs(rows: Places) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) of every run of rows that follow each other."""
    ends = [*np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)] if len(rows) else []
    start = 0
    for end in ends:
        yield start, int(end)
        start = int(end)


def keys_of(texts: Iterable[str]) -> npt.NDArray[np.bytes_]:
    """Return the hash of every text, `(n,)` of 16 bytes."""
    digests = bytearray()
    for text in texts:
        digests += hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]
    return np.frombuffer(bytes(digests), _KEY)


class Distinct:
    """The different ones among texts, in the order in which they first come, as numbers and bytes and not as Python's objects.

    at: which of them every text is, `(n,)`. first: where each first stands, `(m,)`. keys: their hashes, `(m,)` of 16 bytes.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = keys_of(texts)
        self._sorted, first, at = np.unique(found, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        self._rank: Places = np.empty_like(order)
        self._rank[order] = np.arange(len(order))
        self.first: Places = first[order]
        self.at: Places = self._rank[at]
        self.keys = self._sorted[order]

    def __len__(self) -> int:
        return len(self.first)

    def places(self, keys: npt.NDArray[np.bytes_]) -> Places:
        """Return which of the different texts hashes stand for, -1 for others."""
        if not len(self._sorted):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._rank[at], -1)


class Gathering:
    """Takes vectors and token counts of different texts by their hashes, and puts them where the texts are.

    filled: the different texts that are there, `(m,)`.
    """

    def __init__(self, texts: Distinct, table: Table) -> None:
        self._texts, self._table = texts, table
        self._counts = np.zeros(len(texts), np.int64)
        self.filled = np.zeros(len(texts), bool)

    def put(
        self, keys: npt.NDArray[np.bytes_], vectors: Floats, counts: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Take over what is asked for and not there yet; return which of the hashes that was, `(n,)`."""
        if not len(self.filled):
            return np.zeros(len(keys), bool)
        places = self._texts.places(keys)
        new = (places >= 0) & ~self.filled[places]
        # A hash that comes twice in one go counts once.
        new[np.flatnonzero(new)] &= _first_of(places[new])
        taken = np.flatnonzero(new)
        taken = taken[np.argsort(places[taken], kind="stable")]
        rows = places[taken]
        in_order = len(taken) == len(keys) and bool((np.diff(taken) == 1).all())
        self._table.write(self._texts.first[rows], vectors if in_order else vectors[taken])
        self._counts[rows], self.filled[rows] = counts[taken], True
        return new

    def lacks(self, keys: npt.NDArray[np.bytes_]) -> bool:
        """Tell whether any of these hashes is asked for and not there yet."""
        places = self._texts.places(keys)
        return bool((~self.filled[places[places >= 0]]).any())

    def finish(self) -> Longs:
        """Repeat vectors where texts repeat, and return the counts of all texts. Raises ResourceError where some are missing."""
        if missing := int((~self.filled).sum()):
            raise ResourceError(
                f"{missing} of {len(self.filled)} texts came back without a vector; give the same command again"
            )
        first = self._texts.first[self._texts.at]
        again = np.flatnonzero(first != np.arange(len(first)))
        for start in range(0, len(again), _AT_ONCE):
            rows = again[start : start + _AT_ONCE]
            self._table.write(rows, self._table.read(first[rows]))
        return self._counts[self._texts.at]


def _first_of(values: Places) -> npt.NDArray[np.bool_]:
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def packed(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Return hashes `(n, 16)` as elements, `(n,)`. Raises ValueError for another shape."""
    if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] != KEY_BYTES:
        raise ValueError(f"hashes of shape {raw.shape}")
    return np.frombuffer(raw.tobytes(), _KEY)


def raw_of(keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint8]:
    """Return hashes `(n,)` as bytes, `(n, 16)`."""
    return np.frombuffer(keys.tobytes(), np.uint8).reshape(-1, KEY_BYTES)


def hex_of(keys: npt.NDArray[np.bytes_]) -> tuple[str, ...]:
    """Return hashes `(n,)` as hex digits."""
    return tuple(key.tobytes().hex() for key in raw_of(keys))


def bytes_of(keys: Iterable[str]) -> npt.NDArray[np.bytes_]:
    """Return hashes given as hex digits, `(n,)`. Raises ValueError for other texts."""
    return np.frombuffer(bytes.fromhex("".join(keys)), _KEY)


class VectorFile:
    """The vectors of a run's rows by id, mapped from `NAME.npy`.

    ids: the name under which `NAME.json` has the ids. Raises DataError where a file is missing or damaged.
    """

    def __init__(self, run: Path, name: str, ids: str = "ids") -> None:
        self.path = run / f"{name}.npy"
        checksums.verify(run, f"{name}.json", self.path.name)
        try:
            self._record = read_json(run / f"{name}.json")
            self.vectors: Floats = np.asarray(load_array(self.path, "r"))
            self._place = {item: row for row, item in enumerate(self._record[ids])}
            if self.vectors.ndim != 2 or len(self.vectors) != len(self._place) or self.vectors.dtype.kind != "f":
                raise ValueError(f"{self.vectors.dtype} of shape {self.vectors.shape} for {len(self._place)} rows")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(error) from error

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in the order of the file."""
        return tuple(self._place)

    def about(self, name: str) -> Any:
        """Return what `NAME.json` says besides the ids. Raises DataError where it does not say it."""
        try:
            return self._record[name]
        except KeyError as error:
            raise self._damaged(error) from error

    def of(self, ids: Sequence[str]) -> Floats:
        """Return vectors `(len(ids), dim)`: a view, mapped and read-only, where they lie in the file in this order.

        Raises DataError for an id that has none, and for a vector that is not finite.
        """
        try:
            rows = np.fromiter((self._place[item] for item in ids), np.intp, len(ids))
        except KeyError as error:
            raise DataError(
                f"the vectors in {str(self.path)!r} lack one of {error}; delete {self.path.name} and run again"
            ) from error
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
            found = self.vectors[rows[0] : rows[-1] + 1]
        else:
            found = np.asarray(rows_of(self.vectors, rows))
        self._check_finite(found, ids)
        return found

    def _check_finite(self, found: Floats, ids: Sequence[str]) -> None:
        for at in ranges(len(found), max(1, _LOOKED_AT // max(1, found[:1].nbytes))):
            fine = (np.abs(found[at]) < LARGEST).all(axis=1)
            if not fine.all():
                first = ids[at.start + int(fine.argmin())]
                raise DataError(
                    f"the vector of {first!r} in {str(self.path)!r} is not finite, or far too large: it is damaged, or "
                    "the model that made it computes such; delete the run directory and run again, with another --dtype or "
                    "--encoder where it recurs"
                )

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{str(self.path)!r} is damaged ({error}); delete it and run again")


def load_array(path: Path, mode: Literal["r", "r+"] | None = None) -> npt.NDArray[Any]:
    """Read or map a `.npy` file without ever unpickling. Raises OSError or ValueError where it is missing or damaged."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (EOFError, SyntaxError, TokenError, TypeError, OverflowError, RecursionError) as error:
        # A damaged header is read as Python's own text, and fails as such.
        raise ValueError(f"its header cannot be read: {error}") from error
    return found


def release(array: npt.NDArray[Any]) -> None:
    """Let go the pages of a mapped file: they count as this process's memory, and can be read again at any time."""
    mapped = _map_of(array)
    # Windows has neither.
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _map_of(array: npt.NDArray[Any]) -> mmap.mmap | None:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def rows_of(array: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows of an array `(n, d)` in any order; of a mapped file, a part at a time is this process's memory."""
    step = max(1, _MAPPED // max(1, array.strides[0]))
    if _map_of(array) is None or len(array) <= step:
        return np.asarray(array[rows])
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    # In the order of the file: the system reads around every row, and would in the end hold all of it.
    for start in range(0, len(array), step):
        first, last = np.searchsorted(ordered, [start, start + step])
        if first < last:
            found[order[first:last]] = array[ordered[first:last]]
            release(array)
    return found
