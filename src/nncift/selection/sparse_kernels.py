"""Compiled loops of selection on a graph; each source's targets lie side by side (compressed columns), as exact levels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Codes, Doubles, Longs
from nncift.core.compiled import compiled
from nncift.selection.kernels import Queue, admit, admits, sift
from nncift.selection.rules import Limits

Levels = npt.NDArray[np.int32]


class Edges(NamedTuple):
    """Edges by source: those of source s are the entries `starts[s]` to `starts[s + 1]` of targets and levels."""

    starts: Longs
    targets: Codes
    levels: Levels


@compiled
def transpose(sources: Codes, levels: Levels, n_sources: int) -> Edges:
    """Return the edges by source for `(n_targets, k)` edges by target; -1 is no edge."""
    starts = np.zeros(n_sources + 1, np.int64)
    for t in range(sources.shape[0]):
        for e in range(sources.shape[1]):
            if sources[t, e] >= 0:
                starts[sources[t, e] + 1] += 1
    for s in range(n_sources):
        starts[s + 1] += starts[s]
    place = starts[:-1].copy()
    targets, found = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int32)
    for t in range(sources.shape[0]):
        for e in range(sources.shape[1]):
            s = sources[t, e]
            if s >= 0:
                targets[place[s]], found[place[s]] = t, levels[t, e]
                place[s] += 1
    return Edges(starts, targets, found)


@compiled
def gain_of(s: Any, edges: Edges, best: Levels) -> Any:
    """Return what a source adds to targets that are served at `best`."""
    starts, targets, levels = edges
    total = np.int64(0)
    for e in range(starts[s], starts[s + 1]):
        total += max(levels[e] - best[targets[e]], 0)
    return total


@compiled
def gains_of(start: int, stop: int, edges: Edges, best: Levels, gains: Longs) -> None:
    """Write what each source adds to targets that are served at `best`."""
    for s in range(start, stop):
        gains[s] = gain_of(s, edges, best)


@compiled
def choose(s: Any, edges: Edges, best: Levels) -> None:
    """Raise `best` to what a source gives."""
    starts, targets, levels = edges
    for e in range(starts[s], starts[s + 1]):
        t = targets[e]
        best[t] = max(best[t], levels[e])


@compiled
def lazy(queue: Queue, edges: Edges, best: Levels, limits: Limits, lowest_gain: int, order: Longs, by: Longs) -> int:
    """Write the sources of lazy greedy into `order` and their gains into `by`; return how many (Minoux 1978).

    queue: the candidates with what each adds to `best`; used up like `best` and `limits`. The highest gain times weight
    comes next; nothing is taken that adds less than `lowest_gain`.
    """
    heap, gains, _ = queue
    size, chosen = len(heap), 0
    for at in range(size // 2 - 1, -1, -1):
        sift(queue, size, at)
    fresh = np.full(len(gains), -1, np.int64)
    while size > 0 and chosen < len(order):
        s = heap[0]
        fits = admits(s, limits)
        if fits and fresh[s] != chosen:
            gain = gain_of(s, edges, best)
            fresh[s] = chosen
            if gain < gains[s]:
                gains[s] = gain
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
        order[chosen], by[chosen] = s, gains[s]
        chosen += 1
        choose(s, edges, best)
    return chosen


@compiled
def sort_edges(start: int, stop: int, sources: Codes, levels: Levels, lists: Codes, size: Longs) -> None:
    """Write the sources of some targets' edges into `lists` `(n_targets, k)`, the highest level first, ties by position.

    sources, levels: `(n_targets, k)`, -1 where there is no edge. size: `(n_targets,)` how many edges each target has.
    """
    keys = np.empty(sources.shape[1], np.int64)
    for t in range(start, stop):
        count = 0
        for e in range(sources.shape[1]):
            if sources[t, e] >= 0:
                keys[count] = (np.int64(levels[t, e]) << 32) | (np.int64(0x7FFFFFFF) - sources[t, e])
                count += 1
        found = np.sort(keys[:count])
        size[t] = count
        for i in range(count):
            lists[t, i] = np.int32(np.int64(0x7FFFFFFF) - (found[count - 1 - i] & np.int64(0xFFFFFFFF)))


@compiled
def replay(order: Longs, edges: Edges, best: Levels, by: Longs) -> None:
    """Choose the sources of `order` one by one, and write what each adds to `best` into `by`."""
    for rank in range(len(order)):
        by[rank] = gain_of(order[rank], edges, best)
        choose(order[rank], edges, best)


@compiled
def highest_of_edges(sources: Codes, utility: Any, most: Doubles, at: Longs) -> None:
    """Write each source's highest utility and the first target that has it; sources without an edge keep what stands there.

    sources, utility: `(n_targets, k)`; -1 is no edge, NaN a missing utility.
    """
    for t in range(sources.shape[0]):
        for e in range(sources.shape[1]):
            s, x = sources[t, e], np.float64(utility[t, e])
            if s >= 0 and x == x and (at[s] < 0 or x > most[s]):
                most[s], at[s] = x, t
