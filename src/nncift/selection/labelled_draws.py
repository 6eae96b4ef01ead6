"""Labelled rows drawn again: what each refit of `selection.stability` learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift.core.arrays import Places
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.labels.plan import SCORE
from nncift.selection.utilities import Utilities

MOST_LABELLED = 500
"""Labelled rows of an axis that a refit learns from at most."""

LEAST_LABELLED = 4
"""Labelled rows of an axis below which nothing can be drawn again."""


def _block(utilities: Utilities) -> LabelledPairs:
    """Return the labels that refits learn from. Where a plan set items apart for tests, those among its training items.

    These are a block, on which the student is fitted in a fraction of a second.
    """
    known = utilities.known.present()
    labels = utilities.labels
    if "rest" in labels or not any(len(labels.get(name, ())) for name in ("q2", "q3")):
        return known
    train = labels["train"]
    return known.take(np.isin(known.target, np.unique(train.target)) & np.isin(known.source, np.unique(train.source)))


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws labelled rows again, never fewer than `LEAST_LABELLED`.

    targets, sources: codes of those that are labelled. whole: axes that are labelled whole, and never drawn from.
    """

    known: LabelledPairs
    targets: Places
    sources: Places
    whole: tuple[bool, bool]
    shared: bool
    random: np.random.Generator

    @classmethod
    def of(cls, utilities: Utilities, seed: int) -> Draws:
        """Return what is drawn from of a run's labels."""
        known = _block(utilities)
        targets, sources = (np.unique(part).astype(np.intp) for part in (known.target, known.source))
        whole = len(targets) == len(utilities.target_ids), len(sources) == len(utilities.source_ids)
        complete = len(known) >= len(targets) * (len(sources) - utilities.shared)
        if all(whole) and not complete:
            # Every row has some labels: which of them is chance all the same.
            whole = (utilities.target_ids == SCORE, False)
        shared = utilities.shared
        return cls(known, targets, sources, whole, shared, generator(seed, "stability"))

    @property
    def is_whole(self) -> bool:
        """Whether everything is labelled."""
        return all(self.whole)

    @property
    def is_enough(self) -> bool:
        """Whether there is something to draw from. Sources are drawn in any case."""
        return len(self.sources) >= LEAST_LABELLED and (self.whole[0] or len(self.targets) >= LEAST_LABELLED)

    def draw(self) -> LabelledPairs:
        """Return the labels between rows that are drawn: with replacement, each counted once."""
        if self.shared:
            items = np.union1d(self.targets, self.sources)
            drawn = self._drawn(items)
            keep = np.isin(self.known.target, drawn) & np.isin(self.known.source, drawn)
        else:
            keep = np.isin(self.known.source, self._drawn(self.sources))
            if not self.whole[0]:
                keep &= np.isin(self.known.target, self._drawn(self.targets))
        return self.known.take(keep)

    def _drawn(self, items: Places) -> Places:
        drawn = np.unique(self.random.choice(items, len(items)))
        while len(drawn) < LEAST_LABELLED:
            drawn = np.unique(self.random.choice(items, len(items)))
        return drawn if len(drawn) <= MOST_LABELLED else self.random.permutation(drawn)[:MOST_LABELLED]
