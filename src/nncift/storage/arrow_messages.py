"""What the messages of an Arrow file or stream unpack to, before anything is: each packed buffer begins with its size."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from nncift.storage.parquet_pages import BombError

MOST_MESSAGE = 1 << 29
"""Bytes that one message may unpack to."""

_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def check_messages(path: Path) -> None:
    """Raise BombError where a message unpacks to more than any is read at once. Raises what pyarrow raises, and ValueError."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(8)
        else:
            source.seek(0)
        for message in pa.ipc.MessageReader.open_stream(source):
            try:
                size = _unpacked(message)
            except (struct.error, IndexError) as error:
                raise ValueError("a message in it cannot be read") from error
            if size > MOST_MESSAGE:
                raise BombError(f"rows of it that are read together unpack to {size:,} bytes")


def _unpacked(message: Any) -> int:
    """Return how many bytes the packed buffers of a message unpack to; 0 where none is packed."""
    about = _Table.root(message.metadata.to_pybytes())
    kind, batch = about.byte(_HEADER_TYPE), about.table(_HEADER)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(1)
    if (
        kind not in (_DICTIONARY_BATCH, _RECORD_BATCH)
        or batch is None
        or batch.table(3) is None
        or message.body is None
    ):
        return 0
    sizes = 0
    for place, length in batch.pairs(2):
        if length >= 8:
            (size,) = struct.unpack("<q", message.body[place : place + 8].to_pybytes())
            # -1 says that a buffer is not packed after all.
            sizes += max(size, 0)
    return sizes


class _Table:
    """A table of a flatbuffer: its fields by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (back,) = struct.unpack_from("<i", data, at)
        self._fields = at - back
        (self._size,) = struct.unpack_from("<H", data, self._fields)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that a buffer is about."""
        return cls(data, *struct.unpack_from("<I", data, 0))

    def byte(self, field: int) -> int:
        """Return a field of one byte, 0 where it is left out."""
        place = self._place(field)
        return self._data[place] if place else 0

    def table(self, field: int) -> _Table | None:
        """Return a field that is a table, None where it is left out."""
        place = self._place(field)
        return None if not place else _Table(self._data, place + self._offset(place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Return a field that is a list of two numbers of 64 bits each."""
        place = self._place(field)
        if not place:
            return []
        start = place + self._offset(place)
        count = self._offset(start)
        if count * 16 > len(self._data):
            raise IndexError
        found = struct.unpack_from(f"<{2 * count}q", self._data, start + 4)
        return list(zip(found[::2], found[1::2], strict=True))

    def _offset(self, place: int) -> int:
        (found,) = struct.unpack_from("<I", self._data, place)
        return int(found)

    def _place(self, field: int) -> int:
        """Return where a field stands, 0 where it is left out."""
        entry = 4 + 2 * field
        if entry >= self._size:
            return 0
        (found,) = struct.unpack_from("<H", self._data, self._fields + entry)
        return self._at + int(found) if found else 0
