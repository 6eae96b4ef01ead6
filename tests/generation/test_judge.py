from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nncift.errors import UsageError
from nncift.generation.answer_metrics import metric
from nncift.generation.generate import Answer
from nncift.generation.judge import Grade, ModelJudge
from nncift.models.causal_lm import CausalLM

Answered = Callable[..., Answer]

RUBRIC = "grades: [{}]\nprompts:\n- |\n  tell the\n  {{prompt}}\n  give\n  {{response}}\n  number"
WORDS = "one two three four five".split()


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text(RUBRIC.format(", ".join(f'"{word}"' for word in WORDS)), encoding="utf-8")
    return path


def test_a_local_judge_gives_the_expected_grade(llama: CausalLM, rubric: Path, answered: Answered) -> None:
    one = answered("blue sky", "red")
    (grade,) = ModelJudge(llama, rubric=rubric).grade([one])
    text = "tell the\nname a number\n\nReference answer:\nred\ngive\nblue sky\nnumber".replace(
        "name a number", one.prompt
    )
    with torch.inference_mode():
        logits = llama.model(input_ids=llama.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
    chances = logits[llama.tokenizer.convert_tokens_to_ids(WORDS)].softmax(dim=0)
    assert grade.value == pytest.approx(float(chances @ torch.arange(1.0, 6.0)), abs=1e-4)
    assert grade.failure is None


def test_the_judges_own_rubric_needs_room_and_says_so(gpt2_folder: Path, answered: Answered) -> None:
    lm = CausalLM.load(gpt2_folder, device="cpu")
    # The tiny model's context is shorter than the rubric: every answer is refused, with the reason, and none is dropped.
    grades = ModelJudge(lm).grade([answered("red"), answered("blue")])
    assert [grade.value for grade in grades] == [None, None]
    assert all("context holds" in str(grade.failure) for grade in grades)


def test_an_answer_too_long_for_the_judge_has_failed(llama: CausalLM, rubric: Path, answered: Answered) -> None:
    judged = metric("judge", judge=ModelJudge(llama, rubric=rubric))
    answers = [answered("red " * 200, name="long"), answered("red", name="short"), answered(None, name="none")]
    values = judged.values(answers)
    assert np.isnan(values).tolist() == [True, False, True]
    assert 1 <= values[1] <= 5
    assert list(judged.failures) == ["long"]  # type: ignore[attr-defined]


def test_a_request_too_long_for_the_judge_is_cut_and_counted(llama: CausalLM, rubric: Path) -> None:
    judge = ModelJudge(llama, rubric=rubric)
    (grade,) = judge.grade([Answer("a", "cat " * 200, "red", "blue")])
    assert grade.value is not None
    assert judge.shortened == 1


def test_a_model_that_gives_no_number_fails_the_answer(
    llama: CausalLM, rubric: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift.teachers.grading import Rater

    monkeypatch.setattr(Rater, "chances", lambda self, ids: (np.full((len(ids), 1, 5), np.nan), 0))
    (grade,) = ModelJudge(llama, rubric=rubric).grade([answered("red")])
    assert grade == Grade(None, "the judge's model gave no number")


def test_a_rubric_of_other_grades_is_refused(llama: CausalLM, tmp_path: Path) -> None:
    path = tmp_path / "three.yaml"
    path.write_text(RUBRIC.format('"one", "two", "three"'), encoding="utf-8")
    with pytest.raises(UsageError, match="grades"):
        ModelJudge(llama, rubric=path)


def test_any_object_that_grades_is_a_judge(answered: Answered) -> None:
    class Length:
        name = "length"

        def grade(self, answers: Sequence[Answer]) -> list[Grade]:
            return [Grade(float(len(str(one.text)))) if one.text else Grade(None) for one in answers]

    judged = metric("judge", judge=Length())
    found = judged.values([answered("red", name="a"), answered("", name="b")])
    assert found.tolist() == pytest.approx([3.0, np.nan], nan_ok=True)
    assert judged.failures == {"b": "no grade, and no reason"}  # type: ignore[attr-defined]
