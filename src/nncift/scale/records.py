"""Outcomes as bytes with a checksum, and files of them that only ever grow: what a shard leaves for the run that joins it.

A file is records one behind the other: magic, length, SHA-256 of the body, body. A body is the length of a JSON head, the head
(job, piece, cost, names and shapes of arrays) and the arrays' bytes. A process that is killed leaves at most a record cut short
at the end; whatever else does not match its checksum is passed over by its length, named, and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncift.scale.pieces import Outcome

MAGIC = b"nncift1\n"
_HEAD = struct.Struct("<8sQ32s")
MOST = 2**32
"""Bytes of a record above which its length is taken to be damaged."""
SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Record:
    """The outcome of a piece of a job."""

    job: str
    piece: str
    outcome: Outcome


@dataclass(frozen=True)
class Damage:
    """A part of a file that is no record. at: first byte. whole: nothing behind it can be read either."""

    file: Path
    at: int
    why: str
    whole: bool


def pack(record: Record) -> bytes:
    """Return a record as bytes."""
    outcome = record.outcome
    arrays = {name: np.ascontiguousarray(array) for name, array in outcome.arrays.items()}
    head = {
        "job": record.job, "piece": record.piece, "tokens": outcome.tokens, "passes": outcome.passes,
        "seconds": outcome.seconds, "told": dict(outcome.told),
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
    }  # fmt: skip
    told = json.dumps(head).encode()
    body = b"".join([struct.pack("<Q", len(told)), told, *(array.tobytes() for array in arrays.values())])
    return _HEAD.pack(MAGIC, len(body), hashlib.sha256(body).digest()) + body


def unpack(data: bytes) -> Record:
    """Read one record. Raises ValueError where it is damaged."""
    magic, size, digest = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != MAGIC or size != len(body) or hashlib.sha256(body).digest() != digest:
        raise ValueError("it does not match its checksum")
    (length,) = struct.unpack_from("<Q", body)
    head = json.loads(body[8 : 8 + length])
    at, arrays = 8 + length, {}
    for name, kind, shape in head["arrays"]:
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    outcome = Outcome(arrays, head["tokens"], head["passes"], head["seconds"], head["told"])
    return Record(head["job"], head["piece"], outcome)


def read(file: Path) -> Iterator[Record | Damage]:
    """Yield the records of a file, and what is damaged."""
    size, at = file.stat().st_size, 0
    with file.open("rb") as stream:
        while at < size:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                yield Damage(file, at, "it ends in the middle of a piece", whole=True)
                return
            magic, length, _ = _HEAD.unpack(head)
            if magic != MAGIC or length > MOST:
                yield Damage(file, at, "there is no piece where one begins", whole=True)
                return
            body = stream.read(length)
            if len(body) < length:
                yield Damage(file, at, "it ends in the middle of a piece", whole=True)
                return
            try:
                yield unpack(head + body)
            except (ValueError, KeyError, TypeError, struct.error) as error:
                yield Damage(file, at, str(error), whole=False)
            at += len(head) + length


def names(file: Path) -> Iterator[str]:
    """Yield the pieces that a file holds, as far as it can be read; arrays are neither read nor checked."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        at = 0
        while at < size:
            head = stream.read(_HEAD.size + 8)
            if len(head) < _HEAD.size + 8:
                return
            magic, length, _ = _HEAD.unpack_from(head)
            at += _HEAD.size + length
            (told,) = struct.unpack_from("<Q", head, _HEAD.size)
            if magic != MAGIC or at > size or told > length:
                return
            try:
                yield str(json.loads(stream.read(told))["piece"])
            except (ValueError, KeyError, TypeError):
                return
            stream.seek(at)


class Writer:
    """Appends records to a file. names: the sound pieces that it holds.

    What is added outlives a kill of the process at once, and a crash of the machine within SYNC_SECONDS of work.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.names: set[str] = set()
        self.damage: list[Damage] = []
        for part in read(file) if file.exists() else ():
            if isinstance(part, Record):
                self.names.add(part.piece)
            else:
                self.damage.append(part)
                if part.whole:
                    # Cut off, so that what is appended can be read.
                    os.truncate(file, part.at)
        self._stream = file.open("ab")
        self._synced = time.monotonic()

    def add(self, record: Record) -> None:
        """Append a record."""
        self._stream.write(pack(record))
        self._stream.flush()
        self.names.add(record.piece)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Close the file."""
        self._sync()
        self._stream.close()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()
