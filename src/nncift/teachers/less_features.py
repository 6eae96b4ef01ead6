"""Features of LESS and the utilities that follow from them (method.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from nncift.core.arrays import Doubles, Floats
from nncift.errors import UsageError

Aggregate = Literal["cosine-of-mean", "mean-of-cosines"]


@dataclass(frozen=True)
class GradientFeatures:
    """What a row's numbers mean, for N checkpoints and k dimensions.

    First N*k as a target and N*k as a source, each k of norm 1 (0 where a gradient is 0: its cosines are 0), then the norms of
    the projected gradients as a target, without which no mean gradient could be taken: N mantissas and N exponents of two, so
    that half precision holds them, whatever their size.
    """

    checkpoints: int
    dimension: int

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.checkpoints * (2 * self.dimension + 2)

    def put(self, values: Floats, number: int, target: Floats, source: Floats) -> None:
        """Write a checkpoint's projected gradients and updates, both `(n, k)`, into rows `(n, width)`."""
        for block, vectors in ((number, target), (self.checkpoints + number, source)):
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
            unit = vectors / np.where(norms == 0, 1.0, norms)[:, None]
            values[:, block * self.dimension : (block + 1) * self.dimension] = unit
            if block == number:
                at = 2 * self.checkpoints * self.dimension + number
                values[:, at], values[:, at + self.checkpoints] = np.frexp(norms)

    def neighbours_alike(self, values: Floats) -> Doubles:
        """Return how alike each row's features are at neighbouring checkpoints, `(n,)`: the mean cosine, both roles alike."""
        size = self.checkpoints * self.dimension
        cubes = values[:, : 2 * size].reshape(len(values), 2, self.checkpoints, self.dimension)
        cosines = np.einsum("nrck,nrck->nrc", cubes[:, :, 1:], cubes[:, :, :-1], dtype=np.float64)
        return cast(Doubles, cosines.mean(axis=(1, 2)))

    def utility(self, targets: Floats, sources: Floats, rates: Sequence[float]) -> Floats:
        """Return cosines averaged over checkpoints in proportion to their learning rates, `(n_targets, n_sources)`."""
        size = self.checkpoints * self.dimension
        shares = np.asarray(rates, dtype=np.float64)
        shares = (shares / shares.sum()).astype(np.float32)
        weighted = targets[:, :size].reshape(len(targets), self.checkpoints, self.dimension) * shares[:, None]
        return cast(Floats, weighted.reshape(len(targets), size) @ sources[:, size : 2 * size].T)

    def subtask_utility(
        self, targets: Floats, sources: Floats, rates: Sequence[float], subtasks: Sequence[str], aggregate: Aggregate
    ) -> tuple[list[str], Floats]:
        """Return the names of the subtasks, sorted, and `(n_subtasks, n_sources)`.

        cosine-of-mean: the cosine with the mean of the targets' gradients, each at its own length (the paper's equation).
        mean-of-cosines: the mean of the targets' utilities (the code published with it).
        Raises UsageError unless there is one subtask per target.
        """
        if len(subtasks) != len(targets):
            raise UsageError(f"{len(targets)} targets need as many subtasks, not {len(subtasks)}")
        names = sorted(set(subtasks))
        members = np.array([[own == name for own in subtasks] for name in names], dtype=np.float32)
        members /= members.sum(axis=1, keepdims=True)
        if aggregate == "mean-of-cosines":
            return names, cast(Floats, members @ self.utility(targets, sources, rates))
        size = self.checkpoints * self.dimension
        cubes = targets[:, :size].reshape(len(targets), self.checkpoints, self.dimension)
        mantissas, exponents = np.split(targets[:, 2 * size :], 2, axis=1)
        means = np.einsum("jt,tc,tck->jck", members, np.ldexp(mantissas, exponents.astype(np.int32)), cubes)
        lengths = np.linalg.norm(means, axis=2, keepdims=True)
        means = means / np.where(lengths == 0, 1.0, lengths)
        return names, self.utility(means.reshape(len(names), size).astype(np.float32), sources, rates)
