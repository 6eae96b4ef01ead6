"""Inputs to one collection of examples: sources, ids, the sample of `limit`, and what the user should know about it."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nncift.config import Turns
from nncift.core.memory import named
from nncift.core.texts import rows_of
from nncift.data.examples import HASH_DIGITS, Example, Examples, Rejection, content_hash
from nncift.data.file_rows import file_records, lines_or_records
from nncift.data.formats import Dialogue, Reader, parse, scored
from nncift.data.layout import Layout, source_names, value_at
from nncift.data.proposals import what_to_do
from nncift.data.records import MAX_REASON, Line, Record, Row, check_worth_reading, shown
from nncift.data.row_turns import UNREAD
from nncift.data.sample import drawing_order, read_until
from nncift.data.tables import hub_records, split_hub_name
from nncift.data.turns import UnusableError
from nncift.errors import DataError, UsageError

MAX_ID_LENGTH = 200
_HUB = "hub:"
TRIED = 5
"""Rows for which a `--map` that reads them is looked for."""
_HASH_BYTES = HASH_DIGITS // 2
_CONTENT_ID = re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}-[0-9]+")
# Control characters, line separators and lone surrogates break files and tables that hold one id per row.
_NO_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class _Found:
    """Usable rows before they have their final ids, column by column, since a million of them must be held once only.

    hashes: 16 bytes of the content hash each. raws: JSON texts, UTF-8. own: the id that a row has itself, by its position.
    """

    hashes: bytearray = field(default_factory=bytearray)
    raws: list[bytes] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))
    sources: list[str] = field(default_factory=list)
    own: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, source: str, record: Record, content: str, own_id: str | None) -> None:
        """Take a row."""
        if own_id is not None:
            self.own[len(self)] = own_id
        self.hashes += bytes.fromhex(content)
        self.raws.append(record.raw.encode("utf-8"))
        self.lines.append(record.line)
        self.sources.append(source)

    def hash_of(self, row: int) -> bytes:
        """Return the content hash of a row."""
        return bytes(self.hashes[_HASH_BYTES * row : _HASH_BYTES * (row + 1)])

    def content_ids(self) -> Iterator[str]:
        """Yield for every row its content hash with the number of rows of this content before it."""
        for row, occurrence in enumerate(_occurrences(self.hashes)):
            yield f"{self.hash_of(row).hex()}-{occurrence}"


@dataclass
class _Log:
    """What happens while rows are read: rejections, and counts of what is not used of usable rows."""

    strict: bool
    rejected: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused_turns: int = 0
    masked_last: int = 0
    media: int = 0
    numbers: int = 0
    reasoning: int = 0
    pairs: int = 0
    several: int = 0
    echoes: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    mapped: set[str] = field(default_factory=set)

    def reject(self, source: str, line: int, reason: str) -> None:
        """Keep a rejection; raises DataError where `strict`."""
        reason = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."
        if self.strict:
            raise DataError(f"{source}, line {line}: {reason}; mend the row, or read without strict to set it aside")
        self.rejected.append(Rejection(source, line, reason))

    def use(self, dialogue: Dialogue) -> None:
        """Count what of a usable row is not used."""
        self.unused_turns += dialogue.unused_turns > 0
        self.masked_last += dialogue.masked_last > 0
        self.media += dialogue.media_parts > 0
        self.numbers += dialogue.numbers > 0
        self.reasoning += dialogue.reasoning > 0
        self.pairs += dialogue.pair
        self.several += dialogue.responses > 1
        self.echoes += dialogue.echoes
        self.ignored.update(dialogue.ignored)


def read(
    *paths: str | Path,
    format: str = "auto",  # noqa: A002
    map: Mapping[str, str] | None = None,  # noqa: A002
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    turns: Turns = "last",
) -> Examples:
    """Read instruction data from files and from the hub.

    paths: `.jsonl`, `.ndjson` and `.json` (also `.gz`), `.parquet`, `hub:org/name[:split]`, `hub:FOLDER`.
    format: `auto` (each row tells, see formats.py) or one of them. map: columns of fields, such as `{"prompt": "question"}`.
    limit: read so many usable rows, a sample over all inputs in proportion; a larger limit contains a smaller one. Rows are drawn
    by their text and parsed one after the other, so that rejections and shared ids are those of the rows that were read.
    seed: what the sample is drawn from. strict: refuse the first row that cannot be used instead of setting it aside; all rows
    are read for it. turns: `last` = the assistant's last turn that no mask excludes is learned from, `all` = all such turns.

    Raises UsageError for wrong arguments, DataError for an input that cannot be read or has no usable row,
    ResourceError for `hub:` without the extra, and where memory runs out.
    """
    if not paths:
        raise UsageError("no input given, expected at least one file or hub:org/name")
    for path in paths:
        if not isinstance(path, (str, Path)):
            raise UsageError(
                f"an input is {type(path).__name__}, expected a path; give several one by one: read(*paths)"
            )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(f"limit is {limit!r}, expected a whole number of rows, at least 1")
    layout = Layout.from_settings(format, map, turns)
    names = source_names(paths)
    check_files(layout, names)
    notes = []
    if len({str(path) for path in paths}) < len(paths):
        notes.append("An input is given more than once; its rows are read each time.")
    rows = records_of if limit is None else lines_of
    inputs = ((str(path), name, rows(path, layout.of(name))) for path, name in zip(paths, names, strict=True))
    return collect(inputs, layout, ReadOptions(limit, seed, strict), notes)


@dataclass(frozen=True)
class ReadOptions:
    """How many rows are kept, what they are drawn from, and whether the first that cannot be used is refused."""

    limit: int | None = None
    seed: int = 0
    strict: bool = False


def collect(
    inputs: Iterable[tuple[str, str, Iterable[Record | Line]]],
    layout: Layout,
    options: ReadOptions,
    notes: Iterable[str] = (),
) -> Examples:
    """Return the usable rows of some inputs: of each its name for people, its source and its records. Raises as `read`."""
    log, found = _Log(options.strict, notes=list(notes)), _Found()
    with named("reading rows"):
        some: set[str] = set()
        if options.limit is not None:
            inputs, some = _sampled(inputs, layout, options, log)
        for given, source, records in inputs:
            _take_usable(records, (given, source), layout.of(source), log, found, empty_handed=source in some)
        ids = _assign_ids(found, log)
        return Examples(tuple(_examples(found, ids, layout)), tuple(log.rejected), _notes(log, layout))


def _sampled(
    inputs: Iterable[tuple[str, str, Iterable[Record | Line]]], layout: Layout, options: ReadOptions, log: _Log
) -> tuple[list[tuple[str, str, list[Record | Line]]], set[str]]:
    """Return of all inputs the rows of the sample and those rejected on the way; and the inputs that have usable rows."""
    every = [(given, source, list(records)) for given, source, records in inputs]
    rows = [records for _, _, records in every]
    usable = [is_usable(layout.of(source)) for _, source, _ in every]

    def can_be_used(place: tuple[int, int]) -> bool:
        row = _record(rows[place[0]][place[1]]).row
        return row is not None and usable[place[0]](row)

    order = drawing_order(rows, options.seed)
    limit = len(order) if options.limit is None else options.limit
    read, drawn = read_until(order, [len(each) for each in rows], limit, can_be_used)
    if options.strict:
        read, rejected = set(order), {place for place in order if not can_be_used(place)}
    else:
        rejected = {place for place in read - drawn if not can_be_used(place)}
    if rejected and len(read) < len(order):
        log.notes.append(
            f"{len(read):,} of {len(order):,} rows were read for a limit of {limit:,}, and {len(rejected):,} of them are "
            "rejected."
        )
    kept = drawn | rejected
    sample = [
        (given, source, [row for at, row in enumerate(records) if (number, at) in kept])
        for number, (given, source, records) in enumerate(every)
    ]
    return sample, {every[number][1] for number, _ in read - rejected}


def _record(row: Record | Line) -> Record:
    return row if isinstance(row, Record) else row.parsed()


def _examples(found: _Found, ids: Sequence[str], layout: Layout) -> Iterator[Example]:
    """Yield the rows."""
    readers = {source: Reader(layout.of(source)) for source in dict.fromkeys(found.sources)}
    for k, own_id in enumerate(ids):
        content = found.hash_of(k) if k in found.own else None
        source = found.sources[k]
        yield Example.stored(own_id, source, found.lines[k], found.raws[k], content, readers[source])


def check_files(layout: Layout, sources: Iterable[str]) -> None:
    """Raise UsageError where `--map` names a file that is not among the inputs."""
    given = list(sources)
    for file in layout.files:
        if not any(layout.of(source) is layout.files[file] for source in given):
            raise UsageError(
                f"map names the file {file!r}, and the inputs are {', '.join(given[:5])}; name one of them"
            )


def _take_usable(
    records: Iterable[Record | Line],
    name: tuple[str, str],
    layout: Layout,
    log: _Log,
    found: _Found,
    *,
    empty_handed: bool,
) -> None:
    """Read one input; name: as it was given, and as a source. Raises DataError when none is usable, unless that is expected."""
    (given, source), before, had = name, len(log.rejected), len(found)
    unread: list[Row] = []
    for record in map(_record, records):
        check_worth_reading(given, len(log.rejected) - before, len(found) - had)
        if record.row is None:
            log.reject(source, record.line, record.reason)
            continue
        log.mapped.update(column for column in layout.columns.values() if value_at(record.row, column) is not None)
        try:
            dialogue = parse(record.row, layout)
        except UnusableError as error:
            log.reject(source, record.line, str(error))
            unread = [*unread, record.row] if len(unread) < TRIED else unread
            continue
        log.use(dialogue)
        found.add(source, record, content_hash(dialogue.messages, dialogue.response), _own_id(record.row, layout))
    if len(found) == had and not empty_handed:
        raise DataError(_nothing_usable(given, log.rejected[before:], unread))


def records_of(path: str | Path, layout: Layout) -> Iterator[Record]:
    """Yield the rows of one input, usable or not. Raises DataError where it cannot be read."""
    if isinstance(path, str) and path.startswith(_HUB):
        return hub_records(*split_hub_name(path.removeprefix(_HUB)), layout.row_columns)
    return file_records(Path(path), layout.row_columns, is_usable(layout))


def lines_of(path: str | Path, layout: Layout) -> Iterator[Record | Line]:
    """Yield the rows of one input as `records_of` does, those of JSON lines unparsed."""
    if isinstance(path, str) and path.startswith(_HUB):
        return records_of(path, layout)
    return lines_or_records(Path(path), layout.row_columns, is_usable(layout))


def is_usable(layout: Layout) -> Callable[[Row], bool]:
    """Return the function that tells whether a row can be used."""

    def usable(row: Row) -> bool:
        try:
            parse(row, layout)
        except UnusableError:
            return False
        return True

    return usable


def _nothing_usable(given: str, rejected: Sequence[Rejection], rows: Sequence[Row]) -> str:
    if not rejected:
        return f"{given!r} has no rows, expected rows of instruction data"
    kinds = Counter(item.kind for item in rejected).most_common(3)
    examples = {item.kind: item for item in reversed(rejected)}
    reasons = "; ".join(f"{count} x {examples[kind].reason} (line {examples[kind].line})" for kind, count in kinds)
    return f"none of the {len(rejected)} rows of {given!r} is usable: {reasons}. {what_to_do(rejected, rows)}"


def _own_id(row: Row, layout: Layout) -> str | None:
    value = layout.get(row, "id")
    # Tables make floats of whole numbers where one is missing.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and value.strip() else None


def _assign_ids(found: _Found, log: _Log) -> list[str]:
    """Return unique ids: own ids that only one row has, else the content hash with the occurrence number.

    Every row counts as an occurrence of its content, whatever its own id is, so that a row keeps its id when a later
    input repeats an own id.
    """
    ids = list(found.content_ids())
    repeated = _repeated(found.own.values())
    # Held only where an own id could be another row's.
    alike = any(_CONTENT_ID.fullmatch(own) for own in found.own.values())
    reserved = set(ids) if alike else frozenset()
    unfit = 0
    for row, own in found.own.items():
        if own in repeated:
            continue
        if len(own) > MAX_ID_LENGTH or _NO_ID.search(own) or (own != ids[row] and own in reserved):
            unfit += 1
        else:
            ids[row] = own
    if repeated:
        shared = [own for own in found.own.values() if own in repeated]
        log.notes.append(
            f"Ids that several rows share in {rows_of(len(shared))} (first: {shown(shared[0])}): these rows are named by their "
            "content."
        )
    if unfit:
        log.notes.append(
            f"Ids that cannot be used in {rows_of(unfit)} (over {MAX_ID_LENGTH} characters, control characters, or equal "
            "to a content id): these rows are named by their content."
        )
    return ids


def _repeated(values: Iterable[str]) -> set[str]:
    """Return the values that come more than once."""
    once: set[str] = set()
    again: set[str] = set()
    for value in values:
        (again if value in once else once).add(value)
    return again


def _occurrences(hashes: bytearray) -> Iterator[int]:
    """Yield for every hash how many equal ones come before it."""
    import numpy as np

    keys = np.frombuffer(bytes(hashes), np.uint64).reshape(-1, _HASH_BYTES // 8)
    order = np.lexsort(keys.T)
    first = np.ones(len(keys), bool)
    first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    place = np.arange(len(keys))
    found = np.empty(len(keys), np.int64)
    found[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    yield from found.tolist()


def _notes(log: _Log, layout: Layout) -> tuple[str, ...]:
    notes = list(log.notes)
    for count, what in (
        (log.unused_turns, "Turns after the response in {}: they are not used."),
        (
            log.masked_last,
            "The last assistant turn is masked in {}: the response is the last one that is learned from.",
        ),
        (log.several, f"Several responses in {{}}: {scored(layout.turns)}"),
        (log.media, "Parts that are not text in {}: a placeholder such as [image] stands for them."),
        (log.numbers, "Numbers in {} are read as their text."),
        (
            log.reasoning,
            "Turns with a thought (reasoning_content, thinking) in {}: what is scored is their content alone.",
        ),
        (
            log.echoes,
            "Responses that begin with the whole text of their prompt in {}: trainers put it there once more.",
        ),
        (log.pairs, "Pairs of answers in {}: the chosen side is scored, and the pair is selected as a whole."),
    ):
        if count:
            notes.append(what.format(rows_of(count)))
    for column, count in sorted(log.ignored.items()):
        why = UNREAD.get(column, "not text, or the turns have a system text of their own")
        notes.append(f"Column {shown(column)} in {rows_of(count)} is not part of the prompt: {why}.")
    wanted = {column for one in (layout, *layout.files.values()) for column in one.columns.values()}
    for column in sorted(wanted - log.mapped):
        notes.append(f"No row has the column {shown(column)} that map names.")
    return tuple(notes)
