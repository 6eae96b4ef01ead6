"""`nncift tune`, whether the selected subset trains as well. Every arm is trained alike and judged by rows that none has seen."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.fingerprints import fingerprint
from nncift.core.permissions import NOTHING, Permissions
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject
from nncift.core.texts import some
from nncift.errors import UsageError
from nncift.evaluation.run_verdict import leave_word, selection_key
from nncift.finetune.arms import Arm, Pool, SubsetSize, arms_of, choose, selected_ids
from nncift.finetune.batch_schedule import BatchSchedule, Measure, schedule
from nncift.finetune.comparison import UNTRAINED, Group, GroupSummary, summarise, with_costs
from nncift.finetune.learning_rates import RatedGroup, best
from nncift.finetune.results_store import Cell, Cells, Outcome
from nncift.finetune.test_set import by_turns, held_out
from nncift.finetune.trainer import Trainer
from nncift.finetune.tune_settings import TuneSettings, resolve
from nncift.models.causal_lm import CausalLM
from nncift.models.environment import examine
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import check_existing, judged_objective
from nncift.runs.renew_verdict import renew
from nncift.stages.holdout import has_holdout
from nncift.storage.atomic import write_json, write_text
from nncift.storage.outputs import check_replaces_nothing, inputs_of

LEFT = ("tune.json", "tune.md", "tune.html")
"""What a tune writes for people, beside its cells."""

Chosen = Mapping[str, Mapping[int, tuple[str, ...]]]
"""The rows of every arm by seed."""


def tune(
    path: str | Path,
    given: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress = silent,
    *,
    truth: Path | None = None,
    allowed: Permissions = NOTHING,
) -> JsonObject:
    """Train and judge every arm of a finished run, write `tune.json`, `tune.md` and `tune.html`, and return what is in the first.

    given: settings (`TuneSettings`); without `test`, rows judge that the run has set aside. out: a folder, by default `tune` in
    the run; cells finished there are taken as they are. truth: where the full teacher's values are kept, by default in the run.
    allowed: what may be done with the models that the run names. Raises the errors of `nncift.errors`.
    """
    from nncift.finetune.tune_report import html, page

    run = FinishedRun(path, allowed)
    settings = resolve(given, holdout=has_holdout(run.base))
    experiment = TuneExperiment(run, settings, run.path / "tune" if out is None else out, progress, truth=truth)
    record = experiment.record()
    write_json(experiment.folder / "tune.json", record)
    write_text(experiment.folder / "tune.md", page(record))
    report = os.path.relpath(run.path / "report.html", experiment.folder)
    write_text(experiment.folder / "tune.html", html(record, Path(report).as_posix()))
    leave_word(run.path, experiment.folder)
    renew(run.path, record)
    return record


@dataclass(frozen=True)
class CellWork:
    """One cell that is wanted, the rows that it serves, and how much it trains (None: it does not)."""

    cell: Cell
    ids: tuple[str, ...]
    measure: Measure | None


class TuneExperiment:
    """All cells of one tune, computed where they are missing.

    arms: in the order of reports. units: of every metric, and whether higher is better.
    """

    def __init__(
        self,
        run: FinishedRun,
        settings: TuneSettings,
        folder: Path,
        progress: Progress = silent,
        *,
        truth: Path | None = None,
    ) -> None:
        self.run, self.settings, self.folder, self._progress = run, settings, folder, progress
        if "teacher" in settings.arms:
            check_existing(run, judged_objective(run))
        own = [*settings.test, *([settings.questions] if settings.questions else []), *settings.subset.values()]
        inputs = [*own, *inputs_of(run.settings)]
        for name in LEFT:
            check_replaces_nothing(folder / name, inputs)
        self.arms: Mapping[str, Arm] = arms_of(settings.arms, settings.subset, run.rows.ids)
        tests = held_out(run, settings)
        pool, judges = (by_turns(run, settings.turns, rows) for rows in (run.rows.examples, tests.rows))
        # What rows are known by says which turns the run scored; where others are learned from, outcomes are others too.
        self._turns = [] if settings.turns in (None, run.settings.turns) else [settings.turns]
        self._trainer = Trainer(run, settings, pool, judges)
        self._trainer.notes.extend(tests.notes)
        folder.mkdir(parents=True, exist_ok=True)
        self._cells = Cells(folder, tests.rows.ids)
        self._pool = Pool(
            run,
            folder,
            lambda: self._trainer.lm,
            small_model=settings.small_model,
            template=self._trainer.template,
            device=settings.device,
            truth_folder=truth,
            progress=progress,
        )
        # Now, so that what cannot be judged is refused before anything is chosen.
        self.units = self._trainer.evaluation_set.units
        self._trainer.check_tests()

    @cached_property
    def _chosen(self) -> dict[SubsetSize, Chosen]:
        sizes = self.settings.budget or (None,)
        budgets = [SubsetSize(asked, selected_ids(self.run, asked, self.folder / "selections")) for asked in sizes]
        return {budget: self._choose(budget) for budget in budgets}

    def work(self) -> dict[Cell, CellWork]:
        """Return what all cells take; rows are chosen for it."""
        wanted = (
            work
            for seed in self._seeds
            for budget, arms in self._chosen.items()
            for work in self._of(budget, arms, seed)
        )
        return {work.cell: work for work in wanted}

    @cached_property
    def rated(self) -> list[RatedGroup]:
        """What is set side by side, budget by budget, at every learning rate; missing cells are computed."""
        outcomes = self._outcomes(self.work())
        return [
            RatedGroup(how, budget.name, budget.k, self._by_arm(how, budget, outcomes))
            for budget in self._chosen
            for how in self.settings.hows
        ]

    def best(self, group: RatedGroup) -> Group:
        """Return a group with every arm at its better learning rate, over the rows that judge."""
        trainer = self._trainer
        return best(group, trainer.evaluation_set.tests.ids, trainer.validation, self.units)

    def record(self) -> JsonObject:
        """Compute what is missing and return everything that is reported."""
        trainer, groups = self._trainer, self.rated
        spent = {
            id(one): sum(one.cost.values())
            for group in groups
            for rates in group.outcomes.values()
            for found in rates.values()
            for one in found
        }
        return {
            "run": str(self.run.path),
            "selection": selection_key(list(self.run.chosen)),
            "test_rows": len(trainer.evaluation_set.tests) - len(trainer.validation),
            "validation_rows": len(trainer.validation),
            "model": {
                "name": trainer.lm.name,
                "fingerprint": trainer.lm.fingerprint,
                "context": trainer.context,
                "parameters": trainer.parameters,
                "trained_parameters": trainer.tuner.parameters,
            },
            "recipe": {
                **trainer.recipe.describe(),
                "learning_rates": list(trainer.rates),
                "epochs": trainer.recipe.epochs,
                "steps": trainer.recipe.steps,
            },
            "seeds": self.settings.seeds,
            "seed": self.settings.seed,
            "in_context": self.settings.in_context,
            "metrics": {
                name: {"unit": unit, "higher_is_better": higher} for name, (unit, higher) in self.units.items()
            },
            "arms": {name: arm.about for name, arm in self.arms.items()},
            "choosing": {
                budget.name: _overlaps(budget, arms, trainer.training_sets.unusable)
                for budget, arms in self._chosen.items()
            },
            "costs": self._pool.costs,
            "results": [self._summary(self.best(group)).to_json() for group in groups],
            "seconds": round(sum(spent.values()), 3),
            "machine": _machine(trainer.lm),
            "notes": [*trainer.notes, *self._about_rows()],
        }

    def _summary(self, group: Group) -> GroupSummary:
        found = summarise(group, self.units, self.settings.seed)
        return with_costs(found, self._pool.costs, len(self._pool.ids))

    @property
    def _seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def _choose(self, budget: SubsetSize) -> Chosen:
        """Return the rows of every arm by seed; arms that are not drawn choose once."""
        found = {}
        for name, arm in self.arms.items():
            began = time.perf_counter()
            first = self.rows_of(name, budget, self.settings.seed)
            found[name] = {seed: self.rows_of(name, budget, seed) if arm.drawn else first for seed in self._seeds}
            self._pool.spent(name, time.perf_counter() - began)
        return found

    def rows_of(self, arm: str, budget: SubsetSize, seed: int) -> tuple[str, ...]:
        """Return the rows of an arm under a seed."""
        return choose(self._pool, self.arms[arm], budget, seed)

    def _of(self, budget: SubsetSize, chosen: Chosen, seed: int) -> Iterator[CellWork]:
        """Yield the cells of a budget under a seed."""
        for how in self.settings.hows:
            measure = None if how == "context" else self._measure(how, budget)
            for arm, ids in chosen.items():
                for rate in self._rates(how, arm):
                    yield CellWork(
                        self._cell(how, budget, arm, seed, rate), ids[seed], None if arm == UNTRAINED else measure
                    )

    def _rates(self, how: str, arm: str) -> tuple[float | None, ...]:
        """Return the learning rates that an arm is trained at; None: the only one, or nothing trains."""
        rates = self._trainer.rates
        return (None,) if arm == UNTRAINED or how == "context" or len(rates) == 1 else rates

    def _cell(self, how: str, budget: SubsetSize, arm: str, seed: int, rate: float | None) -> Cell:
        """Return where an outcome is kept: the untouched model has one, and what is shown without a draw needs no seed."""
        if arm == UNTRAINED:
            return Cell("untouched", None, arm, None)
        once = how == "context" and not self.arms[arm].drawn
        return Cell(how, budget.k, arm, None if once else seed, rate)

    def _measure(self, how: str, budget: SubsetSize) -> Measure:
        lengths, recipe = self._trainer.training_sets.lengths(budget.rows), self._trainer.recipe
        if not lengths:
            raise UsageError(f"the model cannot read a single one of the {budget.k} selected rows in training")
        return Measure.of(how, list(lengths.values()), recipe.batch, recipe.epochs, recipe.steps)

    def _outcomes(self, wanted: Mapping[Cell, CellWork]) -> dict[Cell, Outcome]:
        found = {}
        with self._progress("tuning and judging", len(wanted)) as advance:
            for cell, work in wanted.items():
                found[cell] = self._shown(work) if work.measure is None else self._trained(work, work.measure)
                advance(1)
        return found

    def _trained(self, work: CellWork, measure: Measure) -> Outcome:
        seed, (planned, key) = int(work.cell.seed or 0), self.training_of(work, measure)
        return self._cells.kept(work.cell, key, lambda: self._trainer.trained(planned, seed, work.cell.rate))

    def _shown(self, work: CellWork) -> Outcome:
        return self._cells.kept(work.cell, self._shown_key(work), lambda: self._trainer.shown(work.ids))

    def training_of(self, work: CellWork, measure: Measure) -> tuple[BatchSchedule, str]:
        """Return what a cell reads in training, and the fingerprint of that."""
        trainer, content, seed = self._trainer, self._pool.content, int(work.cell.seed or 0)
        planned = schedule(trainer.training_sets.lengths(work.ids), measure, trainer.recipe.batch, seed)
        read = [[[item, content[item]] for item in update] for update in planned.updates]
        recipe = replace(trainer.recipe, learning_rate=work.cell.rate or trainer.recipe.learning_rate)
        return planned, fingerprint(
            "training", trainer.identity(), trainer.context, recipe.describe(), read, seed, *self._turns
        )

    def _shown_key(self, work: CellWork) -> str:
        content = self._pool.content
        rows = sorted([item, content[item]] for item in work.ids)
        return fingerprint(
            "showing", self._trainer.identity(), self.settings.in_context if rows else None, rows, *self._turns
        )

    def is_kept(self, work: CellWork) -> bool:
        """Tell whether a cell was computed before."""
        key = self._shown_key(work) if work.measure is None else self.training_of(work, work.measure)[1]
        return self._cells.load(work.cell, key) is not None

    @property
    def trainer(self) -> Trainer:
        """What trains and judges."""
        return self._trainer

    def _by_arm(
        self, how: str, budget: SubsetSize, outcomes: Mapping[Cell, Outcome]
    ) -> dict[str, dict[float | None, list[Outcome]]]:
        return {
            arm: {
                rate: [
                    outcomes[cell]
                    for cell in dict.fromkeys(self._cell(how, budget, arm, seed, rate) for seed in self._seeds)
                ]
                for rate in self._rates(how, arm)
            }
            for arm in self.arms
        }

    def _about_rows(self) -> list[str]:
        """Return notes on rows that cannot be trained on, or not whole, and on rules that not every arm follows."""
        notes = []
        unusable, shortened = self._trainer.training_sets.unusable, self._trainer.training_sets.shortened
        if unusable:
            why = next(iter(unusable.values()))
            notes.append(
                f"{len(unusable)} rows of the pool cannot be trained on ({some(list(unusable))}); the first: {why}."
            )
        if shortened:
            notes.append(f"{len(shortened)} rows of the pool are too long, and lose the beginning of their prompts.")
        notes += [*self._trainer.training_sets.notes, *self._trainer.test_notes]
        rules = [flag for flag in ("quota", "include", "exclude", "dedup") if getattr(self.run.settings, flag)]
        if rules:
            notes.append(
                f"The run's selection keeps rules ({', '.join(rules)}) that random, stratified, longest, embedding, rds and full "
                "do not know."
            )
        if self.settings.seeds == 1:
            notes.append("One seed: the intervals say nothing about another training run.")
        return notes


def _overlaps(budget: SubsetSize, chosen: Chosen, unusable: Collection[str]) -> JsonObject:
    """Return every arm's rows, those that cannot be trained on, and the share of the run's selection among them.

    Of an arm that is drawn for every seed, the most of the second and the mean of the third.
    """
    own = set(budget.rows)
    return {
        arm: {
            "rows": len(next(iter(by_seed.values()))),
            "unusable": max(sum(item in unusable for item in ids) for ids in by_seed.values()),
            "share_of_selected": float(np.mean([len(own & set(ids)) / len(own) for ids in by_seed.values()])),
        }
        for arm, by_seed in chosen.items()
    }


def _machine(lm: CausalLM) -> JsonObject:
    found = examine()
    return {
        "python": found.python,
        "platform": found.platform,
        "cores": found.cores,
        "devices": list(found.devices),
        "packages": dict(found.packages),
        "device": str(lm.device),
        "threads": found.torch_threads if lm.threads is None else lm.threads,
    }
