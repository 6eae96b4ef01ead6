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

from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.gradient_parts import Contributions, Span, Use, is_cut_by_lines
from nncift.models.training_steps import row_losses

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

AT_ONCE_CPU, AT_ONCE_ELSEWHERE = 2**18, 2**26
"""Entries of per-sample gradients that exist at a time: what a core's cache holds, and 256 MiB."""


@dataclass(frozen=True)
class Piece:
    """Gradients of a parameter for some rows, or a part of its coordinates.

    name: of the parameter. rows: which ones. start: the first coordinate, of the parameter laid flat. gradients: `(n_rows, size)`
    in float32.
    """

    name: str
    rows: slice
    start: int
    gradients: torch.Tensor


Consumer = Callable[[Piece], None]
"""Takes a piece, whose gradients are gone when it returns. All pieces together are every row's whole gradient, each part once."""

LOGITS_AT_ONCE_CPU, LOGITS_AT_ONCE_ELSEWHERE = 2**22, 2**28
"""Entries of a batch's logits: a few times what a core's cache holds, and 1 GiB."""


def gradient_batches(lm: CausalLM, rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Return which rows go through a model forward and back together: by tokens, and by what their logits take."""
    at_once = LOGITS_AT_ONCE_CPU if lm.device.type == "cpu" else LOGITS_AT_ONCE_ELSEWHERE
    most = at_once // int(lm.model.config.get_text_config().vocab_size)
    responses = [len(row.counted) for row in rows]
    return batches(list(map(len, rows)), batch_tokens, responses=responses, most_responses=most)


def at_once_on(device: torch.device) -> int:
    """Return the entries of per-sample gradients that exist at a time on a device."""
    return AT_ONCE_CPU if device.type == "cpu" else AT_ONCE_ELSEWHERE


def rows_at_once(device: torch.device) -> Callable[[int], int]:
    """Return what tells how many rows' gradients of a size exist at a time on a device, at least one's."""
    return lambda size: max(1, at_once_on(device) // max(1, size))


class _RowsMixed(Exception):  # noqa: N818 - a signal inside this module
    """A module does not see one row per entry of its first axis."""


class PerSample:
    """Gradients of each row's own loss with respect to named parameters of a model in evaluation mode.

    batched: None tries on two rows, when first used, whether the batched way gives what autograd gives row by row.
    head_is_last: the logits are the output embeddings' output and nothing else, so that they are only computed where a
    response token is due. whole: pieces hold all coordinates of a parameter, however many.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        batched: bool | None = None,
        at_once: int | None = None,
        head_is_last: bool = False,
        whole: bool = False,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._device = next(model.parameters()).device
        self._at_once = at_once or at_once_on(self._device)
        self._whole = whole
        self._batched = batched
        self._head_is_last = head_is_last
        self._contributions = Contributions()
        self._room: torch.Tensor | None = None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Coordinates of every parameter."""
        return {name: parameter.numel() for name, parameter in self._parameters.items()}

    @property
    def batched(self) -> bool:
        """Whether rows go through the model together."""
        if self._batched is None:
            self._batched = self._rows_stay_apart()
        return self._batched

    def run(self, rows: Sequence[Row], consume: Consumer) -> None:
        """Hand every parameter's gradients to `consume`, piece by piece; a row outside a parameter's reach has zeros."""
        if self.batched:
            self._together(rows, consume)
        else:
            self._one_by_one(rows, consume)

    def _one_by_one(self, rows: Sequence[Row], consume: Consumer) -> None:
        import torch

        for index, row in enumerate(rows):
            here, left = slice(index, index + 1), dict(self._parameters)

            def arrived(
                parameter: torch.Tensor, name: str, here: slice = here, left: dict[str, torch.nn.Parameter] = left
            ) -> None:
                if parameter.grad is not None:
                    consume(Piece(name, here, 0, parameter.grad.detach().float().reshape(1, -1)))
                parameter.grad = None
                del left[name]

            with self._asking_for_gradients(arrived):
                self._losses([row]).sum().backward()
            for name, parameter in left.items():
                consume(Piece(name, here, 0, torch.zeros((1, parameter.numel()), device=parameter.device)))

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
            for here, span in self._spans(name, len(rows), done):
                whole = self._space(here.stop - here.start, span.size, done)
                for number, use in enumerate(done):
                    self._contributions.add(use, name, here, whole, first=number == 0, span=span)
                consume(Piece(name, here, span.start, (whole.float() if done else whole.zero_()).to(self._device)))

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

    def _spans(self, name: str, rows: int, uses: Sequence[Use]) -> Iterator[tuple[slice, Span]]:
        """Yield which rows and coordinates make a piece: all of several rows, or some of one where a parameter is large."""
        parameter = self._parameters[name]
        every = parameter.shape[0] if parameter.dim() > 1 else 1
        width = max(1, parameter.numel() // max(1, every))
        step, lines = max(1, self._at_once // (every * width)), every
        if every * width > self._at_once and not self._whole and all(map(is_cut_by_lines, uses)):
            lines = max(1, self._at_once // width)
        for start in range(0, rows, step):
            for line in range(0, every, lines):
                yield slice(start, min(start + step, rows)), Span(line, min(line + lines, every), width)

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
            def consume(piece: Piece) -> None:
                gradients, end = piece.gradients, piece.start + piece.gradients.shape[1]
                waves = torch.cos(torch.arange(piece.start, end, device=gradients.device, dtype=torch.float32))
                marks = torch.stack([gradients.square().sum(1), gradients @ waves], dim=1).cpu()
                for index, mark in enumerate(marks, start=piece.rows.start):
                    key = (piece.name, index)
                    sums[place][key] = sums[place].get(key, 0) + mark

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
        for found in sums:
            for mark in found.values():
                mark[0] = mark[0].sqrt()
        largest = max(float(value[0]) for value in sums[1].values())
        exact = next(iter(self._model.parameters())).dtype in (torch.float32, torch.float64)
        for key, alone in sums[1].items():
            if not torch.allclose(
                sums[0][key], alone, rtol=1e-3 if exact else 0.1, atol=largest * (1e-4 if exact else 0.05)
            ):
                log.warning("gradients are taken one row at a time: %s differs when rows share a batch", key[0])
                return False
        return True
