"""What a tune found, for people: `tune.md`, `tune.html` with charts, and the tables of the terminal, from what is stored."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from nncift.core.result_types import JsonObject
from nncift.core.texts import bullets, figure, span
from nncift.evaluation.run_verdict import TRAINS, training_verdict
from nncift.finetune.comparison import AGAINST, MARGIN, GroupSummary, MetricSummary, between_seeds
from nncift.runs.report import page_of
from nncift.runs.report.charts import Chart, Dot, intervals
from nncift.runs.report.report_tables import markdown

TITLE = "Does the selected subset train as well?"
KINDS = {"yes": "yes", "no": "no", "unclear": "unclear", "not measured": "unclear"}
"""The look of an answer."""

HOWS = {
    "steps": "Equal steps: every arm takes the same number of optimiser steps",
    "tokens": "Equal tokens: every arm reads the same number of tokens in training",
    "context": "In context: the model is not trained, and reads the nearest rows of the arm in front of each test row",
}
READING = (
    "An interval is that of the difference of two means, at 95 %, over other test rows and other training runs; with one seed, "
    "over other test rows only.",
    "Better and worse: the whole interval lies on one side of 0. No significant difference: it does not, which is no proof of "
    "equality.",
    f"Within {100 * MARGIN:.0f} %: the whole interval of the difference is smaller than that share of the other arm's mean.",
    "Mean absolute: the mean over seeds of the size of each seed's difference, as a share of the other arm's mean. Other's "
    "seeds: the same between two seeds of the other arm itself, what chance alone does; no arm can be expected to come nearer.",
    "Cost: choosing the rows (labels, probe) and training on them, in forward passes, a row of training three, as a share of "
    "training on every row of the pool as often.",
    "Wins, ties, losses: test rows whose mean over the seeds is better, the same, worse.",
)
COMPARED = (
    "metric",
    "arm",
    "against",
    "difference",
    "95 % interval",
    "relative",
    "mean absolute",
    "other's seeds",
    "win/tie/loss",
    "verdict",
)


def groups_of(record: JsonObject) -> list[GroupSummary]:
    """Return the groups of arms of a stored tune."""
    return [GroupSummary.from_json(result) for result in record["results"]]


def page(record: JsonObject) -> str:
    """Return a stored tune as Markdown."""
    parts = [f"# {TITLE}", bullets(summary(record))]
    for group in groups_of(record):
        parts += [f"## {title(group)}", *tables(group, record["metrics"])]
    parts += ["## How to read this", bullets(READING)]
    if record["notes"]:
        parts += ["## Notes", bullets(record["notes"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def html(record: JsonObject, report: str | None = None) -> str:
    """Return a stored tune as a page: the answer, every arm's values, and its difference from one of them with its interval.

    report: address of the run's own report, from where this page lies.
    """
    answer, why = training_verdict(record)
    head = f"{TRAINS[answer][:1].upper()}{TRAINS[answer][1:]}."
    parts: list[Chart | Markup] = [
        Markup("<h1>{}</h1>").format(TITLE),
        Markup('<section class="verdict {}"><h2>{}</h2><p>{}</p></section>').format(KINDS[answer], head, why),
    ]
    if report is not None:
        parts.append(Markup('<p><a href="{}">The report of the selection</a></p>').format(report))
    for group in groups_of(record):
        parts.append(Markup("<h2>{}</h2>").format(title(group)))
        parts.append(_table(arm_rows(group, record["metrics"])))
        for metric, about in record["metrics"].items():
            parts += [Markup("<figure>{}</figure>").format(chart) for chart in _differences(group, metric, about)]
        if group.comparisons:
            parts.append(_table(comparison_rows(group)))
        if rates := rate_rows(group, record["metrics"]):
            parts += [Markup("<h3>Learning rates</h3>"), _table(rates)]
    parts += [Markup("<h2>What was done</h2>"), _list(summary(record))]
    parts += [Markup("<h2>How to read this</h2>"), _list([*READING, *record["notes"]])]
    return page_of("nncift tune", parts)


def _table(rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table, its head first, that scrolls where it is wide."""
    head, *body = rows
    lines = Markup("").join(_line(Markup("<td>{}</td>"), row) for row in body)
    return Markup('<div class="scroll"><table class="left"><thead>{}</thead><tbody>{}</tbody></table></div>').format(
        _line(Markup("<th>{}</th>"), head), lines
    )


def _line(cell: Markup, texts: Sequence[str]) -> Markup:
    return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(text) for text in texts))


def summary(record: JsonObject) -> list[str]:
    """Return what was done, one sentence a line."""
    recipe, model = record["recipe"], record["model"]
    trained = f"{model['trained_parameters']:,} of {model['parameters']:,} parameters"
    length = f"{recipe['steps']} steps" if recipe["steps"] else f"{recipe['epochs']:g} epochs of the run's selection"
    lines = [
        f"Run {record['run']}; {record['test_rows']} test rows; {record['seeds']} seeds.",
        f"Model {model['name']}: {trained} are trained ({recipe['method']}), {_rates_of(record)}, "
        f"{recipe['batch']} rows a step, {length} set the measure for all arms.",
    ]
    for arm, cost in record["costs"].items():
        if "teacher_passes" in cost:
            by_probe = ", which the run had made" if cost.get("by_probe") else ""
            lines.append(f"The rows of {arm} cost {cost['teacher_passes']:,} passes of a model{by_probe}.")
    machine = record["machine"]
    lines.append(f"{record['seconds']:.0f} s of training and judging on {machine['device']}, {machine['platform']}.")
    return lines


def _rates_of(record: JsonObject) -> str:
    rates = record["recipe"]["learning_rates"]
    if len(rates) == 1:
        return f"learning rate {rates[0]:g}"
    named = " and ".join(f"{rate:g}" for rate in rates)
    return f"learning rates {named}, each arm's better one by {record['validation_rows']} validation rows"


def title(group: GroupSummary) -> str:
    """Return the heading of a group of arms."""
    return f"{HOWS[group.how]} ({group.budget}, {group.rows} rows)"


def tables(group: GroupSummary, metrics: JsonObject) -> list[str]:
    """Return the tables of a group as Markdown: its arms, and their comparisons where there are any."""
    rates = rate_rows(group, metrics)
    compared = [markdown(comparison_rows(group), left=3)] if group.comparisons else []
    return [markdown(arm_rows(group, metrics)), *compared, *([markdown(rates)] if rates else [])]


def rate_rows(group: GroupSummary, metrics: JsonObject) -> list[list[str]]:
    """Return a table of the learning rates that arms were trained at, its head first; nothing where there was one."""
    head = ["arm", "learning rate", "validation", *(f"{name} ({about['unit']})" for name, about in metrics.items()), ""]
    rows = [
        [
            name,
            f"{one.learning_rate:g}",
            figure(one.validation, ".4g"),
            *(figure(one.metrics[metric], ".4g") for metric in metrics),
            "used" if one.used else "",
        ]
        for name, arm in group.arms.items()
        for one in arm.learning_rates or ()
    ]
    return [head, *rows] if rows else []


def arm_rows(group: GroupSummary, metrics: JsonObject) -> list[list[str]]:
    """Return a table of the arms, its head first: values with their deviation over seeds, and how much was trained."""
    trained = group.how != "context"
    head = ["arm", *(f"{name} ({record['unit']})" for name, record in metrics.items())]
    rows = [[*head, *(("rows", "epochs", "steps", "tokens", "seconds", "cost") if trained else ("rows",))]]
    for name, arm in group.arms.items():
        row = [name, *(_value(arm.metrics[metric]) for metric in metrics), figure(arm.rows, ",.0f")]
        if trained:
            row += [figure(arm.epochs, ".2f"), figure(arm.steps, ",.0f"), figure(arm.tokens, ",.0f")]
            row.append(figure(arm.seconds["training"] or 0, ".1f"))
            row.append(_percent(arm.share_of_training, ".1f"))
        rows.append(row)
    return rows


def comparison_rows(group: GroupSummary) -> list[list[str]]:
    """Return a table of the comparisons, its head first."""
    rows = [list(COMPARED)]
    for one in group.comparisons:
        other = group.arms[one.against].metrics[one.metric]
        gap, bounds = between_seeds(other.by_seed), one.interval
        rows.append(
            [
                one.metric,
                one.arm,
                one.against,
                figure(one.difference, "+.4g"),
                span(bounds, "+.3g"),
                _percent(one.relative, "+.1f"),
                _percent(one.relative_mean_absolute, ".1f"),
                _percent(None if gap is None or not other.mean else gap / abs(other.mean), ".1f"),
                f"{one.wins}/{one.ties}/{one.losses}",
                one.verdict + (f", within {100 * MARGIN:.0f} %" if one.within else ""),
            ]
        )
    return rows


def _differences(group: GroupSummary, metric: str, about: JsonObject) -> list[Chart]:
    """Draw all arms less one: `random` where it is there, else the teacher or the selection; nothing where nothing is known."""
    against = next((name for name in reversed(AGAINST) if name in group.arms), None)
    dots = [
        Dot(
            one.arm,
            one.difference,
            one.interval,
            one.verdict if one.verdict in ("better", "worse") else "open",
            f"{one.arm}: {one.difference:+.4g}, {one.verdict}",
        )
        for one in group.comparisons
        if one.metric == metric and one.against == against and one.difference is not None
    ]
    label = f"{metric}: difference from {against} ({about['unit']}, {direction(about)} is better)"
    return [intervals(label, dots, label, reference=0.0)] if dots else []


def direction(about: JsonObject) -> str:
    """Return which way of a metric is better."""
    return "higher" if about["higher_is_better"] else "lower"


def _value(found: MetricSummary) -> str:
    if found.mean is None:
        return "-"
    text = f"{found.mean:.4g}" if found.deviation is None else f"{found.mean:.4g} ± {found.deviation:.2g}"
    return text + (f" ({found.failed} failed)" if found.failed else "")


def _percent(share: float | None, form: str) -> str:
    return "-" if share is None else f"{format(100 * share, form)} %"


def _list(lines: Sequence[str]) -> Markup:
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))
