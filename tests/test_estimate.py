from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.config import RunSettings
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.labels import LabelBudget, grow
from nncift.labels.row_labels import grow_rows
from nncift.models.encoders import HashEncoder
from nncift.stages.estimate import cost, estimate
from nncift.stages.request import Request
from nncift.teachers import Chunk, ChunkLabels, RowLabels
from nncift.teachers.less import Less
from nncift.teachers.registry import create


def estimated(settings: RunSettings, pool: Examples, teacher: Any, target: Examples | None = None) -> dict[str, Any]:
    return estimate(Request.resolve(settings, pool=pool, teacher=teacher, target=target, encoder=HashEncoder()))


class Priced:
    """A teacher whose chunks cost 7 tokens to begin and 3 for each target."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True
    options: Mapping[str, Any] = {"teacher": "delift"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(np.zeros(len(chunk.targets), np.float32), 7 + 3 * len(chunk.targets))

    def describe(self) -> Mapping[str, Any]:
        return {}


def test_an_active_plan_is_priced_with_all_its_rounds(write_pool: Callable[..., Path]) -> None:
    pool = read(write_pool(50))
    record = {
        plan: estimated(RunSettings(labels="20%", plan=plan, budget="10"), pool, Priced())["labels"]
        for plan in ("scatter", "active")
    }
    assert record["active"] == record["scatter"]
    assert record["active"]["train"] == 100


def test_tokens_are_extrapolated_from_the_start_of_a_chunk_and_its_targets(write_pool: Callable[..., Path]) -> None:
    pool = read(write_pool(50))
    record = estimated(RunSettings(labels="20%", budget="10"), pool, Priced())
    plan = grow(None, pool.ids, pool.ids, LabelBudget(0.2, None), 0, shared=True, relative=True)
    passes = len(plan.entries)
    assert record["label"]["passes"] == passes
    assert record["label"]["tokens"] == pytest.approx(7 * plan.chunks + 3 * passes, rel=0.01)
    assert record["full_teacher"]["passes"] == 50 * 49 + 50
    assert record["saving"] == pytest.approx(1 - passes / 2500)
    assert (record["pool"], record["selected"]) == (50, 10)
    assert record["bytes"]["matrix_in_memory"] == 2 * 4 * 50 * 50


@pytest.mark.parametrize("given", ["pool", "target"])
def test_rows_that_the_teacher_refuses_end_as_the_run_does(
    write_pool: Callable[..., Path], tmp_path: Path, given: str
) -> None:
    from nncift.pipeline import run

    class Refusing(Priced):
        def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
            rows = [row for row in examples if given == "pool" or row.id.startswith("target:")]
            return tuple(Rejection(row.source, row.line, "no column 'score'") for row in rows)

    pool = read(write_pool(50))
    settings: dict[str, Any] = {"labels": "20%", "budget": "10"}
    target = pool[:5] if given == "target" else None
    said = []
    for attempt in (
        lambda: estimated(RunSettings(**settings), pool, Refusing(), target=target),
        lambda: run(pool, out=tmp_path / "run", teacher=Refusing(), encoder=HashEncoder(), target=target, **settings),
    ):
        with pytest.raises(DataError, match=r"none of the .* rows .*can be labelled .* no column 'score'") as caught:
            attempt()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_wish_that_cannot_be_met_costs_nothing(write_pool: Callable[..., Path]) -> None:
    class Untouched(Priced):
        def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
            raise AssertionError("the teacher was used")

    with pytest.raises(InfeasibleError):
        estimated(RunSettings(budget="51"), read(write_pool(50)), Untouched())


class Measured:
    """A pairwise teacher paid by the row: three passes and thirty tokens each."""

    name = "measured"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    width, row_passes = 2, 3
    options: Mapping[str, Any] = {"teacher": "measured"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(np.ones((len(ids), 2), np.float32), 30 * len(ids), 3 * len(ids))

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "measured"}


@pytest.mark.parametrize("targets", [0, 20])
def test_rows_are_counted_as_planned(write_pool: Callable[..., Path], targets: int) -> None:
    pool = read(write_pool(50))
    target = read(write_pool(targets, "target.jsonl")) if targets else None
    settings = RunSettings(labels="20%", budget="10", objective="topk")
    record = estimated(settings, pool, Measured(), target=target)
    # To learn from, to test and to validate; the target set is measured whole.
    rows = 10 + 5 + 4 + targets
    assert record["labels"]["rows"] == rows
    assert (record["label"]["passes"], record["label"]["tokens"]) == (3 * rows, 30 * rows)
    assert record["full_teacher"]["passes"] == 3 * (50 + targets)
    assert record["saving"] == pytest.approx(1 - rows / (50 + targets))
    assert record["embed"]["rows"] == 50 + targets
    assert record["bytes"]["labels"] == rows * 2 * 4


def test_a_warm_up_is_counted_and_not_run(
    write_pool: Callable[..., Path], llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the warm-up was run")

    monkeypatch.setattr("nncift.teachers.less_warmup._epoch", refuse)
    settings = RunSettings(
        teacher="less",
        model=str(llama_folder),
        labels="20%",
        budget="10",
        option={"lora": False, "projection": 32, "epochs": 2, "warmup_share": 0.1},
    )
    record = estimated(settings, read(write_pool(50)), create(settings, "cpu"))
    # One update an epoch: both epochs train, and gradients are taken behind the last.
    assert record["label"]["passes"] == 19 + 2 * 5
    assert record["full_teacher"]["passes"] == 50 + 2 * 5
    assert any(note.startswith("LESS takes gradients at 1 checkpoint instead of 2") for note in record["notes"])
    assert record["bytes"]["labels"] == 19 * (2 * 32 + 2) * 2


def test_the_cost_of_a_plan_is_counted_for_the_teacher_it_is_for(
    write_pool: Callable[..., Path], llama_folder: Path
) -> None:
    pool = read(write_pool(40))
    less = Less(str(llama_folder), projection=32, rank=2, epochs=3, checkpoints=3, warmup_share=0.25, device="cpu")
    less.prepare(pool)
    plan = grow_rows(None, pool.ids, pool.ids, LabelBudget(0.2, None, "rows", 4, 4), 0, shared=True)
    planned, full = cost(plan, less, pool)
    assert planned.passes == 3 * len(plan.measured) + 3 * 10
    assert full.passes == 3 * 40 + 3 * 10
    assert 0 < (planned.tokens or 0) < (full.tokens or 0)
    assert 0 < (planned.seconds or 0) < (full.seconds or 0)
    with pytest.raises(UsageError, match="does not fit the teacher delift"):
        cost(plan, Priced(), pool)
