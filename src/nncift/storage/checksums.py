"""Checksums of a run's files: recorded in the marks of the stages that left them, verified before a file is believed.

A stage whose files do not match is done again. Whoever reads a finished run names the file and refuses it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nncift.errors import DataError
from nncift.storage.atomic import check_permitted, digest, read_json, write_sealed

log = logging.getLogger(__name__)
MARKS = "stages"


def mark_of(run: Path, stage: str) -> Path:
    """Return where the mark of a stage lies."""
    return run / MARKS / f"{stage}.json"


def write_mark(run: Path, stage: str, fingerprint: str, files: Sequence[str] = ()) -> None:
    """Write the mark of a finished stage: its fingerprint, and size and SHA-256 of the files that it left."""
    there = [name for name in files if (run / name).exists()]
    left = {name: {"bytes": (run / name).stat().st_size, "sha256": digest(run / name)} for name in there}
    path = mark_of(run, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, {"fingerprint": fingerprint, "files": left})


def read_mark(run: Path, stage: str) -> Mapping[str, Any]:
    """Return the mark of a stage; an empty one where there is none, or where it is damaged, which the log says."""
    path = mark_of(run, stage)
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        check_permitted(error, path)
        log.warning("%s is damaged (%s); the stage is done again", path, error)
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files", {}), dict) else {}


def reason(run: Path, name: str, recorded: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a file that was recorded; None where nothing is."""
    path = run / name
    try:
        size = path.stat().st_size
        if size != recorded["bytes"]:
            return f"it has {size:,} bytes, and {recorded['bytes']:,} were written"
        return None if digest(path) == recorded["sha256"] else "its content is not what was written"
    except FileNotFoundError:
        return "it is gone"
    except (OSError, KeyError, TypeError, ValueError) as error:
        check_permitted(error, path)
        return f"what was recorded of it cannot be read: {error}"


def is_marked(run: Path, stage: str, fingerprint: str, files: Sequence[str] = ()) -> bool:
    """Tell whether a stage with this fingerprint is finished, and its files are what it wrote."""
    mark = read_mark(run, stage)
    return mark.get("fingerprint") == fingerprint and matches(run, mark, files)


def matches(run: Path, mark: Mapping[str, Any], files: Sequence[str]) -> bool:
    """Tell whether files are there and are what a mark recorded; those that are not are named in the log."""
    recorded = mark.get("files") or {}
    whole = True
    for name in files:
        if not (run / name).exists():
            whole = False
        elif name in recorded and (why := reason(run, name, recorded[name])) is not None:
            log.warning("%s is damaged (%s); it is made again", run / name, why)
            whole = False
    return whole


def recorded(run: Path) -> frozenset[str]:
    """Return the names of the files that the marks of a run record."""
    marks = (read_mark(run, path.stem) for path in (run / MARKS).glob("*.json"))
    return frozenset(str(name) for mark in marks for name in mark.get("files") or ())


def verify(run: Path, *names: str) -> None:
    """Compare files of a run with what the marks recorded of them; those that no mark knows pass.

    Raises DataError, naming the file, where one is damaged.
    """
    known: dict[str, Any] = {}
    for mark in sorted((run / MARKS).glob("*.json")):
        try:
            known |= read_json(mark).get("files") or {}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(
                f"{str(mark)!r} is damaged ({error}); run the same `nncift run` again, which mends it"
            ) from error
    for name in names:
        if name in known and (why := reason(run, name, known[name])) is not None:
            raise DataError(
                f"{str(run / name)!r} is damaged: {why}; run the same `nncift run` again, which makes it anew, or restore it"
            )
