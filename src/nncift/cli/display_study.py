"""What `nncift study` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from nncift.cli.display import console
from nncift.core.texts import seconds


def show_study(summary: Mapping[str, Any]) -> None:
    """Print the analyses of a study, done or planned, and what was left out."""
    out, planned = console(), "out" not in summary
    table = Table(title=f"{'Would run' if planned else 'Study'} {summary['study']}", title_justify="left")
    for name in ("analysis", "kind", *(("pool", "seeds", "runs") if planned else ("records", "time", "files"))):
        table.add_column(name, justify="right" if name in ("seeds", "runs", "records", "time") else "left")
    for name, one in summary["analyses"].items():
        if planned:
            table.add_row(name, one["kind"], one["pool"], str(one["seeds"]), str(one["runs"]))
        else:
            table.add_row(name, one["kind"], str(one["records"]), seconds(one["seconds"]), ", ".join(one["files"]))
    out.print(table)
    for name, why in summary["left_out"].items():
        out.print(Text(f"! {name}: {why}"))
    if not planned:
        out.print(Text(f"Files in {summary['out']}"))
