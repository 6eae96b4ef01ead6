"""`nncift demo`: the whole idea on a generated world where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import (
    console,
    cost_line,
    cost_table,
    fidelity_table,
    number,
    show_figures,
    show_next,
    show_verdict,
    show_warnings,
    table,
)
from nncift.cli.options import path_option, verbose_option
from nncift.cli.shell import command, option, progress

if TYPE_CHECKING:
    from rich.table import Table

    from nncift.core.result_types import JsonObject
    from nncift.demo.play import DemoResult


@command("demo", example="nncift demo --out runs/demo")
@path_option("--out", "Folder.  [default: runs/demo]", default=Path("runs/demo"), group="Options")
@option("--rows", type=click.IntRange(min=50), default=200, show_default=True, help="Rows of the world.")
@option("--labels", default="20%", show_default=True, help="As in run.")
@option("--budget", default="10%", show_default=True, help="As in run.")
@option("--encoder", default="hash", show_default=True, help="As in run.")
@option("--seed", type=int, default=0, show_default=True, help="One seed for world and run.")
@verbose_option
def demo_command(show: bool, out: Path, verbose: bool, **settings: Any) -> DemoResult:
    """Show the whole idea on a generated world where the truth is known."""
    from nncift.demo.play import play

    result = play(out, progress=progress(show), **settings)
    if show:
        _show(result, out, verbose=verbose)
    return result


def _show(found: DemoResult, folder: Path, *, verbose: bool) -> None:
    """Print the answer, how a selection fares where the truth is known, and where to look next."""
    out, result, truth, where = console(), found.summary, found.truth, folder / "run"
    show_verdict(out, result.verdict)
    show_figures(out, result)
    out.print(
        f"A world of {result.pool} instruction examples from {truth['skills_covered']['all']:.0f} invented skills, "
        f"{100 * truth['corrupted_share']['pool']:.0f} % of them corrupted. A tiny language model, shipped with nncift, is the "
        f"teacher's. Judged by all {truth['passes']:,} true values, which only a demo can afford:"
    )
    out.print(_truth_table(truth, result.selected))
    if verbose:
        out.print(fidelity_table(result.fidelity, result.baselines))
        out.print(cost_table(result.ledger))
        out.print(cost_line(result.ledger))
    show_warnings(out, result.warnings)
    show_next(out, result.verdict.next, (f"{where}/report.html", "subset.jsonl", "selection.parquet"))
    out.print(f"World and truth: {folder}/world. Your own data: nncift run FILE.jsonl --model MODEL --out DIR")


def _truth_table(truth: JsonObject, selected: int) -> Table:
    """Return every way to select, judged by the true matrix."""
    from nncift.selection.controls import CONTROLS

    columns = ("selection", "value", "skill", "corrupted", "skills covered")
    made = table(f"{selected} rows selected in each way, judged by the true matrix", columns)
    labels = {
        "random": f"random (mean of {truth['random_draws']})",
        "embeddings": "embeddings alone",
        **{name: CONTROLS[name] for name in ("hidden", "output", "sum", "rds") if name in truth["objective"]},
        "selected": "this run",
        "oracle": "oracle (knows skills and corruptions)",
        "full_teacher": "full teacher",
    }
    skills = {way: truth.get(f"{way}_skill") for way in labels}
    skills |= {"random": 0.0, "full_teacher": 1.0, "selected": truth["skill"]}
    covered = truth["skills_covered"]
    for way, label in labels.items():
        made.add_row(
            label,
            number(truth["objective"][way], 2),
            number(skills[way], 2),
            f"{100 * truth['corrupted_share'][way]:.0f} %",
            f"{covered[way]:.3g} of {covered['all']:.0f}",
            style="bold" if way == "selected" else None,
        )
    return made
