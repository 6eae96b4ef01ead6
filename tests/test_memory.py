"""A cap on memory: what it is worth in bytes, and that the system holds to it."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift.core import memory
from nncift.core.memory import cap, free_memory, named, parse_memory, rows_at_once, rows_within, taken
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.views import TEXT, Views
from nncift.selection.neighbours import nearest
from nncift.student.model import Student
from nncift.student.view_cosines import POWERS


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
    before, most = free_memory(), taken() + 50_000_000
    with capped(most):
        left = free_memory()
        assert left is not None
        assert abs(left - (most - taken())) < 2**21
        with capped(taken() + 10**12):
            assert (free_memory() or 0) <= most - taken() + 2**21
    assert before is None or (free_memory() or 0) > 60_000_000


def test_more_than_the_cap_is_refused_by_the_system() -> None:
    with capped(taken() + 100_000_000), pytest.raises(MemoryError):
        np.ones(50_000_000)
    assert np.ones(50_000_000)[0] == 1


@pytest.mark.parametrize("product", ["a @ a", "scipy.linalg.blas.dgemm(1.0, a, a)"])
def test_linear_algebra_neither_ends_the_process_nor_waits_under_a_cap(product: str) -> None:
    code = (
        "import numpy as np, scipy.linalg; from nncift.core.memory import cap, taken; a = np.ones((300, 300));"
        f"cap(10**12); cap(taken() + 3 * 2**20); print(int(({product})[0, 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "300\n"), done.stderr


def test_a_cap_below_what_is_taken_already_is_refused() -> None:
    with pytest.raises(ResourceError, match="the program alone takes"), capped(10**6):
        pass


def test_a_run_that_needs_more_than_its_cap_says_so(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    command = ["run", str(write_pool(60)), "--teacher", "delift-se", "--encoder", "hash", "--labels", "50%"]
    line = [sys.executable, "-m", "nncift", *command, "--out", str(tmp_path / "run"), "--max-mem", "60M"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "--max-mem of 60 MB was given, and the program alone takes" in done.stderr
    assert "defect" not in done.stderr
    line[-1] = "4G"
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0


def test_an_import_that_fails_without_a_reason_ran_out_of_memory_under_a_cap_alone() -> None:
    error = SystemError("error return without exception set")
    assert not memory.ran_out(error)
    with capped(taken() + 100_000_000):
        assert memory.ran_out(error)
        assert not memory.ran_out(SystemError("bad argument to internal function"))


def test_what_runs_out_is_named_with_its_bytes() -> None:
    with (
        capped(taken() + 100_000_000),
        pytest.raises(ResourceError, match=r"the stage 'x' needs 3\d\d\.\d MB more, and .* MB of --max-mem"),
        named("the stage 'x'"),
    ):
        np.ones(50_000_000)


@pytest.mark.parametrize(
    ("error", "record"),
    [
        (
            RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 5000000 bytes. Error"),
            "5.0 MB more",
        ),
        (MemoryError("malloc of size 2000000 failed"), "2.0 MB more"),
        (MemoryError("Unable to allocate 1.50 GiB for an array with shape (3,)"), "1,610.6 MB more"),
        (MemoryError(), "more memory"),
    ],
)
def test_bytes_are_read_from_what_libraries_say(error: Exception, record: str) -> None:
    with (
        pytest.raises(ResourceError, match=f"embedding needs {record}, .* all that this machine has"),
        named("embedding"),
    ):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), named("x"):
        raise RuntimeError("shapes do not match")


def test_blocks_are_multiples_of_a_unit_where_they_can_be() -> None:
    assert [rows_within(size, 10) for size in (0, 5, 90, 1919, 1920, 3839, 3840)] == [1, 1, 9, 191, 192, 192, 384]


def test_blocks_are_as_large_as_a_cache_or_a_unit_whatever_a_cap_leaves() -> None:
    most = 1 << 28
    found = {size: rows_at_once(most, size) for size in (4, 10_000, 1_000_000, 1 << 21, 1 << 30)}
    assert found == {4: (1 << 20) // 192 * 192, 10_000: 384, 1_000_000: 192, 1 << 21: 128, 1 << 30: 1}
    with capped(taken() + 10_000_000):
        assert {size: rows_at_once(most, size) for size in found} == found


@pytest.fixture(params=[0, 500_000])
def tight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that puts a cap in place which leaves no more than so many bytes, as far as work asks."""

    def leave() -> None:
        monkeypatch.setattr(memory, "capped", lambda: 10**13)
        monkeypatch.setattr(memory, "free_memory", lambda: request.param)

    return leave


def points(rows: int, width: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_are_the_same_to_the_byte_whatever_a_cap_leaves(
    exact: bool, tight: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.selection.neighbours.CAP", 4 * 700 * 300)
    vectors, queries = points(700, 50, 0), points(700, 50, 1)
    before = nearest(vectors, 9, queries=queries, probes=0 if exact else 12)
    tight()
    after = nearest(vectors, 9, queries=queries, probes=0 if exact else 12)
    assert before.codes.tobytes() == after.codes.tobytes()
    assert before.cosine.tobytes() == after.cosine.tobytes()


@pytest.mark.parametrize("network", ["product", "towers"])
def test_scores_are_the_same_to_the_byte_whatever_a_cap_leaves(
    network: str, tight: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.student.model.SCORE_BYTES", 4 * 70 * 300)
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((24, 7), np.float32) for name in ("target_weight", "source_weight")}
    weights |= {name: random.standard_normal(7).astype(np.float32) for name in ("target_bias", "source_bias")}
    powers = 1 if network == "towers" else len(POWERS)
    weights |= {"text_powers": np.ones(powers, np.float32), "text_centre": np.zeros(24, np.float32)}
    student = Student(network, weights, 0.1, 0.3, views=Views.of({TEXT: 24}))
    student = Student(
        network, weights, 0.1, 0.3, views=Views.of({TEXT: 24}), targets=student.project_targets(points(70, 24, 1))
    )
    sources = student.project_sources(points(900, 24, 3))
    before = student.mean_per_source(sources)
    tight()
    assert student.mean_per_source(sources).tobytes() == before.tobytes()


def test_log_probabilities_are_the_same_to_the_byte_whatever_a_cap_leaves(
    llama_folder: Path, tight: Callable[[], None]
) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    tokens = [7 + k % 20 for k in range(60)]
    rows = [Row(tokens[:start], tokens[start:]) for start in range(4, 20)]
    before = [part.tobytes() for part in lm.log_probabilities(lm.prefix(tokens[:5]), rows)]
    tight()
    assert [part.tobytes() for part in lm.log_probabilities(lm.prefix(tokens[:5]), rows)] == before


def test_a_run_under_a_cap_selects_the_same_to_the_byte(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    command = [
        "run",
        str(write_pool(60)),
        "--teacher",
        "delift-se",
        "--encoder",
        "hash",
        "--labels",
        "20%",
        "--neighbours",
        "20",
    ]
    left = {}
    for name, more in (("free", []), ("capped", ["--max-mem", "540M"])):
        line = [sys.executable, "-m", "nncift", *command, "--quiet", "--out", str(tmp_path / name), *more]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = ("subset.jsonl", "selection.parquet", "embeddings.npy", "student/student.safetensors")
        left[name] = [(tmp_path / name / file).read_bytes() for file in files]
    assert left["free"] == left["capped"]


def test_pytorch_is_refused_before_it_ends_the_process() -> None:
    code = (
        "from nncift.core.memory import cap, taken; from nncift.models.loading import resolve_device; "
        "cap(10**12); cap(taken() + 10**8); resolve_device('cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ResourceError: memory ran out: loading PyTorch needs 200 MB" in done.stderr


def test_a_sound_file_is_not_called_damaged_where_memory_runs_out() -> None:
    record = "Unknown error: Failed to launch worker thread: Resource temporarily unavailable"
    for error in (OSError("malloc of size 64 failed"), OSError(12, "Cannot allocate memory"), OSError(record)):
        with pytest.raises(MemoryError):
            memory.pass_on(error)
    memory.pass_on(OSError("no such file"))


def test_what_cannot_be_refused_memory_is_not_begun_without() -> None:
    with capped(taken() + 10_000_000), pytest.raises(ResourceError, match="tokenising rows needs 16 MB to spare"):
        memory.check_room("tokenising rows")
    memory.check_room("tokenising rows")


def test_reading_parquet_starts_no_thread_and_loads_nothing_that_ends_the_process(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": [f"v{k}" for k in range(50)]}), tmp_path / "a.parquet", row_group_size=10)
    code = (
        "import os, sys; from pathlib import Path; from nncift.core.memory import cap; cap(10**12)\n"
        "from nncift.storage.parquet import FileColumn, read_columns; from nncift.data.file_rows import file_records\n"
        "path = Path(sys.argv[1]); import nncift.data.pool; threads = len(os.listdir('/proc/self/task'))\n"
        "assert len(read_columns(path)) == len(list(FileColumn(path, 'v'))) == len(list(file_records(path))) == 50\n"
        "print(len(os.listdir('/proc/self/task')) - threads, 'pyarrow.compute' in sys.modules)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == "0 False\n", done.stderr


def test_a_model_that_memory_ran_out_for_is_not_called_unreadable(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    def refused(*given: object, **more: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refused)
    with pytest.raises(ResourceError, match="memory ran out: loading needs more memory"), named("loading"):
        CausalLM.load(llama_folder, device="cpu")
