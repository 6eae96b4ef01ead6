"""The report of a finished run: `report.html`, one file that needs no network, and the same numbers in `report.json`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift import __version__
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import Record
from nncift.errors import DataError
from nncift.evaluation.run_verdict import selection_key, training_record, training_verdict
from nncift.runs.finished import FinishedRun
from nncift.runs.report.charts import Chart, style
from nncift.runs.report.packed_rows import LEAST_TEXT_BYTES, REASONS, TEXT_BYTES, Packer
from nncift.storage import checksums
from nncift.storage.atomic import read_json, write_json, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from nncift.runs.report.numbers import Report

HTML, JSON, MARK = "report.html", "report.json", "report"
SHARED = "report-without-texts.html"
MOST_BYTES = 1_950_000
DATA = '<script type="application/octet-stream" id="data"></script>'
"""Where the rows of the table stand in the page."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Truth(Record):
    """What a report shows of a demo's true matrix: figures by way of selecting, and how well bad rows were found."""

    passes: int
    objective: Mapping[str, float]
    corrupted_share: Mapping[str, float]
    skills_covered: Mapping[str, float]
    auc: Mapping[str, float | None] = field(default_factory=dict)


def write_report(run: str | Path | FinishedRun, truth: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` and `report.json` into the directory of a finished run; return the page's path.

    truth: what a demo knows of the true matrix. A report of the same run by the same release is not made again.
    Raises DataError where the directory has no finished run, or one whose files do not belong together.
    """
    from nncift.runs.report.numbers import numbers
    from nncift.runs.report.report_rows import map_method

    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    page = found.path / HTML
    found.check_same_rows()
    selection = selection_key(list(found.chosen))
    truth = _truth_before(found.path, selection) if truth is None else truth
    trained = training_record(found.path, selection)
    key = fingerprint(
        __version__, found.summary, list(found.chosen), dict(truth or {}), trained, _source(), map_method()
    )
    if checksums.is_marked(found.path, MARK, key, (HTML, JSON)):
        return page
    checksums.mark_of(found.path, MARK).unlink(missing_ok=True)
    report = numbers(found, truth)
    about = {"made_from": key, "nncift": __version__, "run": _name(found.path), "selection": selection}
    try:
        write_json(found.path / JSON, {**about, **report.to_json()})
    except ValueError as error:
        raise DataError(
            f"figures of {str(found.path)!r} are not finite: its labels or its student are damaged; run the same run again"
        ) from error
    write_text(page, render(report, _name(found.path), str(found.path)))
    checksums.write_mark(found.path, MARK, key, (HTML, JSON))
    return page


def _truth_before(run: Path, selection: str) -> Mapping[str, Any] | None:
    """Return what an earlier report of this selection knew of the true matrix, as a demo's does.

    Raises DataError where it knew what no demo knows.
    """
    try:
        before = read_json(run / JSON)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(before, dict) or before.get("selection") != selection or not before.get("truth"):
        return None
    known: Mapping[str, Any] = before["truth"]
    Truth.of_json(known, str(run / JSON))
    return known


def write_shared(run: str | Path | FinishedRun) -> Path:
    """Write `report-without-texts.html`, a copy of the report to pass on: no text of a row, no folder; return its path.

    Raises DataError as `write_report` does.
    """
    from markupsafe import escape

    from nncift.runs.report.numbers import numbers

    found = run if isinstance(run, FinishedRun) else FinishedRun(run)
    found.check_same_rows()
    name, page = _name(found.path), found.path / SHARED
    truth = _truth_before(found.path, selection_key(list(found.chosen)))
    text = render(numbers(found, truth, texts=False), name, name)
    write_text(page, text.replace(str(escape(str(found.path))), str(escape(name))))
    return page


def render(report: Report, name: str, run: str = "RUN") -> str:
    """Return the page of a report, below 2 MB: where rows are too many or too long, texts are cut and then rows left out.

    run: path that the commands of the page name.
    """
    page = _page(report, name)
    room = MOST_BYTES - len(page.encode("utf-8", "replace"))
    listing, most = report.listing, TEXT_BYTES
    sizes = [len(text.encode("utf-8", "replace")) for row in listing for text in (row.prompt, row.response)]
    # From here on a limit cuts no text and no reason: it would only pack the same again.
    whole = max(REASONS, max(sizes, default=0))
    packer = Packer(report, listing, run)
    packed = packer.pack(most)
    while len(packed) > room and listing:
        # Texts first; rows only where hardly anything is left of them.
        if most > LEAST_TEXT_BYTES:
            most = _next_limit(sizes, min(most, whole), room / len(packed))
        else:
            listing = listing[: len(listing) * 3 // 4]
            packer = Packer(report, listing, run)
        packed = packer.pack(most)
    return page.replace(DATA, DATA.replace("></", f">{packed}</"), 1)


def _next_limit(sizes: Sequence[int], most: int, share: float) -> int:
    """Return the limit of bytes for each text that leaves this share of what a limit of `most` leaves."""
    wanted = share * sum(min(size, most) for size in sizes)
    low, high = LEAST_TEXT_BYTES, max(LEAST_TEXT_BYTES, most - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= wanted else (low, middle - 1)
    return low


def page_of(title: str, parts: Iterable[Chart | Markup]) -> str:
    """Return a page in the report's style, without scripts. parts: charts, and text that is escaped."""
    return str(_template("plain.html").render(title=title, parts=parts, style=_style()))


def _page(report: Report, name: str) -> str:
    from nncift.core.texts import seconds
    from nncift.runs.report import report_charts
    from nncift.runs.report.training_table import training_tables
    from nncift.selection.controls import CONTROLS

    script = (_HERE / "page.js").read_text("utf-8")
    given = {
        "result": report,
        "about": {"nncift": __version__, "run": name},
        "charts": report_charts,
        "controls": CONTROLS,
        "seconds": seconds,
        "rows": report.rows,
        "linked": {row.id for row in report.listing},
        "empty": _nothing(report),
        "training": training_tables(report.training),
        "trained": training_verdict(dict(report.training) if report.training else None)[1],
        "style": _style(),
        "script": script,
        "script_hash": _hash(script),
    }
    return str(_template("page.html").render(**given))


def _nothing(report: Report) -> list[str]:
    """Return what a report has no section of, since there is nothing to show."""
    there = {
        "rows to look at (none is of very low utility, a duplicate, empty or far from the others)": report.issues,
        "shift (every row has the same source, length, turns and labels)": report.shift,
        "near-duplicates": report.near_copies.examples,
        "held-out pairs": report.held_out,
        "training (nncift tune has not been run on this selection)": report.training,
    }
    return [what for what, found in there.items() if not found]


def _hash(script: str) -> str:
    """Return what a content security policy names a script by."""
    return f"sha256-{b64encode(sha256(script.encode('utf-8')).digest()).decode()}"


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


def _name(run: Path) -> str:
    """Return what a run is called: its folder, with the one above it where that alone says nothing."""
    path = run.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "run" else path.name


@cache
def _source() -> str:
    """Return a hash of everything that draws the page, so that a new template makes a new page."""
    return fingerprint(*(path.read_text("utf-8") for path in sorted(_HERE.glob("*")) if path.is_file()))
