"""The charts of the report: coverage, calibration, scores, and the map of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import escape

from nncift.evaluation.fidelity import HeldOutPairs
from nncift.runs.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Chart, Frame, circle, short, span
from nncift.runs.report.report_coverage import Coverage, Region
from nncift.runs.report.report_rows import Lengths, PoolMap, Row, Scores

LETTER, LINE = 5.6, 12
"""Width and height of a letter on the map, in the chart's units."""


def coverage(found: Coverage, y_label: str) -> Chart | str:
    """Draw the curves of coverage and their knee; nothing below two rows."""
    if len(found.rows) < 2:
        return ""
    ends = span([v for values in found.curves.values() for v in values])
    frame = Frame.of((0, found.rows[-1]), ends, ("rows chosen, in rank order", y_label))
    body = [
        frame.path(f"curve c-{name}", found.rows, values, name) for name, values in reversed(list(found.curves.items()))
    ]
    if found.knee:
        x, y, base = frame.x.at(found.knee.rows), frame.y.at(found.knee.value), HEIGHT - BOTTOM
        anchor, aside = ("start", 7) if x < WIDTH * 0.7 else ("end", -7)
        body += [
            f'<line class="knee" x1="{x}" x2="{x}" y1="{y}" y2="{base}"/>',
            circle("knee-dot", x, y, 4),
            f'<text class="mark" x="{x + aside}" y="{base - 8}" text-anchor="{anchor}">knee at {found.knee.rows:,} rows</text>',
        ]
    return frame.draw("Coverage as rows are chosen", body)


def calibration(found: HeldOutPairs) -> Chart:
    """Draw held-out pairs, predicted against labelled, with the line of perfect agreement, the fitted line and bin means."""
    x, y = span([a for a, _ in found.points]), span([b for _, b in found.points])
    frame = Frame.of(x, y, ("predicted by the student", "labelled by the teacher"))
    body = [frame.dot("pair", a, b, 2.2) for a, b in found.points]
    both = max(x[0], y[0]), min(x[1], y[1])
    if both[0] < both[1]:
        body.append(frame.straight("ideal", both, both))
    if found.slope is not None and found.intercept is not None:
        body += _clipped(frame, x, y, found.slope, found.intercept)
    body += [
        frame.dot(
            "bin",
            one.predicted,
            one.teacher,
            4.5,
            f"{one.pairs} pairs: predicted {one.predicted:.4g}, teacher {one.teacher:.4g}",
        )
        for one in found.bins
    ]
    return frame.draw("Teacher against student on held-out pairs", body)


def histogram(found: Scores) -> Chart | str:
    """Draw the shares of chosen and dropped rows by score; nothing where no row has one."""
    edges = found.edges
    if len(edges) < 2:
        return ""
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    frame, body = _bars(
        x, "score: mean utility over the targets", edges, {"dropped": found.dropped, "chosen": found.chosen}
    )
    return frame.draw("Scores of chosen and dropped rows", body)


def lengths(found: Lengths) -> Chart | str:
    """Draw the shares of rows by length, of the pool and of the selection; nothing where there is one length."""
    if len(found.edges) < 2:
        return ""
    edges = [max(1, edge) for edge in found.edges]
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT, log=True)
    frame, body = _bars(x, "characters", edges, {"dropped": found.pool, "chosen": found.selected})
    return frame.draw("Lengths of the pool and of the selection", body)


def _bars(
    x: Axis, x_label: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]]
) -> tuple[Frame, list[str]]:
    """Return a frame, and in it a bar for what each kind has between two edges, as a share of that kind."""
    shares = {kind: [100 * n / max(1, sum(of)) for n in of] for kind, of in counts.items()}
    top = max(max(values) for values in shares.values())
    frame = Frame(x, Axis(0, top * 1.06, HEIGHT - BOTTOM, TOP), x_label, "% of the rows of each kind")
    body = []
    for kind, values in shares.items():
        for k, value in enumerate(values):
            if value:
                left, up = x.at(edges[k]), frame.y.at(value)
                wide, high = max(0.5, x.at(edges[k + 1]) - left - 1), HEIGHT - BOTTOM - up
                body.append(
                    f'<rect class="bar {kind}" x="{left}" y="{up}" width="{round(wide, 1)}" height="{round(high, 1)}"><title>'
                    f"{counts[kind][k]:,} rows from {short(edges[k])} to {short(edges[k + 1])}</title></rect>"
                )
    return frame, body


def plane(found: PoolMap, rows: Sequence[Row], regions: Sequence[Region] = ()) -> Chart:
    """Draw the map; every point carries the number of its row, for the page's script. Regions are named by their words."""
    axes = ("first principal component", "second") if found.method == "pca" else ("UMAP, first dimension", "second")
    frame = Frame.of(span(found.x), span(found.y), axes, height=360)
    points = list(enumerate(zip(found.x, found.y, rows, strict=False)))
    # Chosen rows last, so that they lie on top.
    body = [
        circle(kind, frame.x.at(x), frame.y.at(y), size, extra=f' data-row="{at}"')
        for wanted, kind, size in ((False, "dropped", 2.6), (True, "chosen", 3.4))
        for at, (x, y, row) in points
        if row.selected == wanted
    ]
    placed: list[tuple[float, float, float]] = []
    for number, region in sorted(enumerate(regions), key=lambda both: -both[1].rows):
        mine = [(x, y) for _, (x, y, row) in points if row.region == number]
        if mine and region.words:
            # The median lies where most of its rows are.
            x, y = (sorted(values)[len(values) // 2] for values in zip(*mine, strict=True))
            name = " ".join(region.words[:2])
            here = (frame.x.at(x), frame.y.at(y), LETTER * len(name) / 2)
            # The names of large regions stay; the table below has all.
            if any(abs(here[0] - a) < here[2] + width and abs(here[1] - b) < LINE for a, b, width in placed):
                continue
            placed.append(here)
            body.append(f'<text class="region" x="{here[0]}" y="{here[1]}" text-anchor="middle">{escape(name)}</text>')
    return frame.draw("Map of the pool; arrow keys go from row to row", body, extra=' id="map" tabindex="0"')


def _clipped(frame: Frame, x: tuple[float, float], y: tuple[float, float], slope: float, intercept: float) -> list[str]:
    """Return the part of a line that lies in the frame."""
    ends = [*x, *((bound - intercept) / slope for bound in y if slope)]
    room = 1e-9 * (y[1] - y[0])
    inside = sorted(at for at in ends if x[0] <= at <= x[1] and y[0] - room <= slope * at + intercept <= y[1] + room)
    if len(inside) < 2:
        return []
    a, b = inside[0], inside[-1]
    return [frame.straight("fitted", (a, b), (slope * a + intercept, slope * b + intercept))]
