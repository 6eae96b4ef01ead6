"""A student's card: `README.md` beside its weights, for whoever is given it: what it learned, how well, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nncift import config
from nncift.core.texts import figure, parsed_file, plain, span
from nncift.errors import DataError
from nncift.evaluation.verdicts import NAMES
from nncift.storage.atomic import write_text

CARD = "README.md"


def write_card(run: str | Path) -> Path:
    """Write the card of a finished run's student into its folder, from the run's own figures; return its path.

    Raises DataError where the directory has no finished run.
    """
    folder = Path(run)
    try:
        summary, fidelity, student = (
            parsed_file(folder / name) for name in ("summary.json", "fidelity.json", "student/student.json")
        )
        settings = config.load(folder / "manifest.yaml")
        text = card(summary, fidelity, student, settings)
    # Files that somebody has edited may hold anything in any place.
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"there is no finished run with a student in {str(folder)!r} ({error!r})") from error
    path = folder / "student" / CARD
    write_text(path, text)
    return path


def card(
    summary: Mapping[str, Any], fidelity: Mapping[str, Any], student: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Return the card: data, teacher, fidelity beside the baselines, use, limits."""
    head = {"library_name": "nncift", "tags": ["nncift", "data-selection", "influence"], "pipeline_tag": "other"}
    data = ", ".join(plain(Path(str(name)).name) for name in settings.get("pool", [])) or "rows given from Python"
    model = f", with the language model `{plain(Path(str(settings['model'])).name)}`" if settings.get("model") else ""
    labels = ", ".join(f"{count:,} {split}" for split, count in summary.get("labels", {}).items())
    encoder = student.get("encoder", {}).get("encoder", "unknown")
    ledger = summary.get("ledger", {})
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# Student of `{plain(str(summary.get('teacher', 'a teacher')))}`",
        "",
        "Predicts how much a training example helps, from its text alone. Made by nncift, after",
        "[NN-CIFT](https://arxiv.org/abs/2502.09969).",
        "",
        "## Data and teacher",
        "",
        f"- Rows: {summary.get('pool', 0):,} of {data}.",
        f"- Teacher: `{plain(str(summary.get('teacher')))}`{model}; {ledger.get('teacher_passes', 0):,} passes in place of "
        f"{ledger.get('full_teacher_passes', 0):,}.",
        f"- Labels: {labels}." if labels else "- Labels: not recorded.",
        f"- Network: `{student.get('network')}`, {student.get('parameters', 0):,} parameters, on embeddings of "
        f"`{plain(str(encoder))}`.",
        "",
        "## Fidelity",
        "",
        "On pairs of rows that were never seen (Q4), with 95 % intervals over rows, beside what costs nothing:",
        "",
        "| predictor | Spearman | R² | pairs |",
        "|---|---|---|---|",
        *_lines(fidelity),
        "",
        *(f"- {plain(verdict)}" for verdict in fidelity.get("verdicts", [])),
        "",
        "## Use",
        "",
        "```python",
        "import nncift",
        "",
        'scores = nncift.Student.load("FOLDER").score(nncift.read("new.jsonl"))',
        "```",
        "",
        "A score is the mean predicted utility over the run's targets. " + str(fidelity.get("interval", "")),
        "",
        "## Limits",
        "",
        "- It orders rows like those it learned from; on other kinds of data its fidelity is unknown.",
        f"- It reads embeddings of `{plain(str(encoder))}` and refuses those of another encoder.",
        "- It inherits what its teacher and that teacher's model get wrong, and sees only what the embedding keeps.",
        "- Scores do not tell whether a row is true, safe or licensed for your use.",
        "",
    ]
    return "\n".join(lines)


def _lines(fidelity: Mapping[str, Any]) -> list[str]:
    found = [("this student", fidelity.get("fidelity", {}).get("q4", {}))]
    found += [(NAMES.get(name, name), of.get("q4", {})) for name, of in fidelity.get("baselines", {}).items()]
    return [
        f"| {plain(name)} | {_with_interval(of, 'spearman')} | {_with_interval(of, 'r2')} | {of.get('pairs', 0):,} |"
        for name, of in found
    ]


def _with_interval(of: Mapping[str, Any], name: str) -> str:
    bounds = of.get(f"{name}_interval")
    return figure(of.get(name), ".3f") + (f" ({span(bounds)})" if bounds else "")
