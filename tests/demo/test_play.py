import json
from pathlib import Path

import numpy as np
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.data import read
from nncift.demo import make_world, read_truth
from nncift.demo.play import judge, oracle, play
from nncift.demo.world import Truth
from nncift.runs.true_matrix import true_matrix
from nncift.teachers import Chunk, ChunkLabels

pytestmark = pytest.mark.usefixtures("hastened")


class Counting:
    """A teacher without a model: an example helps a target by what their ids say."""

    name, kind, relative = "counting", "pairwise", True

    def __init__(self) -> None:
        self.calls = 0

    def prepare(self, examples: object) -> tuple[()]:
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        self.calls += 1
        source = "" if chunk.source is None else chunk.source
        return ChunkLabels(np.array([self.raw(target, source) for target in chunk.targets], np.float32), 1)

    def describe(self) -> dict[str, str]:
        return {"teacher": self.name}

    @staticmethod
    def raw(target: str, source: str) -> float:
        return 1.0 if not source else 1.0 - int(target[:2], 16) / 256 - int(source[:2], 16) / 512


def test_true_matrix_is_without_minus_with_and_masks_the_diagonal(tmp_path: Path) -> None:
    pool = read(make_world(60, 0).write(tmp_path / "world").pool)
    teacher = Counting()
    true = true_matrix(teacher, pool, tmp_path / "truth")  # type: ignore[arg-type]
    t, s = true.target_ids[3], true.source_ids[7]
    assert true.values[3, 7] == pytest.approx(int(t[:2], 16) / 256 + int(s[:2], 16) / 512)
    assert np.isnan(np.diag(true.values)).all()
    assert np.isfinite(true.values).sum() == 60 * 59


def test_true_matrix_is_not_computed_twice(tmp_path: Path) -> None:
    pool = read(make_world(60, 0).write(tmp_path / "world").pool)
    teacher = Counting()
    first = true_matrix(teacher, pool, tmp_path / "truth")  # type: ignore[arg-type]
    calls = teacher.calls
    second = true_matrix(teacher, pool, tmp_path / "truth")  # type: ignore[arg-type]
    assert teacher.calls == calls
    np.testing.assert_array_equal(first.values, second.values)


def test_the_oracle_takes_a_clean_row_of_every_skill_before_a_second(tmp_path: Path) -> None:
    files = make_world(200, 3).write(tmp_path)
    pool, known = read(files.pool), read_truth(files.truth)
    skills = {truth.skill for item, truth in known.items() if item in pool.ids}
    chosen = oracle(pool, known, len(skills) + 1)
    assert {known[item].skill for item in chosen} == skills
    assert not any(known[item].corrupted for item in chosen)


def test_judge_counts_corrupted_rows_and_skills_by_hand(tmp_path: Path) -> None:
    pool = read(make_world(60, 0).write(tmp_path).pool)
    ids = tuple(sorted(pool.ids))
    known = {item: Truth("even" if place % 2 else "odd", corrupted=place < 15) for place, item in enumerate(ids)}
    values = np.asfortranarray(np.random.default_rng(0).random((60, 60)).astype(np.float32))
    vectors = np.eye(60, dtype=np.float32)
    record = judge(UtilityMatrix(ids, ids, values), pool, known, [ids[0], ids[20]], vectors, 0)
    assert record["corrupted_share"]["selected"] == 0.5
    assert record["corrupted_share"]["pool"] == 0.25
    assert record["skills_covered"]["selected"] == 1
    assert record["skills_covered"]["all"] == 2
    assert record["objective"]["full_teacher"] > record["objective"]["random"]


def test_a_small_demo_runs_whole(tmp_path: Path) -> None:
    record = play(tmp_path / "demo", rows=50, labels="25%").to_json()
    truth = record["truth"]
    assert {"objective", "skill", "corrupted_share", "skills_covered", "oracle_skill"} <= truth.keys()
    assert {"selected", "random", "full_teacher"} <= truth["objective"].keys()
    assert truth["objective"]["selected"] <= truth["objective"]["full_teacher"] * 1.05
    assert record["selected"] == 5
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == record
