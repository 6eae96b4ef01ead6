"""A tokenizer of somebody else neither fills memory nor draws tokens, and what its native code ends in is an error."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift.data.lengths import token_counter
from nncift.data.tokenizer_files import check_tokenizer, load_file, load_tokenizer
from nncift.errors import ResourceError
from nncift.models.causal_lm import CausalLM

A, FRAME = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def steps(name: str, *found: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(found)}


def template(single: list[Any], ids: int = 1) -> dict[str, Any]:
    special = {"<s>": {"id": "<s>", "ids": [1] * ids, "tokens": ["<s>"] * ids}}
    return {"type": "TemplateProcessing", "single": single, "pair": [A, A], "special_tokens": special}


def precompiled(*texts: bytes) -> dict[str, Any]:
    packed = struct.pack("<I", 4) + b"trie" + b"\0".join(texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(packed).decode()}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture
def change(tmp_path: Path, llama_folder: Path) -> Callable[..., Path]:
    """Return a function that gives the tiny model another tokenizer, and returns its folder."""

    def changed(model: dict[str, Any] | None = None, **parts: Any) -> Path:
        folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
        about = json.loads((folder / "tokenizer.json").read_text())
        about["model"] |= model or {}
        (folder / "tokenizer.json").write_text(json.dumps(about | parts))
        return folder

    return changed


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": steps("normalizers", *[replace("e", "ee")] * 40)},
        {"normalizer": steps("normalizers", steps("normalizers", *[replace("e", "e" * 16, "Regex")] * 2))},
        {"normalizer": replace("", "xx" * 200)},
        {"normalizer": {"type": "Prepend", "prepend": "e" * 300}},
        {"normalizer": precompiled(b"a", b"e" * 300)},
        {"pre_tokenizer": steps("pretokenizers", *[BYTES] * 40)},
        {"decoder": steps("decoders", *[replace("e", "ee")] * 40)},
        {"post_processor": template([A] * 10**4)},
        {"post_processor": steps("processors", *[template([A] * 20)] * 2)},
        {"post_processor": template([FRAME] * 100 + [A])},
        {"post_processor": template([FRAME, A], ids=10**5)},
    ],
)
def test_no_text_grows_without_bounds(change: Callable[..., Path], parts: dict[str, Any]) -> None:
    folder = change(**parts)
    for load in (
        check_tokenizer,
        CausalLM.load,
        lambda found: load_tokenizer(str(found)),
        lambda found: load_file(found / "tokenizer.json"),
    ):
        with pytest.raises(ResourceError, match="which no model's does"):
            load(folder)
    with pytest.raises(ResourceError, match="which no model's does"):
        token_counter(str(folder))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": steps("normalizers", {"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"))},
        {
            "normalizer": steps(
                "normalizers",
                replace("``", '"'),
                {"type": "NFKD"},
                precompiled(b"a" * 33),
                replace(" {2,}", " ", "Regex"),
            )
        },
        {
            "pre_tokenizer": steps("pretokenizers", {"type": "Digits", "individual_digits": True}, BYTES),
            "decoder": BYTES,
        },
        {"post_processor": template([FRAME, A, FRAME])},
    ],
)
def test_what_tokenizers_of_models_do_is_let_through(change: Callable[..., Path], parts: dict[str, Any]) -> None:
    check_tokenizer(change(**parts))


@pytest.mark.parametrize(
    ("model", "said"), [({"dropout": 0.5}, "at random"), ({"max_input_chars_per_word": 10**9}, "1,000,000,000 letters")]
)
def test_models_that_draw_tokens_or_take_for_ever_are_refused(
    change: Callable[..., Path], model: dict[str, Any], said: str
) -> None:
    with pytest.raises(ResourceError, match=said):
        CausalLM.load(change(model))


ENDLESS = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+b"},
    "behavior": "Isolated",
    "invert": False,
}


def test_what_native_code_ends_in_is_an_error(
    call: Callable[..., Any], change: Callable[..., Path], tmp_path: Path
) -> None:
    # Oniguruma gives up after ten million steps back, and its binding panics.
    folder = change(pre_tokenizer=ENDLESS)
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"prompt": "a" * 60, "completion": "a" * 60}) + "\n")
    found = call("inspect", pool, "--tokenizer", folder)
    assert found.code == ResourceError.exit_code
    assert "native code" in found.err
    assert "Traceback" not in found.err


def test_a_tokenizer_that_cannot_read_is_refused_by_name(tmp_path: Path, llama_folder: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(ResourceError, match="cannot read"):
        CausalLM.load(folder)


@pytest.mark.parametrize("length", ["long", [1], None, -5, 10**30])
def test_a_context_that_is_no_number_is_left_aside(tmp_path: Path, llama_folder: Path, length: Any) -> None:
    from types import SimpleNamespace

    from nncift.models.loading import context_limit

    config = SimpleNamespace(max_position_embeddings=96, rope_parameters=None)
    config.get_text_config = lambda: config
    model: Any = SimpleNamespace(config=config)
    tokenizer: Any = SimpleNamespace(model_max_length=length)
    assert context_limit(model, tokenizer) == 96
