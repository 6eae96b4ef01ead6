"""What a teacher may be able to do beside `Teacher` or `RowTeacher`: one protocol for each ability, none of them required.

A teacher has an ability by having its members; `ModelTeacher` brings most of them. One that declares nothing of its cost, such as
a plug-in, is taken to make one forward pass for each pair or row, and nothing before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from nncift.core.arrays import Floats
from nncift.data.examples import Examples
from nncift.errors import UsageError
from nncift.models.causal_lm import CausalLM
from nncift.teachers import Chunk, FeatureTeacher, RowTeacher, Teacher

FORWARD, GRADIENT = 1, 3
"""What a forward pass costs, and a forward and backward pass."""
StoredAs = Literal["float16", "float32"]


@runtime_checkable
class HasLanguageModel(Protocol):
    """A teacher with a language model, which a probe, an encoder of hidden states and counts of tokens use too."""

    def language_model(self) -> CausalLM:
        """Return the model, loaded on first use."""
        ...


@runtime_checkable
class HasSubtasks(FeatureTeacher, Protocol):
    """A feature teacher whose targets may belong to subtasks, whose targets share one utility of each source."""

    @property
    def subtask(self) -> str | None:
        """The column that names a target's subtask; None = every target is its own."""
        ...

    def subtask_utility(self, targets: Floats, sources: Floats, ids: Sequence[str]) -> Floats:
        """Return `(n_targets, n_sources)` from features; ids: of all targets of the subtasks that are among them."""
        ...


@runtime_checkable
class Compact(Protocol):
    """A row teacher whose values are kept on disk in less than float32: they are many, and their last bits say nothing."""

    @property
    def stored_as(self) -> StoredAs:
        """The type that values are rounded to when they are kept."""
        ...


@runtime_checkable
class Monitored(Protocol):
    """A row teacher that counts, beside its values, what shows whether they mean anything (method.md 3.7)."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `measure` sums up over rows, in `RowLabels.figures`."""
        ...

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Return sentences for the run's summary from the figures' means over all measured rows."""
        ...


@runtime_checkable
class HasNotes(Protocol):
    """A teacher with something to say about the rows that it was given."""

    def notes(self) -> Sequence[str]:
        """Return plain sentences about the rows that were prepared; they become warnings of the run."""
        ...


@runtime_checkable
class KeepsWorkspace(Protocol):
    """A teacher that keeps in a folder what must outlive a kill, such as checkpoints."""

    @property
    def workspace(self) -> Path | None:
        """The folder; None = nothing is kept."""
        ...

    def use_workspace(self, folder: Path | None) -> None:
        """Keep it in this folder from now on."""
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """A teacher whose model is trained before the first row."""

    @property
    def warm_up_passes(self) -> int:
        """Passes that precede all rows; known once rows were prepared."""
        ...

    @property
    def warm_up_tokens(self) -> int:
        """Tokens of these passes."""
        ...

    def warm_up(self) -> Any:
        """Train, or take what lies in the workspace; `measure` does so by itself."""
        ...

    def without_warm_up(self) -> RowTeacher:
        """Return the same teacher on the model as it is, whose passes can be timed before the training is paid."""
        ...


@runtime_checkable
class DeclaresWeight(Protocol):
    """A teacher that says what one of its passes costs."""

    @property
    def pass_weight(self) -> int:
        """Forward passes that a pass costs as much as: 3 with a backward pass, 0 where no language model takes part."""
        ...


@runtime_checkable
class DeclaresPasses(Protocol):
    """A row teacher that says how many passes a row takes."""

    @property
    def row_passes(self) -> int:
        """Passes of a row, the same for every row; known before any row is measured."""
        ...


@runtime_checkable
class DeclaresChunkPasses(Protocol):
    """A teacher of pairs that makes passes for every chunk beside those of its pairs."""

    @property
    def chunk_passes(self) -> int:
        """Passes of a chunk with a source, its pairs left out."""
        ...


@runtime_checkable
class AimsAtTargets(Protocol):
    """A row teacher whose values depend on the rows of a target set."""

    @property
    def needs_targets(self) -> bool:
        """Whether it gives no values without a target set."""
        ...

    def aim(self, targets: Examples) -> None:
        """Take the target set, whose usable rows were prepared; another process takes it from the workspace."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A row teacher that knows the tokens of rows before it measures them."""

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens that measuring prepared rows takes, a warm-up left out."""
        ...


@runtime_checkable
class CountsChunkTokens(Protocol):
    """A teacher of pairs that knows the tokens of a chunk before it labels it."""

    def chunk_tokens(self, chunk: Chunk) -> int:
        """Return the tokens that labelling a chunk of prepared rows takes."""
        ...


@runtime_checkable
class CountsRowTokens(Protocol):
    """A teacher that knows the tokens of rows as they read alone, in its model's wording, which a probe shares."""

    def row_tokens(self, item: str) -> int | None:
        """Return the tokens of a prepared row that reads alone; None where that is not known."""
        ...


@runtime_checkable
class TriesSteps(Protocol):
    """A teacher that can do what an update of its warm-up computes, for its time, and change nothing."""

    def try_step(self, ids: Sequence[str]) -> None:
        """Compute the gradient of prepared rows as an update of the warm-up does."""
        ...


@dataclass(frozen=True)
class WarmUpCost:
    """Passes and tokens that precede all rows."""

    passes: int = 0
    tokens: int = 0


def language_model(teacher: Teacher | RowTeacher, option: str = "--encoder lm") -> CausalLM:
    """Return the teacher's language model. Raises UsageError, naming the option that needs one, where it has none."""
    check_language_model(teacher, option)
    assert isinstance(teacher, HasLanguageModel)
    return teacher.language_model()


def check_language_model(teacher: Teacher | RowTeacher, option: str) -> None:
    """Raise UsageError where an option needs a language model and the teacher has none; nothing is loaded."""
    if not isinstance(teacher, HasLanguageModel):
        raise UsageError(f"{option} needs a teacher with a language model; {teacher.name} has none")


def pass_weight(teacher: Teacher | RowTeacher) -> int:
    """Return what one of a teacher's passes costs, in forward passes."""
    return teacher.pass_weight if isinstance(teacher, DeclaresWeight) else FORWARD


def row_passes(teacher: RowTeacher) -> int:
    """Return the passes that a row takes."""
    return teacher.row_passes if isinstance(teacher, DeclaresPasses) else 1


def chunk_passes(teacher: Teacher | RowTeacher) -> int:
    """Return the passes of a chunk of pairs beside one for each pair."""
    return teacher.chunk_passes if isinstance(teacher, DeclaresChunkPasses) else 0


def check_aim(teacher: Teacher | RowTeacher, *, target: bool) -> None:
    """Raise UsageError where a teacher needs a target set and there is none."""
    if isinstance(teacher, AimsAtTargets) and teacher.needs_targets and not target:
        raise UsageError(
            f"the teacher {teacher.name} as it was asked for measures rows by a target set, and there is none; give --target FILE"
        )


def warm_up_cost(teacher: Teacher | RowTeacher) -> WarmUpCost:
    """Return what precedes all rows; rows must have been prepared."""
    if isinstance(teacher, WarmsUp):
        return WarmUpCost(teacher.warm_up_passes, teacher.warm_up_tokens)
    return WarmUpCost()


def notes_of(teacher: Teacher | RowTeacher) -> tuple[str, ...]:
    """Return what a teacher has to say about the rows that were prepared."""
    return tuple(teacher.notes()) if isinstance(teacher, HasNotes) else ()


def figures_of(teacher: Teacher | RowTeacher) -> tuple[str, ...]:
    """Return the names of what a teacher counts beside its values."""
    return teacher.figures if isinstance(teacher, Monitored) else ()


def stored_as(teacher: Teacher | RowTeacher) -> StoredAs:
    """Return the type in which a teacher's values are kept."""
    return teacher.stored_as if isinstance(teacher, Compact) else "float32"


def subtask_column(teacher: Teacher | RowTeacher) -> str | None:
    """Return the column that names subtasks; None for a teacher that was given none."""
    return teacher.subtask if isinstance(teacher, HasSubtasks) else None


@contextmanager
def workspace_in(teacher: Teacher | RowTeacher, folder: Path | None) -> Iterator[None]:
    """Let a teacher that has no workspace of its own keep in a folder, for a while, what it must not lose in a kill."""
    if not isinstance(teacher, KeepsWorkspace) or teacher.workspace is not None:
        yield
        return
    teacher.use_workspace(folder)
    try:
        yield
    finally:
        teacher.use_workspace(None)
