"""`nncift evaluate`: how good a finished run's student is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncift.cli.display import console, fidelity_table, number, table
from nncift.cli.options import fetch_option, memory_option, offline_option, run_argument, settings_options
from nncift.cli.shell import command, option, progress
from nncift.config import RunSettings
from nncift.core.permissions import Permissions


@command("evaluate", example="nncift evaluate runs/alpaca --full-teacher")
@run_argument
@option("--full-teacher", is_flag=True, help="Label every pair, and judge selection and intervals by the truth.")
@settings_options(RunSettings, ("device", "trust_remote_code"))
@fetch_option
@offline_option
@memory_option
def evaluate_command(
    show: bool, run: Path, full_teacher: bool, device: str | None, trust_remote_code: bool | None, fetch: bool
) -> dict[str, Any]:
    """Measure the student of RUN: quadrants beside baselines, what more labels gave, and skill under the truth."""
    from nncift.runs.evaluate import evaluate

    summary = evaluate(
        run,
        full_teacher=full_teacher,
        device=device or "auto",
        progress=progress(show),
        allowed=Permissions(bool(trust_remote_code), fetch),
    ).to_json()
    if show:
        _show(summary)
    return summary


def _show(summary: Mapping[str, Any]) -> None:
    """Print fidelity, the learning curve, and the judgement by the full teacher."""
    out = console()
    out.print(fidelity_table(summary))
    out.print(_curve(summary["curve"]))
    if summary["full_teacher"] is not None:
        _show_truth(summary["full_teacher"])
    for sentence in summary["verdicts"] or ():
        out.print(f"! {sentence}")


def _curve(curve: list[dict[str, Any]]) -> Any:
    from nncift.evaluation.verdicts import NAMES

    columns = ("labels", "predictor", "R^2", "Spearman", "skill", "standard error")
    made = table("On unseen items, by labels to learn from (skill: on held-out blocks)", columns)
    made.columns[0].justify, made.columns[1].justify = "right", "left"
    for step in curve:
        names = [name for name in step if name != "labels"]
        for place, name in enumerate(names):
            found = step[name]
            made.add_row(
                f"{step['labels']:,}" if not place else "",
                NAMES.get(name, name),
                number(found["r2"], 3),
                number(found["spearman"], 3),
                number(found["skill"], 2),
                number(found["skill_error"], 2),
                end_section=name == names[-1],
            )
    return made


def _show_truth(summary: Mapping[str, Any]) -> None:
    out = console()
    rows = ((name, number(value, 4), number(summary["skill"][name], 2)) for name, value in summary["value"].items())
    title = f"{summary['selected']} rows selected in each way, judged by the full teacher"
    out.print(table(title, ("selection", "value", "skill"), rows))
    at = ", ".join(f"{number(step['skill'], 2)} at {step['budget']:.0%}" for step in summary["skill_by_budget"])
    out.print(f"Skill of the run's student by budget, known labels in place: {at}.")
    covered = summary["coverage"]
    if covered["covered"] is not None:
        share = f"{100 * covered['covered']:.1f} %"
        out.print(
            f"Of {covered['pairs']:,} pairs without a label, {share} lie within their {covered['level']:.0%} interval."
        )
