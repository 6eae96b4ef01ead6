"""`nncift export`: the selected rows as a trainer loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import command
from nncift.errors import UsageError


@click.command(name="export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", default="same", show_default=True, help="same, trl, axolotl, llamafactory or openai.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .jsonl or .json file.")
@click.option(
    "--turns", default="all", show_default=True, help="Responses to learn from: all assistant turns, or the last."
)
@click.option(
    "--max-length", type=int, help="The trainer's limit in tokens: rows whose response it would cut are refused."
)
@click.option("--too-long", type=click.Choice(("refuse", "drop")), help="With --max-length: refuse, or drop such rows.")
@click.option("--tokenizer", help="With --max-length: folder or hub name.  [default: the run's model]")
@click.option("--with-scores", is_flag=True, help="Add rank and scores of every row, in columns nncift_...")
@command
def export_command(
    show: bool,
    run: Path,
    to: str,
    out: Path,
    turns: str,
    max_length: int | None,
    with_scores: bool,
    **length: str | None,
) -> dict[str, Any]:
    """Write the selected rows of RUN for a trainer, checked before they are written."""
    from nncift.data.export import export
    from nncift.data.lengths import LengthLimit

    given = {name: value for name, value in length.items() if value is not None}
    if given and max_length is None:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} was given, which goes with --max-length")
    limit = None if max_length is None else LengthLimit(max_length, **given)
    summary = export(run, out, to=to, turns=turns, length=limit, with_scores=with_scores)
    if show:
        _show(summary)
    return summary


def _show(summary: dict[str, Any]) -> None:
    from collections import Counter

    from nncift.cli.display import console, show_warnings

    out = console()
    out.soft_wrap = True
    out.print(
        f"Wrote {summary['rows']} of {summary['selected']} selected rows for {summary['to']}: {', '.join(summary['files'])}"
    )
    for reason, count in Counter(row["reason"] for row in summary["left_out"]).most_common():
        out.print(f"Left out, {count} x {reason} (ids: --json)")
    if "start" in summary:
        out.print(f"Start with: {summary['start']}")
    show_warnings(out, summary["notes"])
