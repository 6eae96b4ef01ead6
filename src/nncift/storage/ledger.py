"""What a run costs: seconds, peak memory, and tokens and passes of language models, per stage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from nncift.core.result_types import JsonObject, Record


@dataclass
class StageCost:
    """The cost of one stage.

    seconds: wall time over all sessions that worked on it. processor_seconds: of the processor, in the processes of the run
    itself. peak_mb: largest resident memory of the process during the stage, in MB of 10^6 bytes. model_tokens and model_passes:
    of the teacher's language model (for `embed`: of the encoder). A pass is one example or one pair through the model.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    model_tokens: int = 0
    model_passes: int = 0
    sessions: int = 0
    processor_seconds: float = 0.0

    def rounded(self) -> Self:
        """Return the cost as it is written: seconds to thousandths, memory to tenths of a MB."""
        return replace(
            self,
            seconds=round(self.seconds, 3),
            processor_seconds=round(self.processor_seconds, 3),
            peak_mb=round(self.peak_mb, 1),
        )

    def to_json(self) -> JsonObject:
        """Return the cost with rounded figures."""
        return asdict(self.rounded())


EPOCHS, STEP = 3, 3
"""Training that a run's cost is set against: epochs over the whole pool, and forward passes that a row of an epoch costs."""


def training_cost(rows: int) -> int:
    """Return what training on so many rows costs, in forward passes."""
    return EPOCHS * STEP * rows


@dataclass(frozen=True)
class ModelCost:
    """What passes of the teacher's model cost, in forward-pass equivalents: forward 1, forward and backward 3.

    labels: passes of labelling, held-out pairs and a warm-up included. weight: forward passes that one of them costs. others:
    forward passes besides, of a probe and of embeddings that are hidden states of the same model. full: passes of the full
    teacher. rows: of the pool. An encoder of its own is another, smaller model: its seconds are in the ledger, its passes are not
    counted here.
    """

    labels: int
    weight: int
    others: int
    full: int
    rows: int

    @property
    def cost(self) -> int:
        """All passes of the run, in forward passes."""
        return self.weight * self.labels + self.others

    @property
    def full_cost(self) -> int:
        """The passes of the full teacher, in forward passes."""
        return self.weight * self.full

    @property
    def saving(self) -> float:
        """1 - cost / cost of the full teacher; 0 where that costs nothing, below 0 where the run costs more."""
        return 1 - self.cost / self.full_cost if self.full_cost else 0.0

    @property
    def saves_nothing(self) -> bool:
        """Whether the full teacher would cost no more."""
        return self.cost >= self.full_cost

    @property
    def share_of_training(self) -> float:
        """Cost as a share of training on all rows."""
        return self.cost / training_cost(self.rows)

    def to_json(self) -> JsonObject:
        """Return plain counts of passes, costs in forward passes, and both shares."""
        return {
            "teacher_passes": self.labels + self.others,
            "full_teacher_passes": self.full,
            "cost": self.cost,
            "full_teacher_cost": self.full_cost,
            "training_cost": training_cost(self.rows),
            "saving": self.saving,
            "share_of_training": self.share_of_training,
        }


@dataclass(frozen=True)
class Ledger(Record):
    """What a run cost: by stage, and its passes against labelling everything and against training on all rows; see `ModelCost`.

    Its figures are those that are written, so that what a run says of them is what it says when it is opened again.
    full_teacher_seconds: about what the full teacher would take at the pace of the labels. seconds: of all stages.
    """

    stages: Mapping[str, StageCost]
    teacher_passes: int
    full_teacher_passes: int
    cost: int
    full_teacher_cost: int
    training_cost: int
    saving: float
    share_of_training: float
    full_teacher_seconds: float
    seconds: float

    @classmethod
    def of(cls, stages: Mapping[str, StageCost], passes: ModelCost, full_teacher_seconds: float) -> Self:
        """Return the ledger of a run."""
        written = _written(stages)
        return cls(
            written,
            **passes.to_json(),
            full_teacher_seconds=full_teacher_seconds,
            seconds=_total(written),
        )

    def with_stages(self, stages: Mapping[str, StageCost]) -> Self:
        """Return the ledger with the costs of stages as they are now."""
        written = _written(stages)
        return replace(self, stages=written, seconds=_total(written))


def _written(stages: Mapping[str, StageCost]) -> dict[str, StageCost]:
    return {name: cost.rounded() for name, cost in stages.items()}


def _total(stages: Mapping[str, StageCost]) -> float:
    return round(sum(cost.seconds for cost in stages.values()), 3)


@dataclass
class Stopwatch:
    """Measures one session of a stage."""

    started: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)

    def __post_init__(self) -> None:
        _reset_peak()

    def add_to(self, cost: StageCost) -> None:
        """Add this session's time and peak to a cost."""
        cost.seconds += time.perf_counter() - self.started
        cost.processor_seconds += time.process_time() - self.processor
        cost.peak_mb = max(cost.peak_mb, peak_mb())
        cost.sessions += 1


def peak_mb() -> float:
    """Return the peak resident memory in MB since the last reset; since the process began where none is possible.

    0 on Windows, which tells neither in this way.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _reset_peak() -> None:
    # Linux: "5" resets the high-water mark. Elsewhere the peak is that of the whole process, which is stated.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
