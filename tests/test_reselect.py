"""`nncift select` and `nncift compare` on a finished run, and target and existing sets end to end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import nncift
from nncift import Run, compare
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import utilities_of
from nncift.runs.select_again import reselect
from nncift.selection.problem import GraphProblem, build
from nncift.teachers import Chunk, ChunkLabels
from tests.hastened import hasten

Write = Callable[..., Path]


class WordTeacher:
    """Rates a pair by the words that both rows have; no model."""

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    relative = True

    def __init__(self) -> None:
        self.options = {"teacher": "delift", "model": "words"}
        self._words: dict[str, set[str]] = {}

    def prepare(self, examples: Examples) -> tuple[()]:
        self._words.update({row.id: set(row.text.split()) for row in examples})
        return ()

    def label(self, chunk: Chunk) -> ChunkLabels:
        values = [self._distance(target, chunk.source) for target in chunk.targets]
        return ChunkLabels(np.array(values, np.float32), len(values))

    def _distance(self, target: str, source: str | None) -> float:
        if source is None:
            return 1.0
        a, b = self._words[target], self._words[source]
        return 1 - len(a & b) / len(a | b)

    def describe(self) -> dict[str, Any]:
        return {"teacher": "words"}


@pytest.fixture(autouse=True, scope="module")
def hastened() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch, epochs=60)
        yield


def topic(name: str, index: int) -> dict[str, str]:
    words = [f"{name}{(index * step) % 7}" for step in (1, 2, 3)]
    return {
        "id": f"{name}-{index:03d}",
        "instruction": f"{name} {' '.join(words)}",
        "output": f"{name} {words[0]}",
        "kind": name,
    }


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a pool of three topics in two files, and rows of one topic that are in no pool."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "one": write(folder / "one.jsonl", [topic("sums", i) for i in range(20)]),
        "two": write(folder / "two.jsonl", [topic(name, i) for name in ("poem", "code") for i in range(20)]),
        "sums": write(folder / "sums.jsonl", [topic("sums", i) | {"id": f"new-{i}"} for i in range(20, 44)]),
    }


def select(files: dict[str, Path], out: Path, **given: Any) -> Run:
    settings = {"encoder": "hash", "labels": 0.4, "budget": 12, **given}
    return nncift.run([files["one"], files["two"]], teacher=WordTeacher(), out=out, **settings)


@pytest.fixture(scope="module")
def done(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("done")
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        return select(files, folder / "run").path


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(done, tmp_path / "copy"))


def of_topic(ids: Any, name: str) -> int:
    return sum(name in item for item in ids)


def gains_in(folder: Path) -> list[tuple[str, float]]:
    """Return the selected rows in rank order, each with what it added."""
    lines = pq.read_table(folder / "selection.parquet").to_pylist()
    chosen = sorted((line["rank"], line["id"], line["gain"]) for line in lines if line["selected"])
    return [(name, gain) for _, name, gain in chosen]


def ids_in(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "subset.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", [None, "flmi"])
def test_a_target_set_draws_the_selection_to_its_topic(
    files: dict[str, Path], tmp_path: Path, objective: str | None
) -> None:
    run = select(
        files, tmp_path / "run", target=files["sums"], labels=0.7, **({"objective": objective} if objective else {})
    )
    assert run.summary["selection"]["objective"] == (objective or "fl2mi")
    # Seven rows of the topic differ; when all are in, nothing serves the target set any better.
    assert of_topic(run.subset.ids[:5], "sums") == 5


def test_an_existing_set_keeps_the_selection_from_its_topic(files: dict[str, Path], tmp_path: Path) -> None:
    with_it = select(files, tmp_path / "a", existing=files["one"])
    assert with_it.summary["selection"]["objective"] == "flcg"
    # The pool's own rows of the topic exist already: whatever they serve is served.
    assert of_topic(with_it.subset.ids[:8], "sums") == 0
    again = select(files, tmp_path / "a", existing=files["sums"])
    assert of_topic(again.subset.ids[:8], "sums") == 0


def test_target_and_existing_together_select_for_the_target_what_is_missing(
    files: dict[str, Path], tmp_path: Path
) -> None:
    run = select(files, tmp_path / "run", target=files["sums"], existing=files["one"], labels=0.7)
    assert run.summary["selection"]["objective"] == "flcg"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": "flmi"}, "give --target"),
        ({"objective": "fl2mi"}, "give --target"),
        ({"objective": "flcg"}, "give --existing"),
        ({"objective": "fl", "existing": "one"}, "does not look at it"),
    ],
)
def test_objectives_without_their_set_are_refused(
    files: dict[str, Path], tmp_path: Path, given: dict[str, str], said: str
) -> None:
    given = {name: str(files.get(value, value)) for name, value in given.items()}
    with pytest.raises(UsageError, match=said):
        select(files, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quota": "source:min=60%"}, "ask for 16 rows together, and the budget is 12"),
        ({"quota": "source:max=10%"}, "allow 2 rows together"),
        ({"quota": "kind=poem:min=90%,max=5"}, "allows 5 of 12 rows with kind poem"),
        ({"budget": "100%", "exclude": "ids"}, "must not be chosen"),
        ({"budget": 61}, "only 60 rows"),
    ],
)
def test_infeasible_wishes_are_refused_before_anything_is_computed(
    files: dict[str, Path], tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    (tmp_path / "ids").write_text("sums-001\npoem-002\n")
    if "exclude" in given:
        given = {**given, "exclude": str(tmp_path / "ids")}
    with pytest.raises(InfeasibleError, match=said):
        select(files, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_rules_hold_from_end_to_end(files: dict[str, Path], done: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("sums-001\n\n")
    (tmp_path / "out").write_text("poem-000\npoem-001\n")
    rules = {"quota": ("kind:min=20%,max=50%",), "include": str(tmp_path / "in"), "exclude": str(tmp_path / "out")}
    record = reselect(done, rules, tmp_path / "again").to_json()
    chosen = ids_in(tmp_path / "again")
    assert chosen[0] == "sums-001"
    assert not {"poem-000", "poem-001"} & set(chosen)
    assert all(3 <= of_topic(chosen, kind) <= 6 for kind in ("sums", "poem", "code"))
    assert record["selected"] == len(chosen) == 12
    controls = record["selection"]["controls"]
    assert set(controls) == {"random", "stratified", "longest", "embedding"}
    assert max(controls.values()) <= record["selection"]["upper_bound"]


@pytest.mark.parametrize("text", ["", "{", '{"gate": 1}'])
def test_a_damaged_report_of_fidelity_is_named_where_no_checksum_speaks_of_it(
    done: Path, tmp_path: Path, text: str
) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(run / "stages")
    (run / "fidelity.json").write_text(text)
    with pytest.raises(DataError, match=r"fidelity\.json"):
        reselect(run, {"budget": "3"}, tmp_path / "again")


def test_what_refits_learned_is_made_again_where_it_is_damaged(files: dict[str, Path], copy: Path) -> None:
    kept = copy / "refits.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    select(files, copy)
    assert kept.read_bytes() == content


def test_a_run_of_another_version_is_said_to_be_one(done: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(run / "stages")
    manifest, summary = run / "manifest.yaml", json.loads((run / "summary.json").read_text())
    manifest.write_text(manifest.read_text().replace(f"nncift: {nncift.__version__}", "nncift: 0.0.9"))
    del summary["gate"]
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match=r"summary\.json was written by nncift 0\.0\.9, .*: gate: "):
        reselect(run, {"budget": "3"}, tmp_path / "again")
    with pytest.raises(DataError, match=r"was written by nncift 0\.0\.9"):
        _ = FinishedRun(run).result


def test_a_budget_of_tokens(done: Path, tmp_path: Path) -> None:
    record = reselect(done, {"budget": "60tok"}, tmp_path / "again").to_json()
    rows = PoolTable.open(done)
    tokens = dict(zip(rows.ids, rows.tokens or (), strict=True))
    assert record["selection"]["tokens"] == sum(tokens[item] for item in ids_in(tmp_path / "again")) <= 60
    with pytest.raises(InfeasibleError, match="the pool has only"):
        reselect(done, {"budget": "1Mtok"}, tmp_path / "other")
    with pytest.raises(InfeasibleError, match="shortest row"):
        reselect(done, {"budget": "1tok"}, tmp_path / "other")


def test_duplicates_go_first_and_are_told(done: Path, tmp_path: Path) -> None:
    # A topic has 7 different rows: what repeats their words has the same content.
    record = reselect(done, {"dedup": "exact", "budget": "100%"}, tmp_path / "again").to_json()
    assert record["selected"] == 21
    assert record["selection"]["removed_duplicates"] == 39
    table = pq.read_table(tmp_path / "again" / "selection.parquet").to_pydict()
    reason = dict(zip(table["id"], table["reason"], strict=True))
    assert reason["sums-007"] == "Removed before the selection: sums-000 has the same content."
    with pytest.raises(InfeasibleError, match="--dedup removes are not counted"):
        reselect(done, {"dedup": "exact", "budget": 22}, tmp_path / "other")
    assert reselect(done, {"dedup": "near:0.5", "budget": "100%"}, tmp_path / "near").to_json()["selected"] < 21


@pytest.mark.parametrize("objective", ["fl", "rr", "max"])
def test_a_graph_of_all_neighbours_selects_like_the_whole_matrix(done: Path, tmp_path: Path, objective: str) -> None:
    given = {"budget": 6, "objective": objective}
    record = reselect(done, {"neighbours": 59, **given}, tmp_path / "graph").to_json()
    whole = reselect(done, given, tmp_path / "whole").to_json()
    assert ids_in(tmp_path / "graph") == ids_in(tmp_path / "whole")
    assert record["selection"]["value"] == pytest.approx(whole["selection"]["value"])
    assert record["selection"]["neighbours"] == {"each": 59, "recall": 1.0}
    for name, value in record["selection"]["controls"].items():
        if name != "embedding":
            assert value == pytest.approx(whole["selection"]["controls"][name])
    table = pq.read_table(tmp_path / "graph" / "selection.parquet").to_pydict()
    assert all(table["reason"])
    score = pq.read_table(tmp_path / "whole" / "selection.parquet")["score"].to_pylist()
    assert table["score"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("objective", ["fl", "rr", "max"])
def test_a_graph_of_all_rows_selects_for_a_target_set_like_the_whole_matrix(
    files: dict[str, Path], tmp_path: Path, objective: str
) -> None:
    run = select(files, tmp_path / "run", target=files["sums"], objective=objective)
    (tmp_path / "out").write_text("poem-000\nsums-001\n")
    (tmp_path / "in").write_text("code-003\n")
    rules = {"include": str(tmp_path / "in"), "exclude": str(tmp_path / "out"), "quota": ("kind:max=60%",)}
    for name, given in {"plain": {}, "rules": rules}.items():
        record = reselect(run.path, {"neighbours": 60, **given}, tmp_path / f"graph-{name}").to_json()["selection"]
        whole = reselect(run.path, given, tmp_path / f"whole-{name}").to_json()["selection"]
        assert ids_in(tmp_path / f"graph-{name}") == ids_in(tmp_path / f"whole-{name}")
        assert record["objective"] == whole["objective"] == objective
        assert record["by_score"] == whole["by_score"]
        assert record["value"] == pytest.approx(whole["value"], rel=1e-5)
        assert record["controls"] == pytest.approx(whole["controls"], rel=1e-5)
    scores = [
        pq.read_table(tmp_path / name / "selection.parquet")["score"].to_pylist()
        for name in ("graph-plain", "whole-plain")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_what_exhausts_the_objective_is_followed_by_score_and_told(files: dict[str, Path], tmp_path: Path) -> None:
    # So few targets are covered by fewer rows than the budget has.
    run = select(files, tmp_path / "run", target=files["sums"], objective="fl", budget="80%")
    selection = run.summary["selection"]
    assert 0 < selection["by_score"] < selection["budget"]
    assert any(f"{selection['by_score']} rows more were taken by score" in said for said in run.warnings)
    table = pq.read_table(run.path / "selection.parquet").to_pydict()
    rows = sorted(
        zip(*(table[name] for name in ("rank", "score", "reason", "gain")), strict=True), key=lambda row: row[0] or 99
    )
    first, last = selection["budget"] - selection["by_score"], selection["budget"]
    assert all(row[2].startswith("Taken by score at rank") and row[3] == 0 for row in rows[first:last])
    assert all(row[3] > 0 for row in rows[:first])
    taken = [row[1] for row in rows[first:last]]
    assert taken == sorted(taken, reverse=True)
    assert max(row[1] for row in rows[last:]) <= taken[-1]


def test_fewer_neighbours_keep_most_of_the_value(files: dict[str, Path], tmp_path: Path) -> None:
    run = select(files, tmp_path / "run", neighbours=8)
    record = run.summary["selection"]
    assert record["neighbours"]["each"] == 8
    assert record["controls"]["random"] < record["value"] <= record["upper_bound"]


def test_a_graph_does_coverage_alone(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by fl, rr, max from utilities"):
        reselect(done, {"neighbours": 8, "objective": "topk"}, tmp_path / "again")


@pytest.mark.parametrize(
    "given",
    [
        {"budget": 8, "quota": ["source:min=2,max=5"]},
        {"budget": "120tok"},
        {"budget": 7, "dedup": "exact"},
        {"budget": 7, "include": "sums-001\nsums-009\n", "exclude": "sums-000\n"},
    ],
)
def test_rules_on_a_graph_of_all_neighbours_are_those_of_the_matrix(
    done: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    for name in ("include", "exclude"):
        if name in given:
            (tmp_path / name).write_text(given[name])
            given = {**given, name: str(tmp_path / name)}
    record = reselect(done, {**given, "neighbours": 59}, tmp_path / "graph").to_json()["selection"]
    whole = reselect(done, given, tmp_path / "whole").to_json()["selection"]
    # A row may stand for another one where both add the same but for the rounding of a product.
    ranked = [gains_in(tmp_path / name) for name in ("graph", "whole")]
    assert [gain for _, gain in ranked[0]] == pytest.approx([gain for _, gain in ranked[1]], rel=1e-4)
    assert len({name for name, _ in ranked[0]} ^ {name for name, _ in ranked[1]}) <= 2
    for name in ("value", "upper_bound", "tokens", "removed_duplicates"):
        assert record[name] == pytest.approx(whole[name])
    # Embeddings alone see a row beside its neighbours, and not itself.
    same = {name: value for name, value in whole["controls"].items() if name != "embedding"}
    assert {name: record["controls"][name] for name in same} == pytest.approx(same)


def test_towers_find_neighbours_by_what_they_predict(files: dict[str, Path], tmp_path: Path) -> None:
    run = select(files, tmp_path / "run", student="towers", gate=False)
    done = FinishedRun(run.path)
    student = done.student.for_coverage()
    utilities = utilities_of(done, "fl")
    vectors = utilities.vectors.sources
    found = build(utilities, done.settings.model_copy(update={"neighbours": 3}))
    assert isinstance(found, GraphProblem)
    predicted = student.predict_block(student.project_targets(vectors), student.project_sources(vectors))
    np.fill_diagonal(predicted, -np.inf)
    highest = -np.sort(-predicted, axis=1)[:, :3]
    assert np.take_along_axis(predicted, found.graph.sources[:, :3], axis=1) == pytest.approx(highest, abs=1e-5)
    alike = found.alike["embedding"]
    assert alike is not None
    assert not np.array_equal(alike.sources, found.graph.sources[:, :3])
    record = reselect(run.path, {"neighbours": 3, "budget": 6}, tmp_path / "graph").to_json()["selection"]
    assert record["controls"]["embedding"] is not None


def test_choosing_again_in_place_is_what_run_would_do(files: dict[str, Path], copy: Path) -> None:
    before = json.loads((copy / "summary.json").read_text())
    record = reselect(copy, {"budget": "20", "objective": "topk"}).to_json()
    summary = json.loads((copy / "summary.json").read_text())
    assert summary["selected"] == record["selected"] == 20
    assert summary["selection"] == record["selection"]
    assert {**summary, "selected": 0, "selection": 0, "ledger": 0} == {
        **before,
        "selected": 0,
        "selection": 0,
        "ledger": 0,
    }
    manifest = yaml.safe_load((copy / "manifest.yaml").read_text())
    assert (manifest["budget"], manifest["objective"]) == ("20", "topk")
    assert manifest["record"]["rows_read"] == 60
    stamp = (copy / "subset.jsonl").stat().st_mtime_ns
    again = select(files, copy, budget=20, objective="topk")
    assert (copy / "subset.jsonl").stat().st_mtime_ns == stamp
    assert again.summary["selection"] == record["selection"]
    assert again.subset.ids == tuple(ids_in(copy))


def test_the_same_wish_gives_the_same_bytes(done: Path, tmp_path: Path) -> None:
    reselect(done, {}, tmp_path / "again")
    for name in ("subset.jsonl", "selection.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (done / name).read_bytes()


def test_choosing_again_loads_neither_torch_nor_transformers(done: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from nncift.cli.main import main; sys.argv = ['nncift', 'select', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "bad = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules); assert not bad, bad"
    )
    arguments = [str(done), "--budget", "5", "--quiet", "--out", str(tmp_path / "again")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert len(ids_in(tmp_path / "again")) == 5


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_only_finished_runs_can_be_chosen_from(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match="no finished run"):
        reselect(tmp_path / folder, {"budget": "5"})


def test_a_used_directory_is_not_written_to(done: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        reselect(done, {"budget": "5"}, tmp_path)


@pytest.mark.parametrize("objective", ["flcg", "fl2mi"])
def test_choosing_again_cannot_ask_for_sets_that_the_run_lacks(done: Path, tmp_path: Path, objective: str) -> None:
    with pytest.raises(UsageError, match="give --"):
        reselect(done, {"objective": objective}, tmp_path / "again")


def test_a_run_that_knows_no_rows_says_what_to_do(copy: Path) -> None:
    (copy / "rows.parquet").unlink()
    with pytest.raises(DataError, match="run the same `nncift run` again"):
        reselect(copy, {"budget": "5"})


def test_vectors_that_are_not_finite_are_refused_with_their_row(copy: Path, done: Path) -> None:
    vectors = np.load(copy / "embeddings.npy")
    ids = json.loads((copy / "embeddings.json").read_text())["ids"]
    vectors[3] = np.nan
    np.save(copy / "embeddings.npy", vectors)
    (copy / "stages" / "embed.json").unlink()
    with pytest.raises(DataError, match=rf"the vector of '{ids[3]}' in .* is not finite"):
        reselect(copy, {"budget": "5"})
    with pytest.raises(DataError, match=rf"the vector of '{ids[3]}' in .* is not finite"):
        compare(copy, done)


def test_a_selection_compared_with_itself(done: Path) -> None:
    record = compare(done, done)
    assert record["overlap"]["jaccard"] == 1
    assert record["overlap"]["both_by_chance"] == pytest.approx(12 * 12 / 60)
    assert record["coverage"]["a"] == record["coverage"]["b"]
    for groups in record["shifts"].values():
        assert sum(group["a"] for group in groups) == pytest.approx(1)
        assert all(group["a"] == group["b"] for group in groups)


def test_two_selections_are_compared_by_hand(done: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("".join(f"poem-{i:03d}\n" for i in range(10)))
    reselect(done, {"budget": "10", "include": str(tmp_path / "in")}, tmp_path / "poems")
    record = compare(done, tmp_path / "poems", clusters=3)
    shift = {group["group"]: group for group in record["shifts"]["source"]}
    assert shift["two"]["b"] == 1
    assert shift["one"]["pool"] == pytest.approx(1 / 3)
    assert record["overlap"]["b"] == 10
    both = len(set(ids_in(done)) & set(ids_in(tmp_path / "poems")))
    assert record["overlap"]["both"] == both
    # Ten rows of one topic of three cover the pool worse than twelve that were chosen to cover it.
    assert record["coverage"]["b"] < record["coverage"]["a"] <= 1
    assert len(record["shifts"]["cluster"]) == 3


def test_directories_without_a_selection_are_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        compare(done, tmp_path)
