"""The student in the package, which needs no labels: a map of MiniLM's embeddings, learned once from gradients of public rows.

`tools/train_pretrained_student.py` made it; `pretrained.log` beside the weights tells from what, and what it is worth on sources
that it never saw (docs/results/students.md). Inner products of mapped embeddings are similarities; labels give them a slope.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np

from nncift.core.arrays import Floats
from nncift.errors import UsageError
from nncift.models.encoders import MINILM
from nncift.models.views import TEXT, Views

PRETRAINED = "pretrained"
FILE = "pretrained.safetensors"


@cache
def mapping() -> Floats:
    """Return the map `(dim + 1, rank)` of embeddings; its last line is the constant."""
    from safetensors.numpy import load_file

    with as_file(files("nncift.student") / FILE) as path:
        return load_file(path)["map"].astype(np.float32)


def applies(views: Views) -> bool:
    """Tell whether rows were embedded by the encoder that the map is for."""
    return (
        views.encoder == MINILM
        and len(mapping()) == 1 + views.take(np.zeros((1, views.dim), np.float32), TEXT).shape[1]
    )


def mapped(views: Views, vectors: Floats) -> Floats:
    """Return `(n, rank)`, whose inner products are the similarities of rows `(n, dim)`.

    Raises UsageError where their embeddings are of another encoder.
    """
    check(views.encoder)
    return np.asarray(views.take(vectors, TEXT) @ mapping()[:-1] + mapping()[-1], np.float32)


def check(encoder: str) -> None:
    """Raise UsageError for an encoder that the map is not for."""
    if encoder != MINILM:
        raise UsageError(
            f"--student {PRETRAINED} does not apply: it reads embeddings of {MINILM} alone, and the encoder is "
            f"{encoder or 'another'}; give --encoder minilm, or another --student"
        )
