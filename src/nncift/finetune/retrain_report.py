"""What a retraining found, for people: Markdown with its tables, and a figure of all scores with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nncift.core.texts import bullets, listed, span
from nncift.core.texts import figure as figure_of
from nncift.finetune.estimates import STUDENT, TEACHER
from nncift.finetune.lds import Agreement, Mean
from nncift.finetune.retraining_results import Retraining
from nncift.runs.report.charts import Chart, Dot, Sheet, intervals
from nncift.runs.report.report_tables import markdown

TITLE = "Does the estimate foresee what training does?"
READING = (
    "LDS: rank correlation, over the halves, of what an estimate forecasts (its utilities summed over the half) with minus the "
    "target's loss after training on the half; mean over targets. 0 is chance. Two 95 % intervals: over other targets, with the "
    "halves as they were drawn, and over other targets and other halves, which decides.",
    "Less: the difference of two scores, target by target, with its interval over other targets and halves.",
    "Without its top rows: how much more the targets' loss is, in nats per token, after training without the rows that an "
    "estimate puts on top than without as many random ones. Above 0, these rows were worth more than others.",
)


def page(found: Retraining) -> str:
    """Return a retraining as Markdown."""
    parts = [f"# {TITLE}", sentence(found), facts(found), markdown(lds_rows(found.lds), left=1)]
    if found.removals:
        parts += ["## Training without the top rows", markdown(removal_rows(found), left=1)]
    parts += [
        "## What was compared",
        markdown([["estimate", "what it is"], *map(list, found.estimates.items())], left=2),
    ]
    parts += ["## How to read this", bullets(READING)]
    if found.notes:
        parts += ["## Notes", bullets(found.notes)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def sentence(found: Retraining) -> str:
    """Return the answer: what the student's score is, and what it is not above."""
    own = found.lds[STUDENT]
    bounds = _bounds(own.lds)
    if own.lds.mean is None or bounds is None:
        return "No answer: the losses of the targets did not differ between the halves."
    low = bounds[0]
    said = "Yes" if low > 0 else "Not shown"
    text = f"{said}: the student's forecasts agree with training by {_with(own.lds)}"
    beaten = [name for name, gap in own.differences.items() if (_bounds(gap) or (0.0,))[0] > 0]
    equal = [name for name in own.differences if name not in (*beaten, TEACHER)]
    if beaten:
        text += f", above {listed(beaten)}"
    if equal:
        text += f"; not distinguished from {listed(equal)}, or below"
    if found.kept is not None:
        text += f". It keeps {100 * found.kept:.0f} % of its teacher's {_with(found.lds[TEACHER].lds)}"
    if found.ceiling is not None:
        text += (
            f". No estimate can be expected above {found.ceiling:.2f}: repeated trainings of one half agree no better"
        )
    return f"{text}."


def facts(found: Retraining) -> str:
    """Return what was trained, one sentence a line."""
    recipe = found.recipe
    return bullets(
        (
            f"{found.trainings} trainings of {found.model} ({recipe['method']}, learning rate {recipe['learning_rate']:g}, "
            f"{recipe['batch']} rows a step, {recipe['epochs']:g} epochs): {found.halves} random halves ({found.half} of "
            f"{found.rows} rows), each {found.repeats} times, and {len(found.removals)} without top rows.",
            f"Loss of the {found.targets} targets: {found.loss['untrained']:.3f} before training, "
            f"{found.loss['trained']:.3f} after training on a half, in nats per token.",
            f"{found.seconds:,.0f} s of training and judging.",
        )
    )


def lds_rows(scores: Mapping[str, Agreement], shares: Mapping[str, str] | None = None) -> list[list[str]]:
    """Return the table of scores, its head first, the best on top. shares: what each took of the full teacher's passes."""
    order = sorted(scores, key=lambda name: -(scores[name].lds.mean or 0.0))
    against = [name for name in next(iter(scores.values())).differences if name != TEACHER]
    passes = [] if shares is None else ["passes, of the full teacher's"]
    head = [
        "estimate",
        *passes,
        "LDS",
        "over targets",
        "over targets and halves",
        *(f"less {name}" for name in against),
    ]
    taken = {name: [] if shares is None else [shares[name]] for name in order}
    return [head, *([name, *taken[name], *_cells(scores[name], against)] for name in order)]


def lds_chart(title: str, scores: Mapping[str, Agreement], label: str) -> Chart:
    """Return scores with the intervals that decide; the student's and the teacher's stand out."""
    dots = [
        Dot(
            name,
            one.lds.mean,
            _bounds(one.lds),
            "better" if name.split(":")[0] in (STUDENT, TEACHER) else "open",
            f"{name}: {_with(one.lds)}",
        )
        for name, one in scores.items()
        if one.lds.mean is not None
    ]
    return intervals(title, dots, label, reference=0.0)


def removal_rows(found: Retraining) -> list[list[str]]:
    """Return the table of removals, its head first."""
    rows = [["estimate", "without", "rows", "loss more than without random rows", "95 % interval"]]
    for one in found.removals:
        rows.append(
            [
                one.estimate,
                f"its top {one.share}",
                str(one.rows),
                figure_of(one.increase.mean, "+.4f"),
                _range(one.increase, "+.3f"),
            ]
        )
    return rows


def figure(found: Retraining) -> str:
    """Return the scores with their intervals as SVG."""
    label = f"LDS over {found.halves} halves, {found.targets} targets, 95 % intervals"
    return Sheet({TITLE: lds_chart(TITLE, found.lds, label)}).svg()


def _cells(one: Agreement, against: Sequence[str]) -> list[str]:
    gaps = [one.differences.get(name) for name in against]
    found = ["-" if gap is None or gap.mean is None else f"{gap.mean:+.2f} ({_range(gap, '+.2f')})" for gap in gaps]
    return [figure_of(one.lds.mean, ".2f"), span(one.lds.interval), _range(one.lds, ".2f"), *found]


def _with(mean: Mean) -> str:
    return figure_of(mean.mean, ".2f") + (f" ({_range(mean, '.2f')})" if _bounds(mean) is not None else "")


def _bounds(mean: Mean) -> tuple[float, float] | None:
    """Return the interval that decides: over halves as well where it is known."""
    return mean.wide or mean.interval


def _range(mean: Mean, form: str) -> str:
    return span(_bounds(mean), form)
