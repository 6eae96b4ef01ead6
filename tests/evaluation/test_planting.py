from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import nncift
from nncift.errors import DataError, UsageError
from nncift.runs.planting import LANGUAGES, STUBS, Kind, flagged, plant, plant_kinds, swapped


def write(path: Path, rows: list[dict[str, object]]) -> nncift.Examples:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return nncift.read(path)


@pytest.fixture
def pool(write_pool: Callable[..., Path]) -> nncift.Examples:
    return nncift.read(write_pool(40))


@pytest.mark.parametrize("seed", range(5))
def test_swapped_rows_have_a_response_of_another_and_none_their_own(pool: nncift.Examples, seed: int) -> None:
    made = swapped(pool, 0.3, seed)
    assert len(made.bad) == 12
    assert len(made.examples) == len(pool)
    before = [pool.by_id(made.was[name]) for name in made.bad]
    after = [made.examples.by_id(name) for name in made.bad]
    assert Counter(one.response for one in before) == Counter(one.response for one in after)
    assert all(new.response != old.response for old, new in zip(before, after, strict=True))
    assert all(new.messages == old.messages for old, new in zip(before, after, strict=True))


def test_other_rows_stay_and_bad_ones_are_marked_in_their_place(pool: nncift.Examples) -> None:
    made = swapped(pool, 0.3)
    for old, new in zip(pool, made.examples, strict=True):
        assert new == old if new.id not in made.bad else new.id == f"{old.id}#swapped"


def test_the_seed_and_the_ids_decide_and_not_the_order(pool: nncift.Examples) -> None:
    turned = nncift.Examples(tuple(reversed(pool)))
    responses = {one.id: one.response for one in swapped(pool, 0.3, 1).examples}
    assert {one.id: one.response for one in swapped(turned, 0.3, 1).examples} == responses
    assert swapped(pool, 0.3, 2).bad != swapped(pool, 0.3, 1).bad


def test_a_planted_pool_reads_back_as_it_is(pool: nncift.Examples, tmp_path: Path) -> None:
    from nncift.data.file_rows import write_rows

    made = swapped(pool, 0.3)
    write_rows(tmp_path / "planted.jsonl", made.examples)
    again = nncift.read(tmp_path / "planted.jsonl")
    assert [(one.id, one.response, one.messages) for one in again] == [
        (one.id, one.response, one.messages) for one in made.examples
    ]


def test_rows_of_one_response_cannot_all_be_exchanged(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"instruction": f"q{k}", "output": "yes"} for k in range(9)]
    with pytest.raises(DataError, match="same response"):
        swapped(write(tmp_path / "a.jsonl", rows), 0.9)
    mixed: list[dict[str, object]] = [
        {"instruction": f"q{k}", "output": "yes" if k % 2 else f"no {k // 4}"} for k in range(9)
    ]
    made = swapped(write(tmp_path / "b.jsonl", mixed), 0.9)
    old = write(tmp_path / "b.jsonl", mixed)
    assert all(old.by_id(made.was[name]).response != made.examples.by_id(name).response for name in made.bad)


def test_a_truncated_response_is_the_start_of_its_own(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": f"q{k}", "output": " ".join(["one  two\nthree"] * k) or "x"} for k in range(6)
    ]
    pool = write(tmp_path / "a.jsonl", rows)
    made = plant(pool, 0.8, "truncated", 0)
    for name in made.bad:
        old, new = pool.by_id(made.was[name]).response, made.examples.by_id(name).response
        assert old.startswith(new)
        assert len(new.split()) == max(1, len(old.split()) // 3)


def test_a_stub_says_nothing_of_its_row(pool: nncift.Examples) -> None:
    made = plant(pool, 0.5, "stub")
    assert {made.examples.by_id(name).response for name in made.bad} == set(STUBS)


def test_a_response_of_another_language_is_of_one_and_about_as_long(pool: nncift.Examples) -> None:
    made = plant(pool, 0.5, "language")
    longest = max(len(sentence) for language in LANGUAGES for sentence in language)
    for name in made.bad:
        old, new = pool.by_id(made.was[name]), made.examples.by_id(name)
        rest = [new.response]
        of = [language for language in LANGUAGES if new.response.startswith(language)]
        assert len(of) == 1
        for sentence in of[0]:
            rest = [part for text in rest for part in text.split(sentence)]
        assert not "".join(rest).strip()
        assert len(new.response) <= len(old.response) + longest
        assert new.messages == old.messages


def test_a_duplicate_repeats_a_row_that_is_left_as_it_is(pool: nncift.Examples) -> None:
    made = plant(pool, 0.2, "duplicated", seed=1, spared=pool.ids[:10])
    originals = {one.content_hash: one.id for one in made.examples if one.id not in made.bad}
    assert len(made.bad) == 8
    assert {originals[made.examples.by_id(name).content_hash] for name in made.bad} == made.copied
    assert not {made.was[name] for name in made.bad} & ({*pool.ids[:10]} | made.copied)


def test_kinds_are_planted_into_one_pool_and_no_row_twice(pool: nncift.Examples) -> None:
    shares = {"duplicated": 0.2, "swapped": 0.2, "truncated": 0.1, "language": 0.1, "stub": 0.1}
    found = plant_kinds(pool, shares, seed=3)
    assert list(found) == ["swapped", "truncated", "stub", "language", "duplicated"]
    last = found["duplicated"].examples
    assert len(last) == len(pool)
    for kind, made in found.items():
        assert len(made.bad) == round(shares[kind] * 40)
        assert made.bad <= set(last.ids)
        assert all(name.count("#") == 1 for name in made.bad)
    contents = {one.id: one.content_hash for one in last}
    assert all(contents[item] == pool.by_id(item).content_hash for item in found["duplicated"].copied)
    with pytest.raises(UsageError, match="not by 'rotten'"):
        plant_kinds(pool, {"rotten": 0.1})
    with pytest.raises(UsageError, match="'nothing'"):
        plant_kinds(pool, {})


def test_flags_of_rows_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": f"r{k}", "instruction": f"q{k}", "output": "x", "good": k % 2 == 0} for k in range(4)
    ]
    pool = write(tmp_path / "a.jsonl", rows)
    assert flagged(pool, "good") == {"r1", "r3"}
    with pytest.raises(DataError, match="no column 'fine'"):
        flagged(pool, "fine")


@pytest.mark.parametrize(("share", "kind"), [(0.0, "swapped"), (1.0, "swapped"), (0.3, "rotten")])
def test_impossible_wishes_are_refused(pool: nncift.Examples, share: float, kind: Kind) -> None:
    with pytest.raises(UsageError):
        plant(pool, share, kind)


def test_too_few_rows_are_refused(pool: nncift.Examples) -> None:
    with pytest.raises(DataError, match="1 of 40"):
        swapped(pool, 0.02)
