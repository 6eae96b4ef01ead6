"""Which rows a run is about: those that the teacher cannot label are set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from nncift.config import TeacherSettings
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.examples import Example, Rejection
from nncift.errors import DataError, UsageError
from nncift.labels import SCORE
from nncift.labels.store import Axes
from nncift.stages.context import RunContext, identity
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import RunDir
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import AimsAtTargets, HasLanguageModel, notes_of

NOTES = "notes.json"
"""What the teacher has to tell about the rows."""


def usable_rows(
    context: RunContext, pool: Examples, wanted: Examples | None = None
) -> tuple[Axes, tuple[Rejection, ...]]:
    """Return the rows that the teacher can label on both axes, rows of an earlier plan first, and all rejected rows.

    wanted: the target set, with ids of its own. Raises DataError where none is left, UsageError where a row of the run that is
    being extended is gone or changed.
    """
    settings = context.settings
    everything = pool if wanted is None else Examples((*pool, *wanted))
    planned = context.labels().planned()
    _check_rows_kept(
        context.directory, everything, list(dict.fromkeys(item for ids in planned for item in ids if item not in SCORE))
    )
    key = context.key("check", identity(everything), settings.part(TeacherSettings))
    with context.directory.stage("check", key, ("unusable.json", "pool.json", NOTES)) as stage:
        if not stage.done:
            found = prepare_all(context.teacher, pool, wanted, context.progress)
            context.prepared = True
            reasons = {(refused.source, refused.line): refused.reason for refused in found}
            # By id: the same rows may stand on other lines the next time.
            by_id = {row.id: reasons[row.source, row.line] for row in everything if (row.source, row.line) in reasons}
            write_json(context.directory.file("unusable.json"), by_id)
            write_json(context.directory.file(NOTES), [*notes_of(context.teacher), *_in_both(pool, wanted or ())])
            write_json(context.directory.file("pool.json"), {row.id: row.content_hash for row in everything})
    out: dict[str, str] = context.directory.read_json("unusable.json")
    refused = tuple(Rejection(row.source, row.line, out[row.id]) for row in everything if row.id in out)
    sources = _ordered(pool, out, planned[1])
    targets = None if wanted is None else _ordered(wanted, out, planned[0])
    check_labelled(context.teacher.name, (pool, sources), (wanted, targets), refused)
    rejected = (*pool.rejected, *(() if wanted is None else wanted.rejected), *refused)
    return Axes(sources, targets, pointwise=context.teacher.kind == "pointwise"), rejected


def check_labelled(
    teacher: str,
    pool: tuple[Examples, Examples],
    target: tuple[Examples | None, Examples | None],
    refused: Sequence[Rejection],
) -> None:
    """Raise DataError where the teacher can label too few rows. pool, target: all rows, and those that it can label."""
    for what, (given, usable) in (("", pool), ("of the target set ", target)):
        if given is not None and not usable:
            why = next(
                (f"; the first: {no.source} line {no.line} {no.reason}" for no in refused if _is_of(no, given)), ""
            )
            raise DataError(f"none of the {len(given)} rows {what}can be labelled by the teacher {teacher}{why}")


def prepare_all(
    teacher: Teacher | RowTeacher, pool: Examples, wanted: Examples | None, progress: Progress = silent
) -> tuple[Rejection, ...]:
    """Make the teacher know all rows. The pool comes first and alone: LESS draws its warm-up from it, never from targets."""
    if isinstance(teacher, HasLanguageModel):
        with progress("loading the model", 0):
            teacher.language_model()
    with progress("tokenising rows", 0):
        return _prepared(teacher, pool, wanted)


def _prepared(teacher: Teacher | RowTeacher, pool: Examples, wanted: Examples | None) -> tuple[Rejection, ...]:
    if wanted is None or not isinstance(teacher, RowTeacher):
        return teacher.prepare(pool if wanted is None else Examples((*pool, *wanted)))
    refused = (*teacher.prepare(pool), *teacher.prepare(wanted))
    if isinstance(teacher, AimsAtTargets):
        out = {(row.source, row.line) for row in refused}
        if usable := tuple(row for row in wanted if (row.source, row.line) not in out):
            teacher.aim(Examples(usable))
    return refused


def _in_both(pool: Iterable[Example], wanted: Iterable[Example]) -> Iterator[str]:
    """Yield a sentence where rows of the target set are in the pool too."""
    known, targets = {row.content_hash for row in pool}, tuple(wanted)
    both = [row.id for row in targets if row.content_hash in known]
    if both:
        yield (
            f"Rows of the target set that are also in the pool, word for word: {len(both)} of {len(targets)}, the first "
            f"{both[0]}. They may be selected, and the target set is then no set of unseen rows; --against FILE --decontaminate, "
            "with the target set as FILE, leaves them out."
        )


def _is_of(refused: Rejection, rows: Examples) -> bool:
    return any((row.source, row.line) == (refused.source, refused.line) for row in rows)


def _ordered(rows: Examples, out: Mapping[str, str], planned: Sequence[str]) -> Examples:
    """Return the usable rows, planned ones first in the plan's order."""
    if not out and not planned:
        return Examples(rows.items)
    usable = {row.id: row for row in rows if row.id not in out}
    first = [usable.pop(item) for item in planned if item in usable]
    return Examples((*first, *usable.values()))


def _check_rows_kept(directory: RunDir, pool: Examples, planned: Sequence[str]) -> None:
    if not planned:
        return
    before: dict[str, str] = directory.whole_json("pool.json", "check", {})
    now = {example.id: example.content_hash for example in pool}
    lost = [item for item in planned if item not in now or before.get(item, now[item]) != now[item]]
    if lost:
        raise UsageError(
            f"{len(lost)} of the {len(planned)} rows that this run has labels for are gone or changed, the first "
            f"{lost[0]!r}; a run can be extended by rows, not cut. Use another --out"
        )
