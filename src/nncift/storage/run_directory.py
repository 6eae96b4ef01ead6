"""The run directory: what was asked, what is finished, what it cost; one process at a time.

A stage takes its old mark away, writes its files and its cost, and last its mark with its fingerprint and checksums. Running
again skips a stage whose mark carries the same fingerprint and whose files are what it wrote. `manifest.yaml` is a settings
file that repeats the run; `summary.json` is there when the whole run is finished.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from nncift import __version__, config
from nncift.config import GROWING, RunSettings
from nncift.core.fingerprints import fingerprint as fingerprint_of
from nncift.core.memory import named
from nncift.core.texts import parsed_file
from nncift.core.yaml_text import read_yaml
from nncift.errors import DataError, ResourceError, UsageError
from nncift.storage import checksums
from nncift.storage.atomic import check_permitted, read_json, write_sealed, write_text
from nncift.storage.ledger import StageCost, Stopwatch
from nncift.storage.locks import PathLock
from nncift.storage.outputs import check_run_folder
from nncift.storage.selection_folder import is_selection_folder

log = logging.getLogger(__name__)
MANIFEST = "manifest.yaml"
SUMMARY = "summary.json"
LOCK = ".lock"
TEACHER = "labels/teacher.json"
"""What the teacher says of itself: its model, how it words rows, what decides its values."""

MARK_OF_MANIFEST, FINISH = "manifest", "finish"
LEFT = (SUMMARY, "ledger.json", "rejected.jsonl", "growth.json", "subtasks.json")
"""What a finished run leaves beside the files of its stages."""

BEFORE_MANIFEST = frozenset(
    {LOCK, "stages", "costs.json", "pool.json", "unusable.json", "notes.json", "labels", "pieces"}
    | {"holdout.jsonl", "holdout.json"}
)
"""What a run can leave that was refused or killed before its settings were settled."""

CONCLUDED_FROM = ("teacher", "target", "existing")
"""Settings that an objective follows from where none is given."""

PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy", "numba", "pyarrow")


@dataclass
class Stage:
    """One stage while it runs. done: a finished one with this fingerprint exists and its files can be read."""

    done: bool
    cost: StageCost


class RunDir:
    """A run directory under lock; use it as a context manager."""

    def __init__(self, path: str | Path, settings: RunSettings) -> None:
        self.path = Path(path)
        self.settings = settings
        self._lock: PathLock | None = None
        self._costs: dict[str, StageCost] = {}

    def __enter__(self) -> Self:
        """Create or reopen the directory.

        Raises ResourceError where it cannot be written or another process holds it, UsageError where it is no run
        directory or was made with settings that what exists depends on.
        """
        try:
            check_run_folder(self.path, self.settings)
            self._check_own()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = PathLock(self.path / LOCK)
            taken = lock.take()
        except OSError as error:
            raise ResourceError(f"--out {str(self.path)!r} cannot be written: {error.strerror}") from error
        if not taken:
            raise ResourceError(
                f"another process works on {str(self.path)!r}; wait until it ends, or use another --out"
            )
        self._lock = lock
        try:
            self._check_settings()
            self._costs = self._read_costs()
        except BaseException:
            lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()

    def check(self) -> None:
        """Raise what entering would raise of the place and of the settings given so far, and write nothing."""
        self._check_own()
        place = next(each for each in (self.path.absolute(), *self.path.absolute().parents) if each.exists())
        if not os.access(place, os.W_OK):
            raise ResourceError(f"--out {str(self.path)!r} cannot be written: no permission in {str(place)!r}")
        self._check_settings(given=True)

    def file(self, name: str) -> Path:
        """Return the path of a file of this run that is about to be written, its folder made.

        Raises ResourceError where the directory is no longer where it was when the run began.
        """
        self._check_in_place()
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _check_in_place(self) -> None:
        if self._lock is not None:
            self._lock.check_in_place()

    def read_json(self, name: str, default: Any = None, *, sealed: bool = False) -> Any:
        """Read a JSON file of this run; `default` where there is none. sealed: `write_sealed` wrote it.

        Raises DataError where it is damaged.
        """
        path = self.path / name
        if not path.exists():
            return default
        try:
            return read_json(path) if sealed else parsed_file(path)
        except (OSError, ValueError, RecursionError) as error:
            check_permitted(error, path)
            raise DataError(
                f"{str(path)!r} is damaged ({error}); delete the run directory or use another --out"
            ) from error

    def whole_json(self, name: str, stage: str, default: Any = None) -> Any:
        """Read a JSON file that a stage left; `default` where it is missing or damaged, so that the stage makes it again."""
        mark = checksums.read_mark(self.path, stage)
        return self.read_json(name, default) if checksums.matches(self.path, mark, (name,)) else default

    def is_done(self, name: str, fingerprint: str, files: Sequence[str] = ()) -> bool:
        """Tell whether a stage with this fingerprint is finished, and its files are what it wrote."""
        return checksums.is_marked(self.path, name, fingerprint, files)

    def forget(self, name: str) -> None:
        """Take a stage's mark away, so that it is done again."""
        checksums.mark_of(self.path, name).unlink(missing_ok=True)

    def reopen(self) -> None:
        """Take the mark of a finished run away, and with it those of the files it vouches for that are damaged."""
        mark = checksums.read_mark(self.path, FINISH)
        for name in LEFT:
            if (self.path / name).exists() and not checksums.matches(self.path, mark, (name,)):
                (self.path / name).unlink()
        self.forget(FINISH)

    def close(self) -> None:
        """Vouch for what a finished run leaves beside the files of its stages."""
        checksums.write_mark(self.path, FINISH, "", LEFT)

    @contextmanager
    def stage(self, name: str, fingerprint: str, files: Sequence[str] = ()) -> Iterator[Stage]:
        """Run one stage that leaves these files: its cost is measured, and its mark is written when the block succeeds.

        The old mark goes first, so that a kill in the middle never leaves a mark beside files of something else.
        """
        if self.is_done(name, fingerprint, files):
            yield Stage(True, self._costs.setdefault(name, StageCost()))
            return
        self.forget(name)
        with self.measured(name) as cost:
            yield Stage(False, cost)
        self._check_in_place()
        checksums.write_mark(self.path, name, fingerprint, files)

    @contextmanager
    def measured(self, name: str) -> Iterator[StageCost]:
        """Add the time and peak memory of a block to a stage's cost, also where it fails.

        Raises ResourceError, naming the stage, where memory runs out.
        """
        cost = self._costs.setdefault(name, StageCost())
        watch = Stopwatch()
        try:
            with named(f"the stage {name!r}"):
                yield cost
        finally:
            watch.add_to(cost)
            self._write_costs()

    def charge(self, name: str, seconds: float) -> None:
        """Add seconds that other processes worked on a stage."""
        if seconds:
            self._costs.setdefault(name, StageCost()).seconds += seconds
            self._write_costs()

    def costs(self) -> dict[str, StageCost]:
        """Return the cost of every stage so far, over all sessions."""
        return dict(self._costs)

    def write_manifest(self, record: Mapping[str, Any], *, keep_summary: bool = False) -> None:
        """Write the settings, with a record of what was used: versions, machine, and what the caller adds.

        Where this changes an earlier run, its summary goes: it describes what is about to be replaced. keep_summary: all but
        the selection in it still holds.
        """
        machine = {"python": platform.python_version(), "platform": platform.platform()}
        values = {name: value for name, value in self.settings.model_dump(mode="json").items() if value is not None}
        values["record"] = {"versions": dict(versions_here()), "machine": machine, **record}
        if not self._holds(values):
            if not keep_summary:
                (self.path / SUMMARY).unlink(missing_ok=True)
            self.forget(MARK_OF_MANIFEST)
            write_text(self.file(MANIFEST), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            checksums.write_mark(self.path, MARK_OF_MANIFEST, self._lasting(), (MANIFEST,))

    def _holds(self, values: Mapping[str, Any]) -> bool:
        path = self.path / MANIFEST
        return self.is_done(MARK_OF_MANIFEST, self._lasting(), (MANIFEST,)) and (read_yaml(path) == values)

    def _lasting(self) -> str:
        """Hash the settings that a run keeps for good."""
        return fingerprint_of(self.settings.model_dump(mode="json", exclude=set(GROWING)))

    def _check_own(self) -> None:
        """Refuse to write among files that are not a run's."""
        if not self.path.exists():
            return
        _check_no_selection(self.path)
        if (self.path / MANIFEST).exists():
            return
        if not self.path.is_dir():
            what = "a file"
        elif {path.name.removesuffix(".part") for path in self.path.iterdir()} - BEFORE_MANIFEST - {MANIFEST}:
            what = "a directory that holds other things"
        else:
            return
        raise UsageError(f"--out {str(self.path)!r} is {what}; give a new directory or that of an earlier run")

    def _write_costs(self) -> None:
        write_sealed(self.file("costs.json"), {key: value.to_json() for key, value in self._costs.items()})

    def _read_costs(self) -> dict[str, StageCost]:
        try:
            found = self.read_json("costs.json", {}, sealed=True)
            return {name: StageCost(**cost) for name, cost in found.items()}
        except (AttributeError, TypeError, DataError):
            # Figures alone: no result depends on them.
            log.warning("%s is damaged; costs are counted anew from here", self.path / "costs.json")
            return {}

    def _check_settings(self, *, given: bool = False) -> None:
        """Refuse settings that what exists was not made with. given: of those alone that are not left open."""
        if not (self.path / MANIFEST).exists() or self.is_done(MARK_OF_MANIFEST, self._lasting(), (MANIFEST,)):
            return
        mark = checksums.read_mark(self.path, MARK_OF_MANIFEST)
        if mark.get("fingerprint") == self._lasting():
            # The file is damaged and the settings are known to be the same: it is written again.
            return
        before = config.recorded(self.path / MANIFEST).model_dump(mode="json")
        now = self.settings.model_dump(mode="json")
        for name, value in now.items():
            if name not in GROWING and before[name] != value and not (given and value is None):
                raise UsageError(
                    f"the run in {str(self.path)!r} was made with {name} = {before[name]!r}, and {value!r} was given; what "
                    "exists there depends on it. Use another --out, or give the earlier value"
                )


def with_settings_of(
    out: str | Path | None, given: Mapping[str, Any], file: Path | None = None, *, aimed: bool = False
) -> RunSettings:
    """Return given settings, behind them those of a settings file, and behind these those of the run that is in `out` already.

    What a run concluded from other settings, its objective, is concluded anew where these are given anew. What a run was
    permitted is not given on. aimed: see `config.defaults`. Raises what `config.resolve` does, and UsageError for a folder of
    `select --out`.
    """
    asked = config.resolve(given, file, aimed=aimed)
    manifest = None if out is None else Path(out) / MANIFEST
    if manifest is None or not manifest.exists():
        return asked
    _check_no_selection(manifest.parent)
    before = {name: value for name, value in config.load(manifest).items() if name != config.CODE}
    now = {**(config.load(file) if file else {}), **given}
    if "preset" in now and now["preset"] != before.get("preset"):
        before |= config.defaults(now, aimed=aimed or bool(before.get("target")))
    if any(name in now and _listed(now[name]) != _listed(before.get(name)) for name in CONCLUDED_FROM):
        before.pop("objective", None)
    return config.resolve({**before, **now})


def _check_no_selection(out: Path) -> None:
    """Raise UsageError for a folder of `select --out`."""
    if is_selection_folder(out):
        raise UsageError(
            f"--out {str(out)!r} is a folder of `nncift select --out`, and no run; give a new directory or that of an earlier run"
        )


def _listed(value: Any) -> list[str]:
    """Return a setting as a list of texts, whether it was given as one or several."""
    return [str(value)] if isinstance(value, str | Path) else list(map(str, value or ()))


@cache
def versions_here() -> Mapping[str, str | None]:
    """Return the versions of nncift and of the packages that its figures rest on, None for one that is not installed."""
    return {"nncift": __version__, **{package: version_of(package) for package in PACKAGES}}


def version_of(package: str) -> str | None:
    """Return the version of a package that is installed, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
