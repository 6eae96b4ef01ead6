from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.config import RunSettings
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.errors import DataError, InfeasibleError, NnciftError, UsageError
from nncift.labels import LabelBudget, grow
from nncift.labels.row_labels import grow_rows
from nncift.models.encoders import HashEncoder, SentenceEncoder
from nncift.pipeline import execute
from nncift.stages.estimate import cost, estimate
from nncift.stages.request import Request
from nncift.stages.timing import Share, Trials, typical
from nncift.teachers import Chunk, ChunkLabels, RowLabels
from nncift.teachers.less import Less
from nncift.teachers.registry import create
from tests.test_encode import as_sentence_model

pytestmark = pytest.mark.usefixtures("hastened")


def estimated(settings: RunSettings, pool: Examples, teacher: Any, target: Examples | None = None) -> dict[str, Any]:
    return estimate(
        Request.resolve(settings, pool=pool, teacher=teacher, target=target, encoder=HashEncoder())
    ).to_json()


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


def test_a_cap_in_time_times_nothing_twice(write_pool: Callable[..., Path]) -> None:
    asked = []
    for time in (None, "1h"):
        chunks: list[Chunk] = []
        texts: list[str] = []

        class Counted(Priced):
            def label(self, chunk: Chunk, into: list[Chunk] = chunks) -> ChunkLabels:
                into.append(chunk)
                return super().label(chunk)

        class Counting(HashEncoder):
            def encode(self, given: Sequence[str], into: list[str] = texts) -> Any:
                into.extend(given)
                return super().encode(given)

        settings = RunSettings(labels="20%", budget="10", time=time)
        request = Request.resolve(settings, pool=read(write_pool(50)), teacher=Counted(), encoder=Counting())
        assert estimate(request).labels["train"] == 100
        asked.append((len(chunks), len(texts)))
    assert asked[0] == asked[1]
    assert min(asked[0]) > 0


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


def test_items_of_about_the_mean_size_are_timed_as_far_as_they_fit() -> None:
    sizes = [10, 400, 100, 90, 130, 900]
    # The mean is 271.7: the nearest that fit.
    assert typical(sizes, 500) == [1, 2]
    assert typical(sizes, 300) == [4, 2, 0]
    assert typical(sizes, 5) == []


def test_a_trial_ends_with_its_tokens_and_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.process_time", lambda: clock[1])

    def timed(second_a_token: float) -> tuple[list[int], float, float]:
        done: list[int] = []

        def do(places: list[int]) -> None:
            done.extend(places)
            clock[0] += second_a_token * 100 * len(places)
            clock[1] += second_a_token * 50 * len(places)

        trials = Trials()
        pace = trials.pace([100.0] * 20, do, Share(500, 2.0))
        return done, pace.clock, pace.processor

    # The first goes untimed, and once more.
    done, clock_pace, processor_pace = timed(0.001)
    assert done == [0, 0, 0, 1, 2]
    assert clock_pace == pytest.approx(0.001)
    assert processor_pace == pytest.approx(0.0005)
    assert timed(0.012)[0] == [0, 0, 0]
    done, clock_pace, processor_pace = timed(0.1)
    assert done == [0, 0]
    assert clock_pace == pytest.approx(0.1)
    assert processor_pace == pytest.approx(0.05)


CASES: dict[str, dict[str, Any]] = {
    "delift": {"labels": "30%", "features": "probe", "probe_share": "50%"},
    "less": {
        "labels": "30%",
        "features": "probe",
        "option": {"projection": 32, "rank": 2, "epochs": 2, "warmup_share": 0.1},
    },
    "selectit": {"labels": "30%"},
    "ifd": {"labels": "30%"},
    "rds": {"labels": "30%"},
    "ica": {"labels": "30%", "features": "text"},
}


@pytest.mark.parametrize("name", CASES)
def test_passes_and_tokens_are_those_of_the_run(
    name: str, write_pool: Callable[..., Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Whose tokenizer knows digits.
    folder = request.getfixturevalue("gpt2_folder" if name == "selectit" else "llama_folder")
    given: dict[str, Any] = {"teacher": name, "model": str(folder), "budget": "10", "device": "cpu", **CASES[name]}
    if name == "selectit":
        prompts = tmp_path / "prompts.yaml"
        prompts.write_text("- 'rate {prompt} {response} from 1 to 5:'\n- 'how good is {prompt} {response}?'\n")
        given["option"] = {"rating_prompts": str(prompts)}
    settings = RunSettings(pool=(str(write_pool(40)),), encoder="hash", **given)
    record = estimate(Request.resolve(settings)).to_json()
    assert None not in (record["label"]["seconds"], record["label"]["processor_seconds"])
    stages = execute(Request.resolve(settings, out=tmp_path / "run"), tmp_path / "run").ledger["stages"]
    assert ("probe" in stages) == (record["probe"]["passes"] > 0) == (name in ("delift", "less"))
    for part in {"label", "embed", "probe"} & stages.keys():
        found = (record[part]["passes"], record[part]["tokens"])
        assert found == (stages[part]["model_passes"], stages[part]["model_tokens"]), part
    assert record["total"]["processor_seconds"] == pytest.approx(
        sum(record[part]["processor_seconds"] for part in ("learn", "measure", "probe", "embed")), abs=0.03
    )


def test_an_encoder_is_timed_without_its_weights(
    write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path
) -> None:
    folder = as_sentence_model(llama_folder, tmp_path / "encoder", {})
    pool, settings = read(write_pool(50)), RunSettings(labels="20%", budget="10", device="cpu")
    encoder = SentenceEncoder(str(folder), device="cpu")
    encoder._tokenizer.pad_token = encoder._tokenizer.eos_token  # type: ignore[union-attr]
    record = estimate(Request.resolve(settings, pool=pool, teacher=Priced(), encoder=encoder)).to_json()
    assert "model" not in vars(encoder)
    assert record["embed"]["seconds"] > 0
    counts = encoder.encode(pool.texts)[1]
    assert record["embed"]["tokens"] == np.minimum(counts, 9).sum()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"model": "/nowhere"}, "/nowhere"), ({"encoder": "/nothing"}, "/nothing"), ({"device": "warp"}, "warp")],
)
def test_what_is_missing_is_told_before_rows_are_read(given: dict[str, Any], said: str, llama_folder: Path) -> None:
    settings = RunSettings(
        **{"pool": ("no-such-file.jsonl",), "model": str(llama_folder), "encoder": "hash", "budget": "10", **given}
    )
    with pytest.raises(NnciftError, match=said):
        Request.resolve(settings)


def test_a_directory_that_a_run_cannot_have_is_told_before_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    settings = RunSettings(pool=("no-such-file.jsonl",), teacher="length", encoder="hash", budget="10")
    with pytest.raises(UsageError, match="holds other things"):
        Request.resolve(settings, out=tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        Request.resolve(settings, out=tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no such file"):
        Request.resolve(settings, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
