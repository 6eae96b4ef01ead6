"""Shards: processes that do a part of a run's pieces each and leave the outcomes in the run directory (docs/scale.md).

`shards/2-of-3/` holds what shard 2 of 3 has done, one file per stage and per hash of what decides its outcomes: the model, its
wording and precision. A shard reads the run and never writes into it: it works on a shadow of it, which goes at the end.
A run without a shard takes what is in these files, does what is missing, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import re
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from nncift.errors import ResourceError, UsageError
from nncift.scale.hands import Hands
from nncift.scale.pieces import Engine, Job, Keep, Outcome, Piece, Unfinished, timed
from nncift.scale.records import Damage, Record, Writer, names, read

log = logging.getLogger(__name__)
FOLDER = "shards"
END = ".pieces"
TEACHER_FOLDER = "teacher"


@dataclass(frozen=True)
class Shard:
    """One part of `count`; number counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/3`. Raises UsageError."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard is i/k with i from 1 to k, such as 2/3; {text!r} was given")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, place: int) -> bool:
        """Tell whether the piece at a place is this shard's."""
        return place % self.count == self.number - 1


def folder_of(run: Path, shard: Shard) -> Path:
    """Return where a shard leaves what it has done."""
    return run / FOLDER / f"{shard.number}-of-{shard.count}"


class Left:
    """What shards have left in a run directory, as far as it was read. notes: sentences on what could not be used."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.notes: list[str] = []

    def files(self, job: Job) -> list[Path]:
        """Return the files about a job; says so, once, where there are files of the stage about another one."""
        every = sorted(self._run.glob(f"{FOLDER}/*/{job.stage}-*{END}"))
        own = [file for file in every if file.name == _name(job.stage, job.key)]
        for file in sorted(set(every) - set(own)):
            self.note(
                f"{self._told(file)} was made with another model or other settings than this run's ({job.stage}); it is not used"
            )
        return own

    def read(self, job: Job) -> Iterator[tuple[Path, Record]]:
        """Yield all sound records of a job; what is damaged is named."""
        for file in self.files(job):
            for part in read(file):
                if isinstance(part, Damage):
                    self.damaged(part)
                elif part.job == job.key:
                    yield file, part
                else:
                    self.note(f"{self._told(file)} holds pieces of another job; they are not used")

    def damaged(self, part: Damage) -> None:
        """Name a damaged part."""
        rest = "what is behind it, too, is" if part.whole else "it is"
        self.note(f"{self._told(part.file)} is damaged at byte {part.at} ({part.why}); {rest} computed again")

    def note(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            log.warning("%s", sentence)

    def _told(self, file: Path) -> str:
        return f"the shard file {str(file)!r}"


class Joining:
    """The engine of a run that takes what shards left and has the rest done by another engine."""

    def __init__(self, run: Path, inner: Engine) -> None:
        self._run, self._left, self._inner = run, Left(run), inner
        self._strange: dict[Path, set[str]] = {}
        self._every: list[Callable[[], Iterable[str]]] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be used."""
        return tuple(self._left.notes)

    def found(self, job: Job, wanted: Container[str] | None = None) -> Iterator[tuple[str, Outcome]]:
        """Yield what shards left."""
        given: set[str] = set()
        if job.every is not None:
            self._every.append(job.every)
        for file, record in self._left.read(job):
            name = record.piece
            if name in given:
                continue
            if wanted is not None and name not in wanted:
                self._strange.setdefault(file, set()).add(name)
                continue
            given.add(name)
            yield name, record.outcome
        yield from self._inner.found(job, wanted)

    def each(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Have the rest done."""
        self._inner.each(hands, job, pieces, keep)

    def tidy(self, finished: Iterable[tuple[str, str]]) -> None:
        """Remove the files of jobs that are finished, given by stage and key, and name those with pieces that fitted nothing."""
        # What was kept before this session is no longer wanted, and is the run's all the same.
        own = {name for every in self._every[-1:] for name in every()} if self._strange else set()
        for file, found in sorted(self._strange.items()):
            if strange := found - own:
                self._left.note(
                    f"{len(strange)} pieces in {str(file)!r} are none of this run's: the shard had other rows or other --labels"
                )
        for stage, key in finished:
            for file in self._run.glob(f"{FOLDER}/*/{_name(stage, key)}"):
                file.unlink(missing_ok=True)
        folders = sorted((self._run / FOLDER).glob("*-of-*"))
        for folder in folders:
            # A shard that was killed has left its shadow of the run.
            shutil.rmtree(folder / "work", ignore_errors=True)
            if not any(folder.glob(f"*{END}")):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self._run / FOLDER).rmdir()


@dataclass
class Done:
    """What a shard did of a stage, and what it knows to be left for others, in pieces."""

    pieces: int = 0
    before: int = 0
    left: int = 0
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0


class Part:
    """The engine of one shard: does its own pieces, and knows which others are done.

    whole: the shard needs the outcomes of all, since what it does next depends on them (rounds of an active plan, labels that
    grow). Otherwise it is content with names, and no outcome of another shard is read.
    """

    def __init__(self, run: Path, shard: Shard, *, whole: bool) -> None:
        self._run, self._shard, self._whole = run, shard, whole
        self._left = Left(run)
        self._writers: dict[str, Writer] = {}
        self.done: dict[str, Done] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be used."""
        return tuple(self._left.notes)

    def found(self, job: Job, wanted: Container[str] | None = None) -> Iterator[tuple[str, Outcome]]:
        """Yield what all shards have done, where it is needed."""
        if not self._whole:
            return
        given: set[str] = set()
        for _, record in self._left.read(job):
            if record.piece not in given and (wanted is None or record.piece in wanted):
                given.add(record.piece)
                yield record.piece, record.outcome

    def each(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do the pieces that are this shard's. Raises Unfinished where the stage cannot be finished here."""
        writer = self._writer(job)
        finished = writer.names.union(*(set(names(file)) for file in self._left.files(job) if not self._own(file)))
        todo = [piece for piece in pieces if piece.name not in finished]
        mine = [piece for piece in todo if self._shard.has(piece.place)]
        done = self.done.setdefault(job.stage, Done())
        done.before += len([piece for piece in pieces if piece.name in writer.names])
        hands.prepare(job, mine)
        extra = self._warm(hands, job) if mine else 0.0
        for piece in mine:
            outcome = timed(hands, job, piece)
            outcome, extra = replace(outcome, seconds=outcome.seconds + extra), 0.0
            writer.add(Record(job.key, piece.name, outcome))
            done.pieces += 1
            done.tokens += outcome.tokens
            done.passes += outcome.passes
            done.seconds += outcome.seconds
            keep(piece, outcome)
        done.left = len(todo) - len(mine)
        if done.left or not self._whole:
            raise Unfinished(job.stage, done.left)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, job: Job) -> Writer:
        name = _name(job.stage, job.key)
        if name not in self._writers:
            self._writers[name] = Writer(folder_of(self._run, self._shard) / name)
            for part in self._writers[name].damage:
                self._left.damaged(part)
        return self._writers[name]

    def _own(self, file: Path) -> bool:
        return file.parent == folder_of(self._run, self._shard)

    def _warm(self, hands: Hands, job: Job) -> float:
        """Let the teacher do what precedes all rows, one shard at a time; return its seconds.

        The first shard that comes trains the warm-up in the run's folder of the teacher, and the others wait and find it there.
        """
        teacher: Any = hands.teacher
        if job.hand != "measure" or not hasattr(teacher, "warm_up") or getattr(teacher, "workspace", None) is None:
            return 0.0
        with _locked(teacher.workspace / ".lock", fcntl.LOCK_EX, None):
            began = time.perf_counter()
            teacher.warm_up()
            return time.perf_counter() - began


@contextmanager
def shadow_of(run: Path, shard: Shard) -> Iterator[Path]:
    """Lock a shard and give a run directory that looks like `run` and may be written to; it goes at the end.

    Raises ResourceError where a run without --shard, or another process of the same shard, is at work, or nothing can be written.
    """
    folder = folder_of(run, shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {str(run)!r} cannot be written: {error.strerror}") from error
    whole = f"a process without --shard works on {str(run)!r}; wait until it ends"
    same = f"another process works on shard {shard} of {str(run)!r}; wait until it ends, or give another --shard"
    with (
        _locked(run / ".lock", fcntl.LOCK_SH | fcntl.LOCK_NB, whole),
        _locked(folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB, same),
    ):
        scratch = folder / "work"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _shadow(run, scratch)
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _shadow(run: Path, scratch: Path) -> None:
    """Link the files of a run, which are replaced and never written into, and copy its labels, which are."""
    scratch.mkdir()
    for file in run.iterdir():
        if file.is_file() and file.name != ".lock":
            (scratch / file.name).symlink_to(file.resolve())
    for name in ("stages", "student"):
        if (run / name).is_dir():
            (scratch / name).mkdir()
            for file in (run / name).iterdir():
                (scratch / name / file.name).symlink_to(file.resolve())
    if (run / "labels").is_dir():
        shutil.copytree(run / "labels", scratch / "labels", ignore=shutil.ignore_patterns(TEACHER_FOLDER))


@contextmanager
def _locked(path: Path, how: int, refusal: str | None) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read and write: a lock on a network file system needs the one for sharing and the other for excluding.
        stream = path.open("a+", encoding="ascii")
    except OSError as error:
        raise ResourceError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, how)
        except OSError as error:
            raise ResourceError(refusal or f"{str(path)!r} cannot be locked: {error.strerror}") from error
        yield stream


def _name(stage: str, key: str) -> str:
    return f"{stage}-{key}{END}"
