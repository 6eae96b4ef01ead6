"""Passes of rows for teachers of linear layers: which layers are covered, batches that fit, gradients of a layer's rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nncift.models.causal_lm import CausalLM, Row
from nncift.models.linear_layers import LayerPair, LinearLayers, linear_layers
from nncift.models.lora import Trainable
from nncift.models.per_sample_gradients import gradient_batches
from nncift.models.training_steps import RowLoss, mean_loss

if TYPE_CHECKING:
    import torch
    from torch import nn

GRADIENTS_AT_ONCE_CPU, GRADIENTS_AT_ONCE_ELSEWHERE = 2**20, 2**26
"""Entries of one layer's gradients of rows that exist at a time, a row at least."""

PairsOfRows = Callable[[LayerPair, Sequence[int]], None]
"""Takes the pair of a layer, and the places of the rows that were passed together, of which `pair.rows` are its own."""
LossOf = Callable[[Sequence[int]], RowLoss]
"""Makes the loss of rows at places."""


def _plain_loss(places: Sequence[int]) -> RowLoss:
    return mean_loss


@dataclass(frozen=True)
class LayerPasses:
    """A language model and those of its linear layers that are covered.

    trainable: LoRA matrices, which then are the layers; None = all linear layers but the one that gives the logits. ends: of the
    names of layers, None = all. batch_tokens: tokens of a pass, padding included.
    """

    lm: CausalLM
    trainable: Trainable | None
    ends: tuple[str, ...] | None
    batch_tokens: int

    @property
    def model(self) -> nn.Module:
        """The model that is passed, adapters in it."""
        return self.lm.model if self.trainable is None else self.trainable.model

    @cached_property
    def layers(self) -> LinearLayers:
        """The layers that are covered; there may be none."""
        if self.trainable is None:
            found = dict(linear_layers(self.lm.model))
        else:
            own = {id(value) for value in self.trainable.parameters.values()}
            modules: Any = self.trainable.model.named_modules()
            found = {name: module for name, module in modules if id(getattr(module, "weight", None)) in own}
        if self.ends is not None:
            found = {name: module for name, module in found.items() if name.endswith(self.ends)}
        return LinearLayers(self.model, found, head_is_last=self.lm.head_is_last)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Width of outputs and inputs of every layer that is covered."""
        return dict(self.layers.shapes)

    @property
    def share(self) -> float:
        """Share of the model's parameters that are weights of covered layers."""
        whole = sum(value.numel() for value in self.model.parameters())
        return sum(out * into for out, into in self.shapes.values()) / max(whole, 1)

    @property
    def left_out(self) -> str:
        """The kinds of modules whose parameters are not covered, by name; the one that gives the logits is the output head."""
        head: Any = self.lm.model.get_output_embeddings()
        covered = {id(module) for module in self.layers.layers.values()}
        kinds = {
            "output head" if module is head else type(module).__name__
            for module in self.model.modules()
            if id(module) not in covered and next(module.parameters(recurse=False), None) is not None
        }
        return ", ".join(sorted(kinds))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Have adapters on, and no parameter ask for a gradient: those of activations are wanted alone."""
        asking = [value for value in self.model.parameters() if value.requires_grad]
        for value in asking:
            value.requires_grad_(False)
        try:
            if self.trainable is None:
                yield
            else:
                with self.trainable.at(self._weights):
                    yield
        finally:
            for value in asking:
                value.requires_grad_(True)

    @cached_property
    def _weights(self) -> Mapping[str, torch.Tensor]:
        assert self.trainable is not None
        return self.trainable.snapshot()

    def run(self, rows: Sequence[Row], consume: PairsOfRows, loss: LossOf = _plain_loss) -> None:
        """Pass rows, and hand the pair of every layer to `consume`, all of its calls in it."""

        def measure(places: Sequence[int]) -> Sequence[int]:
            self.layers.run([rows[place] for place in places], lambda pair: consume(pair, places), loss(places))
            return places

        with self.computing():
            for batch in gradient_batches(self.lm, rows, self.batch_tokens):
                self.lm.fits.run(batch, lambda place: len(rows[place]), measure)

    def gradients(
        self,
        rows: Sequence[Row],
        consume: Callable[[str, torch.Tensor], None],
        loss: LossOf = _plain_loss,
        turned: Callable[[LayerPair], LayerPair] = lambda pair: pair,
    ) -> None:
        """Hand gradients of rows to `consume`, a layer and a few rows at a time, `(n, out, in)`.

        turned: what is done to a pair before, such as a rotation of both sides.
        """

        def each(pair: LayerPair, places: Sequence[int]) -> None:
            pair = turned(pair)
            for at in self.slices(len(pair.inputs), math.prod(self.shapes[pair.layer])):
                consume(pair.layer, pair.errors[at].transpose(1, 2) @ pair.inputs[at])

        self.run(rows, each, loss)

    def slices(self, count: int, entries: int) -> Iterator[slice]:
        """Yield parts of `count` rows whose gradients of so many entries exist at the same time."""
        at_once = GRADIENTS_AT_ONCE_CPU if self.lm.device.type == "cpu" else GRADIENTS_AT_ONCE_ELSEWHERE
        step = max(1, at_once // max(1, entries))
        yield from (slice(at, min(at + step, count)) for at in range(0, count, step))
