"""`nncift evaluate` on a finished run: the curve, the truth, and what is judged by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nncift
from nncift import evaluate
from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.labels import SCORE
from nncift.runs.finished import FinishedRun
from nncift.runs.true_matrix import true_matrix
from nncift.selection.objectives import facility_location_value
from nncift.teachers.delift_se import Similarity
from nncift.teachers.given_scores import Length

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]


class Counted(Similarity):
    """A teacher whose passes count, so that a run measures only some of its rows."""

    pass_weight = 1


@pytest.fixture
def run(tmp_path: Path, write_pool: Write) -> Path:
    """Return a run whose teacher takes no language model, so that the full teacher takes none either."""
    out = tmp_path / "run"
    nncift.run(write_pool(60), teacher=Counted("hash"), out=out, encoder="hash", labels=0.4, budget=6, gate=False)
    return out


def examples(run: Path) -> Examples:
    rows = FinishedRun(run).rows
    return Examples(tuple(rows.example(item) for item in rows.ids))


def test_the_curve_ends_with_the_students_own_measures_and_costs_no_pass(run: Path) -> None:
    record = evaluate(run)
    sizes = [step["labels"] for step in record["curve"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == FinishedRun(run).labels["train"].present().value.size
    last = record["curve"][-1]["student"]
    assert last["r2"] == pytest.approx(record["fidelity"]["q4"]["r2"], abs=1e-6)
    assert last["spearman"] == pytest.approx(record["fidelity"]["q4"]["spearman"], abs=1e-6)
    assert record["full_teacher"] is None
    assert json.loads((run / "evaluation.json").read_text()) == record


def test_the_full_teacher_judges_the_runs_own_selection(run: Path) -> None:
    record = evaluate(run, full_teacher=True, device="cpu")["full_teacher"]
    pool = examples(run)
    teacher = Similarity("hash")
    teacher.prepare(pool)
    ids = tuple(sorted(pool.ids))
    features = teacher.measure(ids).values
    values = features @ features.T
    np.fill_diagonal(values, np.nan)
    chosen = FinishedRun(run).chosen
    true = true_matrix(Similarity("hash"), pool, run / "again")
    assert true.values == pytest.approx(values, nan_ok=True, abs=1e-6)
    assert record["value"]["this run"] == pytest.approx(facility_location_value(true, chosen), rel=1e-6)
    value, chance, full = (record["value"][name] for name in ("this run", "random", "full teacher"))
    assert record["skill"]["this run"] == pytest.approx((value - chance) / (full - chance))
    assert record["passes"] == 60 * 60


def test_coverage_counts_the_pairs_without_a_label(run: Path) -> None:
    record = evaluate(run, full_teacher=True, device="cpu")["full_teacher"]["coverage"]
    finished = FinishedRun(run)
    known = {
        (pairs.target_ids[t], pairs.source_ids[s])
        for pairs in finished.labels.values()
        for t, s in zip(pairs.target, pairs.source, strict=True)
    }
    assert record["pairs"] == 60 * 59 - len({pair for pair in known if pair[0] != pair[1]})
    assert 0 <= record["covered"] <= 1


def test_a_pointwise_teacher_is_judged_by_its_scores(tmp_path: Path, write_pool: Write) -> None:
    out = tmp_path / "run"
    nncift.run(write_pool(60), teacher=Length(), out=out, encoder="hash", labels=0.4, budget=6)
    record: dict[str, Any] = evaluate(out, full_teacher=True)["full_teacher"]
    assert record["objective"] == "topk"
    assert record["skill"]["full teacher"] == 1
    true = true_matrix(Length(), examples(out), tmp_path / "truth")
    assert true.target_ids == SCORE
    best = np.sort(true.values[0])[::-1][:6].sum()
    assert record["value"]["full teacher"] == pytest.approx(best)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        evaluate(tmp_path / "nothing")
    summary = json.loads((run / "summary.json").read_text())
    summary["selection"]["objective"] = "flcg"
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "stages" / "finish.json").unlink()
    with pytest.raises(UsageError, match="flcg, looks at rows that were trained on already"):
        evaluate(run, full_teacher=True)
