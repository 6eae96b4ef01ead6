"""A conformance kit: `check_teacher` puts any teacher, ours or a plug-in, through what nncift relies on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from nncift.data.examples import Examples
from nncift.teachers import Chunk, FeatureTeacher, RowTeacher, Teacher


class ConformanceError(AssertionError):
    """A teacher does not do what its protocol says."""


def check_teacher(teacher: Teacher | RowTeacher, examples: Examples, *, tolerance: float = 1e-4) -> None:
    """Raise ConformanceError with a sentence where a teacher breaks its protocol; needs at least four usable examples.

    Checked: the protocol's members; `describe` and `options` are stable JSON; rejected rows are rows of the pool with a reason;
    values have the protocol's shape and type, are numbers or NaN, do not depend on what else is asked for in the same call
    (to `tolerance`), and are the same when asked again.
    """
    _require(
        isinstance(teacher, Teacher | RowTeacher), "has neither the members of Teacher nor those of RowTeacher", teacher
    )
    _require(
        teacher.kind in ("pairwise", "pointwise"), f"has kind {teacher.kind!r}, not pairwise or pointwise", teacher
    )
    rejected = teacher.prepare(examples)
    places = {(example.source, example.line): example.id for example in examples}
    for rejection in rejected:
        _require(
            (rejection.source, rejection.line) in places, f"rejects a row that it was not given: {rejection}", teacher
        )
        _require(bool(rejection.reason.strip()), f"rejects line {rejection.line} without a reason", teacher)
    refused = {places[rejection.source, rejection.line] for rejection in rejected}
    ids = [example.id for example in examples if example.id not in refused]
    _require(len(ids) >= 4, f"leaves only {len(ids)} of {len(examples)} examples usable; give it more", teacher)
    for name, told in (("describe()", dict(teacher.describe())), ("options", dict(teacher.options))):
        _require(_is_json(told), f"has {name} that JSON cannot hold: {told!r}", teacher)
    _require(teacher.options.get("teacher") == teacher.name, "does not name itself in options['teacher']", teacher)
    if isinstance(teacher, RowTeacher):
        _check_rows(teacher, ids, tolerance)
    else:
        _check_pairs(teacher, ids, tolerance)
    _require(
        json.dumps(dict(teacher.describe()), sort_keys=True) == json.dumps(dict(teacher.describe()), sort_keys=True),
        "describes itself differently when asked again",
        teacher,
    )


def _check_rows(teacher: RowTeacher, ids: Sequence[str], tolerance: float) -> None:
    whole = teacher.measure(ids)
    shape = (len(ids), teacher.width)
    _require(whole.values.shape == shape, f"measures {whole.values.shape} for {len(ids)} rows, not {shape}", teacher)
    _require(whole.values.dtype == np.float32, f"measures {whole.values.dtype}, not float32", teacher)
    _require(not np.isinf(whole.values).any(), "measures infinity; a row without a value is NaN", teacher)
    _require(whole.tokens >= 0 and whole.passes >= 0, "counts negative tokens or passes", teacher)
    again = teacher.measure(list(reversed(ids))).values[::-1]
    _require(_close(whole.values, again, tolerance), "measures rows differently in another order", teacher)
    alone = np.concatenate([teacher.measure([item]).values for item in ids[:3]])
    _require(_close(whole.values[:3], alone, tolerance), "measures a row differently beside other rows", teacher)
    if teacher.kind == "pointwise":
        _require(teacher.width == 1, f"is pointwise with {teacher.width} numbers per row, not 1", teacher)
        return
    _require(
        isinstance(teacher, FeatureTeacher), "is pairwise by the row but has no utility(targets, sources)", teacher
    )
    if isinstance(teacher, FeatureTeacher):
        table = teacher.utility(whole.values[:2], whole.values)
        _require(
            table.shape == (2, len(ids)), f"gives utilities of shape {table.shape}, not (targets, sources)", teacher
        )
        part = teacher.utility(whole.values[1:2], whole.values[2:4])
        _require(_close(table[1:2, 2:4], part, tolerance), "gives a pair another utility beside other pairs", teacher)


def _check_pairs(teacher: Teacher, ids: Sequence[str], tolerance: float) -> None:
    for source in ([None] if teacher.relative else []) + [ids[0]]:
        targets = tuple(ids[1:])
        whole = teacher.label(Chunk(0, source, targets))
        _require(
            whole.values.shape == (len(targets),), f"labels {whole.values.shape} for {len(targets)} targets", teacher
        )
        _require(whole.values.dtype == np.float32, f"labels in {whole.values.dtype}, not float32", teacher)
        _require(not np.isinf(whole.values).any(), "labels infinity; a pair without a value is NaN", teacher)
        again = teacher.label(Chunk(0, source, targets)).values
        _require(
            np.array_equal(whole.values, again, equal_nan=True), "labels a chunk differently when asked again", teacher
        )
        alone = np.concatenate([teacher.label(Chunk(0, source, (target,))).values for target in targets[:3]])
        _require(_close(whole.values[:3], alone, tolerance), "labels a pair differently beside other targets", teacher)


def _require(holds: bool, what: str, teacher: object) -> None:
    if not holds:
        raise ConformanceError(f"the teacher {getattr(teacher, 'name', type(teacher).__name__)} {what}")


def _close(one: object, other: object, tolerance: float) -> bool:
    return bool(np.allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance, equal_nan=True))


def _is_json(told: object) -> bool:
    try:
        return json.loads(json.dumps(told)) is not None
    except (TypeError, ValueError):
        return False
