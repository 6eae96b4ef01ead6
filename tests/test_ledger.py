import sys

import numpy as np
import pytest

from nncift import ledger
from nncift.ledger import StageCost, Stopwatch


def test_sessions_add_up_and_the_peak_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, peaks = iter([10.0, 12.5, 20.0, 21.0]), iter([300.0, 200.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(ledger, "peak_mb", lambda: next(peaks))
    cost = StageCost()
    for _ in range(2):
        Stopwatch(next(clock)).add_to(cost)
    assert cost.to_json() == {"seconds": 3.5, "peak_mb": 300.0, "model_tokens": 0, "model_passes": 0, "sessions": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_the_peak_is_that_of_the_stage() -> None:
    block = np.ones(100_000_000 // 8)
    high = ledger.peak_mb()
    del block
    cost = StageCost()
    Stopwatch().add_to(cost)
    assert cost.peak_mb < high - 50
