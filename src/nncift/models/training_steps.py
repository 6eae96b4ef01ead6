"""What all training of a language model shares: each row's loss, the schedule of the learning rate, AdamW's constants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nncift.models.causal_lm import Row
from nncift.models.model_parts import last_hidden_states

if TYPE_CHECKING:
    import torch
    from torch import nn

BETAS, EPSILON = (0.9, 0.999), 1e-8
CLIP = 1.0
"""Largest norm of an update's gradient."""
WARMING = 0.03
"""Share of the updates during which the learning rate rises."""
IGNORED = -100
"""Stands where a row has no response token."""

RowLoss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""From logits `(n_rows, longest, vocabulary)` at the places that predict response tokens, and these tokens `(n_rows, longest)`,
IGNORED behind the end of a response, to every row's loss `(n_rows,)`."""


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step from 0: up over the first 3 % of all, then down in a line, never 0."""
    rise = int(WARMING * steps)
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)


def mean_loss(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Return every row's mean negative log-likelihood over its own response tokens, `(n,)` float32; a `RowLoss`."""
    import torch
    from torch.nn.functional import cross_entropy

    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = cross_entropy(logits.to(exact).flatten(0, 1), gold.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(gold.shape).sum(1) / (gold != IGNORED).sum(1)


def row_losses(
    model: nn.Module,
    rows: Sequence[Row],
    device: torch.device,
    *,
    head_is_last: bool = False,
    loss: RowLoss = mean_loss,
) -> torch.Tensor:
    """Return every row's loss, by default the mean negative log-likelihood over its own response tokens, `(n,)` float32.

    Rows are padded on the right, which a causal model cannot see. Every row needs a token before its response.
    head_is_last: logits are computed where a response token is due and nowhere else; right where nothing follows the
    output embeddings (`CausalLM.head_is_last`).
    """
    import torch

    width, longest = max(map(len, rows)), max(len(row.counted) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    places = torch.zeros((len(rows), longest), dtype=torch.long)
    gold = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor([*row.prompt, *row.response])
        own = len(row.counted)
        places[index, :own] = torch.from_numpy(row.places)
        gold[index, :own] = torch.tensor(row.gold)
    ids, places, gold = ids.to(device), places.to(device), gold.to(device)
    each = torch.arange(len(rows), device=device)[:, None]
    if head_is_last:
        hidden = last_hidden_states(model, input_ids=ids, use_cache=False)
        logits = _head(model)(hidden[each.to(hidden.device), places.to(hidden.device)])
    else:
        logits = _some_logits(model, rows, ids, each, places)
    return loss(logits, gold.to(logits.device))


def _some_logits(
    model: nn.Module, rows: Sequence[Row], ids: torch.Tensor, each: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Return logits at places `(n, places, vocabulary)` from the model's plain pass, which may leave out what comes first."""
    kept = ids.shape[1] - min(len(row.prompt) for row in rows) + 1
    shorter = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **shorter).logits
    skipped = ids.shape[1] - logits.shape[1]
    return logits[each.to(logits.device), (places - skipped).clamp(min=0).to(logits.device)]


def _head(model: Any) -> Any:
    return model.get_output_embeddings()
