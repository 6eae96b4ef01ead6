"""Labelled rows recognised by their vectors: a few numbers stand for a row, and equal vectors have equal ones."""

from __future__ import annotations

import numpy as np

from nncift.core.arrays import Floats, Places
from nncift.core.seeds import generator
from nncift.models.views import Views

KEY = 16
"""Numbers that stand for a row."""

MOST_NEAR = 1 << 20
"""Pairs of a row and a labelled one, alike in their first number, that are compared one by one."""

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
    found = np.zeros((len(units), rest.shape[1]), np.float32)
    if len(keys) and len(units):
        row, place = _same(keys, keys_of(units, views))
        found[row] = rest[place]
    return found


def _same(keys: Floats, of: Floats) -> tuple[Places, Places]:
    """Return the rows that are labelled ones, and which, the nearest within `SAME`.

    keys, of: of labelled rows `(labelled, KEY)` and of rows `(n, KEY)`.
    """
    order = np.argsort(keys[:, 0], kind="stable")
    first = keys[order, 0].astype(np.float64)
    low = np.searchsorted(first, of[:, 0] - SAME, "left")
    near = np.searchsorted(first, of[:, 0] + SAME, "right") - low
    if near.sum() <= MOST_NEAR:
        row = np.repeat(np.arange(len(of)), near)
        place = order[np.arange(len(row)) - np.repeat(np.cumsum(near) - near, near) + low[row]]
        # By their second number first, which leaves next to none.
        maybe = np.abs(of[row, 1] - keys[place, 1]) <= 2 * SAME
        row, place = row[maybe], place[maybe]
        distance = np.linalg.norm(of[row].astype(np.float64) - keys[place], axis=1)
        same = distance < SAME
        row, place = row[same], place[same]
        if (np.diff(row) > 0).all():
            return row, place
    # Several labelled rows are the same, or there are many: the tree decides, whose import takes a third of a second.
    from scipy.spatial import KDTree

    distance, nearest = (np.asarray(part) for part in KDTree(keys).query(of, distance_upper_bound=SAME))
    row = np.flatnonzero(np.isfinite(distance))
    return row, nearest[row].astype(np.intp)
