"""Calculations that fall into parts and ask no model: predicting, searching neighbours, selecting in parts (docs/scale.md).

What a part consists of is fixed by the numbers alone, never by who does it, and every part is done by one function that sees
nothing else: so all engines come to the same bytes. Whoever calculates takes a `ParallelMap`, which is `serial_map` by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
MULTIPLY_ADDS = 2.5e10
"""Multiply-adds of a core in a second, about."""
WORTH = 10.0
"""Seconds of a core below which a calculation is not shared out."""
BYTES_A_SECOND = 4e8
"""What one process takes in of results, checksums and copies included (docs/scale.md)."""
_WIDEST = 4096
"""Numbers of a projection that no network of ours has, and"""
_LOOK_SECONDS = 1e-8
"""of one core, for a pair that is looked at: with these no calculation over all pairs is taken for less than it is."""


@dataclass(frozen=True, eq=False)
class Calculation:
    """Parts to be done.

    what: for people. do: returns the arrays of a part from `shared` and its task; a function of a module, so that another process
    finds it. shared: what all parts read and none changes. seconds: about how long one core takes for all; back: bytes of all
    results. By these two an engine decides whether sharing pays (`pays`). feeds: a later calculation reads the outcome. last: no
    other calculation follows. A process that does parts for another one need not wait for what feeds nothing.
    """

    what: str
    do: Callable[[Any, Any], Arrays]
    shared: Any
    tasks: Sequence[Any]
    seconds: float
    back: float
    feeds: bool = True
    last: bool = False


Keep = Callable[[int, Arrays], None]
"""Keeps the arrays of the task at a place; parts come in any order."""
ParallelMap = Callable[[Calculation, Keep], None]


def serial_map(calculation: Calculation, keep: Keep) -> None:
    """Do all parts in this process, one after the other."""
    for place, task in enumerate(calculation.tasks):
        keep(place, calculation.do(calculation.shared, task))


def ranges(size: int, step: int) -> list[slice]:
    """Return slices of `step` that cover `size`."""
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]


def pays(calculation: Calculation) -> bool:
    """Tell whether sharing pays: it is work for a while, and takes a core twice as long as one process to take in results."""
    return calculation.seconds >= max(WORTH, 2 * calculation.back / BYTES_A_SECOND)


def may_pay(targets: int, sources: int) -> bool:
    """Tell whether there can be a calculation over so many rows that pays, whatever the student is going to be."""
    return float(targets) * sources * (_WIDEST / MULTIPLY_ADDS + _LOOK_SECONDS) >= WORTH
