"""What is done part by part so that a large pool is never in memory: the same bytes as all at once, whatever a part is."""

import json
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nncift
from nncift.core.lazily import LazilyBy
from nncift.core.pairs import LabelledPairs
from nncift.data.examples import Examples
from nncift.models.views import TEXT, Views
from nncift.stages import inputs
from nncift.storage import vector_store as files
from nncift.storage.parquet import Column, FileColumn, as_numpy, number_column, read_columns, text_column
from nncift.storage.vector_store import load_array, rows_of
from nncift.student.item_components import describe
from nncift.student.model import Student, predict_all
from nncift.student.networks import TrainingData
from nncift.student.ridge import solve
from nncift.student.score import all_pairs

pytestmark = pytest.mark.usefixtures("hastened")

PARTS = {
    "nncift.storage.vector_store._MAPPED": 1 << 14,
    "nncift.selection.solve.AT_ONCE": 50,
    "nncift.storage.parquet.AT_ONCE": 7,
    "nncift.storage.parquet.SHORT": 7,
    "nncift.runs.report.shift.AT_ONCE": 30,
    "nncift.student.free_similarity.GATHERED": 100,
}


@pytest.fixture(autouse=True)
def small_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Project few rows at once, in every test: this size decides the last bits, and stays what it is."""
    monkeypatch.setattr("nncift.student.model.PROJECTED", 128)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes parts small."""

    def shrink() -> None:
        for name, size in PARTS.items():
            monkeypatch.setattr(name, size)

    return shrink


def mapped(folder: Path, array: np.ndarray) -> np.ndarray:
    np.save(folder / "mapped.npy", array)
    return np.asarray(load_array(folder / "mapped.npy", "r"))


def points(rows: int, width: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("step", [1, 100, 10**6])
def test_rows_of_a_mapped_file_come_in_the_order_asked_for(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAPPED", step)
    array = points(90, 5, 0)
    asked = np.random.default_rng(1).integers(0, 90, 200)
    assert rows_of(mapped(tmp_path, array), asked).tobytes() == array[asked].tobytes()
    assert rows_of(mapped(tmp_path, array)[:, 1:4], asked).tobytes() == array[asked][:, 1:4].tobytes()
    assert rows_of(mapped(tmp_path, array), asked[:0]).shape == (0, 5)


def lesson_of(sources: np.ndarray, *, pointwise: bool) -> TrainingData:
    n = len(sources)
    random = np.random.default_rng(2)
    ids = tuple(f"r{item:05d}" for item in random.permutation(n))
    s = random.permutation(n)[:600].astype(np.int32)
    t = np.zeros(600, np.int32) if pointwise else random.permutation(n)[:600].astype(np.int32)
    pairs = LabelledPairs(("score",) if pointwise else ids, ids, t, s, random.random(600).astype(np.float32))
    held = np.arange(600) >= 400
    targets = np.zeros((1, 0), np.float32) if pointwise else sources
    return TrainingData(pairs.take(~held), pairs.take(held), targets, sources, Views.of({TEXT: sources.shape[1]}))


@pytest.mark.parametrize("pointwise", [True, False])
def test_a_student_of_mapped_vectors_is_that_of_vectors_in_memory(
    tmp_path: Path, *, pointwise: bool, small_parts: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.student.item_components.AT_ONCE", 256)
    vectors = points(1500, 24, 0)
    before = solve(lesson_of(vectors, pointwise=pointwise), powers=6)
    small_parts()
    after = solve(lesson_of(mapped(tmp_path, vectors), pointwise=pointwise), powers=6)
    assert before.course == after.course
    assert {name: a.tobytes() for name, a in before.weights.items()} == {
        name: a.tobytes() for name, a in after.weights.items()
    }


def test_rows_that_pairs_are_about_are_described_as_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.student.item_components.AT_ONCE", 256)
    training_data = lesson_of(points(1500, 24, 0), pointwise=False)
    every, few = describe(training_data), describe(training_data, training_data.used)
    t, s = training_data.used
    assert len(t) < 1500
    assert every.target[t].tobytes() == few.target.tobytes()
    assert every.source[s].tobytes() == few.source.tobytes()
    assert every.source_alike[TEXT][s].tobytes() == few.source_alike[TEXT].tobytes()
    at, to = few.places(training_data.train.target, training_data.train.source)
    assert (t[at] == training_data.train.target).all()
    assert (s[to] == training_data.train.source).all()


def test_fitting_holds_the_rows_that_pairs_are_about_and_no_others(tmp_path: Path) -> None:
    vectors = mapped(tmp_path, points(40_000, 128, 0))
    training_data = lesson_of(vectors, pointwise=True)
    tracemalloc.start()
    solve(training_data, powers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of the vectors' 20 MB, a block of 16,384 rows three times over: as read, less its mean, and that squared.
    assert peak < 2.5 * vectors.nbytes
    assert peak - 3 * 8 * 16_384 * 128 < 0.4 * vectors.nbytes


@pytest.mark.parametrize("network", ["towers", "product"])
def test_few_targets_are_predicted_part_by_part(network: str) -> None:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((24, 7), np.float32) for name in ("target_weight", "source_weight")}
    weights |= {name: random.standard_normal(7).astype(np.float32) for name in ("target_bias", "source_bias")}
    powers = 1 if network == "towers" else 6
    weights |= {"text_powers": np.ones(powers, np.float32), "text_centre": np.zeros(24, np.float32)}
    student = Student(network, weights, 0.1, 0.3, views=Views.of({TEXT: 24}))
    targets, sources = points(3, 24, 1), points(1000, 24, 2)
    before = all_pairs(student, student.project_targets(targets), student.project_sources(sources))
    assert predict_all(student, targets, sources).tobytes() == before.tobytes()
    whole = student.project_sources(sources)
    assert np.concatenate([part for _, part in student.projected_sources(sources)]).tobytes() == whole.tobytes()


def test_columns_in_arrow_and_in_files_are_sequences(tmp_path: Path) -> None:
    path, values = tmp_path / "a.parquet", [f"v{k}" for k in range(23)]
    pq.write_table(pa.table({"v": values, "n": list(range(23))}), path, row_group_size=5)
    table = read_columns(path, ("v", "gone"))
    assert table.column_names == ["v"]
    for column in (Column(table["v"]), FileColumn(path, "v")):
        assert (len(column), list(column), column[3:6]) == (23, values, values[3:6])
        assert (column[22], column[-1]) == ("v22", "v22")
        assert column.at([20, 0, 20, 7]) == ["v20", "v0", "v20", "v7"]
        with pytest.raises(IndexError):
            column[23]


def test_a_part_of_a_column_in_a_file_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": list(range(23))}), path, row_group_size=5)
    for rows in (range(7), range(5, 10), range(8, 23), range(4, 4)):
        column = FileColumn(path, "v", rows)
        assert ([*column], len(column), column[1:3]) == ([*rows], len(rows), [*rows][1:3])
        assert [*zip(column, FileColumn(path, "v", rows), strict=True)] == [(row, row) for row in rows]


def test_a_column_in_a_file_holds_what_it_is_told_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": list(range(20))}), path, row_group_size=5)
    column = FileColumn(path, "v")
    column.keep([19, 2])
    path.unlink()
    assert (column[2], column[19]) == (2, 19)
    with pytest.raises(OSError, match="No such file"):
        column[7]


def test_a_table_without_groups_is_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert len(read_columns(tmp_path / "a.parquet")) == len(FileColumn(tmp_path / "a.parquet", "v")) == 0


def test_a_mapping_is_made_when_it_is_asked_for() -> None:
    lengths = {"aa": 2, "b": 1}
    found = LazilyBy(lengths.__getitem__, ("b", "aa"))
    assert (list(found.items()), found.get("c"), "b" in found, "c" in found) == (
        [("b", 1), ("aa", 2)],
        None,
        True,
        False,
    )


RUNS: dict[str, dict[str, Any]] = {
    "length": {"teacher": "length", "labels": "20%"},
    "graph": {"teacher": "delift-se", "labels": "20%", "neighbours": 20},
    "twins": {"teacher": "length", "labels": "20%", "dedup": "near:0.8"},
}
LEFT = (
    "subset.jsonl",
    "selection.parquet",
    "rows.parquet",
    "embeddings.npy",
    "embeddings.json",
    "pool.json",
    "fidelity.json",
    "student/student.safetensors",
    "student/student.json",
    "report.json",
)


def left_by(folder: Path) -> dict[str, bytes]:
    """Return the files of a run, seconds and peaks of its report, and where it lies, left out."""
    found = {name: (folder / name).read_bytes() for name in LEFT}
    record = json.loads(found["report.json"])
    for name in ("cost", "made_from", "run"):
        del record[name]
    return found | {"report.json": json.dumps(record).replace(str(folder), "RUN").encode()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_small_parts_leaves_the_same_bytes(
    tmp_path: Path, write_pool: Callable[..., Path], name: str, small_parts: Callable[[], None]
) -> None:
    pool = write_pool(110)
    for part in ("whole", "parts"):
        if part == "parts":
            small_parts()
        (tmp_path / part).mkdir()
        nncift.run(pool, out=tmp_path / part / "run", encoder="hash", budget="10%", **RUNS[name])
        student = Student.load(tmp_path / part / "run" / "student")
        np.save(tmp_path / part / "scores.npy", student.score(nncift.read(pool)).score)
        from nncift.runs.select_again import reselect

        reselect(tmp_path / part / "run", {"budget": "5%"}, tmp_path / part / "again")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert left_by(whole / "run") == left_by(parts / "run")
    assert (whole / "scores.npy").read_bytes() == (parts / "scores.npy").read_bytes()
    for file in ("selection.parquet", "subset.jsonl"):
        assert (whole / "again" / file).read_bytes() == (parts / "again" / file).read_bytes()


def test_nobody_holds_the_rows_when_the_report_is_written(
    tmp_path: Path, write_pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    read = inputs.read_pool

    def watched(settings: Any) -> Examples:
        found = read(settings)
        held.append(weakref.ref(found))
        return found

    alive: list[Any] = []

    def written(run: Path) -> None:
        alive.extend(rows() for rows in held)

    monkeypatch.setattr("nncift.stages.request.read_pool", watched)
    monkeypatch.setattr("nncift.pipeline.write_report", written)
    nncift.run(write_pool(60), out=tmp_path / "run", teacher="length", labels="20%", encoder="hash", budget="10%")
    assert alive == [None]


def test_a_large_pool_of_a_pointwise_teacher_has_no_control_over_all_pairs(
    tmp_path: Path, write_pool: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.selection.solve.CONTROL_ROWS", 59)
    common: dict[str, Any] = {"labels": "20%", "encoder": "hash", "budget": "10%"}
    for name, teacher, there in (("few", "length", False), ("all", "delift-se", True)):
        found = nncift.run(write_pool(60), out=tmp_path / name, teacher=teacher, **common)
        assert (found.summary["selection"]["controls"]["embedding"] is not None) == there
    monkeypatch.setattr("nncift.selection.solve.CONTROL_ROWS", 60)
    found = nncift.run(write_pool(60), out=tmp_path / "more", teacher="length", **common)
    assert found.summary["selection"]["controls"]["embedding"] is not None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3, None, 1], pa.int64()),
        ([0.5, None, -2.0, None], pa.float64()),
        ([True, False, True], pa.bool_()),
        ([], pa.int64()),
        ([7, 2**40], pa.int64()),
    ],
)
def test_columns_of_numbers_are_what_arrow_makes_of_them(values: list[Any], kind: pa.DataType) -> None:
    made = number_column(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))


def test_nan_is_missing_in_a_column_of_numbers() -> None:
    assert number_column(np.array([1.0, np.nan]), pa.float64()).to_pylist() == [1.0, None]


def test_columns_of_texts_are_what_arrow_makes_of_them() -> None:
    texts = ["a", "", "zwölf 字", "\x00"]
    text_column(texts).validate(full=True)
    assert text_column(iter(texts)).equals(pa.array(texts, pa.string()))


def test_columns_become_arrays_whatever_their_parts() -> None:
    column = pa.chunked_array([pa.array([1, 2, 3], pa.int16()).slice(1), pa.array([4], pa.int16())])
    found = as_numpy(column)
    assert found.dtype == np.int16
    assert found.tolist() == [2, 3, 4]
    assert as_numpy(pa.chunked_array([["a", "b"]])).tolist() == ["a", "b"]
