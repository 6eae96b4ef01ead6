"""Selection skill on labelled blocks, and what the gate makes of it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from nncift.evaluation.gate import Gate, GateRecord, SkillRecord, advice, choose
from nncift.evaluation.selection_skill import (
    BEYOND,
    DENSE,
    LEAST_ITEMS,
    Block,
    SelectionSkill,
    _error,
    _some,
    rows_like,
    selection_skill,
)

Matrix = np.ndarray


def truth_of(n: int, seed: int = 0, groups: int = 5) -> Matrix:
    """Return utilities of n rows in a few groups: a row helps its own group, and the diagonal is masked."""
    random = np.random.default_rng(seed)
    group = random.integers(groups, size=n)
    value = (group[:, None] == group[None]) * random.uniform(0.5, 1, (n, n)) + 0.1 * random.normal(size=(n, n))
    np.fill_diagonal(value, np.nan)
    return np.asarray(value)


def noise(truth: Matrix, seed: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=truth.shape)


def block(truth: Matrix, guesses: Mapping[str, Matrix], known: Matrix | float = 0.0, first: int = 0) -> Block:
    """Return a block of items of its own. known: pairs that are known, or the share of its items among which they are."""
    n, m = truth.shape
    same = np.arange(m) if n == m else np.full(m, -1)
    if isinstance(known, float):
        items = np.random.default_rng(7).permutation(m) < round(known * m)
        known = np.outer(items if n == m else np.ones(n, bool), items)
    return Block(truth, first + np.arange(n), first + np.arange(m), same, guesses, known, m)


def skills(blocks: list[Block], seed: int = 0, objective: str = "fl", share: float = 0.2) -> dict[str, SelectionSkill]:
    return selection_skill(blocks, tuple(blocks[0].predictions), objective=objective, share=share, seed=seed)


def test_the_truth_has_skill_one_and_a_shift_takes_nothing_away() -> None:
    truths = [truth_of(20), truth_of(30, 1)]
    found = skills([block(of, {"truth": of, "shifted": 3 * of - 7}, first=100 * k) for k, of in enumerate(truths)])
    assert (found["truth"].skill, found["truth"].error) == (1.0, BEYOND)
    assert found["shifted"].skill == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("objective", ["fl", "topk", "fl2mi", "flmi", "flcg"])
def test_the_truth_has_skill_one_under_every_objective(objective: str) -> None:
    truth = truth_of(24, 3)
    found = skills([block(truth, {"truth": truth, "noise": noise(truth, 1)})], objective=objective)
    assert found["truth"].skill == pytest.approx(1.0)
    assert found["noise"].skill < 0.8


def test_noise_has_no_skill_on_average() -> None:
    found = []
    for seed in range(12):
        truth = truth_of(24, seed)
        found.append(skills([block(truth, {"noise": noise(truth, seed + 100)})], seed)["noise"].skill)
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(12) + 0.02
    assert np.mean(found) < 0.3


def test_what_is_closer_to_the_truth_has_more_skill() -> None:
    truth = truth_of(30)
    found = skills([block(truth, {str(size): truth + size * noise(truth, 3) for size in (0.1, 0.6, 3.0)})])
    assert found["0.1"].skill > found["0.6"].skill > found["3.0"].skill
    gained, error = found["0.1"].against(found["3.0"])
    assert gained == pytest.approx(found["0.1"].skill - found["3.0"].skill)
    difference = found["0.1"].resampled - found["3.0"].resampled
    # A third of the items is left out: the jackknife's variance is twice that of the resamples.
    assert error == pytest.approx(np.sqrt(2 * difference.var(ddof=1)))


def test_known_labels_lift_noise_as_far_as_they_reach() -> None:
    truth = truth_of(30, 5)
    guess = {"noise": 0.3 + 0.05 * noise(truth, 2)}
    none, some, every = (skills([block(truth, guess, known)])["noise"].skill for known in (0.0, 0.5, 1.0))
    assert none < some < every == 1.0


def test_repetitions_over_the_same_items_say_no_more_of_how_large_the_error_is() -> None:
    truth = truth_of(30, 6)
    guess = {"a": truth + noise(truth, 4)}
    once, often, apart = (
        skills([block(truth, guess, first=first) for first in places])["a"].error
        for places in ([0], [0] * 8, range(0, 800, 100))
    )
    assert often == pytest.approx(once, rel=0.35)
    assert apart < 0.6 * once


def test_a_small_pool_chooses_a_larger_share_where_little_is_chosen() -> None:
    # 1 / (0.25 / 0.1 + 0.75 / 0.25) = 0.1818 of 60 rows.
    assert rows_like(0.1, 60, 240) == 11
    assert rows_like(0.1, 240, 240) == 24
    assert [rows_like(share, 40, 4000) for share in (DENSE, 0.5)] == [10, 20]
    # No more rows than the pool chooses, and at least one.
    assert [rows_like(2 / 4000, 40, 4000), rows_like(1 / 4000, 40, 4000)] == [2, 1]


def test_skill_in_little_is_about_as_many_rows_as_the_pool_would_choose() -> None:
    # Only the best row of each of five groups is predicted: five rows are chosen well, ten are not.
    truth = truth_of(40, 2)
    guess = {"a": truth * (truth > 0.9)}
    same_size = block(truth, guess)
    smaller = replace(same_size, pool=400)
    few, many = (skills([of], share=0.05)["a"].skill for of in (same_size, smaller))
    assert many == pytest.approx(skills([same_size], share=rows_like(0.05, 40, 400) / 40)["a"].skill, abs=0.05)
    assert many != few


def test_items_on_both_axes_are_drawn_once() -> None:
    truth = truth_of(30, 6)
    kept = [
        part
        for _ in range(20)
        for part in _some([block(truth, {}), block(truth[:20, :20], {})], np.random.default_rng(_))
    ]
    assert all(np.array_equal(part.targets, part.sources) for part in kept)
    for first, second in zip(kept[::2], kept[1::2], strict=True):
        assert len(first.sources) == 20
        assert np.array_equal(second.sources, first.sources[first.sources < 20])


def test_skill_depends_on_its_seed_and_nothing_else() -> None:
    truth = truth_of(20)
    one, two, other = (skills([block(truth, {"a": noise(truth, 1)})], seed)["a"] for seed in (4, 4, 5))
    assert np.array_equal(one.resampled, two.resampled)
    assert not np.array_equal(one.resampled, other.resampled)


def test_missing_labels_count_on_no_side() -> None:
    truth = truth_of(20)
    holed = np.where(np.random.default_rng(1).random(truth.shape) < 0.2, np.nan, truth)
    assert skills([block(holed, {"truth": truth})])["truth"].skill == 1.0


def test_a_pointwise_teacher_is_judged_by_the_scores_of_what_is_chosen() -> None:
    truth = np.random.default_rng(2).normal(size=(1, 40))
    found = skills([block(truth, {"truth": truth, "noise": noise(truth, 1)})], objective="topk")
    assert found["truth"].skill == 1.0
    assert abs(found["noise"].skill) < 0.6


def gate(blocks: list[Block], *, enforced: bool = True) -> Gate:
    return choose(blocks, tuple(blocks[0].predictions), objective="fl", share=0.2, seed=0, enforced=enforced)


def free_and_student(student: float, free: float, *, enforced: bool = True) -> tuple[str, list[str], dict[str, float]]:
    """Return what the gate decides between predictions that lie so far off the truth."""
    truth = truth_of(40, 2)
    guesses = {"student": truth + student * noise(truth, 5), "cosine": truth + free * noise(truth, 6)}
    found = gate([block(truth, guesses)], enforced=enforced)
    return found.used, found.warnings(), {name: of["skill"] for name, of in found.record().to_json()["skill"].items()}


def test_a_better_free_similarity_is_used_and_said_so() -> None:
    used, said, skill = free_and_student(student=5.0, free=0.05)
    assert used == "cosine"
    assert skill["cosine"] > skill["student"]
    assert len(said) == 1
    assert said[0].startswith(
        "Selection uses cosine similarity of the embeddings, which is free, instead of the student"
    )
    assert f"{skill['cosine']:.2f} against {skill['student']:.2f}" in said[0]


def test_the_gate_can_be_turned_off_and_says_what_it_would_have_done() -> None:
    used, said, _ = free_and_student(student=5.0, free=0.05, enforced=False)
    assert used == "student"
    assert "selects no worse than the student" in said[0]
    assert said[0].endswith("the gate is off.")


def test_a_better_student_is_used_without_a_word() -> None:
    assert free_and_student(student=0.05, free=5.0)[:2] == ("student", [])


def test_similarity_on_top_of_the_student_is_the_student_still() -> None:
    truth = truth_of(40, 2)
    guesses = {"student": truth + 5 * noise(truth, 5), "student + 0.5 similarity": truth}
    for enforced in (True, False):
        found = gate([block(truth, guesses)], enforced=enforced)
        assert (found.used, found.warnings()) == ("student + 0.5 similarity", [])


def other_and_student(error: float, *, cosine: float = 0.45, enforced: bool = True) -> Gate:
    """Return what the gate makes of another student that selects better by 0.1, the difference having an error."""
    steps = np.linspace(-1, 1, 40)
    steps *= error / _error(steps)
    skills = {
        name: SelectionSkill(skill, 0.1, np.full(40, skill) + own)
        for name, skill, own in (("student", 0.4, 0 * steps), ("landmark", 0.5, steps), ("cosine", cosine, 0 * steps))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nncift.evaluation.gate.selection_skill", lambda *_, **__: skills)
        truth = truth_of(20)
        return choose(
            [block(truth, dict.fromkeys(skills, truth))],
            tuple(skills),
            objective="fl",
            share=0.2,
            seed=0,
            enforced=enforced,
        )


def test_another_student_of_the_same_labels_takes_over_where_it_is_better_by_more_than_its_error() -> None:
    found = other_and_student(0.08)
    assert found.used == "landmark"
    (said,) = found.warnings()
    assert said.startswith(
        "Selection uses the landmark student, which learns from the same labels, instead of the student: "
    )
    assert "0.50 against 0.40" in said


def test_within_its_error_the_student_stays_and_what_is_free_is_spoken_of() -> None:
    found = other_and_student(0.2, cosine=0.3)
    assert (found.used, found.warnings()) == ("student", [])
    # The cosine is better by 0.05, without an error here, and is taken though the other student is better still.
    assert other_and_student(0.2).used == "cosine"
    found = other_and_student(0.08, enforced=False)
    assert found.used == "student"
    (said,) = found.warnings()
    assert said.startswith("Cosine similarity of the embeddings, which is free, selects no worse")


def test_a_draw_goes_to_the_student() -> None:
    truth = truth_of(20)
    assert gate([block(truth, {"cosine": truth, "student": truth})]).used == "student"


@pytest.mark.parametrize("n", [LEAST_ITEMS - 1, 9])
def test_too_few_items_or_pairs_measure_nothing_and_say_so(n: int) -> None:
    truth = truth_of(n)
    found = gate([block(truth, {"student": noise(truth, 0), "cosine": truth})])
    assert (found.used, dict(found.skills), found.headline) == ("student", {}, None)
    assert found.warnings()[0].startswith(f"Selection skill is not measured: {n} labelled rows")


def test_a_probe_is_advised_where_something_free_selects_no_worse() -> None:
    def record(**skill: float) -> GateRecord:
        skills = {name: SkillRecord(value, 0.1, (value - 0.2, value + 0.2)) for name, value in skill.items()}
        return GateRecord("student", "fl", 0.2, 20, 400, skills)

    said = advice(record(student=0.4, cosine=0.4, ridge=0.1), 1200)
    assert said is not None
    assert said.startswith("--features probe")
    assert "(1,200 passes)" in said
    assert advice(record(student=0.4, cosine=0.3), 1200) is None
    assert advice(record(student=0.4), 1200) is None
    assert advice(record(), 1200) is None
