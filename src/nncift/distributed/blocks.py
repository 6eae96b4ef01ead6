"""Blocks of rows that are embedded or probed, as tasks that an executor has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Executor, Task, TaskGroup, TaskResult, as_floats
from nncift.models.embedding_cache import Block, KeepBlock

if TYPE_CHECKING:
    from nncift.distributed.model_worker import ModelWorker


class ByExecutor:
    """Has the blocks of an `EmbeddingCache` done by an executor. others: seconds of other processes whose blocks were taken.

    work: what a worker is given for the texts of a block.
    """

    def __init__(
        self,
        executor: Executor,
        worker: ModelWorker,
        group: TaskGroup,
        work: Callable[[Sequence[str]], Any] = lambda texts: texts,
    ) -> None:
        self._executor, self._worker, self._group, self._work = executor, worker, group, work
        self.others = 0.0

    def found(self) -> Iterator[tuple[Sequence[str], npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """Yield what other processes embedded."""
        for _, result in self._executor.found(self._group):
            self.others += result.seconds
            keys = [bytes(key).hex() for key in result.arrays["keys"]]
            yield keys, as_floats(result, "vectors"), np.asarray(result.arrays["counts"], np.int32)

    def encode(self, blocks: Sequence[Block], keep: KeepBlock) -> None:
        """Have blocks embedded."""
        of = {fingerprint(list(block.keys)): block for block in blocks}
        tasks = [
            Task(name, block.place, (block.keys, self._work(block.texts)), len(block.texts))
            for name, block in of.items()
        ]

        def kept(task: Task, result: TaskResult) -> None:
            keep(of[task.name], as_floats(result, "vectors"), np.asarray(result.arrays["counts"], np.int32))

        self._executor.map(self._worker, self._group, tasks, kept)
