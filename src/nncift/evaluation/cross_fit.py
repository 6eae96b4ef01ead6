"""Students measured on rows that were labelled, all pairs among which are known (docs/method.md, section 2).

Fidelity by cross-fitting: students are fitted without one fold of the rows, so that every pair is predicted by students that saw
neither of its rows, or only one. Selection skill by repeating the run in little (`repeated_runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator, shuffled
from nncift.evaluation.held_out_labels import (
    HeldOut,
    Quadrants,
    Recipe,
    baselines_of,
    coded,
    data_of,
    fit_again,
    fit_on_all,
    others_of,
    same_items,
    silent,
)
from nncift.evaluation.planned_items import hold_out_planned
from nncift.evaluation.repeated_runs import repeated_runs
from nncift.labels import SCORE
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import Vectors
from nncift.student.candidates import STUDENT, Candidate, free_candidates
from nncift.student.networks import FittedStudent, network, refittable

FOLDS, FEWER_FOLDS = 8, 5
"""Folds of the rows, and for a network that is trained anew in each by descent."""

MOST_ROWS = 300
"""Rows of an axis that a student of one fold learns from at most."""

MOST_USED, LEAST_USED, USED_PAIRS = 20_000, 2_000, 1_000_000
"""Rows of an axis at most that anything here is learned from or measured on where pairs of rows are labelled, and how many of the
sources are kept at least where their pairs with a target set are still more than so many: more take long and add little."""

MOST_JUDGED, LEAST_JUDGED = 200_000, 500
"""Pairs with a target set that fidelity is measured on at most, and the sources that they have at least."""

MOST_PAIRS = 30_000
"""Pairs at most that a free similarity has its slope from, and that a quadrant is measured on."""


def hold_out(
    labels: Mapping[str, LabelledPairs],
    vectors: Vectors,
    recipe: Recipe,
    *,
    coverage: bool,
    advance: Callable[[int], None] = silent,
) -> HeldOut:
    """Return a student's predictions on labels that it has not seen, and the students that were fitted on all of them.

    labels: by split. coverage: the objective sees the similarity on top of a student. Raises DataError where labels are too few.
    """
    if labels_rows(labels):
        return _Crossed(labels, vectors, recipe, advance).result()
    return hold_out_planned(labels, vectors, recipe, coverage=coverage, advance=advance)


def labels_rows(labels: Mapping[str, LabelledPairs]) -> bool:
    """Tell whether rows were labelled, so that all pairs among them are known."""
    return "rest" in labels or not {"q2", "q3"} & set(labels)


class _Crossed:
    """Cross-fitting over rows that were labelled. A table is over targets and sources with a label, NaN elsewhere."""

    def __init__(
        self,
        labels: Mapping[str, LabelledPairs],
        vectors: Vectors,
        recipe: Recipe,
        advance: Callable[[int], None],
    ) -> None:
        self.labelled = combine(dict(labels)).present()
        self.every = _used(self.labelled, recipe.seed)
        self.vectors, self.recipe, self.advance = vectors, recipe, advance
        self.folds = FEWER_FOLDS if refittable(network(recipe.student)) is None else FOLDS
        self.targets, self._t = coded(self.every.target)
        self.sources, self._s = coded(self.every.source)
        self.same = same_items(self.every, self.targets, self.sources)
        self.fold_t, self.fold_s = self._folds()
        self.of_t, self.of_s = self.fold_t[self._t], self.fold_s[self._s]

    def _folds(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the fold of every row of both axes; a row has one on both.

        Targets have -1, so that none is held out, where they are too few, or a target set that is labelled whole: a run predicts
        for no other target then.
        """
        random = generator(self.recipe.seed, "folds")
        # The order of ids decides, not that of rows.
        order = np.argsort([self.every.source_ids[code] for code in self.sources], kind="stable")
        fold_s = np.empty(len(self.sources), np.intp)
        fold_s[order[random.permutation(len(order))]] = np.arange(len(order)) % self.folds
        fold_t = np.full(len(self.targets), -1, np.intp)
        given = len(coded(self.labelled.target)[0]) == len(self.every.target_ids) and not (self.same >= 0).any()
        if len(self.targets) >= self.folds and not given:
            order = np.argsort([self.every.target_ids[code] for code in self.targets], kind="stable")
            fold_t[order[random.permutation(len(order))]] = np.arange(len(order)) % self.folds
            shared = np.flatnonzero(self.same >= 0)
            fold_t[self.same[shared]] = fold_s[shared]
        return fold_t, fold_s

    @property
    def holds_targets(self) -> bool:
        """Whether targets are held out too."""
        return bool((self.fold_t >= 0).any())

    def result(self) -> HeldOut:
        """Fit without folds, predict, and fit on everything."""
        quadrants = self._quadrants()
        alone = [self._without({fold}) for fold in range(self.folds)]
        learned, courses = self._students(alone)
        students = [Candidate.of(self.recipe.student, of, self.vectors) for of in learned]
        every, nothing = self.every, self.every.take(np.arange(0))
        whole = self._thinned(every, "all")
        free = free_candidates(data_of(whole, nothing, self.vectors), self.vectors)
        rivals = free_candidates(data_of(whole, nothing, self.vectors), self.vectors, rising=False)
        final = fit_on_all(every, learned[0], courses, self.vectors, self.recipe)
        others = others_of(self.recipe, every, nothing, self.vectors)
        shipped = {STUDENT: Candidate.of(self.recipe.student, final, self.vectors), **others, **free}
        predictions = self._predicted(quadrants, students, shipped[STUDENT])
        predictions |= {
            name: {quadrant: of.predict(pairs) for quadrant, pairs in quadrants.items()} for name, of in rivals.items()
        }
        # What is fitted without a fold, by the name of the candidate.
        by_fold = {STUDENT: students, **{name: self._others(alone) for name in others}}
        unseen = self._thinned(self.every, "sources")
        residual = {name: self._by_source(unseen, of) for name, of in by_fold.items()}
        residual |= {name: of.predict(unseen) for name, of in free.items()}
        beside = {name: self._by_source(quadrants["q4"], by_fold[name]) for name in others}
        blocks = self._pair_blocks(quadrants["q4"], {STUDENT: predictions[STUDENT]["q4"], **beside}, free)
        return HeldOut(
            quadrants,
            predictions,
            repeated_runs(self.labelled, self.vectors, self.recipe, courses, free, self.advance),
            self.folds,
            shipped,
            {"folds": self.folds, "courses": [dict(course) for course in courses], **_agreed(learned), **self._part()},
            (unseen, residual),
            blocks,
        )

    def _without(self, folds: set[int]) -> tuple[LabelledPairs, LabelledPairs]:
        """Return the pairs of which no item is in these folds, and those of which both are in the last of them."""
        out = list(folds)
        last = max(out)
        inside = (self.of_s == last) & ((self.of_t == last) | (self.of_t < 0))
        train = ~np.isin(self.of_s, out) & ~np.isin(self.of_t, out) & self._learned
        return self.every.take(train), self.every.take(inside)

    @cached_property
    def _learned(self) -> npt.NDArray[np.bool_]:
        """Pairs that students of folds learn from: those among at most so many rows, so that a block stays a block."""
        random = generator(self.recipe.seed, "cross-fitting")
        sources = np.zeros(len(self.sources), bool)
        sources[random.permutation(len(sources))[:MOST_ROWS]] = True
        targets = np.zeros(len(self.targets), bool)
        targets[random.permutation(len(targets))[:MOST_ROWS]] = True
        shared = np.flatnonzero(self.same >= 0)
        targets[self.same[shared]] = sources[shared]
        return np.asarray(targets[self._t] & sources[self._s])

    def _part(self) -> dict[str, dict[str, int]]:
        """Return how many rows of each axis are used, for the record, where more of them are labelled."""
        if len(self.every) == len(self.labelled):
            return {}
        return {"used": {"targets": len(self.targets), "sources": len(self.sources)}}

    def _judged(self) -> LabelledPairs:
        """Return all pairs of as many sources as make no more than are measured with a target set, of each fold alike."""
        most = max(LEAST_JUDGED, MOST_JUDGED // max(1, len(self.targets)))
        if len(self.sources) <= most:
            return self.every
        kept = np.zeros(len(self.sources), bool)
        # Folds are drawn at random, in turn.
        kept[np.argsort(self.fold_s, kind="stable")[:: -(-len(self.sources) // most)]] = True
        return self.every.take(kept[self._s])

    def _thinned(self, pairs: LabelledPairs, name: str) -> LabelledPairs:
        if len(pairs) <= MOST_PAIRS:
            return pairs
        drawn = generator(self.recipe.seed, "pairs", name).permutation(len(pairs))[:MOST_PAIRS]
        return pairs.take(np.sort(drawn))

    def _students(
        self, alone: list[tuple[LabelledPairs, LabelledPairs]]
    ) -> tuple[list[FittedStudent], list[Mapping[str, Any]]]:
        """Return what is learned without each fold, choices made on other folds, and the course of every fit that made them."""
        if refittable(network(self.recipe.student)) is None:
            found = []
            for fold in range(self.folds):
                other = (fold + 1) % self.folds
                train, _ = self._without({fold, other})
                _, validation = self._without({other})
                found.append(self.recipe.learn(data_of(train, validation, self.vectors)))
                self.advance(1)
            return found, []
        courses: list[Mapping[str, Any]] = []
        for train, inside in alone:
            courses.append(self.recipe.learn(data_of(train, inside, self.vectors)).course)
            self.advance(1)
        found = []
        for fold, (train, inside) in enumerate(alone):
            others = [course for place, course in enumerate(courses) if place != fold]
            found.append(fit_again(train, inside, others, self.vectors, self.recipe))
            self.advance(1)
        return found, courses

    def _quadrants(self) -> Quadrants:
        """Return the pairs of each quadrant: q4 both rows in one fold, q3 the source's fold alone held out, q2 the target's."""
        if not self.holds_targets:
            return {"q1": self._thinned(self.every, "seen"), "q4": self._judged()}
        inside = self.of_t == self.of_s
        across = self._thinned(self.every.take(~inside), "across")
        return {
            "q1": self._thinned(self.every, "seen"),
            "q2": across,
            "q3": across,
            "q4": self.every.take(inside),
        }

    def _predicted(
        self, quadrants: Quadrants, students: list[Candidate], shipped: Candidate
    ) -> dict[str, dict[str, Floats]]:
        """Return predictions of the student and of the baselines by quadrant, each by the fit that did not see the items."""
        found: dict[str, dict[str, Floats]] = {STUDENT: {"q1": shipped.predict(quadrants["q1"])}}
        for quadrant in set(quadrants) - {"q1"}:
            pairs = quadrants[quadrant]
            fold_t = self.fold_t[np.searchsorted(self.targets, pairs.target)]
            fold_s = self.fold_s[np.searchsorted(self.sources, pairs.source)]
            fold = fold_t if quadrant == "q2" else fold_s
            for number, student in enumerate(students):
                here = np.flatnonzero(fold == number)
                part = pairs.take(here)
                self._place(found, STUDENT, quadrant, len(pairs), here, student.predict(part))
        for number in range(self.folds):
            self._place_baselines(found, quadrants, number)
        return found

    def _place_baselines(self, found: dict[str, dict[str, Floats]], quadrants: Quadrants, number: int) -> None:
        train, _ = self._without({number, (number + 1) % self.folds})
        _, validation = self._without({(number + 1) % self.folds})
        parts, places = {}, {}
        for quadrant, pairs in quadrants.items():
            codes = pairs.target if quadrant == "q2" else pairs.source
            axis, folds = (self.targets, self.fold_t) if quadrant == "q2" else (self.sources, self.fold_s)
            places[quadrant] = np.flatnonzero(folds[np.searchsorted(axis, codes)] == number)
            parts[quadrant] = pairs.take(places[quadrant])
        for name, of in baselines_of(train, validation, self.vectors, parts).items():
            for quadrant, values in of.items():
                self._place(found, name, quadrant, len(quadrants[quadrant]), places[quadrant], values)

    @staticmethod
    def _place(
        found: dict[str, dict[str, Floats]],
        name: str,
        quadrant: str,
        size: int,
        here: npt.NDArray[np.intp],
        values: Floats,
    ) -> None:
        into = found.setdefault(name, {}).setdefault(quadrant, np.full(size, np.nan, np.float32))
        into[here] = values

    def _others(self, alone: list[tuple[LabelledPairs, LabelledPairs]]) -> list[Candidate]:
        """Return the student that is fitted beside the run's, without each fold."""
        return [of for train, inside in alone for of in others_of(self.recipe, train, inside, self.vectors).values()]

    def _by_source(self, pairs: LabelledPairs, students: list[Candidate]) -> Floats:
        """Return predictions of students that did not see the sources."""
        fold = self.fold_s[np.searchsorted(self.sources, pairs.source)]
        values = np.empty(len(pairs), np.float32)
        for number, student in enumerate(students):
            here = fold == number
            values[here] = student.predict(pairs.take(here))
        return values

    def _pair_blocks(
        self, pairs: LabelledPairs, unseen: Mapping[str, Floats], free: Mapping[str, Candidate]
    ) -> tuple[tuple[LabelledPairs, dict[str, Floats]], ...]:
        """Return two halves of the folds, for intervals around pairs of rows that nobody has seen.

        unseen: predictions by students that did not see the rows, by candidate.
        """
        late = self.fold_s[np.searchsorted(self.sources, pairs.source)] >= self.folds // 2
        values = {**unseen, **{name: of.predict(pairs) for name, of in free.items()}}
        return tuple((pairs.take(half), {name: of[half] for name, of in values.items()}) for half in (~late, late))


def _used(pairs: LabelledPairs, seed: int) -> LabelledPairs:
    """Return the pairs among as many rows of each axis as are used; where both axes are the same rows, so are these.

    All scores of a pointwise teacher are used.
    """
    if pairs.target_ids == SCORE:
        return pairs
    axes = ((pairs.target_ids, coded(pairs.target)[0]), (pairs.source_ids, coded(pairs.source)[0]))
    targets, sources = (min(len(codes), MOST_USED) for _, codes in axes)
    if axes[0][0] != axes[1][0] and targets * sources > USED_PAIRS:
        sources = min(sources, max(LEAST_USED, USED_PAIRS // targets))
        targets = min(targets, max(1, USED_PAIRS // sources))
    kept = []
    for (ids, codes), most in zip(axes, (targets, sources), strict=True):
        mask = np.zeros(len(ids), bool)
        mask[codes] = len(codes) <= most
        if len(codes) > most:
            places = {ids[code]: code for code in codes.tolist()}
            mask[[places[item] for item in shuffled(places, seed, "used")[:most]]] = True
        kept.append(mask)
    if targets == len(axes[0][1]) and sources == len(axes[1][1]):
        return pairs
    return pairs.take(kept[0][pairs.target] & kept[1][pairs.source])


def _agreed(learned: list[FittedStudent]) -> dict[str, float]:
    """Return what the fits of all folds say together, for the record."""
    penalties = [of.course["penalty"] for of in learned if "penalty" in of.course]
    return {"penalty": float(np.median(penalties))} if penalties else {}
