"""A finished run over rows that attack the page, and a page opened in headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nncift.cli import main as cli
from tests.hastened import hasten

WORDS = "sort list name add red blue green cat dog bird sky sea tree house".split()
EVIL = "<script>document.title = 'broken in'</script><img src=x onerror=\"document.title='broken in'\">"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)


def row(index: int) -> dict[str, str]:
    a, b, c = (WORDS[(index * step + step) % len(WORDS)] for step in (1, 3, 5))
    asked = f"{a} the {b} {WORDS[index // 14]}" if index % 10 else f"{a} {EVIL} </script> {{{{ 7 * 7 }}}} {b}"
    topic = "odd" if index % 2 else "even"
    return {"id": f"row-{index:02d}", "instruction": asked, "output": f"{c} {a}" * (1 + index % 3), "topic": topic}


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Return the directory of a finished run over 60 rows of two files."""
    folder = tmp_path_factory.mktemp("report")
    rows = [json.dumps(row(index)) + "\n" for index in range(60)]
    (folder / "first.jsonl").write_text("".join(rows[:40]))
    (folder / "second.jsonl").write_text("".join(rows[40:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        hasten(patch)
        files = [str(folder / name) for name in ("first.jsonl", "second.jsonl")]
        patch.setattr(
            "sys.argv",
            [
                "nncift",
                "run",
                *files,
                "--model",
                str(llama_folder),
                "--encoder",
                "hash",
                "--labels",
                "20%",
                "--teacher",
                "delift",
                "--features",
                "text",
                "--quiet",
                "--out",
                str(folder / "alpaca"),
            ],
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0
    return folder / "alpaca"


def chromium() -> str | None:
    """Return where Chromium is, None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return headless Chromium under playwright; tests that need it are skipped where either is missing."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("the package playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield running
        running.close()
