from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nncift.models.batching import PaddingLimit, batches
from nncift.models.beginnings import LEAST, LEAST_SAVED, Beginning, beginnings_of, common_start, tokens_once
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.shared_reading import mean_losses, parts_of, readings, tokens_read

SYSTEM, OTHER = tuple(range(100, 130)), tuple(range(200, 220))


def test_rows_with_the_same_system_turn_share_it() -> None:
    prompts = [
        (*SYSTEM, 1, 2),
        (*OTHER, 3),
        (*SYSTEM, 4),
        (*OTHER, 5),
        (*SYSTEM, 6, 7),
        (9, 9),
        (*OTHER, 8, 8),
        (*OTHER, 7),
    ]
    found = beginnings_of(prompts)
    assert found == [Beginning((), (5,)), Beginning(SYSTEM, (0, 2, 4)), Beginning(OTHER, (1, 3, 6, 7))]
    lengths = [len(prompt) for prompt in prompts]
    assert tokens_once(lengths, found) == sum(lengths) - 2 * 30 - 3 * 20


def test_a_longer_beginning_of_many_is_a_part_of_its_own() -> None:
    head = tuple(range(300, 350))
    prompts = [*((*SYSTEM, *head, n) for n in range(4)), *((*SYSTEM, 1000 + n) for n in range(4))]
    assert beginnings_of(prompts) == [Beginning((*SYSTEM, *head), (0, 1, 2, 3)), Beginning(SYSTEM, (4, 5, 6, 7))]


def test_little_is_not_shared() -> None:
    assert beginnings_of([(*SYSTEM, 1), (*SYSTEM, 2)]) == [Beginning((), (0, 1))]
    # Three tokens of fifty rows, which a pass of its own would not be worth.
    assert beginnings_of([(1, 2, 3, n) for n in range(50)]) == [Beginning((), tuple(range(50)))]
    assert beginnings_of([]) == []


def test_each_prompt_keeps_a_token_of_its_own() -> None:
    assert common_start([(1, 2, 3), (1, 2, 3)]) == (1, 2)
    assert common_start([(1, 2, 3)]) == ()
    (part,) = beginnings_of([SYSTEM] * 5)
    assert part.ids == SYSTEM[:-1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=30), st.integers(0, 1000))
def test_parts_cover_every_row_once_and_begin_as_its_rows_do(tails: list[list[int]], seed: int) -> None:
    heads = [SYSTEM[:20], (*SYSTEM[:20], *OTHER), OTHER, ()]
    drawn = random.Random(seed)
    prompts = [(*drawn.choice(heads), *tail) for tail in tails]
    found = beginnings_of(prompts)
    assert sorted(place for part in found for place in part.places) == list(range(len(prompts)))
    for part in found:
        assert all(prompts[place][: len(part.ids)] == part.ids for place in part.places)
        assert all(len(prompts[place]) > len(part.ids) for place in part.places)
        assert not part.ids or (len(part.ids) >= LEAST and len(part.places) > 1)
    lengths = [len(prompt) for prompt in prompts]
    assert tokens_once(lengths, found) <= sum(lengths)
    if any(part.ids for part in found):
        assert tokens_once(lengths, found) <= sum(lengths) - LEAST_SAVED // 2


@pytest.mark.parametrize("folder", ["llama_folder", "gpt2_folder"])
def test_rows_behind_a_beginning_read_as_they_do_whole(folder: str, request: pytest.FixtureRequest) -> None:
    lm = CausalLM.load(request.getfixturevalue(folder), device="cpu")
    head = [1, *(5 + n % 40 for n in range(20))]
    rows = [Row([*head, 9 + n, 12], [20 + n, 21, 2][: 1 + n % 3]) for n in range(5)] + [Row([1, 40, 41], [7, 8])]
    assert [part.places for part in parts_of(lm, rows)] == [(5,), (0, 1, 2, 3, 4)]
    expected = [lm.read([row], (0,))[0] for row in rows]
    found = dict(readings(lm, rows, 64, (0,)))
    assert sorted(found) == list(range(6))
    for place, reading in found.items():
        for one, other in (
            (reading.hidden, expected[place].hidden),
            (reading.added, expected[place].added),
            (reading.log_probabilities, expected[place].log_probabilities),
        ):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
    losses = [-float(reading.log_probabilities.mean()) for reading in expected]
    np.testing.assert_allclose(mean_losses(lm, rows, 64), losses, atol=1e-5)
    assert tokens_read(lm, rows) == sum(map(len, rows)) - 4 * 21


def test_a_model_that_cannot_share_reads_rows_whole(llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    rows = [Row([1, *range(5, 30), 30 + n], [7]) for n in range(4)]
    shared = mean_losses(lm, rows, 64)
    lm._fast_prefix = False
    assert parts_of(lm, rows) == [Beginning((), (0, 1, 2, 3))]
    assert tokens_read(lm, rows) == sum(map(len, rows))
    np.testing.assert_allclose(mean_losses(lm, rows, 64), shared, atol=1e-5)


def test_a_batch_of_enough_tokens_takes_no_padding_for_more() -> None:
    lengths, enough = [60, 60, 62, 90, 20], PaddingLimit(128, 0.0)
    assert batches(lengths, 1000) == [[4, 0, 1, 2, 3]]
    # 20 is not enough yet; 140 tokens are, and 62 more would be 248 padded tokens of 202.
    assert batches(lengths, 1000, limit=enough) == [[4, 0, 1], [2, 3]]
    assert batches([60, 60, 62, 90], 1000, limit=enough) == [[0, 1, 2], [3]]
    assert batches([100] * 7, 1000, limit=enough) == [list(range(7))]
    # 46 padded tokens take no longer than a pass more, 158 do.
    assert batches(lengths, 1000, limit=PaddingLimit(128, 60.0)) == [[4, 0, 1, 2], [3]]


def test_a_pass_of_a_small_model_takes_as_long_as_much_padding() -> None:
    # Two modules and a thousand numbers.
    small = nn.Sequential(nn.Linear(100, 10, bias=False))
    assert PaddingLimit.of(small, torch.device("cpu")) == PaddingLimit(128, 2 * 1.4e6 / 1000)
    assert PaddingLimit.of(small, torch.device("cuda")) is None
