"""Settings of a run: one frozen class per stage, joined into one flat set whose names are the flags (docs/settings.md).

Every setting is declared here once: from its declaration come the flag with its help and completion, the comment in a settings
file, and the row of the table in the docs.

A settings file is YAML with the same names; flags override it. A run's `manifest.yaml` is such a file, with a `record`
of what was used (versions, hashes, seeds) that reading ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, PlainSerializer, PlainValidator, ValidationError, field_validator

from nncift import __version__
from nncift.core.amounts import Budget, CostCap, HoldoutAmount, LabelAmount, LabelBound, ProbeShare, TimeCap
from nncift.core.declaration import Settings, setting
from nncift.core.texts import first_line, nearest
from nncift.core.yaml_text import read_yaml
from nncift.errors import DataError, UsageError

if TYPE_CHECKING:
    # It comes with numpy, which a command's help does not wait for.
    from nncift.core.result_types import JsonObject

Kind = TypeVar("Kind", bound=BaseModel)
RowFormat = Literal["auto", "preference", "messages", "sharegpt", "alpaca", "prompt"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Turns = Literal["last", "all"]
"""Which assistant turns are scored, trained on and exported: the last that is learned from, or all that no mask excludes."""

# Read when settings are made; a settings file and a manifest hold the text.
_AsText = PlainSerializer(str, when_used="json")
BudgetSetting = Annotated[Budget, PlainValidator(Budget.parse), _AsText]
LabelSetting = Annotated[LabelAmount, PlainValidator(LabelAmount.parse), _AsText]
LabelBoundSetting = Annotated[LabelBound, PlainValidator(LabelBound.parse), _AsText]
CostSetting = Annotated[CostCap, PlainValidator(CostCap.parse), _AsText]
ProbeShareSetting = Annotated[ProbeShare, PlainValidator(ProbeShare.parse), _AsText]
HoldoutSetting = Annotated[HoldoutAmount, PlainValidator(HoldoutAmount.parse), _AsText]
TimeSetting = Annotated[TimeCap, PlainValidator(TimeCap.parse), _AsText]


class DataSettings(Settings):
    """What is read."""

    title = "Rows"

    pool: tuple[str, ...] = setting((), "Files of instruction examples, or hub:org/name[:split]")
    target: tuple[str, ...] = setting(
        (), "File of examples that show the behaviour wanted; may be repeated", metavar="FILE"
    )
    existing: tuple[str, ...] = setting(
        (), "File of examples that the model was trained on already; may be repeated", metavar="FILE"
    )
    against: tuple[str, ...] = setting(
        (), "File of test rows that must not be in POOL: exit code 5; may be repeated", metavar="FILE"
    )
    decontaminate: bool = setting(False, "Leave out rows that test rows of --against are in")
    holdout: HoldoutSetting | None = setting(
        None, "Rows set aside that nothing of the run sees, for tune to judge by: 10% or 500", metavar="AMOUNT"
    )
    format: RowFormat = setting("auto", "Format of the rows")
    map: dict[str, str] = setting(dict, "Read a field from a column: prompt=question", metavar="NAME=COLUMN")
    turns: Turns = setting(
        "last", "Assistant turns to score, train on and export: the last that is learned from, or every one"
    )
    limit: int | None = setting(None, "Rows in all: a seeded sample over all files in proportion", ge=1)
    strict: bool = setting(False, "Stop at the first row that cannot be used")

    @field_validator("pool", "target", "existing", "against", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class EncoderSettings(Settings):
    """How examples become vectors."""

    title = "Student"

    encoder: str = setting(
        "minilm",
        "Encoder of the rows (also a local folder or a hub name)",
        choices=("minilm", "bge-large", "lm", "hash"),
    )


class TeacherSettings(Settings):
    """Which influence function labels, and with which model."""

    title = "Teacher"

    teacher: str = setting(
        "delift",
        "Influence function that labels (also column:NAME)",
        choices=(
            "delift",
            "delift-se",
            "less",
            "selectit",
            "ifd",
            "loss",
            "rds",
            "ica",
            "ekfac",
            "logra",
            "trackstar",
            "retrain",
            "length",
            "random",
        ),
        shown="rds for a target set, without --labels; else less",
        plugins="nncift.teachers",
    )
    model: str | None = setting(
        None, "Language model of the teacher: a local folder, a hub name, a .gguf file, or smollm2"
    )
    variant: Literal["probability", "logprob"] = setting("probability", "Distance of DELIFT")
    template: str | None = setting(
        None, "Prompt format (also a text file with {prompt} and {response})", choices=("chat", "plain")
    )
    context: int | None = setting(None, "Cap on the tokens of one sequence", shown="the model's", ge=8)
    dtype: Precision = setting("auto", "Precision of the model")
    trust_remote_code: bool = setting(False, "Allow code that comes with the model")
    load_in: Literal["4bit", "8bit"] | None = setting(None, "Quantise the model through bitsandbytes (extra quantised)")
    device_map: Literal["auto"] | None = setting(None, "Spread the model over all GPUs (extra quantised)")
    option: dict[str, Any] = setting(
        dict, "Option of this teacher alone: projection=4096; may be repeated", metavar="NAME=VALUE"
    )


class LabelSettings(Settings):
    """How much is labelled, and where."""

    title = "Labels and cost"

    labels: LabelSetting = setting(
        LabelAmount.parse("5%"),
        "Share of each axis (5%), number of pairs (of rows, for a teacher that labels rows), or auto: double until held-out "
        "fidelity stops improving",
        metavar="AMOUNT",
        shown="5%, every row for rds and a target set",
    )
    plan: Literal["block", "scatter", "active", "rows"] | None = setting(
        None, "Where labels lie", shown="what fits the teacher"
    )
    test_items: int = setting(30, "Rows held out on each axis to measure fidelity", ge=2, le=100_000)
    validation_items: int = setting(20, "Rows held out on each axis to stop training", ge=2, le=100_000)


class SpendSettings(Settings):
    """How much labels, probe and embedding may take."""

    title = "Labels and cost"

    cost: CostSetting | None = setting(
        None,
        "Cap on labels, probe and embedding, as a share of training on the pool: 10%",
        shown="10% or 3,000 passes",
        metavar="SHARE",
    )
    time: TimeSetting | None = setting(None, "The same cap as a time, from timed passes: 30m, 2h, 90s", metavar="TIME")


class StudentSettings(Settings):
    """What learns from the labels."""

    title = "Student"

    student: str = setting(
        "product",
        "Network that learns the labels",
        choices=("product", "towers", "paper", "landmark", "ranker", "pretrained"),
        plugins="nncift.students",
    )
    recipe: Literal["default", "paper"] = setting("default", "How it is trained")
    features: Literal["text", "probe"] | None = setting(
        None,
        "What it reads, text alone or also a probe, which is one pass of the model per row",
        shown="probe where it is cheap",
    )
    probe_share: ProbeShareSetting | None = setting(
        None, "Share of each row's tokens that a probe reads", shown="what half the cap on cost allows", metavar="SHARE"
    )
    gate: bool = setting(True, "Use another student or free similarity where it selects better", shown="gate")


class GateSettings(Settings):
    """How good the student must be, and how far labels may grow for it."""

    title = "Labels and cost"

    min_spearman: float | None = setting(
        None, "Stop with exit code 5 below this rank correlation on unseen items", ge=-1, le=1
    )
    min_skill: float | None = setting(None, "Stop with exit code 5 below this selection skill on held-out items", le=1)
    max_labels: LabelBoundSetting | None = setting(
        None, "How far labels may grow for these, or with --labels auto: 10% or 20000", metavar="AMOUNT"
    )


class SelectSettings(Settings):
    """What is selected."""

    title = "Selection"

    objective: Literal["fl", "flmi", "fl2mi", "flcg", "rr", "max", "topk", "random"] | None = setting(
        None, "What the selection maximises", shown="what fits teacher and sets"
    )
    budget: BudgetSetting = setting(
        Budget.parse("30%"), "Share (30%), number of rows (5000), or tokens (2Mtok) to select", metavar="AMOUNT"
    )
    quota: tuple[str, ...] = setting(
        (),
        "Bounds for each value of a column (source: the file), or for one: COLUMN=VALUE:...; may be repeated",
        metavar="COLUMN:min=5%,max=40%",
    )
    include: str | None = setting(None, "File of ids, one a line, that must be selected", metavar="FILE")
    exclude: str | None = setting(None, "File of ids, one a line, that must not be selected", metavar="FILE")
    dedup: str | None = setting(
        None, "Remove duplicates before selecting", choices=("exact", "near:0.95"), shown="keep them"
    )
    neighbours: int | None = setting(
        None,
        "Select on a graph of so many nearest rows each (32 to 64), where all pairs would not fit in memory",
        ge=1,
    )

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
    """The whole run."""

    title = "Run"

    preset: Literal["auto", "cheap", "paper"] = setting(
        "auto",
        "Defaults of what is not given: by evidence, from embeddings alone, or as published",
    )
    prove: bool = setting(
        False, "When all is done, tune with --holdout: the selection beside random rows, embeddings and no training"
    )
    seed: int = setting(0, "One seed for everything", ge=0)
    device: str = setting("auto", "Device of the models", choices=("auto", "cpu", "cuda", "cuda:0", "mps"))

    def part(self, stage: type[Settings]) -> JsonObject:
        """Return the settings that belong to one stage's class."""
        return self.model_dump(mode="json", include=set(stage.model_fields))


PARTS = (
    *(DataSettings, EncoderSettings, TeacherSettings, LabelSettings, SpendSettings),
    *(StudentSettings, GateSettings, SelectSettings, RunSettings),
)
"""The classes of settings in the order of a settings file; each setting belongs to the first that has it."""

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
"""What each preset sets where nothing else is given. auto: what the evidence says (docs/results/real.md); cheap: similarity
of the embeddings, and no language model; paper: as published (NN-CIFT, arXiv 2502.09969). See also `defaults`."""

FOR_TARGETS = "rds"
"""The teacher of preset auto for a target set: rows that it chose trained as well as those of LESS and its student or better, on
each of three tasks, at half the cost or the same (docs/results/real.md). It reads every row once, and no student predicts it."""

CODE = "trust_remote_code"
"""The setting that permits: it counts where it is given with the call, and never where a file has it."""

SELECTION = frozenset({"budget", "objective", "quota", "include", "exclude", "dedup", "existing", "neighbours"})
"""Settings that only the last stage depends on."""

GROWING = (
    SELECTION
    | {"pool", "against", "decontaminate", "limit", "labels", "strict", "device", "format", "map"}
    | {"min_spearman", "min_skill", "max_labels", "cost", "time", "trust_remote_code", "prove"}
)
"""Settings that may change when a run is continued; what they produce is checked where it is used."""


def defaults(values: Mapping[str, Any], *, aimed: bool = False) -> JsonObject:
    """Return what stands where these values name nothing: what the preset says, and what follows from a target set.

    aimed: a target set is given that is no file. Who asks for few labels asks for a student, which RDS has no need of.
    """
    preset = str(values.get("preset", "auto"))
    found, aimed = dict(PRESETS.get(preset, {})), aimed or bool(values.get("target"))
    if preset == "auto" and aimed and "labels" not in values:
        found["teacher"] = FOR_TARGETS
    if aimed and {**found, **values}.get("teacher") == FOR_TARGETS:
        found["labels"] = "100%"
    return found


def resolve(given: Mapping[str, Any], file: Path | None = None, *, aimed: bool = False) -> RunSettings:
    """Join a preset, a settings file and given values (later ones win) into checked settings. aimed: see `defaults`.

    Raises DataError for a file that cannot be read, UsageError for an unknown name, a value of the wrong kind, and a file that
    would permit what only the call can.
    """
    found = _complete({**(load(file) if file else {}), **given}, aimed=aimed)
    if found.trust_remote_code and CODE not in given:
        raise UsageError(
            f"the settings file {str(file)!r} says `{CODE}: true`, and a file permits nothing. To run the code that comes with "
            "the model, give --trust-remote-code with this command; otherwise take the line out"
        )
    return found


def recorded(manifest: Path, given: Mapping[str, Any] | None = None) -> RunSettings:
    """Return the settings that a run was made with, with given values in their place: a record, which permits nothing.

    Raises DataError, naming the file, for one that cannot be read or holds what no run was made with, UsageError for an unknown
    name or a value of the wrong kind among those given.
    """
    own = load(manifest)
    try:
        found = _complete(own)
    except UsageError as error:
        by = made_by(manifest)
        what = "is damaged"
        if by not in (None, __version__):
            what = f"was written by nncift {by}, and nncift {__version__} cannot read it"
        raise DataError(
            f"{str(manifest)!r} {what}: {error}; restore it, or delete it and give every setting again"
        ) from error
    return _complete({**own, **given}) if given else found


def _complete(values: Mapping[str, Any], *, aimed: bool = False) -> RunSettings:
    return checked(RunSettings, {**defaults(values, aimed=aimed), **values})


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


def load(path: Path) -> JsonObject:
    """Read a settings file without checking its values; the `record` of a manifest is left out."""
    return {name: value for name, value in _read(path).items() if name != "record"}


def is_manifest(path: Path) -> bool:
    """Tell whether a settings file is what a run left of itself."""
    return "record" in _read(path)


def made_by(manifest: Path) -> str | None:
    """Return the version of nncift that made a run, as its manifest says; None where that cannot be read."""
    try:
        return str(_read(manifest)["record"]["versions"]["nncift"])
    except (DataError, KeyError, TypeError):
        return None


def _read(path: Path) -> JsonObject:
    try:
        values = read_yaml(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the settings file {str(path)!r} cannot be read: {first_line(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise DataError(f"the settings file {str(path)!r} must hold names and values, such as `labels: 5%`")
    return values
