"""Settings of `nncift tune`: what is trained on what, how long, and how it is judged (docs/tune.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nncift.config import checked
from nncift.errors import UsageError

DEFAULT_ARMS = ("selected", "random", "longest", "embedding", "full", "none")
"""The arms that need no model beside the one that is trained."""


class TuneSettings(BaseModel):
    """All settings. What is None has a default that depends on the run, the model's size or the method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: tuple[str, ...] = ()
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt"] = "auto"
    map: dict[str, str] = Field(default_factory=dict)
    limit_test: int | None = Field(default=None, ge=1)
    drop_seen: bool = False
    questions: str | None = None

    arms: tuple[str, ...] = DEFAULT_ARMS
    budget: tuple[str, ...] = ()
    small_model: str | None = None

    model: str | None = None
    template: str | None = None
    context: int | None = Field(default=None, ge=8)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    method: Literal["auto", "lora", "qlora", "whole"] = "auto"
    equal: Literal["steps", "tokens", "both"] = "both"
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, ge=1)
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)

    metrics: tuple[str, ...] = ("loss", "exact")
    max_new_tokens: int = Field(default=150, ge=1)
    in_context: int | None = Field(default=None, ge=1)
    judge: dict[str, Any] = Field(default_factory=dict)

    @field_validator("test", "arms", "budget", "metrics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Take one name as a list of one; a list keeps its order and loses what it says twice."""
        names = (value,) if isinstance(value, str | int | float) else value
        return tuple(dict.fromkeys(str(name) for name in names))

    @property
    def hows(self) -> tuple[str, ...]:
        """The ways in which a subset serves: `steps` and `tokens` train on it, `context` shows it."""
        trained = ("steps", "tokens") if self.equal == "both" else (self.equal,)
        return (*trained, *(("context",) if self.in_context else ()))


def resolve(given: Mapping[str, Any]) -> TuneSettings:
    """Check settings. Raises UsageError for what is unknown, wrong, missing, or given twice over."""
    from nncift.finetune.arms import ARMS

    settings = checked(TuneSettings, given)
    if not settings.test:
        raise UsageError("--test FILE is missing: every arm is judged by rows that none of them has seen")
    if settings.epochs is not None and settings.steps is not None:
        raise UsageError("--epochs and --steps both say how long to train; give one of them")
    unknown = [name for name in settings.arms if name not in ARMS]
    if unknown:
        raise UsageError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
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
