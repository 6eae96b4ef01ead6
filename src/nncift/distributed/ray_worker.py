"""A worker of a cluster: one process that holds the models and does the tasks that it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import CALCULATE, Task, TaskGroup, TaskResult, arithmetic, timed
from nncift.data.examples import Examples
from nncift.distributed.model_worker import ModelWorker
from nncift.models.encoders import Encoder, create
from nncift.models.probe import Probe
from nncift.teachers import RowTeacher, Teacher, registry
from nncift.teachers.abilities import language_model


@dataclass(frozen=True)
class Order:
    """Pieces that a worker does in one go, with the rows that its teacher must know for them."""

    group: TaskGroup
    tasks: tuple[Task, ...]
    rows: Examples


class Worker:
    """Does tasks with a teacher, an encoder and a probe of its own, each loaded on first use.

    workspace: the run's folder of the teacher. folder: where relative paths are meant from, where this machine has it.
    """

    def __init__(self, settings: RunSettings, workspace: Path, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        self._settings, self._workspace = settings, workspace
        self._known: set[str] = set()

    def process(self) -> int:
        """Return the number of the process: it is there."""
        return os.getpid()

    def do(self, order: Order, shared: Any = None) -> tuple[str, list[TaskResult]]:
        """Do tasks; return their results and what they were made with. Raises what the teacher, the encoder or the probe raise.

        shared: what the parts of a calculation share.
        """
        group = order.group
        if group.calculation is not None:
            group = replace(group, calculation=replace(group.calculation, shared=shared))
        # A calculation loads no model.
        worker = self._worker if group.calculation is None else None
        unknown = [row.id for row in order.rows if row.id not in self._known]
        if worker is not None and unknown:
            worker.know(order.rows.subset(unknown))
            self._known.update(unknown)
        # What this process has loaded decides the result, whatever was ordered.
        key = fingerprint(self.described(group.method))
        return key, [timed(worker, group, task) for task in order.tasks]

    def described(self, method: str) -> Mapping[str, Any]:
        """Return what decides the results of a method."""
        if method == CALCULATE:
            return arithmetic()
        if method == "embed":
            return dict(self._encoder.describe())
        return dict(self._probe.describe()) if method == "ask" else dict(self._teacher.describe())

    @cached_property
    def _teacher(self) -> Teacher | RowTeacher:
        settings = self._settings
        return registry.create(
            settings, settings.device, seed=settings.seed, encoder=settings.encoder, workspace=self._workspace
        )

    @cached_property
    def _encoder(self) -> Encoder:
        settings = self._settings
        return create(settings.encoder, device=settings.device, load_lm=lambda: language_model(self._teacher))

    @cached_property
    def _probe(self) -> Probe:
        return Probe.of(language_model(self._teacher, "--features probe"), self._settings)

    @cached_property
    def _worker(self) -> ModelWorker:
        return ModelWorker(self._teacher, lambda: self._encoder, lambda: self._probe)


def orders(group: TaskGroup, tasks: Sequence[Task], workers: int) -> list[Order]:
    """Cut tasks into orders: many more than workers, so that none waits long for the last, and not too small to pay."""
    total = sum(task.size for task in tasks)
    most = max(1, min(MOST_STEPS, total // (ORDERS_PER_WORKER * workers)))
    groups: list[list[Task]] = []
    held = most
    for task in tasks:
        if held >= most:
            groups.append([])
            held = 0
        groups[-1].append(task)
        held += task.size
    # All rows of the run, and what all parts of a calculation share, are not for every order.
    alone = replace(
        group,
        rows=None,
        every=None,
        calculation=group.calculation and replace(group.calculation, shared=None, tasks=()),
    )
    return [Order(alone, tuple(some), _rows(group, some)) for some in groups]


def _rows(group: TaskGroup, tasks: Sequence[Task]) -> Examples:
    wanted = {item for task in tasks for item in task.ids}
    return group.rows.subset(sorted(wanted)) if group.rows is not None and wanted else Examples(())


ORDERS_PER_WORKER = 24
MOST_STEPS = 2048
"""Pairs, or rows, of an order at most."""
