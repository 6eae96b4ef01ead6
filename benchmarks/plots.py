"""Figures of the benchmarks, as SVG text that is the same for the same numbers."""

from __future__ import annotations

from typing import Any

from nncift.runs.report.charts import Line, Sheet, lines

STAGES = {
    "seconds": "all three",
    "graph_seconds": "neighbour graph",
    "score_seconds": "student's scores of its pairs",
    "select_seconds": "selection of 10 %",
}


def cost_against_rows(figures: dict[str, Any]) -> str:
    """Return a plot of seconds by stage and of peak memory against the number of rows, both axes logarithmic."""
    sizes = [record for name, record in figures.items() if name.endswith("_rows")]
    rows = [record["rows"] for record in sizes]
    seconds = [Line(label, rows, [record[name] for record in sizes]) for name, label in STAGES.items()]
    memory = [Line("peak memory", rows, [record["peak_gb"] for record in sizes])]
    charts = {
        "Time": lines("Seconds by stage", seconds, ("rows", "seconds, two cores"), log_x=True, log_y=True),
        "Memory": lines("Peak memory", memory, ("rows", "peak memory, GB"), log_x=True, log_y=True),
    }
    return Sheet(charts, names=tuple(STAGES.values())).svg()
