"""`nncift study`: the paper's analyses as resumable sweeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nncift.cli.display import console, table
from nncift.cli.options import assignment, choices, offline_option, path_option, settings_options
from nncift.cli.shell import command, option, progress
from nncift.config import RunSettings
from nncift.core.result_types import JsonObject
from nncift.core.texts import seconds
from nncift.errors import UsageError

PRESETS = ("laptop", "paper", "smollm2")


@command("study", example="nncift study --preset laptop --dry-run")
@click.argument("grid", required=False, type=click.Path(path_type=Path))
@option(
    "--preset", help=f"Study that comes with nncift, in place of a file: {', '.join(PRESETS)}.", **choices(*PRESETS)
)
@option(
    "--set",
    "assigned",
    multiple=True,
    metavar="NAME=VALUE",
    help="What $NAME in the study stands for, such as model=DIR; several of one name make a list (data=FILE).",
)
@option("--only", multiple=True, help="An analysis to run, in place of all; may be repeated.")
@option("--dry-run", is_flag=True, help="List what would be computed, and stop.")
@option(
    "--rehearse",
    type=int,
    metavar="ROWS",
    help="Try all of it small: so many rows of each pool, one seed, few labels; into runs/study-NAME-rehearsal.",
)
@path_option("--out", "Folder; one that exists goes on.  [default: runs/study-NAME]", group="Options")
@settings_options(RunSettings, ("device",))
@offline_option
def study_command(
    show: bool, grid: Path | None, preset: str | None, assigned: tuple[str, ...], dry_run: bool, **flags: Any
) -> JsonObject:
    """Run the analyses of GRID, a YAML file, or of a preset; what is finished is not computed again."""
    from nncift.studies import run_study as run
    from nncift.studies.grid import load, rehearsed

    if (grid is None) == (preset is None):
        raise UsageError("give a study file or --preset laptop, one of the two")
    path, rehearse = run.preset(str(preset)) if grid is None else grid, flags["rehearse"]
    given = defaultdict(list)
    for item in assigned:
        name, value = assignment("--set", item)
        given[name].append(value)
    if dry_run:
        asked = load(path, given)
        summary = run.plan(asked if rehearse is None else rehearsed(asked, rehearse))
    else:
        own = Path("runs") / f"study-{path.stem}{'' if rehearse is None else '-rehearsal'}"
        folder, device = flags.pop("out") or own, flags.pop("device") or "auto"
        summary = run.study(path, folder, given=given, device=device, progress=progress(show), **flags)
        summary = {**summary, "out": str(folder)}
    if show:
        _show(summary)
    return summary


def _show(summary: Mapping[str, Any]) -> None:
    """Print the analyses of a study, done or planned, and what was left out."""
    out, planned = console(), "out" not in summary
    columns = ("analysis", "kind", *(("pool", "seeds", "runs") if planned else ("records", "time", "files")))
    made = table(f"{'Would run' if planned else 'Study'} {summary['study']}", columns, left=("kind", "pool", "files"))
    for name, one in summary["analyses"].items():
        if planned:
            made.add_row(name, one["kind"], one["pool"], str(one["seeds"]), str(one["runs"]))
        else:
            made.add_row(name, one["kind"], str(one["records"]), seconds(one["seconds"]), ", ".join(one["files"]))
    out.print(made)
    for name, why in summary["left_out"].items():
        out.print(f"! {name}: {why}")
    if not planned:
        out.print(f"Files in {summary['out']}")
