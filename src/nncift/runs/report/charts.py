"""Charts as SVG, for pages and as files of their own; all colours come from `charts.css`, light and dark.

Only numbers and names escaped here go into the SVG, and the same numbers give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40
ROW = 22
LETTER = 6.2
"""Width of a letter at the size of chart text."""
COLOURS = 8


@dataclass(frozen=True)
class Line:
    """A line of a chart. error: half of the height of the band around each point. plain: a baseline, grey and dashed."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    plain: bool = False


@dataclass(frozen=True)
class Dot:
    """A row of a chart of intervals. kind: better, worse, plain, or none of them. about: what pointing at it says."""

    name: str
    value: float
    interval: Sequence[float] | None = None
    kind: str = "open"
    about: str = ""


@dataclass(frozen=True)
class Axis:
    """A range of values, and the places in the drawing where it starts and ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, here = (math.log10(one) if self.log else one for one in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (here - low) / (high - low), 1)

    @property
    def ticks(self) -> list[float]:
        """Return round numbers in the range: powers of ten on a logarithmic axis of more than two decades."""
        if not self.log:
            return ticks(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if self.high / self.low > 100 else (1, 2, 5)
        return [
            step * 10.0**power for power in decades for step in steps if self.low <= step * 10.0**power <= self.high
        ]


@dataclass(frozen=True)
class Chart:
    """A finished drawing. title: what is read aloud; extra: further attributes."""

    title: str
    body: Sequence[str]
    width: int = WIDTH
    height: int = HEIGHT
    extra: str = ""

    def __html__(self) -> Markup:
        """Return the chart as an element of a page."""
        head = (
            f'<svg viewBox="0 0 {self.width} {self.height}" class="chart" role="img" aria-label="{escape(self.title)}"'
        )
        return Markup(f"{head}{self.extra}>{''.join(self.body)}</svg>")  # noqa: S704 - names are escaped here


@dataclass(frozen=True)
class Frame:
    """A plot area with its axes."""

    x: Axis
    y: Axis
    x_label: str
    y_label: str
    height: int = HEIGHT

    @classmethod
    def of(cls, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str], height: int = HEIGHT) -> Frame:
        """Return a frame for two ranges on plain axes."""
        return cls(Axis(*x, LEFT, WIDTH - RIGHT), Axis(*y, height - BOTTOM, TOP), *labels, height)

    def draw(self, title: str, body: Iterable[str], *, extra: str = "") -> Chart:
        """Return the whole chart: grid, axes, and what was drawn in it."""
        base, right = self.height - BOTTOM, WIDTH - RIGHT
        parts = []
        for tick in self.y.ticks:
            at = self.y.at(tick)
            parts += [_line("grid", LEFT, right, at, at), _text("tick", LEFT - 6, at + 4, short(tick), "end")]
        parts += [_text("tick", self.x.at(tick), base + 16, short(tick)) for tick in self.x.ticks]
        parts.append(_line("axis", LEFT, right, base, base))
        parts.append(_text("label", (LEFT + right) / 2, self.height - 6, self.x_label))
        turned = f'transform="translate(13 {(TOP + base) / 2}) rotate(-90)"'
        parts.append(f'<text class="label" {turned} text-anchor="middle">{escape(self.y_label)}</text>')
        return Chart(title, [*parts, *body], height=self.height, extra=extra)

    def path(self, kind: str, x: Iterable[float], y: Iterable[float], about: str = "") -> str:
        """Return a line through points."""
        points = " ".join(f"{self.x.at(a)},{self.y.at(b)}" for a, b in zip(x, y, strict=True))
        return f'<polyline class="{kind}" points="{points}">{_about(about)}</polyline>'

    def dot(self, kind: str, x: float, y: float, radius: float, about: str = "") -> str:
        """Return a point."""
        return circle(kind, self.x.at(x), self.y.at(y), radius, about)

    def straight(self, kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
        """Return a straight line from the first values to the second."""
        return _line(kind, *map(self.x.at, x), *map(self.y.at, y))


def lines(
    title: str, drawn: Sequence[Line], labels: tuple[str, str], *, log_x: bool = False, log_y: bool = False
) -> Chart:
    """Return a chart of lines with their bands, coloured in their order. An axis is logarithmic where its values are positive."""
    xs = [x for line in drawn for x in line.x]
    spread = [y + side * error for line in drawn for y, error in _around(line) for side in (-1, 1)]
    x = _axis(xs, LEFT, WIDTH - RIGHT, log_x)
    frame = Frame(x, _axis(spread, HEIGHT - BOTTOM, TOP, log_y), *labels)
    body, colour = [], 0
    for line in drawn:
        colour += not line.plain
        kind = "plain" if line.plain else f"s{(colour - 1) % COLOURS}"
        if line.error:
            upper = [y + error for y, error in _around(line)]
            lower = [y - error for y, error in _around(line)]
            band = frame.path(f"band {kind}", [*line.x, *reversed(line.x)], [*upper, *reversed(lower)])
            body.append(band.replace("polyline", "polygon"))
        body.append(frame.path(f"curve series {kind}", line.x, line.y, line.name))
        if not line.plain:
            body += [frame.dot(f"point {kind}", a, b, 2.4) for a, b in zip(line.x, line.y, strict=True)]
    return frame.draw(title, body)


def intervals(title: str, dots: Sequence[Dot], label: str, reference: float | None = None) -> Chart:
    """Return a chart with one row per name, a dot and its interval. reference: a value to read them against."""
    marked = [] if reference is None else [reference]
    low, high = span([value for dot in dots for value in (dot.interval or (dot.value,))] + marked)
    left = min(WIDTH // 2, 20 + LETTER * max(len(dot.name) for dot in dots))
    x, base = Axis(low, high, left, WIDTH - RIGHT), ROW * len(dots) + 8
    body = []
    for tick in x.ticks:
        at = x.at(tick)
        body += [_line("grid", at, at, 4, base), _text("tick", at, base + 16, short(tick))]
    body += [_line("zero", x.at(value), x.at(value), 4, base) for value in marked]
    for place, dot in enumerate(dots):
        y = ROW * place + ROW // 2 + 4
        body.append(_text("mark", left - 10, y + 4, dot.name, "end"))
        if dot.interval:
            body.append(_line(f"span {dot.kind}", x.at(dot.interval[0]), x.at(dot.interval[1]), y, y))
        body.append(circle(dot.kind, x.at(dot.value), y, 4.5, dot.about or f"{dot.name}: {dot.value:.4g}"))
    if label:
        body.append(_text("label", WIDTH / 2, base + 36, label))
    return Chart(title, body, height=base + (44 if label else 24))


@dataclass(frozen=True)
class Sheet:
    """Charts side by side as one SVG file. headings: of the charts. names: of the lines, in the order of their colours."""

    charts: Mapping[str, Chart]
    columns: int = 3
    label: str = ""
    names: Sequence[str] = ()
    plain: Sequence[str] = field(default=())

    def svg(self) -> str:
        """Return the file's text, with its own style."""
        across = min(self.columns, len(self.charts))
        cell = max(chart.height for chart in self.charts.values()) + 24
        body, width = [], across * WIDTH
        for place, (heading, chart) in enumerate(self.charts.items()):
            x, y = WIDTH * (place % across), cell * (place // across)
            body.append(_text("heading", x + WIDTH / 2, y + 16, heading))
            inside = f'x="{x}" y="{y + 24}" width="{WIDTH}" height="{chart.height}" role="img"'
            body.append(f'<svg {inside} aria-label="{escape(chart.title)}">{"".join(chart.body)}</svg>')
        height = cell * -(-len(self.charts) // across)
        if self.label:
            body.append(_text("label", width / 2, height + 12, self.label))
            height += 20
        legend, height = self._legend(width, height)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" class="sheet">'
        paper = f'<rect class="paper" width="{width}" height="{height}"/>'
        return "\n".join([head, f"<style>{style()}</style>", paper, *body, *legend, "</svg>\n"])

    def _legend(self, width: int, height: int) -> tuple[list[str], int]:
        """Return what each line is called, as many side by side as fit, and the height of the sheet with it."""
        kinds = {name: f"s{place % COLOURS}" for place, name in enumerate(self.names)}
        kinds |= dict.fromkeys(self.plain, "plain")
        if len(kinds) < 2:
            return [], height
        each = 44 + LETTER * max(map(len, kinds))
        fitting = max(1, int(width // each))
        body = []
        for place, (name, kind) in enumerate(kinds.items()):
            x, y = round(12 + each * (place % fitting), 1), height + 14 + 18 * (place // fitting)
            body.append(_line(f"curve series {kind}", x, x + 20, y, y))
            body.append(_text("legend", x + 26, y + 4, name, "start"))
        return body, height + 10 + 18 * -(-len(kinds) // fitting)


@cache
def style() -> str:
    """Return the style of all charts."""
    return (Path(__file__).parent / "charts.css").read_text("utf-8")


def circle(kind: str, x: float, y: float, radius: float, about: str = "", extra: str = "") -> str:
    """Return a circle at a place of the drawing."""
    return f'<circle class="{kind}"{extra} cx="{x}" cy="{y}" r="{radius}">{_about(about)}</circle>'


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, about five."""
    step = 10 ** math.floor(math.log10((high - low) / 5))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= 5.5), 10)
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


def span(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds all finite values with a little room, and is never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _axis(values: Sequence[float], start: float, end: float, log: bool) -> Axis:
    if log and all(value > 0 for value in values):
        low, high = span([math.log10(value) for value in values])
        return Axis(10**low, 10**high, start, end, log=True)
    return Axis(*span(values), start, end)


def _around(line: Line) -> list[tuple[float, float]]:
    return list(zip(line.y, line.error or [0.0] * len(line.y), strict=True))


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _about(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
