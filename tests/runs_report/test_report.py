import html
import itertools
import json
import re
import shutil
import zlib
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nncift.data.layout import Layout
from nncift.errors import DataError
from nncift.evaluation.verdicts import grouped
from nncift.runs.finished import Choice, FinishedRun
from nncift.runs.report import MOST_BYTES, render, report_rows, write_report, write_shared
from nncift.runs.report.numbers import numbers
from nncift.runs.report.report_charts import plane
from nncift.runs.report.report_coverage import Region
from nncift.runs.report.report_rows import PoolMap
from nncift.runs.report.samples import Sample, cut, draw
from nncift.runs.report.shift import tables
from nncift.selection.controls import random_ids

pytestmark = pytest.mark.usefixtures("hastened")
SECTIONS = "verdict warnings rows full issues coverage shift map-section lengths fidelity pairs copies cost".split()


@pytest.fixture(scope="module")
def run(done: Path) -> FinishedRun:
    return FinishedRun(done)


@pytest.fixture(scope="module")
def record(run: FinishedRun) -> dict[str, Any]:
    return numbers(run).to_json()


def test_a_run_leaves_page_and_numbers(done: Path) -> None:
    page, made = (done / "report.html").read_text("utf-8"), json.loads((done / "report.json").read_text())
    shown = re.findall(r'<section id="([a-z-]+)"', page)
    assert [name for name in SECTIONS if name in shown] == shown
    assert set(shown) >= {"verdict", "rows", "full", "coverage", "map-section", "fidelity", "pairs", "cost"}
    assert made["asked"]["selected"] == 18
    assert (done / "report.html").stat().st_size < 2_000_000


def test_the_page_asks_nothing_of_the_network(done: Path) -> None:
    page = (done / "report.html").read_text("utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_rows_stay_text(done: Path) -> None:
    page = (done / "report.html").read_text("utf-8")
    # One element of data and one script are the page's own.
    assert len(re.findall(r"<script", page)) == 2
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page
    assert "&lt;script&gt;" in page


def unpacked(page: str) -> dict[str, Any]:
    """Return the rows of a page's table, as its script reads them."""
    packed = re.findall(r'id="data">([A-Za-z0-9+/=]*)</script>', page)[0]
    found: dict[str, Any] = json.loads(zlib.decompress(b64decode(packed)))
    return found


def test_a_copy_to_pass_on_holds_no_text_and_no_folder(done: Path) -> None:
    before = (done / "report.html").read_bytes()
    path = write_shared(done)
    page = path.read_text("utf-8")
    held = unpacked(page)
    assert path.name == "report-without-texts.html"
    assert held["prompt"] == held["id"]
    assert not any(held["response"])
    shown = page + json.dumps(held)
    sentence = re.compile(r"\b\w+ the \w+ (sort|list|name|add|red)\b")
    assert sentence.search(json.dumps(unpacked(before.decode())))
    assert not sentence.search(shown)
    assert str(done.parent) not in shown
    assert "leaves out the rows" in page
    assert (done / "report.html").read_bytes() == before


def test_the_policy_names_the_one_script_by_its_hash(done: Path) -> None:
    page = (done / "report.html").read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashed = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in page
    assert "script-src 'unsafe-inline'" not in page


def test_the_page_begins_with_the_verdict_of_the_summary(done: Path) -> None:
    page = html.unescape((done / "report.html").read_text("utf-8"))
    verdict = json.loads((done / "summary.json").read_text())["verdict"]
    answer = re.findall(r'<section id="verdict" class="verdict (\w+)"', page)
    assert answer == [verdict["agrees_with_teacher"]]
    assert page.index(verdict["why"]) < page.index('<div class="tiles">')
    for command in verdict["next"]:
        # A line breaks between words, not within a flag.
        words = " ".join(f"<span>{word}</span>" for word in command.split(" "))
        assert f"<code>{words}</code>" in page
        assert f'data-copy="{command}"' in page
    # A saving is no merit of what does not agree.
    assert ("less cost than labelling everything" in page) == (verdict["agrees_with_teacher"] == "yes")


def test_the_table_has_every_row_with_its_figures(done: Path, run: FinishedRun) -> None:
    found = unpacked((done / "report.html").read_text("utf-8"))
    assert set(found["id"]) == set(run.choices)
    for at, item in enumerate(found["id"]):
        choice = run.choices[item]
        assert found["rank"][at] == choice.rank
        assert found["score"][at] == pytest.approx(choice.score, rel=1e-3)
        assert found["stability"][at] == choice.stability
        assert found["sources"][found["source"][at]] == choice.source
        assert found["kinds"][found["kind"][at]] in ("chosen", "filler", "dropped", "removed")
        assert found["prompt"][at] == cut(run.rows.example(item).prompt, 2000)
    lengths = {item: len(run.rows.example(item).prompt) + len(run.rows.example(item).response) for item in run.choices}
    assert dict(zip(found["id"], found["length"], strict=True)) == lengths


def test_the_page_shows_the_numbers_of_the_run(done: Path, record: dict[str, Any]) -> None:
    summary = json.loads((done / "summary.json").read_text())
    page = (done / "report.html").read_text("utf-8")
    ledger = summary["ledger"]
    assert f"{ledger['teacher_passes']:,}" in page
    assert f"{ledger['full_teacher_passes']:,}" in page
    assert f"{100 * ledger['share_of_training']:.1f} %" in page
    assert f"{ledger['training_cost']:,}" in page
    assert record["warnings"] == grouped(summary["warnings"])
    for name, quadrants in summary["baselines"].items():
        line = next(line for line in record["quadrants"] if line["who"] == name)
        assert line["spearman"] == quadrants["q4"]["spearman"]


def test_the_last_point_of_the_curve_is_the_coverage_of_the_selection(run: FinishedRun, record: dict[str, Any]) -> None:
    whole = run.block(run.target_ids, run.chosen)[0]
    found = record["coverage"]
    assert found["rows"][-1] == len(run.chosen)
    assert found["curves"]["selected"][-1] == pytest.approx(float(np.nanmax(whole, axis=1).mean()), abs=1e-6)
    first = run.block(run.target_ids, run.chosen[:1])[0][:, 0]
    assert found["curves"]["selected"][0] == pytest.approx(float(np.nanmean(first)), abs=1e-6)
    random = [
        np.nanmax(run.block(run.target_ids, random_ids(run.rows.ids, 18, draw))[0], axis=1).mean() for draw in range(5)
    ]
    assert found["curves"]["random"][-1] == pytest.approx(float(np.mean(random)), abs=1e-6)
    assert set(found["curves"]) == {"selected", "random", "stratified", "embedding", "longest"}


def test_curves_never_fall(record: dict[str, Any]) -> None:
    # Only where the first row has no utility for a target can the mean over targets do so.
    for name, values in record["coverage"]["curves"].items():
        assert all(b >= a - 1e-3 for a, b in itertools.pairwise(values)), name


def test_shares_are_counted_by_hand(run: FinishedRun) -> None:
    found = {table.name: table for table in tables(run)}
    assert set(found) == {"source", "topic", "length"}
    line = next(line for line in found["source"].groups if line.group == "second")
    chosen = [run.choices[name].source for name in run.chosen]
    assert line.full == pytest.approx(20 / 60)
    assert line.selected == pytest.approx(chosen.count("second") / 18)
    assert sum(line.rows for line in found["length"].groups) == 60
    shift = 0.5 * sum(abs(line.selected - line.full) for line in found["topic"].groups)
    assert found["topic"].distance["selected"] == pytest.approx(shift)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.7e18, -1e30])
def test_scores_that_are_all_the_same_have_bins(value: float) -> None:
    choices = {name: Choice(name, "x", None, name == "a", None, None, value, "") for name in "abc"}
    found = report_rows.scores(cast(FinishedRun, SimpleNamespace(choices=choices)))
    assert (sum(found.chosen), sum(found.dropped)) == (1, 2)
    assert found.edges[0] < value < found.edges[-1]


def test_held_out_pairs_are_predicted_by_a_student_that_did_not_learn_from_them(record: dict[str, Any]) -> None:
    found, unseen = (
        record["held_out"],
        next(line for line in record["quadrants"] if (line["who"], line["quadrant"]) == ("student", "q4")),
    )
    predicted, labelled = np.array(found["points"]).T
    assert found["pairs"] == unseen["pairs"] == len(predicted)
    assert np.mean((predicted - labelled) ** 2) == pytest.approx(unseen["mse"], rel=1e-3)
    slope, intercept = np.polyfit(predicted, labelled, 1)
    assert found["slope"] == pytest.approx(slope, rel=1e-3)
    assert found["intercept"] == pytest.approx(intercept, rel=1e-3, abs=1e-6)
    assert sum(one["pairs"] for one in found["bins"]) == len(predicted)


def test_extreme_pairs_are_the_teachers(run: FinishedRun, record: dict[str, Any]) -> None:
    values = np.concatenate([part.present().value for part in run.labels.values()])
    assert record["pairs"]["strongest"][0]["utility"] == values.max()
    assert record["pairs"]["weakest"][0]["utility"] == values.min()


def test_regions_share_out_the_rows(record: dict[str, Any]) -> None:
    regions = record["uncovered"]["regions"]
    assert sum(region["rows"] for region in regions) == 60
    assert sum(region["selected"] for region in regions) == 18
    worst = [one["utility"] for one in record["uncovered"]["worst"]]
    assert worst == sorted(worst)


def test_near_copies_are_found_by_cosine(run: FinishedRun, record: dict[str, Any]) -> None:
    dropped = [name for name, choice in run.choices.items() if not choice.selected]
    cosine = (run.vectors(dropped) @ run.vectors(run.chosen).T).max(axis=1)
    assert record["near_copies"]["rows"] == int((cosine >= 0.95).sum())


def test_a_report_is_made_again_only_where_the_run_or_the_page_changed(done: Path) -> None:
    page = done / "report.html"
    before = page.stat().st_mtime_ns
    write_report(done)
    assert page.stat().st_mtime_ns == before
    page.unlink()
    write_report(done)
    assert page.exists()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        write_report(tmp_path)


def test_texts_are_cut_by_bytes() -> None:
    assert cut("a\n b", 10) == "a b"
    assert len(cut("ö" * 500, 101).encode()) <= 101 + 4
    assert cut("ö" * 500, 101) == "ö" * 50 + " …"


def test_a_row_teacher_has_a_report_too(
    tmp_path: Path, done: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncift

    found = nncift.run(
        done.parent / "first.jsonl", teacher="length", labels=0.3, budget=5, encoder="hash", out=tmp_path / "run"
    )
    page = (found.path / "report.html").read_text("utf-8")
    assert "Mean score of the rows chosen so far" in page
    made = json.loads((found.path / "report.json").read_text())
    scores = [FinishedRun(found.path).choices[row.id].score for row in found.subset]
    assert made["coverage"]["curves"]["selected"][-1] == pytest.approx(np.mean([score or 0 for score in scores]))


class Large(FinishedRun):
    """A run over many rows that exists in memory only."""

    def __init__(self, small: FinishedRun, rows: int) -> None:
        super().__init__(small.path)
        from nncift.data.pool import PoolTable

        rng = np.random.default_rng(0)
        few = small.rows.ids
        ids = (*few, *(f"more-{k:06d}" for k in range(len(few), rows)))
        chosen = set(rng.choice(rows, rows // 5, replace=False).tolist())
        rank = {k: place for place, k in enumerate(sorted(chosen), 1)}
        text = "日本語のとても長い文章です。" * 60
        raw = [json.dumps({"instruction": f"{k} {text}", "output": text, "topic": f"t{k % 7}"}) for k in range(100)]
        columns: dict[str, list[Any]] = {
            "id": list(ids),
            "axis": ["source"] * rows,
            "source": [f"s{k % 3}" for k in range(rows)],
            "line": list(range(rows)),
            "turns": [2] * rows,
            "prompt_chars": [k % 900 for k in range(rows)],
            "response_chars": [k % 90 for k in range(rows)],
            "raw": [raw[k % 100] for k in range(rows)],
            "content": [f"{k % (rows - 3)}" for k in range(rows)],
            "tokens": [None] * rows,
        }
        layout = Layout.from_settings("auto", None)
        self.__dict__["rows"] = PoolTable(ids, columns, layout)
        self.__dict__["_selection_table"] = {
            "id": list(ids),
            "source": columns["source"],
            "rank": [rank.get(k) for k in range(rows)],
            "selected": [k in chosen for k in range(rows)],
            "gain": [1.0] * rows,
            "would_add": [0.5] * rows,
            "score": rng.normal(size=rows).tolist(),
            "stability": [0.5] * rows,
            "reason": ["Because. " * 60] * rows,
        }
        dim = small.vectors(small.rows.ids[:1]).shape[1]
        vectors = rng.normal(size=(rows, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        place = {name: k for k, name in enumerate(ids)}
        views = small._files.views
        self.__dict__["_files"] = SimpleNamespace(of=lambda some: vectors[[place[name] for name in some]], views=views)


def test_a_large_pool_is_sampled_and_the_page_says_so(run: FinishedRun) -> None:
    large = Large(run, 9000)
    sample = draw(large)
    assert len(sample.ids) == 1000
    assert sum(large.choices[name].selected for name in sample.ids) == 500
    page = render(numbers(large), "large")
    assert len(page.encode()) <= MOST_BYTES
    assert "1,000 sampled of 9,000 rows" in page
    assert "All 9,000 rows." in page
    assert len(unpacked(page)["id"]) == 9000
    assert "Duplicate: 3 of 9,000 rows" in page
    assert "2,000 sampled of 9,000 targets" in page
    assert "left out: these do not fit in memory at 9,000 rows" in page


@pytest.mark.slow
def test_two_hundred_thousand_rows_make_a_report_below_two_megabytes(run: FinishedRun) -> None:
    page = render(numbers(Large(run, 200_000)), "large")
    assert len(page.encode()) < 2_000_000
    assert "sampled of 200,000 rows" in page
    assert "20,000 of 200,000 rows, a sample" in page
    assert len(unpacked(page)["id"]) == 20_000


def test_choosing_again_makes_the_report_again(done: Path, tmp_path: Path) -> None:
    from nncift.runs.select_again import reselect

    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    reselect(copy, {"budget": "5"})
    assert json.loads((copy / "report.json").read_text())["asked"]["selected"] == 5
    assert "of 60 rows selected" in (copy / "report.html").read_text("utf-8")


def test_removed_duplicates_are_told_and_explained(tmp_path: Path) -> None:
    import nncift
    from nncift import explain

    rows = [{"id": f"r{k}", "instruction": f"say {k % 37}", "output": "word " * (1 + k % 37)} for k in range(40)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = nncift.run(
        tmp_path / "pool.jsonl",
        teacher="length",
        labels=0.3,
        budget=5,
        encoder="hash",
        dedup="exact",
        out=tmp_path / "run",
    )
    assert "<b>3</b> duplicates were removed before the selection" in (made.path / "report.html").read_text("utf-8")
    gone = next(choice.id for choice in FinishedRun(made.path).choices.values() if choice.reason.startswith("Removed"))
    assert "taken out before the selection" in explain(made.path, gone)["change"][0]


def many(count: int) -> Any:
    """Return a run of unit vectors in two groups that lie apart, as far as a map looks at it."""
    random = np.random.default_rng(0)
    middle = np.repeat(np.eye(2, 16), count // 2, axis=0)
    vectors = (middle + 0.05 * random.normal(size=(count, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {f"r{at:03d}": at for at in range(count)}
    rows = SimpleNamespace(ids=tuple(place))
    found = SimpleNamespace(rows=rows, settings=SimpleNamespace(seed=3))
    found.vectors = lambda ids: vectors[[place[item] for item in ids]]
    return found


def sample_of(run: Any, count: int) -> Sample:
    return Sample(run, run.rows.ids[:count], count, 0)


def test_a_map_without_umap_shows_components_and_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    run = many(120)
    made = report_rows.plane(run, sample_of(run, 120))
    vectors = run.vectors(run.rows.ids).astype(float)
    spread = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    assert made.method == "pca"
    assert made.variance == pytest.approx(spread[:2].sum() / spread.sum())


@pytest.mark.slow
def test_a_map_by_umap_keeps_groups_apart_and_is_the_same_twice() -> None:
    pytest.importorskip("umap", reason="pip install umap-learn")
    run = many(120)
    sample = sample_of(run, 120)
    made, again = report_rows.plane(run, sample), report_rows.plane(run, sample)
    assert made == again
    assert made.method.startswith("umap 0.")
    assert made.variance is None
    points = np.array([made.x, made.y]).T
    apart = np.linalg.norm(points[:60].mean(axis=0) - points[60:].mean(axis=0))
    assert apart > 2 * max(points[:60].std(axis=0).max(), points[60:].std(axis=0).max())
    few = report_rows.plane(run, sample_of(run, 50))
    assert few.method == "pca"


def test_rows_that_targets_take_in_turn_are_no_fillers() -> None:
    choice = Choice("a", "s", 4, True, 0.0, None, 0.1, "Taken at rank 4 of 80 in the turn of t")
    assert report_rows.kind_of(choice, "rr") == "chosen"
    assert report_rows.kind_of(choice, "fl") == "filler"


def test_names_of_regions_do_not_lie_on_each_other(done: Path) -> None:
    rows = numbers(FinishedRun(done)).rows[:3]
    regions = [
        Region(size, 0.1, 0, 0.0, None, [name], "") for size, name in ((9, "small"), (20, "large"), (8, "apart"))
    ]
    rows = [replace(row, region=number) for number, row in enumerate(rows)]
    chart = str(plane(PoolMap([0.0, 0.01, 1.0], [0.0, 0.0, 1.0], "pca", 0.5), rows, regions))
    assert "small" not in chart
    assert "large" in chart
    assert "apart" in chart
