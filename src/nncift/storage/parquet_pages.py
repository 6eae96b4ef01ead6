"""What the pages of a Parquet file unpack to, read from their headers before anything is unpacked.

A few kB can stand for gigabytes: a page that packs one letter, a dictionary whose one long value stands in a million rows,
rows of nothing. The footer may say anything of that; what a page unpacks to is in its own header, and reading fails
where that is wrong.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MOST_PAGE = 1 << 27
"""Bytes of an unpacked page: writers make pages of 1 to 100 MB."""

MOST_PAGES = 1 << 29
"""Bytes of the pages that are unpacked at once: one of each column."""

MANY_CELLS, LEAST_CELL_BYTES = 20_000_000, 0.01
"""Beyond so many values, a file holds at least so many bytes for each."""

MOST_IN_ROWS = 1 << 26
"""Values inside lists of one group of rows: any row may hold all of them."""

MOST_LISTS, MOST_LIST_RATIO = 1 << 28, 50
"""Bytes of lists in a group of rows, and how many times their size in the file, that are too many together."""

WINDOW = 1024
"""Rows that are read at once."""

MOST_FOOTER, MOST_HEADER = 1 << 26, 1 << 20
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
DICTIONARY_PAGE, DATA_PAGES = 2, (0, 3)
BYTE_ARRAY, DELTA_BYTE_ARRAY = 6, 7
IN_DICTIONARY = (2, 8)
"""Encodings whose values are places in the dictionary."""


class BombError(ValueError):
    """A file whose content is far larger than the file."""


@dataclass(frozen=True)
class Chunk:
    """The values of a column in a group of rows.

    values: how many, in all levels. unpacked: bytes of its pages. longest: bytes that one value may take where it is stored
    once and stands in many rows; 0 where every value takes bytes of its own. page: the largest page. densest: bytes of the
    pages that WINDOW rows are in, at most, where all rows have equally many values. nested: whether a row may have several.
    delta: whether values are stored as what differs from the one before; Arrow reads none of these as places in a dictionary.
    """

    path: str
    values: int
    unpacked: int
    longest: int
    page: int
    densest: int
    nested: bool
    delta: bool = False


@dataclass(frozen=True)
class Survey:
    """What a file holds, group by group: rows and chunks. size: bytes of the file."""

    groups: tuple[tuple[int, tuple[Chunk, ...]], ...]
    size: int

    @property
    def cells(self) -> int:
        """Values in all."""
        return sum(chunk.values for _, chunks in self.groups for chunk in chunks)

    @property
    def heaviest(self) -> int:
        """Bytes of WINDOW rows in memory, at most, but for lists that hold more than others."""
        return max(
            (sum(chunk.densest + WINDOW * chunk.longest for chunk in chunks) for _, chunks in self.groups), default=0
        )

    def repeating(self, least: int, *, nested: bool = False) -> list[str]:
        """Return the columns that are read as places in a dictionary, or their values would take so many bytes in all.

        nested: of lists alone.
        """
        return sorted(set(self.expanding(least, nested=nested)) - self._deltas)

    def expanding(self, least: int, *, nested: bool = False) -> list[str]:
        """Return the columns whose values that stand once would take more than so many bytes in all. nested: of lists alone."""
        found: Counter[str] = Counter()
        for _, chunks in self.groups:
            found.update({chunk.path: chunk.values * chunk.longest for chunk in chunks if chunk.nested >= nested})
        return sorted(path for path, most in found.items() if most > least)

    @property
    def _deltas(self) -> set[str]:
        """The columns of which Arrow reads none as places in a dictionary."""
        return {chunk.path for _, chunks in self.groups for chunk in chunks if chunk.delta}

    def check_deltas(self, least: int, *, nested: bool = False) -> None:
        """Raise BombError for a column of differences whose values may take more than so many bytes. nested: of lists alone."""
        if found := self._deltas.intersection(self.expanding(least, nested=nested)):
            raise BombError(
                f"its column {min(found)[:40]!r} is encoded as DELTA_BYTE_ARRAY; write it in another encoding"
            )

    def check(self) -> None:
        """Raise BombError where there are far too many values for the file, or too many are unpacked together."""
        if self.cells > MANY_CELLS and self.size < self.cells * LEAST_CELL_BYTES:
            raise BombError(f"its {self.size:,} bytes stand for {self.cells:,} values")
        for _, chunks in self.groups:
            if sum(chunk.page for chunk in chunks) > MOST_PAGES:
                raise BombError("pages of it that are read together unpack to more than 512 MiB")
            if sum(chunk.values for chunk in chunks if chunk.nested) > MOST_IN_ROWS:
                raise BombError("a group of its rows holds more than 67 million values inside lists")


def survey(source: Path | IO[bytes]) -> Survey:
    """Return what a Parquet file unpacks to. Raises ValueError for a damaged one, BombError for a page larger than any."""
    if isinstance(source, Path):
        with source.open("rb") as handle:
            return survey(handle)
    try:
        return _survey(source)
    except (struct.error, AttributeError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its footer or a page's header cannot be read ({type(error).__name__})") from error
    finally:
        source.seek(0)


def _survey(handle: IO[bytes]) -> Survey:
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 8))
    length, magic = struct.unpack("<I4s", handle.read(8))
    if magic != b"PAR1" or length > min(size - 8, MOST_FOOTER):
        raise ValueError("it has no footer where Parquet files have theirs")
    handle.seek(size - 8 - length)
    footer = _Compact(handle.read(length)).struct()
    groups = []
    for group in footer.get(4, []):
        columns = [column[3] for column in group[1] if 3 in column]
        rows = int(group[3])
        groups.append((rows, tuple(_chunk(handle, about, size, rows) for about in columns)))
    return Survey(tuple(groups), size)


def _chunk(handle: IO[bytes], about: dict[int, Any], size: int, rows: int) -> Chunk:
    begins = [place for key in (9, 11) if isinstance(place := about.get(key), int) and place >= 4]
    place, wanted = min(begins), int(about[5])
    pages: list[tuple[int, int]] = []
    values = unpacked = taken = longest = page = 0
    is_text = about[1] == BYTE_ARRAY
    in_dictionary, repeats, delta = 0, False, False
    while values < wanted:
        header, begin = _header(handle, place, size)
        packed, whole = int(header[3]), int(header[2])
        if packed < 0 or whole < 0 or begin + packed > size:
            raise ValueError("a page reaches beyond the end of the file")
        if whole > MOST_PAGE:
            raise BombError(f"a page of it unpacks to {whole:,} bytes")
        page, unpacked, taken, place = max(page, whole), unpacked + whole, taken + packed, begin + packed
        if header[1] == DICTIONARY_PAGE and is_text:
            in_dictionary = _longest(handle, begin, packed, whole, about.get(4, 0))
        elif header[1] in DATA_PAGES:
            data = header[5] if header[1] == 0 else header[8]
            encoding = data[2] if header[1] == 0 else data[4]
            if int(data[1]) < 0 or (not data[1] and not packed):
                raise ValueError("a page holds no values")
            values += int(data[1])
            pages.append((int(data[1]), whole))
            repeats |= encoding in IN_DICTIONARY
            if encoding == DELTA_BYTE_ARRAY:
                longest, delta = max(longest, whole), True
    longest = max(longest, in_dictionary if repeats else 0)
    path, each = ".".join(_text(part) for part in about[3]), -(-values // max(rows, 1))
    nested = "." in path or values > rows
    # One row may hold all that lists of a group hold.
    if nested and unpacked > MOST_LISTS and unpacked > MOST_LIST_RATIO * taken:
        raise BombError(f"{taken:,} bytes of its column {path[:40]!r} unpack to {unpacked:,}")
    return Chunk(path, values, unpacked, longest, page, _densest(pages, WINDOW * max(each, 1)), nested, delta)


def _densest(pages: list[tuple[int, int]], window: int) -> int:
    """Return the most bytes of the pages that so many values, one after the other, are in. pages: values and bytes of each."""
    most = held = inside = first = 0
    for place, (count, whole) in enumerate(pages):
        held, inside = held + whole, inside + count
        # Of the first page and of the last one there may be a single value in the window.
        while first < place and inside - pages[first][0] - count + 2 > window:
            held, inside, first = held - pages[first][1], inside - pages[first][0], first + 1
        most = max(most, held)
    return most


def _header(handle: IO[bytes], place: int, size: int) -> tuple[dict[int, Any], int]:
    """Return the header of a page, and where its data begins."""
    window = 1 << 10
    while True:
        handle.seek(place)
        reader = _Compact(handle.read(window))
        try:
            return reader.struct(), place + reader.at
        except IndexError:
            if window >= min(MOST_HEADER, size - place):
                raise
            window <<= 3


def _longest(handle: IO[bytes], place: int, packed: int, whole: int, codec: int) -> int:
    """Return the bytes of the longest value in a dictionary, or of all of it where its codec is not known."""
    import pyarrow as pa

    handle.seek(place)
    data = handle.read(packed)
    if codec:
        if codec not in CODECS or not pa.Codec.is_available(CODECS[codec]):
            return whole
        data = pa.Codec(CODECS[codec]).decompress(data, decompressed_size=whole).to_pybytes()
    at = longest = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        longest, at = max(longest, length), at + 4 + length
    return min(longest, whole)


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace")


class _Compact:
    """Values of Thrift's compact protocol: structs as dicts by the number of the field. Raises IndexError where data ends."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at, self._depth = data, 0, 0

    def struct(self) -> dict[int, Any]:
        """Read the fields of a struct."""
        self._depth += 1
        if self._depth > 32:
            raise ValueError("its footer is nested too deeply")
        found: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) & 15:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            found[field] = self._value(head & 15)
        self._depth -= 1
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return list(self._items())
        if kind == 12:
            return self.struct()
        raise ValueError(f"its footer has a field of the unknown kind {kind}")

    def _items(self) -> Iterator[Any]:
        head = self._byte()
        count = self._varint() if head >> 4 == 15 else head >> 4
        for _ in range(count):
            # In a list a boolean is a byte of its own.
            yield self._byte() if head & 15 in (1, 2) else self._value(head & 15)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self._data):
            raise IndexError
        return self._data[self.at - count : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number in its footer has too many bytes")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
