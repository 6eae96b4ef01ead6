"""Rows chosen for a target set of one source: how many of a real world's choice are of that source (`real.py judge`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from judging import World, table

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.evaluation.cross_fit import hold_out
from nncift.evaluation.held_out_labels import Recipe
from nncift.labels import LabelBudget
from nncift.labels.pair_labels import combine
from nncift.labels.row_labels import grow_rows, split_by_roles
from nncift.labels.vectors import Vectors
from nncift.selection import pose
from nncift.stages.fit import judged
from nncift.student.candidates import Candidate
from nncift.student.model import predict_all, with_known

WANTED = "gsm8k"
TARGETS, POOL, OWN, CHOSEN = 24, 240, 36, 40
"""Rows of the target set, of the pool, those in it of the target's source, and rows that are chosen."""

SHARE = 0.2
"""Rows of the pool that LESS measures to train on; of the target set it measures all."""

OBJECTIVE = "rr"
"""What a run of LESS with a target set selects by."""


@dataclass(frozen=True)
class Task:
    """A target set and a pool, by id, with the source of every id, their utilities and vectors."""

    targets: tuple[str, ...]
    pool: tuple[str, ...]
    values: UtilityMatrix
    vectors: Mapping[str, Vectors]

    @classmethod
    def drawn(cls, world: World, seed: int) -> Task:
        """Draw from a world whose ids begin with the name of their source."""
        ids = world.matrix.source_ids
        order = shuffled(ids, seed, "target set")
        own = [item for item in order if item.startswith(f"{WANTED}-")]
        others = [item for item in order if not item.startswith(f"{WANTED}-")]
        targets = tuple(sorted(own[:TARGETS]))
        pool = tuple(sorted([*own[TARGETS : TARGETS + OWN], *others[: POOL - OWN]]))
        place = {item: row for row, item in enumerate(ids)}
        t, s = ([place[item] for item in part] for part in (targets, pool))
        values = np.asfortranarray(world.matrix.values[np.ix_(t, s)])
        vectors = {name: Vectors(of.sources[t], of.sources[s], of.views) for name, of in world.vectors.items()}
        return cls(targets, pool, UtilityMatrix(targets, pool, values), vectors)

    def hits(self, values: UtilityMatrix) -> int:
        """Return how many of the rows that are chosen on some values are of the target's source."""
        return sum(item.startswith(f"{WANTED}-") for item in pose(values, OBJECTIVE).choose(CHOSEN, 0).ids)

    def by_candidates(self, features: str, seed: int) -> dict[str, int]:
        """Return the hits of every candidate of the default student's run, and of what the run uses (`run`)."""
        vectors = self.vectors[features]
        plan = grow_rows(None, self.targets, self.pool, LabelBudget(SHARE, None, "rows"), seed, shared=False)
        t, s = (
            np.array([code for code, item in enumerate(ids) if item in plan.measured], np.int32)
            for ids in (self.targets, self.pool)
        )
        labels = split_by_roles(plan, t, s, self.values.values[np.ix_(t, s)].astype(np.float32))
        found = hold_out(labels, vectors, Recipe("product", "default", seed), coverage=False)
        known = combine(labels)

        def hits(made: Candidate) -> int:
            predicted = predict_all(made.student, vectors.targets, vectors.sources)
            return self.hits(with_known(predicted, known, shared=False))

        by_name = {name: hits(made) for name, made in found.shipped.items()}
        return {**by_name, "run": by_name[judged(found, OBJECTIVE, CHOSEN / POOL, seed).used], "measured": len(s)}


def can_be_drawn(world: World) -> bool:
    """Tell whether a world has rows enough for a target set and a pool."""
    own = sum(item.startswith(f"{WANTED}-") for item in world.matrix.source_ids)
    return own >= TARGETS + OWN and len(world.matrix.source_ids) - own >= POOL - OWN


def target_lines(world: World, seeds: int) -> list[dict[str, Any]]:
    """Return hits over seeds of the drawn rows and labels, by features and by what selects."""
    lines = []
    tasks = [Task.drawn(world, seed) for seed in range(seeds)]
    full = [task.hits(task.values) for task in tasks]
    lines.append({"selects": "full teacher", "features": "-", "measured": POOL, "hits": full})
    for features in world.vectors:
        found = [task.by_candidates(features, seed) for seed, task in enumerate(tasks)]
        for name in found[0]:
            if name != "measured":
                line = {"selects": name, "features": features, "measured": found[0]["measured"]}
                lines.append({**line, "hits": [of[name] for of in found if name in of]})
    return lines


def target_table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the section."""
    yield f"### LESS, a target set of {TARGETS} rows of {WANTED}"
    yield ""
    yield (
        f"Of {CHOSEN} rows chosen from {POOL}, those of {WANTED}, of which the pool has {OWN}; by objective `{OBJECTIVE}`, over "
        "draws of target set, pool and labels; measured values stand in the matrix. By chance "
        f"{CHOSEN * OWN / POOL:.0f}. `run`: what the run uses after its gate."
    )
    yield ""
    rows = [
        [
            str(line["selects"]),
            line["features"],
            str(line["measured"]),
            f"{np.mean(line['hits']):.1f}",
            str(min(line["hits"])),
        ]
        for line in lines
    ]
    yield from table(["selects", "features", "pool rows measured", f"{WANTED}, mean", "fewest"], rows)
    yield ""
