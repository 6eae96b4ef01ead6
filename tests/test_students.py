"""Students, features and plans end to end: a tiny model as teacher, files in, files out."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import nncift
from nncift import Run, explain
from nncift.errors import UsageError
from nncift.labels import TRAIN, PairLabelStore
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.runs.select_again import reselect
from nncift.stages.finish import score_file
from tests.hastened import hasten

Write = Callable[..., Path]
ROWS, NEW, EXISTING = 40, 6, 5


@pytest.fixture(autouse=True)
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)


def row(index: int) -> dict[str, str]:
    """Return an Alpaca row of words that the tiny tokenizer knows."""
    words = "sort list name add red blue green cat dog bird sky sea tree house".split()
    a, b, c = (words[(index * step + step) % len(words)] for step in (1, 3, 5))
    return {"id": f"row-{index:04d}", "instruction": f"{a} the {b} and {c} {words[index // 14]}", "output": f"{c} {a}"}


def write(path: Path, rows: range) -> Path:
    path.write_text("".join(json.dumps(row(index)) + "\n" for index in rows))
    return path


def select(pool: Any, model: Path, out: Path, **given: Any) -> Run:
    settings: dict[str, Any] = {
        "encoder": "hash",
        "labels": 0.3,
        "budget": 8,
        "gate": False,
        "features": "text",
        **given,
    }
    return nncift.run(pool, teacher=nncift.teachers.Delift(str(model)), out=out, **settings)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Return a folder with a run that read a probe and an existing set, with the model that it was made with."""
    folder = tmp_path_factory.mktemp("probed")
    shutil.copytree(llama_folder, folder / "model")
    write(folder / "pool.jsonl", range(ROWS))
    write(folder / "existing.jsonl", range(60, 60 + EXISTING))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        hasten(patch)
        select(
            folder / "pool.jsonl",
            folder / "model",
            folder / "run",
            features="probe",
            existing=folder / "existing.jsonl",
        )
    return folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the rows of every pass of a probe."""
    found: list[int] = []
    read = CausalLM.read

    def counting(self: CausalLM, rows: Sequence[Any], *given: Any, **more: Any) -> Any:
        found.append(len(rows))
        return read(self, rows, *given, **more)

    monkeypatch.setattr(CausalLM, "read", counting)
    return found


def summary(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return record


def test_a_probe_is_one_pass_per_row_and_every_pass_is_counted(probed: Path) -> None:
    record = summary(probed)
    stages, planned = record["ledger"]["stages"], sum(record["labels"].values())
    assert record["features"] == "probe"
    assert stages["probe"]["model_passes"] == ROWS
    assert stages["label"]["model_passes"] == planned
    assert record["ledger"]["teacher_passes"] == planned + ROWS + EXISTING
    assert record["ledger"]["saving"] == pytest.approx(1 - (planned + ROWS + EXISTING) / (ROWS * ROWS))
    assert stages["probe"]["model_tokens"] > 0


def test_the_free_rivals_of_a_probe_are_measured_beside_it(probed: Path) -> None:
    record = summary(probed)
    assert set(record["baselines"]) == {"mean", "additive", "cosine", "ridge", "hidden", "output", "sum"}
    for quadrants in record["baselines"].values():
        assert quadrants["q4"]["pairs"] == record["fidelity"]["q4"]["pairs"]


def test_new_rows_cost_one_pass_each_and_get_what_the_run_would_predict(
    probed: Path, passes: list[int], tmp_path: Path
) -> None:
    new = nncift.read(write(tmp_path / "new.jsonl", range(100, 100 + NEW)))
    record = score_file(new, probed / "run", tmp_path / "scores.parquet")
    assert sum(passes) == NEW
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [line["id"] for line in table] == list(new.ids)
    assert record.rows == NEW
    # The pool's own rows, as new ones: what the student says of their pairs, averaged.
    finished = FinishedRun(probed / "run")
    again = nncift.Student.load(probed / "run" / "student").score(nncift.read(probed / "pool.jsonl"))
    targets, sources = finished._axes
    block = finished.student.predict_block(targets.projected, sources.projected)
    means = dict(zip(finished.rows.ids, block.mean(axis=0), strict=True))
    assert again.score == pytest.approx([means[item] for item in again.ids], abs=1e-4)


def test_another_model_in_the_same_place_is_refused(probed: Path, tmp_path: Path) -> None:
    new = nncift.read(write(tmp_path / "new.jsonl", range(3)))
    student = nncift.Student.load(probed / "run" / "student")
    path = probed / "model" / "model.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    name = sorted(weights)[0]
    try:
        save_file({**weights, name: weights[name] * np.float32(1.01)}, path, metadata={"format": "pt"})
        with pytest.raises(UsageError, match="model differ now; give the model that the run was made with"):
            student.score(new)
    finally:
        path.write_bytes(before)
    assert len(student.score(new).ids) == 3


def test_a_finished_run_with_a_probe_is_selected_from_and_explained_without_its_model(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(CausalLM, "load", refuse)
    before = [json.loads(line)["id"] for line in (probed / "run" / "subset.jsonl").read_text().splitlines()]
    reselect(probed / "run", {"budget": "4"}, tmp_path / "small")
    after = [json.loads(line)["id"] for line in (tmp_path / "small" / "subset.jsonl").read_text().splitlines()]
    assert after == before[:4]
    record = explain(probed / "run", before[0])
    assert record["id"] == before[0]
    assert record["rank"] == 1


def test_running_again_probes_nothing(probed: Path, passes: list[int], llama_folder: Path) -> None:
    before = (probed / "run" / "subset.jsonl").read_bytes()
    given = {"features": "probe", "existing": probed / "existing.jsonl"}
    select(probed / "pool.jsonl", probed / "model", probed / "run", **given)
    assert passes == []
    assert (probed / "run" / "subset.jsonl").read_bytes() == before


def test_more_rows_are_probed_alone(tmp_path: Path, llama_folder: Path, passes: list[int]) -> None:
    given: dict[str, Any] = {"features": "probe", "labels": 150}
    select(write(tmp_path / "pool.jsonl", range(30)), llama_folder, tmp_path / "run", **given)
    assert sum(passes) == 30
    run = select(write(tmp_path / "pool.jsonl", range(33)), llama_folder, tmp_path / "run", **given)
    assert sum(passes) == 33
    assert np.load(run.path / "probe.npy").shape[0] == 33


@pytest.mark.parametrize("teacher", ["length", "delift-se"])
def test_a_probe_needs_a_model_and_says_so_before_anything_is_written(
    tmp_path: Path, write_pool: Write, teacher: str
) -> None:
    with pytest.raises(UsageError, match=f"--features probe needs a teacher with a language model; {teacher} has none"):
        nncift.run(write_pool(40), teacher=teacher, encoder="hash", features="probe", budget=8, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Dear(nncift.teachers.Loss):  # type: ignore[misc]
    """A teacher of which a student saves something, though it reads a probe."""

    row_passes = 10


def test_a_pointwise_teacher_can_have_a_probe(tmp_path: Path, write_pool: Write, llama_folder: Path) -> None:
    left = {}
    for features in ("text", "probe"):
        teacher = Dear(str(llama_folder))
        given: dict[str, Any] = {"features": features, "labels": 0.7, "test_items": 10}
        run = nncift.run(write_pool(100), teacher=teacher, encoder="hash", budget=8, out=tmp_path / features, **given)
        assert len(run.subset) == 8
        left[features] = 1 - run.summary["fidelity"]["q4"]["r2"]
    # The probe knows the loss itself.
    assert left["probe"] < 0.5 * left["text"]


@pytest.mark.parametrize("student", ["paper", "towers", "product", "landmark", "ranker"])
def test_students_score_new_rows_from_a_saved_run(
    tmp_path: Path, llama_folder: Path, student: str, write_pool: Write
) -> None:
    run = select(write(tmp_path / "pool.jsonl", range(ROWS)), llama_folder, tmp_path / "run", student=student)
    found = nncift.Student.load(run.path / "student")
    assert (found.network, found.about["used"]) == (student, "student")
    assert np.isfinite(found.score(nncift.read(write(tmp_path / "new.jsonl", range(50, 54)))).score).all()


def test_the_gate_leaves_what_it_chose(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nncift.evaluation import gate

    pool = write(tmp_path / "pool.jsonl", range(ROWS))
    choose = gate.choose

    def free(blocks: Any, names: Any, **given: Any) -> gate.Gate:
        assert "cosine" in names
        return replace(choose(blocks, names, **given), used="cosine")

    # A rule by similarity, so that the cosine's slope is positive and it is a candidate.
    monkeypatch.setattr(gate, "choose", free)
    run = nncift.run(pool, teacher="delift-se", encoder="hash", labels=0.3, budget=8, out=tmp_path / "run")
    student = nncift.Student.load(run.path / "student")
    assert run.summary["gate"]["used"] == student.about["used"] == "cosine"
    vectors = np.load(run.path / "embeddings.npy")
    finished = FinishedRun(run.path)
    targets, sources = finished._axes
    block = finished.student.predict_block(targets.projected, sources.projected)
    cosine = vectors @ vectors.T
    line = np.polyfit(cosine.ravel(), block.ravel(), 1)
    assert block == pytest.approx(np.polyval(line, cosine), abs=1e-5)


@pytest.mark.parametrize("labels", [{"plan": "scatter"}, {"teacher": "delift-se", "labels": 0.5}])
def test_another_student_that_the_gate_chose_serves_a_run_in_full(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, labels: dict[str, Any]
) -> None:
    from nncift.evaluation import gate

    choose = gate.choose

    def other(blocks: Any, names: Any, **given: Any) -> gate.Gate:
        assert "landmark" in names
        return replace(choose(blocks, names, **given), used="landmark")

    monkeypatch.setattr(gate, "choose", other)
    pool = write(tmp_path / "pool.jsonl", range(ROWS))
    teacher = nncift.teachers.Delift(str(llama_folder))
    given: dict[str, Any] = {
        "teacher": teacher,
        "encoder": "hash",
        "labels": 0.3,
        "budget": 8,
        "features": "text",
        **labels,
    }
    run = nncift.run(pool, out=tmp_path / "run", **given)
    student = nncift.Student.load(run.path / "student")
    assert (run.summary["student"], run.summary["gate"]["used"]) == ("product", "landmark")
    assert (student.network, student.about["used"]) == ("landmark", "landmark")
    # What is stored of it selects, scores, is refitted and explained as any student is.
    assert run.summary["selection"]["stability"]["refits"] > 0
    assert np.isfinite(student.score(nncift.read(write(tmp_path / "new.jsonl", range(50, 54)))).score).all()
    assert explain(run.path, run.selected_ids[0])
    again = reselect(run.path, {"budget": "8"}, tmp_path / "again")
    assert FinishedRun(Path(again.out)).chosen == run.selected_ids
    same = nncift.run(pool, out=tmp_path / "run", **given)
    assert same.selected_ids == run.selected_ids


def train_labels(run: Path) -> dict[tuple[str, str], int]:
    """Return the training pairs of a run with the generation that planned each."""
    plan = PairLabelStore(run / "labels").plan
    assert plan is not None
    found = {}
    for number, entries in enumerate(plan.generations):
        for t, s, split in zip(entries.target, entries.source, entries.split, strict=True):
            if split == TRAIN:
                found[plan.target_ids[t], plan.source_ids[s]] = number
    return found


def test_an_active_run_labels_in_rounds_as_much_as_was_asked_for(tmp_path: Path, llama_folder: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", range(ROWS))
    run = select(pool, llama_folder, tmp_path / "run", plan="active", labels=200)
    found = train_labels(run.path)
    assert np.bincount(list(found.values())).tolist() == [100, 50, 50]
    assert run.summary["labels"]["train"] == 200
    assert run.ledger["teacher_passes"] == sum(run.summary["labels"].values())


def test_the_order_of_lines_means_nothing_to_an_active_plan(tmp_path: Path, llama_folder: Path) -> None:
    one = select(write(tmp_path / "one.jsonl", range(ROWS)), llama_folder, tmp_path / "a", plan="active", labels=200)
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    (tmp_path / "two.jsonl").write_text("\n".join([*lines[25:], *lines[:25]]) + "\n")
    two = select(tmp_path / "two.jsonl", llama_folder, tmp_path / "b", plan="active", labels=200)
    assert train_labels(two.path).keys() == train_labels(one.path).keys()
    assert two.subset.ids == one.subset.ids


KILLED = """
import sys
import nncift
from nncift.teachers import delift

label, left = delift.Delift.label, [int(sys.argv[4])]

def counted(self, chunk):
    found = label(self, chunk)
    left[0] -= 1
    if left[0] == 0:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return found

delift.Delift.label = counted
nncift.run(
    sys.argv[1], teacher=nncift.teachers.Delift(sys.argv[2]), encoder="hash", labels=200, plan="active", budget=8,
    features="probe", out=sys.argv[3],
)
"""


@pytest.mark.slow
def test_an_active_run_that_is_killed_in_every_round_ends_with_the_same_bytes(
    tmp_path: Path, llama_folder: Path
) -> None:
    script = tmp_path / "go.py"
    script.write_text(textwrap.dedent(KILLED))
    pool = write(tmp_path / "pool.jsonl", range(ROWS))

    def go(out: str, chunks: int) -> int:
        command: list[str | Path] = [sys.executable, script, pool, llama_folder, tmp_path / out, str(chunks)]
        return subprocess.run(command, check=False).returncode

    assert go("straight", -1) == 0
    for chunks in (5, 37, 20, 20):
        assert go("halting", chunks) == -signal.SIGKILL
    assert go("halting", -1) == 0
    kept = [*(tmp_path / "straight" / "labels").glob("values-*.npy"), *(tmp_path / "straight" / "labels").glob("plan*")]
    names = [
        "subset.jsonl",
        "selection.parquet",
        "fidelity.json",
        *(str(p.relative_to(tmp_path / "straight")) for p in kept),
    ]
    assert len(names) > 4
    for name in names:
        assert (tmp_path / "halting" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_an_active_run_that_is_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write(tmp_path / "pool.jsonl", range(ROWS))
    given: dict[str, Any] = {"plan": "active", "labels": 200}
    straight = select(pool, llama_folder, tmp_path / "straight", **given)
    label = nncift.teachers.Delift.label
    asked: list[tuple[str | None, tuple[str, ...]]] = []

    def stopping(self: Any, chunk: Any) -> Any:
        if len(asked) in stops:
            stops.remove(len(asked))
            raise KeyboardInterrupt
        found = label(self, chunk)
        asked.append((chunk.source, chunk.targets))
        return found

    plan = PairLabelStore(straight.path / "labels").plan
    assert plan is not None
    first = len(plan.chunks_of(0))
    stops = {first // 2, first, first + 3, plan.chunks - 1}
    monkeypatch.setattr(nncift.teachers.Delift, "label", stopping)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            select(pool, llama_folder, tmp_path / "halting", **given)
    halting = select(pool, llama_folder, tmp_path / "halting", **given)
    assert len(asked) == len(set(asked)) == plan.chunks
    names = [path.relative_to(straight.path) for path in (straight.path / "labels").glob("values-???.npy")]
    assert len(names) == 3
    for name in (Path("subset.jsonl"), Path("selection.parquet"), *names):
        assert (halting.path / name).read_bytes() == (straight.path / name).read_bytes()
