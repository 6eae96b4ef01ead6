"""What several rows begin with, such as a system turn or a few-shot head, so that a model reads it once for all of them.

In a causal model the states over a beginning do not depend on what follows, so its keys and values serve every row behind it
(method.md 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

LEAST = 8
"""Tokens of a beginning below which a pass of its own is not worth it."""
LEAST_SAVED = 32
"""Tokens that must be saved by it in all."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Beginning:
    """Token ids that some rows begin with, perhaps none, and the places of these rows."""

    ids: Ids
    places: tuple[int, ...]


def common_start(prompts: Sequence[Sequence[int]]) -> Ids:
    """Return the tokens that several prompts begin with; each keeps one of its own, which predicts what follows."""
    if len(prompts) < 2:
        return ()
    found = takewhile(lambda column: len(set(column)) == 1, zip(*(prompt[:-1] for prompt in prompts), strict=False))
    return tuple(column[0] for column in found)


def beginnings_of(prompts: Sequence[Sequence[int]]) -> list[Beginning]:
    """Share prompts out by what they begin with, where that saves enough; every place is in one part.

    Rows with a longer common beginning are a part of their own where it saves LEAST_SAVED tokens more.
    """
    order = sorted(range(len(prompts)), key=lambda place: tuple(prompts[place]))
    parts = _parts(prompts, order, 0)
    rest = sorted(place for part in parts if not part.ids for place in part.places)
    found = sorted((part for part in parts if part.ids), key=lambda part: part.places)
    return ([Beginning((), tuple(rest))] if rest else []) + found


def tokens_once(rows: Sequence[int], parts: Sequence[Beginning]) -> int:
    """Return the tokens that are read of rows of these lengths, every beginning once."""
    return sum(rows) - sum((len(part.places) - 1) * len(part.ids) for part in parts)


def _parts(prompts: Sequence[Sequence[int]], order: Sequence[int], known: int) -> list[Beginning]:
    """Share out prompts in alphabetical order that agree in the first `known` tokens, which are read once already."""
    shared = common_start([prompts[place] for place in order]) if len(order) > 1 else ()
    worth = len(shared) - known >= LEAST and _saves(order, len(shared) - known)
    own = shared if worth else shared[:known]
    left, found = [], []
    for _, group in groupby(order, key=lambda place: tuple(prompts[place][: len(shared) + 1])):
        members = list(group)
        apart = _parts(prompts, members, len(own)) if 1 < len(members) < len(order) else []
        deeper = [part for part in apart if len(part.ids) > len(own)]
        found += deeper
        taken = {place for part in deeper for place in part.places}
        left += [place for place in members if place not in taken]
    if left:
        found.append(Beginning(tuple(own) if len(left) > 1 else (), tuple(sorted(left))))
    return found


def _saves(order: Sequence[int], length: int) -> bool:
    return (len(order) - 1) * length >= LEAST_SAVED
