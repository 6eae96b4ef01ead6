"""What does the tasks of a run: the teacher, the encoder and the probe of one process, each loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.parallel import Task, TaskGroup, TaskResult
from nncift.data.examples import Example, Examples
from nncift.errors import DataError
from nncift.models.encoders import Encoder
from nncift.models.probe import Probe
from nncift.teachers import Chunk, RowTeacher, Teacher
from nncift.teachers.abilities import chunk_passes, figures_of, stored_as


@dataclass(frozen=True)
class ModelWorker:
    """teacher: labels and measures. encoder and probe: made when they are asked for, since not every run needs them."""

    teacher: Teacher | RowTeacher
    encoder: Callable[[], Encoder]
    probe: Callable[[], Probe]

    def prepare(self, group: TaskGroup, tasks: Sequence[Task]) -> None:
        """Make the teacher know the rows of tasks, which were found usable before. Raises DataError where it refuses one."""
        wanted = {item for task in tasks for item in task.ids}
        if group.rows is not None and wanted:
            self.know(group.rows.subset(sorted(wanted)))

    def know(self, rows: Examples) -> None:
        """Make the teacher know rows. Raises DataError where it refuses one."""
        refused = self.teacher.prepare(rows)
        if refused:
            raise DataError(f"the teacher refuses a row that it took before: {refused[0]}")

    def embed(self, block: tuple[Sequence[str], Sequence[str]]) -> TaskResult:
        """Embed texts. block: their content hashes, and the texts."""
        keys, texts = block
        encoder = self.encoder()
        vectors, counts = encoder.encode(list(texts))
        limit = encoder.describe()["max_tokens"]
        read = np.minimum(counts, limit) if limit else counts
        arrays: dict[str, npt.NDArray[Any]] = {
            "keys": _raw(keys),
            "vectors": vectors,
            "counts": np.asarray(counts, np.int32),
        }
        return TaskResult(arrays, int(read.sum()), len(counts))

    def ask(self, block: tuple[Sequence[str], Sequence[Example]]) -> TaskResult:
        """Ask the probe about rows. block: their content hashes, and the rows."""
        keys, rows = block
        probe = self.probe()
        vectors, counts = probe.read(list(rows))
        tokens = int(np.minimum(counts, probe.lm.context).sum())
        return TaskResult({"keys": _raw(keys), "vectors": vectors, "counts": counts}, tokens, len(counts))

    def label(self, chunk: Chunk) -> TaskResult:
        """Label the pairs of a chunk: values `(n_targets, 1)`, and whether the example in front was shortened."""
        teacher: Any = self.teacher
        found = teacher.label(chunk)
        passes = int(np.isfinite(found.values).sum())
        passes += chunk_passes(teacher) if passes else 0
        arrays = {"values": found.values[:, None], "figures": np.array([found.shortened], np.float64)}
        return TaskResult(arrays, int(found.tokens), passes)

    def measure(self, ids: Sequence[str]) -> TaskResult:
        """Measure rows. Values travel in the type that they are kept in."""
        teacher: Any = self.teacher
        found = teacher.measure(list(ids))
        figures = np.array([found.figures[name] for name in figures_of(teacher)], np.float64)
        arrays = {"values": found.values.astype(stored_as(teacher)), "figures": figures}
        return TaskResult(arrays, int(found.tokens), int(found.passes))


def _raw(keys: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return hashes given as hex digits as bytes, `(n, 16)`."""
    return np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), -1)
