"""The run repeated in little on the rows that were labelled, to measure what its selection is worth (docs/method.md, section 2).

Some of the labelled rows are taken to be unlabelled, all at once; a student learns from the others, and selects from a pool of
these rows and of as many others that as large a share is labelled as in the run's own pool. Held out one by one instead, rows
would be predicted from each other: among alike rows the one that is worth more makes its neighbours look better than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.evaluation.held_out_labels import Recipe, coded, fit_again, others_of, same_items
from nncift.evaluation.selection_skill import Block
from nncift.labels.vectors import Vectors
from nncift.student.candidates import STUDENT, Candidate
from nncift.student.networks import network, refittable

Codes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

UNLABELLED = 0.4
"""Share of the labelled rows that are taken to be unlabelled: fewer make small pools, more leave little to learn from."""

LEAST_UNLABELLED = 8
MOST_REPETITIONS, LEAST_REPETITIONS, FEWER_REPETITIONS = 36, 12, 6
"""Repetitions where rows are few, where they are many, and for a network that is trained anew in each by descent."""

DRAWN_ROWS = 2400
"""Labelled rows that all repetitions draw together: what few rows select differs more between draws, and takes less time."""

MOST_ROWS, FEWER_ROWS = 800, 300
"""Labelled rows of an axis that a repetition is about at most; fewer for a network that is trained by descent."""

MOST_JUDGED = 240
"""Rows of an axis at most that a repetition selects from."""

VALIDATION = 8
"""One row in so many stops the training of a network that is trained by descent."""

_LEFT_OUT, _UNLABELLED, _KNOWN, _LEARNED = range(4)
"""What a labelled row is in a repetition: no part of it, taken to be unlabelled, known in its pool, known outside of it."""


def repeated_runs(
    every: LabelledPairs,
    vectors: Vectors,
    recipe: Recipe,
    courses: Sequence[Mapping[str, Any]],
    free: Mapping[str, Candidate],
    advance: Callable[[int], None],
) -> tuple[Block, ...]:
    """Return a block for every repetition, with predictions of its student, of the one beside it, and of free similarities.

    every: all labelled pairs. courses: of fits that settled a student's choices. free: by name.
    """
    runs = _Runs(every, vectors, recipe)
    found = []
    for repetition in runs.drawn():
        train, stops = runs.labels(repetition)
        student = Candidate.of(recipe.student, fit_again(train, stops, courses, vectors, recipe), vectors)
        others = others_of(recipe, train, stops, vectors)
        found.append(runs.block(repetition, {STUDENT: student, **others, **free}))
        advance(1)
    return tuple(found)


@dataclass(frozen=True)
class _Repetition:
    """What every labelled row of both axes is, and which of them are not learned from but stop training."""

    targets: Codes
    sources: Codes
    target_stops: Mask
    source_stops: Mask


class _Runs:
    """Labelled rows of both axes, and what is drawn of them."""

    def __init__(self, every: LabelledPairs, vectors: Vectors, recipe: Recipe) -> None:
        self.every, self.vectors = every, vectors
        self.targets, self._t = coded(every.target)
        self.sources, self._s = coded(every.source)
        self.same = same_items(every, self.targets, self.sources)
        self.by_descent = refittable(network(recipe.student)) is None
        self.share = len(self.targets) / len(every.target_ids), len(self.sources) / len(every.source_ids)
        self.random = generator(recipe.seed, "repeated runs")
        # The order of ids decides, not that of rows.
        self.order = tuple(
            np.argsort([ids[code] for code in codes], kind="stable")
            for ids, codes in ((every.target_ids, self.targets), (every.source_ids, self.sources))
        )

    @property
    def repetitions(self) -> int:
        """How often the run is repeated."""
        if self.by_descent:
            return FEWER_REPETITIONS
        return min(MOST_REPETITIONS, max(LEAST_REPETITIONS, DRAWN_ROWS // max(1, len(self.sources))))

    def drawn(self) -> Iterator[_Repetition]:
        """Draw which rows are taken to be unlabelled, again and again."""
        # Where all targets are labelled, as a target set's may be, none is taken to be unlabelled; nor where they are few.
        whole = self.share[0] == 1.0 or len(self.targets) < 2 * LEAST_UNLABELLED
        shared = np.flatnonzero(self.same >= 0)
        for _ in range(self.repetitions):
            sources = self._roles(self.order[1], self.share[1])
            targets = np.full(len(self.targets), _KNOWN) if whole else self._roles(self.order[0], self.share[0])
            targets[self.same[shared]] = sources[shared]
            source_stops = self._stops(self.order[1], sources)
            target_stops = np.zeros(len(targets), bool) if whole else self._stops(self.order[0], targets)
            target_stops[self.same[shared]] = source_stops[shared]
            yield _Repetition(targets, sources, target_stops, source_stops)

    def _roles(self, order: Codes, share: float) -> Codes:
        """Draw what each row of an axis is. share: of the run's pool that is labelled, and so of the repetition's."""
        count = min(len(order), FEWER_ROWS if self.by_descent else MOST_ROWS)
        unlabelled = max(round(UNLABELLED * count), min(LEAST_UNLABELLED, count // 2))
        unlabelled = min(unlabelled, round((1 - share) * min(count, MOST_JUDGED)))
        known = round(unlabelled * share / (1 - share)) if unlabelled else min(count, MOST_JUDGED)
        roles = np.full(len(order), _LEFT_OUT)
        drawn = order[self.random.permutation(len(order))[:count]]
        roles[drawn] = _LEARNED
        roles[drawn[:unlabelled]] = _UNLABELLED
        roles[drawn[unlabelled : unlabelled + known]] = _KNOWN
        return roles

    def _stops(self, order: Codes, roles: Codes) -> Mask:
        """Return the rows that stop training by descent."""
        found = np.zeros(len(roles), bool)
        if self.by_descent:
            learned = order[roles[order] >= _KNOWN]
            found[learned[self.random.permutation(len(learned))[::VALIDATION]]] = True
        return found

    def labels(self, of: _Repetition) -> tuple[LabelledPairs, LabelledPairs]:
        """Return the pairs that a repetition's student learns from, and those that stop its training."""
        learned_t, learned_s = of.targets >= _KNOWN, of.sources >= _KNOWN
        train = (learned_t & ~of.target_stops)[self._t] & (learned_s & ~of.source_stops)[self._s]
        stops_t = of.target_stops if of.target_stops.any() else learned_t
        stops = stops_t[self._t] & of.source_stops[self._s]
        return self.every.take(np.flatnonzero(train)), self.every.take(np.flatnonzero(stops))

    def block(self, of: _Repetition, candidates: Mapping[str, Candidate]) -> Block:
        """Return the pool of a repetition with what the candidates predict of it."""
        rows, columns = (np.flatnonzero(np.isin(roles, (_UNLABELLED, _KNOWN))) for roles in (of.targets, of.sources))
        shape = len(rows), len(columns)
        t, s = (part.ravel() for part in np.meshgrid(self.targets[rows], self.sources[columns], indexing="ij"))
        pairs = LabelledPairs(
            self.every.target_ids,
            self.every.source_ids,
            t.astype(np.int32),
            s.astype(np.int32),
            np.zeros(len(t), np.float32),
        )
        place = np.full(len(self.targets), -1, np.intp)
        place[rows] = np.arange(len(rows))
        twins = self.same[columns]
        return Block(
            self._truth(rows, columns),
            self.targets[rows].astype(np.intp),
            self.sources[columns].astype(np.intp),
            np.where(twins >= 0, place[twins], -1),
            {name: made.predict(pairs).reshape(shape).astype(np.float64) for name, made in candidates.items()},
            (of.targets[rows] == _KNOWN)[:, None] & (of.sources[columns] == _KNOWN)[None, :],
            len(self.every.source_ids),
        )

    def _truth(self, rows: Codes, columns: Codes) -> npt.NDArray[np.float64]:
        """Return the labels of some rows of both axes, NaN where there is none."""
        at_t, at_s = np.full(len(self.targets), -1), np.full(len(self.sources), -1)
        at_t[rows], at_s[columns] = np.arange(len(rows)), np.arange(len(columns))
        t, s = at_t[self._t], at_s[self._s]
        here = (t >= 0) & (s >= 0)
        found = np.full((len(rows), len(columns)), np.nan)
        found[t[here], s[here]] = self.every.value[here]
        return found
