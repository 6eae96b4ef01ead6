"""What a tune would cost, before anything is trained: `nncift tune --dry-run`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nncift.core.permissions import NOTHING, Permissions
from nncift.core.progress import Progress, silent
from nncift.core.result_types import Record
from nncift.errors import DataError
from nncift.finetune.arms import SubsetSize
from nncift.finetune.batch_schedule import BatchSchedule
from nncift.finetune.experiment import CellWork, TuneExperiment
from nncift.finetune.test_set import CHOICE
from nncift.finetune.trainer import Trainer
from nncift.finetune.tune_settings import resolve
from nncift.generation.generate import generate, writing_steps
from nncift.generation.likelihood import response_losses
from nncift.generation.prompts import Prompts
from nncift.models.causal_lm import Row
from nncift.runs.finished import FinishedRun
from nncift.stages.estimate import NOTHING as FREE
from nncift.stages.estimate import Cost
from nncift.stages.holdout import has_holdout
from nncift.stages.timing import Pace, Share, Timed, Trials

DEAR = ("teacher", "small-teacher", "rds", "less", "ifd")
"""Arms whose rows only passes of a model tell."""
TRAINING, JUDGING = Share(600, 3.5), Share(250, 1.0)
NEW_TOKENS = 4
"""Tokens of the answers that are timed."""
AT_ONCE = 4
"""Answers that are timed together."""


@dataclass(frozen=True)
class TuneEstimate(Record):
    """What is left of a tune, and what it would cost. done: judgings that stand already; timed: the trials behind the seconds."""

    run: str
    test_rows: int
    method: str
    trainings: int
    judgings: int
    done: int
    steps: int
    train: Cost
    judge: Cost
    answers: Cost
    total: Cost
    timed: Timed
    notes: tuple[str, ...]


class _Planned(TuneExperiment):
    """A tune whose rows are chosen without a pass of a model: dear arms have rows as long as those of the run's selection."""

    @cached_property
    def dear(self) -> tuple[str, ...]:
        """Arms of this tune whose rows only passes of a model tell; not RDS where the run's probe has made them."""
        dear = [arm for arm in self.settings.arms if arm in DEAR]
        return tuple(arm for arm in dear if arm != "rds" or self._pool.rds_of_run is None)

    def rows_of(self, arm: str, budget: SubsetSize, seed: int) -> tuple[str, ...]:
        """Return the rows of an arm, the run's selection in the place of a dear one's."""
        return budget.rows if arm in self.dear else super().rows_of(arm, budget, seed)


def estimate_tune(
    path: str | Path,
    given: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress = silent,
    *,
    allowed: Permissions = NOTHING,
) -> TuneEstimate:
    """Return passes, tokens and seconds of all trainings and of all judging that are not done yet; nothing is kept.

    Tokens of training are counted from the schedules; answers are priced at their longest. given, out, allowed: as for `tune`.
    Raises what `tune` raises before it trains.
    """
    run = FinishedRun(path, allowed)
    settings = resolve(given, holdout=has_holdout(run.base))
    place = run.path / "tune" if out is None else out
    with TemporaryDirectory() as aside:
        for part in ("cells", "costs"):
            if (place / part).is_dir():
                shutil.copytree(place / part, Path(aside) / part)
        with progress("loading the model and choosing rows", 0):
            experiment = _Planned(run, settings, Path(aside), progress)
            every = list(experiment.work().values())
            todo = [work for work in every if not experiment.is_kept(work)]
        return _priced(experiment, every, todo, progress)


def _priced(
    experiment: _Planned, every: Sequence[CellWork], todo: Sequence[CellWork], progress: Progress
) -> TuneEstimate:
    trainer, trials = experiment.trainer, Trials()
    plans = [experiment.training_of(work, work.measure)[0] for work in todo if work.measure is not None]
    with progress("timing a step of training", 0):
        train = _training(trainer, plans, trials)
    with progress("timing the judges", 0):
        judge, answers = _judging(trainer, len(todo), trials)
    notes = list(trainer.notes)
    if experiment.dear:
        notes.append(
            f"Choosing the rows of {', '.join(experiment.dear)} takes passes of a model, which are not in this; their rows are "
            "taken to be as long as the run's selection."
        )
    if any(work.cell.how == "context" for work in todo):
        notes.append("Examples in front of test rows are not counted.")
    if {"choice", "judge", "embedding"} & set(experiment.settings.metrics):
        notes.append("The metrics choice, judge and embedding are not priced.")
    return TuneEstimate(
        run=str(experiment.run.path),
        test_rows=len(trainer.evaluation_set.tests),
        method=trainer.recipe.method,
        trainings=len(plans),
        judgings=len(todo),
        done=len(every) - len(todo),
        steps=sum(plan.steps for plan in plans),
        train=train,
        judge=judge,
        answers=answers,
        total=train + judge + answers,
        timed=trials.timed(trainer.lm.device.type),
        notes=tuple(notes),
    )


def _training(trainer: Trainer, plans: Sequence[BatchSchedule], trials: Trials) -> Cost:
    """Return the cost of all trainings; one step is made, and undone."""
    if not plans:
        return FREE
    sets, batch = trainer.training_sets, trainer.recipe.batch
    ids = sorted({item for plan in plans for update in plan.updates for item in update})
    sizes = [float(len(sets.rows[item])) for item in ids]

    def train(places: list[int]) -> None:
        drawn = tuple(ids[place] for place in places)
        updates = tuple(drawn[at : at + batch] for at in range(0, len(drawn), batch))
        tokens = sum(len(sets.rows[item]) for item in drawn)
        with trainer.tuner.trained(sets.rows, BatchSchedule(updates, len(drawn), tokens), 0):
            pass

    pace, tokens = trials.pace(sizes, train, TRAINING), sum(plan.tokens for plan in plans)
    return Cost(sum(plan.rows_read for plan in plans), float(tokens), *pace.of(tokens))


def _judging(trainer: Trainer, times: int, trials: Trials) -> tuple[Cost, Cost]:
    """Return the cost of the losses of all test rows so many times, and of answers, each as long as it may be."""
    judged, lm = trainer.evaluation_set, trainer.lm
    rows = _readable(trainer)
    if not times or not rows:
        return FREE, FREE
    ids, sizes = list(rows), [float(len(row)) for row in rows.values()]

    def read(places: list[int]) -> None:
        response_losses(lm, judged.tests.subset([ids[place] for place in places]), trainer.wording)

    pace = trials.pace(sizes, read, JUDGING)
    losses = Cost(times * len(rows), times * sum(sizes), *(times * each for each in pace.of(sum(sizes))))
    if not set(judged.metrics) - {CHOICE}:
        return losses, FREE
    lengths = [len(row.prompt) for row in rows.values()]
    step = _writing(trainer, rows, pace, trials)
    steps = writing_steps(lm, trainer.wording, lengths, judged.max_new_tokens)
    read_, written = pace.of(sum(lengths)), step.of(steps)
    seconds, processor = (times * (one + two) for one, two in zip(read_, written, strict=True))
    tokens = sum(lengths) + sum(min(judged.max_new_tokens, lm.context - length) for length in lengths)
    return losses, Cost(times * len(rows), float(times * tokens), seconds, processor)


def _writing(trainer: Trainer, rows: Mapping[str, Row], pace: Pace, trials: Trials) -> Pace:
    """Return the seconds of a step in which several answers grow by a token."""
    shortest = sorted(rows, key=lambda item: (len(rows[item].prompt), item))[:AT_ONCE]
    tests = trainer.evaluation_set.tests.subset(shortest)

    def write() -> None:
        generate(trainer.lm, tests, trainer.wording, max_new_tokens=NEW_TOKENS)

    found = trials.once(NEW_TOKENS, write)
    read = pace.of(sum(len(rows[item].prompt) for item in shortest) / NEW_TOKENS)
    return Pace(max(0.0, found.processor - read[1]), max(0.0, found.clock - read[0]))


def _readable(trainer: Trainer) -> dict[str, Row]:
    """Return the test rows that the model can read, by id."""
    prompts, found = Prompts(trainer.lm, trainer.wording), dict[str, Row]()
    for test in trainer.evaluation_set.tests:
        with suppress(DataError):
            found[test.id] = prompts.row(test)
    return found
