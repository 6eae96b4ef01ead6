"""Gradients of LoRA matrices at the price of the activations' alone: the model computes with `W + scale B A` in the place of W.

For a layer `y = (W + s B A) x` with inputs `a` `(positions, in)` and errors `d` `(positions, out)` of a pass, the gradients are
`s d' (a A')` of B and `s (d B)' a` of A. So neither the adapters' own path nor a weight's gradient is computed. Right without
dropout only, which the adapters' path alone would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from nncift.models.lora import LoraLayerParts, Trainable

if TYPE_CHECKING:
    import torch


class MergedTraining:
    """A model whose LoRA matrices train, merged into weights of their own; `renew` after every change of the matrices."""

    def __init__(self, layers: dict[str, LoraLayerParts]) -> None:
        self._layers = list(layers.values())
        self._own = [parts.module.base_layer.weight for parts in self._layers]

    @classmethod
    def of(cls, trainable: Trainable) -> MergedTraining | None:
        """Return it for a model on the CPU in full precision with plain LoRA; None for any other.

        Elsewhere a second copy of the weights costs more than the adapters' path, and half precision would round small
        updates away.
        """
        layers = trainable.lora_layers()
        if layers is None:
            return None
        weights = [parts.module.base_layer.weight for parts in layers.values()]
        shared = len({id(weight) for weight in weights}) < len(weights)
        fits = all(w.device.type == "cpu" and w.is_floating_point() and w.dtype.itemsize >= 4 for w in weights)
        return cls(layers) if fits and not shared else None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Compute with merged weights, adapters off; every backward pass adds to the gradients of the matrices."""
        import torch

        with ExitStack() as stack:
            for parts, weight in zip(self._layers, self._own, strict=True):
                layer = parts.module
                stack.callback(setattr, layer.base_layer, "weight", weight)
                layer.base_layer.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
                stack.callback(layer.enable_adapters, enabled=True)
                layer.enable_adapters(enabled=False)
                stack.callback(layer.base_layer.register_forward_hook(_listener(parts)).remove)
            self.renew()
            yield

    def renew(self) -> None:
        """Take the matrices' present values into the weights."""
        import torch

        with torch.no_grad():
            for parts, weight in zip(self._layers, self._own, strict=True):
                merged, (a, b) = parts.module.base_layer.weight, parts.matrices.values()
                # A layer that keeps its weight as (in, out) adds the transposed product.
                left, right = (a.T, b.T) if parts.module.fan_in_fan_out else (b, a)
                torch.addmm(weight, left, right, alpha=parts.scale, out=merged.data)


def _listener(parts: LoraLayerParts) -> Callable[..., Any]:
    a, b = parts.matrices.values()

    def after(module: Any, args: tuple[Any, ...], given: torch.Tensor) -> torch.Tensor:
        read = args[0].detach().flatten(0, -2)
        if not given.requires_grad:
            # Nothing in front of the first layers trains.
            given.requires_grad_(True)

        def backward(errors: torch.Tensor) -> None:
            wrong = errors.detach().flatten(0, -2)
            _add(b, wrong.T @ (read @ a.detach().T), parts.scale)
            _add(a, (wrong @ b.detach()).T @ read, parts.scale)

        given.register_hook(backward)
        return given

    return after


def _add(matrix: torch.Tensor, gradient: torch.Tensor, scale: float) -> None:
    if matrix.grad is None:
        matrix.grad = gradient.mul_(scale)
    else:
        matrix.grad.add_(gradient, alpha=scale)
