"""Networks of other depths and widths on the labels of one run: the paper's study of its student's size (method.md 6).

The paper names 46 configurations, one to five hidden layers of 5 to 5,000 units, and not which; these are ours, equal widths
in all layers. Input is `[e_t ; e_s]`, training as published (`student.fit`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive
from nncift.evaluation.metrics import r2, spearman
from nncift.labels.vectors import VectorFiles
from nncift.runs.finished import FinishedRun
from nncift.student.paper_recipe import RECIPES
from nncift.studies.grid import Analysis
from nncift.studies.workspace import Workshop

WIDTHS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
DEPTHS = (1, 2, 3, 4, 5)
DEEP_WIDTHS = WIDTHS[:8]
CONFIGURATIONS: tuple[tuple[int, ...], ...] = tuple(
    (width,) * depth for depth in DEPTHS for width in (WIDTHS if depth <= 3 else DEEP_WIDTHS)
)
"""46 of them: ten widths for one to three layers, the eight smaller ones for four and five."""


def layers(shop: Workshop, analysis: Analysis, seeds: range) -> list[dict[str, Any]]:
    """Return one record per configuration and seed: parameters, seconds, and MSE, R^2 and Spearman on unseen items (q4).

    option widest: networks with wider layers are left out, and told as such.
    """
    widest = int(analysis.options.get("widest", WIDTHS[-1]))
    found: list[dict[str, Any]] = []
    todo = [shape for shape in CONFIGURATIONS if shape[0] <= widest]
    found += [{"shape": list(shape), "left_out": True} for shape in CONFIGURATIONS if shape[0] > widest]
    with shop.progress(f"{analysis.name}: networks", len(todo) * len(seeds)) as advance:
        for seed in seeds:
            run = shop.run(shop.settings(analysis, {}, seed))
            for shape in todo:
                key = {"run": analysis.run, "shape": list(shape), "seed": seed}
                found.append(shop.cell(analysis, key, partial(_measured, run, shape, seed)))
                advance(1)
    return found


def _measured(run: FinishedRun, shape: Sequence[int], seed: int) -> dict[str, Any]:
    labels = run.labels
    vectors = VectorFiles(run.path).on(labels["train"].target_ids, labels["train"].source_ids)
    train, test = labels["train"].present(), labels["test"].present()
    began = time.perf_counter()
    output, parameters = learned(shape, train, test, vectors.targets, vectors.sources, derive(seed, "layers"))
    guess = output.astype(np.float64)
    truth, once = test.value.astype(np.float64), np.ones(len(test))
    return {
        "parameters": parameters,
        "seconds": round(time.perf_counter() - began, 2),
        "labels": len(train),
        "mse": float(np.mean((truth - guess) ** 2)),
        "r2": _number(r2(truth, guess, float(train.value.mean(dtype=np.float64)), once)),
        "spearman": _number(spearman(truth, guess, once)),
    }


def learned(
    shape: Sequence[int], train: LabelledPairs, test: LabelledPairs, targets: Floats, sources: Floats, seed: int
) -> tuple[Floats, int]:
    """Train a network with these hidden layers by the published recipe; return its predictions of `test`, and its parameters."""
    import torch

    recipe = RECIPES["paper"]
    across, along = (torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in (targets, sources))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [across.shape[1] + along.shape[1], *shape, 1]
        steps: list[torch.nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            steps += [torch.nn.Linear(into, out), torch.nn.ReLU()]
        network = torch.nn.Sequential(*steps[:-1])
        optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        target, source = (torch.from_numpy(codes.astype(np.int64)) for codes in (train.target, train.source))
        value = torch.from_numpy(train.value)
        for _ in range(recipe.epochs):
            for picked in torch.randperm(len(value)).split(recipe.batch):
                optimiser.zero_grad(set_to_none=True)
                pair = torch.cat([across[target[picked]], along[source[picked]]], dim=1)
                torch.nn.functional.mse_loss(network(pair)[:, 0], value[picked]).backward()
                optimiser.step()
        with torch.inference_mode():
            pair = torch.cat([across[test.target.astype(np.int64)], along[test.source.astype(np.int64)]], dim=1)
            guess = network(pair)[:, 0].numpy()
    return guess, sum(parameter.numel() for parameter in network.parameters())


def _number(value: Any) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None
