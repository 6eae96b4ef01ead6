"""Wheel and source archive: they build, hold what they should, and the wheel alone runs the demo in a fresh environment."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import nncift

ROOT = Path(__file__).parents[1]


def test_one_version_stands_in_all_places() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert nncift.__version__ == project["version"]
    assert f"\n## {project['version']} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_tools_of_a_release_have_hashes_and_come_from_no_named_host() -> None:
    lines = (ROOT / "requirements" / "tools.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert {"build", "cyclonedx-bom", "hatchling", "twine"} <= {pin.partition("==")[0] for pin in pins}
    assert all(re.fullmatch(r"[\w.-]+==\S+( ; .+)? \\", pin) for pin in pins)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_are_yaml_that_call_targets_that_exist(path: Path) -> None:
    about = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in about.get("jobs", {}).values() for step in job["steps"]]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for step in steps:
        for call in re.findall(r"make ([\w -]+?)(?: PYTHON|$)", step.get("run", "")):
            assert set(call.split()) <= targets
        for name in re.findall(
            r"(?:python|pytest)\S* (?:-m slow --timeout=\d+ )?((?:tools|benchmarks|tests)/[\w/]+\.py)",
            step.get("run", ""),
        ):
            assert (ROOT / name).is_file()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the build backend cannot be had here: {done.stderr.splitlines()[-1:]}")
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_all_its_data(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "nncift").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/", "examples/"))]
    assert wheel.stat().st_size < 5_000_000


@pytest.mark.slow
def test_the_source_archive_holds_what_its_tests_need(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "mkdocs.yml",
        "Makefile",
        "RELEASING.md",
        "requirements/tools.txt",
        "tests/conftest.py",
        "examples/targeted.py",
    } <= names


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_a_fresh_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    home = tmp_path / "fresh"
    # Dependencies of this environment stand in for a download; the package itself comes from the wheel alone.
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    here = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((home / "lib").glob("python*")) / "site-packages"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True)
    (site / "dependencies.pth").write_text(here + "\n")
    clean = {"PATH": f"{home / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "NNCIFT_CACHE": str(tmp_path / "cache")}
    where = subprocess.run(
        [python, "-c", "import nncift; print(nncift.__file__)"], env=clean, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(site)), where.stdout + where.stderr
    for command in ([str(home / "bin" / "nncift")], [str(python), "-m", "nncift"]):
        done = subprocess.run([*command, "--version"], env=clean, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    demo = [str(home / "bin" / "nncift"), "demo", "--rows", "60", "--out", str(tmp_path / "demo"), "--quiet"]
    done = subprocess.run(demo, env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "run" / "report.html").stat().st_size > 10_000
