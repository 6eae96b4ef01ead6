"""How many rows go through a model at once: batches by tokens, which shrink where memory runs out.

Memory is a device's, or that of a process under `--max-mem`. Batches are chosen by a budget of tokens, which cannot know what a
device holds. One that does not fit is halved and tried again, and what was too much is remembered, so that a process runs out
a few times and not at every batch. How rows are padded together changes then, and with it the last bits of a result, never
which rows belong to a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nncift.core.memory import ran_out

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)
ENOUGH_ON_CPU = 128
"""Tokens of a pass from which on products of matrices are as fast as they get on a core."""
PADDING = 0.05
"""Padded tokens, as a share of the others, that a batch of enough tokens may have."""
A_CALL = 1.4e6
"""Numbers of a model that are multiplied with a token in the time that it takes to call one of its modules, on a core."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def batches(
    lengths: Sequence[int],
    batch_tokens: int,
    before: int = 0,
    *,
    responses: Sequence[int] | None = None,
    most_responses: int = 0,
    limit: PaddingLimit | None = None,
) -> list[list[int]]:
    """Cut positions, sorted by length, into batches of at most `batch_tokens` padded tokens, at least one row each.

    before: tokens of a shared prefix, whose keys and values are held once per row: long ones make batches smaller. responses: of
    these lengths, of which a batch has at most `most_responses` padded tokens, since each needs its own logits. limit: of
    padding; None = it does not count.
    """
    found: list[list[int]] = []
    longest = read = 0
    for index in sorted(range(len(lengths)), key=lambda position: (lengths[position], position)):
        size, width = len(found[-1]) + 1 if found else 1, lengths[index]
        full = size * width > batch_tokens or size * (width + before) > 8 * batch_tokens
        if responses is not None:
            longest = max(longest, responses[index])
            full = full or size * longest > most_responses
        full = full or (limit is not None and limit.is_reached(read, width, size))
        if not found or full:
            found.append([])
            read = 0
            longest = 0 if responses is None else responses[index]
        read += width
        found[-1].append(index)
    return found


@dataclass(frozen=True)
class PaddingLimit:
    """When a batch is not made larger, because of what rows would be padded with.

    enough: tokens from which on a larger batch is no faster. a_pass: padded tokens that take as long as a pass more.
    """

    enough: int
    a_pass: float

    @classmethod
    def of(cls, model: nn.Module, device: torch.device) -> PaddingLimit | None:
        """Return the limit of a model on a device; None where launching costs more than padding."""
        if device.type != "cpu":
            return None
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return cls(ENOUGH_ON_CPU, A_CALL * sum(1 for _ in model.modules()) / max(1, numbers))

    def is_reached(self, read: int, width: int, size: int) -> bool:
        """Tell whether rows of `read` tokens should do without one more of `width`, which would make them `size` rows."""
        there = read + width
        return read >= self.enough and size * width > max((1 + PADDING) * there, there + self.a_pass)


class BatchLimit:
    """What fits into a device at once. most: padded tokens of a batch, None as long as nothing was too much."""

    def __init__(self) -> None:
        self.most: int | None = None

    def run(
        self,
        items: Sequence[Item],
        length: Callable[[Item], int],
        do: Callable[[Sequence[Item]], Sequence[Result]],
        before: int = 0,
    ) -> list[Result]:
        """Return `do` of all items, in as many parts as memory asks for; one result per item, in their order.

        length: tokens of an item; before: tokens in front of each. Raises what `do` raises where one item alone does not fit.
        """
        todo: list[Sequence[Item]] = [items]
        found: list[Result] = []
        while todo:
            part = todo.pop()
            size = len(part) * (before + max(map(length, part), default=0))
            if len(part) > 1 and self.most is not None and size > self.most:
                todo += _halves(part)
                continue
            done = _tried(part, do)
            if done is None:
                # Only now: while the error is handled, its frames hold the batch's memory.
                self._shrink(size)
                todo += _halves(part)
            else:
                found += done
        return found

    def _shrink(self, size: int) -> None:
        self.most = size // 2
        log.warning("a batch of %d tokens did not fit into memory; the next ones have at most %d", size, self.most)
        free_cache()


def _tried(part: Sequence[Item], do: Callable[[Sequence[Item]], Sequence[Result]]) -> Sequence[Result] | None:
    """Return what `do` makes of a part, None where memory ran out and the part can be halved."""
    try:
        return do(part)
    except (MemoryError, RuntimeError) as error:
        if len(part) == 1 or not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: a device's, or this process's."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or ran_out(error)


def _halves(part: Sequence[Item]) -> list[Sequence[Item]]:
    """Return the second half, then the first: what is done next is taken from the end."""
    middle = (len(part) + 1) // 2
    return [part[middle:], part[:middle]]


def free_cache() -> None:
    """Give back what the allocator of a GPU keeps, so that a smaller batch does not fail on its pieces."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
