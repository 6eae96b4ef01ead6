"""SelectIT: the model grades an example, and how sure it is counts (method.md 3.4; arXiv 2402.16705).

Three levels: one rating prompt's grade times its lead over the other grades (token), the mean over the rating prompts,
lowered by their disagreement (sentence), and the mean over models weighted by size (model). Forward passes only, one
per row, rating prompt and model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from nncift.core.arrays import Doubles
from nncift.data.examples import Examples, Rejection
from nncift.errors import UsageError
from nncift.models.causal_lm import CausalLM
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings, Reader, loaded
from nncift.teachers import Kind, RowLabels
from nncift.teachers.grading import Grades, Rater, token_scores
from nncift.teachers.model_teacher import ModelTeacher
from nncift.teachers.rating import read_prompts

MASS = "grade_mass"
SMALL_MASS = 0.2
"""Mean probability of all grades together below which the model cannot be said to grade."""
ONE_GRADE = 0.9
"""Share of all gradings from which on one grade is taken to win always."""


class SelectIt(ModelTeacher):
    """The SelectIT teacher: `score[s]` in [0, grades], higher is better.

    model or models: one or several, each a local folder or hub name, or a loaded `CausalLM`; several stay in memory
    together. grades: K, the highest grade, 2 to 9; None = 5, or as many as the rating prompts have words for.
    rating_prompts: a YAML file as prompts/rating.yaml (the default) or prompts/demo.yaml (whose grades are words), or the
    name of one of these, `rating` or `demo`; the number of its prompts is r. alpha: how much disagreement between rating
    prompts counts. template (see `ModelSettings` for the others): chat puts the rating prompt into a user's turn and takes
    the grade at the start of the answer, plain writes the grade behind it; None = chat where the model has a chat template.
    """

    name = "selectit"
    kind: Kind = "pointwise"
    width = 1

    def __init__(
        self,
        model: AnyModel | None = None,
        tokenizer: AnyTokenizer = None,
        *,
        models: Sequence[str | CausalLM] = (),
        grades: int | None = None,
        alpha: float = 0.2,
        rating_prompts: str | Path | None = None,
        **settings: Unpack[ModelSettings],
    ) -> None:
        if (model is None) == (not models):
            raise UsageError("selectit takes either model, a single one, or models, a list of them")
        if grades is not None and not 2 <= grades <= 9:
            raise UsageError(f"selectit's grades go from 1 to a number of 2 to 9, not {grades}: each is one digit")
        if not alpha >= 0:
            raise UsageError(f"selectit's alpha is at least 0, not {alpha}")
        if settings.get("template") not in (None, "chat", "plain"):
            raise UsageError(
                f"selectit's template is chat or plain, not {settings['template']!r}; its words are the rating prompts"
            )
        self.rating, self.alpha = read_prompts(rating_prompts), alpha
        words = self.rating.grades(grades)
        self.grades = len(words)
        given = [model] if model is not None else list(models)
        own = {
            "grades": grades,
            "alpha": alpha,
            "rating_prompts": None if rating_prompts is None else str(rating_prompts),
        }
        super().__init__(given[0], own, tokenizer, **settings)
        readers = [self.reader, *(Reader(loaded(one, None, settings.get("context")), **settings) for one in given[1:])]
        self.raters = [Rater(reader, self.rating.texts, words) for reader in readers]
        if model is None:
            names = [reader.options["model"] for reader in readers]
            self.options = {**self.options, "model": None, "models": names}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows for every model; one that some model cannot read with some rating prompt is unusable."""
        reasons: dict[str, str] = {}
        for rater in self.raters:
            for item, reason in rater.prepare(examples).items():
                reasons.setdefault(item, reason)
        return tuple(Rejection(row.source, row.line, reasons[row.id]) for row in examples if row.id in reasons)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the scores of rows."""
        values = np.zeros(len(ids))
        tokens = 0
        sums = dict.fromkeys(self.figures, 0.0)
        for rater, weight in zip(self.raters, self._weights(), strict=True):
            grades, read = rater.rate(ids)
            values += weight * sentence_scores(token_scores(grades.chances), self.alpha)
            tokens += read
            for name, value in zip(self.figures, _figures(grades), strict=True):
                sums[name] += weight * value
        return RowLabels(values[:, None].astype(np.float32), tokens, self.row_passes * len(ids), sums)

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows under all rating prompts, what all rows share included."""
        return sum(rater.tokens_of(ids) for rater in self.raters) if ids else 0

    @property
    def figures(self) -> tuple[str, ...]:
        """The probability of all grades together, and how often each wins, lowest first; means over rating prompts and models."""
        return (MASS, *(f"wins_{grade}" for grade in range(1, self.grades + 1)))

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Return sentences where the model does not answer with a grade, and where one grade always wins."""
        found = []
        words = self.rating.grades(self.grades if self.rating.words is None else None)
        if means[MASS] < SMALL_MASS:
            found.append(
                f"SelectIT's scores mean little here: asked for a grade, the model gives the grades {words[0]} to {words[-1]} "
                f"together only {100 * means[MASS]:.1f} % of its probability, so it does not grade. Use a model that follows the "
                "rating prompts, or rating prompts that suit it (--option rating_prompts=FILE)."
            )
        wins = [means[name] for name in self.figures[1:]]
        best = int(np.argmax(wins))
        if wins[best] >= ONE_GRADE:
            found.append(
                f"SelectIT's grades do not tell rows apart: the grade {words[best]} wins in {100 * wins[best]:.1f} % of all "
                "ratings, so scores differ only by how sure the model is of it."
            )
        return tuple(found)

    @property
    def row_passes(self) -> int:
        """Passes of a row: one for each rating prompt of each model."""
        return sum(len(rater.texts) for rater in self.raters)

    def describe(self) -> Mapping[str, Any]:
        """Return models with their weights, rating prompts, grades and alpha."""
        return {
            "teacher": self.name,
            "models": [
                {**rater.reader.describe(), "weight": weight}
                for rater, weight in zip(self.raters, self._weights(), strict=True)
            ],
            "grades": self.grades,
            "alpha": self.alpha,
            "rating_prompts": list(self.rating.texts),
            **({} if self.rating.words is None else {"words": list(self.rating.words)}),
        }

    @property
    def shortened(self) -> frozenset[str]:
        """Ids of rows whose prompt was cut from its start for some model and rating prompt."""
        return frozenset().union(*(rater.shortened for rater in self.raters))

    def _weights(self) -> list[float]:
        """Return the models' shares of all parameters (model level)."""
        sizes = [int(rater.reader.lm.model.num_parameters()) for rater in self.raters]
        return [size / sum(sizes) for size in sizes]


def _figures(grades: Grades) -> list[float]:
    """Return the sums over rows of the mean mass, and of how often each grade wins; among equals, the lowest does."""
    rows, prompts, most = grades.chances.shape
    wins = np.bincount(grades.chances.argmax(axis=2).ravel(), minlength=most) / prompts
    return [float(grades.mass.mean(axis=1).sum()) if rows else 0.0, *wins.tolist()]


def sentence_scores(scores: Doubles, alpha: float) -> Doubles:
    """Return `S_sent = mean_r / (1 + alpha std_r)`, population std; token scores `(n_rows, r)` to `(n_rows,)`."""
    return np.asarray(scores.mean(axis=1) / (1.0 + alpha * scores.std(axis=1)), np.float64)
