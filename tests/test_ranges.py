"""The lowest versions that pyproject.toml allows, in an environment of their own; torch stays where constraints.txt has it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ("tests/data", "tests/select/test_objectives.py", "tests/test_rundir.py", "tests/test_store.py", "tests/test_checksums.py",
        "tests/test_pipeline.py", "tests/test_lm.py", "tests/student/test_model.py")  # fmt: skip


def lowest() -> list[str]:
    """Return a pin to the first release line that each dependency's range allows; 6 means 6.0."""
    found = []
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, version = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        if name != "torch":
            found.append(f"{name}=={version if '.' in version else version + '.0'}.*")
    return found


def test_every_dependency_has_a_lowest_version() -> None:
    assert len(lowest()) > 10
    assert all(re.fullmatch(r"[\w-]+==\d+\.\d+(\.\d+)?\.\*", pin) for pin in lowest())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_core_and_demo_with_the_lowest_versions(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-compile",
        "-c",
        ROOT / "constraints.txt",
        "--prefer-binary",
    ]
    subprocess.run([python, "-m", "pip", "install", "-qq", "--upgrade", "pip"], check=True)
    done = subprocess.run(
        [*pip, ROOT, *lowest(), "pytest", "pytest-timeout", "hypothesis"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "NNCIFT_CACHE": str(tmp_path / "cache")
    }
    demo: list[str | Path] = [
        tmp_path / "env" / "bin" / "nncift",
        "demo",
        "--rows",
        "60",
        "--out",
        tmp_path / "demo",
        "--quiet",
    ]
    done = subprocess.run(demo, env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([python, "-m", "pytest", *CORE], env=clean, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
