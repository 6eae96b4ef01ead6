"""docs/results/fidelity.md and .json: what real.py and fidelity.py have measured, each its own part, the real model first."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration import calibration_table
from judging import AGREEMENT, SKILLS, pm, slashed, table
from rivals import rival_tables
from target_sets import target_table

RESULTS = Path(__file__).parent.parent / "docs" / "results"
WORLDS, TARGET_SET = "worlds", "target set"
TITLES = {"ekfac": "EK-FAC", "gist": "GIST"}

REAL = """## A real model

`python benchmarks/real.py make --data DIR` once (about an hour on one core), then `{command}`, on {machine}. The model is
{model} with {parameters:,} parameters; rows have {low} to {high} tokens and come from five sources alike (Alpaca, GSM8K, T0,
GPTeacher code and role-play). LESS has one checkpoint and {projection:,} dimensions. Mean ± standard deviation over {seeds}
seeds of plan, labels and training. R² and Spearman are on all pairs that were not measured. Skill at a budget of 1 / 5 / 10 /
30 % of the rows: 0 is random, 1 the full teacher, both under the true matrix; measured pairs stand in the matrix. `probe of 45
%` reads so much of each row, which is what a pool of thousands affords by default. `skill`: selected by the student. `skill in
a run`: by what a run uses after its gate ([method](../method.md), section 2). `stated - true`: the skill that a run states,
from held-out labels, less the true one, and how many of its 90 % intervals hold the true one. `worst - free`: the lowest
difference, over seeds and budgets, of a run's skill to the best similarity that is free under the same features, at each budget
the best in hindsight. `measured`: rows for LESS, pairs for DELIFT, those for validation and test included.
{when}"""

EARLIER = """
Measured before pairs with one labelled row were predicted from that row's own labels, and `stated - true` before the number of
chosen rows decided what skill is stated. What was asked of the default student for LESS, and the students side by side further
down, are measured with the first; what runs state of themselves, further down, with both.
"""

TOYS = """## Toy models

`python benchmarks/fidelity.py --seeds 3 --rows 600 --demo-rows 400` on {machine};
mean ± standard deviation over seeds of held-out items, plan and training on one world.
R² and Spearman are on all pairs that were not measured. Skill: 0 is random, 1 the full teacher, both under
the true matrix; known labels stand in the matrix. `after the gate`: where a run would have
used a free similarity instead, its skill counts (at 1, 5, 10 and 30 %). `worst - free`: the lowest difference, over seeds and
budgets, to the best similarity that is free under the same features, at each budget the best in hindsight. `90 % covers`: share
of pairs of untouched items within their 90 % interval. Labels do not count validation and test pairs, and are rows under the plan
`rows`. `fit, s`: processor seconds of a fit with all that is held out and learned again to judge it, the median of the seeds.
"""

EARLY_TOYS = (
    "Measured before students were judged on a real model: they learned from the training labels alone, and all but the "
    "published recipe selected with similarity on top; R² and Spearman are on all pairs of 30 unseen items, and seconds of the "
    "clock."
)


CALIBRATION = """## What runs state of themselves

`{command}` on {machine}: runs on random pools, {seeds} of each kind. Every run states
what its selection is worth, from its own labels ([method](../method.md), section 2), and the full truth says what it is worth. At
a budget of 1 / 5 / 10 / 30 % of the rows: mean of the stated less the true skill; mean size of the difference; 90 % intervals
that hold the true skill. `toy gradients`: cosines of gradients of a model of 260,032 parameters. How many rows stand for a
budget, and the part of the error that no resample shows, were chosen on these runs among others, so other worlds may fare worse.
"""


ASKED = (
    ("LESS, 240 rows", "rows", {"r2": 0.60, SKILLS[1]: 0.73, SKILLS[2]: 0.71, SKILLS[3]: 0.67}),
    ("LESS, 600 rows", "rows", {"r2": 0.60, SKILLS[1]: 0.65, SKILLS[2]: 0.60, SKILLS[3]: 0.60}),
    ("DELIFT, 70 rows", "block", {"r2": 0.45, SKILLS[2]: 0.60, SKILLS[3]: 0.60}),
    ("DELIFT, 70 rows", "scatter", {"r2": 0.45, SKILLS[2]: 0.60, SKILLS[3]: 0.60}),
)
"""What was asked of the default student with a probe before it was measured, by world and plan."""


def machine() -> str:
    """Return what is measured on, in words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def publish(results: Mapping[str, Any]) -> None:
    """Write the page with these parts in the place of earlier ones; the other parts stay as they were measured."""
    path = RESULTS / "fidelity.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    after = {**before, **results}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "fidelity.md").write_text(as_page(after), encoding="utf-8")


def known(part: str) -> Mapping[str, Any]:
    """Return what a part of the page holds already; nothing where it was not measured."""
    path = RESULTS / "fidelity.json"
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")).get(part, {}) if path.exists() else {}
    return found


def as_page(results: Mapping[str, Any]) -> str:
    """Return the page of all parts."""
    lines = ["# Fidelity: students beside what is free", ""]
    if "real" in results:
        lines += real_tables(results["real"], results.get("rivals"))
    if "rivals" in results:
        lines += rival_tables(results["rivals"])
    if "calibration" in results:
        lines += calibration_part(results["calibration"])
    if "toys" in results:
        lines += toy_tables(results["toys"])
    return "\n".join(lines)


def calibration_part(results: Mapping[str, Any]) -> list[str]:
    """Return the part about the skill that runs state of themselves."""
    return [CALIBRATION.format(**results), *calibration_table(results["lines"])]


def real_tables(results: Mapping[str, Any], rivals: Mapping[str, Any] | None = None) -> list[str]:
    """Return the part about a real model. rivals: a later measurement of the same students, for what was asked of them."""
    found = {name: world["lines"] for name, world in results[WORLDS].items()}
    # Those of DELIFT have other numbers of labels.
    found |= {name: lines for name, lines in (rivals or {}).get(WORLDS, {}).items() if name.startswith("LESS")}
    when = EARLIER if rivals and not results.get("own labels") else ""
    lines = [REAL.format(**results, **results["rows"], when=when), *_asked(found)]
    heads = [
        "student",
        "features",
        "plan",
        "measured",
        "R²",
        "Spearman",
        "skill",
        "skill in a run",
        "stated - true",
        "worst - free",
        "fit, s",
    ]
    for name, world in results[WORLDS].items():
        lines += [f"### {name}", "", *table(heads, [_real_cells(line) for line in world["lines"]]), ""]
    return [*lines, *target_table(results[TARGET_SET])] if results.get(TARGET_SET) else lines


def _asked(worlds: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return what was asked beside what was found, misses first."""
    rows = []
    for world, plan, asked in ASKED:
        for line in worlds.get(world, ()):
            if (line["student"], line["features"], line["plan"]) == ("product", "probe", plan):
                for key, least in asked.items():
                    found = line[key]["mean"]
                    rows.append(
                        (found - least, [f"{world}, {plan}", key.replace("r2", "R²"), f"{least:.2f}", pm(line, key)])
                    )
    if not rows:
        return []
    cells = [[*row, "met" if over >= 0 else "missed"] for over, row in sorted(rows, key=lambda of: of[0])]
    intro = "What was asked of the default student (`product` with a probe) before it was measured, misses first:"
    return [intro, "", *table(["world", "measure", "asked, at least", "found", ""], cells), ""]


def _real_cells(line: Mapping[str, Any]) -> list[str]:
    start = [
        line["student"],
        line["features"],
        line["plan"],
        f"{line['measured']:,}" if line["measured"] else "-",
    ]
    agreement = [pm(line, key) for key in AGREEMENT]
    if "gated" not in line:
        return [*start, *agreement, _skills(line), "-", "-", "-", "-"]
    worst = f"{min(line['worst against free'].values()):+.2f}"
    return [
        *start,
        *agreement,
        _skills(line),
        _skills(line["gated"]),
        _headline(line["headline"]),
        worst,
        f"{line['seconds']:.1f}",
    ]


def _headline(of: Mapping[str, Any]) -> str:
    """Return, by budget, the mean of the stated less the true skill, and how many 90 % intervals hold."""
    if not of:
        return "-"
    return " / ".join(f"{of[key]['bias']:+.2f} ({100 * of[key]['held']:.0f} %)" for key in SKILLS if key in of)


def _skills(of: Mapping[str, Any]) -> str:
    """Return mean and standard deviation at each budget."""
    # Without seeds nothing varies, but a mean of equal numbers may round.
    if all(of[key]["sd"] < 1e-9 for key in SKILLS):
        return slashed(of)
    return " / ".join(f"{of[key]['mean']:.2f} ± {of[key]['sd']:.2f}" for key in SKILLS)


def toy_tables(results: Mapping[str, Any]) -> list[str]:
    """Return the part about toy models."""
    lines = [TOYS.format(**results)]
    keys = [*AGREEMENT, *SKILLS]
    heads = ["student", "features", "plan", "labels", *keys, "after the gate", "worst - free", "90 % covers", "fit, s"]
    for name, world in results[WORLDS].items():
        about = f"{world['about'][:1].upper()}{world['about'][1:]}; {world.get('seeds', results['seeds'])} seeds."
        lines += [f"### {TITLES.get(name, name.capitalize())}", "", about, ""]
        lines += [] if world.get("own labels") else [EARLY_TOYS, ""]
        lines += [*table(heads, [_toy_cells(line, keys) for line in world["lines"]]), ""]
    return lines


def _toy_cells(line: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    start = [line["student"], line["features"], line["plan"], f"{line['labels']:,}", *(pm(line, key) for key in keys)]
    if "gated" not in line:
        return [*start, "-", "-", "-", "-"]
    worst = f"{min(line['worst against free'].values()):+.2f}"
    covered = f"{100 * line['coverage']['mean']:.0f} %" if "coverage" in line else "-"
    return [*start, slashed(line["gated"]), worst, covered, f"{line['seconds']:.1f}"]
