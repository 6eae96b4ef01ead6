"""Multiple-choice questions, answered by the likelihood of the options: the form of MMLU (arXiv 2009.03300).

Two ways to ask. `letters`: the options are listed behind the question and the letters' likelihoods compared. `texts`: the
question stands alone and the likelihoods of the options' own words are compared, where longer options are at a disadvantage
that `normalise` takes away.
"""

from __future__ import annotations

import hashlib
import json
import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nncift.core.result_types import JsonObject
from nncift.data.examples import Example, Message, Rejection
from nncift.data.file_rows import file_records
from nncift.data.opening import stem_of
from nncift.errors import DataError, UsageError
from nncift.generation.generate import Answer
from nncift.generation.likelihood import NO_NUMBER
from nncift.generation.prompts import InFrontOf, Prompts, log_probabilities, reason
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import PromptFormat

Form = Literal["letters", "texts"]

LETTERS = string.ascii_uppercase
QUESTION = ("question", "prompt", "instruction")
OPTIONS = ("choices", "options")
ANSWER = ("answer", "answerKey", "answer_index", "label", "target")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its options; answer: the position of the right one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    source: str = "questions"
    line: int = 1

    def example(self, option: int | None = None, form: Form = "letters") -> Example:
        """Return the question as an example whose response is an option, the right one by default; the id is its own."""
        at = self.answer if option is None else option
        if form == "letters":
            listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, self.options, strict=False)]
            prompt, response = "\n".join([self.question, *listed, "Answer:"]), LETTERS[at]
        else:
            prompt, response = self.question, self.options[at]
        row = {"question": self.question, "choices": list(self.options), "answer": self.answer}
        return Example(self.id, prompt, response, (Message("user", prompt),), self.source, self.line, json.dumps(row))


def read_questions(path: str | Path) -> tuple[tuple[Question, ...], tuple[Rejection, ...]]:
    """Return the questions of a file of rows (JSON lines, JSON, Parquet), and the rows that are none.

    A row has a question (`question`, `prompt`, `instruction`), options (`choices`, `options`: a list of texts, texts by
    their letter, or ARC's `text` and `label`) and the right one (`answer`, `answerKey`, `answer_index`, `label`, `target`): its
    position from 0, its letter or label, or its text. Raises DataError for a file that cannot be read or holds none.
    """
    found: list[tuple[str | None, Question]] = []
    rejected: list[Rejection] = []
    source = stem_of(Path(path))
    for record in file_records(Path(path), OPTIONS):
        try:
            if record.row is None:
                raise DataError(record.reason)
            own, question = _question(record.row)
            found.append((own, replace(question, source=source, line=record.line)))
        except DataError as error:
            rejected.append(Rejection(source, record.line, str(error)))
    if not found:
        first = f", the first: {rejected[0].reason} (line {rejected[0].line})" if rejected else ""
        raise DataError(f"{str(path)!r} holds no multiple-choice question; {len(rejected)} rows are none{first}")
    return _named(found), tuple(rejected)


def choose(
    lm: CausalLM,
    questions: Sequence[Question],
    wording: PromptFormat,
    *,
    form: Form = "letters",
    normalise: bool = False,
    before: InFrontOf | None = None,
    batch_tokens: int = 2048,
) -> list[Answer]:
    """Return the option that the model finds likeliest for every question, as its letter, the first among equals.

    An option's likelihood is the sum of the log-probabilities of its tokens, or their mean where `normalise`; what the wording
    puts behind a response does not count. A question with an option that does not fit into the context has failed.
    Raises UsageError for an unknown form.
    """
    if form not in ("letters", "texts"):
        raise UsageError(f"the form of a multiple-choice question is letters or texts, not {form!r}")
    prompts = Prompts(lm, wording, before)
    rows: dict[tuple[str, int], Row] = {}
    failures: dict[str, str] = {}
    for question in questions:
        try:
            options = {
                (question.id, option): _bare(prompts.row(question.example(option, form)), wording)
                for option in range(len(question.options))
            }
        except DataError as error:
            failures[question.id] = reason(error)
        else:
            rows |= options
    total = np.mean if normalise else np.sum
    found = {
        key: float(total(logs.astype(np.float64))) for key, logs in log_probabilities(lm, rows, batch_tokens).items()
    }
    answers = []
    for question in questions:
        text, failure = None, failures.get(question.id)
        if failure is None:
            chances = [found[question.id, option] for option in range(len(question.options))]
            if all(map(math.isfinite, chances)):
                text = LETTERS[int(np.argmax(chances))]
            else:
                failure = NO_NUMBER
        prompt = question.example(form=form).prompt
        answers.append(Answer(question.id, prompt, LETTERS[question.answer], text, failure))
    return answers


def _bare(row: Row, wording: PromptFormat) -> Row:
    """Return a row whose response is the option alone. Raises DataError where nothing is left of it."""
    response = tuple(row.response)
    for mark in (wording.eos, wording.end):
        if mark and response[-len(mark) :] == mark:
            response = response[: -len(mark)]
    if not response:
        raise DataError("an option has no tokens")
    return Row(row.prompt, response)


def _question(row: JsonObject) -> tuple[str | None, Question]:
    question = next((row[name] for name in QUESTION if isinstance(row.get(name), str) and row[name].strip()), None)
    if question is None:
        raise DataError(f"no question: expected text in {', '.join(QUESTION)}")
    given = next((row[name] for name in OPTIONS if row.get(name)), None)
    options, labels = _options(given)
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(text, str) and text.strip() for text in options):
        raise DataError(f"no options: expected 2 to {len(LETTERS)} texts in {' or '.join(OPTIONS)}")
    held = next((row[name] for name in ANSWER if row.get(name) is not None), None)
    own = row.get("id")
    name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip() else None
    return name, Question("", question, options, _right(held, options, labels))


def _options(given: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return options and their labels; none where there is no known form."""
    if isinstance(given, dict) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        return tuple(given["text"]), tuple(map(str, given["label"]))
    if isinstance(given, dict):
        return tuple(given.values()), tuple(map(str, given))
    if isinstance(given, list):
        return tuple(given), tuple(LETTERS[: len(given)])
    return (), ()


def _right(held: Any, options: tuple[str, ...], labels: tuple[str, ...]) -> int:
    """Return the position that an answer stands for. Raises DataError where it stands for none, or for several."""
    readings: set[int] = set()
    if isinstance(held, int) and not isinstance(held, bool):
        readings = {held} if 0 <= held < len(options) else set()
    elif isinstance(held, str) and held.strip() in labels:
        readings = {labels.index(held.strip())}
    elif isinstance(held, str):
        readings = {at for at, text in enumerate(options) if text.strip() == held.strip()}
        number = held.strip()
        readings |= {int(number)} if number.isascii() and number.isdigit() and int(number) < len(options) else set()
    if len(readings) != 1:
        what = "names no option" if not readings else "names several options"
        raise DataError(f"the answer {what}: {str(held)[:60]!r}; expected a position from 0, a letter, or an option")
    return readings.pop()


def _named(found: Sequence[tuple[str | None, Question]]) -> tuple[Question, ...]:
    """Return questions under their own id where only one has it, else under their content and its occurrence."""
    counts = Counter(name for name, _ in found)
    seen: Counter[str] = Counter()
    named = []
    for name, question in found:
        content = json.dumps([question.question, *question.options])
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        own = name if name is not None and counts[name] == 1 else f"{digest}-{seen[digest]}"
        seen[digest] += 1
        named.append(replace(question, id=own))
    return tuple(named)
