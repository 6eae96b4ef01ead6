"""The demo: a run on a generated world, judged by the true matrix, which no real run has (`nncift demo`).

Everything shown is measured here: the value of the selection under the true matrix of all pairs, beside a random selection,
embeddings alone, the full teacher, and an oracle that knows every row's skill and corruption.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.config import RunSettings
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject
from nncift.data import Examples
from nncift.demo import model_path
from nncift.demo.world import Truth, make_world, read_truth
from nncift.evaluation.metrics import skill
from nncift.evaluation.run_verdict import RunSummary
from nncift.pipeline import execute
from nncift.runs.bad_rows import auc
from nncift.runs.finished import FinishedRun
from nncift.runs.report import write_report
from nncift.runs.true_matrix import true_matrix
from nncift.selection import select
from nncift.selection.controls import embedding_ids, random_ids
from nncift.selection.objectives import facility_location_value
from nncift.selection.probe_controls import EMBEDDING
from nncift.stages.inputs import read_pool
from nncift.stages.request import Request
from nncift.storage.atomic import write_json
from nncift.teachers.delift import Delift

RANDOM_DRAWS = 50
CHUNK = 128


@dataclass(frozen=True)
class DemoResult:
    """The summary of the demo's run, and its `truth`: see `judge`."""

    summary: RunSummary
    truth: JsonObject

    def to_json(self) -> JsonObject:
        """Return the summary with `truth` added."""
        return {**self.summary.to_json(), "truth": self.truth}


def play(
    out: str | Path,
    *,
    rows: int = 200,
    seed: int = 0,
    labels: str = "20%",
    budget: str = "10%",
    encoder: str = "hash",
    progress: Progress = silent,
) -> DemoResult:
    """Make a world, run on it, compute the true matrix, and return the run's summary with what that says.

    Leaves `world/`, `run/` and `truth/` in `out`; what exists there is not computed again. Raises the errors of
    `nncift.errors`.
    """
    folder = Path(out)
    files = make_world(rows, seed).write(folder / "world")
    settings = RunSettings(
        pool=(str(files.pool),),
        model=str(model_path()),
        labels=labels,
        budget=budget,
        encoder=encoder,
        seed=seed,
        features="probe",
        plan="active",
        device="cpu",
    )
    pool = read_pool(settings)
    teacher = Delift(str(model_path()), device="cpu")
    request = Request.resolve(settings, pool=pool, teacher=teacher, out=folder / "run")
    run = execute(request, folder / "run", progress=progress)
    began = time.perf_counter()
    true = true_matrix(teacher, pool, folder / "truth", progress)
    seconds = time.perf_counter() - began
    done = FinishedRun(folder / "run")
    free = {name: done.similar_ids(name, len(run.subset)) for name in done.similarities.names if name != EMBEDDING}
    truth = judge(true, pool, read_truth(files.truth), run.subset.ids, done.vectors(true.source_ids), seed, free)
    truth["seconds"] = round(seconds, 2)
    truth["auc"] = _found_bad(done, read_truth(files.truth))
    found = DemoResult(run.result, truth)
    write_report(run.path, truth)
    write_json(folder / "demo.json", found.to_json())
    return found


def _found_bad(run: FinishedRun, known: Mapping[str, Truth]) -> dict[str, float]:
    """Return how well scores find the corrupted rows, as the report's `likely wrong` does; empty without any."""
    scores = {item: choice.score for item, choice in run.choices.items() if choice.score is not None}
    bad = {item for item in scores if known[item].corrupted}
    return {"likely wrong": auc(scores, bad)} if 0 < len(bad) < len(scores) else {}


def judge(
    true: UtilityMatrix,
    pool: Examples,
    known: Mapping[str, Truth],
    selected: Sequence[str],
    vectors: np.ndarray[Any, Any],
    seed: int,
    free: Mapping[str, Sequence[str]] | None = None,
) -> JsonObject:
    """Return the contract's `truth`: values under the true matrix, skills, corrupted rows, of each way to select.

    vectors: embeddings of the true matrix's sources, `(n_sources, dim)`. free: what similarities of a probe select, by name.
    """
    budget = len(selected)
    draws = [random_ids(true.source_ids, budget, seed + draw) for draw in range(RANDOM_DRAWS)]
    ways: dict[str, list[list[str]]] = {
        "selected": [list(selected)],
        "random": draws,
        "embeddings": [embedding_ids(true.source_ids, vectors, budget)],
        **{name: [list(ids)] for name, ids in (free or {}).items()},
        "full_teacher": [list(select(true, budget, "fl", seed).ids)],
        "oracle": [oracle(pool, known, budget)],
    }
    value = {way: _mean(facility_location_value(true, ids) for ids in found) for way, found in ways.items()}
    skills = {
        f"{prefix}skill": skill(value[way], value["random"], value["full_teacher"])
        for prefix, way in (
            ("", "selected"),
            ("oracle_", "oracle"),
            ("embeddings_", "embeddings"),
            *((f"{name}_", name) for name in free or ()),
        )
    }
    everything = [list(true.source_ids)]
    return {
        "objective": value,
        **skills,
        "corrupted_share": {
            way: _mean(sum(known[item].corrupted for item in ids) / len(ids) for ids in found)
            for way, found in (*ways.items(), ("pool", everything))
        },
        "skills_covered": {
            way: _mean(len({known[item].skill for item in ids if not known[item].corrupted}) for ids in found)
            for way, found in (*ways.items(), ("all", everything))
        },
        "random_draws": RANDOM_DRAWS,
        "passes": len(true.target_ids) * len(true.source_ids),
    }


def oracle(pool: Examples, known: Mapping[str, Truth], budget: int) -> list[str]:
    """Return what somebody would select who knows each row's skill and corruption, but no utilities.

    A clean row of every skill, skills with many rows first; then a second of each, and so on. Within a skill the row with the
    longest response comes first, since it shows most of the rule.
    """
    size = Counter(known[example.id].skill for example in pool)
    rounds: Counter[str] = Counter()
    ranked = []
    for example in sorted(pool, key=lambda example: (-len(example.response.split()), example.id)):
        truth = known[example.id]
        if not truth.corrupted and not truth.duplicate_of:
            ranked.append((rounds[truth.skill], -size[truth.skill], truth.skill, example.id))
            rounds[truth.skill] += 1
    return [item for *_, item in sorted(ranked)[:budget]]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
