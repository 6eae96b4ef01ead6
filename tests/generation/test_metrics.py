from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nncift.errors import ResourceError, UsageError
from nncift.generation.answer_metrics import METRICS, final_answer, metric
from nncift.generation.generate import Answer
from nncift.models.encoders import HashEncoder

Answered = Callable[..., Answer]


def test_rouge_by_hand(answered: Answered) -> None:
    # One word of two in common with three: precision 1/2, recall 1/3.
    answers = [
        answered("the dog", "a dog barks"),
        answered("sky blue", "blue sky"),
        answered("", "red"),
        answered(None),
    ]
    assert metric("rouge1").values(answers).tolist() == pytest.approx([40.0, 100.0, 0.0, np.nan], nan_ok=True)
    assert metric("rougeL").values(answers).tolist() == pytest.approx([40.0, 50.0, 0.0, np.nan], nan_ok=True)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ResourceError, match="pip install rouge-score"):
        metric("rouge1")


def test_embedding_is_the_cosine_of_answer_and_reference(answered: Answered) -> None:
    # Words hashed to directions of their own: red blue with red is 1 / sqrt(2).
    answers = [answered("red blue"), answered("red"), answered(None), answered(" ")]
    found = metric("embedding", encoder=HashEncoder()).values(answers)
    assert found.tolist() == pytest.approx([0.5**0.5, 1.0, np.nan, 0.0], nan_ok=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        ("#### $1,234.50", "1234.5"),
        ("so it is\n####   -0.0 ", "0"),
        ("#### 3 #### 12 apples.", "12"),
        ("#### 7.\nand more 8", "7"),
        ("#### blue  whale.", "blue whale"),
        ("####\n9", "9"),
        ("#### 100", "100"),
        ("no mark 5", None),
        ("####", ""),
    ],
)
def test_what_stands_behind_the_mark(text: str, wanted: str | None) -> None:
    assert final_answer(text) == wanted


def test_exact_compares_answers_behind_the_mark_or_the_whole_text(answered: Answered) -> None:
    pairs = [
        ("thus\n#### 1200", "x\n#### 1,200", 100.0),
        ("1200", "#### 1200", 0.0),
        ("#### 3", "#### 4", 0.0),
        (" a\n b", "a b ", 100.0),
        ("A b", "a b", 0.0),
        ("#### 3", "3", 0.0),
    ]
    found = metric("exact").values([answered(text, reference) for text, reference, _ in pairs])
    assert found.tolist() == [value for _, _, value in pairs]


@pytest.mark.parametrize("name", [name for name in METRICS if name != "judge"])
def test_every_metric_names_itself_and_takes_no_answers(name: str) -> None:
    found = metric(name, **({"encoder": HashEncoder()} if name == "embedding" else {}))
    assert found.name == name
    assert found.unit
    assert found.higher_is_better
    empty: Sequence[Answer] = []
    assert found.values(empty).shape == (0,)


def test_an_unknown_name_and_an_unknown_option_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'rougeL'"):
        metric("rougel")
    with pytest.raises(UsageError, match="exact cannot be made"):
        metric("exact", case=True)
