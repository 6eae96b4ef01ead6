"""Figures of a study, as SVG text that is the same for the same numbers. Needs the extra `study`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nncift.errors import ResourceError
from nncift.studies.study_tables import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#b5651d", "#4d4d4d", "#0a9396", "#bc6c25")
_PANEL = (4.2, 3.2)


@dataclass(frozen=True)
class Line:
    """One line of a chart: figures over seeds at places of the horizontal axis. plain: drawn dashed and grey, as a baseline."""

    name: str
    x: Sequence[float]
    y: Sequence[Spread | None]
    plain: bool = False


@dataclass(frozen=True)
class Dot:
    """One row of a chart of intervals. interval: of the figure, where one is known."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    plain: bool = False


def lines(panels: Mapping[str, Sequence[Line]], x_label: str, y_label: str, *, log: bool = True) -> str:
    """Return panels side by side with lines and the standard deviation over seeds as a band."""
    figure, axes = panels_of(len(panels))
    for at, (title, drawn) in zip(axes, panels.items(), strict=True):
        colours = iter(COLOURS * 3)
        for line in drawn:
            known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
            if not known:
                continue
            style: dict[str, Any] = (
                {"color": "#777777", "linestyle": "--"} if line.plain else {"color": next(colours), "marker": "o"}
            )
            x, y = [place for place, _ in known], [spread.mean for _, spread in known]
            at.plot(x, y, label=line.name, linewidth=1.5, markersize=3.5, **style)
            low = [spread.mean - (spread.deviation or 0) for _, spread in known]
            high = [spread.mean + (spread.deviation or 0) for _, spread in known]
            at.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        at.set_title(title, fontsize=10)
        at.set_xlabel(x_label)
        if log and all(x > 0 for line in drawn for x in line.x):
            at.set_xscale("log")
    axes[0].set_ylabel(y_label)
    _legend(figure, axes)
    return as_svg(figure)


def dots(panels: Mapping[str, Sequence[Dot]], x_label: str, *, reference: float | None = None) -> str:
    """Return panels with one row per name, a dot and its interval, three side by side. reference: a line to read them against."""
    most = max(len(drawn) for drawn in panels.values())
    figure, axes = panels_of(len(panels), height=0.9 + 0.27 * most, columns=3)
    for at, (title, drawn) in zip(axes, panels.items(), strict=True):
        for row, dot in enumerate(reversed(drawn)):
            colour = "#777777" if dot.plain else COLOURS[0]
            if dot.interval is not None:
                at.plot(dot.interval, (row, row), color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
            at.plot([dot.value], [row], "o", color=colour, markersize=5)
        at.set_yticks(range(len(drawn)), [dot.name for dot in reversed(drawn)])
        at.set_title(title, fontsize=10)
        if reference is not None:
            at.axvline(reference, color="#444444", linewidth=0.8, linestyle=":")
    figure.supxlabel(x_label, fontsize=9)
    return as_svg(figure)


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG text without a date."""
    import matplotlib

    text = io.StringIO()
    # Texts stay texts, and ids do not change from one drawing to the next.
    with matplotlib.rc_context({"svg.hashsalt": "nncift", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def panels_of(count: int, height: float = _PANEL[1], columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, all side by side or in rows. Raises ResourceError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise ResourceError('figures of a study need matplotlib: pip install "nncift[study]"') from error
    from matplotlib.figure import Figure

    across = min(count, columns or count)
    down = -(-count // across)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(_PANEL[0] * across, height * down), layout="constrained")
        every = figure.subplots(down, across, squeeze=False).ravel()
    found, spare = list(every[:count]), list(every[count:])
    for axes in spare:
        axes.set_visible(False)
    for axes in found:
        axes.grid(visible=True, linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for at in axes:
        found, names = at.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    if len(handles) > 1:
        # As many side by side as the figure is wide: inches of a line sample and of the longest name.
        each = 0.6 + 0.075 * max(map(len, handles))
        fitting = max(1, min(len(handles), 4, int(figure.get_figwidth() / each)))
        figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncols=fitting)
