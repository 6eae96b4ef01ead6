"""Permission comes from the call and never from a file: code of models, and downloads."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import nncift
from nncift import config
from nncift.errors import ResourceError, UsageError
from nncift.models import adapters
from nncift.runs.finished import FinishedRun
from nncift.storage import checksums
from nncift.storage.run_directory import MANIFEST
from nncift.studies import grid, run_study

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("hastened")
CODE = """
from pathlib import Path
Path({canary!r}).write_text("ran")
from transformers import LlamaForCausalLM
class Own(LlamaForCausalLM):
    pass
"""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return the file that the code of `folder_with_code` writes when it runs."""
    return tmp_path / "the code ran"


@pytest.fixture
def folder_with_code(tmp_path: Path, llama_folder: Path, canary: Path) -> Path:
    """Return a model folder whose configuration names code beside it."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "with-code"))
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(about))
    code = CODE.format(canary=str(canary)) + (
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "Own.config_class = OwnConfig\n"
    )
    (folder / "own.py").write_text(code)
    return folder


@pytest.fixture
def finished(write_pool: Callable[..., Path], llama_folder: Path, tmp_path: Path) -> Path:
    """Return a small finished run whose teacher has a model."""
    out = tmp_path / "run"
    nncift.run(
        write_pool(24),
        out=out,
        teacher="loss",
        model=str(llama_folder),
        encoder="hash",
        labels="60%",
        budget=6,
        test_items=3,
        validation_items=3,
    )
    return out


def _say(run: Path, **changed: Any) -> None:
    """Change a run's manifest, as a stranger would: its mark with it."""
    values = yaml.safe_load((run / MANIFEST).read_text(encoding="utf-8")) | changed
    (run / MANIFEST).write_text(yaml.safe_dump(values), encoding="utf-8")
    mark = checksums.read_mark(run, "manifest")
    checksums.write_mark(run, "manifest", str(mark["fingerprint"]), (MANIFEST,))


def test_a_settings_file_does_not_permit_code(
    call: Call, write_pool: Callable[..., Path], tmp_path: Path, folder_with_code: Path, canary: Path
) -> None:
    file = tmp_path / "settings.yaml"
    given = {"pool": [str(write_pool(12))], "model": str(folder_with_code), "teacher": "loss", "encoder": "hash"}
    file.write_text(yaml.safe_dump({**given, "trust_remote_code": True}))
    found = call("run", "--config", file, "--out", tmp_path / "out")
    assert found.code == 2
    assert "--trust-remote-code" in found.err
    assert "a file permits nothing" in " ".join(found.err.split())
    assert not canary.exists()


def test_the_call_permits_code(folder_with_code: Path, canary: Path) -> None:
    from nncift.models.causal_lm import CausalLM

    CausalLM.load(folder_with_code, trust_remote_code=True)
    assert canary.exists()  # or the tests beside this one prove nothing


def test_nobody_is_asked_whether_code_may_run(
    folder_with_code: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nncift.data.tokenizer_files import load_tokenizer
    from nncift.models.causal_lm import CausalLM
    from nncift.models.encoders import SentenceEncoder

    asked: list[str] = []
    # transformers asks on the terminal where nobody has said anything, and takes what stands there for a yes.

    def agree(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", agree)
    about = json.loads((folder_with_code / "tokenizer_config.json").read_text())
    about["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    (folder_with_code / "tokenizer_config.json").write_text(json.dumps(about))
    for load in (CausalLM.load, load_tokenizer, lambda name: SentenceEncoder(name).encode(["a"])):
        # The tokenizer alone can do without the code.
        with suppress(ResourceError):
            load(str(folder_with_code))
    assert (asked, canary.exists()) == ([], False)


def test_every_call_that_loads_says_whether_code_may_run() -> None:
    for file in Path(nncift.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("from_pretrained", "from_config"):
                owner = ast.unparse(node.func.value)
                named = {keyword.arg for keyword in node.keywords}
                assert "peft" in owner.lower() or "trust_remote_code" in named, f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_a_manifest_does_not_permit_code(
    call: Call,
    finished: Path,
    folder_with_code: Path,
    canary: Path,
    command: str,
    write_pool: Callable[..., Path],
) -> None:
    _say(finished, model=str(folder_with_code), trust_remote_code=True)
    more: list[Any] = ["--full-teacher"] if command == "evaluate" else ["--test", write_pool(8, "t.jsonl", start=900)]
    found = call(command, finished, *more)
    assert found.code == 2
    assert "--trust-remote-code" in found.err
    assert not canary.exists()


def test_evaluate_runs_code_with_the_flag_of_this_call(
    call: Call, write_pool: Callable[..., Path], tmp_path: Path, folder_with_code: Path, canary: Path
) -> None:
    given: dict[str, Any] = {"model": str(folder_with_code), "teacher": "loss", "encoder": "hash", "labels": "60%"}
    nncift.run(write_pool(24), out=tmp_path / "run", budget=6, test_items=3, trust_remote_code=True, **given)
    canary.unlink()
    line = ("evaluate", tmp_path / "run", "--full-teacher", "--quiet")
    found = call(*line)
    assert (found.code, canary.exists()) == (2, False)
    assert call(*line, "--trust-remote-code").code == 0


def test_a_run_that_had_leave_is_read_without_any(finished: Path) -> None:
    _say(finished, trust_remote_code=True)
    assert FinishedRun(finished).settings.trust_remote_code is False
    assert nncift.explain(finished, nncift.load(finished).selected_ids[0])["selected"]


@pytest.mark.parametrize("place", ["run", "options"])
def test_a_study_does_not_permit_code(tmp_path: Path, place: str) -> None:
    file = tmp_path / "study.yaml"
    analysis = {"name": "one", "kind": "tune", "pool": "p", place: {"trust_remote_code": True}}
    file.write_text(yaml.safe_dump({"name": "s", "pools": {"p": {"files": ["x"]}}, "analyses": [analysis]}))
    with pytest.raises(UsageError, match="a file permits nothing"):
        run_study.study(file, tmp_path / "out")


@pytest.mark.parametrize("name", ["../out", "a/b", ""])
def test_a_pool_of_a_study_names_no_folder_elsewhere(tmp_path: Path, name: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "pools": {name: {"files": ["x"]}}, "analyses": []}))
    with pytest.raises(UsageError, match="pools"):
        run_study.study(file, tmp_path / "out")


def test_a_file_does_not_choose_where_a_teacher_writes(tmp_path: Path, llama_folder: Path) -> None:
    from nncift.teachers import registry

    settings = config.resolve(
        {"teacher": "less", "model": str(llama_folder), "option": {"workspace": str(tmp_path / "elsewhere")}}
    )
    with pytest.raises(UsageError, match="workspace"):
        registry.create(settings)


def test_no_file_switches_offline_off(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("offline: false\n")
    with pytest.raises(UsageError, match="'offline'"):
        config.resolve({}, file)


@pytest.mark.parametrize("judge", [{"base_url": "https://stranger.example/v1"}, {"key_variable": "SECRET"}])
def test_a_study_does_not_say_where_rows_and_keys_are_sent(tmp_path: Path, judge: dict[str, str]) -> None:
    file = tmp_path / "study.yaml"
    options = {"metrics": ["judge"], "judge": {"model": "m", **judge}}
    analysis = {"name": "one", "kind": "tune", "pool": "p", "options": options}
    study = {"name": "s", "pools": {"p": {"files": ["x"]}}, "analyses": [analysis]}
    file.write_text(yaml.safe_dump(study))
    with pytest.raises(UsageError, match="does not decide where rows and keys are sent"):
        grid.load(file, {})
    ((name, value),) = judge.items()
    options["judge"] = {"model": "m", name: f"${name}"}
    file.write_text(yaml.safe_dump(study))
    assert grid.load(file, {name: [value]}).grid.analyses[0].options["judge"][name] == value


class TestDownloads:
    """What a file names is fetched only where the call says so; `asked` collects what would have been."""

    @pytest.fixture(autouse=True)
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        asked: list[str] = []

        def fetched(name: str, *args: Any, local_files_only: bool = False, **more: Any) -> str:
            if not local_files_only:
                asked.append(name)
            raise OSError("not here")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
        return asked

    @pytest.mark.parametrize("command", ["evaluate", "tune"])
    def test_the_model_of_a_run(
        self, call: Call, finished: Path, command: str, write_pool: Callable[..., Path], asked: list[str]
    ) -> None:
        _say(finished, model="stranger/model")
        more: list[Any] = (
            ["--full-teacher"] if command == "evaluate" else ["--test", write_pool(8, "t.jsonl", start=900)]
        )
        found = call(command, finished, *more)
        assert (found.code, asked) == (2, [])
        assert "stranger/model" in found.err
        assert "--fetch" in found.err
        assert call(command, finished, *more, "--fetch").code == 6
        assert asked == ["stranger/model"]

    def test_the_encoder_of_a_student(
        self, call: Call, finished: Path, write_pool: Callable[..., Path], tmp_path: Path, asked: list[str]
    ) -> None:
        from nncift.storage.atomic import read_json, write_sealed

        path = finished / "student" / "student.json"
        about = read_json(path)
        about["encoder"]["encoder"] = "stranger/encoder"
        write_sealed(path, about)
        line = ("score", write_pool(4, "new.jsonl"), "--run", finished, "--out", tmp_path / "scores.parquet")
        found = call(*line)
        assert (found.code, asked) == (2, [])
        assert "stranger/encoder" in found.err
        assert call(*line, "--fetch").code == 6
        assert asked == ["stranger/encoder"]

    def test_the_model_of_a_manifest(
        self, call: Call, finished: Path, tmp_path: Path, asked: list[str], write_pool: Callable[..., Path]
    ) -> None:
        _say(finished, model="stranger/model")
        line = ("run", "--config", finished / MANIFEST, "--out", tmp_path / "again")
        found = call(*line)
        assert (found.code, asked) == (2, [])
        assert call(*line, "--fetch").code == 6
        assert call(*line, "--model", "own/model").code == 6
        assert asked == ["stranger/model", "own/model"]

    def test_the_model_of_a_study(self, tmp_path: Path, asked: list[str]) -> None:
        file = tmp_path / "study.yaml"
        pool = {"files": ["x"], "model": "stranger/model"}
        analysis = {"name": "one", "kind": "sweep", "pool": "p"}
        file.write_text(yaml.safe_dump({"name": "s", "pools": {"p": pool}, "analyses": [analysis]}))
        with pytest.raises(UsageError, match="stranger/model"):
            run_study.study(file, tmp_path / "out")
        assert asked == []

    def test_what_is_in_the_cache_needs_no_yes(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _say(finished, model="known/model")
        monkeypatch.setattr(adapters, "cached", lambda name, revision=None: finished)
        FinishedRun(finished).check_models()
