"""`nncift report`: make the report of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nncift.cli.display import console, show_verdict
from nncift.cli.options import run_argument
from nncift.cli.shell import command, option

if TYPE_CHECKING:
    from nncift.core.result_types import JsonObject


@command("report", example="nncift report runs/alpaca --open")
@run_argument
@option("--open", "open_", is_flag=True, help="Open it in the browser.")
@option(
    "--without-texts",
    is_flag=True,
    help="Write report-without-texts.html beside it, a copy to pass on: ids in the place of texts, no folders.",
)
def report_command(show: bool, run: Path, open_: bool, without_texts: bool) -> JsonObject:
    """Make the report of RUN again where it is missing or old: one file that needs no network."""
    from nncift.runs.finished import FinishedRun
    from nncift.runs.renew_verdict import verdict
    from nncift.runs.report import write_report, write_shared

    found = FinishedRun(run)
    page, answer = (write_shared if without_texts else write_report)(found), verdict(found)
    if show:
        out = console()
        show_verdict(out, answer)
        out.print(f"Report: {page}", soft_wrap=True)
    if open_:
        import webbrowser

        opened = webbrowser.open(page.resolve().as_uri())
        if show and not opened:
            console().print("No browser could be started; open that file yourself.")
    return {"run": str(run), "report": str(page), "verdict": answer.to_json()}
