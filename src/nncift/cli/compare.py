"""`nncift compare`: how two selections differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nncift.cli.display import console, number, table
from nncift.cli.shell import command, option

if TYPE_CHECKING:
    from nncift.runs.compare import Comparison


@command("compare", example="nncift compare runs/alpaca runs/alpaca-10")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@option("--clusters", type=click.IntRange(min=2), default=10, show_default=True, help="Clusters of the embeddings.")
def compare_command(show: bool, a: Path, b: Path, clusters: int) -> Comparison:
    """Compare the selections of A and B, run directories or outputs of select: overlap, coverage, shifts."""
    from nncift.runs.compare import compare

    found = compare(a, b, clusters=clusters)
    if show:
        _show(found)
    return found


def _show(found: Comparison) -> None:
    """Print how two selections differ."""
    out, overlap, only = console(), found.overlap, found.only_in_pool
    out.print(f"A: {found.a}, {overlap.a} rows. B: {found.b}, {overlap.b} rows. {found.pool} rows in common.")
    if any(only.values()):
        out.print(f"Left out: {only['a']} rows that only A's pool has, and {only['b']} that only B's has.")
    out.print(
        f"In both: {overlap.both} rows (by chance {overlap.both_by_chance:.1f}); "
        f"of all that either has {100 * overlap.jaccard:.1f} %."
    )
    coverage, length = found.coverage, found.median_length
    rows = [
        ("coverage", *(number(coverage[name], 4) for name in ("a", "b", "random")), "1"),
        ("characters", number(length["a"], 0), number(length["b"], 0), "-", number(length["pool"], 0)),
    ]
    title = "Coverage of the pool (mean highest cosine) and median length of responses"
    out.print(table(title, ("", "A", "B", "random", "pool"), rows))
    for by, groups in found.shifts.items():
        rows = [(one.group, *(f"{100 * share:.1f} %" for share in (one.pool, one.a, one.b))) for one in groups[:10]]
        out.print(table(f"Shares by {by}, the greatest shift first", (by, "pool", "A", "B"), rows))
