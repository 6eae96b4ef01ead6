"""What README and docs show is run as it stands, on small stand-ins for the user's files and model."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import nncift
from nncift.cli import main as cli
from nncift.cli.run import run_command
from nncift.distributed.start import executor_of
from nncift.models import encoders as encode

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
pytestmark = pytest.mark.usefixtures("hastened")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LONG = ("docs/data.md", "docs/index.md", "docs/metrics.md", "docs/scale.md", "docs/teachers.md", "docs/tune.md")
"""Pages with several runs or trainings, which take seconds: `make test` reads them, `make test-slow` runs them too."""
MADE_FIRST = "nncift run alpaca.jsonl --model MODEL --budget 30% --out runs/alpaca --quiet"


class Block(NamedTuple):
    """A block of a page: fenced with a language, or indented (language `shell`)."""

    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    fence, lines, before = "", list[str](), ""
    for line in [*(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]:
        if fence:
            if line.strip() == "```":
                yield Block(fence, "\n".join(lines) + "\n")
                fence, lines = "", []
            else:
                lines.append(line)
        elif line.startswith("```"):
            fence, lines = line[3:].strip() or "text", []
        elif line.startswith("    ") and (lines or not before.strip()):
            # After a line of text it continues a list or an option, and is no block.
            lines.append(line)
        elif lines:
            # Indented by more than four spaces: part of a list, and no command.
            yield Block(
                "toml" if lines[0].startswith("        ") else "shell", "\n".join(x.strip() for x in lines) + "\n"
            )
            lines = []
        before = line


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, make_row: Callable[[int], dict[str, str]]
) -> Path:
    """Return a folder as a reader of the pages would have it: files, models, and a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    for name, first, last in (
        ("alpaca.jsonl", 0, 120),
        ("new.jsonl", 200, 205),
        ("gsm8k.jsonl", 0, 50),
        ("code.jsonl", 50, 90),
        ("wanted.jsonl", 300, 325),
        ("test.jsonl", 299, 304),
    ):
        (folder / name).write_text("".join(json.dumps(make_row(index)) + "\n" for index in range(first, last)))
    # Words of their own: test rows that are in no other file.
    (folder / "mmlu.jsonl").write_text('{"instruction": "Which planet is the largest?", "output": "Jupiter"}\n')
    for model in ("MODEL", "org/model", "Qwen/Qwen2.5-1.5B"):
        (folder / model).parent.mkdir(exist_ok=True)
        (folder / model).symlink_to(llama_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        without_a_sentence_encoder(patch)
        command(MADE_FIRST, patch)
    return folder


@pytest.fixture
def reader(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the reader's folder, made the current one."""
    folder = tmp_path / "reader"
    shutil.copytree(template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    without_a_sentence_encoder(monkeypatch)
    return folder


def without_a_sentence_encoder(patch: pytest.MonkeyPatch) -> None:
    """Let `minilm` be the hash encoder: the words of the rows mean nothing to a sentence encoder, and hashing is quick."""
    create: Callable[..., Any] = encode.create

    def made(name: str, **given: Any) -> Any:
        return create("hash" if name == "minilm" else name, **given)

    for module in (
        "nncift.models.encoders",
        "nncift.stages.context",
        "nncift.stages.decontaminate",
        "nncift.student.model",
    ):
        patch.setattr(f"{module}.create", made)


def command(line: str, patch: pytest.MonkeyPatch) -> None:
    """Run a command of a page in this process."""
    words = shlex.split(line, comments=True)
    if words[1] == "demo":
        words += ["--rows", "50", "--labels", "20"]
    if words[1] == "tune":
        words += ["--steps", "1", "--seeds", "1", "--max-new-tokens", "4"]
    if words[1] == "study":
        words += ["--dry-run"]
    patch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0, line


def shell(text: str, patch: pytest.MonkeyPatch) -> None:
    """Run every line, or check it where running it would install something or start a make."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "nncift":
            command(line, patch)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        elif words[:2] == ["pip", "install"]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", line)))) <= set(known), line
        elif words[0] == "python" and words[1].startswith(("benchmarks/", "tools/")):
            # Its hours, or its minutes, are for whoever changes what it measures.
            assert f'"{words[2]}"' in (ROOT / words[1]).read_text(), line
        elif "_NNCIFT_COMPLETE" in line:
            (wanted,) = re.findall(r"_NNCIFT_COMPLETE=(\w+)", line)
            script = [sys.executable, "-c", "from nncift.cli.main import cli; cli(prog_name='nncift')"]
            done = subprocess.run(
                script, env={**os.environ, "_NNCIFT_COMPLETE": wanted}, capture_output=True, text=True
            )
            if "bash" not in wanted or shutil.which("bash"):
                assert "_NNCIFT_COMPLETE" in done.stdout, done.stderr
        else:
            pytest.fail(f"a page shows a line that no test runs: {line}")


def array(text: str, patch: pytest.MonkeyPatch) -> None:
    """Run a script of SLURM, once for every task of its array."""
    tasks = range(1, int(found[1]) + 1) if (found := re.search(r"--array=1-(\d+)", text)) else [1]
    for task in tasks:
        own = text.replace("$SLURM_ARRAY_TASK_ID", str(task)).replace("$SLURM_ARRAY_TASK_COUNT", str(len(tasks)))
        assert "$" not in own
        shell(own, patch)


def ray_lines(text: str) -> None:
    """Check lines that need a cluster: flags are read and fit each other, and nothing is started (tests/scale does)."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["nncift", "run"]:
            given = run_command.make_context("run", words[2:]).params
            flags = {name: given[name] for name in ("address", "workers", "gpus_per_worker")}
            assert not executor_of(given["engine"], given["shard"], **flags).partial, line
        elif words:
            assert words[:2] == ["ray", "start"], line


def names_of(page: str) -> dict[str, Any]:
    """Return what a block of a page takes for granted."""
    if page != "docs/teachers.md":
        return {}
    import torch

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "folder": "."}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in NAMES])
def test_every_block_of_a_page_runs_as_it_stands(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of(page)
    for language, text in blocks(page):
        if page == "README.md":
            # Its blocks are ways to the same directory, each on its own.
            shutil.rmtree("runs", ignore_errors=True)
        if language in ("shell", "sh", "bash"):
            shell(text, monkeypatch)
        elif language == "slurm":
            array(text, monkeypatch)
        elif language == "ray":
            ray_lines(text)
        elif language == "python":
            exec(compile(text, page, "exec"), names)
        elif language == "toml":
            tomllib.loads(text)
        elif language == "yaml" and "analyses:" in text:
            Path("study.yaml").write_text(text)
            command("nncift study study.yaml --set data=alpaca.jsonl --set model=MODEL", monkeypatch)
        elif language == "yaml" and "grades:" in text:
            Path("prompts.yaml").write_text(text)
            nncift.teachers.SelectIt("MODEL", rating_prompts="prompts.yaml")
        else:
            pytest.fail(f"{page} has a block in {language!r}, which no test runs")


@pytest.mark.parametrize("page", LONG)
def test_commands_of_a_long_page_have_the_flags_that_it_shows(page: str) -> None:
    read = 0
    for language, text in blocks(page):
        if language == "python":
            compile(text, page, "exec")
        elif language in ("shell", "slurm"):
            lines = [shlex.split(re.sub(r"\$\w+", "1", line), comments=True) for line in text.splitlines()]
            for words in [words for words in lines if words[:1] == ["nncift"]]:
                command = cli.cli.get_command(click.Context(cli.cli), words[1])
                assert command is not None, words
                command.make_context(words[1], words[2:])
                read += 1
    assert read or page == "docs/metrics.md"


def test_blocks_are_found_in_both_forms() -> None:
    assert {block.language for page in NAMES for block in blocks(page)} >= {"shell", "python", "sh", "toml"}
    assert any("nncift inspect" in block.text for block in blocks("docs/index.md"))


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in listed, f"name {page.name} in the nav of mkdocs.yml"


def test_every_command_of_the_page_answers_help() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for name in cli.COMMANDS:
        assert f"`nncift {name}" in page, name
    done = subprocess.run([sys.executable, "-m", "nncift", "doctor", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_the_worked_example_is_the_teacher_that_ships() -> None:
    (example,) = [block.text for block in blocks("docs/add-a-teacher.md") if block.language == "python"]
    source = (ROOT / "src" / "nncift" / "teachers" / "ifd.py").read_text(encoding="utf-8")
    assert example == source
    assert len(source.splitlines()) < 100


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip('zensical is not installed: pip install ".[docs]"')
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Nothing is fetched when a page is opened.
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "site" / "index.html").read_text())
    assert not [link for link in loaded if re.search(r"\.(?:js|css|woff2?)(?:\?|$)", link)]
    assert "def explain" not in (tmp_path / "site" / "api" / "index.html").read_text()
    assert "why_not" in (tmp_path / "site" / "api" / "index.html").read_text()
