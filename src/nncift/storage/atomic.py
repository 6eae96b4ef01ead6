"""Writing files so that a kill never leaves half of one under its final name, and so that damage shows when they are read.

JSON that a run reads back carries a checksum of its content; arrays carry one of their bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.memory import check_room
from nncift.core.texts import parsed_file
from nncift.errors import DataError, ResourceError

CHECKSUM, KIND = "checksum", "sha256:"
_AT_ONCE = 1 << 14
"""Elements that are hashed at once."""

MISMATCH = "its content does not match its checksum"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a `.part` path to write to; on success it is flushed to disk and takes the place of `path`."""
    part = path.with_name(path.name + ".part")
    # What a killed process left, or a link that somebody else put there: neither is written through.
    part.unlink(missing_ok=True)
    try:
        with reporting_full_disk(path):
            yield part
        # Windows flushes only what is open for writing.
        with part.open("r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Raise ResourceError where writing fails because the disk is full, however the library at work says so."""
    try:
        yield
    except Exception as error:
        # numpy counts what it could not write, and safetensors has an exception of its own.
        vague = type(error).__name__ == "SafetensorError" or (isinstance(error, OSError) and error.errno is None)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or (
            vague and ("os error 28" in str(error) or "requested and" in str(error))
        )
        if not full:
            raise
        raise ResourceError(
            f"{str(path)!r} cannot be written: No space left on device; make room and give the same command again, which goes "
            "on where it was"
        ) from error


def check_permitted(error: BaseException, path: Path) -> None:
    """Raise ResourceError where a file cannot be read because it may not be: it is not damaged, and nothing replaces it."""
    if isinstance(error, PermissionError):
        raise ResourceError(
            f"{str(path)!r} may not be read (permission denied); give yourself leave to read it"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Lone surrogates, which file names that are no text have, are written as the escapes that JSON and YAML read back.
    """
    _write_texts(path, (text,))


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    with atomic(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.writelines(texts)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since they are no JSON."""
    # Piece by piece, as Python makes it: of a million ids the whole text would be held three times.
    pieces = json.JSONEncoder(indent=2, ensure_ascii=False, allow_nan=False).iterencode(value)
    _write_texts(path, chain(pieces, ("\n",)))


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its content, which `read_json` verifies and takes off."""
    content = json.loads(json.dumps(value, allow_nan=False))
    write_json(path, {**content, CHECKSUM: _checksum(content)})


def check_regular(folder: Path) -> None:
    """Raise DataError where a folder holds what is no file: a pipe is waited for without end, and a device never ends."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.exists() and not path.is_file():
                raise DataError(f"{str(path)!r} is not a regular file; take it out of the run, or restore the run")


def read_json(path: Path) -> Any:
    """Read JSON that `write_sealed` wrote: its checksum is verified and taken off; JSON without one is read as it is.

    Raises OSError, ValueError or RecursionError where the file is missing or damaged.
    """
    value = parsed_file(path)
    if not isinstance(value, dict):
        return value
    found = value.pop(CHECKSUM, None)
    # The name of the checksum may be what is damaged.
    lost = found is None and any(str(item).startswith(KIND) for item in value.values())
    if lost or (found is not None and found != _checksum(value)):
        raise ValueError(MISMATCH)
    return value


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return KIND + hashlib.sha256(text.encode("ascii")).hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as safetensors, atomically, with a checksum of all of them."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # Its bytes are made whole before they are written.
    check_room(f"writing {path.name}", sum(array.nbytes for array in arrays.values()))
    with atomic(path) as part:
        save_file(arrays, part, metadata={CHECKSUM: _array_checksum(arrays)})


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read named arrays. Raises OSError or ValueError where the file is missing or damaged."""
    check_room(f"reading {path.name}", path.stat().st_size)
    with _opened(path) as stored:
        about = stored.metadata()
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    if (about or {}).get(CHECKSUM) != _array_checksum(arrays):
        raise ValueError(MISMATCH)
    return arrays


def read_array(path: Path, name: str) -> npt.NDArray[Any]:
    """Read one of the arrays of a file, without its checksum. Raises OSError or ValueError as `read_arrays`."""
    with _opened(path) as stored:
        found: npt.NDArray[Any] = stored.get_tensor(name)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            yield stored
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _array_checksum(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def cache_folder() -> Path:
    """Return where caches lie: `NNCIFT_CACHE`, else `nncift` under `XDG_CACHE_HOME` or `~/.cache`."""
    given = os.environ.get("NNCIFT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nncift"
