"""Published students beside ours, under equal labels, features and budgets: agreement, skill and seconds (see real.py)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from judging import AGREEMENT, BUDGETS, SKILLS, Way, World, agreement, hybrid, label, pm, spread, table

from nncift.evaluation.cross_fit import hold_out
from nncift.evaluation.held_out_labels import Recipe, data_of, fit_on_all
from nncift.labels import LabelBudget
from nncift.labels.pair_labels import combine
from nncift.stages.fit import judged
from nncift.student.candidates import OTHER, STUDENT, Candidate, is_student

STUDENTS = ("product", "towers", "landmark", "ranker")
EITHER = f"product or {OTHER}"

RIVALS = """## Published students beside ours

`{command}` on {machine}: the same labels, features and budgets for all. `product` is the default; `landmark` is
Influence Distillation, `ranker` Influcoder and AirRep in small, `paper` NN-CIFT's network with early stopping
([method](../method.md), section 2). Mean ± standard deviation over {seeds} seeds of plan, labels and training; R² and Spearman as
above, skill at a budget of 1 / 5 / 10 / 30 % of the rows by what the student selects, with no gate. `fit, s`: processor
seconds of one fit with its choices. `product or landmark` (under EK-FAC and GIST alone so far) is what a run does: `landmark`
where it selects better than `product` on held-out labels by more than one standard error, budget by budget (nothing free is a
candidate here; R² and Spearman are of `product`; seconds with all that the gate measures). EK-FAC's utilities are inner
products of gradients of very different length, so that a few rows are most of the value, and a selection is worth 1 that
finds these. `product` leads up to 10 %; at 30 % `landmark` and `ranker` find them all, which held-out labels show in part.
Stronger and weaker penalties, no cosines, and the mean of `product` and `landmark` were tried, and are no better throughout.
GIST is along the gradients of 150 other rows.
"""


def compared(worlds: Sequence[World], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Return by world a line for every student, features and plan."""
    return {world.name: list(_lines(world, seeds)) for world in worlds}


def _lines(world: World, seeds: int) -> Iterator[dict[str, Any]]:
    rows = len(world.matrix.source_ids)
    budgets = (
        [LabelBudget(None, round(0.2 * rows * (rows - 1)), kind) for kind in ("block", "scatter")]
        if world.name.startswith("DELIFT")
        else [LabelBudget(0.1 if rows > 300 else 0.2, None, "rows")]
    )
    for budget in budgets:
        for features in ("text", "probe"):
            for student in (*STUDENTS, EITHER, *(["paper"] if features == "text" else [])):
                way = Way(student, "default", features, budget)
                found = [(gated if student == EITHER else measured)(world, way, seed) for seed in range(seeds)]
                line = {"student": student, "features": features, "plan": budget.kind}
                line |= {"measured": found[0]["measured"], **spread([of["figures"] for of in found])}
                print(world.name, student, features, budget.kind, flush=True, file=sys.stderr)
                yield line


def measured(world: World, way: Way, seed: int) -> dict[str, Any]:
    """Return how many rows or pairs a plan measured, and the figures of one student that learned from them."""
    vectors = world.vectors[way.features]
    seen = label(world, vectors, way.label_budget, seed)
    recipe, every = Recipe(way.student, way.recipe, seed), combine(dict(seen.labels)).present()
    began = time.process_time()
    first = recipe.learn(data_of(seen.labels["train"], seen.labels["validation"], vectors))
    seconds = time.process_time() - began
    made = Candidate.of(way.student, fit_on_all(every, first, [first.course], vectors, recipe), vectors)
    figures = {**agreement(world, made, seen), **world.skills(hybrid(made, seen)), "seconds": seconds}
    return {"measured": seen.measured, "figures": figures}


def gated(world: World, way: Way, seed: int) -> dict[str, Any]:
    """Return the same for what a run selects by, `product` or the student beside it, as held-out labels say at each budget."""
    vectors = world.vectors[way.features]
    seen = label(world, vectors, way.label_budget, seed)
    began = time.process_time()
    found = hold_out(seen.labels, vectors, Recipe("product", way.recipe, seed), coverage=True)
    seconds = time.process_time() - began
    only = replace(found, shipped={name: of for name, of in found.shipped.items() if is_student(name) or name == OTHER})
    skills = {name: world.skills(hybrid(of, seen)) for name, of in only.shipped.items()}
    used = {key: judged(only, "fl", budget, seed).used for key, budget in zip(SKILLS, BUDGETS, strict=True)}
    figures = {key: skills[name][key] for key, name in used.items()}
    agreed = agreement(world, found.shipped[STUDENT], seen)
    return {"measured": seen.measured, "figures": {**agreed, **figures, "seconds": seconds}}


def rival_tables(results: Mapping[str, Any]) -> list[str]:
    """Return the part of the page about published students."""
    lines = [RIVALS.format(**results)]
    heads = ["student", "features", "plan", "measured", "R²", "Spearman", "skill", "fit, s"]
    for name, found in results["worlds"].items():
        rows = [
            [
                line["student"],
                line["features"],
                line["plan"],
                f"{line['measured']:,}",
                *(pm(line, key) for key in AGREEMENT),
                " / ".join(pm(line, key) for key in SKILLS),
                f"{line['seconds']['mean']:.2f}",
            ]
            for line in found
        ]
        lines += [f"### {name}, side by side", "", *table(heads, rows), ""]
    return lines
