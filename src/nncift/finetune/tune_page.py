"""`tune.md`: what a tune found, for people. The same words as on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nncift.finetune.comparison import MARGIN, between_seeds

HOWS = {
    "steps": "Equal steps: every arm takes the same number of optimiser steps",
    "tokens": "Equal tokens: every arm reads the same number of tokens in training",
    "context": "In context: the model is not trained, and reads the nearest rows of the arm in front of each test row",
}


def page(record: Mapping[str, Any]) -> str:
    """Return the whole page as Markdown."""
    parts = ["# Does the selected subset train as well?", "", *(f"- {line}" for line in summary(record)), ""]
    for result in record["results"]:
        parts += [f"## {title(result)}", "", *_arms(result, record["metrics"]), ""]
        parts += [*_comparisons(result, record["metrics"]), ""]
    parts += ["## How to read this", "", *(f"- {line}" for line in READING)]
    if record["notes"]:
        parts += ["", "## Notes", "", *(f"- {line}" for line in record["notes"])]
    return "\n".join(parts) + "\n"


READING = (
    "An interval is that of the difference of two means, at 95 %, over other test rows and other training runs; with one seed, "
    "over other test rows only.",
    "Better and worse: the whole interval lies on one side of 0. Not told apart: it does not, which is no proof of equality.",
    f"Within {100 * MARGIN:.0f} %: the whole interval of the difference is smaller than that share of the other arm's mean.",
    "Mean absolute: the mean over seeds of the size of each seed's difference, as a share of the other arm's mean. Other's "
    "seeds: the same between two seeds of the other arm itself, what chance alone does; no arm can be expected to come nearer.",
    "Wins, ties, losses: test rows whose mean over the seeds is better, the same, worse.",
)


def summary(record: Mapping[str, Any]) -> list[str]:
    """Return what was done, one sentence a line."""
    recipe, model = record["recipe"], record["model"]
    trained = f"{model['trained_parameters']:,} of {model['parameters']:,} parameters"
    length = f"{recipe['steps']} steps" if recipe["steps"] else f"{recipe['epochs']:g} epochs of the run's selection"
    lines = [
        f"Run {record['run']}; {record['test_rows']} test rows; {record['seeds']} seeds.",
        f"Model {model['name']}: {trained} are trained ({recipe['method']}), learning rate {recipe['learning_rate']:g}, "
        f"{recipe['batch']} rows a step, {length} set the measure for all arms.",
    ]
    for arm, cost in record["costs"].items():
        if "teacher_passes" in cost:
            lines.append(f"The rows of {arm} cost {cost['teacher_passes']:,} passes of a model.")
    machine = record["machine"]
    lines.append(f"{record['seconds']:.0f} s of training and judging on {machine['device']}, {machine['platform']}.")
    return lines


def title(result: Mapping[str, Any]) -> str:
    """Return the heading of a group of arms."""
    return f"{HOWS[result['how']]} ({result['budget']}, {result['rows']} rows)"


def arm_rows(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a table of the arms, its head first: values with their deviation over seeds, and how much was trained."""
    trained = result["how"] != "context"
    head = ["arm", *(f"{name} ({record['unit']})" for name, record in metrics.items())]
    head += ["rows", "epochs", "steps", "tokens", "seconds"] if trained else ["rows"]
    rows = [head]
    for arm, record in result["arms"].items():
        row = [arm, *(_value(record["metrics"][name]) for name in metrics), _whole(record.get("rows"))]
        if trained:
            epochs = record.get("epochs")
            row += [
                "-" if epochs is None else f"{epochs:.2f}",
                _whole(record.get("steps")),
                _whole(record.get("tokens")),
            ]
            row.append(f"{record['seconds']['training'] or 0:.1f}")
        rows.append(row)
    return rows


def comparison_rows(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a table of the comparisons, its head first."""
    rows = [
        [
            "metric",
            "arm",
            "against",
            "difference",
            "95 % interval",
            "relative",
            "mean absolute",
            "other's seeds",
            "win/tie/loss",
            "verdict",
        ]
    ]
    for one in result["comparisons"]:
        bounds, relative, absolute = one["interval"], one["relative"], one["relative_mean_absolute"]
        near = f", within {100 * MARGIN:.0f} %" if one["within"] else ""
        rows.append(
            [
                one["metric"],
                one["arm"],
                one["against"],
                _signed(one["difference"]),
                "-" if bounds is None else f"{bounds[0]:+.3g} to {bounds[1]:+.3g}",
                "-" if relative is None else f"{100 * relative:+.1f} %",
                "-" if absolute is None else f"{100 * absolute:.1f} %",
                _between_seeds(result["arms"][one["against"]]["metrics"][one["metric"]]),
                f"{one['wins']}/{one['ties']}/{one['losses']}",
                one["verdict"] + near,
            ]
        )
    return rows


def _between_seeds(record: Mapping[str, Any]) -> str:
    gap, mean = between_seeds(record["by_seed"]), record["mean"]
    return "-" if gap is None or not mean else f"{100 * gap / abs(mean):.1f} %"


def _arms(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    return _table(arm_rows(result, metrics))


def _comparisons(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    return _table(comparison_rows(result, metrics)) if result["comparisons"] else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in [head, *body]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _value(record: Mapping[str, Any]) -> str:
    mean, deviation = record["mean"], record["deviation"]
    if mean is None:
        return "-"
    text = f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"
    return text + (f" ({record['failed']} failed)" if record["failed"] else "")


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4g}"
