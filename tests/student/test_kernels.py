import numpy as np
import pytest

from nncift.student.network_kernels import relu_block, relu_pairs

SIZES = [(1, 1, 1), (1, 5, 7), (5, 1, 8), (4, 2, 16), (3, 3, 100), (9, 7, 13), (17, 6, 5), (40, 70, 12), (16, 64, 3)]


def case(n: int, m: int, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(n * 100 + m * 10 + hidden)
    return tuple(random.normal(size=size).astype(np.float32) for size in ((n, hidden), (m, hidden), hidden))  # type: ignore[return-value]


def plain(a: np.ndarray, b: np.ndarray, v: np.ndarray, c: float) -> np.ndarray:
    """Return `sum_k v_k relu(a_ik + b_jk) + c` as (n_targets, n_sources), term by term in double precision."""
    return np.asarray(np.maximum(a[:, None].astype(np.float64) + b[None], 0) @ v.astype(np.float64) + c)


@pytest.mark.parametrize(("n", "m", "hidden"), SIZES)
def test_a_block_is_the_plain_formula(n: int, m: int, hidden: int) -> None:
    a, b, v = case(n, m, hidden)
    found = relu_block(a, b, v, 0.25)
    assert found.shape == (m, n)
    assert np.allclose(found.T, plain(a, b, v, 0.25), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("n", "m", "hidden"), SIZES)
def test_pairs_are_the_plain_formula(n: int, m: int, hidden: int) -> None:
    a, b, v = case(n, m, hidden)
    i, j = (part.ravel().astype(np.int32) for part in np.meshgrid(np.arange(n), np.arange(m)))
    assert relu_pairs(a, b, i, j, v, -1.5) == pytest.approx(plain(a, b, v, -1.5)[i, j], abs=2e-5)


def test_no_pairs_at_all() -> None:
    a, b, v = case(3, 2, 8)
    none = np.empty(0, np.int32)
    assert relu_pairs(a, b, none, none, v, 0.0).shape == (0,)
    assert relu_block(a, b[:0], v, 0.0).shape == (0, 3)


def test_a_negative_sum_is_cut_at_zero() -> None:
    one = np.array([[1.0]], np.float32)
    assert relu_block(-2 * one, one, np.array([3.0], np.float32), 0.5).tolist() == [[0.5]]
    assert relu_block(2 * one, one, np.array([3.0], np.float32), 0.5).tolist() == [[9.5]]
