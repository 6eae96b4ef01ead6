"""Calculations that fall into parts and ask no model: predicting, searching neighbours, selecting in parts (docs/scale.md).

What a part consists of is fixed by the numbers alone, never by who does it, and every part is done by one function that sees
nothing else: so all engines come to the same bytes. Whoever calculates takes a `Calculate`, which is `here` by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
MULTIPLY_ADDS = 2.5e10
"""Multiply-adds of a core in a second, about."""


@dataclass(frozen=True, eq=False)
class Calculation:
    """Parts to be done.

    what: for people. do: returns the arrays of a part from `shared` and its task; a function of a module, so that another process
    finds it. shared: what all parts read and none changes. seconds: about how long one core takes for all; back: bytes of all
    results. By these two an engine decides whether sending pays.
    """

    what: str
    do: Callable[[Any, Any], Arrays]
    shared: Any
    tasks: Sequence[Any]
    seconds: float
    back: float


Keep = Callable[[int, Arrays], None]
"""Keeps the arrays of the task at a place; parts come in any order."""
Calculate = Callable[[Calculation, Keep], None]


def here(calculation: Calculation, keep: Keep) -> None:
    """Do all parts in this process, one after the other."""
    for place, task in enumerate(calculation.tasks):
        keep(place, calculation.do(calculation.shared, task))


def ranges(size: int, step: int) -> list[slice]:
    """Return slices of `step` that cover `size`."""
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]
