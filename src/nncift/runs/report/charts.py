"""Charts as inline SVG, drawn in a box of 480 by 300 that scales with the page; colours come from the page's style.

Only numbers and names escaped here go into the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40


@dataclass(frozen=True)
class Frame:
    """A plot area: data ranges, and what stands on the axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    height: int = HEIGHT

    def px(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x[0]) / (self.x[1] - self.x[0]), 1)

    def py(self, value: float) -> float:
        """Return the vertical place of a value."""
        inner = self.height - TOP - BOTTOM
        return round(TOP + inner * (1 - (value - self.y[0]) / (self.y[1] - self.y[0])), 1)

    def draw(self, title: str, body: Sequence[str], *, extra: str = "") -> Markup:
        """Return the whole chart: grid, axes, and what was drawn in it. title: what is read aloud."""
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {self.height}" class="chart" role="img" aria-label="{escape(title)}"{extra}>'
        ]
        for tick in ticks(*self.y):
            at = self.py(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{short(tick)}</text>')
        base = self.height - BOTTOM
        for tick in ticks(*self.x):
            parts.append(
                f'<text class="tick" x="{self.px(tick)}" y="{base + 16}" text-anchor="middle">{short(tick)}</text>'
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(self.x_label)}</text>'
        )
        parts.append(
            f'<text class="label" transform="translate(13 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return Markup("".join([*parts, *body, "</svg>"]))  # noqa: S704 - names are escaped above


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from low to high, about so many."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= about + 0.5), 10)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def short(value: float) -> str:
    """Return a number in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.4g}"


def span(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """Return a range that holds all finite values with a little room, and is never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return (low if zero and low == 0 else low - room), high + room


def coverage(summary: Mapping[str, Any], y_label: str) -> Markup:
    """Draw the curves of `coverage.curves` and its knee."""
    rows = summary["rows"]
    if len(rows) < 2:
        return Markup("")
    frame = Frame(
        (0, rows[-1]),
        span([v for values in summary["curves"].values() for v in values]),
        "rows chosen, in rank order",
        y_label,
    )
    body = []
    for name, values in reversed(list(summary["curves"].items())):
        path = " ".join(f"{frame.px(x)},{frame.py(y)}" for x, y in zip(rows, values, strict=True))
        body.append(
            f'<polyline class="curve c-{escape(name)}" points="{path}"><title>{escape(name)}</title></polyline>'
        )
    if summary["knee"]:
        x, y = frame.px(summary["knee"]["rows"]), frame.py(summary["knee"]["value"])
        anchor = "start" if x < WIDTH * 0.7 else "end"
        body.append(f'<line class="knee" x1="{x}" x2="{x}" y1="{y}" y2="{HEIGHT - BOTTOM}"/>')
        body.append(f'<circle class="knee-dot" cx="{x}" cy="{y}" r="4"/>')
        body.append(
            f'<text class="mark" x="{x + (7 if anchor == "start" else -7)}" y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">'
            f"knee at {summary['knee']['rows']:,} rows</text>"
        )
    return frame.draw("Coverage as rows are chosen", body)


def calibration(summary: Mapping[str, Any]) -> Markup:
    """Draw held-out pairs, predicted against labelled, with the line of perfect agreement, the fitted line and bin means."""
    x, y = span([p[0] for p in summary["points"]]), span([p[1] for p in summary["points"]])
    frame = Frame(x, y, "predicted by the student", "labelled by the teacher")
    body = [f'<circle class="pair" cx="{frame.px(a)}" cy="{frame.py(b)}" r="2.2"/>' for a, b in summary["points"]]
    low, high = max(x[0], y[0]), min(x[1], y[1])
    if low < high:
        body.append(_line(frame, "ideal", low, low, high, high))
    if summary["slope"] is not None:
        body += _clipped(frame, summary["slope"], summary["intercept"])
    body += [
        f'<circle class="bin" cx="{frame.px(one["predicted"])}" cy="{frame.py(one["teacher"])}" r="4.5">'
        f"<title>{one['pairs']} pairs: predicted {one['predicted']:.4g}, teacher {one['teacher']:.4g}</title></circle>"
        for one in summary["bins"]
    ]
    return frame.draw("Teacher against student on held-out pairs", body)


def histogram(summary: Mapping[str, Any]) -> Markup:
    """Draw the shares of chosen and dropped rows by score."""
    edges = summary["edges"]
    if len(edges) < 2:
        return Markup("")
    shares = {kind: [n / max(1, sum(summary[kind])) for n in summary[kind]] for kind in ("dropped", "chosen")}
    top = max(max(values) for values in shares.values())
    frame = Frame(
        (edges[0], edges[-1]),
        (0, 100 * top * 1.06),
        "score: mean utility over the targets",
        "% of the rows of each kind",
    )
    body = []
    for kind, values in shares.items():
        for k, value in enumerate(values):
            if value:
                left, right, up = frame.px(edges[k]), frame.px(edges[k + 1]), frame.py(100 * value)
                body.append(
                    f'<rect class="bar {kind}" x="{left}" y="{up}" width="{round(max(0.5, right - left - 1), 1)}" '
                    f'height="{round(HEIGHT - BOTTOM - up, 1)}"><title>{kind}: {summary[kind][k]:,} rows from {edges[k]:.4g} to '
                    f"{edges[k + 1]:.4g}</title></rect>"
                )
    return frame.draw("Scores of chosen and dropped rows", body)


def plane(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the map; every point carries the number of its row, which the page's script shows."""
    frame = Frame(span(summary["x"]), span(summary["y"]), "first principal component", "second", height=360)
    points = list(enumerate(zip(summary["x"], summary["y"], rows, strict=True)))
    body = []
    # Chosen rows last, so that they lie on top.
    for wanted, kind, size in ((False, "dropped", 2.6), (True, "chosen", 3.4)):
        body += [
            f'<circle class="{kind}" data-row="{at}" cx="{frame.px(x)}" cy="{frame.py(y)}" r="{size}"/>'
            for at, (x, y, row) in points
            if row["selected"] == wanted
        ]
    return frame.draw("Map of the pool; arrow keys go from row to row", body, extra=' id="map" tabindex="0"')


def _line(frame: Frame, kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{frame.px(x1)}" y1="{frame.py(y1)}" x2="{frame.px(x2)}" y2="{frame.py(y2)}"/>'


def _clipped(frame: Frame, slope: float, intercept: float) -> list[str]:
    """Return the part of a line that lies in the frame."""
    xs = list(frame.x)
    if slope:
        xs += [(frame.y[0] - intercept) / slope, (frame.y[1] - intercept) / slope]
    room = 1e-9 * (frame.y[1] - frame.y[0])
    inside = sorted(
        x
        for x in xs
        if frame.x[0] <= x <= frame.x[1] and frame.y[0] - room <= slope * x + intercept <= frame.y[1] + room
    )
    if len(inside) < 2:
        return []
    a, b = inside[0], inside[-1]
    return [_line(frame, "fitted", a, slope * a + intercept, b, slope * b + intercept)]
