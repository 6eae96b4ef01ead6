"""What a regression on scattered pairs leaves of a target's own labels, learned for that target alone (docs/method.md 2).

`rest[t, s] = x_t . [1, z_s]`: a labelled target has a linear function of the sources' components `z`, by ridge regression on its
own labels, under one penalty for all, which left-out labels choose in closed form. A target without labels has none. Sources
get none: what is learned of a few of them alone sets these apart from the others, and selections were worse by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.models.views import Views
from nncift.student.item_components import Items
from nncift.student.row_keys import keys_of

PENALTIES = (0.25, 1.0, 4.0, 16.0, 64.0)
"""Penalties that are tried, for components whose squares add up to about 1."""

RANK = 32
"""Rank of what is kept."""


def own_weights(items: Items, train: LabelledPairs, rest: Doubles, views: Views) -> dict[str, Floats]:
    """Return what a bilinear network keeps of labelled targets; nothing where that predicts no label that was left out.

    rest: what is left of the labels of the training pairs, `(n_pairs,)`.
    """
    own = OwnTargets.of(items, train, rest)
    penalty = own.best_penalty()
    if penalty is None:
        return {}
    left, size, right = linalg.svd(own.functions(penalty), full_matrices=False, check_finite=False)
    rank = max(1, min(RANK, int((size > 1e-9 * max(float(size[0]), 1e-30)).sum())))
    root = np.sqrt(size[:rank])
    part = right[:rank].T * root
    units = np.zeros((len(own.targets), views.dim), np.float32)
    for name, vectors in items.target_alike.items():
        units[:, views.place(name)] = vectors[own.targets]
    kept = {
        "target_keys": keys_of(units, views),
        "target_rest": left[:, :rank] * root,
        "target_rest_weight": items.weight @ part[1:],
        "target_rest_bias": part[0] + items.bias @ part[1:],
    }
    return {name: np.asarray(array, np.float32) for name, array in kept.items()}


@dataclass(frozen=True)
class OwnTargets:
    """What is left of labels, a target's one behind the other.

    targets: places of the targets among the items. ends: where the labels of each end, `(n_targets,)`. rest: `(n_pairs,)`.
    components: of their sources, with a 1 in front, `(n_pairs, 1 + rank)`.
    """

    targets: npt.NDArray[np.intp]
    ends: npt.NDArray[np.intp]
    rest: Doubles
    components: Doubles

    @classmethod
    def of(cls, items: Items, train: LabelledPairs, rest: Doubles) -> OwnTargets:
        """Sort pairs by target."""
        target, source = items.places(train.target, train.source)
        order = np.argsort(target, kind="stable")
        targets, counts = np.unique(target, return_counts=True)
        components = items.source[source[order]].astype(np.float64)
        return cls(
            targets, np.cumsum(counts), rest[order], np.concatenate([np.ones((len(order), 1)), components], axis=1)
        )

    @cached_property
    def _parts(self) -> list[tuple[Doubles, Doubles, Doubles, Doubles]]:
        return list(self._decomposed())

    def _decomposed(self) -> Iterator[tuple[Doubles, Doubles, Doubles, Doubles]]:
        """Yield each target's labels, and the singular vectors and values of its sources' components."""
        for start, end in zip([0, *self.ends[:-1].tolist()], self.ends.tolist(), strict=True):
            yield self.rest[start:end], *np.linalg.svd(self.components[start:end], full_matrices=False)

    def best_penalty(self) -> float | None:
        """Return the penalty under which left-out labels are predicted best; None where 0 predicts them as well."""
        errors = np.zeros(len(PENALTIES))
        for rest, left, size, _ in self._parts:
            kept = size**2 / (size**2 + np.array(PENALTIES)[:, None])
            missed = rest - (kept * (left.T @ rest)) @ left.T
            own = np.minimum((left**2) @ kept.T, 1 - 1e-9).T
            errors += ((missed / (1 - own)) ** 2).sum(axis=1)
        # The strongest of equals claims least.
        best = len(PENALTIES) - 1 - int(np.argmin(errors[::-1]))
        return PENALTIES[best] if errors[best] < float((self.rest**2).sum()) else None

    def functions(self, penalty: float) -> Doubles:
        """Return `x`, a row for each target, `(n_targets, 1 + rank)`."""
        return np.stack(
            [right.T @ ((left.T @ rest) * size / (size**2 + penalty)) for rest, left, size, right in self._parts]
        )
