import numpy as np
import pytest

from nncift.core.arrays import Floats
from nncift.core.parallel import Arrays, Calculation, Keep, serial_map
from nncift.errors import ResourceError, UsageError
from nncift.student import score
from nncift.student.model import Student


@pytest.fixture
def student() -> Student:
    random = np.random.default_rng(0)
    shapes = {"target_weight": (5, 12), "source_weight": (5, 12), "hidden_bias": (12,), "output_weight": (12,)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Student("paper", {**weights, "output_bias": np.float32(0.3)}, 0.1, 2.0)  # type: ignore[dict-item]


def sides(student: Student, targets: int, sources: int) -> tuple[Floats, Floats]:
    random = np.random.default_rng(1)
    a, b = (random.normal(size=(n, 5)).astype(np.float32) for n in (targets, sources))
    return student.project_targets(a), student.project_sources(b)


CAPS = [4 * 128 * 128, 4 * 128 * 200, score.CAP]


@pytest.mark.parametrize("cap", CAPS)
def test_reductions_are_those_of_the_whole_matrix(student: Student, cap: int) -> None:
    targets, sources = sides(student, 300, 410)
    whole = student.predict_block(targets, sources)
    best, low = score.best_per_target(student, targets, sources, cap)
    assert np.array_equal(best, whole.max(axis=1))
    assert low == whole.min()
    assert np.allclose(score.mean_per_source(student, targets, sources, cap), whole.mean(axis=0, dtype=np.float64))
    codes, values = score.top_per_target(student, targets, sources, 7, cap)
    assert np.array_equal(codes, np.argsort(-whole, axis=1, kind="stable")[:, :7])
    assert np.array_equal(values, np.take_along_axis(whole, codes.astype(np.int64), axis=1))


@pytest.mark.parametrize("cap", CAPS)
def test_tiles_cover_every_pair_once_and_keep_the_cap(student: Student, cap: int) -> None:
    targets, sources = sides(student, 300, 410)
    seen = np.zeros((300, 410), int)
    for rows, columns, block in score.tiles(student, targets, sources, cap):
        seen[rows, columns] += 1
        assert block.nbytes <= cap
    assert (seen == 1).all()


def test_ties_among_the_highest_go_to_the_lower_position(student: Student) -> None:
    targets, sources = sides(student, 2, 1)
    codes, _ = score.top_per_target(student, targets, np.repeat(sources, 5, axis=0), 3)
    assert codes.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_fewer_sources_than_wanted_leave_places_empty(student: Student) -> None:
    targets, sources = sides(student, 2, 3)
    codes, values = score.top_per_target(student, targets, sources, 5)
    assert (codes[:, 3:] == -1).all()
    assert np.isneginf(values[:, 3:]).all()
    best, low = score.best_per_target(student, targets, sources[:0])
    assert np.isnan(best).all()
    assert low == np.inf


def test_a_cap_below_the_smallest_block_names_the_smallest_that_works(student: Student) -> None:
    targets, sources = sides(student, 300, 410)
    with pytest.raises(ResourceError, match="takes 65536; give at least that"):
        score.best_per_target(student, targets, sources, 65535)
    score.best_per_target(student, targets, sources, 65536)


def test_a_mean_over_no_target_is_refused(student: Student) -> None:
    targets, sources = sides(student, 1, 3)
    with pytest.raises(UsageError, match="no target"):
        score.mean_per_source(student, targets[:0], sources)


def test_predictions_may_be_overwritten_even_where_another_process_gave_them(student: Student) -> None:
    def elsewhere(calculation: Calculation, keep: Keep) -> None:
        def read_only(place: int, found: Arrays) -> None:
            for values in found.values():
                values.flags.writeable = False
            keep(place, found)

        serial_map(calculation, read_only)

    targets, sources = sides(student, 3, 4)
    values = score.all_pairs(student, targets, sources, elsewhere)
    assert np.array_equal(values, score.all_pairs(student, targets, sources))
    values[0, 0] = 1.0
    assert values[0, 0] == 1.0
