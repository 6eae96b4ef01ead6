"""Lessons with a planted truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.models.views import Views
from nncift.student.networks import TrainingData

VIEWS = {"text": Views.of({"text": 6}), "probe": Views.of({"text": 6, "hidden": 5, "output": 4, "stats": 3})}


@pytest.fixture
def vectors() -> Callable[..., np.ndarray]:
    """Return a function that draws `(n, dim)` vectors: embeddings of unit norm, and hidden states that all point one way."""

    def draw(n: int, views: Views = VIEWS["text"], seed: int = 0) -> np.ndarray:
        found = np.random.default_rng(seed).normal(size=(n, views.dim)).astype(np.float32)
        text = found[:, views.place("text")]
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        if "hidden" in views.names:
            found[:, views.place("hidden")] += 4
        return found

    return draw


def pairs_of(value: np.ndarray, rows: range) -> LabelledPairs:
    """Return all pairs of some rows of a square matrix of labels, the diagonal left out."""
    t, s = (part.ravel() for part in np.meshgrid(np.array(rows), np.array(rows), indexing="ij"))
    t, s = t[t != s].astype(np.int32), s[t != s].astype(np.int32)
    ids = tuple(f"row-{i:03d}" for i in range(len(value)))
    return LabelledPairs(ids, ids, t, s, value[t, s].astype(np.float32))


def scores_of(value: np.ndarray, rows: range) -> LabelledPairs:
    """Return scores of some rows, under one target that is no row."""
    s = np.array(rows, np.int32)
    ids = tuple(f"row-{i:03d}" for i in range(len(value)))
    return LabelledPairs(("score",), ids, np.zeros(len(s), np.int32), s, value[s].astype(np.float32))


@pytest.fixture
def training_data(vectors: Callable[..., np.ndarray]) -> Callable[..., TrainingData]:
    """Return a function that makes training data: two thirds of the rows to train on, a sixth to validate on, the rest unseen."""

    def make(
        value: np.ndarray | None = None,
        x: np.ndarray | None = None,
        views: str | Views = "text",
        *,
        pointwise: bool = False,
    ) -> TrainingData:
        own = VIEWS[views] if isinstance(views, str) else views
        x = vectors(36 if value is None else len(value), own) if x is None else x
        n = len(x)
        if value is None:
            value = 0.1 * np.random.default_rng(5).normal(size=(n,) if pointwise else (n, n)) + 0.3
        of = scores_of if pointwise else pairs_of
        train, validation = of(value, range(2 * n // 3)), of(value, range(2 * n // 3, 5 * n // 6))
        targets = np.zeros((1, 0), np.float32) if pointwise else x
        return TrainingData(train, validation, targets, x, own)

    return make
