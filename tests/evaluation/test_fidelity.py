import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError, UsageError
from nncift.evaluation import fidelity
from nncift.evaluation.fidelity import BINS, POINTS, Fidelity, HeldOutPairs, measure
from nncift.evaluation.verdicts import Difference, verdict

NAMES = ("student", "mean", "additive", "cosine", "ridge")


def quadrant(targets: int, sources: int, seed: int) -> LabelledPairs:
    target, source = np.divmod(np.arange(targets * sources), sources)
    return LabelledPairs(
        tuple(f"t{i}" for i in range(targets)),
        tuple(f"s{i}" for i in range(sources)),
        target.astype(np.int32),
        source.astype(np.int32),
        np.random.default_rng(seed).normal(size=len(target)).astype(np.float32),
    )


def noisy(pairs: LabelledPairs, noise: float, seed: int = 9) -> np.ndarray:
    return pairs.value + noise * np.random.default_rng(seed).normal(size=len(pairs))


def world(noise: Mapping[str, float], sizes: Mapping[str, tuple[int, int]] | None = None) -> Fidelity:
    sizes = sizes or {"q1": (20, 20), "q2": (12, 20), "q3": (20, 12), "q4": (15, 15)}
    quadrants = {name: quadrant(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    predictions = {
        name: {q: noisy(pairs, noise[name], seed=10 + i) for q, pairs in quadrants.items()}
        for i, name in enumerate(noise)
    }
    predictions["mean"] = {q: np.zeros(len(pairs)) for q, pairs in quadrants.items()}
    return measure(quadrants, predictions, train_mean=0.0, seed=3, resamples=200)


def test_json_has_the_keys_of_the_contract_and_no_nan() -> None:
    found = world({"student": 0.2, "additive": 1.0, "cosine": 1.0, "ridge": 1.0}).to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    for name in ("q1", "q2", "q3", "q4"):
        assert {
            "mse",
            "mse_interval",
            "r2",
            "r2_interval",
            "spearman",
            "spearman_interval",
            "spearman_by_target",
            "topk_overlap",
            "pairs",
            "targets",
            "sources",
        } <= set(found["student"][name])
    assert set(found["baselines"]) == set(NAMES) - {"student"}
    assert set(found["baselines"]["cosine"]) == {"q1", "q2", "q3", "q4"}
    q4 = found["student"]["q4"]
    assert (q4["pairs"], q4["targets"], q4["sources"]) == (225, 15, 15)
    assert q4["spearman_interval"][0] < q4["spearman"] < q4["spearman_interval"][1]
    assert found["baselines"]["mean"]["q4"]["spearman"] == 0.0
    assert found["baselines"]["mean"]["q4"]["spearman_interval"] == [0.0, 0.0]


def test_a_clearly_better_student_raises_no_warning() -> None:
    assert world({"student": 0.2, "additive": 2.0, "cosine": 2.0}).verdicts() == []


def test_a_worse_student_is_told_so_with_both_numbers() -> None:
    found = world({"student": 2.0, "additive": 4.0, "cosine": 0.2})
    against_cosine = [sentence for sentence in found.verdicts() if "cosine" in sentence]
    assert len(against_cosine) == 2
    assert all("worse than cosine similarity" in sentence for sentence in against_cosine)
    numbers = found.differences["cosine"]["spearman"]
    assert f"{numbers.student:.3f} against {numbers.baseline:.3f}" in against_cosine[0]


def test_two_equal_predictors_are_not_distinguishable() -> None:
    found = world({"student": 1.0, "additive": 5.0, "cosine": 1.0})
    sentences = [sentence for sentence in found.verdicts() if "cosine" in sentence]
    assert len(sentences) == 2
    assert all("the interval of the difference includes 0" in sentence for sentence in sentences)


def test_verdict_reads_the_interval_and_not_the_difference() -> None:
    assert verdict("cosine", Difference.between(0.5, 0.4, (0.01, 0.2)), "r2") is None
    assert "includes 0" in (verdict("cosine", Difference.between(0.5, 0.4, (-0.01, 0.2)), "r2") or "")
    worse = verdict("additive", Difference.between(0.3, 0.4, (-0.2, -0.05)), "spearman")
    assert worse == (
        "On unseen items (q4) the student is worse than the additive baseline in Spearman correlation: "
        "0.300 against 0.400 (difference -0.100, 95 % interval -0.200 to -0.050)."
    )
    assert "cannot be compared" in (verdict("cosine", Difference.between(None, 0.4, None), "spearman") or "")


def test_the_difference_is_paired() -> None:
    # A student that repeats the baseline: both vary from resample to resample, their difference never does.
    pairs = quadrant(15, 15, 0)
    guess = noisy(pairs, 1.0)
    found = measure({"q4": pairs}, {"student": {"q4": guess}, "cosine": {"q4": guess}}, 0.0, 0, 100)
    assert found.student["q4"].spearman_interval != (0.0, 0.0)
    assert found.differences["cosine"]["spearman"].interval == (0.0, 0.0)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_intervals() -> None:
    pairs = quadrant(10, 10, 0)
    guesses = {"student": {"q4": noisy(pairs, 1.0)}}
    first, again, other = (measure({"q4": pairs}, guesses, 0.0, seed, 100).to_json() for seed in (1, 1, 2))
    assert first == again
    assert first["student"]["q4"]["r2"] == other["student"]["q4"]["r2"]
    assert first["student"]["q4"]["r2_interval"] != other["student"]["q4"]["r2_interval"]


def test_an_interval_does_not_depend_on_which_predictors_stand_beside() -> None:
    pairs = quadrant(10, 10, 0)
    alone = measure({"q4": pairs}, {"student": {"q4": noisy(pairs, 1.0)}}, 0.0, 1, 100)
    both = measure({"q4": pairs}, {n: {"q4": noisy(pairs, 1.0)} for n in ("mean", "student")}, 0.0, 1, 100)
    assert alone.student == both.student


def test_empty_and_tiny_quadrants_give_none_and_a_sentence() -> None:
    found = world({"student": 1.0, "cosine": 1.0}, {"q1": (20, 20), "q2": (20, 3), "q4": (2, 1)})
    assert found.student["q3"].mse is None
    assert found.student["q3"].pairs == 0
    assert found.student["q2"].spearman is not None
    assert found.student["q2"].spearman_interval is None
    assert found.student["q4"].spearman is None
    sentences = found.verdicts()
    assert [sentence.split()[0] for sentence in sentences] == ["q2", "No", "q4"]
    assert "2 labelled pairs of 2 targets and 1 sources" in sentences[2]
    assert "unknown" in sentences[2]
    json.dumps(found.to_json(), allow_nan=False)


def test_constant_labels_are_undefined_and_not_a_crash() -> None:
    pairs = quadrant(6, 6, 0)
    flat = LabelledPairs(pairs.target_ids, pairs.source_ids, pairs.target, pairs.source, np.zeros(36, np.float32))
    guesses = {name: {"q4": pairs.value} for name in ("student", "cosine")}
    found = measure({"q4": flat}, guesses, 0.0, 0, 50)
    assert found.student["q4"].spearman is None
    assert found.student["q4"].r2 is None
    assert found.student["q4"].mse is not None
    assert sum("cannot be compared" in sentence for sentence in found.verdicts()) == 2


def test_large_quadrants_take_their_intervals_from_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = quadrant(20, 20, 0)
    guesses = {"student": {"q4": noisy(pairs, 1.0)}}
    full = measure({"q4": pairs}, guesses, 0.0, 0, 100).student["q4"]
    monkeypatch.setattr(fidelity, "MAX_INTERVAL_PAIRS", 200)
    capped = measure({"q4": pairs}, guesses, 0.0, 0, 100).student["q4"]
    assert (full.interval_pairs, capped.interval_pairs) == (400, 200)
    assert capped.spearman == full.spearman
    assert capped.spearman_interval != full.spearman_interval


def test_wrong_input_is_refused() -> None:
    pairs = quadrant(5, 5, 0)
    with pytest.raises(UsageError, match="student"):
        measure({"q4": pairs}, {"cosine": {"q4": pairs.value}}, 0.0, 0)
    with pytest.raises(UsageError, match="25 pairs"):
        measure({"q4": pairs}, {"student": {"q4": pairs.value[:3]}}, 0.0, 0)
    with pytest.raises(UsageError, match="q5"):
        measure({"q5": pairs}, {"student": {"q5": pairs.value}}, 0.0, 0)
    with pytest.raises(UsageError, match="1 of 25 predictions"):
        measure({"q4": pairs}, {"student": {"q4": np.r_[np.nan, pairs.value[1:]]}}, 0.0, 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"points": [[math.nan, 0.0]]},
        {"points": [[0.0, math.inf]]},
        {"points": [[1e308, -1e308]]},
        {"points": [[0.0, 0.0]] * (POINTS + 1)},
        {"points": [[0.0]]},
        {"pairs": 3},
        {"pairs": -1},
        {"slope": math.inf},
        {"bins": []},
        {"bins": [{"predicted": 0.0, "teacher": 0.0, "pairs": 100}] * (BINS + 1)},
        {"bins": [{"predicted": math.nan, "teacher": 0.0, "pairs": 1000}]},
        {"bins": [{"predicted": 0.0, "teacher": 0.0, "pairs": 1001}, {"predicted": 0.0, "teacher": 0.0, "pairs": -1}]},
    ],
)
def test_held_out_pairs_that_no_run_keeps_are_refused(changed: dict[str, Any]) -> None:
    label = np.random.default_rng(0).normal(size=1000)
    made = HeldOutPairs.of(label, label + 0.1, 0)
    assert made is not None
    assert HeldOutPairs.of_json(made.to_json(), "a file") == made
    with pytest.raises(DataError, match="a file is damaged"):
        HeldOutPairs.of_json({**made.to_json(), **changed}, "a file")
