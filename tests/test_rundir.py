import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nncift.config import resolve
from nncift.errors import ResourceError, UsageError
from nncift.storage.run_directory import RunDir

pytestmark = pytest.mark.usefixtures("hastened")
HOLDER = """
import sys
from nncift.config import RunSettings
from nncift.storage.run_directory import RunDir
with RunDir(sys.argv[1], RunSettings()):
    print("held", flush=True)
    sys.stdin.read()
"""


def opened(path: Path, **given: Any) -> RunDir:
    return RunDir(path, resolve(given))


def finished(path: Path, **given: Any) -> Path:
    """Make a run directory with a manifest."""
    with opened(path, **given) as directory:
        directory.write_manifest({})
    return path


def test_another_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match="another process works on"), opened(path):
            pass
        holder.communicate()
    with opened(path):
        pass


def test_a_refused_process_does_not_take_the_lock_away(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with opened(path):
        for _ in range(2):
            with pytest.raises(ResourceError), opened(path):
                pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_is_moved_while_a_run_works_there_is_noticed(tmp_path: Path, replaced: bool) -> None:
    path, moved = tmp_path / "run", tmp_path / "moved"
    with opened(path) as directory:
        directory.write_manifest({})
        path.rename(moved)
        if replaced:
            # Another run began at the same place meanwhile.
            shutil.copytree(moved, path)
        with pytest.raises(ResourceError, match="was moved, replaced or deleted while a process worked on it"):
            directory.file("out.txt")
        assert path.exists() == replaced
        with pytest.raises(ResourceError, match="was moved"), directory.stage("fit", "a"):
            pass
    with opened(moved) as directory:
        assert not directory.is_done("fit", "a")
        assert directory.file("out.txt").parent == moved


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({}, {"seed": 1}, "seed = 0, and 1"),
        ({"plan": "block"}, {"plan": "scatter"}, "plan = 'block', and 'scatter'"),
        ({"model": "a"}, {"model": "b"}, "model = 'a', and 'b'"),
        ({}, {"encoder": "hash"}, "encoder = 'minilm', and 'hash'"),
    ],
)
def test_other_settings_are_refused_with_both_values(tmp_path: Path, before: Any, now: Any, name: str) -> None:
    path = finished(tmp_path / "run", **before)
    with pytest.raises(UsageError, match=f"{name} was given"), opened(path, **now):
        pass
    with opened(path, **before):
        pass


def test_pool_labels_and_budget_may_grow(tmp_path: Path) -> None:
    path = finished(tmp_path / "run", pool=["a.jsonl"])
    with opened(path, pool=["a.jsonl", "b.jsonl"], labels="10%", budget="5", limit=9, objective="topk"):
        pass


@pytest.mark.parametrize("name", ["notes.txt", ".lock"])
def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other things; give a new directory"), opened(tmp_path):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"thesis.tex": "years of work", name: "mine"}


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(UsageError, match="is a file"), opened(path):
        pass


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    finished(tmp_path)
    assert (tmp_path / "manifest.yaml").exists()


@pytest.mark.parametrize("path", [Path("/proc/nncift-run"), Path(__file__) / "run"])
def test_a_place_that_cannot_be_written_lacks_something_in_the_environment(path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written") as caught, opened(path):
        pass
    assert caught.value.exit_code == 6


def test_a_directory_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # Permissions do not bind the superuser, as whom tests may run.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match="cannot be written: Permission denied"), opened(tmp_path / "run"):
        pass


def test_a_stage_is_done_for_its_fingerprint_only(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as directory:
        for fingerprint, done in (("a", False), ("a", True), ("b", False), ("a", False)):
            with directory.stage("fit", fingerprint) as stage:
                assert stage.done == done


def test_a_stage_whose_files_are_gone_is_not_done(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as directory:
        with directory.stage("fit", "a", ("out.txt",)):
            directory.file("out.txt").write_text("x")
        assert directory.is_done("fit", "a", ("out.txt",))
        directory.file("out.txt").unlink()
        assert not directory.is_done("fit", "a", ("out.txt",))


def test_the_mark_comes_last_and_its_predecessor_goes_first(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as directory:
        with directory.stage("fit", "a"):
            assert not directory.is_done("fit", "a")
        with pytest.raises(RuntimeError), directory.stage("fit", "b"):
            raise RuntimeError
        # Files may be half b's by now, so a does not count as done either.
        assert not directory.is_done("fit", "a")
        assert not directory.is_done("fit", "b")


def test_costs_survive_a_failure_and_add_up_over_sessions(tmp_path: Path) -> None:
    def fail() -> None:
        with opened(tmp_path / "run") as directory, directory.stage("fit", "a") as stage:
            stage.cost.model_passes += 3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with opened(tmp_path / "run") as directory, directory.stage("fit", "a") as stage:
        stage.cost.model_passes += 4
    with opened(tmp_path / "run") as directory:
        with directory.stage("fit", "a") as stage:
            assert stage.done
        found = directory.costs()["fit"]
    assert (found.model_passes, found.sessions) == (7, 2)


@pytest.mark.parametrize("text", ["{", json.dumps({"fit": {"hours": 1}}), "[]"])
def test_damaged_costs_are_named_and_counted_anew(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = finished(tmp_path / "run")
    (path / "costs.json").write_text(text)
    with caplog.at_level(logging.WARNING), opened(path) as directory:
        assert directory.costs() == {}
    assert "costs.json is damaged; costs are counted anew" in caplog.text


def test_a_manifest_is_a_settings_file_that_gives_the_same_settings(tmp_path: Path) -> None:
    given = {"pool": ["a.jsonl", "b.jsonl"], "labels": 0.05, "budget": 40, "map": {"prompt": "q"}, "template": "plain"}
    path = finished(tmp_path / "run", **given)
    assert resolve({}, path / "manifest.yaml") == resolve(given)


def test_a_changed_run_is_not_finished_until_its_summary_is_written_again(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    summary = path / "summary.json"
    summary.write_text("{}")
    finished(path)
    assert summary.exists()
    finished(path, budget="5")
    assert not summary.exists()
