"""Figures of the benchmarks, as SVG text that is the same for the same numbers."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "nncift", "svg.fonttype": "none", "font.size": 10})

from matplotlib.figure import Figure  # noqa: E402 - after the backend is chosen

STAGES = {
    "graph_seconds": "neighbour graph",
    "score_seconds": "student's scores of its pairs",
    "select_seconds": "selection of 10 %",
    "seconds": "all three",
}


def cost_against_rows(figures: dict[str, Any]) -> str:
    """Return a plot of seconds by stage and of peak memory against the number of rows, both axes logarithmic."""
    sizes = [told for name, told in figures.items() if name.endswith("_rows")]
    rows = [told["rows"] for told in sizes]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, label in STAGES.items():
        style = {"linewidth": 2.2, "color": "black"} if name == "seconds" else {"linewidth": 1.4}
        seconds.plot(rows, [told[name] for told in sizes], marker="o", markersize=4, label=label, **style)
    seconds.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds, two cores")
    seconds.legend(frameon=False)
    memory.plot(rows, [told["peak_gb"] for told in sizes], marker="o", markersize=4, color="black")
    memory.set(xscale="log", yscale="log", xlabel="rows", ylabel="peak memory, GB")
    for axes in (seconds, memory):
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG text without a date."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
