"""`nncift explain`: why a row was chosen or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import command


@click.command(name="explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--id", "example_id", required=True, help="Id of a row, as in selection.parquet.")
@click.option("--why-not", is_flag=True, help="Tell for each target that the row serves who serves it now.")
@command
def explain_command(show: bool, run: Path, example_id: str, why_not: bool) -> dict[str, Any]:
    """Tell why a row of RUN was chosen or dropped, and what would have to change."""
    from nncift.runs.explain import explain

    summary = explain(run, example_id, why_not=why_not).to_json()
    if show:
        _show(summary)
    return summary


def _show(summary: dict[str, Any]) -> None:
    from rich.table import Table

    from nncift.cli.display import console

    out = console()
    out.soft_wrap = True
    out.print(f"{summary['id']} ({summary['source']}, line {summary['line']})")
    out.print(f"  prompt:   {_short(summary['prompt'])}")
    out.print(f"  response: {_short(summary['response'])}")
    out.print(summary["reason"])
    if summary["score"] is not None:
        out.print(
            f"Mean utility {summary['score']:.4g}: place {summary['score_place']:,} of {summary['pool']:,} rows by that alone."
        )
    if summary["serves"]:
        table = Table(title="Targets that it serves best", title_justify="left")
        for name in ("target", "utility", "how it is known"):
            table.add_column(name, justify="right" if name == "utility" else "left")
        for one in summary["serves"]:
            how = "labelled by the teacher" if one["known"] else "predicted"
            if one["low"] is not None:
                how += f", 90 % interval {one['low']:.4g} to {one['high']:.4g}"
            table.add_row(one["target"], f"{one['utility']:.4g}", how)
        out.print(table)
    near = summary["nearest_selected"]
    if near:
        out.print(f"Nearest selected row by text: {near['id']} (rank {near['rank']}, cosine {near['cosine']:.3f})")
    for one in summary.get("rivals", []):
        best = f"best served by {one['rival']} (rank {one['rank']}): {one['utility']:.4g}"
        out.print(f"  {one['target']}: this row {one['own']:.4g}; {best}")
    out.print("What would have to change:")
    for sentence in summary["change"]:
        out.print(f"  {sentence}")


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + "..."
