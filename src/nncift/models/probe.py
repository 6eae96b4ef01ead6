"""Probe: what one forward pass of the teacher's model shows of a row, for students to read (method.md 2, features).

A pass is linear in the rows, where a pairwise teacher is quadratic, and says more about the teacher than a sentence embedding
can: how surprised the model is, what its last layer makes of the row, and in which direction the row would move it.

The last is known from a forward pass alone. The loss's gradient at the state in front of the vocabulary is `e = sum_v p_v w_v -
w_gold`. What a layer adds to a token's state, `d`, is carried to that state by the residual stream, so the part of a layer's
gradient that takes this straight way is the mean over response tokens of `e d'`. Some layers' are kept, each at length 1, in
one sketch whose inner products are in expectation the sums of those of the matrices: `(R e) * (S d)` with signs R and S of each
layer's own (N. Pham and R. Pagh, KDD 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.core.arrays import Floats, Longs
from nncift.core.result_types import JsonObject
from nncift.core.seeds import generator
from nncift.data.examples import Example, Examples, content_text
from nncift.errors import DataError, UsageError
from nncift.models.causal_lm import CausalLM, Reading, Row
from nncift.models.embedding_cache import BlockEncoder, Embedded, EmbeddingCache
from nncift.models.prompt_format import PromptFormat
from nncift.models.shared_reading import readings
from nncift.models.views import HIDDEN, OUTPUT, STATS, Views

if TYPE_CHECKING:
    import torch


STATISTICS = (
    "loss",
    "spread",
    "probability",
    "distance",
    "worst",
    "entropy",
    "response",
    "prompt",
    "push",
)
"""Of a response's tokens: mean and standard deviation of the negative log-likelihood, mean probability, DELIFT's distance, the
least likely token (cut at WORST), mean entropy; log of the tokens in response and prompt; log of the length of the mean of `e h'`
with the states `h` in front of the vocabulary."""

WORST = 20.0
SKETCH = 2048
"""Numbers of the sketch: those of all layers, each with signs of its own, are added up in it."""

LAYERS = 5
"""Layers at most whose additions are sketched, spread evenly over all but the last."""

MOST_HIDDEN = 256
"""Numbers that each pooled hidden state is projected to where the model's are more."""

MOST_WHOLE = 1024
"""Numbers of a hidden state up to which the mean that RDS+ compares is kept unprojected too, behind what students read."""

AT_ONCE = 2**25
"""Entries of a block of logits held at once (128 MiB in float32)."""


@dataclass(frozen=True)
class Probe:
    """A language model that is asked once about every row. template and context: as for the teacher.

    share: of each row's tokens, that is read: the end of the prompt and the start of the response, in their proportion.
    """

    lm: CausalLM
    template: str | None = None
    batch_tokens: int = 2048
    share: float = 1.0

    @classmethod
    def of(cls, lm: CausalLM, settings: RunSettings) -> Probe:
        """Return the probe that settings ask for."""
        return cls(lm, settings.template, share=share_of(settings))

    @cached_property
    def wording(self) -> PromptFormat:
        """How rows read to this model."""
        return PromptFormat(self.lm.tokenizer, self.template)

    @property
    def views(self) -> Views:
        """What the features consist of."""
        return Views.of(
            {
                HIDDEN: 3 * min(self._size, MOST_HIDDEN),
                OUTPUT: SKETCH,
                STATS: len(STATISTICS),
            }
        )

    @property
    def width(self) -> int:
        """Numbers that are kept of a row: the views, and behind them the mean that RDS+ compares where they project it."""
        return self.views.dim + (self._size if MOST_HIDDEN < self._size <= MOST_WHOLE else 0)

    def describe(self) -> JsonObject:
        """Return what decides the features, and what it takes to make the same probe again."""
        return {
            "name": self.lm.name,
            "model": self.lm.fingerprint,
            "dtype": str(next(self.lm.model.parameters()).dtype),
            "template": self.template,
            "wording": self.wording.describe(),
            "context": self.lm.context,
            "batch_tokens": self.batch_tokens,
            "views": self.views.to_json(),
            "layers": list(self._layers),
            "version": 2,
            **({} if self.share == 1 else {"share": self.share}),
        }

    def read(self, examples: Sequence[Example]) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Return what is kept of rows, `(n, width)`, and the tokens of every row before it was cut to the context."""
        rows, counts = zip(*(self._row(example) for example in examples), strict=True)
        found = np.empty((len(rows), self.width), np.float32)
        # Logits are needed for the errors, and tell the log-probabilities too.
        for index, reading in readings(self.lm, rows, self.batch_tokens, self._layers, scored=False):
            found[index] = self._features(rows[index], reading)
        return found, np.array(counts, np.int32)

    def passes(self, rows: int) -> int:
        """Return what reading so many rows costs, in forward passes over whole rows, rounded up."""
        return passes_of(self.share, rows)

    def tokens(self, example: Example) -> int:
        """Return the tokens of a row that are read."""
        return len(self._row(example)[0])

    def tokens_of(self, whole: npt.ArrayLike) -> Longs:
        """Return how many tokens are read of rows that have so many."""
        own = np.asarray(whole, np.int64)
        shared = np.minimum(own, np.maximum(2, np.ceil(self.share * own)))
        return np.asarray(np.minimum(shared, self.lm.context), np.int64)

    @property
    def _size(self) -> int:
        return self.lm.width

    @cached_property
    def _layers(self) -> tuple[int, ...]:
        """The layers whose additions are sketched; none where the model does not show them, or has but one."""
        # The last layer's is not shown: a norm stands behind it.
        shown = self.lm.layers - 1
        return tuple(sorted({int((place + 0.5) * shown / LAYERS) for place in range(LAYERS)})) if shown > 0 else ()

    def _row(self, example: Example) -> tuple[Row, int]:
        """Return a row that fits: the prompt loses its start, a response longer than all its end."""
        try:
            tokens = self.wording.tokens(example)
        except DataError as error:
            raise DataError(f"the probe cannot read row {example.id!r}: {error}") from error
        prompt = (*self.wording.bos, *tokens.prompt)
        response, scored = tokens.response, tokens.scored
        if not prompt:
            prompt, response = response[:1], response[1:]
            scored = None if scored is None else tuple(place - 1 for place in scored if place)
        if not prompt or not response:
            raise DataError(f"the probe cannot read row {example.id!r}: it has fewer than two tokens")
        whole = len(prompt) + len(response)
        if self.share < 1:
            prompt, response = self._shared(prompt, response)
        room = self.lm.context
        response = response[: room - 1]
        # The first response comes first: some of it is left.
        scored = None if scored is None else tuple(place for place in scored if place < len(response))
        return Row(prompt[-max(1, room - len(response)) :], response, scored), whole

    def _shared(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the share of a row that is read, at least a token of each part.

        A first token that begins every text stays in front: without it some models read nothing as they should.
        """
        kept = int(self.tokens_of(len(prompt) + len(response)))
        before = min(len(prompt), kept - min(kept - 1, max(1, round(self.share * len(response)))))
        front = prompt[:1] if before > 1 and prompt[0] == self.lm.tokenizer.bos_token_id else ()
        return (*front, *prompt[len(prompt) - before + len(front) :]), response[: kept - before]

    def _features(self, row: Row, reading: Reading) -> Floats:
        before = len(row.prompt)
        # The state at position k - 1 predicts token k.
        predicting = reading.hidden[row.places]
        error, entropy, scores = self._errors(predicting, row.gold)
        added = [part[row.places] for part in reading.added] or [predicting]
        parts = [_unit(_sketch(error, part, *signs)) for part, signs in zip(added, self._signs, strict=True)]
        # The squared length of a sum of e h' is that of all pairs of tokens.
        push = float(np.sqrt(max(0.0, np.sum((error @ error.T) * (predicting @ predicting.T))))) / len(error)
        weights = np.arange(1, len(row) + 1) / (len(row) * (len(row) + 1) / 2)
        pooled = [reading.hidden[before:].mean(axis=0), reading.hidden[:before].mean(axis=0), weights @ reading.hidden]
        hidden = [part if self._narrow is None else part @ self._narrow for part in pooled]
        logs = (scores if self.lm.head_is_last else reading.log_probabilities).astype(np.float64)
        likely = np.exp(logs)
        statistics = [
            -logs.mean(),
            logs.std(),
            likely.mean(),
            np.sqrt(np.mean((1 - likely) ** 2)),
            min(WORST, -logs.min()),
            entropy,
            np.log(len(row.counted)),
            np.log(before),
            np.log(max(push, 1e-12)),
        ]
        whole = pooled[-1:] if self.width > self.views.dim else []
        return np.concatenate([*hidden, _unit(np.sum(parts, axis=0)), statistics, *whole]).astype(np.float32)

    def _errors(self, states: Floats, gold: Sequence[int]) -> tuple[Floats, float, Floats]:
        """Return the loss's gradient with respect to every predicting state, mean entropy in nats, and gold log-probabilities.

        `(n, hidden)`, a number, `(n,)`; all as the output embeddings alone give them.
        """
        import torch

        head = self.lm.model.get_output_embeddings()
        weight: torch.Tensor = head.weight
        step = max(1, AT_ONCE // weight.shape[0])
        errors, scores, entropy = [], [], 0.0
        with torch.inference_mode(), self.lm._threads():
            for start in range(0, len(gold), step):
                state = torch.from_numpy(np.ascontiguousarray(states[start : start + step])).to(weight.device)
                logs = torch.log_softmax(head(state.to(weight.dtype)).float(), dim=-1)
                likely = logs.exp()
                entropy -= float((likely * logs).sum())
                due = torch.tensor(gold[start : start + step], device=weight.device)
                scores.append(logs.gather(1, due.to(logs.device)[:, None])[:, 0].cpu().numpy())
                errors.append(((likely.to(weight.dtype) @ weight).float() - weight[due].float()).cpu().numpy())
        return np.concatenate(errors), entropy / len(gold), np.concatenate(scores)

    @cached_property
    def _signs(self) -> tuple[tuple[Floats, Floats], ...]:
        """Signs for both sides of every sketch, `(hidden size, SKETCH)`."""
        found = []
        for layer in self._layers or ("last",):
            random = generator(0, "probe", "sketch", str(self._size), str(layer))
            left, right = (random.choice(np.array([-1, 1], np.float32), (self._size, SKETCH)) for _ in range(2))
            found.append((left, right))
        return tuple(found)

    @cached_property
    def _narrow(self) -> Floats | None:
        """A random projection of hidden states, None where they are few."""
        if self._size <= MOST_HIDDEN:
            return None
        random = generator(0, "probe", "hidden", str(self._size))
        return random.standard_normal((self._size, MOST_HIDDEN), np.float32) / np.float32(np.sqrt(MOST_HIDDEN))


def share_of(settings: RunSettings) -> float:
    """Return the share of each row that a probe reads by these settings."""
    return 1.0 if settings.probe_share is None else settings.probe_share.share


def passes_of(share: float, rows: int) -> int:
    """Return what a probe that reads a share of so many rows costs, in forward passes over whole rows, rounded up."""
    # A share of decimal digits must not pay for what binary ones add.
    return ceil(round(share * rows, 6))


def _sketch(error: Floats, added: Floats, left: Floats, right: Floats) -> Floats:
    """Return the sketch `(SKETCH,)` of the mean of `e d'` over tokens, but for its size."""
    return np.asarray(np.mean((error @ left) * (added @ right), axis=0), np.float32)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


class _Cached:
    """A probe as the cache of vectors wants it: an encoder of texts that stand for rows."""

    def __init__(self, probe: Probe, examples: Sequence[Example]) -> None:
        self._probe = probe
        self.texts = [content_text(row.messages, row.response) for row in examples]
        self.rows = dict(zip(self.texts, examples, strict=True))

    def encode(self, texts: Sequence[str]) -> tuple[Floats, npt.NDArray[np.int32]]:
        return self._probe.read([self.rows[text] for text in texts])

    def describe(self) -> Mapping[str, Any]:
        return {**self._probe.describe(), "dim": self._probe.width, "max_tokens": self._probe.lm.context}


def features_of(
    probe: Probe,
    examples: Examples,
    advance: Callable[[int], None] = lambda done: None,
    by: Callable[[Mapping[str, Example]], BlockEncoder] | None = None,
    into: Path | None = None,
) -> Embedded:
    """Return the features of rows, `(n, dim)`, those that were read before from the cache.

    by: makes who reads the blocks, from the row that every text stands for; this process by default. into: see
    `EmbeddingCache.embed`; the file has all that is kept of rows, `(n, width)`. Raises DataError, ResourceError.
    """
    cached = _Cached(probe, examples)
    found = EmbeddingCache(cached).embed(cached.texts, advance, None if by is None else by(cached.rows), into)
    return replace(found, vectors=found.vectors[:, : probe.views.dim])


def probe_like(described: Mapping[str, Any], device: str = "auto") -> Probe:
    """Load the probe that a description stands for. Raises UsageError where the model is another one now."""
    dtype = str(described["dtype"]).removeprefix("torch.")
    lm = CausalLM.load(str(described["name"]), device=device, dtype=dtype, context=int(described["context"]))
    probe = Probe(lm, described["template"], int(described["batch_tokens"]), float(described.get("share", 1)))
    found = probe.describe()
    if found != dict(described):
        changed = ", ".join(sorted(name for name in found if found[name] != described.get(name)))
        raise UsageError(
            f"this student reads what the model {described['name']!r} shows of rows, and {changed} differ now; give the model "
            "that the run was made with"
        )
    return probe
