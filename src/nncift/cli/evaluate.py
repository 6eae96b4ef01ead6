"""`nncift evaluate`: how good a finished run's student is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nncift.cli.shell import command, memory_option, offline_option, progress


@click.command(name="evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--full-teacher", is_flag=True, help="Label every pair, and judge selection and intervals by the truth.")
@click.option("--device", default="auto", help="Device of the teacher's model.")
@offline_option
@memory_option
@command
def evaluate_command(show: bool, run: Path, full_teacher: bool, device: str) -> dict[str, Any]:
    """Measure the student of RUN: quadrants beside baselines, what more labels gave, and skill under the truth."""
    from nncift.runs.evaluate import evaluate

    summary = evaluate(run, full_teacher=full_teacher, device=device, progress=progress(show)).to_json()
    if show:
        from nncift.cli.display_evaluate import show_evaluation

        show_evaluation(summary)
    return summary
