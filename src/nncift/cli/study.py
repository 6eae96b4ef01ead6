"""`nncift study`: the paper's analyses as resumable sweeps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import assignment, command, offline_option, progress
from nncift.errors import UsageError


@click.command(name="study")
@click.argument("grid", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="laptop or paper, in place of a file.")
@click.option(
    "--set",
    "set_",
    multiple=True,
    metavar="NAME=VALUE",
    help="What $NAME in the study stands for, such as model=DIR; several of one name make a list (data=FILE).",
)
@click.option("--only", multiple=True, help="An analysis to run, in place of all; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be computed, and stop.")
@click.option(
    "--rehearse",
    type=int,
    metavar="ROWS",
    help="All of it in little: so many rows of each pool, one seed, few labels; into runs/study-NAME-rehearsal.",
)
@click.option("--device", default="auto", show_default=True, help="As in run.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder; one that exists goes on.  [default: runs/study-NAME]"
)
@offline_option
@command
def study_command(
    show: bool,
    grid: Path | None,
    preset: str | None,
    set_: tuple[str, ...],
    only: tuple[str, ...],
    dry_run: bool,
    rehearse: int | None,
    device: str,
    out: Path | None,
) -> dict[str, Any]:
    """Run the analyses of GRID, a YAML file, or of a preset; what is finished is not computed again."""
    from nncift.studies import run_study as run
    from nncift.studies.grid import load, rehearsed

    if (grid is None) == (preset is None):
        raise UsageError("give a study file or --preset laptop, one of the two")
    path = run.preset(str(preset)) if grid is None else grid
    given = defaultdict(list)
    for item in set_:
        name, value = assignment("--set", item)
        given[name].append(value)
    if dry_run:
        asked = load(path, given)
        summary = run.plan(asked if rehearse is None else rehearsed(asked, rehearse))
    else:
        folder = out or Path("runs") / f"study-{path.stem}{'' if rehearse is None else '-rehearsal'}"
        summary = run.study(
            path, folder, given=given, only=only, rehearse=rehearse, device=device, progress=progress(show)
        )
        summary = {**summary, "out": str(folder)}
    if show:
        from nncift.cli.display_study import show_study

        show_study(summary)
    return summary
