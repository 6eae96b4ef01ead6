"""What is loaded is what was hashed: models and encoders hold nothing from elsewhere, and labels know their teacher."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nncift
from nncift.errors import ResourceError
from nncift.models import adapters
from nncift.models.causal_lm import CausalLM
from nncift.models.encoders import SentenceEncoder
from nncift.models.loading import fingerprint
from nncift.models.model_folder import check_config, check_no_code, check_shards

pytestmark = pytest.mark.usefixtures("hastened")
Call = Callable[..., Any]
OURS = "sentence_transformers.models"


@pytest.fixture
def model(tmp_path: Path, llama_folder: Path) -> Path:
    """Return a copy of the tiny model."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def _flip(path: Path, back: int = 40) -> None:
    data = bytearray(path.read_bytes())
    data[-back] ^= 4
    path.write_bytes(bytes(data))


def _layers(folder: Path, *layers: tuple[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(layers)])
    )
    return folder


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_a_flipped_bit_of_the_weights_is_noticed(
    call: Call, model: Path, tmp_path: Path, write_pool: Callable[..., Path], command: str
) -> None:
    given: dict[str, Any] = {"teacher": "loss", "encoder": "hash", "labels": "60%", "budget": 6}
    nncift.run(write_pool(24), out=tmp_path / "run", model=str(model), test_items=3, **given)
    _flip(model / "model.safetensors")
    more: list[Any] = ["--full-teacher"] if command == "evaluate" else ["--test", write_pool(8, "t.jsonl", start=900)]
    found = call(command, tmp_path / "run", *more)
    assert found.code == 3
    assert "model differ now" in " ".join(found.err.split())


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "sub\\model.safetensors", ".."]
)
def test_an_index_names_no_weights_elsewhere(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / "part.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "part.safetensors"}}))
    check_shards(model)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ResourceError, match="loads nothing from elsewhere"):
        CausalLM.load(model)
    with pytest.raises(ResourceError, match="loads nothing from elsewhere"):
        SentenceEncoder(str(model)).encode(["a"])


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**6}, {"vocab_size": 10**9}, {"hidden_size": 10**8}])
def test_a_configuration_is_compared_with_the_weights_before_anything_is_built(
    model: Path, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_config(model)
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | change))
    for load in ("transformers.AutoModelForCausalLM.from_pretrained", "transformers.AutoModel.from_pretrained"):
        monkeypatch.setattr(load, lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(ResourceError, match=next(iter(change))):
        CausalLM.load(model)
    with pytest.raises(ResourceError, match=next(iter(change))):
        SentenceEncoder(str(model)).encode(["a"])


@pytest.mark.parametrize("change", [{"intermediate_size": 10**7}, {"head_dim": 10**7}, {"num_key_value_heads": 10**6}])
def test_all_that_a_configuration_builds_is_compared_with_the_weights(
    model: Path, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    CausalLM.load(model)
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | change))
    for load in ("transformers.AutoModelForCausalLM.from_pretrained", "transformers.AutoModel.from_pretrained"):
        monkeypatch.setattr(load, lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(ResourceError, match="is of a model of"):
        CausalLM.load(model)


@pytest.fixture
def adapter(tmp_path: Path, llama_folder: Path) -> Path:
    """Return an adapter on the tiny model, of rank 4 on two of its layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_folder), LoraConfig(r=4, target_modules=["q_proj"])
    )
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.5)
    made.save_pretrained(str(tmp_path / "adapter"))
    return _say(tmp_path / "adapter" / adapters.CONFIG, base_model_name_or_path=str(llama_folder)).parent


def _say(path: Path, **changed: Any) -> Path:
    """Change entries of a JSON file."""
    about = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(about | changed))
    return path


def test_an_adapter_takes_the_memory_of_its_file(adapter: Path, llama_folder: Path) -> None:
    plain, adapted = CausalLM.load(llama_folder), CausalLM.load(adapter)
    one, other = (lm.model.get_parameter("model.layers.0.self_attn.q_proj.weight") for lm in (plain, adapted))
    assert not np.allclose(one.numpy(), other.numpy())
    assert all(not weight.is_meta for weight in adapted.model.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 10**9}, "the largest side of its weights is 32"),
        ({"rank_pattern": {"q_proj": 10**9}}, "the largest side of its weights is 32"),
        ({"num_virtual_tokens": 10**9}, "the largest side of its weights is 32"),
        ({"layer_replication": [[0, 2]] * 9}, "more layers"),
        (
            {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "a/b"},
            "PROMPT_TUNING",
        ),
        ({"peft_type": "XLORA", "adapters": {"a": "stranger/adapter"}}, "XLORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the weights of its base"),
        ({"base_model_name_or_path": "x" * 10**5}, "x{80}' is neither a folder here"),
    ],
)
def test_an_adapter_stays_within_its_own_files(adapter: Path, change: dict[str, Any], said: str) -> None:
    _say(adapter / adapters.CONFIG, **change)
    with pytest.raises(ResourceError, match=said):
        CausalLM.load(adapter)


@pytest.mark.parametrize("entry", ["target_modules", "exclude_modules", "modules_to_save", "rank_pattern"])
def test_expressions_of_an_adapter_come_to_an_end(adapter: Path, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = r"(\w+\.?)*!"
    value: Any = {endless: 4} if entry == "rank_pattern" else [endless] if entry == "modules_to_save" else endless
    _say(adapter / adapters.CONFIG, **{entry: value})
    monkeypatch.setattr(adapters, "SECONDS", 0.5)
    with pytest.raises(ResourceError, match="cannot be matched"):
        CausalLM.load(adapter)


def test_plain_expressions_of_an_adapter_are_followed(adapter: Path) -> None:
    _say(adapter / adapters.CONFIG, target_modules=r".*\.self_attn\.(q|k)_proj|.*q_proj")
    with pytest.raises(ResourceError, match="does not fit its base"):
        CausalLM.load(adapter)  # which has no weights for k_proj
    _say(adapter / adapters.CONFIG, target_modules=r".*\.q_pro[a-z]+")
    CausalLM.load(adapter)


@pytest.mark.parametrize("kernel", ["kernels-community/flash-attn2", "stranger/kernel@v1", "flash_attention_9"])
@pytest.mark.parametrize("entry", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_chooses_no_kernel_that_would_be_fetched(model: Path, entry: str, kernel: str) -> None:
    for value in (kernel, {"": "sdpa", "text_config": kernel}):
        _say(model / "config.json", **{entry: value})
        with pytest.raises(ResourceError, match="asks for the kernel"):
            CausalLM.load(model)
        with pytest.raises(ResourceError, match="asks for the kernel"):
            SentenceEncoder(str(model)).encode(["a"])
    _say(model / "config.json", text_config={"deep": [{entry: kernel}]}, **{entry: "eager"})
    with pytest.raises(ResourceError, match="asks for the kernel"):
        check_config(model)


def test_a_configuration_chooses_among_built_in_kernels(model: Path) -> None:
    _say(model / "config.json", attn_implementation="eager")
    # The lowest transformers leaves the entry aside.
    assert CausalLM.load(model).model.config._attn_implementation in ("eager", "sdpa")


def test_a_configuration_names_no_weights_elsewhere(model: Path) -> None:
    (model / "sub").mkdir()
    shutil.copy(model / "model.safetensors", model / "sub" / "other.safetensors")
    _say(model / "config.json", transformers_weights="sub/other.safetensors")
    with pytest.raises(ResourceError, match="loads nothing from elsewhere"):
        CausalLM.load(model)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (struct.pack("<IIQ", 9, 0, 10**12), "a list of 1,000,000,000,000 values"),
        (struct.pack("<IIQ", 9, 4, 10**6), "more than the file holds"),
        (struct.pack("<IIQ", 9, 9, 1), "a list of 1 values or of lists"),
        (struct.pack("<IQ", 8, 1 << 40), "more than the file holds"),
    ],
)
def test_the_header_of_a_gguf_file_holds_no_more_than_the_file(tmp_path: Path, entry: bytes, said: str) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + entry)
    with pytest.raises(ResourceError, match=said):
        CausalLM.load(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x01\0\0\0\0\0\0\0{"])
def test_weights_without_a_header_are_named(model: Path, data: bytes) -> None:
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(ResourceError, match=r"model\.safetensors"):
        CausalLM.load(model)


@pytest.mark.parametrize("name", ["pooling", "1_Pooling"])
def test_every_layer_of_an_encoder_counts_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), (name, f"{OURS}.Pooling"))
    (folder / name).mkdir()
    (folder / name / "config.json").write_text("{}")
    before = fingerprint(folder)
    (folder / name / "config.json").write_text('{"pooling_mode": "cls"}')
    assert fingerprint(folder) != before


def test_a_pickle_in_a_layer_of_any_name_is_refused(tmp_path: Path) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), ("dense", f"{OURS}.Dense"))
    (folder / "dense").mkdir()
    check_no_code(folder)
    (folder / "dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ResourceError, match="a pickle, which nncift never opens"):
        check_no_code(folder)


def test_a_pickle_behind_the_transformer_in_its_own_folder_is_refused(tmp_path: Path) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), ("", f"{OURS}.Dense"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ResourceError, match="a pickle"):
        check_no_code(folder)
    # A model of its own lies beside its safetensors and is not opened.
    check_no_code(_layers(folder, ("", f"{OURS}.Transformer")))


@pytest.mark.parametrize("file", ["router_config.json", "config.json"])
def test_parts_of_routers_are_followed(tmp_path: Path, file: str) -> None:
    folder = _layers(tmp_path / "encoder", ("router", f"{OURS}.Router"))
    inner = folder / "router" / "query"
    inner.mkdir(parents=True)
    (folder / "router" / file).write_text(json.dumps({"types": {"query": f"{OURS}.Router"}}))
    (inner / file).write_text(json.dumps({"types": {"deep": f"{OURS}.Dense"}}))
    (inner / "deep").mkdir()
    before = fingerprint(folder)
    (inner / "deep" / "config.json").write_text("{}")
    assert fingerprint(folder) != before
    (inner / "deep" / "weights.pt").write_bytes(b"\x80")
    with pytest.raises(ResourceError, match="a pickle"):
        check_no_code(folder)
    (inner / file).write_text(json.dumps({"types": {"deep": "evil.Dense"}}))
    with pytest.raises(ResourceError, match=r"'evil\.Dense', which is code"):
        check_no_code(folder)


@pytest.mark.parametrize("name", ["../other", "a/b", "/etc", "..", "c:x"])
def test_a_layer_lies_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), (name, f"{OURS}.Pooling"))
    with pytest.raises(ResourceError, match="loads nothing from elsewhere"):
        check_no_code(folder)


def test_a_layer_is_no_link_to_elsewhere(tmp_path: Path) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), ("1_Pooling", f"{OURS}.Pooling"))
    (tmp_path / "elsewhere").mkdir()
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="a link to elsewhere"):
        check_no_code(folder)


@pytest.mark.parametrize(("name", "allowed"), [("torch.nn.modules.activation.Tanh", True), ("os.abort", False)])
def test_a_function_of_a_layer_is_one_of_torch(tmp_path: Path, name: str, allowed: bool) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), ("2_Dense", f"{OURS}.Dense"))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"activation_function": name}))
    if allowed:
        check_no_code(folder)
    else:
        with pytest.raises(ResourceError, match=r"'os\.abort', which is code"):
            check_no_code(folder)


@pytest.mark.parametrize(
    "given",
    [
        {"model_kwargs": {"allow_all_kernels": True}},
        {"model_args": {"trust_remote_code": True}},
        {"processor_kwargs": {"subfolder": "sub"}},
        {"tokenizer_name_or_path": "stranger/tokenizer"},
        {"model_kwargs": {"attn_implementation": "stranger/kernel"}},
    ],
)
def test_a_transformer_layer_hands_nothing_on_that_fetches(tmp_path: Path, given: dict[str, Any]) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"{OURS}.Transformer"), ("0_Inner", f"{OURS}.Transformer"))
    (folder / "0_Inner").mkdir()
    _say(folder / "sentence_bert_config.json", max_seq_length=8, processor_kwargs={"padding_side": "left"})
    check_no_code(folder)
    for layer in (folder, folder / "0_Inner"):
        _say(layer / "sentence_bert_config.json", **given)
        with pytest.raises(ResourceError, match=r"sentence_bert_config\.json"):
            check_no_code(folder)
        (layer / "sentence_bert_config.json").unlink()


@pytest.mark.parametrize(
    "name", ["WordEmbeddings", "util.misc.import_from_string", "sparse_encoder.SparseStaticEmbedding"]
)
def test_a_layer_that_reads_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = _layers(tmp_path / "encoder", ("", f"sentence_transformers.{name}"))
    with pytest.raises(ResourceError, match="elsewhere"):
        check_no_code(folder)


def test_an_encoder_that_is_an_adapter_is_refused(adapter: Path) -> None:
    with pytest.raises(ResourceError, match="is a PEFT adapter"):
        check_no_code(adapter)


def test_every_layer_is_compared_with_its_weights(tmp_path: Path) -> None:
    save_file({"linear.weight": np.zeros((8, 4), np.float32)}, tmp_path / "model.safetensors")
    check_config(_say(tmp_path / "config.json", in_features=4, out_features=8).parent)
    _say(tmp_path / "config.json", in_features=10**6)
    check_config(tmp_path)
    _say(tmp_path / "config.json", out_features=10**6)
    with pytest.raises(ResourceError, match="in_features = 1000000 and out_features = 1000000"):
        check_config(tmp_path)
