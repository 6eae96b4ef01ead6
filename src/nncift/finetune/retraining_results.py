"""What a retraining found, and what one would take, as they are stored and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nncift.core.result_types import Record
from nncift.finetune.lds import Agreement, Mean


@dataclass(frozen=True)
class Removal(Record):
    """What training without an estimate's top rows did. increase: of the targets' loss over that without random rows."""

    share: str
    rows: int
    estimate: str
    increase: Mean


@dataclass(frozen=True)
class Retraining(Record):
    """What `retraining.json` holds.

    rows: that halves are drawn from. estimates: what each is. lds: by estimate. ceiling: see `lds.ceiling`. kept: of the student,
    the share of its teacher's score. loss: of the targets, mean over them before training and after it. recipe: of a training.
    """

    run: str
    model: str
    rows: int
    half: int
    targets: int
    halves: int
    repeats: int
    trainings: int
    recipe: Mapping[str, Any]
    estimates: Mapping[str, str]
    lds: Mapping[str, Agreement]
    kept: float | None
    ceiling: float | None
    removals: tuple[Removal, ...]
    loss: Mapping[str, float]
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RetrainingCost(Record):
    """What it would take. tokens: read in training; passes: forward-pass equivalents; trained: cells that stand already."""

    rows: int
    half: int
    targets: int
    trainings: int
    trained: int
    removals: int
    tokens: int
    passes: int
