"""Items and tiny models of the tests in this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nncift.data.examples import Example, Message
from nncift.generation.generate import Answer
from nncift.models.causal_lm import CausalLM


def example(name: str, prompt: str, response: str = "red blue") -> Example:
    return Example(name, prompt, response, (Message("user", prompt),), "test", 1, "{}")


def answer(text: str | None, reference: str = "red", name: str = "a") -> Answer:
    return Answer(name, "name a colour", reference, text, None if text is not None else "too long")


@pytest.fixture(scope="session")
def make() -> Callable[..., Example]:
    return example


@pytest.fixture(scope="session")
def answered() -> Callable[..., Answer]:
    return answer


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> CausalLM:
    return CausalLM.load(gpt2_folder, device="cpu")


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    found: CausalLM = request.getfixturevalue(request.param)
    return found
