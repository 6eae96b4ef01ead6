"""The utilities of a run's rows: labels where there are any, the student's predictions elsewhere (method.md 1).

Every problem of selection is built from these; see `problem.build`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.memory import free_memory
from nncift.core.pairs import LabelledPairs, Predicted, UtilityMatrix
from nncift.core.parallel import ParallelMap, serial_map
from nncift.errors import DataError, ResourceError
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import Vectors
from nncift.models.views import Views
from nncift.selection.probe_controls import FreeSimilarities
from nncift.student.model import Student, predict_all, with_known
from nncift.student.networks import Predictor


@dataclass(frozen=True)
class Existing:
    """The rows that were trained on already. vectors: `(n, d)`, as the student reads them; contents: their content hashes."""

    vectors: Floats
    contents: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Utilities:
    """What is known and predicted of the pairs of a run.

    vectors: of both axes of the labels. labels: by split. contents: content hash of every source. existing: rows that were
    trained on already, where the objective looks at any. subtask_of: each target's subtask, where targets have any. calculate:
    has the parts of a calculation done. in_memory: this process holds the matrix, which one that only does parts of it does not.
    """

    student: Student
    vectors: Vectors
    labels: Mapping[str, LabelledPairs]
    contents: Sequence[str] = ()
    existing: Existing | None = None
    subtask_of: Mapping[str, str] | None = None
    calculate: ParallelMap = serial_map
    in_memory: bool = True

    @property
    def known(self) -> LabelledPairs:
        """The labelled pairs of all splits."""
        return combine(dict(self.labels))

    @property
    def target_ids(self) -> tuple[str, ...]:
        """Ids of the targets."""
        return next(iter(self.labels.values())).target_ids

    @property
    def source_ids(self) -> tuple[str, ...]:
        """Ids of the sources."""
        return next(iter(self.labels.values())).source_ids

    @property
    def shared(self) -> bool:
        """Whether targets and sources are the same rows; a pointwise teacher's target has vectors of width 0 and is none."""
        return self.vectors.targets.shape[1] > 0 and self.target_ids[:1] == self.source_ids[:1]

    @property
    def views(self) -> Views:
        """What the vectors consist of for the student."""
        return self.vectors.views

    def for_coverage(self) -> Utilities:
        """Return the utilities as coverage objectives see them: predictions with the student's tail."""
        return replace(self, student=self.student.for_coverage())

    def similarities(self) -> FreeSimilarities:
        """Return the similarities of targets and sources that cost no label."""
        targets, sources = self.vectors.targets, self.vectors.sources
        return FreeSimilarities(self.views, targets, sources, self.shared, subtask_of=self.subtask_of)

    def matrix(self, *, last: bool = True, scored: bool = True) -> Predicted:
        """Return the hybrid matrix: known labels exact, the rest predicted, the diagonal masked.

        last: see `all_pairs`. A student `for_coverage` adds its tail to what is predicted. scored: whether scores are asked for,
        which take a pass of their own where there is a tail. Raises ResourceError where the matrix does not fit in memory.
        """
        student, vectors, known = self.student, self.vectors, self.known
        needed = 4 * len(vectors.targets) * len(vectors.sources) * 2
        free = free_memory() if self.in_memory else None
        if free is not None and needed > free:
            raise ResourceError(
                f"selecting from {len(vectors.sources)} rows takes {needed / 1e6:,.0f} MB of memory for the matrix and its "
                f"working copy, and {free / 1e6:,.0f} MB are free; use --neighbours 64, --limit, or a machine with more memory"
            )
        values = predict_all(student, vectors.targets, vectors.sources, self.calculate, last=last)
        matrix = with_known(values, known, shared=self.shared)
        tail = student.tail_net if student.covers and scored else None
        return Predicted(matrix, None if tail is None else self._mean_without_tail(matrix, tail, known))

    def _mean_without_tail(
        self, matrix: UtilityMatrix, tail: Predictor, known: LabelledPairs
    ) -> npt.NDArray[np.float64]:
        """Return the mean utility of each source, `(n_sources,)`, from a matrix whose predicted values hold a tail too.

        A tail is an inner product of projections: its sum over targets is one with their sum; known and masked pairs have none.
        """
        targets, sources = tail.project_targets(self.vectors.targets), tail.project_sources(self.vectors.sources)
        total = tail.block(targets.mean(axis=0, dtype=np.float64)[None].astype(np.float32), sources)[0] * float(
            len(targets)
        )
        count = np.full(len(sources), len(targets)) - np.bincount(
            known.source[~np.isfinite(known.value)], minlength=len(sources)
        )
        without = [(known.target, known.source)]
        if self.shared:
            itself = np.arange(len(sources), dtype=np.int32)
            without.append((itself, itself))
            count -= 1
        for target, source in without:
            total = total - np.bincount(source, tail.pairs(targets, sources, target, source), len(sources))
        added = np.divide(total, count, out=np.zeros(len(sources)), where=count > 0)
        return np.asarray(matrix.mean_per_source() - added, np.float64)

    def check_finite(self) -> None:
        """Raise DataError, naming the rows, where a prediction would be NaN or infinite: it would pass for a missing value."""
        student, (targets, sources), ids = self.student, (self.vectors.targets, self.vectors.sources), self.source_ids
        both = (("source", student.projected_sources(sources)), ("target", student.projected_targets(targets)))
        for axis, blocks in both:
            infinite = [at.start + np.flatnonzero(~np.isfinite(known).all(axis=1)) for at, known in blocks]
            bad = np.concatenate([*infinite, np.empty(0, np.intp)])
            if len(bad):
                whole = axis == "source" or len(targets) == len(ids)
                names = [ids[i] if whole else f"target {i + 1}" for i in bad[:5].tolist()]
                raise DataError(
                    f"the student's predictions are not finite for {len(bad)} {axis} rows ({', '.join(names)}); its weights or "
                    "their embeddings are damaged: use another --out"
                )
