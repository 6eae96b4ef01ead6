"""Vectors of texts by content: the cache on disk, and the blocks in which texts are encoded.

The cache is keyed by content and encoder fingerprint, so a second run embeds only new rows; it grows by whole blocks, each
written atomically, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nncift.encode import Encoder, Floats
from nncift.errors import DataError, ResourceError
from nncift.files import fingerprint, read_arrays, write_arrays

log = logging.getLogger(__name__)

BLOCK = 512


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts, `(n, dim)` float32 of unit norm, and how they came about.

    truncated: texts longer than the encoder reads. fresh, tokens: texts and tokens that went through the encoder now.
    counts: tokens of every text before truncation, by the encoder's tokenizer. read: tokens that all texts take.
    """

    vectors: Floats
    truncated: int
    fresh: int
    tokens: int
    counts: tuple[int, ...]
    read: int


@dataclass(frozen=True)
class Block:
    """Texts that are encoded in one go. place: among all ranges of texts. keys: hashes of the texts, in their order."""

    place: int
    keys: tuple[str, ...]
    texts: tuple[str, ...]


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
            keep(block, *self._encoder.encode(block.texts))


class _Known:
    """Vectors and token counts of different texts, in one array, so that they are never held twice."""

    def __init__(self, place: Mapping[str, int], dim: int) -> None:
        self.dim = dim
        self._place = place
        self._vectors = np.empty((len(place), dim), np.float32)
        self._counts = np.empty(len(place), np.int64)
        self._filled = np.zeros(len(place), bool)

    def __contains__(self, key: object) -> bool:
        """Tell whether a text's vector is there."""
        place = self._place.get(str(key))
        return place is not None and bool(self._filled[place])

    def wants(self, key: str) -> bool:
        """Tell whether a text is asked for and not there yet."""
        return key in self._place and key not in self

    def put(self, keys: Sequence[str], vectors: Floats, counts: npt.NDArray[np.int32]) -> None:
        """Take over vectors `(n, dim)` and counts `(n,)`."""
        rows = [self._place[key] for key in keys]
        self._vectors[rows], self._counts[rows], self._filled[rows] = vectors, counts, True

    def of(self, keys: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return vectors and counts of texts, which may repeat, in their order. Raises ResourceError where some are not there."""
        if missing := int((~self._filled).sum()):
            raise ResourceError(
                f"{missing} of {len(self._filled)} texts came back without a vector; give the same command again"
            )
        rows = np.array([self._place[key] for key in keys], np.int64)
        if len(rows) == len(self._vectors) and np.array_equal(rows, np.arange(len(rows))):
            return self._vectors, self._counts
        return self._vectors[rows], self._counts[rows]


def _blocks(wanted: Mapping[str, str], known: _Known) -> list[Block]:
    keys, found = list(wanted), []
    for place, start in enumerate(range(0, len(keys), BLOCK)):
        missing = tuple(key for key in keys[start : start + BLOCK] if key not in known)
        if missing:
            found.append(Block(place, missing, tuple(wanted[key] for key in missing)))
    return found


class EmbeddingCache:
    """Vectors on disk by content, one folder per encoder fingerprint."""

    def __init__(self, encoder: Encoder, root: Path | None = None) -> None:
        self._encoder = encoder
        self._folder = (root or cache_folder()) / "embeddings" / fingerprint(dict(encoder.describe()))

    def embed(
        self,
        texts: Sequence[str],
        advance: Callable[[int], None] = lambda done: None,
        by: BlockEncoder | None = None,
    ) -> Embedded:
        """Return the vectors of texts, encoding those that are not in the cache; `advance` hears of finished texts.

        Blocks are ranges of the different texts in their order, without those that are known: what is encoded beside what
        depends on texts and cache alone. by: who encodes the blocks, this process by default. Raises DataError where the encoder
        gives vectors that are not finite.
        """
        by = by or _Alone(self._encoder)
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32] for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        described = self._encoder.describe()
        dim, limit = int(described["dim"]), described["max_tokens"]
        known = _Known({key: row for row, key in enumerate(wanted)}, dim)
        self._load(known)
        for told, vectors, counts in by.found():
            fresh = [row for row, key in enumerate(told) if key in wanted and key not in known]
            if fresh and vectors.shape == (len(told), dim):
                self._save([told[row] for row in fresh], vectors[fresh], counts[fresh])
                known.put([told[row] for row in fresh], vectors[fresh], counts[fresh])
        blocks = _blocks(wanted, known)
        missing = sum(len(block.texts) for block in blocks)
        advance(len(texts) - missing)
        tokens = 0

        def keep(block: Block, vectors: Floats, counts: npt.NDArray[np.int32]) -> None:
            nonlocal tokens
            if not np.isfinite(vectors).all():
                raise DataError("the encoder gave vectors that are not finite; its weights may be damaged")
            self._save(block.keys, vectors, counts)
            known.put(block.keys, vectors, counts)
            tokens += int(np.minimum(counts, limit).sum() if limit else counts.sum())
            advance(len(block.texts))

        by.encode(blocks, keep)
        vectors, every = known.of(keys)
        truncated = int((every > limit).sum()) if limit is not None else 0
        read = int(np.minimum(every, limit).sum() if limit else every.sum())
        return Embedded(vectors, truncated, missing, tokens, tuple(every.tolist()), read)

    def _load(self, known: _Known) -> None:
        """Take over what is wanted of all blocks on disk."""
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                block = read_arrays(path)
                keys = [bytes(key).hex() for key in block["keys"]]
                shapes = (block["vectors"].shape, block["tokens"].shape)
                if shapes != ((len(keys), known.dim), (len(keys),)) or not np.isfinite(block["vectors"]).all():
                    raise ValueError(f"shapes {shapes}")
            except (OSError, KeyError, TypeError, ValueError) as error:
                # A damaged block of a cache is no loss: its texts are encoded again.
                log.warning("%s is damaged (%s); its texts are encoded again", path, error)
                path.unlink(missing_ok=True)
                continue
            rows = [row for row, key in enumerate(keys) if known.wants(key)]
            known.put([keys[row] for row in rows], block["vectors"][rows], block["tokens"][rows])

    def _save(self, keys: Sequence[str], vectors: Floats, counts: npt.NDArray[np.int32]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
        raw = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 16)
        stored: dict[str, npt.NDArray[Any]] = {"keys": raw, "vectors": vectors, "tokens": counts}
        write_arrays(self._folder / f"{name}-{os.getpid()}.safetensors", stored)


def cache_folder() -> Path:
    """Return where caches lie: `NNCIFT_CACHE`, else `nncift` under `XDG_CACHE_HOME` or `~/.cache`."""
    given = os.environ.get("NNCIFT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nncift"
