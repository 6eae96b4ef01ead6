"""A label plan: its axes, the items set apart, and its entries by generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.teachers import Chunk

SPLITS = ("base", "train", "validation", "q2", "q3", "test")
BASE, TRAIN, VALIDATION, Q2, Q3, TEST = range(6)
NO_SOURCE = -1

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Roles:
    """The items set apart, by axis; where targets and sources are the same rows, an item has one role on both."""

    validation_targets: tuple[str, ...] = ()
    validation_sources: tuple[str, ...] = ()
    test_targets: tuple[str, ...] = ()
    test_sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entries:
    """Planned labels, one per row: codes into the plan's axes (`source` is -1 without an example), split and chunk."""

    target: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    source: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    split: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    chunk: Codes = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.target)

    def __add__(self, other: Entries) -> Entries:
        names = ("target", "source", "split", "chunk")
        return Entries(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class LabelPlan:
    """What the teacher labels: axes, roles, and entries by generation (one for every time that the plan grew).

    target_ids and source_ids: axes with the ids attached; shared: both are the same rows, and the diagonal is masked.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles
    generations: tuple[Entries, ...] = ()

    @property
    def entries(self) -> Entries:
        """All entries, oldest first."""
        return sum(self.generations, Entries())

    @property
    def chunks(self) -> int:
        """Number of chunks over all generations."""
        return 1 + max((int(entries.chunk.max()) for entries in self.generations if len(entries)), default=-1)

    def generation_chunks(self, generation: int) -> list[tuple[Chunk, npt.NDArray[np.intp]]]:
        """Return the chunks of a generation, each with the positions of its entries there."""
        entries = self.generations[generation]
        order = np.argsort(entries.chunk, kind="stable")
        starts = np.flatnonzero(np.diff(entries.chunk[order], prepend=-1))
        found = []
        for positions in np.split(order, starts[1:]) if len(order) else []:
            source = int(entries.source[positions[0]])
            chunk = Chunk(
                int(entries.chunk[positions[0]]),
                None if source == NO_SOURCE else self.source_ids[source],
                tuple(self.target_ids[code] for code in entries.target[positions]),
            )
            found.append((chunk, positions))
        return found

    def full_passes(self, *, relative: bool) -> int:
        """Return the passes of labelling every pair, the masked diagonal left out."""
        pairs = len(self.target_ids) * len(self.source_ids) - (len(self.source_ids) if self.shared else 0)
        return pairs + (len(self.target_ids) if relative else 0)


def describe(plan: LabelPlan) -> dict[str, Any]:
    """Return the number of planned labels by split."""
    split = plan.entries.split
    return {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
