"""A finished run that cost no language model, and test rows that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nncift
from nncift.models.causal_lm import CausalLM
from nncift.teachers.delift_se import Similarity

Write = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, write_pool: Write) -> Path:
    out = tmp_path / "run"
    nncift.run(write_pool(40), teacher=Similarity("hash"), out=out, encoder="hash", labels=0.5, budget=6, gate=False)
    return out


@pytest.fixture
def test_rows(write_pool: Write) -> Path:
    return write_pool(6, "test.jsonl", start=77)


@pytest.fixture
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")
