"""The controls that run beside every selection (method.md 4): each returns ids in rank order, ties by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nncift.core.amounts import check_count
from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.errors import UsageError
from nncift.selection import NOTHING, Given, pose
from nncift.selection.rules import NO_RULES, Rules

CONTROLS = {
    "random": "random",
    "stratified": "random by source",
    "embedding": "embeddings alone",
    "hidden": "hidden states alone (a probe)",
    "output": "output gradients alone (a probe)",
    "sum": "sum of all similarities (a probe)",
    "pretrained": "pretrained student alone",
    "rds": "RDS+ (a probe)",
    "longest": "longest responses",
}
"""What controls are called, in the order in which they are shown."""


def random_ids(ids: Sequence[str], k: int, seed: int) -> list[str]:
    """Return `k` ids drawn uniformly; the draw depends on the ids and the seed, not on the order of the rows."""
    check_count(k, len(ids))
    return shuffled(ids, seed, "select", "random")[:k]


def stratified_ids(ids: Sequence[str], strata: Sequence[str], k: int, seed: int) -> list[str]:
    """Return `k` ids drawn so that every stratum keeps its share of the pool, by largest remainder.

    strata: the stratum (usually the source file) of each id. Strata with equal remainders go by name.
    """
    _same_length(ids, strata, "strata")
    check_count(k, len(ids))
    sizes = Counter(strata)
    shares = {name: divmod(k * size, len(ids)) for name, size in sizes.items()}
    quota = {name: whole for name, (whole, _) in shares.items()}
    for name in sorted(shares, key=lambda name: (-shares[name][1], name))[: k - sum(quota.values())]:
        quota[name] += 1
    stratum = dict(zip(ids, strata, strict=True))
    chosen = []
    for item in shuffled(ids, seed, "select", "stratified"):
        if quota[stratum[item]]:
            quota[stratum[item]] -= 1
            chosen.append(item)
    return chosen


def longest_ids(ids: Sequence[str], lengths: Sequence[int], k: int) -> list[str]:
    """Return the `k` ids with the greatest lengths (of responses, in whatever unit), longest first."""
    _same_length(ids, lengths, "lengths")
    check_count(k, len(ids))
    ranked = sorted(zip(ids, lengths, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [item for item, _ in ranked[:k]]


def embedding_ids(ids: Sequence[str], embeddings: Floats, k: int) -> list[str]:
    """Return `k` ids by facility location on the cosine of embeddings alone, `(n, d)` of unit norm.

    A row is no source of its own, as with every teacher: the diagonal is masked. Holds the `(n, n)` similarities.
    """
    _same_length(ids, embeddings, "embeddings")
    matrix = similarities(ids, ids, embeddings, embeddings, shared=True)
    return similar_ids(matrix, "fl", k)


def similarities(
    target_ids: Sequence[str], source_ids: Sequence[str], targets: Floats, sources: Floats, *, shared: bool
) -> UtilityMatrix:
    """Return inner products of vectors as a utility matrix, `(n_targets, n_sources)`.

    shared: targets and sources are the same rows; then the diagonal is masked, as with every teacher (method.md 3.1).
    """
    values = (np.asarray(sources, np.float32) @ np.asarray(targets, np.float32).T).T
    if shared:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(tuple(target_ids), tuple(source_ids), values)


def similar_ids(
    matrix: UtilityMatrix, objective: str, k: int, seed: int = 0, *, given: Given = NOTHING, rules: Rules = NO_RULES
) -> list[str]:
    """Return `k` ids that an objective takes from similarities in the place of utilities; the matrix is overwritten."""
    check_count(k, len(matrix.source_ids))
    return list(pose(matrix, objective, given, reuse=True).choose(k, seed, rules).ids)


def _same_length(ids: Sequence[str], other: Sequence[object] | Floats, name: str) -> None:
    if len(ids) != len(other):
        raise UsageError(f"Expected one entry of {name} per id: {len(ids)} ids and {len(other)} {name} given.")
