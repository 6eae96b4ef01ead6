"""Plan `active`: which pairs its rounds take."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive
from nncift.labels import NO_SOURCE, SPLITS, TRAIN, LabelBudget, LabelPlan, describe, grow
from nncift.labels.vectors import Vectors
from nncift.models.views import Views
from nncift.stages.active import ROUNDS, deciding_pairs, next_round, next_target
from nncift.student.networks import TrainingData

VIEWS = Views.of({"text": 8})
Pair = tuple[str, str]


def text(item: str) -> np.ndarray:
    """Return a row's vector, which depends on its id alone."""
    found = np.random.default_rng(derive(1, item)).normal(size=8).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found))


def utility(target: str, source: str) -> float:
    """Return what a teacher would say: near neighbours help each other."""
    return float(max(0.0, text(target) @ text(source)) ** 2)


def vectors(plan: LabelPlan) -> Vectors:
    sources = np.stack([text(item) for item in plan.source_ids])
    targets = sources if plan.shared else np.stack([text(item) for item in plan.target_ids])
    return Vectors(targets, sources, VIEWS)


def labels(plan: LabelPlan) -> dict[str, LabelledPairs]:
    entries, found = plan.entries, {}
    for code, name in enumerate(SPLITS):
        here = (entries.split == code) & (entries.source != NO_SOURCE)
        t, s = entries.target[here], entries.source[here]
        value = [utility(plan.target_ids[a], plan.source_ids[b]) for a, b in zip(t, s, strict=True)]
        found[name] = LabelledPairs(plan.target_ids, plan.source_ids, t, s, np.array(value, np.float32))
    return found


def train_pairs(plan: LabelPlan) -> list[Pair]:
    entries = plan.entries
    here = entries.split == TRAIN
    return [
        (plan.target_ids[t], plan.source_ids[s])
        for t, s in zip(entries.target[here], entries.source[here], strict=True)
    ]


def rounds(
    ids: Sequence[str], budget: LabelBudget, targets: Sequence[str] | None = None, seed: int = 0
) -> list[LabelPlan]:
    """Return the plan after every round."""
    shared = targets is None
    plan = grow(None, ids if targets is None else targets, ids, budget, seed, shared=shared, relative=True)
    found: list[LabelPlan] = []
    after: LabelPlan | None = plan
    while after is not None:
        found.append(after)
        after = next_round(after, labels(after), vectors(after), budget, seed, relative=True)
    return found


IDS = tuple(f"row-{i:03d}" for i in range(60))
OTHERS = tuple(f"target-{i:03d}" for i in range(40))
WISH = LabelBudget(None, 200, "active")


def test_half_is_scattered_and_rounds_bring_the_rest() -> None:
    assert [describe(plan)["train"] for plan in rounds(IDS, WISH)] == [100, 150, 200]
    assert [describe(plan)["train"] for plan in rounds(IDS, WISH, OTHERS)] == [100, 150, 200]


def test_the_last_round_ends_at_the_wish_whatever_it_is() -> None:
    assert next_target(0, 7) == round(ROUNDS[0] * 7)
    assert next_target(5, 7) == 7
    assert next_target(7, 7) is None
    assert [describe(plan)["train"] for plan in rounds(IDS, LabelBudget(None, 7, "active"))] == [4, 5, 7]


@pytest.mark.parametrize("targets", [None, OTHERS])
def test_rounds_take_no_pair_that_is_set_apart_taken_or_masked(targets: Sequence[str] | None) -> None:
    done = rounds(IDS, WISH, targets)
    for before, plan in itertools.pairwise(done):
        assert plan.roles == before.roles
        assert plan.generations[:-1] == before.generations
    pairs, roles = train_pairs(done[-1]), done[-1].roles
    assert len(pairs) == len(set(pairs)) == 200
    assert not {t for t, _ in pairs} & {*roles.test_targets, *roles.validation_targets}
    assert not {s for _, s in pairs} & {*roles.test_sources, *roles.validation_sources}
    assert all(t != s for t, s in pairs)
    entries = done[-1].entries
    keys = [(t, s) for t, s in zip(entries.target.tolist(), entries.source.tolist(), strict=True)]
    assert len(keys) == len(set(keys))


def test_later_pairs_are_worth_more_than_scattered_ones() -> None:
    first, *_, last = rounds(IDS, WISH)
    scattered = train_pairs(first)
    chosen = set(train_pairs(last)) - set(scattered)
    means = [np.mean([utility(*pair) for pair in part]) for part in (scattered, sorted(chosen))]
    assert means[1] > 2 * means[0]


@pytest.mark.parametrize("targets", [None, OTHERS])
def test_the_order_of_rows_and_the_session_decide_nothing(targets: Sequence[str] | None) -> None:
    mixed = [tuple(np.random.default_rng(3).permutation(list(part))) for part in (IDS, targets or IDS)]
    one = rounds(IDS, WISH, targets)[-1]
    two = rounds(IDS, WISH, targets)[-1]
    other = rounds(mixed[0], WISH, None if targets is None else mixed[1])[-1]
    assert train_pairs(one) == train_pairs(two)
    assert set(train_pairs(other)) == set(train_pairs(one))
    assert set(train_pairs(rounds(IDS, WISH, targets, seed=1)[-1])) != set(train_pairs(one))


def test_a_plan_that_is_used_up_ends() -> None:
    ids = IDS[:20]
    last = rounds(ids, LabelBudget(None, 10_000, "active"))[-1]
    roles = last.roles
    free = [item for item in ids if item not in {*roles.test_sources, *roles.validation_sources}]
    assert set(train_pairs(last)) == {(t, s) for t in free for s in free if t != s}


def drawn(
    free: Sequence[int], taken: Mapping[int, Sequence[int]], count: int, cap: int | None = None
) -> set[tuple[int, int]]:
    """Return the pairs drawn among 30 rows, by positions."""
    ids = tuple(IDS[:30])
    x = np.stack([text(item) for item in ids])
    t, s = (part.ravel().astype(np.int32) for part in np.indices((30, 30)))
    value = np.array([utility(ids[a], ids[b]) for a, b in zip(t, s, strict=True)], np.float32)
    every = LabelledPairs(ids, ids, t, s, value)
    training_data = TrainingData(every, every.take(np.arange(0, 900, 7)), x, x, VIEWS)
    codes = np.array(free, np.int32)
    pairs = [(a, b) for a, row in taken.items() for b in row]
    known = tuple(np.array(part, np.int32) for part in (zip(*pairs, strict=True) if pairs else ((), ())))
    found = deciding_pairs(training_data, codes, codes, (known[0], known[1]), count, 0)
    return set(zip(*(part.tolist() for part in found), strict=True))


def test_all_that_is_left_is_drawn_where_little_is_left() -> None:
    taken = {t: [s for s in range(30) if (t, s) not in {(2, 5), (9, 4)}] for t in range(30)}
    assert drawn(range(30), taken, 50) == {(2, 5), (9, 4)}


def test_pairs_come_from_the_best_of_their_target() -> None:
    found = drawn(range(30), {t: [t] for t in range(30)}, 90)
    assert len(found) == 90
    for t, s in found:
        rank = sum(utility(IDS[t], IDS[other]) > utility(IDS[t], IDS[s]) + 0.05 for other in range(30) if other != t)
        assert rank < 15


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    import nncift.stages.active
    from nncift.student import score

    whole = drawn(range(30), {t: [t] for t in range(30)}, 60)
    monkeypatch.setattr(score, "SMALLEST_TILE", 4)
    monkeypatch.setattr(nncift.stages.active, "tiles", partial(score.tiles, cap=4 * 4 * 7))
    assert drawn(range(30), {t: [t] for t in range(30)}, 60) == whole
