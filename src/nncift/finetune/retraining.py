"""`nncift evaluate --retrain`: does the run's student, or its teacher, foresee what training does? (docs/method.md 6).

The model is trained on many random halves of some rows, each from the same start, and the loss of every target is taken after
each. An estimate of influence forecasts these losses; so do plain rivals. Rows of the pool that serve as targets are in no half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.fingerprints import fingerprint
from nncift.core.permissions import NOTHING, Permissions
from nncift.core.progress import Progress, silent
from nncift.core.seeds import derive, generator, shuffled
from nncift.errors import DataError, UsageError
from nncift.finetune.batch_schedule import BatchSchedule, Measure, schedule
from nncift.finetune.estimates import BM25, RANDOM, SOURCE, STUDENT, TEACHER, Estimates
from nncift.finetune.lds import Agreement, agreements, ceiling, mean_of
from nncift.finetune.results_store import Cell, Cells, Outcome
from nncift.finetune.retrain_settings import RetrainSettings, resolve, share_of
from nncift.finetune.retraining_results import Removal, Retraining, RetrainingCost
from nncift.finetune.test_set import LOSS
from nncift.finetune.trainer import Trainer
from nncift.finetune.tune_settings import TuneSettings
from nncift.runs.finished import FinishedRun
from nncift.storage.atomic import write_json, write_text

FOLDER = "retrain"
LEAST_ROWS = 20
FASTER = 5
"""One epoch on few rows moves a model little at tune's learning rate; see docs/retraining.md."""

AGAINST = (TEACHER, RANDOM, "embedding", BM25, SOURCE)


@dataclass(frozen=True)
class Work:
    """One training: where its outcome is kept, its rows, its seed."""

    cell: Cell
    ids: tuple[str, ...]
    seed: int


def retrain(
    path: str | Path,
    given: Mapping[str, Any],
    *,
    full_teacher: bool = False,
    progress: Progress = silent,
    allowed: Permissions = NOTHING,
) -> Retraining:
    """Train on halves of a run's rows, judge its estimates, write `retrain/retraining.json`, `.md` and `.svg`, and return it.

    given: settings (`RetrainSettings`). full_teacher: judge the full teacher too, which labels every pair of these rows. What was
    trained before is taken as it is. allowed: what may be done with the models that the run names.
    Raises the errors of `nncift.errors`.
    """
    from nncift.finetune.retrain_report import figure, page

    experiment = Experiment(FinishedRun(path, allowed), resolve(given), full_teacher, progress)
    found = experiment.result()
    write_text(experiment.folder / "retraining.md", page(found))
    write_text(experiment.folder / "retraining.svg", figure(found))
    write_json(experiment.folder / "retraining.json", found.to_json())
    return found


def cost_of(
    path: str | Path, given: Mapping[str, Any], *, full_teacher: bool = False, allowed: Permissions = NOTHING
) -> RetrainingCost:
    """Return what `retrain` with the same arguments would take; nothing is trained or written."""
    return Experiment(FinishedRun(path, allowed), resolve(given), full_teacher, silent).cost()


class Experiment:
    """The trainings of one run, done where they are missing.

    shared: a folder in which runs over the same rows share their trainings and estimates; None = in the run.
    """

    def __init__(
        self,
        run: FinishedRun,
        settings: RetrainSettings,
        full_teacher: bool,
        progress: Progress,
        *,
        shared: Path | None = None,
    ) -> None:
        self.run, self.settings, self._progress = run, settings, progress
        self.folder = run.path / FOLDER
        self._shared = shared
        self.notes: list[str] = []
        self._outcomes: list[Outcome] = []
        self._with_teacher = full_teacher or (run.base / "truth").exists()

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Ids of the rows whose loss is watched."""
        own = self.run.rows.target_ids if not self.run.pointwise else None
        if own is not None:
            return tuple(sorted(shuffled(own, self.settings.seed, "retrain", "targets")[: self.settings.targets]))
        wanted, n = self.settings.targets, len(self.run.rows.ids)
        if n < wanted + LEAST_ROWS:
            raise DataError(
                f"the pool has {n} rows; {wanted} targets, which no half may hold, and {LEAST_ROWS} rows to train on need "
                f"{wanted + LEAST_ROWS}; give fewer --targets or a larger pool"
            )
        return self._evenly(self.run.rows.ids, wanted, "targets")

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Ids of the rows that halves are drawn from, those that the model can be trained on."""
        aside = set(self.targets)
        usable = self._trainer.training_sets.rows
        free = [item for item in self.run.rows.ids if item not in aside and item in usable]
        if len(free) < LEAST_ROWS:
            raise DataError(f"{len(free)} rows of the pool can be trained on; a retraining needs {LEAST_ROWS} and more")
        most = self.settings.rows
        if not most or most >= len(free):
            return tuple(sorted(free))
        if most < LEAST_ROWS:
            raise UsageError(f"--rows {most} was given; a retraining needs {LEAST_ROWS} and more, or 0 for all")
        return self._evenly(free, most, "rows")

    def _evenly(self, ids: Sequence[str], count: int, purpose: str) -> tuple[str, ...]:
        """Return a seeded sample, as many of every source as there are, sorted."""
        source_of = dict(zip(self.run.rows.ids, self.run.rows.sources, strict=True))
        queues: dict[str, list[str]] = {}
        for item in shuffled(ids, self.settings.seed, "retrain", purpose):
            queues.setdefault(source_of[item], []).append(item)
        found: list[str] = []
        while len(found) < count:
            for name in sorted(queues):
                if queues[name] and len(found) < count:
                    found.append(queues[name].pop(0))
        return tuple(sorted(found))

    @cached_property
    def _trainer(self) -> Trainer:
        given, run = self.settings, self.run
        examples = run.rows.target_examples if not run.pointwise else None
        tests = (run.rows.examples if examples is None else examples).subset(self.targets)
        own = {
            name: getattr(given, name)
            for name in ("model", "method", "epochs", "batch", "rank", "device", "learning_rate")
            if getattr(given, name) is not None
        }
        # Dropout would make a loss depend more on chance and less on the rows, and it costs a third more.
        settings = TuneSettings.model_validate({**own, "dropout": 0.0, "metrics": (LOSS,)})
        found = Trainer(run, settings, run.rows.examples, tests, faster=FASTER)
        found.check_tests()
        return found

    @cached_property
    def halves(self) -> tuple[tuple[str, ...], ...]:
        """The random halves of the rows, sorted ids each."""
        size, found = len(self.rows) // 2, []
        for number in range(self.settings.halves):
            drawn = generator(self.settings.seed, "retrain", "half", str(number)).permutation(len(self.rows))[:size]
            found.append(tuple(self.rows[place] for place in np.sort(drawn)))
        return tuple(found)

    @property
    def members(self) -> Doubles:
        """Return which rows are in which half, `(n_halves, n_rows)`."""
        inside = [set(half) for half in self.halves]
        return np.array([[float(item in half) for item in self.rows] for half in inside])

    @cached_property
    def _estimates(self) -> Estimates:
        trainer = self._trainer
        return Estimates(
            self.run,
            self.targets,
            self.rows,
            lambda: trainer.lm,
            trainer.template,
            self._shared or self.folder,
            self._with_teacher,
            self.settings.device,
            self.settings.seed,
            self._progress,
            self.notes,
        )

    def cost(self) -> RetrainingCost:
        """Return what all trainings take: three forward passes a row read, and one a target."""
        trainer = self._trainer
        works = [*self._half_works(), *self._random_works()]
        judged = sum(name != RANDOM for name in self._estimates.names)
        removals = len(self.settings.remove) * (self.settings.draws + judged)
        plans = [self._schedule(work) for work in works]
        full = [
            self._schedule(Work(Cell("without", 0, "", 0), self.rows[: len(self.rows) - self._removed(share)], 0))
            for share in self.settings.remove
        ]
        plans += [plan for plan in full for _ in range(judged)]
        begun = (self._cells_folder / "cells").is_dir()
        stands = sum(self._cells.load(work.cell, self._key(work)) is not None for work in works) if begun else 0
        read = sum(plan.rows_read for plan in plans)
        return RetrainingCost(
            len(self.rows),
            len(self.halves[0]),
            len(self.targets),
            len(plans),
            stands,
            removals,
            sum(plan.tokens for plan in plans),
            3 * read + len(plans) * len(trainer.evaluation_set.tests),
        )

    def result(self) -> Retraining:
        """Train where it is missing, and return what the trainings say."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Before anything is trained: the estimates read the untouched model, and what cannot be had is refused early.
        estimates, trainer = self._estimates.all(), self._trainer
        untouched = fingerprint("untouched", trainer.identity())
        before = self._losses(Cell("untouched", None, "none", None), untouched, lambda: trainer.shown(()))
        works = list(self._half_works())
        outcomes = self._trained(works, "training on halves")
        by_repeat = np.array(
            [
                [outcomes[Cell("half", len(half), str(number), repeat)] for number, half in enumerate(self.halves)]
                for repeat in range(self.settings.repeats)
            ]
        )
        losses = by_repeat.mean(0)
        values = {name: one.values for name, one in estimates.items()}
        found = agreements(values, self.members, losses, against=AGAINST, seed=self.settings.seed)
        removals = tuple(self._removals(values))
        spent = sum(sum(one.cost.values()) for one in self._outcomes)
        return Retraining(
            run=str(self.run.path),
            model=trainer.lm.name,
            rows=len(self.rows),
            half=len(self.halves[0]),
            targets=len(self.targets),
            halves=len(self.halves),
            repeats=self.settings.repeats,
            trainings=len(self._outcomes) - 1,
            recipe={**trainer.recipe.describe(), "epochs": trainer.recipe.epochs},
            estimates={name: one.about for name, one in estimates.items()},
            lds=found,
            kept=_kept_share(found),
            ceiling=ceiling(by_repeat),
            removals=removals,
            loss={"untrained": float(np.nanmean(before)), "trained": float(np.nanmean(losses))},
            seconds=round(spent, 3),
            notes=(*self.notes, *trainer.notes),
        )

    def _half_works(self) -> Iterator[Work]:
        for repeat in range(self.settings.repeats):
            for number, half in enumerate(self.halves):
                seed = derive(self.settings.seed, "retrain", "training", str(number), str(repeat)) % 2**31
                yield Work(Cell("half", len(half), str(number), repeat), half, seed)

    def _removed(self, share: str) -> int:
        return max(1, round(share_of(share) * len(self.rows)))

    def _random_works(self) -> Iterator[Work]:
        """Yield trainings without random rows; draw and training share a number."""
        for share in self.settings.remove:
            count = self._removed(share)
            for draw in range(self.settings.draws):
                out = set(shuffled(self.rows, self.settings.seed, "retrain", "removal", str(draw))[:count])
                yield self._without(out, f"random{draw}", draw)

    def _without(self, out: set[str], name: str, draw: int) -> Work:
        rest = tuple(item for item in self.rows if item not in out)
        return Work(
            Cell("without", len(out), name, draw),
            rest,
            derive(self.settings.seed, "retrain", "without", str(draw)) % 2**31,
        )

    def _removals(self, values: Mapping[str, Doubles]) -> Iterator[Removal]:
        """Yield what removing every estimate's top rows does: trained as the first random removal is."""
        for share in self.settings.remove:
            count = self._removed(share)
            random = [work for work in self._random_works() if work.cell.budget == count]
            usual = np.array(list(self._trained(random, "training without random rows").values())).mean(0)
            tops = {}
            for name, table in values.items():
                if name != RANDOM:
                    mean = np.nan_to_num(np.nanmean(table, axis=0), nan=-np.inf)
                    # Highest first; rows are in the order of their ids, which settles ties.
                    order = np.argsort(-mean, kind="stable")
                    tops[name] = self._without({self.rows[place] for place in order[:count]}, name.replace(" ", "_"), 0)
            outcomes = self._trained(list(tops.values()), "training without top rows")
            for name, work in tops.items():
                increase = mean_of(outcomes[work.cell] - usual, self.settings.seed)
                yield Removal(share, count, name, increase)

    @property
    def _cells_folder(self) -> Path:
        return self.folder if self._shared is None else self._shared / fingerprint("retrain", self.targets, self.rows)

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self._cells_folder, self.targets)

    @cached_property
    def _content(self) -> dict[str, str]:
        return dict(zip(self.run.rows.ids, self.run.rows.content, strict=True))

    def _schedule(self, work: Work) -> BatchSchedule:
        recipe, lengths = self._trainer.recipe, self._trainer.training_sets.lengths(work.ids)
        measure = Measure.of("steps", list(lengths.values()), recipe.batch, recipe.epochs, None)
        return schedule(lengths, measure, recipe.batch, work.seed)

    def _key(self, work: Work) -> str:
        plan = self._schedule(work)
        read = [[[item, self._content[item]] for item in update] for update in plan.updates]
        trainer = self._trainer
        return fingerprint(
            "retraining", trainer.identity(), trainer.context, trainer.recipe.describe(), read, work.seed
        )

    def _trained(self, works: Sequence[Work], about: str) -> dict[Cell, Doubles]:
        """Return the targets' losses after each training, `(n_targets,)`."""
        found = {}
        with self._progress(about, len(works)) as advance:
            for work in works:
                compute = partial(self._trainer.trained, self._schedule(work), work.seed)
                found[work.cell] = self._losses(work.cell, self._key(work), compute)
                advance(1)
        return found

    def _losses(self, cell: Cell, key: str, compute: Callable[[], Outcome]) -> Doubles:
        """Return a cell's losses as they are stored, or train, judge and store them."""
        found = self._cells.kept(cell, key, compute)
        self._outcomes.append(found)
        return found.scores.values[LOSS]


def _kept_share(found: Mapping[str, Agreement]) -> float | None:
    """Return the student's score as a share of its teacher's, where that is above 0."""
    if TEACHER not in found:
        return None
    own, teacher = found[STUDENT].lds.mean, found[TEACHER].lds.mean
    return own / teacher if own is not None and teacher is not None and teacher > 0 else None
