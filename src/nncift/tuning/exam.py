"""What a model makes of the test rows: a value per row and metric, and what it answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.answers.generate import generate
from nncift.answers.likelihood import response_losses
from nncift.answers.metrics import METRICS, Metric, metric
from nncift.answers.prompts import InFrontOf
from nncift.config import nearest
from nncift.data import Examples
from nncift.encode import Encoder
from nncift.errors import UsageError
from nncift.lm import CausalLM
from nncift.wording import Wording

LOSS = "loss"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Marks:
    """What one model got. values: by metric, a number per test row, NaN where it failed. tokens: response tokens of each row.

    answers: what it wrote, None where nothing, and nothing at all where no metric reads answers. failures: by metric, the
    reason of the first that failed.
    """

    values: Mapping[str, Values]
    tokens: npt.NDArray[np.int64]
    answers: Sequence[str | None] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


class Exam:
    """Test rows and the metrics that every model is judged by."""

    def __init__(
        self, tests: Examples, wording: Wording, metrics: Sequence[str], *,
        encoder: Encoder | None = None, judge: Mapping[str, Any] | None = None, max_new_tokens: int = 150,
    ) -> None:  # fmt: skip
        unknown = [name for name in metrics if name not in (LOSS, *METRICS)]
        if unknown:
            raise UsageError(f"there is no metric {unknown[0]!r}{nearest(unknown[0], [LOSS, *METRICS])}")
        options: dict[str, dict[str, Any]] = {"embedding": {"encoder": encoder}, "judge": dict(judge or {})}
        self.tests, self.wording, self.max_new_tokens = tests, wording, max_new_tokens
        self.loss = LOSS in metrics
        self.metrics: dict[str, Metric] = {
            name: metric(name, **options.get(name, {})) for name in metrics if name != LOSS
        }

    @property
    def units(self) -> dict[str, tuple[str, bool]]:
        """Unit of every metric, and whether higher is better."""
        found = {LOSS: ("nats per token", False)} if self.loss else {}
        return found | {name: (one.unit, one.higher_is_better) for name, one in self.metrics.items()}

    def describe(self) -> list[Any]:
        """Return what decides the values beside the model, for fingerprints."""
        rows = [[row.id, row.content_hash] for row in self.tests]
        return [rows, self.wording.describe(), sorted(self.units), self.max_new_tokens]

    def sit(self, lm: CausalLM, before: InFrontOf | None = None) -> Marks:
        """Judge a model as it is now. before: by test id, examples in front."""
        values: dict[str, Values] = {}
        failures: dict[str, str] = {}
        losses = response_losses(lm, self.tests, self.wording, before)
        if self.loss:
            values[LOSS] = losses.loss
            if losses.failures:
                failures[LOSS] = next(iter(losses.failures.values()))
        answers = []
        if self.metrics:
            answers = generate(lm, self.tests, self.wording, max_new_tokens=self.max_new_tokens, before=before)
            why = [one.failure for one in answers if one.failure]
            for name, one in self.metrics.items():
                values[name] = one.values(answers)
                if not np.isfinite(values[name]).all():
                    failures[name] = why[0] if why else "the metric gave no number"
        return Marks(values, losses.tokens, [one.text for one in answers], failures)
