"""Grades of SelectIT from a model: what rows share is read once (method.md 3.4).

What a rating prompt begins with is read once for all rows, and a row is read once for all rating prompts that agree up to
its response; both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.core.arrays import Doubles
from nncift.data.examples import Examples
from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM, Prefix
from nncift.models.model_parts import body_of, last_hidden_states
from nncift.models.response_reader import Prepared, Reader, too_long
from nncift.teachers.rating import Form, Ids, encoder, make_form

if TYPE_CHECKING:
    import torch


def token_scores(probabilities: Doubles) -> Doubles:
    """Return `S_tok = S_base / (K-1) * sum_k |P'_k - P'_base|` of `P'` `(..., K)`; among equals, the lowest is base."""
    grades = probabilities.shape[-1]
    base = probabilities.argmax(axis=-1)
    lead = np.abs(probabilities - np.take_along_axis(probabilities, base[..., None], axis=-1)).sum(axis=-1)
    return np.asarray((base + 1) * lead / (grades - 1), np.float64)


@dataclass(frozen=True, eq=False)
class Grades:
    """What a model gives to rows.

    chances: `P'_k`, the grades' probabilities over their sum, `(n_rows, r, K)`. mass: that sum, `(n_rows, r)`: how much of what
    the model would say next is a grade at all. A grade of several tokens has the probability of all of them.
    """

    chances: Doubles
    mass: Doubles

    @classmethod
    def stacked(cls, parts: Sequence[Grades]) -> Grades:
        """Return the grades of rows under several rating prompts from those under each, `(n_rows, K)`."""
        return cls(np.stack([part.chances for part in parts], axis=1), np.stack([part.mass for part in parts], axis=1))


class Rater:
    """One model that grades rows under every rating prompt (token level)."""

    def __init__(self, reader: Reader, texts: Sequence[str], words: Sequence[str]) -> None:
        self.reader = reader
        self.texts = tuple(texts)
        self.words = tuple(words)
        self.grades = len(self.words)
        self.shortened: set[str] = set()
        self._rows: dict[str, tuple[Ids, Ids]] = Prepared()
        self._prefixes: dict[int, Prefix] = {}

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """The rating prompts in this model's tokens. Raises UsageError where its tokenizer cannot tell grades apart."""
        return tuple(make_form(self.reader.wording, self.reader.lm.tokenizer, text, self.words) for text in self.texts)

    def prepare(self, examples: Examples) -> dict[str, str]:
        """Tokenise prompts and responses; return the reasons of those rows that are too long even with a cut prompt."""
        if not examples:
            return {}
        encode = encoder(self.reader.lm.tokenizer, special=False)
        size = max(form.size for form in self.forms)
        room = self.reader.lm.context - size
        refused: dict[str, str] = {}
        prompts = encode([row.prompt for row in examples])
        responses = encode([row.response for row in examples])
        for row, prompt, response in zip(examples, prompts, responses, strict=True):
            kept = min(len(prompt), 1)
            if kept + len(response) > room:
                refused[row.id] = too_long(size + kept + len(response), self.reader.lm)
                continue
            if len(prompt) + len(response) > room:
                prompt = prompt[len(prompt) + len(response) - room :]
                self.shortened.add(row.id)
            self._rows[row.id] = prompt, response
        return refused

    def rate(self, ids: Sequence[str]) -> tuple[Grades, int]:
        """Return the grades of rows and the tokens that were read. Raises ResourceError where the model gives no number."""
        grades, tokens = self._graded(ids)
        self.reader.check_not_nan(ids, grades.chances)
        return grades, tokens

    def chances(self, ids: Sequence[str]) -> tuple[Doubles, int]:
        """Return `P'_k`, the grades' probabilities `(n_rows, r, K)`, and the tokens that were read."""
        grades, tokens = self._graded(ids)
        return grades.chances, tokens

    def _graded(self, ids: Sequence[str]) -> tuple[Grades, int]:
        shape = (len(ids), len(self.forms))
        grades, tokens = Grades(np.empty((*shape, self.grades)), np.empty(shape)), 0
        for group in self._groups:
            forms = [self.forms[number] for number in group]
            if group[0] not in self._prefixes:
                self._prefixes[group[0]] = self.reader.lm.prefix(forms[0].head)
                tokens += len(forms[0].head)
            rows = [self._rows[item] for item in ids]
            bodies = [(*prompt, *forms[0].middle, *response) for prompt, response in rows]
            found, read = self._grade(self._prefixes[group[0]], bodies, forms)
            grades.chances[:, group], grades.mass[:, group] = found.chances, found.mass
            tokens += read
        return grades, tokens

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Numbers of rating prompts that read alike up to the response, where the model lets them share what they read."""
        groups: dict[tuple[Ids, Ids], list[int]] = {}
        for number, form in enumerate(self.forms):
            groups.setdefault((form.head, form.middle), []).append(number)
        # An ending that the grades swallow whole leaves no token of its own to go on from.
        whole = all(form.ending for form in self.forms)
        shared = whole and any(len(group) > 1 for group in groups.values()) and self._can_share()
        return list(groups.values()) if shared else [[number] for number in range(len(self.forms))]

    def _can_share(self) -> bool:
        """Try, on a few tokens, whether keys and values of a text may serve several endings behind masked padding."""
        lm, form = self.reader.lm, self.forms[0]
        config = lm.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        prefix = lm.prefix(form.head[:16])
        if prefix.cache is None or (window is not None and window < lm.context):
            return False
        bodies = [tuple((7 * k + 3) % int(config.vocab_size) for k in range(length)) for length in (4, 9)]
        plain = grade_probabilities(lm, prefix, [(*body, *form.ending) for body in bodies], form).chances
        try:
            found = shared_probabilities(lm, prefix, bodies, [form, form]).chances
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
            return False
        exact = 1e-4 if str(next(lm.model.parameters()).dtype) == "torch.float32" else 0.05
        return bool(np.allclose(found, plain[:, None], atol=exact, equal_nan=True))

    def _grade(self, prefix: Prefix, bodies: Sequence[Ids], forms: Sequence[Form]) -> tuple[Grades, int]:
        """Return the grades of bodies under forms that share head and middle, and the tokens read."""
        shape = (len(bodies), len(forms))
        grades = Grades(np.empty((*shape, self.grades)), np.empty(shape))
        budget, before = self.reader.batch_tokens, len(prefix.ids)
        ends = [(*form.ending, *branch) for form in forms for branch in form.branches]
        longest = max(map(len, ends))
        # Keys and values are held once per ending, and take more room than what goes through the model.
        most, sizes = budget * min(len(forms), 4) // len(ends), [len(body) + longest for body in bodies]
        for batch in batches(sizes, most, before, limit=self.reader.lm.padding_limit):
            rows = [bodies[index] for index in batch]
            if len(forms) > 1:
                found = shared_probabilities(self.reader.lm, prefix, rows, forms)
            else:
                texts = [(*row, *forms[0].ending) for row in rows]
                found = Grades.stacked([grade_probabilities(self.reader.lm, prefix, texts, forms[0])])
            grades.chances[batch], grades.mass[batch] = found.chances, found.mass
        again = 0 if prefix.cache is not None else before
        return grades, _tokens_read(list(map(len, bodies)), forms, again)

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens that rating rows takes, what all rows have in front of them included."""
        tokens = 0
        for group in self._groups:
            forms = [self.forms[number] for number in group]
            rows, head, middle = (self._rows[item] for item in ids), len(forms[0].head), len(forms[0].middle)
            again = 0 if head and self.reader.lm.caches_prefixes else head
            sizes = [len(prompt) + middle + len(response) for prompt, response in rows]
            tokens += head + _tokens_read(sizes, forms, again)
        return tokens


def _tokens_read(sizes: Sequence[int], forms: Sequence[Form], again: int) -> int:
    """Return the tokens read of bodies of these sizes under forms that share a head. again: of the head, for each sequence."""
    ends = [(*form.ending, *branch) for form in forms for branch in form.branches]
    read = sum(sizes) + len(sizes) * sum(map(len, ends))
    # Forms that are read together read a body once.
    repeats = sum(sizes) * (len(ends) - 1) if len(forms) == 1 else 0
    return read + repeats + again * len(ends) * len(sizes)


def grade_probabilities(lm: CausalLM, prefix: Prefix, texts: Sequence[Ids], form: Form) -> Grades:
    """Return the grades of every text behind the prefix: `(n_texts, K)` chances and `(n_texts,)` mass, in one pass."""
    import torch

    before: Ids = () if prefix.cache is not None else prefix.ids
    rows = [(*before, *text, *branch) for text in texts for branch in form.branches]
    starts = [len(row) - len(branch) - 1 for row, branch in zip(rows, form.branches * len(texts), strict=True)]
    with torch.inference_mode(), lm._threads():
        cache = prefix.repeated(len(rows))
        logits = _logits(lm, rows, starts, **({"use_cache": False} if cache is None else lm.with_cache(cache)))
    return _normalised(logits.reshape(len(texts), -1, logits.shape[1]), form)


def shared_probabilities(lm: CausalLM, prefix: Prefix, bodies: Sequence[Ids], forms: Sequence[Form]) -> Grades:
    """Return grades as `grade_probabilities` does, an axis of r forms behind the first; forms differ in the ending only.

    bodies: texts without their ending; each is read once, and its keys and values serve all endings. The padding between
    body and ending is masked, and positions go on from the body's last token.
    """
    import torch

    ends = [(*form.ending, *branch) for form in forms for branch in form.branches]
    starts = [len(form.ending) - 1 for form in forms for _ in form.branches]
    wide, before = max(map(len, bodies)), len(prefix.ids)
    slots = torch.arange(before + wide + max(map(len, ends)))
    lengths = torch.tensor([len(body) for body in bodies]).repeat_interleave(len(ends))[:, None] + before
    seen = (slots < lengths) | (slots >= before + wide)
    places = lengths + torch.arange(max(map(len, ends)))
    with torch.inference_mode(), lm._threads():
        cache = prefix.repeated(len(bodies))
        cache = lm.cache_of(body_of(lm.model)(input_ids=_padded(lm, bodies), **lm.with_cache(cache)))
        cache.batch_repeat_interleave(len(ends))
        logits = _logits(
            lm,
            ends * len(bodies),
            starts * len(bodies),
            **lm.with_cache(cache),
            attention_mask=seen.long().to(lm.device),
            position_ids=places.to(lm.device),
        )
    logits = logits.reshape(len(bodies), -1, logits.shape[1])
    sizes = [sum(len(branch) + 1 for branch in form.branches) for form in forms]
    return Grades.stacked(
        [_normalised(part, form) for part, form in zip(logits.split(sizes, dim=1), forms, strict=True)]
    )


def _normalised(logits: torch.Tensor, form: Form) -> Grades:
    """Return grades from the logits behind the ending and every token of every branch, `(n, positions, vocabulary)`.

    For grades of one token, what the rest of the vocabulary gets cancels in the chances, and only the mass tells of it.
    """
    import torch

    single = all(len(grade) == 1 for grade in form.grades)
    whole = logits.logsumexp(dim=2, keepdim=True)
    if not single:
        logits = logits - whole
    starts = np.cumsum([0, *(len(branch) + 1 for branch in form.branches)])
    chances = []
    for grade in form.grades:
        branch = next(i for i, ids in enumerate(form.branches) if ids[: len(grade) - 1] == grade[:-1])
        at = torch.arange(len(grade), device=logits.device) + int(starts[branch])
        chances.append(logits[:, at, torch.tensor(grade, device=logits.device)].double().sum(dim=1))
    logs = torch.stack(chances, dim=1)
    mass = (logs - whole[:, 0].double() if single else logs).exp().sum(dim=1)
    return Grades(*(np.asarray(part.cpu().numpy(), np.float64) for part in (logs.softmax(dim=1), mass)))


def _logits(lm: CausalLM, rows: Sequence[Ids], starts: Sequence[int], **given: Any) -> torch.Tensor:
    """Return the float32 logits of every row from its position in `starts` on, one row's behind the other's."""
    import torch

    row_at = torch.tensor([i for i, row in enumerate(rows) for _ in range(starts[i], len(row))])
    at = torch.tensor([place for i, row in enumerate(rows) for place in range(starts[i], len(row))])
    ids = _padded(lm, rows)
    if not lm.head_is_last:
        logits = lm.model(input_ids=ids, **given).logits
        return torch.as_tensor(logits[row_at.to(logits.device), at.to(logits.device)].float())
    hidden = last_hidden_states(lm.model, input_ids=ids, **given)
    hidden = hidden[row_at.to(hidden.device), at.to(hidden.device)]
    head: torch.nn.Module = lm.model.get_output_embeddings()
    return torch.as_tensor(head(hidden).float())


def _padded(lm: CausalLM, rows: Sequence[Ids]) -> torch.Tensor:
    """Return rows padded on the right, which a causal model cannot see."""
    import torch

    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(lm.device)
