"""What a run reads: its pool, its target set, the rows that were trained on already, from files or from what Python holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.config import RunSettings, Turns, is_manifest, recorded
from nncift.core.texts import rows_of
from nncift.data import Examples, read
from nncift.data.layout import Layout, map_for, source_names
from nncift.data.python_rows import SOURCE, rows_from
from nncift.data.reading import check_files
from nncift.errors import UsageError
from nncift.models.encoders import check_encoder_is_local
from nncift.models.loading import check_is_local
from nncift.storage.run_directory import MANIFEST
from nncift.storage.selection_folder import run_behind


@dataclass(frozen=True)
class GivenRows:
    """Rows that are at hand; what is None is read from the files that settings name."""

    pool: Examples | None = None
    target: Examples | None = None
    existing: Examples | None = None
    against: Examples | None = None


def check_named(settings: RunSettings) -> None:
    """Raise UsageError where settings name no pool, or `--map` a file that is not among the inputs."""
    if not settings.pool:
        raise UsageError("no pool was given; name at least one file of instruction examples")
    layout = Layout.from_settings(settings.format, settings.map, settings.turns)
    check_files(
        layout,
        (
            name
            for paths in (settings.pool, settings.target, settings.existing, settings.against)
            for name in source_names(paths)
        ),
    )


def read_pool(settings: RunSettings) -> Examples:
    """Read the files that settings name. Raises UsageError where there are none."""
    check_named(settings)
    return _read(settings, settings.pool, settings.limit)


def read_target(settings: RunSettings) -> Examples | None:
    """Read the target set, None where there is none."""
    return _read(settings, settings.target, None) if settings.target else None


def read_existing(settings: RunSettings) -> Examples | None:
    """Read the rows that were trained on already, None where there are none."""
    return _read(settings, settings.existing, None) if settings.existing else None


def read_against(settings: RunSettings) -> Examples | None:
    """Read the test rows that must not be in the pool, None where there are none."""
    return _read(settings, settings.against, None) if settings.against else None


def check_named_locally(
    settings: RunSettings,
    given: Mapping[str, Any],
    out: str | Path | None,
    file: Path | None = None,
    *,
    fetch: bool = False,
) -> None:
    """Raise UsageError where a run's manifest alone names a model or an encoder that would be fetched.

    given: what the caller names. out: the run's directory; file: the manifest of another run, in the place of settings.
    """
    places = [
        path for path in (file, None if out is None else Path(out) / MANIFEST) if path is not None and path.exists()
    ]
    manifest = next(filter(is_manifest, places), None)
    if manifest is None:
        return
    by = f"the manifest {str(manifest)!r}"
    if settings.model is not None and "model" not in given:
        check_is_local(settings.model, by, fetch=fetch)
    if "encoder" not in given:
        check_encoder_is_local(settings.encoder, by, fetch=fetch)


def note_unread_existing(pool: Examples, existing: Examples | None) -> Examples:
    """Return a pool with a note on the rows that were trained on already and cannot be read: they are as if they were not."""
    if existing is None or not existing.rejected:
        return pool
    first = existing.rejected[0]
    note = (
        f"Rows that were trained on already cannot be read, {rows_of(len(existing.rejected))}, and count as if they were not; "
        f"the first: {first.source} line {first.line}, {first.reason}."
    )
    return Examples(pool.items, pool.rejected, (*pool.notes, note))


def workspace_of(out: str | Path | None) -> Path | None:
    """Return the folder of a run for what its teacher keeps."""
    return None if out is None else Path(out) / "labels" / "teacher"


def turns_of(run: str | Path) -> Turns:
    """Return which turns a run scored, so that what its student scores is read so too; `last` for a student without a run."""
    manifest = run_behind(Path(run)) / MANIFEST
    return recorded(manifest).turns if manifest.exists() else "last"


def held(settings: RunSettings, rows: Any, limit: int | None) -> Examples:
    """Return rows that Python holds already as examples."""
    return rows_from(rows, map=map_for(settings.map, [SOURCE]), limit=limit, **_reading(settings))


def _read(settings: RunSettings, paths: Sequence[str], limit: int | None) -> Examples:
    # What `--map` says of the files of another set says nothing here.
    return read(*paths, map=map_for(settings.map, source_names(paths)), limit=limit, **_reading(settings))


def _reading(settings: RunSettings) -> dict[str, Any]:
    """Return the settings of every reading."""
    return {
        "format": settings.format,
        "seed": settings.seed,
        "strict": settings.strict,
        "turns": settings.turns,
    }
