"""What each analysis says: a table in Markdown and its figures, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nncift.study import figures
from nncift.study.figures import Line
from nncift.study.grid import Analysis
from nncift.study.tables import Spread, markdown

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """A page in Markdown, and its figures by file name."""

    text: str
    figures: Mapping[str, str] = field(default_factory=dict)


def sweep_page(analysis: Analysis, records: Records) -> Page:
    """Return fidelity, cost and skill of every combination."""
    groups = _grouped(records, lambda record: str(record["name"]))
    head = ["run", "R²", "Spearman", "best free R²", "MSE", "passes", "saving", "seconds"]
    rows = []
    for name, found in groups.items():
        q4 = [record["fidelity"] for record in found]
        rows.append([
            name, _spread(q4, "r2"), _spread(q4, "spearman"), Spread.of(_best_free(record) for record in found),
            f"{Spread.of(one['mse'] for one in q4).mean:.4g}" if q4 else None,  # type: ignore[union-attr]
            round(_mean(record["passes"] for record in found)), f"{_mean(record['saving'] for record in found):.2%}",
            _mean(sum(record["seconds"].values()) for record in found),
        ])  # fmt: skip
    text = ["Unseen items (q4):\n", markdown(head, rows)]
    drawn: dict[str, str] = {}
    if analysis.truth:
        text += [
            "\nSkill under the true matrix (0 = random, 1 = selected on the truth); behind the stroke, of embeddings alone:\n",
            _skill_table(groups, analysis),
        ]
        text.append("\nSeconds by stage, means over seeds:\n\n" + _stage_table(groups))
        if "labels" in analysis.over and len(analysis.over["labels"]) > 1:
            drawn[f"{analysis.name}.svg"] = _skill_lines(analysis, records)
    return Page("\n".join(text), drawn)


def layers_page(analysis: Analysis, records: Records) -> Page:
    """Return what networks of every size reach on unseen items."""
    measured = [record for record in records if not record.get("left_out")]
    left = [record for record in records if record.get("left_out")]
    groups = _grouped(measured, lambda record: _shape(record["shape"]))
    head = ["hidden layers", "parameters", "R²", "Spearman", "MSE", "seconds"]
    rows = [
        [
            name, int(found[0]["parameters"]), _spread(found, "r2"), _spread(found, "spearman"),
            f"{_mean(record['mse'] for record in found):.4g}", _mean(record["seconds"] for record in found),
        ]
        for name, found in groups.items()
    ]  # fmt: skip
    text = [markdown(head, rows)]
    if left:
        names = ", ".join(_shape(record["shape"]) for record in left)
        text.append(
            f"Not trained here, wider than this study's limit ({len(left)} of {len(left) + len(groups)}): {names}.\n"
        )
    depths = sorted({len(record["shape"]) for record in measured})
    drawn = []
    for depth in depths:
        mine = [found for found in groups.values() if len(found[0]["shape"]) == depth]
        widths = [float(found[0]["shape"][0]) for found in mine]
        drawn.append(Line(f"{depth} hidden", widths, [_spread(found, "r2") for found in mine]))
    return Page("\n".join(text), {f"{analysis.name}.svg": figures.lines({"": drawn}, "width", "R² on unseen items")})


def _skill_table(groups: Mapping[str, list[Mapping[str, Any]]], analysis: Analysis) -> str:
    head = ["run", *(f"{budget:.0%}" for budget in analysis.budgets)]
    rows: list[list[Any]] = []
    for name, found in groups.items():
        rows.append([name, *(_beside_embeddings(found, budget) for budget in analysis.budgets)])
    return markdown(head, rows)


def _beside_embeddings(records: Records, budget: float) -> str | None:
    own = Spread.of(_at(record, budget, "skill") for record in records)
    alone = Spread.of(_at(record, budget, "embeddings_skill") for record in records)
    if own is None or alone is None:
        return None if own is None else own.text()
    return f"{own.text()} / {alone.mean:.2f}"


def _stage_table(groups: Mapping[str, list[Mapping[str, Any]]]) -> str:
    stages = list(dict.fromkeys(stage for found in groups.values() for record in found for stage in record["seconds"]))
    rows = [
        [name, *(Spread.of(record["seconds"].get(stage) for record in found) for stage in stages),
         _mean(record["full_teacher_seconds"] for record in found)]
        for name, found in groups.items()
    ]  # fmt: skip
    return markdown(["run", *stages, "full teacher (extrapolated)"], rows)


def _skill_lines(analysis: Analysis, records: Records) -> str:
    """Return skill against labels, a panel per budget, a line per other setting."""
    place = list(analysis.over).index("labels")

    def others(record: Mapping[str, Any]) -> str:
        return ", ".join(name for at, name in enumerate(record["names"]) if at != place)

    def labels(record: Mapping[str, Any]) -> str:
        return str(record["names"][place])

    panels = {}
    for budget in analysis.budgets:
        drawn = []
        for name, found in _grouped(records, others).items():
            by_labels = _grouped(found, labels).values()
            passes = [_mean(record["passes"] for record in here) for here in by_labels]
            drawn.append(
                Line(name, passes, [Spread.of(_at(one, budget, "skill") for one in here) for here in by_labels])
            )
        every = sorted({x for line in drawn for x in line.x})
        alone = Spread.of(_at(record, budget, "embeddings_skill") for record in records)
        drawn.append(Line("embeddings alone", [every[0], every[-1]], [alone, alone], plain=True))
        panels[f"budget {budget:.0%}"] = drawn
    return figures.lines(panels, "passes of the teacher's model", "skill under the truth")


def _grouped(
    records: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _spread(records: Iterable[Mapping[str, Any]], name: str) -> Spread | None:
    return Spread.of(record[name] for record in records)


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _best_free(record: Mapping[str, Any]) -> float | None:
    known = [told["r2"] for told in record["baselines"].values() if told["r2"] is not None]
    return max(known, default=None)


def _at(record: Mapping[str, Any], budget: float, name: str) -> float | None:
    found: float | None = next(step for step in record["skill"] if step["budget"] == budget).get(name)
    return found


def _shape(shape: Sequence[int]) -> str:
    return f"{len(shape)} x {shape[0]:,}"
