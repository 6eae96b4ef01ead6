"""`nncift score`: score new rows with a finished run's student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import console, show_warnings
from nncift.cli.options import chosen, fetch_option, memory_option, offline_option, path_option, settings_options
from nncift.cli.shell import command
from nncift.config import RunSettings

if TYPE_CHECKING:
    from nncift.stages.finish import ScoreSummary


@command("score", example="nncift score new.jsonl --run runs/alpaca --out scores.parquet")
@click.argument("new", nargs=-1, required=True, type=str)
@path_option("--run", "Directory of a finished run.", required=True, group="Options")
@path_option("--out", "File to write: .parquet, .csv or .jsonl.", required=True, group="Options")
@settings_options(RunSettings, ("format", "map", "limit", "device"))
@fetch_option
@offline_option
@memory_option
def score_command(show: bool, new: tuple[str, ...], run: Path, out: Path, fetch: bool, **flags: Any) -> ScoreSummary:
    """Score NEW rows with the student of a finished run; no language model is loaded."""
    from nncift.data import read
    from nncift.stages.finish import score_file
    from nncift.stages.inputs import turns_of
    from nncift.storage.outputs import check_replaces_nothing

    given = chosen(flags, RunSettings)
    device = given.pop("device", "auto")
    check_replaces_nothing(out, new, run)
    given["turns"] = turns_of(run)
    result = score_file(read(*new, **given), run, out, device=device, fetch=fetch)
    if show:
        _show(result)
    return result


def _show(result: ScoreSummary) -> None:
    """Print what was scored."""
    out = console()
    low, _, middle, _, high = result.score_quartiles
    out.print(f"Scored {result.rows} rows ({result.rejected} rejected): {low:.5f} to {high:.5f}, median {middle:.5f}.")
    if result.interval:
        width = "" if result.interval_half_width is None else f" Half-width {result.interval_half_width:.5f}."
        out.print(f"{result.interval}{width}")
    show_warnings(out, result.warnings)
    out.print(f"File: {result.out}")
