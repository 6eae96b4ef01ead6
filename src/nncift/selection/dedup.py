"""Duplicates, found before a selection: rows with the same content, or with nearly the same embedding."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nncift.core.arrays import Floats
from nncift.errors import UsageError

_NEAR = re.compile(r"near(?::([0-9]*\.?[0-9]+))?")
_BLOCK = 1024
NEAR = 0.95


@dataclass(frozen=True)
class Twin:
    """The row that stands for one that is removed. cosine: of their embeddings; None where the contents are the same."""

    id: str
    cosine: float | None

    def reason(self) -> str:
        """Return a sentence for the row that is removed."""
        how = "has the same content" if self.cosine is None else f"is nearly the same (cosine {self.cosine:.3f})"
        return f"Removed before the selection: {self.id} {how}."


def parse(text: str | None) -> float | None:
    """Return the cosine from which on rows are duplicates: above 1 for `exact`, None for no removal at all.

    Raises UsageError for anything but `exact`, `near` and `near:COSINE` with a cosine above 0 and at most 1.
    """
    if text is None:
        return None
    if text == "exact":
        return 2.0
    found = _NEAR.fullmatch(text)
    threshold = float(found[1] or NEAR) if found else 0.0
    if not 0 < threshold <= 1:
        raise UsageError(
            f"--dedup {text!r} was given; expected exact, or near:0.95 with a cosine above 0 and at most 1"
        )
    return threshold


def exact(ids: Sequence[str], contents: Sequence[str], keep: Collection[str] = ()) -> dict[str, Twin]:
    """Return the rows that repeat the content of another, and which: of equals one of `keep` stays, else the lowest id."""
    first: dict[str, str] = {}
    twins = {}
    for item, content in sorted(zip(ids, contents, strict=True), key=lambda pair: (pair[0] not in keep, pair[0])):
        if content in first and item not in keep:
            twins[item] = Twin(first[content], None)
        first.setdefault(content, item)
    return twins


def near(ids: Sequence[str], vectors: Floats, threshold: float, keep: Collection[str] = ()) -> dict[str, Twin]:
    """Return the rows whose embedding has a cosine of at least `threshold` with that of a row that stays, and which.

    vectors: `(n, d)` of unit norm. Rows are gone through by id, those of `keep` first; these all stay. Compares each row with
    all that stay: n times that many products.
    """
    order = sorted(range(len(ids)), key=lambda i: (ids[i] not in keep, ids[i]))
    stays = np.empty((len(ids), vectors.shape[1]), np.float32)
    names: list[str] = []
    twins: dict[str, Twin] = {}
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows = np.ascontiguousarray(vectors[block], np.float32)
        best, of = np.full(len(block), -np.inf, np.float32), np.zeros(len(block), np.int64)
        if names:
            cosine = rows @ stays[: len(names)].T
            of = cosine.argmax(axis=1)
            best = cosine[np.arange(len(block)), of]
        within = rows @ rows.T
        for i, place in enumerate(block):
            item = ids[place]
            if best[i] >= threshold and item not in keep:
                twins[item] = Twin(names[of[i]], float(best[i]))
                continue
            closer = np.flatnonzero(within[i, i + 1 :] > best[i + 1 :]) + i + 1
            best[closer], of[closer] = within[i, closer], len(names)
            stays[len(names)] = rows[i]
            names.append(item)
    return twins


def find(
    how: float | None, ids: Sequence[str], contents: Sequence[str], vectors: Floats | None, keep: Collection[str] = ()
) -> Mapping[str, Twin]:
    """Return what is removed for a threshold of `parse`; without vectors only what has the same content."""
    if how is None:
        return {}
    same = exact(ids, contents, keep)
    if how > 1 or vectors is None:
        return same
    rest = [i for i, item in enumerate(ids) if item not in same]
    return {**same, **near([ids[i] for i in rest], vectors[rest], how, keep)}
