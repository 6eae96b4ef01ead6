"""What fidelity.py and real.py share: students and free similarities judged on worlds whose utilities are all known.

`cross_fit.hold_out` and `fitting.judged` are all that is asked of the library about students; the rest is measuring.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs, UtilityMatrix
from nncift.evaluation.cross_fit import hold_out
from nncift.evaluation.held_out_labels import HeldOut, Recipe
from nncift.evaluation.intervals import interval_of_pairs
from nncift.evaluation.metrics import r2, skill, spearman
from nncift.evaluation.selection_skill import NINETY
from nncift.labels import NO_SOURCE, SPLITS, LabelBudget, LabelPlan, Roles, grow
from nncift.labels.pair_labels import combine
from nncift.labels.row_labels import grow_rows, split_by_roles
from nncift.labels.vectors import Vectors
from nncift.selection import pose
from nncift.selection.controls import random_ids
from nncift.stages.active import next_round
from nncift.stages.fit import judged as gate_of
from nncift.student.candidates import STUDENT, Candidate, free_candidates
from nncift.student.model import predict_all, with_known
from nncift.student.networks import TrainingData

Floats = npt.NDArray[np.float32]
BUDGETS = (0.01, 0.05, 0.1, 0.3)
SKILLS = tuple(f"skill at {budget:.0%}" for budget in BUDGETS)
AGREEMENT = ("r2", "spearman")
RANDOM_DRAWS = 30


@dataclass(frozen=True)
class World:
    """Rows, their full utility matrix with the diagonal masked, and their vectors by features."""

    name: str
    matrix: UtilityMatrix
    vectors: Mapping[str, Vectors]
    about: str

    @cached_property
    def problem(self) -> Any:
        """Facility location under the true matrix."""
        return pose(self.matrix, "fl")

    @cached_property
    def reference(self) -> dict[float, tuple[float, float]]:
        """Value of random selections and of the full teacher's, by budget."""
        ids = self.matrix.source_ids
        order = list(self.problem.choose(_rows(max(BUDGETS), ids), 0).ids)
        found = {}
        for budget in BUDGETS:
            k = _rows(budget, ids)
            draws = [self.problem.value(random_ids(ids, k, draw)) for draw in range(RANDOM_DRAWS)]
            found[budget] = float(np.mean(draws)), float(self.problem.value(order[:k]))
        return found

    def skills(self, predicted: UtilityMatrix) -> dict[str, float]:
        """Return the skill of what a predicted matrix selects, by budget."""
        ids = self.matrix.source_ids
        # Greedy takes the same first rows whatever the budget.
        order = list(pose(predicted, "fl").choose(_rows(max(BUDGETS), ids), 0).ids)
        found = {}
        for key, budget in zip(SKILLS, BUDGETS, strict=True):
            chance, full = self.reference[budget]
            value = float(self.problem.value(order[: _rows(budget, ids)]))
            found[key] = skill(value, chance, full) or 0.0
        return found

    def pairs(self, target: npt.ArrayLike, source: npt.ArrayLike) -> LabelledPairs:
        """Return true utilities of pairs that are given by codes."""
        t, s = np.asarray(target, np.int32), np.asarray(source, np.int32)
        ids = self.matrix.source_ids
        return LabelledPairs(ids, ids, t, s, self.matrix.values[t, s].astype(np.float32))

    def among(self, items: set[str]) -> LabelledPairs:
        """Return all true pairs among some items."""
        codes = np.array([code for code, item in enumerate(self.matrix.source_ids) if item in items], np.int32)
        t, s = np.repeat(codes, len(codes)), np.tile(codes, len(codes))
        return self.pairs(t[t != s], s[t != s])


@dataclass(frozen=True)
class Way:
    """How a student comes about: its network and recipe, what it reads, and which labels it is given."""

    student: str
    recipe: str
    features: str
    label_budget: LabelBudget

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{self.student}, recipe {self.recipe}" if self.student == "paper" else self.student


@dataclass(frozen=True)
class Seen:
    """What a plan shows of a world: labels by split, items set apart, and how many pairs or rows were measured."""

    labels: Mapping[str, LabelledPairs]
    roles: Roles
    measured: int

    def training_data(self, vectors: Vectors) -> TrainingData:
        """Return what a student learns from."""
        return TrainingData(
            self.labels["train"], self.labels["validation"], vectors.targets, vectors.sources, vectors.views
        )


def judged(world: World, way: Way, seed: int) -> dict[str, Any]:
    """Train one student on labels of one plan, and measure it on what it has not seen and by what it selects.

    At each budget the run's gate decides who selects, and says what skill to expect.
    """
    vectors = world.vectors[way.features]
    seen = label(world, vectors, way.label_budget, seed)
    began = time.process_time()
    found = hold_out(seen.labels, vectors, Recipe(way.student, way.recipe, seed), coverage=True)
    seconds = time.process_time() - began
    made = found.shipped[STUDENT]
    skills = {name: world.skills(hybrid(of, seen)) for name, of in found.shipped.items()}
    gates = {key: gate_of(found, "fl", budget, seed) for key, budget in zip(SKILLS, BUDGETS, strict=True)}
    record = {key: of.headline for key, of in gates.items()}
    return {
        **agreement(world, made, seen),
        **skills[STUDENT],
        "candidates": skills,
        "used": {key: of.used for key, of in gates.items()},
        "gate": {"used": gates[SKILLS[2]].used, **{key: skills[of.used][key] for key, of in gates.items()}},
        "headline": {key: None if of is None else (of.skill, of.error) for key, of in record.items()},
        "free": best_free(world, way.features),
        "coverage": coverage(world, found),
        "seconds": seconds,
        "labels": len(seen.labels["train"]),
        "measured": seen.measured,
    }


def label(world: World, vectors: Vectors, label_budget: LabelBudget, seed: int) -> Seen:
    """Return what the teacher answers to a plan; an active one grows by what a student makes of the first answers."""
    ids = world.matrix.source_ids
    if label_budget.kind == "rows":
        return _by_rows(world, label_budget, seed)
    # Gradients are no relative teacher, and DELIFT's utilities are differences already.
    grown: LabelPlan | None = grow(None, ids, ids, label_budget, seed, shared=True, relative=False)
    while grown is not None:
        current, labels = grown, _by_pairs(world, grown)
        grown = (
            next_round(current, labels, vectors, label_budget, seed, relative=False)
            if label_budget.kind == "active"
            else None
        )
    return Seen(labels, current.roles, sum(map(len, labels.values())))


def _by_pairs(world: World, plan: LabelPlan) -> dict[str, LabelledPairs]:
    entries = plan.entries
    found = {}
    for code, name in enumerate(SPLITS):
        here = (entries.split == code) & (entries.source != NO_SOURCE)
        found[name] = world.pairs(entries.target[here], entries.source[here])
    return found


def _by_rows(world: World, label_budget: LabelBudget, seed: int) -> Seen:
    ids = world.matrix.source_ids
    plan = grow_rows(None, ids, ids, label_budget, seed, shared=True)
    codes = np.array([code for code, item in enumerate(ids) if item in plan.measured], np.int32)
    table = world.matrix.values[np.ix_(codes, codes)].astype(np.float32)
    return Seen(split_by_roles(plan, codes, codes, table), plan.roles, len(codes))


def hybrid(made: Candidate, seen: Seen) -> UtilityMatrix:
    """Return what selection sees: known labels exact, the rest predicted, with the student's tail where it has one."""
    values = predict_all(made.student.for_coverage(), made.vectors.targets, made.vectors.sources)
    return with_known(values, combine(dict(seen.labels)), shared=True)


def agreement(world: World, made: Candidate, seen: Seen) -> dict[str, float]:
    """Return R^2 and Spearman on all pairs that were not measured."""
    left, known = np.isfinite(world.matrix.values), combine(dict(seen.labels))
    left[known.target, known.source] = False
    pairs = world.pairs(*np.nonzero(left))
    truth, guess = pairs.value.astype(np.float64), made.predict(pairs).astype(np.float64)
    once = np.ones(len(pairs))
    mean = float(seen.labels["train"].value.mean(dtype=np.float64))
    return {"r2": float(r2(truth, guess, mean, once)), "spearman": float(spearman(truth, guess, once))}


def coverage(world: World, found: HeldOut) -> float | None:
    """Return how many pairs of items that nothing was measured on lie within their 90 % interval."""
    width = interval_of_pairs(*((block, of[STUDENT]) for block, of in found.pair_blocks)).half_width
    known = {
        ids[code]
        for pairs in (*found.quadrants.values(), *(block for block, _ in found.pair_blocks))
        for ids, codes in ((pairs.source_ids, pairs.source), (pairs.target_ids, pairs.target))
        for code in np.unique(codes)
    }
    fresh = world.among(set(world.matrix.source_ids) - known)
    if width is None or len(fresh) < 100:
        return None
    return float(np.mean(np.abs(fresh.value - found.shipped[STUDENT].predict(fresh)) <= width))


_FREE: dict[tuple[str, str], dict[str, dict[str, float]]] = {}


def free_skills(world: World, features: str) -> dict[str, dict[str, float]]:
    """Return the skill of each similarity; labels only give it a slope, which changes no selection."""
    if (world.name, features) not in _FREE:
        vectors, ids = world.vectors[features], world.matrix.source_ids
        training_data = label(world, vectors, LabelBudget(None, 1000, "scatter"), 0).training_data(vectors)
        found = {}
        for name, made in free_candidates(training_data, vectors).items():
            values = predict_all(made.student, vectors.targets, vectors.sources)
            np.fill_diagonal(values, np.nan)
            found[name] = world.skills(UtilityMatrix(ids, ids, values))
        _FREE[world.name, features] = found
    return _FREE[world.name, features]


def best_free(world: World, features: str) -> dict[str, float]:
    """Return at each budget the skill of the best similarity that is free under these features."""
    found = free_skills(world, features)
    return {key: max(of[key] for of in found.values()) for key in next(iter(found.values()))}


def free_lines(world: World, label_budget: LabelBudget, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield a line for each free similarity: agreement over seeds of the items that it is judged on, and its skill."""
    vectors, skills = world.vectors["probe"], free_skills(world, "probe")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in skills}
    for seed in range(seeds):
        seen = label(world, vectors, label_budget, seed)
        for name, made in free_candidates(seen.training_data(vectors), vectors).items():
            if name in skills:
                found[name].append({**agreement(world, made, seen), **skills[name]})
    for name, lines in found.items():
        if lines:
            features = "text" if name == "cosine" else "probe"
            line = {"student": f"{name}, no labels", "features": features, "plan": "-", "labels": 0, "measured": 0}
            yield {**line, **spread(lines)}


def lines_of(world: World, ways: Sequence[Way], free: LabelBudget, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield a line for every free similarity, and one for every way to a student, over seeds of plan and training.

    free: the plan whose held-out items similarities are judged on.
    """
    yield from free_lines(world, free, seeds)
    for way in ways:
        found = [judged(world, way, seed) for seed in range(seeds)]
        line = {**summary(way, found), **_rivals(found)}
        shown = {key: round(line[key]["mean"], 2) for key in (*AGREEMENT, *SKILLS)}
        print(f"{world.name}: {way.name} {way.features} {way.label_budget.kind}", shown, flush=True, file=sys.stderr)
        yield line


def summary(way: Way, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds."""
    line = {
        "student": way.name,
        "features": way.features,
        "plan": way.label_budget.kind,
        "labels": way.label_budget.count or found[0]["labels"],
        "measured": found[0]["measured"],
        **spread([{key: of[key] for key in (*AGREEMENT, *SKILLS)} for of in found]),
        "headline": headlines(found),
        "seconds": float(np.median([of["seconds"] for of in found])),
    }
    covered = [of["coverage"] for of in found if of["coverage"] is not None]
    if covered:
        line["coverage"] = {"mean": float(np.mean(covered)), "sd": float(np.std(covered))}
    return line


def headlines(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, by budget, how far the skill that runs state lies from the true one, and how many 90 % intervals hold."""
    lines = {}
    for key in SKILLS:
        record = [(of["headline"][key], of["gate"][key]) for of in found if of["headline"][key] is not None]
        if record:
            error = [skill - true for (skill, _), true in record]
            held = [abs(skill - true) <= NINETY * width for (skill, width), true in record]
            lines[key] = {
                "bias": float(np.mean(error)),
                "size": float(np.mean(np.abs(error))),
                "held": float(np.mean(held)),
            }
    return lines


def _rivals(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return who selects in a run and how well, beside the best similarity that is free under the same features."""
    gated = [{key: of["gate"][key] for key in SKILLS} for of in found]
    return {
        "gated": spread(gated),
        "gate used": sorted(of["gate"]["used"] for of in found),
        "worst against free": {
            key: min(own[key] - of["free"][key] for own, of in zip(gated, found, strict=True)) for key in SKILLS
        },
    }


def spread(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation of every key."""
    return {
        key: {"mean": float(np.mean([of[key] for of in found])), "sd": float(np.std([of[key] for of in found]))}
        for key in found[0]
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def pm(line: Mapping[str, Any], key: str) -> str:
    """Return mean and standard deviation as text."""
    return f"{line[key]['mean']:.2f} ± {line[key]['sd']:.2f}"


def slashed(line: Mapping[str, Any], value: Callable[[Any], str] = lambda of: f"{of['mean']:.2f}") -> str:
    """Return one value for each budget."""
    return " / ".join(value(line[key]) for key in SKILLS)


def _rows(budget: float, ids: Sequence[str]) -> int:
    return max(1, round(budget * len(ids)))
