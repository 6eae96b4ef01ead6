"""All-pairs scores reduced on the fly, so that the matrix of all pairs need never exist.

Every function goes over tiles of at most `cap` bytes and works for every student, whatever its network: a tile is one call of
`Student.predict_block` over projections. Which tiles there are depends on sizes and cap alone, so that other processes, too, can
do them (`calculation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nncift.core.arrays import Floats
from nncift.core.parallel import MULTIPLY_ADDS, Arrays, Calculation, ParallelMap, ranges, serial_map
from nncift.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from nncift.student.model import Student
    from nncift.student.networks import Predictor

CAP = 1 << 26
SMALLEST_TILE = 128
"""Rows on either side of the smallest tile: below this, starting a tile costs more than its pairs."""
SIDE = 2048
"""Rows on either side of a tile of the whole matrix: 16 MB, which an allocator gives again and again without new pages."""


@dataclass(frozen=True, eq=False)
class Sides:
    """A network with the projections of both axes, which parts of a calculation share."""

    net: Predictor
    targets: Floats
    sources: Floats

    def block(self, rows: slice, columns: slice) -> Floats:
        """Return predictions `(rows, columns)`, in Fortran order."""
        return self.net.block(self.targets[rows], self.sources[columns])

    def calculation(self, what: str, do: Any, tasks: Sequence[Any], back: float, *, last: bool = False) -> Calculation:
        """Return a calculation over all pairs, whose outcome no other calculation reads."""
        pairs = float(len(self.targets)) * len(self.sources)
        seconds = pairs * self.targets.shape[1] / MULTIPLY_ADDS
        return Calculation(what, do, self, tasks, seconds, back, feeds=False, last=last)


def all_pairs(
    student: Student, targets: Floats, sources: Floats, calculate: ParallelMap = serial_map, *, last: bool = True
) -> Floats:
    """Return the predictions of all pairs of two sets of projections, `(n_targets, n_sources)`, in Fortran order.

    last: no other calculation of the selection follows.
    """
    sides = Sides(student.net, targets, sources)
    tasks = [(rows, columns) for columns in ranges(len(sources), SIDE) for rows in ranges(len(targets), SIDE)]
    held: list[Floats] = []

    def whole() -> Floats:
        # Made when it is needed: a shard that does some of the tiles never is in need of it.
        if not held:
            held.append(np.empty((len(sources), len(targets)), np.float32))
        return held[0]

    def keep(place: int, found: Arrays) -> None:
        if len(tasks) == 1:
            # The only tile is the whole; what comes from another process may be read alone, and is overwritten later.
            block = found["block"]
            held.append(block if block.flags.writeable else block.copy())
            return
        rows, columns = tasks[place]
        whole()[columns, rows] = found["block"]

    back = 4.0 * len(sources) * len(targets)
    calculate(sides.calculation("predicting all pairs", _whole, tasks, back, last=last), keep)
    return whole().T


def best_per_target(
    student: Student, targets: Floats, sources: Floats, cap: int = CAP, calculate: ParallelMap = serial_map
) -> tuple[Floats, float]:
    """Return the highest prediction of each target over all sources, `(n_targets,)`, and the lowest of all pairs.

    targets, sources: projections. NaN and inf without any source. Raises ResourceError for a cap below the smallest tile.
    """
    best, low = np.full(len(targets), np.nan, np.float32), np.inf
    down, across = _tile(len(targets), len(sources), cap)
    tasks = [(rows, columns) for rows in ranges(len(targets), down) for columns in ranges(len(sources), across)]

    def keep(place: int, found: Arrays) -> None:
        nonlocal low
        rows = tasks[place][0]
        np.fmax(best[rows], found["best"], out=best[rows])
        low = min(low, float(found["low"]))

    sides = Sides(student.net, targets, sources)
    calculate(sides.calculation("predicting each target's best", _best, tasks, 4.0 * len(targets)), keep)
    return best, low


def mean_per_source(
    student: Student, targets: Floats, sources: Floats, cap: int = CAP, calculate: ParallelMap = serial_map
) -> npt.NDArray[np.float64]:
    """Return the mean prediction of each source over all targets, `(n_sources,)`, summed in double precision.

    Raises UsageError without any target, ResourceError for a cap below the smallest tile.
    """
    if not len(targets):
        raise UsageError("a mean over targets was asked for, and there is no target")
    total = np.zeros(len(sources))
    down, across = _tile(len(targets), len(sources), cap)
    tasks = ranges(len(sources), across)

    def keep(place: int, found: Arrays) -> None:
        total[tasks[place]] = found["total"]

    sides = Sides(student.net, targets, sources)
    both = [(columns, down) for columns in tasks]
    calculate(sides.calculation("predicting mean utilities", _totals, both, 8.0 * len(sources)), keep)
    return total / len(targets)


def _whole(sides: Sides, task: tuple[slice, slice]) -> Arrays:
    return {"block": sides.block(*task).T}


def _best(sides: Sides, task: tuple[slice, slice]) -> Arrays:
    block = sides.block(*task)
    return {"best": block.max(axis=1), "low": np.array(block.min())}


def _totals(sides: Sides, task: tuple[slice, int]) -> Arrays:
    """Return the sum of some sources' predictions over all targets, so many targets at a time."""
    columns, down = task
    total = np.zeros(columns.stop - columns.start)
    for rows in ranges(len(sides.targets), down):
        total += sides.block(rows, columns).sum(axis=0, dtype=np.float64)
    return {"total": total}


def top_per_target(
    student: Student, targets: Floats, sources: Floats, k: int, cap: int = CAP
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Return the `k` sources with the highest predictions for each target, and these: `(n_targets, k)` each, best first.

    Ties go to the lower position; -1 and -inf stand where there are fewer than `k` sources. Raises ResourceError for a cap
    below the smallest tile.
    """
    codes = np.full((len(targets), k), -1, np.int32)
    values = np.full((len(targets), k), -np.inf, np.float32)
    for rows, columns, block in tiles(student, targets, sources, cap):
        _keep_highest(block.T, rows.start, columns.start, codes, values)
    return codes, values


def tiles(student: Student, targets: Floats, sources: Floats, cap: int = CAP) -> Iterator[tuple[slice, slice, Floats]]:
    """Yield the targets and sources of every tile with its predictions, `(rows, columns)` in Fortran order.

    Sources ascend within a range of targets. Raises ResourceError where a cap of so many bytes holds no tile.
    """
    down, across = _tile(len(targets), len(sources), cap)
    for rows in ranges(len(targets), down):
        for columns in ranges(len(sources), across):
            yield rows, columns, student.predict_block(targets[rows], sources[columns])


def _tile(targets: int, sources: int, cap: int) -> tuple[int, int]:
    """Return the targets and sources of a tile of at most `cap` bytes. Raises ResourceError where it holds no tile."""
    smallest = 4 * min(SMALLEST_TILE, targets) * min(SMALLEST_TILE, sources)
    if cap < smallest:
        raise ResourceError(
            f"a memory cap of {cap} bytes was given, and the smallest block of scores takes {smallest}; give at least that"
        )
    down = max(1, min(targets, max(SMALLEST_TILE, cap // (4 * SMALLEST_TILE))))
    return down, max(1, cap // (4 * down))


@njit(cache=True, nogil=True)
def _keep_highest(
    block: Floats, first_target: int, first_source: int, codes: npt.NDArray[np.int32], values: Floats
) -> None:
    """Put the scores of a tile, `(sources, targets)`, in their places among the highest of each target."""
    k = codes.shape[1]
    for j in range(block.shape[0]):
        row = block[j]
        for i in range(block.shape[1]):
            value = row[i]
            mine, those = values[first_target + i], codes[first_target + i]
            if k == 0 or not value > mine[k - 1]:
                continue
            at = k - 1
            while at > 0 and value > mine[at - 1]:
                mine[at], those[at] = mine[at - 1], those[at - 1]
                at -= 1
            mine[at], those[at] = value, first_source + j
