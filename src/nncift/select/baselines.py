"""The controls that run beside every selection (method.md 4): each returns ids in rank order, ties by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nncift.errors import UsageError
from nncift.pairs import Floats, UtilityMatrix
from nncift.seeds import shuffled
from nncift.select.budget import check_count
from nncift.select.coverage import Coverage
from nncift.select.objectives import similarity
from nncift.select.rules import NO_RULES, Rules


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


def embedding_ids(ids: Sequence[str], embeddings: Floats, k: int, rules: Rules = NO_RULES) -> list[str]:
    """Return `k` ids by facility location on the cosine of embeddings alone, `(n, d)` of unit norm.

    Holds the `(n, n)` similarities twice while it runs: 8 n^2 bytes.
    """
    _same_length(ids, embeddings, "embeddings")
    check_count(k, len(ids))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rows = np.ascontiguousarray(np.asarray(embeddings, dtype=np.float32)[order])
    names = tuple(ids[i] for i in order)
    sim = similarity(UtilityMatrix(names, names, (rows @ rows.T).T))
    return [names[i] for i in Coverage.plain("fl", sim).order(k, rules)[0]]


def _same_length(ids: Sequence[str], other: Sequence[object] | Floats, name: str) -> None:
    if len(ids) != len(other):
        raise UsageError(f"Expected one entry of {name} per id: {len(ids)} ids and {len(other)} {name} given.")
