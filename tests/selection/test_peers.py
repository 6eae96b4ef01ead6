"""Independent libraries as oracles: submodlib-py and apricot-select, each in an environment of its own (`make test-slow`)."""

import sys
from pathlib import Path

import numpy as np
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.selection import pose

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["submodlib", "apricot"])
@pytest.mark.parametrize("seed", range(3))
def test_facility_location_has_the_value_of_the_oracle(library: str, seed: int) -> None:
    import peers

    random = np.random.default_rng(seed)
    points = random.normal(size=(10, 8))[random.integers(10, size=400)] + 0.5 * random.normal(size=(400, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    # The peers take similarities that are not negative as they are.
    similarity = np.maximum(points @ points.T, 0).astype(np.float32)
    ids = tuple(f"{i:03d}" for i in range(400))
    problem = pose(UtilityMatrix(ids, ids, np.asfortranarray(similarity)))
    for k in (1, 40, 120):
        found = peers.choose(library, similarity, k)
        assert found is not None
        theirs = problem.value([ids[place] for place in found["places"]])
        assert problem.choose(k).value == pytest.approx(theirs, rel=1e-6)
