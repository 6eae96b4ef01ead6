"""`nncift tune`: whether the selected subset trains as well as what it is set against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.cli.display import busy_sentence, console, cost_of_parts, show_warnings, table
from nncift.cli.options import (
    chosen,
    fetch_option,
    memory_option,
    offline_option,
    path_option,
    run_argument,
    settings_options,
)
from nncift.cli.shell import command, option, progress
from nncift.config import RunSettings
from nncift.core.permissions import Permissions
from nncift.errors import UsageError
from nncift.finetune.tune_settings import TuneSettings

if TYPE_CHECKING:
    from nncift.core.result_types import JsonObject
    from nncift.finetune.tune_estimate import TuneEstimate


@command(
    "tune",
    example="nncift tune runs/alpaca --test test.jsonl --arms selected,random,full",
    everyday=("test", "arms", "budget", "model", "method", "seeds", "metrics", "out"),
)
@run_argument
@settings_options(TuneSettings)
@settings_options(RunSettings, ("trust_remote_code",))
@option("--qlora", is_flag=True, group="Training", help="The same as --method qlora.")
@option("--dry-run", is_flag=True, group="Run", help="Tell what training and judging would cost, and stop.")
@path_option("--out", "Folder; one that exists is continued.  [default: RUN/tune]")
@fetch_option
@offline_option
@memory_option
def tune_command(
    show: bool, run: Path, qlora: bool, dry_run: bool, out: Path | None, fetch: bool, **flags: Any
) -> TuneEstimate | JsonObject:
    """Train a model on RUN's selection and on rival subsets alike, and judge them by rows that none has seen."""
    allowed = Permissions(bool(flags.pop("trust_remote_code")), fetch)
    given = chosen(flags, TuneSettings)
    for name in ("arms", "metrics"):
        if name in given:
            given[name] = tuple(part.strip() for text in given[name] for part in text.split(",") if part.strip())
    if qlora:
        if given.get("method", "qlora") != "qlora":
            raise UsageError(f"--qlora and --method {given['method']} were given; give one of them")
        given["method"] = "qlora"
    if dry_run:
        from nncift.finetune.tune_estimate import estimate_tune

        planned = estimate_tune(run, given, out, progress(show), allowed=allowed)
        if show:
            _show_estimate(planned)
        return planned
    from nncift.finetune.experiment import tune

    summary = tune(run, given, out, progress(show), allowed=allowed)
    if show:
        show_tune(summary, run / "tune" if out is None else out)
    return summary


PARTS = {"train": "training", "judge": "losses of test rows", "answers": "answers, at their longest", "total": "total"}


def _show_estimate(planned: TuneEstimate) -> None:
    """Print what a tune would cost."""
    out = console()
    done = f", {planned.done} are done" if planned.done else ""
    out.print(
        f"{planned.trainings} trainings of {planned.steps:,} steps in all ({planned.method}), each judged by "
        f"{planned.test_rows} test rows; {planned.judgings} judgings{done}. Nothing was trained or written."
    )
    out.print(cost_of_parts("What it would cost: tokens are counted, times come from a few rows", PARTS, planned))
    if busy := busy_sentence(planned.timed):
        out.print(busy)
    show_warnings(out, planned.notes)


def show_tune(tune: JsonObject, folder: Path) -> None:
    """Print every arm's values, every comparison, and how to read them."""
    from nncift.evaluation.run_verdict import TRAINS, training_verdict
    from nncift.finetune.tune_report import READING, arm_rows, comparison_rows, groups_of, rate_rows, summary, title

    out = console()
    answer, why = training_verdict(tune)
    out.print(f"{TRAINS[answer][:1].upper()}{TRAINS[answer][1:]}.", style="bold")
    if why:
        out.print(why)
    for line in summary(tune):
        out.print(line)
    for group in groups_of(tune):
        head, *rows = arm_rows(group, tune["metrics"])
        out.print(table(title(group), head, rows))
        if group.comparisons:
            head, *rows = comparison_rows(group)
            out.print(table("Beside each other", head, rows, left=(*head[:3], "verdict")))
        if rates := rate_rows(group, tune["metrics"]):
            out.print(table("Learning rates", rates[0], rates[1:]))
    for line in READING:
        out.print(line)
    show_warnings(out, tune["notes"])
    out.print(f"Files: {folder}/tune.html, tune.md, tune.json", soft_wrap=True)
