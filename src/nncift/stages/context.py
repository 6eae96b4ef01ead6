"""What every stage works with: the run directory, its settings, teacher and encoder, and an executor that has tasks done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import (
    SCORE,
    Arrays,
    Calculation,
    Executor,
    Keep,
    KeepResult,
    Task,
    TaskGroup,
    TaskResult,
    calculate,
    map_found,
)
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.distributed.local import LocalExecutor
from nncift.distributed.model_worker import ModelWorker
from nncift.labels import open_labels
from nncift.labels.store import LabelStore
from nncift.models.encoders import Encoder, create
from nncift.models.probe import Probe
from nncift.storage.run_directory import RunDir
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import language_model


@dataclass
class RunContext:
    """What every stage works with.

    keys: fingerprints of the stages so far. prepared: the teacher knows all rows. whole: all rows are measured. features: what
    the student reads, text or probe; the settings' own by default. labels_last: nothing that follows the labels is worth
    sharing out. executor: has the tasks of stages done.
    """

    directory: RunDir
    settings: RunSettings
    teacher: Teacher | RowTeacher
    encoder: Encoder | None = None
    progress: Progress = silent
    keys: dict[str, str] = field(default_factory=dict)
    prepared: bool = False
    whole: bool = False
    labels_last: bool = False
    features: str = ""
    executor: Executor = field(default_factory=LocalExecutor)

    def key(self, stage: str, *parts: Any) -> str:
        """Set and return the fingerprint of a stage."""
        self.keys[stage] = fingerprint(stage, *parts)
        return self.keys[stage]

    def __post_init__(self) -> None:
        """Take the features of the settings where no others are given."""
        self.features = self.features or self.settings.features or "text"

    def labels(self) -> LabelStore[Any]:
        """Return the run's labels as they are on disk."""
        return open_labels(self.directory.file("labels"), self.teacher)

    @property
    def worker(self) -> ModelWorker:
        """What does tasks in this process."""
        return ModelWorker(self.teacher, lambda: encoder_of(self), lambda: probe_of(self))

    def map(self, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> float:
        """Keep what other processes have finished of a group, and have the rest done; return the seconds of the others."""
        with self.progress(group.what, sum(task.size for task in tasks)) as advance:

            def kept(task: Task, result: TaskResult) -> None:
                keep(task, result)
                advance(task.size)

            return map_found(self.executor, self.worker, group, tasks, kept)

    def calculate(self, calculation: Calculation, keep: Keep) -> None:
        """Have the parts of a calculation done."""
        with self.progress(calculation.what, len(calculation.tasks)) as advance:

            def kept(place: int, arrays: Arrays) -> None:
                keep(place, arrays)
                advance(1)

            others = calculate(self.executor, calculation, kept, self.keys.get("fit", ""))
        self.directory.charge(SCORE, others)


def encoder_of(context: RunContext) -> Encoder:
    """Return the encoder at hand, or the one that the settings name."""
    settings = context.settings
    return context.encoder or create(
        settings.encoder, device=settings.device, load_lm=lambda: language_model(context.teacher)
    )


def probe_of(context: RunContext) -> Probe:
    """Return the probe of the teacher's model. Raises UsageError where the teacher has none."""
    return Probe.of(language_model(context.teacher, "--features probe"), context.settings)


def identity(pool: Examples) -> Iterator[list[str]]:
    """Yield what a stage over these rows depends on; the order of rows carries no meaning."""
    return ([row.id, row.content_hash] for row in sorted(pool, key=attrgetter("id")))
