"""Pairs on their way into a plan: each is planned once, and comes into a chunk with others of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.seeds import shuffled
from nncift.labels.plan import BASE, NO_SOURCE, Q2, Q3, TRAIN, Codes, Entries, Roles

CHUNK_TARGETS = 256


@dataclass(frozen=True)
class Axes:
    """Both axes with their ids in order, so that what is drawn does not depend on the order of rows, and the items set apart."""

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles

    def codes(self, axis: str, ids: Sequence[str]) -> Codes:
        """Return the codes of ids of one axis."""
        known = {item: code for code, item in enumerate(getattr(self, f"{axis}_ids"))}
        return np.array([known[item] for item in ids], np.int32)

    def free(self, axis: str) -> tuple[str, ...]:
        """Return the ids of an axis that are not set apart."""
        held = {*getattr(self.roles, f"test_{axis}s"), *getattr(self.roles, f"validation_{axis}s")}
        return tuple(item for item in getattr(self, f"{axis}_ids") if item not in held)


class Adding:
    """Collects new pairs; every pair is planned once."""

    def __init__(self, axes: Axes, existing: Entries) -> None:
        self.axes = axes
        self._existing = existing
        paired = existing.source != NO_SOURCE
        self._keys = self.keys(existing.target[paired], existing.source[paired])
        self._parts: list[tuple[Codes, Codes, int]] = []

    def keys(self, target: Codes, source: Codes) -> npt.NDArray[np.int64]:
        """Return one number for every pair."""
        return target.astype(np.int64) * len(self.axes.source_ids) + source

    def taken(self, target: Codes, source: Codes) -> npt.NDArray[np.bool_]:
        """Tell which pairs are planned already or masked."""
        known: npt.NDArray[np.bool_] = np.isin(self.keys(target, source), self._keys)
        return known | (target == source) if self.axes.shared else known

    def add(self, target: Codes, source: Codes, split: int) -> None:
        """Plan those of the pairs that are neither planned nor masked."""
        free = ~self.taken(target, source)
        self._parts.append((target[free], source[free], split))
        self._keys = np.concatenate([self._keys, self.keys(target[free], source[free])])

    def product(self, targets: Sequence[str], sources: Sequence[str], split: int) -> None:
        """Plan every target with every source."""
        rows, columns = self.axes.codes("target", targets), self.axes.codes("source", sources)
        self.add(np.repeat(rows, len(columns)), np.tile(columns, len(rows)), split)

    def pairs(self, split: int) -> tuple[Codes, Codes]:
        """Return all pairs of a split, planned before and now."""
        mask = self._existing.split == split
        parts = [part for part in self._parts if part[2] == split]
        return (
            np.concatenate([self._existing.target[mask], *(part[0] for part in parts)]),
            np.concatenate([self._existing.source[mask], *(part[1] for part in parts)]),
        )

    def seen(self, seed: int, most: tuple[int, int]) -> tuple[list[str], list[str]]:
        """Return a few training targets and sources, to be paired with test items; those of before come first.

        most: of targets and of sources.
        """
        trained, before = self.pairs(TRAIN), (self.pairs(Q3)[0], self.pairs(Q2)[1])
        found = []
        for axis, codes, kept, bound in zip(("target", "source"), trained, before, most, strict=True):
            ids = getattr(self.axes, f"{axis}_ids")
            old = [ids[code] for code in np.unique(kept)]
            rest = shuffled({ids[code] for code in np.unique(codes)} - set(old), seed, "seen", axis)
            found.append([*old, *rest[: max(0, bound - len(old))]])
        return found[0], found[1]

    def entries(self, *, relative: bool, first_chunk: int) -> Entries:
        """Return what was added, sorted into chunks: one source each, and the targets without an example first."""
        target = np.concatenate([part[0] for part in self._parts])
        source = np.concatenate([part[1] for part in self._parts])
        split = np.concatenate([np.full(len(part[0]), part[2], np.int8) for part in self._parts])
        if relative:
            known = self._existing.target[self._existing.split == BASE]
            fresh = np.setdiff1d(target, known).astype(np.int32)
            target = np.concatenate([fresh, target])
            source = np.concatenate([np.full(len(fresh), NO_SOURCE, np.int32), source])
            split = np.concatenate([np.full(len(fresh), BASE, np.int8), split])
        order = np.lexsort((target, source))
        target, source, split = target[order], source[order], split[order]
        starts = np.flatnonzero(np.diff(source, prepend=-2))
        within = np.arange(len(source)) - np.repeat(starts, np.diff([*starts, len(source)]))
        opens = (within % CHUNK_TARGETS == 0).astype(np.int32)
        chunk = (first_chunk + np.cumsum(opens) - 1).astype(np.int32)
        return Entries(target.astype(np.int32), source.astype(np.int32), split, chunk)
