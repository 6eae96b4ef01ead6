"""Students judged on toy models: `python benchmarks/fidelity.py [--quick] [--json]`; on a real model: benchmarks/real.py.

Worlds whose full utility matrix is known: `demo`, `ekfac` and `gist`, the generated world by the model in the package under
DELIFT, EK-FAC and GIST, and, with `--model` and `--data`, `gradients`: cosines of whole-model gradients of real rows (LESS
without warm-up, through a sketch of 4,096 dimensions), which stand in for a pairwise teacher that labels pairs. The matrix is
computed once and kept in `--cache`. Every figure is over seeds of plan, held-out items, labels and training on one world. EK-FAC
and GIST label rows: as many as make a block of so many pairs. Writes its part of docs/results/fidelity.md and .json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from judging import Way, World, lines_of
from pages import WORLDS, known, machine, publish, toy_tables

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.data import Examples, read
from nncift.labels import LabelBudget
from nncift.labels.vectors import Vectors
from nncift.models.views import TEXT, Views

DEMO = {"demo": "DELIFT", "ekfac": "EK-FAC", "gist": "GIST, directions of 150 of the rows,"}
"""Teachers of the generated world, by the name of what is measured."""

GRADIENTS = "gradients"
EXTREME = 50
"""Standard deviations of the largest utility from which on a world is said to hang on a few pairs."""


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
    parser.add_argument("--only", choices=[*DEMO, GRADIENTS], help="measure one world; the others stay in the results")
    parser.add_argument("--quick", action="store_true", help="300 rows, two seeds, one number of labels, no files")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.rows = given.demo_rows = 300
        given.seeds, given.labels = 2, [1000]
    named = [given.only] if given.only else [*DEMO, GRADIENTS]
    worlds = [demo_world(given.demo_rows, given.cache, name) for name in named if name in DEMO]
    if GRADIENTS in named and given.model and given.data:
        worlds.append(gradient_world(given.model, given.data, given.rows, given.cache))
    measured_now: dict[str, Any] = {
        world.name: {
            "about": world.about,
            "own labels": True,
            "seeds": given.seeds,
            "lines": list(measured(world, given)),
        }
        for world in worlds
    }
    results = {"machine": machine(), "seeds": given.seeds, WORLDS: measured_now}
    if not given.quick:
        if given.only:
            # The others stay as they were measured.
            results["seeds"] = known("toys").get("seeds", given.seeds)
            results[WORLDS] = dict(sorted({**known("toys").get(WORLDS, {}), **measured_now}.items()))
        publish({"toys": results})
    print(json.dumps(results) if given.json else "\n".join(toy_tables(results)))


def measured(world: World, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a line for every free similarity, and for every student, plan, features and number of labels."""
    by_row = world.name in ("ekfac", "gist")
    ways = [
        Way(student, recipe, features, LabelBudget(None, math.isqrt(labels) if by_row else labels, plan))
        for labels in given.labels
        for student, recipe, features, plan in (students_by_row() if by_row else students())
    ]
    yield from lines_of(world, ways, LabelBudget(None, 1000, "scatter"), given.seeds)


def students() -> Iterator[tuple[str, str, str, str]]:
    """Yield student, recipe, features and plan."""
    yield "paper", "paper", "text", "block"
    for plan in ("block", "scatter"):
        yield "paper", "default", "text", plan
    for features in ("text", "probe"):
        for student in ("towers", "product"):
            for plan in ("block", "scatter", "active"):
                yield student, "default", features, plan
        for student in ("landmark", "ranker"):
            for plan in ("block", "scatter"):
                yield student, "default", features, plan


def students_by_row() -> Iterator[tuple[str, str, str, str]]:
    """Yield the same for a teacher that labels rows."""
    yield "paper", "default", "text", "rows"
    for features in ("text", "probe"):
        for student in ("towers", "product", "landmark", "ranker"):
            yield student, "default", features, "rows"


def demo_world(rows: int, cache: Path, name: str) -> World:
    """Return the demo world under a teacher of DEMO."""
    from nncift.demo import model_path
    from nncift.demo.world import make_world
    from nncift.runs.true_matrix import true_matrix
    from nncift.teachers import Delift, EkFac, Gist

    folder = cache / f"{name}-{rows}"
    pool = read(str(make_world(rows, 0).write(folder / "world").pool))
    model, teacher = str(model_path()), None
    if name == "demo":
        teacher = Delift(model, device="cpu")
    elif name == "ekfac":
        teacher = EkFac(model, device="cpu")
    else:
        teacher = Gist(model, device="cpu", lora=False, warmup_share=0.0)
        teacher.prepare(pool)
        teacher.aim(pool.subset(shuffled(pool.ids, 0, "directions")[:150]))
    kept = folder / "utility.npy"
    ids = tuple(sorted(pool.ids))
    if kept.exists():
        values = np.asfortranarray(np.load(kept, allow_pickle=False))
        matrix = UtilityMatrix(ids, ids, values)
    else:
        matrix = true_matrix(teacher, pool, folder / "truth")
        np.save(kept, matrix.values)
    pool = pool.subset(matrix.source_ids)
    about = f"{DEMO[name]} on the generated demo world (seed 0), {len(pool)} rows, the model in the package"
    known = matrix.values[np.isfinite(matrix.values)]
    most = float(np.abs(known).max() / known.std())
    if most > EXTREME:
        about += f"; the largest utility is {most:,.0f} standard deviations of all, so skill tells whether a few pairs are found"
    return World(name, matrix, vectors_of(pool, teacher.lm), about)


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
    matrix = UtilityMatrix(pool.ids, pool.ids, values)
    return World(GRADIENTS, matrix, vectors_of(pool, teacher.lm), about)


def vectors_of(pool: Examples, lm: Any) -> dict[str, Vectors]:
    """Return the vectors of both feature sets, from the cache where they are known."""
    from nncift.models.embedding_cache import EmbeddingCache
    from nncift.models.encoders import create
    from nncift.models.probe import Probe, features_of

    text = EmbeddingCache(create("minilm", device="cpu")).embed([row.text for row in pool]).vectors
    probe = Probe(lm)
    found = features_of(probe, pool).vectors
    both = np.concatenate([text, found], axis=1, dtype=np.float32)
    alone, joined = Views.of({TEXT: text.shape[1]}), Views.of({TEXT: text.shape[1], **probe.views.to_json()})
    return {"text": Vectors(text, text, alone), "probe": Vectors(both, both, joined)}


if __name__ == "__main__":
    main()
