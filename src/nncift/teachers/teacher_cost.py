"""What a teacher's passes cost, in forward-pass equivalents: a forward pass is 1, a forward and backward pass 3.

Teachers declare it by attributes. One that declares nothing, such as a plug-in, is taken to make one forward pass for each pair
or row, and nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from nncift.teachers import RowTeacher, Teacher

FORWARD, GRADIENT = 1, 3
"""A forward pass, and a forward and backward pass."""


@runtime_checkable
class Weighted(Protocol):
    """A teacher that says what one of its passes costs."""

    @property
    def pass_weight(self) -> int:
        """Forward passes that a pass costs as much as: 3 with a backward pass, 0 where no language model takes part."""
        ...


@runtime_checkable
class CountsPasses(Protocol):
    """A teacher that labels rows and says how many passes a row takes."""

    @property
    def row_passes(self) -> int:
        """Passes of a row, the same for every row; known before any row is measured."""
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """A teacher whose model is trained before the first row; known once rows were prepared."""

    @property
    def warm_up_passes(self) -> int:
        """Passes that precede all rows."""
        ...

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes."""
        ...


@runtime_checkable
class Cold(Protocol):
    """A teacher that can be had before its warm-up, so that passes can be timed without one."""

    def cold(self) -> RowTeacher:
        """Return the same teacher on the model as it is."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A teacher that labels rows and knows their tokens beforehand."""

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens that measuring prepared rows takes, a warm-up left out."""
        ...


def pass_weight(teacher: Teacher | RowTeacher) -> int:
    """Return what one of a teacher's passes costs, in forward passes."""
    return teacher.pass_weight if isinstance(teacher, Weighted) else FORWARD


def row_passes(teacher: RowTeacher) -> int:
    """Return the passes that a row takes."""
    return teacher.row_passes if isinstance(teacher, CountsPasses) else 1


def warm_up(teacher: Teacher | RowTeacher) -> dict[str, int]:
    """Return `passes` and `tokens` that precede all rows; rows must have been prepared."""
    if isinstance(teacher, WarmsUp):
        return {"passes": teacher.warm_up_passes, "tokens": teacher.warm_up_tokens}
    return {"passes": 0, "tokens": 0}
