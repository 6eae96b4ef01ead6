"""What README and docs show is run as it stands, on small stand-ins for the user's files and model."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_example_runs_as_printed(
    llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(60, "alpaca.jsonl")
    write_pool(5, "new.jsonl", start=60)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").symlink_to(llama_folder)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("README.md", "python")
    # The words of the fixture mean nothing to a sentence encoder, and hashing them needs no model.
    names: dict[str, Any] = {}
    exec(compile(example.replace("labels=0.05", 'labels=0.2, encoder="hash"'), "README.md", "exec"), names)
    assert len(names["run"].subset) == 18
    assert len(names["scores"].ids) == 5


def test_every_make_target_that_the_pages_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^    make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page} names make {target}"


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("command", ["run", "score", "demo", "doctor"])
def test_every_command_of_the_page_answers_help(command: str) -> None:
    assert f"`nncift {command}" in (ROOT / "docs" / "cli.md").read_text()
    done = subprocess.run([sys.executable, "-m", "nncift", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_the_worked_example_is_the_teacher_that_ships() -> None:
    (example,) = blocks("docs/add-a-teacher.md", "python")
    source = (ROOT / "src" / "nncift" / "teachers" / "ifd.py").read_text(encoding="utf-8")
    assert example == source
    assert len(source.splitlines()) < 85
