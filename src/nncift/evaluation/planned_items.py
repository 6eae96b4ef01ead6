"""Students measured on items that a plan of pairs has set apart for validation and test (docs/method.md, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.evaluation.held_out_labels import (
    HeldOut,
    Recipe,
    baselines_of,
    data_of,
    fit_on_all,
    others_of,
    same_items,
    silent,
)
from nncift.evaluation.selection_skill import Block
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import Vectors
from nncift.student.candidates import STUDENT, Candidate, free_candidates, values_of, with_similarity

QUADRANT_OF = {"q1": "train", "q2": "q2", "q3": "q3", "q4": "test"}
HELD_OUT = ("validation", "test")
UNSEEN_OF_ONE = ("q2", "q3")

REPETITIONS = 4
"""Draws of the pairs that a selection on held-out items knows."""


def hold_out_planned(
    labels: Mapping[str, LabelledPairs],
    vectors: Vectors,
    recipe: Recipe,
    *,
    coverage: bool,
    advance: Callable[[int], None] = silent,
) -> HeldOut:
    """Hold out the items that the plan has set apart."""
    # Where no target is set apart, nothing is known of unseen ones.
    unknown = () if any(len(labels.get(name, ())) for name in UNSEEN_OF_ONE) else UNSEEN_OF_ONE
    quadrants = {
        name: labels[split].present() for name, split in QUADRANT_OF.items() if split in labels and name not in unknown
    }
    training_data = data_of(labels["train"], labels["validation"], vectors)
    learned = recipe.learn(training_data)
    advance(1)
    made = Candidate.of(recipe.student, learned, vectors)
    blocks = [labels[name].present() for name in HELD_OUT]
    candidates = {STUDENT: made}
    # The published recipe stays what it is.
    candidates |= with_similarity(made, training_data, blocks) if recipe.recipe == "default" else {}
    others = others_of(recipe, labels["train"], labels["validation"], vectors)
    free = free_candidates(training_data, vectors)
    candidates |= {**others, **free}
    rivals = free_candidates(training_data, vectors, rising=False)
    predictions = baselines_of(labels["train"], labels["validation"], vectors, quadrants)
    predictions |= {
        name: {quadrant: of.predict(pairs) for quadrant, pairs in quadrants.items()}
        for name, of in {STUDENT: made, **rivals}.items()
    }
    every = combine(dict(labels), tuple(name for name in labels if name != "base"))
    total = len(every.target_ids) * len(every.source_ids)
    known = len(every) / total if total else 0.0
    random = generator(recipe.seed, "known pairs")
    judged = tuple(
        repetition
        for block in blocks
        for repetition in _blocks(block, values_of(candidates, block, coverage=coverage), known, random)
    )
    shipped = {
        STUDENT: Candidate.of(recipe.student, fit_on_all(every, learned, [learned.course], vectors, recipe), vectors)
    }
    shipped |= others_of(recipe, every, labels["validation"], vectors)
    advance(1)
    all_of_it = data_of(every, labels["validation"], vectors)
    for name in candidates:
        if name in shipped:
            continue
        if name in free:
            shipped[name] = free_candidates(all_of_it, vectors, rising=False)[name]
        else:
            tail = candidates[name].student
            shipped[name] = _with_tail(shipped[STUDENT], tail.tail, tail.tail_mean)
    held_out = combine(dict(labels), HELD_OUT).present()
    return HeldOut(
        quadrants,
        predictions,
        judged,
        1,
        shipped,
        learned.course,
        (held_out, {name: of.predict(held_out) for name, of in candidates.items()}),
        tuple((block, {name: of.predict(block) for name, of in candidates.items()}) for block in blocks),
    )


def _with_tail(made: Candidate, tail: Mapping[str, Floats] | None, mean: float) -> Candidate:
    return replace(made, student=replace(made.student, tail=tail, tail_mean=mean))


def _blocks(
    pairs: LabelledPairs, values: Mapping[str, Floats], known: float, random: np.random.Generator
) -> Iterator[Block]:
    """Yield held-out items, none of which any predictor has seen, each time with as large a share of known pairs as the pool."""
    targets, t = np.unique(pairs.target, return_inverse=True)
    sources, s = np.unique(pairs.source, return_inverse=True)
    shape = len(targets), len(sources)

    def table(value: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        found = np.full(shape, np.nan)
        found[t, s] = value
        return found

    truth, same = table(pairs.value), same_items(pairs, targets, sources)
    predictions = {name: table(of) for name, of in values.items()}
    for _ in range(REPETITIONS):
        yield Block(
            truth,
            targets.astype(np.intp),
            sources.astype(np.intp),
            same,
            predictions,
            random.random(shape) < known,
            len(pairs.source_ids),
        )
