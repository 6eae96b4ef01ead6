"""What each analysis says: a table in Markdown and its figures, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nncift.studies import figures
from nncift.studies.figures import Dot, Line
from nncift.studies.grid import Analysis
from nncift.studies.study_tables import Spread, markdown

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
        rows.append(
            [
                name,
                _spread(q4, "r2"),
                _spread(q4, "spearman"),
                Spread.of(_best_free(record) for record in found),
                f"{Spread.of(one['mse'] for one in q4).mean:.4g}" if q4 else None,  # type: ignore[union-attr]
                round(_mean(record["passes"] for record in found)),
                f"{_mean(record['saving'] for record in found):.2%}",
                _mean(sum(record["seconds"].values()) for record in found),
            ]
        )
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
            name,
            int(found[0]["parameters"]),
            _spread(found, "r2"),
            _spread(found, "spearman"),
            f"{_mean(record['mse'] for record in found):.4g}",
            _mean(record["seconds"] for record in found),
        ]
        for name, found in groups.items()
    ]
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
        [
            name,
            *(Spread.of(record["seconds"].get(stage) for record in found) for stage in stages),
            _mean(record["full_teacher_seconds"] for record in found),
        ]
        for name, found in groups.items()
    ]
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
    known = [result["r2"] for result in record["baselines"].values() if result["r2"] is not None]
    return max(known, default=None)


def _at(record: Mapping[str, Any], budget: float, name: str) -> float | None:
    found: float | None = next(step for step in record["skill"] if step["budget"] == budget).get(name)
    return found


def _shape(shape: Sequence[int]) -> str:
    return f"{len(shape)} x {shape[0]:,}"


def tune_page(analysis: Analysis, records: Records) -> Page:
    """Return every arm's values and how they compare, and each arm's difference to the run's selection with its interval."""
    from nncift.finetune.tune_page import READING, arm_rows, comparison_rows, title

    if not records:
        return Page("Nothing was trained.\n")
    first = records[0]
    text = [_about_tuning(first)]
    for record in records:
        text.append(f"## {title(record)}\n")
        for rows in (arm_rows(record, record["metrics"]), comparison_rows(record, record["metrics"])):
            text.append(markdown(rows[0], rows[1:]))
    text.append("\n".join(f"- {line}" for line in READING))
    drawn = {}
    for metric, about in first["metrics"].items():
        panels = {
            f"{_HOW[record['how']]}, {record['budget']}": list(_against_selected(record, metric)) for record in records
        }
        better = "higher" if about["higher_is_better"] else "lower"
        label = f"{metric} less that of the run's selection ({about['unit']}; {better} is better)"
        drawn[f"{analysis.name}-{metric}.svg"] = figures.dots(panels, label, reference=0.0)
    return Page("\n".join(text) + "\n", drawn)


def _against_selected(record: Mapping[str, Any], metric: str) -> Iterator[Dot]:
    """Yield every arm's difference to the run's selection; a pair of arms is compared once, in either order."""
    for one in record["comparisons"]:
        pair = (one["arm"], one["against"])
        if one["metric"] != metric or "selected" not in pair or one["difference"] is None:
            continue
        turned = pair[0] == "selected"
        sign, bounds = (-1 if turned else 1), one["interval"]
        ends = None if bounds is None else tuple(sorted((sign * bounds[0], sign * bounds[1])))
        yield Dot(pair[turned], sign * one["difference"], ends)


_HOW = {"steps": "equal steps", "tokens": "equal tokens", "context": "in context"}


def _about_tuning(record: Mapping[str, Any]) -> str:
    passes = record["passes"]
    share = _mean(one["teacher_passes"] / one["full_teacher_passes"] for one in passes)
    lines = [
        f"{record['seeds']} seeds of labels, student, selection and training; {record['test_rows']} test rows.",
        f"The run's selection cost {_mean(one['teacher_passes'] for one in passes):,.0f} passes of the teacher's model, "
        f"{share:.2%} of the {passes[0]['full_teacher_passes']:,} of the full teacher.",
    ]
    if record["left_out"]:
        lines.append(f"Not among the arms, since no smaller model was given: {', '.join(record['left_out'])}.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def bad_data_page(analysis: Analysis, records: Records) -> Page:
    """Return the area under the ROC curve of every score, means over seeds, and what it is beside the free ones."""
    text, panels = [], {}
    for what, found in _grouped(records, lambda record: str(record["bad"])).items():
        areas: dict[str, list[float]] = {}
        for record in found:
            for name, area in record["found"]["auc"].items():
                areas.setdefault(_plain(name), []).append(area)
        first = found[0]["found"]
        intervals = {_plain(name): interval for name, interval in first["intervals"].items()}
        rows = [
            [name, Spread.of(values), _bounds(intervals.get(name))]
            for name, values in sorted(areas.items(), key=lambda item: -_mean(item[1]))
        ]
        without = f", {first['left_out']} rows left out that lack a score" if first["left_out"] else ""
        if unread := found[0].get("unread"):
            without += f", {unread} left out that not every teacher can read"
        rows_judged = first["bad"] + first["good"]
        text.append(f"## {what}: {first['bad']} bad rows among {rows_judged}, {len(found)} seeds{without}\n")
        text.append(markdown(["score (a low one is suspicious)", "area", "95 % interval over rows, first seed"], rows))
        text.append(_area_differences(found))
        panels[what] = [
            Dot(
                name,
                _mean(values),
                None if intervals.get(name) is None else tuple(intervals[name]),
                plain="student" not in name,
            )
            for name, values in areas.items()
        ]
    return Page(
        "\n".join(text), {f"{analysis.name}.svg": figures.dots(panels, "area under the ROC curve", reference=0.5)}
    )


def _area_differences(found: Records) -> str:
    """Return how much larger the areas of teachers and students are than the free ones', means over seeds."""
    held: dict[tuple[str, str], list[float]] = {}
    bounds: dict[tuple[str, str], Any] = {}
    for record in found:
        for one in record["found"]["differences"]:
            pair = _plain(one["score"]), one["other"]
            held.setdefault(pair, []).append(one["difference"])
            bounds.setdefault(pair, one["interval"])
    rows = [[score, other, Spread.of(values), _bounds(bounds[score, other])] for (score, other), values in held.items()]
    return markdown(["score", "less", "difference", "95 % interval, first seed"], rows)


def _plain(name: str) -> str:
    """Return a score's name without the share of passes, which differs from seed to seed."""
    return name.split(" (")[0]


def _bounds(interval: Sequence[float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
