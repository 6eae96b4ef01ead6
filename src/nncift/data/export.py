"""From a finished run to the file that a trainer loads, checked before it is written (docs/export.md)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import Turns
from nncift.core.result_types import JsonObject
from nncift.core.texts import parsed_file, rows_of
from nncift.data import forms, trainers
from nncift.data.card import ExportResult, LeftOut, card_of, write_card
from nncift.data.conversation import Conversation, converse
from nncift.data.formats import scored
from nncift.data.layout import Layout
from nncift.data.lengths import LengthLimit, token_counter
from nncift.data.records import Row, kept_lines, kept_row, kind_of, shown, to_json
from nncift.data.starters import Start, check_is_ours, has_generation_marks, write_beside
from nncift.data.trainers import path_in
from nncift.data.turns import UnusableError
from nncift.errors import DataError, ResourceError, UsageError
from nncift.storage import checksums
from nncift.storage.atomic import atomic, write_json, write_text
from nncift.storage.outputs import check_replaces_nothing, inputs_of
from nncift.storage.selection_folder import read_selection

TRAINERS = ("same", "trl", "axolotl", "llamafactory", "openai")
TURNS = ("last", "all")
SUFFIXES = (".jsonl", ".json")
_SCORES = ("score", "gain", "stability")


@dataclass(frozen=True)
class _Selected:
    """A selected row: id, rank (from 1), source, its JSON text, and its scores by name."""

    id: str
    rank: int
    source: str
    raw: str
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Model:
    """The run's model, which is looked at where that is asked for: its name, and what tells where transformers reads it."""

    name: str | None
    locate: Callable[[str], str]

    def read(self, name: str | None) -> str | None:
        """Return where a model is read."""
        return None if name is None else self.locate(name)

    def has_marks(self) -> bool | None:
        """Tell whether its chat template has generation marks; None where it is not at hand."""
        try:
            return has_generation_marks(self.read(self.name))
        except ResourceError:
            return None


@dataclass
class _Exported:
    """Rows of the file, rows left out with their reason, what the user should know, and how to configure the trainer.

    several: rows of the file with several responses.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    options: JsonObject = field(default_factory=dict)
    pairs: bool = False
    several: int = 0

    def leave(self, selected: _Selected, reason: str) -> None:
        self.left_out.append(LeftOut(selected.id, selected.rank, reason))


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str = "same",
    turns: str | None = None,
    length: LengthLimit | None = None,
    with_scores: bool = False,
    locate: Callable[[str], str] = str,
) -> ExportResult:
    """Write the selected rows of a run for a trainer, in rank order, and return what was written.

    to: `same` (the rows as they were), `trl`, `axolotl`, `llamafactory` or `openai`. turns: `all` = every assistant turn that no
    mask excludes is learned from, `last` = only the last one; None = as the run scored. out: a `.jsonl` or `.json` file; what
    the trainer is started with and a card are written beside it, and LLaMA-Factory's `dataset_info.json` written or extended.
    Rows that the trainer would drop are left out, and listed in `left_out` with their reasons. length: rows beyond the trainer's
    limit are refused or left out. with_scores: rows carry their rank and scores in columns `nncift_...`. locate: returns where
    transformers reads the model that a name stands for.

    Raises UsageError for unknown names, for an input that would be replaced, and for a file beside `out` that no export left;
    DataError for a directory without a finished run, for rows that are too long, and where no row is left; ResourceError where
    the file cannot be written.
    """
    run, out = Path(run), Path(out)
    _check_settings(to, turns, out, with_scores)
    selected = _selected(run)
    settings = config.recorded(run / "manifest.yaml")
    # Rows as they are keep all their turns and marks.
    turns = turns or ("all" if to == "same" else settings.turns)
    check_replaces_nothing(out, inputs_of(settings), run)
    beside = Start(to, out, None, {}).file
    check_is_ours(card_of(out), *(() if beside is None else (beside,)))
    layout = Layout.from_settings(settings.format, settings.map)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        model = _Model(settings.model, locate)
        found = _converted(selected, layout, to, turns == "last", (length, model), with_scores)
        if to != "same" and found.several:
            found.notes.append(
                f"{rows_of(found.several)} have several responses: {_said_of_turns(turns, settings.turns)}"
            )
        lines = _lines(run, selected, found, to, as_read=to == "same" and not with_scores)
        _write(out, lines)
        files, start = [str(out)], None
        if to == "llamafactory":
            files.append(str(_register(out, found.rows)))
        left_out, notes = tuple(found.left_out), tuple(found.notes)
        record = ExportResult(str(run), to, turns, str(out), len(selected), len(lines), (), left_out, notes)
        files.append(str(write_card(run, record)))
        if to != "same":
            made = Start(to, out, settings.model, found.options, found.pairs, length.tokens if length else None)
            start = made.command
            if made.file is not None:
                write_beside(made.file, made.text)
                files.append(str(made.file))
    except OSError as error:
        raise ResourceError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    return replace(record, files=tuple(files), start=start)


def _lines(run: Path, selected: Sequence[_Selected], found: _Exported, to: str, *, as_read: bool) -> list[str]:
    """Return the JSON texts of the file's rows; as_read: as they were, to the byte, where none is left out.

    Raises DataError where there are none, or where they say something else when a trainer reads them.
    """
    if not found.rows:
        reasons = Counter(row.reason for row in found.left_out).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        raise DataError(f"none of the {len(selected)} selected rows can be exported to {to}: {why}")
    if as_read and not found.left_out:
        return [item.raw for item in selected]
    lines = [to_json(row) for row in found.rows]
    if any(json.loads(line) != row for line, row in zip(lines, found.rows, strict=True)):
        raise DataError(f"a row of {str(run)!r} holds values that JSON does not keep; export --to same")
    return lines


def _check_settings(to: str, turns: str | None, out: Path, with_scores: bool) -> None:
    """Raise UsageError for unknown names and for settings that contradict."""
    for what, given, known in (("--to", to, TRAINERS), ("--turns", turns, TURNS), ("--out", out.suffix, SUFFIXES)):
        if given is not None and given not in known:
            raise UsageError(f"{what} was given as {given!r}; expected one of {', '.join(known)}")
    if to == "same" and turns == "last":
        raise UsageError("--turns last was given with --to same, which leaves rows as they are; name a trainer")
    if to == "openai" and (with_scores or out.suffix != ".jsonl"):
        what = "--with-scores" if with_scores else f"--out {out.name}"
        raise UsageError(f"{what} was given with --to openai, which takes .jsonl files of its own columns alone")


def _said_of_turns(turns: str, of_run: Turns) -> str:
    """Return which responses a trainer learns from, beside those that the run scored."""
    if turns == of_run:
        return scored(of_run)
    learned = {"last": "the last", "all": "every one"}
    return f"this file learns from {learned[turns]}, and the run scored {learned[of_run]}."


def _selected(run: Path) -> list[_Selected]:
    checksums.verify(run, "subset.jsonl", "manifest.yaml")
    table = read_selection(run, _SCORES)
    chosen = sorted((line for line in table.to_pylist() if line["selected"]), key=itemgetter("rank"))
    try:
        rows = kept_lines(run / "subset.jsonl", len(chosen))
    except (OSError, ValueError) as error:
        raise DataError(f"subset.jsonl of {str(run)!r} cannot be read: {error}; run the same run again") from error
    return [
        _Selected(
            line["id"],
            line["rank"],
            line.get("source") or "",
            raw,
            {name: line[name] for name in _SCORES if name in line},
        )
        for line, raw in zip(chosen, rows, strict=True)
    ]


def _converted(
    selected: list[_Selected],
    layout: Layout,
    to: str,
    last: bool,
    limit: tuple[LengthLimit | None, _Model],
    with_scores: bool,
) -> _Exported:
    """Return the rows of the file. limit: the trainer's, and the run's model."""
    found = _Exported()
    talks: list[tuple[_Selected, Conversation]] = []
    for item in selected:
        try:
            talks.append((item, converse(kept_row(item.raw), layout.of(item.source))))
        except UnusableError as error:
            found.leave(item, str(error))
    if to == "same" and limit[0] is None:
        found.left_out.clear()
        found.rows = [kept_row(item.raw) for item in selected]
        kept = selected
        if held := sum(talk.holds_bytes for _, talk in talks):
            found.notes.append(f"Bytes of media go out as base64 text in {rows_of(held)}; trainers want their paths.")
    else:
        talks = _short_enough(talks, limit, found)
        kept = _made(talks, to, last, found, limit[1].has_marks)
    if with_scores:
        found.rows = [{**row, **_scores(item)} for item, row in zip(kept, found.rows, strict=True)]
    return found


def _scores(item: _Selected) -> Row:
    return {"nncift_rank": item.rank, **{f"nncift_{name}": value for name, value in item.scores.items()}}


def _short_enough(
    talks: list[tuple[_Selected, Conversation]], limit: tuple[LengthLimit | None, _Model], found: _Exported
) -> list[tuple[_Selected, Conversation]]:
    """Return the rows that a trainer does not cut. Raises DataError where others are not to be dropped."""
    length, model = limit
    if length is None:
        return talks
    if media := sum(talk.has_media for _, talk in talks):
        found.notes.append(f"Media in {rows_of(media)} take tokens that --max-length does not count.")
    count = token_counter(model.read(length.tokenizer or model.name))
    counts = [count(talk) for _, talk in talks]
    long = [(item, tokens) for (item, _), tokens in zip(talks, counts, strict=True) if tokens > length.tokens]
    if long and length.too_long == "refuse":
        item, tokens = max(long, key=itemgetter(1))
        raise DataError(
            f"{len(long)} of {len(talks)} rows have more than {length.tokens} tokens, and the trainer would cut their "
            f"responses; the longest is {item.id!r} with {tokens}. Leave them out with --too-long drop, or raise --max-length"
        )
    for item, _ in long:
        found.leave(item, f"too long: more than {length.tokens} tokens, and the trainer would cut the response")
    return [pair for pair, tokens in zip(talks, counts, strict=True) if tokens <= length.tokens]


def _made(
    talks: list[tuple[_Selected, Conversation]], to: str, last: bool, found: _Exported, marks: Callable[[], bool | None]
) -> list[_Selected]:
    """Add to `found` what the trainer is given for every conversation, and return of which rows that is.

    marks: tells whether the chat template of the run's model has generation marks, None where that is not known.
    """
    found.pairs = bool(talks) and all(talk.rejected is not None for _, talk in talks) and to != "same"
    sides = sum(talk.rejected is not None for _, talk in talks)
    if sides and not found.pairs and to != "same":
        found.notes.append(
            f"{rows_of(sides)} are pairs and others are not: they are written with their chosen side alone. Export pairs from a "
            "run of their own."
        )
        talks = [(item, replace(talk, rejected=None)) for item, talk in talks]
    make = _maker(talks, to, last, found, marks)
    types: dict[str, tuple[str, str]] = {}
    kept, written = [], []
    for item, talk in talks:
        try:
            row = make(
                item, replace(talk, media={name: list(map(path_in, paths)) for name, paths in talk.media.items()})
            )
            # OpenAI reads rows one by one, and the others tables.
            if to not in ("same", "openai"):
                _check_unmixed(row, types, item.id)
        except UnusableError as error:
            found.leave(item, str(error))
        else:
            found.rows.append(row)
            kept.append(item)
            written.append(talk)
    found.left_out.sort(key=attrgetter("rank"))
    if to != "same":
        _tell(written, found, to)
    return kept


def _maker(
    talks: list[tuple[_Selected, Conversation]], to: str, last: bool, found: _Exported, marks: Callable[[], bool | None]
) -> Any:
    """Return the function from row and conversation to a row of the file, the same for all; note how to configure the trainer."""
    if to == "same":
        return lambda item, _: kept_row(item.raw)
    conversations = [talk for _, talk in talks]
    # Parts that are all text are one text: templates of language models print a list as Python does.
    parts = any(talk.has_media_parts for talk in conversations)
    make = forms.form_of(conversations, to, last=last, parts=parts, pairs=found.pairs, marks=marks)
    found.notes += make.notes
    found.options.update(make.options)
    return lambda _, talk: make.row(talk)


def _check_unmixed(row: Row, types: dict[str, tuple[str, str]], example_id: str) -> None:
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
    found.several = sum(talk.responses > 1 for talk in talks)
    cut, media = sum(talk.cut > 0 for talk in talks), sum(talk.has_media for talk in talks)
    if cut:
        found.notes.append(f"Turns after the last response are cut in {rows_of(cut)}.")
    if media:
        found.notes.append(f"{rows_of(media)} have media: their paths are passed through, and only text was scored.")
    unread = Counter(key for talk in talks for key in {key for turn in talk.turns for key in turn.unread})
    for key, rows in sorted(unread.items())[:5]:
        found.notes.append(f"The key {shown(key)} of turns is left away in {rows_of(rows)}.")
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
    known: JsonObject = {}
    if path.exists():
        try:
            known = parsed_file(path)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{str(path)!r} is no JSON ({error}); mend it, or export to another folder") from error
        if not isinstance(known, dict):
            raise DataError(
                f"{str(path)!r} holds {kind_of(known)}, expected an object of data sets; export to another folder"
            )
    write_json(path, {**known, **trainers.dataset_info(out.stem, out.name, rows)})
    return path
