"""`nncift compare`: how two selections differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import command


@click.command(name="compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--clusters", type=click.IntRange(min=2), default=10, show_default=True, help="Clusters of the embeddings."
)
@command
def compare_command(show: bool, a: Path, b: Path, clusters: int) -> dict[str, Any]:
    """Compare the selections of A and B, run directories or outputs of select: overlap, coverage, shifts."""
    from nncift.runs.compare import compare

    summary = compare(a, b, clusters=clusters).to_json()
    if show:
        from nncift.cli.display_select import show_comparison

        show_comparison(summary)
    return summary
