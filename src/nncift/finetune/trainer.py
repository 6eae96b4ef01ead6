"""Trains on rows, or shows them, and judges: one model, one recipe, one prompt format and one test set for every arm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.finetune.batch_schedule import BatchSchedule
from nncift.finetune.learning_rates import validation_ids
from nncift.finetune.results_store import Outcome
from nncift.finetune.test_set import EvaluationSet
from nncift.finetune.training import SECOND, DivergedError, FineTuner, Recipe, TrainingSets, defaults, method_of
from nncift.finetune.tune_settings import TuneSettings
from nncift.generation.choices import Question, read_questions
from nncift.generation.few_shot import InFront, examples_in_front
from nncift.generation.prompts import Prompts, reason
from nncift.models.causal_lm import CausalLM
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import Encoder, create
from nncift.models.loading import ModelSource
from nncift.models.prompt_format import PromptFormat, Remarks
from nncift.runs.finished import FinishedRun

ENDS = 10
"""Steps at the start and at the end of training over which its loss is reported."""


class Trainer:
    """What a tune has only once. What is not given is the run's; everything is loaded when it is first asked for.

    faster: what a learning rate of LoRA that was not given is multiplied by.
    """

    def __init__(
        self, run: FinishedRun, settings: TuneSettings, pool: Examples, tests: Examples, *, faster: float = 1.0
    ) -> None:
        self._run, self._settings, self._pool, self._tests = run.settings, settings, pool, tests
        self._allowed, self._check_models, self._check_same = run.allowed, run.check_models, run.check_same
        self._faster = faster
        self.notes: list[str] = []

    @cached_property
    def lm(self) -> CausalLM:
        """The model, untouched unless it is being judged after training."""
        given = self._settings
        name = given.model or self._run.model
        if name is None:
            raise UsageError(
                f"this run's teacher {self._run.teacher} has no language model; name the one to train with --model"
            )
        if given.model is None:
            self._check_models(encoder=False)
        # Weights that train whole in half precision lose every small step.
        dtype = "float32" if given.method == "whole" and given.dtype == "auto" else given.dtype
        four = "4bit" if given.method == "qlora" else None
        found = CausalLM.load(
            ModelSource(name, four), device=given.device, dtype=dtype, trust_remote_code=self._allowed.code
        )
        if given.model is None:
            self._check_same({"model": found.fingerprint})
        return found

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model as it was loaded."""
        return int(self.lm.model.num_parameters())

    @cached_property
    def recipe(self) -> Recipe:
        """How subsets are trained on."""
        given = self._settings
        method = method_of(given.method, self.parameters)
        usual = defaults(method, self.parameters)
        return Recipe(
            method,
            self._rates[0],
            usual.batch if given.batch is None else given.batch,
            usual.epochs if given.epochs is None else given.epochs,
            steps=given.steps,
            rank=given.rank,
            alpha=given.alpha,
            dropout=given.dropout,
        )

    @cached_property
    def _rates(self) -> tuple[float, ...]:
        """The learning rates that are given, or two by method and size."""
        method = method_of(self._settings.method, self.parameters)
        first = defaults(method, self.parameters).learning_rate * (1.0 if method == "whole" else self._faster)
        return self._settings.learning_rate or (first, SECOND[method] * first)

    @cached_property
    def validation(self) -> frozenset[str]:
        """Ids of the test rows that choose among learning rates; none where there is one rate."""
        if len(self._rates) < 2:
            return frozenset()
        return validation_ids(self._tests.ids, self._settings.validation_rows)

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that every arm is trained at: the first alone where too few test rows could tell them apart.

        Raises UsageError where several were asked for that nothing can tell apart.
        """
        if len(self._rates) < 2 or self.validation:
            return self._rates
        if self._settings.learning_rate:
            raise UsageError(
                f"{len(self._rates)} learning rates were given, and {len(self._tests)} test rows are too few to set some aside "
                "that choose among them; give one rate, more test rows, or --validation-rows"
            )
        self.notes.append(
            f"{len(self._tests)} test rows are too few to choose among learning rates: all trains at {self._rates[0]:g}."
        )
        return self._rates[:1]

    @cached_property
    def tuner(self) -> FineTuner:
        """The model with what trains in it."""
        return FineTuner(self.lm, self.recipe)

    @property
    def template(self) -> str | None:
        """The template of the wording, as it was given."""
        return self._settings.template or self._run.template

    @cached_property
    def wording(self) -> PromptFormat:
        """How rows read to the model, in training and in the test."""
        return PromptFormat(self.lm.tokenizer, self.template)

    @cached_property
    def context(self) -> int:
        """Most tokens of a row in training."""
        own = self._settings.context or (self._run.context if self._settings.model is None else None)
        if own is not None and own > self.lm.context:
            raise UsageError(f"--context {own} was given; this model reads {self.lm.context} tokens")
        return own or self.lm.context

    @cached_property
    def training_sets(self) -> TrainingSets:
        """The pool's rows as the model reads them in training."""
        return TrainingSets.of(self._pool, self.wording, self.context)

    @cached_property
    def evaluation_set(self) -> EvaluationSet:
        """How models are judged."""
        given = self._settings
        questions: Sequence[Question] = ()
        if given.questions is not None:
            questions, rejected = read_questions(given.questions)
            if rejected:
                self.notes.append(
                    f"{len(rejected)} rows of {given.questions} are no multiple-choice questions; the first: "
                    f"{rejected[0].reason}."
                )
        return EvaluationSet(
            self._tests,
            self.wording,
            given.metrics,
            questions=questions,
            encoder=self._encoder if "embedding" in given.metrics else None,
            judge=given.judge,
            max_new_tokens=given.max_new_tokens,
        )

    def check_tests(self) -> None:
        """Note how many test rows the model cannot read, as trained and judged. Raises DataError where it can read none."""
        prompts, reasons = Prompts(self.lm, self.wording), dict[str, str]()
        for test in self._tests:
            try:
                prompts.row(test)
            except DataError as error:
                reasons[test.id] = reason(error)
        if not reasons:
            return
        first = next(iter(reasons.values()))
        if len(reasons) == len(self._tests):
            raise DataError(
                f"the model {self.lm.name!r} cannot read a single one of the {len(self._tests)} test rows, and nothing can be "
                f"judged; the first: {first}"
            )
        self.notes.append(
            f"{len(reasons)} of {len(self._tests)} test rows cannot be read by this model; the first: {first}."
        )

    @cached_property
    def test_notes(self) -> tuple[str, ...]:
        """Notes on the test rows that can be worded."""
        remarks = Remarks()
        for test in self._tests:
            # What cannot be worded has no value in the test, and its reason is kept there.
            with suppress(DataError):
                remarks.add(test, self.wording.tokens(test))
        return remarks.notes("test rows")

    def identity(self) -> list[Any]:
        """Return what decides an outcome beside the rows and the training, for fingerprints."""
        dtype = str(next(self.lm.model.parameters()).dtype)
        return [
            self.lm.fingerprint,
            dtype,
            self._settings.method == "qlora",
            self.evaluation_set.describe(),
            self._run.encoder,
        ]

    def trained(self, schedule: BatchSchedule, seed: int, learning_rate: float | None = None) -> Outcome:
        """Train by a schedule, judge, and leave the model as it was.

        learning_rate: None = the only one. At one of several a training that diverges has no values, and is not chosen.
        """
        began = time.perf_counter()
        try:
            return self._judged(schedule, seed, learning_rate, began)
        except DivergedError as error:
            if learning_rate is None:
                raise
            cost = {"training": round(time.perf_counter() - began, 3), "judging": 0.0}
            return Outcome(self.evaluation_set.nothing(str(error)), schedule.to_json(), cost)

    def _judged(self, schedule: BatchSchedule, seed: int, learning_rate: float | None, began: float) -> Outcome:
        with self.tuner.trained(self.training_sets.rows, schedule, seed, learning_rate) as losses:
            middle = time.perf_counter()
            scores = self.evaluation_set.evaluate(self.lm)
        ends = [float(np.mean(losses[:ENDS])), float(np.mean(losses[-ENDS:]))]
        cost = {"training": round(middle - began, 3), "judging": round(time.perf_counter() - middle, 3)}
        return Outcome(scores, {**schedule.to_json(), "training_loss": ends}, cost)

    def shown(self, ids: Sequence[str]) -> Outcome:
        """Judge the untouched model, with the nearest of some rows in front of each item where there are any."""
        began, facts, before = time.perf_counter(), {"rows": len(ids)}, None
        if ids and self._settings.in_context is not None:
            before = examples_in_front(
                self._pool.subset(ids),
                self.evaluation_set.items,
                self._vectors_of,
                self._settings.in_context,
                self.lm,
                self.wording,
                max_new_tokens=self._settings.max_new_tokens,
            )
            facts |= {"shown": before.shown, "shortened": before.shortened, "left_out": before.left_out}
            self._note_joined(before)
        scores = self.evaluation_set.evaluate(self.lm, before)
        return Outcome(scores, facts, {"judging": round(time.perf_counter() - began, 3)})

    def _note_joined(self, before: InFront) -> None:
        """Note, once, that examples in front are no part of one conversation with what follows them."""
        if before.joined or before.joined_tests:
            note = (
                f"{before.joined} of {before.shown} examples in front and {before.joined_tests} of {len(before)} test items are "
                "joined plainly and not as one conversation, which the chat template does not allow there."
            )
            self.notes += [] if note in self.notes else [note]

    @cached_property
    def _encoder(self) -> Encoder:
        def fresh() -> CausalLM:
            # Not the model that is tuned: what it makes of texts changes while it trains.
            return CausalLM.load(
                str(self._run.model), device=self._settings.device, trust_remote_code=self._run.trust_remote_code
            )

        self._check_models(model=self._run.encoder == "lm")
        return create(self._run.encoder, device=self._settings.device, load_lm=fresh)

    def _vectors_of(self, texts: Sequence[str]) -> Floats:
        return EmbeddingCache(self._encoder).embed(texts).vectors
