"""Two linear maps trained to rank sources within a target (docs/method.md, section 8; Influcoder, AirRep).

The loss is RankNet's over pairs of sources of one target, weighted by how far their utilities lie apart: it sees the order of
sources, and nothing that all sources of a target have in common. A slope and an intercept then bring it to the labels' units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import linalg

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.storage.vector_store import rows_of
from nncift.student.item_features import ItemFeatures
from nncift.student.networks import FittedStudent, TrainingData, scaling

RANK = 64
"""Numbers of a row that are compared."""

DIRECTIONS = 128
"""Directions of the labelled rows' features that the maps read at most: gradients lie in their span."""

STEPS, PATIENCE, WATCHED = 600, 6, 25
"""Steps at most; the validation loss is looked at every `WATCHED`, and after so many looks without a better one it ends."""

BATCH, LEARNING_RATE, DECAY = 512, 3e-3, 1e-3
TEMPERATURE = 5.0
"""What differences of scores are multiplied with: features have length 1, and so have similarities small differences."""


@dataclass(frozen=True)
class RankChoices:
    """What validation decides. steps: of training. slope: of labels on the trained scores, both standardised."""

    steps: int
    slope: float

    @classmethod
    def agreed(cls, courses: Sequence[Mapping[str, Any]]) -> RankChoices:
        """Return the medians over several fits."""
        found = [np.median([course[name] for course in courses]) for name in ("steps", "slope")]
        return cls(round(float(found[0])), float(found[1]))


@dataclass(frozen=True)
class _Pairs:
    """Labelled pairs sorted by target. target, source: rows of the axes' features. start, count: of each pair's target."""

    target: npt.NDArray[np.intp]
    source: npt.NDArray[np.intp]
    value: Floats
    start: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]

    @classmethod
    def of(cls, pairs: LabelledPairs, rows: tuple[Any, Any], mean: float, scale: float) -> _Pairs:
        """Sort pairs; rows: the codes that features are of, ascending."""
        order = np.argsort(pairs.target, kind="stable")
        target = np.searchsorted(rows[0], pairs.target[order])
        _, first, place, count = np.unique(target, return_index=True, return_inverse=True, return_counts=True)
        value = ((pairs.value[order] - mean) / scale).astype(np.float32)
        return cls(target, np.searchsorted(rows[1], pairs.source[order]), value, first[place], count[place])

    def drawn(self, random: np.random.Generator, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Draw pairs, and beside each another pair of the same target."""
        one = random.integers(len(self.value), size=size)
        other = self.start[one] + (random.random(size) * self.count[one]).astype(np.intp)
        return one, other


def fit_ranker(
    training_data: TrainingData,
    *,
    seed: int,
    choices: RankChoices | None = None,
    advance: Callable[[int], None] = lambda step: None,
) -> FittedStudent:
    """Train on training pairs with a value; choices: steps and slope that were settled before, None = on validation pairs.

    Deterministic from the seed on one machine. Raises DataError where no training pair has a label.
    """
    train, validation = training_data.known, training_data.validation.present()
    mean, scale = scaling(train.value)
    features, used = ItemFeatures.of(training_data), training_data.used
    sides = [
        _Side.of(features, vectors, rows)
        for vectors, rows in zip((training_data.targets, training_data.sources), used, strict=True)
    ]
    random = generator(seed, "ranker")
    known = _Pairs.of(train, used, mean, scale)
    watched = _Pairs.of(validation, used, mean, scale) if len(validation) and choices is None else None
    model = _Ranker(sides, random)
    steps = model.train(known, watched, random, STEPS if choices is None else choices.steps)
    advance(1)
    slope = model.slope(watched or known) if choices is None else choices.slope
    shift = float(known.value.mean(dtype=np.float64)) - slope * float(model.scores(known).mean())
    return FittedStudent(
        _weights(features, sides, model.maps(), slope, shift), mean, scale, {"steps": steps, "slope": slope}
    )


@dataclass(frozen=True)
class _Side:
    """The labelled rows of an axis. directions: `(dim, width)` of their features; rows: in these, `(n, width)`."""

    directions: Doubles
    rows: torch.Tensor

    @classmethod
    def of(cls, features: ItemFeatures, vectors: Floats, codes: npt.NDArray[np.integer]) -> _Side:
        """Find the directions; a pointwise teacher's target is the number 1."""
        if not vectors.shape[1]:
            return cls(np.zeros((0, 1)), torch.ones(len(codes), 1))
        every = features.rows(rows_of(vectors, codes))
        few = len(every) <= every.shape[1]
        values, axes = linalg.eigh(every @ every.T if few else every.T @ every, check_finite=False)
        kept = np.flatnonzero(values > 1e-6 * float(values[-1]))[::-1][:DIRECTIONS]
        directions = (every.T @ axes[:, kept]) / np.sqrt(values[kept]) if few else axes[:, kept]
        return cls(directions, torch.from_numpy((every @ directions).astype(np.float32)))


class _Ranker:
    """Two linear maps, of which the scores of pairs are inner products; at first the same, so that scores are similarity."""

    def __init__(self, sides: Sequence[_Side], random: np.random.Generator) -> None:
        self._rows = [side.rows for side in sides]
        first = random.normal(size=(max(len(side.directions) for side in sides) or 1, RANK)) / np.sqrt(RANK)
        made = []
        for side in sides:
            start = side.directions.T @ first if len(side.directions) else np.ones((1, RANK)) / np.sqrt(RANK)
            made.append(torch.from_numpy(start.astype(np.float32)).requires_grad_())
        self._maps = made

    def maps(self) -> list[Floats]:
        """Return the maps, each `(width, RANK)`."""
        return [one.detach().numpy().copy() for one in self._maps]

    def train(self, known: _Pairs, watched: _Pairs | None, random: np.random.Generator, steps: int) -> int:
        """Train so many steps, fewer where the loss on watched pairs no longer falls; return how many are kept."""
        optimiser = torch.optim.Adam(self._maps, lr=LEARNING_RATE, weight_decay=DECAY)
        best, kept, at, looks = np.inf, self.maps(), 0, 0
        drawn = None if watched is None else watched.drawn(random, 4 * BATCH)
        for step in range(1, steps + 1):
            optimiser.zero_grad(set_to_none=True)
            self._loss(known, *known.drawn(random, BATCH)).backward()
            optimiser.step()
            if watched is None or drawn is None or step % WATCHED:
                continue
            with torch.inference_mode():
                loss = float(self._loss(watched, *drawn))
            if loss < best:
                best, kept, at, looks = loss, self.maps(), step, 0
            elif (looks := looks + 1) == PATIENCE:
                break
        if watched is None or not at:
            return steps
        for one, weights in zip(self._maps, kept, strict=True):
            one.data = torch.from_numpy(weights)
        return at

    def _loss(self, pairs: _Pairs, one: npt.NDArray[np.intp], other: npt.NDArray[np.intp]) -> torch.Tensor:
        """Return RankNet's loss of pairs of pairs, weighted by the difference of their values."""
        apart = torch.from_numpy(pairs.value[one] - pairs.value[other])
        target, source = (rows @ onto for rows, onto in zip(self._rows, self._maps, strict=True))
        t = target[torch.from_numpy(pairs.target[one])]
        s = source[torch.from_numpy(pairs.source[one])] - source[torch.from_numpy(pairs.source[other])]
        weight, ahead = apart.abs(), TEMPERATURE * apart.sign() * (t * s).sum(dim=1)
        return (weight * torch.nn.functional.softplus(-ahead)).sum() / weight.sum().clamp_min(1e-9)

    def scores(self, pairs: _Pairs) -> Doubles:
        """Return the scores of pairs, `(n_pairs,)`."""
        with torch.inference_mode():
            target, source = ((rows @ onto).numpy() for rows, onto in zip(self._rows, self._maps, strict=True))
        return np.asarray(np.einsum("nd,nd->n", target[pairs.target], source[pairs.source], dtype=np.float64))

    def slope(self, pairs: _Pairs) -> float:
        """Return the slope of the values on the scores, by least squares; 0 where scores do not vary."""
        x = self.scores(pairs)
        spread = float(x.var())
        return float(np.mean((x - x.mean()) * pairs.value)) / spread if spread > 0 else 0.0


def _weights(
    features: ItemFeatures, sides: Sequence[_Side], maps: Sequence[Floats], slope: float, shift: float
) -> dict[str, Floats]:
    """Return the weights of two towers, with the slope in the targets' and the shift beside."""
    found: dict[str, npt.NDArray[np.floating]] = {f"{name}_centre": centre for name, centre in features.centres.items()}
    for name, side, onto, factor in zip(("target", "source"), sides, maps, (slope, 1.0), strict=True):
        if len(side.directions):
            weight, bias = features.affine(factor * (side.directions @ onto))
        else:
            weight, bias = np.zeros((0, RANK)), factor * onto[0].astype(np.float64)
        # One number more: the shift, which meets a 1.
        found[f"{name}_weight"] = np.concatenate([weight, np.zeros((len(weight), 1))], axis=1)
        found[f"{name}_bias"] = np.append(bias, 1.0 if name == "target" else shift)
    return {name: np.asarray(array, np.float32) for name, array in found.items()}
