"""Runs with teachers that label rows, from the pool to the files of the contract."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
from nncift import Run, config, pipeline
from nncift.core.arrays import Floats
from nncift.core.seeds import derive
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.labels.row_labels import RowLabelStore
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.stages.request import Request
from nncift.teachers import Chunk, ChunkLabels, RowLabels
from tests.hastened import hasten

Write = Callable[..., Path]
SAME = ("subset.jsonl", "selection.parquet", "fidelity.json", "selection.json", "student/student.safetensors")
TINY: dict[str, Any] = {"lora": False, "projection": 32, "epochs": 1, "warmup_share": 0.1, "learning_rate": 1e-3}


class Features:
    """Three numbers per row from its id, without a model; counts what it is asked, and may stop or reject."""

    name = "features"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    width = 3
    warm_up_passes = 7
    warm_up_tokens = 70

    def __init__(self, *, stop_after: int | None = None, rejects: tuple[str, ...] = (), weights: str = "a") -> None:
        self.options: Mapping[str, Any] = {"teacher": "features", "depth": 2}
        self.asked: list[str] = []
        self.given: list[tuple[str, ...]] = []
        self._stop_after, self._rejects, self._weights = stop_after, rejects, weights

    def warm_up(self) -> None:
        """There is nothing to train."""

    def without_warm_up(self) -> "Features":
        return self

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        self.given.append(examples.ids)
        return tuple(Rejection(row.source, row.line, "needs too much") for row in examples if row.id in self._rejects)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        if self._stop_after is not None and len(self.asked) >= self._stop_after:
            raise KeyboardInterrupt
        self.asked += ids
        values = [[derive(place, item) % 1000 / 1000 for place in range(3)] for item in ids]
        return RowLabels(np.array(values, np.float32), 20 * len(ids), 2 * len(ids))

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        return np.asarray(targets @ sources.T / 3, np.float32)

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "features", "weights": self._weights}


class Closeness:
    """Labels pairs by a rule on their ids, without a model."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {"teacher": "delift", "model": "rule"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        values = [1.0 if chunk.source is None else derive(7, t, chunk.source) % 1000 / 1000 for t in chunk.targets]
        return ChunkLabels(np.array(values, np.float32), len(values))

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "closeness"}


@pytest.fixture(autouse=True)
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, epochs=10)


def select(pool: Any, out: Path, teacher: Any = None, **given: Any) -> Run:
    settings = {"encoder": "hash", "labels": 0.3, "budget": 8, "features": "text", **given}
    return nncift.run(pool, teacher=teacher or Features(), out=out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: Any, other: Any) -> None:
    for name in SAME:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    for key in ("teacher_passes", "full_teacher_passes", "saving"):
        assert one.ledger[key] == other.ledger[key]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes loading a language model an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a language model was loaded")

    return lambda: monkeypatch.setattr(CausalLM, "load", refuse)


@pytest.mark.parametrize("name", ["features", "length", "random", "ifd", "less"])
def test_files_of_the_contract_linear_passes_and_running_again(
    tmp_path: Path, write_pool: Write, llama_folder: Path, name: str, no_model: Callable[[], None]
) -> None:
    def teacher() -> Any:
        made: dict[str, Callable[[], Any]] = {
            "features": Features,
            "length": nncift.teachers.Length,
            "random": lambda: nncift.teachers.Random(seed=3),
            "ifd": lambda: nncift.teachers.Ifd(str(llama_folder)),
            "less": lambda: nncift.teachers.Less(str(llama_folder), **TINY),
        }
        return made[name]()

    pool = write_pool(40)
    run = select(pool, tmp_path / "run", teacher())
    assert {path.name for path in run.path.iterdir()} >= {
        "subset.jsonl",
        "selection.parquet",
        "summary.json",
        "fidelity.json",
        "ledger.json",
        "manifest.yaml",
        "rejected.jsonl",
        "student",
        "labels",
    }
    record, ledger = json.loads((run.path / "summary.json").read_text()), run.ledger
    assert (record["plan"], record["pool"], record["selected"], len(run.subset)) == ("rows", 40, 8, 8)
    measured = record["labels"]["rows"]
    # u of the rows to learn from, a tenth to test, a fifteenth to validate; all where a row costs no pass.
    assert measured == (40 if name in ("length", "random") else 12 + 4 + 3)
    each, once = {"features": (2, 7), "length": (0, 0), "random": (0, 0), "ifd": (2, 0), "less": (1, 4)}[name]
    assert ledger["teacher_passes"] == each * measured + once
    assert ledger["full_teacher_passes"] == each * 40 + once
    assert ledger["teacher_passes"] == ledger["stages"]["label"]["model_passes"]
    expected = 1 - ledger["teacher_passes"] / ledger["full_teacher_passes"] if each else 0.0
    assert ledger["saving"] == pytest.approx(expected)
    assert record["selection"]["objective"] == ("fl" if name in ("features", "less") else "topk")
    assert set(record["fidelity"]) == {"q1", "q2", "q3", "q4"}
    assert pq.read_table(run.path / "selection.parquet").num_rows == 40
    assert len(nncift.Student.load(run.path / "student").score(nncift.read(write_pool(5, "new.jsonl", 90))).ids) == 5
    before = contents(run.path)
    no_model()
    again = select(pool, tmp_path / "run", teacher())
    assert contents(run.path) == before
    assert json.dumps(again.summary) == json.dumps(run.summary)


def test_known_scores_are_used_as_they_are(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    rows = [json.loads(line) | {"quality": str(index % 17)} for index, line in enumerate(pool.read_text().splitlines())]
    pool.write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = select(pool, tmp_path / "run", "column:quality", labels=1.0, budget=4)
    table = {row["id"]: row["score"] for row in pq.read_table(run.path / "selection.parquet").to_pylist()}
    assert table == {row["id"]: float(row["quality"]) for row in rows}
    assert {table[item] for item in run.subset.ids} == {15.0, 16.0}
    assert run.summary["teacher"] == "column:quality"


@pytest.mark.parametrize(("labels", "stop_after"), [(0.3, 1), (0.6, 0)])
def test_a_run_stopped_while_measuring_ends_with_the_same_bytes(
    tmp_path: Path, write_pool: Write, stop_after: int, labels: float
) -> None:
    pool = write_pool(50)
    straight = select(pool, tmp_path / "straight", labels=labels)
    stopped, rest = Features(stop_after=stop_after), Features()
    with pytest.raises(KeyboardInterrupt):
        select(pool, tmp_path / "halting", stopped, labels=labels)
    assert not (tmp_path / "halting" / "summary.json").exists()
    halting = select(pool, tmp_path / "halting", rest, labels=labels)
    assert not set(stopped.asked) & set(rest.asked)
    same(halting, straight)


@pytest.mark.parametrize("by_name", [True, False])
def test_less_stopped_after_its_warm_up_ends_with_the_same_bytes(
    tmp_path: Path, write_pool: Write, llama_folder: Path, by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift.teachers.less import Less

    def go(out: str) -> Run:
        if by_name:
            return select(pool, tmp_path / out, "less", model=str(llama_folder), option=TINY)
        return select(pool, tmp_path / out, Less(str(llama_folder), **TINY))

    pool, original = write_pool(40), Less.measure
    calls: list[Sequence[str]] = []
    straight = go("straight")

    def failing(self: Less, ids: Sequence[str]) -> RowLabels:
        if calls:
            raise KeyboardInterrupt
        calls.append(ids)
        return original(self, ids)

    monkeypatch.setattr(Less, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        go("halting")
    monkeypatch.setattr(Less, "measure", original)
    same(go("halting"), straight)
    warm_up = json.loads((tmp_path / "halting" / "labels" / "teacher" / "warmup.json").read_text())["ids"]
    assert len(warm_up) == 4
    # More labels and more rows: the warm-up stays what it was.
    before = straight.ledger["stages"]["label"]["model_passes"]
    write_pool(44)
    teacher: Any = "less" if by_name else Less(str(llama_folder), **TINY)
    given = {"model": str(llama_folder), "option": TINY} if by_name else {}
    more = select(pool, tmp_path / "halting", teacher, labels=0.6, **given)
    assert more.ledger["teacher_passes"] == more.summary["labels"]["rows"] + 4 > before
    assert json.loads((tmp_path / "halting" / "labels" / "teacher" / "warmup.json").read_text())["ids"] == warm_up


@pytest.mark.parametrize(("labels", "rows"), [(0.5, 40), (0.3, 55), (0.6, 55)], ids=["labels", "rows", "both"])
def test_an_extended_run_measures_only_new_rows(tmp_path: Path, write_pool: Write, labels: float, rows: int) -> None:
    first, second = Features(), Features()
    select(write_pool(40), tmp_path / "run", first)
    run = select(write_pool(rows), tmp_path / "run", second, labels=labels)
    assert second.asked
    assert not set(first.asked) & set(second.asked)
    plan = RowLabelStore(run.path / "labels").plan
    assert plan is not None
    assert plan.measured == {*first.asked, *second.asked}
    assert run.ledger["teacher_passes"] == 2 * len(plan.measured) + 7
    assert run.ledger["full_teacher_passes"] == 2 * rows + 7
    idle = Features()
    select(write_pool(rows), tmp_path / "run", idle, labels=labels)
    assert idle.asked == []


@pytest.mark.parametrize("objective", ["topk", "fl"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_target_set_keeps_ids_of_its_own(tmp_path: Path, write_pool: Write, objective: str, as_file: bool) -> None:
    # The same ids on both sides: a row of the target set is never taken for one of the pool.
    pool, path = write_pool(40), write_pool(12, "target.jsonl")
    teacher = Features()
    target: Any = path if as_file else nncift.read(path)
    run = select(pool, tmp_path / "run", teacher, target=target, objective=objective)
    assert teacher.given[:2] == [nncift.read(pool).ids, tuple(f"target:{item}" for item in nncift.read(path).ids)]
    measured = {item for item in teacher.asked if item.startswith("target:")}
    assert len(measured) == 12
    assert set(run.subset.ids) <= set(nncift.read(pool).ids)
    assert run.ledger["full_teacher_passes"] == 2 * 52 + 7
    assert run.summary["pool"] == 40
    assert pq.read_table(run.path / "selection.parquet").num_rows == 40
    before = contents(run.path)
    select(pool, tmp_path / "run", Features(), target=target, objective=objective)
    assert contents(run.path) == before


@pytest.mark.parametrize("objective", ["topk", "rr", "fl2mi", "max"])
@pytest.mark.parametrize("teacher", [Features, Closeness])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_few_targets_are_enough(
    tmp_path: Path, write_pool: Write, rows: int, teacher: type[Features | Closeness], objective: str
) -> None:
    few = write_pool(rows, "target.jsonl")
    run = select(write_pool(40), tmp_path / "run", teacher(), target=few, objective=objective)
    assert all(math.isfinite(row["score"]) for row in pq.read_table(run.path / "selection.parquet").to_pylist())
    unseen = run.fidelity["fidelity"]
    assert unseen["q4"]["pairs"] >= 2 * rows
    assert rows > 1 or not unseen["q2"]["pairs"]


def test_all_pairs_of_few_targets_are_labelled_where_a_student_saves_nothing(tmp_path: Path, write_pool: Write) -> None:
    few = write_pool(2, "target.jsonl")
    given = {"target": few, "objective": "rr", "labels": 1.0, "plan": "active"}
    run = select(write_pool(40), tmp_path / "run", Closeness(), **given)
    assert run.summary["all_labelled"]
    assert run.ledger["teacher_passes"] == run.ledger["full_teacher_passes"] == 2 * 40 + 2
    assert run.verdict["agrees_with_teacher"] == "yes"
    assert not any("--labels" in warning for warning in run.summary["warnings"])
    assert set(pq.read_table(run.path / "selection.parquet")["stability"].to_pylist()) == {0.0, 1.0}


def test_target_rows_that_are_in_the_pool_are_told_of(tmp_path: Path, write_pool: Write) -> None:
    pool, said = write_pool(40), "also in the pool, word for word: {} of 4, the first target:row-{}"
    runs = {
        start: select(
            pool, tmp_path / str(start), target=write_pool(4, f"{start}.jsonl", start=start), objective="topk"
        )
        for start in (0, 38, 60)
    }
    told = {start: " ".join(run.summary["warnings"]) for start, run in runs.items()}
    assert said.format(4, "0000") in told[0]
    assert said.format(2, "0038") in told[38]
    assert "word for word" not in told[60]


def test_a_target_set_that_cannot_be_used_is_told_of(tmp_path: Path, write_pool: Write) -> None:
    pool, path = write_pool(40), write_pool(3, "target.jsonl")
    refused = tuple(f"target:row-{index:04d}" for index in range(3))
    with pytest.raises(DataError, match=r"none of the 3 rows of the target set can be labelled.*line 1 needs too much"):
        select(pool, tmp_path / "one", Features(rejects=refused), target=path, objective="topk")
    with pytest.raises(DataError, match="none of the 0 rows of the target set"):
        select(pool, tmp_path / "two", target=Examples(()), objective="topk")


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(
    ("teacher", "given", "said"),
    [
        ("less", {"plan": "scatter"}, "--plan scatter does not fit the teacher less; use rows"),
        ("delift", {"plan": "rows"}, "--plan rows does not fit the teacher delift; use scatter, active or block"),
        (
            "length",
            {"objective": "fl"},
            "--objective fl needs utilities of pairs, and this teacher gives scores; use topk",
        ),
        ("less", {"objective": "fl2mi"}, "--objective fl2mi is about a target set; give --target FILE"),
        (
            "length",
            {"target": True, "objective": "topk"},
            "--target was given, and the teacher length rates rows without",
        ),
        (
            "less",
            {"option": {"projektion": 3}},
            "the teacher less has no option 'projektion'; did you mean 'projection'",
        ),
        ("less", {"option": {"model": "x"}}, "has no option 'model'"),
        ("less", {"option": {"warmup_share": "much"}}, "the teacher less cannot be made of"),
        ("length", {"model": "m"}, "the teacher length takes no model; it was given 'm'"),
    ],
)
def test_wishes_that_do_not_fit_the_teacher_are_refused(
    tmp_path: Path, write_pool: Write, llama_folder: Path, teacher: str, given: dict[str, Any], said: str, as_file: bool
) -> None:
    pool, own = write_pool(40), dict(given)
    if own.get("target"):
        path = write_pool(12, "target.jsonl")
        own["target"] = path if as_file else nncift.read(path)
    if teacher != "length":
        own["model"] = str(llama_folder)
    with pytest.raises(UsageError, match=said):
        select(pool, tmp_path / "run", teacher, **own)
    assert not (tmp_path / "run").exists()


def test_more_rows_to_label_than_there_are_is_refused(tmp_path: Path, write_pool: Write) -> None:
    with pytest.raises(InfeasibleError, match=r"--labels 41 was given; .*length labels rows.*there are 40"):
        select(write_pool(40), tmp_path / "run", "length", labels=41)
    assert not (tmp_path / "run").exists()
    assert select(write_pool(40), tmp_path / "run", "length", labels=40).ledger["saving"] == 0


def test_another_teacher_is_refused_once_there_are_labels(tmp_path: Path, write_pool: Write) -> None:
    run = select(write_pool(40), tmp_path / "run")
    before = contents(run.path)
    with pytest.raises(UsageError, match="weights differ"):
        select(write_pool(40), tmp_path / "run", Features(weights="b"), labels=0.5)
    with pytest.raises(UsageError, match="labels are never thrown away"):
        select(write_pool(40), tmp_path / "run", labels=0.2)
    assert contents(run.path) == before


def test_the_manifest_repeats_a_run_with_options_and_a_target(
    tmp_path: Path, write_pool: Write, llama_folder: Path
) -> None:
    run = select(
        write_pool(40),
        tmp_path / "run",
        "less",
        model=str(llama_folder),
        option=TINY,
        objective="topk",
        target=write_pool(10, "target.jsonl", 60),
    )
    settings = config.resolve({}, run.path / "manifest.yaml")
    assert (settings.plan, settings.objective, settings.option) == ("rows", "topk", TINY)
    again = pipeline.execute(Request.resolve(settings), tmp_path / "again")
    same(again, run)


@pytest.mark.parametrize("name", ["ifd", "less"])
def test_a_run_of_an_object_can_be_repeated_from_its_manifest(
    tmp_path: Path, write_pool: Write, llama_folder: Path, name: str
) -> None:
    folder = str(llama_folder)
    made: Any = nncift.teachers.Ifd(folder, above_one="keep") if name == "ifd" else nncift.teachers.Less(folder, **TINY)
    run = select(write_pool(40), tmp_path / "run", made)
    assert name == "ifd" or made.workspace is None
    settings = config.resolve({}, run.path / "manifest.yaml")
    same(pipeline.execute(Request.resolve(settings), tmp_path / "again"), run)


@pytest.mark.parametrize("content", [b"", b"not safetensors"])
def test_damaged_utilities_are_named_and_follow_from_the_rows_again(
    tmp_path: Path, write_pool: Write, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = select(write_pool(40), tmp_path / "run")
    before = contents(run.path)
    (file,) = (run.path / "labels").glob("utility-*.safetensors")
    file.write_bytes(content)
    with pytest.raises(DataError, match=file.name):
        FinishedRun(run.path).labels  # noqa: B018 - a property that reads
    select(write_pool(40), tmp_path / "run", idle := Features())
    assert idle.asked == []
    assert file.name in caplog.text
    assert file.read_bytes() == before[f"labels/{file.name}"]


def test_a_damaged_record_of_the_warm_up_is_named_and_written_again(
    tmp_path: Path, write_pool: Write, caplog: pytest.LogCaptureFixture
) -> None:
    run = select(write_pool(40), tmp_path / "run")
    before = contents(run.path)
    (run.path / "labels" / "once.json").write_text("[]")
    select(write_pool(40), tmp_path / "run")
    assert "once.json" in caplog.text
    assert contents(run.path)["labels/once.json"] == before["labels/once.json"]


def test_rows_without_a_value_are_warned_of(tmp_path: Path, write_pool: Write) -> None:
    class Holes(Features):
        def measure(self, ids: Sequence[str]) -> RowLabels:
            found = super().measure(ids)
            found.values[0] = np.nan
            return found

    run = select(write_pool(40), tmp_path / "run", Holes())
    assert "2 of 19 measured rows have no value." in run.warnings


def test_a_run_on_noise_says_that_nothing_predicts_it(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    noise = select(write_pool(80), tmp_path / "noise", nncift.teachers.Random(seed=1))
    assert any("Labels that are noise look like this" in warning for warning in noise.warnings)
    assert noise.summary["warnings"] == list(noise.warnings)


def test_a_run_on_equal_labels_says_so(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    pool = write_pool(60)
    rows = [{**json.loads(line), "quality": 0.5} for line in pool.read_text(encoding="utf-8").splitlines()]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = select(pool, tmp_path / "run", nncift.teachers.Column("quality"))
    assert any(warning.startswith("All 60 labels are equal (0.5)") for warning in run.warnings)
