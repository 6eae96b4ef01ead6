"""Finished tasks in files, which shards leave for each other and for the run that joins them (docs/scale.md).

`pieces/<stage>-<key>/*.safetensors` hold the results of some tasks each, so that a shared file system keeps up. A file appears
whole and never changes. Its checksum is verified when it is read; where it does not match, the file goes, and its tasks are
computed again, with a note.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import SCORE, TaskGroup, TaskResult
from nncift.core.texts import parsed
from nncift.storage.atomic import read_array, read_arrays, write_arrays

log = logging.getLogger(__name__)
FOLDER, END = "pieces", ".safetensors"
SHARDS = "shards"
"""Where shards have their locks, and work."""
TASKS = "tasks"
"""The array of a file that says which tasks it holds, and what they cost, as JSON."""
SECONDS, BYTES = 5.0, 1 << 24
"""How long results wait for others to share their file, which is what a kill costs, and how many bytes of them."""


class PieceCache:
    """The pieces of a run. notes: sentences on what could not be used. writer: who writes; no other process has this name."""

    def __init__(self, run: Path, writer: str = "") -> None:
        self.folder = run / FOLDER
        self.notes: list[str] = []
        self._writer = writer
        self._every: list[Callable[[], Iterable[str]]] = []
        self._strange: dict[Path, set[str]] = {}
        self._asked: set[str] = set()

    def names(self, group: TaskGroup) -> set[str]:
        """Return the tasks of a group that are there; their arrays are neither read nor verified."""
        found: set[str] = set()
        for file in self._files(group):
            with self._named(file):
                found.update(str(record[0]) for record in _records(read_array(file, TASKS)))
        return found

    def read(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield the tasks of a group with their results, each once: all, or those that are wanted."""
        given: set[str] = set()
        if group.every is not None:
            self._every.append(group.every)
        for file in self._files(group):
            results: list[tuple[str, TaskResult]] = []
            with self._named(file):
                results = _unpacked(read_arrays(file))
            for name, result in results:
                if name in given:
                    continue
                if wanted is not None and name not in wanted:
                    self._strange.setdefault(file, set()).add(name)
                    continue
                given.add(name)
                yield name, result

    @contextmanager
    def writing(self, group: TaskGroup) -> Iterator[Callable[[str, TaskResult], None]]:
        """Give a function that keeps the result of a task; all are on disk behind the block, however it ends."""
        waiting: list[tuple[str, TaskResult]] = []
        size, began = 0, time.monotonic()

        def flush() -> None:
            nonlocal size
            folder = self._of(group)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{self._writer}-{fingerprint([name for name, _ in waiting])}{END}"
            write_arrays(folder / name, _packed(waiting))
            waiting.clear()
            size = 0

        def keep(name: str, result: TaskResult) -> None:
            nonlocal size, began
            if not waiting:
                began = time.monotonic()
            waiting.append((name, result))
            size += sum(array.nbytes for array in result.arrays.values())
            if size >= BYTES or time.monotonic() - began >= SECONDS:
                flush()

        try:
            yield keep
        finally:
            if waiting:
                flush()

    def has_about(self, basis: str) -> bool:
        """Tell whether there are parts of calculations with a student."""
        return any(self.folder.glob(f"{SCORE}-{basis}-*"))

    def tidy(self, finished: Iterable[tuple[str, str]], basis: str) -> None:
        """Remove the pieces that a run has taken or has no use for any more; name those that it did not use.

        finished: groups by stage and key. basis: the student's fingerprint.
        """
        taken = {f"{stage}-{key}" for stage, key in finished}
        # What was kept before this session is no longer wanted, and is the run's all the same.
        own = {name for every in self._every[-1:] for name in every()} if self._strange else set()
        for file, found in sorted(self._strange.items()):
            if strange := found - own:
                self._note(
                    f"{len(strange)} pieces in {str(file)!r} are none of this run's: the shard had other rows or other --labels"
                )
        for folder in sorted(path for path in self.folder.glob("*-*") if path.is_dir()):
            calculated = folder.name.startswith(f"{SCORE}-{basis}-")
            if not calculated and folder.name not in taken:
                self._note(
                    f"the pieces in {str(folder)!r} were made with another model, other labels, rows or settings than this "
                    "run's; they are not used"
                )
                continue
            # Nothing was asked for where an earlier session has selected.
            if calculated and self._asked and folder.name not in self._asked:
                self._note(
                    f"the pieces in {str(folder)!r} are of a calculation that is not this run's: other settings of the "
                    "selection, another --max-mem, or a machine that rounds otherwise; they were not used"
                )
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.folder / SHARDS, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _of(self, group: TaskGroup) -> Path:
        return self.folder / f"{group.stage}-{group.key}"

    def _files(self, group: TaskGroup) -> list[Path]:
        if group.calculation is not None:
            self._asked.add(self._of(group).name)
        return sorted(self._of(group).glob(f"*{END}"))

    @contextmanager
    def _named(self, file: Path) -> Iterator[None]:
        """Name a file that turns out to be damaged, and remove it."""
        try:
            yield
        except FileNotFoundError:
            # Another process was here first.
            return
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            self._note(f"the pieces in {str(file)!r} are damaged ({error}); they are computed again")
            file.unlink(missing_ok=True)

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
            log.warning("%s", sentence)


def _packed(results: Iterable[tuple[str, TaskResult]]) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    records = []
    for place, (name, result) in enumerate(results):
        records.append([name, result.tokens, result.passes, result.seconds])
        arrays.update({f"{place}.{part}": np.asarray(array) for part, array in result.arrays.items()})
    return {**arrays, TASKS: np.frombuffer(json.dumps(records).encode(), np.uint8)}


def _unpacked(arrays: dict[str, npt.NDArray[Any]]) -> list[tuple[str, TaskResult]]:
    records = _records(arrays.pop(TASKS))
    parts: list[dict[str, npt.NDArray[Any]]] = [{} for _ in records]
    for name, array in arrays.items():
        place, _, part = name.partition(".")
        parts[int(place)][part] = array
    return [(record[0], TaskResult(part, *record[1:])) for record, part in zip(records, parts, strict=True)]


def _records(array: npt.NDArray[Any]) -> list[Any]:
    found: list[Any] = parsed(array.tobytes().decode("utf-8"))
    return found
