"""What `nncift tune` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nncift.cli.display import console, show_warnings
from nncift.finetune.tune_report import READING, arm_rows, comparison_rows, groups_of, summary, title


def show_tune(tune: Mapping[str, Any], out_folder: Path) -> None:
    """Print every arm's values, every comparison, and how to read them."""
    out = console()
    for line in summary(tune):
        out.print(line)
    for group in groups_of(tune):
        out.print(_table(title(group), arm_rows(group, tune["metrics"]), left=1))
        if group.comparisons:
            out.print(_table("Beside each other", comparison_rows(group), left=3))
    for line in READING:
        out.print(line)
    show_warnings(out, tune["notes"])
    out.print(Text(f"Files: {out_folder}/tune.html, tune.md, tune.json", no_wrap=True, overflow="ignore"))


def _table(name: str, rows: Sequence[Sequence[str]], left: int) -> Table:
    table = Table(title=name, title_justify="left")
    for place, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if place < left or head == "verdict" else "right")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table
