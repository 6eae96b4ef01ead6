from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive
from nncift.data.examples import Examples, Rejection
from nncift.errors import DataError, UsageError
from nncift.labels import SCORE, LabelBudget, LabelFormat, RowLabelStore, RowPlan, grow_rows
from nncift.labels.row_labels import CHUNK_ROWS
from nncift.labels.sizes import FEW_TARGETS
from nncift.teachers import RowLabels

SPLITS = {"train", "validation", "q2", "q3", "test", "rest"}


class Dot:
    """Two numbers per row from its id; `utility` is not symmetric, so an exchange of axes shows."""

    name = "dot"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    width = 2
    options: Mapping[str, Any] = {"teacher": "dot"}

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self.asked: list[str] = []
        self._without = without

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        self.asked += ids
        return RowLabels(np.array([self.values(item) for item in ids], np.float32), 5 * len(ids), len(ids))

    def values(self, item: str) -> tuple[float, float]:
        if item in self._without:
            return np.nan, np.nan
        return derive(1, item) % 1000 / 1000, derive(2, item) % 1000 / 1000

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        return targets[:, :1] * sources[:, 1:].T + targets[:, 1:]

    def describe(self) -> Mapping[str, Any]:
        return {"teacher": "dot"}


class Rated(Dot):
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    width = 1

    def measure(self, ids: Sequence[str]) -> RowLabels:
        found = super().measure(ids)
        return RowLabels(found.values[:, :1], found.tokens, found.passes)


def names(n: int, start: int = 0, head: str = "row") -> tuple[str, ...]:
    return tuple(f"{head}-{index:03d}" for index in range(start, start + n))


def budget(labels: float, test: int = 30, validation: int = 20) -> LabelBudget:
    share, count = (labels, None) if labels <= 1 else (None, int(labels))
    return LabelBudget(share, count, "rows", test, validation)


def plan_of(
    ids: Sequence[str], labels: float, *, previous: RowPlan | None = None, targets: Sequence[str] | None = None
) -> RowPlan:
    return grow_rows(previous, targets or ids, ids, budget(labels), 0, shared=targets is None)


def test_rows_of_like_length_are_measured_together() -> None:
    ids = names(200)
    length = {item: (37 * at) % 101 for at, item in enumerate(ids)}
    plain = plan_of(ids, 0.5)
    plan = grow_rows(None, ids, ids, budget(0.5), 0, shared=True, length=length.__getitem__)
    assert plan.measured == plain.measured
    (chunks,) = plan.generations
    spans = sorted((min(map(length.__getitem__, chunk)), max(map(length.__getitem__, chunk))) for chunk in chunks)
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))
    assert [low for low, _ in spans] != [min(map(length.__getitem__, chunk)) for chunk in chunks]
    assert chunks[0][0] == plain.order[0]


def filled(folder: Path, plan: RowPlan, teacher: Dot) -> RowLabelStore:
    store = RowLabelStore(folder, teacher)
    store.adopt(plan, LabelFormat.of(teacher))
    for chunk in list(store.pending()):
        store.write(chunk, teacher.measure(chunk.ids), 0.5)
    store.flush()
    return store


def groups(plan: RowPlan, axis: str) -> list[set[str]]:
    return [
        set(getattr(plan, f"train_{axis}s")),
        set(getattr(plan.roles, f"validation_{axis}s")),
        set(getattr(plan.roles, f"test_{axis}s")),
    ]


@pytest.mark.parametrize("targets", [None, names(40, head="target:t"), names(400, head="target:t"), SCORE])
def test_roles_are_disjoint_and_u_of_the_rows_are_measured(targets: tuple[str, ...] | None) -> None:
    plan = plan_of(names(200), 0.1, targets=targets)
    for axis in ("target", "source"):
        train, validation, test = groups(plan, axis)
        assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert len(plan.train_sources) == 20
    # Held out are at most as many rows as train.
    assert (len(plan.roles.test_sources), len(plan.roles.validation_sources)) == (12, 8)
    planned = set().union(*groups(plan, "source"), *([] if targets == SCORE else groups(plan, "target")))
    assert plan.measured == planned
    if targets is None:
        assert len(plan.measured) == 20 + 12 + 8
        assert plan.train_targets == plan.train_sources
    assert plan.full_rows == 200 + (len(targets) if targets and targets != SCORE else 0)
    sizes = [len(chunk) for chunk in plan.generations[0]]
    assert max(sizes) <= CHUNK_ROWS
    assert sum(sizes) == len(plan.measured)


def test_a_plan_follows_from_ids_and_seed_not_from_their_order() -> None:
    ids = names(60)
    assert plan_of(ids, 0.2).measured == plan_of(ids[::-1], 0.2).measured
    assert plan_of(ids, 0.2).measured != grow_rows(None, ids, ids, budget(0.2), 1, shared=True).measured


def test_a_small_target_set_is_measured_whole_and_a_large_one_is_not() -> None:
    few, many = names(FEW_TARGETS, head="target:t"), names(400, head="target:t")
    assert set(few) <= plan_of(names(100), 0.1, targets=few).measured
    large = plan_of(names(100), 0.1, targets=many)
    assert len(large.train_targets) == FEW_TARGETS
    assert len(plan_of(names(100), 0.25, targets=many).train_targets) == 100


@pytest.mark.parametrize("targets", [None, names(30, head="target:t")])
def test_all_pairs_among_measured_rows_have_one_split_and_the_teachers_value(
    tmp_path: Path, targets: tuple[str, ...] | None
) -> None:
    ids, teacher = names(60), Dot()
    plan = plan_of(ids, 0.3, targets=targets)
    found = filled(tmp_path, plan, teacher).derived()
    assert set(found) == SPLITS
    seen: dict[tuple[str, str], str] = {}
    role = {
        axis: {
            item: name
            for name, items in zip(("train", "validation", "test"), groups(plan, axis), strict=True)
            for item in items
        }
        for axis in ("target", "source")
    }
    split_of = {
        ("train", "train"): "train",
        ("validation", "validation"): "validation",
        ("test", "test"): "test",
        ("test", "train"): "q2",
        ("train", "test"): "q3",
    }
    for split, pairs in found.items():
        for t, s, value in zip(pairs.target, pairs.source, pairs.value, strict=True):
            target, source = plan.target_ids[t], plan.source_ids[s]
            assert target != source
            assert (target, source) not in seen
            seen[target, source] = split
            assert split == split_of.get((role["target"][target], role["source"][source]), "rest")
            one, other = teacher.values(target), teacher.values(source)
            assert value == pytest.approx(one[0] * other[1] + one[1], abs=1e-6)
    lines = [item for item in plan.target_ids if item in plan.measured]
    columns = [item for item in plan.source_ids if item in plan.measured]
    assert set(seen) == {(t, s) for t in lines for s in columns if t != s}
    assert len(found["rest"]) > 0


def test_a_pointwise_teacher_has_one_target_and_no_quadrants_in_between(tmp_path: Path) -> None:
    ids, teacher = (*names(59), "score"), Rated()
    plan = plan_of(ids, 1.0, targets=SCORE)
    assert plan.measured == set(ids)
    assert plan.roles.test_targets == plan.roles.validation_targets == ()
    found = filled(tmp_path, plan, teacher).derived()
    assert set(found) == {"train", "validation", "test"}
    for split, members in zip(("train", "validation", "test"), groups(plan, "source"), strict=True):
        pairs = found[split]
        assert pairs.target_ids == SCORE
        assert not pairs.target.any()
        assert {ids[code] for code in pairs.source} == members
        expected = [teacher.values(ids[code])[0] for code in pairs.source]
        np.testing.assert_allclose(pairs.value, expected, atol=1e-6)


@pytest.mark.parametrize("targets", [None, names(30, head="target:t"), SCORE])
@pytest.mark.parametrize(("rows", "labels"), [(60, 0.5), (90, 0.2), (90, 0.5)])
def test_growth_measures_only_what_is_new_and_keeps_chunks_and_values(
    tmp_path: Path, targets: tuple[str, ...] | None, rows: int, labels: float
) -> None:
    make = Rated if targets == SCORE else Dot
    first, second = make(), make()
    before = plan_of(names(60), 0.2, targets=targets)
    old = filled(tmp_path, before, first).derived()
    previous = RowLabelStore(tmp_path).plan
    assert previous == before
    plan = plan_of(names(rows), labels, previous=previous, targets=targets)
    assert plan.generations[: len(before.generations)] == before.generations
    for axis in ("target", "source"):
        for was, now in zip(groups(before, axis), groups(plan, axis), strict=True):
            assert was <= now
    new = filled(tmp_path, plan, second).derived()
    assert not set(first.asked) & set(second.asked)
    assert set(first.asked) | set(second.asked) == plan.measured
    assert len(second.asked) == len(plan.measured) - len(before.measured)
    values = {
        (pairs.target_ids[t], pairs.source_ids[s]): (split, value)
        for split, pairs in new.items()
        for t, s, value in zip(pairs.target, pairs.source, pairs.value, strict=True)
    }
    for split, pairs in old.items():
        for t, s, value in zip(pairs.target, pairs.source, pairs.value, strict=True):
            kept, again = values[pairs.target_ids[t], pairs.source_ids[s]]
            assert again == value
            # A pair that no split wanted may become useful when its rows get a role; no other changes sides.
            assert kept == split or split == "rest"


def test_a_pool_that_grows_without_new_measurements_moves_the_axes(tmp_path: Path) -> None:
    teacher = Dot()
    few = LabelBudget(None, 10, "rows", 2, 2)
    plan = grow_rows(None, names(40), names(40), few, 0, shared=True)
    filled(tmp_path, plan, teacher)
    grown = grow_rows(plan, names(43), names(43), few, 0, shared=True)
    assert grown.generations == plan.generations
    store = filled(tmp_path, grown, idle := Dot())
    assert idle.asked == []
    assert store.derived()["train"].source_ids == names(43)
    assert RowLabelStore(tmp_path).plan == grown


def test_fewer_labels_are_refused() -> None:
    plan = plan_of(names(60), 0.5)
    with pytest.raises(UsageError, match=r"30 measured rows to train on, and --labels asks for 12; labels are never"):
        plan_of(names(60), 0.2, previous=plan)


def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path: Path) -> None:
    plan, first, second = plan_of(names(60), 0.5), Dot(), Dot()
    store = RowLabelStore(tmp_path, first)
    store.adopt(plan, LabelFormat(2))
    chunk = next(store.pending())
    store.write(chunk, first.measure(chunk.ids), 0.5)
    store.flush()
    again = RowLabelStore(tmp_path)
    assert (again.progress().labels, again.progress().passes, again.progress().tokens) == (16, 16, 80)
    filled(tmp_path, plan, second)
    assert not set(first.asked) & set(second.asked)
    whole = filled(tmp_path / "straight", plan, Dot()).derived()
    for split, pairs in RowLabelStore(tmp_path, Dot()).derived().items():
        np.testing.assert_array_equal(pairs.value, whole[split].value)


@pytest.mark.parametrize(("limit", "value"), [("FLUSH_SECONDS", 0.0), ("FLUSH_BYTES", 1)])
def test_what_waits_for_the_disk_is_there_after_a_second_or_many_bytes_and_lost_before(
    limit: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.labels.store.FLUSH_SECONDS", 3600.0)
    store, teacher = RowLabelStore(tmp_path), Dot()
    store.adopt(plan_of(names(60), 0.5), LabelFormat(teacher.width))
    first, second, *rest = store.pending()
    store.write(first, teacher.measure(first.ids), 0.5)
    assert len(list(RowLabelStore(tmp_path).pending())) == 2 + len(rest)
    monkeypatch.setattr(f"nncift.labels.store.{limit}", value)
    store.write(second, teacher.measure(second.ids), 0.5)
    assert [chunk.ids for chunk in RowLabelStore(tmp_path).pending()] == [chunk.ids for chunk in rest]


def test_rows_without_a_value_are_counted_and_give_no_value(tmp_path: Path) -> None:
    plan = plan_of(names(60), 0.5)
    teacher = Dot(without=plan.train_sources[:2])
    store = filled(tmp_path, plan, teacher)
    assert store.progress().missing == 2
    train = store.derived()["train"]
    assert np.isnan(train.value).sum() == 30 * 29 - 28 * 27


def test_another_width_is_refused(tmp_path: Path) -> None:
    plan = plan_of(names(40), 0.2)
    store = filled(tmp_path, plan, Dot())
    store.adopt(plan, LabelFormat(2))
    with pytest.raises(DataError, match=r"kept as LabelFormat\(width=2.*asks for LabelFormat\(width=3"):
        store.adopt(plan, LabelFormat(3))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan-000.json", "{"),
        ("plan-000.json", "[]"),
        ("plan-000.json", "{}"),
        ("plan-001.json", '{"kind": "row", "format": 3}'),
        ("plan-001.json", '{"kind": "row", "format": {"width": 2}}'),
        ("plan-001.parquet", "PAR1"),
        ("values-000.npy", "x"),
        ("values-000.json", "x"),
        ("costs-000.sums.npy", ""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    plan = plan_of(names(40), 0.2)
    filled(tmp_path, plan, Dot())
    filled(tmp_path, plan_of(names(40), 0.5, previous=plan), Dot())
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        RowLabelStore(tmp_path, Dot()).derived()


def test_nothing_is_known_without_a_plan_or_a_measurement(tmp_path: Path) -> None:
    store = RowLabelStore(tmp_path)
    assert store.plan is None
    with pytest.raises(DataError, match="no label plan"):
        list(store.pending())
    store.adopt(plan_of(names(40), 0.2), LabelFormat(2))
    assert not store.whole()
    with pytest.raises(UsageError, match="without a teacher can be read"):
        store.derived()


def test_a_pairwise_teacher_without_utility_is_an_error(tmp_path: Path) -> None:
    class Bare:
        name, kind, width, options = "bare", "pairwise", 2, {"teacher": "bare"}
        prepare, measure, describe = Dot.prepare, Dot.measure, Dot.describe

    filled(tmp_path, plan_of(names(40), 0.2), Dot())
    with pytest.raises(UsageError, match="bare says it is pairwise but has no utility"):
        RowLabelStore(tmp_path, Bare()).derived()  # type: ignore[arg-type]


def test_blocks_of_sources_change_no_utility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, plan = Dot(), plan_of(names(40), 1.0)
    store = filled(tmp_path, plan, teacher)
    whole = store.derived()
    monkeypatch.setattr("nncift.teachers.utility_blocks.BLOCK", 3 * 40)
    for name, pairs in store.derived().items():
        expected = {
            (t, s): v for t, s, v in zip(whole[name].target, whole[name].source, whole[name].value, strict=True)
        }
        assert {(t, s): v for t, s, v in zip(pairs.target, pairs.source, pairs.value, strict=True)} == expected
    assert sum(map(len, whole.values())) == 40 * 39


def test_blocks_of_few_rows_give_the_same_utilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, plan_of(names(60), 0.5), Dot())
    whole = store.derived()
    # Of two float32 values each: 7 rows.
    monkeypatch.setattr("nncift.teachers.utility_blocks.BYTES_AT_ONCE", 7 * 2 * 4)
    for split, pairs in store.derived().items():
        expected = by_pair(whole[split])
        assert len(pairs) == len(expected)
        assert by_pair(pairs) == pytest.approx(expected, abs=1e-6)


def by_pair(pairs: LabelledPairs) -> dict[tuple[int, int], float]:
    return dict(zip(zip(pairs.target.tolist(), pairs.source.tolist(), strict=True), pairs.value.tolist(), strict=True))


class Half(Dot):
    """Keeps its numbers in half precision, and counts rows beside them."""

    stored_as: Literal["float16", "float32"] = "float16"
    figures = ("even",)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        labels = super().measure(ids)
        return replace(labels, figures={"even": float(sum(int(item[-1]) % 2 == 0 for item in ids))})

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        return (f"{100 * means['even']:.0f} % of the rows are even.",)


def test_a_compact_teacher_is_kept_in_half_precision_with_the_figures_of_its_chunks(tmp_path: Path) -> None:
    plan, teacher = plan_of(names(60), 0.5), Half()
    assert LabelFormat.of(teacher) == LabelFormat(2, "float16", ("even",))
    assert LabelFormat.of(teacher).row_bytes == 4
    store = filled(tmp_path, plan, teacher)
    even = sum(int(item[-1]) % 2 == 0 for item in plan.measured)
    assert RowLabelStore(tmp_path).progress().figures == {"even": even}
    exact = filled(tmp_path / "exact", plan, Dot()).derived()["train"].value
    half = store.derived()["train"].value
    assert 0 < np.abs(half - exact).max() < 4 * 2**-11 * np.abs(exact).max()
    with pytest.raises(DataError, match="were kept as"):
        store.adopt(plan, LabelFormat(2))
