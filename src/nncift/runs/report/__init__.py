"""The report of a finished run: `report.html`, one file that needs no network, and the same numbers in `report.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift import __version__
from nncift.core.fingerprints import fingerprint
from nncift.errors import DataError
from nncift.runs.finished import FinishedRun
from nncift.runs.report.charts import Chart, style
from nncift.storage import checksums
from nncift.storage.atomic import write_json, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from nncift.runs.report.numbers import Report
    from nncift.runs.report.report_rows import Row

HTML, JSON, MARK = "report.html", "report.json", "report"
MOST_BYTES = 1_950_000
_HERE = Path(__file__).parent


def write_report(run: str | Path | FinishedRun, truth: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` and `report.json` into the directory of a finished run; return the page's path.

    truth: what a demo knows of the true matrix. A report of the same run by the same release is not made again.
    Raises DataError where the directory has no finished run, or one whose files do not belong together.
    """
    from nncift.runs.report.numbers import numbers

    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    page = found.path / HTML
    # The rows first: what is read after them shares their ids.
    sources = found.rows.ids
    if tuple(found.choices) != tuple(sources) and (odd := set(sources) ^ set(found.choices)):
        raise DataError(
            f"rows.parquet and selection.parquet of {str(found.path)!r} are not about the same rows ({min(odd)!r} is in one of "
            "them): one is damaged; run the same nncift run again"
        )
    key = fingerprint(__version__, found.summary, list(found.chosen), dict(truth or {}), _source())
    if checksums.is_marked(found.path, MARK, key, (HTML, JSON)):
        return page
    checksums.mark_of(found.path, MARK).unlink(missing_ok=True)
    report = numbers(found, truth)
    write_text(page, render(report, _name(found.path)))
    about = {"made_from": key, "nncift": __version__, "run": _name(found.path)}
    write_json(found.path / JSON, {**about, **report.to_json()})
    checksums.write_mark(found.path, MARK, key, (HTML, JSON))
    return page


def render(report: Report, name: str) -> str:
    """Return the page of a report, below 2 MB: where rows are too many or too long some are left out, and the page says so."""
    rows = report.rows
    html = _page(report, name, rows)
    while len(html.encode("utf-8", "replace")) > MOST_BYTES and rows:
        rows = rows[: len(rows) * 3 // 4]
        html = _page(report, name, rows)
    return html


def page_of(title: str, parts: Iterable[Chart | Markup]) -> str:
    """Return a page in the report's style, without scripts. parts: charts, and text that is escaped."""
    return str(_template("plain.html").render(title=title, parts=parts, style=_style()))


def _page(report: Report, name: str, rows: Sequence[Row]) -> str:
    from nncift.core.texts import seconds
    from nncift.runs.report import report_charts
    from nncift.runs.report.report_coverage import CONTROLS

    places = zip(rows, report.map.x, report.map.y, strict=False)
    data = _in_script([{**row.to_json(), "x": x, "y": y} for row, x, y in places])
    drawn = {"charts": report_charts, "controls": CONTROLS, "seconds": seconds, "data": data, "rows": rows}
    script = (_HERE / "page.js").read_text("utf-8")
    about = {"nncift": __version__, "run": name}
    return str(_template("page.html").render(result=report, about=about, style=_style(), script=script, **drawn))


def _style() -> str:
    return style() + (_HERE / "page.css").read_text("utf-8")


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    # Adding 0 turns a rounded -0 into 0.
    environment.filters["fixed"] = lambda value: "–" if value is None else f"{round(value, 3) + 0:.3f}"
    environment.filters["whole"] = lambda value: "–" if value is None else f"{value:,}"
    return environment.get_template(name)


def _in_script(value: Any) -> Any:
    """Return JSON that cannot leave a script element, whatever the rows say."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode("utf-8")
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def _name(run: Path) -> str:
    """Return what a run is called: its folder, with the one above it where that alone says nothing."""
    path = run.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "run" else path.name


@cache
def _source() -> str:
    """Return a hash of everything that draws the page, so that a new template makes a new page."""
    return fingerprint(*(path.read_text("utf-8") for path in sorted(_HERE.glob("*")) if path.is_file()))
