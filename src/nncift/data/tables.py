"""Rows of Parquet and Arrow files, of folders that `datasets` saved, and of its data sets, as values that mean the same."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nncift.core.memory import pass_on
from nncift.core.texts import parsed_file
from nncift.data.records import MAX_DEPTH, Record, from_value, shown, too_long
from nncift.errors import DataError, ResourceError
from nncift.storage.arrow_messages import check_messages
from nncift.storage.arrow_sizes import python_bytes
from nncift.storage.parquet import parquet_file
from nncift.storage.parquet_pages import survey

BATCH_ROWS = 1024
BATCH_BYTES = 1 << 27
"""Bytes of a batch that are aimed at."""

AT_ONCE, MOST_ROW = 1 << 25, 1 << 28
"""Bytes of Python objects that are made at once, and of a row; as JSON text a row has at most 32 MiB."""

MOST_RATIO, LEAST_EXPANDED, ROW_BYTES = 200, 1 << 28, 512
"""How many times its size a file of tables may stand for, and how many bytes it may in any case: in all, and for each row."""

MANY_ROWS, LEAST_ROW_BYTES = 1_000_000, 0.1
"""Beyond so many rows, a file holds at least so many bytes for each."""

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""


def parquet_records(path: Path, text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of a Parquet file; raises DataError when it is not one. text_columns: see `batch_values`."""
    import pyarrow as pa

    # An open file, since pyarrow may take a name for the address of a remote store.
    with path.open("rb") as handle:
        try:
            found = survey(handle)
            found.check()
            found.check_deltas(LEAST_EXPANDED, nested=True)
            rows = max(1, min(BATCH_ROWS, BATCH_ROWS * BATCH_BYTES // max(1, found.heaviest)))
            if expanding := found.expanding(LEAST_EXPANDED):
                once = parquet_file(handle, found.repeating(0)).iter_batches(rows, columns=expanding, use_threads=False)
                collections.deque(_in_proportion(path, once), maxlen=0)
                handle.seek(0)
            table = parquet_file(handle, found.repeating(BATCH_BYTES, nested=True))
            _check_expansion(path, table.metadata.num_rows, path.stat().st_size)
            batches = table.iter_batches(batch_size=rows, use_threads=False)
            yield from _batch_records(_in_proportion(path, batches), text_columns)
        # A damaged schema shows as text that cannot be decoded.
        except (pa.ArrowException, OSError, ValueError) as error:
            pass_on(error)
            raise DataError(
                f"cannot read {str(path)!r} as Parquet: {shown(str(error), 160)}; is the file complete?"
            ) from error


def arrow_records(paths: Iterable[Path], text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of Arrow files or streams, one after the other. Raises DataError where one cannot be read."""
    yield from _batch_records(_arrow_batches(paths), text_columns)


def _arrow_batches(paths: Iterable[Path]) -> Iterator[Any]:
    import pyarrow as pa

    for path in paths:
        try:
            check_messages(path)
            with path.open("rb") as handle:
                collections.deque(_in_proportion(path, _whole(handle)), maxlen=0)
            with path.open("rb") as handle:
                for batch in _whole(handle):
                    _check_expansion(path, batch.num_rows, batch.nbytes)
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.slice(start, BATCH_ROWS)
        except (pa.ArrowException, OSError, ValueError) as error:
            pass_on(error)
            raise DataError(
                f"cannot read {str(path)!r} as Arrow: {shown(str(error), 160)}; is the file complete?"
            ) from error


def _whole(handle: IO[bytes]) -> Iterator[Any]:
    for batch in _opened(handle):
        # What an Arrow file says of itself is not checked before, and reading past a buffer ends the process.
        batch.validate(full=True)
        yield batch


def _opened(handle: IO[bytes]) -> Iterator[Any]:
    import pyarrow as pa

    magic = handle.read(6)
    handle.seek(0)
    if magic != b"ARROW1":
        yield from pa.ipc.open_stream(handle)
        return
    reader = pa.ipc.open_file(handle)
    for place in range(reader.num_record_batches):
        yield reader.get_batch(place)


def _check_expansion(path: Path, rows: int, size: int) -> None:
    """Raise DataError where rows repeat one value so often that a small file is more rows than memory holds."""
    if rows > MANY_ROWS and size < rows * LEAST_ROW_BYTES:
        raise DataError(
            f"{str(path)!r} says that it holds {rows:,} rows in {size:,} bytes, which rows of text do "
            "not; write it anew if it is what you think it is"
        )


def is_saved(folder: Path) -> bool:
    """Tell a folder that `datasets` wrote with `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def saved_records(folder: Path, text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of a folder of `save_to_disk`, of its only split or `train` where it has several; `datasets` is not needed.

    Raises DataError where the folder is damaged, or where none of several splits is `train`.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read_about(folder / "dataset_dict.json", "splits", str)
        chosen = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if chosen is None:
            some = ", ".join(shown(name) for name in splits)
            raise DataError(
                f"{str(folder)!r} holds the splits {some}; name one: {folder}/{splits[0] if splits else 'SPLIT'}"
            )
        folder = folder / Path(chosen).name
    if not (folder / "state.json").is_file():
        raise DataError(f"{str(folder)!r} lacks its state.json; is what save_to_disk wrote complete?")
    files = _read_about(folder / "state.json", "_data_files", dict)
    names = [file.get("filename") for file in files]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(f"{str(folder / 'state.json')!r} names files outside its folder; save the data set again")
    yield from arrow_records([folder / name for name in names], text_columns)


def _read_about(path: Path, key: str, kind: type) -> list[Any]:
    try:
        found = parsed_file(path)[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read ({type(error).__name__}); save the data set again") from error
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise DataError(f"{str(path)!r} holds no list under {key!r}; save the data set again")
    return found


def split_hub_name(rest: str) -> tuple[str, str | None]:
    """Split what follows `hub:` into name and split; a folder that exists is taken whole."""
    if Path(rest).is_dir():
        return rest, None
    name, _, split = rest.partition(":")
    return name, split or None


def hub_records(name: str, split: str | None, text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of a data set of the Hugging Face hub, or of a local folder that `datasets` can load.

    Without `split` the only split is read, or `train` where there are several.
    Raises ResourceError without the package `datasets`, DataError when the data set or the split cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ResourceError(
            f"reading 'hub:{name}' needs the package `datasets`, which is not installed: pip install datasets"
        ) from error
    yield from dataset_records(_load(datasets, name, split), text_columns)


def dataset_records(table: Any, text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of a `datasets.Dataset`, batch by batch."""
    yield from _batch_records(table.with_format("arrow").iter(batch_size=BATCH_ROWS), text_columns)


def table_records(table: Any, text_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of an Arrow table."""
    yield from _batch_records(table.to_batches(max_chunksize=BATCH_ROWS), text_columns)


def _load(datasets: Any, name: str, split: str | None) -> Any:
    saved = is_saved(Path(name))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
    # `datasets` passes on errors of the network, of file systems and of its readers, with no common base.
    except Exception as error:
        raise DataError(
            f"cannot load 'hub:{name}'{f' split {split!r}' if split else ''}: "
            f"{type(error).__name__}: {shown(str(error), 200)}; expected hub:org/name[:split] or hub:FOLDER"
        ) from error
    if not isinstance(loaded, dict):
        if saved and split:
            raise DataError(f"'hub:{name}' is saved as one table without splits; leave ':{split}' away")
        return loaded
    return split_of(loaded, split, f"'hub:{name}'", lambda chosen: f"hub:{name}:{chosen}")


def split_of(loaded: Any, split: str | None, name: str, typed: Callable[[str], str]) -> Any:
    """Return the split that was asked for, else the only one or `train`. typed: how a split is named. Raises DataError."""
    chosen = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else "")
    if chosen not in loaded:
        given = f"has no split {split!r}" if split else "has several splits and none is named 'train'"
        raise DataError(f"{name} {given}; its splits: {', '.join(sorted(loaded))}; name one as {typed('SPLIT')}")
    return loaded[chosen]


def _in_proportion(path: Path, batches: Iterable[Any]) -> Iterator[Any]:
    """Pass batches on. Raises DataError once their values are far more than the file: one value may stand in millions of rows."""
    size, done, rows = path.stat().st_size, 0, 0
    for batch in batches:
        done += python_bytes(batch)
        rows += batch.num_rows
        if done > max(LEAST_EXPANDED, MOST_RATIO * size) + ROW_BYTES * rows:
            raise DataError(
                f"{str(path)!r} stands for more than {MOST_RATIO} times its size, which rows of text do not; write it anew "
                "if it is what you think it is"
            )
        yield batch


def _small(batch: Any) -> Iterator[Any]:
    """Cut a batch so that no part takes much memory as Python objects; one row alone may, and comes out as its bytes."""
    found = python_bytes(batch)
    if found <= AT_ONCE:
        yield batch
    elif batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _small(batch.slice(0, half))
        yield from _small(batch.slice(half))
    else:
        yield batch if found <= MOST_ROW else found


def _with_names_of_their_own(batch: Any) -> Any:
    """Return a batch as it is. Raises DataError for two columns of one name, of which Python's rows keep the last alone."""
    names = batch.schema.names
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"a table has the column {shown(twice)} twice; rename one")
    return batch


def _batch_records(batches: Iterable[Any], text_columns: Collection[str]) -> Iterator[Record]:
    line = 0
    for batch in (part for whole in map(_with_names_of_their_own, batches) for part in _small(whole)):
        if isinstance(batch, int):
            line += 1
            yield too_long(line)
            continue
        for value in batch_values(batch, text_columns):
            line += 1
            if isinstance(value, Exception):
                yield Record(line, "", None, f"not readable: {shown(str(value), 120)}")
            else:
                yield from_value(line, value)


Decode = Callable[[Any], Any]
_UNREADABLE = (ValueError, OverflowError, RecursionError, TypeError)
"""What Arrow and decoders raise for a value that Python cannot hold: bad UTF-8 or JSON, a date after the year 9999."""

_NAME = b"ARROW:extension:name"


def batch_values(batch: Any, text_columns: Collection[str] = ()) -> Iterator[Any]:
    """Yield the rows of an Arrow batch or table as dicts; in the place of a row that cannot be read, the exception.

    text_columns: columns whose bytes are text, since no other value makes sense there.
    """
    decoders = {
        field.name: decode
        for field in batch.schema
        if (decode := _decoder(field, bytes_are_text=field.name in text_columns)) is not None
    }
    try:
        yield from [_row(row, decoders) for row in batch.to_pylist()]
    except _UNREADABLE:
        # One row would otherwise cost the whole batch.
        for position in range(batch.num_rows):
            try:
                yield _row(batch.slice(position, 1).to_pylist()[0], decoders)
            except _UNREADABLE as error:
                yield error


def _row(row: dict[str, Any], decoders: dict[str, Decode]) -> dict[str, Any]:
    for name, decode in decoders.items():
        if row[name] is not None:
            row[name] = decode(row[name])
    return row


def _decoder(field: Any, *, bytes_are_text: bool) -> Decode | None:
    """Return what makes a value of a field into what it means, None where it is that already."""
    # Releases of Arrow that do not know a type leave its name beside the type that holds it.
    if (field.metadata or {}).get(_NAME) == b"arrow.json":
        return _from_json
    return _decoder_of_type(field.type, bytes_are_text=bytes_are_text)


def _decoder_of_type(kind: Any, *, bytes_are_text: bool) -> Decode | None:
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _from_json if kind.extension_name == "arrow.json" else None
    if bytes_are_text and (types.is_binary(kind) or types.is_large_binary(kind) or _is_binary_view(kind)):
        return _as_text
    if types.is_dictionary(kind):
        return _decoder_of_type(kind.value_type, bytes_are_text=bytes_are_text)
    if types.is_map(kind):
        key, item = kind.key_type, _decoder(kind.item_field, bytes_are_text=bytes_are_text)
        return _map_of(item) if types.is_string(key) or types.is_large_string(key) else None
    if types.is_struct(kind):
        # An image keeps its bytes under this name.
        fields = [kind.field(place) for place in range(kind.num_fields)]
        inner = {
            one.name: decode
            for one in fields
            if (decode := _decoder(one, bytes_are_text=bytes_are_text and one.name != "bytes")) is not None
        }
        return _struct_of(inner) if inner else None
    if types.is_nested(kind) and hasattr(kind, "value_field"):
        each = _decoder(kind.value_field, bytes_are_text=bytes_are_text)
        return None if each is None else _list_of(each)
    return None


def _is_binary_view(kind: Any) -> bool:
    import pyarrow as pa

    return bool(hasattr(pa.types, "is_binary_view") and pa.types.is_binary_view(kind))


def _from_json(text: Any) -> Any:
    """Decode a JSON value. Raises ValueError for text that is none, and for one that is nested deeper than rows may be."""
    if not isinstance(text, (str, bytes)):
        return text
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"a JSON value is nested more than {MAX_DEPTH} levels deep") from error


def _as_text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _struct_of(inner: dict[str, Decode]) -> Decode:
    def decode(value: Any) -> Any:
        return _row(value, inner)

    return decode


def _list_of(each: Decode) -> Decode:
    def decode(value: Any) -> Any:
        return [None if item is None else each(item) for item in value]

    return decode


def _map_of(item: Decode | None) -> Decode:
    def decode(value: Any) -> Any:
        if len({key for key, _ in value}) < len(value):
            return value
        return {key: one if item is None or one is None else item(one) for key, one in value}

    return decode
