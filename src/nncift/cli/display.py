"""What the command line prints for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nncift.core.progress import Advance
from nncift.core.texts import seconds
from nncift.stages.finish import Run

PREDICTORS = {
    "student": "student",
    "mean": "training mean",
    "additive": "additive ridge",
    "cosine": "cosine",
    "hidden": "hidden-state cosine",
    "output": "output-gradient cosine",
    "sum": "sum of the cosines",
    "ridge": "product ridge",
}


def console() -> Console:
    """Return a console on standard output, wide enough for tables where it is no terminal.

    Markup is off: paths, names and notes come from users and files, and may hold square brackets.
    """
    width = None if sys.stdout.isatty() else 110
    return Console(file=sys.stdout, highlight=False, soft_wrap=False, markup=False, emoji=False, width=width)


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left on standard error."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)


def show_run(run: Run) -> None:
    """Print what a run selected, how far its predictions can be trusted, what it cost, and where things are."""
    out, result = console(), run.summary
    labels, ledger = result["labels"], result["ledger"]
    rejected = f", {result['rejected']} rejected (rejected.jsonl says why)" if result["rejected"] else ""
    out.print(
        f"Selected {result['selected']} of {result['pool']} rows{rejected}. Teacher {result['teacher']}, plan {result['plan']}. "
        f"{split_line(labels)}"
    )
    out.print(fidelity_table(result))
    if result["gate"]["skill"]:
        out.print(gate_table(result["gate"]))
    out.print(value_table(result["selection"]))
    out.print(cost_table(ledger))
    out.print(
        f"{cost_line(ledger)} Labelling everything would take about {seconds(ledger['full_teacher_seconds'])} at the measured "
        "rate."
    )
    show_warnings(out, run.warnings)
    out.print(Text(f"Files: {run.path}/subset.jsonl, selection.parquet, report.html", no_wrap=True, overflow="ignore"))


def show_demo(result: Mapping[str, Any], out_folder: Path) -> None:
    """Print how a selection fares where the truth is known, and where to look next."""
    out, truth, ledger = console(), result["truth"], result["ledger"]
    out.print(
        f"A world of {result['pool']} instruction examples from {truth['skills_covered']['all']:.0f} invented skills, "
        f"{100 * truth['corrupted_share']['pool']:.0f} % of them corrupted. A tiny language model, shipped with nncift, judged "
        f"{100 * (1 - ledger['saving']):.1f} % of the pairs; a student learned the rest; {result['selected']} rows were selected."
    )
    out.print(fidelity_table(result))
    out.print(truth_table(truth, result["selected"]))
    out.print(cost_table(ledger))
    out.print(
        f"{cost_line(ledger)} The true matrix behind the table above took {truth['passes']:,} passes more, which only a demo can "
        "afford."
    )
    show_warnings(out, result["warnings"])
    where = out_folder / "run"
    out.print(Text(f"Report: {where}/report.html (open it in a browser)"))
    out.print(Text(f"Selected rows: {where}/subset.jsonl. A reason for every row: {where}/selection.parquet."))
    out.print(
        Text(f"World and truth: {out_folder}/world. Your own data: nncift run FILE.jsonl --model MODEL --out DIR")
    )


def truth_table(truth: Mapping[str, Any], selected: int) -> Table:
    """Return every way to select, judged by the true matrix."""
    table = Table(title=f"{selected} rows selected in each way, judged by the true matrix", title_justify="left")
    for name in ("selection", "value", "skill", "corrupted", "skills covered"):
        table.add_column(name, justify="left" if name == "selection" else "right")
    labels = {
        "random": f"random (mean of {truth['random_draws']})",
        "embeddings": "embeddings alone",
        **{name: CONTROLS[name] for name in ("hidden", "output", "sum") if name in truth["objective"]},
        "selected": "this run",
        "oracle": "oracle (knows skills and corruptions)",
        "full_teacher": "full teacher",
    }
    skills = {way: truth.get(f"{way}_skill") for way in labels}
    skills |= {"random": 0.0, "full_teacher": 1.0, "selected": truth["skill"]}
    covered = truth["skills_covered"]
    for way, label in labels.items():
        table.add_row(
            label,
            number(truth["objective"][way], 2),
            number(skills[way], 2),
            f"{100 * truth['corrupted_share'][way]:.0f} %",
            f"{covered[way]:.3g} of {covered['all']:.0f}",
            style="bold" if way == "selected" else None,
        )
    return table


def fidelity_table(result: Mapping[str, Any]) -> Table:
    """Return the student's measures by quadrant, and those of the baselines on pairs of unseen items."""
    table = Table(title="How well teacher values are predicted (95 % intervals over items)", title_justify="left")
    for name in ("predictor", "pairs of", "R^2", "Spearman", "interval", "MSE", "pairs"):
        table.add_column(name, justify="left" if name in ("predictor", "pairs of") else "right")
    meaning = {"q1": "Q1 seen items", "q2": "Q2 target unseen", "q3": "Q3 source unseen", "q4": "Q4 both unseen"}
    found_in = [quadrant for quadrant in meaning if result["fidelity"][quadrant]["pairs"]]
    rows = [("student", quadrant, result["fidelity"][quadrant]) for quadrant in found_in]
    rows += [(name, "q4", quadrants["q4"]) for name, quadrants in result["baselines"].items()]
    for name, quadrant, found in rows:
        table.add_row(
            PREDICTORS.get(name, name),
            meaning[quadrant],
            number(found["r2"], 3),
            number(found["spearman"], 3),
            interval(found["spearman_interval"]),
            number(found["mse"], None),
            str(found["pairs"]),
            end_section=(name, quadrant) == ("student", "q4"),
        )
    return table


def gate_table(gate: Mapping[str, Any]) -> Table:
    """Return the selection skill of the student and of what is free on held-out rows, and which of them the run uses."""
    table = Table(title="Selection skill on held-out rows (0 chance, 1 the teacher's labels)", title_justify="left")
    for name in ("predictor", "skill", "standard error"):
        table.add_column(name, justify="left" if name == "predictor" else "right")
    for name, found in gate["skill"].items():
        used = name == gate["used"]
        shown = f"{PREDICTORS.get(name, name)}{' (used)' if used else ''}"
        table.add_row(shown, number(found["skill"], 2), number(found["error"], 2), style="bold" if used else None)
    return table


CONTROLS = {
    "random": "random (mean of 10)",
    "stratified": "random by source",
    "longest": "longest responses",
    "embedding": "embeddings alone",
    "hidden": "hidden states alone (a probe)",
    "output": "output gradients alone (a probe)",
    "sum": "sum of all similarities (a probe)",
}


def value_table(selection: Mapping[str, Any]) -> Table:
    """Return the objective's value of the selection beside those of the control selections."""
    table = Table(title="Value of the selection, under known labels and predictions", title_justify="left")
    for name in ("selection", "value"):
        table.add_column(name, justify="right" if name == "value" else "left")
    bound = f"this run ({selection['objective']}; at least {100 * selection['share_of_optimum']:.1f} % of optimal)"
    table.add_row(bound, number(selection["value"], 4))
    for name, value in selection["controls"].items():
        label = CONTROLS.get(name, name)
        table.add_row(label if value is not None else f"{label} (left out: too large a pool)", number(value, 4))
    return table


def cost_line(ledger: Mapping[str, Any]) -> str:
    """Return what passes of the teacher's model cost, against the full teacher and against training, as a sentence or two."""
    return (
        f"Teacher passes: {ledger['teacher_passes']:,} instead of {ledger['full_teacher_passes']:,}; in forward passes "
        f"{ledger['cost']:,} instead of {ledger['full_teacher_cost']:,} (saving {100 * ledger['saving']:.1f} %), which is "
        f"{100 * ledger['share_of_training']:.1f} % of training on all rows for 3 epochs."
    )


def cost_table(ledger: Mapping[str, Any]) -> Table:
    """Return the cost of every stage."""
    table = Table(title="Cost", title_justify="left")
    for name in ("stage", "seconds", "peak MB", "model passes", "model tokens"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, cost in ledger["stages"].items():
        table.add_row(
            name,
            f"{cost['seconds']:.1f}",
            f"{cost['peak_mb']:.0f}",
            f"{cost['model_passes']:,}",
            f"{cost['model_tokens']:,}",
        )
    return table


def show_estimate(result: Mapping[str, Any]) -> None:
    """Print what a run would cost."""
    out = console()
    selected = "as many as the tokens hold" if result["selected"] is None else result["selected"]
    out.print(
        f"{result['pool']} usable rows, {result['rejected']} rejected; {selected} would be selected. Nothing was written."
    )
    out.print(split_line(result["labels"]))
    table = Table(title="What it would cost: passes are counted, times come from a few passes", title_justify="left")
    for name in ("", "passes", "tokens", "time"):
        table.add_column(name, justify="right" if name else "left")
    parts = {
        "labels to learn from": "learn",
        "labels to measure with": "measure",
        "probe": "probe",
        "embedding": "embed",
        "total of the teacher's model": "total",
        "everything (full teacher)": "full_teacher",
    }
    for name, key in parts.items():
        cost = result[key]
        if cost["passes"]:
            shown = ["-" if cost["tokens"] is None else f"{cost['tokens']:,}"]
            shown.append("-" if cost["seconds"] is None else seconds(cost["seconds"]))
            table.add_row(name, f"{cost['passes']:,}", *shown, end_section=key == "embed")
    out.print(table)
    size = result["bytes"]
    untimed = (
        "" if result["embed"]["seconds"] is not None else " The encoder is not loaded for this, and its time not told."
    )
    out.print(
        f"In forward passes {result['cost']:,} instead of {result['full_teacher_cost']:,} "
        f"(saving {100 * result['saving']:.1f} %), which is {100 * result['share_of_training']:.1f} % of training on all rows "
        f"for 3 epochs.{untimed} Disk: "
        f"{(size['labels'] + size['vectors'] + size['student']) / 1e6:.1f} MB. Memory for the matrix: "
        f"{size['matrix_in_memory'] / 1e6:.0f} MB."
    )
    show_warnings(out, result["notes"])
    if result["note"]:
        out.print(str(result["note"]))


def split_line(labels: Mapping[str, int]) -> str:
    """Return what labels are for, as a sentence."""
    what = "scores" if "q2" not in labels else "pairs"
    tested = sum(labels.get(split, 0) for split in ("q2", "q3", "test"))
    rows = ""
    if "rows" in labels:
        rows = (
            f"{labels['rows']:,} measured rows ({labels['train_rows']:,} to learn from, {labels['validation_rows']:,} to "
            f"validate, {labels['test_rows']:,} to test): "
        )
    return f"Labels: {rows}{labels['train']:,} {what} to learn from, {labels['validation']:,} to validate, {tested:,} to test."


def show_scores(result: Mapping[str, Any]) -> None:
    """Print what was scored."""
    out = console()
    low, _, middle, _, high = result["score_quartiles"]
    out.print(
        f"Scored {result['rows']} rows ({result['rejected']} rejected): {low:.5f} to {high:.5f}, median {middle:.5f}."
    )
    if result["interval"]:
        width = "" if result["interval_half_width"] is None else f" Half-width {result['interval_half_width']:.5f}."
        out.print(f"{result['interval']}{width}")
    show_warnings(out, result["warnings"])
    out.print(Text(f"File: {result['out']}"))


def show_doctor(result: Mapping[str, Any]) -> None:
    """Print what the machine offers."""
    out = console()
    memory = result["free_memory_bytes"]
    out.print(
        f"Python {result['python']} on {result['platform']}, {result['cores']} cores, {result['torch_threads']} threads"
    )
    out.print(f"Devices: {', '.join(result['devices'])}")
    out.print(
        f"Free: {'unknown' if memory is None else f'{memory / 1e9:.1f} GB'} memory, {result['free_disk_bytes'] / 1e9:.1f} GB disk"
    )
    out.print(f"Cache: {result['cache']} ({result['cache_bytes'] / 1e6:.1f} MB)")
    for name, version in result["packages"].items():
        out.print(f"  {name} {version or 'missing'}")
    for name, there in result["extras"].items():
        out.print(f"  extra {name}: {'installed' if there else 'missing: pip install nncift[' + name + ']'}")


def show_warnings(out: Console, warnings: Sequence[str]) -> None:
    """Print warnings, one a line."""
    for warning in warnings:
        out.print(Text(f"Note: {warning}", style="yellow"))


def number(value: float | None, digits: int | None) -> str:
    """Return a number with its digits, in scientific notation for None digits, or a dash for no number."""
    if value is None:
        return "-"
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Return an interval as text."""
    return "-" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
