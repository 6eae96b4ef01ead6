"""What arms choose from: a finished run, its rows, and a folder for what is computed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import truth_of


@dataclass
class Pool:
    """A run's rows as arms see them.

    lm: gives the untouched model that is trained. truth_folder: where the full teacher's values are kept, None = in the run.
    costs: by arm, what choosing cost.
    """

    run: FinishedRun
    folder: Path
    lm: Callable[[], CausalLM]
    small_model: str | None = None
    template: str | None = None
    device: str = "auto"
    truth_folder: Path | None = None
    progress: Progress = silent
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the rows that can be chosen."""
        return self.run.rows.ids

    @property
    def rows(self) -> PoolTable:
        """The rows as a selection needs them."""
        return self.run.rows

    @cached_property
    def examples(self) -> Examples:
        """The rows as they were read."""
        return self.run.rows.examples

    @cached_property
    def content(self) -> dict[str, str]:
        """Hash of what models see of each row, by id."""
        return dict(zip(self.rows.ids, self.rows.content, strict=True))

    def spent(self, arm: str, seconds: float) -> None:
        """Add to the time that choosing an arm's rows took."""
        record = self.costs.setdefault(arm, {})
        record["choosing_seconds"] = round(record.get("choosing_seconds", 0.0) + seconds, 3)

    @cached_property
    def truth(self) -> UtilityMatrix:
        """All pairs' utilities by the run's teacher; computed once and kept, by default in the run."""
        return truth_of(self.run, self.truth_folder, device=self.device, progress=self.progress)
