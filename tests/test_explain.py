import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift import explain
from nncift.cli import main as cli
from nncift.errors import DataError, UsageError
from nncift.runs.explain import cover, nearest_selected, sampled_targets, served_by
from nncift.runs.finished import FinishedRun

WORDS = "sort list name add red blue green cat dog bird sky sea tree house".split()


def row(index: int) -> dict[str, str]:
    a, b, c = (WORDS[(index * step + step) % len(WORDS)] for step in (1, 3, 5))
    return {"id": f"row-{index:02d}", "instruction": f"{a} the {b} {WORDS[index // 14]}", "output": f"{c} {a}"}


def make(folder: Path, llama_folder: Path, *flags: str) -> Path:
    """Run the command line on 40 rows and return the run's directory."""
    (folder / "pool.jsonl").write_text("".join(json.dumps(row(index)) + "\n" for index in range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        patch.setattr(
            "sys.argv",
            [
                "nncift",
                "run",
                str(folder / "pool.jsonl"),
                "--model",
                str(llama_folder),
                "--encoder",
                "hash",
                "--labels",
                "20%",
                "--quiet",
                "--out",
                str(folder / "run"),
                *flags,
            ],
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return make(tmp_path_factory.mktemp("explain"), llama_folder)


def test_the_block_is_what_the_selection_saw(done: Path) -> None:
    run = FinishedRun(done)
    values, known = run.block(run.target_ids, run.rows.ids)
    assert values.shape == (40, 40)
    assert np.isnan(np.diag(values)).all()
    assert known.sum() == sum(len(pairs) for pairs in run.labels.values())
    # `score` was written from the matrix of the selection.
    scores = [run.choices[name].score for name in run.rows.ids]
    np.testing.assert_allclose(np.nanmean(values, axis=0), np.array(scores, float), rtol=0, atol=1e-6)


def test_known_utilities_are_the_teachers(done: Path) -> None:
    run = FinishedRun(done)
    pairs = run.labels["test"]
    for k in range(0, len(pairs), 7):
        target, source = pairs.target_ids[pairs.target[k]], pairs.source_ids[pairs.source[k]]
        value, known = run.block([target], [source])
        assert known[0, 0]
        assert value[0, 0] == pairs.value[k] or np.isnan(pairs.value[k])


def test_a_pairs_interval_is_the_one_of_the_summary(done: Path) -> None:
    run = FinishedRun(done)
    width = run.summary["pair_interval"]["half_width"]
    assert run.fidelity.pair_interval.half_width == width
    predicted = [one for name in run.rows.ids[:8] for one in served_by(run, [name], best=40)[0] if not one.known]
    assert predicted
    for one in predicted:
        if width is None:
            assert one.low is None
        else:
            assert one.low == pytest.approx(one.utility - width)
            assert one.high == pytest.approx(one.utility + width)
    bare = FinishedRun(done)
    unknown = replace(bare.fidelity.pair_interval, half_width=None)
    bare.__dict__["fidelity"] = replace(bare.fidelity, pair_interval=unknown)
    assert bare.fidelity.pair_interval.half_width is None
    assert explain(done, run.rows.ids[0])["stability"] == run.choices[run.rows.ids[0]].stability


def test_targets_served_best_come_from_the_column_of_the_matrix(done: Path) -> None:
    run = FinishedRun(done)
    name = run.rows.ids[7]
    column = run.block(run.target_ids, [name])[0][:, 0]
    found = served_by(run, [name], best=3)[0]
    best = sorted(column[np.isfinite(column)].tolist(), reverse=True)[:3]
    assert [one.utility for one in found] == pytest.approx(best, abs=1e-7)
    assert all(one.target != name for one in found)
    assert all((one.low is None) == one.known for one in found)


def test_cover_is_the_best_and_second_best_of_the_chosen(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FinishedRun(done)
    whole = run.block(run.target_ids, run.chosen)[0]
    for block in (1 << 22, 1):
        monkeypatch.setattr("nncift.runs.explain.BLOCK", block)
        found = cover(run, run.target_ids)
        # Blocks of other sizes are summed in another order.
        np.testing.assert_allclose(found.best, np.nanmax(whole, axis=1), rtol=0, atol=1e-6)
        ordered = np.sort(np.nan_to_num(whole, nan=-np.inf), axis=1)
        np.testing.assert_allclose(found.second, ordered[:, -2], rtol=0, atol=1e-6)
        held = whole[np.arange(40), [run.chosen.index(name) for name in found.holder]]
        np.testing.assert_allclose(held, found.best, rtol=0, atol=1e-6)


def test_a_chosen_row_tells_rank_gain_and_what_its_loss_would_cost(done: Path) -> None:
    run = FinishedRun(done)
    record = explain(done, run.chosen[0])
    assert (record["selected"], record["rank"], record["of"]) == (True, 1, 12)
    assert record["gain"] == run.choices[run.chosen[0]].gain
    assert record["nearest_selected"]["id"] in run.chosen[1:]
    full = np.nanmax(run.block(run.target_ids, run.chosen)[0], axis=1)
    without = np.nanmax(run.block(run.target_ids, run.chosen[1:])[0], axis=1)
    assert f"would fall by {float(np.sum(full - without)):.4g}." in record["change"][1]
    json.dumps(record, allow_nan=False)


def test_a_dropped_row_tells_who_serves_its_targets_and_what_is_missing(done: Path) -> None:
    run = FinishedRun(done)
    dropped = max((c for c in run.choices.values() if not c.selected), key=lambda c: (c.would_add or 0, c.id))
    record = explain(done, dropped.id, why_not=True)
    assert not record["selected"]
    last = run.choices[run.chosen[-1]]
    assert f"the last chosen row, {last.id}, added {last.gain:.4g}" in record["change"][0]
    for one in record["rivals"]:
        assert one["rival"] in run.chosen
        column = run.block([one["target"]], run.chosen)[0][0]
        assert one["utility"] == pytest.approx(np.nanmax(column), abs=1e-7)
    assert len(record["rivals"]) == len(record["serves"]) == 5


def test_the_nearest_selected_row_is_another_one(done: Path) -> None:
    run = FinishedRun(done)
    name = run.chosen[2]
    found = nearest_selected(run, name)
    assert found is not None
    cosines = {other: float(run.vectors([other])[0] @ run.vectors([name])[0]) for other in run.chosen if other != name}
    assert found.cosine == pytest.approx(max(cosines.values()), abs=1e-6)


def test_many_targets_are_sampled_alike_each_time(done: Path) -> None:
    first, second = (sampled_targets(FinishedRun(done), 9) for _ in range(2))
    assert first == second
    assert len(set(first)) == 9


def test_unknown_ids_and_places_are_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'row-"):
        explain(done, "row-1")
    with pytest.raises(DataError, match="no finished run"):
        explain(tmp_path, "row-01")


def test_scores_of_rows_are_explained_without_targets(tmp_path: Path, llama_folder: Path) -> None:
    folder = make(tmp_path, llama_folder, "--teacher", "ifd", "--budget", "5")
    run = FinishedRun(folder)
    chosen, dropped = (
        explain(folder, run.chosen[-1]),
        explain(folder, next(c.id for c in run.choices.values() if not c.selected)),
    )
    assert chosen["serves"] == dropped["serves"] == []
    assert chosen["score_place"] == 5
    assert "would have to add" in dropped["change"][0]


def test_the_command_prints_and_answers_in_json(done: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["nncift", "explain", str(done), *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return str(capsys.readouterr().out)

    said = call("--id", "row-03", "--why-not")
    for words in ("row-03 (pool, line 4)", "Targets that it serves best", "What would have to change"):
        assert words in said
    assert json.loads(call("--id", "row-03", "--json"))["id"] == "row-03"
