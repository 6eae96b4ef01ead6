"""The rows that judge, kept apart from all that the run has seen, and what a model makes of them: a value per row and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import Turns
from nncift.core.arrays import Doubles
from nncift.core.texts import nearest
from nncift.data import Examples, read
from nncift.data.proportion import sampled
from nncift.errors import DataError, UsageError
from nncift.finetune.tune_settings import TuneSettings
from nncift.generation.answer_metrics import METRICS, Metric, metric
from nncift.generation.choices import Question, choose
from nncift.generation.generate import Answer, generate
from nncift.generation.judge import Judge
from nncift.generation.likelihood import response_losses
from nncift.generation.prompts import InFrontOf
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import Encoder
from nncift.models.prompt_format import PromptFormat
from nncift.runs.finished import FinishedRun
from nncift.stages.holdout import read_holdout

LOSS, CHOICE = "loss", "choice"


@dataclass(frozen=True)
class Scores:
    """What one model reached. values: by metric, a number per item, NaN where it failed. tokens: of each test row's response.

    answers: what it wrote to the test rows, None where nothing, and none at all where no metric reads answers. failures: by
    metric, the reason of the first that failed.
    """

    values: Mapping[str, Doubles]
    tokens: npt.NDArray[np.int64]
    answers: Sequence[str | None] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


class EvaluationSet:
    """Test rows and the metrics that every model is judged by.

    questions: multiple-choice questions for the metric choice, whose items are these and not the test rows. judge: options of
    the metric judge (`judge_of`). encoder: for the metric embedding.
    """

    def __init__(
        self,
        tests: Examples,
        wording: PromptFormat,
        metrics: Sequence[str],
        *,
        questions: Sequence[Question] = (),
        encoder: Encoder | None = None,
        judge: Mapping[str, Any] | None = None,
        max_new_tokens: int = 150,
    ) -> None:
        unknown = [name for name in metrics if name not in (LOSS, *METRICS)]
        if unknown:
            raise UsageError(f"there is no metric {unknown[0]!r}{nearest(unknown[0], [LOSS, *METRICS])}")
        if (CHOICE in metrics) != bool(questions):
            raise UsageError("the metric choice and --questions FILE belong together: give both, or neither")
        options: dict[str, dict[str, Encoder | Judge | None]] = {"embedding": {"encoder": encoder}}
        if "judge" in metrics:
            options["judge"] = {"judge": judge_of(judge or {})}
        self.tests, self.wording, self.max_new_tokens = tests, wording, max_new_tokens
        # Under names of their own, since they stand in front of the model like test rows.
        self.questions = tuple(replace(one, id=f"question {one.id}") for one in questions)
        self._names, self.loss = tuple(metrics), LOSS in metrics
        self.metrics: dict[str, Metric] = {
            name: metric(name, **options.get(name, {})) for name in metrics if name != LOSS
        }
        self._judge = dict(judge or {})

    @property
    def items(self) -> Examples:
        """All that can have examples in front: test rows and questions."""
        return Examples((*self.tests, *(one.example() for one in self.questions)))

    @property
    def units(self) -> dict[str, tuple[str, bool]]:
        """Unit of every metric, and whether higher is better."""
        return {
            name: ("nats per token", False)
            if name == LOSS
            else (self.metrics[name].unit, self.metrics[name].higher_is_better)
            for name in self._names
        }

    def describe(self) -> list[Any]:
        """Return what decides the values beside the model, for fingerprints."""
        rows = [[row.id, row.content_hash] for row in self.tests]
        asked = [[one.id, one.question, one.options, one.answer] for one in self.questions]
        return [rows, asked, self.wording.describe(), sorted(self.units), self.max_new_tokens, self._judge]

    def evaluate(self, lm: CausalLM, before: InFrontOf | None = None) -> Scores:
        """Judge a model as it is now. before: by id of an item, examples in front."""
        values: dict[str, Doubles] = {}
        failures: dict[str, str] = {}
        losses = response_losses(lm, self.tests, self.wording, before)
        if self.loss:
            values[LOSS] = losses.loss
            if losses.failures:
                failures[LOSS] = next(iter(losses.failures.values()))
        written: list[Answer] = []
        for name, one in self.metrics.items():
            if name == CHOICE:
                answers = choose(lm, self.questions, self.wording, before=before)
            else:
                answers = written = written or generate(
                    lm, self.tests, self.wording, max_new_tokens=self.max_new_tokens, before=before
                )
            values[name] = one.values(answers)
            if not np.isfinite(values[name]).all():
                why = [answer.failure for answer in answers if answer.failure]
                own = list(getattr(one, "failures", {}).values())
                failures[name] = next(iter([*why, *own]), "the metric gave no number")
        return Scores(values, losses.tokens, [one.text for one in written], failures)

    def nothing(self, why: str) -> Scores:
        """Return the scores of a model that cannot be judged."""
        sizes = {name: len(self.questions) if name == CHOICE else len(self.tests) for name in self.units}
        values = {name: np.full(size, np.nan) for name, size in sizes.items()}
        return Scores(values, np.zeros(len(self.tests), np.int64), (), dict.fromkeys(values, why))


def judge_of(options: Mapping[str, Any]) -> Judge:
    """Return the judge of `--judge NAME=VALUE`: one behind an address where `base_url` is among them, else a local model.

    Raises UsageError for options that make neither.
    """
    from nncift.generation.endpoint import EndpointJudge
    from nncift.generation.judge import ModelJudge

    if "model" not in options:
        raise UsageError(
            "the metric judge needs --judge model=FOLDER, or --judge base_url=http://... and --judge model=NAME"
        )
    kind: Any = EndpointJudge if "base_url" in options else ModelJudge
    try:
        made: Judge = kind(**options)
    except TypeError as error:
        raise UsageError(f"a judge cannot be made of {sorted(options)}: {error}") from error
    return made


@dataclass(frozen=True)
class HeldOut:
    """The test rows, and sentences about what was found in them."""

    rows: Examples
    notes: tuple[str, ...]


def held_out(run: FinishedRun, settings: TuneSettings) -> HeldOut:
    """Return the test rows that the run has not seen: of the test files, or without any those that the run has set aside.

    A sample is drawn of what is left after rows were dropped. Raises DataError for rows that the pool or the target set has too,
    unless they are to be dropped, and where none is left.
    """
    read_rows, notes = _test_rows(run, settings), list[str]()
    limit = settings.limit_test
    read_rows = read_rows if settings.drop_seen else sampled(read_rows, limit, settings.seed)
    notes += read_rows.notes
    if read_rows.rejected:
        notes.append(f"{len(read_rows.rejected)} test rows cannot be used; the first: {read_rows.rejected[0].reason}.")
    seen = {*run.rows.content, *(run.rows.targets.content if run.rows.targets else ())}
    fresh = [row for row in read_rows if row.content_hash not in seen]
    known = len(read_rows) - len(fresh)
    if known and not settings.drop_seen:
        first = next(row for row in read_rows if row.content_hash in seen)
        raise DataError(
            f"{known} of {len(read_rows)} test rows are in the run's pool or target set too, the first {first.id!r}: what was "
            "trained on judges nothing. Give rows that the run has not seen, or leave these out with --drop-seen"
        )
    if known:
        notes.append(
            f"{known} of {len(read_rows)} test rows are in the run's pool or target set too, and were left out."
        )
    if not fresh:
        raise DataError("no test row is left: the run has seen all of them")
    if settings.drop_seen:
        fresh = list(sampled(Examples(tuple(fresh)), limit, settings.seed))
    if limit is not None and len(fresh) < limit:
        notes.append(f"--limit-test {limit} was given, and there are {len(fresh)} test rows.")
    prompts = {row.messages for row in run.rows.examples}
    if asked := sum(row.messages in prompts for row in fresh):
        notes.append(f"{asked} of {len(fresh)} test rows ask what a row of the pool asks, with another response.")
    return HeldOut(Examples(tuple(fresh)), tuple(notes))


def by_turns(run: FinishedRun, turns: Turns | None, rows: Examples) -> Examples:
    """Return rows of a run, or rows that judge it, with the responses to learn from that are asked for; None: as it scored them.

    Raises UsageError where all are asked for of a run that checked its rows for the last alone.
    """
    scored = run.settings.turns
    if turns is None or turns == scored:
        return rows
    if turns == "all":
        raise UsageError(
            "--turns all was given, and the run scored and checked the last response of each row alone; make a run with "
            "--turns all, or leave it out"
        )
    return Examples(tuple(row.with_last_alone() for row in rows), rows.rejected, rows.notes)


def _test_rows(run: FinishedRun, settings: TuneSettings) -> Examples:
    if settings.test:
        # Of rows that are to be dropped first, nothing is known before they are read.
        limit = None if settings.drop_seen else settings.limit_test
        return read(
            *settings.test,
            format=settings.format,
            map=settings.map,
            limit=limit,
            seed=settings.seed,
            turns=run.settings.turns,
        )
    rows = read_holdout(run.base, run.layout)
    return Examples(rows.items, notes=(f"The test rows are those of the run's --holdout {run.settings.holdout}.",))
