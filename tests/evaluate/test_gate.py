"""Selection skill on held-out items, and what the gate makes of it."""

from collections.abc import Mapping

import numpy as np
import pytest

from nncift.evaluate.gate import advice, choose
from nncift.evaluate.heldout import SMALLEST, held_out_skill
from nncift.pairs import LabelledPairs


def block(n: int, seed: int = 0, groups: int = 5) -> LabelledPairs:
    """Return all pairs of n rows in a few groups: a row helps its own group."""
    random = np.random.default_rng(seed)
    group = random.integers(groups, size=n)
    value = (group[:, None] == group[None]) * random.uniform(0.5, 1, (n, n)) + 0.1 * random.normal(size=(n, n))
    t, s = (part.ravel() for part in np.indices((n, n)))
    t, s = t[t != s].astype(np.int32), s[t != s].astype(np.int32)
    ids = tuple(f"row-{seed}-{i}" for i in range(n))
    return LabelledPairs(ids, ids, t, s, value[t, s].astype(np.float32))


def noise(pairs: LabelledPairs, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(pairs))


def test_the_truth_has_skill_one_and_a_shift_takes_nothing_away() -> None:
    blocks = [block(20), block(30, 1)]
    found = held_out_skill(
        blocks,
        {"truth": [of.value for of in blocks], "shifted": [3 * of.value.astype(float) - 7 for of in blocks]},
        seed=0,
    )
    assert (found["truth"].skill, found["truth"].error) == (1.0, 0.0)
    assert found["shifted"].skill == pytest.approx(1.0)


def test_noise_has_no_skill_on_average() -> None:
    skills = []
    for seed in range(30):
        of = block(24, seed)
        skills.append(held_out_skill([of], {"noise": [noise(of, seed + 100)]}, seed)["noise"].skill)
    assert abs(np.mean(skills)) < 3 * np.std(skills) / np.sqrt(30) + 0.02
    assert np.mean(skills) < 0.2


def test_what_is_closer_to_the_truth_has_more_skill() -> None:
    of = block(30)
    guesses = {str(size): [of.value + size * noise(of, 3)] for size in (0.1, 0.6, 3.0)}
    found = held_out_skill([of], guesses, seed=0)
    assert found["0.1"].skill > found["0.6"].skill > found["3.0"].skill
    gained, error = found["0.1"].against(found["3.0"])
    assert gained == pytest.approx(found["0.1"].skill - found["3.0"].skill)
    # A third of the items is left out: the jackknife's variance is twice that of the resamples.
    assert error == pytest.approx(np.sqrt(2) * np.std(found["0.1"].resampled - found["3.0"].resampled, ddof=1))


def test_skill_depends_on_its_seed_and_nothing_else() -> None:
    of = block(20)
    one, two, other = (held_out_skill([of], {"a": [noise(of, 1)]}, seed)["a"] for seed in (4, 4, 5))
    assert np.array_equal(one.resampled, two.resampled)
    assert not np.array_equal(one.resampled, other.resampled)


def test_missing_labels_count_on_no_side() -> None:
    of = block(20)
    holes = np.random.default_rng(1).random(len(of)) < 0.2
    value = np.where(holes, np.nan, of.value).astype(np.float32)
    holed = LabelledPairs(of.target_ids, of.source_ids, of.target, of.source, value)
    # Without labels there are no pairs: the block is what `present` leaves, and predictions for just these.
    present = holed.present()
    found = held_out_skill([present], {"truth": [present.value]}, seed=0)
    assert found["truth"].skill == 1.0


def free_and_student(
    student: float, free: float, *, enforced: bool = True
) -> tuple[str, list[str], Mapping[str, float]]:
    """Return what the gate decides between predictions that lie so far off the truth."""
    of = block(40, 2)
    guesses = {"student": [of.value + student * noise(of, 5)], "cosine": [of.value + free * noise(of, 6)]}
    found = choose([of], guesses, 0, enforced=enforced)
    return found.used, found.warnings(), {name: told["skill"] for name, told in found.to_json()["skill"].items()}


@pytest.mark.filterwarnings("error")
def test_draws_that_meet_no_label_are_left_out_without_a_word() -> None:
    # All labels lie in one row and one column: a draw without either meets none.
    lines = np.array([(0, j) for j in range(9)] + [(i, 0) for i in range(1, 9)], np.int32)
    values = np.random.default_rng(0).normal(size=len(lines)).astype(np.float32)
    targets, sources = (tuple(f"{kind}-{i}" for i in range(9)) for kind in ("target", "source"))
    of = LabelledPairs(targets, sources, lines[:, 0].copy(), lines[:, 1].copy(), values)
    found = held_out_skill([of], {"truth": [of.value], "noise": [noise(of, 1)]}, seed=0)
    assert 30 <= len(found["truth"].resampled) < 60
    assert found["truth"].skill == 1.0
    assert found["noise"].skill < 1.0


def test_a_better_free_similarity_is_used_and_said_so() -> None:
    used, told, skill = free_and_student(student=5.0, free=0.05)
    assert used == "cosine"
    assert skill["cosine"] > skill["student"]
    assert len(told) == 1
    assert told[0].startswith(
        "Selection uses cosine similarity of the embeddings, which is free, instead of the student"
    )
    assert f"{skill['cosine']:.2f} against {skill['student']:.2f}" in told[0]


def test_the_gate_can_be_turned_off_and_says_what_it_would_have_done() -> None:
    used, told, _ = free_and_student(student=5.0, free=0.05, enforced=False)
    assert used == "student"
    assert "selects no worse than the student" in told[0]
    assert told[0].endswith("the gate is off.")


def test_a_better_student_is_used_without_a_word() -> None:
    assert free_and_student(student=0.05, free=5.0)[:2] == ("student", [])


def test_a_draw_goes_to_the_student() -> None:
    of = block(20)
    assert choose([of], {"cosine": [of.value], "student": [of.value]}, 0).used == "student"


def test_too_few_items_decide_nothing() -> None:
    of = block(SMALLEST - 1)
    found = choose([of], {"student": [noise(of, 0)], "cosine": [of.value]}, 0)
    assert (found.used, dict(found.skills), found.warnings()) == ("student", {}, [])


def test_a_probe_is_advised_where_something_free_selects_no_worse() -> None:
    def gate(**skill: float) -> dict[str, object]:
        return {"used": "student", "skill": {name: {"skill": value, "error": 0.1} for name, value in skill.items()}}

    told = advice(gate(student=0.4, cosine=0.4, ridge=0.1), 1200)
    assert told is not None
    assert told.startswith("--features probe")
    assert "(1,200 passes)" in told
    assert advice(gate(student=0.4, cosine=0.3), 1200) is None
    assert advice(gate(student=0.4), 1200) is None
    assert advice({"used": "student", "skill": {}}, 1200) is None
