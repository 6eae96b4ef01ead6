"""`nncift export`: the selected rows as a trainer loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.commands.shell import command


@click.command(name="export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", default="same", show_default=True, help="same, trl, axolotl or llamafactory.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .jsonl or .json file.")
@click.option(
    "--turns", default="all", show_default=True, help="Responses to learn from: all assistant turns, or the last."
)
@command
def export_command(show: bool, run: Path, to: str, out: Path, turns: str) -> dict[str, Any]:
    """Write the selected rows of RUN for a trainer, checked before they are written."""
    from nncift.data.export import export

    told = export(run, out, to=to, turns=turns)
    if show:
        _show(told)
    return told


def _show(told: dict[str, Any]) -> None:
    from collections import Counter

    from nncift.show import console, show_warnings

    out = console()
    out.soft_wrap = True
    out.print(f"Wrote {told['rows']} of {told['selected']} selected rows for {told['to']}: {', '.join(told['files'])}")
    for reason, count in Counter(row["reason"] for row in told["left_out"]).most_common():
        out.print(f"Left out, {count} x {reason} (ids: --json)")
    show_warnings(out, told["notes"])
