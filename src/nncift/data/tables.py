"""Rows of Parquet files and of Hugging Face data sets, both by Arrow batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nncift.data.columns import parquet_file
from nncift.data.records import Record, from_value, shown
from nncift.errors import DataError, ResourceError
from nncift.memory import pass_on

BATCH_ROWS = 1024
BATCH_BYTES = 1 << 30
"""Most bytes of a batch, if every row held all that its group holds."""

MANY_ROWS, LEAST_ROW_BYTES = 1_000_000, 0.1
"""Beyond so many rows, a file holds at least so many bytes for each."""
# What Arrow raises for a value that Python cannot hold: bad UTF-8, a date after the year 9999.
_UNREADABLE = (ValueError, OverflowError)


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file; raises DataError when it is not one."""
    import pyarrow as pa

    # An open file, since pyarrow may take a name for the address of a remote store.
    with path.open("rb") as handle:
        try:
            table = parquet_file(handle)
            _refuse_bomb(path, table.metadata)
            rows = _batch_rows(table.metadata)
            yield from _batch_records(table.iter_batches(batch_size=rows, use_threads=False))
        # A damaged schema shows as text that cannot be decoded.
        except (pa.ArrowException, OSError, ValueError) as error:
            pass_on(error)
            raise DataError(
                f"cannot read {str(path)!r} as Parquet: {shown(str(error), 160)}; is the file complete?"
            ) from error


def _refuse_bomb(path: Path, about: Any) -> None:
    """Raise DataError where rows repeat one value so often that a small file is more rows than memory holds."""
    if about.num_rows > MANY_ROWS and path.stat().st_size < about.num_rows * LEAST_ROW_BYTES:
        raise DataError(
            f"{str(path)!r} says that it holds {about.num_rows:,} rows in {path.stat().st_size:,} bytes, which rows of text do "
            "not; write it anew if it is what you think it is"
        )


def _batch_rows(about: Any) -> int:
    """Return how many rows are read at once: fewer where groups are large, since each row may repeat the longest value.

    Groups are asked and no columns: pyarrow ends the process over damaged statistics of a column.
    """
    sizes = [int(about.row_group(number).total_byte_size) for number in range(about.num_row_groups)]
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max([1, *sizes])))


def split_hub_name(rest: str) -> tuple[str, str | None]:
    """Split what follows `hub:` into name and split; a folder that exists is taken whole."""
    if Path(rest).is_dir():
        return rest, None
    name, _, split = rest.partition(":")
    return name, split or None


def hub_records(name: str, split: str | None) -> Iterator[Record]:
    """Yield the rows of a data set of the Hugging Face hub, or of a local folder that `datasets` can load.

    Without `split` the only split is read, or `train` where there are several.
    Raises ResourceError without the package `datasets`, DataError when the data set or the split cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ResourceError(
            f"reading 'hub:{name}' needs the package `datasets`, which is not installed; pip install \"nncift[hub]\""
        ) from error
    table = _load(datasets, name, split)
    yield from _batch_records(table.with_format("arrow").iter(batch_size=BATCH_ROWS))


def _load(datasets: Any, name: str, split: str | None) -> Any:
    folder = Path(name)
    saved = any((folder / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json", "state.json"))
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
    chosen = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else "")
    if chosen not in loaded:
        given = f"has no split {split!r}" if split else "has several splits and none is named 'train'"
        known = ", ".join(sorted(loaded))
        raise DataError(f"'hub:{name}' {given}; its splits: {known}; name one as hub:{name}:SPLIT")
    return loaded[chosen]


def _batch_records(batches: Iterable[Any]) -> Iterator[Record]:
    line = 0
    for batch in batches:
        for value in _values(batch):
            line += 1
            if isinstance(value, Exception):
                yield Record(line, "", None, f"not readable: {shown(str(value), 120)}")
            else:
                yield from_value(line, value)


def _values(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except _UNREADABLE:
        # One row would otherwise cost the whole batch.
        for position in range(batch.num_rows):
            try:
                yield batch.slice(position, 1).to_pylist()[0]
            except _UNREADABLE as error:
                yield error
