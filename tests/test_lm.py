from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from nncift.errors import ResourceError, UsageError
from nncift.models import causal_lm as module
from nncift.models.batching import BatchLimit
from nncift.models.causal_lm import CausalLM, Prefix, Row
from nncift.models.loading import context_limit, fingerprint, locate
from tests.tolerances import close, of_models

BEFORE = [1, 9, 30, 12, 7, 41, 22, 8, 15, 33]
ROWS = [Row([5, 6, 7], [8, 9]), Row([10], [11, 12, 13, 14]), Row(list(range(20, 32)), [3])]
MODEL = of_models(layers=2, width=128)
"""Relative error of what the tiny models of these tests give, whose sums have 128 terms at most."""

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class NoTokenizer:
    model_max_length = 96


def wrap(model: Any) -> CausalLM:
    return CausalLM(model.eval().requires_grad_(False), NoTokenizer(), "made", "print", 96)  # type: ignore[arg-type]


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.fixture
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


def plainly(model: Any, before: Sequence[int], row: Row) -> list[float]:
    sequence = [*before, *row.prompt, *row.response]
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float(), dim=-1)
    return [float(logs[at - 1, sequence[at]]) for at in range(len(sequence) - len(row.response), len(sequence))]


def agrees(lm: CausalLM) -> None:
    found = lm.log_probabilities(lm.prefix(BEFORE), ROWS)
    assert [part.dtype for part in found] == [np.float32] * 3
    for part, row in zip(found, ROWS, strict=True):
        assert close(part, plainly(lm.model, BEFORE, row), MODEL)


@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder"])
def test_log_probabilities_are_those_of_the_plain_model(name: str, request: pytest.FixtureRequest) -> None:
    lm = CausalLM.load(request.getfixturevalue(name), device="cpu")
    assert (lm._fast_head, lm._fast_prefix) == (True, True)
    agrees(lm)


def test_a_prefix_serves_many_calls(llama: CausalLM) -> None:
    prefix = llama.prefix(BEFORE)
    first = np.concatenate(llama.log_probabilities(prefix, ROWS))
    np.testing.assert_array_equal(np.concatenate(llama.log_probabilities(prefix, ROWS)), first)


def test_a_small_block_of_logits_changes_nothing(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 100)
    agrees(llama)


def test_sliding_windows_shorter_than_the_prefix_are_exact() -> None:
    torch.manual_seed(0)
    lm = wrap(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)))
    assert lm._fast_prefix
    agrees(lm)


def test_a_soft_cap_behind_the_head_switches_the_shortcut_off() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, sliding_window=4, final_logit_softcapping=5.0, query_pre_attn_scalar=8)
    lm = wrap(Gemma2ForCausalLM(config))
    assert (lm._fast_head, lm._fast_prefix) == (False, True)
    agrees(lm)


def test_a_recurrent_state_that_cannot_be_continued_switches_the_cache_off() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=53, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.3)
    lm = wrap(MambaForCausalLM(config))
    assert not lm._fast_prefix
    agrees(lm)


@pytest.mark.parametrize("scale", [0.25, 1.00001], ids=["large", "too small to be seen in a few values"])
def test_scaled_logits_are_noticed(llama: CausalLM, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = llama.model.forward

    def scaled(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        output.logits = output.logits * scale
        return output

    monkeypatch.setattr(llama.model, "forward", scaled)
    lm = CausalLM(llama.model, llama.tokenizer, llama.name, llama.fingerprint, llama.context)
    assert (lm._fast_head, lm._fast_prefix) == (False, True)
    agrees(lm)


@pytest.mark.parametrize("how", ["forgets", "raises", "gives none"])
def test_a_cache_that_is_not_exact_is_not_used(llama: CausalLM, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body: Any = llama.model.base_model
    forward = body.forward

    name = llama._cache_name

    @functools.wraps(forward)
    def broken(*args: Any, **kwargs: Any) -> Any:
        if kwargs.pop(name, None) is not None and how == "raises":
            raise NotImplementedError
        output = forward(*args, **kwargs)
        if how == "gives none":
            setattr(output, name, None)
        return output

    monkeypatch.setattr(body, "forward", broken)
    lm = CausalLM(llama.model, llama.tokenizer, llama.name, llama.fingerprint, llama.context)
    assert lm._fast_head
    assert lm.prefix(BEFORE).cache is None
    agrees(lm)


def test_a_model_that_cannot_run_at_all_is_an_error(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**kwargs: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(llama.model, "forward", broken)
    with pytest.raises(ResourceError, match=r"plain forward pass: no kernel$"):
        CausalLM(llama.model, llama.tokenizer, llama.name, llama.fingerprint, llama.context)


def test_an_unknown_token_is_an_error_and_no_crash(llama: CausalLM) -> None:
    size = llama.model.config.vocab_size
    with pytest.raises(ResourceError, match=f"token {size}, and the model has embeddings for {size}"):
        llama.log_probabilities(Prefix((), None), [Row([1], [size])])
    with pytest.raises(ResourceError, match="do not belong together"):
        llama.prefix([size])


def holds(lm: CausalLM, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a model run out of memory above so many tokens of a pass; return the sizes that were tried, as they come."""
    body, tried = lm._body, []

    def limited(ids: torch.Tensor, **kwargs: Any) -> Any:
        tried.append(ids.numel())
        if ids.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(ids, **kwargs)

    monkeypatch.setattr(lm, "_body", limited)
    monkeypatch.setattr(lm, "fits", BatchLimit())
    return tried


def test_memory_that_runs_out_is_named(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(llama, 0, monkeypatch)
    with pytest.raises(ResourceError, match=r"one row of up to 5 tokens behind 0 .* --context"):
        llama.log_probabilities(Prefix((), None), [Row([1], [2]), Row([1, 2, 3], [4, 5])])
    with pytest.raises(ResourceError, match="a prefix of 2 tokens"):
        llama.prefix([1, 2])


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept(
    llama: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row([5, 6, 7], [8, 9 + k]) for k in range(8)]
    whole, shown = llama.log_probabilities(Prefix((), None), rows), llama.read(rows)
    tried = holds(llama, 10, monkeypatch)
    found = llama.log_probabilities(Prefix((), None), rows)
    assert tried == [40, 20, 10, 10, 10, 10]
    assert close(found, whole, MODEL)
    tried.clear()
    for reading, before in zip(llama.read(rows), shown, strict=True):
        assert close(reading.log_probabilities, before.log_probabilities, MODEL)
        assert close(reading.hidden, before.hidden, MODEL)
    # Remembered: nothing runs out twice.
    assert tried == [10, 10, 10, 10]


def test_a_model_gives_the_threads_back(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(llama, "threads", 1)
    torch.set_num_threads(2)
    try:
        llama.log_probabilities(Prefix((), None), ROWS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def scrambled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 200)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def strange_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')


def one_tensor_less(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no model folder"),
        (without_config, "without config.json"),
        (without_weights, r"no \*.safetensors"),
        (cut_short, "cannot be loaded"),
        (scrambled, "cannot be loaded"),
        (broken_config, "cannot be loaded"),
        (strange_config, "cannot be loaded"),
        (broken_tokenizer, "cannot be used: it is not as"),
        (one_tensor_less, r"lacks 1 of its weights, such as 'model.layers.1.mlp.up_proj.weight'"),
    ],
)
def test_a_damaged_folder_is_a_clear_error(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ResourceError, match=message) as caught:
        CausalLM.load(folder, device="cpu")
    assert str(folder) in str(caught.value)


def test_an_encoder_is_no_language_model(folder: Path) -> None:
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    BertModel(config).save_pretrained(folder)
    with pytest.raises(ResourceError, match="an encoder has no head"):
        CausalLM.load(folder, device="cpu")


@pytest.mark.parametrize("device", ["toaster", "meta", "cpu:x"])
def test_an_unknown_device_is_a_wrong_setting(llama_folder: Path, device: str) -> None:
    with pytest.raises(UsageError, match="cuda:0 or mps"):
        CausalLM.load(llama_folder, device=device)


def test_a_device_that_is_not_there_is_missing(llama_folder: Path) -> None:
    with pytest.raises(ResourceError, match="cuda:99"):
        CausalLM.load(llama_folder, device="cuda:99")


def test_an_unknown_precision_is_a_wrong_setting(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match="use auto, float32"):
        CausalLM.load(llama_folder, device="cpu", dtype="float8")


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_as_asked_for(llama_folder: Path, dtype: str, expected: torch.dtype) -> None:
    lm = CausalLM.load(llama_folder, device="cpu", dtype=dtype)
    assert next(lm.model.parameters()).dtype == expected
    assert (lm._fast_head, lm._fast_prefix) == (True, True)


def test_the_context_is_at_most_the_models(llama_folder: Path) -> None:
    assert CausalLM.load(llama_folder, device="cpu").context == 96
    assert CausalLM.load(llama_folder, device="cpu", context=64).context == 64
    with pytest.raises(UsageError, match="97 tokens was asked for; this model has 96"):
        CausalLM.load(llama_folder, device="cpu", context=97)


def test_long_rotary_embeddings_end_at_their_first_limit() -> None:
    class Config:
        max_position_embeddings = 4096
        rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}  # noqa: RUF012

        def get_text_config(self) -> Config:
            return self

    class Model:
        config = Config()

    assert context_limit(Model(), NoTokenizer()) == 64  # type: ignore[arg-type]


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "notes.md").write_text("a remark")
    assert fingerprint(folder) == before
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "chat_template.jinja", "modeling_own.py"])
def test_the_fingerprint_follows_all_that_decides_values(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert fingerprint(folder) != before


def test_reading_gives_log_probabilities_and_hidden_states_of_each_row_alone(llama: CausalLM) -> None:
    rows = [Row([1, 5, 6], [8, 9]), Row([1], [11, 12, 13, 14]), Row(list(range(20, 32)), ())]
    found = llama.read(rows)
    for reading, row in zip(found, rows, strict=True):
        sequence = torch.tensor([[*row.prompt, *row.response]])
        with torch.no_grad():
            states = llama.model(input_ids=sequence, output_hidden_states=True).hidden_states[-1][0]
        assert reading.hidden.dtype == reading.log_probabilities.dtype == np.float32
        assert reading.hidden.shape == (len(row), 32)
        assert close(reading.hidden, states.numpy(), MODEL)
        assert close(reading.log_probabilities, plainly(llama.model, [], row), MODEL)


def test_reading_is_one_pass_also_where_the_head_is_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lm = wrap(Gemma2ForCausalLM(Gemma2Config(**SMALL, sliding_window=4, final_logit_softcapping=5.0)))
    assert not lm._fast_head
    passes: list[Any] = []
    handle = lm.model.base_model.register_forward_hook(lambda *call: passes.append(call))
    found = lm.read(ROWS)
    handle.remove()
    assert len(passes) == 1
    for reading, row in zip(found, ROWS, strict=True):
        with torch.no_grad():
            states = lm.model.base_model(input_ids=torch.tensor([[*row.prompt, *row.response]])).last_hidden_state[0]
        assert close(reading.hidden, states.numpy(), MODEL)
        assert close(reading.log_probabilities, plainly(lm.model, [], row), MODEL)


def test_a_response_without_a_token_before_it_is_refused(llama: CausalLM) -> None:
    with pytest.raises(ValueError, match="token before it"):
        llama.read([Row([], [8, 9])])


def test_a_misspelt_short_name_is_named_without_asking_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **given: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("nncift.models.loading.is_offline", lambda: False)
    with pytest.raises(ResourceError, match="did you mean 'smollm2'"):
        locate("smollm3")
    with pytest.raises(ResourceError, match="no model folder"):
        locate("./smollm3")
