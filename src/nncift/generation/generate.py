"""Greedy answers of a model to test prompts, many at once and each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.data.examples import Example, Examples
from nncift.errors import DataError, UsageError
from nncift.generation.prompts import InFrontOf, Prompts, reason
from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to a test item.

    prompt, reference: the item's own, as text. text: the answer without special tokens; None where there is none, and then
    `failure` says why. ended: whether the model ended it, rather than the limit on new tokens or the context.
    """

    id: str
    prompt: str
    reference: str
    text: str | None
    failure: str | None = None
    ended: bool = True


def generate(
    lm: CausalLM,
    examples: Examples,
    wording: PromptFormat,
    *,
    max_new_tokens: int = 150,
    before: InFrontOf | None = None,
    batch_tokens: int = 8192,
) -> list[Answer]:
    """Return the greedy answer to every example's prompt, in the examples' order; the responses are not shown.

    max_new_tokens: most tokens of an answer, fewer where the context ends sooner. before: by id, examples in front.
    batch_tokens: tokens that are held at once, prompts and answers, padding included. Prompts of several lengths share a
    batch where the architecture gives the same logits behind padding, which is tried; else a batch has one length. In float32
    an answer is the one that its prompt would get alone, except where two tokens are tied within rounding; `batch_tokens=1`
    reads every prompt alone. The model's own sampling settings are left aside. A prompt that leaves no room for a token is an
    answer with a failure.
    Raises UsageError for fewer than one new token.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is at least 1, not {max_new_tokens}")
    prompts = Prompts(lm, wording, before)
    rows: dict[str, Ids] = {}
    failures: dict[str, str] = {}
    for example in examples:
        try:
            rows[example.id] = tuple(prompts.row(example, room=1).prompt)
        except DataError as error:
            failures[example.id] = reason(error)
    ids = list(rows)
    writer = _Writer(lm, wording)
    found: dict[str, Ids] = {}
    for batch in writer.batches([len(rows[item]) for item in ids], max_new_tokens, batch_tokens):
        here = [ids[index] for index in batch]
        limit = min(max_new_tokens, lm.context - max(len(rows[item]) for item in here))
        found.update(zip(here, writer.write([rows[item] for item in here], limit), strict=True))
    return [_answer(example, found.get(example.id), failures, writer) for example in examples]


def writing_steps(
    lm: CausalLM, wording: PromptFormat, lengths: Sequence[int], new: int, batch_tokens: int = 8192
) -> int:
    """Return the steps of `generate` for prompts of these lengths, where every answer is as long as it may be."""
    found = _Writer(lm, wording).batches(lengths, new, batch_tokens)
    return sum(max(0, min(new, lm.context - max(lengths[place] for place in batch))) for batch in found)


def _answer(example: Example, ids: Ids | None, failures: dict[str, str], writer: _Writer) -> Answer:
    if ids is None:
        return Answer(example.id, example.prompt, example.response, None, failures[example.id], ended=False)
    text, ended = writer.read(ids)
    return Answer(example.id, example.prompt, example.response, text, ended=ended)


class _Writer:
    """A model that continues prompts greedily, and knows where its answers end."""

    def __init__(self, lm: CausalLM, wording: PromptFormat) -> None:
        self.lm, self.wording = lm, wording
        own = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
        ends = [own] if isinstance(own, int) else list(own or ())
        mark = wording.end if wording.chat else ()
        # An end mark of several tokens is cut off afterwards: the model cannot be stopped by a single one of them.
        self.stops = sorted({*ends, *wording.eos, *(mark if len(mark) == 1 else ())})
        self.padding_is_exact = self._try_padding()

    def batches(self, lengths: Sequence[int], new: int, batch_tokens: int) -> list[list[int]]:
        """Cut positions into batches of at most `batch_tokens`, answers included; of one length each where padding is felt."""
        # A longer prompt leaves less of the context, and must not take it from a shorter one beside it.
        room = [min(new, self.lm.context - length) for length in lengths]
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault(room[index] if self.padding_is_exact else length, []).append(index)
        return [
            [group[place] for place in batch]
            for group in groups.values()
            for batch in batches([lengths[index] + new for index in group], batch_tokens)
        ]

    def write(self, prompts: Sequence[Ids], new: int) -> list[Ids]:
        """Return the tokens that follow each prompt, up to `new`, with the token that ended them if one did."""
        import torch

        try:
            made = self._continue(prompts, new, self.stops)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            half = len(prompts) // 2
            return [*self.write(prompts[:half], new), *self.write(prompts[half:], new)]
        width = max(map(len, prompts))
        return [self._to_stop(row) for row in made.sequences[:, width:].tolist()]

    def read(self, ids: Ids) -> tuple[str, bool]:
        """Return the text of an answer's tokens, and whether the model ended it."""
        end = self._end_mark(ids)
        ended = end is not None or (bool(ids) and ids[-1] in self.stops)
        kept = ids[:end]
        if kept and kept[-1] in self.stops:
            kept = kept[:-1]
        mark = self.wording.end
        if mark and kept[-len(mark) :] == mark:
            kept = kept[: -len(mark)]
        return str(self.lm.tokenizer.decode(list(kept), skip_special_tokens=True)), ended

    def _end_mark(self, ids: Ids) -> int | None:
        """Return where a chat template's end mark begins, None where there is none."""
        # What a plain template puts behind a response may be mere text, such as a full stop, which ends nothing.
        mark = self.wording.end if self.wording.chat else ()
        places = (at for at in range(len(ids) - len(mark) + 1) if mark and ids[at : at + len(mark)] == mark)
        return next(places, None)

    def _to_stop(self, ids: Sequence[int]) -> Ids:
        end = next((at + 1 for at, token in enumerate(ids) if token in self.stops), len(ids))
        return tuple(ids[:end])

    def _continue(self, prompts: Sequence[Ids], new: int, stops: Sequence[int], logits: bool = False) -> Any:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(prompts):
            ids[index, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[index, width - len(prompt) :] = 1
        self.lm._check_known(ids)
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=new,
            eos_token_id=list(stops) or None,
            pad_token_id=stops[0] if stops else 0,
            return_dict_in_generate=True,
            output_logits=logits,
        )
        with torch.inference_mode(), self.lm._threads(), _without_habits(self.lm.model):
            return self.lm.model.generate(  # type: ignore[operator]
                input_ids=ids.to(self.lm.device), attention_mask=mask.to(self.lm.device), generation_config=greedy
            )

    def _try_padding(self) -> bool:
        """Compare the logits of a short prompt beside a long one with those it has alone."""
        size = int(self.lm.model.config.get_text_config().vocab_size)
        long = tuple((7 * k + 3) % size for k in range(9))
        try:
            alone, beside = (
                np.stack([step[-1].float().cpu().numpy() for step in self._continue(rows, 2, (), logits=True).logits])
                for rows in ([long[4:]], [long, long[4:]])
            )
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError, IndexError):
            return False
        return self.lm._close(alone, beside)


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Set aside what a model's own generation settings would add: a penalty for repetition, forbidden words, a least length."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = [(part, part.generation_config) for part in dict.fromkeys((model, inner))]
    for part, _ in before:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, habits in before:
            part.generation_config = habits
