"""From a finished run to the file that a trainer loads, checked before it is written (docs/export.md)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncift import checksums, config
from nncift.data import trainers
from nncift.data.columns import read_columns
from nncift.data.conversation import MEDIA, Conversation, converse
from nncift.data.layout import Layout
from nncift.data.records import Row, kept_row, kind_of, to_json
from nncift.data.turns import UnusableError
from nncift.errors import DataError, ResourceError, UsageError
from nncift.files import atomic, write_json, write_text
from nncift.memory import pass_on

TRAINERS = ("same", "trl", "axolotl", "llamafactory")
TURNS = ("last", "all")
SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class _Selected:
    """A selected row: id, rank (from 1) and its JSON text."""

    id: str
    rank: int
    raw: str


@dataclass
class _Exported:
    """Rows of the file, rows left out with their reason, and what the user should know and set."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave(self, selected: _Selected, reason: str) -> None:
        self.left_out.append({"id": selected.id, "rank": selected.rank, "reason": reason})


def export(run: str | Path, out: str | Path, *, to: str = "same", turns: str = "all") -> dict[str, Any]:
    """Write the selected rows of a run for a trainer, in rank order, and return what was written.

    to: `same` (the rows as they were), `trl`, `axolotl` or `llamafactory`. turns: `all` = every assistant turn is learned
    from, `last` = only the last one, which is what nncift scored. out: a `.jsonl` or `.json` file; LLaMA-Factory's
    `dataset_info.json` is written or extended beside it. Rows that the trainer would drop are left out, and told in
    `left_out` with their reasons.

    Raises UsageError for unknown names, DataError for a directory without a finished run or where no row is left,
    ResourceError where the file cannot be written.
    """
    run, out = Path(run), Path(out)
    for what, given, known in (("--to", to, TRAINERS), ("--turns", turns, TURNS), ("--out", out.suffix, SUFFIXES)):
        if given not in known:
            raise UsageError(f"{what} was given as {given!r}; expected one of {', '.join(known)}")
    if to == "same" and turns == "last":
        raise UsageError("--turns last was given with --to same, which leaves rows as they are; name a trainer")
    selected = _selected(run)
    told: dict[str, Any] = {"run": str(run), "to": to, "turns": turns, "out": str(out), "selected": len(selected)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to == "same":
            _write(out, [item.raw for item in selected])
            return {**told, "rows": len(selected), "files": [str(out)], "left_out": [], "notes": []}
        found = _convert(selected, _layout(run), to, last=turns == "last")
        if not found.rows:
            why = "; ".join(
                f"{count} x {reason}" for reason, count in Counter(x["reason"] for x in found.left_out).most_common(3)
            )
            raise DataError(f"none of the {len(selected)} selected rows can be exported to {to}: {why}")
        # Read back as the trainer will read it: a file that is not JSON must never be left behind.
        lines = [to_json(row) for row in found.rows]
        if any(json.loads(line) != row for line, row in zip(lines, found.rows, strict=True)):
            raise DataError(f"a row of {str(run)!r} holds values that JSON does not keep; export --to same")
        _write(out, lines)
        files = [str(out)]
        if to == "llamafactory":
            files.append(str(_register(out, found.rows)))
    except OSError as error:
        raise ResourceError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    return {**told, "rows": len(found.rows), "files": files, "left_out": found.left_out, "notes": found.notes}


def _selected(run: Path) -> list[_Selected]:
    import pyarrow as pa

    checksums.verify(run, "selection.parquet", "subset.jsonl", "manifest.yaml")
    try:
        table = read_columns(run / "selection.parquet", ("id", "rank", "selected")).to_pylist()
        lines = (run / "subset.jsonl").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, pa.ArrowException) as error:
        pass_on(error)
        raise DataError(f"there is no finished run in {str(run)!r}: {str(error).splitlines()[0]}") from error
    chosen = sorted((line["rank"], line["id"]) for line in table if line["selected"])
    rows = [line for line in lines if line]
    if len(rows) != len(chosen):
        raise DataError(
            f"subset.jsonl in {str(run)!r} has {len(rows)} rows and selection.parquet {len(chosen)}; run the same command again"
        )
    return [_Selected(example_id, rank, raw) for (rank, example_id), raw in zip(chosen, rows, strict=True)]


def _layout(run: Path) -> Layout:
    settings = config.resolve(config.load(run / "manifest.yaml"))
    return Layout.from_settings(settings.format, settings.map)


def _convert(selected: list[_Selected], layout: Layout, to: str, *, last: bool) -> _Exported:
    found, talks = _Exported(), []
    for item in selected:
        try:
            talks.append((item, converse(kept_row(item.raw), layout)))
        except UnusableError as error:
            found.leave(item, str(error))
    make = _maker([talk for _, talk in talks], to, last, found.notes)
    types: dict[str, tuple[str, str]] = {}
    kept = []
    for item, talk in talks:
        try:
            row = _media_as_lists(make(talk))
            _refuse_mixed(row, types, item.id)
        except UnusableError as error:
            found.leave(item, str(error))
        else:
            found.rows.append(row)
            kept.append(talk)
    _tell(kept, found, to)
    return found


def _maker(conversations: list[Conversation], to: str, last: bool, notes: list[str]) -> Any:
    """Return the function from conversation to row that suits all rows of one file, and note what the trainer must be told."""
    several = sum(talk.responses > 1 for talk in conversations)
    if to == "llamafactory":
        if last and several:
            notes.append(
                f"{_rows(several)} have several responses: set `mask_history: true`, so that only the last is learned from."
            )
        plain = all(talk.alpaca is not None and not any(turn.calls for turn in talk.turns) for talk in conversations)
        return trainers.alpaca if plain else trainers.sharegpt
    parts = any(isinstance(turn.content, list) for talk in conversations for turn in talk.turns)
    if to == "axolotl":
        notes.append("In the axolotl config: `type: chat_template`, `field_messages: messages`.")
        if last:
            notes.append("For `training` to count, set `message_field_training: training`.")
        return lambda talk: trainers.axolotl(talk, last=last, parts=parts)
    if last and several:
        notes.append(
            f"{_rows(several)} have several responses, so that rows are `prompt` and `completion`: TRL learns from the second."
        )
    elif not last:
        notes.append("Set `assistant_only_loss=True` in SFTConfig, so that only assistant turns are learned from.")
    return lambda talk: trainers.trl(talk, last=last and several > 0, parts=parts)


def _media_as_lists(row: Row) -> Row:
    return {key: [value] if key in MEDIA and not isinstance(value, list) else value for key, value in row.items()}


def _refuse_mixed(row: Row, types: dict[str, tuple[str, str]], example_id: str) -> None:
    """Keep one type per column. Raises UnusableError where a value has another type than in an earlier row."""
    found = dict(_types(row, ""))
    for path, kind in found.items():
        first, whose = types.get(path, (kind, example_id))
        if first != kind:
            raise UnusableError(
                f"mixed types: {path} is {kind} here and {first} in row {whose}; tables hold one type per column"
            )
    for path, kind in found.items():
        types.setdefault(path, (kind, example_id))


def _types(value: Any, path: str) -> Iterator[tuple[str, str]]:
    # Arguments differ from tool to tool by their nature; `_tell` says what that means.
    if value is None or (path.endswith(".arguments") and isinstance(value, dict)):
        return
    if isinstance(value, dict):
        yield path, "an object"
        for key, item in value.items():
            yield from _types(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        yield path, "a list"
        for item in value:
            yield from _types(item, f"{path}[]")
    else:
        yield path, kind_of(value).partition(" (")[0]


def _tell(talks: list[Conversation], found: _Exported, to: str) -> None:
    """Note what is cut and passed through of the rows that are written."""
    cut, media = sum(talk.cut > 0 for talk in talks), sum(talk.has_media for talk in talks)
    if cut:
        found.notes.append(f"Turns after the last response are cut in {_rows(cut)}.")
    if media:
        found.notes.append(f"{_rows(media)} have media: their paths are passed through, and only text was scored.")
    shapes = (
        {frozenset(call.value) for talk in talks for turn in talk.turns for call in turn.calls}
        if to == "trl"
        else set()
    )
    if len(shapes) > 1:
        found.notes.append(
            "Tool calls have different arguments: load the file with datasets 5 or newer, older releases fill the arguments of "
            "other tools in with null."
        )


def _write(out: Path, lines: Iterable[str]) -> None:
    if out.suffix == ".jsonl":
        with atomic(out) as part, part.open("wb") as stream:
            stream.writelines(line.encode("utf-8") + b"\n" for line in lines)
    else:
        write_text(out, "[\n" + ",\n".join(lines) + "\n]\n")


def _register(out: Path, rows: list[Row]) -> Path:
    """Add the stanza to the `dataset_info.json` beside the file; others' stanzas stay as they are."""
    path = out.with_name("dataset_info.json")
    known: Mapping[str, Any] = {}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{str(path)!r} is no JSON ({error}); mend it, or export to another folder") from error
        if not isinstance(known, dict):
            raise DataError(
                f"{str(path)!r} holds {kind_of(known)}, expected an object of data sets; export to another folder"
            )
    write_json(path, {**known, **trainers.dataset_info(out.stem, out.name, rows)})
    return path


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
