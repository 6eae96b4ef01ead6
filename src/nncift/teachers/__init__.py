"""Teachers: the expensive influence functions that the student learns from (method.md 3).

A teacher labels chunks of a plan. What it returns per row of a chunk is its raw value; a *relative* teacher also labels
targets without an example, and its utility is `raw without - raw with` (DELIFT). Higher utility is better for all.
What a teacher may be able to do beside that is in `abilities`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from nncift.core.arrays import Floats
from nncift.data.examples import Examples, Rejection

Kind = Literal["pairwise", "pointwise"]
"""What a value belongs to: a pair of rows, or a row."""


@dataclass(frozen=True)
class Chunk:
    """What a teacher labels in one go: one source in front of several targets.

    source: None = the targets without an example. The plan fixes a chunk's composition, so its values are the same
    whenever it is computed.
    """

    index: int
    source: str | None
    targets: tuple[str, ...]


@dataclass(frozen=True)
class ChunkLabels:
    """Raw values of a chunk, `(n_targets,)` float32 with NaN where a pair cannot be computed, and what they cost.

    tokens: tokens that went through the model. shortened: the source's prompt was cut to fit.
    """

    values: Floats
    tokens: int
    shortened: bool = False


@runtime_checkable
class Teacher(Protocol):
    """An influence function over a pool.

    name: as in `--teacher`. kind: pairwise or pointwise. relative: labels without an example are needed too.
    options: the settings (config.TeacherSettings) that would create it again, for the manifest.
    """

    @property
    def name(self) -> str:
        """As in `--teacher`."""
        ...

    @property
    def kind(self) -> Kind:
        """What a value belongs to."""
        ...

    @property
    def relative(self) -> bool:
        """Whether labels without an example are needed too."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings that would create it again."""
        ...

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Make examples known by id and return those that can never be labelled, each with its reason."""
        ...

    def label(self, chunk: Chunk) -> ChunkLabels:
        """Compute the raw values of a chunk. Raises ResourceError where the model gives no number."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return all that decides the values (model fingerprint, wording, variant), for the run's fingerprint."""
        ...


@dataclass(frozen=True)
class RowLabels:
    """What a teacher finds for rows: `values` is `(n_rows, width)` float32, NaN where a row has none.

    tokens and passes: through the teacher's model for these rows. figures: sums over the rows of what an
    `abilities.Monitored` teacher counts beside the values.
    """

    values: Floats
    tokens: int
    passes: int
    figures: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class RowTeacher(Protocol):
    """An influence function that labels rows (LESS, SelectIT): labelling u of the rows costs u.

    kind: pointwise teachers have one number per row, its score; pairwise ones have features, and their `utility` (see
    `FeatureTeacher`) gives all pairs among measured rows for free. A constructor that takes `workspace` is given a folder of
    the run for what must outlive a kill (`abilities.KeepsWorkspace`).
    """

    @property
    def name(self) -> str:
        """As in `--teacher`."""
        ...

    @property
    def kind(self) -> Kind:
        """What a value belongs to."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings that would create it again."""
        ...

    @property
    def width(self) -> int:
        """Numbers per row; known once rows were prepared."""
        ...

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Make examples known by id, do what must precede all rows, and return the rows that can never be measured."""
        ...

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Measure rows. The caller's grouping is fixed by the plan. Raises ResourceError where a model gives no number."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return all that decides the values, for the run's fingerprint."""
        ...


@runtime_checkable
class FeatureTeacher(RowTeacher, Protocol):
    """A pairwise teacher whose values are a function of two rows' features."""

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` from features `(n_targets, width)` and `(n_sources, width)`."""
        ...


TEACHERS: Mapping[str, str] = {
    "delift": "nncift.teachers.delift:Delift",
    "delift-se": "nncift.teachers.delift_se:Similarity",
    "less": "nncift.teachers.less:Less",
    "selectit": "nncift.teachers.selectit:SelectIt",
    "ifd": "nncift.teachers.ifd:Ifd",
    "loss": "nncift.teachers.loss:Loss",
    "rds": "nncift.teachers.rds:Rds",
    "ica": "nncift.teachers.ica:Ica",
    "ekfac": "nncift.teachers.ekfac:EkFac",
    "logra": "nncift.teachers.logra:Logra",
    "trackstar": "nncift.teachers.trackstar:TrackStar",
    "retrain": "nncift.teachers.retrain:Retrain",
    "length": "nncift.teachers.given_scores:Length",
    "random": "nncift.teachers.given_scores:Random",
    "column": "nncift.teachers.given_scores:Column",
}
"""Name -> where its class lives. `column:quality` is the class `column` with the column's name."""

_CLASSES = {"Gist": "nncift.teachers.gist"} | {
    name: module for module, _, name in (where.partition(":") for where in TEACHERS.values())
}


def __getattr__(name: str) -> Any:
    # Teachers load torch, so they are imported when they are used.
    if name not in _CLASSES:
        raise AttributeError(f"module 'nncift.teachers' has no attribute {name!r}")
    return getattr(importlib.import_module(_CLASSES[name]), name)
