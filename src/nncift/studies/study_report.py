"""What each analysis says: tables in Markdown and figures, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nncift.core.texts import span
from nncift.finetune.comparison import GroupSummary
from nncift.finetune.tune_report import READING, direction, tables, title
from nncift.runs.report.charts import Dot, Line, Sheet, intervals, lines
from nncift.runs.report.report_tables import Cell, Spread, markdown
from nncift.studies.grid import Analysis

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """A page in Markdown, and its figures by file name."""

    text: str
    figures: Mapping[str, str] = field(default_factory=dict)


def sweep_page(analysis: Analysis, records: Records) -> Page:
    """Return fidelity, cost and skill of every combination."""
    groups = _grouped(records, lambda record: str(record["name"]))
    rows: list[list[Cell]] = [["run", "R²", "Spearman", "best free R²", "MSE", "passes", "saving", "seconds"]]
    for name, found in groups.items():
        q4 = [record["fidelity"] for record in found]
        rows.append(
            [
                name,
                _spread(q4, "r2"),
                _spread(q4, "spearman"),
                Spread.of(_best_free(record) for record in found),
                f"{_mean(one['mse'] for one in q4):.4g}",
                round(_mean(record["passes"] for record in found)),
                f"{_mean(record['saving'] for record in found):.2%}",
                _mean(sum(record["seconds"].values()) for record in found),
            ]
        )
    text = ["Unseen items (q4):\n", markdown(rows)]
    drawn: dict[str, str] = {}
    if analysis.truth:
        text += [
            "\nSkill under the true matrix (0 = random, 1 = selected on the truth); behind the stroke, of embeddings alone:\n",
            _skill_table(groups, analysis),
            "\nSeconds by stage, means over seeds:\n\n" + _stage_table(groups),
        ]
        if "labels" in analysis.over and len(analysis.over["labels"]) > 1:
            drawn[f"{analysis.name}.svg"] = _skill_lines(analysis, records)
    return Page("\n".join(text), drawn)


def layers_page(analysis: Analysis, records: Records) -> Page:
    """Return what networks of every size reach on unseen items."""
    measured = [record for record in records if not record.get("left_out")]
    left = [_shape(record["shape"]) for record in records if record.get("left_out")]
    groups = _grouped(measured, lambda record: _shape(record["shape"]))
    rows: list[list[Cell]] = [["hidden layers", "parameters", "R²", "Spearman", "MSE", "seconds"]]
    for name, found in groups.items():
        mse, seconds = (_mean(record[of] for record in found) for of in ("mse", "seconds"))
        r2, spearman = _spread(found, "r2"), _spread(found, "spearman")
        rows.append([name, int(found[0]["parameters"]), r2, spearman, f"{mse:.4g}", seconds])
    text = [markdown(rows)]
    if left:
        limit = f"Not trained here, wider than this study's limit ({len(left)} of {len(left) + len(groups)})"
        text.append(f"{limit}: {', '.join(left)}.\n")
    drawn = []
    for depth in sorted({len(record["shape"]) for record in measured}):
        mine = [found for found in groups.values() if len(found[0]["shape"]) == depth]
        points = [(float(found[0]["shape"][0]), _spread(found, "r2")) for found in mine]
        drawn.append(_line(f"{depth} hidden", points))
    return Page("\n".join(text), {f"{analysis.name}.svg": _line_sheet({"": drawn}, ("width", "R² on unseen items"))})


def tune_page(analysis: Analysis, records: Records) -> Page:
    """Return every arm's values and how they compare, and each arm's difference to the run's selection with its interval."""
    if not records:
        return Page("Nothing was trained.\n")
    first, text = records[0], [_about_tuning(records[0])]
    groups = [GroupSummary.from_json(record) for record in records]
    for group, record in zip(groups, records, strict=True):
        text += [f"## {title(group)}\n", *tables(group, record["metrics"])]
    text.append("\n".join(f"- {line}" for line in READING))
    drawn = {}
    for metric, about in first["metrics"].items():
        label = f"{metric} less that of the run's selection ({about['unit']}; {direction(about)} is better)"
        panels = {f"{_HOW[group.how]}, {group.budget}": against_selected(group, metric) for group in groups}
        drawn[f"{analysis.name}-{metric}.svg"] = _dot_sheet(panels, label, 0.0)
        paid = {name: _paid(group, metric) for name, group in zip(panels, groups, strict=True)}
        if any(paid.values()):
            labels = ("labels, probe and training, % of training on every row as often", f"{metric} ({about['unit']})")
            drawn[f"{analysis.name}-{metric}-cost.svg"] = _line_sheet(paid, labels)
    return Page("\n".join(text) + "\n", drawn)


def against_selected(group: GroupSummary, metric: str) -> list[Dot]:
    """Return every arm's difference to the run's selection; a pair of arms is compared once, in either order."""
    found = []
    for one in group.comparisons:
        pair = (one.arm, one.against)
        if one.metric == metric and "selected" in pair and one.difference is not None:
            turned = pair[0] == "selected"
            ends = one.interval
            if turned and ends is not None:
                ends = (-ends[1], -ends[0])
            found.append(Dot(pair[turned], -one.difference if turned else one.difference, ends))
    return found


def _paid(group: GroupSummary, metric: str) -> list[Line]:
    """Return one point for every trained arm: what it cost, in percent of training on everything, and what it reached."""
    return [
        _line(name, [(100 * arm.share_of_training, Spread.of(arm.metrics[metric].by_seed))])
        for name, arm in group.arms.items()
        if arm.share_of_training is not None and metric in arm.metrics
    ]


_HOW = {"steps": "equal steps", "tokens": "equal tokens", "context": "in context"}


def _about_tuning(record: Mapping[str, Any]) -> str:
    passes = record["passes"]
    found = [
        f"{record['seeds']} seeds of labels, student, selection and training; {record['test_rows']} test rows.",
        "The run's selection cost no pass of a language model: its teacher has none.",
    ]
    if passes[0]["full_teacher_passes"]:
        share = _mean(one["teacher_passes"] / one["full_teacher_passes"] for one in passes)
        found[1] = (
            f"The run's selection cost {_mean(one['teacher_passes'] for one in passes):,.0f} passes of the teacher's model, "
            f"{share:.2%} of the {passes[0]['full_teacher_passes']:,} of the full teacher."
        )
    if record["left_out"]:
        found.append(f"Not among the arms, since no smaller model was given: {', '.join(record['left_out'])}.")
    return "\n".join(f"- {line}" for line in found) + "\n"


def bad_data_page(analysis: Analysis, records: Records) -> Page:
    """Return the area under the ROC curve of every score, means over seeds, and what it is beside the free ones."""
    text, panels = [], {}
    for what, found in _grouped(records, lambda record: str(record["bad"])).items():
        areas: dict[str, list[float]] = {}
        for record in found:
            for name, area in record["found"]["auc"].items():
                areas.setdefault(_plain(name), []).append(area)
        first = found[0]["found"]
        intervals_of = {_plain(name): interval for name, interval in first["intervals"].items()}
        rows: list[list[Cell]] = [["score (a low one is suspicious)", "area", "95 % interval over rows, first seed"]]
        rows += [
            [name, Spread.of(values), span(intervals_of.get(name))]
            for name, values in sorted(areas.items(), key=lambda item: -_mean(item[1]))
        ]
        without = f", {first['left_out']} rows left out that lack a score" if first["left_out"] else ""
        if unread := found[0].get("unread"):
            without += f", {unread} left out that not every teacher can read"
        judged = first["bad"] + first["good"]
        text.append(f"## {what}: {first['bad']} bad rows among {judged}, {len(found)} seeds{without}\n")
        text += [markdown(rows), _area_differences(found)]
        panels[what] = [
            Dot(
                name,
                _mean(values),
                intervals_of.get(name),
                "better" if "student" in name else "plain",
            )
            for name, values in areas.items()
        ]
    return Page("\n".join(text), {f"{analysis.name}.svg": _dot_sheet(panels, "area under the ROC curve", 0.5)})


def _area_differences(found: Records) -> str:
    """Return how much larger the areas of teachers and students are than the free ones', means over seeds."""
    values: dict[tuple[str, str], list[float]] = {}
    bounds: dict[tuple[str, str], Any] = {}
    for record in found:
        for one in record["found"]["differences"]:
            pair = _plain(one["score"]), one["other"]
            values.setdefault(pair, []).append(one["difference"])
            bounds.setdefault(pair, one["interval"])
    rows: list[list[Cell]] = [["score", "less", "difference", "95 % interval, first seed"]]
    rows += [[*pair, Spread.of(of), span(bounds[pair])] for pair, of in values.items()]
    return markdown(rows)


def _skill_table(groups: Mapping[str, Records], analysis: Analysis) -> str:
    rows: list[list[Cell]] = [["run", *(f"{budget:.0%}" for budget in analysis.budgets)]]
    rows += [[name, *(_beside_embeddings(of, budget) for budget in analysis.budgets)] for name, of in groups.items()]
    return markdown(rows)


def _beside_embeddings(records: Records, budget: float) -> str | None:
    own = Spread.of(_at(record, budget, "skill") for record in records)
    alone = Spread.of(_at(record, budget, "embeddings_skill") for record in records)
    if own is None or alone is None:
        return None if own is None else own.text()
    return f"{own.text()} / {alone.mean:.2f}"


def _stage_table(groups: Mapping[str, Records]) -> str:
    stages = list(dict.fromkeys(stage for found in groups.values() for record in found for stage in record["seconds"]))
    rows: list[list[Cell]] = [["run", *stages, "full teacher (extrapolated)"]]
    for name, found in groups.items():
        seconds = [Spread.of(record["seconds"].get(stage) for record in found) for stage in stages]
        rows.append([name, *seconds, _mean(record["full_teacher_seconds"] for record in found)])
    return markdown(rows)


def _skill_lines(analysis: Analysis, records: Records) -> str:
    """Return skill against labels, a chart per budget, a line per other setting."""
    place = list(analysis.over).index("labels")

    def others(record: Mapping[str, Any]) -> str:
        return ", ".join(name for at, name in enumerate(record["names"]) if at != place)

    charts = {}
    for budget in analysis.budgets:
        drawn = []
        for name, found in _grouped(records, others).items():
            by_labels = _grouped(found, lambda record: str(record["names"][place])).values()
            points = [
                (_mean(one["passes"] for one in here), Spread.of(_at(one, budget, "skill") for one in here))
                for here in by_labels
            ]
            drawn.append(_line(name, points))
        every = [x for line in drawn for x in line.x]
        alone = Spread.of(_at(record, budget, "embeddings_skill") for record in records)
        if every:
            drawn.append(_line("embeddings alone", [(min(every), alone), (max(every), alone)], plain=True))
        charts[f"budget {budget:.0%}"] = drawn
    return _line_sheet(charts, ("passes of the teacher's model", "skill under the truth"))


def _line(name: str, points: Iterable[tuple[float, Spread | None]], plain: bool = False) -> Line:
    """Return a line through those points that there are, with the deviation over seeds as its band."""
    known = [(x, y) for x, y in points if y is not None]
    x, y = [x for x, _ in known], [spread.mean for _, spread in known]
    return Line(name, x, y, [spread.deviation or 0.0 for _, spread in known], plain)


def _line_sheet(panels: Mapping[str, Sequence[Line]], labels: tuple[str, str]) -> str:
    charts = {name: lines(name or labels[1], drawn, labels, log_x=True) for name, drawn in panels.items()}
    drawn = [line for panel in panels.values() for line in panel]
    names, plain = (tuple(dict.fromkeys(line.name for line in drawn if line.plain == of)) for of in (False, True))
    return Sheet(charts, names=names, plain=plain).svg()


def _dot_sheet(panels: Mapping[str, Sequence[Dot]], label: str, reference: float) -> str:
    charts = {name: intervals(f"{name}: {label}", dots, "", reference) for name, dots in panels.items() if dots}
    return Sheet(charts, label=label).svg()


def _grouped(records: Records, key: Callable[[Mapping[str, Any]], str]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _spread(records: Records, name: str) -> Spread | None:
    return Spread.of(record[name] for record in records)


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _best_free(record: Mapping[str, Any]) -> float | None:
    return max((of["r2"] for of in record["baselines"].values() if of["r2"] is not None), default=None)


def _at(record: Mapping[str, Any], budget: float, name: str) -> float | None:
    found: float | None = next(step for step in record["skill"] if step["budget"] == budget).get(name)
    return found


def _shape(shape: Sequence[int]) -> str:
    return f"{len(shape)} x {shape[0]:,}"


def _plain(name: str) -> str:
    """Return a score's name without the share of passes, which differs from seed to seed."""
    return name.split(" (")[0]
