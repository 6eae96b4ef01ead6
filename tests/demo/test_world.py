"""The demo world: counts, skew, corruption and duplicates are what its truth says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nncift.demo import World, make_world, read_truth
from nncift.demo.words import CONTENT, FAMILIES, STUBS, WORDINGS, tokens, vocabulary
from nncift.demo.world_rules import CORRUPTIONS, draw_skill, draw_words
from nncift.errors import DataError, UsageError


def prompt(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


def content(row: dict[str, str]) -> tuple[str, str, str]:
    return row["instruction"], row["input"], row["output"]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(1000, seed=3)


def test_same_arguments_give_the_same_world_and_another_seed_another() -> None:
    first, again, other = make_world(60, seed=1), make_world(60, seed=1), make_world(60, seed=2)
    assert first == again
    assert first.skills != other.skills
    assert not {row["id"] for row in first.pool} & {row["id"] for row in other.pool}


@pytest.mark.parametrize("rows", [50, 77, 200])
def test_larger_world_begins_with_the_smaller_one(rows: int) -> None:
    small, large = make_world(rows, seed=5), make_world(300, seed=5)
    assert len(small.pool) == rows
    assert large.pool[:rows] == small.pool
    assert large.test == small.test
    assert small.truth.items() <= large.truth.items()


def test_ids_are_unique_and_truth_covers_them(world: World) -> None:
    ids = [row["id"] for row in world.pool + world.test]
    assert len(set(ids)) == len(ids) == 1100
    assert set(world.truth) == set(ids)


def test_shares_of_corrupted_and_repeated_rows(world: World) -> None:
    known = [world.truth[row["id"]] for row in world.pool]
    assert sum(bool(truth.duplicate_of) for truth in known) == 50
    assert sum(truth.corrupted for truth in known) == 120
    kinds = Counter(truth.corruption for truth in known if truth.corrupted)
    assert set(kinds) == set(CORRUPTIONS)
    assert min(kinds.values()) >= 20
    assert all(bool(truth.corruption) == truth.corrupted for truth in known)


def test_answers_are_right_exactly_where_truth_says_so(world: World) -> None:
    for row in world.pool + world.test:
        assert (world.answer(prompt(row)) == row["output"]) is not world.truth[row["id"]].corrupted


def test_each_kind_of_corruption_looks_as_described(world: World) -> None:
    for row in world.pool:
        kind, right, said = world.truth[row["id"]].corruption, tokens(world.answer(prompt(row))), tokens(row["output"])
        if kind == "stub":
            assert row["output"] in STUBS
        elif kind == "shuffled":
            assert sorted(said[1:]) == sorted(right[1:]) or sorted(said) == sorted(right)
            assert said[0] != right[0]
        elif kind == "garbled":
            assert len(said) == len(right)
            assert [word for word in said if word in CONTENT] == [word for word in right if word in CONTENT]
            assert said[0] != right[0]


def test_duplicates_repeat_an_earlier_row_exactly(world: World) -> None:
    rows = {row["id"]: row for row in world.pool}
    place = {row["id"]: index for index, row in enumerate(world.pool)}
    for row in world.pool:
        known = world.truth[row["id"]]
        if known.duplicate_of:
            original = rows[known.duplicate_of]
            assert content(row) == content(original)
            assert place[original["id"]] < place[row["id"]]
            assert not world.truth[original["id"]].duplicate_of
            assert not known.corrupted


def test_prompts_repeat_only_where_planted_and_test_is_held_out(world: World) -> None:
    fresh = [row for row in world.pool + world.test if not world.truth[row["id"]].duplicate_of]
    words = [tuple(word for word in tokens(prompt(row)) if word in CONTENT) for row in fresh]
    keys = Counter((world.truth[row["id"]].skill, said) for row, said in zip(fresh, words, strict=True))
    assert max(keys.values()) == 1


def test_skills_follow_zipf() -> None:
    world = make_world(4000, seed=3)
    sizes = Counter(world.truth[row["id"]].skill for row in world.pool)
    counts = np.array([sizes[skill.label] for skill in world.skills], dtype=float)
    slope = np.polyfit(np.log(np.arange(1, 25)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-1.1, abs=0.15)


@pytest.mark.parametrize("skills", [12, 24, 48])
def test_every_skill_has_a_clean_row_in_a_pool_of_four_times_as_many(skills: int) -> None:
    for seed in range(5):
        world = make_world(max(50, 4 * skills), seed, skills=skills, corrupted=0.3, duplicates=0.1)
        clean = {world.truth[row["id"]].skill for row in world.pool if not world.truth[row["id"]].corrupted}
        assert clean == {skill.label for skill in world.skills}


def test_test_rows_are_clean_and_even_over_skills(world: World) -> None:
    sizes = Counter(world.truth[row["id"]].skill for row in world.test)
    assert not any(world.truth[row["id"]].corrupted for row in world.test)
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_every_word_is_in_the_vocabulary() -> None:
    known = set(vocabulary())
    for seed in range(4):
        drawn = make_world(200, seed)
        said = {word for row in drawn.pool + drawn.test for text in content(row) for word in tokens(text)}
        assert said <= known


def test_wordings_hold_no_word_that_a_dictionary_could_hold() -> None:
    framing = {token for group in WORDINGS.values() for text, _ in group for token in tokens(text)}
    assert not framing & set(CONTENT)


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_redrawn_but_answers_follow_the_table(family: str) -> None:
    rng = np.random.default_rng(0)
    first, second = draw_skill("Zorvic", family, rng), draw_skill("Zorvic", family, rng)
    assert first != second
    words = draw_words(first, 4, rng)
    said = first.answer(words).split()
    expected = (
        [*words, first.closing] if family == "custom" else [x for word in words for x in (word, first.table[word])]
    )
    assert said == [first.opening, *expected]


def test_the_pool_does_not_depend_on_the_number_of_test_rows() -> None:
    few, many = make_world(150, 3, test_rows=10), make_world(150, 3, test_rows=180)
    assert few.pool == many.pool
    assert few.test == many.test[:10]
    prompts = {(row["instruction"], row["input"]) for row in many.pool}
    assert not prompts & {(row["instruction"], row["input"]) for row in many.test}


def test_files_round_trip(world: World, tmp_path: Path) -> None:
    files = world.write(tmp_path / "new" / "folder")
    assert tuple(json.loads(line) for line in files.pool.read_text().splitlines()) == world.pool
    assert tuple(json.loads(line) for line in files.test.read_text().splitlines()) == world.test
    assert read_truth(files.truth) == world.truth


def test_truth_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no truth file"):
        read_truth(tmp_path / "absent.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"id": "a", "colour": 1}\n')
    with pytest.raises(DataError, match="no truth file"):
        read_truth(tmp_path / "odd.jsonl")


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"skills": 1}, {"skills": 49}, {"corrupted": 0.5}, {"duplicates": -0.1}, {"zipf": -1.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        make_world(**wrong)  # type: ignore[arg-type]


def test_a_pool_too_large_for_its_skills_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.demo.world.draw_skill", lambda name, family, rng: draw_skill(name, family, rng, 3))
    with pytest.raises(UsageError, match="more skills"):
        make_world(200)


def test_a_prompt_without_a_skill_has_no_answer(world: World) -> None:
    with pytest.raises(UsageError, match="names no skill"):
        world.answer("Translate into French: fox")
