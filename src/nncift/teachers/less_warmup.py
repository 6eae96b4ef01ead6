"""Warm-up training for LESS: what is trained, the loop, and its checkpoints by parameter name (method.md 3.3).

A small loop of our own: AdamW without decay, a linear schedule, the mean loss of each row over its own response tokens.
Every epoch leaves a checkpoint with the optimiser's state; a loop that was stopped goes on behind the last of them. Features are
taken at those that enough updates lie between: neighbours that hardly differ cost a pass per row each and say the same.
An update is the sum of its rows' gradients, in as many batches as memory asks for: where it runs out, a batch is halved, and rows
and weights of the update stay what they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from nncift.core.result_types import JsonObject
from nncift.core.seeds import derive, shuffled
from nncift.errors import ResourceError, UsageError
from nncift.models.batching import BatchLimit, batches
from nncift.models.causal_lm import Row
from nncift.models.checkpoints import Checkpoint, read_json
from nncift.models.lora import LoraShape, Trainable, seeded
from nncift.models.training_steps import BETAS, CLIP, EPSILON, rate, row_losses
from nncift.storage.atomic import write_sealed

UPDATES_APART = 16
"""Updates between two checkpoints that features are taken at (docs/method.md, section 3.3)."""


ENOUGH_ROWS, ENOUGH_SHARE = 50, 0.015
"""Rows, or share of the pool's where that is more, above which a warm-up takes no more unless its share was given.

Four epochs of 5 % would cost 6.7 % of training on the pool, two thirds of what labels and probe may cost together by default;
four of 1.5 % are 2 %.
"""


@dataclass(frozen=True)
class Recipe:
    """How the warm-up trains. share: of the pool's rows; 0 = none. batch_rows: rows of an update."""

    share: float = 0.05
    epochs: int = 4
    learning_rate: float = 2e-5
    batch_rows: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"the warm-up's share of the pool is between 0 and 1, not {self.share}")
        if self.epochs < 0 or self.batch_rows < 1 or self.learning_rate <= 0:
            raise UsageError("the warm-up needs epochs >= 0, batch_rows >= 1 and a learning rate above 0")

    @property
    def trains(self) -> bool:
        """Whether there is a warm-up at all."""
        return self.share > 0 and self.epochs > 0

    def rows(self, pool: int, *, enough: bool) -> int:
        """Return the warm-up's rows, at least one. enough: no more than a run can pay for (ENOUGH_ROWS)."""
        most = max(ENOUGH_ROWS, round(ENOUGH_SHARE * pool)) if enough else pool
        return max(1, min(round(self.share * pool), most))

    def updates(self, rows: int) -> int:
        """Return the updates of an epoch over some rows."""
        return -(-rows // self.batch_rows)

    def kept(self, rows: int, wanted: int | None = None) -> tuple[int, ...]:
        """Return the epochs, counted from 1, behind which features are taken: the last one, and others at equal distances.

        rows: of the warm-up. wanted: how many; None = as many as leave UPDATES_APART updates between two. Raises UsageError for
        more than there are epochs, or less than one.
        """
        most = self.epochs if self.trains else 1
        if wanted is not None and not 1 <= wanted <= most:
            raise UsageError(
                f"LESS was asked for {wanted} checkpoints, and its warm-up leaves 1 to {most}, one for each epoch; give such a "
                "number, or more epochs"
            )
        if not self.trains:
            return (1,)
        apart = -(-UPDATES_APART // max(1, self.updates(rows))) if wanted is None else self.epochs // wanted
        count = max(1, self.epochs // apart) if wanted is None else wanted
        return tuple(self.epochs - apart * place for place in reversed(range(count)))


def draw(rows: Mapping[str, Row], count: int, seed: int, record: Path | None, key: str) -> list[Row]:
    """Return the rows of the warm-up: those on record under the same key, or so many random ones.

    What is drawn is put on record, where there is a place for it, so that the pool may grow afterwards.
    """
    found = None if record is None else read_json(record)
    if found is None or found["key"] != key:
        drawn = shuffled(rows, seed, "warm-up rows")[:count]
        tokens = [rows[item].record() for item in drawn]
        found = {"key": key, "ids": drawn, "tokens": tokens}
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            # Shards that begin at the same time draw the same rows, and each puts them on record.
            own = record.with_name(f"{record.stem}-{os.getpid()}{record.suffix}")
            write_sealed(own, found)
            os.replace(own, record)
    return [Row(*tokens) for tokens in found["tokens"]]


@dataclass(frozen=True)
class _Loop:
    """A warm-up. fits: of training alone, which takes more memory than any other pass."""

    trainable: Trainable
    rows: Sequence[Row]
    recipe: Recipe
    seed: int
    batch_tokens: int
    fits: BatchLimit = field(default_factory=BatchLimit)


def train(
    trainable: Trainable,
    rows: Sequence[Row],
    recipe: Recipe,
    *,
    seed: int,
    batch_tokens: int,
    folder: Path | None,
    key: str,
) -> list[Checkpoint]:
    """Train and return one checkpoint per epoch (the model as it is without a warm-up); those in `folder` with `key` are taken.

    Raises torch.OutOfMemoryError where one row alone does not fit into memory.
    """
    start = Checkpoint(trainable.snapshot())
    if not recipe.trains:
        return [start]
    if not rows:
        raise UsageError("LESS has no rows to warm up on: prepare a pool first")
    found: list[Checkpoint] = []
    loop = _Loop(trainable, rows, recipe, seed, batch_tokens)
    for epoch in range(recipe.epochs):
        path = None if folder is None else folder / f"checkpoint-{epoch + 1}"
        done = Checkpoint.load(path, key) if path is not None else None
        if done is None:
            done = _epoch(loop, found[-1] if found else start, epoch)
            if path is not None:
                done.save(path, key)
        found.append(done)
    trainable.load(start.weights)
    return found


def thinned(every: Sequence[Checkpoint], epochs: Sequence[int]) -> list[Checkpoint]:
    """Return the checkpoints behind some epochs (from 1, rising), each with the mean learning rate since the one before it."""
    starts = (0, *epochs[:-1])
    return [
        replace(every[end - 1], learning_rate=fmean(each.learning_rate for each in every[start:end]))
        for start, end in zip(starts, epochs, strict=True)
    ]


def _epoch(loop: _Loop, before: Checkpoint, epoch: int) -> Checkpoint:
    import torch

    trainable, rows, recipe, seed = loop.trainable, loop.rows, loop.recipe, loop.seed
    model, parameters = trainable.model, trainable.parameters
    order = [int(place) for place in shuffled(map(str, range(len(rows))), seed, "warm-up", str(epoch))]
    updates = [order[at : at + recipe.batch_rows] for at in range(0, len(order), recipe.batch_rows)]
    rates = [
        recipe.learning_rate * rate(epoch * len(updates) + at, recipe.epochs * len(updates))
        for at in range(len(updates))
    ]
    with trainable.at(before.weights), seeded(model, derive(seed, "warm-up", str(epoch))):
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=recipe.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0
        )
        for name, value in parameters.items():
            value.requires_grad_(True)
            if name in before.first:
                carried = {"exp_avg": before.first[name], "exp_avg_sq": before.second[name]}
                optimizer.state[value] = {"step": torch.tensor(float(before.step))} | {
                    part: moment.to(value.device, value.dtype, copy=True) for part, moment in carried.items()
                }
        model.train()
        try:
            for now, update in zip(rates, updates, strict=True):
                optimizer.param_groups[0]["lr"] = now
                own = [rows[place] for place in update]
                for batch in batches(list(map(len, own)), loop.batch_tokens):
                    loop.fits.run(
                        [own[place] for place in batch], len, partial(_add_gradients, trainable, 1 / len(own))
                    )
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        finally:
            model.eval().requires_grad_(False)
        state = {name: optimizer.state.get(value, {}) for name, value in parameters.items()}
        moments = [
            {name: own[part].to("cpu", copy=True) for name, own in state.items() if own}
            for part in ("exp_avg", "exp_avg_sq")
        ]
        weights = trainable.snapshot()
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ResourceError(
            f"the warm-up of LESS diverged in epoch {epoch + 1}: weights are no longer numbers; lower its learning rate"
        )
    return Checkpoint(weights, sum(rates) / len(rates), before.step + len(updates), *moments)


def _add_gradients(trainable: Trainable, weight: float, rows: Sequence[Row]) -> Sequence[Row]:
    """Add the gradient of the rows' losses, times a weight, to the parameters'; nothing is added where memory runs out."""
    import torch

    parameters = list(trainable.parameters.values())
    losses = row_losses(trainable.model, rows, parameters[0].device)
    found = torch.autograd.grad(losses.sum() * weight, parameters, allow_unused=True)
    for value, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            value.grad = gradient if value.grad is None else value.grad.add_(gradient)
    return rows


def try_gradient(trainable: Trainable, rows: Sequence[Row], batch_tokens: int) -> None:
    """Compute the gradient that an update on rows would take, and leave weights and gradients as they are."""
    parameters = list(trainable.parameters.values())
    for value in parameters:
        value.requires_grad_(True)
    trainable.model.train()
    try:
        for batch in batches(list(map(len, rows)), batch_tokens):
            _add_gradients(trainable, 1 / len(rows), [rows[place] for place in batch])
    finally:
        trainable.model.eval().requires_grad_(False)
        for value in parameters:
            value.grad = None


def describe_warmup(recipe: Recipe, shape: LoraShape | None) -> JsonObject:
    """Return what decides the warm-up, for fingerprints."""
    return {
        "recipe": asdict(recipe),
        "lora": None if shape is None else asdict(shape),
        "optimizer": [*BETAS, EPSILON, CLIP],
    }
