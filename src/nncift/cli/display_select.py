"""What `nncift select` and `nncift compare` print for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from nncift.cli.display import console, number, value_table
from nncift.selection.solve import by_score_note


def show_selection(summary: Mapping[str, Any]) -> None:
    """Print what was selected, beside its controls."""
    out, selection = console(), summary["selection"]
    removed = f", {selection['removed_duplicates']} duplicates removed first" if selection["removed_duplicates"] else ""
    tokens = f", {selection['tokens']:,} tokens" if "tokens" in selection else ""
    out.print(f"Selected {summary['selected']} of {summary['pool']} rows{tokens}{removed}.")
    out.print(value_table(selection))
    if (by_score := selection.get("by_score")) and (said := by_score_note(selection["budget"], by_score)):
        out.print(Text(f"! {said}"))
    out.print(Text(f"Files: {summary['out']}/subset.jsonl, selection.parquet", no_wrap=True, overflow="ignore"))


def show_comparison(summary: Mapping[str, Any]) -> None:
    """Print how two selections differ."""
    out, overlap = console(), summary["overlap"]
    out.print(
        Text(
            f"A: {summary['a']}, {overlap['a']} rows. B: {summary['b']}, {overlap['b']} rows. {summary['pool']} rows in common."
        )
    )
    if any(summary["only_in_pool"].values()):
        only = summary["only_in_pool"]
        out.print(f"Left out: {only['a']} rows that only A's pool has, and {only['b']} that only B's has.")
    out.print(
        f"In both: {overlap['both']} rows (by chance {overlap['both_by_chance']:.1f}); "
        f"of all that either has {100 * overlap['jaccard']:.1f} %."
    )
    table = Table(
        title="Coverage of the pool (mean highest cosine) and median length of responses", title_justify="left"
    )
    for name in ("", "A", "B", "random", "pool"):
        table.add_column(name, justify="right" if name else "left")
    coverage, length = summary["coverage"], summary["median_length"]
    table.add_row("coverage", number(coverage["a"], 4), number(coverage["b"], 4), number(coverage["random"], 4), "1")
    table.add_row("characters", number(length["a"], 0), number(length["b"], 0), "-", number(length["pool"], 0))
    out.print(table)
    for by, groups in summary["shifts"].items():
        table = Table(title=f"Shares by {by}, the greatest shift first", title_justify="left")
        for name in (by, "pool", "A", "B"):
            table.add_column(name, justify="left" if name == by else "right")
        for group in groups[:10]:
            shares = (f"{100 * group[name]:.1f} %" for name in ("pool", "a", "b"))
            table.add_row(Text(group["group"]), *shares)
        out.print(table)
