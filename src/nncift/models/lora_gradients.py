"""Per-sample gradients of LoRA matrices, from what the adapted layers read and the errors they got (method.md 3.3).

For `y = W x + s B A x` with inputs `a` and errors `d`, the gradients are `s d' (A a)` of B and `s (B' d)' a` of A. So the pass
needs no path of its own for A and B: where the model computes in single precision, `s B A` is added to W while passes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nncift.models.causal_lm import Row
from nncift.models.linear_layers import LayerPair, LinearLayers
from nncift.models.lora import LoraLayerParts, Trainable
from nncift.models.per_sample_gradients import AT_ONCE_ELSEWHERE, Consumer, PerSample, Piece, rows_at_once


class LoraGradients:
    """Gradients of each row's own loss with respect to LoRA matrices; used where `Trainable.lora_layers` knows them all."""

    def __init__(
        self, trainable: Trainable, layers: Mapping[str, LoraLayerParts], *, head_is_last: bool = False
    ) -> None:
        self._parts = layers
        self._passes = LinearLayers(
            trainable.model, {name: parts.module for name, parts in layers.items()}, head_is_last=head_is_last
        )
        self._device = next(trainable.model.parameters()).device
        self._step = rows_at_once(self._device)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Coordinates of every matrix."""
        return {name: matrix.numel() for parts in self._parts.values() for name, matrix in parts.matrices.items()}

    @property
    def batched(self) -> bool:
        """Whether rows go through the model together."""
        return self._passes.batched

    def run(self, rows: Sequence[Row], consume: Consumer) -> None:
        """Hand the gradients of every matrix to `consume`, layer by layer; a row outside a layer's reach has zeros."""
        import torch

        missing = {name: set(range(len(rows))) for name in self._parts}

        def take(pair: LayerPair) -> None:
            missing[pair.layer] -= set(range(pair.rows.start, pair.rows.stop))
            self._deliver(pair, consume)

        self._passes.run(rows, take)
        for name, left in missing.items():
            for row in sorted(left):
                for own, matrix in self._parts[name].matrices.items():
                    zeros = torch.zeros((1, matrix.numel()), device=self._device)
                    consume(Piece(own, slice(row, row + 1), 0, zeros))

    def _deliver(self, pair: LayerPair, consume: Consumer) -> None:
        parts = self._parts[pair.layer]
        (name_a, a), (name_b, b) = parts.matrices.items()
        inputs, errors = pair.inputs, pair.errors * parts.scale
        a, b = a.detach().to(inputs), b.detach().to(inputs)
        for name, left, right in ((name_a, errors @ b, inputs), (name_b, errors, inputs @ a.T)):
            step = self._step(left.shape[-1] * right.shape[-1])
            for start in range(0, len(left), step):
                here = slice(start, min(start + step, len(left)))
                found = (left[here].transpose(1, 2) @ right[here]).flatten(1).float()
                first = pair.rows.start + start
                consume(Piece(name, slice(first, first + len(found)), 0, found.to(self._device)))


def gradients_of(trainable: Trainable, *, head_is_last: bool, whole: bool) -> PerSample | LoraGradients:
    """Return who gives the per-sample gradients of what is trained.

    whole: pieces are whole parameters, as many rows of them at a time as memory holds.
    """
    layers = trainable.lora_layers()
    if layers is not None:
        return LoraGradients(trainable, layers, head_is_last=head_is_last)
    return PerSample(
        trainable.model,
        trainable.parameters,
        at_once=AT_ONCE_ELSEWHERE if whole else None,
        head_is_last=head_is_last,
        whole=whole,
    )
