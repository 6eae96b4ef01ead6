"""What linear layers of a causal model read, and the gradients of what they gave: all that gradient teachers need.

For a layer `y = W x` and a row's own loss, with `a` the inputs `(positions, in)` and `d` the gradients of the loss with respect
to the outputs `(positions, out)`, the row's gradient of W is `d' a`, of rank at most its number of positions. A teacher takes the
pair and forms the gradient, a projection of it from both sides, or the LoRA gradients, whichever it needs.

One pass gives the pairs of all rows of a batch. Weights ask for no gradient, so that autograd computes those of activations
alone. Models that do not keep rows apart in every layer, such as mixtures of experts, are passed one row at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nncift.models.causal_lm import Row
from nncift.models.training_steps import RowLoss, mean_loss, row_losses

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerPair:
    """A layer during a pass over rows, in float32 or wider.

    layer: its name. rows: which of the pass's rows. inputs: `(n_rows, positions, in)`. errors: gradients of each row's own loss
    with respect to the outputs, `(n_rows, positions, out)`; 0 at padding. Positions of several calls stand one behind
    the other.
    """

    layer: str
    rows: slice
    inputs: torch.Tensor
    errors: torch.Tensor

    def gradients(self) -> torch.Tensor:
        """Return the rows' gradients of the weight of `y = W x`, `(n_rows, out, in)`."""
        return self.errors.transpose(1, 2) @ self.inputs


PairConsumer = Callable[[LayerPair], None]
"""Takes the pair of one layer, whose tensors are gone when it returns."""


class RowsMixed(Exception):  # noqa: N818 - a signal between passes, never an error that a user sees
    """A layer does not see one row per entry of its first axis."""


@dataclass
class _Call:
    """One call of a layer: what it read, and its errors when they are known."""

    inputs: torch.Tensor
    errors: torch.Tensor | None = None


class _Waiting:
    """Calls of layers until all of a layer's have their errors; then its pair goes to the consumer."""

    def __init__(self, part: slice, consume: PairConsumer) -> None:
        self._part, self._consume = part, consume
        self._calls: dict[str, list[_Call]] = {}

    def called(self, name: str, call: _Call) -> None:
        """Wait for the errors of a call."""
        self._calls.setdefault(name, []).append(call)

    def answered(self, name: str) -> None:
        """Hand a layer over where no other of its calls is waiting."""
        if all(call.errors is not None for call in self._calls[name]):
            self._deliver(name)

    def finish(self) -> None:
        """Hand over what is left: layers one of whose outputs served nothing."""
        for name in list(self._calls):
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        import torch

        done = [(call.inputs, call.errors) for call in self._calls.pop(name) if call.errors is not None]
        if done:
            inputs, errors = done[0] if len(done) == 1 else (torch.cat(parts, 1) for parts in zip(*done, strict=True))
            self._consume(LayerPair(name, self._part, inputs, errors))


class LinearLayers:
    """Linear layers of a model in evaluation mode, by name, and passes that show what they read and the errors they got.

    layers: modules by name, each called with one tensor `(n_rows, positions, in)`; None = all linear layers of the model but the
    one that gives the logits. head_is_last: as in `row_losses`.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module] | None = None, *, head_is_last: bool = False
    ) -> None:
        self.model = model
        self.layers = dict(linear_layers(model) if layers is None else layers)
        self._device = next(model.parameters()).device
        self._head_is_last = head_is_last

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Width of the outputs and of the inputs of every layer."""
        return {name: _shape(module) for name, module in self.layers.items()}

    @cached_property
    def batched(self) -> bool:
        """Whether rows go through the model together: tried on two rows, when first asked, against each of them alone."""
        return self._rows_stay_apart()

    def run(self, rows: Sequence[Row], consume: PairConsumer, loss: RowLoss = mean_loss) -> None:
        """Pass rows forward and back, and hand every layer's pair to `consume` on the way back, last layers first.

        A layer that a pass does not call gives no pair. loss: what a row's logits cost, `mean_loss` by default.
        """
        parts = [slice(0, len(rows))] if self.batched else [slice(at, at + 1) for at in range(len(rows))]
        for part in parts:
            self._pass(rows, part, consume, loss)

    def _pass(self, rows: Sequence[Row], part: slice, consume: PairConsumer, loss: RowLoss = mean_loss) -> None:
        import torch

        waiting = _Waiting(part, consume)
        with self._listening(part, waiting), torch.enable_grad():
            losses = row_losses(self.model, rows[part], self._device, head_is_last=self._head_is_last, loss=loss)
            losses.sum().backward()
        waiting.finish()

    @contextmanager
    def _listening(self, part: slice, waiting: _Waiting) -> Iterator[None]:
        """Collect every call of a layer, and its errors as soon as they are known. Raises RowsMixed where rows are mixed."""
        import torch

        count = part.stop - part.start

        def hook(name: str) -> Callable[..., Any]:
            def after(module: nn.Module, args: tuple[Any, ...], given: Any) -> Any:
                if not (args and isinstance(args[0], torch.Tensor) and isinstance(given, torch.Tensor)):
                    raise RowsMixed(name)
                call = _Call(self._by_row(name, args[0].detach(), count))
                if not given.requires_grad:
                    given.requires_grad_(True)
                waiting.called(name, call)

                def backward(errors: torch.Tensor) -> None:
                    call.errors = self._by_row(name, errors.detach(), count)
                    waiting.answered(name)

                given.register_hook(backward)
                return given

            return after

        handles = [module.register_forward_hook(hook(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _by_row(self, name: str, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return `(n_rows, positions, width)`, in float32 at least; all positions of one row alone are its own."""
        import torch

        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if count == 1:
            return values.reshape(1, -1, values.shape[-1])
        if values.dim() < 3 or len(values) != count:
            raise RowsMixed(name)
        return values.flatten(1, -2)

    def _rows_stay_apart(self) -> bool:
        """Compare gradients of two rows in one pass with those of each alone, by norms and one weighted sum for each layer."""
        import torch

        size = int(self.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
        tokens = [(7 * k + 3) % size for k in range(16)]
        rows = [Row(tokens[:6], tokens[6:11]), Row(tokens[11:13], tokens[13:])]
        together: dict[tuple[str, int], torch.Tensor] = {}
        alone: dict[tuple[str, int], torch.Tensor] = {}
        try:
            self._pass(rows, slice(0, 2), _marks(together))
        except (RowsMixed, NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
            log.warning("gradients are taken one row at a time: %s: %s", type(error).__name__, error)
            return False
        for at in range(2):
            self._pass(rows, slice(at, at + 1), _marks(alone))
        exact = next(iter(self.model.parameters())).dtype.itemsize >= 4
        largest = max((float(mark[0]) for mark in alone.values()), default=0.0)
        if not math.isfinite(largest):
            # Nothing follows from it, and whoever takes the gradients finds the same.
            return True
        relative, absolute = (1e-3, 1e-4 * largest) if exact else (0.1, 0.05 * largest)
        zero = torch.zeros(2)
        for key in together.keys() | alone.keys():
            one, other = together.get(key, zero), alone.get(key, zero)
            if not torch.allclose(one, other, rtol=relative, atol=absolute):
                log.warning("gradients are taken one row at a time: %s differs when rows share a batch", key[0])
                return False
        return True


def _marks(found: dict[tuple[str, int], torch.Tensor]) -> PairConsumer:
    """Return a consumer that adds up, for every layer and row, the gradient's norm and one weighted sum of its entries."""
    import torch

    def consume(pair: LayerPair) -> None:
        left, right = (
            torch.cos(torch.arange(values.shape[-1], device=values.device, dtype=values.dtype))
            for values in (pair.errors, pair.inputs)
        )
        sums = ((pair.errors @ left) * (pair.inputs @ right)).sum(1)
        products = (pair.errors @ pair.errors.transpose(1, 2)) * (pair.inputs @ pair.inputs.transpose(1, 2))
        norms = products.sum((1, 2)).clamp(min=0).sqrt()
        for at, mark in enumerate(torch.stack([norms, sums], dim=1).cpu(), start=pair.rows.start):
            found[pair.layer, at] = found.get((pair.layer, at), 0) + mark

    return consume


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return all linear layers by name but the one that gives the logits."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and module is not head
    }


def _shape(module: Any) -> tuple[int, int]:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    return int(module.out_features), int(module.in_features)
