import numpy as np
import pytest

from nncift.core.pairs import Pairs
from nncift.evaluation.bootstrap import BLOCK, has_enough_items, item_weights, percentile_interval
from nncift.evaluation.metrics import Ranking, rank_correlation


def grid(target_ids: tuple[str, ...], source_ids: tuple[str, ...]) -> Pairs:
    target, source = np.divmod(np.arange(len(target_ids) * len(source_ids), dtype=np.int32), len(source_ids))
    return Pairs(target_ids, source_ids, target.astype(np.int32), source.astype(np.int32))


def names(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(count))


def weights_of(pairs: Pairs, resamples: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(item_weights(pairs, np.random.default_rng(seed), resamples)), axis=1)


def test_a_pair_counts_as_its_target_times_its_source() -> None:
    drawn = weights_of(grid(names("t", 6), names("s", 4)), BLOCK + 3)
    assert drawn.shape == (24, BLOCK + 3)
    assert (drawn.sum(axis=0) == 24).all()
    for column in drawn.T:
        assert np.linalg.matrix_rank(column.reshape(6, 4)) == 1


def test_an_item_in_both_roles_is_drawn_once() -> None:
    # The sources are the targets in reverse: the count of an item must be the same on both axes.
    ids = names("i", 5)
    for column in weights_of(grid(ids, ids[::-1]), 50).T:
        table = column.reshape(5, 5)
        assert (table.sum(axis=1) == table.sum(axis=0)[::-1]).all()


def test_different_items_are_drawn_independently() -> None:
    drawn = weights_of(grid(names("t", 8), names("s", 8)), 400).reshape(8, 8, -1)
    targets, sources = drawn.sum(axis=1) / 8, drawn.sum(axis=0) / 8
    assert abs(np.corrcoef(targets[0], sources[0])[0, 1]) < 0.15


def test_a_single_id_on_an_axis_is_given_and_not_drawn() -> None:
    drawn = weights_of(grid(("task",), names("s", 10)), 20)
    assert (drawn.sum(axis=0) == 10).all()
    assert has_enough_items(grid(("task",), names("s", 10)))
    assert not has_enough_items(grid(names("t", 10), names("s", 4)))


def test_percentiles_and_undefined_resamples() -> None:
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.r_[np.arange(80.0), np.full(20, np.nan)]) is None
    assert percentile_interval(np.empty(0)) is None


def test_intervals_cover_where_items_share_effects_and_drawing_single_pairs_would_not() -> None:
    # Labels and predictions are sums of item effects that agree in part; their rank correlation in the population
    # of items is that of a bivariate normal.
    items, worlds, resamples, agreement = 25, 300, 160, 0.6
    pairs = grid(names("t", items), names("s", items))
    truth = 6 / np.pi * np.arcsin(agreement / 2)
    spread = np.sqrt(1 - agreement**2)
    rng = np.random.default_rng(5)
    covered = {"items": 0, "pairs": 0}
    for _ in range(worlds):
        a, b, c, d = rng.normal(size=(4, items))
        label = (a[:, None] + b[None]).ravel()
        guess = (agreement * (a[:, None] + b[None]) + spread * (c[:, None] + d[None])).ravel()
        ranking, guess_ranking = Ranking.of(label), Ranking.of(guess)
        naive = rng.multinomial(items**2, np.full(items**2, items**-2.0), size=40).T.astype(np.float64)
        for kind, blocks in (("items", item_weights(pairs, rng, resamples)), ("pairs", iter([naive]))):
            values = [rank_correlation(ranking.centred(w), guess_ranking.centred(w), w) for w in blocks]
            low, high = percentile_interval(np.concatenate(values)) or (0.0, 0.0)
            covered[kind] += low <= truth <= high
    assert covered["items"] / worlds >= 0.88
    assert covered["pairs"] / worlds <= 0.5


def test_items_in_both_roles_need_shared_draws_to_be_covered() -> None:
    # The same item effect acts in the row and in the column; drawing the roles apart takes them for twice the items.
    items, worlds, agreement = 30, 100, 0.6
    target, source = np.nonzero(~np.eye(items, dtype=bool))
    roles = names("i", items), names("j", items)
    shared = Pairs(roles[0], roles[0], target.astype(np.int32), source.astype(np.int32))
    apart = Pairs(roles[0], roles[1], target.astype(np.int32), source.astype(np.int32))
    truth = 6 / np.pi * np.arcsin(agreement / 2)
    rng = np.random.default_rng(6)
    covered = {"shared": 0, "apart": 0}
    for _ in range(worlds):
        a, c = rng.normal(size=(2, items))
        c = agreement * a + np.sqrt(1 - agreement**2) * c
        ranking, guess = Ranking.of(a[target] + a[source]), Ranking.of(c[target] + c[source])
        for kind, pairs in (("shared", shared), ("apart", apart)):
            blocks = item_weights(pairs, rng, 160)
            values = [rank_correlation(ranking.centred(w), guess.centred(w), w) for w in blocks]
            low, high = percentile_interval(np.concatenate(values)) or (0.0, 0.0)
            covered[kind] += low <= truth <= high
    assert covered["shared"] / worlds >= 0.85
    assert covered["apart"] <= covered["shared"] - 5


def test_a_few_wanted_targets_are_given_and_sources_alone_drawn() -> None:
    shape = 3, 12
    target, source = np.divmod(np.arange(36, dtype=np.int32), 12)
    pairs = Pairs(tuple("abc"), tuple(f"s{n}" for n in range(12)), target.astype(np.int32), source.astype(np.int32))
    assert has_enough_items(pairs)
    weights = np.concatenate(list(item_weights(pairs, np.random.default_rng(0), 40)), axis=1)
    tables = weights.T.reshape(40, *shape)
    assert (tables == tables[:, :1]).all()
    assert (tables[:, 0].sum(1) == 12).all()
    rows = Pairs(tuple("abc"), ("a", "b", "c", "d", "e"), *np.divmod(np.arange(15, dtype=np.int32), np.int32(5)))
    assert not has_enough_items(rows)
