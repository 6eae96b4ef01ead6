"""What `nncift tune` found of a run's selection, as tables of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOWS = {
    "steps": "Trained for equally many steps",
    "tokens": "Trained on equally many tokens",
    "context": "Rows shown in context, nothing trained",
}


@dataclass(frozen=True)
class TrainingTable:
    """Arms with their means over seeds. rows: head first."""

    title: str
    rows: list[list[str]]


def training_tables(record: Mapping[str, Any] | None) -> list[TrainingTable]:
    """Return a table for every group of arms of a stored tune; none without one."""
    if record is None:
        return []
    metrics = record["metrics"]
    found = []
    for group in record["results"]:
        head = [
            "arm",
            *(f"{name} ({of['unit']}, {_better(of)} is better)" for name, of in metrics.items()),
            "against random",
        ]
        rows = [head]
        for arm, of in group["arms"].items():
            rows.append([arm, *(_value(of["metrics"].get(name)) for name in metrics), _beside(group, arm, metrics)])
        title = f"{HOWS.get(group['how'], group['how'])} ({group['budget']}, {group['rows']} rows)"
        found.append(TrainingTable(title, rows))
    return found


def _better(metric: Mapping[str, Any]) -> str:
    return "higher" if metric["higher_is_better"] else "lower"


def _value(found: Mapping[str, Any] | None) -> str:
    if found is None or found.get("mean") is None:
        return "–"
    deviation = found.get("deviation")
    return f"{found['mean']:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def _beside(group: Mapping[str, Any], arm: str, metrics: Mapping[str, Any]) -> str:
    """Return what an arm is beside random rows in the first metric."""
    first = next(iter(metrics), None)
    for one in group["comparisons"]:
        if (one["metric"], one["arm"], one["against"]) == (first, arm, "random"):
            return str(one["verdict"])
    return "–"
