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

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nncift.core.seeds import generator
from nncift.errors import UsageError

if TYPE_CHECKING:
    import torch

ProjectionKind = Literal["sketch", "dense"]

DENSE_AT_ONCE = 2**23
"""Entries of a dense matrix that exist at a time (32 MiB)."""


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
        self._tables: dict[tuple[str, int, str], tuple[list[int], torch.Tensor, torch.Tensor | None]] = {}

    def describe(self) -> dict[str, Any]:
        """Return what decides the matrix."""
        kind = "sketch of turned blocks" if self.kind == "sketch" else self.kind
        return {"kind": kind, "dimension": self.dimension, "seed": self.seed, "dtype": "float32"}

    def add(self, name: str, vectors: torch.Tensor, out: torch.Tensor) -> None:
        """Add the projection of a parameter's vectors `(n, size)` to `out` `(n, dimension)`; both float32."""
        if self.kind == "dense":
            self._add_dense(name, vectors, out)
        else:
            self._add_sketch(name, vectors, out)

    def matrix(self, name: str, size: int) -> torch.Tensor:
        """Return the matrix `(size, dimension)` of a parameter, for checks: as large as it sounds."""
        import torch

        whole = torch.zeros((size, self.dimension))
        for start in range(0, size, 64):
            units = torch.zeros((min(64, size - start), size))
            units.diagonal(start).fill_(1.0)
            self.add(name, units, whole[start : start + 64])
        return whole

    def _add_sketch(self, name: str, vectors: torch.Tensor, out: torch.Tensor) -> None:
        k, size = self.dimension, vectors.shape[1]
        turns, signs, places = self._table(name, size, out.device)
        if places is not None:
            out += vectors.index_select(1, places).mul_(signs).view(len(vectors), -1, k).sum(1)
            return
        for block, turn in enumerate(turns):
            start, end = block * k, min((block + 1) * k, size)
            cut = min(start + k - turn, end)
            out[:, turn : turn + cut - start].addcmul_(vectors[:, start:cut], signs[start:cut])
            if cut < end:
                out[:, : end - cut].addcmul_(vectors[:, cut:end], signs[cut:end])

    def _table(self, name: str, size: int, device: torch.device) -> tuple[list[int], torch.Tensor, torch.Tensor | None]:
        """Return, kept for later, a parameter's turns, one for each block, and the signs of its coordinates.

        On a GPU, launching something for each block would take longer than the work. There, in the third place, is the
        coordinate of every slot, blocks one behind the other as they are after their turns, and signs go by slot, 0 in slots
        left over: 8 bytes for each coordinate.
        """
        import torch

        key = (name, size, str(device))
        if key not in self._tables:
            k = self.dimension
            rng = generator(self.seed, "projection", name, str(size))
            turns = rng.integers(0, k, -(-size // k))
            signs = (2 * rng.integers(0, 2, size, dtype=np.int8) - 1).astype(np.float32)
            places = None
            if self._gathers(device) and len(turns) > 1:
                order = np.arange(len(turns))[:, None] * k + (np.arange(k) - turns[:, None]) % k
                spare = order.ravel() >= size
                order = np.where(spare, 0, order.ravel())
                signs = np.where(spare, np.float32(0), signs[order])
                places = torch.from_numpy(order.astype(np.int64 if size >= 2**31 else np.int32)).to(device)
            self._tables[key] = (turns.tolist(), torch.from_numpy(signs).to(device), places)
        return self._tables[key]

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
