"""`nncift explain`: why a row was chosen or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nncift.cli.display import console, table
from nncift.cli.options import run_argument
from nncift.cli.shell import command, option
from nncift.core.texts import one_line

SHOWN = 300
"""Characters of a text that are shown."""


@command("explain", example="nncift explain runs/alpaca --id row-17 --why-not")
@run_argument
@option("--id", "example_id", help="Id of a row, as in selection.parquet.")
@option("--rank", type=int, help="In its place: the selected row at this rank, from 1.")
@option("--search", help="In its place: text of the row; where several rows have it, they are listed.")
@option("--why-not", is_flag=True, help="Name for each target that the row serves the row that serves it now.")
def explain_command(
    show: bool, run: Path, example_id: str | None, rank: int | None, search: str | None, why_not: bool
) -> dict[str, Any]:
    """Explain why a row of RUN was chosen or dropped, and what would have to change.

    RUN is a folder of run or of select --out. Name the row by one of --id, --rank and --search.
    """
    from nncift.runs.explain import explain_found

    summary = explain_found(run, example_id, rank=rank, search=search, why_not=why_not).to_json()
    if show:
        (_show_matches if "found" in summary else _show)(summary)
    return summary


def _show_matches(summary: dict[str, Any]) -> None:
    """Print the rows that a text is in, one a line."""
    columns = ("id", "rank", "prompt", "response")
    made = table(f"{summary['found']:,} rows have {summary['search']!r}", columns, left=("id", "prompt", "response"))
    for row in summary["rows"]:
        made.add_row(
            row["id"], str(row["rank"] or "-"), one_line(row["prompt"], SHOWN), one_line(row["response"], SHOWN)
        )
    out = console(wrap=False)
    out.print(made)
    if summary["found"] > len(summary["rows"]):
        out.print(f"These are the first {len(summary['rows'])}: give more of the text.")
    out.print("Explain one of them with --id ID.")


def _show(summary: dict[str, Any]) -> None:
    out = console(wrap=False)
    out.print(f"{summary['id']} ({summary['source']}, line {summary['line']})")
    out.print(f"  prompt:   {one_line(summary['prompt'], SHOWN)}")
    out.print(f"  response: {one_line(summary['response'], SHOWN)}")
    out.print(summary["reason"])
    if summary["score"] is not None:
        out.print(
            f"Mean utility {summary['score']:.4g}: place {summary['score_place']:,} of {summary['pool']:,} rows by that alone."
        )
    if summary["stability"] is not None:
        out.print(f"Selected in {100 * summary['stability']:.0f} % of refits on labelled rows drawn again.")
    if summary["serves"]:
        columns = ("target", "utility", "how it is known")
        made = table("Targets that it serves best", columns, left=columns[2:])
        for one in summary["serves"]:
            how = "labelled by the teacher" if one["known"] else "predicted"
            if one["low"] is not None:
                how += f", 90 % interval {one['low']:.4g} to {one['high']:.4g}"
            made.add_row(one["target"], f"{one['utility']:.4g}", how)
        out.print(made)
    near = summary["nearest_selected"]
    if near:
        out.print(f"Nearest selected row by text: {near['id']} (rank {near['rank']}, cosine {near['cosine']:.3f})")
    for one in summary.get("rivals", []):
        best = f"best served by {one['rival']} (rank {one['rank']}): {one['utility']:.4g}"
        out.print(f"  {one['target']}: this row {one['own']:.4g}; {best}")
    out.print("What would have to change:")
    for sentence in summary["change"]:
        out.print(f"  {sentence}")
