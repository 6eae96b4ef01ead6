"""Parts of per-sample gradients: what one call of a module adds to the gradients of its parameters (method.md 3.3).

From what a module read and the gradient of what it gave a row's gradient follows: a product for linear layers, a scatter for
embeddings, and for norms and what else there is autograd's own, with a copy of the parameter for each row.
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


@dataclass(frozen=True)
class Span:
    """Entries of a parameter along its first axis, each `width` numbers."""

    first: int
    last: int
    width: int

    @property
    def start(self) -> int:
        """The first coordinate of the parameter laid flat."""
        return self.first * self.width

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return (self.last - self.first) * self.width


def is_cut_by_lines(use: Use) -> bool:
    """Tell whether a call's part of its weight can be had for some entries of the first axis alone."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kind = type(use.module)
    plain = kind is not nn.Embedding or not use.module.scale_grad_by_freq
    return set(use.names) == {"weight"} and kind in (nn.Linear, Conv1D, nn.Embedding) and plain


class Contributions:
    """Adds calls up into gradients. Which modules broadcast their parameter is tried once for each, and remembered."""

    def __init__(self) -> None:
        self._broadcasts: dict[tuple[int, str], bool] = {}

    def add(
        self, use: Use, name: str, here: slice, out: torch.Tensor, *, first: bool, span: Span | None = None
    ) -> None:
        """Add a call's part of a parameter's gradient to `out` `(rows, size)`, or write it there where it is the first.

        span: the coordinates that `out` holds, all by default; some of them only where `is_cut_by_lines`. Half precision is
        summed in float32, and double precision stays what it is: that is the type of `out`.
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
            _outer(left if span is None else left[..., span.first : span.last], right, out, first=first)
        elif isinstance(module, nn.Embedding) and kind is nn.Embedding and not module.scale_grad_by_freq:
            _scatter(module, read, back, out, first=first, span=span)
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


def _scatter(
    module: Any, read: torch.Tensor, back: torch.Tensor, out: torch.Tensor, *, first: bool, span: Span | None
) -> None:
    import torch

    rows, (size, dim) = len(read), module.weight.shape
    from_line, to_line = (0, size) if span is None else (span.first, span.last)
    if first:
        out.zero_()
    held = (read >= from_line) & (read < to_line)
    if module.padding_idx is not None:
        held &= read != module.padding_idx
    lines = to_line - from_line
    places = read - from_line + lines * torch.arange(rows, device=read.device).view(-1, *[1] * (read.dim() - 1))
    out.view(rows * lines, dim).index_add_(0, places[held], back[held])


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
