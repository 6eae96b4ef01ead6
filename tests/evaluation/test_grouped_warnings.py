"""Warnings about baselines, joined for readers."""

from nncift.evaluation.verdicts import Difference, grouped, verdict

TIE = Difference(0.4, 0.3, 0.1, (-0.1, 0.3))
WORSE = Difference(0.1, 0.3, -0.2, (-0.3, -0.1))


def said(baseline: str, found: Difference, metric: str) -> str:
    text = verdict(baseline, found, metric)
    assert text is not None
    return text


def test_one_comparison_keeps_its_numbers() -> None:
    one = said("cosine", TIE, "r2")
    assert grouped(["a", one, "b"]) == ["a", one, "b"]


def test_several_become_one_sentence_of_each_kind_where_the_first_stood() -> None:
    warnings = [
        "a",
        said("cosine", TIE, "spearman"),
        said("mean", WORSE, "r2"),
        said("cosine", TIE, "r2"),
        "b",
        said("additive", TIE, "r2"),
    ]
    assert grouped(warnings) == [
        "a",
        said("mean", WORSE, "r2"),
        "On unseen items (q4) the student is not distinguishable from cosine similarity of the embeddings (Spearman correlation "
        "and R^2) and the additive baseline (R^2).",
        "b",
    ]
