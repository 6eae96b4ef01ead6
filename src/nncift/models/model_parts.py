"""Parts of a causal model by what they give: its body, the width of its last hidden states, and whether it is causal at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.errors import ResourceError

if TYPE_CHECKING:
    import torch

ALTERED = 4
"""Tokens at the end of a sequence that are exchanged to see whether earlier ones notice."""


def body_of(model: Any) -> Any:
    """Return the part whose last hidden states the head reads.

    That is transformers' `base_model`, except where an architecture names none and this is the model itself (Llama 4's text
    model): then it is the one part that is a model of its own.
    """
    from transformers import PreTrainedModel

    if model.base_model is not model:
        return model.base_model
    inner = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    return inner[0] if len(inner) == 1 else model


def last_hidden_states(model: Any, **given: Any) -> torch.Tensor:
    """Return the last hidden states `(n_rows, width, hidden)` of a pass. Raises ResourceError where they are not shown."""
    return states_of(body_of(model)(**given), model)


def states_of(output: Any, model: Any) -> torch.Tensor:
    """Return the last hidden states in what a model's body gave. Raises ResourceError where they are not shown."""
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        raise ResourceError(
            f"the model {type(model).__name__} does not show its last hidden states, which probes, `--encoder lm` and the "
            "teacher rds read; use another model for these, or a teacher that reads probabilities alone"
        )
    found: torch.Tensor = states
    return found


def additions_of(output: Any, layers: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return what some layers of a body added to the states, `(n_layers, n_rows, width, hidden)`, from a pass that shows them."""
    if not layers:
        return np.zeros((0, *output.last_hidden_state.shape[:2], 0), np.float32)
    states = output.hidden_states
    return np.stack([(states[layer + 1].float() - states[layer].float()).cpu().numpy() for layer in layers])


def check_causal(
    name: str,
    tokens: Sequence[int],
    score: Callable[[Sequence[Sequence[int]]], list[Floats]],
    same: Callable[[Floats, Floats], bool],
    close: Callable[[Floats, Floats], bool],
) -> None:
    """Raise ResourceError where what a model says of a token depends on later tokens or on the sequence beside it.

    Encoders with a head for masked tokens load as causal models and read both ways: their values would mean nothing.
    tokens: of a sequence. score: returns, for every sequence of a batch padded on the right, the log-probabilities of all but its
    first token. same, close: tell whether two such arrays agree within the precision of the model: of passes of one shape, and of
    passes of different shapes.
    """
    vocabulary = sorted(set(tokens))
    exchanged = {token: vocabulary[(at + 1) % len(vocabulary)] for at, token in enumerate(vocabulary)}
    other = [*tokens[:-ALTERED], *(exchanged[token] for token in tokens[-ALTERED:])]
    (plain,), (altered,) = score([tokens]), score([other])
    if not same(plain[:-ALTERED], altered[:-ALTERED]):
        raise ResourceError(
            f"the model {name!r} reads what comes after a token: other tokens at the end of a sequence change what it says of "
            "earlier ones. Expected a causal language model; encoders with a head for masked tokens (BERT, RoBERTa) are none"
        )
    short, rest = tokens[: len(tokens) // 2], [exchanged[token] for token in tokens]
    (alone,), (beside, _), (again, _) = score([short]), score([short, other]), score([short, rest])
    if not (same(beside, again) and close(alone, beside)):
        raise ResourceError(
            f"the model {name!r} reads the sequence beside: a longer one in the batch changes what it says of a shorter one. "
            "Expected a causal language model whose padding on the right is not seen"
        )
