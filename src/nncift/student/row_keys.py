"""Labelled rows recognised by their vectors: a few numbers stand for a row, and equal vectors have equal ones."""

from __future__ import annotations

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.seeds import generator
from nncift.models.views import Views

KEY = 16
"""Numbers that stand for a row."""

SAME = 1e-3
"""Distance below which two rows are the same: vectors of length 1 that were computed twice lie some 1e-6 apart."""


def keys_of(units: Floats, views: Views) -> Floats:
    """Return the keys `(n, KEY)` of rows whose views that have a cosine are at length 1; distances stay about what they are."""
    found = np.zeros((len(units), KEY), np.float32)
    for name in views.similar:
        place = views.place(name)
        directions = generator(0, "row keys", name).normal(size=(place.stop - place.start, KEY)) / np.sqrt(KEY)
        found += units[:, place] @ directions.astype(np.float32)
    return found


def rest_of(keys: Floats, rest: Floats, units: Floats, views: Views) -> Floats:
    """Return for each row what is kept of the labelled row that it is, `(n, rank)`, zeros where it is none.

    keys, rest: of labelled rows, `(rows, KEY)` and `(rows, rank)`.
    """
    from scipy.spatial import KDTree

    found = np.zeros((len(units), rest.shape[1]), np.float32)
    if len(keys) and len(units):
        nearest = KDTree(keys).query(keys_of(units, views), distance_upper_bound=SAME)
        distance, place = (np.asarray(part) for part in nearest)
        same = np.isfinite(distance)
        found[same] = rest[place[same].astype(np.intp)]
    return found
