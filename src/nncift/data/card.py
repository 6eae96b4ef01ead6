"""The card of an exported file: what was selected, how, and from what, for whoever is given it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nncift import config
from nncift.core.result_types import OPTIONAL, JsonObject, Record
from nncift.core.texts import parsed_file, plain
from nncift.data.starters import write_beside
from nncift.errors import DataError
from nncift.storage import checksums
from nncift.storage.selection_folder import run_behind

SUFFIX = ".card.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SHOWN = (
    "teacher",
    "labels",
    "student",
    "encoder",
    "objective",
    "budget",
    "quota",
    "dedup",
    "holdout",
    "limit",
    "seed",
)
"""Settings that say how rows were selected, where they are given."""


@dataclass(frozen=True)
class LeftOut(Record):
    """A selected row that is not in an exported file."""

    id: str
    rank: int
    reason: str


@dataclass(frozen=True)
class ExportResult(Record):
    """What an export wrote. selected, rows: of the run, and of the file. start: the command that starts the trainer."""

    run: str
    to: str
    turns: str
    out: str
    selected: int
    rows: int
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    start: str | None = field(default=None, metadata=OPTIONAL)


def write_card(run: Path, record: ExportResult) -> Path:
    """Write the card beside an exported file, and return its path."""
    out, place = Path(record.out), run / "manifest.yaml"
    path = card_of(out)
    settings = config.recorded(place).model_dump(mode="json", exclude_none=True)
    summary = _summary(run)
    try:
        text = card(settings, summary, record)
    # Files that somebody has edited may hold anything in any place.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"summary.json of {str(run)!r} is damaged ({error!r}); run the same `nncift run` again"
        ) from error
    write_beside(path, text)
    return path


def card_of(out: Path) -> Path:
    """Return where the card of an exported file lies."""
    return out.with_name(out.stem + SUFFIX)


def card(settings: JsonObject, summary: JsonObject, record: ExportResult) -> str:
    """Return the card. settings, summary: of the run, and of the selection; summary is empty where it is not at hand."""
    name = Path(str(record.out)).name
    size = next((words for most, words in _SIZES if record.rows < most), "n>1M")
    head = {
        "configs": [{"config_name": "default", "data_files": name}],
        "size_categories": [size],
        "tags": ["nncift", "data-selection"],
    }
    pool = ", ".join(plain(Path(str(one)).name) for one in settings.get("pool", ())) or "rows given from Python"
    of = f" of {summary['pool']:,} usable rows" if "pool" in summary else ""
    made = f" for {record.to}" if record.to != "same" else ", as they were"
    model = f", on the language model `{plain(Path(str(settings['model'])).name)}`" if settings.get("model") else ""
    given = {key: settings[key] for key in _SHOWN if settings.get(key) not in (None, "", [], {})}
    shown = [(key, ", ".join(map(str, one)) if isinstance(one, list) else str(one)) for key, one in given.items()]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# {plain(name)}",
            "",
            f"{record.rows:,} rows{made}, in the order of their rank: {record.selected:,} were selected{of} by "
            "[nncift](https://arxiv.org/abs/2502.09969), for what training on each adds.",
            "",
            f"- From: {pool}.",
            f"- By: the influence function `{plain(str(settings.get('teacher', 'less')))}`{model}.",
            *_about(summary),
            *_turns(record),
            *(f"- Left out, {count:,} x {plain(reason)}." for reason, count in _reasons(record.left_out)),
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | {plain(value)} |" for key, value in shown),
            "",
            "What rows say, and under which licence, is that of the files they come from. Scores do not tell whether a row is "
            "true or safe.",
            "",
        ]
    )


def _about(summary: JsonObject) -> list[str]:
    """Return lines on what was kept away from the selection, and on how good it is."""
    lines = []
    if summary.get("contaminated"):
        lines.append(f"- {summary['contaminated']:,} rows that test rows are in were left out before.")
    if summary.get("holdout"):
        lines.append(f"- {summary['holdout']:,} rows were set aside before, and are not in this file.")
    gate = summary.get("gate", {})
    found = gate.get("skill", {}).get(gate.get("used"))
    if found:
        low, high = found["interval"]
        lines.append(
            f"- Selection skill on held-out rows: {found['skill']:.2f} (90 % interval {low:.2f} to {high:.2f}; 0 is chance, 1 "
            "the teacher's labels of all rows)."
        )
    return lines


def _turns(record: ExportResult) -> list[str]:
    if record.to == "same":
        return []
    which = "the last response" if record.turns == "last" else "every assistant turn that no mask excludes"
    return [f"- Learned from: {which}. What was scored is the last response that is learned from."]


def _reasons(left_out: Iterable[LeftOut]) -> list[tuple[str, int]]:
    return Counter(row.reason.partition(":")[0] for row in left_out).most_common()


def _summary(run: Path) -> JsonObject:
    """Return the summary of the run behind a folder; nothing where it is not at hand, for what is exported is in the folder.

    Raises DataError for one that is damaged.
    """
    try:
        behind = run_behind(run)
    except DataError:
        return {}
    place = behind / "summary.json"
    if not place.exists():
        return {}
    checksums.verify(behind, place.name)
    try:
        found = parsed_file(place)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(place)!r} is damaged ({error}); run the same `nncift run` again") from error
    if not isinstance(found, dict):
        raise DataError(f"{str(place)!r} is damaged: it holds no object; run the same `nncift run` again")
    return found
