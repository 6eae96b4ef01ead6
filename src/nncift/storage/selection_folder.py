"""Folders of `nncift select --out`: what was selected lies there, and everything else in the run that it was selected from."""

from __future__ import annotations

import os
from pathlib import Path

from nncift.errors import DataError
from nncift.storage.atomic import read_json

RECORD = "selection.json"


def place_of(run: Path, folder: Path) -> dict[str, str]:
    """Return what the record of a folder says of its run: where it is, also as seen from the folder, should both be moved."""
    return {"run": str(run.resolve()), "run_from_here": os.path.relpath(run.resolve(), folder.resolve())}


def is_selection_folder(folder: Path) -> bool:
    """Tell a folder of `nncift select --out` from a run, whose own record names no run."""
    return "run" in _record(folder)


def run_behind(folder: Path) -> Path:
    """Return the directory of the run behind a folder: the folder itself, or what its selection was made from.

    Raises DataError where that run is gone.
    """
    if not is_selection_folder(folder):
        return folder
    record = _record(folder)
    places = [Path(str(record["run"])), folder / str(record.get("run_from_here", "."))]
    found = next((place for place in places if (place / RECORD).exists()), None)
    if found is None:
        raise DataError(
            f"{str(folder)!r} was selected from the run in {str(places[0])!r}, which is not there; put it back, or give the run"
        )
    return found


def _record(folder: Path) -> dict[str, object]:
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError, RecursionError):
        # What is damaged is named by whoever reads it.
        return {}
    return found if isinstance(found, dict) else {}
