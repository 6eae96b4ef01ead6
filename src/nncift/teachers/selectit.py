"""SelectIT: the model grades an example, and how sure it is counts (method.md 3.4; arXiv 2402.16705).

Three levels: one rating prompt's grade times its lead over the other grades (token), the mean over the rating prompts,
lowered by their disagreement (sentence), and the mean over models weighted by size (model). Forward passes only, one
per row, rating prompt and model. What a rating prompt begins with is read once for all rows, and a row is read once for
all rating prompts that agree up to its response; both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from nncift.data.examples import Examples, Rejection
from nncift.errors import UsageError
from nncift.lm import CausalLM, Prefix
from nncift.teachers import RowLabels
from nncift.teachers.loss import Reader, batches, too_long
from nncift.wording import Wording

if TYPE_CHECKING:
    import torch

Doubles = npt.NDArray[np.float64]
Ids = tuple[int, ...]

MARKS = ("\ue000", "\ue001")
"""Where prompt and response will stand while a chat template is rendered: characters of private use."""


class SelectIt:
    """The SelectIT teacher: `score[s]` in [0, grades], higher is better.

    model or models: one or several, each a local folder or hub name, or a loaded `CausalLM`; several stay in memory
    together. grades: K, the highest grade, 2 to 9. rating_prompts: a YAML list as in prompts/rating.yaml, which is the
    default; its length is r. alpha: how much disagreement between rating prompts counts. template: chat puts the rating
    prompt into a user's turn and takes the grade at the start of the answer, plain writes the grade behind it; None =
    chat where the model has a chat template. Other parameters: see `Reader`.
    """

    name = "selectit"
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    width = 1
    workspace: Path | None = None

    def __init__(
        self,
        model: str | CausalLM | None = None,
        *,
        models: Sequence[str | CausalLM] = (),
        grades: int = 5,
        alpha: float = 0.2,
        rating_prompts: str | Path | None = None,
        template: Literal["chat", "plain"] | None = None,
        context: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 2048,
        trust_remote_code: bool = False,
    ) -> None:
        if (model is None) == (not models):
            raise UsageError("selectit takes either model, a single one, or models, a list of them")
        if not 2 <= grades <= 9:
            raise UsageError(f"selectit's grades go from 1 to a number of 2 to 9, not {grades}: each is one digit")
        if not alpha >= 0:
            raise UsageError(f"selectit's alpha is at least 0, not {alpha}")
        if template not in (None, "chat", "plain"):
            raise UsageError(
                f"selectit's template is chat or plain, not {template!r}; its words are the rating prompts"
            )
        texts = read_prompts(rating_prompts)
        given = [model] if model is not None else list(models)
        readers = [
            Reader(
                one, template=template, context=context, device=device, dtype=dtype, batch_tokens=batch_tokens,
                trust_remote_code=trust_remote_code,
            )
            for one in given
        ]  # fmt: skip
        self.grades, self.alpha = grades, alpha
        self.raters = [Rater(reader, texts, grades) for reader in readers]
        names = [reader.options["model"] for reader in readers]
        self.options: Mapping[str, Any] = {
            "teacher": self.name,
            **readers[0].options,
            **({} if model is not None else {"model": None, "models": names}),
            "grades": grades,
            "alpha": alpha,
            "rating_prompts": None if rating_prompts is None else str(rating_prompts),
        }

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
        for rater, weight in zip(self.raters, self._weights(), strict=True):
            scores, read = rater.rate(ids)
            values += weight * sentence_scores(scores, self.alpha)
            tokens += read
        passes = len(ids) * sum(len(rater.texts) for rater in self.raters)
        return RowLabels(values[:, None].astype(np.float32), tokens, passes)

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
            "rating_prompts": list(self.raters[0].texts),
        }

    @property
    def shortened(self) -> frozenset[str]:
        """Ids of rows whose prompt was cut from its start for some model and rating prompt."""
        return frozenset().union(*(rater.shortened for rater in self.raters))

    def _weights(self) -> list[float]:
        """Return the models' shares of all parameters (model level)."""
        sizes = [int(rater.reader.lm.model.num_parameters()) for rater in self.raters]
        return [size / sum(sizes) for size in sizes]


def token_scores(probabilities: Doubles) -> Doubles:
    """Return `S_tok = S_base / (K-1) * sum_k |P'_k - P'_base|` of `P'` `(..., K)`; among equals, the lowest is base."""
    grades = probabilities.shape[-1]
    base = probabilities.argmax(axis=-1)
    lead = np.abs(probabilities - np.take_along_axis(probabilities, base[..., None], axis=-1)).sum(axis=-1)
    return np.asarray((base + 1) * lead / (grades - 1), np.float64)


def sentence_scores(scores: Doubles, alpha: float) -> Doubles:
    """Return `S_sent = mean_r / (1 + alpha std_r)`, population std; token scores `(n_rows, r)` to `(n_rows,)`."""
    return np.asarray(scores.mean(axis=1) / (1.0 + alpha * scores.std(axis=1)), np.float64)


def read_prompts(path: str | Path | None = None) -> tuple[str, ...]:
    """Return the rating prompts of a YAML list, those of this package by default. Raises UsageError for unfit ones."""
    file = files("nncift.teachers") / "prompts" / "rating.yaml" if path is None else Path(path)
    try:
        texts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"the rating prompts {str(path)!r} cannot be read: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"the rating prompts {str(path)!r} must be a YAML list of texts, at least one")
    for number, text in enumerate(texts, start=1):
        once = text.count("{prompt}") == text.count("{response}") == 1
        if not once or text.index("{prompt}") > text.index("{response}") or text.rstrip().endswith("{response}"):
            raise UsageError(
                f"rating prompt {number} of {str(path)!r} must hold {{prompt}} and then {{response}}, once each, and "
                "end with words that a grade can follow"
            )
    return tuple(text.strip() for text in texts)


@dataclass(frozen=True)
class Form:
    """A rating prompt in a model's tokens, around a row's prompt and response.

    head: up to the prompt, the same for all rows. ending: from the response to where the grades part. grades: the
    tokens of every grade from there on, K of them.
    """

    head: Ids
    middle: Ids
    ending: Ids
    grades: tuple[Ids, ...]

    @cached_property
    def branches(self) -> list[Ids]:
        """What is read behind the ending to see every grade's last token predicted: `[()]` for grades of one token.

        Grades of several tokens give the tokens before their last one, unless these begin another branch.
        """
        inner = {grade[:-1] for grade in self.grades}
        return sorted(ids for ids in inner if not any(ids != other and other[: len(ids)] == ids for other in inner))

    @property
    def size(self) -> int:
        """Tokens beside the row's own."""
        return len(self.head) + len(self.middle) + len(self.ending) + max(map(len, self.branches))


class Rater:
    """One model that grades rows under every rating prompt (token level)."""

    def __init__(self, reader: Reader, texts: Sequence[str], grades: int) -> None:
        self.reader = reader
        self.texts = tuple(texts)
        self.grades = grades
        self.shortened: set[str] = set()
        self._rows: dict[str, tuple[Ids, Ids]] = {}
        self._prefixes: dict[int, Prefix] = {}

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """The rating prompts in this model's tokens. Raises UsageError where its tokenizer cannot tell grades apart."""
        return tuple(make_form(self.reader.wording, self.reader.lm.tokenizer, text, self.grades) for text in self.texts)

    def prepare(self, examples: Examples) -> dict[str, str]:
        """Tokenise prompts and responses; return the reasons of those rows that are too long even with a cut prompt."""
        if not examples:
            return {}
        encode = _encoder(self.reader.lm.tokenizer, special=False)
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

    def rate(self, ids: Sequence[str]) -> tuple[Doubles, int]:
        """Return token scores `(n_rows, r)` and the tokens that were read."""
        chances = np.empty((len(ids), len(self.forms), self.grades))
        tokens = 0
        for group in self._groups:
            forms = [self.forms[number] for number in group]
            if group[0] not in self._prefixes:
                self._prefixes[group[0]] = self.reader.lm.prefix(forms[0].head)
                tokens += len(forms[0].head)
            rows = [self._rows[item] for item in ids]
            bodies = [(*prompt, *forms[0].middle, *response) for prompt, response in rows]
            found, read = self._grade(self._prefixes[group[0]], bodies, forms)
            chances[:, group] = found
            tokens += read
        self.reader.refuse_nan(ids, chances)
        return token_scores(chances), tokens

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
        plain = grade_probabilities(lm, prefix, [(*body, *form.ending) for body in bodies], form)
        try:
            found = shared_probabilities(lm, prefix, bodies, [form, form])
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
            return False
        exact = 1e-4 if str(next(lm.model.parameters()).dtype) == "torch.float32" else 0.05
        return bool(np.allclose(found, plain[:, None], atol=exact, equal_nan=True))

    def _grade(self, prefix: Prefix, bodies: Sequence[Ids], forms: Sequence[Form]) -> tuple[Doubles, int]:
        """Return `P'_k` of bodies under forms that share head and middle, `(n_bodies, r, K)`, and the tokens read."""
        chances = np.empty((len(bodies), len(forms), self.grades))
        budget, before = self.reader.batch_tokens, len(prefix.ids)
        ends = [(*form.ending, *branch) for form in forms for branch in form.branches]
        longest = max(map(len, ends))
        # Keys and values are held once per ending, and take more room than what goes through the model.
        sizes = [len(ends) * (len(body) + longest) for body in bodies]
        for batch in batches(sizes, budget * min(len(forms), 4), len(ends) * before):
            rows = [bodies[index] for index in batch]
            if len(forms) > 1:
                chances[batch] = shared_probabilities(self.reader.lm, prefix, rows, forms)
            else:
                texts = [(*row, *forms[0].ending) for row in rows]
                chances[batch, 0] = grade_probabilities(self.reader.lm, prefix, texts, forms[0])
        again = 0 if prefix.cache is not None else before
        read = sum(map(len, bodies)) + len(bodies) * sum(map(len, ends))
        repeats = sum(map(len, bodies)) * (len(ends) - 1) if len(forms) == 1 else 0
        return chances, read + repeats + again * len(ends) * len(bodies)


def make_form(wording: Wording, tokenizer: Any, text: str, grades: int) -> Form:
    """Put a rating prompt into tokens. Raises UsageError where the grades cannot be told apart.

    Prompt and response are tokenised apart from it, so that its tokens are the same for every row. The tokens that all
    grades begin with (often a lone space) belong to the ending: their probability is common to all and cancels.
    """
    text = text.replace("{best}", str(grades))
    for mark, name in zip(MARKS, ("{prompt}", "{response}"), strict=True):
        text = text.replace(name, mark)
    gap = " "
    if wording.chat:
        text, gap = _as_turn(tokenizer, text), ""
    if [text.count(mark) for mark in MARKS] != [1, 1]:
        raise UsageError("the model's chat template changes the rating prompt; use --template plain")
    head, rest = text.split(MARKS[0])
    middle, ending = rest.split(MARKS[1])
    encode = _encoder(tokenizer, special=wording.chat)
    whole = encode([f"{ending}{gap}{grade}" for grade in range(1, grades + 1)])
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*whole, strict=False)))
    tails = tuple(ids[shared:] for ids in whole)
    unknown = any(tokenizer.unk_token_id in tail for tail in tails) and tokenizer.unk_token_id is not None
    alike = any(a == b[: len(a)] for i, a in enumerate(tails) for j, b in enumerate(tails) if i != j)
    if unknown or alike:
        found = tokenizer.convert_ids_to_tokens(list(whole[0]))[-4:]
        raise UsageError(
            f"this model's tokenizer cannot tell the grades 1 to {grades} apart: behind the rating prompt, 1 reads "
            f"{found}; use another model"
        )
    heads, middles = encode([head, middle])
    return Form((*wording.bos, *heads), middles, whole[0][:shared], tails)


def grade_probabilities(lm: CausalLM, prefix: Prefix, texts: Sequence[Ids], form: Form) -> Doubles:
    """Return `P'_k` of every text behind the prefix, `(n_texts, K)`: the grades' probabilities, normalised over them.

    One pass. For grades of one token, only the last position's K logits matter: the rest of the vocabulary cancels.
    """
    import torch

    before: Ids = () if prefix.cache is not None else prefix.ids
    rows = [(*before, *text, *branch) for text in texts for branch in form.branches]
    starts = [len(row) - len(branch) - 1 for row, branch in zip(rows, form.branches * len(texts), strict=True)]
    with torch.inference_mode():
        cache = prefix.repeated(len(rows))
        logits = _logits(lm, rows, starts, past_key_values=cache, use_cache=cache is not None)
    return _normalised(logits.reshape(len(texts), -1, logits.shape[1]), form)


def shared_probabilities(
    lm: CausalLM, prefix: Prefix, bodies: Sequence[Ids], forms: Sequence[Form]
) -> npt.NDArray[np.float64]:
    """Return `P'_k` as `grade_probabilities` does, `(n_texts, r, K)`, for rating prompts that differ in the ending only.

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
    with torch.inference_mode():
        cache = prefix.repeated(len(bodies))
        cache = lm.model.base_model(
            input_ids=_padded(lm, bodies), past_key_values=cache, use_cache=True
        ).past_key_values
        cache.batch_repeat_interleave(len(ends))
        logits = _logits(
            lm, ends * len(bodies), starts * len(bodies), past_key_values=cache, use_cache=True,
            attention_mask=seen.long().to(lm.device), position_ids=places.to(lm.device),
        )  # fmt: skip
    logits = logits.reshape(len(bodies), -1, logits.shape[1])
    sizes = [sum(len(branch) + 1 for branch in form.branches) for form in forms]
    return np.stack(
        [_normalised(part, form) for part, form in zip(logits.split(sizes, dim=1), forms, strict=True)], axis=1
    )


def _normalised(logits: torch.Tensor, form: Form) -> Doubles:
    """Return the grades' probabilities from the logits behind the ending and every token of every branch."""
    import torch

    if any(len(grade) > 1 for grade in form.grades):
        logits = logits - logits.logsumexp(dim=2, keepdim=True)
    starts = np.cumsum([0, *(len(branch) + 1 for branch in form.branches)])
    chances = []
    for grade in form.grades:
        branch = next(i for i, ids in enumerate(form.branches) if ids[: len(grade) - 1] == grade[:-1])
        at = torch.arange(len(grade), device=logits.device) + int(starts[branch])
        chances.append(logits[:, at, torch.tensor(grade, device=logits.device)].double().sum(dim=1))
    return np.asarray(torch.stack(chances, dim=1).softmax(dim=1).cpu().numpy(), np.float64)


def _logits(lm: CausalLM, rows: Sequence[Ids], starts: Sequence[int], **given: Any) -> torch.Tensor:
    """Return the float32 logits of every row from its position in `starts` on, one row's behind the other's."""
    import torch

    row_at = torch.tensor([i for i, row in enumerate(rows) for _ in range(starts[i], len(row))], device=lm.device)
    at = torch.tensor([place for i, row in enumerate(rows) for place in range(starts[i], len(row))], device=lm.device)
    ids = _padded(lm, rows)
    if not lm._fast_head:
        return torch.as_tensor(lm.model(input_ids=ids, **given).logits[row_at, at].float())
    hidden = lm.model.base_model(input_ids=ids, **given).last_hidden_state[row_at, at]
    head: torch.nn.Module = lm.model.get_output_embeddings()
    return torch.as_tensor(head(hidden).float())


def _padded(lm: CausalLM, rows: Sequence[Ids]) -> torch.Tensor:
    """Return rows padded on the right, which a causal model cannot see."""
    import torch

    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(lm.device)


def _encoder(tokenizer: Any, *, special: bool) -> Callable[[Sequence[str]], list[Ids]]:
    """Return a function from texts to ids. special: control tokens in the text are read as such."""

    def encode(texts: Sequence[str]) -> list[Ids]:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not special,
            return_attention_mask=False,
            verbose=False,
        )
        return [tuple(map(int, ids)) for ids in encoded["input_ids"]]

    return encode


def _as_turn(tokenizer: Any, text: str) -> str:
    try:
        rendered = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:
        # A Jinja template may raise anything.
        raise UsageError(f"the model's chat template refuses a user's turn: {error}; use --template plain") from error
    return rendered.removeprefix(str(tokenizer.bos_token)) if tokenizer.bos_token else rendered
