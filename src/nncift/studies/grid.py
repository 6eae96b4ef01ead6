"""A study as it is written: pools, analyses over them, and how often each is repeated (docs/study.md).

A study file is YAML. Names are checked before anything runs, and so is every run that it would make.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nncift import config
from nncift.config import CODE, RunSettings, SelectSettings
from nncift.core.result_types import JsonObject
from nncift.core.texts import first_line
from nncift.core.yaml_text import read_yaml
from nncift.errors import DataError, UsageError

PRESETS = Path(__file__).parent / "presets"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a pool: it names a folder."""

Kind = Literal["sweep", "layers", "tune", "bad-data", "retrain"]

LEAST_ROWS = 60
"""Rows of a pool below which too few are left to label, to validate and to test on."""

REHEARSAL: Mapping[str, Any] = {"labels": "40%", "test_items": 8, "validation_items": 6}
"""Settings of every run of a rehearsal: enough for a student and for held-out skill, however few the rows."""

WIDEST, NEW_TOKENS, BUDGET, HALVES = 50, 8, 0.1, 10

MOST_RUNS, MOST_PARTS = 10_000, 1_000
"""Runs of a study, and pools, analyses or values of a list: a file of a few lines can ask for more than a lifetime."""

TEST_ROWS = 16
"""Test rows of a rehearsal: so few that a quarter of them can still choose among learning rates."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class World(_Part):
    """A generated pool with a test set (`nncift.demo.make_world`)."""

    rows: int = Field(default=2000, ge=50, le=1_000_000)
    seed: int = 0
    test_rows: int = Field(default=240, ge=10, le=1_000_000)


class TargetRows(_Part):
    """Rows that show the behaviour wanted, and test rows of the same kind, drawn from files; none of them is in the pool.

    evenly: as many of every file, to a row, and not as many as its share of all of them; a file with too few is refused.
    """

    files: tuple[str, ...]
    rows: int = Field(default=16, ge=1)
    test: int = Field(default=40, ge=1)
    evenly: bool = False


class Pool(_Part):
    """Rows to select from, rows to test on, and the model that teaches and is tuned.

    world: a generated one; or files. longest: rows of more letters, prompt and response together, are left out. each: rows taken
    from every file. limit: rows taken from all files in proportion, and hold_out: how many of the rows are kept for the test; or
    test: a file of its own. target: a target set, whose test rows judge. small_model: for the arm `small-teacher`.
    """

    world: World | None = None
    files: tuple[str, ...] = ()
    longest: int | None = Field(default=None, ge=1)
    each: int | None = Field(default=None, ge=1)
    target: TargetRows | None = None
    limit: int | None = Field(default=None, ge=1)
    hold_out: int = Field(default=0, ge=0)
    test: str | None = None
    model: str | None = None
    small_model: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Pool:
        if (self.world is None) == (not self.files):
            raise ValueError("a pool is a world or files, one of the two")
        if self.target is not None and (self.world is not None or self.test or self.hold_out):
            raise ValueError("a target set brings the test rows of a pool of files; leave out world, test and hold_out")
        return self


@dataclass(frozen=True)
class Combination:
    """Settings of one run of a sweep. names: what each part of `over` is called in it."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """All names in one."""
        return ", ".join(self.names) or "run"

    @property
    def as_arm(self) -> str:
        """The name as one of an arm of `nncift tune`: letters, digits, dots and underscores."""
        return re.sub(r"[^A-Za-z0-9_.]+", "_", self.name)


class Analysis(_Part):
    """One question, asked of one pool.

    kind: sweep = a run for every combination of `over`, judged on held-out items and, with `truth`, under all pairs'
    utilities; layers = networks of several sizes on the labels of one run; tune = fine-tuning of every arm, with an arm for
    every combination of `over`, which names settings of the selection; bad-data = which score finds rows with wrong responses;
    retrain = which estimate foresees training on halves of the rows. run: settings of
    every run (names of `nncift run`). budgets: shares that are selected. options: what the kind takes beside that. seeds:
    None = the study's.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    kind: Kind
    pool: str
    about: str = ""
    run: dict[str, Any] = Field(default_factory=dict)
    over: dict[str, list[Any]] = Field(default_factory=dict)
    budgets: tuple[float, ...] = Field(default=(0.1, 0.3), max_length=MOST_PARTS)
    truth: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1)

    @property
    def runs(self) -> int:
        """Runs of every seed; where arms are trained, combinations are selections from one run."""
        return 1 if self.kind == "tune" else self.combined

    @property
    def combined(self) -> int:
        """How many combinations there are: counted, not made, for a product of a few lists is more than memory holds."""
        return math.prod(map(len, self.over.values()))

    def combinations(self) -> list[Combination]:
        """Return every combination of `over`, in the order written.

        A value that is a mapping sets several settings at once, under the name that it has as `as`.
        """
        found = []
        for values in itertools.product(*self.over.values()):
            settings: dict[str, Any] = {}
            names = []
            for name, value in zip(self.over, values, strict=True):
                several = dict(value) if isinstance(value, dict) else {name: value}
                own = several.pop("as", None)
                names.append(str(own) if own is not None else ", ".join(f"{key} {of}" for key, of in several.items()))
                settings |= several
            found.append(Combination(tuple(names), settings))
        return found


class Grid(_Part):
    """A whole study."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    about: str = ""
    seeds: int = Field(default=5, ge=1)
    pools: dict[Name, Pool] = Field(max_length=MOST_PARTS)
    analyses: tuple[Analysis, ...] = Field(max_length=MOST_PARTS)

    @model_validator(mode="after")
    def _known_pools(self) -> Grid:
        names = [analysis.name for analysis in self.analyses]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two analyses have the name {twice[0]!r}")
        for analysis in self.analyses:
            if analysis.pool not in self.pools:
                raise ValueError(f"analysis {analysis.name!r} is about a pool {analysis.pool!r}, and there is none")
        runs = {a.name: a.combined * (a.seeds or self.seeds) for a in self.analyses}
        if sum(runs.values()) > MOST_RUNS:
            most = max(runs, key=lambda name: runs[name])
            raise ValueError(
                f"it asks for more than {MOST_RUNS:,} runs, by `over` and `seeds`, most of them in analysis {most!r}; split it"
            )
        return self


@dataclass(frozen=True)
class Study:
    """A grid that can run, and the analyses that cannot, each with what it lacks."""

    grid: Grid
    left_out: Mapping[str, str]

    def seeds(self, analysis: Analysis) -> range:
        """Return the seeds of an analysis."""
        return range(analysis.seeds or self.grid.seeds)


def load(path: Path, given: Mapping[str, list[str]]) -> Study:
    """Read a study file; `$name` in pools and options stands for what was given under that name, `$name...` in a list for all.

    Analyses whose pool or options name something that was not given are left out, and are named. Raises DataError for a
    file that cannot be read, UsageError for names and values that do not fit, also in settings of runs.
    """
    written = _written(path)
    lacks: dict[str, str] = {}
    used: set[str] = set()
    for name, pool in written["pools"].items():
        missing: list[str] = []
        written["pools"][name] = _filled(pool, given, missing, used)
        if missing:
            lacks[str(name)] = missing[0]
    try:
        left, kept = {}, []
        for analysis in written.get("analyses", []):
            missing = [lacks[analysis["pool"]]] if analysis["pool"] in lacks else []
            analysis["options"] = _filled(analysis.get("options", {}), given, missing, used)
            if missing:
                left[str(analysis["name"])] = f"not run: give --set {missing[0]}=..."
            else:
                kept.append(analysis)
        written["analyses"] = kept
        written["pools"] = {name: pool for name, pool in written["pools"].items() if name not in lacks}
        grid = Grid(**written)
    except (KeyError, TypeError) as error:
        raise UsageError(f"the study {path.name}: every analysis needs name, kind and pool ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the study {path.name}, {where or 'as a whole'}: {first['msg']}") from error
    if unknown := sorted(set(given) - used):
        raise UsageError(f"--set {unknown[0]}=... was given, and the study {path.name} has no ${unknown[0]}")
    for analysis in grid.analyses:
        _check_sends_nothing(analysis, {value for values in given.values() for value in values})
        for chosen in analysis.combinations():
            check(analysis, chosen.settings)
        _check_over(analysis)
    return Study(grid, left)


def _written(path: Path) -> JsonObject:
    """Return what a study file holds. Raises DataError where it cannot be read, or holds no study."""
    try:
        written = read_yaml(path)
    except (OSError, ValueError) as error:
        raise DataError(f"the study {str(path)!r} cannot be read: {first_line(error)}") from error
    if not isinstance(written, dict) or not isinstance(written.get("pools"), dict):
        raise DataError(f"the study {str(path)!r} must hold `name`, `pools` and `analyses`")
    return written


def _check_sends_nothing(analysis: Analysis, typed: Collection[str]) -> None:
    """Raise UsageError where a study itself says whom rows are sent to, or which variable's value goes there as the key."""
    judge = analysis.options.get("judge")
    for name in ("base_url", "key_variable"):
        if isinstance(judge, Mapping) and judge.get(name) is not None and judge[name] not in typed:
            raise UsageError(
                f"analysis {analysis.name!r} says `{name}: {judge[name]}`, and a file does not decide where rows and keys are "
                f"sent; write `{name}: ${name}` there, and give --set {name}=..."
            )


def check(analysis: Analysis, settings: Mapping[str, Any]) -> RunSettings:
    """Return the settings of one run of an analysis. Raises UsageError, naming the analysis, where they do not fit."""
    given = {**analysis.run, **settings}
    if CODE in {*given, *analysis.options}:
        raise UsageError(
            f"analysis {analysis.name!r} sets `{CODE}`, and a file permits nothing; studies run no code that comes with a model"
        )
    if fixed := sorted({"pool", "seed", "budget", "model", "limit"} & set(given)):
        raise UsageError(f"analysis {analysis.name!r} sets {fixed[0]!r}, which its pool, seeds and budgets decide")
    try:
        return config.resolve(given)
    except UsageError as error:
        raise UsageError(f"analysis {analysis.name!r}: {error}") from error


def _check_over(analysis: Analysis) -> None:
    """Raise UsageError where an analysis varies what its kind does not."""
    if not analysis.over:
        return
    if analysis.kind == "layers":
        raise UsageError(
            f"analysis {analysis.name!r} has `over`, and layers varies the networks of one run; leave it out"
        )
    if analysis.kind != "tune":
        return
    chosen = analysis.combinations()
    varied = {name for one in chosen for name in one.settings}
    if others := sorted(varied - set(SelectSettings.model_fields)):
        raise UsageError(
            f"analysis {analysis.name!r} varies {others[0]!r}; where arms are trained, `over` names settings of the selection: "
            f"{', '.join(SelectSettings.model_fields)}. What the run measures is another analysis"
        )
    names = [one.as_arm for one in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"analysis {analysis.name!r} has two arms named {twice[0]!r} by `over`; name them apart by `as`"
        )


def _filled(value: Any, given: Mapping[str, list[str]], missing: list[str], used: set[str]) -> Any:
    """Put what was given in the place of `$name`, and note what was not."""
    if isinstance(value, dict):
        # What is optional of a pool is left away where it was not given.
        filled = {}
        for name, inner in value.items():
            optional = str(name) == "small_model"
            filled[name] = _filled(inner, given, [] if optional else missing, used)
        return filled
    if isinstance(value, list):
        return [found for inner in value for found in _spread(inner, given, missing, used)]
    if isinstance(value, str) and value.startswith("$"):
        used.add(value[1:])
        if value[1:] not in given:
            missing.append(value[1:])
            return None
        return given[value[1:]][0]
    return value


def _spread(value: Any, given: Mapping[str, list[str]], missing: list[str], used: set[str]) -> Iterator[Any]:
    if isinstance(value, str) and value.startswith("$") and value.endswith("..."):
        name = value[1:-3]
        used.add(name)
        if name not in given:
            missing.append(name)
        yield from given.get(name, [])
    else:
        yield _filled(value, given, missing, used)


def rehearsed(study: Study, rows: int) -> Study:
    """Return the same study over so many rows of each pool, with one seed, few labels, small networks and short answers.

    Everything else is as written: models, encoders, teachers, plans, arms, metrics. Raises UsageError for too few rows.
    """
    if rows < LEAST_ROWS:
        raise UsageError(f"--rehearse {rows} was given, and a rehearsal needs at least {LEAST_ROWS} rows of each pool")
    grid = study.grid
    small = Grid(
        name=grid.name,
        about=grid.about,
        seeds=1,
        pools={name: _small_pool(pool, rows) for name, pool in grid.pools.items()},
        analyses=tuple(_small_analysis(analysis) for analysis in grid.analyses),
    )
    return Study(small, study.left_out)


def _small_pool(pool: Pool, rows: int) -> Pool:
    few = rows // 5
    judges = max(few, TEST_ROWS)
    if pool.world is not None:
        world = pool.world
        cut = {"rows": min(world.rows, rows), "test_rows": min(world.test_rows, judges)}
        return pool.model_copy(update={"world": world.model_copy(update=cut)})
    held = min(pool.hold_out, judges)
    shorter: dict[str, Any] = {"limit": min(pool.limit or rows, rows) + held, "hold_out": held}
    if pool.each is not None:
        shorter = {"each": min(pool.each, -(-(rows + held) // len(pool.files))), "hold_out": held}
    if pool.target is not None:
        target = pool.target
        fewer = {"rows": min(target.rows, few), "test": min(target.test, judges)}
        shorter["target"] = target.model_copy(update=fewer)
    return pool.model_copy(update=shorter)


def _small_analysis(analysis: Analysis) -> Analysis:
    options = dict(analysis.options)
    for name, most in (("widest", WIDEST), ("max_new_tokens", NEW_TOKENS), ("halves", HALVES), ("targets", HALVES)):
        if name in options or (name == "widest" and analysis.kind == "layers"):
            options[name] = min(options.get(name, most), most)
    over = {name: [_small_value(name, value) for value in values] for name, values in analysis.over.items()}
    # A hundredth of few rows is none.
    budgets = tuple(dict.fromkeys(max(budget, BUDGET) for budget in analysis.budgets))
    # So is a tenth of their training, which a cap on the cost may be.
    run = {**analysis.run, **REHEARSAL} | ({"cost": "100%"} if "cost" in analysis.run else {})
    cut = {"run": run, "over": over, "budgets": budgets, "options": options, "seeds": None}
    return analysis.model_copy(update=cut)


def _small_value(name: str, value: Any) -> Any:
    """Return a value of `over` with the rehearsal's labels, under the name that it has in the study."""
    if isinstance(value, dict):
        return {key: REHEARSAL.get(key, inner) for key, inner in value.items()}
    return {"as": f"{name} {value}", name: REHEARSAL[name]} if name in REHEARSAL else value
