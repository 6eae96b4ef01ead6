from __future__ import annotations

from pathlib import Path

import pytest

from nncift.answers.generate import generate
from nncift.data.examples import Example, Examples, Message
from nncift.lm import CausalLM
from nncift.wording import Wording


def example(name: str, prompt: str, response: str = "red") -> Example:
    return Example(name, prompt, response, (Message("user", prompt),), "test", 1, "{}")


PROMPTS = [
    "sort the list",
    "give me one red dog and the blue house of sky",
    "add",
    "name two three four five six seven",
]


@pytest.fixture(scope="module", params=["llama_folder", "gpt2_folder"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    folder: Path = request.getfixturevalue(request.param)
    return CausalLM.load(folder, device="cpu")


def test_answers_of_a_batch_are_those_of_prompts_alone(lm: CausalLM) -> None:
    wording = Wording(lm.tokenizer)
    rows = Examples(tuple(example(str(at), prompt) for at, prompt in enumerate(PROMPTS)))
    together = generate(lm, rows, wording, max_new_tokens=12)
    alone = [generate(lm, Examples((row,)), wording, max_new_tokens=12)[0] for row in rows]
    assert together == alone
    assert len({answer.text for answer in together}) > 1
