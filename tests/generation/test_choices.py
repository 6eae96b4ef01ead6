from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift.data.examples import Example
from nncift.errors import DataError, UsageError
from nncift.generation.answer_metrics import metric
from nncift.generation.choices import Question, choose, read_questions
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat

Make = Callable[..., Example]

QUESTIONS = [
    Question("a", "what is the sky", ("blue", "red dog and the cat", "green"), 0),
    Question("b", "name the first number", ("one", "two three", "ten"), 2),
]


def by_hand(lm: CausalLM, prompt: list[int], option: list[int]) -> list[float]:
    with torch.inference_mode():
        logs = lm.model(input_ids=torch.tensor([prompt + option])).logits[0].log_softmax(dim=1)
    return [float(logs[len(prompt) - 1 + k, token]) for k, token in enumerate(option)]


@pytest.mark.parametrize("normalise", [False, True])
def test_the_likeliest_text_is_chosen(lm: CausalLM, normalise: bool) -> None:
    wording = PromptFormat(lm.tokenizer)
    answers = choose(lm, QUESTIONS, wording, form="texts", normalise=normalise)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        prompt = [*wording.bos, *wording._ids(f"Instruction:\n{question.question}\n\nResponse:\n")]
        logs = [by_hand(lm, prompt, wording._ids(text)) for text in question.options]
        chances = [np.mean(one) if normalise else np.sum(one) for one in logs]
        assert answer.text == "ABC"[int(np.argmax(chances))]
        assert answer.reference == "ABC"[question.answer]


def test_longer_options_are_at_a_disadvantage_that_normalising_takes_away(llama: CausalLM) -> None:
    words = ["red", "sky", "dog", "ten", "sum", "list"]
    questions = [Question(word, f"tell {word}", (word, f"{word} of the house", "a " * 9), 0) for word in words]
    plain = choose(llama, questions, PromptFormat(llama.tokenizer), form="texts")
    per_token = choose(llama, questions, PromptFormat(llama.tokenizer), form="texts", normalise=True)
    assert {one.text for one in plain} == {"A"}
    assert {one.text for one in per_token} != {"A"}


def test_letters_are_weighed_behind_the_listed_options(gpt2: CausalLM) -> None:
    wording = PromptFormat(gpt2.tokenizer)
    answer = choose(gpt2, QUESTIONS[:1], wording)[0]
    listed = "what is the sky\nA. blue\nB. red dog and the cat\nC. green\nAnswer:"
    assert answer.prompt == listed
    prompt = wording._ids(f"Instruction:\n{listed}\n\nResponse:\n")
    chances = [sum(by_hand(gpt2, prompt, wording._ids(letter))) for letter in "ABC"]
    assert answer.text == "ABC"[int(np.argmax(chances))]


def test_a_question_that_does_not_fit_has_failed_and_counts_as_no_value(llama: CausalLM) -> None:
    questions = [*QUESTIONS, Question("long", "red " * 100, ("one", "two"), 0)]
    answers = choose(llama, questions, PromptFormat(llama.tokenizer), form="texts")
    assert answers[2].text is None
    assert "context holds 96" in str(answers[2].failure)
    values = metric("choice").values(answers)
    assert np.isnan(values).tolist() == [False, False, True]
    assert set(values[:2]) <= {0.0, 100.0}


def test_an_unknown_form_is_refused(llama: CausalLM) -> None:
    with pytest.raises(UsageError, match="letters or texts"):
        choose(llama, QUESTIONS, PromptFormat(llama.tokenizer), form="words")  # type: ignore[arg-type]


ROWS: list[tuple[dict[str, Any], int | None]] = [
    ({"question": "q", "choices": ["x", "y", "z"], "answer": 2}, 2),
    ({"prompt": "q", "options": ["x", "y"], "answer": "B"}, 1),
    ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
    ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}, 0),
    ({"question": "q", "choices": ["x", "y"], "answer": "y"}, 1),
    ({"question": "q", "choices": ["x", "y"], "answer": "1"}, 1),
    ({"question": "q", "choices": ["1", "0"], "answer": "1"}, None),
    ({"question": "q", "choices": ["x", "y"], "answer": True}, None),
    ({"question": "q", "choices": ["x", "y"], "answer": 2}, None),
    ({"question": "q", "choices": ["x"], "answer": 0}, None),
    ({"question": "q", "choices": ["x", 3], "answer": 0}, None),
    ({"choices": ["x", "y"], "answer": 0}, None),
    ({"question": "q", "answer": 0}, None),
]


@pytest.mark.parametrize(("row", "right"), ROWS)
def test_rows_become_questions_or_rejections(row: dict[str, Any], right: int | None, tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    sound = {"id": "sound", "question": "q", "choices": ["x", "y"], "answer": 0}
    path.write_text(json.dumps(sound) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    questions, rejected = read_questions(path)
    assert questions[0].id == "sound"
    if right is None:
        assert [one.line for one in rejected] == [2]
        assert rejected[0].reason
    else:
        assert [one.answer for one in questions[1:]] == [right]
        assert questions[1].line == 2


def test_questions_without_an_id_of_their_own_are_named_by_content(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    rows = [{"question": "q", "choices": ["x", "y"], "answer": 0}] * 2
    path.write_text("\n".join(json.dumps({**row, "id": 7}) for row in rows), encoding="utf-8")
    questions, _ = read_questions(path)
    names = [one.id for one in questions]
    assert [name[-2:] for name in names] == ["-0", "-1"]


def test_a_file_without_questions_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    path.write_text('{"instruction": "q", "output": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no options"):
        read_questions(path)
