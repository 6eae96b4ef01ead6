"""`nncift select`: choose again from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import command, engine_options, memory_option, selection_options


@click.command(name="select")
@click.argument("run", type=click.Path(path_type=Path))
@selection_options
@click.option("--objective", help="fl, flmi, fl2mi, flcg, rr, max, topk or random.  [default: the run's]")
@click.option("--out", type=click.Path(path_type=Path), help="New directory.  [default: replace the run's selection]")
@engine_options
@memory_option
@command
def select_command(
    show: bool,
    run: Path,
    out: Path | None,
    engine: str,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    **flags: Any,
) -> dict[str, Any]:
    """Choose again from a finished RUN: another budget, objective or rules; no model is loaded."""
    from nncift.distributed.start import executor_of
    from nncift.runs.select_again import reselect

    if engine == "ray" and gpus_per_worker is None:
        # No model is asked.
        gpus_per_worker = 0.0
    executor = executor_of(engine, address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    summary = reselect(run, given, out, executor)
    if show:
        from nncift.cli.display_select import show_selection

        show_selection(summary)
    return summary
