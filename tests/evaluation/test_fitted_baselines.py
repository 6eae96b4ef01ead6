import numpy as np
import pytest
from sklearn.linear_model import Ridge

from nncift.core.pairs import LabelledPairs, Pairs
from nncift.errors import DataError, UsageError
from nncift.evaluation import baselines
from nncift.evaluation.baselines import DEFAULT_STRENGTH, STRENGTHS, Additive, Linear, Product, fit_baselines

TARGETS, SOURCES, WIDTH = 40, 60, 6
NONE = LabelledPairs((), (), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def unit(rng: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
    matrix = rng.normal(size=(rows, width)) + 0.3
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


class World:
    """Embeddings of both axes, a planted utility matrix, training pairs of seen items and test pairs of unseen ones."""

    def __init__(self, kind: str, seed: int = 0, noise: float = 0.02, train: int = 500) -> None:
        rng = np.random.default_rng(seed)
        self.t, self.s = unit(rng, TARGETS), unit(rng, SOURCES)
        a, b, c = rng.normal(size=(3, WIDTH))
        signal = {
            "additive": (self.t @ a)[:, None] + (self.s @ b)[None],
            "product": (self.t * c * 3) @ self.s.T,
        }[kind]
        self.matrix = (signal + noise * rng.normal(size=signal.shape)).astype(np.float32)
        seen = rng.permutation(30 * 45)[:train]
        self.train = self.pairs(seen // 45, seen % 45)
        late = np.array([(i, j) for i in range(30, TARGETS) for j in range(45, SOURCES)])
        self.validation, self.test = self.pairs(*late[::2].T), self.pairs(*late[1::2].T)

    def pairs(self, target: np.ndarray, source: np.ndarray) -> LabelledPairs:
        return LabelledPairs(
            tuple(f"t{i}" for i in range(TARGETS)),
            tuple(f"s{i}" for i in range(SOURCES)),
            target.astype(np.int32),
            source.astype(np.int32),
            self.matrix[target, source],
        )

    def concatenated(self, pairs: Pairs) -> np.ndarray:
        return np.hstack([self.t[pairs.target], self.s[pairs.source]]).astype(np.float64)

    def multiplied(self, pairs: Pairs) -> np.ndarray:
        return np.asarray(self.t[pairs.target].astype(np.float64) * self.s[pairs.source])


@pytest.mark.parametrize(("kind", "winner"), [("additive", "additive"), ("product", "ridge")])
def test_a_planted_signal_is_found_by_its_baseline(kind: str, winner: str) -> None:
    world = World(kind)
    fitted = fit_baselines(world.train, world.validation, world.t, world.s)
    spread = float(np.var(world.test.value))
    error = {name: float(np.mean((p.predict(world.test) - world.test.value) ** 2)) for name, p in fitted.items()}
    assert error[winner] < 0.03 * spread
    others = [name for name in error if name != winner]
    assert all(error[name] > 0.2 * spread for name in others)
    assert error[winner] <= min(error.values()) * 1.001


@pytest.mark.parametrize("memory", [baselines.MEMORY, 1024])
@pytest.mark.parametrize("train", [500, 8])
def test_ridge_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch, memory: int, train: int) -> None:
    # 8 pairs are fewer than the 12 additive features; 1024 bytes make chunks of a few rows.
    monkeypatch.setattr(baselines, "MEMORY", memory)
    world = World("additive", train=train)
    fitted = fit_baselines(world.train, world.validation, world.t, world.s)
    for name, features in (("additive", world.concatenated), ("ridge", world.multiplied)):
        baseline = fitted[name]
        assert isinstance(baseline, Linear)
        x = features(world.train)
        alpha = baseline.strength * np.trace(np.cov(x.T, bias=True)) / x.shape[1] * len(x)
        oracle = Ridge(alpha=alpha).fit(x, world.train.value.astype(np.float64))
        assert baseline.weights == pytest.approx(oracle.coef_, rel=1e-5, abs=1e-8)
        expected = oracle.predict(features(world.test))
        assert baseline.predict(world.test) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert baseline.predict(world.test).dtype == np.float32


def test_sums_over_items_are_sums_over_pairs() -> None:
    world = World("additive", train=200)
    for found, x in (
        (Additive(world.t, world.s).moments(world.train), world.concatenated(world.train)),
        (Product(world.t, world.s).moments(world.train), world.multiplied(world.train)),
    ):
        assert found.mean == pytest.approx(x.mean(axis=0))
        assert found.covariance == pytest.approx(np.cov(x.T, bias=True))


def test_validation_chooses_the_strength_and_nothing_chooses_the_default() -> None:
    clean = fit_baselines(
        World("additive").train, World("additive").validation, World("additive").t, World("additive").s
    )
    noise = World("additive", noise=30.0)
    noisy = fit_baselines(noise.train, noise.validation, noise.t, noise.s)
    alone = fit_baselines(noise.train, NONE, noise.t, noise.s)["additive"]
    assert isinstance(clean["additive"], Linear)
    assert isinstance(noisy["additive"], Linear)
    assert clean["additive"].strength < noisy["additive"].strength
    assert {clean["additive"].strength, noisy["additive"].strength} <= set(STRENGTHS)
    assert isinstance(alone, Linear)
    assert alone.strength == DEFAULT_STRENGTH


def test_missing_labels_are_left_out() -> None:
    world = World("additive", train=100)
    holed = LabelledPairs(
        world.train.target_ids,
        world.train.source_ids,
        world.train.target,
        world.train.source,
        np.r_[np.full(50, np.nan), world.train.value[50:]].astype(np.float32),
    )
    kept = world.train.take(np.arange(50, 100))
    for name, baseline in fit_baselines(holed, NONE, world.t, world.s).items():
        expected = fit_baselines(kept, NONE, world.t, world.s)[name].predict(world.test)
        assert (baseline.predict(world.test) == expected).all()


def test_equal_embeddings_fall_back_to_the_mean() -> None:
    world = World("additive", train=50)
    same_t, same_s = np.repeat(world.t[:1], TARGETS, axis=0), np.repeat(world.s[:1], SOURCES, axis=0)
    for baseline in fit_baselines(world.train, world.validation, same_t, same_s).values():
        assert baseline.predict(world.test) == pytest.approx(np.full(len(world.test), world.train.value.mean()))


def test_one_training_pair_is_enough_and_none_is_refused() -> None:
    world = World("additive")
    one = world.train.take(np.array([0]))
    for baseline in fit_baselines(one, NONE, world.t, world.s).values():
        assert baseline.predict(world.test) == pytest.approx(np.full(len(world.test), one.value[0]))
    with pytest.raises(DataError, match="no training pair"):
        fit_baselines(world.train.take(np.array([], dtype=np.intp)), NONE, world.t, world.s)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    world = World("additive")
    with pytest.raises(UsageError, match=r"expected \(40, d\) and \(60, d\)"):
        fit_baselines(world.train, NONE, world.s, world.t)
    broken = world.t.copy()
    broken[world.train.target[0], 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit_baselines(world.train, NONE, broken, world.s)
