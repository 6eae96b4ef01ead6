"""Supervised tuning of one model on many subsets: the loss is that of the response alone, and padding carries none.

A plain loop: AdamW without decay, a rise and a straight fall of the learning rate, clipped gradients. One model serves all
subsets: before each it is what it was. Where memory runs out, a step is summed up from smaller passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from nncift.core.result_types import JsonObject
from nncift.core.seeds import derive
from nncift.data import Example, Examples
from nncift.errors import DataError, ResourceError, UsageError
from nncift.finetune.batch_schedule import BatchSchedule
from nncift.models.batching import batches, free_cache, is_out_of_memory
from nncift.models.causal_lm import SMALL, CausalLM, Row
from nncift.models.lora import LoraShape, Trainable, linear_modules, seeded
from nncift.models.merged_training import MergedTraining
from nncift.models.prompt_format import PromptFormat, Remarks, Tokens
from nncift.models.training_steps import BETAS, CLIP, EPSILON, rate, row_losses

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Method = Literal["whole", "lora", "qlora"]


@dataclass(frozen=True)
class Recipe:
    """How a subset is trained on.

    method: whole = every parameter, lora = matrices on all linear layers, qlora = the same on a model in NF4. batch: rows of an
    optimiser step. epochs: passes over the run's own selection, which set the measure for all arms; steps: given instead.
    batch_tokens: padded tokens of one pass; a step of more is summed up from several, which changes rounding alone.
    """

    method: Method
    learning_rate: float
    batch: int
    epochs: float
    steps: int | None = None
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.05
    batch_tokens: int = 4096

    def describe(self) -> JsonObject:
        """Return what decides the weights, for fingerprints; the measure shows in the schedule."""
        record = {name: value for name, value in asdict(self).items() if name not in ("epochs", "steps")}
        if self.method == "whole":
            record = {name: value for name, value in record.items() if name not in ("rank", "alpha", "dropout")}
        return {**record, "optimizer": [*BETAS, EPSILON, CLIP]}


class Defaults(NamedTuple):
    """Learning rate, rows of an optimiser step and passes over the run's selection, where none is given."""

    learning_rate: float
    batch: int
    epochs: float


PAPER = Defaults(2e-4, 4, 3.0)
"""The fine-tuning of NN-CIFT (arXiv 2502.09969): QLoRA with r = 8, alpha = 16, dropout 0.05 on all linear layers."""
WHOLE = Defaults(2e-5, 16, 3.0)
TINY = Defaults(1e-3, 4, 5.0)
"""Models of a few million parameters learn nothing in three epochs of a few hundred rows (docs/tune.md)."""

SECOND = {"whole": 3.0, "lora": 5.0, "qlora": 5.0}
"""By method: the second learning rate of a comparison, as a multiple of the first. A small subset may want a higher one."""


class DivergedError(ResourceError):
    """Training at this learning rate ends in weights that are no numbers."""


def method_of(wanted: str, parameters: int) -> Method:
    """Return the method that `auto` stands for, or the one that was named."""
    if wanted == "auto":
        return "whole" if parameters < SMALL else "lora"
    if wanted not in ("whole", "lora", "qlora"):
        raise UsageError(f"--method {wanted!r} was given; expected auto, lora, qlora or whole")
    return wanted  # type: ignore[return-value]


def defaults(method: Method, parameters: int) -> Defaults:
    """Return learning rate, rows of a step and epochs for a method and a size."""
    if method != "whole":
        return PAPER
    return TINY if parameters < SMALL else WHOLE


@dataclass(frozen=True)
class TrainingSets:
    """Rows as the model reads them in training, by id.

    shortened: their prompt's start was cut. unusable: id -> reason. notes: sentences on the others.
    """

    rows: Mapping[str, Row]
    shortened: tuple[str, ...]
    unusable: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, examples: Examples, wording: PromptFormat, context: int) -> TrainingSets:
        """Tokenise rows: what every sequence begins with, the prompt, the response with its end of sequence.

        Too long: characters are cut from the prompt's start, never from the response (method.md 3.1); a row whose response
        alone does not fit is unusable.
        """
        rows, shortened, unusable, remarks = {}, [], {}, Remarks()
        for example in examples:
            try:
                tokens, cut = _within(example, wording, context - len(wording.bos))
                row = tokens.row(wording.bos)
                if not row.prompt or not row.response:
                    raise DataError("no tokens: its prompt or its response is empty under this template")
            except DataError as error:
                unusable[example.id] = " ".join(str(error).split())
                continue
            rows[example.id] = row
            remarks.add(example, tokens)
            if cut:
                shortened.append(example.id)
        return cls(rows, tuple(shortened), unusable, remarks.notes("rows of the pool"))

    def lengths(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the tokens of those rows that can be used."""
        return {item: len(self.rows[item]) for item in ids if item in self.rows}


def _within(example: Example, wording: PromptFormat, limit: int) -> tuple[Tokens, bool]:
    """Return a row's tokens, at most `limit`, and whether its prompt was cut. Raises DataError where its response is too long."""
    tokens = wording.tokens(example)
    if len(tokens) <= limit:
        return tokens, False
    room = limit
    while len(tokens) > limit:
        kept = wording.shortened(example, room)
        before, tokens = len(tokens), wording.tokens(kept)
        # Prompt and response are tokenised apart here and together there, which may differ by a few tokens.
        room -= max(1, len(tokens) - limit)
        if len(tokens) > limit and (len(tokens) == before or room < 1):
            raise DataError(f"too long: its response leaves no room for a prompt in {limit} tokens")
    return tokens, True


class FineTuner:
    """The model that is tuned again and again; outside `trained` it is the untouched model."""

    def __init__(self, lm: CausalLM, recipe: Recipe) -> None:
        self.lm = lm
        self.recipe = recipe
        if recipe.method == "whole":
            self._trainable = Trainable.whole(lm.model)
        else:
            shape = LoraShape(recipe.rank, recipe.alpha, recipe.dropout, linear_modules(lm.model))
            self._trainable = Trainable.with_lora(lm.model, shape, 0)
        self._start = self._trainable.snapshot()
        self._merged = None if recipe.dropout else MergedTraining.of(self._trainable)
        self._most = recipe.batch_tokens

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self._trainable.parameters.values())

    @contextmanager
    def trained(
        self, rows: Mapping[str, Row], schedule: BatchSchedule, seed: int, learning_rate: float | None = None
    ) -> Iterator[list[float]]:
        """Train by a schedule; inside, the model is the tuned one. Gives the training loss of every step.

        learning_rate: in the place of the recipe's. Raises DivergedError where the weights stop being numbers, ResourceError if
        memory runs out.
        """
        trainable, highest = self._trainable, learning_rate or self.recipe.learning_rate
        updates = [[rows[item] for item in update] for update in schedule.updates]
        try:
            with trainable.at(self._start):
                trainable.renew(derive(seed, "tune", "lora"))
                losses = self._train(updates, seed, highest)
                if self.recipe.method == "whole":
                    yield losses
                    return
                tuned = trainable.snapshot()
            # The adapters' own path would cost every judged token more.
            with trainable.merged_at(tuned):
                yield losses
        finally:
            trainable.load(self._start)

    def _train(self, updates: Sequence[Sequence[Row]], seed: int, highest: float) -> list[float]:
        import torch

        model = self.lm.model
        values = list(self._trainable.parameters.values())
        losses = []
        with seeded(model, derive(seed, "tune", "dropout")), self.lm._threads():
            for value in values:
                value.requires_grad_(True)
            optimizer = torch.optim.AdamW(
                values,
                lr=highest,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=0.0,
                # One kernel over all weights: a tenth less time where they are many and small.
                fused=self.lm.device.type in ("cpu", "cuda"),
            )
            model.train()
            try:
                with nullcontext() if self._merged is None else self._merged.inside():
                    for step, update in enumerate(updates):
                        optimizer.param_groups[0]["lr"] = highest * rate(step, len(updates))
                        losses.append(self._update(update, optimizer, values))
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"training on one row does not fit into the memory of {self.lm.device}; try --method qlora or a smaller "
                    "--context"
                ) from error
            finally:
                model.eval().requires_grad_(False)
                optimizer.zero_grad(set_to_none=True)
        return losses

    def _update(self, update: Sequence[Row], optimizer: torch.optim.Optimizer, values: Sequence[torch.Tensor]) -> float:
        """Take one step on the mean loss over all response tokens of its rows, and return that loss."""
        import torch

        loss = self._gradients(update, values)
        norm = torch.nn.utils.clip_grad_norm_(values, CLIP)
        if not bool(torch.isfinite(norm)):
            used = float(optimizer.param_groups[0]["lr"])
            raise DivergedError(
                f"training diverged: the loss is {loss:.3g} and its gradient no number; lower --learning-rate "
                f"({used:g} was used in this step)"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._merged is not None:
            self._merged.renew()
        return loss

    def _gradients(self, update: Sequence[Row], values: Sequence[torch.Tensor]) -> float:
        """Leave the gradient of a step's loss in the weights, and return the loss.

        Passes have at most `_most` padded tokens. Where one does not fit into memory that is halved for good, and the step begins
        again: a pass that ran out may have left a part of its gradient, and a second copy to sum into is dear where all train.
        """
        total = sum(len(row.counted) for row in update)
        while True:
            together = batches(list(map(len, update)), self._most, limit=self.lm.padding_limit)
            parts = [[update[place] for place in places] for places in together]
            try:
                return sum(self._pass(part, total) for part in parts)
            except (MemoryError, RuntimeError) as error:
                if all(len(part) == 1 for part in parts) or not is_out_of_memory(error):
                    raise
            # Only now: while the error is handled, its frames hold the pass's memory.
            for value in values:
                value.grad = None
            size = max(len(part) * max(map(len, part)) for part in parts if len(part) > 1)
            self._most = size // 2
            log.warning(
                "a training pass of %d tokens did not fit into memory; the next ones have at most %d", size, self._most
            )
            free_cache()

    def _pass(self, rows: Sequence[Row], total: int) -> float:
        """Add the gradient of some rows' share of a step's loss to the weights', and return the share."""
        part = summed_loss(self.lm, rows) / total
        part.backward()
        return float(part.detach())


def summed_loss(lm: CausalLM, rows: Sequence[Row]) -> torch.Tensor:
    """Return the negative log-likelihood of all response tokens of some rows, summed, as a scalar with a gradient."""
    means = row_losses(lm.model, rows, lm.device, head_is_last=lm.head_is_last)
    return (means * means.new_tensor([len(row.counted) for row in rows])).sum()
