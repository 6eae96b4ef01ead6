"""Pairs of a target and a source, and matrices over them; both always carry the ids of their axes.

The order is (target, source) everywhere: `utility[t, s]` says how much source example `s` helps target example `t`
(method.md 1). Codes into the axes stay inside these types; what crosses a module border is looked up by id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Codes, Floats

BLOCK = 1 << 18


@dataclass(frozen=True)
class Pairs:
    """A list of (target, source) pairs.

    target_ids, source_ids: the two axes. target, source: `(n_pairs,)` codes into them.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    target: Codes
    source: Codes

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class LabelledPairs(Pairs):
    """Pairs with the teacher's value of each: `value` is `(n_pairs,)` float32, NaN where the teacher has none."""

    value: Floats

    def present(self) -> LabelledPairs:
        """Return the pairs that have a value."""
        return self.take(np.isfinite(self.value))

    def named(self, ids: tuple[str, ...]) -> LabelledPairs:
        """Return the pairs with these ids in the place of equal ones, which may then be let go."""
        target, source = (ids if axis == ids else axis for axis in (self.target_ids, self.source_ids))
        return LabelledPairs(target, source, self.target, self.source, self.value)

    def take(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> LabelledPairs:
        """Return the pairs at a mask or at positions, on the same axes."""
        return LabelledPairs(self.target_ids, self.source_ids, self.target[keep], self.source[keep], self.value[keep])


@dataclass(frozen=True)
class UtilityMatrix:
    """A dense utility matrix: `values` is `(n_targets, n_sources)` float32, NaN where masked or missing.

    Memory order is by source (Fortran), since selection reads whole columns.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    values: Floats

    def mean_per_source(self) -> npt.NDArray[np.float64]:
        """Return the mean utility of each source over the targets that have one, `(n_sources,)`; NaN where none has."""
        from nncift.core.compiled import means_of
        from nncift.core.threads import in_threads

        mean, columns = np.full(len(self.source_ids), np.nan), np.ascontiguousarray(self.values.T, np.float32)
        in_threads(lambda a, b: means_of(columns, a, b, mean), len(mean))
        return mean


@dataclass(frozen=True, eq=False)
class Predicted:
    """What is selected from. score: mean utility of each source where the matrix holds more than that (a tail), else None."""

    matrix: UtilityMatrix
    score: npt.NDArray[np.float64] | None
