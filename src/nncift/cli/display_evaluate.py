"""What `nncift evaluate` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from nncift.cli.display import console, fidelity_table, number
from nncift.evaluation.verdicts import NAMES


def show_evaluation(summary: Mapping[str, Any]) -> None:
    """Print fidelity, the learning curve, and the judgement by the full teacher."""
    out = console()
    out.print(fidelity_table(summary))
    out.print(_curve(summary["curve"]))
    if summary["full_teacher"] is not None:
        _show_truth(summary["full_teacher"])
    for sentence in summary["verdicts"] or ():
        out.print(Text(f"! {sentence}"))


def _curve(curve: list[dict[str, Any]]) -> Table:
    table = Table(title="On unseen items, by labels to learn from (skill: on held-out blocks)", title_justify="left")
    for name in ("labels", "predictor", "R^2", "Spearman", "skill", "standard error"):
        table.add_column(name, justify="left" if name == "predictor" else "right")
    for step in curve:
        names = [name for name in step if name != "labels"]
        for place, name in enumerate(names):
            found = step[name]
            table.add_row(
                f"{step['labels']:,}" if not place else "",
                NAMES.get(name, name),
                number(found["r2"], 3),
                number(found["spearman"], 3),
                number(found["skill"], 2),
                number(found["skill_error"], 2),
                end_section=name == names[-1],
            )
    return table


def _show_truth(summary: Mapping[str, Any]) -> None:
    out = console()
    table = Table(
        title=f"{summary['selected']} rows selected in each way, judged by the full teacher", title_justify="left"
    )
    for name in ("selection", "value", "skill"):
        table.add_column(name, justify="left" if name == "selection" else "right")
    for name, value in summary["value"].items():
        table.add_row(name, number(value, 4), number(summary["skill"][name], 2))
    out.print(table)
    at = ", ".join(f"{number(step['skill'], 2)} at {step['budget']:.0%}" for step in summary["skill_by_budget"])
    out.print(f"Skill of the run's student by budget, known labels in place: {at}.")
    covered = summary["coverage"]
    if covered["covered"] is not None:
        share = f"{100 * covered['covered']:.1f} %"
        out.print(
            f"Of {covered['pairs']:,} pairs without a label, {share} lie within their {covered['level']:.0%} interval."
        )
