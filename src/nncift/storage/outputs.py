"""What a command writes never takes the place of what it reads, nor of a file that a run is made of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from nncift.config import RunSettings
from nncift.errors import UsageError
from nncift.storage import checksums

FOLDERS = frozenset({checksums.MARKS, "labels", "student", "pieces"})
"""Folders of a run."""

FILES = frozenset({"costs.json", ".lock", "manifest.yaml"})
"""Files of a run that no mark records, and its manifest."""


def inputs_of(settings: RunSettings) -> list[str]:
    """Return the files that a run's settings name, hub names left out."""
    several = (*settings.pool, *settings.target, *settings.existing, *settings.against)
    single = (settings.include, settings.exclude, settings.template)
    return [name for name in (*several, *single) if name is not None and not name.startswith("hub:")]


def check_replaces_nothing(out: Path, inputs: Iterable[str | Path] = (), run: Path | None = None) -> None:
    """Raise UsageError where a file that is about to be written is one of the inputs, lies in one, or belongs to a run.

    Names do not matter: links and other spellings of a path are the same file. run: whose own files are kept.
    """
    for given in inputs:
        if _is_same(out, Path(given)):
            raise UsageError(
                f"--out {str(out)!r} is the input {str(given)!r}, which would be replaced by what comes of it; give another name"
            )
    if run is not None and _belongs_to(run, out):
        raise UsageError(
            f"--out {str(out)!r} is a file that the run {str(run)!r} is made of; give another name, or a place outside the run"
        )


def check_run_folder(out: Path, settings: RunSettings) -> None:
    """Raise UsageError where an input stands in a run's directory under a name that a run writes, or may write when it is new."""
    for given in inputs_of(settings):
        inside = _inside(out, Path(given))
        if inside is not None and (not (out / "manifest.yaml").exists() or _belongs_to(out, Path(given))):
            raise UsageError(
                f"--out {str(out)!r} is the directory of the input {given!r}, which could be replaced; give a directory that "
                "holds no input"
            )


def _is_same(out: Path, given: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if given.is_dir():
            return out.exists() and any(os.path.samefile(parent, given) for parent in out.resolve().parents)
        return os.path.samefile(out, given)
    return False


def _belongs_to(run: Path, path: Path) -> bool:
    inside = _inside(run, path)
    if inside is None or not path.exists():
        return False
    return inside.parts[0] in FOLDERS or inside.as_posix() in FILES | checksums.recorded(run)


def _inside(folder: Path, path: Path) -> Path | None:
    """Return where in a folder a path lies, None where it lies elsewhere or is the folder."""
    with contextlib.suppress(OSError, ValueError):
        found = path.resolve().relative_to(folder.resolve())
        return found if found.parts else None
    return None
