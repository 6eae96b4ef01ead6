"""Subtasks of a target set (method.md 3.3; LESS, section 4.2): a column of the target rows names each row's subtask.

With `rr` subtasks take turns. With `topk` and `max` a source counts by the subtask that it helps most: its utility for a subtask
is the mean over the subtask's rows.
"""

from __future__ import annotations

from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import RunDir

FILE = "subtasks.json"
OBJECTIVES = ("rr", "topk", "max", "random")
"""Objectives that know subtasks."""


def check_fits(column: str | None, target: Examples | None, objective: str) -> None:
    """Raise UsageError or DataError where subtasks are named and cannot be used."""
    if column is None:
        return
    if target is None:
        raise UsageError(
            f"the option subtask={column} names subtasks of a target set, and there is none; give --target"
        )
    check_knows_subtasks(objective)
    names(target, column)


def check_knows_subtasks(objective: str) -> None:
    """Raise UsageError for an objective that does not know subtasks."""
    if objective not in OBJECTIVES:
        raise UsageError(
            f"with subtasks, rows are taken for each subtask in turn (--objective rr) or by the subtask that they help most "
            f"(topk, max), and the objective is {objective}; give one of these"
        )


def keep(directory: RunDir, target: Examples | None, column: str | None) -> dict[str, str] | None:
    """Return every target's subtask by id, None where none are named, and leave it in the run for later selections."""
    if column is None or target is None:
        return None
    write_json(directory.file(FILE), names(target, column))
    return kept(directory)


def kept(directory: RunDir) -> dict[str, str] | None:
    """Return what `keep` left in a run."""
    found: dict[str, str] | None = directory.read_json(FILE)
    return found


def named_in(examples: Examples, column: str | None) -> dict[str, str]:
    """Return the subtasks of those rows that name one, by id."""
    if column is None:
        return {}
    return {row.id: str(row.row[column]).strip() for row in examples if column in row.row}


def names(target: Examples, column: str) -> dict[str, str]:
    """Return every target's subtask by id. Raises DataError where a row has none."""
    found = {}
    for row in target:
        value = row.row.get(column)
        if value is None or isinstance(value, dict | list) or not str(value).strip():
            raise DataError(
                f"{row.source} line {row.line} has no text or number in column {column!r}, which names its subtask; give "
                "one to every row of the target set, or leave the option subtask out"
            )
        found[row.id] = str(value).strip()
    return found
