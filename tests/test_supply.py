"""Weights and code of others: safetensors only, no code of an encoder's own, and no network where none is wanted."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nncift.cli import main as cli
from nncift.errors import ResourceError
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import SentenceEncoder
from nncift.models.loading import OFFLINE, go_offline, locate
from nncift.models.model_folder import check_no_code

pytestmark = pytest.mark.usefixtures("hastened")


def pickled(folder: Path, to: Path) -> Path:
    """Copy a model folder, its weights as a pickle alone."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(folder, to)
    torch.save(load_file(to / "model.safetensors"), to / "pytorch_model.bin")
    (to / "model.safetensors").unlink()
    return to


def test_a_model_with_pickled_weights_alone_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"holds no \*\.safetensors"):
        CausalLM.load(pickled(llama_folder, tmp_path / "model"))


def test_an_encoder_with_pickled_weights_alone_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"holds no \*\.safetensors"):
        SentenceEncoder(str(pickled(llama_folder, tmp_path / "model"))).encode(["a"])


def test_an_encoder_with_a_pickled_layer_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "model")
    (tmp_path / "model" / "2_Dense").mkdir()
    (tmp_path / "model" / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ResourceError, match="a pickle, which nncift never opens"):
        SentenceEncoder(str(tmp_path / "model")).encode(["a"])


def test_an_encoder_that_names_code_of_its_own_is_refused_before_it_runs(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: ...\n"
    )
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))
    with pytest.raises(ResourceError, match=r"'evil\.Evil', which is code of its own"):
        SentenceEncoder(str(folder)).encode(["a"])
    assert not (tmp_path / "ran").exists()


def test_modules_of_the_library_are_let_through(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}]))
    check_no_code(tmp_path)
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ResourceError, match=r"modules\.json"):
        check_no_code(tmp_path)


def test_offline_names_what_is_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE:
        monkeypatch.setenv(name, "0")
    go_offline()
    assert all(os.environ[name] == "1" for name in OFFLINE)
    with pytest.raises(ResourceError, match="not in the local cache, and the hub may not be asked"):
        locate("nobody/has-this-model")


def test_offline_is_a_flag_of_what_may_ask_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    for name in OFFLINE:
        monkeypatch.setenv(name, "0")
    command = ["nncift", "run", str(write_pool(30)), "--model", "nobody/nothing", "--encoder", "hash", "--offline"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ResourceError.exit_code
    assert "not in the local cache" in capsys.readouterr().err


def test_the_manifest_records_hashes_of_model_and_encoder(
    write_pool: Callable[..., Path], tmp_path: Path, llama_folder: Path
) -> None:
    import nncift

    given = {"model": str(llama_folder), "encoder": "lm", "labels": "60%", "budget": "5", "device": "cpu"}
    for _ in range(2):
        nncift.run(write_pool(24), out=tmp_path / "run", **given)  # type: ignore[arg-type]
        record = yaml.safe_load((tmp_path / "run" / "manifest.yaml").read_text())["record"]
        known = CausalLM.load(llama_folder, device="cpu").fingerprint
        assert record["encoder"]["weights"] == known
        assert known in json.dumps(record["teacher"])
