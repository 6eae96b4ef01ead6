"""What a student reads of an item: one vector that is made of named parts, its views (method.md 2, features).

`text` is the sentence embedding. `hidden`, `output` and `stats` come from one forward pass of the teacher's model (probe.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.parallel import ranges
from nncift.errors import UsageError

TEXT, HIDDEN, OUTPUT, STATS = "text", "hidden", "output", "stats"
SIMILAR = (TEXT, HIDDEN, OUTPUT)
"""Views in which the cosine of two items says that they are alike."""

CENTRED = (HIDDEN,)
"""Views whose vectors all point the same way until their mean is taken off."""

AT_ONCE = 1 << 14
"""Rows that are described at once."""


@dataclass(frozen=True)
class Views:
    """The parts of an item's vector: names and widths, in order.

    encoder: the name of what made the sentence embedding, "" where it is not known.
    """

    widths: tuple[tuple[str, int], ...]
    encoder: str = field(default="", compare=False)

    @classmethod
    def of(cls, widths: Mapping[str, int], encoder: str = "") -> Views:
        """Take names and widths in the order of the mapping."""
        return cls(tuple((name, int(width)) for name, width in widths.items()), encoder)

    @property
    def dim(self) -> int:
        """Width of the whole vector."""
        return sum(width for _, width in self.widths)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(name for name, _ in self.widths)

    @property
    def similar(self) -> tuple[str, ...]:
        """Names of the parts whose cosines mean something."""
        return tuple(name for name in self.names if name in SIMILAR)

    def place(self, name: str) -> slice:
        """Return where a part lies; raises UsageError for a name that these vectors do not have."""
        start = 0
        for own, width in self.widths:
            if own == name:
                return slice(start, start + width)
            start += width
        raise UsageError(f"these vectors have the parts {', '.join(self.names)}, not {name!r}")

    def take(self, vectors: Floats, name: str) -> Floats:
        """Return one part of vectors `(n, dim)`."""
        return vectors[:, self.place(name)]

    def pooled(self, vectors: Floats) -> Floats:
        """Return, of vectors with hidden states `(n, dim)`, the mean over all tokens with weights that rise by the position.

        A probe pools three means of one size into `hidden`: over the response, over the prompt, and this one.
        """
        hidden = self.take(vectors, HIDDEN)
        return hidden[:, hidden.shape[1] - hidden.shape[1] // 3 :]

    def to_json(self) -> dict[str, int]:
        """Return names and widths."""
        return dict(self.widths)


def unit(vectors: Floats, centre: Floats | None = None) -> Floats:
    """Return vectors less a centre, scaled to length 1; a vector of nothing but zeros stays."""
    found = np.empty(vectors.shape, np.float32)
    # Block by block: a million rows have no second copy beside the one that is returned.
    for at in ranges(len(vectors), AT_ONCE):
        moved = vectors[at] if centre is None else vectors[at] - centre
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        found[at] = moved / np.where(length > 0, length, 1)
    return found


def centre_of(name: str, parts: Sequence[Floats]) -> Floats:
    """Return what is taken off a view before its cosines: the mean over items where `CENTRED`, else zeros."""
    if name not in CENTRED:
        return np.zeros(parts[0].shape[1], np.float32)
    every = parts[0] if len(parts) == 1 else np.concatenate(list(parts))
    return np.asarray(every.mean(axis=0), np.float32)
