"""How good answers are: metrics by name, each a number per answer.

A metric gives NaN where it could not measure: the answer failed, or the metric itself did (a judge that did not reply). What
is merely wrong has the lowest value instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.plugins import class_of
from nncift.errors import ResourceError, UsageError
from nncift.generation.generate import Answer
from nncift.models.encoders import Encoder

METRICS: Mapping[str, str] = {
    "rouge1": "nncift.generation.answer_metrics:Rouge1",
    "rougeL": "nncift.generation.answer_metrics:RougeL",
    "embedding": "nncift.generation.answer_metrics:Similarity",
    "exact": "nncift.generation.answer_metrics:Exact",
    "choice": "nncift.generation.answer_metrics:Choice",
    "judge": "nncift.generation.judge:Judged",
}
"""Name -> where its class lives."""


class Metric(Protocol):
    """Says how good answers are. unit: what a value is counted in, as it is printed beside it."""

    name: str
    unit: str
    higher_is_better: bool

    def values(self, answers: Sequence[Answer]) -> Doubles:
        """Return a value per answer, `(n,)`, NaN where there is none."""
        ...


def metric(name: str, **options: Any) -> Metric:
    """Return the metric of a name (`METRICS`), made with its options. Raises UsageError for an unknown name or option."""
    found = class_of("metric", name, METRICS)
    try:
        made: Metric = found(**options)
    except TypeError as error:
        raise UsageError(f"the metric {name} cannot be made of {sorted(options)}: {error}") from error
    return made


def each(answers: Sequence[Answer], measure: Callable[[str, str], float]) -> Doubles:
    """Return `measure(text, reference)` of every answer, `(n,)`; NaN for those that failed."""
    return np.array([np.nan if one.text is None else measure(one.text, one.reference) for one in answers], np.float64)


class _Rouge:
    """F-measure of the package rouge-score, with its stemmer, in percent."""

    name: str
    unit = "%"
    higher_is_better = True

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise ResourceError(f"the metric {self.name} needs rouge-score: pip install rouge-score") from error
        self._scorer = RougeScorer([self.name], use_stemmer=True)

    def values(self, answers: Sequence[Answer]) -> Doubles:
        """Return the overlap of answer and reference; an empty answer has none."""
        return each(answers, lambda text, reference: 100.0 * self._scorer.score(reference, text)[self.name].fmeasure)


class Rouge1(_Rouge):
    """Overlap of single words."""

    name = "rouge1"


class RougeL(_Rouge):
    """Overlap by the longest common run of words, gaps allowed, over the whole text."""

    name = "rougeL"


class Similarity:
    """Cosine of the embeddings of answer and reference, by the run's encoder, in [-1, 1]. An empty answer has 0."""

    name = "embedding"
    unit = "cosine"
    higher_is_better = True

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def values(self, answers: Sequence[Answer]) -> Doubles:
        """Return the cosines."""
        there = [one for one in answers if one.text is not None]
        texts = list(dict.fromkeys(text for one in there for text in (str(one.text), one.reference)))
        if not texts:
            return np.full(len(answers), np.nan)
        vectors = dict(zip(texts, self._encoder.encode(texts)[0].astype(np.float64), strict=True))
        return each(answers, lambda text, reference: float(vectors[text] @ vectors[reference]) if text.strip() else 0.0)


MARK = "####"
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")
_CURRENCY = str.maketrans("", "", "$€£¥₹")


def final_answer(text: str) -> str | None:
    """Return what stands behind the last `####` of a text, up to the line's end: as a plain number where it holds one.

    Currency signs, thousands commas, a full stop behind and zeros behind the point do not count. None without `####`.
    """
    _, mark, rest = text.rpartition(MARK)
    if not mark:
        return None
    line = next((line.strip() for line in rest.splitlines() if line.strip()), "").translate(_CURRENCY)
    found = _NUMBER.findall(line)
    if not found:
        return " ".join(line.split()).rstrip(".")
    try:
        number = Decimal(found[-1].replace(",", "").rstrip("."))
    except InvalidOperation:
        return str(found[-1])
    return format(number.normalize() + 0, "f")


class Exact:
    """Share of answers that are the reference, white space aside, in percent (0 or 100 per answer).

    Where the reference holds `####`, the answers behind it are compared (`final_answer`), and an answer without one is wrong.
    """

    name = "exact"
    unit = "%"
    higher_is_better = True

    def values(self, answers: Sequence[Answer]) -> Doubles:
        """Return 100 for a match and 0 for none."""
        return each(answers, lambda text, reference: 100.0 * _matches(text, reference))


def _matches(text: str, reference: str) -> bool:
    wanted = final_answer(reference)
    if wanted is not None:
        return final_answer(text) == wanted
    return text.split() == reference.split()


class Choice:
    """Share of multiple-choice questions whose right option the model finds likeliest, in percent (`choices.choose`)."""

    name = "choice"
    unit = "%"
    higher_is_better = True

    def values(self, answers: Sequence[Answer]) -> Doubles:
        """Return 100 where the chosen option's letter is the right one, else 0."""
        return each(answers, lambda text, reference: 100.0 * (text == reference))
