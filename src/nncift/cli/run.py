"""`nncift run`: select rows that are worth training on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import (
    PREDICTORS,
    busy_sentence,
    console,
    cost_line,
    cost_of_parts,
    cost_table,
    fidelity_table,
    number,
    show_figures,
    show_next,
    show_verdict,
    show_warnings,
    table,
    value_table,
)
from nncift.cli.options import (
    WHERE,
    chosen,
    engine_options,
    executor_from,
    fetch_option,
    memory_option,
    offline_option,
    path_option,
    settings_options,
    verbose_option,
)
from nncift.cli.shell import command, option, progress, progress_ends
from nncift.config import RunSettings, is_manifest, load
from nncift.core.permissions import Permissions
from nncift.core.texts import seconds
from nncift.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nncift.core.parallel import Incomplete
    from nncift.core.result_types import JsonObject, Record
    from nncift.distributed.shards import ShardReport
    from nncift.evaluation.gate import GateRecord
    from nncift.evaluation.run_verdict import RunSummary
    from nncift.stages.estimate import Estimate
    from nncift.stages.finish import Run


@command(
    "run",
    example="nncift run alpaca.jsonl --model smollm2 --budget 30% --out runs/alpaca",
    everyday=("target", "teacher", "model", "labels", "budget", "preset", "dry_run", "out"),
)
@click.argument("pool", nargs=-1, type=str)
@settings_options(RunSettings, without=("pool",))
@path_option("--config", "Settings file (YAML); flags override it.")
@option(
    "--print-config", is_flag=True, group="Run", help="Print all settings as commented YAML for --config, and stop."
)
@option("--dry-run", is_flag=True, group="Run", help="Estimate what the run costs, from a few timed pairs, and stop.")
@verbose_option
@path_option(
    "--out", "Directory of the run; one that exists is continued or extended, with its settings where none are given."
)
@engine_options
@option(
    "--shard",
    metavar="I/K",
    group=WHERE,
    help="Do part I of K of a run's work, beside others; then run without it, which joins them and selects.",
)
@fetch_option
@offline_option
@memory_option
def run_command(
    show: bool,
    config: Path | None,
    print_config: bool,
    dry_run: bool,
    shard: str | None,
    out: Path | None,
    fetch: bool,
    **flags: Any,
) -> Record | JsonObject:
    """Select rows of POOL files that are worth training on.

    POOL names files of instruction examples: JSON lines, JSON, CSV, Parquet, or hub:org/name.
    """
    from nncift.storage.run_directory import with_settings_of

    settings = with_settings_of(out, chosen(flags, RunSettings), config)
    if print_config:
        if show:
            from nncift.cli.settings_pages import commented

            progress_ends()
            click.echo(commented(settings), nl=False)
        return settings.model_dump(mode="json")
    from nncift.stages.inputs import GivenRows, check_named_locally

    own = {} if config is None or is_manifest(config) else load(config)
    check_named_locally(settings, {**own, **chosen(flags, RunSettings)}, out, config, fetch=fetch)
    if out is None and not dry_run:
        raise UsageError("--out DIR is missing: a run needs a directory of its own")
    seen = progress(show)
    from nncift.core.parallel import Incomplete
    from nncift.pipeline import execute
    from nncift.stages.estimate import estimate
    from nncift.stages.first_checks import check_directory
    from nncift.stages.request import Request

    def asked(place: Path | None) -> Request:
        with seen("reading rows", 0):
            return Request.of_rows(settings, GivenRows(), out=place, progress=seen)

    executor = executor_from(flags, shard)
    if out is None or dry_run:
        check_directory(settings, out)
        result = estimate(asked(None), seen)
        if show:
            _show_estimate(result)
        return result
    try:
        done = execute(asked(out), out, progress=seen, executor=executor)
    except Incomplete as part:
        return _of_shard(part, show)
    if show:
        _show(done.result, done.path, verbose=flags["verbose"])
    return _proven(done, settings, show, fetch) if settings.prove else done.result


def _proven(done: Run, settings: RunSettings, show: bool, fetch: bool) -> JsonObject:
    """Train on the selection and on what it is compared with, and return the summary with what that says."""
    from nncift.cli.tune import show_tune
    from nncift.finetune.prove import brief, prove
    from nncift.runs.finished import FinishedRun

    record = prove(done.path, progress(show), allowed=Permissions(settings.trust_remote_code, fetch))
    if show:
        show_tune(record, done.path / "tune")
    # The verdict knows of it.
    return {**FinishedRun(done.path).summary, "proof": brief(record)}


def _show(result: RunSummary, path: Path, *, verbose: bool) -> None:
    """Print the answer, four figures, warnings and where to look next; verbose: what they rest on, too."""
    out = console()
    show_verdict(out, result.verdict)
    show_figures(out, result)
    if verbose:
        _show_tables(out, result)
    show_warnings(out, result.warnings)
    show_next(out, result.verdict.next, (f"{path}/report.html", "subset.jsonl", "selection.parquet"))
    if not verbose:
        out.print("All tables: --verbose", style="dim")


def _show_tables(out: Console, result: RunSummary) -> None:
    ledger = result.ledger
    out.print(f"Teacher {result.teacher}, plan {result.plan}. {_labels(result.labels)}")
    out.print(fidelity_table(result.fidelity, result.baselines))
    if result.gate.skill:
        out.print(_gate_table(result.gate))
    out.print(value_table(result.selection))
    out.print(cost_table(ledger))
    out.print(
        f"{cost_line(ledger)} Labelling everything would take about {seconds(ledger.full_teacher_seconds)} at the measured "
        "rate."
    )


def _gate_table(gate: GateRecord) -> Table:
    """Return the selection skill of every candidate on held-out rows, and which of them the run uses."""
    columns = ("predictor", "skill", "standard error")
    made = table("Selection skill on held-out rows (0 chance, 1 the teacher's labels)", columns)
    for name, found in gate.skill.items():
        used = name == gate.used
        shown = f"{PREDICTORS.get(name, name)}{' (used)' if used else ''}"
        made.add_row(shown, number(found.skill, 2), number(found.error, 2), style="bold" if used else None)
    return made


PARTS = {
    "learn": "labels to learn from",
    "measure": "labels to measure with",
    "probe": "probe",
    "embed": "embedding",
    "total": "total (teacher's model)",
    "full_teacher": "everything (full teacher)",
}


def _show_estimate(result: Estimate) -> None:
    """Print what a run would cost."""
    out = console()
    selected = "as many as the tokens hold" if result.selected is None else result.selected
    out.print(
        f"{result.pool} usable rows, {result.rejected} rejected; {selected} would be selected. Nothing was written."
    )
    out.print(_labels(result.labels))
    title = "What it would cost: passes and tokens are counted, times come from a few passes"
    out.print(cost_of_parts(title, PARTS, result))
    size = result.bytes
    if busy := busy_sentence(result.timed):
        out.print(busy)
    untimed = " The time of this encoder is not known before it is loaded." if result.embed.seconds is None else ""
    out.print(
        f"In forward passes {result.cost:,} instead of {result.full_teacher_cost:,} "
        f"(saving {100 * result.saving:.1f} %), which is {100 * result.share_of_training:.1f} % of training on all rows "
        f"for 3 epochs.{untimed} Disk: "
        f"{(size.labels + size.vectors + size.student) / 1e6:.1f} MB. Memory for the matrix: "
        f"{size.matrix_in_memory / 1e6:.0f} MB."
    )
    show_warnings(out, result.notes)
    if result.note:
        out.print(str(result.note))


def _labels(labels: Mapping[str, int]) -> str:
    """Return what labels are for, as a sentence."""
    what = "scores" if "q2" not in labels else "pairs"
    tested = sum(labels.get(split, 0) for split in ("q2", "q3", "test"))
    rows = ""
    if "rows" in labels:
        rows = (
            f"{labels['rows']:,} measured rows ({labels['train_rows']:,} to learn from, {labels['validation_rows']:,} to "
            f"validate, {labels['test_rows']:,} to test): "
        )
    return f"Labels: {rows}{labels['train']:,} {what} to learn from, {labels['validation']:,} to validate, {tested:,} to test."


VERBS = {"embed": "embedded", "probe": "probed", "label": "labelled", "score": "calculated"}


def _of_shard(part: Incomplete, show: bool) -> ShardReport:
    """Return what a shard did, what is left, and what to do next, and print it."""
    from nncift.distributed.shards import ShardReport

    result = part.report
    if not isinstance(result, ShardReport):
        raise part
    if not show:
        return result
    out = console()
    for name, done in result.stages.items():
        before = f", {done.before} were done before" if done.before else ""
        out.print(
            f"Shard {result.shard} {VERBS.get(name, name)} {done.pieces} pieces ({done.passes:,} passes, "
            f"{done.seconds:.1f} s{before})."
        )
    out.print(f"{result.run}: {result.next}.")
    show_warnings(out, result.warnings)
    return result
