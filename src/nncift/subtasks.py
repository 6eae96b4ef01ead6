"""Subtasks of a target set: a source counts by the subtask that it helps most (method.md 3.3; LESS, section 4.2).

A column of the target rows names each row's subtask. A source's utility for a subtask is its mean over the subtask's
rows, and its score the maximum over subtasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.files import write_json
from nncift.pairs import UtilityMatrix
from nncift.rundir import RunDir

FILE = "subtasks.json"
BEST = ("best subtask",)
"""The one target that is left: the subtask that a source helps most."""


def column_of(teacher: Any) -> str | None:
    """Return the column that names subtasks, None for a teacher that was given none."""
    column: str | None = getattr(teacher, "subtask", None)
    return column


def refuse_unfit(column: str | None, target: Examples | None, objective: str) -> None:
    """Raise UsageError or DataError where subtasks are named and cannot be used."""
    if column is None:
        return
    if target is None:
        raise UsageError(
            f"the option subtask={column} names subtasks of a target set, and there is none; give --target"
        )
    refuse_other(objective)
    names(target, column)


def refuse_other(objective: str) -> None:
    """Raise UsageError for an objective that does not choose by score."""
    if objective not in ("topk", "random"):
        raise UsageError(
            f"with subtasks, a row is scored by the one that it helps most, which needs --objective topk, not {objective}"
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


def best_subtask(matrix: UtilityMatrix, subtask_of: Mapping[str, str]) -> UtilityMatrix:
    """Return the maximum over subtasks of a source's mean utility within each, as a matrix with one target.

    Missing values are left out of a mean; a subtask without any value for a source does not count for it.
    """
    own = np.array([subtask_of[item] for item in matrix.target_ids])
    best = np.full(len(matrix.source_ids), -np.inf)
    for name in sorted(set(own)):
        members = UtilityMatrix((name,) * int((own == name).sum()), matrix.source_ids, matrix.values[own == name])
        mean = members.mean_per_source()
        best = np.where(np.isnan(mean), best, np.maximum(best, mean))
    best[np.isinf(best)] = np.nan
    return UtilityMatrix(BEST, matrix.source_ids, np.asfortranarray(best[None].astype(np.float32)))
