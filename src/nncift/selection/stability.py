"""Stability: in how many refits a row is selected (bootstrap over the labelled items; docs/method.md, section 4).

Which rows were labelled is chance. Each refit draws as many labelled rows as there are, with replacement, and takes those that
are drawn, once each, for the only ones that are labelled: the student is fitted on their labels with the choices that are
settled, the rest is predicted, and the run's objective selects again under the run's rules. No model is asked. Large pools are
selected from in parts, which bounds the cost, and beyond `MOST_PARTS` parts only a sample of the rows is looked at. A part has an
answer of its own, by the run's student, which refits are compared with: rows of which it decides otherwise than the whole pool
does, because others stand in for them there, have no number.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.core.arrays import Doubles, Places
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import arithmetic, serial_map
from nncift.core.result_types import OPTIONAL, Record
from nncift.core.seeds import generator
from nncift.core.texts import first_line
from nncift.core.threads import one_thread_if_small
from nncift.data.pool import PoolTable
from nncift.errors import DataError
from nncift.labels.vectors import Vectors
from nncift.selection import COVERING, pose
from nncift.selection.constraints import ResolvedConstraints
from nncift.selection.coverage import Coverage
from nncift.selection.labelled_draws import MOST_LABELLED, Draws
from nncift.selection.problem import build_dense
from nncift.selection.rules import Order, Rules
from nncift.selection.utilities import Utilities
from nncift.storage import checksums
from nncift.storage.atomic import read_arrays, write_arrays
from nncift.storage.vector_store import rows_of
from nncift.student.candidates import OTHER, is_free
from nncift.student.free_similarity import free_students
from nncift.student.model import Student
from nncift.student.networks import FittedStudent, TrainingData, network, refittable

log = logging.getLogger(__name__)

FREE = "towers"
"""The network of similarities that cost no label."""

REFITS = 20
ABOVE = 0.8
"""Share of refits above which a row is called stable."""

PART_ROWS, MOST_PARTS = 1500, 8
"""Rows that a refit selects from at once, and how many such parts of a pool are looked at."""

MOST_TARGETS = 1500
"""Targets of a target set that a refit selects for at most."""

FITTED, MARK = "refits.safetensors", "refits"
"""What refits of a run learned, which do not depend on what is selected: selecting again fits nothing."""

UNITS = "units"
"""Name there of the mean and the scale of the labels that a refit learned from."""

MOST_KEPT = 1 << 26
"""Bytes of that at most; of larger students nothing is kept."""


@dataclass(frozen=True)
class StabilityRecord(Record):
    """How many of the selected rows (`rows`) are selected in more than `above` of the refits (`stable`).

    parts: of a large pool, from each of which the student and its refits select alone; rows are those that the student
    selects there.
    """

    refits: int
    above: float
    stable: int
    rows: int
    parts: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Stability:
    """share: of the refits in which each row is selected, `(n_rows,)`.

    NaN for rows that were not looked at, and for those of which a part decides otherwise than the pool.
    """

    share: Doubles
    record: StabilityRecord


def how_sure(labelled: float, stability: float, refits: int) -> str:
    """Return in a sentence what a row's place rests on. labelled: share of its utilities that the teacher gave."""
    if labelled >= 1.0:
        known = "All its utilities are labels of the teacher"
    elif labelled <= 0.0:
        known = "Its utilities are predicted"
    else:
        known = f"{_percent(labelled)} of its utilities are labels of the teacher, the others predicted"
    return known + ("." if np.isnan(stability) else f"; selected in {round(stability * refits)} of {refits} refits.")


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{min(99, round(100 * share))} %"


@dataclass(frozen=True, eq=False)
class Refits:
    """What is needed to select again after other labels. course: how the run's student was fitted. used: what selects.

    kept: the run and the fingerprint of its fit, where what refits learn is kept; None = it is not.
    """

    utilities: Utilities
    settings: RunSettings
    course: Mapping[str, Any]
    used: str
    kept: tuple[Path, str] | None = None

    @property
    def are_whole(self) -> bool:
        """Whether what the run keeps of its refits, if anything, is what was written."""
        run = None if self.kept is None else self.kept[0]
        if run is None or not (checksums.mark_of(run, MARK).exists() or (run / FITTED).exists()):
            return True
        found = checksums.read_mark(run, MARK)
        return FITTED in (found.get("files") or {}) and checksums.matches(run, found, (FITTED,))

    def labelled(self) -> Doubles:
        """Return the share of every source's utilities that the teacher gave, `(n_sources,)`."""
        known, targets = self.utilities.known.present(), len(self.utilities.target_ids) - self.utilities.shared
        pairs = known.target.astype(np.int64) * len(self.utilities.source_ids) + known.source
        # Of millions of numbers that are nearly all distinct, which np.unique would put into a hash table one by one.
        pairs.sort()
        once = np.flatnonzero(np.diff(pairs, prepend=-1))
        sources = pairs[once] % len(self.utilities.source_ids)
        found = np.bincount(sources, minlength=len(self.utilities.source_ids)) / max(1, targets)
        return np.asarray(np.minimum(found, 1.0), np.float64)

    def stability(
        self, rows: PoolTable, settled: ResolvedConstraints, selected: Sequence[str], *, refits: int = REFITS
    ) -> Stability | None:
        """Return how stable a selection is; None where fitting again takes training by descent, or too little is labelled."""
        place = {item: at for at, item in enumerate(rows.ids)}
        chosen = np.zeros(len(rows.ids), bool)
        chosen[[place[item] for item in selected]] = True
        draws = Draws.of(self.utilities, self.settings.seed)
        if draws.is_whole:
            share = chosen.astype(np.float64)
            return Stability(share, _record(share, chosen, refits))
        if not draws.is_enough:
            return None
        parts = self._parts(rows, settled, chosen)
        count = np.zeros(len(rows.ids))
        key = self._key(draws.known, refits)
        before = self._kept(key, refits)
        fitted: list[FittedStudent] = []
        size = 0
        for number in range(refits):
            known = draws.draw()
            learned = before[number] if before else self._learned(known)
            if learned is None:
                return None
            size += sum(part.nbytes for part in learned.weights.values())
            if size <= MOST_KEPT:
                fitted.append(learned)
            student = self._with_weights(learned)
            if before:
                self._check_fits(student)
            for part in parts:
                count[[place[item] for item in part.selected(self, student, known)]] += 1
        if self.kept is not None and not before and len(fitted) == refits:
            _keep(self.kept[0], key, fitted)
        alone, looked_at = self._alone(parts, place, chosen)
        record = _record(count / refits, alone, refits)
        if not parts[0].whole:
            record = replace(record, parts=len(parts))
        return Stability(np.where(looked_at, count / refits, np.nan), record)

    def _alone(
        self, parts: Sequence[_Part], place: Mapping[str, int], chosen: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which rows the student selects from the parts, each alone, and of which they decide as the whole pool does.

        place: of every row. chosen: from the whole pool, `(n_rows,)`.
        """
        if parts[0].whole:
            return chosen, np.isin(np.arange(len(chosen)), parts[0].sources)
        alone, looked_at = np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
        student, known = self.utilities.student, self.utilities.known.present()
        for part in parts:
            alone[[place[item] for item in part.selected(self, student, known)]] = True
            looked_at[part.sources] = alone[part.sources] == chosen[part.sources]
        return alone, looked_at

    def _learned(self, known: LabelledPairs) -> FittedStudent | None:
        """Fit what selects on some of the labels; None where that takes training by descent."""
        vectors = self.utilities.vectors
        data = TrainingData(known, known.take(np.arange(0)), vectors.targets, vectors.sources, vectors.views)
        with one_thread_if_small(int(np.unique(known.source).size)):
            if is_free(self.used):
                return free_students(data, rising=False).get(self.used)
            again = refittable(network(OTHER if self.used == OTHER else self.settings.student))
            if again is None:
                return None
            courses = self.course.get("courses", [self.course])
            return again.refit(data, courses=courses, advance=lambda _: None)

    def _with_weights(self, learned: FittedStudent) -> Student:
        """Return what selects with what a refit learned. Raises DataError where that is not finite: it would predict nothing."""
        if not all(np.isfinite(part).all() for part in learned.weights.values()):
            raise DataError(
                "a refit of the student on labels drawn again is not finite; its labels or embeddings are damaged"
            )
        shipped = self.utilities.student
        name = FREE if is_free(self.used) else OTHER if self.used == OTHER else shipped.network
        return replace(shipped, network=name, weights=learned.weights, mean=learned.mean, scale=learned.scale)

    def _check_fits(self, student: Student) -> None:
        """Raise DataError where what the run keeps of a refit is no student of its rows: somebody else's, or of other sizes."""
        vectors, place = self.utilities.vectors, None if self.kept is None else str(self.kept[0] / FITTED)
        try:
            one = [rows_of(part, np.arange(1)) for part in (vectors.targets, vectors.sources)]
            values = student.predict_block(student.project_targets(one[0]), student.project_sources(one[1]))
            if values.shape != (1, 1) or not np.isfinite(values).all():
                raise ValueError(f"it predicts {values.shape} values of one pair, not all of them numbers")
        except (DataError, ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError) as error:
            raise DataError(
                f"{place!r} does not fit the student of the run: {first_line(error)}. Take it away, and "
                "select again: it is made anew"
            ) from error

    def _key(self, known: LabelledPairs, refits: int) -> str:
        """Return the fingerprint of what so many refits learn. known: the labels that are drawn from."""
        labels = hashlib.sha256()
        for part in (known.target, known.source, known.value):
            labels.update(np.ascontiguousarray(part).data)
        fit = None if self.kept is None else self.kept[1]
        settings = (self.settings.student, self.settings.seed, MOST_LABELLED)
        return fingerprint("refits", fit, labels.hexdigest(), refits, self.used, settings, dict(arithmetic()))

    def _kept(self, key: str, refits: int) -> list[FittedStudent]:
        """Return what the run keeps of these refits, nothing where that is missing, damaged or of others."""
        if self.kept is None or not checksums.is_marked(self.kept[0], MARK, key, (FITTED,)):
            return []
        path, found = self.kept[0] / FITTED, []
        try:
            arrays = read_arrays(path)
            for number in range(refits):
                own = {name.partition(".")[2]: part for name, part in arrays.items() if name.startswith(f"{number}.")}
                mean, scale = own.pop(UNITS).tolist()
                found.append(FittedStudent(own, mean, scale, {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); it is made again", path, error)
            return []
        return found

    def _parts(self, rows: PoolTable, settled: ResolvedConstraints, chosen: npt.NDArray[np.bool_]) -> list[_Part]:
        """Return what is selected from at once: the pool, or random parts of a large one."""
        left = np.array([at for at, item in enumerate(rows.ids) if item not in settled.removed], np.intp)
        targets = np.arange(len(self.utilities.target_ids))
        shared = self.utilities.shared
        if len(left) <= PART_ROWS and (shared or len(targets) <= MOST_TARGETS):
            return [_Part(left if shared else targets, left, int(chosen.sum()), settled.rules, True)]
        random = generator(self.settings.seed, "stability", "parts")
        left = random.permutation(left)
        if not shared and len(targets) > MOST_TARGETS:
            targets = np.sort(random.permutation(targets)[:MOST_TARGETS])
        share = float(chosen.sum()) / max(1, len(left))
        pieces = np.array_split(left, -(-len(left) // PART_ROWS))[:MOST_PARTS]
        return [
            _Part(
                np.sort(piece) if shared else targets, np.sort(piece), round(share * len(piece)), settled.rules, False
            )
            for piece in pieces
        ]


def _keep(run: Path, key: str, fitted: Sequence[FittedStudent]) -> None:
    """Keep in a run what its refits learned."""
    arrays = {f"{number}.{name}": part for number, one in enumerate(fitted) for name, part in one.weights.items()}
    arrays |= {f"{number}.{UNITS}": np.array([one.mean, one.scale]) for number, one in enumerate(fitted)}
    checksums.mark_of(run, MARK).unlink(missing_ok=True)
    write_arrays(run / FITTED, arrays)
    checksums.write_mark(run, MARK, key, (FITTED,))


def _record(share: Doubles, chosen: npt.NDArray[np.bool_], refits: int) -> StabilityRecord:
    seen = share[chosen & np.isfinite(share)]
    return StabilityRecord(refits, ABOVE, int((seen > ABOVE).sum()), len(seen))


@dataclass(frozen=True)
class _Part:
    """Rows that are selected from at once. targets, sources: their places. rules: of the run. whole: it is all of the pool.

    Quotas and a budget of tokens are about the whole pool: a part knows how many rows, and which must be in or out.
    """

    targets: Places
    sources: Places
    k: int
    rules: Rules
    whole: bool

    def selected(self, refits: Refits, student: Student, known: LabelledPairs) -> tuple[str, ...]:
        """Return the ids that are selected by a student and the labels that are known to it."""
        whole, objective = refits.utilities, str(refits.settings.objective)
        target_ids = _at(whole.target_ids, self.targets)
        source_ids = target_ids if whole.shared else _at(whole.source_ids, self.sources)
        sources = rows_of(whole.vectors.sources, self.sources)
        targets = sources if whole.shared else rows_of(whole.vectors.targets, self.targets)
        utilities = replace(
            whole,
            student=student,
            vectors=Vectors(targets, sources, whole.vectors.views),
            labels={"train": _within(known, self, target_ids, source_ids)},
            # They are looked at beside rows that were trained on already, and read from a file.
            contents=_at(whole.contents, self.sources) if whole.contents and whole.existing is not None else (),
            # Seconds of work, here: shards and clusters share out what the selection itself rests on.
            calculate=serial_map,
        )
        rules = self.rules if self.whole else self._rules(source_ids)
        k = min(max(1, self.k, len(rules.include)), len(source_ids) - len(rules.exclude))
        if objective in COVERING and objective != "flmi":
            # Scores decide only where the objective is exhausted, and take a pass over the whole matrix.
            found = build_dense(utilities, objective, scored=False)
            problem = pose(found.matrix, objective, found.given, reuse=True)
            # Gains and reasons of the rows that are left out take longer than choosing.
            if isinstance(problem, Coverage) and not (order := problem.order(k, rules)).by_score:
                return _named(problem, order)
        found = build_dense(utilities, objective)
        score = found.matrix.mean_per_source() if found.score is None else found.score
        problem = pose(found.matrix, objective, replace(found, score=score).given, reuse=True)
        if isinstance(problem, Coverage):
            return _named(problem, problem.order(k, rules))
        return problem.choose(k, refits.settings.seed, rules).ids

    def _rules(self, source_ids: tuple[str, ...]) -> Rules:
        here = frozenset(source_ids)
        return Rules(self.rules.include & here, self.rules.exclude & here)


def _named(problem: Coverage, order: Order) -> tuple[str, ...]:
    """Return the ids of chosen rows: a problem puts its rows into an order of its own."""
    return tuple(problem.similarity.source_ids[at] for at in order.sources)


def _at(values: Sequence[str], places: Places) -> tuple[str, ...]:
    return tuple(values[at] for at in places.tolist())


def _within(
    known: LabelledPairs, part: _Part, target_ids: tuple[str, ...], source_ids: tuple[str, ...]
) -> LabelledPairs:
    """Return the labels of the rows of a part, on its axes."""
    at_target, at_source = (np.full(len(axis), -1, np.int32) for axis in (known.target_ids, known.source_ids))
    at_target[part.targets] = np.arange(len(part.targets))
    at_source[part.sources] = np.arange(len(part.sources))
    target, source = at_target[known.target], at_source[known.source]
    here = (target >= 0) & (source >= 0)
    return LabelledPairs(target_ids, source_ids, target[here], source[here], known.value[here])
