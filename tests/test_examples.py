"""The example scripts run as they stand, offline, and do what they say."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_the_examples_page_names_every_script() -> None:
    page = (Path(__file__).parents[1] / "docs" / "examples.md").read_text()
    for script in EXAMPLES:
        assert f"`{script.name}" in page


def marked(script: Path) -> Any:
    """Return a script as a parameter; slow where a language model labels."""
    return pytest.param(script, id=script.stem, marks=pytest.mark.slow if "Delift(" in script.read_text() else ())


@pytest.mark.parametrize("script", [marked(script) for script in EXAMPLES])
def test_an_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    (report,) = (tmp_path / "runs").glob("*/report.html")
    assert report.stat().st_size > 10_000
    expected = {
        "own_model_and_data": "rows for TRL in",
        "targeted": "skills of the target set:",
        "continual": "rows selected that add to",
        "custom_teacher": "Spearman on rows never seen:",
    }
    assert expected[script.stem] in said
