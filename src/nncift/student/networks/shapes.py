"""Weights that have to fit each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nncift.errors import DataError
from nncift.student.networks import Weights


def agree(weights: Weights, shapes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return the size of every axis.

    Raises DataError where an array is missing, not float32, of another shape, or holds something that is no finite number.
    """
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        found = weights[name].shape if name in weights and weights[name].dtype == np.float32 else None
        fits = found is not None and len(found) == len(axes)
        if fits and found is not None:
            fits = all(sizes.setdefault(axis, size) == size for axis, size in zip(axes, found, strict=True))
        if not fits:
            raise DataError(f"a student's {name} has the shape {found}; expected {axes} to agree")
        if not np.isfinite(weights[name]).all():
            raise DataError(f"a student's {name} holds values that are no finite numbers")
    return sizes
