import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
from nncift import Run, config, pipeline
from nncift.core.seeds import derive
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.errors import DataError, InfeasibleError, NnciftError, UsageError
from nncift.labels import BASE, PairLabelStore
from nncift.models.encoders import HashEncoder
from nncift.stages.request import Request
from nncift.teachers import Chunk, ChunkLabels, Teacher
from nncift.teachers.registry import create
from tests.hastened import hasten

Write = Callable[..., Path]


class RuleTeacher:
    """Labels by a rule on ids, without a model; counts what it is asked, and may stop or reject."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True

    def __init__(self, *, stop_after: int | None = None, rejects: tuple[str, ...] = (), weights: str = "a") -> None:
        self.options: Mapping[str, Any] = {"teacher": "delift", "model": "rule"}
        self.asked: list[tuple[str, str | None]] = []
        self._stop_after, self._rejects, self._weights = stop_after, rejects, weights

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return tuple(Rejection(row.source, row.line, "needs too much") for row in examples if row.id in self._rejects)

    def label(self, chunk: Chunk) -> ChunkLabels:
        if self._stop_after is not None and len({source for _, source in self.asked}) >= self._stop_after:
            raise KeyboardInterrupt
        self.asked += [(target, chunk.source) for target in chunk.targets]
        return ChunkLabels(
            np.array([self.value(t, chunk.source) for t in chunk.targets], np.float32), len(chunk.targets)
        )

    @staticmethod
    def value(target: str, source: str | None) -> float:
        return 0.5 if source is None else derive(7, target, source) % 1000 / 2000

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "rule", "model": self._weights}


@pytest.fixture(autouse=True)
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, epochs=15)


def select(pool: Any, out: Path, teacher: Teacher | None = None, **given: Any) -> Run:
    settings = {"encoder": "hash", "labels": 0.3, "budget": 8, **given}
    return nncift.run(pool, teacher=teacher or RuleTeacher(), out=out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_of(folder: Path) -> dict[tuple[str, str | None], float]:
    """Return every stored raw value by the ids of its pair."""
    store = PairLabelStore(folder / "labels")
    assert store.plan is not None
    entries = store.plan.entries
    raw = np.concatenate([np.load(path) for path in sorted((folder / "labels").glob("values-???.npy"))])[:, 0]
    return {
        (store.plan.target_ids[t], store.plan.source_ids[s] if s >= 0 else None): float(value)
        for t, s, value in zip(entries.target, entries.source, raw, strict=True)
    }


def row(index: int) -> dict[str, str]:
    """Return an Alpaca row of words that the tiny tokenizer knows."""
    words = "sort list name add red blue green cat dog bird sky sea tree house".split()
    a, b, c = (words[(index * step + step) % len(words)] for step in (1, 3, 5))
    return {"id": f"row-{index:04d}", "instruction": f"{a} the {b} and {c} {words[index // 14]}", "output": f"{c} {a}"}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Run:
    """Return a run of the DELIFT teacher on a pool with one broken row and one that is too long."""
    folder = tmp_path_factory.mktemp("real")
    lines = [json.dumps(row(index)) for index in range(44)]
    lines[5] = '{"instruction": "broken'
    lines[9] = json.dumps({"id": "long", "instruction": "sort " * 300, "output": "red blue"})
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        hasten(patch, epochs=15)
        return nncift.run(
            folder / "pool.jsonl",
            teacher=nncift.teachers.Delift(str(llama_folder)),
            encoder="hash",
            labels=0.2,
            budget=0.25,
            features="text",
            out=folder / "run",
        )


def test_the_files_of_the_contract_are_there(real: Run) -> None:
    found = {path.name for path in real.path.iterdir()}
    assert found >= {
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
    assert not list(real.path.rglob("*.part"))


def test_the_summary_has_the_keys_of_the_contract(real: Run) -> None:
    record = json.loads((real.path / "summary.json").read_text())
    assert record == json.loads(json.dumps(real.summary))
    assert set(record) >= {
        "run",
        "pool",
        "rejected",
        "selected",
        "teacher",
        "student",
        "plan",
        "fidelity",
        "baselines",
        "ledger",
        "warnings",
    }
    assert set(record["fidelity"]) == {"q1", "q2", "q3", "q4"}
    assert set(record["fidelity"]["q4"]) >= {"mse", "r2", "spearman", "spearman_interval", "pairs"}
    assert set(record["baselines"]) >= {"mean", "additive", "cosine", "ridge"}
    ledger = record["ledger"]
    assert set(ledger["stages"]) >= {"embed", "label", "fit", "score", "select"}
    for cost in ledger["stages"].values():
        assert set(cost) >= {"seconds", "peak_mb", "model_tokens", "model_passes"}
    assert (record["pool"], record["rejected"], record["selected"]) == (42, 2, 11)
    assert json.loads((real.path / "ledger.json").read_text()) == ledger


def test_the_saving_counts_every_pass(real: Run) -> None:
    record = real.summary
    planned = sum(record["labels"].values())
    assert record["ledger"]["teacher_passes"] == record["ledger"]["stages"]["label"]["model_passes"] == planned
    assert record["ledger"]["full_teacher_passes"] == 42 * 41 + 42
    assert record["ledger"]["saving"] == pytest.approx(1 - planned / (42 * 42))
    stages = record["ledger"]["stages"].values()
    assert record["ledger"]["seconds"] == pytest.approx(sum(cost["seconds"] for cost in stages), abs=0.002)


def test_the_selection_accounts_for_every_row(real: Run) -> None:
    table = pq.read_table(real.path / "selection.parquet").to_pylist()
    assert set(table[0]) >= {"id", "source", "rank", "selected", "gain", "score", "reason"}
    assert len(table) == 42
    chosen = sorted((row for row in table if row["selected"]), key=lambda row: row["rank"])
    assert [row["rank"] for row in chosen] == list(range(1, 12))
    assert [row["id"] for row in chosen] == list(real.subset.ids)
    assert all(row["reason"] for row in table)
    assert all(row["rank"] is None for row in table if not row["selected"])


def test_subset_rows_are_the_input_lines_byte_for_byte_in_rank_order(real: Run) -> None:
    lines = (real.path.parent / "pool.jsonl").read_bytes().splitlines()
    written = (real.path / "subset.jsonl").read_bytes().splitlines()
    assert set(written) <= set(lines)
    assert [json.loads(line)["id"] for line in written] == list(real.subset.ids)


def test_rows_that_cannot_be_used_are_set_aside_with_their_reason(real: Run) -> None:
    rejected = [json.loads(line) for line in (real.path / "rejected.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"]) for row in rejected] == [("pool", 6), ("pool", 10)]
    assert "context holds 96" in rejected[1]["reason"]


def test_new_rows_are_scored_without_a_language_model(
    real: Run, write_pool: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    found = nncift.Student.load(real.path / "student").score(nncift.read(write_pool(7, start=100)))
    assert len(found.ids) == 7
    assert np.isfinite(found.score).all()


def test_the_manifest_repeats_the_run(real: Run, tmp_path: Path) -> None:
    settings = config.resolve({}, real.path / "manifest.yaml")
    teacher = create(settings)
    again = pipeline.execute(Request.resolve(settings, teacher=teacher), tmp_path / "again")
    assert (again.path / "subset.jsonl").read_bytes() == (real.path / "subset.jsonl").read_bytes()


def test_the_readmes_example_works(
    tmp_path: Path, write_pool: Write, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code = found[1].replace("org/model", str(llama_folder)).replace("out=", 'encoder="hash", out=')
    assert len([line for line in code.splitlines() if line]) <= 6
    write_pool(40, "alpaca.jsonl")
    write_pool(5, "new.jsonl", start=70)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("labels=0.05", "labels=0.2"), names)
    assert len(names["run"].subset) == 12
    assert len(names["scores"].ids) == 5


def test_known_labels_are_used_as_they_are(tmp_path: Path, write_pool: Write) -> None:
    # Everything is labelled but pairs of rows set apart in different roles, so scores follow the rule, not the student.
    run = select(write_pool(40), tmp_path / "run", labels=1.0, objective="topk")
    raw = labels_of(run.path)
    table = {row["id"]: row["score"] for row in pq.read_table(run.path / "selection.parquet").to_pylist()}
    ids = sorted(table)
    known = {item: [0.5 - raw[t, item] for t in ids if (t, item) in raw] for item in ids}
    best = max(ids, key=lambda item: len(known[item]))
    assert len(known[best]) >= 32
    spread = [abs(table[item] - np.mean(known[item])) for item in ids if len(known[item]) == len(known[best])]
    assert max(spread) < 0.05
    assert all(raw[t, s] == pytest.approx(RuleTeacher.value(t, s)) for t, s in raw)


def test_running_again_does_nothing(tmp_path: Path, write_pool: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = write_pool(40)
    first = select(pool, tmp_path / "run")
    before = contents(first.path)

    class Idle(RuleTeacher):
        def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
            raise AssertionError("the teacher was asked to prepare")

        def describe(self) -> Mapping[str, Any]:
            raise AssertionError("the teacher's model was loaded")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the matrix was computed")

    monkeypatch.setattr(pipeline, "build", refuse)
    teacher = Idle()
    again = select(pool, tmp_path / "run", teacher)
    assert teacher.asked == []
    assert contents(first.path) == before
    assert again.subset.ids == first.subset.ids
    assert json.dumps(again.summary) == json.dumps(first.summary)


@pytest.mark.parametrize("stop_after", [0, 1, 9])
def test_a_run_stopped_while_labelling_ends_as_if_it_had_not_been(
    tmp_path: Path, write_pool: Write, stop_after: int
) -> None:
    pool = write_pool(40)
    straight = select(pool, tmp_path / "straight")
    stopped = RuleTeacher(stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        select(pool, tmp_path / "halting", stopped)
    assert not (tmp_path / "halting" / "summary.json").exists()
    rest = RuleTeacher()
    halting = select(pool, tmp_path / "halting", rest)
    assert not set(stopped.asked) & set(rest.asked)
    assert labels_of(halting.path) == labels_of(straight.path)
    for name in ("subset.jsonl", "selection.parquet", "fidelity.json", "selection.json"):
        assert (halting.path / name).read_bytes() == (straight.path / name).read_bytes()
    assert halting.ledger["teacher_passes"] == straight.ledger["teacher_passes"]


def test_a_run_killed_while_choosing_again_does_not_pass_for_the_old_one(
    tmp_path: Path, write_pool: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_pool(40)
    first = select(pool, tmp_path / "run", budget=8)
    subset = (first.path / "subset.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("nncift.selection.solve.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            select(pool, tmp_path / "run", budget=3)
    assert (first.path / "subset.jsonl").read_bytes() != subset
    assert not (first.path / "summary.json").exists()
    select(pool, tmp_path / "run", budget=8)
    assert (first.path / "subset.jsonl").read_bytes() == subset


@pytest.mark.parametrize(
    ("change", "rows"),
    [({"labels": 0.5}, 40), ({}, 55), ({"labels": 0.6}, 55), ({"labels": 120}, 45)],
    ids=["labels", "rows", "both", "rows for a count"],
)
def test_an_extended_run_repeats_no_label(tmp_path: Path, write_pool: Write, change: dict[str, Any], rows: int) -> None:
    first = RuleTeacher()
    select(write_pool(40), tmp_path / "run", first, **({"labels": 120} if change.get("labels") == 120 else {}))
    before = labels_of(tmp_path / "run")
    second = RuleTeacher()
    run = select(write_pool(rows), tmp_path / "run", second, **change)
    assert not set(first.asked) & set(second.asked)
    after = labels_of(tmp_path / "run")
    assert set(after) == {*first.asked, *second.asked}
    assert {pair: after[pair] for pair in before} == before
    assert run.summary["pool"] == rows
    assert run.ledger["teacher_passes"] == len(after)
    assert pq.read_table(run.path / "selection.parquet").num_rows == rows
    idle = RuleTeacher()
    select(write_pool(rows), tmp_path / "run", idle, **change)
    assert idle.asked == []


def test_new_rows_that_need_no_label_still_take_part(tmp_path: Path, write_pool: Write) -> None:
    few: dict[str, Any] = {"labels": 100, "test_items": 2, "validation_items": 2}
    select(write_pool(40), tmp_path / "run", **few)
    second = RuleTeacher()
    for _ in range(2):
        run = select(write_pool(44), tmp_path / "run", second, **few)
        assert run.summary["pool"] == 44
    assert second.asked == []


def test_another_budget_needs_no_teacher_and_nests_in_the_larger_one(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    large = select(pool, tmp_path / "run", budget=9)
    teacher = RuleTeacher()
    small = select(pool, tmp_path / "run", teacher, budget=4)
    assert teacher.asked == []
    assert small.subset.ids == large.subset.ids[:4]


def test_the_order_of_lines_means_nothing(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    first = select(pool, tmp_path / "run", RuleTeacher(rejects=("row-0007",)))
    lines = pool.read_text().splitlines()
    pool.write_text("\n".join([*lines[20:], *lines[:20]]) + "\n")
    teacher = RuleTeacher(rejects=("row-0007",))
    same = select(pool, tmp_path / "run", teacher)
    assert teacher.asked == []
    assert same.subset.ids == first.subset.ids
    rejected = json.loads((same.path / "rejected.jsonl").read_text())
    assert (rejected["line"], rejected["reason"]) == (28, "needs too much")
    fresh = select(pool, tmp_path / "fresh", RuleTeacher(rejects=("row-0007",)))
    assert labels_of(fresh.path) == labels_of(first.path)
    assert fresh.subset.ids == first.subset.ids


def test_columns_that_no_model_sees_are_written_as_they_are_now(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    select(pool, tmp_path / "run")
    rows = [json.loads(line) | {"topic": "new"} for line in pool.read_text().splitlines()]
    pool.write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = select(pool, tmp_path / "run")
    assert all(json.loads(line)["topic"] == "new" for line in (run.path / "subset.jsonl").read_text().splitlines())


@pytest.mark.parametrize("loss", ["gone", "changed"])
def test_rows_with_labels_cannot_be_lost(tmp_path: Path, write_pool: Write, loss: str) -> None:
    pool = write_pool(40)
    run = select(pool, tmp_path / "run")
    before = contents(run.path)
    lines = pool.read_text().splitlines()
    lines[3:4] = [] if loss == "gone" else [lines[3].replace('"output": "', '"output": "other ')]
    pool.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"1 of the 40 rows.*gone or changed.*'row-0003'.*another --out"):
        select(pool, tmp_path / "run")
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"labels": 0.1}, UsageError, "labels are never thrown away"),
        ({"seed": 1}, UsageError, "seed = 0, and 1"),
        ({"plan": "block"}, UsageError, "plan = 'scatter', and 'block'"),
        ({"budget": 41}, InfeasibleError, "only 40 rows"),
        ({"labels": 2}, InfeasibleError, "at least 4 labels"),
        ({"labels": 0.9, "weights": "b"}, UsageError, "model differ"),
    ],
)
def test_a_refusal_changes_nothing_of_a_finished_run(
    tmp_path: Path, write_pool: Write, given: dict[str, Any], error: type[NnciftError], said: str
) -> None:
    pool = write_pool(40)
    run = select(pool, tmp_path / "run")
    before = contents(run.path)
    teacher = RuleTeacher(weights=given.pop("weights", "a"))
    with pytest.raises(error, match=said):
        select(pool, tmp_path / "run", teacher, **given)
    assert contents(run.path) == before
    assert select(pool, tmp_path / "run").subset.ids == run.subset.ids


def test_a_mistaken_extension_can_be_taken_back_while_it_has_no_labels(tmp_path: Path, write_pool: Write) -> None:
    pool, other = write_pool(40), write_pool(30, "other.jsonl", start=200)
    run = select(pool, tmp_path / "run")
    with pytest.raises(UsageError, match="never thrown away"):
        select([pool, other], tmp_path / "run", labels=50)
    assert select(pool, tmp_path / "run").subset.ids == run.subset.ids


@pytest.mark.parametrize("rows", [1, 3, 19])
def test_too_few_rows_are_refused_before_anything_happens(tmp_path: Path, write_pool: Write, rows: int) -> None:
    class Untouched(RuleTeacher):
        def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
            raise AssertionError("the teacher was used")

    with pytest.raises(DataError, match=r"at least 20 are needed"):
        select(write_pool(rows), tmp_path / "run", Untouched(), budget="30%")
    assert not (tmp_path / "run").exists()


def test_twenty_rows_are_enough(tmp_path: Path, write_pool: Write) -> None:
    assert len(select(write_pool(20), tmp_path / "run").subset) == 8


def test_a_pool_that_the_teacher_rejects_is_an_error_with_the_first_reason(tmp_path: Path, write_pool: Write) -> None:
    everything = tuple(f"row-{index:04d}" for index in range(30))
    with pytest.raises(DataError, match=r"none of the 30 rows.*line 1 needs too much"):
        select(write_pool(30), tmp_path / "run", RuleTeacher(rejects=everything))


def test_a_pool_that_is_too_small_once_rejected_is_refused(tmp_path: Path, write_pool: Write) -> None:
    with pytest.raises(DataError, match="19 usable rows"):
        select(write_pool(22), tmp_path / "run", RuleTeacher(rejects=("row-0001", "row-0002", "row-0003")))


def test_lost_files_of_a_finished_stage_are_made_again(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    run = select(pool, tmp_path / "run")
    before = contents(run.path)
    for name in ("subset.jsonl", "student/student.json", "embeddings.npy"):
        (run.path / name).unlink()
    teacher = RuleTeacher()
    select(pool, tmp_path / "run", teacher)
    assert teacher.asked == []
    for name in ("subset.jsonl", "embeddings.npy", "student/student.safetensors", "fidelity.json"):
        assert contents(run.path)[name] == before[name]


def test_a_damaged_array_is_named_and_made_again(
    tmp_path: Path, write_pool: Write, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(40)
    run = select(pool, tmp_path / "run")
    before = (run.path / "embeddings.npy").read_bytes()
    (run.path / "embeddings.npy").write_bytes(b"not an array")
    select(pool, tmp_path / "run")
    assert "embeddings.npy is damaged" in caplog.text
    assert (run.path / "embeddings.npy").read_bytes() == before


def test_another_encoder_object_is_not_served_with_old_vectors(tmp_path: Path, write_pool: Write) -> None:
    pool = write_pool(40)
    select(pool, tmp_path / "run", encoder=HashEncoder(64))
    run = select(pool, tmp_path / "run", encoder=HashEncoder(32))
    assert np.load(run.path / "embeddings.npy").shape == (40, 32)
    assert nncift.Student.load(run.path / "student").encoder["dim"] == 32


def test_missing_labels_stay_out_and_are_reported(tmp_path: Path, write_pool: Write) -> None:
    class Holes(RuleTeacher):
        def label(self, chunk: Chunk) -> ChunkLabels:
            found = super().label(chunk)
            if chunk.source is not None:
                found.values[0] = np.nan
            return found

    run = select(write_pool(40), tmp_path / "run", Holes())
    assert any("do not fit the model's context" in warning for warning in run.warnings)
    assert run.ledger["teacher_passes"] < sum(run.summary["labels"].values())


class NotingTeacher(RuleTeacher):
    """Says how many rows it was given."""

    given = 0

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        self.given += len(examples)
        return super().prepare(examples)

    def notes(self) -> tuple[str, ...]:
        return (f"{self.given} rows were seen.",)


def test_what_a_teacher_notes_about_rows_is_a_warning_also_when_nothing_is_left_to_do(
    tmp_path: Path, write_pool: Write
) -> None:
    pool = write_pool(30)
    first = select(pool, tmp_path / "run", NotingTeacher())
    assert "30 rows were seen." in first.warnings
    again = select(pool, tmp_path / "run", NotingTeacher())
    assert again.warnings == first.warnings


def test_a_pool_of_examples_will_do(tmp_path: Path, write_pool: Write) -> None:
    assert len(select(nncift.read(write_pool(40)), tmp_path / "run").subset) == 8


@pytest.mark.parametrize(
    ("student", "recipe"),
    [
        ("paper", "default"),
        ("paper", "paper"),
        ("towers", "default"),
        ("product", "default"),
        ("landmark", "default"),
        ("ranker", "default"),
    ],
)
@pytest.mark.parametrize("plan", ["block", "scatter", "active"])
def test_every_plan_student_and_recipe_runs(
    tmp_path: Path, write_pool: Write, plan: str, student: str, recipe: str
) -> None:
    given: dict[str, Any] = {"plan": plan, "student": student, "recipe": recipe}
    run = select(write_pool(40), tmp_path / "run", **given, gate=False)
    assert (run.summary["plan"], run.summary["student"], len(run.subset)) == (plan, student, 8)
    assert nncift.Student.load(run.path / "student").network == student


@pytest.mark.parametrize("student", ["towers", "product"])
def test_the_published_recipe_belongs_to_the_papers_network(tmp_path: Path, write_pool: Write, student: str) -> None:
    with pytest.raises(UsageError, match=rf"--recipe paper is not one of the student {student}.*--student paper"):
        select(write_pool(40), tmp_path / "run", student=student, recipe="paper")
    assert not (tmp_path / "run").exists()


def test_every_planned_target_is_asked_once_alone(tmp_path: Path, write_pool: Write) -> None:
    teacher = RuleTeacher()
    run = select(write_pool(40), tmp_path / "run", teacher)
    assert len(teacher.asked) == len(set(teacher.asked)) == run.ledger["teacher_passes"]
    plan = PairLabelStore(run.path / "labels").plan
    assert plan is not None
    alone = [target for target, source in teacher.asked if source is None]
    assert len(alone) == (plan.entries.split == BASE).sum() == run.summary["labels"]["base"]


KILLED = """
import os, signal, sys
import nncift
from nncift.teachers import delift

label, left = delift.Delift.label, int(sys.argv[4])

def killed(self, chunk):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return label(self, chunk)

delift.Delift.label = killed
nncift.run(sys.argv[1], teacher=nncift.teachers.Delift(sys.argv[2]), encoder="hash", labels=0.3, budget=8, out=sys.argv[3])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_ends_with_the_same_bytes(
    tmp_path: Path, write_pool: Write, llama_folder: Path
) -> None:
    script = tmp_path / "go.py"
    script.write_text(textwrap.dedent(KILLED))
    command: list[str | Path] = [sys.executable, script, write_pool(40), llama_folder]
    subprocess.run([*command, tmp_path / "straight", "0"], check=True)
    for chunks in (3, 8):
        halted = subprocess.run([*command, tmp_path / "halting", str(chunks)], check=False)
        assert halted.returncode == -signal.SIGKILL
    assert not (tmp_path / "halting" / "summary.json").exists()
    subprocess.run([*command, tmp_path / "halting", "0"], check=True)
    assert labels_of(tmp_path / "halting") == labels_of(tmp_path / "straight")
    for name in ("subset.jsonl", "selection.parquet"):
        assert (tmp_path / "halting" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
