"""The estimates that retraining judges: of a run's student, of its teacher, and of every plain rival, over the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress
from nncift.core.seeds import generator
from nncift.data import Examples
from nncift.finetune.lexical import bm25
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import teacher_of, truth_of
from nncift.runs.true_matrix import true_matrix
from nncift.selection.probe_controls import FreeSimilarities
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.loss import Loss
from nncift.teachers.rds import Rds

STUDENT, TEACHER = "student", "teacher"
RANDOM, LENGTH, LOSS, SOURCE, BM25, RDS = "random", "length", "loss", "same source", "bm25", "rds"


ABOUT: Mapping[str, str] = {
    "embedding": "cosine of the embeddings",
    "hidden": "cosine of the probe's hidden states",
    "output": "cosine of the probe's gradients at the output",
    "sum": "sum of all free cosines of the probe",
    "pretrained": "the pretrained student, which saw no label",
}


@dataclass(frozen=True)
class Estimate:
    """Utilities `(n_targets, n_rows)`, NaN where there is none. about: what it is."""

    values: Doubles
    about: str


@dataclass
class Estimates:
    """A run's estimates for some of its rows as sources, and others as targets.

    lm: gives the untouched model that is trained. with_teacher: label every pair by the run's teacher. folder: what models say is
    kept there. notes: what was left out.
    """

    run: FinishedRun
    targets: tuple[str, ...]
    rows: tuple[str, ...]
    lm: Callable[[], CausalLM]
    template: str | None
    folder: Path
    with_teacher: bool
    device: str
    seed: int
    progress: Progress
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all estimates, none of which is made for it; the student's first."""
        return tuple(self._makers)

    def all(self) -> dict[str, Estimate]:
        """Return every estimate by name. What cannot be had is left out, with a note."""
        if BM25 not in self._makers:
            self.notes.append("BM25 is left out: it needs the library bm25s (pip install bm25s).")
        return {name: make() for name, make in self._makers.items()}

    @cached_property
    def _makers(self) -> dict[str, Callable[[], Estimate]]:
        found: dict[str, Callable[[], Estimate]] = {STUDENT: self._student}
        if self.with_teacher:
            found[TEACHER] = self._teacher
        found |= {name: partial(self._similarity, name) for name in self._similar.names if name in ABOUT}
        found[RDS] = self._states
        if find_spec("bm25s") is not None:
            found[BM25] = self._words
        if self.run.rows.target_ids is None and len({self._source_of[item] for item in self.rows}) > 1:
            found[SOURCE] = self._same_source
        return found | {LOSS: self._losses, LENGTH: self._lengths, RANDOM: self._random}

    @cached_property
    def _source_of(self) -> dict[str, str]:
        return dict(zip(self.run.rows.ids, self.run.rows.sources, strict=True))

    def _states(self) -> Estimate:
        states = self._labelled(Rds(self.lm(), template=self.template), self._targets)
        return self._of(states, "RDS+: cosine in the trained model's states")

    def _words(self) -> Estimate:
        return Estimate(bm25(self._targets.texts, self._rows.texts), "BM25: rare words in common")

    def _same_source(self) -> Estimate:
        same = [[float(self._source_of[t] == self._source_of[s]) for s in self.rows] for t in self.targets]
        return Estimate(np.array(same), "1 for rows of the target's own file, else 0")

    def _losses(self) -> Estimate:
        losses = self._labelled(Loss(self.lm(), template=self.template), None)
        return self._of(losses, "loss of the row's response before training", for_all=True)

    def _lengths(self) -> Estimate:
        lengths = [float(len(one.learned_text)) for one in self._rows]
        return Estimate(self._for_all(np.array([lengths])), "letters of the row's response")

    def _random(self) -> Estimate:
        drawn = generator(self.seed, "retrain", "random").normal(size=(len(self.targets), len(self.rows)))
        return Estimate(drawn, "random numbers")

    @cached_property
    def _rows(self) -> Examples:
        return self.run.rows.examples.subset(self.rows)

    @cached_property
    def _targets(self) -> Examples:
        wanted = self.run.rows.target_examples
        return (self.run.rows.examples if wanted is None else wanted).subset(self.targets)

    def _for_all(self, values: Doubles) -> Doubles:
        """Return numbers of the rows `(1, n_rows)` for every target."""
        return np.repeat(values, len(self.targets), axis=0)

    def _student(self) -> Estimate:
        pointwise = self.run.pointwise
        values, known = self.run.block(self.run.target_ids if pointwise else self.targets, self.rows)
        about = f"the run's utilities: {100 * float(known.mean()):.0f} % of these pairs measured, the others predicted"
        exact = np.asarray(values, np.float64)
        return Estimate(self._for_all(exact) if pointwise else exact, about)

    def _teacher(self) -> Estimate:
        targets = None if self.run.pointwise else self._targets
        about = f"the full teacher, {self.run.settings.teacher}, on every one of these pairs"
        if (self.run.base / "truth").exists():
            matrix = truth_of(self.run, device=self.device, progress=self.progress)
        else:
            matrix = self._labelled(teacher_of(self.run, self.device), targets)
        return self._of(matrix, about, for_all=self.run.pointwise)

    def _labelled(self, teacher: Teacher | RowTeacher, targets: Examples | None) -> UtilityMatrix:
        """Return a teacher's utilities, kept under `folder`; targets None: it scores rows alone."""
        kept = self.folder / "estimates" / fingerprint(dict(teacher.describe()), self.rows, self.targets)
        return true_matrix(teacher, self._rows, kept, self.progress, targets=targets)

    def _of(self, matrix: UtilityMatrix, about: str, *, for_all: bool = False) -> Estimate:
        """Return the part of a matrix that is judged. for_all: it has one line, for all targets."""
        columns = {item: at for at, item in enumerate(matrix.source_ids)}
        values = np.asarray(matrix.values, np.float64)[:, [columns[item] for item in self.rows]]
        if for_all:
            return Estimate(self._for_all(values), about)
        lines = {item: at for at, item in enumerate(matrix.target_ids)}
        return Estimate(values[[lines[item] for item in self.targets]], about)

    @cached_property
    def _similar(self) -> FreeSimilarities:
        """The similarities that are free, of these targets and rows."""
        whole, rows = self.run.similarities, self.run.rows
        apart = rows.target_ids is not None and not self.run.pointwise
        across, names = (whole.targets, self.run.target_ids) if apart else (whole.sources, rows.ids)
        lines, columns = ({item: at for at, item in enumerate(ids)} for ids in (names, rows.ids))
        t, s = [lines[item] for item in self.targets], [columns[item] for item in self.rows]
        return replace(whole, targets=across[t], sources=whole.sources[s], shared=False, second=None)

    def _similarity(self, name: str) -> Estimate:
        values = self._similar.matrix(name, self.targets, self.rows).values
        return Estimate(np.asarray(values, np.float64), ABOUT[name])
