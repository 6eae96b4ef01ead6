"""Equal steps and equal tokens: what is read in which step."""

from __future__ import annotations

from collections import Counter

import pytest

from nncift.errors import UsageError
from nncift.finetune.batch_schedule import Measure, schedule

SHORT = {f"short-{index}": 4 for index in range(5)}
LONG = {f"long-{index}": 10 + index for index in range(30)}


def test_a_measure_by_hand() -> None:
    # Ten rows of 7 tokens, three epochs, four rows a step: 30 rows are 7.5 steps, so 8, and 8 * 4 * 7 tokens.
    assert Measure.of("steps", [7] * 10, 4, 3, None) == Measure(steps=8)
    assert Measure.of("tokens", [7] * 10, 4, 3, None) == Measure(tokens=224)
    assert Measure.of("steps", [7] * 10, 4, 3, 5) == Measure(steps=5)
    assert Measure.of("tokens", [5, 6], 4, 3, 5) == Measure(tokens=110)


def test_equal_steps_are_equal_for_few_and_many_rows() -> None:
    few, many = (schedule(rows, Measure(steps=6), 4, 0) for rows in (SHORT, LONG))
    assert few.steps == many.steps == 6
    assert {len(update) for update in (*few.updates, *many.updates)} == {4}
    assert (few.epochs, many.epochs) == (24 / 5, 24 / 30)


@pytest.mark.parametrize("tokens", [200, 203, 211, 500])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_tokens_fall_short_by_less_than_a_row(tokens: int, seed: int) -> None:
    for rows in (SHORT, LONG):
        found = schedule(rows, Measure(tokens=tokens), 4, seed)
        assert found.tokens == sum(rows[item] for update in found.updates for item in update)
        assert tokens - max(rows.values()) < found.tokens <= tokens
        assert {len(update) for update in found.updates[:-1]} == {4}


def test_every_epoch_reads_every_row_once_in_a_new_order() -> None:
    found = schedule(SHORT, Measure(steps=10), 2, 0)
    read = [item for update in found.updates for item in update]
    epochs = [tuple(read[start : start + 5]) for start in range(0, 20, 5)]
    assert all(set(epoch) == set(SHORT) for epoch in epochs)
    assert len(set(epochs)) > 1
    assert set(Counter(read).values()) == {4}


def test_the_order_depends_on_the_seed_and_the_ids_alone() -> None:
    backwards = dict(reversed(LONG.items()))
    assert schedule(LONG, Measure(steps=9), 4, 3) == schedule(backwards, Measure(steps=9), 4, 3)
    assert schedule(LONG, Measure(steps=9), 4, 3) != schedule(LONG, Measure(steps=9), 4, 4)


def test_no_row_and_no_room_are_refused() -> None:
    with pytest.raises(UsageError, match="no row"):
        schedule({}, Measure(steps=1), 4, 0)
    with pytest.raises(UsageError, match="not one row fits into 3 tokens"):
        schedule(SHORT, Measure(tokens=3), 4, 0)
