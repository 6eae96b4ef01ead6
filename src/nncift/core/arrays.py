"""Types of arrays, each named once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Codes = npt.NDArray[np.int32]
"""Places of items on an axis."""
Places = npt.NDArray[np.intp]
"""Positions in an array."""
