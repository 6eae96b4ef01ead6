"""`nncift tune`, whether the selected subset trains as well. Every arm is trained alike and judged by rows that none has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nncift.answers.in_context import examples_in_front
from nncift.answers.prompts import InFrontOf
from nncift.doctor import examine
from nncift.encode import EmbeddingCache, Encoder, Floats, create
from nncift.errors import UsageError
from nncift.files import fingerprint, write_json, write_text
from nncift.finished import FinishedRun
from nncift.lm import CausalLM
from nncift.loading import ModelSource
from nncift.progress import Progress, silent
from nncift.tuning.arms import ARMS, Budget, choose
from nncift.tuning.cells import Cell, Cells, Outcome
from nncift.tuning.courses import Measure, course
from nncift.tuning.exam import Exam
from nncift.tuning.held_out import held_out
from nncift.tuning.labelled import refuse_objective, selected_ids
from nncift.tuning.pool import Pool
from nncift.tuning.results import UNTRAINED, Group, tell
from nncift.tuning.settings import TuneSettings, resolve
from nncift.tuning.training import Lessons, Pupil, Recipe, defaults, method_of
from nncift.wording import Wording

ENDS = 10
"""Steps at the start and at the end of training over which its loss is told."""


def tune(
    path: str | Path, given: Mapping[str, Any], out: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Train and judge every arm of a finished run, write `tune.json` and `tune.md`, and return what is in the former.

    given: settings (`TuneSettings`), `test` among them. out: a folder, by default `tune` in the run; cells that are finished
    there are taken as they are. Raises the errors of `nncift.errors`.
    """
    from nncift.tuning.page import page

    run, settings = FinishedRun(path), resolve(given)
    if "teacher" in settings.arms:
        refuse_objective(run)
    proof = Proof(run, settings, run.path / "tune" if out is None else out, progress)
    told = proof.told()
    write_json(proof.folder / "tune.json", told)
    write_text(proof.folder / "tune.md", page(told))
    return told


@dataclass(frozen=True)
class Work:
    """One cell that is wanted, the rows that it serves, and how much it trains (None: it does not)."""

    cell: Cell
    ids: tuple[str, ...]
    measure: Measure | None


class Proof:
    """All cells of one tune, computed where they are missing."""

    def __init__(self, run: FinishedRun, settings: TuneSettings, folder: Path, progress: Progress) -> None:
        self.run, self.settings, self.folder, self._progress = run, settings, folder, progress
        tests = held_out(run, settings)
        self._tests, self._notes = tests.rows, [*tests.notes]
        folder.mkdir(parents=True, exist_ok=True)
        self._cells = Cells(folder, self._tests.ids)
        self._pool = Pool(run, folder, lambda: self.lm, settings.small_model, self._template, settings.device, progress)

    def told(self) -> dict[str, Any]:
        """Compute what is missing and return everything that is reported."""
        exam, budgets = self.exam, self._budgets()
        chosen = {budget: self._chosen(budget) for budget in budgets}
        wanted = [work for seed in self._seeds for budget in budgets for work in self._of(budget, chosen[budget], seed)]
        wanted = list({work.cell: work for work in wanted}.values())
        outcomes = {}
        with self._progress("tuning and judging", len(wanted)) as advance:
            for work in wanted:
                outcomes[work.cell] = self._outcome(work)
                advance(1)
        groups = [
            Group(how, budget.name, budget.k, self._by_arm(how, budget, outcomes))
            for budget in budgets
            for how in self.settings.hows
        ]
        return {
            "run": str(self.run.path),
            "test_rows": len(self._tests),
            "model": {
                "name": self.lm.name, "fingerprint": self.lm.fingerprint, "parameters": self.lm.model.num_parameters(),
                "trained_parameters": self.pupil.parameters, "context": self._context,
            },
            "recipe": {**self.recipe.describe(), "epochs": self.recipe.epochs, "steps": self.recipe.steps},
            "seeds": self.settings.seeds,
            "in_context": self.settings.in_context,
            "metrics": {
                name: {"unit": unit, "higher_is_better": higher} for name, (unit, higher) in exam.units.items()
            },
            "arms": {name: ARMS[name].about for name in ARMS if name in self.settings.arms},
            "choosing": {budget.name: _overlaps(budget, arms) for budget, arms in chosen.items()},
            "costs": self._pool.costs,
            "results": [tell(group, exam.units, self.settings.seed) for group in groups],
            "seconds": round(sum(sum(outcome.cost.values()) for outcome in outcomes.values()), 3),
            "machine": _machine(self.lm),
            "notes": [*self._notes, *self._about_rows()],
        }  # fmt: skip

    @cached_property
    def lm(self) -> CausalLM:
        """The model that is tuned, untouched outside a cell."""
        settings, of_run = self.settings, self.run.settings
        name = settings.model or of_run.model
        if name is None:
            raise UsageError(
                f"this run's teacher {of_run.teacher} has no language model; name the one to train with --model"
            )
        # Weights that train whole in half precision lose every small step.
        dtype = "float32" if settings.method == "whole" and settings.dtype == "auto" else settings.dtype
        four = "4bit" if settings.method == "qlora" else None
        return CausalLM.load(
            ModelSource(name, four), device=settings.device, dtype=dtype,
            trust_remote_code=of_run.trust_remote_code,
        )  # fmt: skip

    @cached_property
    def recipe(self) -> Recipe:
        """How subsets are trained on."""
        given, size = self.settings, self.lm.model.num_parameters()
        method = method_of(given.method, size)
        own = {name: getattr(given, name) for name in ("learning_rate", "batch", "epochs")}
        values = {**defaults(method, size), **{name: value for name, value in own.items() if value is not None}}
        return Recipe(method, steps=given.steps, rank=given.rank, alpha=given.alpha, dropout=given.dropout, **values)

    @cached_property
    def pupil(self) -> Pupil:
        """The model with what trains in it."""
        return Pupil(self.lm, self.recipe)

    @cached_property
    def wording(self) -> Wording:
        """How rows read to the model, in training and in the test."""
        return Wording(self.lm.tokenizer, self._template)

    @cached_property
    def exam(self) -> Exam:
        """How models are judged."""
        given = self.settings
        encoder = self._encoder if "embedding" in given.metrics else None
        return Exam(
            self._tests, self.wording, given.metrics, encoder=encoder, judge=given.judge,
            max_new_tokens=given.max_new_tokens,
        )  # fmt: skip

    @cached_property
    def lessons(self) -> Lessons:
        """The pool's rows as the model reads them in training."""
        return Lessons.of(self._pool.examples, self.wording, self._context)

    @property
    def _template(self) -> str | None:
        return self.settings.template or self.run.settings.template

    @cached_property
    def _context(self) -> int:
        own = self.settings.context or (self.run.settings.context if self.settings.model is None else None)
        if own is not None and own > self.lm.context:
            raise UsageError(f"--context {own} was given; this model reads {self.lm.context} tokens")
        return own or self.lm.context

    @cached_property
    def _encoder(self) -> Encoder:
        of_run = self.run.settings

        def fresh() -> CausalLM:
            # Not the model that is tuned: what it makes of texts changes while it trains.
            return CausalLM.load(
                str(of_run.model), device=self.settings.device, trust_remote_code=of_run.trust_remote_code
            )

        return create(of_run.encoder, device=self.settings.device, load_lm=fresh)

    @property
    def _seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def _budgets(self) -> list[Budget]:
        wishes: list[str | None] = [*self.settings.budget] or [None]
        return [Budget(wish, selected_ids(self.run, wish, self.folder / "selections")) for wish in wishes]

    def _chosen(self, budget: Budget) -> dict[str, dict[int, tuple[str, ...]]]:
        """Return the rows of every arm by seed; arms that are not drawn choose once."""
        found: dict[str, dict[int, tuple[str, ...]]] = {}
        for name in ARMS:
            if name in self.settings.arms:
                began = time.perf_counter()
                first = choose(self._pool, name, budget, self.settings.seed)
                found[name] = {
                    seed: choose(self._pool, name, budget, seed) if ARMS[name].drawn else first for seed in self._seeds
                }
                self._pool.spent(name, time.perf_counter() - began)
        return found

    def _of(self, budget: Budget, chosen: Mapping[str, Mapping[int, tuple[str, ...]]], seed: int) -> Iterator[Work]:
        """Yield the cells of a budget under a seed."""
        for how in self.settings.hows:
            measure = None if how == "context" else self._measure(how, budget)
            for arm, ids in chosen.items():
                yield Work(self._cell(how, budget, arm, seed), ids[seed], None if arm == UNTRAINED else measure)

    def _cell(self, how: str, budget: Budget, arm: str, seed: int) -> Cell:
        if arm == UNTRAINED:
            return Cell("untouched", None, arm, None)
        once = how == "context" and not ARMS[arm].drawn
        return Cell(how, budget.k, arm, None if once else seed)

    def _measure(self, how: str, budget: Budget) -> Measure:
        lengths = self.lessons.lengths(budget.rows)
        if not lengths:
            raise UsageError(f"the model cannot read a single one of the {budget.k} selected rows in training")
        return Measure.of(how, list(lengths.values()), self.recipe.batch, self.recipe.epochs, self.recipe.steps)

    def _outcome(self, work: Work) -> Outcome:
        """Return a cell as it is stored, or compute and store it."""
        identity = [
            self.lm.fingerprint,
            str(next(self.lm.model.parameters()).dtype),
            self.exam.describe(),
            self._context,
        ]
        content = self._pool.content
        if work.measure is None:
            shown = sorted([item, content[item]] for item in work.ids)
            key = fingerprint("context", identity, self.settings.in_context, self.run.settings.encoder, shown)
            return self._kept(work.cell, key, lambda: self._shown(work))
        lengths = self.lessons.lengths(work.ids)
        planned = course(lengths, work.measure, self.recipe.batch, int(work.cell.seed or 0))
        read = [[[item, content[item]] for item in update] for update in planned.updates]
        key = fingerprint("training", identity, self.recipe.describe(), read, work.cell.seed)

        def taught() -> Outcome:
            began = time.perf_counter()
            with self.pupil.taught(self.lessons.rows, planned, int(work.cell.seed or 0)) as losses:
                middle = time.perf_counter()
                marks = self.exam.sit(self.lm)
            facts = {
                **planned.to_json(), "unusable": len(work.ids) - len(lengths),
                "training_loss": [float(np.mean(losses[:ENDS])), float(np.mean(losses[-ENDS:]))],
            }  # fmt: skip
            return Outcome(marks, facts, _cost(training=middle - began, judging=time.perf_counter() - middle))

        return self._kept(work.cell, key, taught)

    def _kept(self, cell: Cell, key: str, compute: Callable[[], Outcome]) -> Outcome:
        found = self._cells.load(cell, key)
        if found is None:
            found = compute()
            self._cells.store(cell, key, found)
        return found

    def _shown(self, work: Work) -> Outcome:
        """Judge the untouched model, with the nearest of the cell's rows in front of each test row where there are any."""
        began = time.perf_counter()
        marks = self.exam.sit(self.lm, self._in_front(work.ids))
        return Outcome(marks, {"rows": len(work.ids)}, _cost(judging=time.perf_counter() - began))

    def _in_front(self, ids: tuple[str, ...]) -> InFrontOf | None:
        if not ids or self.settings.in_context is None:
            return None
        return examples_in_front(
            self._pool.examples.subset(ids), self._tests, self._vectors_of, self.settings.in_context, self.lm, self.wording,
            max_new_tokens=self.settings.max_new_tokens,
        )  # fmt: skip

    def _vectors_of(self, texts: Sequence[str]) -> Floats:
        return EmbeddingCache(self._encoder).embed(texts).vectors

    def _by_arm(self, how: str, budget: Budget, outcomes: Mapping[Cell, Outcome]) -> dict[str, list[Outcome]]:
        found = {}
        for arm in self.settings.arms:
            cells = dict.fromkeys(self._cell(how, budget, arm, seed) for seed in self._seeds)
            found[arm] = [outcomes[cell] for cell in cells]
        return found

    def _about_rows(self) -> list[str]:
        """Return notes on rows that cannot be trained on, or not whole, and on rules that not every arm follows."""
        notes = []
        unusable, shortened = self.lessons.unusable, self.lessons.shortened
        if unusable:
            names = ", ".join(list(unusable)[:5])
            notes.append(
                f"{len(unusable)} rows of the pool cannot be trained on ({names}); the first: {next(iter(unusable.values()))}."
            )
        if shortened:
            notes.append(f"{len(shortened)} rows of the pool are too long, and lose the beginning of their prompts.")
        of_run = self.run.settings
        rules = [flag for flag in ("quota", "include", "exclude", "dedup") if getattr(of_run, flag)]
        if rules:
            notes.append(
                f"The run's selection keeps rules ({', '.join(rules)}) that random, stratified, longest, embedding, rds and full "
                "do not know."
            )
        if self.settings.seeds == 1:
            notes.append("One seed: the intervals say nothing about another training run.")
        return notes


def _overlaps(budget: Budget, chosen: Mapping[str, Mapping[int, tuple[str, ...]]]) -> dict[str, Any]:
    """Return how many rows every arm has, and the share of the run's selection that is among them (mean over seeds)."""
    own = set(budget.rows)
    return {
        arm: {
            "rows": len(next(iter(by_seed.values()))),
            "share_of_selected": float(np.mean([len(own & set(ids)) / len(own) for ids in by_seed.values()])),
        }
        for arm, by_seed in chosen.items()
    }


def _cost(**seconds: float) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def _machine(lm: CausalLM) -> dict[str, Any]:
    told = examine()
    return {
        **{name: told[name] for name in ("python", "platform", "cores", "devices", "packages")},
        "device": str(lm.device), "threads": 1 if lm._small else told["torch_threads"],
    }  # fmt: skip
