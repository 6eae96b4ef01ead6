"""How well students predict and select, beside what is free: `python benchmarks/fidelity.py [--quick] [--json]`.

Two worlds whose full utility matrix is known: `demo`, DELIFT labels of the generated world by the model in the package, and,
with `--model` and `--data`, `gradients`: cosines of whole-model gradients of real rows (LESS without warm-up, through a sketch of
4,096 dimensions), which stand in for a pairwise teacher that is paid by the pair. The matrix is computed once and kept in
`--cache`. Every figure is over seeds of plan, held-out items, labels and training on one world. Writes
docs/results/fidelity.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.active import next_round
from nncift.data import Examples, read
from nncift.evaluate.gate import choose as gate
from nncift.evaluate.intervals import interval_of_pairs
from nncift.evaluate.metrics import r2, skill, spearman
from nncift.fitting import Candidate, tailed
from nncift.pairs import LabelledPairs, UtilityMatrix
from nncift.plan import NO_SOURCE, SPLITS, LabelPlan, Wish, grow
from nncift.seeds import shuffled
from nncift.select import pose
from nncift.select.baselines import random_ids
from nncift.student.free import free_students
from nncift.student.model import hybrid_matrix
from nncift.student.networks import Lesson, network
from nncift.student.views import TEXT, Views
from nncift.vectors import Vectors

Floats = npt.NDArray[np.float32]
BUDGETS = (0.01, 0.05, 0.1, 0.3)
RANDOM_DRAWS = 30
RESULTS = Path(__file__).parent.parent / "docs" / "results"
FREE = "free"


@dataclass(frozen=True)
class World:
    """Rows, their full utility matrix with the diagonal masked, and their vectors."""

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
        order = list(self.problem.choose(round(max(BUDGETS) * len(ids)), 0).ids)
        found = {}
        for budget in BUDGETS:
            k = round(budget * len(ids))
            draws = [self.problem.value(random_ids(ids, k, draw)) for draw in range(RANDOM_DRAWS)]
            found[budget] = float(np.mean(draws)), float(self.problem.value(order[:k]))
        return found

    def skills(self, predicted: UtilityMatrix) -> dict[str, float]:
        """Return the skill of what a predicted matrix selects, by budget."""
        ids = self.matrix.source_ids
        # Greedy takes the same first rows whatever the budget.
        order = list(pose(predicted, "fl").choose(round(max(BUDGETS) * len(ids)), 0).ids)
        found = {}
        for budget in BUDGETS:
            chance, full = self.reference[budget]
            value = float(self.problem.value(order[: round(budget * len(ids))]))
            found[f"skill at {budget:.0%}"] = skill(value, chance, full) or 0.0
        return found

    def labels(self, plan: LabelPlan) -> dict[str, LabelledPairs]:
        """Return what the teacher would answer to a plan."""
        entries = plan.entries
        value = self.matrix.values[entries.target, entries.source].astype(np.float32)
        found = {}
        for code, name in enumerate(SPLITS):
            here = (entries.split == code) & (entries.source != NO_SOURCE)
            found[name] = LabelledPairs(
                plan.target_ids, plan.source_ids, entries.target[here], entries.source[here], value[here]
            )
        return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a language model for gradients of real rows")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="instruction files for gradients of real rows")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--demo-rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--cache", type=Path, default=Path("runs/fidelity"), help="where true matrices are kept")
    parser.add_argument(
        "--only", choices=["demo", "gradients"], help="measure one world; the other stays in the results"
    )
    parser.add_argument("--quick", action="store_true", help="300 rows, two seeds, one number of labels, no files")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.rows = given.demo_rows = 300
        given.seeds, given.labels = 2, [1000]
    worlds = [] if given.only == "gradients" else [demo_world(given.demo_rows, given.cache)]
    if given.only != "demo" and given.model and given.data:
        worlds.append(gradient_world(given.model, given.data, given.rows, given.cache))
    told = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "seeds": given.seeds,
        "worlds": {world.name: {"about": world.about, "lines": list(measured(world, given))} for world in worlds},
    }
    if not given.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        if given.only and (RESULTS / "fidelity.json").exists():
            # The other world stays as it was measured.
            before = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))
            told["worlds"] = dict(sorted({**before["worlds"], **told["worlds"]}.items()))
        (RESULTS / "fidelity.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "fidelity.md").write_text(as_page(told), encoding="utf-8")
    print(json.dumps(told) if given.json else as_page(told))


def measured(world: World, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a line for every free candidate, and for every student, plan, features and number of labels."""
    yield from summed(world, "free", "-", "-", 0, [free_line(world, seed) for seed in range(given.seeds)])
    for labels in given.labels:
        for student, recipe, features, plan in ways():
            found = [one(world, student, recipe, features, plan, labels, seed) for seed in range(given.seeds)]
            yield from summed(
                world, f"{student}, recipe {recipe}" if student == "paper" else student, features, plan, labels, found
            )


def ways() -> Iterator[tuple[str, str, str, str]]:
    """Yield student, recipe, features and plan."""
    yield "paper", "paper", "text", "block"
    for plan in ("block", "scatter"):
        yield "paper", "default", "text", plan
    for features in ("text", "probe"):
        for student in ("towers", "product"):
            for plan in ("block", "scatter", "active"):
                yield student, "default", features, plan


def one(world: World, student: str, recipe: str, features: str, plan: str, count: int, seed: int) -> dict[str, Any]:
    """Train one student on labels of one plan, and measure it on unseen items and by what it selects."""
    vectors, wish = world.vectors[features], Wish(None, count, plan)
    ids = world.matrix.source_ids
    # Gradients are no relative teacher, and DELIFT's utilities are differences already.
    grown: LabelPlan | None = grow(None, ids, ids, wish, seed, shared=True, relative=False)
    while grown is not None:
        current, labels = grown, world.labels(grown)
        grown = next_round(current, labels, vectors, wish, seed, relative=False) if plan == "active" else None
    lesson = Lesson(labels["train"], labels["validation"], vectors.targets, vectors.sources, vectors.views)
    began = time.perf_counter()
    learned = network(student).learn(lesson, recipe=recipe, seed=seed, advance=lambda step: None)
    seconds = time.perf_counter() - began
    made = Candidate.of(student, learned, vectors)
    candidates = {"student": made}
    candidates |= {name: Candidate.of("towers", free, vectors) for name, free in free_students(lesson).items()}
    blocks = [labels["validation"], labels["test"]]
    told = gate(blocks, {name: [of.predict(block) for block in blocks] for name, of in candidates.items()}, seed)
    # As in a run: coverage sees a tail as far as the plan has not looked at near pairs.
    chooser = made if recipe == "paper" else replace(made, student=tailed(made, lesson, blocks, plan))
    used = chooser if told.used == "student" else candidates[told.used]
    roles = current.roles
    return {
        **on_unseen(world, made, labels, set(roles.test_sources)),
        **world.skills(hybrid(chooser, vectors, labels)),
        "gate": {"used": told.used, **({} if used is chooser else world.skills(hybrid(used, vectors, labels)))},
        "free": best_free(world, features),
        "coverage": coverage(world, made, labels, {*roles.test_sources, *roles.validation_sources}),
        "seconds": seconds,
        "labels": len(labels["train"]),
    }


def hybrid(made: Candidate, vectors: Vectors, labels: Mapping[str, LabelledPairs]) -> UtilityMatrix:
    """Return what selection sees: known labels exact, the rest predicted, with the student's tail."""
    parts = [labels[name] for name in SPLITS if name != "base"]
    first = parts[0]
    joined = (np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "source", "value"))
    known = LabelledPairs(first.target_ids, first.source_ids, *joined)
    student = made.student.for_coverage()
    across, along = student.project_targets(vectors.targets), student.project_sources(vectors.sources)
    return hybrid_matrix(student, across, along, known, shared=True)


def on_unseen(world: World, made: Candidate, labels: Mapping[str, LabelledPairs], test: set[str]) -> dict[str, float]:
    """Return R^2 and Spearman on all pairs of test items."""
    pairs = among(world, test)
    truth, guess = pairs.value.astype(np.float64), made.predict(pairs).astype(np.float64)
    once = np.ones(len(pairs))
    mean = float(labels["train"].value.mean(dtype=np.float64))
    return {"r2": float(r2(truth, guess, mean, once)), "spearman": float(spearman(truth, guess, once))}


def coverage(world: World, made: Candidate, labels: Mapping[str, LabelledPairs], seen: set[str]) -> float | None:
    """Return how many pairs of items that nothing was measured on lie within their 90 % interval."""
    blocks = [(labels[name], made.predict(labels[name])) for name in ("validation", "test")]
    width = interval_of_pairs(*blocks).half_width
    used = {
        labels["train"].source_ids[code]
        for part in ("source", "target")
        for code in np.unique(getattr(labels["train"], part))
    }
    fresh = among(world, set(world.matrix.source_ids) - seen - used)
    if width is None or len(fresh) < 100:
        return None
    return float(np.mean(np.abs(fresh.value - made.predict(fresh)) <= width))


def among(world: World, items: set[str]) -> LabelledPairs:
    """Return all true pairs among some items."""
    ids = world.matrix.source_ids
    codes = np.array([i for i, item in enumerate(ids) if item in items], np.int32)
    t, s = np.repeat(codes, len(codes)), np.tile(codes, len(codes))
    keep = t != s
    return LabelledPairs(ids, ids, t[keep], s[keep], world.matrix.values[t[keep], s[keep]].astype(np.float32))


_FREE: dict[tuple[str, str], dict[str, Any]] = {}


def best_free(world: World, features: str) -> dict[str, float]:
    """Return at each budget the skill of the best similarity that is free under these features."""
    found = free_skills(world, features)
    return {key: max(of[key] for of in found.values()) for key in next(iter(found.values()))}


def free_skills(world: World, features: str) -> dict[str, dict[str, float]]:
    """Return the skill of each similarity; labels only give it a slope, which changes no selection."""
    if (world.name, features) not in _FREE:
        vectors, ids = world.vectors[features], world.matrix.source_ids
        grown = grow(None, ids, ids, Wish(None, 1000, "scatter"), 0, shared=True, relative=False)
        labels = world.labels(grown)
        lesson = Lesson(labels["train"], labels["validation"], vectors.targets, vectors.sources, vectors.views)
        found = {}
        for name, free in free_students(lesson).items():
            made = Candidate.of("towers", free, vectors)
            across, along = made.student.project_targets(vectors.targets), made.student.project_sources(vectors.sources)
            values = made.student.predict_block(across, along)
            np.fill_diagonal(values, np.nan)
            found[name] = world.skills(UtilityMatrix(ids, ids, values))
        _FREE[world.name, features] = found
    return _FREE[world.name, features]


def free_line(world: World, seed: int) -> dict[str, Any]:
    """Return R^2 and Spearman of each free similarity on one seed's test items, with its skill."""
    vectors, ids = world.vectors["probe"], world.matrix.source_ids
    plan = grow(None, ids, ids, Wish(None, 1000, "scatter"), seed, shared=True, relative=False)
    labels = world.labels(plan)
    lesson = Lesson(labels["train"], labels["validation"], vectors.targets, vectors.sources, vectors.views)
    skills = free_skills(world, "probe")
    return {
        name: {
            **on_unseen(world, Candidate.of("towers", free, vectors), labels, set(plan.roles.test_sources)),
            **skills[name],
        }
        for name, free in free_students(lesson).items()
        if name in skills
    }


def summed(
    world: World, student: str, features: str, plan: str, labels: int, found: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield mean and standard deviation over seeds."""
    if student == FREE:
        for name in found[0]:
            yield {
                "student": f"{name}, no labels", "features": "text" if name == "cosine" else "probe", "plan": plan, "labels": 0,
                **_spread([of[name] for of in found if name in of]),
            }  # fmt: skip
        return
    keys = ("r2", "spearman", *(f"skill at {budget:.0%}" for budget in BUDGETS))
    gated = [{**of, **of["gate"]} for of in found]
    line = {
        "student": student, "features": features, "plan": plan, "labels": labels,
        **_spread([{key: of[key] for key in keys} for of in found]),
        "gated": _spread([{key: of[key] for key in keys[2:]} for of in gated]),
        "gate used": sorted(of["gate"]["used"] for of in found),
        "worst against free": {key: min(of[key] - of["free"][key] for of in gated) for key in keys[2:]},
        "seconds": float(np.median([of["seconds"] for of in found])),
    }  # fmt: skip
    covered = [of["coverage"] for of in found if of["coverage"] is not None]
    if covered:
        line["coverage"] = {"mean": float(np.mean(covered)), "sd": float(np.std(covered))}
    print(
        f"{world.name}: {student} {features} {plan} {labels}",
        {key: round(line[key]["mean"], 2) for key in keys},
        flush=True,
        file=sys.stderr,
    )
    yield line


def _spread(found: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"mean": float(np.mean([of[key] for of in found])), "sd": float(np.std([of[key] for of in found]))}
        for key in found[0]
    }


def demo_world(rows: int, cache: Path) -> World:
    """Return the demo world under DELIFT."""
    from nncift.demo import model_path
    from nncift.demo.world import make_world
    from nncift.evaluate.truth import true_matrix
    from nncift.teachers.delift import Delift

    folder = cache / f"demo-{rows}"
    pool = read(str(make_world(rows, 0).write(folder / "world").pool))
    teacher = Delift(str(model_path()), device="cpu")
    kept = folder / "utility.npy"
    ids = tuple(sorted(pool.ids))
    if kept.exists():
        values = np.asfortranarray(np.load(kept, allow_pickle=False))
        matrix = UtilityMatrix(ids, ids, values)
    else:
        matrix = true_matrix(teacher, pool, folder / "truth")
        np.save(kept, matrix.values)
    pool = pool.subset(matrix.source_ids)
    about = f"DELIFT on the generated demo world (seed 0), {len(pool)} rows, the model in the package"
    return World("demo", matrix, vectors_of(pool, teacher.lm), about)


def gradient_world(model: Path, data: list[Path], rows: int, cache: Path) -> World:
    """Return real rows under cosines of whole-model gradients."""
    from nncift.teachers.less import Less

    folder = cache / f"gradients-{rows}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Less(str(model), device="cpu", lora=False, warmup_share=0.0, projection=4096, adam="none")
    pool = read(*(str(path) for path in data), limit=round(1.4 * rows))
    refused = {(row.source, row.line) for row in teacher.prepare(pool)}
    usable = Examples(tuple(row for row in pool if (row.source, row.line) not in refused))
    pool = usable.subset(sorted(shuffled(usable.ids, 0, "fidelity")[:rows]))
    kept = folder / "utility.npy"
    if not kept.exists():
        parts = [teacher.measure(pool.ids[start : start + 32]).values for start in range(0, len(pool), 32)]
        features = np.concatenate(parts)
        np.save(kept, teacher.utility(features, features))
    values = np.asfortranarray(np.load(kept, allow_pickle=False))
    np.fill_diagonal(values, np.nan)
    names = ", ".join(path.stem for path in data)
    about = f"cosines of gradients of {len(pool)} rows of {names}; a model of {teacher.lm.model.num_parameters():,} parameters"
    return World("gradients", UtilityMatrix(pool.ids, pool.ids, values), vectors_of(pool, teacher.lm), about)


def vectors_of(pool: Examples, lm: Any) -> dict[str, Vectors]:
    """Return the vectors of both feature sets, from the cache where they are known."""
    from nncift.embeddings import EmbeddingCache
    from nncift.encode import create
    from nncift.probe import Probe, features_of

    text = EmbeddingCache(create("minilm", device="cpu")).embed([row.text for row in pool]).vectors
    probe = Probe(lm)
    found = features_of(probe, pool).vectors
    both = np.concatenate([text, found], axis=1, dtype=np.float32)
    alone, joined = Views.of({TEXT: text.shape[1]}), Views.of({TEXT: text.shape[1], **probe.views.to_json()})
    return {"text": Vectors(text, text, alone), "probe": Vectors(both, both, joined)}


INTRODUCTION = """# Fidelity: students beside what is free

`python benchmarks/fidelity.py` on {machine}; mean ± standard deviation over {seeds} seeds of held-out items, plan and
training on one world. R² and Spearman are on all pairs of 30 unseen items. Skill: 0 is random, 1 the full teacher, both under
the true matrix; known labels stand in the matrix. All but the published recipe select with the tail
([method](../method.md), section 2). `after the gate`: where the run would have used a free similarity instead, its skill counts
(at 1, 5, 10 and 30 %). `worst - free`: the lowest difference, over seeds and budgets, to the best similarity that is free under
the same features, at each budget the best in hindsight. `90 % covers`: share of pairs of untouched items within their 90 %
interval. Labels do not count validation and test pairs.
"""


def as_page(told: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [INTRODUCTION.format(**told)]
    keys = ["r2", "spearman", *(f"skill at {budget:.0%}" for budget in BUDGETS)]
    heads = ["student", "features", "plan", "labels", *keys, "after the gate", "worst - free", "90 % covers", "fit, s"]
    for name, world in told["worlds"].items():
        lines += [f"## {name.capitalize()}", "", f"{world['about'][:1].upper()}{world['about'][1:]}.", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(_cells(line, keys)) + " |" for line in world["lines"]]
        lines.append("")
    return "\n".join(lines)


def _cells(line: Mapping[str, Any], keys: list[str]) -> list[str]:
    measured = [f"{line[key]['mean']:.2f} ± {line[key]['sd']:.2f}" for key in keys]
    start = [line["student"], line["features"], line["plan"], f"{line['labels']:,}", *measured]
    if "gated" not in line:
        return [*start, "-", "-", "-", "-"]
    after = " / ".join(f"{line['gated'][key]['mean']:.2f}" for key in keys[2:])
    worst = f"{min(line['worst against free'].values()):+.2f}"
    covered = f"{100 * line['coverage']['mean']:.0f} %" if "coverage" in line else "-"
    return [*start, after, worst, covered, f"{line['seconds']:.1f}"]


if __name__ == "__main__":
    main()
