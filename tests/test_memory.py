"""A cap on memory: what it is worth in bytes, and that the system holds to it."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import ResourceError, UsageError
from nncift.memory import cap, free_memory, parse_memory, taken


@contextmanager
def capped(most: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    cap(most)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture(autouse=True, scope="module")
def work_space() -> None:
    """Let the first cap take what linear algebra needs, so that what is taken is known beforehand."""
    with capped(10**13):
        pass


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 8 * 10**9), ("500 MB", 500 * 10**6), ("1.5gib", 3 * 2**29), ("2000000", 2 * 10**6)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "8X", "-1G", "10k", "G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 8G"):
        parse_memory(text)


def test_free_memory_ends_at_the_cap_and_the_cap_ends_with_the_block() -> None:
    before = free_memory()
    with capped(taken() + 50_000_000):
        left = free_memory()
        assert left is not None
        assert 30_000_000 < left <= 60_000_000
        with capped(taken() + 10**12):
            assert (free_memory() or 0) <= 60_000_000
    assert before is None or (free_memory() or 0) > 60_000_000


def test_more_than_the_cap_is_refused_by_the_system() -> None:
    with capped(taken() + 100_000_000), pytest.raises(MemoryError):
        np.ones(50_000_000)
    assert np.ones(50_000_000)[0] == 1


@pytest.mark.parametrize("product", ["a @ a", "scipy.linalg.blas.dgemm(1.0, a, a)"])
def test_linear_algebra_neither_ends_the_process_nor_waits_under_a_cap(product: str) -> None:
    code = (
        "import numpy as np, scipy.linalg; from nncift.memory import cap, taken; a = np.ones((300, 300));"
        f"cap(10**12); cap(taken() + 3 * 2**20); print(int(({product})[0, 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "300\n"), done.stderr


def test_a_cap_below_what_is_taken_already_is_refused() -> None:
    with pytest.raises(ResourceError, match="the program alone takes"), capped(10**6):
        pass


def test_a_run_that_needs_more_than_its_cap_says_so(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    command = ["run", str(write_pool(60)), "--teacher", "delift-se", "--encoder", "hash", "--labels", "50%"]
    line = [sys.executable, "-m", "nncift", *command, "--out", str(tmp_path / "run"), "--max-mem", "60M"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "memory" in done.stderr or "--max-mem" in done.stderr
    assert "defect" not in done.stderr
    line[-1] = "4G"
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
