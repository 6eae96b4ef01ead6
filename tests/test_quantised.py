import importlib.util
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.loading import ModelSource

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None


needs_bitsandbytes = pytest.mark.skipif(not has_bitsandbytes, reason="the extra quantised is not installed")


@pytest.fixture(scope="module")
def wide_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama whose layers have sizes that 4-bit kernels take."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shutil.copytree(llama_folder, folder, dirs_exist_ok=True)
    config = LlamaConfig.from_pretrained(llama_folder)
    config.update(
        {
            "hidden_size": 128,
            "intermediate_size": 128,
            "head_dim": 32,
            "num_key_value_heads": 4,
            "initializer_range": 0.05,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@needs_bitsandbytes
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_quantised_model_stays_near_the_whole_one(wide_folder: Path, load_in: str) -> None:
    rows = [Row([5, 6, 7], [8, 9]), Row([7], [10])]
    whole = CausalLM.load(wide_folder, device="cpu")
    small = CausalLM.load(ModelSource(str(wide_folder), load_in=load_in), device="cpu", dtype="float32")
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    one = np.concatenate(whole.log_probabilities(whole.prefix([1, 4]), rows))
    other = np.concatenate(small.log_probabilities(small.prefix([1, 4]), rows))
    assert not np.array_equal(one, other)
    assert np.abs(one - other).mean() < 0.2


def test_without_bitsandbytes_the_package_is_named(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.models.loading.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        CausalLM.load(ModelSource(str(llama_folder), load_in="4bit"), device="cpu")


def test_spreading_over_devices_needs_some(llama_folder: Path) -> None:
    with pytest.raises(ResourceError, match="there is none here"):
        CausalLM.load(ModelSource(str(llama_folder), device_map="auto"), device="cpu")


def test_unknown_precision_is_refused(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match="4bit or 8bit"):
        CausalLM.load(ModelSource(str(llama_folder), load_in="2bit"), device="cpu")
