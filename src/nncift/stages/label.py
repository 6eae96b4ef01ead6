"""The stage that plans labels and has the teacher give them, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from nncift.config import EncoderSettings, TeacherSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import Incomplete, KeepResult, Task, TaskGroup
from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.labels import LabelBudget, LabelPlan, PairLabelStore, RowPlan
from nncift.labels.store import Axes
from nncift.labels.vectors import Vectors
from nncift.stages.active import next_round
from nncift.stages.check import prepare_all
from nncift.stages.context import RunContext, identity
from nncift.storage.atomic import write_sealed
from nncift.storage.run_directory import TEACHER as TEACHER
from nncift.teachers import RowTeacher


@dataclass
class _LabelExecutor:
    """Labels by the executor of a run. rows: on both axes. others: seconds of other processes whose labels were taken."""

    context: RunContext
    rows: Examples
    others: float = 0.0

    def name(self, kind: str, source: str | None, ids: Sequence[str]) -> str:
        return fingerprint(kind, source, [[item, self.rows.by_id(item).content_hash] for item in ids])

    def know(self, ids: Sequence[str]) -> None:
        self.context.worker.know(self.rows.subset(ids))

    def map(
        self, method: str, what: str, tasks: Sequence[Task], keep: KeepResult, every: Callable[[], Iterable[str]]
    ) -> None:
        key, last = fingerprint(dict(self.context.teacher.describe())), self.context.labels_last
        group = TaskGroup("label", method, key, what, self.rows, every, last=last)
        self.others += self.context.map(group, tasks, keep)


def plan_labels(context: RunContext, axes: Axes, budget: LabelBudget) -> LabelPlan | RowPlan | None:
    """Return the plan of this budget, grown from the run's, None where it is labelled; nothing is written.

    Raises UsageError where the budget is below what exists, or where the teacher at hand is not the one that labelled
    before; DataError where too few rows are usable.
    """
    settings = context.settings
    # What an active plan asks next depends on what its student reads.
    reads = [settings.part(EncoderSettings), context.features] if budget.kind == "active" else []
    key = context.key(
        "label",
        identity(axes.rows),
        asdict(budget),
        settings.part(TeacherSettings),
        settings.seed,
        *reads,
    )
    labelling = context.labels()
    if context.directory.is_done("label", key, (TEACHER,)):
        if not labelling.planned()[1]:
            raise DataError("the labels of this run are gone; use another --out")
        if labelling.whole():
            return None
        # What is damaged is labelled again, and only that.
        context.directory.forget("label")
    grown: LabelPlan | RowPlan = labelling.grown(axes, budget, settings.seed)
    if isinstance(context.teacher, RowTeacher) and not context.prepared:
        # What it draws from the pool, such as the rows of a warm-up, is part of what it is.
        prepare_all(context.teacher, axes.sources, axes.targets, context.progress)
    _check_same_teacher(context)
    return grown


def label(
    context: RunContext, axes: Axes, plan: LabelPlan | RowPlan | None, budget: LabelBudget, vectors: Vectors | None
) -> dict[str, LabelledPairs]:
    """Label what is still pending of the plan (of `plan_labels`), chunk by chunk, and return the utilities by split.

    An active plan grows round by round, from the labels that are there and the vectors; vectors: None in a shard that waits for
    those of others. Raises Incomplete where other shards must do what is left.
    """
    labelling, rows = context.labels(), axes.rows
    with context.directory.stage("label", context.keys["label"], (TEACHER,)) as stage:
        before = None
        while not stage.done and plan is not None:
            write_sealed(context.directory.file(TEACHER), dict(context.teacher.describe()))
            label_executor = _LabelExecutor(context, rows)
            spent = labelling.compute(plan, label_executor)
            before = spent.seconds_before if before is None else before
            # What a killed session had labelled is known from its chunks alone; this session's time is added on leaving.
            stage.cost.seconds = max(stage.cost.seconds, before) + label_executor.others
            stage.cost.model_tokens, stage.cost.model_passes = spent.tokens, spent.passes
            plan = None
            if budget.kind == "active" and isinstance(labelling, PairLabelStore) and labelling.plan is not None:
                if vectors is None:
                    raise Incomplete("embed")
                known, seed = labelling.utilities(), context.settings.seed
                plan = next_round(labelling.plan, known, vectors, budget, seed, relative=labelling.relative)
    return labelling.utilities()


def finished_groups(context: RunContext) -> list[tuple[str, str]]:
    """Return stage and key of the groups whose results the run has, by what its files say that they were made with."""
    about = {
        "embed": context.directory.read_json("embeddings.json")["encoder"],
        "label": context.directory.read_json(TEACHER, sealed=True),
    }
    if context.features == "probe":
        about["probe"] = context.directory.read_json("probe.json")["probe"]
    return [(stage, fingerprint(described)) for stage, described in about.items()]


def _check_same_teacher(context: RunContext) -> None:
    before = context.directory.read_json(TEACHER, sealed=True)
    if before is None:
        return
    described = dict(context.teacher.describe())
    if before != described:
        changed = ", ".join(sorted(name for name in {*before, *described} if before.get(name) != described.get(name)))
        raise UsageError(
            f"the labels of this run were made by another teacher: {changed} differ (are the model's files the same?). "
            "Use another --out"
        )
