"""What a run costs: seconds, peak memory, and tokens and passes of language models, per stage."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class StageCost:
    """The cost of one stage.

    seconds: wall time over all sessions that worked on it. peak_mb: largest resident memory of the process during the
    stage, in MB of 10^6 bytes. model_tokens and model_passes: of the teacher's language model (for `embed`: of the
    encoder). A pass is one example or one pair through the model.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    model_tokens: int = 0
    model_passes: int = 0
    sessions: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the cost with rounded figures."""
        return {**asdict(self), "seconds": round(self.seconds, 3), "peak_mb": round(self.peak_mb, 1)}


@dataclass
class Stopwatch:
    """Measures one session of a stage."""

    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        _reset_peak()

    def add_to(self, cost: StageCost) -> None:
        """Add this session's time and peak to a cost."""
        cost.seconds += time.perf_counter() - self.started
        cost.peak_mb = max(cost.peak_mb, peak_mb())
        cost.sessions += 1


def peak_mb() -> float:
    """Return the peak resident memory in MB since the last reset; since the process began where none is possible."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _reset_peak() -> None:
    # Linux: "5" resets the high-water mark. Elsewhere the peak is that of the whole process, which is stated.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
