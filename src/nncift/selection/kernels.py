"""The compiled loops of selection, all in one file because numba's cache does not notice changes in other files.

Every kernel takes `columns`: `(n_sources, n_targets)` C order, the transposed view of a Fortran matrix, so that what a
source gives to all targets is contiguous. Similarities are int32 levels (objectives.py): all sums are exact, hence
independent of order and threads, and a gain can be brought up to date by its changes alone without drifting.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles, Longs
from nncift.core.compiled import compiled
from nncift.core.threads import in_threads
from nncift.selection.rules import Limits

__all__ = ["in_threads"]

Levels = npt.NDArray[np.int32]


class Queue(NamedTuple):
    """Candidates of lazy greedy as a heap, the highest weighted gain on top; gains, weight: `(n_sources,)`.

    A gain never grows as the set does: an old one is an upper bound.
    """

    heap: Longs
    gains: Longs
    weight: Doubles


class Service(NamedTuple):
    """Who serves each target, `(n_targets,)`: the level, and the rank of the chosen source, -1 for none."""

    best: Levels
    holder: Longs


class Gained(NamedTuple):
    """What each chosen source did, `(k,)`: what it added, for how many targets it became the best, and most of all for which.

    top: the first of equals, -1 for none; top_by: how much that target was raised.
    """

    gains: Longs
    raised: Longs
    top: Longs
    top_by: Longs


class Left(NamedTuple):
    """What each source would still add, `(n_sources,)`, and the target that it serves best (the first of equals, -1 for none)."""

    gains: Longs
    target: Longs
    level: Levels


@compiled
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


@compiled
def to_levels(
    columns: npt.NDArray[np.float32],
    start: int,
    stop: int,
    source_order: npt.NDArray[np.intp],
    target_order: npt.NDArray[np.intp],
    steps: tuple[float, float],
    out: Levels,
) -> None:
    """Write the levels of the sources `source_order[start:stop]`, targets in `target_order`; NaN becomes level 0.

    steps: the value of level 0, and levels per unit. An empty `target_order` leaves the targets as they are. `out`
    may share its memory with `columns` where no source moves.
    """
    low, per_unit = steps
    buffer = np.empty(columns.shape[1], np.float32)
    for i in range(start, stop):
        column, row = columns[source_order[i]], out[i]
        if len(target_order):
            for j in range(len(buffer)):
                buffer[j] = column[target_order[j]]
        else:
            buffer[:] = column
        for j in range(len(buffer)):
            x = np.float64(buffer[j])
            row[j] = np.int32((x - low) * per_unit + 0.5) if x == x else np.int32(0)


@compiled
def reorder(columns: Levels, order: npt.NDArray[np.intp]) -> None:
    """Bring row `order[i]` to place i, in place."""
    done = np.zeros(len(order), np.bool_)
    for start in range(len(order)):
        if done[start]:
            continue
        first, at = columns[start].copy(), start
        while True:
            done[at] = True
            source = order[at]
            if source == start:
                columns[at] = first
                break
            columns[at] = columns[source]
            at = source


@compiled
def gain_of(column: Levels, best: Levels) -> np.int64:
    """Return what a source adds to targets that are already served at `best`, `(n_targets,)`."""
    total = np.int64(0)
    for t in range(len(column)):
        total += max(np.int32(column[t] - best[t]), np.int32(0))
    return total


@compiled
def gains_of(columns: Levels, start: int, stop: int, best: Levels, gains: Longs) -> None:
    """Write what each source adds to targets that are already served at `best`."""
    for s in range(start, stop):
        gains[s] = gain_of(columns[s], best)


@compiled
def what_is_left(columns: Levels, start: int, stop: int, best: Levels, bonus: Longs, left: Left) -> None:
    """Write what each source would still add to targets that are served at `best`."""
    gains, target, level = left
    for s in range(start, stop):
        column = columns[s]
        total, highest = bonus[s], np.int32(0)
        for t in range(len(column)):
            total += max(np.int32(column[t] - best[t]), np.int32(0))
            highest = max(highest, column[t])
        gains[s], level[s], target[s] = total, highest, -1
        if highest > 0:
            for t in range(len(column)):
                if column[t] == highest:
                    target[s] = t
                    break


@compiled
def raise_to(columns: Levels, order: Longs, start: int, stop: int, best: Levels) -> None:
    """Raise `best` of a range of targets to what the sources of `order` give them."""
    part = best[start:stop]
    for s in order:
        column = columns[s][start:stop]
        for t in range(len(part)):
            part[t] = max(part[t], column[t])


@compiled
def sift(queue: Queue, size: int, at: int) -> None:
    """Let the entry at a position sink: the highest weighted gain is on top, the lowest position first among equals."""
    heap, gains, weight = queue
    moving = heap[at]
    key = gains[moving] * weight[moving]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        a = heap[child]
        of_a = gains[a] * weight[a]
        if child + 1 < size:
            b = heap[child + 1]
            of_b = gains[b] * weight[b]
            if of_b > of_a or (of_b == of_a and b < a):
                child += 1
                a, of_a = b, of_b
        if key > of_a or (key == of_a and moving < a):
            break
        heap[at] = a
        at = child
    heap[at] = moving


@compiled
def admits(s: Any, limits: Limits) -> Any:
    """Tell whether a source may still be chosen; one that may not never may again (rules.py says why)."""
    group, least, most, cost, room = limits
    g = group[s]
    return most[g] > 0 and cost[s] <= room[0] and (least[g] > 0 or room[1] > 0)


@compiled
def admit(s: Any, limits: Limits) -> None:
    """Count a source that was chosen."""
    group, least, most, cost, room = limits
    g = group[s]
    if least[g] > 0:
        least[g] -= 1
    else:
        room[1] -= 1
    most[g] -= 1
    room[0] -= cost[s]


@compiled
def lazy_greedy(
    columns: Levels, queue: Queue, bonus: Longs, best: Levels, limits: Limits, lowest_gain: int, order: Longs
) -> int:
    """Write sources of greedy coverage into `order` until it is full or none is admitted; return how many (Minoux 1978).

    queue: the candidates with what each adds to `best`, its bonus included; used up like `best` and `limits`. Only the source on
    top has to be brought up to date. Where few targets have changed since, only these are looked at: the last changes are kept
    in a ring. Nothing is taken that adds less than `lowest_gain`.
    """
    heap, gains, _ = queue
    n_sources, n_targets = columns.shape
    ring = max(n_targets // 32, 1)
    changed, before, after = np.empty(ring, np.int32), np.empty(ring, np.int32), np.empty(ring, np.int32)
    changes = 0
    seen = np.zeros(n_sources, np.int64)
    size = len(heap)
    for at in range(size // 2 - 1, -1, -1):
        sift(queue, size, at)
    chosen = 0
    while size > 0 and chosen < len(order):
        s = heap[0]
        behind = changes - seen[s]
        fits = admits(s, limits)
        if fits and behind > 0:
            column = columns[s]
            if behind > ring:
                gains[s] = gain_of(column, best) + bonus[s]
            else:
                lost = np.int64(0)
                at = seen[s] % ring
                for _ in range(behind):
                    x = column[changed[at]]
                    lost += max(min(x, after[at]) - before[at], 0)
                    at = at + 1 if at + 1 < ring else 0
                gains[s] -= lost
            seen[s] = changes
            sift(queue, size, 0)
            continue
        if fits and gains[s] < lowest_gain:
            break
        size -= 1
        heap[0] = heap[size]
        sift(queue, size, 0)
        if not fits:
            continue
        admit(s, limits)
        order[chosen] = s
        chosen += 1
        column = columns[s]
        for t in range(n_targets):
            if column[t] > best[t]:
                at = changes % ring
                changed[at], before[at], after[at] = t, best[t], column[t]
                best[t] = column[t]
                changes += 1
    return chosen


@compiled
def replay(columns: Levels, order: Longs, service: Service, gained: Gained) -> None:
    """Choose the sources of `order` one by one, bring `service` up to date and write down what each did."""
    (best, holder), (gains, raised, top, top_by) = service, gained
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


@compiled
def highest_of(
    columns: npt.NDArray[np.float32], start: int, stop: int, less: Doubles, most: Doubles, at: Longs
) -> None:
    """Write each source's highest value after `less` `(n_targets,)` is taken off, and the first target that has it.

    What has no value keeps what stands there.
    """
    for s in range(start, stop):
        row, best, where = columns[s], -np.inf, -1
        for t in range(len(row)):
            x = np.float64(row[t]) - less[t]
            if x > best:
                best, where = x, t
        if where >= 0:
            most[s], at[s] = best, where
