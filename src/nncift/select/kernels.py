"""The compiled loops of selection, all in one file because numba's cache does not notice changes in other files.

Every kernel takes `columns`: `(n_sources, n_targets)` C order, the transposed view of a Fortran matrix, so that what a
source gives to all targets is contiguous. Similarities are int32 levels (objectives.py): all sums are exact, hence
independent of order and threads, and a gain can be brought up to date by its changes alone without drifting.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    return cast("_Function", numba.njit(cache=True, nogil=True)(function))


def in_threads(kernel: Callable[[int, int], object], n: int) -> None:
    """Run `kernel(start, stop)` over ranges that cover `n`, one thread each; the kernel must release the GIL.

    Threads of our own, since numba's parallel loops abort when two Python threads run them at once.
    """
    workers = min(numba.config.NUMBA_NUM_THREADS, max(n // 64, 1))  # type: ignore[attr-defined]
    edges = [n * i // workers for i in range(workers + 1)]
    if workers == 1:
        kernel(0, n)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(kernel, edges[:-1], edges[1:]))


@_compiled
def extent(columns: npt.NDArray[np.float32], start: int, stop: int, low: Any, high: Any, known: Any) -> None:
    """Write the lowest, the highest and the number of values that are not NaN of each source into `(n_sources,)`."""
    for s in range(start, stop):
        column = columns[s]
        lowest, highest, count = np.float32(np.inf), np.float32(-np.inf), 0
        for t in range(len(column)):
            x = column[t]
            if x < lowest:
                lowest = x
            if x > highest:
                highest = x
            if x == x:
                count += 1
        low[s], high[s], known[s] = lowest, highest, count


@_compiled
def to_levels(
    columns: npt.NDArray[np.float32],
    start: int,
    stop: int,
    source_order: npt.NDArray[np.intp],
    target_order: npt.NDArray[np.intp],
    low: float,
    per_unit: float,
    out: Levels,
) -> None:
    """Write the levels of the sources `source_order[start:stop]`, targets in `target_order`; NaN becomes level 0."""
    for i in range(start, stop):
        column, row = columns[source_order[i]], out[i]
        for j in range(len(row)):
            x = np.float64(column[target_order[j]])
            row[j] = np.int32((x - low) * per_unit + 0.5) if x == x else np.int32(0)


@_compiled
def gain_of(column: Levels, best: Levels) -> np.int64:
    """Return what a source adds to targets that are already served at `best`, `(n_targets,)`."""
    total = np.int64(0)
    for t in range(len(column)):
        total += max(np.int32(column[t] - best[t]), np.int32(0))
    return total


@_compiled
def gains_of(columns: Levels, start: int, stop: int, best: Levels, gains: Longs) -> None:
    """Write what each source adds to targets that are already served at `best`."""
    for s in range(start, stop):
        gains[s] = gain_of(columns[s], best)


@_compiled
def best_targets(columns: Levels, start: int, stop: int, target: Longs) -> None:
    """Write the target that each source serves best, the first of equals; -1 where it serves none."""
    for s in range(start, stop):
        column = columns[s]
        highest = np.int32(0)
        for t in range(len(column)):
            highest = max(highest, column[t])
        target[s] = -1
        if highest > 0:
            for t in range(len(column)):
                if column[t] == highest:
                    target[s] = t
                    break


@_compiled
def _sift(heap: Longs, size: int, at: int, gains: Longs) -> None:
    """Let the entry at a position sink: the highest gain is on top, the lowest position first among equals."""
    moving = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        a = heap[child]
        if child + 1 < size:
            b = heap[child + 1]
            if gains[b] > gains[a] or (gains[b] == gains[a] and b < a):
                child += 1
                a = b
        if gains[moving] > gains[a] or (gains[moving] == gains[a] and moving < a):
            break
        heap[at] = a
        at = child
    heap[at] = moving


@_compiled
def lazy_greedy(columns: Levels, gains: Longs, best: Levels, k: int, order: Longs) -> None:
    """Write the `k` sources of greedy facility location into `order`; `best` and `gains` are used up (Minoux 1978).

    gains: `(n_sources,)` what each source adds to `best`. A gain never grows as the set does, so an old one is an upper
    bound, and only the source on top of the heap has to be brought up to date. Where few targets have changed since,
    only these are looked at: the last changes are kept in a ring.
    """
    n_sources, n_targets = columns.shape
    room = max(n_targets // 32, 1)
    changed, before, after = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    changes = 0
    seen = np.zeros(n_sources, np.int64)
    heap = np.arange(n_sources)
    for at in range(n_sources // 2 - 1, -1, -1):
        _sift(heap, n_sources, at, gains)
    size = n_sources
    for step in range(k):
        while True:
            s = heap[0]
            behind = changes - seen[s]
            if behind == 0:
                break
            column = columns[s]
            if behind > room:
                gains[s] = gain_of(column, best)
            else:
                lost = np.int64(0)
                at = seen[s] % room
                for _ in range(behind):
                    x = column[changed[at]]
                    lost += max(min(x, after[at]) - before[at], 0)
                    at = at + 1 if at + 1 < room else 0
                gains[s] -= lost
            seen[s] = changes
            _sift(heap, size, 0, gains)
        s = heap[0]
        order[step] = s
        size -= 1
        heap[0] = heap[size]
        _sift(heap, size, 0, gains)
        column = columns[s]
        for t in range(n_targets):
            if column[t] > best[t]:
                at = changes % room
                changed[at], before[at], after[at] = t, best[t], column[t]
                best[t] = column[t]
                changes += 1


@_compiled
def replay(
    columns: Levels, order: Longs, best: Levels, holder: Longs, gains: Longs, raised: Longs, top: Longs, top_by: Longs
) -> None:
    """Choose the sources of `order` one by one and write down what each did.

    best, holder: `(n_targets,)` the level at which each target is served, updated, and the rank that serves it.
    gains, raised, top, top_by: `(k,)` what each source added, for how many targets it became the best, which target it
    raised most (the first of equals, -1 for none) and by how much.
    """
    for rank in range(len(order)):
        column = columns[order[rank]]
        total, count, most, where = np.int64(0), 0, np.int64(0), -1
        for t in range(len(column)):
            by = np.int64(column[t]) - best[t]
            if by > 0:
                total += by
                count += 1
                if by > most:
                    most, where = by, t
                best[t] = column[t]
                holder[t] = rank
        gains[rank], raised[rank], top[rank], top_by[rank] = total, count, where, most
