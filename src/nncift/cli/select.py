"""`nncift select`: choose again from a finished run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.cli.display import console, show_verdict, value_table
from nncift.cli.options import (
    chosen,
    engine_options,
    executor_from,
    memory_option,
    path_option,
    run_argument,
    settings_options,
)
from nncift.cli.shell import command
from nncift.config import SelectSettings

if TYPE_CHECKING:
    from nncift.runs.select_again import Reselection


@command(
    "select",
    example="nncift select runs/alpaca --budget 10% --out runs/alpaca-10",
    everyday=("budget", "objective", "quota", "include", "exclude", "dedup", "out"),
)
@run_argument
@settings_options(SelectSettings, shown="the run's")
@path_option("--out", "New directory.  [default: replace the run's selection]")
@engine_options
@memory_option
def select_command(show: bool, run: Path, out: Path | None, **flags: Any) -> Reselection:
    """Select again from a finished RUN: another budget, objective or rules; no model is loaded."""
    from nncift.runs.select_again import reselect

    if flags["engine"] == "ray" and flags["gpus_per_worker"] is None:
        # No model is asked.
        flags["gpus_per_worker"] = 0.0
    with _rare_collections():
        summary = reselect(run, chosen(flags, SelectSettings), out, executor_from(flags))
    if show:
        _show(summary)
    return summary


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cycles of objects less often: rows of a pool are many small ones that stay, and hold none."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _show(summary: Reselection) -> None:
    """Print what was selected, beside its controls."""
    out, selection = console(), summary.selection
    show_verdict(out, summary.verdict)
    removed = f", {selection.removed_duplicates} duplicates removed first" if selection.removed_duplicates else ""
    tokens = "" if selection.tokens is None else f", {selection.tokens:,} tokens"
    out.print(f"Selected {summary.selected} of {summary.pool} rows{tokens}{removed}.")
    out.print(value_table(selection))
    if selection.note:
        out.print(f"! {selection.note}")
    out.print(f"Files: {summary.out}/subset.jsonl, selection.parquet", soft_wrap=True)
