"""Labels cut to a share of training or to a time: by hand, and on runs that stop, go on and grow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import nncift
from nncift import Run, config, pipeline
from nncift.core.amounts import CostCap, TimeCap
from nncift.core.seeds import derive
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.distributed.start import executor_of
from nncift.errors import InfeasibleError, UsageError
from nncift.labels.store import Axes
from nncift.models.encoders import HashEncoder
from nncift.stages.allowance import Allowance, Passes, allow
from nncift.stages.estimate import estimate
from nncift.stages.label_rounds import label_budgets
from nncift.stages.request import Request, affordable_probe
from nncift.stages.timing import Rates
from nncift.teachers import Chunk, ChunkLabels, RowLabels
from nncift.teachers.less_warmup import Recipe

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Pairs:
    """Labels by a rule on ids, without a base label; counts what it is asked."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = False

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {"teacher": "delift", "model": "rule"}
        self.asked = 0

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        self.asked += len(chunk.targets)
        values = [derive(7, target, str(chunk.source)) % 1000 / 2000 for target in chunk.targets]
        return ChunkLabels(np.array(values, np.float32), 2 * len(values))

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "rule"}


class Gradients:
    """Two gradient passes a row, after a warm-up of seven."""

    name = "gradients"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    width = 3
    pass_weight, row_passes = 3, 2
    warm_up_passes, warm_up_tokens = 7, 70
    options: Mapping[str, Any] = {"teacher": "gradients"}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def warm_up(self) -> None:
        """There is nothing to train."""

    def without_warm_up(self) -> "Gradients":
        return self

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        self.asked += ids
        values = [[derive(place, item) % 1000 / 1000 for place in range(3)] for item in ids]
        return RowLabels(np.array(values, np.float32), 20 * len(ids), 2 * len(ids))

    def tokens_of(self, ids: Sequence[str]) -> int:
        return 20 * len(ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        return np.asarray(targets @ sources.T / 3, np.float32)

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "gradients"}


class Once(Gradients):
    """A forward pass a row, and nothing before."""

    pass_weight, row_passes = 1, 1
    warm_up_passes = warm_up_tokens = 0


class Sized:
    """As many rows as asked for, of which nothing else is known."""

    def __init__(self, rows: int) -> None:
        self.ids = tuple(f"row-{index}" for index in range(rows))

    def __len__(self) -> int:
        return len(self.ids)


class Both(Axes):
    """Axes whose rows are only counted."""

    @property
    def rows(self) -> Any:
        return range(len(self.sources) + len(self.targets or ()))


def unread() -> Rates:
    raise AssertionError("passes were timed")


def allowed(
    rows: int,
    teacher: Any = None,
    rates: Callable[[], Rates] = unread,
    have: int = 0,
    targets: Sized | None = None,
    **given: Any,
) -> tuple[Allowance, Passes]:
    teacher = teacher or Pairs()
    by_row = isinstance(teacher, Gradients)
    settings = config.resolve({"plan": "rows" if by_row else "scatter", **given})
    axes = Both(Sized(rows), targets)  # type: ignore[arg-type]
    passes = Passes.of(settings, axes, teacher)
    return allow(settings, label_budgets(settings, axes), passes, rates, have), passes


def written(allowance: Allowance) -> tuple[str, ...]:
    return tuple(map(str, allowance.rounds))


def count_of(allowance: Allowance) -> int:
    assert allowance.rounds[0].count is not None
    return allowance.rounds[0].count


def test_a_cost_cuts_pairs_to_what_it_allows() -> None:
    # 1,000 rows: training is 9,000 forward passes, 20 % of it 1,800. Held out at most: 30 x 29 + 20 x 19 + 2 x 30 x 10 = 1,850,
    # so fewer are held out; 5 % of each axis asks for 2,500 pairs.
    found, passes = allowed(1000, cost="20%")
    size = count_of(found)
    assert written(found) == (str(size),)
    assert passes.cost(size).cost <= 1800 < passes.cost(size + 1).cost + 2
    assert size >= 900
    assert found.notes == (f"--cost 20% allows {size:,} of the 2,500 pairs asked for; a higher --cost lifts that.",)


def test_what_a_cost_allows_is_not_cut() -> None:
    found, passes = allowed(1000, cost="100%")
    assert (written(found), found.notes) == (("5%",), ())
    # 2,500 pairs to learn from, and 1,850 to measure.
    assert passes.cost(2500).cost == 2500 + 1850


def test_the_default_at_15000_rows_is_a_tenth_of_training() -> None:
    found, passes = allowed(15_000)
    size = count_of(found)
    # 5 % of each axis are 562,500 pairs; a tenth of training is 13,500 passes, 1,850 of which measure.
    assert size == 13_500 - 1850
    assert passes.cost(size).share_of_training == pytest.approx(0.1)
    assert (
        "the default cap of 10 % of training on all rows allows 11,650 of the 562,500 pairs" in found.notes[0].lower()
    )
    assert "--cost 100%" in found.notes[0]


def test_the_default_of_a_small_pool_is_3000_passes() -> None:
    found, _ = allowed(200, labels=10_000)
    # Training on 200 rows costs 1,800. Held out: 20 x 19 + 14 x 13 + 2 x 20 x 10 = 962.
    assert written(found) == (str(3000 - 962),)
    assert "3,000 forward passes allows 2,038 of the 10,000" in found.notes[0]


def test_a_million_rows_need_no_more_labels_than_a_student_can_use() -> None:
    found, _ = allowed(1_000_000)
    assert written(found) == ("50000",)
    assert "what a student can use allows 50,000" in found.notes[0]
    # A cost that was given lifts both: a tenth of nine million.
    assert count_of(allowed(1_000_000, cost="10%")[0]) == 900_000 - 1850
    assert written(allowed(1_000_000, Gradients())[0]) == ("0.2%",)


@pytest.mark.parametrize("rows", [500, 20_000, 1_000_000])
def test_a_teacher_that_reads_every_row_once_reads_them_all_for_a_target_set(rows: int) -> None:
    # A ninth of training, which the default cap of a tenth would cut to 90 % of the rows, and that of a student to 2,000.
    found, passes = allowed(rows, Once(), targets=Sized(16), labels="100%")
    assert found.whole
    assert written(found) == ("100%",)
    assert passes.full == rows + 16
    assert found.notes[0].startswith(f"The teacher reads every row once, {rows + 16:,} forward passes in all")
    # No probe is made, which only a student reads.
    probed, _ = allowed(rows, Once(), targets=Sized(16), labels="100%", features="probe")
    assert probed.features == "text"
    assert ", and no probe is made: the values are" in probed.notes[0]


def test_a_cost_that_was_given_cuts_it_all_the_same() -> None:
    found, passes = allowed(20_000, Once(), targets=Sized(16), labels="100%", cost="5%")
    rows = found.rounds[0].size(16, 20_000)
    assert not found.whole
    assert 8800 < rows < 9000
    assert passes.cost(rows).cost <= 9000


def test_it_reads_no_more_than_a_student_can_use_where_all_pairs_would_not_fit() -> None:
    found, _ = allowed(1_000_000, Once(), targets=Sized(100), labels="100%")
    assert not found.whole
    assert "what a student can use allows 2,000" in found.notes[0]
    # Nor where its passes are dearer, or fewer rows are asked for.
    assert not allowed(20_000, Gradients(), targets=Sized(16), labels="100%")[0].whole
    assert not allowed(20_000, Once(), targets=Sized(16), labels="50%")[0].whole


def test_gradient_passes_and_a_warm_up_count_in_full() -> None:
    # 2,000 rows: training is 18,000, 10 % of it 1,800; less 3 x 7 for the warm-up, 6 a row: 296 rows, 50 of them held out, where
    # at least as many train.
    found, passes = allowed(2000, Gradients(), cost="10%", labels="50%")
    rows = found.rounds[0].size(2000, 2000)
    assert rows == 296 - 50
    assert passes.cost(rows).cost == 3 * (2 * 296 + 7) == 1797


def test_a_probe_is_part_of_the_cost() -> None:
    without, _ = allowed(2000, Gradients(), cost="20%", labels="50%")
    probed, passes = allowed(2000, Gradients(), cost="20%", labels="50%", features="probe")
    assert passes.others == 2000
    # A probe of 2,000 rows costs as much as 333 measured rows.
    rows = [found.rounds[0].size(2000, 2000) for found in (without, probed)]
    assert rows[0] - rows[1] in (333, 334)


def test_hidden_states_of_the_model_are_part_of_the_cost() -> None:
    assert allowed(500, Pairs(), encoder="lm")[1].others == 500
    assert allowed(500, Pairs(), encoder="minilm")[1].others == 0


def test_a_time_cuts_by_timed_passes() -> None:
    # 90 s, 20 of them for embeddings; 0.01 s a pair and 0.01 s for each of up to 1,000 sources.
    found, _ = allowed(1000, rates=lambda: Rates(20.0, 0.01, 0.01), labels=100_000, time="1m30s")
    assert written(found) == (str(7000 - 1000 - 1850),)
    assert "--time 1m30s allows 4,150 of the 100,000 pairs" in found.notes[0]


@pytest.mark.parametrize("given", [{"cost": "0.5%"}, {"cost": "10%", "features": "probe"}])
def test_a_cap_that_allows_no_plan_is_infeasible(given: dict[str, Any]) -> None:
    # 0.5 % of training on 1,000 rows are 45 passes; a probe alone takes 1,000 of 900.
    with pytest.raises(
        InfeasibleError, match=r"allows no plan of labels: the smallest plan, of 100 pairs, costs [\d,]+"
    ):
        allowed(1000, **given)


def test_the_default_never_refuses() -> None:
    found, passes = allowed(40_000, Gradients(), features="probe")
    assert passes.others > 0.1 * passes.training
    assert written(found) == ("0.04%",)
    assert "which is more than the default cap" in found.notes[0]


def test_rounds_end_where_the_cap_does() -> None:
    found, _ = allowed(1000, labels="auto", max_labels=9000, cost="50%")
    assert written(found) == ("1000", "2000", str(4500 - 1850))
    assert "of the 9,000 pairs" in found.notes[0]


def test_labels_that_exist_are_never_given_up() -> None:
    found, _ = allowed(1000, cost="20%", have=2000)
    assert written(found) == ("2000",)
    assert "the 2,000 that the run has are kept" in found.notes[0]


def test_where_a_student_saves_nothing_all_rows_are_measured_without_a_probe() -> None:
    # 100 rows at 60 %: 77 measured rows cost 3 x (154 + 7) = 483 and the probe 100; all rows 3 x (200 + 7) = 621.
    saving, _ = allowed(100, Gradients(), labels="60%", features="probe")
    assert (saving.whole, saving.features) == (False, "probe")
    # At 70 %: 3 x (2 x 87 + 7) + 100 = 643.
    whole, passes = allowed(100, Gradients(), labels="70%", features="probe")
    assert (whole.whole, whole.features, written(whole)) == (True, "text", ("100%",))
    assert "would cost 643 forward passes, and the full teacher 621" in whole.notes[0]
    assert passes.cost(70).saving == pytest.approx(1 - 643 / 621)


def test_pairs_that_save_nothing_are_told_of() -> None:
    settings = config.resolve({"plan": "scatter", "features": "probe", "labels": "100%"})
    axes = Axes(Sized(40))  # type: ignore[arg-type]
    # All pairs are 1,560. Planned are 33 x 32 and 98 that measure, 40 rows are probed, and 400 that were trained on already.
    found = allow(settings, label_budgets(settings, axes), Passes.of(settings, axes, Pairs(), existing=400), unread)
    assert not found.whole
    assert "the run costs 1,594 forward passes, and the full teacher 1,560" in found.notes[0]
    assert "--labels 100% labels all pairs" in found.notes[0]


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.5", 0.5), ("250%", 2.5)])
def test_costs_are_shares(text: str, share: float) -> None:
    assert CostCap.parse(text).share == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("90", 90), ("1.5 h", 5400), ("45s", 45), (90, 90), (0.5, 0.5)],
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert TimeCap.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["5000", "much", "%", ""])
def test_a_cost_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a share of training"):
        CostCap.parse(text)


@pytest.mark.parametrize("text", ["soon", "3d", "10m5", "-5m", ""])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time"):
        TimeCap.parse(text)


@pytest.mark.parametrize(("name", "value"), [("cost", "0%"), ("time", "0s")])
def test_nothing_is_infeasible(write_pool: Write, tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InfeasibleError, match="above 0"):
        select(write_pool(40), tmp_path / "run", Pairs(), **{name: value})
    assert not (tmp_path / "run").exists()


def select(pool: Any, out: Path, teacher: Any, **given: Any) -> Run:
    return nncift.run(pool, teacher=teacher, out=out, encoder="hash", budget=8, **given)


def test_a_run_keeps_to_its_cost_and_says_what_was_cut(write_pool: Write, tmp_path: Path) -> None:
    pool, teacher = write_pool(60), Pairs()
    run = select(pool, tmp_path / "run", teacher, labels="50%", cost="80%")
    # 80 % of 9 x 60.
    assert run.ledger["cost"] == teacher.asked <= 432
    assert run.ledger["share_of_training"] == pytest.approx(teacher.asked / 540)
    assert any("--cost 80% allows" in warning for warning in run.warnings)
    settings = config.resolve({"labels": "50%", "cost": "80%", "budget": 8, "encoder": "hash"})
    record = estimate(Request.resolve(settings, pool=read(pool), teacher=Pairs())).to_json()
    assert record["label"]["passes"] == teacher.asked
    assert record["cost"] == run.ledger["cost"]
    again = select(pool, tmp_path / "run", teacher, labels="50%", cost="80%")
    assert again.ledger["cost"] == teacher.asked


def test_a_capped_run_only_grows(write_pool: Write, tmp_path: Path) -> None:
    pool, teacher = write_pool(60), Pairs()
    # A run object reads its directory, which the second run replaces.
    before = select(pool, tmp_path / "run", teacher, labels="50%", cost="60%").summary["labels"]["train"]
    more = select(pool, tmp_path / "run", teacher, labels="50%", cost="100%")
    assert more.summary["labels"]["train"] > before
    # What was labelled is not asked again.
    assert more.ledger["cost"] == teacher.asked
    less = select(pool, tmp_path / "run", teacher, labels="50%", cost="60%")
    assert less.summary["labels"] == more.summary["labels"]
    with pytest.raises(UsageError, match="never thrown away"):
        select(pool, tmp_path / "run", teacher, labels=100, cost="60%")
    assert select(pool, tmp_path / "run", teacher, labels="50%", cost="60%").summary["labels"] == more.summary["labels"]


def test_a_time_is_measured_once_and_read_back(
    write_pool: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, rates = write_pool(60), [Rates(1.0, 0.0, 0.01), Rates(1.0, 0.0, 0.001)]
    monkeypatch.setattr("nncift.stages.label_rounds.rates_of", lambda *_: rates.pop(0))
    first = select(pool, tmp_path / "run", Pairs(), labels="50%", time="5s")
    assert first.ledger["cost"] <= 400
    again = select(pool, tmp_path / "run", Pairs(), labels="50%", time="5s")
    assert again.summary["labels"] == first.summary["labels"]
    assert len(rates) == 1
    # More rows: timed again, and faster now.
    more = select(write_pool(64), tmp_path / "run", Pairs(), labels="50%", time="5s")
    assert more.summary["labels"]["train"] > first.summary["labels"]["train"]
    assert rates == []


def test_a_run_that_saves_nothing_has_all_the_values(write_pool: Write, tmp_path: Path) -> None:
    pool, teacher = write_pool(40), Gradients()
    run = select(pool, tmp_path / "run", teacher, labels="90%")
    # 43 rows at 90 % are all 40: the plan asked for is the full teacher.
    assert sorted(teacher.asked) == sorted(read(pool).ids)
    assert (run.ledger["cost"], run.ledger["saving"]) == (3 * (2 * 40 + 7), 0.0)
    assert any("all rows are measured" in warning for warning in run.warnings)
    grown = select(write_pool(44), tmp_path / "run", Gradients(), labels="90%")
    assert grown.summary["labels"]["rows"] == 44


def test_the_dry_run_tells_every_part(write_pool: Write) -> None:
    pool = read(write_pool(60))
    settings = config.resolve({"labels": "20%", "budget": 8, "teacher": "gradients", "objective": "topk"})
    record = estimate(Request.resolve(settings, pool=pool, teacher=Gradients(), encoder=HashEncoder())).to_json()
    # 12 rows train, 6 test, 4 validate; a warm-up of 7 passes before.
    assert {name: record["labels"][name] for name in ("rows", "train_rows", "validation_rows", "test_rows")} == {
        "rows": 22,
        "train_rows": 12,
        "validation_rows": 4,
        "test_rows": 6,
    }
    assert record["labels"]["train"] == 12 * 11
    assert (record["learn"]["passes"], record["measure"]["passes"]) == (2 * 12 + 7, 2 * 10)
    assert (record["label"]["passes"], record["label"]["tokens"]) == (51, 20 * 22 + 70)
    assert (record["total"]["passes"], record["full_teacher"]["passes"]) == (51, 2 * 60 + 7)
    assert (record["cost"], record["training_cost"]) == (153, 540)
    assert record["share_of_training"] == pytest.approx(153 / 540)
    assert record["saving"] == pytest.approx(1 - 51 / 127)
    assert any("60 rows" in note for note in record["notes"])


def test_too_few_labels_are_told_of(write_pool: Write) -> None:
    settings, pool = config.resolve({"labels": "10%", "budget": 8}), read(write_pool(60))
    record = estimate(Request.resolve(settings, pool=pool, teacher=Pairs(), encoder=HashEncoder())).to_json()
    # 36 pairs train, at most as many measure: 3 x 2, 2 x 1, and 2 x 3 x 3.
    assert record["labels"] == {"base": 0, "train": 36, "validation": 2, "q2": 9, "q3": 9, "test": 6}
    assert any("learns from 36 labels and is measured by 26" in note and "--labels" in note for note in record["notes"])


def test_shards_do_not_time_passes(write_pool: Write, tmp_path: Path) -> None:
    settings = config.resolve({"labels": "50%", "time": "5s", "budget": 8, "encoder": "hash"})
    request = Request.resolve(settings, pool=read(write_pool(60)), teacher=Pairs())
    with pytest.raises(UsageError, match=r"--time was given with --shard.*Give --cost or --labels"):
        pipeline.execute(request, tmp_path / "run", executor=executor_of(shard="1/2"))


def asked(rows: Any, **given: Any) -> Request:
    settings = config.resolve({"budget": 8, "encoder": "hash", **given})
    return Request.resolve(settings, pool=rows, teacher=Pairs())


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers of pairs that have no language model are taken to suit a probe."""
    monkeypatch.setattr("nncift.stages.request.suits_a_probe", lambda _: True)
    monkeypatch.setattr("nncift.stages.request.check_language_model", lambda *_: None)


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize(
    ("given", "features", "share"),
    [
        # 60 passes are a half of 22.3 % of 540; of 22 % they are more, and 59 rows of 60 are 98 %.
        ({"cost": "22.3%"}, "probe", "None"),
        ({"cost": "22%"}, "probe", "99%"),
        ({"cost": "10%"}, "probe", "45%"),
        # Less than 15 % of each row was not tried.
        ({"cost": "3.4%"}, "probe", "15%"),
        ({"cost": "3.3%"}, "text", "None"),
        ({"cost": "3.3%", "features": "probe"}, "probe", "None"),
        ({"cost": "22%", "features": "text"}, "text", "None"),
        ({"cost": "1%", "probe_share": "10%"}, "probe", "10%"),
        ({"probe_share": "100%"}, "probe", "None"),
        ({}, "probe", "None"),
    ],
)
def test_a_probe_reads_what_half_the_cap_allows(
    write_pool: Write, given: dict[str, Any], features: str, share: str
) -> None:
    request = asked(read(write_pool(60)), **given)
    assert (request.settings.features, str(request.settings.probe_share)) == (features, share)


@pytest.mark.usefixtures("probes")
def test_by_default_pools_above_1500_rows_are_probed_in_part() -> None:
    assert [str(affordable_probe(None, rows)) for rows in (1500, 1501, 2000, 3334, 1_000_000)] == [
        "100%",
        "99%",
        "75%",
        "45%",
        "45%",
    ]


@pytest.mark.usefixtures("probes")
def test_a_probe_that_reads_less_for_its_price_is_told_of(write_pool: Write, tmp_path: Path) -> None:
    pool = read(write_pool(60))
    (said,) = asked(pool, cost="10%").notes
    assert "reads 45% of each row's tokens" in said
    assert "each of 60 rows, 11 % of training" in said
    assert "--cost 10%" in said
    assert asked(pool).notes == asked(pool, cost="10%", features="text").notes == ()
    assert asked(pool, cost="10%", probe_share="45%").notes == ()
    (said,) = asked(pool, cost="2%").notes
    assert "text alone" in said
    first, again = (select(write_pool(700), tmp_path / "run", Pairs(), labels=40, cost="3.3%") for _ in range(2))
    rows = read(write_pool(700))
    (own,) = asked(rows, cost="3.3%").notes
    assert [warning for warning in first.warnings if "text alone" in warning] == [own]
    assert again.warnings == first.warnings
    assert own in estimate(asked(rows, labels=40, cost="3.3%")).notes


@pytest.mark.parametrize("rows", [1501, 2000, 3334, 5000, 15_000])
def test_by_default_probe_and_warm_up_leave_room_for_the_labels(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe()
    monkeypatch.setattr(Gradients, "row_passes", 1)
    monkeypatch.setattr(Gradients, "warm_up_passes", recipe.epochs * recipe.rows(rows, enough=True))
    found, passes = allowed(rows, Gradients(), features="probe", probe_share=str(affordable_probe(None, rows)))
    assert written(found) == ("5%",)
    assert passes.cost(passes.size(found.rounds[0])).cost <= max(3000, 0.9 * rows)


def test_a_share_of_no_probe_is_refused(write_pool: Write) -> None:
    with pytest.raises(UsageError, match="--probe-share needs a teacher with a language model"):
        asked(read(write_pool(60)), probe_share="50%")
    with pytest.raises(InfeasibleError, match="at most 100 %"):
        config.resolve({"probe_share": "120%"})


def test_a_probe_of_a_part_of_each_row_costs_that_part() -> None:
    (_, whole), (_, part) = (
        allowed(2000, Gradients(), features="probe", probe_share=share) for share in ("100%", "45%")
    )
    assert (whole.others, part.others) == (2000, 900)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_target_set_alone_has_rds_read_every_row_and_take_them_in_turn(
    llama_folder: Path, write_pool: Write, tmp_path: Path, as_file: bool
) -> None:
    pool, file = write_pool(40), write_pool(4, "wanted.jsonl", 60)
    wanted: Any = file if as_file else read(str(file))
    done = nncift.run(
        pool,
        target=wanted,
        out=tmp_path / "run",
        model=str(llama_folder),
        encoder="hash",
        budget=8,
        device="cpu",
    )
    said = done.summary
    assert (said["teacher"], said["all_labelled"], said["ledger"]["teacher_passes"]) == ("rds", True, 44)
    teacher, rows = nncift.teachers.Rds(str(llama_folder), device="cpu"), read(str(pool))
    assert not teacher.prepare(Examples((*rows, *read(str(file)))))
    utility = teacher.utility(teacher.measure(read(str(file)).ids).values, teacher.measure(rows.ids).values)
    # Two rounds of four targets, each of which takes its best row that is left.
    taken: list[str] = []
    for line in (*utility, *utility):
        left = [(-value, item) for value, item in zip(line.tolist(), rows.ids, strict=True) if item not in taken]
        taken.append(min(left)[1])
    assert set(done.subset.ids) == set(taken)
    # The next command keeps to what the run was begun with.
    again = nncift.run(pool, target=wanted, out=tmp_path / "run", budget=4)
    assert (again.summary["teacher"], again.summary["selected"]) == ("rds", 4)
