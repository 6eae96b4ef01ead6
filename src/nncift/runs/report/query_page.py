"""The page and the numbers of a query, as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from nncift.errors import ResourceError
from nncift.runs.report import page_of
from nncift.storage.atomic import write_json, write_text

if TYPE_CHECKING:
    from nncift.runs.query import Answer, PushingRow, QueryResult

TITLE = "Which rows push the model there?"


def write_query(result: QueryResult, out: Path) -> None:
    """Write a query as a page or as JSON, as the suffix says. Raises ResourceError where the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".json":
            write_json(out, result.to_json())
        else:
            write_text(out, page_of("nncift query", _parts(result)))
    except OSError as error:
        raise ResourceError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error


def _parts(result: QueryResult) -> Iterator[Markup]:
    yield Markup("<h1>{}</h1>").format(TITLE)
    how = f"{result.exact:,} rows of each query by the teacher, {result.teacher}; the others" if result.exact else "All"
    yield Markup("<p>{} of the {} rows of {} as its student predicts.</p>").format(how, f"{result.pool:,}", result.run)
    for warning in result.warnings:
        yield Markup('<p class="note">{}</p>').format(warning)
    for answer in result.answers:
        yield Markup("<h2>{}</h2>").format(answer.prompt[:120])
        yield from _answer(answer)


def _answer(answer: Answer) -> Iterator[Markup]:
    for name, text in (("prompt", answer.prompt), ("response", answer.response)):
        yield Markup('<p class="whole"><span class="tag">{}</span>{}</p>').format(name, text)
    lines = Markup("").join(_line(row) for row in answer.rows)
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in ("row", "utility", "prompt and response"))
    yield Markup(
        '<div class="scroll"><table class="left"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, lines)
    yield Markup('<p class="note">Over the whole pool the student predicts {} ± {}.</p>').format(
        f"{answer.mean:.4g}", f"{answer.deviation:.2g}"
    )


def _line(row: PushingRow) -> Markup:
    how = "by the teacher" if row.known else "predicted"
    if row.low is not None and row.high is not None:
        how += f", {row.low:.3g} to {row.high:.3g}"
    place = "not chosen" if row.rank is None else f"rank {row.rank}"
    return Markup(
        "<tr><td>{}<br><small>{}</small></td><td>{}<br><small>{}</small></td>"
        '<td class="text"><p class="whole">{}</p><p class="whole note">{}</p></td></tr>'
    ).format(row.id, place, f"{row.utility:.4g}", how, row.prompt[:2000], row.response[:2000])
