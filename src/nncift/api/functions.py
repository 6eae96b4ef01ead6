"""Every command as a function. Each does what the command of its name does, and returns what its `--json` prints."""

from __future__ import annotations

import functools
import inspect as signatures
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from nncift import pipeline
from nncift.api.progress_bars import for_people
from nncift.api.run_object import Run
from nncift.config import Precision, RowFormat, RunSettings, Turns
from nncift.core.permissions import Permissions
from nncift.core.progress import Progress
from nncift.errors import UsageError
from nncift.models.encoders import Encoder
from nncift.runs.finished import FinishedRun
from nncift.teachers import RowTeacher, Teacher

Files = str | Path | Sequence[str | Path]
Amount = str | int | float
Function = TypeVar("Function", bound=Callable[..., Any])


class SelectOptions(TypedDict, total=False):
    """What is selected (docs/settings.md has each setting's meaning)."""

    budget: Amount
    objective: Literal["fl", "flmi", "fl2mi", "flcg", "rr", "max", "topk", "random"]
    quota: str | Sequence[str]
    include: str
    exclude: str
    dedup: str
    neighbours: int


class RunOptions(SelectOptions, total=False):
    """Settings of a run, as the flags of `nncift run` (docs/settings.md has each setting's meaning)."""

    preset: Literal["auto", "cheap", "paper"]
    against: Any
    decontaminate: bool
    holdout: Amount
    prove: bool
    model: str
    labels: Amount
    max_labels: Amount
    cost: Amount
    time: Amount
    plan: Literal["block", "scatter", "active", "rows"]
    test_items: int
    validation_items: int
    student: str
    recipe: Literal["default", "paper"]
    features: Literal["text", "probe"]
    probe_share: Amount
    gate: bool
    min_spearman: float
    min_skill: float
    variant: Literal["probability", "logprob"]
    template: str
    context: int
    dtype: Precision
    trust_remote_code: bool
    load_in: Literal["4bit", "8bit"]
    device_map: Literal["auto"]
    option: Mapping[str, Any]
    format: RowFormat
    map: Mapping[str, str]
    turns: Turns
    limit: int
    strict: bool
    seed: int
    device: str


class ExportOptions(TypedDict, total=False):
    """How rows are written. max_length: the trainer's limit in tokens; what it would cut of a response is refused or dropped."""

    turns: Turns
    max_length: int
    too_long: Literal["refuse", "drop"]
    tokenizer: str
    with_scores: bool


def _spelled_out(options: Any) -> Callable[[Function], Function]:
    """Give a function a signature that names its settings with their defaults, for `help` and for editors."""

    def wrap(function: Function) -> Function:
        own = signatures.signature(function)
        kept = [item for item in own.parameters.values() if item.kind is not signatures.Parameter.VAR_KEYWORD]
        named = [
            signatures.Parameter(
                name,
                signatures.Parameter.KEYWORD_ONLY,
                default=RunSettings.model_fields[name].get_default(call_default_factory=True),
                annotation=kind,
            )
            for name, kind in options.__annotations__.items()
        ]

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        called.__signature__ = own.replace(parameters=[*kept, *named])  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return wrap


@_spelled_out(RunOptions)
def run(
    rows: Any,
    *,
    out: str | Path | None = None,
    teacher: str | Teacher | RowTeacher | None = None,
    target: Any = None,
    existing: Any = None,
    encoder: str | Encoder | None = None,
    progress: Progress | None = None,
    **settings: Unpack[RunOptions],
) -> Run:
    """Select rows that are worth training on, by influence that a small network learned from a few percent of the labels.

    rows: paths, a list of dicts, a DataFrame, a `datasets.Dataset`, any iterable of rows; target (rows that shall be served),
    existing (rows that were trained on already) and against (test rows that must not be among them) alike. out: the run's
    directory, one that exists is continued or extended; None = a temporary folder that goes with the run. teacher, encoder: names
    or objects, by default those of the preset. progress: shows how far things are; by default bars where somebody looks.
    settings: as the flags of `nncift run`.

    Raises the errors of `nncift.errors`, each of which says what was given, what was expected, and what to do.
    """
    temporary = None
    if out is None:
        temporary = TemporaryDirectory(prefix="nncift-")
        out = Path(temporary.name) / "run"
    made = pipeline.run(
        rows,
        out=out,
        teacher=teacher,
        target=target,
        existing=existing,
        encoder=encoder,
        progress=progress or for_people(),
        **settings,
    )
    done = Run(made.path, temporary)
    if done.settings.prove:
        from nncift.finetune.prove import prove

        allowed = Permissions(settings.get("trust_remote_code", False))
        prove(done.path, progress or for_people(), allowed=allowed)
    return done


def load(path: str | Path) -> Run:
    """Return the finished run in a directory. Raises DataError where there is none."""
    return Run(path)


@_spelled_out(SelectOptions)
def select(path: str | Path, *, out: str | Path | None = None, **settings: Unpack[SelectOptions]) -> Mapping[str, Any]:
    """Select again from a finished run; no model is loaded. out: a new directory, None = replace the run's selection."""
    from nncift.runs.select_again import reselect

    return reselect(Path(path), settings, None if out is None else Path(out)).to_json()


def score(
    rows: Any, *, run: str | Path, out: str | Path, device: str = "auto", fetch: bool = False
) -> Mapping[str, Any]:
    """Score rows with the student of a finished run, and write `id, score, interval_low, interval_high`.

    rows: whatever `nncift.run` takes. fetch: fetch the encoder that the run names from the hub.
    """
    from nncift.data import rows_from
    from nncift.data.python_rows import are_paths
    from nncift.stages.finish import score_file
    from nncift.stages.inputs import turns_of
    from nncift.storage.outputs import check_replaces_nothing

    files = [] if not are_paths(rows) else [rows] if isinstance(rows, str | Path) else rows
    check_replaces_nothing(Path(out), files, Path(run))
    read = rows_from(rows, turns=turns_of(run))
    return score_file(read, Path(run), Path(out), device=device, fetch=fetch).to_json()


def evaluate(
    path: str | Path,
    *,
    full_teacher: bool = False,
    retrain: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    fetch: bool = False,
) -> Mapping[str, Any]:
    """Measure a run's student; full_teacher: label every pair (resumable), and judge selection and intervals by the truth.

    retrain: settings of `nncift evaluate --retrain` (docs/retraining.md), an empty dict for its defaults; what training on halves
    of the rows says stands under `retraining`. trust_remote_code: run the code that comes with the run's model. fetch: fetch that
    model from the hub.
    """
    from nncift.runs.evaluate import evaluate

    allowed = Permissions(trust_remote_code, fetch)
    shown = progress or for_people()
    result = evaluate(Path(path), full_teacher=full_teacher, device=device, progress=shown, allowed=allowed).to_json()
    if retrain is None:
        return result
    from nncift.finetune.retraining import retrain as trained

    given = {"device": device, **retrain}
    found = trained(Path(path), given, full_teacher=full_teacher, progress=shown, allowed=allowed)
    return {**result, "retraining": found.to_json()}


def explain(
    path: str | Path,
    example_id: str | None = None,
    *,
    rank: int | None = None,
    search: str | None = None,
    why_not: bool = False,
) -> Mapping[str, Any]:
    """Tell why a row was chosen or dropped, and what would have to change.

    The row is named by its id, its rank, or a text in it; where several rows have the text, these are returned.
    """
    from nncift.runs.explain import explain_found

    return explain_found(path, example_id, rank=rank, search=search, why_not=why_not).to_json()


def query(
    path: str | Path,
    rows: Any,
    *,
    top: int = 10,
    exact: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Mapping[str, Any]:
    """Tell which rows of a run's pool push a model to the responses of some rows, the strongest first.

    rows: whatever `nncift.run` takes, typically a bad answer of a tuned model with its prompt. top: rows of each that are
    returned. exact: rows, the best by the student, whose utility the teacher itself computes. Models that are not at hand are
    not fetched.
    """
    from nncift.data import rows_from
    from nncift.runs.query import Question, query

    run = FinishedRun(path, Permissions(trust_remote_code))
    read = rows_from(rows, turns=run.settings.turns)
    return query(run, read, Question(top, exact, device), progress=for_people()).to_json()


def report(path: str | Path, *, without_texts: bool = False) -> Path:
    """Make the report of a finished run again where it is missing or old, and return its path.

    without_texts: write a copy to pass on, with ids in the place of texts and without folders.
    """
    from nncift.runs.report import write_report, write_shared

    return write_shared(path) if without_texts else write_report(path)


def compare(a: str | Path, b: str | Path, *, clusters: int = 10) -> Mapping[str, Any]:
    """Compare two selections: overlap, coverage, shifts between clusters of the embeddings."""
    from nncift.runs.compare import compare

    return compare(Path(a), Path(b), clusters=clusters).to_json()


def export(
    path: str | Path,
    *,
    out: str | Path,
    to: str = "same",
    **options: Unpack[ExportOptions],
) -> Mapping[str, Any]:
    """Write the selected rows as a trainer loads them, checked before they are written.

    to: same, trl, axolotl, llamafactory or openai. options: as the flags of `nncift export`.
    """
    from nncift.data.export import export
    from nncift.data.lengths import LengthLimit
    from nncift.models.packaged import readable

    most, too_long = options.get("max_length"), options.get("too_long", "refuse")
    limit = None if most is None else LengthLimit(most, options.get("tokenizer"), too_long)
    turns, with_scores = options.get("turns"), options.get("with_scores", False)
    found = export(path, out, to=to, turns=turns, length=limit, with_scores=with_scores, locate=readable)
    return found.to_json()


def tune(
    path: str | Path,
    test: Files | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    fetch: bool = False,
    **settings: Any,
) -> Mapping[str, Any]:
    """Train on a run's selection and on rival subsets alike, and judge them by test rows that none has seen.

    test: files of test rows, None = the rows that the run has set aside (`holdout`). settings: as the flags of `nncift tune`.
    trust_remote_code, fetch: as in `evaluate`.
    """
    from nncift.finetune.experiment import tune

    files = [test] if isinstance(test, str | Path) else list(test or ())
    given = {**settings, "test": tuple(str(file) for file in files)}
    allowed = Permissions(trust_remote_code, fetch)
    return tune(path, given, None if out is None else Path(out), progress or for_people(), allowed=allowed)


def study(
    grid: str | Path | None = None,
    *,
    preset: str | None = None,
    out: str | Path,
    device: str = "auto",
    progress: Progress | None = None,
) -> Mapping[str, Any]:
    """Run the analyses of a study file, or of a preset; what is finished is not computed again.

    Raises UsageError unless one of the two is given.
    """
    from nncift.studies import run_study

    if (grid is None) == (preset is None):
        raise UsageError("give a study file or preset='laptop', one of the two")
    file = run_study.preset(str(preset)) if grid is None else Path(grid)
    return run_study.study(file, Path(out), device=device, progress=progress or for_people())


def inspect(
    *files: str,
    format: str = "auto",  # noqa: A002
    map: Mapping[str, str] | None = None,  # noqa: A002
    turns: Turns = "last",
    tokenizer: str | None = None,
    against: Files = (),
    encoder: str | None = None,
) -> Mapping[str, Any]:
    """Tell formats, counts, problems with their lines, token statistics and duplicates of files.

    against: files of test rows, which must not be in the others; encoder: compares meanings with those too.
    """
    from nncift.stages.inspection import inspect

    tests = [against] if isinstance(against, str | Path) else list(against)
    found = inspect(*files, format=format, map=map, turns=turns, tokenizer=tokenizer, against=tests, encoder=encoder)
    return found.to_json()
