"""The engine of one shard: does its own pieces, and takes those of the others where it needs them; it may wait for them."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift.core.parallel import pays
from nncift.core.tasks import SCORE, Enough, Here, Job, Keep, Outcome, Piece, Unfinished, timed
from nncift.distributed.content import content_of
from nncift.distributed.model_worker import Hands
from nncift.distributed.piece_records import Damage, Names, Reader, Record, Writer
from nncift.distributed.shadow import WORK, Presence, held, locked
from nncift.distributed.shards import END, Left, folder_of, in_files, name_of
from nncift.distributed.waiting import Waiting
from nncift.teachers.abilities import KeepsWorkspace, WarmsUp


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
    grow, calculations). Otherwise it is content with names, and no outcome of another shard is read. waits: it waits for others
    that are at work; patient: also for such as are not there yet.
    """

    def __init__(self, run: Path, presence: Presence) -> None:
        self._run, self._presence, self._shard = run, presence, presence.shard
        self._left = Left(run)
        self._writers: dict[str, Writer] = {}
        self._feeds: dict[str, _Feed] = {}
        self._asked: dict[str, tuple[Job, Sequence[Piece]]] = {}
        self._open: dict[tuple[str, str], int] = {}
        self.whole = self.waits = self.patient = False
        self.done: dict[str, Done] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be used."""
        return tuple(self._left.notes)

    @property
    def made(self) -> int:
        """Pieces that this shard has done now."""
        return sum(done.pieces for done in self.done.values())

    def found(self, job: Job, wanted: Container[str] | None = None) -> Iterator[tuple[str, Outcome]]:
        """Yield what all shards have done, where it is needed."""
        if not self.whole:
            return
        self._feeds[job.key] = feed = _Feed(self._left, job, self._is_settled)
        given: set[str] = set()
        for record in feed.new():
            if record.piece not in given and (wanted is None or record.piece in wanted):
                given.add(record.piece)
                yield record.piece, record.outcome

    def each(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do the pieces that are this shard's.

        Raises Unfinished where the stage cannot be finished here, Enough where nothing comes behind a calculation.
        """
        if job.calculation is not None:
            self._calculate(hands, job, pieces, keep)
        elif self.whole:
            self._take(hands, job, pieces, keep)
        else:
            self._share(hands, job, pieces, keep)

    def await_others(self) -> bool:
        """Wait until all shards have done what this one was asked for; tell whether they have."""
        for job, pieces in self._asked.values():
            seen: dict[Path, Names] = {}
            done: set[str] = set()
            lacking = partial(self._lacking, job, pieces, seen, done)
            with self._waiting(job) as waiting:
                while found := lacking():
                    # Whoever is gone may have finished behind the last look.
                    if not waiting.more(self._owners(found)) and lacking():
                        return False
        return True

    def _lacking(self, job: Job, pieces: Sequence[Piece], seen: dict[Path, Names], done: set[str]) -> list[Piece]:
        """Return the pieces that nobody has done until now, by what came into the files since the last look; `done` grows."""
        for file in self._left.files(job):
            done.update(seen.setdefault(file, Names(file)).new())
        found = [piece for piece in pieces if piece.name not in done]
        self._left_over(job, len(found))
        return found

    def forget_others(self, basis: str) -> None:
        """Remove what this shard calculated with other students: nothing asks for it any more."""
        for file in folder_of(self._run, self._shard).glob(f"{SCORE}-*{END}"):
            if not file.name.startswith(f"{SCORE}-{basis}-"):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _share(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do what is this shard's and was not done before; raise Unfinished in any case."""
        self._asked[job.stage] = job, pieces
        raise Unfinished(job.stage, self._do_mine(hands, job, pieces, keep))

    def _do_mine(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> int:
        """Do what is this shard's and was not done before; return how many pieces are left for others, by their names."""
        own = set(self._writer(job).names)
        finished = own | self._of_others(job)
        todo = [piece for piece in pieces if piece.name not in finished]
        mine = [piece for piece in todo if self._shard.has(piece.place)]
        self._done(job).before += len([piece for piece in pieces if piece.name in own])
        self._do(hands, job, mine, keep)
        # The others were at work meanwhile: of shards that begin together, the last to end must find nothing left.
        finished = self._of_others(job).union(piece.name for piece in mine)
        return self._left_over(job, len([piece for piece in todo if piece.name not in finished]))

    def _of_others(self, job: Job) -> set[str]:
        """Return the names of the pieces that other shards have done until now."""
        return {name for file in self._files(job) if not self._is_own(file) for name in Names(file).new()}

    def _take(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do what is this shard's, and keep what the others do. Raises Unfinished where something is left to them."""
        lacking = {piece.name: piece for piece in pieces}
        feed = self._feeds.setdefault(job.key, _Feed(self._left, job, self._is_settled))
        self._keep_new(feed, lacking, keep)
        self._do_some(hands, job, [piece for piece in lacking.values() if self._shard.has(piece.place)], keep, lacking)
        with self._waiting(job) as waiting:
            while lacking:
                self._keep_new(feed, lacking, keep)
                if broken := [piece for name, piece in lacking.items() if name in feed.broken]:
                    # It was done, and cannot be read: whoever is here does it again.
                    waiting.go_on()
                    self._do_some(hands, job, broken, keep, lacking)
                elif lacking and not (self.waits and waiting.more(self._owners(lacking.values()))):
                    # Whoever is gone may have finished behind the last look.
                    self._keep_new(feed, lacking, keep)
                    break
        if self._left_over(job, len(lacking)):
            raise Unfinished(job.stage, len(lacking))

    def _calculate(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Share a calculation out where that pays; else do it here, where something follows that reads it."""
        asked: Any = job.calculation
        key = content_of(asked) if pays(asked) else None
        if key is None:
            if asked.feeds:
                Here().each(hands, job, pieces, keep)
        elif asked.feeds:
            job = in_files(job, key)
            own = self._writer(job).names
            self._done(job).before += len([piece for piece in pieces if piece.name in own])
            self._take(hands, job, pieces, keep)
        else:
            # Nobody waits for what nothing reads.
            self._do_mine(hands, in_files(job, key), pieces, lambda piece, outcome: None)
        if asked.last:
            raise Enough

    def _keep_new(self, feed: _Feed, lacking: dict[str, Piece], keep: Keep) -> None:
        for record in feed.new():
            if (piece := lacking.pop(record.piece, None)) is not None:
                keep(piece, record.outcome)

    def _do_some(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep, lacking: dict[str, Piece]) -> None:
        self._do(hands, job, pieces, keep)
        for piece in pieces:
            del lacking[piece.name]

    def _do(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do pieces, and leave them for the others and for the run that joins."""
        writer, done = self._writer(job), self._done(job)
        if job.calculation is None:
            hands.prepare(job, pieces)
        extra = self._warm(hands, job) if pieces else 0.0
        for piece in pieces:
            outcome = timed(hands, job, piece)
            outcome, extra = replace(outcome, seconds=outcome.seconds + extra), 0.0
            writer.add(Record(job.key, piece.name, outcome))
            done.pieces += 1
            done.tokens += outcome.tokens
            done.passes += outcome.passes
            done.seconds += outcome.seconds
            keep(piece, outcome)

    def _done(self, job: Job) -> Done:
        return self.done.setdefault(job.stage, Done())

    def _left_over(self, job: Job, count: int) -> int:
        """Note how many pieces of a job are left for others, and return that. A stage may have several jobs."""
        self._open[job.stage, job.key] = count
        self._done(job).left = sum(left for (stage, _), left in self._open.items() if stage == job.stage)
        return count

    def _owners(self, pieces: Iterable[Piece]) -> Mapping[int, int]:
        """Return how many of these pieces each shard does."""
        return dict(Counter(piece.place % self._shard.count + 1 for piece in pieces))

    def _waiting(self, job: Job) -> Waiting:
        return Waiting(self._presence, job.stage, even_for_none=self.patient)

    def _writer(self, job: Job) -> Writer:
        name = name_of(job.stage, job.key)
        if name not in self._writers:
            self._writers[name] = Writer(folder_of(self._run, self._shard) / name)
            for part in self._writers[name].damage:
                self._left.damaged(part)
        return self._writers[name]

    def _files(self, job: Job) -> list[Path]:
        return self._left.files(job) if job.calculation is None else self._left.made_of(job)

    def _is_own(self, file: Path) -> bool:
        return file.parent == folder_of(self._run, self._shard)

    def _is_settled(self, file: Path) -> bool:
        """Tell whether nobody else writes a file now."""
        return self._is_own(file) or not held(file.parent / WORK)

    def _warm(self, hands: Hands, job: Job) -> float:
        """Let the teacher do what precedes all rows, one shard at a time; return its seconds.

        The first shard that comes trains the warm-up in the run's folder of the teacher, and the others wait and find it there.
        """
        teacher = hands.teacher
        folder = teacher.workspace if isinstance(teacher, KeepsWorkspace) else None
        if job.hand != "measure" or not isinstance(teacher, WarmsUp) or folder is None:
            return 0.0
        with locked(folder / ".lock", fcntl.LOCK_EX, None):
            began = time.perf_counter()
            teacher.warm_up()
            return time.perf_counter() - began


class _Feed:
    """What comes into all shards' files about a job. broken: pieces that were done and cannot be read."""

    def __init__(self, left: Left, job: Job, is_settled: Any) -> None:
        self._left, self._job, self._is_settled = left, job, is_settled
        self._readers: dict[Path, Reader] = {}
        self.broken: set[str] = set()

    def new(self) -> Iterator[Record]:
        """Yield the sound records that came since; damage is named once nobody writes the file."""
        left, job = self._left, self._job
        for file in left.files(job) if job.calculation is None else left.made_of(job):
            # Before its content: what is written after this look is not taken for damage.
            settled = self._is_settled(file)
            for part in self._readers.setdefault(file, Reader(file)).new(settled=settled):
                if isinstance(part, Damage):
                    left.damaged(part)
                    if part.piece is not None:
                        self.broken.add(part.piece)
                elif part.job == job.key:
                    yield part
