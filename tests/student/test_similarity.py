import numpy as np
import pytest

from nncift.student.view_cosines import POWERS, add_polynomial, powers_of


def explicit(cosine: np.ndarray, count: int) -> np.ndarray:
    """Return the cosine and the powers of its positive part, by numpy, in double precision."""
    c = cosine.astype(np.float64)
    return np.stack([c, *(np.maximum(c, 0) ** exponent for exponent in POWERS[1:count])], axis=-1)


@pytest.mark.parametrize("count", [1, 2, len(POWERS)])
def test_powers_are_numpys(count: int) -> None:
    cosine = np.linspace(-1, 1, 41, dtype=np.float32)
    assert powers_of(cosine, count) == pytest.approx(explicit(cosine, count), abs=1e-6)


@pytest.mark.parametrize("count", [1, 3, len(POWERS)])
def test_a_polynomial_is_added_to_what_is_there(count: int) -> None:
    random = np.random.default_rng(0)
    cosine = random.uniform(-1, 1, (37, 53)).astype(np.float32)
    before, weights = random.normal(size=(37, 53)).astype(np.float32), random.normal(size=count).astype(np.float32)
    out = before.copy()
    add_polynomial(out, cosine, weights)
    assert out == pytest.approx(before + explicit(cosine, count) @ weights, abs=1e-5)


def test_each_exponent_is_the_last_one_doubled() -> None:
    assert POWERS == (1, 2, 4, 8, 16, 32)


def test_nothing_is_added_to_nothing() -> None:
    out = np.empty((0, 4), np.float32)
    add_polynomial(out, np.empty((0, 4), np.float32), np.ones(2, np.float32))
    assert powers_of(np.empty(0, np.float32), 3).shape == (0, 3)
