"""Tiny models and data, built in memory: tests need no network and no files beside the repository."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.hastened import hasten

# No test may depend on how busy a machine is, nor fail on one and pass on another by what was drawn; `pytest
# --hypothesis-profile=default` draws anew.
hypothesis_settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("steady")

WORDS = (
    "sort list name add sum red blue green cat dog bird sky sea tree house long short first last word number make "
    "give tell what is the a of to in and for with one two three four five six seven eight nine ten Instruction "
    "Response"
).split()


frozen = 0
"""Modules that were imported when garbage was last frozen."""


def freeze() -> None:
    """Leave what was imported out of every collection of garbage from here on: it took a sixth of a small run."""
    global frozen
    gc.collect()
    gc.freeze()
    frozen = len(sys.modules)


def pytest_collection_finish() -> None:
    """Freeze what test files import."""
    freeze()


def pytest_runtest_logfinish() -> None:
    """Freeze what a test has imported on its way, such as PyTorch."""
    if len(sys.modules) > frozen + 100:
        freeze()


@pytest.fixture(scope="session", autouse=True)
def without_disks() -> Iterator[None]:
    """Let files be whole without waiting until a disk has them, for every one of thousands: no test pulls a plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return folders that are not there yet: a folder made by pytest for every test takes a look at those of all others."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's caches out of the home folder and out of each other's way."""
    monkeypatch.setenv("NNCIFT_CACHE", str(next(caches)))


@pytest.fixture(scope="module")
def hastened() -> Iterator[None]:
    """Draw fewer resamples and refits in a whole file, runs that its tests share included (`tests.hastened`)."""
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        yield


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama with random weights and a word-level tokenizer that puts a bos token in front."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "\n", ":", ",", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=96
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny GPT-2 with random weights and a byte-level BPE tokenizer without bos and pad tokens."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 5, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", model_max_length=160)
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(fast),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=160,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def row(index: int) -> dict[str, str]:
    """Return one Alpaca row of known words; rows differ, and share words with their neighbours."""
    pick = [WORDS[(index * step + step) % 40] for step in (1, 3, 7, 11)]
    return {
        "id": f"row-{index:04d}",
        "instruction": f"{pick[0]} the {pick[1]} and {pick[2]}",
        "input": "" if index % 3 else f"{pick[3]} {WORDS[index % 17]}",
        "output": " ".join([pick[2], pick[0], *([WORDS[index % 23]] * (index % 4))]),
    }


@pytest.fixture(scope="session")
def make_row() -> Callable[[int], dict[str, str]]:
    """Return the function that makes the rows of a pool."""
    return row


@pytest.fixture
def write_pool(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a pool of `n` generated rows, from `start` on, and gives its path."""

    def write(n: int, name: str = "pool.jsonl", start: int = 0) -> Path:
        path = tmp_path / name
        lines = [json.dumps(row(index)) for index in range(start, start + n)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs the command line with these arguments."""

    from nncift.cli.main import main

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["nncift", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        found = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, found.out, found.err)

    return run
