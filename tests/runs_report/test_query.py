"""`nncift query`: a response is a new target, and the run says which rows of its pool serve it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nncift
from nncift.data import rows_from
from nncift.errors import UsageError
from nncift.runs.finished import FinishedRun
from nncift.runs.query import Question, query
from nncift.runs.report.query_page import write_query

pytestmark = pytest.mark.usefixtures("hastened")


@pytest.fixture(scope="module")
def run(done: Path) -> FinishedRun:
    return FinishedRun(done)


def as_query(run: FinishedRun, item: str) -> Any:
    example = run.rows.example(item)
    return rows_from([{"prompt": example.prompt, "response": example.response}])


def test_a_row_of_the_pool_is_answered_as_the_run_predicts_it(run: FinishedRun) -> None:
    item = run.rows.ids[3]
    found = query(run, as_query(run, item), Question(top=60)).answers[0]
    vectors = run._files.of(run.rows.ids)
    expected = run.student.predict_block(
        run.student.project_targets(vectors[3:4]), run.student.project_sources(vectors)
    )[0]
    assert [row.utility for row in found.rows] == sorted((row.utility for row in found.rows), reverse=True)
    for row in found.rows:
        assert row.predicted == pytest.approx(expected[run.rows.ids.index(row.id)], abs=1e-5)
        assert not row.known
    assert found.mean == pytest.approx(expected.mean(), abs=1e-5)


def test_the_interval_is_that_of_the_summary(run: FinishedRun) -> None:
    width = run.summary["pair_interval"]["half_width"]
    row = query(run, as_query(run, run.rows.ids[0]), Question(top=1)).answers[0].rows[0]
    if width is None:
        assert row.low is None
    else:
        assert row.high is not None
        assert row.low is not None
        assert (row.high - row.low) / 2 == pytest.approx(width)


def test_on_request_the_teacher_computes_the_rows_that_the_student_finds_best(run: FinishedRun) -> None:
    labels = [pairs.present() for pairs in run.labels.values()]
    known = {
        (pairs.target_ids[t], pairs.source_ids[s]): float(value)
        for pairs in labels
        for t, s, value in zip(pairs.target, pairs.source, pairs.value, strict=True)
    }
    target = max(run.rows.ids, key=lambda item: sum(of == item for of, _ in known))
    found = query(run, as_query(run, target), Question(top=60, exact=60))
    assert found.exact == 60
    rows = found.answers[0].rows
    assert all(row.known for row in rows)
    labelled = [row for row in rows if (target, row.id) in known]
    assert len(labelled) > 5
    expected = [known[target, row.id] for row in labelled]
    np.testing.assert_allclose([row.utility for row in labelled], expected, rtol=0, atol=1e-5)


def test_what_the_teacher_computed_comes_before_predictions(run: FinishedRun) -> None:
    rows = query(run, as_query(run, run.rows.ids[0]), Question(top=6, exact=3)).answers[0].rows
    assert [row.known for row in rows] == [True] * 3 + [False] * 3


def test_a_teacher_of_scores_knows_no_targets(tmp_path: Path, done: Path) -> None:
    made = nncift.run(
        done.parent / "first.jsonl", teacher="length", labels=0.3, budget=5, encoder="hash", out=tmp_path / "run"
    )
    with pytest.raises(UsageError, match="knows no targets"):
        made.query([{"prompt": "a", "response": "b"}])


def test_texts_of_a_page_stay_text(run: FinishedRun, tmp_path: Path) -> None:
    asked = rows_from([{"prompt": "<img src=x onerror=alert(1)>", "response": "</p><script>1</script>"}])
    write_query(query(run, asked), tmp_path / "q.html")
    page = (tmp_path / "q.html").read_text("utf-8")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    write_query(query(run, asked), tmp_path / "q.json")
    assert len(json.loads((tmp_path / "q.json").read_text())["answers"][0]["rows"]) == 10


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "a"), "give --prompt and --response, or --file"),
        (("--prompt", "a", "--response", "b", "--file", "f.jsonl"), "one of the two ways"),
        (("--prompt", "a", "--response", "b", "--out", "q.csv"), "ends in .html or .json"),
        (("--prompt", "a", "--response", "b", "--top", "0"), "--top 0"),
    ],
)
def test_what_is_typed_wrong_is_said(
    done: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift.cli import main as cli

    monkeypatch.setattr("sys.argv", ["nncift", "query", str(done), *flags])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_report_is_made_again_by_its_command(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift.cli import main as cli

    (done / "report.html").unlink()
    monkeypatch.setattr("sys.argv", ["nncift", "report", str(done), "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["report"]).exists()
    assert found["verdict"]["agrees_with_teacher"] in ("yes", "no", "unclear")
    assert nncift.report(done) == Path(found["report"])
