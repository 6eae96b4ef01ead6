"""`nncift export`: the selected rows as a trainer loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import console, show_warnings
from nncift.cli.options import choices, path_option, run_argument
from nncift.cli.shell import command, option
from nncift.errors import UsageError

if TYPE_CHECKING:
    from nncift.data.card import ExportResult


@command("export", example="nncift export runs/alpaca --to trl --out train.jsonl --max-length 2048")
@run_argument
@option(
    "--to",
    default="same",
    help="Trainer: same (rows as they are), trl, axolotl, llamafactory or openai.  [default: same]",
    **choices("same", "trl", "axolotl", "llamafactory", "openai"),
)
@path_option("--out", "File to write, .jsonl or .json.", required=True, group="Options")
@option(
    "--turns",
    help="Responses to learn from: all assistant turns, or the last.  [default: those that the run scored]",
    **choices("all", "last"),
)
@option("--max-length", type=int, help="The trainer's limit in tokens: rows whose response it would cut are refused.")
@option("--too-long", type=click.Choice(("refuse", "drop")), help="With --max-length: refuse such rows, or drop them.")
@option("--tokenizer", help="With --max-length: folder or hub name.  [default: the run's model]")
@option("--with-scores", is_flag=True, help="Add rank and scores of every row, in columns nncift_...")
def export_command(
    show: bool, run: Path, to: str, out: Path, turns: str | None, max_length: int | None, **flags: Any
) -> ExportResult:
    """Write the selected rows of RUN for a trainer, checked before they are written."""
    from nncift.data.export import export
    from nncift.data.lengths import LengthLimit
    from nncift.models.packaged import readable

    with_scores = flags.pop("with_scores")
    given = {name: value for name, value in flags.items() if value is not None}
    if given and max_length is None:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} was given, which goes with --max-length")
    limit = None if max_length is None else LengthLimit(max_length, **given)
    summary = export(run, out, to=to, turns=turns, length=limit, with_scores=with_scores, locate=readable)
    if show:
        _show(summary)
    return summary


def _show(summary: ExportResult) -> None:
    from collections import Counter

    out = console(wrap=False)
    out.print(f"Wrote {summary.rows} of {summary.selected} selected rows for {summary.to}: {', '.join(summary.files)}")
    for reason, count in Counter(row.reason for row in summary.left_out).most_common():
        out.print(f"Left out, {count} x {reason} (ids: --json)")
    if summary.start is not None:
        out.print(f"Start with: {summary.start}")
    show_warnings(out, summary.notes)
