"""`nncift compare`: how two selections differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nncift.cli.display import console, number, table
from nncift.cli.shell import command, option


@command("compare", example="nncift compare runs/alpaca runs/alpaca-10")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@option("--clusters", type=click.IntRange(min=2), default=10, show_default=True, help="Clusters of the embeddings.")
def compare_command(show: bool, a: Path, b: Path, clusters: int) -> dict[str, Any]:
    """Compare the selections of A and B, run directories or outputs of select: overlap, coverage, shifts."""
    from nncift.runs.compare import compare

    summary = compare(a, b, clusters=clusters).to_json()
    if show:
        _show(summary)
    return summary


def _show(summary: Mapping[str, Any]) -> None:
    """Print how two selections differ."""
    out, overlap, only = console(), summary["overlap"], summary["only_in_pool"]
    out.print(
        f"A: {summary['a']}, {overlap['a']} rows. B: {summary['b']}, {overlap['b']} rows. {summary['pool']} rows in common."
    )
    if any(only.values()):
        out.print(f"Left out: {only['a']} rows that only A's pool has, and {only['b']} that only B's has.")
    out.print(
        f"In both: {overlap['both']} rows (by chance {overlap['both_by_chance']:.1f}); "
        f"of all that either has {100 * overlap['jaccard']:.1f} %."
    )
    coverage, length = summary["coverage"], summary["median_length"]
    rows = [
        ("coverage", *(number(coverage[name], 4) for name in ("a", "b", "random")), "1"),
        ("characters", number(length["a"], 0), number(length["b"], 0), "-", number(length["pool"], 0)),
    ]
    title = "Coverage of the pool (mean highest cosine) and median length of responses"
    out.print(table(title, ("", "A", "B", "random", "pool"), rows))
    for by, groups in summary["shifts"].items():
        rows = [
            (group["group"], *(f"{100 * group[name]:.1f} %" for name in ("pool", "a", "b"))) for group in groups[:10]
        ]
        out.print(table(f"Shares by {by}, the greatest shift first", (by, "pool", "A", "B"), rows))
