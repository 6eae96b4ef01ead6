"""Settings of a run: one frozen class per stage, joined into one flat set whose names are the flags (docs/cli.md).

A settings file is YAML with the same names; flags override it. A run's `manifest.yaml` is such a file, with a `record`
of what was used (versions, hashes, seeds) that reading ignores.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, field_validator

from nncift.core.amounts import Budget, CostCap, LabelAmount, LabelBound, TimeCap
from nncift.core.texts import read_text
from nncift.errors import DataError, UsageError

Kind = TypeVar("Kind", bound=BaseModel)

# Read when settings are made; a settings file and a manifest hold the text.
_AsText = PlainSerializer(str, when_used="json")
BudgetSetting = Annotated[Budget, PlainValidator(Budget.parse), _AsText]
LabelSetting = Annotated[LabelAmount, PlainValidator(LabelAmount.parse), _AsText]
LabelBoundSetting = Annotated[LabelBound, PlainValidator(LabelBound.parse), _AsText]
CostSetting = Annotated[CostCap, PlainValidator(CostCap.parse), _AsText]
TimeSetting = Annotated[TimeCap, PlainValidator(TimeCap.parse), _AsText]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(_Settings):
    """What is read."""

    pool: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    decontaminate: bool = False
    format: Literal["auto", "preference", "messages", "sharegpt", "alpaca", "prompt"] = "auto"
    map: dict[str, str] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    strict: bool = False

    @field_validator("pool", "target", "existing", "against", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class EncoderSettings(_Settings):
    """How examples become vectors."""

    encoder: str = "minilm"


class TeacherSettings(_Settings):
    """Which influence function labels, and with which model."""

    teacher: str = "delift"
    model: str | None = None
    variant: Literal["probability", "logprob"] = "probability"
    template: str | None = None
    context: int | None = Field(default=None, ge=8)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    load_in: Literal["4bit", "8bit"] | None = None
    device_map: Literal["auto"] | None = None
    option: dict[str, Any] = Field(default_factory=dict)


class LabelSettings(_Settings):
    """How much is labelled, and where."""

    labels: LabelSetting = LabelAmount.parse("5%")
    plan: Literal["block", "scatter", "active", "rows"] | None = None
    test_items: int = Field(default=30, ge=2)
    validation_items: int = Field(default=20, ge=2)


class SpendSettings(_Settings):
    """How much labels, probe and embedding may take."""

    cost: CostSetting | None = None
    time: TimeSetting | None = None


class StudentSettings(_Settings):
    """What learns from the labels."""

    student: str = "product"
    recipe: Literal["default", "paper"] = "default"
    features: Literal["text", "probe"] | None = None
    gate: bool = True


class GateSettings(_Settings):
    """How good the student must be, and how far labels may grow for it."""

    min_spearman: float | None = Field(default=None, ge=-1, le=1)
    min_skill: float | None = Field(default=None, le=1)
    max_labels: LabelBoundSetting | None = None


class SelectSettings(_Settings):
    """What is selected."""

    objective: Literal["fl", "flmi", "fl2mi", "flcg", "rr", "max", "topk", "random"] | None = None
    budget: BudgetSetting = Budget.parse("30%")
    quota: tuple[str, ...] = ()
    include: str | None = None
    exclude: str | None = None
    dedup: str | None = None
    neighbours: int | None = Field(default=None, ge=1)
    optimiser: Literal["lazy", "stochastic", "partition"] | None = None

    @field_validator("quota", mode="before")
    @classmethod
    def _one_quota(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class RunSettings(
    DataSettings,
    EncoderSettings,
    TeacherSettings,
    LabelSettings,
    SpendSettings,
    StudentSettings,
    GateSettings,
    SelectSettings,
):
    """All settings of a run. preset: what stands for settings that are not given, see `PRESETS`."""

    preset: Literal["auto", "cheap", "paper"] = "auto"
    seed: int = Field(default=0, ge=0)
    device: str = "auto"

    def part(self, stage: type[_Settings]) -> dict[str, Any]:
        """Return the settings that belong to one stage's class."""
        return self.model_dump(mode="json", include=set(stage.model_fields))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "auto": {"teacher": "less"},
    "cheap": {"teacher": "delift-se", "labels": "100%"},
    "paper": {
        "teacher": "delift",
        "encoder": "bge-large",
        "plan": "block",
        "student": "paper",
        "recipe": "paper",
        "features": "text",
        "gate": False,
    },
}
"""What each preset sets where nothing else is given. auto: what the evidence says (docs/results/fidelity.md); cheap: similarity
of the embeddings, and no language model; paper: as published (NN-CIFT, arXiv 2502.09969)."""


SELECTION = frozenset(
    {"budget", "objective", "quota", "include", "exclude", "dedup", "existing", "neighbours", "optimiser"}
)
"""Settings that only the last stage depends on."""

GROWING = SELECTION | {
    "pool",
    "against",
    "decontaminate",
    "limit",
    "labels",
    "strict",
    "device",
    "format",
    "map",
    "min_spearman",
    "min_skill",
    "max_labels",
    "cost",
    "time",
}
"""Settings that may change when a run is continued; what they produce is checked where it is used."""


MOST_BYTES = 1 << 24
"""Longest settings file."""


def resolve(given: Mapping[str, Any], file: Path | None = None) -> RunSettings:
    """Join a preset, a settings file and given values (later ones win) into checked settings.

    Raises DataError for a file that cannot be read, UsageError for an unknown name or a value of the wrong kind.
    """
    values = {**(load(file) if file else {}), **given}
    return checked(RunSettings, {**PRESETS.get(str(values.get("preset", "auto")), {}), **values})


def checked(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Make settings of a kind. Raises UsageError for an unknown name or a value of the wrong kind."""
    unknown = sorted(set(values) - set(kind.model_fields))
    if unknown:
        raise UsageError(f"there is no setting {unknown[0]!r}{nearest(unknown[0], kind.model_fields)}")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name!r} was given as {first['input']!r}: {first['msg']}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a settings file without checking its values; the `record` of a manifest is left out."""
    try:
        values = _parsed(path)
    # An integer of too many digits is a ValueError.
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the settings file {str(path)!r} cannot be read: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise DataError(f"the settings file {str(path)!r} must hold names and values, such as `labels: 5%`")
    return {name: value for name, value in values.items() if name != "record"}


def _parsed(path: Path) -> Any:
    """Parse a file without aliases: a few lines of them can stand for more values than memory holds."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    text = read_text(path)
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it has an alias (*name), which settings do not need; write the value out")
    return yaml.safe_load(text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest known name, or at all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
