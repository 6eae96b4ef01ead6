"""Per-sample gradients of a causal language model: many rows in one pass, no full gradient held (method.md 3.3).

Hooks keep what each module read and, on the way back, the gradient of what it gave. From these two a row's gradient of
the module's parameters follows (contributions.py). A parameter that serves twice (tied embeddings) waits for all its
modules. The parameters themselves need no gradient, so autograd does not compute the batch's sum on the side.

Models that do not keep rows apart, such as mixtures of experts, are taken one row at a time through autograd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nncift.models.causal_lm import Row
from nncift.models.training_steps import row_losses

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

Consumer = Callable[[str, slice, "torch.Tensor"], None]
"""Takes a parameter's name, which rows, and their gradients `(rows, size)` in float32, which are gone when it returns."""

AT_ONCE_CPU, AT_ONCE_ELSEWHERE = 2**19, 2**26
"""Entries of one parameter's per-sample gradients that exist at a time: what a core's cache holds, and 256 MiB."""


class _RowsMixed(Exception):  # noqa: N818 - a signal inside this module
    """A module does not see one row per entry of its first axis."""


class PerSample:
    """Gradients of each row's own loss with respect to named parameters of a model in evaluation mode.

    batched: None tries on two rows, when first used, whether the batched way gives what autograd gives row by row.
    head_is_last: the logits are the output embeddings' output and nothing else, so that they are only computed where a
    response token is due.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        batched: bool | None = None,
        at_once: int | None = None,
        head_is_last: bool = False,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._device = next(model.parameters()).device
        self._at_once = at_once or (AT_ONCE_CPU if self._device.type == "cpu" else AT_ONCE_ELSEWHERE)
        self._batched = batched
        self._head_is_last = head_is_last
        self._contributions = Contributions()
        self._room: torch.Tensor | None = None

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
                self._losses([row]).sum().backward()
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

        uses: dict[str, list[Use]] = {name: [] for name in self._parameters}
        waiting = dict.fromkeys(self._parameters, 0)

        def deliver(name: str) -> None:
            done = [use for use in uses.pop(name) if use.back is not None]
            # A scatter into what is there already is cheap, and a product that has nothing to add to is too.
            done.sort(key=lambda use: isinstance(use.module, torch.nn.Embedding))
            size = self._parameters[name].numel()
            step = max(1, self._at_once // max(1, size))
            for start in range(0, len(rows), step):
                here = slice(start, min(start + step, len(rows)))
                whole = self._space(here.stop - start, size, done)
                for number, use in enumerate(done):
                    self._contributions.add(use, name, here, whole, first=number == 0)
                consume(name, here, (whole.float() if done else whole.zero_()).to(self._device))

        def forward(use: Use, given: torch.Tensor) -> None:
            for name in use.names.values():
                uses[name].append(use)
                waiting[name] += 1

            def backward(gradient: torch.Tensor) -> None:
                use.back = gradient.detach()
                for name in use.names.values():
                    waiting[name] -= 1
                    if not waiting[name]:
                        deliver(name)

            given.register_hook(backward)

        with self._listening(len(rows), forward), torch.enable_grad():
            self._losses(rows).sum().backward()
        for name in list(uses):
            deliver(name)

    def _losses(self, rows: Sequence[Row]) -> torch.Tensor:
        return row_losses(self._model, rows, self._device, head_is_last=self._head_is_last)

    def _space(self, rows: int, size: int, uses: Sequence[Use]) -> torch.Tensor:
        """Return room for gradients `(rows, size)`, the same memory every time: fresh pages cost more than the sums."""
        import torch

        exact, device = torch.float32, self._device
        for use in uses:
            assert use.back is not None
            exact, device = torch.promote_types(exact, use.back.dtype), use.back.device
        room = self._room
        if room is None or room.numel() < rows * size or (room.dtype, room.device) != (exact, device):
            self._room = room = torch.empty(rows * size, dtype=exact, device=device)
        return room[: rows * size].view(rows, size)

    @contextmanager
    def _listening(self, rows: int, forward: Callable[[Use, torch.Tensor], None]) -> Iterator[None]:
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
            forward(Use(module, names[module], args[0].detach()), given)
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


@dataclass
class Use:
    """One call of a module: what it read, the gradient of what it gave, the names of its own parameters by attribute."""

    module: nn.Module
    names: Mapping[str, str]
    read: torch.Tensor
    back: torch.Tensor | None = None


class Contributions:
    """Adds calls up into gradients. Which modules broadcast their parameter is tried once for each, and remembered."""

    def __init__(self) -> None:
        self._broadcasts: dict[tuple[int, str], bool] = {}

    def add(self, use: Use, name: str, here: slice, out: torch.Tensor, *, first: bool) -> None:
        """Add a call's part of a parameter's gradient to `out` `(rows, size)`, or write it there where it is the first.

        Half precision is summed in float32, and double precision stays what it is: that is the type of `out`.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        module, read = use.module, use.read[here]
        assert use.back is not None
        back = use.back[here].to(out.dtype)
        attribute = next(attribute for attribute, own in use.names.items() if own == name)
        kind = type(module)
        if kind in (nn.Linear, Conv1D) and attribute == "weight":
            back, read = _flat(back), _flat(read).to(out.dtype)
            left, right = (back, read) if kind is nn.Linear else (read, back)
            _outer(left, right, out, first=first)
        elif isinstance(module, nn.Embedding) and kind is nn.Embedding and not module.scale_grad_by_freq:
            _scatter(module, read, back, out, first=first)
        else:
            part = self._small(module, attribute, read, back).to(out.dtype)
            if first:
                out.copy_(part)
            else:
                out.add_(part)

    def _small(self, module: nn.Module, attribute: str, read: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        from torch import nn
        from torch.nn.functional import layer_norm
        from transformers.pytorch_utils import Conv1D

        kind = type(module)
        if attribute == "bias" and kind in (nn.Linear, Conv1D, nn.LayerNorm):
            return _flat(back).sum(1) if kind is not nn.LayerNorm else _summed(back, getattr(module, attribute))
        if isinstance(module, nn.LayerNorm) and kind is nn.LayerNorm:
            normed = layer_norm(read.to(back.dtype), module.normalized_shape, eps=module.eps)
            return _summed(back * normed, module.weight)
        key = (id(module), attribute)
        if key not in self._broadcasts:
            self._broadcasts[key] = _can_broadcast(module, attribute, read[:1], back[:1])
        how = _by_broadcast if self._broadcasts[key] else _by_jacobian
        return how(module, attribute, read, back)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Return `(rows, positions, features)`; what has no positions gets one."""
    return values.flatten(1, -2) if values.dim() > 2 else values[:, None]


def _outer(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, *, first: bool) -> None:
    import torch

    square = out.view(len(out), left.shape[-1], right.shape[-1])
    if first:
        torch.bmm(left.transpose(1, 2), right, out=square)
    else:
        square.baddbmm_(left.transpose(1, 2), right)


def _scatter(module: Any, read: torch.Tensor, back: torch.Tensor, out: torch.Tensor, *, first: bool) -> None:
    import torch

    rows, (size, dim) = len(read), module.weight.shape
    if first:
        out.zero_()
    if module.padding_idx is not None:
        back = back.masked_fill((read == module.padding_idx)[..., None], 0.0)
    places = read.reshape(rows, -1) + size * torch.arange(rows, device=read.device)[:, None]
    out.view(rows * size, dim).index_add_(0, places.flatten(), back.reshape(-1, dim))


def _summed(products: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Sum over all positions of a row, down to the parameter's own axes: `(rows, size)`."""
    return products.reshape(len(products), -1, parameter.numel()).sum(1)


def _can_broadcast(module: nn.Module, attribute: str, read: torch.Tensor, back: torch.Tensor) -> bool:
    """Tell whether a module multiplies or adds its parameter in entry by entry, as norms do: then rows may bring copies."""
    import torch

    try:
        found = _by_broadcast(module, attribute, torch.cat([read, read]), torch.cat([back, 2 * back]))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    alone = _by_jacobian(module, attribute, read, back)
    scale = 1e-4 if back.dtype.itemsize >= 4 and read.dtype.itemsize >= 4 else 0.02
    return bool(torch.allclose(found, torch.cat([alone, 2 * alone]), rtol=scale, atol=scale * float(alone.abs().max())))


def _by_broadcast(module: nn.Module, attribute: str, read: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Give every row its own copy of the parameter, and ask autograd for the copies' gradients."""
    import torch
    from torch.func import functional_call

    own = getattr(module, attribute).detach()
    between = [1] * (read.dim() - 1 - own.dim())
    copies = own.expand(len(read), *between, *own.shape).clone().requires_grad_(True)
    with _without_hooks(module), torch.enable_grad():
        given = functional_call(module, {attribute: copies}, (read,))
    found: torch.Tensor = torch.autograd.grad(given, copies, back.to(given.dtype))[0]
    return found.reshape(len(read), -1)


def _by_jacobian(module: nn.Module, attribute: str, read: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    from torch.func import functional_call, vjp, vmap

    own = {attribute: getattr(module, attribute).detach()}

    def one(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        given, pull, *_ = vjp(lambda values: functional_call(module, values, (x[None],)), own)
        gradient: torch.Tensor = pull(g[None].to(given.dtype))[0][attribute]
        return gradient

    with _without_hooks(module):
        return vmap(one)(read, back).flatten(1)


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Call a module without its forward hooks, which would take the call for one of the model's."""
    hooks, before = module._forward_hooks, module._forward_pre_hooks
    try:
        module._forward_hooks, module._forward_pre_hooks = type(hooks)(), type(before)()
        yield
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks, before
