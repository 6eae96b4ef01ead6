"""Plain words for a comparison of the student with a baseline on pairs of unseen items (method.md 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nncift.core.result_types import Record
from nncift.core.texts import listed

NAMES = {
    "cosine": "cosine similarity of the embeddings",
    "additive": "the additive baseline",
    "mean": "the training mean",
    "hidden": "cosine similarity of the hidden states",
    "output": "cosine similarity of the output gradients",
    "sum": "the sum of all similarities",
    "pretrained": "the pretrained student",
    "landmark": "the landmark student",
    "ridge": "ridge on the product of the embeddings",
}
METRICS = {"spearman": "Spearman correlation", "r2": "R^2"}


@dataclass(frozen=True)
class Difference(Record):
    """Student minus baseline in one metric, with its paired 95 % interval over items; None where undefined."""

    student: float | None
    baseline: float | None
    difference: float | None
    interval: tuple[float, float] | None

    @classmethod
    def between(cls, student: float | None, baseline: float | None, interval: tuple[float, float] | None) -> Difference:
        """Take the difference of two measures, either of which may be undefined."""
        if student is None or baseline is None:
            return cls(student, baseline, None, None)
        return cls(student, baseline, student - baseline, interval)


def verdict(baseline: str, found: Difference, metric: str) -> str | None:
    """Return a warning in one sentence, or None where the student is clearly better.

    Clearly better: the whole interval of the difference lies above 0. Worse: the whole interval lies below 0.
    """
    rival, measure = NAMES.get(baseline, baseline), METRICS[metric]
    if found.difference is None or found.interval is None:
        return f"On unseen items (q4) the student and {rival} cannot be compared in {measure}: it is undefined there."
    low, high = found.interval
    if low > 0:
        return None
    numbers = f"{found.student:.3f} against {found.baseline:.3f}"
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    if high < 0:
        return (
            f"On unseen items (q4) the student is worse than {rival} in {measure}: {numbers} "
            f"(difference {found.difference:+.3f}, {interval})."
        )
    return (
        f"On unseen items (q4) the student is not distinguishable from {rival} in {measure}: {numbers}; "
        f"the interval of the difference includes 0 (difference {found.difference:+.3f}, {interval})."
    )


_COMPARED = re.compile(
    r"On unseen items \(q4\) the student is (?P<how>worse than|not distinguishable from) (?P<rival>.+?) in (?P<metric>"
    rf"{'|'.join(re.escape(metric) for metric in METRICS.values())}): "
)


def grouped(warnings: Sequence[str]) -> list[str]:
    """Return warnings with those of `verdict` joined into one sentence of each kind: what one reads, not what one files."""
    found: dict[str, dict[str, list[str]]] = {}
    rest: list[str] = []
    first: dict[str, tuple[int, str]] = {}
    for warning in warnings:
        match = _COMPARED.match(warning)
        if match is None:
            rest.append(warning)
            continue
        first.setdefault(match["how"], (len(rest), warning))
        found.setdefault(match["how"], {}).setdefault(match["rival"], []).append(match["metric"])
    for how, rivals in sorted(found.items(), key=lambda both: -first[both[0]][0]):
        place, said = first[how]
        if sum(map(len, rivals.values())) > 1:
            named = listed([f"{rival} ({listed(metrics)})" for rival, metrics in rivals.items()])
            said = f"On unseen items (q4) the student is {how} {named}."
        rest.insert(place, said)
    return rest
