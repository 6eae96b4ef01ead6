"""Blocks of rows that are embedded or probed, as pieces that an engine has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nncift.core.fingerprints import fingerprint
from nncift.core.tasks import Engine, Job, Outcome, Piece, as_floats
from nncift.models.embedding_cache import Block, KeepBlock

if TYPE_CHECKING:
    from nncift.distributed.model_worker import Hands


class ByEngine:
    """Has the blocks of an `EmbeddingCache` done by an engine. others: what came from other processes, and its cost.

    task: what a worker is given for the texts of a block.
    """

    def __init__(
        self, engine: Engine, hands: Hands, job: Job, task: Callable[[Sequence[str]], Any] = lambda texts: texts
    ) -> None:
        self._engine, self._hands, self._job, self._task = engine, hands, job, task
        self.others = Outcome({})

    def found(self) -> Iterator[tuple[Sequence[str], npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """Yield what other processes embedded."""
        for _, outcome in self._engine.found(self._job):
            seen = self.others
            self.others = Outcome(
                {}, seen.tokens + outcome.tokens, seen.passes + outcome.passes, seen.seconds + outcome.seconds
            )
            keys = [bytes(key).hex() for key in outcome.arrays["keys"]]
            yield keys, as_floats(outcome, "vectors"), np.asarray(outcome.arrays["counts"], np.int32)

    def encode(self, blocks: Sequence[Block], keep: KeepBlock) -> None:
        """Have blocks embedded."""
        of = {fingerprint(list(block.keys)): block for block in blocks}
        pieces = [
            Piece(name, block.place, (block.keys, self._task(block.texts)), len(block.texts))
            for name, block in of.items()
        ]

        def kept(piece: Piece, outcome: Outcome) -> None:
            keep(of[piece.name], as_floats(outcome, "vectors"), np.asarray(outcome.arrays["counts"], np.int32))

        self._engine.each(self._hands, self._job, pieces, kept)
