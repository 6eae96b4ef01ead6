"""Inputs to one collection of examples: sources, ids, the sample of `limit`, and what the user should know about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nncift.data.examples import Example, Examples, Rejection, content_hash
from nncift.data.files import file_records, stem_of
from nncift.data.formats import Dialogue, Layout, parse, prompt_text
from nncift.data.records import MAX_REASON, Record, Row, shown
from nncift.data.tables import hub_records, split_hub_name
from nncift.data.turns import UnusableError
from nncift.errors import DataError, UsageError

MAX_ID_LENGTH = 200
_HUB = "hub:"
# Control characters, line separators and lone surrogates break files and tables that hold one id per row.
_NO_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(slots=True)
class _Found:
    """A usable row before it has its final id."""

    own_id: str | None
    hash: str
    dialogue: Dialogue
    source: str
    record: Record


@dataclass
class _Log:
    """What happens while rows are read: rejections, and counts of what is not used of usable rows."""

    strict: bool
    rejected: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused_turns: int = 0
    media: int = 0
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
        self.media += dialogue.media_parts > 0
        self.ignored.update(dialogue.ignored)


def read(
    *paths: str | Path,
    format: str = "auto",  # noqa: A002
    map: Mapping[str, str] | None = None,  # noqa: A002
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Examples:
    """Read instruction data from files and from the hub.

    paths: `.jsonl`, `.ndjson` and `.json` (also `.gz`), `.parquet`, `hub:org/name[:split]`, `hub:FOLDER`.
    format: `auto` (each row tells, see formats.py) or one of messages, sharegpt, alpaca, prompt.
    map: column names for fields, such as `{"prompt": "question", "completion": "answer"}`.
    limit: read so many usable rows, a sample over all inputs in proportion; a larger limit contains a smaller one.
    seed: what the sample is drawn from. strict: refuse the first row that cannot be used instead of setting it aside.

    Raises UsageError for wrong arguments, DataError for an input that cannot be read or has no usable row,
    ResourceError for `hub:` without the extra.
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
    layout = Layout.from_settings(format, map)
    log = _Log(strict)
    if len({str(path) for path in paths}) < len(paths):
        log.notes.append("An input is given more than once; its rows are read each time.")
    found: list[_Found] = []
    for path, source in zip(paths, source_names(paths), strict=True):
        found.extend(_usable(path, source, layout, log))
    ids = _assign_ids(found, log)
    chosen = range(len(found)) if limit is None else _sample(ids, [row.source for row in found], limit, seed)
    return Examples(_examples(found, ids, chosen), tuple(log.rejected), _notes(log, layout))


def _examples(found: list[_Found], ids: Sequence[str], chosen: Sequence[int]) -> tuple[Example, ...]:
    """Return the chosen rows; `found` is used up, since holding a million rows twice takes a gigabyte more."""
    if len(chosen) < len(found):
        return tuple(_example(ids[k], found[k]) for k in chosen)
    items = []
    found.reverse()
    for k in chosen:
        items.append(_example(ids[k], found.pop()))
    return tuple(items)


def _example(example_id: str, found: _Found) -> Example:
    messages = found.dialogue.messages
    return Example(
        id=example_id,
        prompt=prompt_text(messages),
        response=found.dialogue.response,
        messages=messages,
        source=found.source,
        line=found.record.line,
        raw=found.record.raw,
    )


def _usable(path: str | Path, source: str, layout: Layout, log: _Log) -> list[_Found]:
    """Read one input; raises DataError when none of its rows is usable."""
    before = len(log.rejected)
    found = []
    for record in records_of(path, layout):
        if record.row is None:
            log.reject(source, record.line, record.reason)
            continue
        log.mapped.update(column for column in layout.columns.values() if column in record.row)
        try:
            dialogue = parse(record.row, layout)
        except UnusableError as error:
            log.reject(source, record.line, str(error))
            continue
        log.use(dialogue)
        # The parsed row is not needed any more, and is larger than its text.
        own = _own_id(record.row, layout)
        kept = record._replace(row=None)
        found.append(_Found(own, content_hash(dialogue.messages, dialogue.response), dialogue, source, kept))
    if not found:
        raise DataError(_nothing_usable(path, log.rejected[before:]))
    return found


def records_of(path: str | Path, layout: Layout) -> Iterator[Record]:
    """Yield the rows of one input, usable or not. Raises DataError where it cannot be read."""
    if isinstance(path, str) and path.startswith(_HUB):
        return hub_records(*split_hub_name(path.removeprefix(_HUB)))
    return file_records(Path(path), layout.row_columns)


def _nothing_usable(path: str | Path, rejected: Sequence[Rejection]) -> str:
    if not rejected:
        return f"{str(path)!r} has no rows, expected rows of instruction data"
    kinds = Counter(item.kind for item in rejected).most_common(3)
    examples = {item.kind: item for item in reversed(rejected)}
    reasons = "; ".join(f"{count} x {examples[kind].reason} (line {examples[kind].line})" for kind, count in kinds)
    return (
        f"none of the {len(rejected)} rows of {str(path)!r} is usable: {reasons}. Expected messages, conversations, "
        "instruction with output, or prompt with completion; name other columns with --map, such as prompt=question"
    )


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """Name each input by its stem; where two are equal, by its folder too, then with its suffix, then by number."""
    choices = [_names(path) for path in paths]
    names = [choice[0] for choice in choices]
    for level in (1, 2):
        counts = Counter(names)
        names = [choice[level] if counts[name] > 1 else name for choice, name in zip(choices, names, strict=True)]
    taken: set[str] = set()
    for position, name in enumerate(names):
        number = 1
        while names[position] in taken:
            number += 1
            names[position] = f"{name}#{number}"
        taken.add(names[position])
    return names


def _names(path: str | Path) -> tuple[str, str, str]:
    if isinstance(path, str) and path.startswith(_HUB):
        rest = path.removeprefix(_HUB)
        name = Path(rest).resolve().name if Path(rest).is_dir() else rest
        return name, name, name
    path = Path(path)
    folder = path.absolute().parent.name
    names = (stem_of(path), f"{folder}/{stem_of(path)}", f"{folder}/{path.name}")
    # File names need not be text; sources go into JSON and Parquet, which must be.
    first, second, third = (name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names)
    return first, second, third


def _own_id(row: Row, layout: Layout) -> str | None:
    value = layout.get(row, "id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and value.strip() else None


def _assign_ids(found: Sequence[_Found], log: _Log) -> list[str]:
    """Return unique ids: own ids that only one row has, else the content hash with the occurrence number.

    Every row counts as an occurrence of its content, whatever its own id is, so that a row keeps its id when a later
    input repeats an own id.
    """
    seen: Counter[str] = Counter()
    by_content = []
    for row in found:
        by_content.append(f"{row.hash}-{seen[row.hash]}")
        seen[row.hash] += 1
    reserved = set(by_content)
    own_counts = Counter(row.own_id for row in found if row.own_id is not None)
    ids = []
    unfit = 0
    for row, content_id in zip(found, by_content, strict=True):
        own = row.own_id
        if own is None or own_counts[own] > 1:
            ids.append(content_id)
        elif len(own) > MAX_ID_LENGTH or _NO_ID.search(own) or (own != content_id and own in reserved):
            ids.append(content_id)
            unfit += 1
        else:
            ids.append(own)
    shared = {own: count for own, count in own_counts.items() if count > 1}
    if shared:
        log.notes.append(
            f"Ids that several rows share in {_rows(sum(shared.values()))} (first: {shown(next(iter(shared)))}): "
            "these rows are named by their content."
        )
    if unfit:
        log.notes.append(
            f"Ids that cannot be used in {_rows(unfit)} (over {MAX_ID_LENGTH} characters, control characters, or equal "
            "to a content id): these rows are named by their content."
        )
    return ids


def _sample(ids: Sequence[str], sources: Sequence[str], limit: int, seed: int) -> list[int]:
    """Return the positions of `limit` rows, in proportion over the sources, in reading order.

    Within a source rows are ordered by a hash of id and seed; the share of its source that a row completes is its key,
    so that a larger limit only adds rows.
    """
    from nncift.seeds import shuffled

    position = {example_id: k for k, example_id in enumerate(ids)}
    by_source: dict[str, list[str]] = {}
    for example_id, source in zip(ids, sources, strict=True):
        by_source.setdefault(source, []).append(example_id)
    keyed = [
        ((rank + 0.5) / len(members), example_id)
        for members in by_source.values()
        for rank, example_id in enumerate(shuffled(members, seed, "limit"))
    ]
    return sorted(position[example_id] for _, example_id in sorted(keyed)[:limit])


def _notes(log: _Log, layout: Layout) -> tuple[str, ...]:
    notes = list(log.notes)
    if log.unused_turns:
        notes.append(f"Turns after the last assistant turn in {_rows(log.unused_turns)}: they are not used.")
    if log.media:
        notes.append(f"Parts that are not text in {_rows(log.media)}: a placeholder such as [image] stands for them.")
    for column, count in sorted(log.ignored.items()):
        why = "tool definitions" if column == "tools" else "not text, or the turns have a system text of their own"
        notes.append(f"Column {shown(column)} in {_rows(count)} is not part of the prompt: {why}.")
    for column in sorted(set(layout.columns.values()) - log.mapped):
        notes.append(f"No row has the column {shown(column)} that map names.")
    return tuple(notes)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
