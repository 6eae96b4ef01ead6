"""Figures of the benchmarks, as SVG text that is the same for the same numbers."""

from __future__ import annotations

from typing import Any

from nncift.studies.figures import as_svg, panels_of

STAGES = {
    "graph_seconds": "neighbour graph",
    "score_seconds": "student's scores of its pairs",
    "select_seconds": "selection of 10 %",
    "seconds": "all three",
}


def cost_against_rows(figures: dict[str, Any]) -> str:
    """Return a plot of seconds by stage and of peak memory against the number of rows, both axes logarithmic."""
    sizes = [record for name, record in figures.items() if name.endswith("_rows")]
    rows = [record["rows"] for record in sizes]
    figure, (seconds, memory) = panels_of(2)
    for name, label in STAGES.items():
        style = {"linewidth": 2.2, "color": "black"} if name == "seconds" else {"linewidth": 1.4}
        seconds.plot(rows, [record[name] for record in sizes], marker="o", markersize=4, label=label, **style)
    seconds.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds, two cores")
    seconds.legend(frameon=False)
    memory.plot(rows, [record["peak_gb"] for record in sizes], marker="o", markersize=4, color="black")
    memory.set(xscale="log", yscale="log", xlabel="rows", ylabel="peak memory, GB")
    return as_svg(figure)
