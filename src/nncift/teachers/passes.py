"""What goes through the model at once in LESS, and each row's own loss (method.md 3.3)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nncift.lm import Row

if TYPE_CHECKING:
    import torch
    from torch import nn


def batches(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Return positions of rows, sorted by length, in batches of at most `batch_tokens` padded tokens."""
    found: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda position: (len(rows[position]), position)):
        if not found or (len(found[-1]) + 1) * len(rows[index]) > batch_tokens:
            found.append([])
        found[-1].append(index)
    return found


def row_losses(model: nn.Module, rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Return every row's mean negative log-likelihood over its own response tokens, `(n,)` float32.

    Rows are padded on the right, which a causal model cannot see. Every row needs a token before its response.
    """
    import torch
    from torch.nn.functional import cross_entropy

    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor([*row.prompt, *row.response])
    kept = width - min(len(row.prompt) for row in rows) + 1
    shorter = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids.to(device), use_cache=False, **shorter).logits
    skipped = width - logits.shape[1]
    at = [
        (index, position - 1 - skipped)
        for index, row in enumerate(rows)
        for position in range(len(row.prompt), len(row))
    ]
    at_row, at_position = torch.tensor(at, device=device).unbind(1)
    gold = torch.tensor([token for row in rows for token in row.response], device=device)
    exact = torch.promote_types(logits.dtype, torch.float32)
    losses = cross_entropy(logits[at_row, at_position].to(exact), gold, reduction="none")
    return torch.stack([part.mean() for part in losses.split([len(row.response) for row in rows])])
