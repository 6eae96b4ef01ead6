"""Seeded random projection of gradients, one parameter at a time (method.md 3.3).

The matrix of a parameter depends on the seed, the parameter's name and its size alone: sources, targets, checkpoints and
machines share it, and projections of different parameters simply add up. Two kinds, both with independent random signs:

- `dense`: every entry is +-1 / sqrt(dimension), the projection of the paper. Work: size * dimension.
- `sketch`: every coordinate goes with a random sign of its own to one of the dimensions. Coordinates are taken in blocks
  of as many as there are dimensions, and a block is turned by a random number of places. Work: size.

For both, `E <Px, Py> = <x, y>`, since signs are independent with mean 0, and
`Var <Px, Py> <= (|x|^2 |y|^2 + <x, y>^2) / dimension`: of the sketch this asks no more than that two coordinates meet in
one of k dimensions with a chance of at most 1/k, and turned blocks see to that. So the sketch costs nothing in accuracy, and
on CPU its work is about a hundredth: blocks are added up as they lie in memory. That is why it is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from nncift.core.result_types import JsonObject
from nncift.core.seeds import generator
from nncift.errors import UsageError
from nncift.models.checkpoints import Adam
from nncift.models.per_sample_gradients import Piece

if TYPE_CHECKING:
    import torch

ProjectionKind = Literal["sketch", "dense"]

DENSE_AT_ONCE = 2**23
"""Entries of a dense matrix that exist at a time (32 MiB)."""

_EMPTY = np.zeros(0, np.float32)


@dataclass(frozen=True)
class _Table:
    """Of a parameter's sketch: the turn of every block, and the sign of every coordinate."""

    turns: npt.NDArray[np.int64]
    signs: npt.NDArray[np.int8]


class Projection:
    """A random linear map from the gradients of all parameters to `dimension` numbers.

    Raises UsageError for a kind that does not exist or a dimension below 1.
    """

    def __init__(self, dimension: int, seed: int, kind: ProjectionKind = "sketch") -> None:
        if kind not in ("sketch", "dense"):
            raise UsageError(f"the projection is sketch or dense, not {kind!r}")
        if dimension < 1:
            raise UsageError(f"the projection needs at least 1 dimension, not {dimension}")
        self.dimension = dimension
        self.seed = seed
        self.kind = kind
        self._tables: dict[tuple[str, int], _Table] = {}
        self._gatherings: dict[tuple[str, int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def describe(self) -> JsonObject:
        """Return what decides the matrix."""
        kind = "sketch of turned blocks" if self.kind == "sketch" else self.kind
        return {"kind": kind, "dimension": self.dimension, "seed": self.seed, "dtype": "float32"}

    def add(self, name: str, vectors: torch.Tensor, out: torch.Tensor) -> None:
        """Add the projection of a parameter's vectors `(n, size)` to `out` `(n, dimension)`; both float32."""
        self.add_piece(Piece(name, slice(0, len(vectors)), 0, vectors), vectors.shape[1], out)

    def add_piece(
        self, piece: Piece, size: int, out: torch.Tensor, adam: Adam | None = None, updates: torch.Tensor | None = None
    ) -> None:
        """Add the projections of a piece's gradients to `out`, and those of Adam's directions to `updates`, `(n, dimension)`.

        size: of the whole parameter. Only the sketch on the CPU takes pieces that are no whole parameters.
        """
        if self.kind == "sketch" and not self._gathers(out.device):
            self._add_compiled(piece, size, out, adam, updates)
            return
        add = self._add_dense if self.kind == "dense" else self._add_gathered
        add(piece.name, piece.gradients, out)
        if adam is not None and updates is not None:
            add(piece.name, adam.direction(piece.name, piece.gradients), updates)

    def matrix(self, name: str, size: int) -> torch.Tensor:
        """Return the matrix `(size, dimension)` of a parameter, for checks: as large as it sounds."""
        import torch

        whole = torch.zeros((size, self.dimension))
        for start in range(0, size, 64):
            units = torch.zeros((min(64, size - start), size))
            units.diagonal(start).fill_(1.0)
            self.add(name, units, whole[start : start + 64])
        return whole

    def _add_compiled(
        self, piece: Piece, size: int, out: torch.Tensor, adam: Adam | None, updates: torch.Tensor | None
    ) -> None:
        from nncift.teachers.less_kernels import add_sketch, add_sketches

        table = self._table(piece.name, size)
        vectors, into = piece.gradients.contiguous().numpy(), out.numpy()
        if adam is None or updates is None:
            add_sketch(vectors, piece.start, table.turns, table.signs, into)
            return
        moments = adam.moments(piece.name)
        first, second = (_EMPTY, _EMPTY) if moments is None else (moment.numpy() for moment in moments)
        share, squared, under, behind = map(np.float32, adam.shares)
        add_sketches(
            vectors,
            piece.start,
            table.turns,
            table.signs,
            (into, updates.numpy()),
            (first, second),
            (share, squared, under, behind),
        )

    def _add_gathered(self, name: str, vectors: torch.Tensor, out: torch.Tensor) -> None:
        places, signs = self._gathering(name, vectors.shape[1], out.device)
        out += vectors.index_select(1, places).mul_(signs).view(len(vectors), -1, self.dimension).sum(1)

    def _table(self, name: str, size: int) -> _Table:
        """Return, kept for later, a parameter's turns, one for each block, and the signs of its coordinates."""
        key = (name, size)
        if key not in self._tables:
            rng = generator(self.seed, "projection", name, str(size))
            turns = rng.integers(0, self.dimension, -(-size // self.dimension))
            signs = 2 * rng.integers(0, 2, size, dtype=np.int8) - 1
            self._tables[key] = _Table(turns.astype(np.int64), signs.astype(np.int8))
        return self._tables[key]

    def _gathering(self, name: str, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, kept for later, the coordinate of every slot and its sign; blocks lie as they are after their turns.

        On a GPU, launching something for each block would take longer than the work. Slots left over have sign 0. 8 bytes for
        each coordinate.
        """
        import torch

        key = (name, size, str(device))
        if key not in self._gatherings:
            k, table = self.dimension, self._table(name, size)
            order = np.arange(len(table.turns))[:, None] * k + (np.arange(k) - table.turns[:, None]) % k
            spare = order.ravel() >= size
            order = np.where(spare, 0, order.ravel())
            signs = np.where(spare, np.float32(0), table.signs[order].astype(np.float32))
            places = order.astype(np.int64 if size >= 2**31 else np.int32)
            self._gatherings[key] = (torch.from_numpy(places).to(device), torch.from_numpy(signs).to(device))
            del self._tables[name, size]
        return self._gatherings[key]

    def _gathers(self, device: torch.device) -> bool:
        return device.type != "cpu"

    def _add_dense(self, name: str, vectors: torch.Tensor, out: torch.Tensor) -> None:
        step = max(1, DENSE_AT_ONCE // self.dimension)
        for block, start in enumerate(range(0, vectors.shape[1], step)):
            part = vectors[:, start : start + step]
            out.addmm_(part, self._signs(name, block, part.shape[1], out.device), alpha=self.dimension**-0.5)

    def _signs(self, name: str, block: int, rows: int, device: torch.device) -> torch.Tensor:
        """Return a block of +-1 `(rows, dimension)`; its bits travel packed and are spread out where they are used."""
        import torch

        entries = rows * self.dimension
        raw = generator(self.seed, "projection", name, str(block)).bytes(-(-entries // 8))
        packed = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(device)
        shifts = torch.arange(8, dtype=torch.uint8, device=device)
        bits = ((packed[:, None] >> shifts) & 1).view(-1)[:entries].view(rows, self.dimension)
        return bits.to(torch.float32).mul_(2.0).sub_(1.0)
