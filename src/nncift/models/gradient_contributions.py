"""What one call of a module adds to each row's gradient of a parameter (see gradients.py).

A sum over positions of outer products for linear layers and transposed ones (GPT-2), a scatter for embeddings, a sum of
products for norms, and the module's own vector-Jacobian product row by row (`torch.func`) for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


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
