"""`nncift query`: which rows of a run's pool push a model to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import console, show_warnings, table
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
from nncift.core.texts import one_line
from nncift.errors import UsageError

if TYPE_CHECKING:
    from nncift.runs.query import QueryResult

SHOWN = 200
"""Characters of a text that are shown."""


@command("query", example='nncift query runs/alpaca --prompt "Name a sea." --response "The Sahara."')
@run_argument
@option("--prompt", help="Prompt of the answer in question.")
@option("--response", help="The answer in question, typically a bad one of a tuned model.")
@path_option("--file", "File of several, as rows with prompt and response.", group="Options")
@option("--top", type=int, default=10, show_default=True, metavar="ROWS", help="Rows to show of each query.")
@option(
    "--exact",
    type=click.IntRange(min=0),
    default=0,
    metavar="ROWS",
    help="Rows, the best by the student, whose utility the teacher itself computes, a pass or more each.  [default: none]",
)
@path_option("--out", "Page (.html) or numbers (.json) to write.", group="Options")
@settings_options(RunSettings, ("device", "trust_remote_code"))
@fetch_option
@offline_option
@memory_option
def query_command(
    show: bool, run: Path, prompt: str | None, response: str | None, file: Path | None, fetch: bool, **flags: Any
) -> QueryResult:
    """Show which rows of RUN's pool push a model to a response, by the run's student or exactly by its teacher."""
    out: Path | None = flags["out"]
    if out is not None and out.suffix not in (".html", ".json"):
        raise UsageError(f"--out {str(out)!r} was given; expected a name that ends in .html or .json")
    one = prompt is not None or response is not None
    if one == (file is not None) or (one and (prompt is None or response is None)):
        raise UsageError("give --prompt and --response, or --file with rows of both; one of the two ways")
    from nncift.data import read, rows_from
    from nncift.runs.finished import FinishedRun
    from nncift.runs.query import Question, query
    from nncift.storage.outputs import check_replaces_nothing

    if out is not None:
        check_replaces_nothing(out, [] if file is None else [file], run)
    given = chosen(flags, RunSettings)
    found = FinishedRun(run, Permissions(bool(given.get("trust_remote_code")), fetch))
    turns = found.settings.turns
    queries = rows_from([{"prompt": prompt, "response": response}]) if file is None else read(str(file), turns=turns)
    question = Question(flags["top"], flags["exact"], given.get("device", "auto"))
    result = query(found, queries, question, progress=progress(show))
    if out is not None:
        from nncift.runs.report.query_page import write_query

        write_query(result, out)
    if show:
        _show(result, out)
    return result


def _show(result: QueryResult, path: Path | None) -> None:
    out = console()
    for answer in result.answers:
        out.print(f"Prompt:   {one_line(answer.prompt, SHOWN)}")
        out.print(f"Response: {one_line(answer.response, SHOWN)}")
        columns = ("row", "utility", "how it is known", "in the run", "prompt")
        made = table("Rows that push a model there, the strongest first", columns, left=columns[2:])
        for row in answer.rows:
            how = f"by {result.teacher}" if row.known else "predicted"
            if row.low is not None:
                how += f", 90 % {row.low:.3g} to {row.high:.3g}"
            place = "not chosen" if row.rank is None else f"rank {row.rank}"
            made.add_row(row.id, f"{row.utility:.4g}", how, place, one_line(row.prompt, 60))
        out.print(made)
        out.print(f"Over all {result.pool:,} rows the student predicts {answer.mean:.4g} ± {answer.deviation:.2g}.")
    show_warnings(out, result.warnings)
    if path is not None:
        out.print(f"File: {path}", soft_wrap=True)
