import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nncift.errors import DataError, UsageError
from nncift.labels import BASE, Entries, LabelBudget, LabelPlan, Roles, RowLabelStore, grow
from nncift.labels.pair_labels import PAIR_FORMAT, PairLabelStore, combine
from nncift.labels.plan import PlannedChunk
from nncift.storage.atomic import read_json
from nncift.teachers import RowLabels

ROWS = [f"row-{index:03d}" for index in range(60)]
WISH = LabelBudget(0.2, None)


def made(rows: list[str] = ROWS, budget: LabelBudget = WISH, previous: LabelPlan | None = None) -> LabelPlan:
    return grow(previous, rows, rows, budget, 0, shared=True, relative=True)


def teach(chunk: PlannedChunk) -> RowLabels:
    """Label by rule: a target alone 0.5, behind a source a number that depends on both."""
    source, targets = chunk.source, chunk.task.targets
    values = [0.5 if source is None else (int(source[-2:]) - int(target[-2:])) / 100 for target in targets]
    figures = {"shortened": float(chunk.place % 2 == 0)}
    return RowLabels(np.array(values, np.float32)[:, None], 10 * len(values), len(values), figures)


def work_off(store: PairLabelStore, most: int | None = None) -> list[int]:
    """Label pending chunks, at most so many, and return their numbers."""
    done = []
    for chunk in list(store.pending())[:most]:
        store.write(chunk, teach(chunk), 0.25)
        done.append(chunk.place)
    store.flush()
    return done


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_plan_reads_back_as_it_was(tmp_path: Path) -> None:
    plan = made()
    PairLabelStore(tmp_path).adopt(plan, PAIR_FORMAT)
    found = PairLabelStore(tmp_path).plan
    assert found is not None
    assert replace(found, generations=()) == replace(plan, generations=())
    for name in ("target", "source", "split", "chunk"):
        assert (getattr(found.entries, name) == getattr(plan.entries, name)).all()


def test_an_interrupted_store_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("straight", "halting"):
        PairLabelStore(tmp_path / name).adopt(made(), PAIR_FORMAT)
    straight = work_off(PairLabelStore(tmp_path / "straight"))
    halting = []
    for most in (1, 7, 20, None):
        halting += work_off(PairLabelStore(tmp_path / "halting"), most)
    assert halting == straight
    assert files(tmp_path / "halting") == files(tmp_path / "straight")


def test_what_waits_for_the_disk_is_there_after_a_second_and_lost_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    pending = list(store.pending())
    for seconds, left in ((3600.0, len(pending)), (0.0, len(pending) - 2)):
        monkeypatch.setattr("nncift.labels.store.FLUSH_SECONDS", seconds)
        chunk = pending.pop()
        store.write(chunk, teach(chunk), 0.25)
        assert len(list(PairLabelStore(tmp_path).pending())) == left
    assert store.progress().seconds == 0.5


def test_a_chunk_without_its_flag_is_computed_again(tmp_path: Path) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    chunk = next(iter(store.pending()))
    values = np.load(tmp_path / "values-000.npy", mmap_mode="r+") if (tmp_path / "values-000.npy").exists() else None
    assert values is not None
    values[chunk.positions[: len(chunk.positions) // 2]] = 99
    values.flush()
    assert work_off(PairLabelStore(tmp_path))[0] == chunk.place
    assert chunk.generation == 0
    assert not (np.load(tmp_path / "values-000.npy") == 99).any()


def test_values_before_all_chunks_are_done_are_refused(tmp_path: Path) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    work_off(store, 3)
    with pytest.raises(DataError, match="not complete"):
        store.utilities()


def by_hand(tmp_path: Path, raw: list[float], teacher: Any = None) -> PairLabelStore:
    """Return a store of two targets alone, then both behind source c, and a behind b."""
    entries = Entries(
        np.array([0, 1, 0, 1, 0], np.int32),
        np.array([-1, -1, 2, 2, 1], np.int32),
        np.array([0, 0, 1, 1, 5], np.int8),
        np.array([0, 0, 1, 1, 2], np.int32),
    )
    store = PairLabelStore(tmp_path, teacher)
    store.adopt(LabelPlan(("a", "b", "c"), ("a", "b", "c"), True, Roles(), (entries,)), PAIR_FORMAT)
    for chunk in store.pending():
        values = np.array([[raw[position]] for position in chunk.positions], np.float32)
        passes, shortened = int(np.isfinite(values).sum()), float(chunk.source == "c")
        store.write(chunk, RowLabels(values, 5, passes, {"shortened": shortened}), 2.0)
    return store


def test_a_utility_is_the_value_alone_minus_the_value_behind_the_source(tmp_path: Path) -> None:
    found = by_hand(tmp_path, [0.75, 0.5, 0.25, 0.625, 0.875]).utilities()
    assert "base" not in found
    train = found["train"]
    named = [(train.target_ids[t], train.source_ids[s]) for t, s in zip(train.target, train.source, strict=True)]
    assert named == [("a", "c"), ("b", "c")]
    assert train.value.tolist() == [0.5, -0.125]
    assert found["test"].value.tolist() == [-0.125]


def test_an_absolute_teacher_gives_its_values_as_they_are(tmp_path: Path) -> None:
    found = by_hand(tmp_path, [0.75, 0.5, 0.25, 0.625, 0.875], SimpleNamespace(relative=False)).utilities()
    assert found["train"].value.tolist() == [0.25, 0.625]


@pytest.mark.parametrize("missing", [1, 3])
def test_a_missing_value_stays_missing(tmp_path: Path, missing: int) -> None:
    raw = [0.75, 0.5, 0.25, 0.625, 0.875]
    raw[missing] = float("nan")
    train = by_hand(tmp_path, raw).utilities()["train"]
    assert np.isnan(train.value).tolist() == [False, True]
    assert len(train.present()) == 1


def test_totals_count_pairs_passes_and_what_did_not_fit(tmp_path: Path) -> None:
    store = by_hand(tmp_path, [0.75, 0.5, 0.25, float("nan"), 0.875])
    found = store.progress()
    assert (found.tokens, found.passes, found.seconds) == (15, 4, 6.0)
    assert (found.labels, found.missing, found.figures) == (5, 1, {"shortened": 1})
    missing, shortened = store.warnings()
    assert missing.startswith("1 of 3 labelled pairs (33.3 %) do not fit")
    assert shortened.startswith("1 of 2 examples in front (50.0 %) were shortened")
    # Three targets alone, and those of six pairs that fit, by what the labelled ones tell.
    assert store.full_passes() == 3 + 4


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    PairLabelStore(tmp_path).adopt(made(), PAIR_FORMAT)
    with pytest.raises(UsageError, match=r"labels pairs, and this one labels rows; use another --out"):
        RowLabelStore(tmp_path)


def test_growth_appends_files_and_leaves_the_old_ones_as_they_are(tmp_path: Path) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    work_off(store)
    before = files(tmp_path)
    old = store.utilities()["train"]
    again = PairLabelStore(tmp_path)
    again.adopt(
        made([*ROWS, *(f"row-{index:03d}" for index in range(60, 80))], LabelBudget(0.3, None), again.plan), PAIR_FORMAT
    )
    assert work_off(again)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {"plan-001.json", "plan-001.parquet", "values-001.npy", "costs-001.npy"} <= set(after) - set(before)
    new = again.utilities()["train"]
    assert (new.value[: len(old)] == old.value).all()


def test_targets_known_from_before_are_not_labelled_alone_again(tmp_path: Path) -> None:
    first = made()
    second = made(ROWS, LabelBudget(0.4, None), first)
    assert (
        not (second.generations[1].split == BASE).any()
        or not np.isin(
            second.generations[1].target[second.generations[1].split == BASE],
            first.entries.target[first.entries.split == BASE],
        ).any()
    )
    alone = second.entries.target[second.entries.split == BASE]
    assert len(alone) == len(np.unique(alone))


def test_rows_without_new_labels_are_remembered(tmp_path: Path) -> None:
    rows = [f"row-{index:03d}" for index in range(400)]
    store = PairLabelStore(tmp_path)
    store.adopt(made(rows, LabelBudget(None, 50)), PAIR_FORMAT)
    work_off(store)
    store.adopt(made([*rows, "new"], LabelBudget(None, 50), store.plan), PAIR_FORMAT)
    again = PairLabelStore(tmp_path)
    assert again.plan is not None
    assert again.plan.source_ids[-1] == "new"
    assert work_off(again) == []
    assert again.utilities()["train"].source_ids[-1] == "new"
    assert again.progress().labels == store.progress().labels


@pytest.mark.parametrize("name", ["plan-000.json", "plan-000.parquet"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 50000, b"PAR1 but not really PAR1"])
def test_a_damaged_plan_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    PairLabelStore(tmp_path).adopt(made(), PAIR_FORMAT)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*damaged"):
        PairLabelStore(tmp_path)


def test_codes_beyond_the_axes_are_damage(tmp_path: Path) -> None:
    PairLabelStore(tmp_path).adopt(made(), PAIR_FORMAT)
    path = tmp_path / "plan-000.json"
    head = read_json(path)
    path.write_text(json.dumps({**head, "source_ids": head["source_ids"][:5]}))
    with pytest.raises(DataError, match="beyond the axes"):
        PairLabelStore(tmp_path)


def test_a_row_that_comes_twice_on_an_axis_is_damage(tmp_path: Path) -> None:
    PairLabelStore(tmp_path).adopt(made(), PAIR_FORMAT)
    path = tmp_path / "plan-000.json"
    head = read_json(path)
    path.write_text(json.dumps({**head, "target_ids": [*head["target_ids"][:-1], head["target_ids"][0]]}))
    with pytest.raises(DataError, match="comes twice"):
        PairLabelStore(tmp_path)


def test_values_that_are_gone_are_not_made_by_reading(tmp_path: Path) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    work_off(store)
    for path in tmp_path.glob("values-*"):
        path.unlink()
    with pytest.raises(DataError, match="not complete"):
        PairLabelStore(tmp_path).utilities()
    assert not list(tmp_path.glob("values-*"))


def test_cut_values_are_named_instead_of_read_as_zeros(tmp_path: Path) -> None:
    store = PairLabelStore(tmp_path)
    store.adopt(made(), PAIR_FORMAT)
    work_off(store)
    path = tmp_path / "values-000.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"values-000\.npy"):
        PairLabelStore(tmp_path).utilities()


def test_splits_can_be_joined(tmp_path: Path) -> None:
    found = by_hand(tmp_path, [0.75, 0.5, 0.25, 0.625, 0.875]).utilities()
    assert sorted(combine(found).value.tolist()) == [-0.125, -0.125, 0.5]
    assert combine(found, ("test",)).value.tolist() == [-0.125]
