"""A finished run that cost no language model, and test rows that it has not seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nncift
from nncift.models.causal_lm import CausalLM
from nncift.teachers.delift_se import Similarity
from tests.hastened import hasten

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_row: Callable[[int], dict[str, str]]) -> Path:
    """Return a folder with a finished run and its pool, made once: copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(make_row(index)) + "\n" for index in range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        hasten(patch)
        teacher = Similarity("hash")
        nncift.run(pool, teacher=teacher, out=folder / "run", encoder="hash", labels=0.5, budget=6, gate=False)
    return folder


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    shutil.copy(finished / "pool.jsonl", tmp_path)
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def test_rows(write_pool: Write) -> Path:
    return write_pool(6, "test.jsonl", start=77)


@pytest.fixture
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")
