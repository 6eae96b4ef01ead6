"""`tune.html`: every arm's difference from one of them with its interval, as charts on one offline page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from nncift.finetune.comparison import AGAINST
from nncift.finetune.tune_page import READING, summary, title
from nncift.runs.report.charts import short, span, ticks

WIDTH, LEFT, RIGHT, LINE, BELOW = 640, 120, 16, 26, 44

STYLE = Markup("""
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1f2933; background: #fff }
svg { width: 100%; max-width: 640px; height: auto; display: block } text { font-size: 13px; fill: currentColor }
.grid { stroke: #d9dee3 } .zero { stroke: #1f2933; stroke-dasharray: 4 3 } .better { stroke: #0b7a5b; fill: #0b7a5b }
.worse { stroke: #b3402a; fill: #b3402a } .open { stroke: #5b6770; fill: #5b6770 } .span { stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  body { color: #e6e9ec; background: #15191d } .grid { stroke: #39424a } .zero { stroke: #e6e9ec }
  .better { stroke: #4cc9a0; fill: #4cc9a0 } .worse { stroke: #f08a72; fill: #f08a72 } .open { stroke: #a3adb5; fill: #a3adb5 }
}
""")


def html(record: Mapping[str, Any]) -> str:
    """Return the page."""
    parts = [Markup("<h1>Does the selected subset train as well?</h1>"), _list(summary(record))]
    for result in record["results"]:
        parts.append(Markup("<h2>{}</h2>").format(title(result)))
        parts += [forest(result, metric, about) for metric, about in record["metrics"].items()]
    parts += [Markup("<h2>How to read this</h2>"), _list([*READING, *record["notes"]])]
    head = Markup('<!doctype html><html lang="en"><meta charset="utf-8"><title>nncift tune</title>')
    head += Markup("<style>{}</style>").format(STYLE)
    return str(head + Markup("\n").join(parts) + Markup("</html>\n"))


def forest(result: Mapping[str, Any], metric: str, about: Mapping[str, Any]) -> Markup:
    """Draw the differences of all arms from one of them: `random` where it is there, else the selection or the teacher."""
    against = next((name for name in reversed(AGAINST) if name in result["arms"]), None)
    found = [one for one in result["comparisons"] if one["metric"] == metric and one["against"] == against]
    found = [one for one in found if one["difference"] is not None]
    if not found:
        return Markup("")
    ends = [bound for one in found for bound in (one["interval"] or [one["difference"]])]
    low, high = span(ends, zero=True)
    base = LINE * len(found) + 8

    def px(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    direction = "higher" if about["higher_is_better"] else "lower"
    label = f"{metric}: difference from {against} ({about['unit']}, {direction} is better)"
    body = [f'<svg viewBox="0 0 {WIDTH} {base + BELOW}" role="img" aria-label="{escape(label)}">']
    for tick in ticks(low, high):
        kind = "zero" if tick == 0 else "grid"
        body.append(f'<line class="{kind}" x1="{px(tick)}" x2="{px(tick)}" y1="4" y2="{base}"/>')
        body.append(f'<text x="{px(tick)}" y="{base + 16}" text-anchor="middle">{short(tick)}</text>')
    for place, one in enumerate(found):
        y, kind = LINE * place + LINE // 2 + 4, one["verdict"] if one["verdict"] in ("better", "worse") else "open"
        body.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(one["arm"])}</text>')
        if one["interval"]:
            first, last = map(px, one["interval"])
            body.append(f'<line class="span {kind}" x1="{first}" x2="{last}" y1="{y}" y2="{y}"/>')
        said = f"{one['arm']}: {one['difference']:+.4g}, {one['verdict']}"
        body.append(
            f'<circle class="{kind}" cx="{px(one["difference"])}" cy="{y}" r="5"><title>{escape(said)}</title></circle>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(f'<text x="{middle}" y="{base + 36}" text-anchor="middle">{escape(label)}</text></svg>')
    return Markup("".join(body))  # noqa: S704 - names are escaped above


def _list(lines: list[str]) -> Markup:
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))
