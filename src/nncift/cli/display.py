"""What several commands print for people: tables, costs, warnings. Nothing of rich is loaded before something is printed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from nncift.core.texts import seconds, span

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nncift.evaluation.fidelity import Measures
    from nncift.evaluation.run_verdict import RunSummary, Verdict
    from nncift.finetune.tune_estimate import TuneEstimate
    from nncift.selection.solve import SelectionRecord
    from nncift.stages.estimate import Cost, Estimate
    from nncift.stages.timing import Timed
    from nncift.storage.ledger import Ledger

PREDICTORS = {
    "student": "student",
    "mean": "training mean",
    "additive": "additive ridge",
    "cosine": "cosine",
    "hidden": "hidden-state cosine",
    "output": "output-gradient cosine",
    "sum": "sum of the cosines",
    "pretrained": "pretrained student",
    "landmark": "landmark student",
    "ridge": "product ridge",
}
QUADRANTS = {"q1": "Q1 seen items", "q2": "Q2 target unseen", "q3": "Q3 source unseen", "q4": "Q4 both unseen"}


def console(*, wrap: bool = True) -> Console:
    """Return a console on standard output, wide enough for tables where it is no terminal. wrap: break long lines.

    Markup is off: paths, names and notes come from users and files, and may hold square brackets.
    """
    from rich.console import Console

    from nncift.cli.shell import progress_ends

    progress_ends()
    width = None if sys.stdout.isatty() else 110
    return Console(file=sys.stdout, highlight=False, soft_wrap=not wrap, markup=False, emoji=False, width=width)


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]] = (), *, left: Collection[str] = ()
) -> Table:
    """Return a table whose first column and those named in `left` stand left, and whose others stand right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        made.add_column(name, justify="left" if not place or name in left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def cost_of_parts(title: str, parts: Mapping[str, str], result: Estimate | TuneEstimate) -> Table:
    """Return the table of a dry run: passes, tokens and both times of every part that costs something."""
    made = table(title, ("", "passes", "tokens", "processor", "time"))
    for key, name in parts.items():
        cost: Cost = getattr(result, key)
        if cost.passes:
            shown = ["-" if cost.tokens is None else f"{round(cost.tokens):,}"]
            shown += ["-" if value is None else seconds(value) for value in (cost.processor, cost.seconds)]
            made.add_row(name, f"{cost.passes:,}", *shown, end_section=key in ("embed", "answers"))
    return made


def busy_sentence(timed: Timed) -> str:
    """Return a sentence where the clock went on while other programs had the processor; an empty one elsewhere."""
    if not timed.busy:
        return ""
    return (
        f"This machine is busy: what was timed took {seconds(timed.seconds)} for {seconds(timed.processor_seconds)} of the "
        "processor. Times are for a machine as busy as this one."
    )


def fidelity_table(student: Mapping[str, Measures], baselines: Mapping[str, Mapping[str, Measures]]) -> Table:
    """Return the student's measures by quadrant, and those of the baselines on pairs of unseen items."""
    columns = ("predictor", "pairs of", "R^2", "Spearman", "interval", "MSE", "pairs")
    made = table("How well teacher values are predicted (95 % intervals over items)", columns, left=columns[:2])
    rows = [("student", quadrant, student[quadrant]) for quadrant in QUADRANTS if student[quadrant].pairs]
    rows += [(name, "q4", quadrants["q4"]) for name, quadrants in baselines.items()]
    # Without unseen targets, what is unseen is a source.
    named = QUADRANTS if student["q2"].pairs or student["q3"].pairs else {**QUADRANTS, "q4": "Q4 source unseen"}
    for name, quadrant, found in rows:
        made.add_row(
            PREDICTORS.get(name, name),
            named[quadrant],
            number(found.r2, 3),
            number(found.spearman, 3),
            span(found.spearman_interval),
            number(found.mse, None),
            str(found.pairs),
            end_section=(name, quadrant) == ("student", "q4"),
        )
    return made


def value_table(selection: SelectionRecord) -> Table:
    """Return the objective's value of the selection beside those of the control selections."""
    from nncift.selection.controls import CONTROLS
    from nncift.selection.solve import RANDOM_DRAWS

    bound = f"this run ({selection.objective}; at least {100 * selection.share_of_optimum:.1f} % of optimal)"
    rows = [(bound, number(selection.value, 4))]
    for name, value in selection.controls.items():
        label = CONTROLS.get(name, name) + (f" (mean of {RANDOM_DRAWS})" if name == "random" else "")
        rows.append((label if value is not None else f"{label} (left out: too large a pool)", number(value, 4)))
    return table("Value of the selection, under known labels and predictions", ("selection", "value"), rows)


def cost_line(ledger: Ledger) -> str:
    """Return what passes of the teacher's model cost, against the full teacher and against training, as a sentence or two."""
    return (
        f"Teacher passes: {ledger.teacher_passes:,} instead of {ledger.full_teacher_passes:,}; in forward passes "
        f"{ledger.cost:,} instead of {ledger.full_teacher_cost:,} (saving {100 * ledger.saving:.1f} %), which is "
        f"{100 * ledger.share_of_training:.1f} % of training on all rows for 3 epochs."
    )


def cost_table(ledger: Ledger) -> Table:
    """Return the cost of every stage."""
    rows = (
        (
            name,
            f"{cost.seconds:.1f}",
            f"{cost.peak_mb:.0f}",
            f"{cost.model_passes:,}",
            f"{cost.model_tokens:,}",
        )
        for name, cost in ledger.stages.items()
    )
    return table("Cost", ("stage", "seconds", "peak MB", "model passes", "model tokens"), rows)


def show_warnings(out: Console, warnings: Sequence[str]) -> None:
    """Print warnings as one table, numbered; nothing where there is none."""
    if not warnings:
        return
    from rich.box import SIMPLE_HEAD

    from nncift.evaluation.verdicts import grouped

    warnings = grouped(warnings)
    made = table("Read before you use it" if len(warnings) > 1 else None, ("", "warning"), left=("warning",))
    made.box, made.show_header = SIMPLE_HEAD, False
    for place, warning in enumerate(warnings, 1):
        made.add_row(str(place), warning)
    out.print(made, style="yellow")


COLOURS = {"yes": "bold green", "no": "bold red", "unclear": "bold yellow"}


def show_verdict(out: Console, verdict: Verdict) -> None:
    """Print the answer first, and why."""
    out.print(verdict.headline, style=COLOURS[verdict.agrees_with_teacher])
    if verdict.why:
        out.print(verdict.why)


def show_figures(out: Console, result: RunSummary) -> None:
    """Print the four figures of a run: rows, agreement, stability, cost; a saving counts for nothing under a bad verdict."""
    ledger, agrees, skill = result.ledger, result.verdict.agrees_with_teacher, result.gate.headline
    rejected = f", {result.rejected:,} rejected (rejected.jsonl says why)" if result.rejected else ""
    agreement = "not measured"
    if result.all_labelled:
        agreement = "every utility is the teacher's own"
    elif skill is not None:
        low, high = skill.interval
        agreement = f"{skill.skill:.2f} of the way from chance to the teacher (90 % interval {low:.2f} to {high:.2f})"
    cost = f"{ledger.teacher_passes:,} passes of the teacher's model in {seconds(ledger.seconds)}"
    if agrees == "yes" and not result.all_labelled:
        cost += f", {100 * ledger.saving:.1f} % less than labelling everything"
    lines = (
        ("Selected", f"{result.selected:,} of {result.pool:,} rows{rejected}", None),
        ("Agreement", agreement, None if agrees == "yes" else "dim"),
        ("Stability", stability_line(result.selection, result.selected), None),
        ("Cost", f"{cost}; {100 * ledger.share_of_training:.1f} % of training on all rows for 3 epochs", None),
    )
    for name, said, style in lines:
        out.print(f"  {name:<10} {said}", style=style)


def stability_line(selection: SelectionRecord, chosen: int) -> str:
    """Return how many of the `chosen` rows are chosen again when the student is fitted on other labelled rows."""
    found = selection.stability
    if found is None:
        return "not measured"
    some = " that were looked at" if found.rows < chosen else ""
    what = f"chosen rows{some}" if found.parts is None else f"rows chosen from {found.parts} parts of the pool"
    return (
        f"{found.stable:,} of {found.rows:,} {what} are chosen in more than {100 * found.above:.0f} % of "
        f"{found.refits} refits"
    )


def show_next(out: Console, commands: Sequence[str], files: Sequence[str]) -> None:
    """Print where to look next: commands to type, and files."""
    for place, command in enumerate(commands):
        out.print(f"{'Next:' if not place else '     '}  {command}", soft_wrap=True)
    out.print(f"Files: {', '.join(files)}", soft_wrap=True)


def number(value: float | None, digits: int | None) -> str:
    """Return a number with its digits, in scientific notation for None digits, or a dash for no number."""
    if value is None:
        return "-"
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
