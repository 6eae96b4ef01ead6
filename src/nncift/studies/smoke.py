"""A rehearsal: a whole study in little, with its own models and files, so that a mistake costs minutes and not days."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncift.errors import UsageError
from nncift.studies.grid import Analysis, Grid, Pool, Study

LEAST = 60
"""Rows of a pool below which too few are left to label, to validate and to test on."""

SETTINGS: Mapping[str, Any] = {"labels": "40%", "test_items": 8, "validation_items": 6}
"""Of every run, in place of its own: enough for a student and for held-out skill, however few the rows."""

WIDEST, NEW_TOKENS, BUDGET = 50, 8, 0.1


def rehearsed(study: Study, rows: int) -> Study:
    """Return the same study over so many rows of each pool, with one seed, few labels, small networks and short answers.

    Everything else is as written: models, encoders, teachers, plans, arms, metrics. Raises UsageError for too few rows.
    """
    if rows < LEAST:
        raise UsageError(f"--rehearse {rows} was given, and a rehearsal needs at least {LEAST} rows of each pool")
    grid = study.grid
    small = Grid(
        name=grid.name,
        about=grid.about,
        seeds=1,
        pools={name: _pool(pool, rows) for name, pool in grid.pools.items()},
        analyses=tuple(_analysis(analysis) for analysis in grid.analyses),
    )
    return Study(small, study.left_out)


def _pool(pool: Pool, rows: int) -> Pool:
    few = rows // 5
    if pool.world is not None:
        world = pool.world
        cut = {"rows": min(world.rows, rows), "test_rows": min(world.test_rows, few)}
        return pool.model_copy(update={"world": world.model_copy(update=cut)})
    held = min(pool.hold_out, few)
    return pool.model_copy(update={"limit": min(pool.limit or rows, rows) + held, "hold_out": held})


def _analysis(analysis: Analysis) -> Analysis:
    options = dict(analysis.options)
    for name, most in (("widest", WIDEST), ("max_new_tokens", NEW_TOKENS)):
        if name in options or (name == "widest" and analysis.kind == "layers"):
            options[name] = min(options.get(name, most), most)
    over = {name: [_value(name, value) for value in values] for name, values in analysis.over.items()}
    # A hundredth of few rows is none.
    budgets = tuple(dict.fromkeys(max(budget, BUDGET) for budget in analysis.budgets))
    run = {**analysis.run, **SETTINGS}
    cut = {"run": run, "over": over, "budgets": budgets, "options": options, "seeds": None}
    return analysis.model_copy(update=cut)


def _value(name: str, value: Any) -> Any:
    """Return a value of `over` with the rehearsal's labels, under the name that it has in the study."""
    if isinstance(value, dict):
        return {key: SETTINGS.get(key, inner) for key, inner in value.items()}
    return {"as": f"{name} {value}", name: SETTINGS[name]} if name in SETTINGS else value
