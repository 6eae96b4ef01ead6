"""A conformance kit: `check_teacher` and `check_network` put a plug-in, or one of ours, through what nncift relies on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Examples
from nncift.errors import DataError
from nncift.student.networks import FittedStudent, Network, TrainingData
from nncift.teachers import Chunk, FeatureTeacher, RowTeacher, Teacher
from nncift.teachers.abilities import figures_of, row_passes

Weights = dict[str, npt.NDArray[np.float32]]


class ConformanceError(AssertionError):
    """A teacher or a network does not do what its protocol says."""


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
    for name, record in (("describe()", dict(teacher.describe())), ("options", dict(teacher.options))):
        _require(_is_json(record), f"has {name} that JSON cannot hold: {record!r}", teacher)
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


def check_network(made: type[Network], training_data: TrainingData, *, tolerance: float = 1e-4) -> None:
    """Raise ConformanceError with a sentence where a student's network breaks its protocol (`student.networks`).

    training_data: with labels to train and to validate on, and at least four targets (one for a pointwise teacher) and sources.
    Checked for every recipe: training is the same when repeated, and leaves finite float32 weights and a course that JSON can
    hold; projections have the protocol's shape and type, and an item's does not depend on the others (to `tolerance`, in units
    of the labels' spread); a block of pairs and a list of them agree; weights that do not fit each other are refused with a
    DataError and never read.
    """
    recipes = getattr(made, "recipes", ())
    sound = isinstance(recipes, tuple) and bool(recipes) and all(isinstance(name, str) for name in recipes)
    _require_network(sound, f"has recipes {recipes!r}, not a tuple of names", made)
    for recipe in recipes:
        learned, again = (made.learn(training_data, recipe=recipe, seed=3, advance=lambda step: None) for _ in range(2))
        _check_learned(made, learned, again)
        net = made(learned.weights, learned.mean, learned.scale, training_data.views)
        _check_predictions(made, net, training_data, tolerance * max(float(learned.scale), 1e-12))
        _check_refusals(made, learned, training_data)


def _check_learned(made: type[Network], learned: FittedStudent, again: FittedStudent) -> None:
    for name, array in learned.weights.items():
        sound = isinstance(array, np.ndarray) and array.dtype == np.float32 and bool(np.isfinite(array).all())
        _require_network(sound, f"learns {name} that is not an array of finite float32 numbers", made)
    same = learned.weights.keys() == again.weights.keys() and all(
        np.array_equal(array, again.weights[name]) for name, array in learned.weights.items()
    )
    same = same and (learned.mean, learned.scale) == (again.mean, again.scale)
    _require_network(same, "learns something else from the same training data and seed", made)
    _require_network(bool(learned.scale > 0), f"has labels of scale {learned.scale}; expected one above 0", made)
    _require_network(_is_json(dict(learned.course)), "has a course that JSON cannot hold", made)


def _check_predictions(made: type[Network], net: Network, training_data: TrainingData, tolerance: float) -> None:
    vectors = {"targets": training_data.targets, "sources": training_data.sources}
    project = {"targets": net.project_targets, "sources": net.project_sources}
    sides = {axis: project[axis](vectors[axis]) for axis in vectors}
    for axis, found in sides.items():
        shape = (len(vectors[axis]), net.width)
        _require_network(found.shape == shape, f"projects {axis} to {found.shape}, not {shape}", made)
        _require_network(found.dtype == np.float32, f"projects {axis} to {found.dtype}, not float32", made)
    targets, sources = sides["targets"], sides["sources"]
    block = net.block(targets, sources)
    shape = (len(targets), len(sources))
    _require_network(block.shape == shape, f"predicts a block of {block.shape}, not (targets, sources) {shape}", made)
    _require_network(block.dtype == np.float32, f"predicts a block in {block.dtype}, not float32", made)
    _require_network(bool(block.flags.f_contiguous), "predicts a block that is not in Fortran order", made)
    for axis, alone in (
        ("target", net.block(project["targets"](vectors["targets"][:1]), sources[:4]) - block[:1, :4]),
        ("source", net.block(targets[:4], project["sources"](vectors["sources"][:1])) - block[:4, :1]),
    ):
        _require_network(bool(np.abs(alone).max() <= tolerance), f"predicts a {axis} differently beside others", made)
    # Reversed and repeated, so that codes taken for positions in the list are found out.
    t, s = (part.ravel()[::-1].astype(np.int32) for part in np.indices(shape))
    t, s = np.concatenate([t, t[:3]]), np.concatenate([s, s[:3]])
    pairs = net.pairs(targets, sources, t, s)
    _require_network(pairs.shape == t.shape, f"predicts {pairs.shape} for {len(t)} pairs", made)
    _require_network(bool(np.abs(pairs - block[t, s]).max() <= tolerance), "predicts pairs unlike their block", made)


def _check_refusals(made: type[Network], learned: FittedStudent, training_data: TrainingData) -> None:
    for name, array in learned.weights.items():
        broken: dict[str, npt.NDArray[Any]] = {"float64": array.astype(np.float64)}
        broken |= {"an axis more": array[None]}
        broken |= {
            f"axis {axis} cut": np.delete(array, 0, axis=axis) for axis in range(array.ndim) if array.shape[axis]
        }
        for how, other in broken.items():
            _require_network(
                not _accepts(made, {**learned.weights, name: other}, learned, training_data),
                f"takes {name} with {how}",
                made,
            )
    _require_network(not _accepts(made, {}, learned, training_data), "takes no weights at all", made)


def _accepts(made: type[Network], weights: Weights, learned: FittedStudent, training_data: TrainingData) -> bool:
    try:
        made(weights, learned.mean, learned.scale, training_data.views)
    except DataError:
        return False
    except Exception as error:
        raise ConformanceError(
            f"the network {made.__name__} meets weights that do not fit with {type(error).__name__}, not DataError: {error}"
        ) from error
    return True


def _check_rows(teacher: RowTeacher, ids: Sequence[str], tolerance: float) -> None:
    whole = teacher.measure(ids)
    shape = (len(ids), teacher.width)
    _require(whole.values.shape == shape, f"measures {whole.values.shape} for {len(ids)} rows, not {shape}", teacher)
    _require(whole.values.dtype == np.float32, f"measures {whole.values.dtype}, not float32", teacher)
    _require(not np.isinf(whole.values).any(), "measures infinity; a row without a value is NaN", teacher)
    _require(whole.tokens >= 0 and whole.passes >= 0, "counts negative tokens or passes", teacher)
    declared = row_passes(teacher) * len(ids)
    _require(
        whole.passes <= declared,
        f"counts {whole.passes} passes for {len(ids)} rows and declares {declared}; set row_passes, the passes of a row",
        teacher,
    )
    record, names = sorted(whole.figures), sorted(figures_of(teacher))
    _require(record == names, f"sums up {record} and says that its figures are {names}", teacher)
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


def _require_network(holds: bool, what: str, made: type[Network]) -> None:
    if not holds:
        raise ConformanceError(f"the network {getattr(made, '__name__', made)} {what}")


def _close(one: object, other: object, tolerance: float) -> bool:
    return bool(np.allclose(np.asarray(one), np.asarray(other), rtol=0, atol=tolerance, equal_nan=True))


def _is_json(record: object) -> bool:
    try:
        return json.loads(json.dumps(record)) is not None
    except (TypeError, ValueError):
        return False
