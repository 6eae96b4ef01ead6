from __future__ import annotations

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.evaluation.fidelity import Measures
from nncift.evaluation.meaning import HeldOutSignal, LabelSpread


def labels(*values: float, target: list[int] | None = None) -> dict[str, LabelledPairs]:
    n = len(values)
    codes = np.array(target or [0] * n, np.int32)
    ids = tuple(f"t{code}" for code in range(max(codes, default=0) + 1)), tuple(f"s{code}" for code in range(n))
    return {"train": LabelledPairs(*ids, codes, np.arange(n, dtype=np.int32), np.array(values, np.float32))}


def sentences(given: dict[str, LabelledPairs]) -> tuple[str, ...]:
    found = LabelSpread.of(given)
    assert found is not None
    return found.warnings()


def test_equal_labels_are_said_to_be_equal_with_their_value() -> None:
    (sentence,) = sentences(labels(0.25, 0.25, np.nan, 0.25))
    assert sentence.startswith("All 3 labels are equal (0.25)")


def test_labels_that_differ_between_targets_alone_tell_no_source_from_another() -> None:
    (sentence,) = sentences(labels(0.1, 0.1, 0.7, 0.7, 0.2, target=[0, 0, 1, 1, 2]))
    assert "for every target all sources are equal" in sentence
    assert sentences(labels(0.1, 0.2, 0.7, 0.7, target=[0, 0, 1, 1])) == ()
    # One source each: nothing can be said.
    assert sentences(labels(0.1, 0.7, target=[0, 1])) == ()


def test_a_value_that_nearly_all_labels_share_is_named_with_its_share() -> None:
    (sentence,) = sentences(labels(*[0.0] * 48, 0.5, 0.6))
    assert sentence.startswith("96.0 % of the 50 labels are 0")
    assert sentences(labels(*[0.0] * 24, *[1.0] * 26)) == ()


def test_without_a_label_nothing_is_said() -> None:
    assert LabelSpread.of(labels(np.nan)) is None
    assert LabelSpread.of({}) is None


def measures(r2: float | None, low: float = 0.0, high: float = 0.0) -> Measures:
    interval = None if r2 is None else (low, high)
    return Measures(None, None, r2, interval, None, None, None, None, 435, 30, 30, 435)


def test_noise_is_named_with_the_best_predictor_and_its_interval() -> None:
    found = HeldOutSignal.of(
        measures(-0.1, -0.3, -0.02), {"cosine": measures(0.02, -0.05, 0.09), "mean": measures(None)}
    )
    assert found is not None
    (sentence,) = found.warnings()
    assert (
        "R^2 is at most 0.02 (cosine similarity of the embeddings; 95 % interval -0.05 to +0.09, 435 held-out labels)"
        in sentence
    )


def test_where_all_rows_are_measured_too_few_labels_are_no_reason() -> None:
    found = HeldOutSignal.of(measures(-0.1, -0.3, 0.1), {})
    assert found is not None
    assert "too few labels" in found.warnings()[0]
    (sentence,) = found.warnings(whole=True)
    assert "too few labels" not in sentence
    assert "Labels that are noise look like this" in sentence


@pytest.mark.parametrize("clear", ["student", "cosine"])
def test_one_predictor_that_is_clearly_above_nothing_is_enough(clear: str) -> None:
    of = {"student": measures(0.01, -0.1, 0.1), "cosine": measures(0.02, -0.1, 0.1), clear: measures(0.3, 0.1, 0.5)}
    found = HeldOutSignal.of(of.pop("student"), of)
    assert found is not None
    assert found.warnings() == ()


def test_where_nothing_was_measured_nothing_is_said() -> None:
    assert HeldOutSignal.of(measures(None), {"mean": measures(None)}) is None


def test_rounding_of_the_training_mean_is_no_signal() -> None:
    found = HeldOutSignal.of(measures(-0.1, -0.3, 0.1), {"mean": measures(6e-9, 1e-10, 1e-8)})
    assert found is not None
    assert found.predictor == "student"
    assert not found.clear
