"""Labels that grow: how far, when it is enough, and what happens where it never is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

import nncift
from nncift import Run, config
from nncift.core.seeds import derive
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.errors import QualityError, UsageError
from nncift.evaluation.fidelity import FidelityReport, Measures
from nncift.evaluation.gate import GateRecord, SkillRecord
from nncift.evaluation.intervals import PairInterval
from nncift.labels import LabelBudget
from nncift.labels.store import Axes
from nncift.stages import fit as fitting
from nncift.stages import label_rounds as growing
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
from nncift.teachers import Chunk, ChunkLabels

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]


def sizes(write_pool: Write, *, by_row: bool = False, have: int = 0, **given: Any) -> list[str]:
    axes = Axes(read(write_pool(40)), pointwise=by_row)
    settings = config.resolve({"plan": "rows" if by_row else "scatter", **given})
    return [str(each) for each in remaining(label_budgets(settings, axes), axes, have)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [  # 40 * 40 pairs: a twentieth of them is where `auto` starts, a quarter of each axis is 10 * 10 pairs.
        ({"labels": "auto"}, ["80", "100"]),
        ({"labels": "auto", "max_labels": 500}, ["80", "160", "320", "500"]),
        ({"labels": "auto", "max_labels": "50%"}, ["80", "160", "320", "400"]),
        ({"labels": "auto", "max_labels": 500, "have": 161}, ["320", "500"]),
        ({"labels": "auto", "max_labels": 500, "have": 900}, ["500"]),
        ({"labels": 60, "min_skill": 0.5, "max_labels": 200}, ["60", "120", "200"]),
        ({"labels": "20%", "min_spearman": 0.5, "max_labels": "40%"}, ["64", "128", "256"]),
        ({"labels": 60, "min_skill": 0.5}, ["60"]),
        ({"labels": 60}, ["60"]),
        ({"labels": "auto", "by_row": True}, ["5%", "10%", "20%", "25%"]),
        ({"labels": "auto", "max_labels": "30%", "have": 5, "by_row": True}, ["20%", "30%"]),
    ],
)
def test_rounds_double_from_the_start_to_the_end(write_pool: Write, given: dict[str, Any], expected: list[str]) -> None:
    assert sizes(write_pool, **given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_labels": 100}, "it goes with --labels auto, --min-spearman or --min-skill"),
        ({"labels": 300, "min_skill": 0.1, "max_labels": 100}, "--labels starts at 300 and --max-labels ends at 100"),
        ({"labels": "auto", "max_labels": "many"}, "--max-labels 'many' was given"),
    ],
)
def test_ends_that_make_no_sense_are_refused(write_pool: Write, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sizes(write_pool, **given)


class Scripted:
    """Rounds whose fidelity is written down beforehand."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, reached: list[dict[str, Any]], **given: Any) -> None:
        settings = config.resolve({"labels": "auto", **given})
        self.rounds = [LabelBudget(None, 100 * 2**k) for k in range(len(reached))]
        self.fitted = 0
        directory = SimpleNamespace(read_json=lambda name, default: default, file=lambda name: folder / name)
        executor = SimpleNamespace(partial=False)
        self.work: Any = SimpleNamespace(directory=directory, settings=settings, executor=executor)
        patch.setattr(growing, "plan_labels", lambda *_: None)
        patch.setattr(growing, "label", lambda work, axes, plan, budget, vectors: {"train": range(budget.count)})

        def fit(*_: Any) -> tuple[None, FidelityReport]:
            now = reached[self.fitted]
            self.fitted += 1
            q4 = Measures(None, None, now.get("r2", 0.0), None, now["spearman"], None, None, None, 9, 3, 3, 0)
            skill = {} if now["skill"] is None else {"student": SkillRecord(now["skill"], 0.1, (0.0, 1.0))}
            gate, interval = GateRecord("student", "fl", 0.1, 3, 9, skill), PairInterval(None, 0.9, None, 3)
            return None, FidelityReport({"q4": q4}, {}, {}, (), 0, 0.0, 1, "", interval, gate, 0, {})

        patch.setattr(fitting, "fit_student", fit)

    def label_in_rounds(self) -> list[dict[str, Any]]:
        report = label_in_rounds(self.work, None, None, None, self.rounds)[2]  # type: ignore[arg-type]
        return [step.to_json() for step in report.growth]


def reaching(*spearman: float | None, skill: float = 0.0) -> list[dict[str, Any]]:
    return [{"spearman": value, "skill": skill} for value in spearman]


def test_auto_stops_after_the_first_round_that_brings_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(tmp_path, monkeypatch, reaching(0.1, 0.3, 0.305, 0.9))
    assert [step["labels"] for step in scripted.label_in_rounds()] == [100, 200, 400]
    assert scripted.fitted == 3
    assert (tmp_path / "growth.json").exists()


def test_a_gain_in_either_measure_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = [{"spearman": 0.3, "r2": r2, "skill": 0.0} for r2 in (0.1, 0.2, 0.2)]
    assert len(Scripted(tmp_path, monkeypatch, reached).label_in_rounds()) == 3


def test_a_gate_ends_labelling_once_it_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(tmp_path, monkeypatch, reaching(0.2, 0.4, 0.6), labels=100, min_spearman=0.4, max_labels=400)
    assert [step["spearman"] for step in scripted.label_in_rounds()] == [0.2, 0.4]


def test_auto_does_not_stop_below_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(tmp_path, monkeypatch, reaching(0.2, 0.2, 0.6, 0.9), min_spearman=0.5)
    assert [step["spearman"] for step in scripted.label_in_rounds()] == [0.2, 0.2, 0.6, 0.9]


@pytest.mark.parametrize(
    ("gates", "reached", "said"),
    [
        ({"min_spearman": 0.5}, reaching(0.1, 0.31), r"--min-spearman 0\.5.*unseen items is 0\.310, with 200 labels"),
        ({"min_skill": 0.8}, reaching(0.1, 0.1, skill=0.25), r"--min-skill 0\.8.*held-out items is 0\.250, with 200"),
        ({"min_spearman": 0.5}, reaching(None, None), "is none that can be measured"),
        ({"min_spearman": 0.5, "min_skill": 0.9}, reaching(0.1, 0.2), r"--min-spearman 0\.5.*; --min-skill 0\.9"),
    ],
)
def test_a_gate_that_is_never_reached_is_an_error_with_what_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gates: dict[str, float], reached: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(QualityError, match=said) as caught:
        Scripted(tmp_path, monkeypatch, reached, **gates).label_in_rounds()
    assert caught.value.exit_code == 5
    assert "the labels are kept" in str(caught.value)


class Rule:
    """Labels by a rule on ids; counts what it is asked."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True

    def __init__(self, stop_after: int | None = None) -> None:
        self.options: Mapping[str, Any] = {"teacher": "delift", "model": "rule"}
        self.asked: list[tuple[str, str | None]] = []
        self._chunks, self._stop_after = 0, stop_after

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        if self._chunks == self._stop_after:
            raise KeyboardInterrupt
        self._chunks += 1
        self.asked += [(target, chunk.source) for target in chunk.targets]
        values = [0.5 if chunk.source is None else derive(7, t, chunk.source) % 1000 / 2000 for t in chunk.targets]
        return ChunkLabels(np.array(values, np.float32), len(values))

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "rule"}


def select(pool: Path, out: Path, teacher: Rule, **given: Any) -> Run:
    return nncift.run(pool, teacher=teacher, out=out, encoder="hash", budget=8, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


AUTO: dict[str, Any] = {"labels": "auto", "max_labels": 320}


def test_a_finished_auto_run_repeats_nothing(tmp_path: Path, write_pool: Write) -> None:
    pool, first, second = write_pool(40), Rule(), Rule()
    run = select(pool, tmp_path / "run", first, **AUTO)
    growth = run.summary["growth"]
    assert len(growth) >= 2
    assert [step["labels"] for step in growth] == [80, 160, 320][: len(growth)]
    assert len(first.asked) == len(set(first.asked)) == run.ledger["teacher_passes"]
    before = contents(run.path)
    again = select(pool, tmp_path / "run", second, **AUTO)
    assert second.asked == []
    assert again.subset.ids == run.subset.ids
    assert contents(run.path)["subset.jsonl"] == before["subset.jsonl"]
    assert again.summary["labels"] == run.summary["labels"]
    assert again.summary["growth"] == run.summary["growth"]


@pytest.mark.parametrize("stop_after", [3, 60])
def test_an_auto_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, write_pool: Write, stop_after: int
) -> None:
    pool, stopped, rest = write_pool(40), Rule(stop_after), Rule()
    straight = select(pool, tmp_path / "straight", Rule(), **AUTO)
    with pytest.raises(KeyboardInterrupt):
        select(pool, tmp_path / "halting", stopped, **AUTO)
    halting = select(pool, tmp_path / "halting", rest, **AUTO)
    assert not set(stopped.asked) & set(rest.asked)
    assert halting.summary["growth"] == straight.summary["growth"]
    assert halting.summary["labels"] == straight.summary["labels"]
    assert (halting.path / "subset.jsonl").read_bytes() == (straight.path / "subset.jsonl").read_bytes()


def test_a_missed_gate_selects_nothing_and_a_lower_one_goes_on_from_its_labels(
    tmp_path: Path, write_pool: Write
) -> None:
    pool, first, second = write_pool(40), Rule(), Rule()
    with pytest.raises(QualityError, match=r"--min-spearman 1 was asked for.*with 160 labels"):
        select(pool, tmp_path / "run", first, labels=80, max_labels=160, min_spearman=1)
    assert not (tmp_path / "run" / "subset.jsonl").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    run = select(pool, tmp_path / "run", second, labels=160, min_spearman=-1)
    assert second.asked == []
    assert (len(run.subset), run.summary["labels"]["train"]) == (8, 160)
