from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.config import RunSettings
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.encode import HashEncoder
from nncift.errors import InfeasibleError
from nncift.estimate import estimate
from nncift.plan import Wish, grow
from nncift.teachers import Chunk, ChunkLabels


class Priced:
    """A teacher whose chunks cost 7 tokens to begin and 3 for each target."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True
    options: Mapping[str, Any] = {"teacher": "delift"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        return ChunkLabels(np.zeros(len(chunk.targets), np.float32), 7 + 3 * len(chunk.targets))

    def describe(self) -> Mapping[str, Any]:
        return {}


def test_tokens_are_extrapolated_from_the_start_of_a_chunk_and_its_targets(write_pool: Callable[..., Path]) -> None:
    pool = read(write_pool(50))
    told = estimate(RunSettings(labels="20%", budget="10"), pool, Priced(), HashEncoder())
    plan = grow(None, pool.ids, pool.ids, Wish(0.2, None), 0, shared=True, relative=True)
    passes = len(plan.entries)
    assert told["label"]["passes"] == passes
    assert told["label"]["tokens"] == pytest.approx(7 * plan.chunks + 3 * passes, rel=0.01)
    assert told["full_teacher"]["passes"] == 50 * 49 + 50
    assert told["saving"] == pytest.approx(1 - passes / 2500)
    assert (told["pool"], told["selected"]) == (50, 10)
    assert told["bytes"]["matrix_in_memory"] == 2 * 4 * 50 * 50


def test_a_wish_that_cannot_be_met_costs_nothing(write_pool: Callable[..., Path]) -> None:
    class Untouched(Priced):
        def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
            raise AssertionError("the teacher was used")

    with pytest.raises(InfeasibleError):
        estimate(RunSettings(budget="51"), read(write_pool(50)), Untouched(), HashEncoder())
