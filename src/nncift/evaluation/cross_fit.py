"""Predictions on labels that a student has not seen (method.md 2, quadrants).

Where rows are labelled, all pairs among them are known, and each row is held out once: students are fitted without one fold of
the rows, and without two, so that every pair is predicted by students that saw neither of its rows, or only one. Where pairs are
labelled, the plan has set items apart, and one student is fitted without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive, generator
from nncift.evaluation.baselines import fit_baselines, predict_quadrants
from nncift.evaluation.selection_skill import Block, Predictions
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import Vectors
from nncift.models.views import TEXT
from nncift.student.candidates import STUDENT, Candidate, free_candidates, values_of, with_similarity
from nncift.student.networks import FittedStudent, TrainingData, network, refittable

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
QUADRANT_OF = {"q1": "train", "q2": "q2", "q3": "q3", "q4": "test"}
HELD_OUT = ("validation", "test")
FOLDS, FEWER_FOLDS = 8, 5
"""Folds of the rows, and for a network that is trained anew in each by descent."""

MOST_ROWS = 300
"""Rows of an axis that a student of one fold learns from at most."""

MOST_PAIRS = 30_000
"""Pairs at most that a free similarity has its slope from, and that a quadrant is measured on."""

JUDGED_ITEMS = 240
"""Items of each axis at most on which selections are repeated."""

Quadrants = dict[str, LabelledPairs]


def _silent(step: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Recipe:
    """Which network learns, and how."""

    student: str
    recipe: str
    seed: int

    def learn(self, training_data: TrainingData) -> FittedStudent:
        """Train on a lesson, which has validation pairs."""
        return network(self.student).learn(
            training_data, recipe=self.recipe, seed=derive(self.seed, "student"), advance=_silent
        )


@dataclass(frozen=True)
class HeldOut:
    """What is known of a student's predictions where it has not seen the labels.

    quadrants: labelled pairs by what was seen of them. predictions: predictor to quadrant to `(n_pairs,)`. blocks: items on which
    selections are repeated. folds: 1 = items that the plan set apart. shipped: the candidates that a run can select by, fitted on
    all labels. course: of the student's training. source_unseen: pairs whose source was not seen, with the predictions of each
    candidate. pair_blocks: pairs of which neither item was seen, likewise, in parts that have no source in common.
    """

    quadrants: Quadrants
    predictions: dict[str, dict[str, Floats]]
    blocks: tuple[Block, ...]
    folds: int
    shipped: dict[str, Candidate]
    course: Mapping[str, Any]
    source_unseen: tuple[LabelledPairs, dict[str, Floats]]
    pair_blocks: tuple[tuple[LabelledPairs, dict[str, Floats]], ...] = field(default=())


def hold_out(
    labels: Mapping[str, LabelledPairs],
    vectors: Vectors,
    recipe: Recipe,
    *,
    coverage: bool,
    advance: Callable[[int], None] = _silent,
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


def _training_data(train: LabelledPairs, validation: LabelledPairs, vectors: Vectors) -> TrainingData:
    return TrainingData(train, validation, vectors.targets, vectors.sources, vectors.views)


def _fitted(
    train: LabelledPairs,
    validation: LabelledPairs,
    courses: Sequence[Mapping[str, Any]],
    vectors: Vectors,
    recipe: Recipe,
) -> FittedStudent:
    """Return what is learned with choices that were made before, from validation pairs where a network has none."""
    again = refittable(network(recipe.student))
    if again is not None and courses:
        learned = again.refit(
            _training_data(train, train.take(np.arange(0)), vectors), courses=courses, advance=_silent
        )
        if learned is not None:
            return learned
    return recipe.learn(_training_data(train, validation, vectors))


def _final(
    every: LabelledPairs, first: FittedStudent, courses: Sequence[Mapping[str, Any]], vectors: Vectors, recipe: Recipe
) -> FittedStudent:
    """Return what is learned from all labels where choices can be settled beforehand, else what was learned first."""
    again = refittable(network(recipe.student))
    if again is None:
        return first
    nothing = every.take(np.arange(0))
    learned = again.refit(_training_data(every, nothing, vectors), courses=courses, advance=_silent)
    return first if learned is None else learned


def hold_out_planned(
    labels: Mapping[str, LabelledPairs],
    vectors: Vectors,
    recipe: Recipe,
    *,
    coverage: bool,
    advance: Callable[[int], None] = _silent,
) -> HeldOut:
    """Hold out the items that the plan has set apart."""
    quadrants = {name: labels[split].present() for name, split in QUADRANT_OF.items() if split in labels}
    training_data = _training_data(labels["train"], labels["validation"], vectors)
    learned = recipe.learn(training_data)
    advance(1)
    made = Candidate.of(recipe.student, learned, vectors)
    blocks = [labels[name].present() for name in HELD_OUT]
    candidates = {STUDENT: made}
    # The published recipe stays what it is.
    candidates |= with_similarity(made, training_data, blocks) if recipe.recipe == "default" else {}
    free = free_candidates(training_data, vectors)
    candidates |= free
    rivals = free_candidates(training_data, vectors, rising=False)
    predictions = _baselines(labels["train"], labels["validation"], vectors, quadrants)
    predictions |= {
        name: {quadrant: of.predict(pairs) for quadrant, pairs in quadrants.items()}
        for name, of in {STUDENT: made, **rivals}.items()
    }
    every = combine(dict(labels), tuple(name for name in labels if name != "base"))
    total = len(every.target_ids) * len(every.source_ids)
    known = len(every) / total if total else 0.0
    judged = tuple(_block_of(block, values_of(candidates, block, coverage=coverage), known) for block in blocks)
    shipped = {
        STUDENT: Candidate.of(recipe.student, _final(every, learned, [learned.course], vectors, recipe), vectors)
    }
    advance(1)
    all_of_it = _training_data(every, labels["validation"], vectors)
    for name in candidates:
        if name in free:
            shipped[name] = free_candidates(all_of_it, vectors, rising=False)[name]
        elif name != STUDENT:
            tail = candidates[name].student
            shipped[name] = _with_tail(shipped[STUDENT], tail.tail, tail.tail_mean)
    held_out = combine(dict(labels), HELD_OUT).present()
    return HeldOut(
        quadrants,
        predictions,
        judged,
        1,
        shipped,
        learned.course,
        (held_out, {name: of.predict(held_out) for name, of in candidates.items()}),
        tuple((block, {name: of.predict(block) for name, of in candidates.items()}) for block in blocks),
    )


def _with_tail(made: Candidate, tail: Mapping[str, Floats] | None, mean: float) -> Candidate:
    return replace(made, student=replace(made.student, tail=tail, tail_mean=mean))


def _baselines(
    train: LabelledPairs, validation: LabelledPairs, vectors: Vectors, quadrants: Quadrants
) -> dict[str, dict[str, Floats]]:
    wanted = vectors.targets if not vectors.targets.shape[1] else vectors.views.take(vectors.targets, TEXT)
    return predict_quadrants(fit_baselines(train, validation, wanted, vectors.text), quadrants)


def _block_of(pairs: LabelledPairs, values: Mapping[str, Floats], known: float) -> Block:
    """Return held-out items, none of which any predictor has seen, as a block."""
    targets, t = np.unique(pairs.target, return_inverse=True)
    sources, s = np.unique(pairs.source, return_inverse=True)
    shape = len(targets), len(sources)

    def table(value: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        found = np.full(shape, np.nan)
        found[t, s] = value
        return found

    return Block(
        table(pairs.value),
        _same(pairs, targets, sources),
        {name: Predictions(table(of)) for name, of in values.items()},
        known_pairs=known,
    )


def _same(pairs: LabelledPairs, targets: npt.NDArray[Any], sources: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the place among the targets of the item that each source is, -1 where it is none of them."""
    place = {pairs.target_ids[code]: row for row, code in enumerate(targets.tolist())}
    return np.array([place.get(pairs.source_ids[code], -1) for code in sources.tolist()], np.intp)


class _Crossed:
    """Cross-fitting over rows that were labelled. A table is over targets and sources with a label, NaN elsewhere."""

    def __init__(
        self,
        labels: Mapping[str, LabelledPairs],
        vectors: Vectors,
        recipe: Recipe,
        advance: Callable[[int], None],
    ) -> None:
        self.every = combine(dict(labels)).present()
        self.vectors, self.recipe, self.advance = vectors, recipe, advance
        self.folds = FEWER_FOLDS if refittable(network(recipe.student)) is None else FOLDS
        self.targets, self._t = np.unique(self.every.target, return_inverse=True)
        self.sources, self._s = np.unique(self.every.source, return_inverse=True)
        self.same = _same(self.every, self.targets, self.sources)
        self.fold_t, self.fold_s = self._folds()
        self.of_t, self.of_s = self.fold_t[self._t], self.fold_s[self._s]

    def _folds(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the fold of every row of both axes, -1 for targets too few to hold any out; a row has one on both axes."""
        random = generator(self.recipe.seed, "folds")
        # The order of ids decides, not that of rows.
        order = np.argsort([self.every.source_ids[code] for code in self.sources], kind="stable")
        fold_s = np.empty(len(self.sources), np.intp)
        fold_s[order[random.permutation(len(order))]] = np.arange(len(order)) % self.folds
        fold_t = np.full(len(self.targets), -1, np.intp)
        if len(self.targets) >= self.folds:
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
        free = free_candidates(_training_data(whole, nothing, self.vectors), self.vectors)
        rivals = free_candidates(_training_data(whole, nothing, self.vectors), self.vectors, rising=False)
        final = _final(every, learned[0], courses, self.vectors, self.recipe)
        shipped = {STUDENT: Candidate.of(self.recipe.student, final, self.vectors), **free}
        predictions = self._predicted(quadrants, students, shipped[STUDENT])
        predictions |= {
            name: {quadrant: of.predict(pairs) for quadrant, pairs in quadrants.items()} for name, of in rivals.items()
        }
        unseen = self._source_unseen(students)
        residual = {STUDENT: unseen[1], **{name: of.predict(unseen[0]) for name, of in free.items()}}
        blocks = self._pair_blocks(quadrants, predictions, free)
        return HeldOut(
            quadrants,
            predictions,
            (self._block(students, courses, free),),
            self.folds,
            shipped,
            {"folds": self.folds, "courses": [dict(course) for course in courses], **_agreed(learned)},
            (unseen[0], residual),
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
                found.append(self.recipe.learn(_training_data(train, validation, self.vectors)))
                self.advance(1)
            return found, []
        courses: list[Mapping[str, Any]] = []
        for train, inside in alone:
            courses.append(self.recipe.learn(_training_data(train, inside, self.vectors)).course)
            self.advance(1)
        found = []
        for fold, (train, inside) in enumerate(alone):
            others = [course for place, course in enumerate(courses) if place != fold]
            found.append(_fitted(train, inside, others, self.vectors, self.recipe))
            self.advance(1)
        return found, courses

    def _quadrants(self) -> Quadrants:
        """Return the pairs of each quadrant: q4 both rows in one fold, q3 the source's fold alone held out, q2 the target's."""
        if not self.holds_targets:
            return {"q1": self.every, "q4": self.every}
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
        for name, of in _baselines(train, validation, self.vectors, parts).items():
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

    def _source_unseen(self, students: list[Candidate]) -> tuple[LabelledPairs, Floats]:
        """Return labelled pairs with predictions of students that did not see their sources."""
        pairs = self._thinned(self.every, "sources")
        fold = self.fold_s[np.searchsorted(self.sources, pairs.source)]
        values = np.empty(len(pairs), np.float32)
        for number, student in enumerate(students):
            here = fold == number
            values[here] = student.predict(pairs.take(here))
        return pairs, values

    def _pair_blocks(
        self, quadrants: Quadrants, predictions: Mapping[str, Mapping[str, Floats]], free: Mapping[str, Candidate]
    ) -> tuple[tuple[LabelledPairs, dict[str, Floats]], ...]:
        """Return two halves of the folds, for intervals around pairs of rows that nobody has seen."""
        pairs = quadrants["q4"]
        late = self.fold_s[np.searchsorted(self.sources, pairs.source)] >= self.folds // 2
        values = {STUDENT: predictions[STUDENT]["q4"], **{name: of.predict(pairs) for name, of in free.items()}}
        return tuple((pairs.take(half), {name: of[half] for name, of in values.items()}) for half in (~late, late))

    def _block(
        self, students: list[Candidate], courses: list[Mapping[str, Any]], free: Mapping[str, Candidate]
    ) -> Block:
        """Return rows on which selections are repeated, with predictions by what was seen of each pair."""
        rows, columns = self._judged
        t, s = (part.ravel() for part in np.meshgrid(self.targets[rows], self.sources[columns], indexing="ij"))
        shape = len(rows), len(columns)
        pairs = LabelledPairs(
            self.every.target_ids,
            self.every.source_ids,
            t.astype(np.int32),
            s.astype(np.int32),
            np.zeros(len(t), np.float32),
        )
        fold_t = np.broadcast_to(self.fold_t[rows][:, None], shape)
        fold_s = np.broadcast_to(self.fold_s[columns][None, :], shape)
        by_source, by_target = np.empty(shape), np.empty(shape)
        for number, student in enumerate(students):
            whole = student.predict(pairs).reshape(shape)
            np.copyto(by_source, whole, where=fold_s == number)
            np.copyto(by_target, whole, where=fold_t == number)
        unseen = by_source.copy()
        for (one, other), student in self._without_two(courses):
            cell = ((fold_t == one) & (fold_s == other)) | ((fold_t == other) & (fold_s == one))
            np.copyto(unseen, student.predict(pairs).reshape(shape), where=cell)
        across = fold_t != fold_s
        predictions = {
            STUDENT: Predictions(
                unseen,
                np.where(across, by_source, unseen),
                np.where(across, by_target, unseen) if self.holds_targets else None,
            )
        }
        predictions |= {
            name: Predictions(of.predict(pairs).reshape(shape).astype(np.float64)) for name, of in free.items()
        }
        same = np.full(len(self.targets), -1, np.intp)
        same[rows] = np.arange(len(rows))
        twins = self.same[columns]
        return Block(
            self._table[np.ix_(rows, columns)],
            np.where(twins >= 0, same[twins], -1),
            predictions,
            known_targets=len(self.targets) / len(self.every.target_ids),
            known_sources=len(self.sources) / len(self.every.source_ids),
        )

    def _without_two(self, courses: list[Mapping[str, Any]]) -> Iterator[tuple[tuple[int, int], Candidate]]:
        """Yield students that saw no row of two folds."""
        if not self.holds_targets:
            return
        for pair in combinations(range(self.folds), 2):
            train, inside = self._without(set(pair))
            learned = _fitted(train, inside, courses, self.vectors, self.recipe)
            self.advance(1)
            yield pair, Candidate.of(self.recipe.student, learned, self.vectors)

    @cached_property
    def _judged(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Places of the rows on which selections are repeated: all, or some where they are many."""
        random = generator(self.recipe.seed, "judged rows")
        columns = np.sort(random.permutation(len(self.sources))[:JUDGED_ITEMS])
        if (self.same >= 0).any():
            twins = self.same[columns]
            return np.sort(twins[twins >= 0]), columns
        return np.sort(random.permutation(len(self.targets))[:JUDGED_ITEMS]), columns

    @cached_property
    def _table(self) -> npt.NDArray[np.float64]:
        found = np.full((len(self.targets), len(self.sources)), np.nan)
        found[self._t, self._s] = self.every.value
        return found


def _agreed(learned: list[FittedStudent]) -> dict[str, Any]:
    """Return what the fits of all folds say together, for the record."""
    penalties = [of.course["penalty"] for of in learned if "penalty" in of.course]
    return {"penalty": float(np.median(penalties))} if penalties else {}
