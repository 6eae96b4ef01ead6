"""Free students: similarity alone, with a slope and an intercept from the training labels and nothing else learned.

They are the baselines that a student has to beat (method.md 2), as students, so that selection can use one where it is better.
"""

from __future__ import annotations

import numpy as np

from nncift.student.networks import Floats, Learned, Lesson
from nncift.student.views import HIDDEN, OUTPUT, TEXT, centre_of, unit

NAMES = {TEXT: "cosine", HIDDEN: "hidden", OUTPUT: "output"}
SUM = "sum"
"""The cosines of all views, each in units of its spread over the training pairs."""


def free_students(lesson: Lesson) -> dict[str, Learned]:
    """Return similarity students (networks `towers`) by name, those whose slope is positive; none for a pointwise teacher."""
    train, views = lesson.train.present(), lesson.views
    if not len(train) or not lesson.targets.shape[1]:
        return {}
    cosine: dict[str, Floats] = {}
    centres: dict[str, Floats] = {}
    for name in views.similar:
        same = lesson.targets is lesson.sources
        raw = [views.take(axis, name) for axis in ((lesson.sources,) if same else (lesson.targets, lesson.sources))]
        centres[name] = centre_of(name, raw)
        parts = [unit(part, centres[name]) for part in raw]
        cosine[name] = np.einsum("nd,nd->n", parts[0][train.target], parts[-1][train.source])
    spread = {name: float(values.std()) or 1.0 for name, values in cosine.items()}
    wanted = {NAMES[name]: {name: 1.0} for name in cosine}
    if len(cosine) > 1:
        wanted[SUM] = {name: 1.0 / spread[name] for name in cosine}
    found = {}
    for name, sizes in wanted.items():
        x = np.sum([size * cosine[view].astype(np.float64) for view, size in sizes.items()], axis=0)
        slope, intercept = np.polynomial.polynomial.polyfit(x, train.value.astype(np.float64), 1)[::-1]
        if slope > 0:
            found[name] = Learned(_weights(lesson, sizes, centres), float(intercept), float(slope), {})
    return found


def _weights(lesson: Lesson, sizes: dict[str, float], centres: dict[str, Floats]) -> dict[str, Floats]:
    """Return the weights of towers that hold nothing but similarity."""
    nothing, zero = np.zeros((lesson.views.dim, 1), np.float32), np.zeros(1, np.float32)
    weights = {"target_weight": nothing, "target_bias": zero, "source_weight": nothing, "source_bias": zero}
    for view, size in sizes.items():
        weights |= {f"{view}_powers": np.array([size], np.float32), f"{view}_centre": centres[view]}
    return weights
