"""Settings of `nncift evaluate --retrain`: how many trainings, on how many rows, and how each is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from nncift.config import checked
from nncift.core.declaration import Settings, setting
from nncift.errors import UsageError

LEAST_HALVES, MOST = 10, 10_000


class RetrainSettings(Settings):
    """All settings. What is None has a default that depends on the model's size and the method."""

    title = "Training"

    halves: int = setting(60, "Random halves of the rows; one training each", ge=LEAST_HALVES, le=MOST)
    repeats: int = setting(1, "Trainings of every half; 2 and more show how much of a loss is chance", ge=1, le=MOST)
    remove: tuple[str, ...] = setting(
        ("10%",), "Also train without the top rows of every estimate, with commas, or none", metavar="SHARE,SHARE"
    )
    draws: int = setting(5, "Random removals that these stand beside", ge=2, le=MOST)
    targets: int = setting(
        32,
        "Rows whose loss is watched: of the target set, else of the pool, which then trains on none of them",
        ge=2,
        le=MOST,
    )
    rows: int | None = setting(200, "Rows that halves are drawn from, evenly over the sources; 0 = all", ge=0)
    model: str | None = setting(None, "Model that is trained", shown="the run's")
    method: Literal["auto", "lora", "whole"] = setting(
        "auto", "What is trained", shown="auto: whole for small models, else lora"
    )
    epochs: float = setting(1.0, "Passes over each half", gt=0)
    learning_rate: float | None = setting(None, "Highest learning rate", shown="5 times that of tune with lora", gt=0)
    batch: int | None = setting(None, "Rows of an optimiser step", shown="4", ge=1)
    rank: int = setting(8, "Rank of LoRA's matrices", ge=1)
    seed: int = setting(0, "Seed of targets, halves and trainings", ge=0)
    device: str = setting(
        "auto", "Device of the models", choices=("auto", "cpu", "cuda", "cuda:0", "mps"), group="Where it runs"
    )

    @field_validator("remove", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        """Take text with commas, and `none` for no share."""
        parts = [value] if isinstance(value, str | int | float) else list(value)
        names = [part.strip() for text in parts for part in str(text).split(",") if part.strip()]
        return tuple(dict.fromkeys(name for name in names if name != "none"))


def resolve(given: Mapping[str, Any]) -> RetrainSettings:
    """Check settings. Raises UsageError for what is unknown or wrong."""
    settings = checked(RetrainSettings, given)
    for text in settings.remove:
        share_of(text)
    return settings


def share_of(text: str) -> float:
    """Return a share between 0 and a half that was written as 10% or 0.1. Raises UsageError for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 0.5:
        raise UsageError(
            f"--remove {text!r} was given; expected shares above 0 and at most 50%, such as 1%,5%,10%, or none"
        )
    return value
