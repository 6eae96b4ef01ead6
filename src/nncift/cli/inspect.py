"""`nncift inspect`: what files hold, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nncift.cli.display import console, table
from nncift.cli.options import chosen, memory_option, offline_option, settings_options
from nncift.cli.shell import command, option
from nncift.config import RunSettings, Turns
from nncift.core.texts import one_line
from nncift.errors import DataError, QualityError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nncift.data.contamination import Contamination
    from nncift.stages.inspection import Duplicates, InspectedFile, Inspection

SHOWN_HITS, SHOWN_TEXT = 3, 60
"""Hits of a kind that are shown, and characters of their texts."""


@command("inspect", example="nncift inspect alpaca.jsonl")
@click.argument("files", nargs=-1, required=True, type=str)
@settings_options(RunSettings, ("format", "map", "turns"))
@option(
    "--against",
    multiple=True,
    group="Rows",
    metavar="FILE",
    help="File of test rows that must not be in FILES; may be repeated.",
)
@option(
    "--encoder", group="Rows", help="Compare meanings with those of --against too, such as minilm; embeds every row."
)
@option("--tokenizer", group="Rows", help="Model folder or hub name whose tokenizer counts.  [default: minilm's]")
@offline_option
@memory_option
def inspect_command(
    show: bool, files: tuple[str, ...], against: tuple[str, ...], tokenizer: str | None, **flags: Any
) -> Inspection:
    """Show formats, counts, problems with their lines, token statistics and duplicates of FILES.

    Exit code 3 where a file has no row that can be used, with the --map that reads it where there is one; 5 where rows of
    --against are in FILES.
    """
    from nncift.stages.decontaminate import summary_of
    from nncift.stages.inspection import inspect

    found = inspect(*files, against=against, tokenizer=tokenizer, **chosen(flags, RunSettings))
    if show:
        _show(found)
    unread = [file for file in found.files if not file.usable]
    if unread:
        error = DataError(f"no row of {unread[0].file!r} can be used. {unread[0].advice}")
        error.about = found.to_json()
        raise error
    if found.contamination is not None and found.contamination.hits:
        overlap = QualityError(summary_of(found.contamination))
        overlap.about = found.to_json()
        raise overlap
    return found


def _show(found: Inspection) -> None:
    out = console(wrap=False)
    for file in found.files:
        _show_file(out, file, found.turns)
    if not found.usable:
        return
    out.print(_lengths(found))
    _show_copies(out, found.duplicates)
    if found.contamination is not None:
        _show_contamination(found.contamination)


def _show_file(out: Console, file: InspectedFile, turns: Turns) -> None:
    """Show what one file holds, and what is wrong with it."""
    from nncift.data.formats import scored

    formats = ", ".join(f"{rows:,} {name}" for name, rows in file.formats.items()) or "no known format"
    out.print(f"{file.file}: {file.rows:,} rows, {file.usable:,} usable ({formats}), {file.rejected:,} rejected")
    for problem in file.problems:
        more = ", ..." if problem.rows > len(problem.lines) else ""
        lines = ", ".join(map(str, problem.lines))
        out.print(f"  {problem.rows:,} x {problem.kind}, line {lines}{more}; the first: {problem.first}")
    if several := file.several_responses:
        out.print(f"  {several:,} rows have several responses: {scored(turns)}")
    for what, rows in file.not_used.items():
        out.print(f"  {rows:,} rows with {what}: not used")
    if held := file.control_tokens.rows:
        lines = ", ".join(map(str, file.control_tokens.lines))
        texts = ", ".join(file.control_tokens.texts)
        out.print(
            f"  {held:,} rows hold the text of control tokens ({texts}), line {lines}{', ...' if held > 5 else ''}: text to "
            "nncift, but control tokens to trainers that tokenise whole conversations"
        )
    if file.usable and file.proposed:
        out.print(f"  rows that no format fits can be read with {file.proposed}")
    for column, values in file.labels.items():
        out.print(
            f"  label column {column}: " + ", ".join(f"{value} {rows:,}" for value, rows in list(values.items())[:8])
        )


def _lengths(summary: Inspection) -> Table:
    """Return the lengths of rows, file by file."""
    columns = ("file", "part", "least", "median", "90 %", "99 %", "most", "sum")
    made = table(f"Length of a row, in {summary.counted_in}", columns, left=columns[:2])
    for file in summary.files:
        lengths = {"prompt": file.tokens.prompt, "response": file.tokens.response, "whole": file.tokens.whole}
        for part, found in lengths.items():
            if found:
                total = f"{file.tokens.sum:,}" if part == "whole" else ""
                made.add_row(
                    file.source if part == "prompt" else "", part, *(f"{value:,}" for value in found.values()), total
                )
    return made


def _show_copies(out: Console, copies: Duplicates) -> None:
    """Show which rows repeat others."""
    if copies.rows:
        first = copies.first[0]
        out.print(
            f"{copies.rows:,} rows repeat an earlier one word for word, the first: {first.source} line {first.line} = "
            f"{first.of[0]} line {first.of[1]}"
        )
    if copies.same_prompt_other_response:
        out.print(f"{copies.same_prompt_other_response:,} different rows share their prompt with another")
    if not copies.rows and not copies.same_prompt_other_response:
        out.print("No row repeats another")


def _show_contamination(found: Contamination) -> None:
    """Show how many rows test rows are in, and the first of every kind beside its test row."""
    out = console()
    out.print(f"Of {found.rows:,} rows, {len(found.strongest):,} have any of {found.tests:,} test rows in them")
    for note in found.notes:
        out.print(f"  {note}")
    if not found.hits:
        return
    columns = ("kind", "hits", "score", "row", "text", "test row", "its text")
    made = table(None, columns, left=columns[3:])
    for kind, count in found.counts.items():
        shown = [hit for hit in found.hits if hit.kind == kind][:SHOWN_HITS]
        for place, hit in enumerate(shown):
            sides = [
                cell
                for side in (hit.row, hit.test)
                for cell in (f"{side.source} line {side.line}", one_line(side.text, SHOWN_TEXT))
            ]
            made.add_row(
                *((kind.replace("_", " "), f"{count:,}") if not place else ("", "")), f"{hit.score:.2f}", *sides
            )
    out.print(made)
