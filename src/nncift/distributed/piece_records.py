"""Outcomes as bytes with a checksum, and files of them that only ever grow: what a shard leaves for the run that joins it.

A file is records one behind the other: magic, length, SHA-256 of the body, body. A body is the length of a JSON head, the head
(group, task, cost, names and shapes of arrays) and the arrays' bytes. A process that is killed leaves at most a record cut short
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

from nncift.core.tasks import TaskResult

MAGIC = b"nncift1\n"
_HEAD = struct.Struct("<8sQ32s")
MOST = 2**32
"""Bytes of a record above which its length is taken to be damaged."""
SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Record:
    """The result of a task of a group."""

    group: str
    task: str
    result: TaskResult


@dataclass(frozen=True)
class Damage:
    """A part of a file that is no record. at: first byte. whole: nothing behind it can be read either.

    task: what its head calls it, where that can be read; it may be what is damaged.
    """

    file: Path
    at: int
    why: str
    whole: bool
    task: str | None = None


def pack(record: Record) -> bytes:
    """Return a record as bytes."""
    result = record.result
    arrays = {name: np.asarray(array, order="C") for name, array in result.arrays.items()}
    head = {
        "job": record.group,
        "piece": record.task,
        "tokens": result.tokens,
        "passes": result.passes,
        "seconds": result.seconds,
        "told": dict(result.details),
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
    }
    details = json.dumps(head).encode()
    body = b"".join([struct.pack("<Q", len(details)), details, *(array.tobytes() for array in arrays.values())])
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
    result = TaskResult(arrays, head["tokens"], head["passes"], head["seconds"], head["told"])
    return Record(head["job"], head["piece"], result)


def read(file: Path) -> Iterator[Record | Damage]:
    """Yield the records of a file, and what is damaged."""
    return (part for _, part in _parts(file, 0))


def _parts(file: Path, at: int) -> Iterator[tuple[int, Record | Damage]]:
    """Yield what a file holds from a byte on, each with the byte behind it."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(at)
        while at < size:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                yield size, Damage(file, at, "it ends in the middle of a piece", whole=True)
                return
            magic, length, _ = _HEAD.unpack(head)
            if magic != MAGIC or length > MOST:
                yield size, Damage(file, at, "there is no task where one begins", whole=True)
                return
            body = stream.read(length)
            if len(body) < length:
                yield size, Damage(file, at, "it ends in the middle of a piece", whole=True)
                return
            behind = at + len(head) + length
            try:
                yield behind, unpack(head + body)
            except (ValueError, KeyError, TypeError, struct.error) as error:
                yield behind, Damage(file, at, str(error), whole=False, task=_named(body))
            at = behind


def _named(body: bytes) -> str | None:
    """Return the task that a damaged body seems to be of."""
    try:
        (details,) = struct.unpack_from("<Q", body)
        return str(json.loads(body[8 : 8 + details])["piece"])
    except (ValueError, KeyError, TypeError, struct.error):
        return None


class Reader:
    """Reads a file that grows, from where it was last."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0

    def new(self, *, settled: bool) -> Iterator[Record | Damage]:
        """Yield what came since.

        settled: nobody writes it now. Otherwise what looks damaged may be half written, or half arrived over a network, and is
        looked at again next time. So is damage up to the end in any case: its owner cuts it off, and goes on there.
        """
        for behind, part in _parts(self._file, self._at):
            if not isinstance(part, Damage) or (settled and not part.whole):
                self._at = behind
            elif not settled:
                return
            yield part


def names(file: Path) -> Iterator[str]:
    """Yield the tasks that a file holds, as far as it can be read; arrays are neither read nor checked."""
    return Names(file).new()


class Names:
    """The tasks of a file that grows, by name alone."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0

    def new(self) -> Iterator[str]:
        """Yield the names that came since."""
        with self._file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(self._at)
            while self._at < size:
                head = stream.read(_HEAD.size + 8)
                if len(head) < _HEAD.size + 8:
                    return
                magic, length, _ = _HEAD.unpack_from(head)
                behind = self._at + _HEAD.size + length
                (details,) = struct.unpack_from("<Q", head, _HEAD.size)
                if magic != MAGIC or behind > size or details > length:
                    return
                try:
                    name = str(json.loads(stream.read(details))["piece"])
                except (ValueError, KeyError, TypeError):
                    return
                self._at = behind
                yield name
                stream.seek(self._at)


class Writer:
    """Appends records to a file. names: the sound tasks that it holds.

    What is added outlives a kill of the process at once, and a crash of the machine within SYNC_SECONDS of work.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.names: set[str] = set()
        self.damage: list[Damage] = []
        for part in read(file) if file.exists() else ():
            if isinstance(part, Record):
                self.names.add(part.task)
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
        self.names.add(record.task)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Close the file."""
        self._sync()
        self._stream.close()

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()
