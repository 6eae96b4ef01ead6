"""`nncift evaluate`: how good a finished run's student is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.cli.display import console, fidelity_table, number, show_warnings, table
from nncift.cli.options import chosen, fetch_option, memory_option, offline_option, run_argument, settings_options
from nncift.cli.shell import command, option, progress
from nncift.config import RunSettings
from nncift.core.permissions import Permissions
from nncift.errors import UsageError
from nncift.finetune.retrain_settings import RetrainSettings

if TYPE_CHECKING:
    from rich.table import Table

    from nncift.core.result_types import JsonObject
    from nncift.finetune.retraining_results import Retraining, RetrainingCost
    from nncift.runs.evaluate import CurvePoint, Evaluation
    from nncift.runs.full_teacher import FullTeacherResult


@command(
    "evaluate",
    example="nncift evaluate runs/alpaca --full-teacher",
    everyday=("full_teacher", "retrain", "dry_run", "device"),
)
@run_argument
@option("--full-teacher", is_flag=True, help="Label every pair, and judge selection and intervals by the truth.")
@option(
    "--retrain", is_flag=True, help="Train on random halves of the rows, and see which estimate foresees the losses."
)
@option("--dry-run", is_flag=True, help="Print what --retrain would take, and do nothing.")
@settings_options(RetrainSettings)
@settings_options(RunSettings, ("trust_remote_code",))
@fetch_option
@offline_option
@memory_option
def evaluate_command(
    show: bool, run: Path, full_teacher: bool, retrain: bool, dry_run: bool, fetch: bool, **flags: Any
) -> Evaluation | RetrainingCost | JsonObject:
    """Measure the student of RUN: quadrants beside baselines, what more labels gave, and truth by training."""
    allowed, device = Permissions(bool(flags.pop("trust_remote_code")), fetch), flags["device"] or "auto"
    given = chosen(flags, RetrainSettings)
    only = [name for name in given if name != "device"] + (["dry_run"] if dry_run else [])
    if only and not retrain:
        raise UsageError(
            f"--{only[0].replace('_', '-')} was given, which belongs to --retrain; give that too, or leave it out"
        )
    if dry_run:
        from nncift.finetune.retraining import cost_of

        return _dry_run(show, cost_of(run, given, full_teacher=full_teacher, allowed=allowed))
    from nncift.runs.evaluate import evaluate

    found = evaluate(run, full_teacher=full_teacher, device=device, progress=progress(show), allowed=allowed)
    if show:
        _show(found)
    if not retrain:
        return found
    from nncift.finetune.retraining import retrain as trained

    retraining = trained(run, given, full_teacher=full_teacher, progress=progress(show), allowed=allowed)
    if show:
        _show_retraining(retraining, run)
    return {**found.to_json(), "retraining": retraining.to_json()}


def _dry_run(show: bool, cost: RetrainingCost) -> RetrainingCost:
    if show:
        console().print(
            f"{cost.trainings} trainings ({cost.trained} stand already), {cost.removals} of them without top rows, on halves of "
            f"{cost.half} of {cost.rows} rows; {cost.targets} targets. {cost.tokens:,} tokens are read in training; "
            f"{cost.passes:,} forward-pass equivalents."
        )
    return cost


def _show_retraining(found: Retraining, run: Path) -> None:
    from nncift.finetune.retrain_report import facts, lds_rows, removal_rows, sentence

    out = console()
    out.print(sentence(found), soft_wrap=True)
    out.print(facts(found), soft_wrap=True)
    head, *rows = lds_rows(found.lds)
    out.print(table("Forecasts of training (LDS)", head, rows))
    if found.removals:
        head, *rows = removal_rows(found)
        out.print(table("Without the top rows", head, rows, left=head[:2]))
    show_warnings(out, found.notes)
    out.print(f"Files: {run}/retrain/retraining.md, retraining.json, retraining.svg", soft_wrap=True)


def _show(found: Evaluation) -> None:
    """Print fidelity, the learning curve, and the judgement by the full teacher."""
    out = console()
    out.print(fidelity_table(found.fidelity, found.baselines))
    out.print(_curve(found.curve))
    if found.full_teacher is not None:
        _show_truth(found.full_teacher)
    for sentence in found.verdicts:
        out.print(f"! {sentence}")


def _curve(curve: Sequence[CurvePoint]) -> Table:
    from nncift.evaluation.verdicts import NAMES

    columns = ("labels", "predictor", "R^2", "Spearman", "skill", "standard error")
    made = table("On unseen items, by labels to learn from (skill: on held-out blocks)", columns)
    made.columns[0].justify, made.columns[1].justify = "right", "left"
    for step in curve:
        for place, (name, found) in enumerate(step.predictors.items(), 1):
            made.add_row(
                f"{step.labels:,}" if place == 1 else "",
                NAMES.get(name, name),
                number(found.r2, 3),
                number(found.spearman, 3),
                number(found.skill, 2),
                number(found.skill_error, 2),
                end_section=place == len(step.predictors),
            )
    return made


def _show_truth(found: FullTeacherResult) -> None:
    out = console()
    rows = ((name, number(value, 4), number(found.skill[name], 2)) for name, value in found.value.items())
    title = f"{found.selected} rows selected in each way, judged by the full teacher"
    out.print(table(title, ("selection", "value", "skill"), rows))
    at = ", ".join(f"{number(step.skill, 2)} at {step.budget:.0%}" for step in found.skill_by_budget)
    out.print(f"Skill of the run's student by budget, known labels in place: {at}.")
    covered = found.coverage
    if covered.covered is not None:
        share = f"{100 * covered.covered:.1f} %"
        out.print(f"Of {covered.pairs:,} pairs without a label, {share} lie within their {covered.level:.0%} interval.")
