"""What a file is, by its first bytes rather than its name, and its bytes unpacked: gzip, bzip2, xz, zstandard, zip.

Packed files are read as they unpack, and refused once they unpack to far more than data does: a few kB can hold terabytes.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from nncift.core.memory import pass_on
from nncift.data.records import shown
from nncift.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
SUFFIXES = (
    *(f"{text}{packed}" for text in TEXT_SUFFIXES for packed in PACKED_SUFFIXES),
    *TEXT_SUFFIXES,
    *TABLE_SUFFIXES,
)
MOST_RATIO, LEAST_UNPACKED = 200, 1 << 23
"""How many times its size a packed file may unpack to, any beginning of it too, and how many bytes it may in any case."""

MOST_EMPTY = 1 << 22
"""Bytes of a packed file that may be read before more of what is in it is there."""

BOM = b"\xef\xbb\xbf"
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow file",
    b"\xff\xff\xff\xff": "arrow stream",
    b"FEA1": "feather 1",
}
PACKED = ("gzip", "bzip2", "xz", "zstandard", "zip")
_PACKED_NAME = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard", ".zip": "zip"}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
"""What unpacking raises for damaged data, for an unknown method and for a password, beside OSError."""


def stem_of(path: Path) -> str:
    """Return the file name without the suffix that says how to read it."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def suffix_of(path: Path) -> str:
    """Return the suffix of a file that says how to read it, in small letters; empty where none does."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def kind_of_bytes(start: bytes) -> str:
    """Return what a file is by its first eight bytes; empty for text and what is not known."""
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file as UTF-8 bytes, unpacked and without a byte order mark, and tell what it is: text or a table.

    Raises DataError for damaged or too well packed files, for a zip of several files, and for packed tables.
    """
    try:
        with path.open("rb") as file:
            kind = kind_of_bytes(file.read(8))
            file.seek(0)
            _check_name(path, kind, file)
            if kind not in PACKED:
                yield (_as_utf8(file) if not kind else file), kind
                return
            with _unpacked(file, kind, path) as stream:
                handle = io.BufferedReader(cast("io.RawIOBase", stream), 1 << 16)
                inner = kind_of_bytes(handle.peek(8)[:8])
                if inner:
                    what = "packed twice" if inner in PACKED else f"a packed {inner} table"
                    raise DataError(f"{str(path)!r} is {what}; unpack it first ({kind}), and give what is in it")
                yield _as_utf8(cast("IO[bytes]", handle)), ""
    except _Damaged as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error}; check its permissions and that it is complete"
        ) from error.__cause__
    except OSError as error:
        raise DataError(
            f"cannot read {str(path)!r}: {type(error).__name__}: {shown(str(error), 160)}; "
            "check its permissions and that it is complete"
        ) from error


class _Damaged(Exception):  # noqa: N818 - it never leaves this module
    """Packed data that cannot be unpacked."""


def _check_name(path: Path, kind: str, file: IO[bytes]) -> None:
    """Raise DataError where a name says packed and the bytes say neither so nor JSON."""
    named = next((packed for suffix, packed in _PACKED_NAME.items() if path.name.lower().endswith(suffix)), None)
    if named is None or kind:
        return
    start = file.read(64).lstrip()
    file.seek(0)
    if start[:1] not in (b"{", b"["):
        raise DataError(f"cannot read {str(path)!r}: it is named as {named} and holds no such data; is it complete?")


def _unpacked(file: IO[bytes], kind: str, path: Path) -> _Unpacked:
    packed = _Packed(file)
    file = cast("IO[bytes]", packed)
    makers: dict[str, Callable[[], Any]] = {
        "gzip": lambda: gzip.GzipFile(fileobj=file),
        "bzip2": lambda: bz2.BZ2File(file),
        "xz": lambda: lzma.LZMAFile(file),  # noqa: SIM115 - closed with the file
        "zstandard": lambda: _zstandard(file),
        "zip": lambda: _only_member(file, path),
    }
    try:
        return _Unpacked(makers[kind](), packed, path)
    except _ERRORS as error:
        raise _damaged(error) from error


def _zstandard(file: IO[bytes]) -> Any:
    # Arrow brings a decoder along; Python has one from 3.14 on.
    import pyarrow as pa

    return pa.CompressedInputStream(file, "zstd")


def _only_member(file: IO[bytes], path: Path) -> IO[bytes]:
    """Open the one file of a zip. Raises DataError where there are several or none, or where it says that it is a bomb."""
    archive = zipfile.ZipFile(file)
    # `is_dir` fails on a name that is empty.
    members = [
        item for item in archive.infolist() if not item.filename.endswith("/") and not _is_of_a_desktop(item.filename)
    ]
    if len(members) != 1:
        names = ", ".join(shown(item.filename) for item in members[:5])
        raise DataError(
            f"{str(path)!r} holds {len(members)} files{f' ({names})' if names else ''}, expected one; unzip it and name its files"
        )
    if members[0].file_size > max(LEAST_UNPACKED, MOST_RATIO * max(members[0].compress_size, 1)):
        raise _bomb(path)
    return archive.open(members[0])


def _is_of_a_desktop(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")


def _bomb(path: Path) -> DataError:
    return DataError(
        f"{str(path)!r} unpacks to more than {MOST_RATIO} times its size, which rows of text do not; unpack it "
        "yourself if it is what you think it is"
    )


def _damaged(error: Exception) -> _Damaged:
    pass_on(error)
    return _Damaged(f"{type(error).__name__}: {shown(str(error), 160)}")


class _Packed:
    """A packed file that is read. Millions of parts that unpack to nothing, each read by Python, would take minutes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.empty = file, 0

    def read(self, size: int = -1) -> bytes:
        if self.empty > MOST_EMPTY:
            raise EOFError(f"more than {MOST_EMPTY >> 20} MiB of it unpack to nothing")
        data = self._file.read(size)
        self.empty += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Unpacked(io.RawIOBase):
    """Packed data as it unpacks, with a bound on how much that may be.

    packed: the file, which tells how much of it was read: what unpacks to too much is refused where it begins to.
    """

    def __init__(self, stream: Any, packed: _Packed, path: Path) -> None:
        self._stream, self._packed, self._path, self._done = stream, packed, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except (*_ERRORS, OSError) as error:
            raise _damaged(error) from error
        view[: len(data)] = data
        self._done, self._packed.empty = self._done + len(data), 0
        if self._done > LEAST_UNPACKED and self._done > MOST_RATIO * self._packed.tell():
            raise _bomb(self._path)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _as_utf8(handle: IO[bytes]) -> IO[bytes]:
    """Return text in UTF-8 without its byte order mark; UTF-16 and UTF-32 say what they are by theirs."""
    buffered = handle if hasattr(handle, "peek") else io.BufferedReader(cast("io.RawIOBase", handle), 1 << 16)
    start = cast("Any", buffered).peek(4)[:4]
    if start.startswith(BOM):
        buffered.read(len(BOM))
        return buffered
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if encoding is None:
        return buffered
    return cast("IO[bytes]", io.BufferedReader(_Recoded(buffered, encoding), 1 << 16))


class _Recoded(io.RawIOBase):
    """Text of another Unicode encoding as UTF-8."""

    def __init__(self, handle: IO[bytes], encoding: str) -> None:
        self._handle, self._decoder, self._left, self._ended = (
            handle,
            codecs.getincrementaldecoder(encoding)(),
            b"",
            False,
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._left and not self._ended:
            data = self._handle.read(1 << 16)
            self._ended = not data
            try:
                text = self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError as error:
                raise _damaged(error) from error
            self._left = text.encode("utf-8", "surrogatepass")
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count
