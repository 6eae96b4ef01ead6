"""The subsets that are set against each other: each arm gives ids of the run's pool, never having looked at the test rows.

`selected` is the run's own selection. Rules of the run (quotas, rows in and out, duplicates) bind `selected`, `teacher` and
`small-teacher`, which choose as the run chooses; the others know no rules. The full teacher, a teacher of a smaller model and
RDS cost passes of a model; what they compute is kept, and resumed. RDS takes what the run has read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nncift import pipeline
from nncift.config import CODE, SelectSettings, TeacherSettings
from nncift.core.amounts import Budget, check_count
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.finetune.lexical import bm25
from nncift.models.causal_lm import CausalLM
from nncift.models.loading import fingerprint as fingerprint_of
from nncift.models.loading import locate
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import judged_objective, true_problem, truth_of
from nncift.runs.select_again import reselect
from nncift.runs.true_matrix import true_matrix
from nncift.selection import select
from nncift.selection.constraints import Constraints, ids_of
from nncift.selection.controls import longest_ids, random_ids, similarities, stratified_ids
from nncift.selection.solve import solve
from nncift.stages.request import Request
from nncift.storage.checksums import read_mark
from nncift.teachers import RowTeacher, registry
from nncift.teachers.abilities import pass_weight, row_passes, warm_up_cost
from nncift.teachers.rds import Rds


@dataclass
class Pool:
    """A run's rows as arms see them.

    lm: gives the untouched model that is trained. truth_folder: where the full teacher's values are kept, None = in the run.
    costs: by arm, what choosing cost: passes of a model, the same in forward passes (cost), seconds.
    """

    run: FinishedRun
    folder: Path
    lm: Callable[[], CausalLM]
    small_model: str | None = None
    template: str | None = None
    device: str = "auto"
    truth_folder: Path | None = None
    progress: Progress = silent
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the rows that can be chosen."""
        return self.run.rows.ids

    @property
    def rows(self) -> PoolTable:
        """The rows as a selection needs them."""
        return self.run.rows

    @cached_property
    def examples(self) -> Examples:
        """The rows as they were read."""
        return self.run.rows.examples

    @cached_property
    def content(self) -> dict[str, str]:
        """Hash of what models see of each row, by id."""
        return dict(zip(self.rows.ids, self.rows.content, strict=True))

    def spent(self, arm: str, seconds: float) -> None:
        """Add to the time that choosing an arm's rows took."""
        record = self.costs.setdefault(arm, {})
        record["choosing_seconds"] = round(record.get("choosing_seconds", 0.0) + seconds, 3)

    @cached_property
    def truth(self) -> UtilityMatrix:
        """All pairs' utilities by the run's teacher; computed once and kept, by default in the run."""
        return truth_of(self.run, self.truth_folder, device=self.device, progress=self.progress)

    @cached_property
    def rds(self) -> Rds:
        """RDS by the untouched model."""
        return Rds(self.lm(), template=self.template)

    @cached_property
    def rds_of_run(self) -> UtilityMatrix | None:
        """The utilities of RDS from what the run's teacher or probe has read, None where they do not hold them."""
        reader, wanted = self.rds.describe(), self.rows.target_ids
        across, along = tuple(sorted(wanted or self.ids)), tuple(sorted(self.ids))
        targets, sources = self.run.pooled(across, reader), self.run.pooled(along, reader)
        if targets is None or sources is None:
            return None
        return similarities(across, along, targets, sources, shared=wanted is None)


@dataclass(frozen=True)
class SubsetSize:
    """A size of subset. asked: as it was given, None = the run's own; rows: of the run's selection at it, in rank order."""

    asked: str | None
    rows: tuple[str, ...]

    @property
    def k(self) -> int:
        """Rows of every arm that chooses."""
        return len(self.rows)

    @property
    def name(self) -> str:
        """As it is written in reports."""
        return self.asked or f"{self.k} rows"


Chooser = Callable[[Pool, SubsetSize, int], Sequence[str]]


@dataclass(frozen=True)
class Arm:
    """A way to choose. drawn: anew for every seed. sized: gives as many rows as the run's selection has."""

    choose: Chooser
    about: str
    drawn: bool = False
    sized: bool = True


def selected_ids(
    run: FinishedRun, asked: str | None, folder: Path, others: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the run's selection at a budget, in rank order: its own where none is given, else it is selected again.

    folder: for what is selected again; what stands there of the same run is taken as it is. others: further settings of the
    selection that differ from the run's. Raises what `reselect` raises.
    """
    if asked is None and not others:
        return run.chosen
    given = {**({} if asked is None else {"budget": asked}), **(others or {})}
    place = folder / fingerprint(_state(run), asked, *([given] if others else []))
    if not (place / "selection.json").exists():
        # Files of a selection that was killed; its account comes last.
        shutil.rmtree(place, ignore_errors=True)
        reselect(run.path, given, place)
    return FinishedRun(place).chosen


def teacher_ids(pool: Pool, asked: str | None) -> tuple[str, ...]:
    """Return what the run's objective and rules select on the true matrix, which is kept in the run (`truth/`).

    Raises UsageError where rows that were trained on already are not at hand, and the errors of the teacher.
    """
    run, objective = pool.run, judged_objective(pool.run)
    settings = run.settings if asked is None else run.settings.model_copy(update={"budget": Budget.parse(asked)})
    settled = Constraints.read(settings).settle(pool.rows, run.vectors(pool.ids))
    problem = true_problem(run, objective, pool.truth, device=pool.device, progress=pool.progress)
    ledger = run.result.ledger
    spent = {"teacher_passes": ledger.full_teacher_passes, "cost": ledger.full_teacher_cost}
    pool.costs.setdefault("teacher", {}).update(spent)
    chosen = solve(pool.rows, settled, problem, objective=objective, seed=settings.seed, embedding_control=False)
    return chosen.subset.ids


def small_teacher_ids(pool: Pool, k: int) -> tuple[str, ...]:
    """Return what a run with the same settings and a smaller model selects; it is made under `small-teacher`, and kept.

    Raises UsageError where the run's teacher uses no model, or the smaller one is the one that is trained.
    """
    settings, small = pool.run.settings, str(pool.small_model)
    if settings.model is None:
        raise UsageError(
            f"the arm small-teacher needs a teacher with a model, and this run's {settings.teacher} has none"
        )
    if fingerprint_of(locate(small)) == pool.lm().fingerprint:
        raise UsageError(
            f"--small-model {small!r} is the model that is trained; the arm small-teacher needs a smaller one"
        )
    settings = settings.model_copy(update={"model": small, "device": pool.device})
    folder = pool.folder / "small-teacher"
    request = Request.resolve(settings, pool=pool.examples, target=pool.run.rows.target_examples, out=folder)
    made = pipeline.execute(request, folder, progress=pool.progress)
    record = {name: made.ledger[name] for name in ("teacher_passes", "full_teacher_passes", "cost", "seconds")}
    pool.costs.setdefault("small-teacher", {}).update(record)
    return selected_ids(FinishedRun(made.path), str(k), pool.folder / "selections")


def rds_ids(pool: Pool, k: int) -> tuple[str, ...]:
    """Return what RDS+ selects: rows of the target set, or of the pool, take in turn the nearest in the trained model's states.

    The test rows are never looked at. Takes one pass of the model per row, none where the run has made them, and memory
    for a matrix of all pairs.
    """
    matrix, wanted = pool.rds_of_run, pool.run.rows.target_examples
    # What the choice takes, whoever made the passes: the run's own selection pays for its probe too.
    passes, made = len(pool.ids) + len(wanted or ()), matrix is not None
    pool.costs.setdefault("rds", {}).update(teacher_passes=passes, cost=passes, by_probe=made)
    if matrix is None:
        folder = pool.folder / "rds" / fingerprint(dict(pool.rds.describe()), pool.ids)
        matrix = true_matrix(pool.rds, pool.examples, folder, pool.progress, targets=wanted)
    return select(matrix, k, "rr", pool.run.settings.seed).ids


def taught_ids(pool: Pool, name: str, k: int) -> tuple[str, ...]:
    """Return what a teacher on the model that is trained selects with its defaults, every row measured and kept.

    LESS: targets take their best rows in turn. A teacher that scores rows: the highest scores. The test rows are never looked at.
    """
    run, model = pool.run, pool.lm().name
    asked = {"teacher": name, "model": model, "template": pool.template, CODE: run.allowed.code}
    folder = pool.folder / name
    settings = TeacherSettings.model_validate(asked)
    teacher = registry.create(settings, pool.device, seed=run.settings.seed, workspace=folder / "teacher")
    wanted = None if teacher.kind == "pointwise" else run.rows.target_examples
    kept = folder / fingerprint(dict(teacher.describe()), pool.ids)
    matrix = true_matrix(teacher, pool.examples, kept, pool.progress, targets=wanted)
    passes = len(pool.ids) + len(wanted or ())
    if isinstance(teacher, RowTeacher):
        passes = row_passes(teacher) * passes + warm_up_cost(teacher).passes
    pool.costs.setdefault(name, {}).update(teacher_passes=passes, cost=pass_weight(teacher) * passes)
    return select(matrix, k, "topk" if teacher.kind == "pointwise" else "rr", run.settings.seed).ids


def bm25_ids(pool: Pool, k: int) -> tuple[str, ...]:
    """Return what BM25 selects: rows of the target set, or of the pool, take in turn the rows that share rare words with them.

    Raises ResourceError without the library bm25s.
    """
    wanted = pool.run.rows.target_examples
    across = pool.examples if wanted is None else wanted
    values = bm25(across.texts, pool.examples.texts).astype(np.float32)
    if wanted is None:
        np.fill_diagonal(values, np.nan)
    return select(UtilityMatrix(across.ids, pool.examples.ids, values), k, "rr", pool.run.settings.seed).ids


def _state(run: FinishedRun) -> list[Any]:
    """Return what the run's selections depend on: what is finished there, and how it would select."""
    marks = {stage: read_mark(run.base, stage).get("fingerprint") for stage in ("fit", "existing")}
    return [
        marks,
        run.settings.part(SelectSettings),
        run.settings.seed,
        run.rows.ids,
        list(run.rows.raw),
    ]


def _selected(pool: Pool, budget: SubsetSize, seed: int) -> Sequence[str]:
    ledger = pool.run.result.ledger
    pool.costs.setdefault("selected", {}).update(teacher_passes=ledger.teacher_passes, cost=ledger.cost)
    return budget.rows


def _similar(name: str) -> Chooser:
    """Return what chooses by a similarity that is free, under the run's objective."""
    return lambda pool, budget, seed: pool.run.similar_ids(name, budget.k)


ARMS: Mapping[str, Arm] = {
    "selected": Arm(_selected, "the run's selection"),
    "teacher": Arm(
        lambda pool, budget, seed: teacher_ids(pool, budget.asked),
        "the same objective on the full teacher's labels of all pairs",
    ),
    "small-teacher": Arm(
        lambda pool, budget, seed: small_teacher_ids(pool, budget.k),
        "a run of its own with labels of a smaller model",
    ),
    "random": Arm(
        lambda pool, budget, seed: random_ids(pool.ids, budget.k, seed),
        "drawn uniformly, anew for every seed",
        drawn=True,
    ),
    "stratified": Arm(
        lambda pool, budget, seed: stratified_ids(pool.ids, pool.rows.sources, budget.k, seed),
        "drawn in proportion by source, anew for every seed",
        drawn=True,
    ),
    "longest": Arm(
        lambda pool, budget, seed: longest_ids(pool.ids, pool.rows.length, budget.k), "the longest responses"
    ),
    "embedding": Arm(_similar("embedding"), "the same objective on cosines of embeddings alone"),
    "hidden": Arm(_similar("hidden"), "the same objective on cosines of a probe's hidden states alone"),
    "output": Arm(_similar("output"), "the same objective on cosines of a probe's output gradients alone"),
    "sum": Arm(_similar("sum"), "the same objective on the sum of all free similarities of a probe"),
    "rds": Arm(
        lambda pool, budget, seed: rds_ids(pool, budget.k),
        "RDS+: the target set's rows, or the pool's, take in turn what is nearest in the model's hidden states",
    ),
    "less": Arm(
        lambda pool, budget, seed: taught_ids(pool, "less", budget.k),
        "LESS on every row by the trained model: targets take their best rows in turn",
    ),
    "ifd": Arm(
        lambda pool, budget, seed: taught_ids(pool, "ifd", budget.k),
        "the highest instruction-following difficulty by the trained model",
    ),
    "bm25": Arm(
        lambda pool, budget, seed: bm25_ids(pool, budget.k),
        "BM25: the target set's rows, or the pool's, take in turn what shares rare words with them",
    ),
    "full": Arm(lambda pool, budget, seed: pool.ids, "every row of the pool", sized=False),
    "none": Arm(lambda pool, budget, seed: (), "no row: the model as it is", sized=False),
}
"""Name -> arm, in the order of reports."""


def arms_of(names: Sequence[str], subsets: Mapping[str, str], known: Sequence[str]) -> dict[str, Arm]:
    """Return the arms that are compared, in the order of reports, and behind them those of files of ids.

    subsets: by name of such an arm, its file, one id a line. known: ids of the rows that can be chosen. Raises DataError for
    a file that cannot be read, and for ids that are not among these.
    """
    found = {name: arm for name, arm in ARMS.items() if name in names}
    for name, file in subsets.items():
        ids, inside = ids_of(file, f"--subset {name}="), set(known)
        strange = [item for item in ids if item not in inside]
        if strange:
            raise DataError(
                f"--subset {name}={file}: {len(strange)} of {len(ids)} ids are no rows of the run's pool, the first "
                f"{strange[0]!r}"
            )
        found[name] = Arm(_listed(name, ids), f"the first ids of {Path(file).name}")
    return found


def _listed(name: str, ids: Sequence[str]) -> Chooser:
    def choose_first(pool: Pool, budget: SubsetSize, seed: int) -> Sequence[str]:
        if len(ids) < budget.k:
            raise InfeasibleError(
                f"--subset {name} has {len(ids)} ids, and every arm takes {budget.k} rows, as many as the run's selection"
            )
        return ids[: budget.k]

    return choose_first


def choose(pool: Pool, arm: Arm, budget: SubsetSize, seed: int) -> tuple[str, ...]:
    """Return the rows of an arm. Raises InfeasibleError where the pool has fewer, and what the arm's own labels raise."""
    if arm.sized:
        check_count(budget.k, len(pool.ids))
    return tuple(arm.choose(pool, budget, seed))
