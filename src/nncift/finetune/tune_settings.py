"""Settings of `nncift tune`: what is trained on what, how long, and how it is judged (docs/tune.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from nncift.config import Precision, RowFormat, Turns, checked
from nncift.core.declaration import Settings, setting
from nncift.errors import UsageError

DEFAULT_ARMS = ("selected", "random", "longest", "embedding", "full", "none")
"""The arms that need no model beside the one that is trained."""


class TuneSettings(Settings):
    """All settings. What is None has a default that depends on the run, the model's size or the method."""

    title = "Training"

    test: tuple[str, ...] = setting(
        (),
        "File of rows that judge every arm, seen by none; may be repeated",
        metavar="FILE",
        shown="the run's --holdout",
        group="Judging",
    )
    format: RowFormat = setting("auto", "Format of the test files", group="Judging")
    map: dict[str, str] = setting(
        dict, "Read a field of the test files from a column: prompt=question", metavar="NAME=COLUMN", group="Judging"
    )
    limit_test: int | None = setting(None, "Test rows: a seeded sample of so many", ge=1, group="Judging")
    validation_rows: int | None = setting(
        None,
        "Test rows that choose among learning rates and judge nothing else",
        shown="a quarter",
        ge=1,
        group="Judging",
    )
    drop_seen: bool = setting(
        False, "Leave out test rows that the run has seen, in place of refusing them", group="Judging"
    )
    questions: str | None = setting(
        None, "File of multiple-choice questions, for the metric choice", metavar="FILE", group="Judging"
    )

    arms: tuple[str, ...] = setting(
        DEFAULT_ARMS,
        "Subsets that are compared, with commas",
        choices=(
            *("selected", "teacher", "small-teacher", "random", "stratified", "longest", "embedding", "hidden"),
            *("output", "sum", "rds", "less", "ifd", "bm25", "full", "none"),
        ),
        metavar="A,B",
        group="Selection",
    )
    subset: dict[str, str] = setting(
        dict,
        "Further arm of your own: NAME=FILE of ids, one a line, best first; may be repeated",
        metavar="NAME=FILE",
        group="Selection",
    )
    budget: tuple[str, ...] = setting(
        (),
        "Select again at this budget; may be repeated",
        shown="the run's selection",
        metavar="AMOUNT",
        group="Selection",
    )
    small_model: str | None = setting(None, "Smaller model that labels for the arm small-teacher", group="Selection")

    model: str | None = setting(None, "Model that is trained", shown="the run's")
    template: str | None = setting(
        None,
        "Prompt format (also a text file with {prompt} and {response})",
        choices=("chat", "plain"),
        shown="the run's",
    )
    turns: Turns | None = setting(
        None, "Responses that are learned from and judged by: the last alone, or all", shown="those that the run scored"
    )
    context: int | None = setting(None, "Cap on the tokens of a row in training", shown="the model's", ge=8)
    dtype: Precision = setting("auto", "Precision of the model")
    device: str = setting(
        "auto", "Device of the models", choices=("auto", "cpu", "cuda", "cuda:0", "mps"), group="Where it runs"
    )
    method: Literal["auto", "lora", "qlora", "whole"] = setting(
        "auto", "What is trained", shown="auto: whole for small models, else lora"
    )
    equal: Literal["steps", "tokens", "both"] = setting("both", "What all arms have alike")
    epochs: float | None = setting(None, "Passes over the run's selection, which set the measure for all arms", gt=0)
    steps: int | None = setting(None, "The same in optimiser steps", ge=1)
    learning_rate: tuple[float, ...] = setting(
        (),
        "Highest learning rate; of several, with commas, each arm keeps the one that is better on validation rows",
        shown="two, by method and size",
        metavar="RATE,RATE",
    )
    batch: int | None = setting(None, "Rows of an optimiser step", shown="4", ge=1)
    rank: int = setting(8, "Rank of LoRA's matrices", ge=1)
    alpha: float = setting(16, "Scale of LoRA", gt=0)
    dropout: float = setting(0.05, "Dropout of LoRA", ge=0, lt=1)
    seeds: int = setting(3, "Training runs of every arm", ge=1)
    seed: int = setting(0, "Seed of the first of them", ge=0)

    metrics: tuple[str, ...] = setting(
        ("exact", "loss"),
        "Measures, with commas; the first that tells arms apart decides",
        choices=("loss", "exact", "rouge1", "rougeL", "embedding", "choice", "judge"),
        metavar="A,B",
        group="Judging",
    )
    max_new_tokens: int = setting(150, "Longest answer", ge=1, group="Judging")
    in_context: int | None = setting(
        None, "Also judge the untrained model with so many rows of each arm in front", ge=1, group="Judging"
    )
    judge: dict[str, Any] = setting(
        dict, "Option of the metric judge; may be repeated", metavar="NAME=VALUE", group="Judging"
    )

    @field_validator("test", "arms", "budget", "metrics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Take one name as a list of one; a list keeps its order and loses what it says twice."""
        names = (value,) if isinstance(value, str | int | float) else value
        return tuple(dict.fromkeys(str(name) for name in names))

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        """Take one number, and text with commas; rates rise, and none stands twice."""
        parts = [value] if isinstance(value, str | int | float) else ([] if value is None else list(value))
        found = sorted({float(part) for text in parts for part in str(text).split(",") if part.strip()})
        if any(not 0 < rate < float("inf") for rate in found):
            raise ValueError("a learning rate is above 0")
        return tuple(found)

    @property
    def hows(self) -> tuple[str, ...]:
        """The ways in which a subset serves: `steps` and `tokens` train on it, `context` shows it."""
        trained = ("steps", "tokens") if self.equal == "both" else (self.equal,)
        return (*trained, *(("context",) if self.in_context else ()))


def resolve(given: Mapping[str, Any], *, holdout: bool = False) -> TuneSettings:
    """Check settings. holdout: the run has rows set aside, which serve where no test rows are given.

    Raises UsageError for what is unknown, wrong, missing, or given twice over.
    """
    from nncift.finetune.arms import ARMS

    settings = checked(TuneSettings, given)
    if not settings.test and not holdout:
        raise UsageError(
            "--test FILE is missing: every arm is judged by rows that none of them has seen. A run with --holdout 10% sets such "
            "rows aside"
        )
    if settings.epochs is not None and settings.steps is not None:
        raise UsageError("--epochs and --steps both say how long to train; give one of them")
    unknown = [name for name in settings.arms if name not in ARMS]
    if unknown:
        raise UsageError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    if settings.validation_rows is not None and len(settings.learning_rate) == 1:
        raise UsageError(
            "--validation-rows was given, and one learning rate, among which nothing is chosen; give several rates, or leave "
            "--validation-rows out"
        )
    taken = [name for name in settings.subset if name in ARMS or not re.fullmatch(r"[A-Za-z0-9_.]+", name)]
    if taken:
        raise UsageError(
            f"--subset {taken[0]}=... was given; its name is one that no arm has, of letters, digits, dots and underscores"
        )
    if not settings.arms or not settings.metrics:
        raise UsageError("--arms and --metrics each name at least one")
    if settings.judge and "judge" not in settings.metrics:
        raise UsageError("--judge was given, and judge is not among --metrics")
    if "small-teacher" in settings.arms and settings.small_model is None:
        raise UsageError(
            "the arm small-teacher takes its labels from a smaller model than the one that is trained; name it with --small-model"
        )
    if settings.small_model is not None and "small-teacher" not in settings.arms:
        raise UsageError("--small-model was given, and the arm small-teacher, which uses it, is not among --arms")
    return settings
