"""Both ends of what pyproject.toml allows, each in an environment of its own; torch stays where constraints.txt has it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("hub", "train", "judge", "ray")
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
# What runs commands of its own environment, or takes long and depends on no library, and a device that only the newest libraries
# can compute on.
ELSEWHERE = ("test_docs.py", "test_distribution.py", "test_ranges.py", "crash", "cli", "runs_report", "device")


def lowest() -> list[str]:
    """Return a pin to the first release line that each dependency's range allows; 6 means 6.0."""
    found = []
    extras = [line for name in EXTRAS for line in PROJECT["optional-dependencies"][name]]
    for line in [*PROJECT["dependencies"], *extras]:
        name, version = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        if name != "torch":
            found.append(f"{name}=={version if '.' in version else version + '.0'}.*")
    return found


def test_every_dependency_has_a_lowest_version() -> None:
    assert len(lowest()) > 15
    assert all(re.fullmatch(r"[\w-]+==\d+\.\d+(\.\d+)?\.\*", pin) for pin in lowest())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ["lowest", "newest"])
def test_demo_and_tests_at_both_ends_of_the_ranges(end: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "--upgrade", "pip"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--no-compile", "--prefer-binary"]
    pip += ["-c", ROOT / "constraints.txt"]
    if end == "lowest":
        wanted = [f"{ROOT}[offline]", *lowest()]
    else:
        wanted = ["--upgrade", "--upgrade-strategy", "eager", f"{ROOT}[offline,{','.join(EXTRAS)}]"]
    done = subprocess.run([*pip, *wanted, *TOOLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "NNCIFT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
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
    tests: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "--timeout=900",
        ROOT / "tests",
    ]
    left = [f"--ignore={ROOT / 'tests' / name}" for name in ELSEWHERE]
    done = subprocess.run([*tests, *left], env=clean, cwd=ROOT, capture_output=True, text=True)
    # The failures themselves stand before the warnings of older libraries.
    assert done.returncode == 0, done.stdout.partition("= FAILURES =")[2][:8000] + done.stdout[-2000:]
