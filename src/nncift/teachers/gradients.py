"""Per-sample gradients of a causal language model: many rows in one pass, no full gradient held (method.md 3.3).

Hooks keep what each module read and, on the way back, the gradient of what it gave. From these two a row's gradient of
the module's parameters follows: a sum over positions of outer products for linear layers and transposed ones (GPT-2), a
scatter for embeddings, and the module's own vector-Jacobian product row by row (`torch.func`) for all others: norms,
biases, subclasses. A parameter that serves twice (tied embeddings) waits for all its modules. The parameters themselves
need no gradient, so autograd does not compute the batch's sum on the side.

Models that do not keep rows apart, such as mixtures of experts, are taken one row at a time through autograd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nncift.lm import Row
from nncift.teachers.passes import row_losses

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

Consumer = Callable[[str, slice, "torch.Tensor"], None]
"""Takes a parameter's name, which rows, and their gradients `(rows, size)` in float32."""

AT_ONCE_CPU, AT_ONCE_ELSEWHERE = 2**19, 2**26
"""Entries of one parameter's per-sample gradients that exist at a time: what a core's cache holds, and 256 MiB."""


class _RowsMixed(Exception):  # noqa: N818 - a signal inside this module
    """A module does not see one row per entry of its first axis."""


@dataclass
class _Use:
    """One call of a module: what it read, the gradient of what it gave, the names of its own parameters."""

    module: nn.Module
    names: Mapping[str, str]
    read: torch.Tensor
    back: torch.Tensor | None = None


class PerSample:
    """Gradients of each row's own loss with respect to named parameters of a model in evaluation mode.

    batched: None tries on two rows, when first used, whether the batched way gives what autograd gives row by row.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], *,
        batched: bool | None = None, at_once: int | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._parameters = parameters
        self._device = next(model.parameters()).device
        self._at_once = at_once or (AT_ONCE_CPU if self._device.type == "cpu" else AT_ONCE_ELSEWHERE)
        self._batched = batched

    @property
    def batched(self) -> bool:
        """Whether rows go through the model together."""
        if self._batched is None:
            self._batched = self._rows_stay_apart()
        return self._batched

    def run(self, rows: Sequence[Row], consume: Consumer) -> None:
        """Hand every parameter's gradients to `consume`, parameter by parameter; a row outside its reach has zeros."""
        if self.batched:
            self._together(rows, consume)
        else:
            self._one_by_one(rows, consume)

    def _one_by_one(self, rows: Sequence[Row], consume: Consumer) -> None:
        import torch

        for index, row in enumerate(rows):
            here, left = slice(index, index + 1), dict(self._parameters)

            def arrived(parameter: torch.Tensor, name: str, here: slice = here, left: dict[str, Any] = left) -> None:
                if parameter.grad is not None:
                    consume(name, here, parameter.grad.detach().float().reshape(1, -1))
                parameter.grad = None
                del left[name]

            with self._asking_for_gradients(arrived):
                row_losses(self._model, [row], self._device).sum().backward()
            for name, parameter in left.items():
                consume(name, here, torch.zeros((1, parameter.numel()), device=parameter.device))

    @contextmanager
    def _asking_for_gradients(self, arrived: Callable[[Any, str], None]) -> Iterator[None]:
        handles = []
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(lambda given, name=name: arrived(given, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None

    def _together(self, rows: Sequence[Row], consume: Consumer) -> None:
        import torch

        uses: dict[str, list[_Use]] = {name: [] for name in self._parameters}
        waiting = dict.fromkeys(self._parameters, 0)

        def hand_over(name: str) -> None:
            done, size = uses.pop(name), self._parameters[name].numel()
            step = max(1, self._at_once // max(1, size))
            for start in range(0, len(rows), step):
                here = slice(start, min(start + step, len(rows)))
                parts = [_gradient(use, name, here) for use in done if use.back is not None]
                none = torch.zeros((here.stop - start, size), device=self._device)
                consume(name, here, sum(parts[1:], start=parts[0]) if parts else none)

        def forward(use: _Use, given: torch.Tensor) -> None:
            for name in use.names.values():
                uses[name].append(use)
                waiting[name] += 1

            def backward(gradient: torch.Tensor) -> None:
                use.back = gradient.detach()
                for name in use.names.values():
                    waiting[name] -= 1
                    if not waiting[name]:
                        hand_over(name)

            given.register_hook(backward)

        with self._listening(len(rows), forward), torch.enable_grad():
            row_losses(self._model, rows, self._device).sum().backward()
        for name in list(uses):
            hand_over(name)

    @contextmanager
    def _listening(self, rows: int, forward: Callable[[_Use, torch.Tensor], None]) -> Iterator[None]:
        """Call `forward` for every call of a module that owns a parameter. Raises _RowsMixed where rows are mixed."""
        import torch

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            # Positions come once for all rows; each row needs its own copy to have its own gradient.
            if args and isinstance(args[0], torch.Tensor) and args[0].shape[:1] == (1,) != (rows,):
                return (args[0].expand(rows, *args[0].shape[1:]), *args[1:])
            return None

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Any) -> Any:
            tensors = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
            if (
                not tensors
                or not isinstance(given, torch.Tensor)
                or not args[0].shape[:1] == given.shape[:1] == (rows,)
            ):
                raise _RowsMixed(type(module).__name__)
            if not given.requires_grad:
                given.requires_grad_(True)
            forward(_Use(module, names[module], args[0].detach()), given)
            return given

        names = self._owners()
        handles = [module.register_forward_pre_hook(before) for module in names]
        handles += [module.register_forward_hook(after, with_kwargs=True) for module in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _owners(self) -> dict[nn.Module, dict[str, str]]:
        """Return the modules that own parameters, with attribute -> name; a tied parameter has several owners."""
        known = {id(parameter): name for name, parameter in self._parameters.items()}
        found = {
            module: {
                attribute: known[id(p)] for attribute, p in module.named_parameters(recurse=False) if id(p) in known
            }
            for module in self._model.modules()
        }
        return {module: names for module, names in found.items() if names}

    def _rows_stay_apart(self) -> bool:
        """Compare a batch of two rows with each of them alone, by norms and a weighted sum for every parameter."""
        import torch

        size = int(self._model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
        tokens = [(7 * k + 3) % size for k in range(16)]
        rows = [Row(tokens[:6], tokens[6:11]), Row(tokens[11:13], tokens[13:])]
        sums: list[dict[tuple[str, int], torch.Tensor]] = [{}, {}]

        def note(place: int) -> Consumer:
            def consume(name: str, here: slice, gradients: torch.Tensor) -> None:
                waves = torch.cos(torch.arange(gradients.shape[1], device=gradients.device, dtype=torch.float32))
                for index, gradient in enumerate(gradients, start=here.start):
                    sums[place][name, index] = torch.stack([gradient.norm(), gradient @ waves]).cpu()

            return consume

        try:
            self._together(rows, note(0))
        except (
            _RowsMixed,
            AttributeError,
            NotImplementedError,
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
        ) as error:
            log.warning("gradients are taken one row at a time: %s: %s", type(error).__name__, error)
            return False
        self._one_by_one(rows, note(1))
        largest = max(float(value[0]) for value in sums[1].values())
        exact = next(iter(self._model.parameters())).dtype in (torch.float32, torch.float64)
        for key, alone in sums[1].items():
            if not torch.allclose(
                sums[0][key], alone, rtol=1e-3 if exact else 0.1, atol=largest * (1e-4 if exact else 0.05)
            ):
                log.warning("gradients are taken one row at a time: %s differs when rows share a batch", key[0])
                return False
        return True


def _gradient(use: _Use, name: str, here: slice) -> torch.Tensor:
    """Return a call's contribution to a parameter's gradient, `(rows, size)` float32."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    module, read, back = use.module, use.read[here], use.back
    assert back is not None
    # Half precision is summed in float32, and double precision stays what it is.
    exact = torch.promote_types(back.dtype, torch.float32)
    back = back[here].to(exact)
    attribute = next(attribute for attribute, own in use.names.items() if own == name)
    rows = len(read)
    if type(module) in (nn.Linear, Conv1D):
        back = back.flatten(1, -2) if back.dim() > 2 else back[:, None]
        if attribute == "bias":
            return back.sum(1).float()
        read = (read.flatten(1, -2) if read.dim() > 2 else read[:, None]).to(exact)
        pair = (back, read) if type(module) is nn.Linear else (read, back)
        return torch.bmm(pair[0].transpose(1, 2), pair[1]).flatten(1).float()
    if type(module) is nn.Embedding and not module.scale_grad_by_freq:
        size, dim = module.weight.shape
        places = read.reshape(rows, -1) + size * torch.arange(rows, device=read.device)[:, None]
        whole = torch.zeros((rows * size, dim), device=back.device, dtype=exact).index_add_(
            0, places.flatten(), back.reshape(-1, dim)
        )
        if module.padding_idx is not None:
            whole.view(rows, size, dim)[:, module.padding_idx] = 0.0
        return whole.view(rows, -1).float()
    return _by_jacobian(module, attribute, read, back)


def _by_jacobian(module: nn.Module, attribute: str, read: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    from torch.func import functional_call, vjp, vmap

    own = {attribute: getattr(module, attribute).detach()}

    def one(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        given, pull, *_ = vjp(lambda values: functional_call(module, values, (x[None],)), own)
        gradient: torch.Tensor = pull(g[None].to(given.dtype))[0][attribute]
        return gradient

    # The module's forward hooks are still on, and would take this call for one of the model's.
    hooks, before = module._forward_hooks, module._forward_pre_hooks
    try:
        module._forward_hooks, module._forward_pre_hooks = type(hooks)(), type(before)()
        return vmap(one)(read, back).flatten(1).float()
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks, before
