import sys

import numpy as np
import pytest

from nncift.storage import ledger
from nncift.storage.ledger import Ledger, ModelCost, StageCost, Stopwatch


def test_gradient_passes_count_three_and_probe_passes_one() -> None:
    # LESS at one checkpoint: 83 of 168 rows measured, and a probe of all 168, against 168 measured rows; training is 3 x 3 x 168.
    spent = ModelCost(labels=83, weight=3, others=168, full=168, rows=168)
    assert (spent.cost, spent.full_cost) == (83 * 3 + 168, 504)
    assert spent.saving == pytest.approx(1 - 417 / 504)
    assert spent.share_of_training == pytest.approx(417 / 1512)
    assert not spent.saves_nothing
    record = spent.to_json()
    assert (record["teacher_passes"], record["full_teacher_passes"], record["training_cost"]) == (251, 168, 1512)


def test_a_probe_of_all_rows_eats_the_saving_of_a_teacher_of_one_pass_a_row() -> None:
    spent = ModelCost(labels=30, weight=1, others=100, full=100, rows=100)
    assert spent.saves_nothing
    assert spent.saving == pytest.approx(-0.3)


def test_a_teacher_that_costs_nothing_saves_nothing() -> None:
    spent = ModelCost(labels=0, weight=0, others=0, full=0, rows=100)
    assert (spent.saving, spent.share_of_training, spent.saves_nothing) == (0.0, 0.0, True)


def test_a_ledger_holds_the_figures_that_are_written() -> None:
    # 16.6 ms tripled is said as 0.0 s, and 17 ms as 0.1 s: what a run says of its costs must not hang on whether it was read.
    spent = ModelCost(labels=30, weight=1, others=0, full=100, rows=100)
    live = {
        "label": StageCost(seconds=0.016_61, processor_seconds=0.015_49, peak_mb=12.345),
        "fit": StageCost(seconds=1.0004),
    }
    made = Ledger.of(live, spent, 1.0)
    read = {name: StageCost(**cost.to_json()) for name, cost in live.items()}
    assert made.stages == read
    assert made == Ledger.of(read, spent, 1.0) == Ledger.of({}, spent, 1.0).with_stages(live)
    assert made.stages["label"] == StageCost(seconds=0.017, processor_seconds=0.015, peak_mb=12.3)
    assert made.seconds == 1.017


def test_sessions_add_up_and_the_peak_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, peaks = iter([10.0, 12.5, 20.0, 21.0]), iter([300.0, 200.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    processor = iter([5.0, 6.0, 7.0, 7.5])
    monkeypatch.setattr("time.process_time", lambda: next(processor))
    monkeypatch.setattr(ledger, "peak_mb", lambda: next(peaks))
    cost = StageCost()
    for _ in range(2):
        Stopwatch(next(clock), next(processor)).add_to(cost)
    assert cost.to_json() == {
        "seconds": 3.5,
        "processor_seconds": 1.5,
        "peak_mb": 300.0,
        "model_tokens": 0,
        "model_passes": 0,
        "sessions": 2,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_the_peak_is_that_of_the_stage() -> None:
    block = np.ones(100_000_000 // 8)
    high = ledger.peak_mb()
    del block
    cost = StageCost()
    Stopwatch().add_to(cost)
    assert cost.peak_mb < high - 50
