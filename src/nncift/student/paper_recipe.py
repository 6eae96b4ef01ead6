"""Training the paper's network on labelled pairs (method.md 2).

Two recipes. `paper`: the published settings, raw labels, 20 epochs, no validation. `default`: standardised labels, early
stop on the loss over pairs of held-out items. Both train the factorised network: a batch projects each of its examples
once, and no concatenated pair is ever built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError
from nncift.student.networks import FittedStudent, TrainingData, scaling

LEAST_EPOCHS = 10


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam on the mean squared error.

    patience: epochs without a better validation loss before stopping; None = run all epochs and keep the last weights. updates:
    about how many optimiser steps at most.
    """

    learning_rate: float
    epochs: int
    batch: int
    weight_decay: float = 0.0
    standardise: bool = True
    patience: int | None = None
    updates: int | None = None

    def epochs_over(self, pairs: int) -> int:
        """Return the epochs over so many pairs: fewer where updates are bounded, so that the cost is linear in pairs."""
        if self.updates is None:
            return self.epochs
        return min(self.epochs, max(LEAST_EPOCHS, self.updates // math.ceil(pairs / self.batch)))


RECIPES = {
    "paper": Recipe(learning_rate=1e-4, epochs=20, batch=64, standardise=False),
    "default": Recipe(learning_rate=3e-3, epochs=400, batch=256, weight_decay=1e-3, patience=40, updates=20_000),
}


class PaperNetwork(torch.nn.Module):
    """`v relu(W [e_t ; e_s] + b) + c`, with `W` kept as its two halves (NN-CIFT, InfluenceNetwork)."""

    def __init__(self, target_dim: int, source_dim: int, hidden: int = 100) -> None:
        super().__init__()
        whole = torch.nn.Linear(target_dim + source_dim, hidden)
        output = torch.nn.Linear(hidden, 1)
        # Initialised as the concatenated layer is, then cut: the same distribution as the published network's.
        self.target_weight = torch.nn.Parameter(whole.weight.detach()[:, :target_dim].T.clone())
        self.source_weight = torch.nn.Parameter(whole.weight.detach()[:, target_dim:].T.clone())
        self.hidden_bias = torch.nn.Parameter(whole.bias.detach().clone())
        self.output_weight = torch.nn.Parameter(output.weight.detach()[0].clone())
        self.output_bias = torch.nn.Parameter(output.bias.detach()[0].clone())

    def forward(
        self, targets: torch.Tensor, sources: torch.Tensor, target: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        """Return `(n_pairs,)` outputs for codes into vectors `(n_targets, dim)` and `(n_sources, dim)`."""
        rows, row_of = torch.unique(target, return_inverse=True)
        columns, column_of = torch.unique(source, return_inverse=True)
        a = targets[rows] @ self.target_weight + self.hidden_bias
        b = sources[columns] @ self.source_weight
        hidden = torch.relu(a.index_select(0, row_of) + b.index_select(0, column_of))
        return hidden @ self.output_weight + self.output_bias


def fit(
    training_data: TrainingData,
    *,
    recipe: Recipe,
    seed: int,
    hidden: int = 100,
    advance: Callable[[int], None] = lambda epoch: None,
) -> FittedStudent:
    """Train a network. Pairs without a value are left out.

    Deterministic from the seed on one machine. Raises DataError where no training pair has a value, or where a recipe
    with early stopping has no validation pair.
    """
    train, validation = training_data.known, training_data.validation.present()
    target_vectors, source_vectors = training_data.targets, training_data.sources
    if recipe.patience is not None and not len(validation):
        raise DataError("no validation pair has a label, so early stopping has nothing to watch; use --recipe paper")
    mean, scale = scaling(train.value) if recipe.standardise else (0.0, 1.0)
    targets, sources = (
        torch.from_numpy(np.require(part, requirements="W")) for part in (target_vectors, source_vectors)
    )
    data = _tensors(train, mean, scale)
    held_out = _tensors(validation, mean, scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PaperNetwork(target_vectors.shape[1], source_vectors.shape[1], hidden)
        optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        best, best_epoch, kept = math.inf, 0, _weights(network)
        courses: tuple[list[float], list[float]] = ([], [])
        for epoch in range(recipe.epochs_over(len(train))):
            courses[0].append(_epoch(network, optimiser, targets, sources, data, recipe.batch) * scale**2)
            loss = _loss(network, targets, sources, held_out)
            courses[1].append(loss * scale**2)
            advance(epoch)
            if recipe.patience is None or loss < best:
                best, best_epoch, kept = loss, epoch, _weights(network)
            elif epoch - best_epoch >= recipe.patience:
                break
    course = {
        "epochs": len(courses[0]),
        "best_epoch": best_epoch,
        "train_mse": [_number(loss) for loss in courses[0]],
        "validation_mse": [_number(loss) for loss in courses[1]],
    }
    return FittedStudent(kept, mean, scale, course)


def _epoch(
    network: PaperNetwork,
    optimiser: torch.optim.Optimizer,
    targets: torch.Tensor,
    sources: torch.Tensor,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: int,
) -> float:
    """Train one epoch in a random order; return the mean squared error per pair while it ran."""
    target, source, value = data
    total = 0.0
    for picked in torch.randperm(len(value)).split(batch):
        optimiser.zero_grad(set_to_none=True)
        output = network(targets, sources, target[picked], source[picked])
        loss = torch.nn.functional.mse_loss(output, value[picked])
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(picked)
    return total / len(value)


def _loss(
    network: PaperNetwork,
    targets: torch.Tensor,
    sources: torch.Tensor,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> float:
    if not len(data[2]):
        return math.nan
    with torch.inference_mode():
        return float(torch.nn.functional.mse_loss(network(targets, sources, *data[:2]), data[2]))


def _tensors(pairs: LabelledPairs, mean: float, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    value = torch.from_numpy((pairs.value - np.float32(mean)) / np.float32(scale))
    return torch.from_numpy(pairs.target.astype(np.int64)), torch.from_numpy(pairs.source.astype(np.int64)), value


def _weights(network: torch.nn.Module) -> dict[str, Floats]:
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


def _number(value: float) -> float | None:
    return None if value != value else round(value, 8)
