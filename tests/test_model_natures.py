"""Models of other natures than a decoder with a body of its own: refused, or read right (models/model_parts.py, adapters.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nncift.data import Examples, rows_from
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.encoders import create
from nncift.models.loading import fingerprint
from nncift.models.model_parts import body_of, check_causal
from nncift.models.probe import Probe
from nncift.teachers.rds import Rds

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
Save = Callable[[Any], Path]


@pytest.fixture
def save(llama_folder: Path, tmp_path: Path) -> Save:
    """Return a function that saves a model beside the tiny Llama's tokenizer."""

    def saved(model: Any) -> Path:
        folder = tmp_path / "model"
        model.eval().save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(llama_folder).save_pretrained(folder)
        return folder

    return saved


def vocabulary(folder: Path) -> int:
    return len(transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_model_that_reads_later_tokens_is_refused(kind: str, save: Save, llama_folder: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary(llama_folder), intermediate_size=64, **SMALL)
    folder = save(getattr(transformers, f"{kind}ForMaskedLM")(config))
    with pytest.raises(ResourceError, match="reads what comes after a token"):
        CausalLM.load(folder, device="cpu")


def test_a_model_that_reads_the_row_beside_is_refused() -> None:
    def score(rows: Any) -> list[Any]:
        return [np.full(len(row) - 1, -1.0 - 0.1 * max(map(len, rows)), np.float32) for row in rows]

    with pytest.raises(ResourceError, match="reads the sequence beside"):
        check_causal("odd", list(range(24)), score, np.allclose, np.allclose)

    def mixed(rows: Any) -> list[Any]:
        # Also where half precision hides what the shape of a batch does.
        return [
            np.full(len(row) - 1, -1.0 - 0.01 * sum(token for row in rows[1:] for token in row[:5]), np.float32)
            for row in rows
        ]

    with pytest.raises(ResourceError, match="reads the sequence beside"):
        check_causal("odd", [1, 2, 4, 8] * 6, mixed, np.allclose, lambda one, other: True)


def test_widths_come_from_what_the_model_gives(save: Save, llama_folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=vocabulary(llama_folder), ffn_dim=64, word_embed_proj_dim=16, bos_token_id=1, eos_token_id=2, **SMALL
    )
    lm = CausalLM.load(save(transformers.OPTForCausalLM(config)), device="cpu")
    assert lm.width == 16
    texts = [("a", "list the words", "sort the list"), ("b", "sort", "list")]
    rows = rows_from([{"id": name, "prompt": prompt, "response": response} for name, prompt, response in texts])
    assert isinstance(rows, Examples)
    assert Probe(lm).read(rows.items)[0].shape == (2, Probe(lm).views.dim)
    assert create("lm", load_lm=lambda: lm).encode(rows.texts)[0].shape == (2, 16)
    teacher = Rds(lm)
    teacher.prepare(rows)
    assert teacher.measure(["a", "b"]).values.shape == (2, 16)


def test_a_body_is_found_where_base_model_is_the_model_itself(save: Save, llama_folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=vocabulary(llama_folder),
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **SMALL,
    )
    lm = CausalLM.load(save(transformers.Llama4ForCausalLM(config)), device="cpu")
    assert lm.model.base_model is lm.model
    assert body_of(lm.model) is lm.model.model
    (reading,) = lm.read([Row([1, 3, 4], [5, 6])])
    # The head on the states that are shown gives the log-probabilities of the plain pass.
    logits = lm.model(input_ids=torch.tensor([[1, 3, 4, 5, 6]])).logits.detach()[0]
    assert torch.allclose(lm.model.get_output_embeddings()(torch.tensor(reading.hidden)), logits, atol=1e-5)


def adapter_of(base: Path, folder: Path) -> torch.nn.Module:
    """Save an adapter of the base that changes it; return base and adapter together."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted: Any = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    merged: torch.nn.Module = adapted.eval()
    return merged


def test_an_adapter_is_applied_to_its_base(llama_folder: Path, tmp_path: Path) -> None:
    both = adapter_of(llama_folder, tmp_path / "adapter")
    lm = CausalLM.load(tmp_path / "adapter", device="cpu")
    ids = torch.tensor([[1, 3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.allclose(lm.model(input_ids=ids).logits, both(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(
            lm.model(input_ids=ids).logits,
            CausalLM.load(llama_folder, device="cpu").model(input_ids=ids).logits,
            atol=1e-3,
        )
    assert lm.fingerprint != fingerprint(llama_folder)


def test_an_adapter_without_its_base_names_it(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapter_of(llama_folder, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nobody/nothing-7b"}))
    with pytest.raises(ResourceError, match="PEFT adapter, and its base 'nobody/nothing-7b' is neither"):
        CausalLM.load(folder, device="cpu")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ResourceError, match="opens no pickle"):
        CausalLM.load(folder, device="cpu")


def test_whole_weights_and_an_adapter_in_one_folder_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    adapter_of(llama_folder, folder)
    for file in llama_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ResourceError, match="holds whole weights and an adapter"):
        CausalLM.load(folder, device="cpu")


def test_an_adapter_of_another_shape_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapter_of(llama_folder, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(ResourceError, match="does not fit its base"):
        CausalLM.load(folder, device="cpu")


@pytest.mark.parametrize("kind", ["Less", "Delift", "Rds", "Loss", "Ifd"])
def test_a_loaded_model_and_its_tokenizer_make_a_teacher(kind: str, llama_folder: Path) -> None:
    import nncift

    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_folder)
    teacher = getattr(nncift.teachers, kind)(model, tokenizer)
    assert teacher.lm.model is model
    rows = rows_from([{"id": "a", "prompt": "list the words", "response": "sort the list"}])
    assert not teacher.prepare(rows)
    with pytest.raises(UsageError, match="needs its tokenizer"):
        getattr(nncift.teachers, kind)(model)
    with pytest.raises(UsageError, match="has its own"):
        getattr(nncift.teachers, kind)(str(llama_folder), tokenizer)


def test_the_identity_of_a_loaded_model_is_that_of_its_weights(llama_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_folder)
    first, again = CausalLM.of(model, tokenizer).fingerprint, CausalLM.of(model, tokenizer).fingerprint
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert first == again != CausalLM.of(model, tokenizer).fingerprint


def test_a_loaded_half_precision_model_has_an_identity(llama_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16)
    assert len(CausalLM.of(model, transformers.AutoTokenizer.from_pretrained(llama_folder)).fingerprint) == 16


def test_adapters_that_name_each_other_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        adapter_of(llama_folder, tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / other)}))
        (tmp_path / name / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    with pytest.raises(ResourceError, match="which is or holds an adapter itself"):
        CausalLM.load(tmp_path / "one", device="cpu")


def test_leave_to_run_code_does_not_reach_the_base_that_an_adapter_names(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_of(llama_folder, tmp_path / "adapter")
    given: list[bool] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def watched(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs["trust_remote_code"])
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
    CausalLM.load(llama_folder, device="cpu", trust_remote_code=True)
    CausalLM.load(tmp_path / "adapter", device="cpu", trust_remote_code=True)
    assert given == [True, False]


def test_a_loaded_model_with_a_buffer_of_one_number_has_an_identity(llama_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    model.register_buffer("steps", torch.tensor(3))
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_folder)
    first = CausalLM.of(model, tokenizer).fingerprint
    model.register_buffer("steps", torch.tensor(4))
    assert CausalLM.of(model, tokenizer).fingerprint != first
