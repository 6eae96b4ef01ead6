"""Vectors of texts by content: the cache on disk, and the blocks in which texts are encoded.

The cache is keyed by content and encoder fingerprint, so a second run embeds only new rows; it grows by whole blocks, each
written atomically, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats, Longs
from nncift.core.fingerprints import fingerprint
from nncift.core.lazily import Lazily
from nncift.core.memory import named
from nncift.errors import DataError
from nncift.models.encoders import Encoder
from nncift.storage.atomic import atomic, cache_folder, read_arrays, write_arrays
from nncift.storage.locks import PathLock, locked
from nncift.storage.vector_store import (
    Distinct,
    Gathering,
    InFile,
    InMemory,
    Table,
    bytes_of,
    hex_of,
    load_array,
    packed,
    raw_of,
)

log = logging.getLogger(__name__)

BLOCK = 512
ASIDE, LOCK = "aside-", ".lock"
YOUNG = 3600.0
"""Seconds that a folder aside is left alone, whoever made it."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts, `(n, dim)` float32 of unit norm, and how they came about.

    vectors: in memory, or mapped from the file that they were written to. truncated: texts longer than the encoder reads.
    fresh, tokens: texts and tokens that went through the encoder now. counts: tokens of every text before truncation, by the
    encoder's tokenizer, `(n,)`. read: tokens that all texts take.
    """

    vectors: Floats
    truncated: int
    fresh: int
    tokens: int
    counts: Longs
    read: int


@dataclass(frozen=True)
class Block:
    """Texts that are encoded in one go, made when they are asked for.

    place: among all ranges of texts. keys: hashes of the texts, in their order.
    """

    place: int
    keys: Sequence[str]
    texts: Sequence[str]


KeepBlock = Callable[[Block, Floats, npt.NDArray[np.int32]], None]


class BlockEncoder(Protocol):
    """Who encodes blocks."""

    def found(self) -> Iterator[tuple[Sequence[str], Floats, npt.NDArray[np.int32]]]:
        """Yield what is encoded already elsewhere: keys, vectors and token counts."""
        ...

    def encode(self, blocks: Sequence[Block], keep: KeepBlock) -> None:
        """Encode blocks, and keep each one's vectors and token counts."""
        ...


class _Alone:
    """Encodes in this process."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def found(self) -> Iterator[tuple[Sequence[str], Floats, npt.NDArray[np.int32]]]:
        return iter(())

    def encode(self, blocks: Sequence[Block], keep: KeepBlock) -> None:
        for block in blocks:
            keep(block, *self._encoder.encode(tuple(block.texts)))


def _blocks(texts: Sequence[str], wanted: Distinct, filled: npt.NDArray[np.bool_]) -> list[Block]:
    """Return the ranges of different texts, each without those that are there."""
    found = []
    for place, start in enumerate(range(0, len(wanted), BLOCK)):
        missing = start + np.flatnonzero(~filled[start : start + BLOCK])
        if len(missing):
            keys: Any = raw_of(wanted.keys[missing])
            where = wanted.first[missing].tolist()
            found.append(Block(place, Lazily(lambda key: key.tobytes().hex(), keys), Lazily(texts.__getitem__, where)))
    return found


class EmbeddingCache:
    """Vectors on disk by content, one folder per encoder fingerprint.

    Knows of each block that it has read what is in it, and reads again those alone that hold what is asked for.
    """

    def __init__(self, encoder: Encoder, root: Path | None = None) -> None:
        self._encoder = encoder
        self._folder = (root or cache_folder()) / "embeddings" / fingerprint(dict(encoder.describe()))
        self._keys: dict[str, npt.NDArray[np.bytes_]] = {}

    @contextmanager
    def aside(self, wanted: bool = True) -> Iterator[Path | None]:
        """Give a file for vectors that are needed for a while, beside the cache; None where it is not wanted."""
        if not wanted:
            yield None
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        with TemporaryDirectory(dir=self._folder, prefix=ASIDE) as folder, locked(Path(folder) / LOCK):
            yield Path(folder) / "vectors.npy"

    def _sweep(self) -> None:
        """Remove what processes that were killed have left aside."""
        for folder in self._folder.glob(f"{ASIDE}*"):
            # A folder so young may belong to a process that is about to lock it.
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime < YOUNG:
                    continue
                lock = PathLock(folder / LOCK)
                if lock.take():
                    # Where a file that is open cannot be removed, the lock must be gone first.
                    lock.release()
                    shutil.rmtree(folder)

    def embed(
        self,
        texts: Sequence[str],
        advance: Callable[[int], None] = lambda done: None,
        by: BlockEncoder | None = None,
        into: Path | None = None,
    ) -> Embedded:
        """Return the vectors of texts, encoding those that are not in the cache; `advance` hears of finished texts.

        Blocks are ranges of the different texts in their order, without those that are known: what is encoded beside what
        depends on texts and cache alone. by: who encodes the blocks, this process by default. into: the `.npy` file that the
        vectors are written to, block by block; without one they are gathered in memory. Raises DataError where the encoder gives
        vectors that are not finite, ResourceError where memory runs out.
        """
        with named("embedding texts"):
            return self._embedded(texts, advance, by or _Alone(self._encoder), into)

    def _embedded(
        self, texts: Sequence[str], advance: Callable[[int], None], by: BlockEncoder, into: Path | None
    ) -> Embedded:
        dim = int(self._encoder.describe()["dim"])
        if into is None:
            held = InMemory(len(texts), dim)
            return replace(self._gathered(texts, held, advance, by), vectors=held.vectors)
        with atomic(into) as part, InFile.at(part, len(texts), dim) as written:
            record = self._gathered(texts, written, advance, by)
        return replace(record, vectors=np.asarray(load_array(into, "r")))

    def _gathered(
        self, texts: Sequence[str], table: Table, advance: Callable[[int], None], by: BlockEncoder
    ) -> Embedded:
        """Fill a table, and return what it took; the vectors themselves stay there."""
        limit = self._encoder.describe()["max_tokens"]
        wanted = Distinct(texts)
        known = Gathering(wanted, table)
        self._load(known, table.dim)
        for record, vectors, counts in by.found():
            if vectors.shape == (len(record), table.dim):
                keys = bytes_of(record)
                new = known.put(keys, vectors, counts)
                if new.any():
                    self._save(hex_of(keys[new]), vectors[new], counts[new])
        blocks = _blocks(texts, wanted, known.filled)
        missing = int((~known.filled).sum())
        advance(len(texts) - missing)
        tokens = 0

        def keep(block: Block, vectors: Floats, counts: npt.NDArray[np.int32]) -> None:
            nonlocal tokens
            if not np.isfinite(vectors).all():
                raise DataError("the encoder gave vectors that are not finite; its weights may be damaged")
            keys = tuple(block.keys)
            self._save(keys, vectors, counts)
            known.put(bytes_of(keys), vectors, counts)
            tokens += int(np.minimum(counts, limit).sum() if limit else counts.sum())
            advance(len(keys))

        by.encode(blocks, keep)
        every = known.finish()
        truncated = int((every > limit).sum()) if limit is not None else 0
        read = int(np.minimum(every, limit).sum() if limit else every.sum())
        return Embedded(np.empty((0, table.dim), np.float32), truncated, missing, tokens, every, read)

    def _load(self, known: Gathering, dim: int) -> None:
        """Take over what is wanted of all blocks on disk."""
        for path in sorted(self._folder.glob("*.safetensors")):
            held = self._keys.get(path.name)
            if held is not None and not known.lacks(held):
                continue
            try:
                block = read_arrays(path)
                keys = packed(block["keys"])
                shapes = (block["vectors"].shape, block["tokens"].shape)
                if shapes != ((len(keys), dim), (len(keys),)) or not np.isfinite(block["vectors"]).all():
                    raise ValueError(f"shapes {shapes}")
            except (OSError, KeyError, TypeError, ValueError) as error:
                # A damaged block of a cache is no loss: its texts are encoded again.
                log.warning("%s is damaged (%s); its texts are encoded again", path, error)
                path.unlink(missing_ok=True)
                continue
            self._keys[path.name] = keys
            known.put(keys, block["vectors"], block["tokens"])

    def _save(self, keys: Sequence[str], vectors: Floats, counts: npt.NDArray[np.int32]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
        stored: dict[str, npt.NDArray[Any]] = {"keys": raw_of(bytes_of(keys)), "vectors": vectors, "tokens": counts}
        write_arrays(self._folder / f"{name}-{os.getpid()}.safetensors", stored)
