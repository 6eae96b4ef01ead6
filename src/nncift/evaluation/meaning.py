"""Whether labels mean anything: whether they tell sources apart, and whether anything predicts them (docs/method.md 3.7).

A teacher of any kind may give numbers that say nothing: all equal, or noise. Both can be seen from the labels themselves, and the
run says so; what a teacher knows of its own values it says itself (`teachers.abilities.Monitored`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.core.pairs import LabelledPairs
from nncift.evaluation.fidelity import Measures
from nncift.evaluation.verdicts import NAMES

ONE_VALUE = 0.95
"""Share of the labels from which on a value that they have in common is named."""
SPLITS = ("train", "validation", "test")
"""Which labels are looked at: drawn at random, and few enough to sort."""


@dataclass(frozen=True)
class LabelSpread:
    """How labels differ.

    labels: how many. value and share: the most common value, and the share of the labels that have it. sources_differ: some
    target has two sources of different value; None where no target has two.
    """

    labels: int
    value: float
    share: float
    sources_differ: bool | None

    @classmethod
    def of(cls, labels: Mapping[str, LabelledPairs]) -> LabelSpread | None:
        """Look at the labels of a run by split; None where there is none with a value."""
        parts = [labels[name].present() for name in SPLITS if name in labels]
        values = np.concatenate([part.value for part in parts]) if parts else np.empty(0, np.float32)
        if not len(values):
            return None
        found, counts = np.unique(values, return_counts=True)
        most = int(counts.argmax())
        targets = np.concatenate([part.target for part in parts])
        return cls(len(values), float(found[most]), float(counts[most] / len(values)), _sources_differ(targets, values))

    def warnings(self) -> tuple[str, ...]:
        """Return a sentence where the labels hardly tell sources apart."""
        if self.share == 1.0:
            return (
                f"All {self.labels:,} labels are equal ({self.value:.4g}): there is nothing to learn from them, and by this "
                "teacher every selection is as good as any other.",
            )
        if self.sources_differ is False:
            return (
                f"The {self.labels:,} labels differ between targets alone: for every target all sources are equal, so by this "
                "teacher every selection is as good as any other.",
            )
        if self.share >= ONE_VALUE:
            return (
                f"{100 * self.share:.1f} % of the {self.labels:,} labels are {self.value:.4g}: only the rest tell rows apart.",
            )
        return ()


@dataclass(frozen=True)
class HeldOutSignal:
    """How well the best predictor does on pairs of unseen items: its R^2 and 95 % interval over items, None where undefined.

    clear: the interval of some predictor lies above 0.
    """

    predictor: str
    r2: float
    interval: tuple[float, float]
    pairs: int
    clear: bool

    @classmethod
    def of(cls, student: Measures, baselines: Mapping[str, Measures]) -> HeldOutSignal | None:
        """Look at measures on unseen items (q4); None where no predictor has an interval."""
        # The training mean predicts nothing: its R^2 is 0, and rounding puts it on either side.
        predictors = {"student": student, **{name: of for name, of in baselines.items() if name != "mean"}}
        measured = {
            name: (of.r2, of.r2_interval)
            for name, of in predictors.items()
            if of.r2 is not None and of.r2_interval is not None
        }
        if not measured:
            return None
        best = max(measured, key=lambda name: measured[name][0])
        clear = any(interval[0] > 0 for _, interval in measured.values())
        return cls(best, *measured[best], predictors[best].pairs, clear)

    def warnings(self, *, whole: bool = False) -> tuple[str, ...]:
        """Return a sentence where nothing that was tried predicts the labels of unseen items. whole: every row was measured."""
        if self.clear:
            return ()
        why = (
            "Labels that are noise look like this, and so do labels that depend on what the student cannot read in a row."
            if whole
            else "Labels that are noise look like this, and so do too few labels: take what is predicted for chance unless more "
            "labels (--labels) show otherwise."
        )
        low, high = self.interval
        best = NAMES.get(self.predictor, f"the {self.predictor}")
        return (
            f"Nothing predicts these labels on unseen items: R^2 is at most {self.r2:.2f} ({best}; 95 % interval {low:+.2f} to "
            f"{high:+.2f}, {self.pairs:,} held-out labels). {why}",
        )


def _sources_differ(
    targets: np.ndarray[Any, np.dtype[np.int32]], values: np.ndarray[Any, np.dtype[np.float32]]
) -> bool | None:
    """Tell whether some target has two labels that differ; None where no target has two."""
    order = np.lexsort((values, targets))
    same = targets[order][1:] == targets[order][:-1]
    if not same.any():
        return None
    return bool((values[order][1:] != values[order][:-1])[same].any())
