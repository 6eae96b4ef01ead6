"""The compiled loops of round-robin (`round_robin.py`, `sparse_round_robin.py`); matrices as in `kernels.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nncift.core.arrays import Bools, Longs
from nncift.core.compiled import compiled
from nncift.selection.kernels import Levels, admit, admits
from nncift.selection.rules import Limits

ASIDE = 32
"""Targets whose levels are copied side by side at once."""

FEW = 16
"""Sources up to which the best ones are kept as they come, and not parted from the rest at the end."""


class Groups(NamedTuple):
    """Who takes turns: group g's targets are `members[starts[g]:starts[g + 1]]`, in the order in which they take its turns."""

    starts: Longs
    members: Longs


class Lists(NamedTuple):
    """Each target's best sources, best first: `(n_targets, width)`, how many, and whether these are all that it has."""

    sources: Levels
    size: Longs
    whole: Bools


class Taken(NamedTuple):
    """The chosen sources in rank order, and the target that took each, `(k,)`."""

    order: Longs
    taker: Longs


@compiled
def best_sources(columns: Levels, start: int, stop: int, need: Levels, gone: Bools, lists: Levels, size: Longs) -> None:
    """Write the sources that serve some targets best, at a level above `need`, into `lists` `(n_targets, width)`, best first.

    Ties go to the lower position; size: `(n_targets,)` how many were found. Sources that are `gone` are left out.
    """
    width = lists.shape[1]
    level = np.empty((stop - start, width), np.int32)
    lowest = need[start:stop].copy()
    for s in range(len(columns)):
        if gone[s]:
            continue
        column = columns[s]
        for t in range(start, stop):
            x = column[t]
            if x <= lowest[t - start]:
                continue
            mine, those = level[t - start], lists[t]
            at = size[t] if size[t] < width else width - 1
            while at > 0 and x > mine[at - 1]:
                mine[at], those[at] = mine[at - 1], those[at - 1]
                at -= 1
            mine[at], those[at] = x, s
            if size[t] < width:
                size[t] += 1
            if size[t] == width:
                lowest[t - start] = mine[width - 1]


@compiled
def _first_round(starts: Longs, members: Longs) -> tuple[Longs, Longs]:
    """Return the targets in the order of their first turns, and the place of each in it."""
    sequence, turn = np.empty(len(members), np.int64), np.empty(len(members), np.int64)
    at, longest = 0, 0
    for g in range(len(starts) - 1):
        longest = max(longest, starts[g + 1] - starts[g])
    for i in range(longest):
        for g in range(len(starts) - 1):
            if i < starts[g + 1] - starts[g]:
                t = members[starts[g] + i]
                sequence[at], turn[t] = t, at
                at += 1
    return sequence, turn


@compiled
def gather(columns: Levels, sequence: Longs, start: int, place: Longs, side: Levels) -> None:
    """Copy the levels of targets that follow each other in `sequence` side by side, `(n_sources, width)`.

    A list is filled again from here: the next targets' are likely to run out too, and one target alone is far apart in memory.
    place: `(n_targets,)` where each target stands in `side`, -1 for the others; updated.
    """
    for t in range(len(place)):
        place[t] = -1
    count = min(side.shape[1], len(sequence) - start)
    for b in range(count):
        place[sequence[start + b]] = b
    for s in range(len(columns)):
        column, row = columns[s], side[s]
        for b in range(count):
            row[b] = column[sequence[start + b]]


@compiled
def _still_there(rest: Longs, left: int, gone: Bools) -> int:
    """Bring the sources that are not gone to the front of `rest[:left]`, in their order; return how many they are."""
    stay = 0
    for i in range(left):
        s = rest[i]
        if not gone[s]:
            rest[stay] = s
            stay += 1
    return stay


@compiled
def _lowest(keys: Longs, held: int) -> int:
    at = 0
    for j in range(1, held):
        if keys[j] < keys[at]:
            at = j
    return at


@compiled
def refill(level: Levels, need: int, rest: Longs, wanted: int, keys: Longs, row: Levels) -> tuple[int, bool]:
    """Write the best `wanted` of the sources `rest` into a target's list, best first.

    Return how many they are, and whether the list holds all that the target has. level: `(n_sources,)`, the target's; keys: room
    for as many numbers as sources.
    """
    count, held, lowest = 0, 0, 0
    for i in range(len(rest)):
        s = rest[i]
        if level[s] <= need:
            continue
        count += 1
        # The highest key has the highest level and, among equals, the lowest position.
        key = (np.int64(level[s]) << 32) | (np.int64(0x7FFFFFFF) - s)
        if wanted > FEW or held < wanted:
            keys[held] = key
            held += 1
        elif key > keys[lowest]:
            # Of few, the lowest gives way.
            keys[lowest] = key
        else:
            continue
        if wanted <= FEW and held == wanted:
            lowest = _lowest(keys, held)
    found = keys[:held]
    if held > wanted:
        found = np.partition(found, held - wanted)[held - wanted :]
    found = np.sort(found)
    for i in range(len(found)):
        row[i] = np.int32(np.int64(0x7FFFFFFF) - (found[len(found) - 1 - i] & np.int64(0xFFFFFFFF)))
    return len(found), count <= wanted


@compiled
def _next_target(g: int, groups: Groups, at: Longs, place: Longs, length: Longs) -> Any:
    """Return the target of a group whose turn it is, -1 where none is left. place, length: by group, of its members."""
    starts, members = groups
    while length[g] > 0:
        if place[g] < length[g]:
            place[g] += 1
            return members[starts[g] + place[g] - 1]
        # A round is over: targets that have dropped out are not asked again.
        stay = 0
        for i in range(length[g]):
            other = members[starts[g] + i]
            if at[other] >= 0:
                members[starts[g] + stay] = other
                stay += 1
        length[g], place[g] = stay, 0
    return np.int64(-1)


@compiled
def _best_of_list(t: Any, lists: Lists, at: Longs, gone: Bools, limits: Limits) -> Any:
    """Return the target's best source from its place `at` on that may be chosen, -1 where its list is used up."""
    while at[t] < lists.size[t]:
        s = np.int64(lists.sources[t, at[t]])
        at[t] += 1
        if not gone[s]:
            gone[s] = True
            # One that is not admitted now never will be (rules.py).
            if admits(s, limits):
                return s
    return np.int64(-1)


@compiled
def take_turns(
    columns: Levels, need: Levels, lists: Lists, groups: Groups, gone: Bools, limits: Limits, taken: Taken
) -> int:
    """Let groups of targets take sources in turn until `taken` is full or nothing is left to take; return how many.

    A group's targets take its turns one after the other; one without a source left drops out. A turn takes the target's best
    source that is not `gone` and that the rules admit (see `admits`). Where a list is not `whole` the columns hold more, and are
    read when it is used up. `groups`, `lists`, `gone` and `limits` are used up.
    """
    order, n_groups, n_targets, chosen = taken.order, len(groups.starts) - 1, len(lists.size), 0
    at, place = np.zeros(n_targets, np.int64), np.zeros(n_groups, np.int64)
    length = groups.starts[1:] - groups.starts[:-1]
    sequence, turn = _first_round(groups.starts, groups.members)
    side, beside = np.empty((len(columns), ASIDE), np.int32), np.full(n_targets, -1, np.int64)
    rest, keys = np.arange(len(columns)), np.empty(len(columns), np.int64)
    left, alive, targets = len(rest), n_groups, n_targets
    while chosen < len(order) and alive > 0:
        alive = 0
        for g in range(n_groups):
            found, t = np.int64(-1), np.int64(-1)
            while found < 0 and chosen < len(order):
                t = _next_target(g, groups, at, place, length)
                if t < 0:
                    break
                while at[t] >= 0:
                    found = _best_of_list(t, lists, at, gone, limits)
                    if found >= 0:
                        break
                    if lists.whole[t]:
                        at[t], targets = -1, targets - 1
                        break
                    if beside[t] < 0:
                        gather(columns, sequence, turn[t], beside, side)
                    # The others take as many as there are of them until the next own turn.
                    rounds = (len(order) - chosen) // max(targets, 1)
                    wanted = min(lists.sources.shape[1], 8 if rounds < 1 else (rounds + 1) * targets)
                    left, at[t] = _still_there(rest, left, gone), 0
                    level, row = side[:, beside[t]], lists.sources[t]
                    lists.size[t], lists.whole[t] = refill(level, need[t], rest[:left], wanted, keys, row)
            if found >= 0:
                admit(found, limits)
                order[chosen], taken.taker[chosen] = found, t
                chosen += 1
                alive += 1
    return chosen
