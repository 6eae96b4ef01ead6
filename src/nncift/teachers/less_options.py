"""Settings of LESS (method.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nncift.core.result_types import JsonObject
from nncift.errors import UsageError
from nncift.models.checkpoints import Direction
from nncift.models.lora import LoraShape
from nncift.models.response_reader import ModelSettings
from nncift.teachers.less_features import Aggregate
from nncift.teachers.less_projection import ProjectionKind


class LessSettings(ModelSettings, total=False):
    """What `Less` takes by keyword: the settings of every model teacher, and its own (see `LessOptions`)."""

    lora: bool | None
    checkpoints: int | Sequence[str | Path] | None
    warmup_share: float | None
    epochs: int
    learning_rate: float
    rank: int
    alpha: float
    dropout: float
    targets: Sequence[str] | None
    projection: int
    projection_kind: ProjectionKind | Literal["target"]
    adam: Direction
    aggregate: Aggregate
    subtask: str | None


@dataclass(frozen=True)
class LessOptions:
    """LESS's own settings.

    lora: None or True = LoRA matrices through peft; False = all parameters, for small models. rank, alpha, dropout: of LoRA.
    targets: ends of the names of modules that have LoRA, or whose weights count without it, `["all-linear"]` for all linear
    layers of the body; None = the attention's projections for LoRA, all parameters without. checkpoints: None = as many of the
    warm-up's epochs as enough updates lie between (`Recipe.kept`); a number of them; or peft adapter folders of the user's own,
    in place of a warm-up. warmup_share: of the pool's rows; None = 5 %, above 1,000 rows less (`Recipe.rows`); 0 = no warm-up,
    one checkpoint whose optimiser has seen nothing, so that Adam's direction is its first step (close to the gradient's sign);
    `adam="none"` takes plain gradients for sources too.
    projection: dimensions.
    subtask: a column of the target rows that names each row's subtask; aggregate: what a subtask's rows make of a source, see
    `GradientFeatures`.
    """

    lora: bool | None = None
    checkpoints: int | Sequence[str | Path] | None = None
    warmup_share: float | None = None
    epochs: int = 4
    learning_rate: float = 2e-5
    rank: int = 128
    alpha: float = 512
    dropout: float = 0.1
    targets: Sequence[str] | None = None
    projection: int = 32_768
    projection_kind: ProjectionKind = "sketch"
    adam: Direction = "corrected"
    aggregate: Aggregate = "cosine-of-mean"
    subtask: str | None = None

    def __post_init__(self) -> None:
        if self.adam not in get_args(Direction):
            raise UsageError(f"LESS's adam is {', '.join(get_args(Direction))}, not {self.adam!r}")
        if self.aggregate not in get_args(Aggregate):
            raise UsageError(f"LESS's aggregate is {' or '.join(get_args(Aggregate))}, not {self.aggregate!r}")
        if self.folders is not None and (self.lora is False or not self.folders):
            raise UsageError("checkpoints of your own are LoRA folders, at least one, and exclude lora=False")

    @property
    def folders(self) -> tuple[Path, ...] | None:
        """Folders of the user's own checkpoints; None where there are none."""
        brought = self.checkpoints is not None and not isinstance(self.checkpoints, int)
        return tuple(map(Path, self.checkpoints)) if brought else None  # type: ignore[arg-type]

    @property
    def shape(self) -> LoraShape | None:
        """Of the LoRA matrices; None where weights count themselves."""
        return None if self.lora is False else LoraShape(self.rank, self.alpha, self.dropout, self.modules)

    @property
    def modules(self) -> tuple[str, ...] | None:
        """The targets; a single name is one too."""
        if self.targets is None:
            return None
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def to_json(self) -> JsonObject:
        """Return the settings that would make them again."""
        plain = {"lora": self.lora is not False, "targets": self.modules and list(self.modules)}
        plain |= {} if self.folders is None else {"checkpoints": [str(folder) for folder in self.folders]}
        return {**vars(self), **plain}
