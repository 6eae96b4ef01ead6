"""`nncift explain`: why a row was chosen or dropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nncift.cli.display import console, table
from nncift.cli.options import run_argument
from nncift.cli.shell import command, option
from nncift.core.texts import one_line

if TYPE_CHECKING:
    from nncift.runs.explain import Explanation
    from nncift.runs.find_rows import Matches

SHOWN = 300
"""Characters of a text that are shown."""


@command("explain", example="nncift explain runs/alpaca --id row-17 --why-not")
@run_argument
@option("--id", "example_id", help="Id of a row, as in selection.parquet.")
@option("--rank", type=int, help="In its place: the selected row at this rank, from 1.")
@option("--search", help="In its place: text of the row; where several rows have it, they are listed.")
@option("--why-not", is_flag=True, help="Name for each target that the row serves the row that serves it now.")
def explain_command(
    show: bool, run: Path, example_id: str | None, rank: int | None, search: str | None, why_not: bool
) -> Explanation | Matches:
    """Explain why a row of RUN was chosen or dropped, and what would have to change.

    RUN is a folder of run or of select --out. Name the row by one of --id, --rank and --search.
    """
    from nncift.runs.explain import Explanation, explain_found
    from nncift.runs.find_rows import Matches

    found = explain_found(run, example_id, rank=rank, search=search, why_not=why_not)
    if show and isinstance(found, Explanation):
        _show(found)
    elif show and isinstance(found, Matches):
        _show_matches(found)
    return found


def _show_matches(matches: Matches) -> None:
    """Print the rows that a text is in, one a line."""
    columns = ("id", "rank", "prompt", "response")
    made = table(f"{matches.found:,} rows have {matches.search!r}", columns, left=("id", "prompt", "response"))
    for row in matches.rows:
        made.add_row(row.id, str(row.rank or "-"), one_line(row.prompt, SHOWN), one_line(row.response, SHOWN))
    out = console(wrap=False)
    out.print(made)
    if matches.found > len(matches.rows):
        out.print(f"These are the first {len(matches.rows)}: give more of the text.")
    out.print("Explain one of them with --id ID.")


def _show(found: Explanation) -> None:
    out = console(wrap=False)
    out.print(f"{found.id} ({found.source}, line {found.line})")
    out.print(f"  prompt:   {one_line(found.prompt, SHOWN)}")
    out.print(f"  response: {one_line(found.response, SHOWN)}")
    out.print(found.reason)
    if found.score is not None:
        out.print(f"Mean utility {found.score:.4g}: place {found.score_place:,} of {found.pool:,} rows by that alone.")
    if found.stability is not None:
        out.print(f"Selected in {100 * found.stability:.0f} % of refits on labelled rows drawn again.")
    if found.serves:
        columns = ("target", "utility", "how it is known")
        made = table("Targets that it serves best", columns, left=columns[2:])
        for one in found.serves:
            how = "labelled by the teacher" if one.known else "predicted"
            if one.low is not None:
                how += f", 90 % interval {one.low:.4g} to {one.high:.4g}"
            made.add_row(one.target, f"{one.utility:.4g}", how)
        out.print(made)
    near = found.nearest_selected
    if near:
        out.print(f"Nearest selected row by text: {near.id} (rank {near.rank}, cosine {near.cosine:.3f})")
    for rival in found.rivals or ():
        best = f"best served by {rival.rival} (rank {rival.rank}): {rival.utility:.4g}"
        out.print(f"  {rival.target}: this row {rival.own:.4g}; {best}")
    out.print("What would have to change:")
    for sentence in found.change:
        out.print(f"  {sentence}")
