"""How likely a model finds the given responses: loss per response token, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Examples
from nncift.errors import DataError
from nncift.generation.prompts import InFrontOf, Prompts, log_probabilities, reason
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import PromptFormat

NO_NUMBER = "the model gave no number; its weights may be damaged, or the precision too low"


@dataclass(frozen=True)
class Losses:
    """Losses of test items, in the items' order.

    loss: mean negative log-probability of a response token, in nats, `(n,)`; NaN where the item could not be read.
    tokens: response tokens behind each loss, the end of sequence among them, `(n,)`; 0 where there is no loss.
    failures: by id, why there is none.
    """

    ids: tuple[str, ...]
    loss: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    failures: Mapping[str, str] = field(default_factory=dict)


def response_losses(
    lm: CausalLM,
    examples: Examples,
    wording: PromptFormat,
    before: InFrontOf | None = None,
    *,
    batch_tokens: int = 2048,
) -> Losses:
    """Return the loss of every example's response, teacher-forced, given its prompt and what stands in front of it.

    before: by id, examples in front (`few_shot.examples_in_front`). batch_tokens: tokens of one forward pass, padding
    included. An item that cannot be worded or does not fit into the context has no loss, and its reason is kept.
    """
    prompts = Prompts(lm, wording, before)
    rows: dict[str, Row] = {}
    failures: dict[str, str] = {}
    for example in examples:
        try:
            rows[example.id] = prompts.row(example)
        except DataError as error:
            failures[example.id] = reason(error)
    logs = log_probabilities(lm, rows, batch_tokens)
    found = {item: -float(np.mean(values, dtype=np.float64)) for item, values in logs.items()}
    failures |= dict.fromkeys((item for item, value in found.items() if not math.isfinite(value)), NO_NUMBER)
    read = [item not in failures for item in examples.ids]
    return Losses(
        examples.ids,
        np.array([found[item] if ok else np.nan for item, ok in zip(examples.ids, read, strict=True)], np.float64),
        np.array([len(rows[item].counted) if ok else 0 for item, ok in zip(examples.ids, read, strict=True)], np.int64),
        failures,
    )


def perplexity(losses: Losses) -> float:
    """Return exp of the mean loss over all response tokens of the items that were read; NaN where none was."""
    read = losses.tokens > 0
    if not read.any():
        return math.nan
    return float(np.exp(np.average(losses.loss[read], weights=losses.tokens[read])))
